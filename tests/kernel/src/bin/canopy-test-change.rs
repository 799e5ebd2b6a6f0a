//! Makes one change of a loader's chains, for a test that kills it in the middle.

use std::process::ExitCode;

#[allow(clippy::print_stdout, clippy::print_stderr, reason = "read by the test")]
fn main() -> ExitCode {
    let task = std::env::args().nth(1).unwrap_or_default();
    match canopy_kernel_tests::host::perform(&task) {
        Ok(done) => {
            println!("{}", serde_json::to_string(&done.host).unwrap_or_default());
            done.failed.iter().for_each(|failed| eprintln!("{failed}"));
            ExitCode::from(if done.failed.is_empty() { 0 } else { 4 })
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(3)
        }
    }
}
