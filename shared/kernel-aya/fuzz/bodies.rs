//! What the fuzz target does with bytes from outside. The tests of the crate do the same with every file
//! of `corpus/`: a panic here is a failure there.

/// An object, as a chain's member has it.
pub(crate) fn object(bytes: &[u8]) {
    match canopy_kernel_aya::read_object(bytes) {
        Ok(functions) => assert!(functions.iter().all(|name| !name.is_empty())),
        // It goes into an answer to a person.
        Err(why) => assert!(!why.is_empty() && why.len() < 1 << 20),
    }
}
