//! `canopy-registry --config FILE`

use canopy_api::endpoint::Service;
use std::process::ExitCode;

fn main() -> ExitCode {
    canopy_runtime::run(Service::Registry, canopy_registry::METRICS, canopy_registry::start)
}
