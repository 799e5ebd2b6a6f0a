//! This service's own trails: changes, which wait for their record; and connections and denials, which
//! do not, and of which there may be any number.
//!
//! The second is bounded whoever knocks: the same thing is recorded once a minute, with how many times it
//! happened; of different things so many a minute, and the others together.

use super::AuditConfig;
use crate::connect::Refusal;
use canopy_api::{
    HostId, Principal,
    time::rfc3339,
    wire::{AdmissionItem, Decision},
};
use canopy_audit::{Entry, Kind};
use canopy_bus::{Spool, callout::ConnectRequest, system::FailedConnect};
use canopy_runtime::{Context, clock};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    time::{Instant, MissedTickBehavior, interval},
};

/// How long the same thing is counted instead of recorded.
const WINDOW: Duration = Duration::from_mins(1);
/// How many wait to be recorded.
const WAITING: usize = 4096;
/// As much of a reason as is recorded.
const REASON: usize = 200;

/// What kinds of things happen, each with a room of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Sort {
    Refused,
    Granted,
    Denied,
    Cut,
}

impl Sort {
    const ALL: [Self; 4] = [Self::Refused, Self::Granted, Self::Denied, Self::Cut];

    /// Different ones that are recorded in a window. Anybody at all can be refused.
    fn most(self) -> usize {
        match self {
            Self::Refused => 20,
            Self::Granted | Self::Denied | Self::Cut => 500,
        }
    }
}

/// Something that happened, as far as it is told from others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Happening {
    sort: Sort,
    principal: Option<Principal>,
    host: Option<HostId>,
    peer: Option<String>,
    token: Option<String>,
    rules: Vec<String>,
    reason: String,
}

impl Happening {
    fn new(sort: Sort, reason: impl Into<String>) -> Self {
        let reason: String = reason.into().chars().take(REASON).collect();
        let (principal, host, peer, token, rules) = (None, None, None, None, Vec::new());
        Self { sort, principal, host, peer, token, rules, reason }
    }

    /// Somebody connected: the user that the server knows them by, and the token they showed.
    pub(crate) fn connected(request: &ConnectRequest, user: &str, token: Option<String>) -> Self {
        let principal = user.split('/').next().and_then(|name| name.parse().ok());
        let peer = Some(request.address.clone());
        Self { principal, peer, token, ..Self::new(Sort::Granted, user) }
    }

    /// Somebody was refused by this service.
    pub(crate) fn refused(request: &ConnectRequest, refusal: &Refusal) -> Self {
        let peer = Some(request.address.clone());
        Self { peer, ..Self::new(Sort::Refused, refusal.to_string()) }
    }

    /// Somebody's connections were ended, because they exceeded a limit.
    pub(crate) fn cut(principal: &Principal, address: Option<String>, reason: &str) -> Self {
        Self { principal: Some(principal.clone()), peer: address, ..Self::new(Sort::Cut, reason) }
    }

    /// Somebody could not connect, as a bus server says.
    pub(super) fn failed(failed: FailedConnect) -> Self {
        let reason = format!("the bus server {}: {}", failed.server, failed.reason);
        Self { peer: Some(failed.address), ..Self::new(Sort::Refused, reason) }
    }

    /// A loader was told that somebody may not do this.
    pub(crate) fn denied(
        host: &HostId,
        principal: &Principal,
        item: &AdmissionItem,
        rule: Option<&str>,
        rehearsal: bool,
    ) -> Self {
        let what = if rehearsal { "rehearsal of " } else { "" };
        Self {
            principal: Some(principal.clone()),
            host: Some(host.clone()),
            rules: rule.map(str::to_owned).into_iter().collect(),
            ..Self::new(Sort::Denied, format!("{what}{item}"))
        }
    }

    fn others(sort: Sort) -> Self {
        Self::new(sort, "others, too many to be told apart")
    }

    fn entry(self, count: u64) -> Entry {
        let (kind, verb, decision) = match self.sort {
            Sort::Granted => (Kind::Connected, "connect", Decision::Done),
            Sort::Refused => (Kind::Refused, "connect", Decision::Denied),
            Sort::Denied => (Kind::Refused, "admit", Decision::Denied),
            Sort::Cut => (Kind::Refused, "cut", Decision::Denied),
        };
        Entry {
            principal: self.principal,
            host: self.host,
            verb: Some(verb.to_owned()),
            decision: Some(decision),
            rules: self.rules,
            reason: self.reason,
            peer: self.peer,
            token: self.token,
            count: (count > 1).then_some(count),
            ..Entry::new(kind, rfc3339(clock::now()))
        }
    }
}

/// Takes note of what happens; nothing waits for it.
#[derive(Clone)]
pub(crate) struct Noter(Option<(Sender<Happening>, Arc<AtomicU64>)>);

impl Noter {
    /// Without a trail.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    pub(crate) fn note(&self, happening: Happening) {
        if let Some((sender, lost)) = &self.0
            && sender.try_send(happening).is_err()
        {
            lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The trails.
pub(crate) struct Trails {
    changes: Arc<Spool>,
    connections: Arc<Spool>,
    noter: Noter,
}

impl Trails {
    /// Opens both.
    pub(crate) async fn open(
        config: &AuditConfig,
        writer: &Principal,
        cx: &Context,
    ) -> anyhow::Result<Self> {
        let open = |name: &str, latch: &str| {
            let (dir, writer, bytes) = (config.dir.join(name), writer.clone(), config.bytes);
            let tell = cx.readiness.latch(latch).reporter();
            tokio::task::spawn_blocking(move || {
                Arc::new(Spool::new(dir, writer, bytes, clock::now(), tell))
            })
        };
        let changes = open("changes", "audit").await?;
        let connections = open("connections", "audit of connections").await?;
        let (sender, receiver) = mpsc::channel(WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let noter = Noter(Some((sender, Arc::clone(&lost))));
        cx.tasks.spawn(record(receiver, lost, Arc::clone(&connections), cx.clone()));
        Ok(Self { changes, connections, noter })
    }

    pub(crate) fn changes(&self) -> Arc<Spool> {
        Arc::clone(&self.changes)
    }

    pub(crate) fn noter(&self) -> Noter {
        self.noter.clone()
    }

    pub(crate) fn spools(&self) -> [Arc<Spool>; 2] {
        [&self.changes, &self.connections].map(Arc::clone)
    }
}

async fn record(
    mut happened: Receiver<Happening>,
    lost: Arc<AtomicU64>,
    spool: Arc<Spool>,
    cx: Context,
) {
    let began = Instant::now();
    let mut windows = Windows::default();
    let mut timer = interval(Duration::from_secs(1));
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (mut due, end) = tokio::select! {
            happening = happened.recv() => match happening {
                Some(happening) => (windows.note(happening).into_iter().collect(), false),
                None => (windows.due(None), true),
            },
            _ = timer.tick() => (windows.due(Some(began.elapsed())), false),
            () = cx.shutdown.cancelled() => (windows.due(None), true),
        };
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let others = Happening::new(Sort::Refused, "more at once than could be recorded");
            due.push((others, lost));
        }
        if !due.is_empty() {
            keep(&spool, due).await;
        }
        if end {
            return;
        }
    }
}

async fn keep(spool: &Arc<Spool>, due: Vec<(Happening, u64)>) {
    let spool = Arc::clone(spool);
    let kept = tokio::task::spawn_blocking(move || {
        for (happening, count) in due {
            spool.append(happening.entry(count))?;
        }
        std::io::Result::Ok(())
    });
    match kept.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "who connected is not in the audit trail"),
        Err(error) => tracing::error!(%error, "recording who connected ended in a panic"),
    }
}

/// What happened in the window that is open.
#[derive(Default)]
struct Windows {
    began: Duration,
    /// How many times more than was recorded.
    seen: BTreeMap<Happening, u64>,
    different: BTreeMap<Sort, usize>,
    others: BTreeMap<Sort, u64>,
}

impl Windows {
    /// What is to be recorded at once.
    fn note(&mut self, happening: Happening) -> Option<(Happening, u64)> {
        if let Some(more) = self.seen.get_mut(&happening) {
            *more += 1;
            return None;
        }
        let different = self.different.entry(happening.sort).or_default();
        if *different >= happening.sort.most() {
            *self.others.entry(happening.sort).or_default() += 1;
            return None;
        }
        *different += 1;
        self.seen.insert(happening.clone(), 0);
        Some((happening, 1))
    }

    /// What is to be recorded when a window ends: at its time, or now.
    fn due(&mut self, now: Option<Duration>) -> Vec<(Happening, u64)> {
        if let Some(now) = now {
            if now < self.began + WINDOW {
                return Vec::new();
            }
            self.began = now;
        }
        let seen = std::mem::take(&mut self.seen).into_iter().filter(|(_, more)| *more > 0);
        let mut due: Vec<_> = seen.collect();
        for sort in Sort::ALL {
            if let Some(others) = self.others.remove(&sort) {
                due.push((Happening::others(sort), others));
            }
        }
        self.different.clear();
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(peer: u32) -> Happening {
        Happening { peer: Some(peer.to_string()), ..Happening::new(Sort::Refused, "no") }
    }

    #[test]
    fn the_same_thing_is_recorded_once_a_minute_with_its_count() {
        let mut windows = Windows::default();
        assert_eq!(windows.note(refused(1)), Some((refused(1), 1)));
        for _ in 0..1000 {
            assert_eq!(windows.note(refused(1)), None);
        }
        assert_eq!(windows.due(Some(WINDOW / 2)), []);
        assert_eq!(windows.due(Some(WINDOW)), [(refused(1), 1000)]);
        assert_eq!(windows.note(refused(1)), Some((refused(1), 1)), "the next minute");
        assert_eq!(windows.due(Some(2 * WINDOW)), [], "once is no more than was recorded");
    }

    #[test]
    fn whoever_knocks_with_many_faces_fills_nothing_and_hides_nobody_else() {
        let mut windows = Windows::default();
        let recorded = (0..100_000).filter(|i| windows.note(refused(*i)).is_some()).count();
        assert_eq!(recorded, 20);
        let granted = Happening::new(Sort::Granted, "u-alice/1");
        assert_eq!(windows.note(granted.clone()), Some((granted, 1)));
        assert_eq!(windows.due(None), [(Happening::others(Sort::Refused), 99_980)]);
    }
}
