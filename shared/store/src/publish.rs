//! What a publisher needs of a store beyond reading: one writer at a time where a store cannot compare and
//! swap, and a place where what is not published yet waits.

use crate::{Location, Seen, Store, StoreError, location};
use bytes::Bytes;
use canopy_runtime::clock;
use futures::TryStreamExt as _;
use object_store::{ObjectStore, ObjectStoreExt as _};
use std::{
    fs::{File, TryLockError},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::time::sleep;

/// How often a lock that somebody holds is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// The turn to write; given back when dropped. In a bucket it is nothing: there
/// [`Store::replace`] finds out who came first.
#[derive(Debug)]
pub struct Turn {
    _lock: Option<File>,
}

/// A file of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its path in the repository.
    pub path: String,
    /// Its length, bytes.
    pub length: u64,
    /// When it was written, as the store says.
    pub written: SystemTime,
}

impl Store {
    /// Waits for the turn to write: in a directory by the lock `path`, which every publisher takes.
    ///
    /// # Errors
    ///
    /// When somebody else holds it for longer than a read may take.
    pub async fn turn(&self, path: &str) -> Result<Turn, StoreError> {
        let Location::Directory(directory) = &self.location else {
            return Ok(Turn { _lock: None });
        };
        let (lock, name) = (directory.join(path), path.to_owned());
        let opened = move || {
            canopy_files::open_lock(&lock)
                .map_err(|error| StoreError::Unwritten { path: name, reason: error.to_string() })
        };
        let mut file = self.blocking(path, opened).await?;
        let began = clock::monotonic();
        loop {
            let name = path.to_owned();
            let locked = move || match file.try_lock() {
                Ok(()) => Ok((file, true)),
                Err(TryLockError::WouldBlock) => Ok((file, false)),
                Err(TryLockError::Error(error)) => {
                    Err(StoreError::Unwritten { path: name, reason: error.to_string() })
                }
            };
            let (tried, locked) = self.blocking(path, locked).await?;
            if locked {
                return Ok(Turn { _lock: Some(tried) });
            }
            if began.elapsed() > self.limit {
                let seconds = self.limit.as_secs();
                let reason = format!("another publisher is at it for more than {seconds} s");
                return Err(StoreError::Unwritten { path: path.to_owned(), reason });
            }
            file = tried;
            sleep(AGAIN).await;
        }
    }

    /// Whether the turn keeps others from writing, as it does in a directory.
    pub fn is_exclusive(&self) -> bool {
        self.location.is_directory()
    }

    /// Writes a file where there was `seen`, or none; false, and nothing written, when another one is
    /// there by now. The caller has the turn.
    pub async fn replace_in_turn(
        &self,
        _turn: &Turn,
        path: &str,
        bytes: Vec<u8>,
        seen: Option<&Seen>,
        limit: u64,
    ) -> Result<bool, StoreError> {
        if !self.location.is_directory() {
            return self.replace(path, bytes, seen).await;
        }
        let now = self.look(path, limit).await?;
        let same = |seen: &Seen, now: &Seen| -> bool { Bytes::eq(&seen.bytes, &now.bytes) };
        let unchanged = match (seen, &now) {
            (None, None) => true,
            (Some(seen), Some(now)) => same(seen, now),
            (None, Some(_)) | (Some(_), None) => false,
        };
        if unchanged {
            self.write(path, bytes).await?;
        }
        Ok(unchanged)
    }

    /// The files below a folder, at most `max`.
    pub async fn list_below(&self, folder: &str, max: usize) -> Result<Vec<Listed>, StoreError> {
        let prefix = location(folder)?;
        let (name, until, limit) = (folder.to_owned(), self.timed_out(folder), self.limit);
        let list = async move |store: Arc<dyn ObjectStore>| {
            let began = clock::monotonic();
            let mut stream = store.list(Some(&prefix));
            let mut files = Vec::new();
            while let Some(meta) =
                stream.try_next().await.map_err(|error| StoreError::of(&name, error))?
            {
                if files.len() == max {
                    let (path, limit) = (format!("the list of {name}"), max as u64);
                    return Err(StoreError::TooLarge { path, limit });
                }
                // Nobody waits for it any more.
                if began.elapsed() > limit {
                    return Err(until);
                }
                files.push(Listed {
                    path: meta.location.to_string(),
                    length: meta.size,
                    written: meta.last_modified.into(),
                });
            }
            Ok(files)
        };
        self.with_store(folder, list).await
    }

    /// Removes a file; one that is not there is removed.
    pub async fn remove(&self, path: &str) -> Result<(), StoreError> {
        let at = location(path)?;
        let name = path.to_owned();
        let remove = async move |store: Arc<dyn ObjectStore>| {
            store.delete(&at).await.map_err(|error| StoreError::of(&name, error))
        };
        match self.with_store(path, remove).await {
            Err(StoreError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }
}

impl Listed {
    /// Whether it was written longer ago than that. A store whose clock is ahead writes late.
    pub fn older_than(&self, age: Duration) -> bool {
        clock::now().duration_since(self.written).is_ok_and(|since| since > age)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StoreConfig;

    fn store(dir: &std::path::Path) -> Store {
        let location = Location::Directory(dir.to_owned());
        Store::new(location, StoreConfig::default(), Duration::from_millis(300))
    }

    #[tokio::test]
    async fn one_publisher_at_a_time_in_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (store(dir.path()), store(dir.path()));
        let turn = one.turn(".lock").await.unwrap();
        let error = other.turn(".lock").await.unwrap_err();
        assert!(error.to_string().contains("another publisher is at it"), "{error}");
        assert!(one.replace_in_turn(&turn, "a", b"1".to_vec(), None, 9).await.unwrap());
        assert!(!one.replace_in_turn(&turn, "a", b"2".to_vec(), None, 9).await.unwrap());
        let seen = one.look("a", 9).await.unwrap();
        assert!(one.replace_in_turn(&turn, "a", b"3".to_vec(), seen.as_ref(), 9).await.unwrap());
        assert!(!one.replace_in_turn(&turn, "a", b"4".to_vec(), seen.as_ref(), 9).await.unwrap());
        drop(turn);
        other.turn(".lock").await.unwrap();
        assert_eq!(other.read("a", 9).await.unwrap(), "3");
    }

    #[tokio::test]
    async fn what_waits_is_listed_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        assert_eq!(store.list_below(".waiting", 9).await.unwrap(), []);
        for path in [".waiting/x/1", ".waiting/x/2", "other/3"] {
            store.write(path, b"abc".to_vec()).await.unwrap();
        }
        let mut found = store.list_below(".waiting", 9).await.unwrap();
        found.sort_by(|a, b| a.path.cmp(&b.path));
        let told: Vec<_> = found.iter().map(|file| (file.path.as_str(), file.length)).collect();
        assert_eq!(told, [(".waiting/x/1", 3), (".waiting/x/2", 3)]);
        assert!(!found[0].older_than(Duration::from_mins(1)));
        assert!(store.list_below(".waiting", 1).await.is_err());
        store.remove(".waiting/x/1").await.unwrap();
        store.remove(".waiting/x/1").await.unwrap();
        assert_eq!(store.list_below(".waiting", 9).await.unwrap().len(), 1);
    }

    fn fifo(path: &std::path::Path) {
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    }

    #[tokio::test]
    async fn pipes_in_a_directory_are_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let at = |name: &str| dir.path().join(name);
        fifo(&at("fifo"));
        std::os::unix::fs::symlink(at("fifo"), at("link")).unwrap();
        fifo(&at(".lock"));
        // More than the threads that may hang, and than those that a process has for work that blocks.
        for _ in 0..20 {
            for name in ["fifo", "link"] {
                for error in [
                    store.read(name, 9).await.unwrap_err(),
                    store.look(name, 9).await.unwrap_err(),
                    store.tag(name).await.unwrap_err(),
                ] {
                    let said = error.to_string();
                    assert!(said.contains(name) && said.contains("named pipe"), "{said}");
                }
            }
            let error = store.turn(".lock").await.unwrap_err();
            assert!(error.to_string().contains("named pipe"), "{error}");
        }
        assert!(store.hung().is_none());
        assert_eq!(store.list("fifo", 9).await.unwrap(), [""; 0]);
        // What takes its place is read at once.
        store.write("fifo", b"text".to_vec()).await.unwrap();
        assert_eq!(store.read("fifo", 9).await.unwrap(), "text");
        std::fs::remove_file(at(".lock")).unwrap();
        store.turn(".lock").await.unwrap();
    }

    #[tokio::test]
    async fn a_lock_that_leads_elsewhere_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("other");
        std::os::unix::fs::symlink(&other, dir.path().join(".lock")).unwrap();
        store(dir.path()).turn(".lock").await.unwrap_err();
        assert!(!other.exists());
    }
}
