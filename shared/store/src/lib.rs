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
pub mod location;
mod open;
mod publish;
pub mod secrets;

pub use config::{Credentials, StoreConfig, Transport};
pub use location::Location;
pub use publish::{Listed, Turn};
pub use secrets::{AwsSecret, SecretSource, SecretStore};

use bytes::Bytes;
use canopy_runtime::clock;
use futures::TryStreamExt as _;
use object_store::{
    ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, UpdateVersion,
    path::Path as ObjectPath,
};
use std::{
    error::Error,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::time::timeout;

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
    opened: OnceLock<Arc<dyn ObjectStore>>,
    limit: Duration,
}

impl Store {
    /// Files at `location`, reached as `config` says; each read may take `limit`. Nothing is opened
    /// yet.
    pub fn new(location: Location, config: StoreConfig, limit: Duration) -> Self {
        Self { location, config, opened: OnceLock::new(), limit }
    }

    fn store(&self) -> Result<Arc<dyn ObjectStore>, StoreError> {
        if let Some(store) = self.opened.get() {
            return Ok(store.clone());
        }
        let made = open::open(&self.location, &self.config, self.limit)?;
        Ok(self.opened.get_or_init(|| made).clone())
    }

    /// What changes whenever the file does; `None` when there is no such file.
    pub async fn tag(&self, path: &str) -> Result<Option<String>, StoreError> {
        let store = self.store()?;
        let location = location(path)?;
        match self.within(path, store.head(&location)).await {
            Ok(meta) => Ok(Some(tag_of(meta, clock::now()))),
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
        let store = self.store()?;
        let location = location(path)?;
        let options = PutOptions { mode, ..PutOptions::default() };
        let writing = store.put_opts(&location, PutPayload::from(bytes), options);
        match timeout(self.limit, writing).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            )) => Ok(false),
            Ok(Err(error)) => {
                Err(StoreError::Unwritten { path: path.to_owned(), reason: in_full(&error) })
            }
            Err(_) => Err(StoreError::Unwritten {
                path: path.to_owned(),
                reason: format!("not done within {} s", self.limit.as_secs()),
            }),
        }
    }

    async fn fetch(&self, path: &str, limit: u64) -> Result<Seen, StoreError> {
        let store = self.store()?;
        let location = location(path)?;
        let too_large = || StoreError::TooLarge { path: path.to_owned(), limit };
        let reading = async {
            let found = store.get(&location).await.map_err(|error| StoreError::of(path, error))?;
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
                stream.try_next().await.map_err(|error| StoreError::of(path, error))?
            {
                bytes.extend_from_slice(&chunk);
                if bytes.len() as u64 > limit {
                    return Err(too_large());
                }
            }
            Ok(Seen { bytes: Bytes::from(bytes), version })
        };
        timeout(self.limit, reading).await.unwrap_or_else(|_| Err(self.timed_out(path)))
    }

    /// Paths of the files with that ending, sorted, at most `max`.
    pub async fn list(&self, ending: &str, max: usize) -> Result<Vec<String>, StoreError> {
        let store = self.store()?;
        let listing = async {
            let mut stream = store.list(None);
            let mut paths = Vec::new();
            while let Some(meta) =
                stream.try_next().await.map_err(|error| StoreError::of("/", error))?
            {
                let path = meta.location.to_string();
                if path.ends_with(ending) {
                    paths.push(path);
                }
                if paths.len() > max {
                    return Err(StoreError::TooLarge {
                        path: format!("the list of *{ending}"),
                        limit: max as u64,
                    });
                }
            }
            paths.sort();
            Ok(paths)
        };
        timeout(self.limit, listing).await.unwrap_or_else(|_| Err(self.timed_out("/")))
    }

    async fn within<T>(
        &self,
        path: &str,
        work: impl Future<Output = Result<T, object_store::Error>>,
    ) -> Result<T, StoreError> {
        match timeout(self.limit, work).await {
            Ok(done) => done.map_err(|error| StoreError::of(path, error)),
            Err(_) => Err(self.timed_out(path)),
        }
    }

    fn timed_out(&self, path: &str) -> StoreError {
        StoreError::TimedOut { path: path.to_owned(), seconds: self.limit.as_secs() }
    }
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
}
