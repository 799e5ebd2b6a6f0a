//! The audit trail: what this service did itself, and what all writers have it store.
//!
//! A writer sends its records in order, and says which it takes to be the last stored one
//! ([`archive`]). Each is judged by the last stored one of its chain: what follows is appended by compare
//! and swap, so that several instances store it once; what does not is stored too, with a finding that is
//! told by log, metric and event. How far each chain goes is signed now and then ([`checkpoints`]).

mod advisories;
mod archive;
mod checkpoints;
mod config;
mod findings;
mod query;
mod rooms;
mod trail;

pub use config::AuditConfig;
pub(crate) use trail::{Happening, Noter, Trails};

use crate::{auth::Auth, metrics::Metrics};
use archive::Archive;
use canopy_api::{ApiError, Code, Principal, endpoint::policy};
use canopy_bus::{Bus, BusError, Server, data::stream_of, forward};
use canopy_runtime::{Context, clock};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore},
    time::sleep,
};

/// Writers whose records are stored at once: after an outage all of them come, and must not keep those
/// waiting who ask for admission. The requests of one come one after the other.
const AT_ONCE: usize = 8;
/// After a store that is not there.
const AGAIN: Duration = Duration::from_millis(200);

/// The streams that the trail is stored in.
pub(crate) fn streams() -> [String; 2] {
    [archive::LOG.to_owned(), stream_of(checkpoints::BUCKET)]
}

/// Opens the store, as long as it takes, and serves the verbs about it. `None` when it was time to stop
/// before.
pub(crate) async fn store(
    config: &AuditConfig,
    (auth, bus): (&Auth, &Bus),
    trails: &Trails,
    (cx, metrics): (&Context, &Metrics),
    server: Server,
) -> anyhow::Result<Option<Server>> {
    let of = config.clone();
    let key = tokio::task::spawn_blocking(move || checkpoints::read_key(&of)).await??;
    let latch = cx.readiness.latch("audit store");
    let open = async {
        loop {
            let opened = Archive::open(auth.data(), bus, config, auth.replicas(), metrics).await;
            match opened {
                Ok(archive) => return archive,
                Err(error) => {
                    tracing::warn!("{error}; trying on");
                    latch.set(false, BusError::to_string(&error));
                    sleep(AGAIN).await;
                }
            }
        }
    };
    let Some(archive) = cx.shutdown.run_until_cancelled(Box::pin(open)).await else {
        return Ok(None);
    };
    latch.set(true, "records are stored");
    let archive = Arc::new(archive);
    let every = Duration::from_secs(config.checkpoint_seconds);
    let signer = checkpoints::Signer::new(Arc::clone(&archive), key, every);
    let public = signer.public();
    cx.tasks.spawn(signer.run(auth.data().clone(), cx.shutdown.clone()));
    cx.tasks.spawn(advisories::follow(auth.system().clone(), trails.noter(), cx.shutdown.clone()));
    for spool in trails.spools() {
        let own = archive::Own(Arc::clone(&archive), bus.principal().clone());
        let stop = cx.shutdown.clone();
        cx.tasks.spawn(async move { forward::to_store(&own, spool, stop, clock::now).await });
    }
    let (append, query, checkpoints) =
        (Arc::clone(&archive), Arc::clone(&archive), Arc::clone(&archive));
    let (reading, checking) = (auth.clone(), auth.clone());
    let turns = Arc::new(Turns::default());
    let server = server
        .audit(trails.changes())
        .handle::<policy::AuditAppend, _, _>(move |caller, request| {
            let (archive, turns) = (Arc::clone(&append), Arc::clone(&turns));
            async move {
                let _turn = turns.of(&caller.principal).await;
                archive.append(&caller.principal, &request).await
            }
        })
        .handle::<policy::Audit, _, _>(move |caller, request| {
            let (archive, auth) = (Arc::clone(&query), reading.clone());
            async move {
                auth.may_read_audit(&caller.principal, &request).await?;
                query::query(&archive.log, &request).await
            }
        })
        .handle::<policy::AuditCheckpoints, _, _>(move |caller, request| {
            let (archive, auth, key) = (Arc::clone(&checkpoints), checking.clone(), public);
            async move {
                auth.may_read_checkpoints(&caller.principal, &request).await?;
                archive.checkpoints.answer(&request, key).await
            }
        });
    Ok(Some(server))
}

/// Whose records are stored.
struct Turns {
    writers: Mutex<BTreeMap<Principal, Arc<tokio::sync::Mutex<()>>>>,
    all: Arc<Semaphore>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { writers: Mutex::default(), all: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Turns {
    /// Waits for the turn of a writer: behind its own requests first, so that it holds one place among the
    /// others, however many it sends.
    async fn of(&self, writer: &Principal) -> (OwnedMutexGuard<()>, Option<OwnedSemaphorePermit>) {
        let own = {
            let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
            // Nobody waits for those that are held here alone.
            writers.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(writers.entry(writer.clone()).or_default())
        };
        let own = own.lock_owned().await;
        // It is never closed.
        let place = Arc::clone(&self.all).acquire_owned().await.ok();
        (own, place)
    }
}

/// Answers the verbs where nothing is stored.
pub(crate) fn without(server: Server) -> Server {
    tracing::warn!("no `audit` in the configuration: no audit record is stored");
    let none = || {
        ApiError::new(Code::Unsupported, "this policy service stores no audit records")
            .remedy("give it `audit` in its configuration, which needs `auth`")
    };
    server
        .handle::<policy::AuditAppend, _, _>(move |_, _| async move { Err(none()) })
        .handle::<policy::Audit, _, _>(move |_, _| async move { Err(none()) })
        .handle::<policy::AuditCheckpoints, _, _>(move |_, _| async move { Err(none()) })
}

fn away(error: &BusError) -> ApiError {
    ApiError::new(Code::Unavailable, format!("the audit store does not answer: {error}"))
        .remedy("see that the bus server runs and has room; what was recorded is sent again")
}
