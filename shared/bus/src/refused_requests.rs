//! Refused requests: the first few of a kind are recorded, the others are counted.
//!
//! A kind is who asked, what and with which code it was refused. Whoever repeats a bad request as fast as
//! they can writes one line a second to the log and a few records a minute to the audit trail.
//! Changes that were begun and failed leave two records each, so a caller has a budget of those.

use crate::{for_log::cut, slots::Owner};
use canopy_api::{endpoint::EndpointSpec, error::Code, name::Principal};
use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long requests of a kind are counted together.
const WINDOW: Duration = Duration::from_mins(1);
/// Requests of a kind that are recorded one by one in a window.
const RECORDED: u32 = 10;
/// How often a kind is logged.
const LOGGED: Duration = Duration::from_secs(1);
/// Requests of a kind without a slot that are answered in a second.
const ANSWERED: u32 = 200;
/// Bytes of a reason.
const REASON: usize = 1000;
/// Kinds that are told apart in a window; the others are counted together.
const KINDS: usize = 4096;
/// Failed changes a second that a caller's budget grows by.
const REFILL: f64 = 2.0;

/// What refused requests are counted by.
#[derive(Clone, Debug)]
pub(crate) struct RefusedKind {
    pub(crate) caller: Principal,
    pub(crate) spec: &'static EndpointSpec,
    pub(crate) code: Code,
}

impl PartialEq for RefusedKind {
    fn eq(&self, other: &Self) -> bool {
        self.code == other.code && self.spec.verb == other.spec.verb && self.caller == other.caller
    }
}

impl Eq for RefusedKind {}

impl Hash for RefusedKind {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.caller.hash(state);
        self.spec.verb.hash(state);
        self.code.hash(state);
    }
}

/// What is to be done about a refused request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    /// It has a line in the log.
    pub(crate) log: bool,
    /// It has a record of its own.
    pub(crate) record: bool,
    /// It has an answer, where it had no slot: whoever sends on and on regardless gets none to each.
    pub(crate) answer: bool,
}

/// Requests of a kind that were counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) kind: RefusedKind,
    pub(crate) count: u64,
    /// Why the last of them was refused.
    pub(crate) reason: String,
}

/// What is due.
#[derive(Debug, Default)]
pub(crate) struct Due {
    /// Lines for the log.
    pub(crate) log: Vec<Counted>,
    /// Records for the trail.
    pub(crate) record: Vec<Counted>,
    /// Requests of kinds that were not told apart.
    pub(crate) others: u64,
}

#[derive(Debug)]
struct Kind {
    recorded: u32,
    answered: u32,
    unrecorded: u64,
    logged: Instant,
    unlogged: u64,
    reason: String,
}

/// A caller's budget of failed changes.
#[derive(Clone, Copy, Debug)]
struct Budget {
    left: f64,
    at: Instant,
}

/// The refused requests of a service.
#[derive(Debug)]
pub(crate) struct RefusedRequests {
    state: Mutex<State>,
    /// Failed changes of a caller in a row.
    budget: f64,
}

#[derive(Debug)]
struct State {
    began: Instant,
    kinds: HashMap<RefusedKind, Kind>,
    others: u64,
    budgets: HashMap<(Owner, &'static str), Budget>,
}

impl RefusedRequests {
    pub(crate) fn new(now: Instant, failures: u32) -> Self {
        let (kinds, budgets) = (HashMap::new(), HashMap::new());
        let state = Mutex::new(State { began: now, kinds, others: 0, budgets });
        Self { state, budget: f64::from(failures) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a refused request.
    pub(crate) fn note(&self, kind: RefusedKind, reason: &str, now: Instant) -> Noted {
        let mut state = self.lock();
        if let Some(known) = state.kinds.get_mut(&kind) {
            let record = known.recorded < RECORDED;
            if record {
                known.recorded += 1;
            } else {
                known.unrecorded += 1;
            }
            let log = now.duration_since(known.logged) >= LOGGED && known.unlogged == 0;
            if log {
                known.logged = now;
            } else {
                known.unlogged += 1;
            }
            if !record || !log {
                known.reason = cut(reason, REASON);
            }
            known.answered = known.answered.saturating_add(1);
            return Noted { log, record, answer: known.answered <= ANSWERED };
        }
        if state.kinds.len() >= KINDS {
            state.others += 1;
            return Noted { log: false, record: false, answer: false };
        }
        let known = Kind {
            recorded: 1,
            answered: 1,
            unrecorded: 0,
            logged: now,
            unlogged: 0,
            reason: String::new(),
        };
        state.kinds.insert(kind, known);
        Noted { log: true, record: true, answer: true }
    }

    /// What is due by now, or at the end.
    pub(crate) fn due(&self, now: Instant, end: bool) -> Due {
        let mut state = self.lock();
        let closes = end || now.duration_since(state.began) >= WINDOW;
        let mut due = Due::default();
        for (kind, known) in &mut state.kinds {
            // This is asked for once a second.
            known.answered = 0;
            let counted = |count: u64, reason: &str| Counted {
                kind: kind.clone(),
                count,
                reason: reason.to_owned(),
            };
            if known.unlogged > 0 && (closes || now.duration_since(known.logged) >= LOGGED) {
                due.log.push(counted(std::mem::take(&mut known.unlogged), &known.reason));
                known.logged = now;
            }
            if closes && known.unrecorded > 0 {
                due.record.push(counted(known.unrecorded, &known.reason));
            }
        }
        if closes {
            state.kinds.clear();
            state.began = now;
            due.others = std::mem::take(&mut state.others);
            let (budget, full) = (self.budget, now);
            state.budgets.retain(|_, one| one.at_time(budget, full).left < budget);
        }
        due
    }

    /// How long until a caller's budget allows one more change of this kind; `None` now.
    pub(crate) fn wait(
        &self,
        owner: &Owner,
        spec: &EndpointSpec,
        now: Instant,
    ) -> Option<Duration> {
        let state = self.lock();
        let budget = state.budgets.get(&(owner.clone(), spec.verb))?.at_time(self.budget, now);
        (budget.left < 1.0).then(|| Duration::from_secs_f64((1.0 - budget.left) / REFILL))
    }

    /// A change failed.
    pub(crate) fn failed(&self, owner: Owner, spec: &'static EndpointSpec, now: Instant) {
        let mut state = self.lock();
        let full = Budget { left: self.budget, at: now };
        let budget = state.budgets.entry((owner, spec.verb)).or_insert(full);
        *budget = budget.at_time(self.budget, now);
        budget.left = (budget.left - 1.0).max(0.0);
    }
}

impl Budget {
    fn at_time(self, most: f64, now: Instant) -> Self {
        let grown = now.saturating_duration_since(self.at).as_secs_f64() * REFILL;
        Self { left: (self.left + grown).min(most), at: now }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use canopy_api::endpoint::{Endpoint as _, loader};

    const SECOND: Duration = Duration::from_secs(1);

    fn kind(caller: &str, code: Code) -> RefusedKind {
        RefusedKind { caller: caller.parse().unwrap(), spec: loader::Apply::SPEC, code }
    }

    #[test]
    fn a_flood_of_one_kind_is_counted_and_logged_once_a_second() {
        let begun = Instant::now();
        let refused = RefusedRequests::new(begun, 10);
        let (mut logged, mut recorded, mut counted) = (0, 0, 0);
        for n in 0..30_000_u32 {
            let now = begun + Duration::from_millis(u64::from(n));
            let noted = refused.note(kind("u-m", Code::Invalid), "no", now);
            logged += u32::from(noted.log);
            recorded += u32::from(noted.record);
            if n % 1000 == 999 {
                let due = refused.due(now, false);
                assert_eq!(due.record, []);
                logged += u32::try_from(due.log.len()).unwrap();
                counted += due.log.iter().map(|one| one.count).sum::<u64>();
            }
        }
        assert!(logged <= 31, "{logged} lines in 30 s");
        assert_eq!(recorded, RECORDED);
        let due = refused.due(begun + WINDOW, false);
        assert_eq!(due.record.len(), 1);
        assert_eq!(due.record[0].count + u64::from(RECORDED), 30_000);
        assert_eq!(due.record[0].reason, "no");
        counted += due.log.iter().map(|one| one.count).sum::<u64>();
        assert!(counted >= 30_000 - 31, "{counted}");
        assert!(refused.due(begun + 2 * WINDOW, true).record.is_empty(), "told once");
    }

    #[test]
    fn kinds_are_told_apart_up_to_a_bound() {
        let now = Instant::now();
        let refused = RefusedRequests::new(now, 10);
        for n in 0..KINDS + 7 {
            refused.note(kind(&format!("u-{n}"), Code::Invalid), "no", now);
        }
        assert_eq!(refused.lock().kinds.len(), KINDS);
        assert_eq!(refused.due(now, true).others, 7);
    }

    #[test]
    fn failed_changes_have_a_budget_that_grows_again() {
        let begun = Instant::now();
        let refused = RefusedRequests::new(begun, 3);
        let (owner, spec) = (Owner::of(&"u-m".parse().unwrap()), loader::Apply::SPEC);
        for _ in 0..3 {
            assert_eq!(refused.wait(&owner, spec, begun), None);
            refused.failed(owner.clone(), spec, begun);
        }
        assert!(refused.wait(&owner, spec, begun).is_some_and(|wait| wait <= SECOND));
        assert_eq!(refused.wait(&owner, loader::Delete::SPEC, begun), None, "another verb");
        let other = Owner::of(&"u-o".parse().unwrap());
        assert_eq!(refused.wait(&other, spec, begun), None, "another caller");
        assert_eq!(refused.wait(&owner, spec, begun + SECOND), None);
        refused.due(begun + WINDOW, false);
        assert!(refused.lock().budgets.is_empty(), "a full budget is not kept");
    }
}
