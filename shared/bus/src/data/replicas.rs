//! How many servers of a cluster keep a stream.

use super::{LIMIT, failed};
use crate::{config::BusError, connection::Bus};
use async_nats::jetstream;

/// By how many servers a stream is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copies {
    /// How many are to keep it, by the stream's own configuration.
    pub configured: usize,
    /// How many have all of it now.
    pub current: usize,
}

/// Has a stream kept by `wanted` servers, more or fewer than before. What is stored stays.
///
/// # Errors
/// When the stream is not there, the store does not answer, or the cluster has not enough servers: the stream
/// is as before then.
pub async fn ensure_replicas(bus: &Bus, stream: &str, wanted: usize) -> Result<Copies, BusError> {
    let mut context = jetstream::new(bus.client.as_ref().clone());
    context.set_timeout(LIMIT);
    let found = context.get_stream(stream).await.map_err(|error| failed(&error))?;
    let mut info = found.get_info().await.map_err(|error| failed(&error))?;
    if info.config.num_replicas != wanted {
        let mut config = info.config.clone();
        config.num_replicas = wanted;
        info = context.update_stream(config).await.map_err(|error| failed(&error))?;
    }
    let current = info.cluster.as_ref().map_or(1, |cluster| {
        let others = cluster.replicas.iter().filter(|one| one.current && !one.offline);
        usize::from(cluster.leader.is_some()) + others.count()
    });
    Ok(Copies { configured: info.config.num_replicas, current })
}
