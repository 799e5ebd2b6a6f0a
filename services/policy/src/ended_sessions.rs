//! Which connections were counted as ended: each is counted once, however often it is found before its server has
//! let it go.

use canopy_bus::system::SessionId;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long a connection is remembered. A server closes it within moments of being told to.
const REMEMBERED: Duration = Duration::from_mins(2);

/// The connections that were ended lately.
#[derive(Debug, Default)]
pub(crate) struct EndedSessions(Mutex<HashMap<SessionId, Instant>>);

impl EndedSessions {
    /// Remembers these, and says how many of them were not ended before.
    pub(crate) fn count_new(
        &self,
        ended: impl IntoIterator<Item = SessionId>,
        now: Instant,
    ) -> usize {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, since| now.duration_since(*since) < REMEMBERED);
        ended.into_iter().filter(|session| known.insert(session.clone(), now).is_none()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_connection_is_counted_once() {
        let (ended, now) = (EndedSessions::default(), Instant::now());
        let of = |server: &str, id| SessionId { server: server.to_owned(), id };
        assert_eq!(ended.count_new([of("A", 1), of("A", 2), of("B", 1)], now), 3);
        assert_eq!(ended.count_new([of("A", 1), of("B", 2)], now), 1);
        assert_eq!(ended.count_new([of("B", 2), of("B", 2)], now + REMEMBERED / 2), 0);
        // Nothing is kept for good.
        assert_eq!(ended.count_new([], now + REMEMBERED * 2), 0);
        assert!(ended.0.lock().unwrap().is_empty());
    }
}
