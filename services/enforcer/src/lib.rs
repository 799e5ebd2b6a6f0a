//! The enforcer of a host: notices tampering with what the loader attached, and answers it.
//!
//! **Today** it is a process on the bus that answers `health` and `version` and serves metrics. It
//! detects nothing yet: the loader's own one-second check restores what is removed. Detection,
//! attribution and the modes observe, enforce and secure are planned; the endpoint table
//! (`canopy_api::endpoint::enforcer`) names the verbs.
//!
//! **Owns:** nothing yet. **Must not know:** packages, how chains are built.

mod config;
mod metrics;

pub use config::Config;
pub use metrics::METRICS;

use canopy_api::{endpoint::Service, permission::daemon_principal};
use canopy_bus::{Bus, Server};
use canopy_runtime::Context;

/// Serves until told to end.
pub async fn start(config: Config, cx: Context) -> anyhow::Result<()> {
    let me = daemon_principal(Service::Enforcer, Some(&config.host))?;
    let bus = Bus::connect(&config.bus, me).await?;
    Server::new(bus.clone(), Service::Enforcer, Some(config.host))
        .health(cx.health())
        .observe(cx.observe())
        .bus_events(cx.bus_events())
        .on_ready(cx.bus.reporter())
        .serve(cx.shutdown.clone())
        .await?;
    bus.close().await;
    Ok(())
}
