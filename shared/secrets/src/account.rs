//! Whose secrets are: what root does for the user that a service runs as.

use crate::SecretError;
use nix::unistd::{
    Gid, Uid, User, fchown, getegid, geteuid, getgroups, setegid, seteuid, setgroups,
};
use std::{
    fmt,
    fs::File,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// A user of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    user: Uid,
    group: Gid,
    name: Option<String>,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => name.fmt(f),
            None => self.user.fmt(f),
        }
    }
}

impl Account {
    /// The user of this name or number.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(name: &str) -> Result<Self, SecretError> {
        let found = match name.parse() {
            Ok(number) => User::from_uid(Uid::from_raw(number)),
            Err(_) => User::from_name(name),
        };
        match found {
            Ok(Some(user)) => Ok(Self { user: user.uid, group: user.gid, name: Some(user.name) }),
            Ok(None) => Err(SecretError::new(
                name,
                "there is no such user on this machine",
                format!(
                    "useradd --system --home-dir /nonexistent --shell /usr/sbin/nologin {name}"
                ),
            )),
            Err(error) => {
                Err(SecretError::new(name, error.to_string(), "see whether users can be looked up"))
            }
        }
    }

    /// The owner of a file or directory.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn owner_of(path: &Path) -> std::io::Result<Self> {
        let found = path.metadata()?;
        let (user, group) = (Uid::from_raw(found.uid()), Gid::from_raw(found.gid()));
        let name = User::from_uid(user).ok().flatten().map(|user| user.name);
        Ok(Self { user, group, name })
    }

    /// Whether this process runs as this user.
    pub fn is_this_process(&self) -> bool {
        self.user == geteuid()
    }

    /// Makes a file this user's.
    ///
    /// # Errors
    /// When this process may not: only root may give files away.
    pub fn give(&self, file: &File) -> std::io::Result<()> {
        Ok(fchown(file, Some(self.user), Some(self.group))?)
    }

    /// Does work with the rights of this user: files are read and written as it may. Only root can; work
    /// of this process's own user is done as it is. For programs with one thread: the rights are the
    /// process's.
    ///
    /// # Errors
    /// When the rights cannot be changed.
    pub fn act<T>(&self, work: impl FnOnce() -> T) -> std::io::Result<T> {
        if self.is_this_process() {
            return Ok(work());
        }
        let before = Rights { user: geteuid(), group: getegid(), groups: getgroups()? };
        setgroups(&[self.group])?;
        // From here on they are given back, whatever happens.
        let _before = before;
        setegid(self.group)?;
        seteuid(self.user)?;
        Ok(work())
    }
}

/// Rights that are taken up again when this is dropped.
struct Rights {
    user: Uid,
    group: Gid,
    groups: Vec<Gid>,
}

impl Drop for Rights {
    fn drop(&mut self) {
        // Root may take them up again, and only root gave them up.
        let _ = seteuid(self.user);
        let _ = setegid(self.group);
        let _ = setgroups(&self.groups);
    }
}

/// Whether this process runs as root, who alone may give files away and act as others.
pub fn is_root() -> bool {
    geteuid().is_root()
}

/// Makes a new file the user's whose directory it is in, where root made it: root's commands write what
/// another user's service reads.
///
/// # Errors
/// When the directory cannot be looked at, or the file not given away.
pub fn inherit(file: &File, path: &Path) -> std::io::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let owner = Account::owner_of(&directory(path))?;
    if owner.is_this_process() { Ok(()) } else { owner.give(file) }
}

/// The directory a path is in.
fn directory(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new(".")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn accounts_are_found_by_name_number_and_file() {
        let root = Account::named("root").unwrap();
        assert_eq!(root, Account::named("0").unwrap());
        assert_eq!(root.to_string(), "root");
        let error = Account::named("no-such-user-at-all").unwrap_err();
        assert!(error.remedy.starts_with("useradd --system"), "{error:?}");
        let dir = tempfile::tempdir().unwrap();
        assert!(Account::owner_of(dir.path()).unwrap().is_this_process());
        assert_eq!(directory(Path::new("key")), Path::new("."));
        assert_eq!(directory(Path::new("a/key")), Path::new("a"));
    }

    #[test]
    fn a_new_file_in_ones_own_directory_stays_ones_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let file = File::create(&path).unwrap();
        inherit(&file, &path).unwrap();
        let me = Account::owner_of(&path).unwrap();
        assert!(me.is_this_process());
        assert_eq!(me.act(|| fs::read(&path).unwrap()).unwrap(), b"");
    }
}
