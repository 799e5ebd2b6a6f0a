//! The process: everything else is in the library.

use canopy_api::endpoint::Service;
use canopy_policy::{METRICS, commands, start};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match commands::run(&args) {
        Some(code) => code,
        None => canopy_runtime::run(Service::Policy, METRICS, start),
    }
}
