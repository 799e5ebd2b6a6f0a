//! The registry's endpoints.

use crate::{current::Current, registry::RepositoryHealth};
use canopy_api::{
    endpoint::registry::{Artifact, Describe, List, Refresh, Resolve, Search},
    wire::{Empty, RefreshReply, RepositoryState},
};
use canopy_bus::Server;
use std::sync::Arc;

/// Adds the registry's verbs to a server.
pub(crate) fn register(server: Server, current: &Arc<Current>) -> Server {
    let of = || Arc::clone(current);
    let (list, describe, resolve, artifact) = (of(), of(), of(), of());
    let (search, refresh) = (of(), of());
    server
        .handle::<List, _, _>(move |_, request| {
            let registry = list.get();
            async move { Ok(registry.list(&request).await?) }
        })
        .handle::<Describe, _, _>(move |_, request| {
            let registry = describe.get();
            async move { Ok(registry.describe(&request).await?) }
        })
        .handle::<Search, _, _>(move |_, request| {
            let registry = search.get();
            async move { Ok(registry.search(&request).await?) }
        })
        .handle::<Refresh, _, _>(move |_, _: Empty| {
            let registry = refresh.get();
            async move {
                let state = |one: RepositoryHealth| RepositoryState {
                    repository: one.name,
                    usable: one.usable,
                    detail: one.detail,
                };
                let repositories = registry.refresh().await.into_iter().map(state).collect();
                Ok(RefreshReply { repositories })
            }
        })
        .handle::<Resolve, _, _>(move |_, request| {
            let registry = resolve.get();
            async move { Ok(registry.resolve(&request).await?) }
        })
        .handle::<Artifact, _, _>(move |_, request| {
            let registry = artifact.get();
            async move { Ok(registry.artifact(&request).await?) }
        })
}
