//! The highest index versions that were verified, on disk: so that a registry that was restarted refuses an
//! older state of a repository as it did before.
//!
//! `indexes.json` is replaced whole: temporary file, fsync, rename, fsync of the directory. A version is
//! written before anything of its index is given out. `indexes.lock` is held by the one registry of the
//! directory.

use canopy_package::{
    IndexSource, PackageError, TrustedKey, TrustedVersions, trusted_versions::Reset,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The format of the file.
const FORMAT: u32 = 1;
/// Longest file that is read, bytes.
const LIMIT: u64 = 16 << 20;

/// Why the versions cannot be remembered.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another registry has the directory.
    #[error("{} is held by another registry; give each a `state_dir` of its own", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The file is not what this version writes.
    #[error(
        "{} cannot be read: {reason}; restore it, or remove it and have older states of the repositories \
         accepted once", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file system says no.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl StateError {
    /// With what the system said.
    pub(crate) fn in_full(&self) -> String {
        match self {
            Self::Io { source, .. } => format!("{self}: {source}"),
            Self::Locked { .. } | Self::Damaged { .. } => self.to_string(),
        }
    }
}

/// What is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Remembered {
    format: u32,
    /// By the name of a repository in the configuration.
    places: BTreeMap<String, Place>,
    versions: TrustedVersions,
}

impl Default for Remembered {
    fn default() -> Self {
        Self { format: FORMAT, places: BTreeMap::new(), versions: TrustedVersions::default() }
    }
}

/// The highest version at a place, whatever repository is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    url: String,
    version: u64,
}

/// The versions, in memory and, where there is a directory, on disk.
#[derive(Debug, Default)]
pub struct IndexState {
    file: Option<StateFile>,
    remembered: Mutex<Remembered>,
}

#[derive(Debug)]
struct StateFile {
    dir: PathBuf,
    _lock: File,
}

impl IndexState {
    /// One that is forgotten when the process ends.
    pub fn in_memory() -> Self {
        Self::default()
    }

    /// That of a directory, which is made if it is not there.
    pub fn open(dir: &Path) -> Result<Self, StateError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io { action, path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("make", dir))?;
        let path = dir.join("indexes.lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StateError::Locked { path }),
            Err(TryLockError::Error(error)) => return Err(io("lock", &path)(error)),
        }
        let file = StateFile { dir: dir.to_owned(), _lock: lock };
        let remembered = Mutex::new(file.read()?);
        Ok(Self { file: Some(file), remembered })
    }

    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The highest version seen at a place of the configuration; 0 for none.
    pub(crate) fn highest(&self, name: &str, url: &str) -> u64 {
        let remembered = self.lock();
        let place = remembered.places.get(name).filter(|place| place.url == url);
        place.map_or(0, |place| place.version)
    }

    /// The version that an index at a place must have at least.
    pub(crate) fn at_least(
        &self,
        (name, url): (&str, &str),
        source: &IndexSource,
        keys: &[TrustedKey],
    ) -> Result<u64, PackageError> {
        let of_repository = self.lock().versions.at_least(source, name, keys)?;
        Ok(of_repository.max(self.highest(name, url)))
    }

    /// Remembers a verified version, durably. Reads and writes files; not for a thread that others wait for.
    pub(crate) fn remember(
        &self,
        (name, url): (&str, &str),
        source: &IndexSource,
        version: u64,
    ) -> Result<(), StateError> {
        self.change(|remembered| {
            remembered.versions.remember(source, name, None, version);
            let new = || Place { url: url.to_owned(), version };
            let place = remembered.places.entry(name.to_owned()).or_insert_with(new);
            if place.url != url {
                *place = new();
            }
            place.version = place.version.max(version);
        })
    }

    /// Takes what is remembered of a place and the repository there down to a version; says from which.
    pub(crate) fn reset(
        &self,
        (name, url): (&str, &str),
        id: Option<&str>,
        to: u64,
    ) -> Result<u64, StateError> {
        let mut from = self.highest(name, url);
        self.change(|remembered| {
            let Reset { from: before, .. } = remembered.versions.reset(name, id, to);
            from = from.max(before.unwrap_or(0));
            if let Some(place) = remembered.places.get_mut(name) {
                place.version = place.version.min(to);
            }
        })?;
        Ok(from)
    }

    /// Makes a change once it is on disk; where it cannot be written, nothing changes.
    fn change(&self, change: impl FnOnce(&mut Remembered)) -> Result<(), StateError> {
        let mut remembered = self.lock();
        let mut next = remembered.clone();
        change(&mut next);
        if next == *remembered {
            return Ok(());
        }
        if let Some(file) = &self.file {
            file.write(&next)?;
        }
        *remembered = next;
        Ok(())
    }
}

impl StateFile {
    fn path(&self) -> PathBuf {
        self.dir.join("indexes.json")
    }

    fn read(&self) -> Result<Remembered, StateError> {
        let path = self.path();
        let damaged = |reason: String| StateError::Damaged { path: path.clone(), reason };
        match fs::metadata(&path) {
            Ok(found) if !found.is_file() => {
                return Err(damaged("it is no regular file".to_owned()));
            }
            Ok(found) if found.len() > LIMIT => {
                return Err(damaged(format!("it is longer than {LIMIT} bytes")));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Remembered::default());
            }
            Err(source) => return Err(StateError::Io { action: "look at", path, source }),
        }
        let bytes = fs::read(&path).map_err(|source| StateError::Io {
            action: "read",
            path: path.clone(),
            source,
        })?;
        let remembered: Remembered =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if remembered.format != FORMAT {
            let found = remembered.format;
            return Err(damaged(format!("it has format {found}, this version reads {FORMAT}")));
        }
        Ok(remembered)
    }

    fn write(&self, remembered: &Remembered) -> Result<(), StateError> {
        let (path, new) = (self.path(), self.dir.join("indexes.json.new"));
        let io = |action: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io { action, path, source }
        };
        let bytes =
            serde_json::to_vec(remembered).map_err(io::Error::from).map_err(io("write", &new))?;
        let write = || {
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()
        };
        write().map_err(io("write", &new))?;
        fs::rename(&new, &path).map_err(io("replace", &path))?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(io("sync", &self.dir))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use canopy_package::{RepositoryId, SecretKey};

    const PLACE: (&str, &str) = ("starter", "file:///srv/packages");

    fn source() -> (IndexSource, [TrustedKey; 1]) {
        let key = SecretKey::generate().unwrap().public().unwrap();
        let repository = Some(RepositoryId::generate().unwrap());
        (IndexSource { repository, key: key.clone() }, [key.into()])
    }

    #[test]
    fn a_version_is_remembered_over_restarts_and_moves() {
        let dir = tempfile::tempdir().unwrap();
        let (source, keys) = source();
        let state = IndexState::open(dir.path()).unwrap();
        state.remember(PLACE, &source, 7).unwrap();
        state.remember(PLACE, &source, 5).unwrap();
        drop(state);
        let state = IndexState::open(dir.path()).unwrap();
        assert_eq!(state.highest(PLACE.0, PLACE.1), 7);
        assert_eq!(state.at_least(PLACE, &source, &keys).unwrap(), 7);
        // The same repository elsewhere, and under another name.
        let moved = (PLACE.0, "s3://bucket");
        assert_eq!(state.highest(moved.0, moved.1), 0);
        assert_eq!(state.at_least(moved, &source, &keys).unwrap(), 7);
        assert_eq!(state.at_least(("renamed", PLACE.1), &source, &keys).unwrap(), 7);
        // Another repository at the same place is not older than what was there.
        let other = IndexSource { repository: Some(RepositoryId::generate().unwrap()), ..source };
        assert_eq!(state.at_least(PLACE, &other, &keys).unwrap(), 7);
        assert_eq!(state.at_least(moved, &other, &keys).unwrap(), 0);
    }

    #[test]
    fn a_reset_is_kept_and_never_raises() {
        let dir = tempfile::tempdir().unwrap();
        let (source, keys) = source();
        let state = IndexState::open(dir.path()).unwrap();
        state.remember(PLACE, &source, u64::MAX).unwrap();
        assert_eq!(state.reset(PLACE, None, 3).unwrap(), u64::MAX);
        assert_eq!(state.reset(PLACE, None, 9).unwrap(), 3);
        drop(state);
        let state = IndexState::open(dir.path()).unwrap();
        assert_eq!(state.at_least(PLACE, &source, &keys).unwrap(), 3);
    }

    #[test]
    fn what_cannot_be_written_or_read_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let (source, _) = source();
        let state = IndexState::open(dir.path()).unwrap();
        let error = IndexState::open(dir.path()).unwrap_err();
        assert!(matches!(error, StateError::Locked { .. }), "{error}");
        state.remember(PLACE, &source, 1).unwrap();
        // A directory stands where the new file would.
        fs::create_dir(dir.path().join("indexes.json.new")).unwrap();
        let error = state.remember(PLACE, &source, 2).unwrap_err();
        assert!(error.in_full().contains("indexes.json.new"), "{error}");
        assert_eq!(state.highest(PLACE.0, PLACE.1), 1);
        drop(state);
        for damage in ["", "{", r#"{"format":2,"places":{},"versions":[]}"#] {
            fs::write(dir.path().join("indexes.json"), damage).unwrap();
            let error = IndexState::open(dir.path()).unwrap_err();
            assert!(matches!(error, StateError::Damaged { .. }), "{error}");
        }
    }
}
