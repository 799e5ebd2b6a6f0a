//! Configuration of the service.

use canopy_bus::BusConfig;
use canopy_runtime::{RuntimeConfig, ServiceConfig};
use schemars::JsonSchema;
use serde::Deserialize;

/// Configuration of the policy service.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How to reach the bus. The certificate's URI name is `spiffe://canopy/s-policy`.
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
