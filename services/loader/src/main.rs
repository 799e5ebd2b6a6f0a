//! `canopy-loader --config FILE`

use canopy_api::endpoint::Service;
use std::process::ExitCode;

fn main() -> ExitCode {
    canopy_runtime::run(Service::Loader, canopy_loader::METRICS, canopy_loader::start)
}
