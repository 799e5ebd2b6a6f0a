//! The registry's verbs, over all repositories.

mod downloads;
mod listing;
mod publishing;
mod resolving;

use crate::{
    artifacts::Artifacts,
    config::{RepositoryConfig, Trust},
    core::route::Pattern,
    error::{PublishError, Trouble},
    index_state::IndexState,
    metrics::Metrics,
    repository::Repository,
};
use canopy_api::{
    Digest, PackageName, Principal,
    time::rfc3339,
    wire::{PackageRefused, ResetIndexReply, ResetRepositoryRequest},
};
use canopy_store::Transport;
use futures::future::join_all;
use listing::About;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, UNIX_EPOCH},
};
use tokio::sync::mpsc::Sender;

/// Reads the clock: seconds since the epoch.
pub type Clock = fn() -> u64;

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
}
