//! `package publish`: a directory repository, changed so that a reader always sees a whole one.

use super::{build, keys, open, refused};
use crate::{
    cli::PublishArgs,
    failure::{Exit, Failure},
    files,
    output::Screen,
    progress::Progress,
};
use canopy_api::{Digest, PackageName};
use canopy_package::{
    Index, Limits, SecretKey, TrustedKey,
    archive::Package,
    index::INDEX_LIMIT,
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
};

/// Publishes the files, or signs or makes the index again.
pub fn run(args: &PublishArgs, screen: &mut Screen) -> Result<Exit, Failure> {
    let key = keys::secret_key(&args.key)?;
    let own = key.public().map_err(|error| refused(&args.key.display().to_string(), &error))?;
    let mut trusted = vec![TrustedKey::from(own)];
    for path in &args.trusted_key {
        trusted.push(build::public_key(path)?);
    }
    // Everything is read and checked before anything is locked or written.
    let offers = args
        .files
        .iter()
        .map(|path| Offer::read(path, &key))
        .collect::<Result<Vec<Offer>, Failure>>()?;
    files::make_directory(&args.repository)?;
    let _lock = lock(&args.repository)?;
    let publisher = Publisher { key: &key, now: build::now(), lifetime: args.expires_in.as_secs() };
    let repository = Repository { directory: &args.repository, trusted: &trusted };
    repository.run(args, &publisher, &offers, screen)
}

/// A package file to be published.
struct Offer {
    place: String,
    name: PackageName,
    version: Version,
    digest: Digest,
    bytes: Vec<u8>,
    signature: String,
}

impl Offer {
    fn read(path: &Path, key: &SecretKey) -> Result<Self, Failure> {
        let place = path.display().to_string();
        let (bytes, Package { manifest, .. }) = open(path)?;
        let beside = files::beside(path, ".minisig");
        let signature = if beside.exists() {
            files::read_text(&beside, 1 << 16)?
        } else {
            key.sign_package(&bytes, &manifest.name, &manifest.version)
                .map_err(|error| refused(&place, &error))?
        };
        let digest = Digest::of(&bytes);
        Ok(Self { place, name: manifest.name, version: manifest.version, digest, bytes, signature })
    }
}

struct Repository<'a> {
    directory: &'a Path,
    trusted: &'a [TrustedKey],
}

impl Repository<'_> {
    fn run(
        &self,
        args: &PublishArgs,
        publisher: &Publisher<'_>,
        offers: &[Offer],
        screen: &mut Screen,
    ) -> Result<Exit, Failure> {
        let place = self.directory.display().to_string();
        let mut said = Vec::new();
        let mut writes: Vec<(String, Vec<u8>)> = Vec::new();
        let mut last: Option<Publication> = None;
        if args.rebuild_index {
            let rebuilt = self.rebuild(publisher)?;
            said.push(format!("index made anew: {} versions", rebuilt.index.packages.len()));
            last = Some(rebuilt);
        }
        let mut index = match &last {
            Some(rebuilt) => Some(rebuilt.index.clone()),
            None => self.index()?,
        };
        for offer in offers {
            let Offer { name, version, .. } = offer;
            if self.has(index.as_ref(), offer) {
                said.push(format!("{name} {version} is published already"));
                continue;
            }
            let mut publication = publisher
                .publish(index.as_ref(), &offer.bytes, &offer.signature, self.trusted)
                .map_err(|error| refused(&offer.place, &error))?;
            writes.extend(publication.files.drain(..publication.files.len().min(2)));
            said.push(format!("{name} {version} published, {}", offer.digest));
            index = Some(publication.index.clone());
            last = Some(publication);
        }
        if args.refresh_index && last.is_none() {
            let current = index.as_ref().ok_or_else(|| {
                Failure::new(Exit::NotFound, "there is no index to sign again")
                    .at(self.directory.join(repository::INDEX).display().to_string())
                    .fix("publish a package first, or --rebuild-index")
            })?;
            last = Some(publisher.refresh(current).map_err(|error| refused(&place, &error))?);
            said.push("index signed again".to_owned());
        }
        if let Some(last) = last {
            // The packages, then the index that names them.
            for (path, bytes) in writes.iter().chain(&last.files) {
                self.write(path, bytes)?;
            }
            said.push(format!("{place}: index version {}", last.index.version));
        }
        for line in said {
            screen.print(&(line + "\n"))?;
        }
        Ok(Exit::Done)
    }

    /// The index, if there is one. Its age does not matter to its publisher; who signed it does: an
    /// index somebody else put there must not get our signature.
    fn index(&self) -> Result<Option<Index>, Failure> {
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
        let bytes = files::read_bounded(&path, INDEX_LIMIT)?;
        let beside = self.directory.join(repository::INDEX_SIGNATURE);
        let signature =
            if beside.exists() { files::read_text(&beside, 1 << 16)? } else { String::new() };
        Index::open_to_extend(&bytes, &signature, self.trusted, now).map(Some).map_err(|error| {
            refused(&path.display().to_string(), &error).fix(
                "if the key was changed, name the old one: --trusted-key OLD.pub; \
                 if the index is damaged, make it anew: --rebuild-index",
            )
        })
    }

    /// Whether the same bytes are published, and still there.
    fn has(&self, index: Option<&Index>, offer: &Offer) -> bool {
        let entry = index.and_then(|index| index.entry(&offer.name, &offer.version));
        entry.is_some_and(|entry| {
            let path = self.directory.join(artifact_path(&offer.name, &offer.version));
            !entry.yanked
                && entry.digest == offer.digest
                && files::beside(&path, ".minisig").exists()
                && files::read_bounded(&path, Limits::default().archive_bytes)
                    .is_ok_and(|bytes| entry.check(&bytes).is_ok())
        })
    }

    fn rebuild(&self, publisher: &Publisher<'_>) -> Result<Publication, Failure> {
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
            .rebuild(artifacts, self.trusted, current.as_ref(), last)
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
        for package in list(self.directory)?.iter().filter(|path| path.is_dir()) {
            for version in list(package)?.iter().filter(|path| path.is_dir()) {
                let files = list(version)?;
                found.extend(
                    files.into_iter().filter(|p| p.extension().is_some_and(|e| e == "cpkg")),
                );
            }
        }
        Ok(found)
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.directory.join(path);
        if let Some(parent) = path.parent() {
            files::make_directory(parent)?;
        }
        files::write_atomic(&path, bytes, files::PUBLIC)
    }
}

/// One publisher at a time; the next one waits.
fn lock(directory: &Path) -> Result<Flock<File>, Failure> {
    let path = directory.join(repository::LOCK);
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
