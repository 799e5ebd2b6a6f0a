//! Which version is meant, and what is told of it.

use super::Registry;
use crate::{
    artifacts::Artifact,
    core::{
        choose::{CANDIDATES, Platform, absent, lacking},
        route::route,
    },
    error::{RegistryError, Trouble},
    repository::{Repository, Snapshot},
};
use canopy_api::{
    Blob, Digest, PackageName,
    wire::{
        DescribeReply, DescribeRequest, INDEX_INLINE, IndexAt, MapSummary, ResolveReply,
        ResolveRequest, VersionSummary,
    },
};
use canopy_package::{IndexEntry, describe::DescribedMap, near};
use semver::VersionReq;
use std::sync::Arc;

/// A version that was found, with everything known of it.
struct Found<'a> {
    repository: &'a Arc<Repository>,
    snapshot: Arc<Snapshot>,
    entry: IndexEntry,
    artifact: Arc<Artifact>,
}

impl Registry {
    /// Which exact version a requirement means, with what a loader needs to check it again.
    pub async fn resolve(&self, request: &ResolveRequest) -> Result<ResolveReply, RegistryError> {
        let requirement = requirement(&request.requirement)?;
        let platform =
            Platform { arch: request.arch.as_deref(), kernel: request.kernel.as_deref() };
        let found = self.find(&request.package, &requirement, platform).await?;
        let (mut index, mut index_at, mut index_signature) = (None, None, None);
        if let Some((bytes, signature)) = &found.snapshot.signed {
            index_signature = Some(signature.clone());
            if bytes.len() <= INDEX_INLINE {
                index = Some(Blob(bytes.to_vec()));
            } else {
                let length = bytes.len() as u64;
                let at = |digest: &Digest| IndexAt { digest: digest.clone(), length };
                index_at = found.snapshot.digest.as_ref().map(at);
            }
        }
        Ok(ResolveReply {
            package: request.package.clone(),
            repository: found.repository.name.clone(),
            version: summary(&found.entry),
            signature: found.artifact.signature.clone(),
            index,
            index_signature,
            index_at,
        })
    }

    /// One version in full: the newest that matches.
    pub async fn describe(
        &self,
        request: &DescribeRequest,
    ) -> Result<DescribeReply, RegistryError> {
        let asked = request.requirement.as_deref().unwrap_or("*");
        let requirement = requirement(asked)?;
        let found = self.find(&request.package, &requirement, Platform::default()).await?;
        Ok(DescribeReply {
            repository: found.repository.name.clone(),
            version: summary(&found.entry),
            signed_by: found.artifact.signed_by.clone(),
            manifest: serde_json::to_value(&found.artifact.manifest)
                .map_err(|_| RegistryError::Defect)?,
            config_schema: found.artifact.manifest.config_schema(),
            maps: found.artifact.maps.iter().map(map).collect(),
            readme: found.artifact.readme.clone(),
            omitted: Vec::new(),
        })
    }

    async fn find(
        &self,
        name: &PackageName,
        requirement: &VersionReq,
        platform: Platform<'_>,
    ) -> Result<Found<'_>, RegistryError> {
        let unknown = |trouble| RegistryError::UnknownPackage {
            name: name.clone(),
            near: self.near(name),
            trouble,
        };
        let repository = route(&self.patterns, name)
            .and_then(|place| self.repositories.get(place))
            .ok_or_else(|| unknown(None))?;
        // What was published before this question is part of the answer.
        self.look(repository).await;
        let now = (self.now)();
        let (snapshot, trouble) = repository.current(now);
        let snapshot = snapshot.ok_or_else(|| RegistryError::Repository {
            repository: repository.name.clone(),
            trouble: trouble.clone().unwrap_or(Trouble::Defect),
        })?;
        let trouble = trouble.map(|trouble| (repository.name.clone(), trouble.to_string()));
        if snapshot.index.versions(name).next().is_none() {
            return Err(unknown(trouble));
        }
        let mut unfit = None;
        for entry in snapshot.index.matching(name, requirement).take(CANDIDATES) {
            let artifact = self.artifact_of(repository, &snapshot, entry).await?;
            match lacking(&artifact.manifest.requires, platform) {
                None => {
                    let entry = entry.clone();
                    let snapshot = Arc::clone(&snapshot);
                    return Ok(Found { repository, snapshot, entry, artifact });
                }
                Some(lacking) if unfit.is_none() => {
                    let (name, version) = (name.clone(), entry.version.to_string());
                    unfit = Some(RegistryError::Unfit { name, version, lacking });
                }
                Some(_) => {}
            }
        }
        Err(unfit.unwrap_or_else(|| RegistryError::NoVersion {
            name: name.clone(),
            requirement: requirement.to_string(),
            absent: Box::new(absent(&snapshot.index, name, requirement)),
            trouble,
        }))
    }

    /// A name like this one that exists.
    pub(super) fn near(&self, name: &PackageName) -> Option<String> {
        let now = (self.now)();
        let mut names = Vec::new();
        for (place, repository) in self.repositories.iter().enumerate() {
            let (Some(snapshot), _) = repository.current(now) else { continue };
            for known in snapshot.index.names() {
                if route(&self.patterns, known) == Some(place) {
                    names.push(known.to_string());
                }
            }
        }
        near::nearest(name.as_str(), names.iter().map(String::as_str)).map(str::to_owned)
    }
}

fn map(map: &DescribedMap) -> MapSummary {
    let DescribedMap { name, object, kind, key_size, value_size, max_entries } = map.clone();
    MapSummary { name, object, kind, key_size, value_size, max_entries }
}

fn requirement(text: &str) -> Result<VersionReq, RegistryError> {
    VersionReq::parse(text).map_err(|error| RegistryError::Requirement {
        text: text.to_owned(),
        reason: error.to_string(),
    })
}
pub(super) fn summary(entry: &IndexEntry) -> VersionSummary {
    VersionSummary {
        version: entry.version.to_string(),
        digest: entry.digest.clone(),
        length: entry.length,
        yanked: entry.yanked,
    }
}
