//! A repository's files: bounded reads with a time limit, and writes that lose nobody's work, in a
//! directory, on a web server or in a bucket.
//!
//! **Owns:** where a repository is, how it is reached, credentials by reference; secrets that a cloud keeps.
//!
//! **Must not know:** what the files mean; signatures.
//!
//! ```
//! use canopy_store::{Location, Store, StoreConfig};
//! use std::time::Duration;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let location = Location::parse("file:///srv/canopy/packages").unwrap();
//! let store = Store::new(location, StoreConfig::default(), Duration::from_secs(4));
//! assert!(store.read("index.signed", 1 << 20).await.is_err(), "there is no such directory");
//! # });
//! ```

pub mod config;
mod directory;
pub mod location;
mod open;
mod publish;
pub mod secrets;
mod slots;

pub use config::{Credentials, StoreConfig, Transport};
pub use location::Location;
pub use publish::{Listed, Turn};
pub use secrets::{AwsSecret, SecretSource, SecretStore};

use bytes::Bytes;
use canopy_runtime::clock;
use directory::Entry;
use futures::TryStreamExt as _;
use object_store::{
    ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, UpdateVersion,
    path::Path as ObjectPath,
};
use slots::Slots;
use std::{
    error::Error,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It is not there.
    #[error("there is no {path}")]
    NotFound {
        /// Path in the repository.
        path: String,
    },
    /// It is larger than it may be.
    #[error("{path} is larger than {limit} bytes")]
    TooLarge {
        /// Path in the repository.
        path: String,
        /// The limit, bytes.
        limit: u64,
    },
    /// The store does not answer.
    #[error("{path} could not be read within {seconds} s")]
    TimedOut {
        /// Path in the repository.
        path: String,
        /// The limit.
        seconds: u64,
    },
    /// Nothing is asked of the store any more: what was asked before has not ended.
    #[error(
        "{operations} operations on the store hang, the longest for {seconds} s; no more are begun"
    )]
    Hung {
        /// How many: all that may be under way at once.
        operations: usize,
        /// How long the longest does.
        seconds: u64,
    },
    /// The store fails.
    #[error("{path} cannot be read: {reason}")]
    Failed {
        /// Path in the repository.
        path: String,
        /// What the store said, and what lies at the bottom of it.
        reason: String,
    },
    /// It cannot be written.
    #[error("{path} cannot be written: {reason}")]
    Unwritten {
        /// Path in the repository.
        path: String,
        /// What the store said, and what lies at the bottom of it.
        reason: String,
    },
    /// A file that the way to the store needs cannot be used.
    #[error("{} cannot be used: {reason}", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; never what stands in it.
        reason: String,
        /// What to do.
        remedy: String,
    },
}

impl StoreError {
    fn of(path: &str, source: object_store::Error) -> Self {
        let path = path.to_owned();
        match source {
            object_store::Error::NotFound { .. } => Self::NotFound { path },
            source => Self::Failed { path, reason: in_full(&source) },
        }
    }
}

/// The error and, where its own words leave it out, the cause at the bottom: "error sending request"
/// helps nobody, "invalid peer certificate" does.
fn in_full(error: &dyn Error) -> String {
    let said = error.to_string();
    let mut bottom = error;
    while let Some(cause) = bottom.source() {
        bottom = cause;
    }
    let cause = bottom.to_string();
    if said.contains(&cause) { said } else { format!("{said}: {cause}") }
}

/// A store that tells changes by a time of whole seconds alone may hide a second change in the same
/// second: a file this young is read again.
const YOUNG: Duration = Duration::from_secs(2);

/// A file as it was when it was read.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What stands in it.
    pub bytes: Bytes,
    version: UpdateVersion,
}

/// Where a repository's files are.
pub struct Store {
    location: Location,
    config: StoreConfig,
    /// Made at the first use that succeeds.
    opened: Arc<OnceLock<Arc<dyn ObjectStore>>>,
    limit: Duration,
    slots: Arc<Slots>,
}

impl Store {
    /// Files at `location`, reached as `config` says; each read may take `limit`. Nothing is opened
    /// yet. At most eight operations are under way at once, those that are given up but have not ended
    /// among them.
    pub fn new(location: Location, config: StoreConfig, limit: Duration) -> Self {
        Self { location, config, opened: Arc::default(), limit, slots: Slots::new() }
    }

    /// Why nothing can be read or written now, where every operation that may be under way hangs.
    pub fn hung(&self) -> Option<StoreError> {
        self.slots.hung(self.limit)
    }

    /// Does work with the store, within the time it may take. Work on a directory that is given up goes
    /// on by itself, and holds its place until it ends.
    async fn with_store<T, W>(
        &self,
        path: &str,
        work: impl FnOnce(Arc<dyn ObjectStore>) -> W + Send + 'static,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let slot = self.slots.take(self.limit).await?;
        let (opened, limit) = (Arc::clone(&self.opened), self.limit);
        let (location, config) = (self.location.clone(), self.config.clone());
        let open = move || {
            if let Some(store) = opened.get() {
                return Ok(Arc::clone(store));
            }
            let made = open::open(&location, &config, limit)?;
            Ok(Arc::clone(opened.get_or_init(|| made)))
        };
        if self.location.is_directory() {
            let task = tokio::spawn(async move {
                // Even opening looks at the directory.
                let store = spawn_blocking(open).await.map_err(|_| ended(""))??;
                let done = work(store).await;
                drop(slot);
                done
            });
            return self.joined(path, task).await;
        }
        let work = async { work(open()?).await };
        let done = timeout(self.limit, work).await.unwrap_or_else(|_| Err(self.timed_out(path)));
        drop(slot);
        done
    }

    /// The same for work on a file of a directory, all of which blocks.
    async fn blocking<T: Send + 'static>(
        &self,
        path: &str,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let slot = self.slots.take(self.limit).await?;
        let task = spawn_blocking(move || {
            let done = work();
            drop(slot);
            done
        });
        self.joined(path, task).await
    }

    async fn joined<T>(
        &self,
        path: &str,
        task: JoinHandle<Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match timeout(self.limit, task).await {
            Ok(done) => done.unwrap_or_else(|_| Err(ended(path))),
            Err(_) => Err(self.timed_out(path)),
        }
    }

    /// What changes whenever the file does; `None` when there is no such file.
    pub async fn tag(&self, path: &str) -> Result<Option<String>, StoreError> {
        let at = location(path)?;
        let tag = if let Location::Directory(root) = &self.location {
            let entry = Entry::new(root, &at);
            self.blocking(path, move || entry.tag()).await
        } else {
            let name = path.to_owned();
            let head = async move |store: Arc<dyn ObjectStore>| {
                let meta = store.head(&at).await.map_err(|error| StoreError::of(&name, error))?;
                Ok(tag_of(meta, clock::now()))
            };
            self.with_store(path, head).await
        };
        match tag {
            Ok(tag) => Ok(Some(tag)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The whole file, if it is no longer than `limit` bytes.
    pub async fn read(&self, path: &str, limit: u64) -> Result<Bytes, StoreError> {
        self.fetch(path, limit).await.map(|seen| seen.bytes)
    }

    /// Like [`Self::read`], so that exactly what was read can be replaced; `None` when there is no
    /// such file.
    pub async fn look(&self, path: &str, limit: u64) -> Result<Option<Seen>, StoreError> {
        match self.fetch(path, limit).await {
            Ok(seen) => Ok(Some(seen)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a file where there was `seen`, or none. False, and nothing written, when another one
    /// is there by now. Not for directories, which cannot compare and swap.
    pub async fn replace(
        &self,
        path: &str,
        bytes: Vec<u8>,
        seen: Option<&Seen>,
    ) -> Result<bool, StoreError> {
        let mode = seen.map_or(PutMode::Create, |seen| PutMode::Update(seen.version.clone()));
        self.put(path, bytes, mode).await
    }

    /// Writes a file, whatever was there.
    pub async fn write(&self, path: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        self.put(path, bytes, PutMode::Overwrite).await.map(drop)
    }

    async fn put(&self, path: &str, bytes: Vec<u8>, mode: PutMode) -> Result<bool, StoreError> {
        let at = location(path)?;
        let name = path.to_owned();
        let put = async move |store: Arc<dyn ObjectStore>| {
            let options = PutOptions { mode, ..PutOptions::default() };
            match store.put_opts(&at, PutPayload::from(bytes), options).await {
                Ok(_) => Ok(true),
                Err(
                    object_store::Error::AlreadyExists { .. }
                    | object_store::Error::Precondition { .. },
                ) => Ok(false),
                Err(error) => Err(StoreError::Unwritten { path: name, reason: in_full(&error) }),
            }
        };
        let unwritten = |reason: String| StoreError::Unwritten { path: path.to_owned(), reason };
        match self.with_store(path, put).await {
            Err(StoreError::TimedOut { seconds, .. }) => {
                Err(unwritten(format!("not done within {seconds} s")))
            }
            other => other,
        }
    }

    async fn fetch(&self, path: &str, limit: u64) -> Result<Seen, StoreError> {
        let at = location(path)?;
        if let Location::Directory(root) = &self.location {
            let entry = Entry::new(root, &at);
            let (bytes, tag) = self.blocking(path, move || entry.read(limit)).await?;
            let version = UpdateVersion { e_tag: Some(tag), version: None };
            return Ok(Seen { bytes, version });
        }
        let name = path.to_owned();
        let fetch = async move |store: Arc<dyn ObjectStore>| {
            let too_large = || StoreError::TooLarge { path: name.clone(), limit };
            let found = store.get(&at).await.map_err(|error| StoreError::of(&name, error))?;
            if found.meta.size > limit {
                return Err(too_large());
            }
            let version = UpdateVersion {
                e_tag: found.meta.e_tag.clone(),
                version: found.meta.version.clone(),
            };
            // What a store says about a size is not believed.
            let mut stream = found.into_stream();
            let mut bytes = Vec::new();
            while let Some(chunk) =
                stream.try_next().await.map_err(|error| StoreError::of(&name, error))?
            {
                bytes.extend_from_slice(&chunk);
                if bytes.len() as u64 > limit {
                    return Err(too_large());
                }
            }
            Ok(Seen { bytes: Bytes::from(bytes), version })
        };
        self.with_store(path, fetch).await
    }

    /// Paths of the files with that ending, sorted, at most `max`.
    pub async fn list(&self, ending: &str, max: usize) -> Result<Vec<String>, StoreError> {
        let (wanted, until) = (ending.to_owned(), self.timed_out("/"));
        let limit = self.limit;
        let list = async move |store: Arc<dyn ObjectStore>| {
            let began = clock::monotonic();
            let mut stream = store.list(None);
            let mut paths = Vec::new();
            while let Some(meta) =
                stream.try_next().await.map_err(|error| StoreError::of("/", error))?
            {
                let path = meta.location.to_string();
                if path.ends_with(&wanted) {
                    paths.push(path);
                }
                if paths.len() > max {
                    return Err(StoreError::TooLarge {
                        path: format!("the list of *{wanted}"),
                        limit: max as u64,
                    });
                }
                // Nobody waits for it any more.
                if began.elapsed() > limit {
                    return Err(until);
                }
            }
            paths.sort();
            Ok(paths)
        };
        self.with_store("/", list).await
    }

    fn timed_out(&self, path: &str) -> StoreError {
        StoreError::TimedOut { path: path.to_owned(), seconds: self.limit.as_secs() }
    }
}

/// A task of ours ended early.
fn ended(path: &str) -> StoreError {
    let reason = "its task ended unexpectedly".to_owned();
    StoreError::Failed { path: path.to_owned(), reason }
}

fn location(path: &str) -> Result<ObjectPath, StoreError> {
    ObjectPath::parse(path).map_err(|error| StoreError::of(path, error.into()))
}

fn tag_of(meta: ObjectMeta, now: SystemTime) -> String {
    if let Some(tag) = meta.e_tag {
        return tag;
    }
    let modified = SystemTime::from(meta.last_modified);
    let tag = format!("{}-{}", meta.last_modified.timestamp_micros(), meta.size);
    // Within a margin in both directions: the store's clock is not ours.
    let old = now.duration_since(modified).is_ok_and(|age| age > YOUNG);
    if old {
        return tag;
    }
    format!("{tag}-{}", now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_young_file_without_a_tag_is_taken_as_changed() {
        let meta = || ObjectMeta {
            location: ObjectPath::from("index.signed"),
            last_modified: (UNIX_EPOCH + Duration::from_secs(100)).into(),
            size: 5,
            e_tag: None,
            version: None,
        };
        let at = |millis| UNIX_EPOCH + Duration::from_millis(millis);
        assert_ne!(tag_of(meta(), at(100_500)), tag_of(meta(), at(100_501)));
        assert_eq!(tag_of(meta(), at(103_000)), tag_of(meta(), at(900_000)));
        let tagged = ObjectMeta { e_tag: Some("x".to_owned()), ..meta() };
        assert_eq!(tag_of(tagged, at(100_500)), "x");
    }

    /// A file system that hangs is stood for by work that does.
    #[tokio::test]
    async fn work_that_hangs_is_bounded_and_told() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "text").unwrap();
        let location = Location::Directory(dir.path().to_owned());
        let store = Store::new(location, StoreConfig::default(), Duration::from_millis(200));
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let wait = Arc::new(std::sync::Mutex::new(wait));
        let begun = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let asked = (0..100).map(|_| {
            let (wait, begun) = (wait.clone(), begun.clone());
            store.blocking("a", move || {
                begun.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let _ = wait.lock().unwrap().recv();
                Ok(())
            })
        });
        for outcome in futures::future::join_all(asked).await {
            let error = outcome.unwrap_err();
            let late = matches!(error, StoreError::TimedOut { .. } | StoreError::Hung { .. });
            assert!(late, "{error}");
        }
        assert_eq!(begun.load(std::sync::atomic::Ordering::Relaxed), slots::AT_ONCE);
        // Nobody waits any more, and it is told.
        let asked = std::time::Instant::now();
        let error = store.read("a", 9).await.unwrap_err();
        assert!(error.to_string().contains("8 operations on the store hang"), "{error}");
        assert!(asked.elapsed() < Duration::from_millis(100), "{:?}", asked.elapsed());
        assert!(store.hung().is_some());
        // When it goes on, so does everything.
        drop(end);
        while store.hung().is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(store.read("a", 9).await.unwrap(), "text");
    }
}
