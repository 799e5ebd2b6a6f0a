//! In which order members stand makes little difference to what the verifier has to walk, and so to how
//! long a chain takes to load.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code: a failure is a panic")]

use canopy_api::Hook;
use canopy_kernel::Member;
use canopy_kernel_aya::sys;
use canopy_kernel_tests::chain::{Chains, member, object, object_with, packet};
use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

/// The programs of `corpus/load_order.bpf.c`.
const FUNCTIONS: [&str; 10] = [
    "find_byte",
    "match_text",
    "tcp_options",
    "gather_flags",
    "long_list",
    "lookups",
    "headers",
    "checksum",
    "nested",
    "small",
];

/// Each of the programs, and two again that take the verifier 150,000 instructions each.
fn members() -> Vec<Member> {
    let plain = FUNCTIONS.map(|function| (object("load_order"), function));
    let heavy = ["tcp_options", "tcp_options"]
        .map(|function| (object_with("load_order", &["-DOPTIONS=8"]), function));
    let named = |(number, (object, function)): (usize, (_, &str))| {
        member(&format!("m{number:02}"), Hook::Xdp, &object, function)
    };
    plain.into_iter().chain(heavy).enumerate().map(named).collect()
}

/// Functions of a generation's program, `main` included.
fn functions(chains: &Chains, generation: u64) -> usize {
    let path = chains.kernel.pins().prog(&Chains::key(Hook::Xdp), generation);
    sys::prog_records(&sys::obj_get(&path).unwrap()).unwrap().function_types.len()
}

#[test]
fn no_order_takes_thrice_the_verified_instructions() {
    let mut random = StdRng::seed_from_u64(23);
    let mut members = members();
    let chains = Chains::new();
    let mut walked = Vec::new();
    let mut shapes = Vec::new();
    for generation in 1..=6 {
        walked.push(chains.load(Hook::Xdp, generation, members.clone()).verified_instructions);
        shapes.push(functions(&chains, generation));
        assert_eq!(chains.run(Hook::Xdp, generation, &packet(&[0; 64])).retval, 2);
        let cells = chains.cells(Hook::Xdp, generation);
        assert!(cells.iter().all(|member| member.runs() == 1), "{cells:?}");
        members.shuffle(&mut random);
    }
    let (best, worst) = (walked.iter().min().unwrap(), walked.iter().max().unwrap());
    assert!(*worst <= 3 * *best, "{walked:?}");
    // The same members are inlined in every order, and some are.
    assert!(shapes.iter().all(|shape| *shape == shapes[0]), "{shapes:?}");
    assert!((2..=FUNCTIONS.len()).contains(&shapes[0]), "{shapes:?}");
}
