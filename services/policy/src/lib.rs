//! The policy service: who may do what, and what was done.
//!
//! **Today** it is a process on the bus that answers `health` and `version` and serves metrics.
//! Who may do what is decided by the bus server, from permissions generated out of the endpoint
//! table; what was done is published on `canopy.v1.audit.>` by the service that did it, and not
//! stored yet. Tokens, roles, admission rules and the audit trail are planned; the endpoint table
//! (`canopy_api::endpoint::policy`) names their verbs.
//!
//! **Owns:** nothing yet. **Must not know:** packages, kernels, hosts' insides.

mod config;
mod metrics;

pub use config::Config;
pub use metrics::METRICS;

use canopy_api::{endpoint::Service, permission::daemon_principal};
use canopy_bus::{Bus, Server};
use canopy_runtime::Context;

/// Serves until told to end.
pub async fn start(config: Config, cx: Context) -> anyhow::Result<()> {
    let bus = Bus::connect(&config.bus, daemon_principal(Service::Policy, None)?).await?;
    Server::new(bus.clone(), Service::Policy, None)
        .health(cx.health())
        .observe(cx.observe())
        .bus_events(cx.bus_events())
        .on_ready(cx.bus.reporter())
        .serve(cx.shutdown.clone())
        .await?;
    bus.close().await;
    Ok(())
}
