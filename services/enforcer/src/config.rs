//! Configuration of the service.

use canopy_api::name::HostId;
use canopy_bus::BusConfig;
use canopy_runtime::{RuntimeConfig, ServiceConfig};
use schemars::JsonSchema;
use serde::Deserialize;

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
}
