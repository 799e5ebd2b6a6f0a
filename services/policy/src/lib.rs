//! The policy service: who may connect, and what they may do.
//!
//! **Promises:**
//!
//! 1. Nobody is let in whom certificate and token together do not make somebody; in doubt, refused.
//! 2. A token that was regenerated or revoked opens no connection from that moment on, and its live
//!    connections are ended.
//! 3. Several instances agree: what is in force is one value a person, changed by compare and swap.
//! 4. While it is away nobody new connects, and whoever is connected goes on.
//!
//! What was done is published on `canopy.v1.audit.>` by the service that did it, and not stored yet.
//! Admission rules and the audit trail are planned.
//!
//! **Owns:** tokens, the answers to the bus server. **Must not know:** packages, kernels, hosts'
//! insides.

mod auth;
pub mod commands;
mod config;
mod connect;
mod connections;
mod metrics;
mod tokens;
mod trust;

pub use config::{AuthConfig, Config};
pub use metrics::METRICS;

use auth::Auth;
use canopy_api::{endpoint::Service, permission::daemon_principal};
use canopy_bus::{Bus, Server};
use canopy_runtime::Context;

/// Serves until told to end.
pub async fn start(config: Config, cx: Context) -> anyhow::Result<()> {
    let bus = Bus::connect(&config.bus, daemon_principal(Service::Policy, None)?).await?;
    let mut server = Server::new(bus.clone(), Service::Policy, None)
        .health(cx.health())
        .observe(cx.observe())
        .bus_events(cx.bus_events())
        .on_ready(cx.bus.reporter());
    if let Some(auth) = &config.auth {
        let Some(auth) = Box::pin(Auth::start(&config, auth, &bus, &cx)).await? else {
            return Ok(());
        };
        server = auth.serve(server);
    } else {
        tracing::warn!(
            "no `auth` in the configuration: the bus server's own says who may connect, and there are no tokens"
        );
        server = auth::without(server);
    }
    server.serve(cx.shutdown.clone()).await?;
    bus.close().await;
    Ok(())
}
