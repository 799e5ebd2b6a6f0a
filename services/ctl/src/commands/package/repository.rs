//! A directory repository on the publisher's side: read, checked and written so that a reader always
//! sees a whole one.

use super::{build, keys, refused};
use crate::{
    cli::RepositoryArgs,
    failure::{Exit, Failure},
    files,
    progress::Progress,
};
use canopy_api::{Digest, PackageName};
use canopy_package::{
    Index, Limits, SecretKey, TrustedKey,
    index::{INDEX_LIMIT, split},
    repository::{self, Publication, Publisher, artifact_path},
};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use semver::Version;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

/// The repository, as its publisher knows it.
pub(super) struct Repository {
    pub(super) directory: PathBuf,
    /// Keys whose signatures its readers trust, the publisher's own first.
    pub(super) trusted: Vec<TrustedKey>,
    lifetime: Duration,
}

impl Repository {
    /// The repository that was named, and the publisher's key.
    pub(super) fn of(args: &RepositoryArgs) -> Result<(Self, SecretKey), Failure> {
        let key = keys::secret_key(&args.key)?;
        let own = key.public().map_err(|error| refused(&args.key.display().to_string(), &error))?;
        let mut trusted = vec![TrustedKey::from(own)];
        for path in &args.trusted_key {
            trusted.push(build::public_key(path)?);
        }
        Ok((Self { directory: args.directory.clone(), trusted, lifetime: args.expires_in }, key))
    }

    pub(super) fn publisher<'a>(&self, key: &'a SecretKey) -> Publisher<'a> {
        Publisher { key, now: build::now(), lifetime: self.lifetime.as_secs() }
    }

    /// One publisher at a time; the next one waits.
    pub(super) fn lock(&self) -> Result<Flock<File>, Failure> {
        let path = self.directory.join(repository::LOCK);
        let fail = |error: Errno| Failure::io("lock", &path, &error.into());
        let file = || {
            File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .map_err(|error| Failure::io("lock", &path, &error))
        };
        match Flock::lock(file()?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(lock),
            Err((file, Errno::EWOULDBLOCK)) => {
                let _progress = Progress::start("waiting for another publisher to finish");
                Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| fail(error))
            }
            Err((_, error)) => Err(fail(error)),
        }
    }

    /// The index, if there is one. Its age does not matter to its publisher; who signed it does: an
    /// index somebody else put there must not get our signature.
    pub(super) fn index(&self) -> Result<Option<Index>, Failure> {
        let now = build::now();
        let path = self.directory.join(repository::INDEX);
        if !path.exists() {
            if self.artifacts()?.is_empty() {
                return Ok(None);
            }
            return Err(Failure::new(
                Exit::Conflict,
                "the repository holds packages, and no index",
            )
            .at(path.display().to_string())
            .fix("restore it, or make it anew: canopy package publish --rebuild-index"));
        }
        let file = files::read_bounded(&path, INDEX_LIMIT + (1 << 16))?;
        let open = || {
            let (bytes, signature) = split(&file)?;
            Index::open_to_extend(bytes, signature, &self.trusted, now)
        };
        open().map(Some).map_err(|error| {
            refused(&path.display().to_string(), &error).fix(
                "if the key was changed, name the old one: --trusted-key OLD.pub; \
                 if the index is damaged, make it anew: --rebuild-index",
            )
        })
    }

    /// Whether the same bytes are published, and still there.
    pub(super) fn has(
        &self,
        index: Option<&Index>,
        name: &PackageName,
        version: &Version,
        digest: &Digest,
    ) -> bool {
        let entry = index.and_then(|index| index.entry(name, version));
        entry.is_some_and(|entry| {
            let path = self.directory.join(artifact_path(name, version));
            !entry.yanked
                && entry.digest == *digest
                && files::beside(&path, ".minisig").exists()
                && files::read_bounded(&path, Limits::default().archive_bytes)
                    .is_ok_and(|bytes| entry.check(&bytes).is_ok())
        })
    }

    pub(super) fn rebuild(&self, publisher: &Publisher<'_>) -> Result<Publication, Failure> {
        let _progress = Progress::start("checking every package of the repository");
        let mut found = Vec::new();
        for path in self.artifacts()? {
            let bytes = files::read_bounded(&path, Limits::default().archive_bytes)?;
            let signature = files::read_text(&files::beside(&path, ".minisig"), 1 << 16)?;
            found.push((bytes, signature));
        }
        let current = self.index().ok().flatten();
        // An index that cannot be trusted cannot say how high its version was. The clock can: one
        // publication a second would be needed to overtake it.
        let last = current.as_ref().map_or(publisher.now, |index| index.version);
        let artifacts = found.iter().map(|(bytes, text)| (bytes.as_slice(), text.as_str()));
        publisher
            .rebuild(artifacts, &self.trusted, current.as_ref(), last)
            .map_err(|error| refused(&self.directory.display().to_string(), &error))
    }

    /// Every `<name>/<version>/*.cpkg`.
    fn artifacts(&self) -> Result<Vec<PathBuf>, Failure> {
        let list = |directory: &Path| -> Result<Vec<PathBuf>, Failure> {
            let entries = fs::read_dir(directory)
                .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
                .map_err(|error| Failure::io("read", directory, &error))?;
            let mut paths: Vec<_> = entries.iter().map(fs::DirEntry::path).collect();
            paths.sort();
            Ok(paths)
        };
        let mut found = Vec::new();
        for package in list(&self.directory)?.iter().filter(|path| path.is_dir()) {
            for version in list(package)?.iter().filter(|path| path.is_dir()) {
                let files = list(version)?;
                found.extend(
                    files.into_iter().filter(|p| p.extension().is_some_and(|e| e == "cpkg")),
                );
            }
        }
        Ok(found)
    }

    pub(super) fn write(&self, path: &str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.directory.join(path);
        if let Some(parent) = path.parent() {
            files::make_directory(parent)?;
        }
        files::write_atomic(&path, bytes, files::PUBLIC)
    }
}
