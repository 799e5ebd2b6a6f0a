//! Makes one change of a loader's chains, for a test that kills it in the middle.

use std::process::ExitCode;

#[allow(clippy::print_stdout, clippy::print_stderr, reason = "read by the test")]
fn main() -> ExitCode {
    let task = std::env::args().nth(1).unwrap_or_default();
    match canopy_kernel_tests::host::perform(&task) {
        Ok(host) => {
            println!("{}", serde_json::to_string(&host).unwrap_or_default());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(3)
        }
    }
}
