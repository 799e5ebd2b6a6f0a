//! The account DATA: values that every instance of a service sees, changed by compare and swap; and logs
//! that only grow.

mod log;
mod replicas;
mod snapshot;

pub use log::{Append, Log, LogConfig, LogEntry};
pub use replicas::{Copies, ensure_replicas};
pub use snapshot::{has_stream, remove_stream, restore, snapshot};

pub use crate::retry::retry_for;

use crate::{config::BusError, connection::Bus, retry};
use async_nats::jetstream::{
    self,
    kv::{self, CreateErrorKind, Operation, UpdateErrorKind},
    stream::StorageType,
};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use serde::{Serialize, de::DeserializeOwned};
use std::{fmt, time::Duration};

/// How long an answer of the store is waited for.
const LIMIT: Duration = Duration::from_secs(2);
/// Values of a bucket that are read at once.
const AT_ONCE: usize = 32;

/// A bucket of values, by key.
#[derive(Clone)]
pub struct Bucket {
    store: kv::Store,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket").field("name", &self.store.name).finish_non_exhaustive()
    }
}

/// A value, and which one it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored<T> {
    /// The value.
    pub value: T,
    /// What a change has to name.
    pub revision: u64,
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swap {
    /// Done.
    Done,
    /// Somebody else has changed it meanwhile; nothing was done.
    Overtaken,
}

/// The name of the stream that a bucket is stored in.
pub fn stream_of(bucket: &str) -> String {
    format!("KV_{bucket}")
}

fn failed(error: &dyn fmt::Display) -> BusError {
    BusError::Unavailable(error.to_string())
}

impl Bucket {
    /// Opens a bucket. Where there is none it is made, to be kept by so many servers of a cluster; one that
    /// is there stays as it is ([`ensure_replicas`]). Within [`retry_for`] it is tried again while a leader is
    /// elected.
    pub async fn open(bus: &Bus, name: &str, replicas: usize) -> Result<Self, BusError> {
        let mut context = jetstream::new(bus.client.as_ref().clone());
        context.set_timeout(LIMIT);
        retry::repeated(|_| Self::open_once(&context, name, replicas)).await
    }

    async fn open_once(
        context: &jetstream::Context,
        name: &str,
        replicas: usize,
    ) -> Result<Self, BusError> {
        if let Ok(store) = context.get_key_value(name).await {
            return Ok(Self { store });
        }
        let config = kv::Config {
            bucket: name.to_owned(),
            history: 5,
            storage: StorageType::File,
            num_replicas: replicas,
            ..kv::Config::default()
        };
        let store = context.create_key_value(config).await.map_err(|error| failed(&error))?;
        tracing::warn!(bucket = name, replicas, "a bucket is created: there was none");
        Ok(Self { store })
    }

    /// The value of a key.
    pub async fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<Stored<T>>, BusError> {
        let Some(entry) = self.entry(key).await? else { return Ok(None) };
        Ok(Some(Stored { value: read(key, &entry.value)?, revision: entry.revision }))
    }

    async fn entry(&self, key: &str) -> Result<Option<kv::Entry>, BusError> {
        let found = retry::repeated(|_| async {
            self.store.entry(key).await.map_err(|error| failed(&error))
        });
        Ok(found.await?.filter(|entry| entry.operation == Operation::Put))
    }

    /// Every key.
    pub async fn keys(&self) -> Result<Vec<String>, BusError> {
        retry::repeated(|_| async {
            let keys = self.store.keys().await.map_err(|error| failed(&error))?;
            keys.try_collect().await.map_err(|error| failed(&error))
        })
        .await
    }

    /// Every value.
    pub async fn all<T: DeserializeOwned>(&self) -> Result<Vec<T>, BusError> {
        self.some(self.keys().await?).await
    }

    /// Puts a value where there is none.
    pub async fn create<T: Serialize>(&self, key: &str, value: &T) -> Result<Swap, BusError> {
        let bytes = write(value)?;
        let put = |again| {
            let bytes = bytes.clone();
            async move {
                match self.store.create(key, bytes.clone()).await {
                    Ok(_) => Ok(Swap::Done),
                    Err(error) if error.kind() == CreateErrorKind::AlreadyExists => {
                        self.overtaken(key, &bytes, again).await
                    }
                    Err(error) => Err(failed(&error)),
                }
            }
        };
        retry::repeated(put).await
    }

    /// Puts a value in the place of this one.
    pub async fn replace<T: Serialize>(
        &self,
        key: &str,
        value: &T,
        revision: u64,
    ) -> Result<Swap, BusError> {
        let bytes = write(value)?;
        let put = |again| {
            let bytes = bytes.clone();
            async move {
                match self.store.update(key, bytes.clone(), revision).await {
                    Ok(_) => Ok(Swap::Done),
                    Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                        self.overtaken(key, &bytes, again).await
                    }
                    Err(error) => Err(failed(&error)),
                }
            }
        };
        retry::repeated(put).await
    }

    /// Somebody was quicker; after an attempt of which no answer came that may have been this one.
    async fn overtaken(&self, key: &str, bytes: &[u8], again: bool) -> Result<Swap, BusError> {
        let own = again && self.entry(key).await?.is_some_and(|entry| *entry.value == *bytes);
        Ok(if own { Swap::Done } else { Swap::Overtaken })
    }

    /// Removes this value, and what is kept of those before it.
    pub async fn remove(&self, key: &str, revision: u64) -> Result<Swap, BusError> {
        retry::repeated(|again| async move {
            match self.store.purge_expect_revision(key, Some(revision)).await {
                Ok(()) => Ok(Swap::Done),
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                    // After an attempt of which no answer came that may have been this one.
                    let gone = again && self.entry(key).await?.is_none();
                    Ok(if gone { Swap::Done } else { Swap::Overtaken })
                }
                Err(error) => Err(failed(&error)),
            }
        })
        .await
    }

    /// The values of these keys, in their order; those that are gone are left out.
    pub async fn some<T: DeserializeOwned>(&self, keys: Vec<String>) -> Result<Vec<T>, BusError> {
        let reads = keys.into_iter().map(|key| {
            let this = self.clone();
            async move { this.get(&key).await }
        });
        let all: Vec<Option<Stored<T>>> =
            futures::stream::iter(reads).buffered(AT_ONCE).try_collect().await?;
        Ok(all.into_iter().flatten().map(|stored| stored.value).collect())
    }

    /// Keys whose values change, from now on. It goes on over disconnections; a change may be told
    /// twice.
    pub async fn changes(&self) -> Result<impl Stream<Item = String> + use<>, BusError> {
        let watch = self.store.watch_all().await.map_err(|error| failed(&error))?;
        // A missed heartbeat is an error after which the library begins again.
        Ok(watch.filter_map(|entry| async move { entry.ok().map(|entry| entry.key) }))
    }
}

fn read<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, BusError> {
    serde_json::from_slice(bytes).map_err(|error| {
        BusError::Store(format!("what is stored as {key} cannot be read: {error}"))
    })
}

fn write<T: Serialize>(value: &T) -> Result<bytes::Bytes, BusError> {
    serde_json::to_vec(value).map(Into::into).map_err(|error| BusError::Defect(error.to_string()))
}
