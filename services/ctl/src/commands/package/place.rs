//! Where a repository is, for its publisher: a directory, locked while it is changed; a bucket, whose
//! index is compared and swapped; or behind the registry, which does either for whoever may publish.

use super::registry::Registry;
use crate::{
    cli::ConnectionArgs,
    failure::{Exit, Failure},
    files,
    progress::Progress,
};
use canopy_api::{Digest, Problems, document};
use canopy_package::{
    Limits,
    index::INDEX_LIMIT,
    repository::{INDEX, LOCK},
};
use canopy_store::{Credentials, Location, Seen, Store, StoreConfig, StoreError};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::runtime::Runtime;

/// How long one file may take on its way to a bucket or from it.
const LIMIT: Duration = Duration::from_mins(1);

/// Most package files a bucket is searched for.
const MOST: usize = 200_000;

/// Longest signature file, bytes.
const SIGNATURE_LIMIT: usize = 1 << 16;

/// A repository's place.
pub(super) enum Place {
    Directory(PathBuf),
    Bucket(Box<Bucket>),
    Registry(Box<Registry>),
}

/// A bucket, and what waits for its answers.
pub(super) struct Bucket {
    url: String,
    store: Store,
    runtime: Runtime,
}

/// The index as it was found.
pub(super) struct Found {
    pub(super) file: Vec<u8>,
    seen: Option<Seen>,
}

impl Place {
    /// What was written behind `--repository`: a directory's path, a URL, or a name of the registry's.
    /// `store` says how a bucket is reached; one of the registry's is reached
    /// over the bus that `connection` leads to.
    pub(super) fn of(
        text: &str,
        store: Option<&Path>,
        connection: &ConnectionArgs,
    ) -> Result<Self, Failure> {
        if let Some(name) = text.strip_prefix("registry:") {
            return Registry::connect(name, connection).map(|one| Self::Registry(Box::new(one)));
        }
        let invalid = |message: String, fix: &str| {
            Err(Failure::new(Exit::Invalid, message).at("--repository").fix(fix))
        };
        let location = if text.contains("://") {
            match Location::parse(text) {
                Ok(location) => location,
                Err(bad) => return invalid(bad.message, bad.remedy),
            }
        } else {
            Location::Directory(text.into())
        };
        if matches!(location, Location::Web(_)) {
            return invalid(
                "nothing can be published through a web server".to_owned(),
                "publish to the directory it serves, or to a bucket",
            );
        }
        let config = match store {
            Some(file) => read_config(file)?,
            // A person has what the provider's own tools use.
            None if !location.is_directory() => {
                StoreConfig { credentials: Credentials::Environment, ..StoreConfig::default() }
            }
            None => StoreConfig::default(),
        };
        let mut problems = Problems::default();
        config.check(&location, "", &mut problems);
        if !problems.0.is_empty() {
            let file =
                store.map_or_else(|| "--repository".into(), |path| path.display().to_string());
            return Err(Failure::in_file(&file, problems));
        }
        match location {
            Location::Directory(path) => Ok(Self::Directory(path)),
            location => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.map_err(|error| {
                    Failure::new(Exit::Failed, format!("cannot start: {error}"))
                })?;
                let store = Store::new(location, config, LIMIT);
                Ok(Self::Bucket(Box::new(Bucket { url: text.to_owned(), store, runtime })))
            }
        }
    }

    /// Whether others may be writing at this moment.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self, Self::Bucket(_))
    }

    /// Whether its package files cannot be read from here.
    pub(super) fn is_remote(&self) -> bool {
        matches!(self, Self::Registry(_))
    }

    /// That its package files can be read, to make the index of them.
    pub(super) fn rebuildable(&self) -> Result<(), Failure> {
        if self.is_remote() {
            return Err(Failure::new(
                Exit::Unsupported,
                "the index is made anew from the package files, which are not read over the bus",
            )
            .at("--rebuild-index")
            .fix("name the directory or the bucket of the repository"));
        }
        Ok(())
    }

    /// Its name, for people.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Directory(path) => path.display().to_string(),
            Self::Bucket(bucket) => bucket.url.clone(),
            Self::Registry(registry) => registry.name(),
        }
    }

    /// A file of it, for people.
    pub(super) fn at(&self, path: &str) -> String {
        match self {
            Self::Directory(directory) => directory.join(path).display().to_string(),
            Self::Bucket(bucket) => format!("{}/{path}", bucket.url.trim_end_matches('/')),
            Self::Registry(registry) => format!("{}: {path}", registry.name()),
        }
    }

    /// Makes the directory.
    pub(super) fn make(&self) -> Result<(), Failure> {
        match self {
            Self::Directory(path) => files::make_directory(path),
            Self::Bucket(_) | Self::Registry(_) => Ok(()),
        }
    }

    /// In a directory one publisher at a time; the next one waits. In a bucket nobody waits:
    /// [`Self::swap_index`] finds out who came first.
    pub(super) fn lock(&self) -> Result<Option<Flock<File>>, Failure> {
        let Self::Directory(directory) = self else { return Ok(None) };
        let path = directory.join(LOCK);
        let fail = |error: Errno| Failure::io("lock", &path, &error.into());
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|error| Failure::io("lock", &path, &error))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((file, Errno::EWOULDBLOCK)) => {
                let _progress = Progress::start("waiting for another publisher to finish");
                Flock::lock(file, FlockArg::LockExclusive)
                    .map(Some)
                    .map_err(|(_, error)| fail(error))
            }
            Err((_, error)) => Err(fail(error)),
        }
    }

    /// The index's file, if there is one.
    pub(super) fn index(&self) -> Result<Option<Found>, Failure> {
        let limit = INDEX_LIMIT + SIGNATURE_LIMIT;
        match self {
            Self::Directory(directory) => {
                let path = directory.join(INDEX);
                if !path.exists() {
                    return Ok(None);
                }
                Ok(Some(Found { file: files::read_bounded(&path, limit)?, seen: None }))
            }
            Self::Bucket(bucket) => {
                let seen = bucket.wait(INDEX, bucket.store.look(INDEX, limit as u64))?;
                Ok(seen.map(|seen| Found { file: seen.bytes.to_vec(), seen: Some(seen) }))
            }
            Self::Registry(registry) => {
                Ok(registry.index()?.map(|file| Found { file, seen: None }))
            }
        }
    }

    /// Writes the index where `found` was. False when somebody else did by now.
    pub(super) fn swap_index(&self, file: Vec<u8>, found: Option<&Found>) -> Result<bool, Failure> {
        match self {
            // Nobody else could: the directory is locked.
            Self::Directory(_) => self.write(INDEX, file).map(|()| true),
            Self::Bucket(bucket) => {
                let seen = found.and_then(|found| found.seen.as_ref());
                bucket.wait(INDEX, bucket.store.replace(INDEX, file, seen))
            }
            Self::Registry(registry) => {
                registry.publish(&file, found.map(|found| found.file.as_slice()))
            }
        }
    }

    /// Writes a package file. In a bucket another publisher may be writing under the same version: the
    /// first one stays, unless the index `names` this one.
    pub(super) fn write_package(
        &self,
        path: &str,
        bytes: Vec<u8>,
        names: bool,
    ) -> Result<(), Failure> {
        let bucket = match self {
            Self::Bucket(bucket) => bucket,
            Self::Directory(_) | Self::Registry(_) => return self.write(path, bytes),
        };
        if names {
            return self.write(path, bytes);
        }
        let digest = Digest::of(&bytes);
        if bucket.wait(path, bucket.store.replace(path, bytes, None))? {
            return Ok(());
        }
        match self.read(path, Limits::default().archive_bytes)? {
            Some(there) if Digest::of(&there) == digest => Ok(()),
            _ => Err(Failure::new(
                Exit::Conflict,
                "another file is there under this version, and the index does not name it yet",
            )
            .at(self.at(path))
            .fix(
                "somebody is publishing the version, or was broken off: raise yours, or remove the \
                 file if nobody is at it",
            )),
        }
    }

    /// Writes a file, whatever was there.
    pub(super) fn write(&self, path: &str, bytes: Vec<u8>) -> Result<(), Failure> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(path);
                if let Some(parent) = path.parent() {
                    files::make_directory(parent)?;
                }
                files::write_atomic(&path, &bytes, files::PUBLIC)
            }
            Self::Bucket(bucket) => bucket.wait(path, bucket.store.write(path, bytes)),
            // It goes with the index.
            Self::Registry(registry) => {
                registry.keep(path, bytes);
                Ok(())
            }
        }
    }

    /// A file's content; `None` when there is no such file.
    pub(super) fn read(&self, path: &str, limit: usize) -> Result<Option<Vec<u8>>, Failure> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(path);
                if path.exists() { files::read_bounded(&path, limit).map(Some) } else { Ok(None) }
            }
            Self::Bucket(bucket) => {
                let seen = bucket.wait(path, bucket.store.look(path, limit as u64))?;
                Ok(seen.map(|seen| seen.bytes.to_vec()))
            }
            Self::Registry(_) => Ok(None),
        }
    }

    /// The text of a package's signature; empty when there is none.
    pub(super) fn signature(&self, artifact: &str) -> Result<String, Failure> {
        let path = format!("{artifact}.minisig");
        let bytes = self.read(&path, SIGNATURE_LIMIT)?.unwrap_or_default();
        String::from_utf8(bytes)
            .map_err(|_| Failure::new(Exit::Invalid, "not UTF-8 text").at(self.at(&path)))
    }

    /// The path of every `<name>/<version>/*.cpkg`, sorted.
    pub(super) fn artifacts(&self) -> Result<Vec<String>, Failure> {
        let mut found = match self {
            Self::Directory(directory) => list(directory)?,
            Self::Bucket(bucket) => {
                bucket.wait("the list of packages", bucket.store.list(".cpkg", MOST))?
            }
            Self::Registry(_) => Vec::new(),
        };
        found.retain(|path| path.split('/').count() == 3);
        found.sort();
        Ok(found)
    }
}

impl Bucket {
    fn wait<T>(
        &self,
        path: &str,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, Failure> {
        self.runtime.block_on(work).map_err(|error| {
            let failure =
                |exit| Failure::new(exit, error.to_string()).at(format!("{}: {path}", self.url));
            match &error {
                StoreError::Credentials { remedy, .. } => failure(Exit::Denied).fix(remedy.clone()),
                StoreError::NotFound { .. } => failure(Exit::NotFound),
                StoreError::TooLarge { .. } => failure(Exit::Invalid)
                    .fix("look at the repository: the file is not one of ours"),
                StoreError::TimedOut { .. }
                | StoreError::Hung { .. }
                | StoreError::Failed { .. }
                | StoreError::Unwritten { .. } => failure(Exit::Unavailable)
                    .fix("see whether you can reach and write the bucket: --store names the way"),
            }
        })
    }
}

fn read_config(file: &Path) -> Result<StoreConfig, Failure> {
    let text = files::read_text(file, 1 << 16)?;
    document::load(&text, document::Format::Json)
        .map_err(|problems| Failure::in_file(&file.display().to_string(), problems))
}

/// Every `<name>/<version>/*.cpkg` of a directory.
fn list(root: &Path) -> Result<Vec<String>, Failure> {
    let entries = |directory: &Path| -> Result<Vec<PathBuf>, Failure> {
        fs::read_dir(directory)
            .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
            .map(|entries| entries.iter().map(fs::DirEntry::path).collect())
            .map_err(|error| Failure::io("read", directory, &error))
    };
    let mut found = Vec::new();
    for package in entries(root)?.iter().filter(|path| path.is_dir()) {
        for version in entries(package)?.iter().filter(|path| path.is_dir()) {
            for file in entries(version)? {
                if file.extension().is_some_and(|extension| extension == "cpkg") {
                    let path = file.strip_prefix(root).unwrap_or(&file);
                    found.push(path.to_string_lossy().into_owned());
                }
            }
        }
    }
    Ok(found)
}
