//! What each principal uses of the bus, from listings of its connections, and which of them exceed a
//! limit. Pure.
//!
//! Subscriptions are a principal's own doing and count at once. Bytes that wait to be read have to wait at
//! two checks in a row, so that a burst is no offence. What is sent, messages and bytes, may exceed its rate
//! for a moment, and the shorter the more it does. A daemon answers whoever asks it: what it sends in answer
//! counts a sixteenth, so that nobody can have it cut by asking.

use crate::{
    limits::{Limits, PrincipalKind},
    rate_limit::LeakyBucket,
};
use canopy_api::Principal;
use canopy_bus::system::{Connection, SessionId, Usage};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

/// Checks in a row at which too many bytes wait.
const PENDING_CHECKS: u32 = 2;
/// What a daemon sends in answer counts so many times less.
const ANSWERS: u64 = 16;
/// Connections that ended between two listings, at most; more are not remembered.
const CLOSED: usize = 65_536;

/// A principal that exceeds a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Excess {
    pub(crate) principal: Principal,
    pub(crate) what: LimitKind,
    pub(crate) used: u64,
    pub(crate) limit: u64,
    /// The connections to end, so that the others stay below it. None where those are gone already.
    pub(crate) connections: Vec<Connection>,
}

/// Which limit is exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LimitKind {
    Subscriptions,
    PendingBytes,
    MessagesPerSecond,
    BytesPerSecond,
}

impl LimitKind {
    /// As in the configuration, metrics and events.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Subscriptions => "subscriptions",
            Self::PendingBytes => "pending_bytes",
            Self::MessagesPerSecond => "messages_per_second",
            Self::BytesPerSecond => "bytes_per_second",
        }
    }
}

/// The principal of a connection whose user policy granted: `u-alice/3` is alice's.
pub(crate) fn principal_of(user: &str) -> Option<Principal> {
    user.split('/').next()?.parse().ok()
}

/// What was sent since the listing before.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    bytes: u64,
    messages: u64,
    received: u64,
}

impl Sent {
    fn since(before: Usage, now: Usage) -> Self {
        Self {
            bytes: now.in_bytes.saturating_sub(before.in_bytes),
            messages: now.in_messages.saturating_sub(before.in_messages),
            received: now.out_messages.saturating_sub(before.out_messages),
        }
    }

    fn add(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.messages = self.messages.saturating_add(other.messages);
        self.received = self.received.saturating_add(other.received);
    }

    /// How much of it counts, bytes or messages: all of a person's; of a daemon's what was sent unasked, and a
    /// share of the answers.
    fn charged(self, kind: PrincipalKind, amount: u64) -> u64 {
        match kind {
            PrincipalKind::Person => amount,
            PrincipalKind::HostDaemon | PrincipalKind::Central => {
                let unasked = self.messages.saturating_sub(self.received);
                let share =
                    u128::from(amount) * u128::from(unasked) / u128::from(self.messages.max(1));
                u64::try_from(share).unwrap_or(u64::MAX).max(amount / ANSWERS)
            }
        }
    }
}

/// What a principal sent since the listing before, all of its connections and each.
#[derive(Debug, Default)]
struct SentBy {
    total: Sent,
    by_connection: HashMap<SessionId, Sent>,
}

/// A limit of what is sent in a second.
struct SentRate {
    kind: LimitKind,
    limit: fn(&Limits) -> Option<u64>,
    amount: fn(Sent) -> u64,
}

const RATES: [SentRate; 2] = [
    SentRate {
        kind: LimitKind::MessagesPerSecond,
        limit: |limits| limits.messages_per_second,
        amount: |sent| sent.messages,
    },
    SentRate {
        kind: LimitKind::BytesPerSecond,
        limit: |limits| limits.bytes_per_second,
        amount: |sent| sent.bytes,
    },
];

/// Follows what principals use, from listing to listing.
#[derive(Debug, Default)]
pub(crate) struct UsageTracker {
    listed: Option<(Instant, HashMap<SessionId, Usage>)>,
    closed: Vec<(Principal, SessionId, Usage)>,
    pending: HashMap<Principal, u32>,
    /// Of each of [`RATES`].
    sending: HashMap<Principal, [LeakyBucket; RATES.len()]>,
}

impl UsageTracker {
    /// A connection has ended; what it sent counts at the next listing.
    pub(crate) fn closed(&mut self, principal: Principal, id: SessionId, usage: Usage) {
        if self.closed.len() < CLOSED {
            self.closed.push((principal, id, usage));
        }
    }

    /// Who exceeds a limit. What is sent in a second is looked at only where `found` is `whole`, all connections.
    pub(crate) fn check(
        &mut self,
        found: &[Connection],
        whole: bool,
        limits: impl Fn(PrincipalKind) -> Limits,
        now: Instant,
    ) -> Vec<Excess> {
        let mut by_principal: BTreeMap<Principal, Vec<&Connection>> = BTreeMap::new();
        for connection in found {
            if let Some(principal) = principal_of(&connection.user) {
                by_principal.entry(principal).or_default().push(connection);
            }
        }
        let sent = if whole { self.sent(found, now) } else { None };
        let mut all: Vec<Excess> = Vec::new();
        let mut waiting = HashMap::new();
        for (principal, connections) in &by_principal {
            let limits = limits(PrincipalKind::of(principal));
            let by = |what, limit: Option<u64>, measure: &dyn Fn(&Connection) -> u64| {
                excess(principal, what, limit, connections, measure)
            };
            let pending =
                by(LimitKind::PendingBytes, limits.pending_bytes, &|one| one.usage.pending_bytes);
            let pending = pending.filter(|_| {
                let checks = self.pending.get(principal).map_or(1, |checks| checks + 1);
                waiting.insert(principal.clone(), checks);
                checks >= PENDING_CHECKS
            });
            let subscriptions =
                by(LimitKind::Subscriptions, limits.subscriptions, &|one| one.usage.subscriptions);
            all.extend(subscriptions.or(pending));
        }
        self.pending = waiting;
        if let Some((elapsed, sent)) = sent {
            self.sending(&by_principal, &sent, elapsed, &limits, &mut all);
        }
        for excess in &all {
            self.pending.remove(&excess.principal);
            self.sending.remove(&excess.principal);
        }
        all
    }

    /// What was sent since the last whole listing, by connection and principal; `None` the first time.
    fn sent(
        &mut self,
        found: &[Connection],
        now: Instant,
    ) -> Option<(Duration, HashMap<Principal, SentBy>)> {
        let current = found.iter().map(|one| (one.session(), one.usage)).collect();
        let (when, before) = self.listed.replace((now, current))?;
        let mut sent: HashMap<Principal, SentBy> = HashMap::new();
        let earlier = |id: &SessionId| before.get(id).copied().unwrap_or_default();
        for (principal, id, usage) in self.closed.drain(..) {
            sent.entry(principal).or_default().total.add(Sent::since(earlier(&id), usage));
        }
        for connection in found {
            let Some(principal) = principal_of(&connection.user) else { continue };
            let id = connection.session();
            let by_it = Sent::since(earlier(&id), connection.usage);
            let by_principal = sent.entry(principal).or_default();
            by_principal.total.add(by_it);
            by_principal.by_connection.insert(id, by_it);
        }
        Some((now.duration_since(when), sent))
    }

    fn sending(
        &mut self,
        by_principal: &BTreeMap<Principal, Vec<&Connection>>,
        sent: &HashMap<Principal, SentBy>,
        elapsed: Duration,
        limits: &impl Fn(PrincipalKind) -> Limits,
        all: &mut Vec<Excess>,
    ) {
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
        let a_second = |amount: u64| amount.saturating_mul(1000) / millis;
        let mut before = std::mem::take(&mut self.sending);
        for (principal, SentBy { total, by_connection }) in sent {
            let kind = PrincipalKind::of(principal);
            let limits = limits(kind);
            let mut buckets = before.remove(principal).unwrap_or_default();
            let mut exceeded = None;
            for (bucket, rate) in buckets.iter_mut().zip(RATES) {
                let SentRate { kind: what, limit, amount } = rate;
                let Some(limit) = limit(&limits) else { continue };
                let charged = total.charged(kind, amount(*total));
                let used = a_second(charged);
                // Who has stopped is not ended for what went before.
                if bucket.add(charged, limit, elapsed) && used > limit {
                    exceeded = exceeded.or(Some((what, limit, used, amount)));
                }
            }
            if !buckets.iter().all(|bucket| bucket.is_empty()) {
                self.sending.insert(principal.clone(), buckets);
            }
            let Some((what, limit, used, amount)) = exceeded else { continue };
            if all.iter().any(|excess| excess.principal == *principal) {
                continue;
            }
            let none = Vec::new();
            let connections = by_principal.get(principal).unwrap_or(&none);
            let measure = |one: &Connection| {
                a_second(by_connection.get(&one.session()).copied().map_or(0, amount))
            };
            // Of a daemon less counts than was sent: then what sends most is ended.
            let worst = excess(principal, what, Some(limit), connections, &measure);
            let connections = worst.map_or_else(Vec::new, |excess| excess.connections);
            all.push(Excess { principal: principal.clone(), what, used, limit, connections });
        }
    }
}

/// Whether connections exceed a limit together, and which to end: those that use most, until the others
/// do not.
fn excess(
    principal: &Principal,
    what: LimitKind,
    limit: Option<u64>,
    connections: &[&Connection],
    measure: &dyn Fn(&Connection) -> u64,
) -> Option<Excess> {
    let limit = limit?;
    let mut by_use: Vec<(u64, &Connection)> =
        connections.iter().map(|one| (measure(one), *one)).collect();
    by_use.sort_by_key(|(used, _)| Reverse(*used));
    let used = by_use.iter().fold(0_u64, |sum, (used, _)| sum.saturating_add(*used));
    let mut left = used;
    let mut ending = Vec::new();
    for (used, connection) in by_use {
        if left <= limit {
            break;
        }
        left = left.saturating_sub(used);
        ending.push(connection.clone());
    }
    (!ending.is_empty()).then(|| Excess {
        principal: principal.clone(),
        what,
        used,
        limit,
        connections: ending,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::LimitsConfig;

    fn connection(user: &str, id: u64, usage: Usage) -> Connection {
        let (server, address) = ("N1".to_owned(), "192.0.2.1".to_owned());
        Connection { server, id, user: user.to_owned(), address, usage }
    }

    fn limits(kind: PrincipalKind) -> Limits {
        LimitsConfig::default().of(kind)
    }

    const NONE: [u64; 0] = [];

    fn ended(excess: &[Excess]) -> Vec<u64> {
        excess.iter().flat_map(|one| one.connections.iter().map(|one| one.id)).collect()
    }

    #[test]
    fn only_connections_that_use_most_are_ended() {
        let subscriptions = |subscriptions| Usage { subscriptions, ..Usage::default() };
        let found = [
            connection("u-mallory/1", 1, subscriptions(20)),
            connection("u-mallory/1", 2, subscriptions(1500)),
            connection("u-mallory/2", 3, subscriptions(490)),
            connection("u-alice/1", 4, subscriptions(1990)),
            connection("h-web1-loader/1", 5, subscriptions(40)),
            connection("spiffe://canopy/s-policy", 6, subscriptions(90_000)),
        ];
        let excess = UsageTracker::default().check(&found, false, limits, Instant::now());
        assert_eq!(ended(&excess), [2]);
        assert_eq!((excess[0].used, excess[0].limit), (2010, 2000));
        assert_eq!(excess[0].what, LimitKind::Subscriptions);
    }

    #[test]
    fn pending_bytes_are_cut_at_the_second_check() {
        let pending = |pending_bytes| Usage { pending_bytes, ..Usage::default() };
        let slow = [
            connection("u-mallory/1", 1, pending(17 << 20)),
            connection("u-mallory/1", 2, pending(0)),
            // Others decide what is sent to a daemon.
            connection("h-web1-loader/1", 3, pending(30 << 20)),
        ];
        let read = [connection("u-mallory/1", 1, pending(0))];
        let mut usage = UsageTracker::default();
        let now = Instant::now();
        assert_eq!(usage.check(&slow, false, limits, now), []);
        assert_eq!(usage.check(&read, false, limits, now), []);
        assert_eq!(usage.check(&slow, false, limits, now), [], "not in a row");
        let excess = usage.check(&slow, false, limits, now);
        assert_eq!(ended(&excess), [1]);
        assert_eq!(excess[0].what, LimitKind::PendingBytes);
    }

    /// So many MB a second, for some seconds; of each connection bytes, messages sent and received.
    fn run(user: &str, seconds: u64, each: &[(u64, u64, u64)]) -> Vec<Excess> {
        let mut usage = UsageTracker::default();
        let begun = Instant::now();
        let mut excess = Vec::new();
        for second in 0..=seconds {
            let found: Vec<Connection> = each
                .iter()
                .zip(1..)
                .map(|((bytes, sent, received), id)| {
                    let usage = Usage {
                        in_bytes: bytes * second,
                        in_messages: sent * second,
                        out_messages: received * second,
                        ..Usage::default()
                    };
                    connection(user, id, usage)
                })
                .collect();
            excess.extend(usage.check(&found, true, limits, begun + Duration::from_secs(second)));
        }
        excess
    }

    #[test]
    fn floods_are_cut_the_sooner_the_larger() {
        let flood = (100 << 20, 100, 0);
        assert_eq!(ended(&run("u-mallory/1", 1, &[(1, 1, 1), flood])), [2]);
        assert_eq!(ended(&run("u-mallory/1", 2, &[(48 << 20, 48, 0)])), NONE);
        assert_eq!(ended(&run("u-mallory/1", 5, &[(48 << 20, 48, 0)])), [1]);
        assert_eq!(ended(&run("h-web1-loader/1", 1, &[flood])), [1]);
        assert_eq!(ended(&run("u-alice/1", 9, &[(31 << 20, 31, 0)])), NONE);
        assert_eq!(ended(&run("s-registry", 9, &[flood])), NONE, "no limit");
    }

    #[test]
    fn floods_of_small_messages_are_cut() {
        let excess = run("u-mallory/1", 1, &[(1, 1, 1), (1 << 20, 16_000, 0)]);
        assert_eq!((ended(&excess), excess[0].what), (vec![2], LimitKind::MessagesPerSecond));
        assert_eq!(excess[0].used, 16_001);
        assert_eq!(ended(&run("h-web1-loader/1", 1, &[(1 << 20, 7_000, 200)])), [1]);
        assert_eq!(ended(&run("h-web1-loader/1", 9, &[(1 << 20, 20_000, 20_000)])), NONE);
        assert_eq!(ended(&run("u-alice/1", 9, &[(1 << 20, 4_900, 4_900)])), NONE);
        assert_eq!(ended(&run("s-registry", 9, &[(1 << 20, 90_000, 0)])), NONE, "no limit");
    }

    /// Nobody can have a daemon cut by asking it much; and a daemon cannot hide behind answers.
    #[test]
    fn answers_of_daemons_count_a_sixteenth() {
        let mib = |n: u64| n << 20;
        assert_eq!(ended(&run("h-web1-loader/1", 9, &[(mib(200), 210, 200)])), NONE);
        assert_eq!(ended(&run("h-web1-loader/1", 1, &[(mib(200), 400, 200)])), [1]);
        assert_eq!(ended(&run("h-web1-loader/1", 20, &[(mib(300), 900, 900)])), [1]);
        assert_eq!(ended(&run("u-mallory/1", 1, &[(mib(200), 200, 200)])), [1]);
    }

    #[test]
    fn connections_that_come_and_go_are_counted_too() {
        let mut usage = UsageTracker::default();
        let begun = Instant::now();
        let mallory: Principal = "u-mallory".parse().unwrap();
        let mut excess = Vec::new();
        for second in 0..=1 {
            excess.extend(usage.check(&[], true, limits, begun + Duration::from_secs(second)));
            let id = SessionId { server: "N1".to_owned(), id: second };
            let sent = Usage { in_bytes: 100 << 20, in_messages: 100, ..Usage::default() };
            usage.closed(mallory.clone(), id, sent);
        }
        assert_eq!(excess.len(), 1, "{excess:?}");
        assert_eq!((excess[0].connections.len(), excess[0].used), (0, 100 << 20));
    }
}
