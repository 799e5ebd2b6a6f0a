//! The registry's verbs, over all repositories.

use crate::{
    artifacts::{Artifact, Artifacts},
    config::{RepositoryConfig, Trust},
    core::{
        choose::{CANDIDATES, Platform, absent, lacking},
        route::{Pattern, route},
        search::rank,
    },
    error::{PublishError, RegistryError, Trouble},
    index_state::IndexState,
    metrics::Metrics,
    repository::{Change, Published, Repository, Snapshot},
};
use bytes::Bytes;
use canopy_api::{
    Blob, Digest, Hook, PackageName, Principal,
    time::rfc3339,
    wire::{
        ARTIFACT_CHUNK, ArtifactReply, ArtifactRequest, DescribeReply, DescribeRequest,
        INDEX_INLINE, IndexAt, ListReply, ListRequest, MapSummary, PackageRefused, PackageSummary,
        PublishIndexReply, PublishIndexRequest, PublishUploadReply, PublishUploadRequest,
        RepositoryTrouble, ResetIndexReply, ResetRepositoryRequest, ResolveReply, ResolveRequest,
        SEARCH_LIMIT, SearchReply, SearchRequest, VersionSummary, json_length,
    },
};
use canopy_package::{IndexEntry, describe::DescribedMap, near};
use canopy_store::Transport;
use futures::future::join_all;
use semver::VersionReq;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, UNIX_EPOCH},
};
use tokio::sync::mpsc::Sender;

/// Reads the clock: seconds since the epoch.
pub type Clock = fn() -> u64;

/// Package files of which a few words are remembered for lists.
const ABOUT: usize = 10_000;

/// Versions told in one answer.
const VERSIONS: usize = 3_000;

/// What a list says of a package.
#[derive(Clone, Debug, Default)]
struct About {
    description: String,
    hooks: Vec<Hook>,
    keywords: Vec<String>,
}

/// All repositories.
pub struct Registry {
    repositories: Vec<Arc<Repository>>,
    patterns: Vec<Vec<Pattern>>,
    artifacts: Artifacts,
    /// A few words about each package file once seen, so that a list need not keep the files.
    about: Mutex<BTreeMap<Digest, About>>,
    metrics: Metrics,
    now: Clock,
    /// The highest index versions seen.
    versions: Arc<IndexState>,
    /// Hears what was refused.
    tell: Option<Sender<PackageRefused>>,
}

/// State of one repository, for health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryHealth {
    /// Its name.
    pub name: String,
    /// Whether packages can be had from it.
    pub usable: bool,
    /// Whether what is given out was read before, and what is there now cannot be used.
    pub stale: bool,
    /// State in words.
    pub detail: String,
}

/// A version that was found, with everything known of it.
struct Found<'a> {
    repository: &'a Arc<Repository>,
    snapshot: Arc<Snapshot>,
    entry: IndexEntry,
    artifact: Arc<Artifact>,
}

impl Registry {
    /// A registry over these repositories, which were checked; nothing is read yet. Index versions are
    /// remembered as long as it lives.
    pub fn new(
        repositories: &[RepositoryConfig],
        cache_bytes: u64,
        metrics: Metrics,
        now: Clock,
    ) -> Self {
        Self::remembering(repositories, cache_bytes, metrics, now, IndexState::in_memory())
    }

    /// The same, with index versions remembered there.
    pub fn remembering(
        repositories: &[RepositoryConfig],
        cache_bytes: u64,
        metrics: Metrics,
        now: Clock,
        versions: IndexState,
    ) -> Self {
        let versions = Arc::new(versions);
        let open = |config| Arc::new(Repository::new(config, Arc::clone(&versions)));
        let opened = repositories.iter().map(open).collect();
        Self::over(opened, cache_bytes, metrics, now, versions)
    }

    /// Tells of what is refused: of an index when that is new, of a package file each time.
    #[must_use]
    pub fn telling(mut self, tell: Sender<PackageRefused>) -> Self {
        self.tell = Some(tell);
        self
    }

    /// A registry over other repositories, which were checked. One whose configuration is the same
    /// is taken over as it is, with what is known of it. The highest index versions are remembered:
    /// of a repository wherever it is now, and of whatever is at the same place. No package file verified before is taken over: keys may
    /// have changed.
    #[must_use]
    pub fn successor(&self, repositories: &[RepositoryConfig], cache_bytes: u64) -> Self {
        let known = |name: &str| self.repositories.iter().find(|one| one.name == name);
        let opened: Vec<_> = repositories
            .iter()
            .map(|config| match known(&config.name) {
                Some(same) if same.config() == config => Arc::clone(same),
                Some(_) | None => Arc::new(Repository::new(config, Arc::clone(&self.versions))),
            })
            .collect();
        let versions = Arc::clone(&self.versions);
        Self {
            tell: self.tell.clone(),
            ..Self::over(opened, cache_bytes, self.metrics.clone(), self.now, versions)
        }
    }

    /// Shows nothing any more of the repositories that `before` had and this one has not. Once this
    /// one is in use: until then the other looks at them, and shows what it sees.
    pub fn forget_gone(&self, before: &Self) {
        for gone in &before.repositories {
            if !self.repositories.iter().any(|repository| repository.name == gone.name) {
                self.metrics.forget(&gone.name);
            }
        }
    }

    fn over(
        repositories: Vec<Arc<Repository>>,
        cache_bytes: u64,
        metrics: Metrics,
        now: Clock,
        versions: Arc<IndexState>,
    ) -> Self {
        for repository in &repositories {
            let config = repository.config();
            let unsigned = repository.trust == Trust::UnsignedDevelopment;
            if unsigned {
                tracing::warn!(
                    repository = %repository.name,
                    "DANGER: packages of this repository are trusted without signatures \
                     (trust: unsigned-development)"
                );
            }
            if repository.writable() {
                tracing::warn!(
                    repository = %repository.name, url = %config.url,
                    "this repository is published to over the bus (writable: true): whoever has a \
                     role with the class publish and a key that it trusts changes what is in it"
                );
            }
            if config.store.transport == Transport::Plaintext {
                tracing::warn!(
                    repository = %repository.name,
                    "DANGER: the way to this repository is not protected \
                     (store.transport: plaintext)"
                );
            }
            let labels = &[repository.name.as_str()];
            metrics.unsigned.with_label_values(labels).set(i64::from(unsigned));
        }
        Self {
            patterns: repositories.iter().map(|repository| repository.patterns.clone()).collect(),
            repositories,
            artifacts: Artifacts::new(cache_bytes),
            about: Mutex::default(),
            metrics,
            now,
            versions,
            tell: None,
        }
    }

    /// Looks at every repository at once; one that is slow does not keep the others.
    pub async fn refresh(&self) -> Vec<RepositoryHealth> {
        join_all(self.repositories.iter().map(|repository| self.look(repository))).await;
        self.health()
    }

    /// State of every repository, as far as is known.
    pub fn health(&self) -> Vec<RepositoryHealth> {
        self.repositories
            .iter()
            .map(|repository| {
                let (snapshot, trouble) = repository.current((self.now)());
                let hung = repository.hung();
                // What is in memory is still given out; but no package can be had any more.
                let usable = snapshot.is_some() && hung.is_none();
                let stale = usable && trouble.is_some();
                let detail = match (&snapshot, hung.or(trouble)) {
                    (_, Some(trouble)) => trouble.to_string(),
                    (None, None) => "not read yet".to_owned(),
                    (Some(snapshot), None) => format!(
                        "{} versions of {} packages, index {}{}",
                        snapshot.index.packages.len(),
                        snapshot.index.names().len(),
                        snapshot.index.version,
                        if snapshot.signed.is_none()
                            && repository.trust == Trust::UnsignedDevelopment
                        {
                            ", UNSIGNED"
                        } else {
                            ""
                        }
                    ),
                };
                let name = repository.name.clone();
                RepositoryHealth { name, usable, stale, detail }
            })
            .collect()
    }

    /// Looks whether a repository changed. What is wrong is logged when it is new, counted always.
    async fn look(&self, repository: &Repository) {
        let now = (self.now)();
        let (_, before) = repository.current(now);
        let outcome = repository.refresh(now).await;
        let labels = &[repository.name.as_str()];
        self.metrics.up.with_label_values(labels).set(i64::from(outcome.is_ok()));
        match outcome {
            Ok(()) => {
                if before.is_some() {
                    tracing::info!(repository = %repository.name, "the repository can be used again");
                }
                if let (Some(snapshot), _) = repository.current(now) {
                    let set = |gauge: &prometheus::IntGaugeVec, value: u64| {
                        let value = i64::try_from(value).unwrap_or(i64::MAX);
                        gauge.with_label_values(labels).set(value);
                    };
                    set(&self.metrics.index_version, snapshot.index.version);
                    set(&self.metrics.index_expires, snapshot.index.expires);
                    set(&self.metrics.versions, snapshot.index.packages.len() as u64);
                }
            }
            Err(trouble) => {
                self.refused(repository, &trouble);
                if before.is_none_or(|before| before.kind() != trouble.kind()) {
                    tracing::warn!(
                        repository = %repository.name,
                        reason = trouble.kind(),
                        remedy = %trouble.remedy(),
                        "the repository cannot be used: {trouble}"
                    );
                    self.told(repository, None, &trouble);
                }
            }
        }
    }

    fn refused(&self, repository: &Repository, trouble: &Trouble) {
        let labels = &[repository.name.as_str(), trouble.kind()];
        self.metrics.refused.with_label_values(labels).inc();
    }

    /// Whoever hears of refusals must not keep anybody waiting: what there is no room for is in the
    /// log alone.
    fn told(&self, repository: &Repository, package: Option<&PackageName>, trouble: &Trouble) {
        let Some(tell) = self.tell.as_ref().filter(|_| trouble.disbelieved()) else { return };
        let time = UNIX_EPOCH.checked_add(Duration::from_secs((self.now)()));
        let _ = tell.try_send(PackageRefused {
            host: None,
            repository: Some(repository.name.clone()),
            package: package.cloned(),
            reason: trouble.kind().to_owned(),
            message: trouble.to_string(),
            time: rfc3339(time.unwrap_or(UNIX_EPOCH)),
        });
    }

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

    async fn artifact_of(
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

    /// Forgets how high the versions of a repository's index were, down to that of the one that is there,
    /// which has to be signed as ever.
    ///
    /// # Errors
    /// When there is no such repository, or its index cannot be read or is not believed.
    pub async fn reset_index(
        &self,
        request: &ResetRepositoryRequest,
        by: &Principal,
    ) -> Result<ResetIndexReply, PublishError> {
        let ResetRepositoryRequest { repository: name } = request;
        let Some(repository) = self.repositories.iter().find(|one| one.name == *name) else {
            let known = self.repositories.iter().map(|one| one.name.clone()).collect();
            return Err(PublishError::NoRepository { name: name.clone(), known });
        };
        let (from, to, id) = match repository.trust {
            Trust::Signed => {
                repository.reset_index((self.now)()).await.map_err(PublishError::Trouble)?
            }
            Trust::UnsignedDevelopment => (0, 0, None),
        };
        tracing::warn!(repository = %name, from, to, %by, "highest index version reset");
        self.look(repository).await;
        let id = id.map(|id| id.to_string());
        Ok(ResetIndexReply { repository: name.clone(), id, from, to })
    }

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

    /// A page of the packages and their versions, by name: at most about `room` bytes of JSON, at least
    /// one package.
    pub async fn list(
        &self,
        request: &ListRequest,
        room: usize,
    ) -> Result<ListReply, RegistryError> {
        let (all, unavailable) = self.offered(request.package.as_ref()).await;
        if let (Some(name), []) = (&request.package, all.as_slice()) {
            let trouble = unavailable.first().map(|t| (t.repository.clone(), t.reason.clone()));
            let near = self.near(name);
            return Err(RegistryError::UnknownPackage { name: name.clone(), near, trouble });
        }
        // How many versions are listed depends on the number of packages, not on the page.
        let each = (VERSIONS / all.len().max(1)).clamp(1, 1_000);
        let mut page = Page::new(room);
        let behind = |name: &PackageName| {
            request.cursor.as_ref().is_none_or(|cursor| name.as_str() > cursor.as_str())
        };
        let mut lost = BTreeMap::new();
        for (repository, snapshot, name) in all.iter().filter(|(_, _, name)| behind(name)) {
            let lost = lost.entry(repository.name.as_str()).or_default();
            let mut package = self.summary(repository, snapshot, name, lost).await;
            keep_versions(&mut package, each);
            if !page.add(package) {
                break;
            }
        }
        let Page { packages, next, .. } = page;
        Ok(ListReply { packages, unavailable, next })
    }

    /// Every package that is offered, or the one that is named, by name; and what is wrong with
    /// repositories.
    async fn offered(&self, only: Option<&PackageName>) -> (Vec<Offered>, Vec<RepositoryTrouble>) {
        self.refresh().await;
        let now = (self.now)();
        let mut packages = Vec::new();
        let mut unavailable = Vec::new();
        for (place, repository) in self.repositories.iter().enumerate() {
            let (snapshot, trouble) = repository.current(now);
            if let Some(trouble) = trouble {
                unavailable.push(RepositoryTrouble {
                    repository: repository.name.clone(),
                    reason: trouble.to_string(),
                });
            }
            let Some(snapshot) = snapshot else { continue };
            for name in snapshot.index.names() {
                let wanted = only.is_none_or(|wanted| wanted == name);
                if wanted && route(&self.patterns, name) == Some(place) {
                    packages.push((Arc::clone(repository), Arc::clone(&snapshot), name.clone()));
                }
            }
        }
        packages.sort_by(|(_, _, a), (_, _, b)| a.cmp(b));
        (packages, unavailable)
    }

    async fn summary(
        &self,
        repository: &Arc<Repository>,
        snapshot: &Arc<Snapshot>,
        name: &PackageName,
        lost: &mut Option<String>,
    ) -> PackageSummary {
        let newest = snapshot.index.versions(name).find(|entry| !entry.yanked);
        let about = match newest {
            Some(entry) => self.about(repository, snapshot, entry, lost).await,
            None => About::default(),
        };
        PackageSummary {
            name: name.clone(),
            description: about.description,
            hooks: about.hooks,
            keywords: about.keywords,
            repository: repository.name.clone(),
            versions: snapshot.index.versions(name).map(summary).collect(),
            older: 0,
        }
    }

    /// What a list says of a package; `lost` is why its repository's files cannot be had any more.
    async fn about(
        &self,
        repository: &Arc<Repository>,
        snapshot: &Arc<Snapshot>,
        entry: &IndexEntry,
        lost: &mut Option<String>,
    ) -> About {
        let known = || self.about.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(about) = known().get(&entry.digest) {
            return about.clone();
        }
        let unknown = |why: &str| About { description: format!("({why})"), ..About::default() };
        if let Some(why) = lost {
            return unknown(why);
        }
        match self.artifact_of(repository, snapshot, entry).await {
            Ok(artifact) => {
                let manifest = &artifact.manifest;
                let hooks: BTreeSet<Hook> =
                    manifest.programs.iter().flat_map(|program| &program.hooks).copied().collect();
                let about = About {
                    description: manifest.description.clone(),
                    hooks: hooks.into_iter().collect(),
                    keywords: manifest.keywords.clone(),
                };
                let mut known = known();
                if known.len() >= ABOUT {
                    known.clear();
                }
                known.insert(entry.digest.clone(), about.clone());
                about
            }
            Err(error) => {
                // One answer waits for a store that hangs once, not once for every package.
                *lost = error.store_hangs().then(|| error.to_string());
                unknown(&error.to_string())
            }
        }
    }

    /// A page of the packages that meet what is looked for, the best first: at most [`SEARCH_LIMIT`], and
    /// about `room` bytes of JSON.
    pub async fn search(
        &self,
        request: &SearchRequest,
        room: usize,
    ) -> Result<SearchReply, RegistryError> {
        let from = request.cursor.as_deref().map(search_cursor).transpose()?;
        let (all, unavailable) = self.offered(None).await;
        let each = (VERSIONS / all.len().max(1)).clamp(1, 1_000);
        let mut found = Vec::new();
        let mut lost = BTreeMap::new();
        for (repository, snapshot, name) in &all {
            let lost = lost.entry(repository.name.as_str()).or_default();
            let mut package = self.summary(repository, snapshot, name, lost).await;
            if let Some(rank) = rank(request, &package) {
                keep_versions(&mut package, each);
                found.push((rank, package));
            }
        }
        // The list is by name, and stays so among equals.
        found.sort_by_key(|(rank, _)| *rank);
        if let Some((rank, name)) = &from {
            found.retain(|(of, package)| (*of, package.name.as_str()) > (*rank, *name));
        }
        let mut page = Page::new(room);
        let number = found.len();
        let mut reached = 0;
        for (rank, package) in found.into_iter().take(SEARCH_LIMIT) {
            if !page.add(package) {
                break;
            }
            reached = rank;
        }
        let packages = page.packages;
        let more = number.saturating_sub(packages.len()) as u64;
        let next = packages.last().filter(|_| more > 0);
        let next = next.map(|package| format!("{reached} {}", package.name));
        Ok(SearchReply { packages, more, unavailable, next })
    }

    /// A name like this one that exists.
    fn near(&self, name: &PackageName) -> Option<String> {
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

/// A package of a repository.
type Offered = (Arc<Repository>, Arc<Snapshot>, PackageName);

/// A page of packages.
struct Page {
    packages: Vec<PackageSummary>,
    room: usize,
    left: usize,
    /// Behind which package the next page begins.
    next: Option<String>,
}

impl Page {
    fn new(room: usize) -> Self {
        Self { packages: Vec::new(), room, left: room, next: None }
    }

    /// Puts a package on the page; false where it is full.
    fn add(&mut self, mut package: PackageSummary) -> bool {
        // A package that is longer than a page has fewer of its versions.
        while json_length(&package) > self.room && package.versions.len() > 1 {
            let half = package.versions.len() / 2;
            keep_versions(&mut package, half);
        }
        let length = json_length(&package).saturating_add(1);
        if let Some(last) = self.packages.last().filter(|_| length > self.left) {
            self.next = Some(last.name.to_string());
            return false;
        }
        self.left = self.left.saturating_sub(length);
        self.packages.push(package);
        true
    }
}

/// Leaves out old versions, and says how many.
fn keep_versions(package: &mut PackageSummary, number: usize) {
    package.older += package.versions.len().saturating_sub(number) as u64;
    package.versions.truncate(number);
}

/// Behind which package a page of a search begins: how well it answers, and its name.
fn search_cursor(text: &str) -> Result<(u32, &str), RegistryError> {
    let read = text.split_once(' ').and_then(|(rank, name)| Some((rank.parse().ok()?, name)));
    read.ok_or(RegistryError::Cursor)
}

/// `firewall 0.1.0, firewall 0.2.0`
fn changed(published: &Published) -> String {
    let entries = published.entries.iter().map(|entry| {
        let yanked = if entry.yanked { " (yanked)" } else { "" };
        format!("{} {}{yanked}", entry.name, entry.version)
    });
    entries.collect::<Vec<_>>().join(", ")
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

fn summary(entry: &IndexEntry) -> VersionSummary {
    VersionSummary {
        version: entry.version.to_string(),
        digest: entry.digest.clone(),
        length: entry.length,
        yanked: entry.yanked,
    }
}
