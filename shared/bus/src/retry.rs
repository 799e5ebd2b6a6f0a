//! Asking the store again: while a stream's leader changes it answers nobody, for some seconds.
//!
//! How long is what the caller of the request at hand waits. Only what does nothing twice is repeated:
//! reads, and changes that name what they replace.

use crate::config::BusError;
use std::time::{Duration, Instant};
use tokio::{task_local, time::sleep};

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(150);
/// What is left of a caller's time for the answer.
const ANSWERING: Duration = Duration::from_millis(400);

task_local! {
    /// When the caller of the request that this task works on stops waiting.
    static UNTIL: Instant;
}

/// Work outside of requests during which the store is asked again for so long where it does not answer.
pub async fn retry_for<T>(limit: Duration, work: impl Future<Output = T>) -> T {
    within(Some(Instant::now() + limit), work).await
}

/// Works on a request whose caller waits so long.
pub(crate) async fn within<T>(until: Option<Instant>, work: impl Future<Output = T>) -> T {
    match until {
        Some(until) => UNTIL.scope(until, work).await,
        None => work.await,
    }
}

/// Repeats what fails as long as there is time for it; outside of requests it is done once. `attempt` is
/// told whether one before it failed, and may have been done all the same.
pub(crate) async fn repeated<T, Fut>(mut attempt: impl FnMut(bool) -> Fut) -> Result<T, BusError>
where
    Fut: Future<Output = Result<T, BusError>>,
{
    let until = UNTIL.try_with(|until| *until).ok();
    let mut again = false;
    loop {
        let error = match attempt(again).await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let time_for_more = until.is_some_and(|until| Instant::now() + PAUSE + ANSWERING < until);
        // What cannot be read will not be read the next time.
        if !time_for_more || !matches!(error, BusError::Unavailable(_)) {
            return Err(error);
        }
        tracing::debug!(%error, "the bus's store is asked again");
        again = true;
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    async fn tries(until: Option<Duration>, fails: u32, error: fn() -> BusError) -> (bool, u32) {
        let count = Cell::new(0);
        let work = repeated(|again| {
            assert_eq!(again, count.get() > 0);
            count.set(count.get() + 1);
            let done = if count.get() > fails { Ok(()) } else { Err(error()) };
            async move { done }
        });
        let done = within(until.map(|until| Instant::now() + until), work).await.is_ok();
        (done, count.get())
    }

    #[tokio::test]
    async fn the_store_is_asked_again_within_the_callers_time() {
        let away = || BusError::Unavailable("no leader".to_owned());
        let long = Some(Duration::from_secs(30));
        assert_eq!(tries(long, 3, away).await, (true, 4));
        // Without a caller, with no time left, and where it is of no use: once.
        assert_eq!(tries(None, 3, away).await, (false, 1));
        assert_eq!(tries(Some(Duration::from_millis(100)), 3, away).await, (false, 1));
        assert_eq!(tries(long, 3, || BusError::Store("damaged".to_owned())).await, (false, 1));
        let begun = Instant::now();
        let (done, count) = tries(Some(Duration::from_secs(1)), u32::MAX, away).await;
        assert!(!done && count >= 2 && begun.elapsed() < Duration::from_secs(1), "{count}");
    }
}
