//! Rate limits that may be exceeded for a moment, by leaky buckets. Pure.

use canopy_api::Principal;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// So many seconds' worth may be used at once.
const BURST_SECONDS: u64 = 2;

/// A leaky bucket: what was used beyond a rate and has not leaked yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeakyBucket {
    /// In thousandths.
    thousandths: u64,
}

impl LeakyBucket {
    /// Somebody used `amount` within `elapsed`. Whether that makes more than a burst beyond `rate` a second.
    pub(crate) fn add(&mut self, amount: u64, rate: u64, elapsed: Duration) -> bool {
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let leaked = rate.saturating_mul(micros) / 1000;
        self.thousandths =
            self.thousandths.saturating_add(amount.saturating_mul(1000)).saturating_sub(leaked);
        self.thousandths > rate.saturating_mul(BURST_SECONDS * 1000)
    }

    /// Whether nothing beyond the rate is left.
    pub(crate) fn is_empty(self) -> bool {
        self.thousandths == 0
    }
}

/// Principals whose connects are counted, at most; beyond it the table begins again.
const CONNECTING: usize = 65_536;

/// How often principals connected lately, granted or refused.
#[derive(Debug, Default)]
pub(crate) struct ConnectRates(Mutex<HashMap<Principal, (Instant, LeakyBucket)>>);

impl ConnectRates {
    /// Counts a connect; whether that is more than `rate` a second allows.
    pub(crate) fn too_many(&self, principal: &Principal, rate: u64, now: Instant) -> bool {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= CONNECTING && !table.contains_key(principal) {
            table.clear();
        }
        let (last, bucket) =
            table.entry(principal.clone()).or_insert((now, LeakyBucket::default()));
        let elapsed = now.saturating_duration_since(std::mem::replace(last, now));
        bucket.add(0, rate, elapsed);
        let mut with_this = *bucket;
        let too_many = with_this.add(1, rate, Duration::ZERO);
        // What is refused does not lengthen the wait: the rate is let in, however much is tried.
        if !too_many {
            *bucket = with_this;
        }
        too_many
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The second in which so many each second are too many.
    fn seconds(amount: u64) -> Option<u32> {
        let mut bucket = LeakyBucket::default();
        (1..=100).find(|_| bucket.add(amount, 100, Duration::from_secs(1)))
    }

    #[test]
    fn a_rate_is_exceeded_sooner_the_more_is_used() {
        assert_eq!(seconds(301), Some(1));
        assert_eq!(seconds(201), Some(2));
        assert_eq!(seconds(150), Some(5));
        assert_eq!(seconds(110), Some(21));
        assert_eq!(seconds(100), None);
    }

    #[test]
    fn bursts_are_leaked_for() {
        let mut bucket = LeakyBucket::default();
        for _ in 0..10 {
            assert!(!bucket.add(200, 100, Duration::ZERO));
            assert!(!bucket.is_empty());
            assert!(!bucket.add(0, 100, Duration::from_secs(2)));
            assert!(bucket.is_empty());
        }
        assert!(bucket.add(u64::MAX, 100, Duration::from_secs(1)));
    }

    #[test]
    fn connects_are_let_in_at_their_rate() {
        let (connects, begun) = (ConnectRates::default(), Instant::now());
        let alice: Principal = "u-alice".parse().unwrap();
        let granted = |tries: u64, apart: Duration, from: Duration| {
            let mut at = begun + from;
            let mut count = 0;
            for _ in 0..tries {
                count += u64::from(!connects.too_many(&alice, 10, at));
                at += apart;
            }
            count
        };
        assert_eq!(granted(50, Duration::ZERO, Duration::ZERO), 20, "a burst");
        let (millisecond, second) = (Duration::from_millis(1), Duration::from_secs(1));
        assert_eq!(granted(10_000, millisecond, millisecond), 100, "ten a second");
        assert_eq!(granted(50, Duration::ZERO, 60 * second), 20, "another burst");
        assert!(!connects.too_many(&"u-bob".parse().unwrap(), 10, begun));
    }
}
