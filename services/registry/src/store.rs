//! A repository's files: bounded reads with a time limit, from an object store.

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::{
    ObjectStore, ObjectStoreExt as _, local::LocalFileSystem, path::Path as ObjectPath,
};
use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
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
    #[error("{path} cannot be read: {source}")]
    Failed {
        /// Path in the repository.
        path: String,
        /// What the store said.
        source: object_store::Error,
    },
}

/// Where a repository's files are.
pub struct Store {
    root: PathBuf,
    /// Made at the first use that finds the directory.
    opened: OnceLock<Arc<dyn ObjectStore>>,
    limit: Duration,
}

impl Store {
    /// A directory; each read may take this long.
    pub fn directory(root: PathBuf, limit: Duration) -> Self {
        Self { root, opened: OnceLock::new(), limit }
    }

    fn store(&self) -> Result<Arc<dyn ObjectStore>, StoreError> {
        if let Some(store) = self.opened.get() {
            return Ok(store.clone());
        }
        let made = LocalFileSystem::new_with_prefix(&self.root)
            .map_err(|source| failed(&self.root.display().to_string(), source))?;
        Ok(self.opened.get_or_init(|| Arc::new(made)).clone())
    }

    /// What changes whenever the file does; `None` when there is no such file.
    pub async fn tag(&self, path: &str) -> Result<Option<String>, StoreError> {
        let store = self.store()?;
        let location = location(path)?;
        match self.within(path, store.head(&location)).await {
            Ok(meta) => Ok(Some(meta.e_tag.unwrap_or_else(|| {
                format!("{}-{}", meta.last_modified.timestamp_micros(), meta.size)
            }))),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The whole file, if it is no longer than `limit` bytes.
    pub async fn read(&self, path: &str, limit: u64) -> Result<Bytes, StoreError> {
        let store = self.store()?;
        let location = location(path)?;
        let too_large = || StoreError::TooLarge { path: path.to_owned(), limit };
        let reading = async {
            let found = store.get(&location).await.map_err(|error| failed(path, error))?;
            if found.meta.size > limit {
                return Err(too_large());
            }
            // What a store says about a size is not believed.
            let mut stream = found.into_stream();
            let mut bytes = Vec::new();
            while let Some(chunk) = stream.try_next().await.map_err(|error| failed(path, error))? {
                bytes.extend_from_slice(&chunk);
                if bytes.len() as u64 > limit {
                    return Err(too_large());
                }
            }
            Ok(Bytes::from(bytes))
        };
        timeout(self.limit, reading).await.unwrap_or_else(|_| Err(self.timed_out(path)))
    }

    /// Paths of the files with that ending, sorted, at most `max`.
    pub async fn list(&self, ending: &str, max: usize) -> Result<Vec<String>, StoreError> {
        let store = self.store()?;
        let listing = async {
            let mut stream = store.list(None);
            let mut paths = Vec::new();
            while let Some(meta) = stream.try_next().await.map_err(|error| failed("/", error))? {
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
            Ok(done) => done.map_err(|error| failed(path, error)),
            Err(_) => Err(self.timed_out(path)),
        }
    }

    fn timed_out(&self, path: &str) -> StoreError {
        StoreError::TimedOut { path: path.to_owned(), seconds: self.limit.as_secs() }
    }
}

fn location(path: &str) -> Result<ObjectPath, StoreError> {
    ObjectPath::parse(path).map_err(|error| failed(path, error.into()))
}

fn failed(path: &str, source: object_store::Error) -> StoreError {
    let path = path.to_owned();
    match source {
        object_store::Error::NotFound { .. } => StoreError::NotFound { path },
        source => StoreError::Failed { path, source },
    }
}
