//! Has copies of a trail's records stored: whatever the store does not have is sent, until it has it.
//!
//! Nothing waits for it. A record is sent soon after it is kept; what could not be is sent when it can be,
//! over restarts too, as the store says what it has.

use crate::{Bus, Spool, connection::Link};
use canopy_api::{
    endpoint::policy,
    error::Code,
    subject::Target,
    wire::{AUDIT_LINES, AuditAppendReply, AuditAppendRequest},
};
use canopy_audit::{Head, Line};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

/// After a record: two are written for each request, and go together.
const TOGETHER: Duration = Duration::from_millis(50);
/// How often the store is asked what it has, when there is nothing new.
const COMPARE: Duration = Duration::from_mins(1);
/// After a failure; twice as long after another, up to [`SELDOM`].
const AGAIN: Duration = Duration::from_secs(1);
/// Where nobody stores anything, or nothing has come of it for long.
const SELDOM: Duration = Duration::from_mins(1);
/// Content of one request, about.
const BYTES: usize = 256 * 1024;

/// Why nothing could be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotStored {
    /// Nobody stores records here.
    Nobody(String),
    /// Not now.
    NotNow(String),
}

/// Where copies are stored.
pub trait Store: Send + Sync {
    /// Stores lines of a chain.
    fn store(
        &self,
        request: AuditAppendRequest,
    ) -> impl Future<Output = Result<AuditAppendReply, NotStored>> + Send;
}

/// The policy service, over the bus.
impl Store for Bus {
    async fn store(&self, request: AuditAppendRequest) -> Result<AuditAppendReply, NotStored> {
        let asked = self.call::<policy::AuditAppend>(&Target::Central, &request).await;
        asked.map_err(|error| match error.to_api_error() {
            error if error.code == Code::Unsupported => NotStored::Nobody(error.message),
            error => NotStored::NotNow(error.message),
        })
    }
}

/// Has the policy service store what it does not have of a trail, until `stop`.
pub async fn to_policy(bus: Bus, spool: Arc<Spool>, stop: CancellationToken) {
    let link = bus.watch_link();
    Box::pin(run(&bus, &spool, &stop, Some(link), || bus.now())).await;
}

/// The same with a store of one's own.
pub async fn to_store(
    store: &impl Store,
    spool: Arc<Spool>,
    stop: CancellationToken,
    now: impl Fn() -> std::time::SystemTime,
) {
    Box::pin(run(store, &spool, &stop, None, now)).await;
}

async fn run(
    store: &impl Store,
    spool: &Arc<Spool>,
    stop: &CancellationToken,
    mut link: Option<watch::Receiver<Link>>,
    now: impl Fn() -> std::time::SystemTime,
) {
    let mut known = Known::default();
    let mut failures = 0_u32;
    let work = async {
        loop {
            if let Some(link) = &mut link {
                // A connection that is closed ends with the service.
                let _ = link.wait_for(|link| *link == Link::Connected).await;
            }
            if let Err(why) = round(store, spool, &mut known, now()).await {
                known.head = Stored::Unknown;
                let (NotStored::Nobody(reason) | NotStored::NotNow(reason)) = &why;
                if failures == 0 {
                    tracing::warn!("audit records wait to be stored by policy: {reason}");
                }
                let again = AGAIN.saturating_mul(1 << failures.min(6)).min(SELDOM);
                failures += 1;
                let wait = if matches!(why, NotStored::Nobody(_)) { SELDOM } else { again };
                // Not all hosts at once.
                sleep(wait.mul_f64(rand::random_range(0.5..1.0))).await;
                continue;
            }
            if std::mem::take(&mut failures) > 0 {
                tracing::info!("audit records are stored by policy again");
            }
            tokio::select! {
                () = spool.grown() => sleep(TOGETHER).await,
                () = sleep(COMPARE) => known.head = Stored::Unknown,
            }
        }
    };
    stop.run_until_cancelled(work).await;
}

/// What the store has, as far as is known.
#[derive(Default)]
struct Known {
    chain: String,
    head: Stored,
}

#[derive(Clone, Copy, Default)]
enum Stored {
    /// It has to be asked.
    #[default]
    Unknown,
    /// Up to this record, if any.
    To(Option<Head>),
}

/// Sends until the store has everything.
async fn round(
    store: &impl Store,
    spool: &Arc<Spool>,
    known: &mut Known,
    now: std::time::SystemTime,
) -> Result<(), NotStored> {
    loop {
        let Some((chain, own)) = spool.at() else { return Ok(()) };
        if known.chain != chain {
            *known = Known { chain: chain.clone(), head: Stored::Unknown };
        }
        let (lines, after) = match known.head {
            Stored::Unknown => (Vec::new(), None),
            Stored::To(stored) => {
                let seq = stored.map_or(0, |head| head.seq);
                spool.stored(seq);
                let lines = read(spool, seq, AUDIT_LINES).await?;
                if seq >= own.seq || lines.is_empty() {
                    return Ok(());
                }
                (lines, stored)
            }
        };
        let after = after.map(|head| head.to_string());
        let reply = store.store(AuditAppendRequest { chain, after, lines }).await?;
        let head: Option<Head> =
            reply.head.map(|head| head.parse()).transpose().map_err(NotStored::NotNow)?;
        if let Some(why) = differs(spool, head, own, reply.diverged).await? {
            tracing::error!("the audit trail is not the one that policy has: {why}");
            anew(spool, why, now).await?;
            continue;
        }
        known.head = Stored::To(head);
    }
}

/// Why the own trail cannot be what the store has copies of.
async fn differs(
    spool: &Arc<Spool>,
    stored: Option<Head>,
    own: Head,
    diverged: bool,
) -> Result<Option<String>, NotStored> {
    let Some(stored) = stored else { return Ok(None) };
    if diverged {
        return Ok(Some("its records contradict those that policy has".to_owned()));
    }
    // Records may have been added meanwhile, which only makes the own trail longer.
    if stored.seq > own.seq && spool.at().is_none_or(|(_, now)| stored.seq > now.seq) {
        let why = format!("policy has {} records of it; {} are left", stored.seq, own.seq);
        return Ok(Some(why));
    }
    if spool.first().is_none_or(|first| stored.seq < first) {
        return Ok(None);
    }
    let line = read(spool, stored.seq.saturating_sub(1), 1).await?;
    let same = line.first().and_then(|line| Line::read(line.as_str()).ok());
    let same = same.is_some_and(|line| line.head() == stored);
    Ok((!same).then(|| format!("policy has another record {}", stored.seq)))
}

async fn read(spool: &Arc<Spool>, after: u64, lines: usize) -> Result<Vec<String>, NotStored> {
    let spool = Arc::clone(spool);
    blocking(move || spool.after(after, lines, BYTES)).await
}

async fn anew(
    spool: &Arc<Spool>,
    why: String,
    now: std::time::SystemTime,
) -> Result<(), NotStored> {
    let spool = Arc::clone(spool);
    blocking(move || spool.begin_anew(&why, now)).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, NotStored> {
    let failed = |error: &dyn std::fmt::Display| NotStored::NotNow(error.to_string());
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| failed(&error))?;
    done.map_err(|error| failed(&error))
}
