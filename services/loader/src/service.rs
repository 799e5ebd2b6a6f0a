//! The loader as a process: the chains first, then the bus.

use crate::{
    admission::{Admission, AdmissionMode},
    cache::Cache,
    config::Config,
    core::resolve::Located,
    engine::{Engine, Event, Parts},
    error::LoaderError,
    fetch::{Fetcher, Memory},
    handlers::Handlers,
    metrics::{AdmissionMetrics, LoaderCollector, PackageMetrics},
    store::Store,
};
use anyhow::Context as _;
use canopy_api::{HostId, PackageName, PackageRef, endpoint::Service, permission};
use canopy_bus::{Bus, Server, Spool, forward};
use canopy_kernel::Kernel;
use canopy_kernel_aya::AyaKernel;
use canopy_package::{IndexSource, Limits, PackageError, TrustedKey};
use canopy_runtime::{Context, Latch, VERSION, clock};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::{sync::Arc, time::Duration};
use tokio::time::{MissedTickBehavior, interval};

/// How often the loader compares the kernel with what is desired. A chain that somebody removes
/// must be back within 1.5 s.
const CHECK: Duration = Duration::from_secs(1);

/// How often the host says that it is alive.
const ALIVE: Duration = Duration::from_secs(10);

/// Runs the loader until it is asked to end. The chains do not wait for the bus.
pub async fn start(config: Config, cx: Context) -> anyhow::Result<()> {
    more_descriptors();
    let state = cx.readiness.latch("state");
    let limits = Limits::default();
    let (dir, bpffs) = (config.state_dir.clone(), config.bpffs.clone());
    let (host, room) = (config.host.clone(), config.cache_bytes);
    let metrics = PackageMetrics::register(&cx.metrics)?;
    let counted = metrics.clone();
    let (engine, cache) = tokio::task::spawn_blocking(move || {
        let store = Store::open(&dir)?;
        let cache = Cache::new(&dir.join("cache"), limits).context("package cache")?;
        let cache = Arc::new(cache.with_room(room).counted(counted));
        let kernel = AyaKernel::new(&bpffs)
            .with_context(|| format!("cannot use {} for pins", bpffs.display()))?;
        let engine = Engine::start(Parts {
            host,
            version: VERSION.to_owned(),
            kernel: Arc::new(kernel),
            store,
            packages: Arc::clone(&cache) as _,
            now: clock::now,
            on_stage: |_| {},
        })?;
        anyhow::Ok((Arc::new(engine), cache))
    })
    .await
    .context("starting the engine")??;
    report(&state, &engine);
    // The chains are restored. The network comes up behind this: see the unit.
    cx.begun();
    cx.metrics.register(Box::new(LoaderCollector::new(Arc::clone(&engine))?))?;

    let principal = permission::daemon_principal(Service::Loader, Some(&config.host))?;
    let bus = Bus::connect(&config.bus, principal).await?;
    cx.tasks.spawn(check(Arc::clone(&engine), bus.clone(), cx.clone(), state));
    let every = Duration::from_secs(config.metrics_seconds);
    cx.tasks.spawn(sample(Arc::clone(&engine), every, cx.clone()));
    cx.tasks.spawn(alive(Arc::clone(&engine), bus.clone(), cx.clone()));

    // Before the first request: what cannot be recorded is not done.
    let audit = cx.readiness.latch("audit").reporter();
    let (dir, writer) = (config.state_dir.join("audit"), bus.principal().clone());
    let trail = tokio::task::spawn_blocking(move || {
        Spool::new(dir, writer, config.audit_bytes, clock::now(), audit)
    })
    .await
    .context("opening the audit trail")?;
    let trail = Arc::new(trail);
    // Nothing waits for the copies.
    cx.tasks.spawn(forward::to_policy(bus.clone(), Arc::clone(&trail), cx.shutdown.clone()));
    let admission = Admission::new(config.admission, bus.clone())
        .counted(AdmissionMetrics::register(&cx.metrics)?);
    tell_admission(config.admission, &cx.readiness.latch("admission"));
    let fetcher = Fetcher::new(
        bus.clone(),
        cache,
        config.trust,
        limits,
        Arc::clone(&engine) as _,
        engine.kernel().release(),
    )
    .counted(metrics.clone());
    let server = Server::new(bus.clone(), Service::Loader, Some(config.host))
        .health(cx.health())
        .observe(cx.observe())
        .bus_events(cx.bus_events())
        .on_ready(cx.bus.reporter())
        .idempotency_file(config.state_dir.join("requests"))
        .audit(trail);
    let ended = Handlers::new(engine, fetcher, admission)
        .counted(metrics)
        .register(server)
        .serve(cx.shutdown.clone())
        .await;
    bus.close().await;
    Ok(ended?)
}

/// Each map of each chain is held by a descriptor: as many as the hard limit allows, where the usual
/// soft one of 1,024 is for programs that call select(2).
fn more_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Says whether anybody is asked before a change.
fn tell_admission(mode: AdmissionMode, latch: &Latch) {
    match mode {
        AdmissionMode::Required => latch.set(true, "policy is asked before every change"),
        AdmissionMode::Off => {
            let said = "off: nobody is asked before a change; set `admission: required` in the loader's configuration";
            tracing::warn!("admission is {said}");
            latch.warn(said);
        }
    }
}

/// Says whether the state is sound.
fn report<K: Kernel>(latch: &Latch, engine: &Engine<K>) {
    match engine.lost() {
        None => latch.set(true, "read"),
        Some(damage) => latch.set(
            false,
            format!("lost ({damage}); what is attached stays; apply the documents again, then restart the loader"),
        ),
    }
}

/// The check of every second.
async fn check(engine: Arc<Engine<AyaKernel>>, bus: Bus, cx: Context, state: Latch) {
    let mut every = interval(CHECK);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cx.shutdown.cancelled() => return,
            _ = every.tick() => {}
        }
        let round = Arc::clone(&engine);
        let events = match tokio::task::spawn_blocking(move || round.tick()).await {
            Ok(events) => events,
            Err(error) => {
                tracing::error!(%error, "a check ended in a panic");
                continue;
            }
        };
        report(&state, &engine);
        if events.is_empty() {
            continue;
        }
        // The check does not wait for the bus.
        let (bus, host) = (bus.clone(), engine.host().clone());
        cx.tasks.spawn(async move { tell(&bus, &host, events).await });
    }
}

async fn tell(bus: &Bus, host: &HostId, events: Vec<Event>) {
    for event in events {
        let Event::Restored(restored) = event;
        let sent =
            bus.publish_event(Service::Loader, "chain", "restored", Some(host), &restored).await;
        if let Err(error) = sent {
            tracing::warn!(%error, "the bus was not told of a restored chain");
        }
    }
}

/// The metrics of packages, whenever they are due.
async fn sample(engine: Arc<Engine<AyaKernel>>, every: Duration, cx: Context) {
    let mut look = interval(CHECK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cx.shutdown.cancelled() => return,
            _ = look.tick() => {}
        }
        let read = Arc::clone(&engine);
        match tokio::task::spawn_blocking(move || read.sample(every)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "metrics of packages are not read"),
            Err(error) => tracing::error!(%error, "reading metrics ended in a panic"),
        }
    }
}

/// The sign of life.
async fn alive(engine: Arc<Engine<AyaKernel>>, bus: Bus, cx: Context) {
    // The first one is heard as soon as there is somebody to hear it.
    tokio::select! {
        () = cx.shutdown.cancelled() => return,
        _ = bus.wait_ready(ALIVE) => {}
    }
    let mut every = interval(ALIVE);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cx.shutdown.cancelled() => return,
            _ = every.tick() => {}
        }
        let read = Arc::clone(&engine);
        let Ok(alive) = tokio::task::spawn_blocking(move || read.alive()).await else { continue };
        let sent =
            bus.publish_event(Service::Loader, "host", "alive", Some(engine.host()), &alive).await;
        if let Err(error) = sent {
            tracing::debug!(%error, "the bus does not hear that this host is alive");
        }
    }
}

impl<K: Kernel> Memory for Engine<K> {
    fn index_at_least(
        &self,
        package: &PackageName,
        source: &IndexSource,
        repository: &str,
        keys: &[TrustedKey],
    ) -> Result<u64, PackageError> {
        Self::index_at_least(self, package, source, repository, keys)
    }

    fn remember_index(
        &self,
        package: &PackageName,
        source: &IndexSource,
        repository: &str,
        version: u64,
    ) -> Result<(), LoaderError> {
        Self::remember_index(self, package, source, repository, version)
    }

    fn locked(&self, reference: &PackageRef) -> Option<Located> {
        Self::locked(self, reference)
    }

    fn seconds(&self) -> u64 {
        Self::seconds(self)
    }
}
