//! By how many servers of the bus what is stored is kept: as many as the configuration says as soon as the
//! cluster has them, and told while it is fewer.

use crate::metrics::Metrics;
use canopy_bus::{Bus, data};
use canopy_runtime::Latch;
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Between two looks while copies are missing.
const MISSING: Duration = Duration::from_secs(5);
/// Between two looks otherwise.
const COMPLETE: Duration = Duration::from_secs(30);

/// Raises, or lowers, the copies of these streams to `wanted`, and reports what there is, until `stop`.
pub(crate) async fn follow(
    bus: Bus,
    streams: Vec<String>,
    wanted: usize,
    (latch, metrics): (Latch, Metrics),
    stop: CancellationToken,
) {
    let mut before = String::new();
    loop {
        let looked = stop.run_until_cancelled(look(&bus, &streams, wanted)).await;
        let Some((fewest, missing)) = looked else { return };
        metrics.copies(fewest, wanted);
        let complete = missing.is_empty();
        let text = missing.join("; ");
        if complete {
            latch.set(true, format!("{wanted} up-to-date copies of what is stored"));
        } else {
            latch.warn(text.clone());
        }
        if text != before {
            if complete {
                tracing::info!(replicas = wanted, "every stream has its copies");
            } else {
                tracing::warn!(
                    replicas = wanted,
                    "fewer copies of what is stored than `auth.replicas` says: {text}; see that as many bus \
                     servers with JetStream are in the cluster and up"
                );
            }
            before = text;
        }
        let pause = if complete { COMPLETE } else { MISSING };
        if stop.run_until_cancelled(sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// The fewest copies that are up to date, and what is missing of which stream.
async fn look(bus: &Bus, streams: &[String], wanted: usize) -> (usize, Vec<String>) {
    let (mut fewest, mut missing) = (wanted, Vec::new());
    for stream in streams {
        match data::ensure_replicas(bus, stream, wanted).await {
            Ok(copies) => {
                fewest = fewest.min(copies.current);
                if copies.current < wanted {
                    missing.push(format!("{stream} has {} of {wanted}", copies.current));
                }
            }
            Err(error) => {
                fewest = 0;
                missing.push(format!("{stream}: {error}"));
            }
        }
    }
    (fewest, missing)
}
