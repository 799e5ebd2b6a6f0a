//! Asking again who is busy.

use crate::{Bus, CallError, CallOptions};
use canopy_api::{
    endpoint::Endpoint,
    error::{ApiError, BUSY},
    subject::Target,
};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Before the second attempt; twice as long before each other, up to [`LONGEST`].
const FIRST: Duration = Duration::from_millis(50);
/// Between two attempts.
const LONGEST: Duration = Duration::from_millis(800);

/// Whether a service answered that it has no slot for the request just now.
pub fn is_busy(error: &ApiError) -> bool {
    error.reason.as_deref() == Some(BUSY)
}

impl Bus {
    /// Asks, and asks again until `until` while the answer is an error of which `again` says that the same
    /// request may succeed soon. Nothing was done for such an answer.
    ///
    /// # Errors
    /// See [`CallError`]; the last answer when the time is over.
    pub async fn call_again<E: Endpoint>(
        &self,
        target: &Target,
        request: &E::Request,
        options: &CallOptions,
        until: Instant,
        again: impl Fn(&ApiError) -> bool,
    ) -> Result<E::Reply, CallError> {
        let mut pause = FIRST;
        loop {
            match self.call_with::<E>(target, request, options.clone()).await {
                Err(CallError::Api(error)) if again(&error) => {
                    // Callers that were refused together do not come back together.
                    let wait = pause.mul_f64(rand::random_range(0.5..1.0));
                    if Instant::now() + wait >= until {
                        return Err(CallError::Api(error));
                    }
                    sleep(wait).await;
                    pause = (pause * 2).min(LONGEST);
                }
                other => return other,
            }
        }
    }
}
