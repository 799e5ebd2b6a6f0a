//! Keeps principals within their limits: counts connections as they come and go, checks what they use,
//! ends those that exceed a limit and refuses their principal for a while.
//!
//! Every instance checks for itself, and hears of what the others ended; what two instances end at once is
//! ended once.

use crate::{
    audit::{Happening, Noter},
    back_off::BackOff,
    connect::Refusal,
    limits::PrincipalKind,
    metrics::Metrics,
    rate_limit::ConnectRates,
    sessions::{Reservation, SessionTable},
    teller::Teller,
    trust::Trust,
    usage::{Excess, UsageTracker, principal_of},
};
use canopy_api::{Principal, endpoint::Service, subject, time, wire::ConnectCut};
use canopy_bus::{
    Bus, Events,
    callout::ConnectRequest,
    system::{self, Busy, Connection, SessionEvent, SessionId},
};
use canopy_runtime::{Context, clock};
use futures::{Stream, StreamExt as _};
use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};

/// How long one check may take.
const LIMIT: Duration = Duration::from_secs(5);
/// The busiest connections of each server that are looked at between two whole listings.
const BUSIEST: usize = 256;
/// For so many connections each, a whole listing is made one check less often.
const CONNECTIONS_A_CHECK: usize = 1024;
/// How often what can fail is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// Addresses that an event tells.
const ADDRESSES: usize = 8;

/// Keeps principals within their limits. Clones share it.
#[derive(Clone)]
pub(crate) struct LimitEnforcer(Arc<Inner>);

struct Inner {
    /// In SYS.
    system: Bus,
    trust: watch::Receiver<Arc<Trust>>,
    metrics: Metrics,
    teller: Arc<Teller>,
    noter: Noter,
    sessions: SessionTable,
    connects: ConnectRates,
    back_off: BackOff,
    usage: Mutex<UsageTracker>,
}

impl LimitEnforcer {
    pub(crate) fn new(
        system: Bus,
        trust: watch::Receiver<Arc<Trust>>,
        metrics: Metrics,
        teller: Arc<Teller>,
        noter: Noter,
    ) -> Self {
        Self(Arc::new(Inner {
            system,
            trust,
            metrics,
            teller,
            noter,
            sessions: SessionTable::default(),
            connects: ConnectRates::default(),
            back_off: BackOff::default(),
            usage: Mutex::default(),
        }))
    }

    /// Whether a principal may have one connection more; it counts until the reservation is dropped, or
    /// kept and the connection ends.
    pub(crate) fn reserve(
        &self,
        principal: &Principal,
        request: &ConnectRequest,
    ) -> Result<Reservation<'_>, Refusal> {
        let now = Instant::now();
        if let Some(left) = self.0.back_off.remaining(principal, now) {
            // Whole seconds: the trail counts what is the same.
            let left = Duration::from_secs(left.as_secs().saturating_add(1));
            return Err(Refusal::BackOff(principal.clone(), left));
        }
        let limits = self.0.trust.borrow().limits.of(PrincipalKind::of(principal));
        if let Some(rate) = limits.connects_per_second
            && self.0.connects.too_many(principal, rate, now)
        {
            return Err(Refusal::TooManyConnects(principal.clone(), rate));
        }
        let id = SessionId { server: request.server.clone(), id: request.connection };
        self.0
            .sessions
            .reserve(principal, id, limits.connections, now)
            .map_err(|count| Refusal::TooManyConnections(principal.clone(), count))
    }

    /// Follows connects, disconnects and what other instances end, and checks again and again, until the
    /// service ends. `data` is the connection in DATA.
    pub(crate) async fn run(self, data: Bus, cx: Context) {
        let work = async {
            tokio::join!(self.follow_sessions(), self.follow_others(&data), self.check_always());
        };
        cx.shutdown.run_until_cancelled(work).await;
    }

    async fn follow_sessions(&self) {
        loop {
            match system::sessions(&self.0.system).await {
                Ok(events) => self.take_sessions(events).await,
                Err(error) => {
                    tracing::warn!(%error, "connects and disconnects are not followed; retrying");
                }
            }
            sleep(AGAIN).await;
        }
    }

    async fn take_sessions(&self, events: impl Stream<Item = SessionEvent>) {
        let mut events = pin!(events);
        while let Some(event) = events.next().await {
            match event {
                SessionEvent::Connected { session, user } => {
                    if let Some(principal) = principal_of(&user) {
                        self.0.sessions.connected(&principal, session, Instant::now());
                    }
                }
                SessionEvent::Disconnected { session, user, usage } => {
                    if let Some(principal) = principal_of(&user) {
                        self.0.sessions.disconnected(&principal, &session);
                        self.usage().closed(principal, session, usage);
                    }
                }
            }
        }
    }

    /// Refuses whose connections another instance ended.
    async fn follow_others(&self, data: &Bus) {
        let cut = subject::security_event(Service::Policy, "connect", "cut", None);
        loop {
            match data.subscribe_events(&cut).await {
                Ok(events) => self.take_others(events).await,
                Err(error) => {
                    tracing::warn!(%error, "what other instances end is not followed; retrying");
                }
            }
            sleep(AGAIN).await;
        }
    }

    async fn take_others(&self, mut events: Events) {
        while let Some(event) = events.next().await {
            match event.decode::<ConnectCut>() {
                Ok(cut) => {
                    let refused_for = Duration::from_millis(cut.refused_for_ms);
                    self.0.back_off.learn(&cut.principal, cut.times, refused_for, Instant::now());
                }
                Err(error) => tracing::warn!(%error, "an event of another instance cannot be read"),
            }
        }
    }

    async fn check_always(&self) {
        let mut every = self.0.trust.borrow().limits.check_interval();
        let mut timer = interval(every);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut until_whole = 0_usize;
        loop {
            timer.tick().await;
            let configured = self.0.trust.borrow().limits.check_interval();
            if configured != every {
                every = configured;
                timer = interval(every);
                timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
                timer.tick().await;
            }
            let whole = until_whole == 0;
            match self.check(whole).await {
                Ok(found) if whole => until_whole = found / CONNECTIONS_A_CHECK,
                Ok(_) => until_whole -= 1,
                Err(reason) => {
                    tracing::warn!(%reason, "the limits of connections were not checked");
                }
            }
        }
    }

    /// Looks once at all connections, or at the busiest; how many there were.
    async fn check(&self, whole: bool) -> Result<usize, String> {
        let system = &self.0.system;
        let found = if whole {
            let found = system::connections(system, None, LIMIT).await.map_err(text)?;
            // This service's own connection in APP would be among them.
            if found.is_empty() {
                return Err("no bus server answered".to_owned());
            }
            let now = Instant::now();
            let sessions =
                found.iter().filter_map(|one| Some((principal_of(&one.user)?, one.session())));
            self.0.sessions.listed(sessions, now);
            found
        } else {
            let by = |busy| system::busiest(system, busy, BUSIEST, LIMIT);
            let (subscriptions, pending) =
                tokio::join!(by(Busy::Subscriptions), by(Busy::PendingBytes));
            let both = subscriptions.map_err(text)?.into_iter().chain(pending.map_err(text)?);
            let distinct: BTreeMap<SessionId, Connection> =
                both.map(|one| (one.session(), one)).collect();
            distinct.into_values().collect()
        };
        let limits = self.0.trust.borrow().limits.clone();
        let now = Instant::now();
        let excesses = self.usage().check(&found, whole, |kind| limits.of(kind), now);
        for excess in excesses {
            self.cut(excess).await;
        }
        Ok(found.len())
    }

    async fn cut(&self, excess: Excess) {
        let Excess { principal, what, used, limit, connections } = excess;
        if let Err(error) = system::end(&self.0.system, &connections).await {
            tracing::error!(%principal, %error, "connections could not be ended");
        }
        let limits = self.0.trust.borrow().limits.clone();
        let (times, refused_for) =
            self.0.back_off.offence(&principal, what, &limits, Instant::now());
        let count = u64::try_from(connections.len()).unwrap_or(u64::MAX);
        self.0.metrics.cut(what.as_str(), count);
        let code = what.as_str().to_owned();
        let reason = format!("{code} of {principal}: {used}, where {limit} are allowed");
        let addresses: BTreeSet<String> =
            connections.into_iter().map(|connection| connection.address).collect();
        let first = addresses.iter().next().cloned();
        self.0.noter.note(Happening::cut(&principal, first, &reason));
        self.0.teller.cut(ConnectCut {
            time: time::rfc3339(clock::now()),
            principal,
            addresses: addresses.into_iter().take(ADDRESSES).collect(),
            code,
            reason,
            connections: count,
            times,
            refused_for_ms: u64::try_from(refused_for.as_millis()).unwrap_or(u64::MAX),
        });
    }

    fn usage(&self) -> std::sync::MutexGuard<'_, UsageTracker> {
        self.0.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
