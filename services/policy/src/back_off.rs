//! Principals whose connections were ended for exceeding a limit: refused for a while, longer each time.

use crate::{limits::LimitsConfig, usage::LimitKind};
use canopy_api::Principal;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// After so long without another offence the count begins again.
const FORGOTTEN: Duration = Duration::from_mins(10);

#[derive(Clone, Copy, Debug)]
struct Offence {
    times: u32,
    until: Instant,
}

/// Who is refused, and until when.
#[derive(Debug, Default)]
pub(crate) struct BackOff(Mutex<HashMap<Principal, Offence>>);

impl BackOff {
    fn lock(&self) -> MutexGuard<'_, HashMap<Principal, Offence>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connections of a principal were ended: how many times in a row that is, and for how long it is
    /// refused. What waits to be read by it was sent by others, who must not have it refused for long: the
    /// first time costs the connection alone, and it is never refused for longer than the shortest time.
    pub(crate) fn offence(
        &self,
        principal: &Principal,
        what: LimitKind,
        limits: &LimitsConfig,
        now: Instant,
    ) -> (u32, Duration) {
        let mut offences = self.lock();
        offences.retain(|_, offence| now < offence.until + FORGOTTEN);
        let times = offences.get(principal).map_or(0, |offence| offence.times).saturating_add(1);
        let refused_for = match what {
            LimitKind::Subscriptions | LimitKind::MessagesPerSecond | LimitKind::BytesPerSecond => {
                limits.back_off(times)
            }
            LimitKind::PendingBytes if times == 1 => Duration::ZERO,
            LimitKind::PendingBytes => limits.back_off(1),
        };
        offences.insert(principal.clone(), Offence { times, until: now + refused_for });
        (times, refused_for)
    }

    /// Another instance ended connections of a principal.
    pub(crate) fn learn(
        &self,
        principal: &Principal,
        times: u32,
        refused_for: Duration,
        now: Instant,
    ) {
        let mut offences = self.lock();
        let until = now + refused_for;
        let offence = offences.entry(principal.clone()).or_insert(Offence { times, until });
        offence.times = offence.times.max(times);
        offence.until = offence.until.max(until);
    }

    /// For how long a principal is refused from now on.
    pub(crate) fn remaining(&self, principal: &Principal, now: Instant) -> Option<Duration> {
        let until = self.lock().get(principal)?.until;
        Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeat_offenders_are_refused_for_longer_each_time() {
        let (back_off, limits, now) = (BackOff::default(), LimitsConfig::default(), Instant::now());
        let mallory: Principal = "u-mallory".parse().unwrap();
        let alice: Principal = "u-alice".parse().unwrap();
        assert_eq!(back_off.remaining(&mallory, now), None);
        let what = LimitKind::Subscriptions;
        let (times, first) = back_off.offence(&mallory, what, &limits, now);
        assert_eq!((times, first), (1, Duration::from_secs(5)));
        assert_eq!(back_off.remaining(&mallory, now), Some(first));
        assert_eq!(back_off.remaining(&alice, now), None);
        assert_eq!(back_off.remaining(&mallory, now + first), None);
        let again = now + Duration::from_mins(1);
        assert_eq!(back_off.offence(&mallory, what, &limits, again), (2, Duration::from_secs(10)));
        let much_later = again + Duration::from_secs(10) + FORGOTTEN;
        assert_eq!(back_off.offence(&mallory, what, &limits, much_later).0, 1);
    }

    #[test]
    fn slow_readers_are_never_refused_for_long() {
        let (back_off, limits, now) = (BackOff::default(), LimitsConfig::default(), Instant::now());
        let alice: Principal = "u-alice".parse().unwrap();
        let refused: Vec<u64> = (0..6)
            .map(|_| back_off.offence(&alice, LimitKind::PendingBytes, &limits, now).1.as_secs())
            .collect();
        assert_eq!(refused, [0, 5, 5, 5, 5, 5]);
    }

    #[test]
    fn what_another_instance_says_only_lengthens() {
        let (back_off, limits, now) = (BackOff::default(), LimitsConfig::default(), Instant::now());
        let mallory: Principal = "u-mallory".parse().unwrap();
        back_off.learn(&mallory, 3, Duration::from_secs(20), now);
        back_off.learn(&mallory, 1, Duration::from_secs(5), now);
        assert_eq!(back_off.remaining(&mallory, now), Some(Duration::from_secs(20)));
        let what = LimitKind::BytesPerSecond;
        assert_eq!(back_off.offence(&mallory, what, &limits, now), (4, Duration::from_secs(40)));
    }
}
