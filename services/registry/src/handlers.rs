//! The registry's endpoints.

use crate::{
    current::Current,
    error::PublishError,
    registry::RepositoryHealth,
    repository::{Change, Published},
};
use canopy_api::{
    Principal,
    endpoint::{
        Service,
        registry::{
            Artifact, Describe, List, Publish, PublishIndex, PublishUpload, Refresh, ResetIndex,
            Resolve, Search, Yank,
        },
    },
    wire::{
        Empty, PackagePublished, PublishReply, PublishRequest, RefreshReply, RepositoryState,
        YankRequest,
    },
};
use canopy_bus::{Bus, Server};
use canopy_runtime::clock;
use std::sync::Arc;

/// Adds the registry's verbs to a server.
pub(crate) fn register(server: Server, current: &Arc<Current>, bus: &Bus) -> Server {
    let server = register_publishing(server, current, bus);
    let of = || Arc::clone(current);
    let (list, describe, resolve, artifact) = (of(), of(), of(), of());
    let (search, refresh, reset) = (of(), of(), of());
    let (list_bus, search_bus, describe_bus) = (bus.clone(), bus.clone(), bus.clone());
    server
        .handle::<ResetIndex, _, _>(move |caller, request| {
            let registry = reset.get();
            async move {
                let reply = registry.reset_index(&request, &caller.principal).await?;
                caller.notes.about(format!(
                    "highest index version of {} reset from {} to {}",
                    reply.repository, reply.from, reply.to
                ));
                Ok(reply)
            }
        })
        .handle::<List, _, _>(move |_, request| {
            let (registry, room) = (list.get(), list_bus.page_bytes());
            async move { Ok(registry.list(&request, room).await?) }
        })
        .handle::<Describe, _, _>(move |_, request| {
            let (registry, room) = (describe.get(), describe_bus.page_bytes());
            async move { Ok(registry.describe(&request).await?.within(room)) }
        })
        .handle::<Search, _, _>(move |_, request| {
            let (registry, room) = (search.get(), search_bus.page_bytes());
            async move { Ok(registry.search(&request, room).await?) }
        })
        .handle::<Refresh, _, _>(move |_, _: Empty| {
            let registry = refresh.get();
            async move {
                let state = |one: RepositoryHealth| RepositoryState {
                    repository: one.name,
                    usable: one.usable,
                    stale: one.stale,
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

/// Adds the verbs of publishers.
fn register_publishing(server: Server, current: &Arc<Current>, bus: &Bus) -> Server {
    let of = || Arc::clone(current);
    let (index, upload, publish, yank) = (of(), of(), of(), of());
    let (published, yanked) = (bus.clone(), bus.clone());
    server
        .handle::<PublishIndex, _, _>(move |_, request| {
            let registry = index.get();
            async move { Ok(registry.publish_index(&request).await?) }
        })
        .handle::<PublishUpload, _, _>(move |caller, request| {
            let registry = upload.get();
            async move { Ok(registry.publish_upload(&caller.principal, request).await?) }
        })
        .handle::<Publish, _, _>(move |caller, request: PublishRequest| {
            let (registry, bus) = (publish.get(), published.clone());
            async move {
                let PublishRequest { repository, packages, index, replaces } = request;
                let (by, change) = (&caller.principal, Change::Publish(packages));
                let done =
                    registry.publish(by, &repository, &change, &index, replaces.as_ref()).await?;
                caller.notes.about(said("published", &repository, &done));
                tell(&bus, "published", &repository, &done, by).await;
                Ok(PublishReply { index_version: done.index_version })
            }
        })
        .handle::<Yank, _, _>(move |caller, request: YankRequest| {
            let (registry, bus) = (yank.get(), yanked.clone());
            async move {
                let YankRequest { repository, package, version, yanked, index, replaces } = request;
                let version = version.parse().map_err(|error: semver::Error| {
                    PublishError::Version { text: version.clone(), reason: error.to_string() }
                })?;
                let change = Change::Yank { name: package, version, yanked };
                let by = &caller.principal;
                let done =
                    registry.publish(by, &repository, &change, &index, Some(&replaces)).await?;
                let what = if yanked { "withdrawn" } else { "brought back" };
                caller.notes.about(said(what, &repository, &done));
                tell(&bus, "yanked", &repository, &done, by).await;
                Ok(PublishReply { index_version: done.index_version })
            }
        })
}

/// What the audit record says of it.
fn said(what: &str, repository: &str, done: &Published) -> String {
    let each = done.entries.iter().map(|entry| format!("{}@{}", entry.name, entry.version));
    let each: Vec<String> = each.collect();
    // A new expiry, say.
    let which = if each.is_empty() { "the index alone".to_owned() } else { each.join(", ") };
    format!("{what} in {repository}: {which}")
}

/// Tells the bus what a publisher changed.
async fn tell(bus: &Bus, what: &str, repository: &str, done: &Published, by: &Principal) {
    for entry in &done.entries {
        let event = PackagePublished {
            repository: repository.to_owned(),
            package: entry.name.clone(),
            version: entry.version.to_string(),
            digest: entry.digest.clone(),
            yanked: entry.yanked,
            index_version: done.index_version,
            by: by.clone(),
            time: clock::rfc3339(clock::now()),
        };
        let told = bus.publish_event(Service::Registry, "package", what, None, &event);
        if let Err(error) = told.await {
            tracing::warn!(%error, "the bus was not told of a publication");
        }
    }
}
