//! Files, written so that a reader never sees half of one.

use crate::failure::Failure;
use nix::sys::stat::Mode;
use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// Everybody may read.
pub const PUBLIC: Mode = Mode::from_bits_truncate(0o644);
/// Only the owner may read.
pub const SECRET: Mode = Mode::from_bits_truncate(0o600);

/// At most `limit` + 1 bytes of a file: enough for whoever checks the limit to see it is passed. A pipe is
/// read where the shell made it (`<(…)`), and nowhere else: others may have put one into a directory of
/// packages, and nobody would ever write to it.
pub fn read_bounded(path: &Path, limit: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let of_the_shell =
        ["/dev/fd", "/dev/stdin", "/proc/self/fd"].iter().any(|at| path.starts_with(at));
    let opened = if of_the_shell { File::open(path) } else { canopy_files::open(path) };
    opened
        .and_then(|file| file.take(limit as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| Failure::io("read", path, &error))?;
    Ok(bytes)
}

/// Text of a file, bounded.
pub fn read_text(path: &Path, limit: usize) -> Result<String, Failure> {
    let bytes = read_bounded(path, limit)?;
    let invalid = |message: String| {
        Failure::new(crate::failure::Exit::Invalid, message).at(path.display().to_string())
    };
    if bytes.len() > limit {
        return Err(invalid(format!("larger than {limit} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| invalid("not UTF-8 text".to_owned()))
}

/// Replaces a file in one step, on disk before it is named: a crash leaves the old one or the new.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: Mode) -> Result<(), Failure> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = path.with_file_name(name);
    let outcome = write_new(&temporary, bytes, mode).and_then(|()| fs::rename(&temporary, path));
    let synced = outcome.and_then(|()| {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    });
    synced.map_err(|error| {
        let _ = fs::remove_file(&temporary);
        Failure::io("write", path, &error)
    })
}

/// Writes a file that must not be there yet. What root writes into another user's directory is that
/// user's: a service's, for example.
pub fn write_new(path: &Path, bytes: &[u8], mode: Mode) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode.bits()).open(path)?;
    canopy_secrets::inherit(&file, path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes a directory and its parents.
pub fn make_directory(path: &Path) -> Result<(), Failure> {
    fs::create_dir_all(path).map_err(|error| Failure::io("make the directory", path, &error))
}

/// The same path with something added to its name: `a.cpkg` to `a.cpkg.minisig`.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret.key");
        write_atomic(&path, b"one", SECRET).unwrap();
        write_atomic(&path, b"two", SECRET).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn reading_stops_after_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big");
        fs::write(&path, [b'x'; 100]).unwrap();
        assert_eq!(read_bounded(&path, 10).unwrap().len(), 11);
        assert!(read_text(&path, 10).is_err());
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, SECRET).unwrap();
        let said = read_bounded(&pipe, 10).unwrap_err().render("error");
        assert!(said.contains("named pipe"), "{said}");
    }
}
