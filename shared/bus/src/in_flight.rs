//! Requests that a service has not answered yet, by their reply subject: a repeat of one of them is ignored, as
//! the answer to the first goes to the same place.

use std::{
    collections::HashSet,
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The requests. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct InFlight(Arc<Inner>);

/// Hashes instead of subjects: two requests with the same one, which no caller can bring about, mean a repeat
/// too few.
#[derive(Debug, Default)]
struct Inner {
    hashes: Mutex<HashSet<u64>>,
    hasher: RandomState,
}

impl Inner {
    fn hashes(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.hashes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request, until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlightGuard {
    inner: Arc<Inner>,
    /// Nothing where another request with the same reply subject was first.
    hash: Option<u64>,
}

impl InFlight {
    /// Takes note of a request; `None` where it is a repeat of one that is in flight. Only requests that say
    /// that they are repeats are taken for one: others may share a reply subject.
    pub(crate) fn enter(&self, reply: &str, is_repeat: bool) -> Option<InFlightGuard> {
        let hash = self.0.hasher.hash_one(reply);
        let is_first = self.0.hashes().insert(hash);
        if !is_first && is_repeat {
            return None;
        }
        Some(InFlightGuard { inner: Arc::clone(&self.0), hash: is_first.then_some(hash) })
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        if let Some(hash) = self.hash {
            self.inner.hashes().remove(&hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeat_of_a_request_in_flight_is_ignored() {
        let in_flight = InFlight::default();
        let first = in_flight.enter("a", false).unwrap();
        assert!(in_flight.enter("a", true).is_none());
        let other = in_flight.enter("a", false).unwrap();
        drop(other);
        assert!(in_flight.enter("a", true).is_none(), "the first is still in flight");
        drop(first);
        let again = in_flight.enter("a", true).unwrap();
        drop(again);
        assert!(in_flight.0.hashes().is_empty());
    }
}
