//! Whether a directory can be written to, found out without writing.

use nix::unistd::{AccessFlags, eaccess};
use std::{
    fs,
    io::{self, ErrorKind},
    path::Path,
};

/// Whether this process, with the rights that it has now, can make files in this directory. One that does not
/// exist counts as what it would be made in.
///
/// # Errors
/// Why not.
pub fn check_writable_directory(path: &Path) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    for place in path.ancestors() {
        match fs::metadata(place) {
            Ok(found) if !found.is_dir() => {
                let message = format!("{} is not a directory", place.display());
                return Err(io::Error::new(ErrorKind::NotADirectory, message));
            }
            Ok(_) => {
                let access = AccessFlags::W_OK | AccessFlags::X_OK;
                return eaccess(place, access).map_err(|error| {
                    let error = io::Error::from(error);
                    if place == path {
                        return error;
                    }
                    io::Error::new(error.kind(), format!("{}: {error}", place.display()))
                });
            }
            // Below a file: the file is found next.
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_judged_and_not_made() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_writable_directory(dir.path()).is_ok());
        let below = dir.path().join("a/b");
        assert!(check_writable_directory(&below).is_ok());
        assert!(!dir.path().join("a").exists());
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [file.clone(), file.join("a")] {
            let error = check_writable_directory(&path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotADirectory, "{error}");
            assert!(error.to_string().ends_with("file is not a directory"), "{error}");
        }
        let error = check_writable_directory(Path::new("/proc/sys/x")).unwrap_err();
        assert!(error.to_string().starts_with("/proc/sys: "), "{error}");
    }
}
