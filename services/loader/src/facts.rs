//! What the host can do, probed at most once a minute.
//!
//! Probing loads programs and makes a network namespace: whoever asks again and again gets what the last
//! probe found.

use canopy_api::{ApiError, wire::Fact};
use std::{
    sync::{Arc, Mutex as Lock, PoisonError},
    time::Duration,
};
use tokio::{sync::Mutex, time::Instant};

/// How long the result of a probe is used.
const FRESH: Duration = Duration::from_mins(1);

/// When it was probed, and what was found.
type Probed = (Instant, Vec<Fact>);

/// The last probe, and whose turn the next is.
#[derive(Clone, Debug)]
pub(crate) struct FactsCache {
    fresh: Duration,
    last: Arc<Lock<Option<Probed>>>,
    probing: Arc<Mutex<()>>,
}

impl Default for FactsCache {
    fn default() -> Self {
        Self { fresh: FRESH, last: Arc::default(), probing: Arc::default() }
    }
}

impl FactsCache {
    fn last(&self, within: Option<Duration>) -> Option<Vec<Fact>> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, facts) = last.as_ref()?;
        within.is_none_or(|within| at.elapsed() < within).then(|| facts.clone())
    }

    /// What the last probe found, if that is not long ago; otherwise what `probe` finds. One probe runs at
    /// a time, and nobody waits for it who can be told what the one before found.
    pub(crate) async fn get<F>(&self, probe: impl FnOnce() -> F) -> Result<Vec<Fact>, ApiError>
    where
        F: Future<Output = Result<Vec<Fact>, ApiError>>,
    {
        if let Some(facts) = self.last(Some(self.fresh)) {
            return Ok(facts);
        }
        let turn = match self.probing.try_lock() {
            Ok(turn) => turn,
            Err(_) => match self.last(None) {
                Some(facts) => return Ok(facts),
                None => self.probing.lock().await,
            },
        };
        // Whoever had the turn before has probed meanwhile.
        if let Some(facts) = self.last(Some(self.fresh)) {
            return Ok(facts);
        }
        let facts = probe().await?;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), facts.clone()));
        drop(turn);
        Ok(facts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use canopy_api::Code;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::Notify;

    fn facts(number: u32) -> Vec<Fact> {
        let (name, detail) = ("kernel".to_owned(), number.to_string());
        vec![Fact { name, ok: true, required: true, detail, remedy: None }]
    }

    #[tokio::test]
    async fn a_flood_of_facts_probes_once_a_minute() {
        let (cache, probes) = (FactsCache::default(), AtomicU32::new(0));
        let ask = || {
            cache.get(|| async {
                let number = probes.fetch_add(1, Ordering::SeqCst) + 1;
                tokio::task::yield_now().await;
                Ok(facts(number))
            })
        };
        // At once, and later: all get what the first probe finds.
        let all = futures::future::join_all((0..100).map(|_| ask())).await;
        assert!(all.into_iter().all(|one| one.unwrap() == facts(1)));
        assert_eq!(ask().await.unwrap(), facts(1));
        assert_eq!(probes.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_probe_who_can_be_told_of_the_last() {
        let cache = FactsCache { fresh: Duration::ZERO, ..FactsCache::default() };
        assert_eq!(cache.get(|| async { Ok(facts(1)) }).await.unwrap(), facts(1));
        let (begun, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (probing, begins, ends) = (cache.clone(), Arc::clone(&begun), Arc::clone(&end));
        let slow = tokio::spawn(async move {
            let probe = || async {
                begins.notify_one();
                ends.notified().await;
                Ok(facts(2))
            };
            probing.get(probe).await
        });
        begun.notified().await;
        let probe = || async { panic!("a second probe at the same time") };
        assert_eq!(cache.get(probe).await.unwrap(), facts(1));
        end.notify_one();
        assert_eq!(slow.await.unwrap().unwrap(), facts(2));
    }

    #[tokio::test]
    async fn a_probe_that_fails_is_not_kept() {
        let cache = FactsCache::default();
        let failed = || async { Err(ApiError::new(Code::Internal, "no")) };
        cache.get(failed).await.unwrap_err();
        assert_eq!(cache.get(|| async { Ok(facts(1)) }).await.unwrap(), facts(1));
    }
}
