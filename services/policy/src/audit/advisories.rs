//! What the bus servers themselves say about failed connects.

use super::trail::{Happening, Noter};
use canopy_bus::{Bus, system};
use futures::StreamExt as _;
use std::{pin::pin, time::Duration};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// The instances share what is said.
const QUEUE: &str = "policy";
/// After a failure.
const AGAIN: Duration = Duration::from_secs(2);

/// Records what is said, until `stop`.
pub(super) async fn follow(system: Bus, noter: Noter, stop: CancellationToken) {
    let work = async {
        loop {
            match system::failed_connects(&system, QUEUE).await {
                Ok(told) => {
                    let mut told = pin!(told);
                    while let Some(failed) = told.next().await {
                        noter.note(Happening::failed(failed));
                    }
                }
                Err(error) => tracing::warn!(%error, "failed connects are not heard of"),
            }
            sleep(AGAIN).await;
        }
    };
    stop.run_until_cancelled(Box::pin(work)).await;
}
