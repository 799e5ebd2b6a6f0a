//! The certificate monitor: says in time which certificates are about to expire or are wrong.
//!
//! **Today** it is a process on the bus that answers `health` and `version` and serves metrics. It
//! watches nothing yet. Watching files and live endpoints is planned; the endpoint table
//! (`canopy_api::endpoint::cert_monitor`) names the verbs.
//!
//! **Owns:** nothing yet. **Must not know:** packages, kernels, who may do what. It never stops
//! what it watches.

mod config;
mod metrics;

pub use config::Config;
pub use metrics::METRICS;

use canopy_api::{endpoint::Service, permission::daemon_principal};
use canopy_bus::{Bus, Server};
use canopy_runtime::Context;

/// Serves until told to end.
pub async fn start(config: Config, cx: Context) -> anyhow::Result<()> {
    let bus = Bus::connect(&config.bus, daemon_principal(Service::CertMonitor, None)?).await?;
    Server::new(bus.clone(), Service::CertMonitor, None)
        .health(cx.health())
        .observe(cx.observe())
        .bus_events(cx.bus_events())
        .on_ready(cx.bus.reporter())
        .serve(cx.shutdown.clone())
        .await?;
    bus.close().await;
    Ok(())
}
