//! Regular files only: opening a named pipe waits for its other end, a device may do anything, and both
//! may have no end.

use nix::fcntl::OFlag;
use std::{
    fs::{self, File, FileType, OpenOptions},
    io::{self, ErrorKind, Read},
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    path::Path,
};

/// Opens a regular file for reading. Never waits for whoever has the other end of a pipe, or holds a
/// lease on the file; reads of what only looks like a regular file (`/proc/kmsg`) do not wait either.
///
/// # Errors
/// When it cannot be opened, or is anything but a regular file: the error says what it is.
pub fn open(path: &Path) -> io::Result<File> {
    // First by name, because opening alone does something to a device.
    regular(fs::metadata(path)?.file_type())?;
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    // Then of the file that is open: another one may have the name by now.
    regular(file.metadata()?.file_type())?;
    Ok(file)
}

/// Opens, or makes, a regular file to be locked. A symbolic link is not followed: it could name any file
/// of this user.
///
/// # Errors
/// As [`open`].
pub fn open_lock(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_NOFOLLOW;
    match fs::symlink_metadata(path) {
        Ok(found) => regular(found.file_type())?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .custom_flags(flags.bits())
        .open(path)?;
    regular(file.metadata()?.file_type())?;
    Ok(file)
}

/// Makes, or empties, a regular file to be written, with this mode where it is new. Never waits for whoever
/// reads a pipe, and follows no symbolic link.
///
/// # Errors
/// As [`open`].
pub fn create(path: &Path, mode: u32) -> io::Result<File> {
    match fs::symlink_metadata(path) {
        Ok(found) => regular(found.file_type())?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_NOFOLLOW;
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(mode)
        .custom_flags(flags.bits())
        .open(path)?;
    regular(file.metadata()?.file_type())?;
    Ok(file)
}

/// The whole regular file, if it is no longer than `limit` bytes.
///
/// # Errors
/// As [`open`]; with [`ErrorKind::FileTooLarge`] where it is longer.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let length = file.metadata()?.len();
    if length > limit {
        return Err(too_large(limit));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    read_to_limit(file, limit, &mut bytes)?;
    Ok(bytes)
}

/// As [`read`], as text.
///
/// # Errors
/// As [`read`]; with [`ErrorKind::InvalidData`] where it is not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    String::from_utf8(read(path, limit)?)
        .map_err(|_| io::Error::new(ErrorKind::InvalidData, "it is not text in UTF-8"))
}

/// Everything that a reader gives, if it is no more than `limit` bytes. What a file said about its length
/// is not believed: it may grow.
///
/// # Errors
/// The reader's; with [`ErrorKind::FileTooLarge`] where there is more.
pub fn read_to_limit(from: impl Read, limit: u64, into: &mut Vec<u8>) -> io::Result<()> {
    let read = from.take(limit.saturating_add(1)).read_to_end(into)?;
    if read as u64 > limit { Err(too_large(limit)) } else { Ok(()) }
}

fn too_large(limit: u64) -> io::Error {
    io::Error::new(ErrorKind::FileTooLarge, format!("it has more than {limit} bytes"))
}

fn regular(kind: FileType) -> io::Result<()> {
    let found = if kind.is_file() {
        return Ok(());
    } else if kind.is_dir() {
        return Err(io::Error::new(ErrorKind::IsADirectory, "it is a directory, not a file"));
    } else if kind.is_fifo() {
        "a named pipe"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_char_device() || kind.is_block_device() {
        "a device"
    } else {
        "a symbolic link"
    };
    let said = format!("it is {found}; only regular files are read");
    Err(io::Error::new(ErrorKind::InvalidInput, said))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use std::{
        os::unix::{fs::symlink, net::UnixListener},
        sync::mpsc,
        thread,
        time::Duration,
    };

    /// What becomes of it within a second; a reader that waits fails the test, not the whole run.
    fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, wait) = mpsc::channel();
        thread::spawn(move || done.send(work()));
        wait.recv_timeout(Duration::from_secs(5)).expect("it waits")
    }

    #[test]
    fn only_regular_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        nix::unistd::mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        fs::create_dir(at("dir")).unwrap();
        fs::write(at("file"), "text").unwrap();
        for (name, target) in
            [("to-fifo", at("fifo")), ("to-null", "/dev/zero".into()), ("to-file", at("file"))]
        {
            symlink(target, at(name)).unwrap();
        }
        for (name, said) in [
            ("fifo", "named pipe"),
            ("to-fifo", "named pipe"),
            ("socket", "socket"),
            ("to-null", "device"),
            ("dir", "directory"),
        ] {
            let (path, lock) = (at(name), at(name));
            let error = in_time(move || read(&path, 100)).unwrap_err();
            assert!(error.to_string().contains(said), "{name}: {error}");
            in_time(move || open_lock(&lock)).unwrap_err();
            let made = at(name);
            in_time(move || create(&made, 0o600)).unwrap_err();
        }
        assert_eq!(read(&at("to-file"), 4).unwrap(), b"text");
        // A link to where it may lead is not locked, and nothing is made there.
        open_lock(&at("to-file")).unwrap_err();
        symlink(at("nothing"), at("dangling")).unwrap();
        open_lock(&at("dangling")).unwrap_err();
        create(&at("dangling"), 0o600).unwrap_err();
        assert!(!at("nothing").exists());
        open_lock(&at("lock")).unwrap();
        open_lock(&at("lock")).unwrap();
    }

    #[test]
    fn a_file_longer_than_its_limit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "text").unwrap();
        assert_eq!(read(&path, 3).unwrap_err().kind(), ErrorKind::FileTooLarge);
        // Says that it has no bytes at all.
        assert_eq!(
            read(Path::new("/proc/self/maps"), 3).unwrap_err().kind(),
            ErrorKind::FileTooLarge
        );
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(read(&path, 1 << 20).unwrap_err().kind(), ErrorKind::FileTooLarge);
        fs::write(&path, [0xff]).unwrap();
        assert_eq!(read_text(&path, 9).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
