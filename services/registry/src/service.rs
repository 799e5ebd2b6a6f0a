//! The registry as a process.

use crate::{
    config::Config,
    handlers,
    metrics::Metrics,
    registry::{Registry, RepositoryHealth},
};
use canopy_api::{endpoint::Service, permission};
use canopy_bus::{Bus, Server};
use canopy_runtime::{Context, Latch, clock};
use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};
use tokio::time::{MissedTickBehavior, interval};

/// Runs the registry until it is asked to end.
pub async fn start(config: Config, cx: Context) -> anyhow::Result<()> {
    let latch = cx.readiness.latch("repositories");
    let metrics = Metrics::register(&cx.metrics)?;
    let registry =
        Arc::new(Registry::new(&config.repositories, config.cache_bytes, metrics, seconds));
    let every = Duration::from_secs(config.refresh_seconds);
    cx.tasks.spawn(watch(Arc::clone(&registry), every, latch, cx.clone()));

    let principal = permission::daemon_principal(Service::Registry, None)?;
    let bus = Bus::connect(&config.bus, principal).await?;
    let server = Server::new(bus.clone(), Service::Registry, None)
        .health(cx.health())
        .observe(cx.observe())
        .bus_events(cx.bus_events())
        .on_ready(cx.bus.reporter());
    let ended = handlers::register(server, &registry).serve(cx.shutdown.clone()).await;
    bus.close().await;
    Ok(ended?)
}

/// Looks at the repositories again and again.
async fn watch(registry: Arc<Registry>, every: Duration, latch: Latch, cx: Context) {
    let mut timer = interval(every);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cx.shutdown.cancelled() => return,
            _ = timer.tick() => {}
        }
        let health = registry.refresh().await;
        latch.set(health.iter().any(|one| one.usable), said(&health));
    }
}

/// Ready while any repository can be used: one that is lost must not take the others with it.
fn said(health: &[RepositoryHealth]) -> String {
    let each = health.iter().map(|one| format!("{}: {}", one.name, one.detail));
    each.collect::<Vec<_>>().join("; ")
}

fn seconds() -> u64 {
    clock::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
