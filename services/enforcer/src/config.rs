//! Configuration of the service.

use canopy_api::name::HostId;
use canopy_bus::BusConfig;
use canopy_runtime::{NamedFiles, RuntimeConfig, ServiceConfig};
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::Path;

/// Configuration of the enforcer of one host.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The host it runs on, by its enrolled id.
    pub host: HostId,
    /// How to reach the bus. The certificate's URI name is `spiffe://canopy/h-<host>-enforcer`.
    pub bus: BusConfig,
    /// Logs, metrics, traces.
    #[serde(default)]
    pub runtime: RuntimeConfig,
}

impl ServiceConfig for Config {
    fn runtime(&self) -> &RuntimeConfig {
        &self.runtime
    }

    fn check_files(&self, files: &mut NamedFiles) {
        files.bus(&self.bus.ca, &self.bus.cert, &self.bus.key);
    }

    fn own_key(&self) -> Option<&Path> {
        Some(&self.bus.key)
    }
}
