//! The registry as a process.

use crate::{
    config::{AuditConfig, Config},
    current::Current,
    handlers,
    index_state::{IndexState, StateError},
    metrics::Metrics,
    registry::{Registry, RepositoryHealth},
};
use canopy_api::{endpoint::Service, permission, wire::PackageRefused};
use canopy_bus::{Bus, Server, Spool, forward};
use canopy_runtime::{ConfigFile, Context, Latch, clock};
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};
use tokio::{
    sync::mpsc::{self, Receiver},
    time::{MissedTickBehavior, interval, timeout},
};

/// Refusals that wait to be told.
const REFUSALS: usize = 64;

/// How often the configuration file is looked at.
const CONFIGURATION: Duration = Duration::from_secs(1);

/// Runs the registry until it is asked to end.
pub async fn start(config: Config, cx: Context) -> anyhow::Result<()> {
    let latch = cx.readiness.latch("repositories");
    let metrics = Metrics::register(&cx.metrics)?;
    let (tell, refused) = mpsc::channel(REFUSALS);
    let (repositories, cache) = (&config.repositories, config.cache_bytes);
    let versions = index_state(&config).await?;
    let registry = Registry::remembering(repositories, cache, metrics.clone(), seconds, versions)
        .telling(tell);
    let current = Arc::new(Current::new(registry, metrics, &config));
    let every = Duration::from_secs(config.refresh_seconds);
    cx.tasks.spawn(watch(Arc::clone(&current), every, latch, cx.clone()));

    let principal = permission::daemon_principal(Service::Registry, None)?;
    let bus = Bus::connect(&config.bus, principal).await?;
    cx.tasks.spawn(publish(bus.clone(), refused, cx.clone()));
    let mut server = Server::new(bus.clone(), Service::Registry, None)
        .health(cx.health())
        .observe(cx.observe())
        .bus_events(cx.bus_events())
        .on_ready(cx.bus.reporter());
    if let Some(audit) = config.audit {
        server = server.audit(trail(audit, &bus, &cx).await?);
    } else {
        tracing::warn!(
            "no `audit` in the configuration: what is published leaves no lasting record here"
        );
    }
    let ended = handlers::register(server, &current, &bus).serve(cx.shutdown.clone()).await;
    bus.close().await;
    Ok(ended?)
}

/// Reads which index versions were seen before the last restart.
async fn index_state(config: &Config) -> anyhow::Result<IndexState> {
    let open =
        async |dir: PathBuf| tokio::task::spawn_blocking(move || IndexState::open(&dir)).await;
    if let Some(dir) = &config.state_dir {
        return Ok(open(dir.clone()).await??);
    }
    let Some(dir) = config.default_state_dir() else {
        tracing::warn!(
            "no `state_dir` in the configuration: after a restart an older state of a repository is not \
             recognised here"
        );
        return Ok(IndexState::in_memory());
    };
    match open(dir).await? {
        // What was remembered is not given up for nothing.
        Err(error @ StateError::Damaged { .. }) => Err(error.into()),
        Err(error) => {
            tracing::warn!(
                "{}: after a restart an older state of a repository is not recognised here; set \
                 `state_dir` in the configuration",
                error.in_full()
            );
            Ok(IndexState::in_memory())
        }
        Ok(versions) => Ok(versions),
    }
}

/// Opens the audit trail, and has copies of it stored.
async fn trail(config: AuditConfig, bus: &Bus, cx: &Context) -> anyhow::Result<Arc<Spool>> {
    let tell = cx.readiness.latch("audit").reporter();
    let writer = bus.principal().clone();
    let opened = tokio::task::spawn_blocking(move || {
        Spool::new(config.dir, writer, config.bytes, clock::now(), tell)
    });
    let spool = Arc::new(opened.await?);
    cx.tasks.spawn(forward::to_policy(bus.clone(), Arc::clone(&spool), cx.shutdown.clone()));
    Ok(spool)
}

/// Tells the bus what was refused.
async fn publish(bus: Bus, mut refused: Receiver<PackageRefused>, cx: Context) {
    loop {
        let refused = tokio::select! {
            () = cx.shutdown.cancelled() => return,
            refused = refused.recv() => refused,
        };
        let Some(refused) = refused else { return };
        let told = bus.publish_event(Service::Registry, "package", "refused", None, &refused);
        if let Err(error) = told.await {
            tracing::warn!(%error, "the bus was not told of a refusal");
        }
    }
}

/// Looks at the repositories again and again, and at the configuration.
async fn watch(current: Arc<Current>, mut every: Duration, latch: Latch, cx: Context) {
    let mut file = cx.config_file.clone();
    let mut timer = interval(CONFIGURATION);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut due = clock::monotonic();
    let mut looking = None;
    loop {
        tokio::select! {
            () = cx.shutdown.cancelled() => return,
            _ = timer.tick() => {}
        }
        let look = looking.get_or_insert_with(|| {
            let mut file = file.take();
            tokio::task::spawn_blocking(move || {
                let changed = file.as_mut().and_then(ConfigFile::changed::<Config>);
                (file, changed)
            })
        });
        match timeout(CONFIGURATION, look).await {
            // A file system that hangs keeps the repositories from nothing; the look goes on meanwhile.
            Err(_) => {}
            Ok(Err(_)) => {
                tracing::error!("the configuration is not followed any more; restart the registry");
                return;
            }
            Ok(Ok((kept, changed))) => {
                (file, looking) = (kept, None);
                if let Some(loaded) = changed
                    && let Some(config) = current.change(loaded).await
                {
                    every = Duration::from_secs(config.refresh_seconds);
                    due = clock::monotonic();
                }
            }
        }
        if clock::monotonic() >= due {
            let registry = current.get();
            let health = registry.refresh().await;
            registry.forget_old_uploads().await;
            latch.set(health.iter().any(|one| one.usable), said(&health));
            due = clock::monotonic() + every;
        }
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
