//! Rates that may be exceeded for a moment: a leaky bucket. Pure.

use std::time::Duration;

/// So many seconds' worth may be used at once.
const BURST_SECONDS: u64 = 2;

/// What somebody used beyond a rate and has not yet made up for by using less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overuse {
    /// In thousandths.
    thousandths: u64,
}

impl Overuse {
    /// Somebody used `amount` within `elapsed`. Whether that makes more than a burst beyond `rate` a second.
    pub(crate) fn add(&mut self, amount: u64, rate: u64, elapsed: Duration) -> bool {
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let made_up = rate.saturating_mul(micros) / 1000;
        self.thousandths =
            self.thousandths.saturating_add(amount.saturating_mul(1000)).saturating_sub(made_up);
        self.thousandths > rate.saturating_mul(BURST_SECONDS * 1000)
    }

    /// Whether nothing is left to make up for.
    pub(crate) fn is_none(self) -> bool {
        self.thousandths == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The second in which so many each second are too many.
    fn seconds(amount: u64) -> Option<u32> {
        let mut overuse = Overuse::default();
        (1..=100).find(|_| overuse.add(amount, 100, Duration::from_secs(1)))
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
    fn bursts_are_made_up_for() {
        let mut overuse = Overuse::default();
        for _ in 0..10 {
            assert!(!overuse.add(200, 100, Duration::ZERO));
            assert!(!overuse.is_none());
            assert!(!overuse.add(0, 100, Duration::from_secs(2)));
            assert!(overuse.is_none());
        }
        assert!(overuse.add(u64::MAX, 100, Duration::from_secs(1)));
    }
}
