//! The process: everything else is in the library.

use canopy_api::endpoint::Service;
use canopy_enforcer::{METRICS, start};
use std::process::ExitCode;

fn main() -> ExitCode {
    canopy_runtime::run(Service::Enforcer, METRICS, start)
}
