//! Files that only one user may read.

use crate::Secret;
use std::{fs::File, io::Read as _, os::unix::fs::MetadataExt as _, path::Path};
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

/// Reads a file that belongs to this process's user and that nobody else may read or write.
///
/// # Errors
/// When it cannot be read, is too long, or may be used by others: with its path, its mode and the
/// command that mends it.
pub fn read_private(path: &Path) -> Result<Secret, SecretError> {
    let bad = |reason: String, remedy: String| SecretError {
        what: path.display().to_string(),
        reason,
        remedy,
    };
    let unreadable = |error: std::io::Error| {
        bad(error.to_string(), "name a file that this user can read".to_owned())
    };
    let file = File::open(path).map_err(unreadable)?;
    // Of the file that is open: another one may have the name by now.
    let found = file.metadata().map_err(unreadable)?;
    let me = nix::unistd::geteuid().as_raw();
    if found.uid() != me {
        return Err(bad(
            format!("it belongs to user {}, this program runs as {me}", found.uid()),
            format!("chown {me} {}", quoted(path)),
        ));
    }
    if found.mode() & 0o077 != 0 {
        return Err(bad(
            format!("others may use it (mode {:04o})", found.mode() & 0o7777),
            format!("chmod 600 {}", quoted(path)),
        ));
    }
    if found.len() > LONGEST {
        return Err(bad(
            format!("it has {} bytes; a secret has at most {LONGEST}", found.len()),
            "name the file with the secret alone".to_owned(),
        ));
    }
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(found.len()).unwrap_or(0)));
    file.take(LONGEST).read_to_string(&mut text).map_err(unreadable)?;
    Ok(text)
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
    fn what_is_missing_or_too_long_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert!(read_private(&path).unwrap_err().reason.contains("No such file"));
        fs::write(&path, vec![b'x'; 65 * 1024]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(read_private(&path).unwrap_err().reason.contains("bytes"));
    }
}
