//! Reading in a directory of this machine: regular files only, and nothing on a thread that others wait
//! for.

use crate::StoreError;
use bytes::Bytes;
use std::{
    fs::{self, Metadata},
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// A file of a directory, for one piece of work on a thread that may block.
#[derive(Debug)]
pub(crate) struct Entry {
    root: PathBuf,
    file: PathBuf,
    /// Path in the repository.
    path: String,
}

impl Entry {
    /// `path` was checked: it leads nowhere else than below the directory.
    pub(crate) fn new(root: &Path, path: &object_store::path::Path) -> Self {
        let mut file = root.to_owned();
        file.extend(path.parts().map(|part| part.as_ref().to_owned()));
        Self { root: root.to_owned(), file, path: path.to_string() }
    }

    /// What changes whenever the file does.
    pub(crate) fn tag(&self) -> Result<String, StoreError> {
        let open = || canopy_files::open(&self.file)?.metadata();
        open().map(|found| tag(&found)).map_err(|error| self.failed(&error))
    }

    /// The whole file and its tag.
    pub(crate) fn read(&self, limit: u64) -> Result<(Bytes, String), StoreError> {
        let read = || -> io::Result<_> {
            let file = canopy_files::open(&self.file)?;
            let found = file.metadata()?;
            if found.len() > limit {
                return Err(ErrorKind::FileTooLarge.into());
            }
            let mut bytes = Vec::with_capacity(usize::try_from(found.len()).unwrap_or(0));
            canopy_files::read_to_limit(file, limit, &mut bytes)?;
            Ok((Bytes::from(bytes), tag(&found)))
        };
        read().map_err(|error| match error.kind() {
            ErrorKind::FileTooLarge => StoreError::TooLarge { path: self.path.clone(), limit },
            _ => self.failed(&error),
        })
    }

    fn failed(&self, error: &io::Error) -> StoreError {
        let path = self.path.clone();
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory => {
                // Of a directory that is gone nobody knows what was in it.
                let root = |reason: String| StoreError::Failed {
                    path: self.root.display().to_string(),
                    reason,
                };
                match fs::metadata(&self.root) {
                    Ok(found) if found.is_dir() => StoreError::NotFound { path },
                    Ok(_) => root("it is not a directory".to_owned()),
                    Err(error) => root(error.to_string()),
                }
            }
            _ => StoreError::Failed { path, reason: error.to_string() },
        }
    }
}

/// By number, times and length: who restores the time of a change does not restore that of the inode.
fn tag(found: &Metadata) -> String {
    format!(
        "{:x}-{:x}.{:x}-{:x}.{:x}-{:x}",
        found.ino(),
        found.mtime(),
        found.mtime_nsec(),
        found.ctime(),
        found.ctime_nsec(),
        found.len()
    )
}
