//! Files that only one user may read.

use crate::Secret;
use nix::unistd::{Uid, User};
use std::{
    io::{ErrorKind, Read as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
};
use zeroize::Zeroizing;

/// Longest secret, bytes.
const LONGEST: u64 = 64 * 1024;

/// A secret cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct SecretError {
    /// The file, or where else it was to come from.
    pub what: String,
    /// What is wrong with it.
    pub reason: String,
    /// What to do.
    pub remedy: String,
}

/// Who vouches for the permissions of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeper {
    /// Nobody: the file's own mode has to.
    Mode,
    /// The service manager, which hands it over in a directory of the service's own. Since systemd
    /// 254 the file is root's and readable by an access control list, whose mask `stat` shows as the
    /// group's permission (0440).
    ServiceManager,
}

/// Reads a file that belongs to this process's user, or to root, and that nobody else may read or
/// write.
///
/// # Errors
/// When it cannot be read, is too long, or may be used by others: with its path, its owner and mode,
/// the user this process runs as, and the command that corrects it.
pub fn read_private(path: &Path) -> Result<Secret, SecretError> {
    read(path, Keeper::Mode)
}

/// Reads a file that the service manager handed over.
///
/// # Errors
/// As [`read_private`].
pub(crate) fn read_credential(path: &Path) -> Result<Secret, SecretError> {
    read(path, Keeper::ServiceManager)
}

fn read(path: &Path, keeper: Keeper) -> Result<Secret, SecretError> {
    let me = nix::unistd::geteuid();
    let file = canopy_files::open(path).map_err(|error| not_opened(path, &error, me))?;
    // Of the file that is open: another one may have the name by now.
    let found = file.metadata().map_err(|error| unreadable(path, &error))?;
    permitted(path, Uid::from_raw(found.uid()), found.mode(), me, keeper)?;
    if found.len() > LONGEST {
        return Err(SecretError::new(
            path.display().to_string(),
            format!("it has {} bytes; a secret has at most {LONGEST}", found.len()),
            "name the file with the secret alone",
        ));
    }
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(found.len()).unwrap_or(0)));
    file.take(LONGEST).read_to_string(&mut text).map_err(|error| unreadable(path, &error))?;
    Ok(text)
}

/// Whether a file with this owner and mode is a secret of the user `me`. Root knows every file anyway,
/// so that root's files are as good as one's own.
fn permitted(
    path: &Path,
    owner: Uid,
    mode: u32,
    me: Uid,
    keeper: Keeper,
) -> Result<(), SecretError> {
    let bad = |reason: String, remedy: String| {
        Err(SecretError::new(path.display().to_string(), reason, remedy))
    };
    if owner != me && !owner.is_root() {
        let (owner, me) = (name(owner), name(me));
        return bad(
            format!("it belongs to user {owner}, this program runs as {me}"),
            format!(
                "run this program as {}, or give it the file: chown {} {}",
                bare(&owner),
                bare(&me),
                quoted(path)
            ),
        );
    }
    let others = match keeper {
        Keeper::Mode => 0o077,
        Keeper::ServiceManager => 0o037,
    };
    if mode & others != 0 {
        return bad(
            format!("others may use it (mode {:04o})", mode & 0o7777),
            format!("chmod 600 {}", quoted(path)),
        );
    }
    Ok(())
}

/// Why a file could not be opened: of one that another user keeps, whose it is and who asks.
fn not_opened(path: &Path, error: &std::io::Error, me: Uid) -> SecretError {
    if error.kind() != ErrorKind::PermissionDenied {
        return unreadable(path, error);
    }
    // The deepest directory on the way that can be seen at all.
    let Some((place, found)) =
        path.ancestors().find_map(|place| Some((place, place.metadata().ok()?)))
    else {
        return unreadable(path, error);
    };
    let (owner, me) = (name(Uid::from_raw(found.uid())), name(me));
    let mode = found.mode() & 0o7777;
    let what = path.display().to_string();
    if place == path {
        return SecretError::new(
            what,
            format!("it belongs to user {owner} (mode {mode:04o}), this program runs as {me}"),
            format!("as root: chown {} {}", bare(&me), quoted(path)),
        );
    }
    let reason = format!(
        "the directory {} belongs to user {owner} (mode {mode:04o}), this program runs as {me}",
        place.display()
    );
    let remedy = if path.parent() == Some(place) {
        format!("as root: chown -R {} {}", bare(&me), quoted(place))
    } else {
        format!("keep the file in a directory that {} can enter", bare(&me))
    };
    SecretError::new(what, reason, remedy)
}

fn unreadable(path: &Path, error: &std::io::Error) -> SecretError {
    SecretError::new(
        path.display().to_string(),
        error.to_string(),
        "name a file that this user can read",
    )
}

/// A user as people know them: `canopy (998)`; the number alone where there is no name.
fn name(user: Uid) -> String {
    match User::from_uid(user) {
        Ok(Some(known)) => format!("{} ({user})", known.name),
        _ => user.to_string(),
    }
}

/// The first word of [`name`], as `chown` takes it.
fn bare(name: &str) -> &str {
    name.split(' ').next().unwrap_or(name)
}

/// As a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=@:,".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

impl SecretError {
    pub(crate) fn new(
        what: impl Into<String>,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { what: what.into(), reason: reason.into(), remedy: remedy.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt as _};

    #[test]
    fn a_file_that_others_may_use_is_refused_with_the_command_to_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("it's a.key");
        fs::write(&path, "hush").unwrap();
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o677] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = read_private(&path).unwrap_err();
            assert!(error.reason.contains(&format!("{mode:04o}")), "{error}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
            assert!(error.remedy.starts_with("chmod 600 '/"), "{error}");
            // It does what it says.
            let mended =
                std::process::Command::new("sh").arg("-c").arg(&error.remedy).status().unwrap();
            assert!(mended.success());
            assert_eq!(*read_private(&path).unwrap(), "hush");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        assert_eq!(*read_private(&path).unwrap(), "hush");
    }

    #[test]
    fn a_pipe_in_place_of_a_key_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let error = read_private(&path).unwrap_err();
        assert!(error.reason.contains("named pipe"), "{error}");
    }

    #[test]
    fn what_is_missing_or_too_long_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert!(read_private(&path).unwrap_err().reason.contains("No such file"));
        fs::write(&path, vec![b'x'; 65 * 1024]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(read_private(&path).unwrap_err().reason.contains("bytes"));
    }

    #[test]
    fn a_secret_is_its_users_or_roots_and_nobody_elses() {
        let path = Path::new("/etc/canopy/keys/issuer.seed");
        let (root, me, other) = (Uid::from_raw(0), Uid::from_raw(64_998), Uid::from_raw(64_999));
        let permitted = |owner, mode, me, keeper| super::permitted(path, owner, mode, me, keeper);
        for keeper in [Keeper::Mode, Keeper::ServiceManager] {
            for owner in [root, me] {
                permitted(owner, 0o100_600, me, keeper).unwrap();
                permitted(owner, 0o100_400, me, keeper).unwrap();
                permitted(owner, 0o100_604, me, keeper).unwrap_err();
                permitted(owner, 0o100_620, me, keeper).unwrap_err();
                let group = permitted(owner, 0o100_440, me, keeper);
                assert_eq!(group.is_ok(), keeper == Keeper::ServiceManager, "{owner}");
            }
            // Of others not even root takes one.
            for (owner, me) in [(other, me), (other, root)] {
                permitted(owner, 0o100_600, me, keeper).unwrap_err();
            }
        }
        let error = permitted(other, 0o100_600, root, Keeper::Mode).unwrap_err();
        assert_eq!(error.reason, "it belongs to user 64999, this program runs as root (0)");
        assert_eq!(
            error.remedy,
            "run this program as 64999, or give it the file: chown root /etc/canopy/keys/issuer.seed"
        );
    }

    #[test]
    fn a_file_out_of_reach_is_told_with_its_owner_and_the_reader() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let denied = std::io::Error::from(ErrorKind::PermissionDenied);
        let reader = Uid::from_raw(64_998);
        let owner = name(nix::unistd::geteuid());
        // As if the reader had tried: whoever runs the tests can see what the reader would.
        fs::write(&path, "hush").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let error = not_opened(&path, &denied, reader);
        let said = format!("it belongs to user {owner} (mode 0600), this program runs as 64998");
        assert_eq!(error.reason, said);
        assert_eq!(error.remedy, format!("as root: chown 64998 {}", path.display()));

        let hidden = dir.path().join("missing");
        let error = not_opened(&hidden, &denied, reader);
        assert!(error.reason.starts_with(&format!("the directory {}", dir.path().display())));
        assert_eq!(error.remedy, format!("as root: chown -R 64998 {}", dir.path().display()));
        let error = not_opened(&hidden.join("deeper/key"), &denied, reader);
        assert_eq!(error.remedy, "keep the file in a directory that 64998 can enter");
    }
}
