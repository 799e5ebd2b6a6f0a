//! One repository: its index, re-read when it changes, and its package files, verified.

use crate::{
    artifacts::{Artifact, Artifacts},
    config::{RepositoryConfig, Trust},
    core::route::Pattern,
    error::Trouble,
    index_state::IndexState,
};
use bytes::Bytes;
use canopy_api::Digest;
use canopy_package::{
    Index, IndexEntry, IndexSource, Limits, Package, PackageError, RepositoryId, TrustedKey,
    index::{INDEX_LIMIT, split},
    repository::{INDEX, artifact_path, signature_path},
    sign::verify_package,
};
use canopy_store::{Location, Store, StoreError};
use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Mutex as AsyncMutex, Semaphore, SemaphorePermit},
    task::spawn_blocking,
    time::timeout,
};

mod publish;

pub use publish::{Change, Published};

/// Longest signature file, bytes.
const SIGNATURE_LIMIT: u64 = 8 * 1024;

/// Loose files an unsigned directory may hold.
const LOOSE_FILES: usize = 1_000;

/// Files of one repository that are read and verified at once.
const LOADING: usize = 4;

/// How long a file waits for its turn: so many times the limit of one read.
const QUEUE: u32 = 4;

/// A file on its way, for all who wait for it.
type Flight = Shared<BoxFuture<'static, Result<Arc<Artifact>, Trouble>>>;

/// A repository.
pub struct Repository {
    /// Its name.
    pub name: String,
    /// What it serves.
    pub patterns: Vec<Pattern>,
    /// What must be signed.
    pub trust: Trust,
    config: RepositoryConfig,
    store: Store,
    limits: Limits,
    /// How long looking at the repository may take, all reads together.
    patience: Duration,
    state: Mutex<State>,
    /// The highest index versions verified.
    versions: Arc<IndexState>,
    /// Number of looks begun.
    looks: AtomicU64,
    refreshing: AsyncMutex<()>,
    /// Files that are being read and verified.
    flights: Mutex<BTreeMap<Digest, Flight>>,
    loading: Semaphore,
}

#[derive(Clone, Default)]
struct State {
    snapshot: Option<Arc<Snapshot>>,
    trouble: Option<Trouble>,
}

/// What a repository held when it was last read and found good.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The index.
    pub index: Index,
    /// The index's bytes and signature file; `None` in an unsigned repository.
    pub signed: Option<(Bytes, String)>,
    /// Digest of the index's bytes, where it is signed.
    pub digest: Option<Digest>,
    /// Changes with the index; `None` when there is none.
    tag: Option<String>,
    /// Where loose files lie.
    loose: BTreeMap<Digest, String>,
    verified: u64,
}

impl Repository {
    /// From its configuration, which was checked; nothing is read yet. An index older than `versions` say
    /// is refused.
    pub fn new(config: &RepositoryConfig, versions: Arc<IndexState>) -> Self {
        let limit = Duration::from_secs(config.timeout_seconds);
        let location = Location::parse(&config.url)
            .unwrap_or_else(|_| Location::Directory(PathBuf::from("/nonexistent")));
        Self {
            name: config.name.clone(),
            patterns: config.packages.iter().filter_map(|text| text.parse().ok()).collect(),
            trust: config.trust,
            config: config.clone(),
            store: Store::new(location, config.store.clone(), limit),
            limits: Limits::default(),
            patience: limit,
            state: Mutex::default(),
            versions,
            looks: AtomicU64::new(0),
            refreshing: AsyncMutex::new(()),
            flights: Mutex::default(),
            loading: Semaphore::new(LOADING),
        }
    }

    /// As it was configured.
    pub fn config(&self) -> &RepositoryConfig {
        &self.config
    }

    /// What is wrong where nothing can be read of it now, because what was asked of its store before has
    /// not ended.
    pub fn hung(&self) -> Option<Trouble> {
        self.store.hung().map(Trouble::from)
    }

    /// The highest index version verified at its place, 0 for none.
    pub fn highest(&self) -> u64 {
        self.versions.highest(&self.name, &self.config.url)
    }

    /// Takes the highest index version down to that of the index that is there, signed and within its
    /// bounds, or to 0 where there is none. Says from which to which, and of which repository.
    pub async fn reset_index(
        self: &Arc<Self>,
        now: u64,
    ) -> Result<(u64, u64, Option<RepositoryId>), Trouble> {
        let _one = self.refreshing.lock().await;
        let there = async {
            if self.store.tag(INDEX).await?.is_none() {
                return Ok((0, None));
            }
            let file = self.store.read(INDEX, INDEX_LIMIT as u64 + SIGNATURE_LIMIT).await?;
            let (json, signature) = split(&file)?;
            let (json, signature) = (file.slice_ref(json), signature.to_owned());
            let keys = self.config.keys.clone();
            let read = move || {
                let index = Index::open_to_extend(&json, &signature, &keys, now)?;
                index.check_bounds(now)?;
                Ok::<_, PackageError>((index.version, index.repository))
            };
            Ok::<_, Trouble>(spawn_blocking(read).await.map_err(|_| Trouble::Defect)??)
        };
        let (to, id) = timeout(self.patience, there).await.unwrap_or_else(|_| {
            let (path, seconds) = (INDEX.to_owned(), self.patience.as_secs());
            Err(StoreError::TimedOut { path, seconds }.into())
        })?;
        let (me, of) = (Arc::clone(self), id.clone());
        let reset = move || {
            let id = of.as_ref().map(RepositoryId::as_str);
            me.versions.reset((&me.name, &me.config.url), id, to)
        };
        let from = spawn_blocking(reset).await.map_err(|_| Trouble::Defect)??;
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State::default();
        Ok((from, to.min(from), id))
    }

    /// Remembers the version of a verified index, before anything of it is given out.
    async fn remember(&self, source: IndexSource, version: u64) -> Result<(), Trouble> {
        let (versions, name) = (Arc::clone(&self.versions), self.name.clone());
        let url = self.config.url.clone();
        spawn_blocking(move || versions.remember((&name, &url), &source, version))
            .await
            .map_err(|_| Trouble::Defect)?
            .map_err(Trouble::from)
    }

    /// What it holds as far as is known, and what is wrong with it. An index that has expired is
    /// not given out.
    pub fn current(&self, now: u64) -> (Option<Arc<Snapshot>>, Option<Trouble>) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match &state.snapshot {
            Some(snapshot) if snapshot.signed.is_some() && snapshot.index.expires < now => {
                let expired = PackageError::IndexExpired { expires: snapshot.index.expires };
                (None, state.trouble.or(Some(expired.into())))
            }
            _ => (state.snapshot, state.trouble),
        }
    }

    /// Looks whether the repository changed, and reads it if so. What was good before stays when
    /// what is new is not.
    pub async fn refresh(&self, now: u64) -> Result<(), Trouble> {
        let begun = self.looks.load(Ordering::Acquire);
        let _one = self.refreshing.lock().await;
        if self.looks.load(Ordering::Acquire) > begun {
            // Somebody else looked after this question came: their answer is ours. So a store that
            // hangs costs all who wait one look, not one each.
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            return state.trouble.clone().map_or(Ok(()), Err);
        }
        self.looks.fetch_add(1, Ordering::AcqRel);
        let known = {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.snapshot.clone().filter(|_| state.trouble.is_none())
        };
        let outcome = timeout(self.patience, self.read(known, now)).await.unwrap_or_else(|_| {
            let (path, seconds) = (INDEX.to_owned(), self.patience.as_secs());
            Err(StoreError::TimedOut { path, seconds }.into())
        });
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(None) => Ok(()),
            Ok(Some(snapshot)) => {
                state.snapshot = Some(Arc::new(snapshot));
                state.trouble = None;
                Ok(())
            }
            Err(trouble) => {
                state.trouble = Some(trouble.clone());
                Err(trouble)
            }
        }
    }

    /// `None` when nothing changed.
    async fn read(
        &self,
        known: Option<Arc<Snapshot>>,
        now: u64,
    ) -> Result<Option<Snapshot>, Trouble> {
        let tag = self.store.tag(INDEX).await?;
        // Loose files have no one file that tells of a change.
        let changed = known.as_ref().is_none_or(|known| {
            known.tag != tag
                || (self.trust == Trust::UnsignedDevelopment && tag.is_none())
                || self.keys_ended(known.verified, now)
        });
        if !changed {
            return Ok(None);
        }
        self.read_index(tag, now).await.map(Some)
    }

    async fn read_index(&self, tag: Option<String>, now: u64) -> Result<Snapshot, Trouble> {
        if tag.is_none() {
            let highest = self.highest();
            return match self.trust {
                Trust::UnsignedDevelopment => self.read_loose(now).await,
                Trust::Signed if highest > 0 => Err(Trouble::IndexGone(highest)),
                // Nothing was published yet.
                Trust::Signed => Ok(Snapshot { tag, verified: now, ..Snapshot::default() }),
            };
        }
        let file = self.store.read(INDEX, INDEX_LIMIT as u64 + SIGNATURE_LIMIT).await?;
        let (json, signature) = split(&file)?;
        let (index, signed) = match self.trust {
            Trust::UnsignedDevelopment => (Index::open_unsigned(json)?, None),
            Trust::Signed => {
                let (bytes, signature) = (file.slice_ref(json), signature.to_owned());
                let (index, source) =
                    self.open_index(bytes.clone(), signature.clone(), now).await?;
                self.remember(source, index.version).await?;
                (index, Some((bytes, signature)))
            }
        };
        let digest = signed.as_ref().map(|(bytes, _)| Digest::of(bytes));
        Ok(Snapshot { index, signed, digest, tag, loose: BTreeMap::new(), verified: now })
    }

    /// Verifies an index, also that none newer was seen.
    async fn open_index(
        &self,
        json: Bytes,
        signature: String,
        now: u64,
    ) -> Result<(Index, IndexSource), Trouble> {
        let (keys, versions) = (self.config.keys.clone(), Arc::clone(&self.versions));
        let (name, url) = (self.name.clone(), self.config.url.clone());
        let open = move || {
            Index::open_seen(&json, &signature, &keys, now, |source| {
                versions.at_least((&name, &url), source, &keys)
            })
        };
        Ok(spawn_blocking(open).await.map_err(|_| Trouble::Defect)??)
    }

    /// A directory of package files without an index, for development.
    async fn read_loose(&self, now: u64) -> Result<Snapshot, Trouble> {
        let mut found = BTreeMap::new();
        let mut loose = BTreeMap::new();
        for path in self.store.list(".cpkg", LOOSE_FILES).await? {
            // One bad file must not hide the others from a developer.
            let bytes = match self.store.read(&path, self.limits.archive_bytes as u64).await {
                Ok(bytes) => bytes,
                Err(error @ (StoreError::Failed { .. } | StoreError::TooLarge { .. })) => {
                    tracing::warn!(repository = %self.name, "{error}; the file is left out");
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let limits = self.limits;
            let opened = spawn_blocking(move || {
                Package::open(&bytes, &limits)
                    .map(|package| (Digest::of(&bytes), bytes.len(), package))
            });
            let (digest, length, package) = match opened.await.map_err(|_| Trouble::Defect)? {
                Ok(opened) => opened,
                Err(error) => {
                    tracing::warn!(repository = %self.name, %path, "{error}; the file is left out");
                    continue;
                }
            };
            let entry = IndexEntry {
                name: package.manifest.name,
                version: package.manifest.version,
                digest: digest.clone(),
                length: length as u64,
                yanked: false,
            };
            if let Some(first) = found.insert((entry.name.clone(), entry.version.clone()), entry) {
                let (name, version) = (first.name, first.version);
                return Err(PackageError::AlreadyPublished { name, version }.into());
            }
            loose.insert(digest, path);
        }
        let index = Index { packages: found.into_values().collect(), ..Index::default() };
        Ok(Snapshot { index, signed: None, digest: None, tag: None, loose, verified: now })
    }

    /// The verified file of a version: from memory, else read and verified, once for all who ask at
    /// the same time; a store that hangs costs them one time limit together.
    pub async fn artifact(
        self: &Arc<Self>,
        snapshot: &Arc<Snapshot>,
        entry: &IndexEntry,
        kept: &Artifacts,
        now: u64,
    ) -> Result<(Arc<Artifact>, bool), Trouble> {
        entry.not_revoked(&self.config.revoked)?;
        let usable = kept.get(&entry.digest).filter(|artifact| {
            !self.keys_ended(artifact.verified, now)
                && artifact.signature.is_some() == (self.trust == Trust::Signed)
        });
        if let Some(artifact) = usable {
            return Ok((artifact, true));
        }
        let flight = {
            let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            let begin = || {
                let (me, snapshot, entry) = (Arc::clone(self), Arc::clone(snapshot), entry.clone());
                let loading = async move {
                    let _turn = me.turn_to_load(&entry).await?;
                    me.load(&snapshot, &entry, now).await.map(Arc::new)
                };
                loading.boxed().shared()
            };
            flights.entry(entry.digest.clone()).or_insert_with(begin).clone()
        };
        let outcome = flight.clone().await;
        if let Ok(artifact) = &outcome {
            kept.put(entry.digest.clone(), Arc::clone(artifact));
        }
        // Kept first, then over: whoever comes in between finds one of the two.
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if flights.get(&entry.digest).is_some_and(|known| known.ptr_eq(&flight)) {
            flights.remove(&entry.digest);
        }
        outcome.map(|artifact| (artifact, false))
    }

    /// Waits until a file may be read: at most as long as some others take that hang.
    async fn turn_to_load(&self, entry: &IndexEntry) -> Result<SemaphorePermit<'_>, Trouble> {
        if let Some(hung) = self.hung() {
            return Err(hung);
        }
        let limit = self.patience * QUEUE;
        let Ok(turn) = timeout(limit, self.loading.acquire()).await else {
            let path = artifact_path(&entry.name, &entry.version);
            return Err(StoreError::TimedOut { path, seconds: limit.as_secs() }.into());
        };
        turn.map_err(|_| Trouble::Defect)
    }

    async fn load(
        &self,
        snapshot: &Snapshot,
        entry: &IndexEntry,
        now: u64,
    ) -> Result<Artifact, Trouble> {
        let path = match snapshot.loose.get(&entry.digest) {
            Some(path) => path.clone(),
            None => artifact_path(&entry.name, &entry.version),
        };
        let bytes = self.store.read(&path, self.limits.archive_bytes as u64).await?;
        let signature = match self.trust {
            Trust::UnsignedDevelopment => None,
            Trust::Signed => {
                let path = signature_path(&entry.name, &entry.version);
                Some(self.read_signature(&path).await?)
            }
        };
        let keys = self.config.keys_of(&entry.name).to_vec();
        let (entry, limits) = (entry.clone(), self.limits);
        let verified = spawn_blocking(move || verify(bytes, signature, &entry, &keys, limits, now));
        Ok(verified.await.map_err(|_| Trouble::Defect)??)
    }

    async fn read_signature(&self, path: &str) -> Result<String, Trouble> {
        let what = "the package file";
        let bytes = match self.store.read(path, SIGNATURE_LIMIT).await {
            Ok(bytes) => bytes,
            Err(StoreError::NotFound { .. }) => {
                return Err(PackageError::Unsigned { what }.into());
            }
            Err(error) => return Err(error.into()),
        };
        String::from_utf8(bytes.to_vec()).map_err(|_| {
            PackageError::SignatureFormat { what, reason: "it is not text".to_owned() }.into()
        })
    }

    /// Whether a key's time ended between two moments: what it signed is looked at again.
    fn keys_ended(&self, from: u64, to: u64) -> bool {
        let ended = |end: u64| end >= from && end < to;
        let own = self.config.package_keys.iter().flat_map(|own| &own.keys);
        self.config.keys.iter().chain(own).any(|key| key.not_after.is_some_and(ended))
    }
}

/// Everything that can be known about a file without loading it.
fn verify(
    bytes: Bytes,
    signature: Option<String>,
    entry: &IndexEntry,
    keys: &[TrustedKey],
    limits: Limits,
    now: u64,
) -> Result<Artifact, PackageError> {
    entry.check(&bytes)?;
    let signed_by = match &signature {
        None => None,
        Some(signature) => {
            let IndexEntry { name, version, digest, .. } = entry;
            Some(verify_package(&bytes, signature, keys, now, name, version, digest)?.id())
        }
    };
    let package = Package::open(&bytes, &limits)?;
    if (&package.manifest.name, &package.manifest.version) != (&entry.name, &entry.version) {
        return Err(PackageError::WrongPackage {
            wanted: format!("{} {}", entry.name, entry.version),
            found: format!("{} {}", package.manifest.name, package.manifest.version),
        });
    }
    package.check_objects().map_err(PackageError::Manifest)?;
    Ok(Artifact {
        bytes,
        maps: package.maps(),
        manifest: package.manifest,
        readme: package.readme.unwrap_or_default(),
        signature,
        signed_by,
        verified: now,
    })
}
