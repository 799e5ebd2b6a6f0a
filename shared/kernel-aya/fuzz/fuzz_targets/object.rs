#![no_main]

#[path = "../bodies.rs"]
mod bodies;

use std::sync::Once;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // The crate catches the panics of aya-obj; the fuzzer's own hook would end the process at them. A
    // panic that is not caught ends it all the same.
    static QUIET: Once = Once::new();
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    bodies::object(bytes);
});
