//! What publishers change, in repositories that are published to over the bus.

use super::Registry;
use crate::{
    core::route::route,
    error::PublishError,
    repository::{Change, Published, Repository},
};
use canopy_api::{
    Digest, PackageName, Principal,
    wire::{PublishIndexReply, PublishIndexRequest, PublishUploadReply, PublishUploadRequest},
};
use std::sync::Arc;

impl Registry {
    /// The repository of that name, if it is published to over the bus.
    fn published_to(&self, name: &str) -> Result<(usize, &Arc<Repository>), PublishError> {
        let all = || self.repositories.iter().enumerate();
        match all().find(|(_, repository)| repository.name == name) {
            Some((place, repository)) if repository.writable() => Ok((place, repository)),
            Some(_) => Err(PublishError::NotWritable),
            None => {
                let writable = all().filter(|(_, repository)| repository.writable());
                let known = writable.map(|(_, repository)| repository.name.clone()).collect();
                Err(PublishError::NoRepository { name: name.to_owned(), known })
            }
        }
    }

    /// A piece of the index that a publisher extends.
    pub async fn publish_index(
        &self,
        request: &PublishIndexRequest,
    ) -> Result<PublishIndexReply, PublishError> {
        self.published_to(&request.repository)?.1.index_piece(request.offset).await
    }

    /// Keeps a piece of a file that is going to be published.
    pub async fn publish_upload(
        &self,
        by: &Principal,
        request: PublishUploadRequest,
    ) -> Result<PublishUploadReply, PublishError> {
        let repository = Arc::clone(self.published_to(&request.repository)?.1);
        repository.upload(by, request).await
    }

    /// Makes a publisher's change, or none of it.
    pub async fn publish(
        &self,
        by: &Principal,
        repository: &str,
        change: &Change,
        index: &Digest,
        replaces: Option<&Digest>,
    ) -> Result<Published, PublishError> {
        let (place, repository) = self.published_to(repository)?;
        let now = (self.now)();
        let ours = |name: &PackageName| route(&self.patterns, name) == Some(place);
        match repository.publish(by, change, index, replaces, ours, now).await {
            Ok(published) => {
                tracing::info!(
                    repository = %repository.name, %by, index_version = published.index_version,
                    changed = %changed(&published), "published over the bus"
                );
                self.look(repository).await;
                Ok(published)
            }
            Err(error) => {
                let labels = &[repository.name.as_str(), error.kind()];
                self.metrics.refused.with_label_values(labels).inc();
                tracing::warn!(
                    repository = %repository.name, %by, reason = error.kind(),
                    "not published: {error}"
                );
                if let PublishError::Trouble(trouble) = &error
                    && trouble.disbelieved()
                {
                    self.told(repository, None, trouble);
                }
                Err(error)
            }
        }
    }

    /// Forgets files whose pieces did not all come.
    pub async fn forget_old_uploads(&self) {
        for repository in self.repositories.iter().filter(|repository| repository.writable()) {
            if let Err(error) = repository.forget_old_uploads().await {
                tracing::debug!(repository = %repository.name, %error, "old uploads stay");
            }
        }
    }
}

/// `firewall 0.1.0, firewall 0.2.0`
fn changed(published: &Published) -> String {
    let entries = published.entries.iter().map(|entry| {
        let yanked = if entry.yanked { " (yanked)" } else { "" };
        format!("{} {}{yanked}", entry.name, entry.version)
    });
    entries.collect::<Vec<_>>().join(", ")
}
