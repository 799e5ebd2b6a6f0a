//! The registry's endpoints.

use crate::registry::Registry;
use canopy_api::endpoint::registry::{Artifact, Describe, List, Resolve};
use canopy_bus::Server;
use std::sync::Arc;

/// Adds the registry's verbs to a server.
pub fn register(server: Server, registry: &Arc<Registry>) -> Server {
    let of = || Arc::clone(registry);
    let (list, describe, resolve, artifact) = (of(), of(), of(), of());
    server
        .handle::<List, _, _>(move |_, request| {
            let registry = Arc::clone(&list);
            async move { Ok(registry.list(&request).await?) }
        })
        .handle::<Describe, _, _>(move |_, request| {
            let registry = Arc::clone(&describe);
            async move { Ok(registry.describe(&request).await?) }
        })
        .handle::<Resolve, _, _>(move |_, request| {
            let registry = Arc::clone(&resolve);
            async move { Ok(registry.resolve(&request).await?) }
        })
        .handle::<Artifact, _, _>(move |_, request| {
            let registry = Arc::clone(&artifact);
            async move { Ok(registry.artifact(&request).await?) }
        })
}
