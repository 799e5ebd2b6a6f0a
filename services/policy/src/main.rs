//! The process: everything else is in the library.

use canopy_api::endpoint::Service;
use canopy_policy::{METRICS, start};
use std::process::ExitCode;

fn main() -> ExitCode {
    canopy_runtime::run(Service::Policy, METRICS, start)
}
