//! Who else may replace a file: as ssh asks it of `authorized_keys`.

use nix::unistd::{Gid, Group, Uid, User, geteuid};
use std::{
    collections::VecDeque,
    ffi::OsString,
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
    sync::OnceLock,
};

/// Whose files count as one's own, besides root's and those of this process's user.
static ACCEPTED: OnceLock<Accepted> = OnceLock::new();

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accepted {
    Nobody,
    User(Uid),
    Anybody,
}

/// Symbolic links on one path, at most; as the kernel has it.
const LINKS: usize = 40;

/// Somebody else may write a file that is trusted, or put another one in its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct Unprotected {
    /// The file, or the directory on the way to it.
    pub path: PathBuf,
    /// Who may write it.
    pub reason: String,
    /// The command that corrects it.
    pub remedy: String,
}

/// Files and directories of this user count as one's own from now on: for a program that root starts
/// with the configuration of a developer. Once a process; the first counts.
///
/// # Errors
/// When there is no such user.
pub fn accept_owner(name: &str) -> io::Result<()> {
    let user = match name.parse() {
        Ok(number) => Uid::from_raw(number),
        Err(_) => {
            User::from_name(name)?
                .ok_or_else(|| {
                    let said = format!("there is no user \"{name}\" on this machine");
                    io::Error::new(io::ErrorKind::NotFound, said)
                })?
                .uid
        }
    };
    ACCEPTED.get_or_init(|| Accepted::User(user));
    Ok(())
}

/// Whoever owns files and directories, from now on they count as one's own; who may write them still
/// counts. For a program that people run on files they name themselves. Once a process; the first counts.
pub fn accept_any_owner() {
    ACCEPTED.get_or_init(|| Accepted::Anybody);
}

/// That nobody but root, this process's user and the owner that was accepted can write a file or put
/// another one under its name: file, every directory on the way and every symbolic link belong to one of
/// them, and group and others may not write. A directory in which only owners replace their files (the
/// sticky bit, as `/tmp` has it) may be writable; so may what belongs to a group that is its owner's alone.
/// What is not there, or cannot be seen, is for the reader to tell.
///
/// # Errors
/// With the first that is open to others, and the command that closes it.
pub fn check_protected(path: &Path) -> Result<(), Unprotected> {
    let accepted = ACCEPTED.get().copied().unwrap_or(Accepted::Nobody);
    let me = Trusted { me: geteuid(), accepted };
    let Ok(path) = std::path::absolute(path) else { return Ok(()) };
    let mut rest: VecDeque<OsString> = names(&path);
    let mut at = PathBuf::from("/");
    let mut links = 0;
    let Ok(root) = fs::symlink_metadata(&at) else { return Ok(()) };
    me.check(&at, &root)?;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            // Of where it really is: links are followed one by one.
            at.pop();
            continue;
        }
        let next = at.join(name);
        let Ok(found) = fs::symlink_metadata(&next) else { return Ok(()) };
        me.check(&next, &found)?;
        if !found.is_symlink() {
            at = next;
            continue;
        }
        links += 1;
        let Some(target) = fs::read_link(&next).ok().filter(|_| links <= LINKS) else {
            return Ok(());
        };
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        for name in names(&target).into_iter().rev() {
            rest.push_front(name);
        }
    }
    Ok(())
}

/// The names in a path, `..` among them.
fn names(path: &Path) -> VecDeque<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    };
    path.components().filter_map(name).collect()
}

/// Whose files count.
#[derive(Clone, Copy)]
struct Trusted {
    me: Uid,
    accepted: Accepted,
}

impl Trusted {
    fn check(self, path: &Path, found: &Metadata) -> Result<(), Unprotected> {
        let (owner, mode) = (Uid::from_raw(found.uid()), found.mode());
        let bad = |reason: String, remedy: String| {
            Err(Unprotected { path: path.to_owned(), reason, remedy })
        };
        let accepted = match self.accepted {
            Accepted::Nobody => false,
            Accepted::User(user) => owner == user,
            Accepted::Anybody => true,
        };
        if !owner.is_root() && owner != self.me && !accepted {
            let (owner, me) = (name(owner), name(self.me));
            return bad(
                format!("it belongs to user {owner}, who can change what user {me} trusts"),
                format!("as root: chown root {}", quoted(path)),
            );
        }
        // The mode of a link says nothing.
        if found.is_symlink() || found.is_dir() && mode & 0o1000 != 0 {
            return Ok(());
        }
        let group = Gid::from_raw(found.gid());
        let writer = if mode & 0o002 != 0 {
            "everybody"
        } else if mode & 0o020 != 0 && !is_private(group, owner) {
            "its group"
        } else {
            return Ok(());
        };
        bad(
            format!("{writer} may write it (mode {:04o})", mode & 0o7777),
            format!("chmod go-w {}", quoted(path)),
        )
    }
}

/// Whether a group is that of this user alone, as systems make one for each user: of the same name, the
/// user's first one, with nobody else in it.
fn is_private(group: Gid, owner: Uid) -> bool {
    let (Ok(Some(group)), Ok(Some(owner))) = (Group::from_gid(group), User::from_uid(owner)) else {
        return false;
    };
    owner.gid == group.gid
        && owner.name == group.name
        && group.mem.iter().all(|member| *member == owner.name)
}

/// A user as people know them.
fn name(user: Uid) -> String {
    User::from_uid(user).ok().flatten().map_or_else(|| user.to_string(), |known| known.name)
}

/// As a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=@:,".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Runs the command that an error names.
    fn mended(error: &Unprotected) {
        let done = std::process::Command::new("sh").arg("-c").arg(&error.remedy).status().unwrap();
        assert!(done.success(), "{error:?}");
    }

    #[test]
    fn a_trusted_file_others_may_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("it's.json");
        fs::write(&path, "{}").unwrap();
        for bits in [0o602, 0o646, 0o666, 0o777] {
            mode(&path, bits);
            let error = check_protected(&path).unwrap_err();
            assert!(error.reason.contains(&format!("{bits:04o}")), "{error}");
            assert_eq!(error.path, path);
            mended(&error);
            check_protected(&path).unwrap();
        }
        check_protected(&dir.path().join("missing.json")).unwrap();
    }

    #[test]
    fn every_directory_on_the_way_to_it_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("a/b"));
        fs::create_dir_all(&b).unwrap();
        let path = b.join("config.json");
        fs::write(&path, "{}").unwrap();
        for place in [&a, &b] {
            mode(place, 0o777);
            let error = check_protected(&path).unwrap_err();
            assert_eq!(&error.path, place);
            mended(&error);
            // Only its owner replaces a file there.
            mode(place, 0o1777);
            check_protected(&path).unwrap();
            mode(place, 0o755);
        }
        // A link is as good as the directories on its way, and those on the way to where it leads.
        let (open, safe) = (dir.path().join("open"), dir.path().join("safe"));
        fs::create_dir(&open).unwrap();
        fs::create_dir(&safe).unwrap();
        symlink("../a/b/config.json", safe.join("config.json")).unwrap();
        check_protected(&safe.join("config.json")).unwrap();
        symlink(safe.join("config.json"), open.join("config.json")).unwrap();
        mode(&open, 0o777);
        assert_eq!(check_protected(&open.join("config.json")).unwrap_err().path, open);
        check_protected(&open.join("../safe/config.json")).unwrap_err();
        mode(&open, 0o755);
        symlink(open.join("config.json"), safe.join("twice.json")).unwrap();
        check_protected(&safe.join("twice.json")).unwrap();
        mode(&open, 0o777);
        assert_eq!(check_protected(&safe.join("twice.json")).unwrap_err().path, open);
        // A circle has an end.
        symlink("circle", safe.join("circle")).unwrap();
        check_protected(&safe.join("circle")).unwrap();
    }

    #[test]
    fn what_belongs_to_somebody_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, "{}").unwrap();
        mode(&path, 0o644);
        let found = fs::metadata(&path).unwrap();
        let owner = Uid::from_raw(found.uid());
        let (me, other) = (Uid::from_raw(64_998), Uid::from_raw(64_999));
        let check = |me, accepted| Trusted { me, accepted }.check(&path, &found);
        check(owner, Accepted::Nobody).unwrap();
        check(me, Accepted::User(owner)).unwrap();
        check(me, Accepted::Anybody).unwrap();
        // Root's is everybody's; of whoever else runs the tests it is not.
        assert_eq!(check(me, Accepted::User(other)).is_ok(), owner.is_root());
        if geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(64_999), None).unwrap();
            let error = check_protected(&path).unwrap_err();
            assert!(error.reason.contains("64999") && error.remedy.contains("chown root"));
        }
    }

    #[test]
    fn a_group_counts_unless_it_is_the_owners_alone() {
        let root = User::from_uid(Uid::from_raw(0)).unwrap().unwrap();
        assert!(is_private(root.gid, root.uid));
        assert!(!is_private(Gid::from_raw(64_999), root.uid), "of a group without a name");
        assert!(!is_private(Gid::from_raw(1), root.uid), "of the group `daemon`");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, "{}").unwrap();
        mode(&path, 0o664);
        if geteuid().is_root() {
            check_protected(&path).unwrap();
            std::os::unix::fs::chown(&path, None, Some(64_999)).unwrap();
            let error = check_protected(&path).unwrap_err();
            assert!(error.reason.starts_with("its group"), "{error}");
            mended(&error);
            check_protected(&path).unwrap();
        }
    }
}
