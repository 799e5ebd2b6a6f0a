//! Files of packages, verified, and indexes: chunk by chunk.

use super::Registry;
use crate::{
    artifacts::Artifact,
    core::route::route,
    error::RegistryError,
    repository::{Repository, Snapshot},
};
use bytes::Bytes;
use canopy_api::{
    Blob, Digest,
    wire::{ARTIFACT_CHUNK, ArtifactReply, ArtifactRequest},
};
use canopy_package::IndexEntry;
use std::sync::Arc;

impl Registry {
    pub(super) async fn artifact_of(
        &self,
        repository: &Arc<Repository>,
        snapshot: &Arc<Snapshot>,
        entry: &IndexEntry,
    ) -> Result<Arc<Artifact>, RegistryError> {
        let loaded = repository.artifact(snapshot, entry, &self.artifacts, (self.now)()).await;
        let (artifact, hit) = loaded.map_err(|trouble| {
            self.refused(repository, &trouble);
            self.told(repository, Some(&entry.name), &trouble);
            tracing::warn!(
                repository = %repository.name,
                reason = trouble.kind(),
                package = %entry.name,
                version = %entry.version,
                "package file refused: {trouble}"
            );
            RegistryError::Artifact {
                name: entry.name.clone(),
                version: entry.version.to_string(),
                repository: repository.name.clone(),
                trouble,
            }
        })?;
        let result = if hit { "hit" } else { "miss" };
        self.metrics.lookups.with_label_values(&[result]).inc();
        let kept = i64::try_from(self.artifacts.bytes()).unwrap_or(i64::MAX);
        self.metrics.kept_bytes.with_label_values::<&str>(&[]).set(kept);
        Ok(artifact)
    }

    /// A chunk of a verified file that an index names.
    pub async fn artifact(
        &self,
        request: &ArtifactRequest,
    ) -> Result<ArtifactReply, RegistryError> {
        let digest = &request.digest;
        if let Some(index) = self.index_of(digest) {
            return self.chunk(&index, request.offset);
        }
        if self.named(digest).is_none() {
            // Another registry may have seen it published since this one looked.
            self.refresh().await;
        }
        let (repository, snapshot, entry) = self
            .named(digest)
            .ok_or_else(|| RegistryError::UnknownDigest { digest: digest.clone() })?;
        let artifact = self.artifact_of(repository, &snapshot, &entry).await?;
        self.chunk(&artifact.bytes, request.offset)
    }

    fn chunk(&self, bytes: &[u8], offset: u64) -> Result<ArtifactReply, RegistryError> {
        let total = bytes.len() as u64;
        let beyond = RegistryError::Offset { offset, total };
        let from = usize::try_from(offset).map_err(|_| beyond.clone())?;
        let rest = bytes.get(from..).filter(|rest| !rest.is_empty()).ok_or(beyond)?;
        let data = rest.get(..ARTIFACT_CHUNK).unwrap_or(rest).to_vec();
        self.metrics.sent.with_label_values::<&str>(&[]).inc_by(data.len() as u64);
        Ok(ArtifactReply { total, data: Blob(data) })
    }

    /// The index with that digest.
    fn index_of(&self, digest: &Digest) -> Option<Bytes> {
        let now = (self.now)();
        self.repositories.iter().find_map(|repository| {
            let snapshot = repository.current(now).0?;
            let (bytes, _) = snapshot.signed.as_ref()?;
            (snapshot.digest.as_ref() == Some(digest)).then(|| bytes.clone())
        })
    }

    /// Where a digest is named, for a package that comes from there.
    fn named(&self, digest: &Digest) -> Option<(&Arc<Repository>, Arc<Snapshot>, IndexEntry)> {
        let now = (self.now)();
        self.repositories.iter().enumerate().find_map(|(place, repository)| {
            let snapshot = repository.current(now).0?;
            let entry = snapshot
                .index
                .packages
                .iter()
                .find(|entry| {
                    entry.digest == *digest && route(&self.patterns, &entry.name) == Some(place)
                })
                .cloned()?;
            Some((repository, snapshot, entry))
        })
    }
}
