//! The state on disk.
//!
//! `state.json` is two lines: a header (format, SHA-256 of format and second line) and the [`State`].
//! It is replaced whole: temporary file, fsync, rename, fsync of the directory. The one before it
//! stays as `state.previous.json`. `lock` is held by the one loader of this host.

use crate::core::{attached::Attached, state::State};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// The format of a state without other network namespaces, which every version reads.
const OWN_NETNS: u32 = 1;
/// The format of one with some: a version that knows none would take their chains for the host's own.
const NETNS: u32 = 2;
/// The format of one with index versions by repository, with or without other network namespaces: a version
/// that knows none would forget them.
const REPOSITORIES: u32 = 3;

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another loader runs on this host.
    #[error("{} is held by another loader; one loader a host, stop the other one", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// Somebody else may put files there.
    #[error("{} can be written by others (mode {mode:04o}): whoever writes there decides what runs; chmod 700 {}", path.display(), path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Somebody else may put another directory in its place.
    #[error("the state is not used: {0}; {remedy}", remedy = .0.remedy)]
    Unprotected(canopy_files::Unprotected),
    /// Another version of the loader wrote it.
    #[error("{} has format {found}, this version reads {OWN_NETNS} to {REPOSITORIES}; run the loader that wrote it", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// It belongs to another host.
    #[error("{} is the state of host \"{found}\"; mend `host` or `state_dir` in the configuration", path.display())]
    OtherHost {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: String,
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
    /// A defect of ours.
    #[error("the state cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
}

/// What was found on disk.
#[derive(Debug, PartialEq)]
pub enum Loaded {
    /// Nothing: a new host.
    Fresh,
    /// The state.
    Current(State),
    /// The state before the last write, since the last one is damaged.
    Previous {
        /// The state.
        state: State,
        /// What is wrong with the last one.
        damage: String,
    },
    /// Neither can be read; both were set aside.
    Lost {
        /// What is wrong.
        damage: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    sha256: String,
}

/// The directory with the state, locked.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    _lock: Flock<File>,
}

/// Longest file of the state, bytes: far beyond what the most chains with the longest lists take.
const LONGEST: u64 = 1 << 30;

impl Store {
    /// Makes the directory if need be and locks it. One that others may write to is refused.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let at = |action, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Io { action, path, source }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(at("make directory", dir))?;
        let mode = fs::metadata(dir).map_err(at("look at", dir))?.permissions().mode() & 0o7777;
        if mode & 0o022 != 0 {
            return Err(StoreError::Open { path: dir.to_owned(), mode });
        }
        canopy_files::check_protected(dir).map_err(StoreError::Unprotected)?;
        let path = dir.join("lock");
        let file = canopy_files::open_lock(&path).map_err(at("open", &path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { dir: dir.to_owned(), _lock: lock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(StoreError::Locked { path }),
            Err((_, errno)) => Err(at("lock", &path)(io::Error::from(errno))),
        }
    }

    fn current(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    fn next(&self) -> PathBuf {
        self.dir.join("state.json.new")
    }

    fn previous(&self) -> PathBuf {
        self.dir.join("state.previous.json")
    }

    fn previous_new(&self) -> PathBuf {
        self.dir.join("state.previous.json.new")
    }

    /// Reads the state. Damage is not an error: it is told in [`Loaded`].
    pub fn load(&self, host: &canopy_api::HostId) -> Result<Loaded, StoreError> {
        let loaded = match (read(&self.current())?, read(&self.previous())?) {
            (Found::State(state), _) => Loaded::Current(*state),
            (Found::Nothing, Found::Nothing) => Loaded::Fresh,
            (Found::Nothing, Found::State(state)) => Loaded::Previous {
                state: *state,
                damage: format!("{} is missing", self.current().display()),
            },
            (Found::Damaged(damage), Found::State(state)) => {
                Loaded::Previous { state: *state, damage }
            }
            (Found::Damaged(damage), Found::Nothing) | (Found::Nothing, Found::Damaged(damage)) => {
                Loaded::Lost { damage }
            }
            (Found::Damaged(one), Found::Damaged(two)) => {
                let damage = format!("{one}; {two}");
                // A loader that died in a write leaves one file under both names, and the next one whole.
                match read(&self.next())? {
                    Found::State(state) => Loaded::Previous { state: *state, damage },
                    Found::Nothing | Found::Damaged(_) => Loaded::Lost { damage },
                }
            }
        };
        match &loaded {
            Loaded::Current(state) | Loaded::Previous { state, .. } if state.host != *host => {
                return Err(StoreError::OtherHost {
                    path: self.current(),
                    found: state.host.to_string(),
                });
            }
            Loaded::Lost { .. } => {
                for path in [self.current(), self.previous()] {
                    set_aside(&path)?;
                }
            }
            // The damaged one is set aside, lest the next write make it the previous one.
            Loaded::Previous { .. } => set_aside(&self.current())?,
            // One that was never told to be written is of no use any more.
            Loaded::Current(_) => {
                let _ = fs::remove_file(self.next());
            }
            Loaded::Fresh => {}
        }
        Ok(loaded)
    }

    /// Writes the state. When this returns `Ok`, a power cut does not undo it.
    pub fn save(&self, state: &State) -> Result<(), StoreError> {
        self.replace(&encode(state)?).inspect_err(|_| {
            // Who asked is told that it failed: it must not be found later.
            let _ = fs::remove_file(self.next());
        })
    }

    fn attached_path(&self) -> PathBuf {
        self.dir.join("attached.json")
    }

    /// What was written down of what is attached; nothing where that cannot be read.
    pub fn attached(&self) -> Attached {
        let bytes = canopy_files::read(&self.attached_path(), LONGEST).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Writes down what is attached. It is not synced: a power cut detaches everything.
    pub fn keep_attached(&self, attached: &Attached) -> Result<(), StoreError> {
        let (path, new) = (self.attached_path(), self.dir.join("attached.json.new"));
        remove(&new)?;
        write_new(&new, &serde_json::to_vec(attached).map_err(StoreError::Encode)?, false)?;
        fs::rename(&new, &path).map_err(|source| StoreError::Io { action: "replace", path, source })
    }

    /// Makes the copy one of the state that was saved last, in a file of its own, before something is
    /// removed without which the state before is worth less. It is not synced: it is for when the file at
    /// hand is damaged, and that one is.
    pub fn keep_copy(&self, state: &State) -> Result<(), StoreError> {
        let (new, copy) = (self.previous_new(), self.previous());
        remove(&new)?;
        write_new(&new, &encode(state)?, false)?;
        fs::rename(&new, &copy).map_err(|source| StoreError::Io {
            action: "replace",
            path: copy,
            source,
        })
    }

    fn replace(&self, bytes: &[u8]) -> Result<(), StoreError> {
        let (current, previous) = (self.current(), self.previous());
        write_new(&self.next(), bytes, true)?;
        // `state.json` is there at every moment: the old one gets a second name first.
        let link = self.previous_new();
        let io =
            |action, path: &Path, source| StoreError::Io { action, path: path.to_owned(), source };
        let linked = fs::hard_link(&current, &link).or_else(|error| {
            // Left over from one that was broken off.
            if error.kind() != io::ErrorKind::AlreadyExists {
                return Err(error);
            }
            fs::remove_file(&link)?;
            fs::hard_link(&current, &link)
        });
        match linked {
            Ok(()) => fs::rename(&link, &previous).map_err(|e| io("replace", &previous, e))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io("link", &link, error)),
        }
        fs::rename(self.next(), &current).map_err(|e| io("replace", &current, e))?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(|e| io("sync", &self.dir, e))
    }
}

/// As it stands in a file.
fn encode(state: &State) -> Result<Vec<u8>, StoreError> {
    let body = serde_json::to_vec(state).map_err(StoreError::Encode)?;
    let format = match (state.trusted_versions.is_empty(), state.is_own_netns()) {
        (true, true) => OWN_NETNS,
        (true, false) => NETNS,
        (false, _) => REPOSITORIES,
    };
    let header = Header { format, sha256: checksum(format, &body) };
    let mut bytes = serde_json::to_vec(&header).map_err(StoreError::Encode)?;
    bytes.push(b'\n');
    bytes.extend_from_slice(&body);
    bytes.push(b'\n');
    Ok(bytes)
}

/// Covers the format as well as the state.
fn checksum(format: u32, body: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(format.to_be_bytes());
    hash.update(body);
    hex::encode(hash.finalize())
}

fn write_new(path: &Path, bytes: &[u8], sync: bool) -> Result<(), StoreError> {
    let write = || {
        let mut file = canopy_files::create(path, 0o600)?;
        file.write_all(bytes)?;
        if sync { file.sync_all() } else { Ok(()) }
    };
    write().map_err(|source| StoreError::Io { action: "write", path: path.to_owned(), source })
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::Io { action: "remove", path: path.to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Renames a damaged file so that it can be looked at and does not stand in the way.
fn set_aside(path: &Path) -> Result<(), StoreError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    match fs::rename(path, &aside) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::Io { action: "set aside", path: path.to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

enum Found {
    Nothing,
    State(Box<State>),
    Damaged(String),
}

fn read(path: &Path) -> Result<Found, StoreError> {
    let bytes = match canopy_files::read(path, LONGEST) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(source) => {
            return Err(StoreError::Io { action: "read", path: path.to_owned(), source });
        }
    };
    let damaged = |what: &str| Ok(Found::Damaged(format!("{}: {what}", path.display())));
    let mut lines = bytes.splitn(2, |byte| *byte == b'\n');
    let (header, rest) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let Ok(header) = serde_json::from_slice::<Header>(header) else {
        return damaged("no header");
    };
    let Some(body) = rest.strip_suffix(b"\n") else { return damaged("cut short") };
    if checksum(header.format, body) != header.sha256 {
        return damaged("the checksum does not match");
    }
    if !(OWN_NETNS..=REPOSITORIES).contains(&header.format) {
        return Err(StoreError::Format { path: path.to_owned(), found: header.format });
    }
    match serde_json::from_slice(body) {
        Ok(state) => Ok(Found::State(Box::new(state))),
        Err(error) => damaged(&error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use canopy_api::HostId;

    fn host() -> HostId {
        "web1".parse().unwrap()
    }

    fn state(generation: u64) -> State {
        State { generation, ..State::new(host()) }
    }

    #[test]
    fn one_loader_a_host() {
        let dir = tempfile::tempdir().unwrap();
        let first = Store::open(dir.path()).unwrap();
        assert!(matches!(Store::open(dir.path()), Err(StoreError::Locked { .. })));
        drop(first);
        Store::open(dir.path()).unwrap();
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o770, 0o707, 0o1777] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            let error = Store::open(dir.path()).unwrap_err();
            assert!(matches!(error, StoreError::Open { .. }), "{error}");
            assert!(error.to_string().contains("chmod 700"), "{error}");
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Store::open(dir.path()).unwrap();
        // Nor one that others could put another one in place of.
        let inner = dir.path().join("state");
        Store::open(&inner).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = Store::open(&inner).unwrap_err();
        assert!(matches!(error, StoreError::Unprotected(_)), "{error}");
        assert!(error.to_string().contains("chmod go-w"), "{error}");
    }

    #[test]
    fn a_pipe_in_place_of_the_state_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for path in [store.current(), store.attached_path(), store.next()] {
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        let error = store.load(&"web1".parse().unwrap()).unwrap_err();
        assert!(crate::error::with_causes(&error).contains("named pipe"), "{error:?}");
        store.attached();
        let error = store.save(&state(1)).unwrap_err();
        assert!(crate::error::with_causes(&error).contains("named pipe"), "{error:?}");
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.load(&host()).unwrap(), Loaded::Fresh);
        store.save(&state(1)).unwrap();
        store.save(&state(2)).unwrap();
        assert_eq!(store.load(&host()).unwrap(), Loaded::Current(state(2)));
    }

    #[test]
    fn a_state_cut_anywhere_falls_back_to_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.save(&state(1)).unwrap();
        store.save(&state(2)).unwrap();
        let whole = fs::read(store.current()).unwrap();
        let before = fs::read(store.previous()).unwrap();
        for length in 0..whole.len() {
            fs::write(store.current(), &whole[..length]).unwrap();
            fs::write(store.previous(), &before).unwrap();
            let loaded = store.load(&host()).unwrap();
            let Loaded::Previous { state: found, .. } = loaded else {
                panic!("cut at {length}: {loaded:?}")
            };
            assert_eq!(found, state(1), "cut at {length}");
        }
    }

    #[test]
    fn a_kept_copy_is_the_state_at_hand_and_not_damaged_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.save(&state(1)).unwrap();
        store.save(&state(2)).unwrap();
        store.keep_copy(&state(2)).unwrap();
        let mode = fs::metadata(store.previous()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        File::options().write(true).open(store.current()).unwrap().set_len(20).unwrap();
        match store.load(&host()).unwrap() {
            Loaded::Previous { state: found, .. } => assert_eq!(found, state(2)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.save(&state(2)).unwrap();
        let whole = fs::read(store.current()).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(store.current(), &bytes).unwrap();
            match store.load(&host()) {
                Ok(Loaded::Lost { .. }) => {}
                other => panic!("bit of byte {at}: {other:?}"),
            }
        }
    }

    #[test]
    fn two_damaged_states_are_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        fs::write(store.current(), b"x").unwrap();
        fs::write(store.previous(), b"y").unwrap();
        assert!(matches!(store.load(&host()).unwrap(), Loaded::Lost { .. }));
        assert!(dir.path().join("state.json.damaged").exists());
        assert!(dir.path().join("state.previous.json.damaged").exists());
        assert_eq!(store.load(&host()).unwrap(), Loaded::Fresh);
    }

    #[test]
    fn one_file_under_both_names_that_is_damaged_leaves_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.save(&state(1)).unwrap();
        store.save(&state(2)).unwrap();
        // As a loader leaves it that dies before the last step of a write.
        fs::rename(store.current(), store.next()).unwrap();
        fs::rename(store.previous(), store.current()).unwrap();
        fs::hard_link(store.current(), store.previous()).unwrap();
        fs::write(store.current(), b"torn").unwrap();
        match store.load(&host()).unwrap() {
            Loaded::Previous { state: found, .. } => assert_eq!(found, state(2)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_write_that_failed_is_not_found_later() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.save(&state(1)).unwrap();
        fs::create_dir(store.previous()).unwrap();
        store.save(&state(2)).unwrap_err();
        assert!(!store.next().exists());
        fs::remove_dir(store.previous()).unwrap();
        assert_eq!(store.load(&host()).unwrap(), Loaded::Current(state(1)));
    }

    #[test]
    fn the_state_of_another_host_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.save(&state(1)).unwrap();
        let other = store.load(&"web2".parse().unwrap());
        assert!(matches!(other, Err(StoreError::OtherHost { .. })), "{other:?}");
    }
}
