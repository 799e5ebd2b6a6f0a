//! A repository's layout, and what publishing writes. Pure: whoever publishes does the reading
//! and writing, in the order given here.
//!
//! ```text
//! index.signed
//! <name>/<version>/<name>-<version>.cpkg
//! <name>/<version>/<name>-<version>.cpkg.minisig
//! ```
//!
//! A publisher reads `index.signed` (nothing: a new repository), asks for a [`Publication`], and
//! writes its files in order, each whole or not at all. The artifact and its signature come before
//! the index that names them, so that a reader never sees a half-published version. The index is
//! written only in the place of the one that was read: under a lock in a directory, by comparing and
//! swapping in a bucket. Otherwise two publishers would lose each other's work.

use crate::{
    archive::{Limits, Package},
    error::PackageError,
    index::{DEFAULT_LIFETIME_DAYS, Index, IndexEntry, join},
    sign::{SecretKey, TrustedKey, verify_package},
    trusted_versions::RepositoryId,
};
use canopy_api::{Digest, PackageName};
use semver::Version;

/// The index's name.
pub const INDEX: &str = "index.signed";
/// The lock a publisher holds on a directory.
pub const LOCK: &str = ".index.lock";

/// The path of a package file: `firewall/0.1.0/firewall-0.1.0.cpkg`.
pub fn artifact_path(name: &PackageName, version: &Version) -> String {
    format!("{name}/{version}/{name}-{version}.cpkg")
}

/// The path of a package file's signature.
pub fn signature_path(name: &PackageName, version: &Version) -> String {
    format!("{}.minisig", artifact_path(name, version))
}

/// What a publication writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Publication {
    /// Path in the repository and content, in the order to write them.
    pub files: Vec<(String, Vec<u8>)>,
    /// The new index.
    pub index: Index,
}

/// Who publishes, and when.
#[derive(Clone, Copy, Debug)]
pub struct Publisher<'a> {
    /// Signs the index.
    pub key: &'a SecretKey,
    /// The time, seconds since the epoch.
    pub now: u64,
    /// How long the index counts, seconds. See [`DEFAULT_LIFETIME_DAYS`] and
    /// [`MOST_LIFETIME_DAYS`](crate::index::MOST_LIFETIME_DAYS).
    pub lifetime: u64,
}

impl<'a> Publisher<'a> {
    /// With the default lifetime.
    pub fn new(key: &'a SecretKey, now: u64) -> Self {
        Self { key, now, lifetime: DEFAULT_LIFETIME_DAYS * 86_400 }
    }

    /// Adds a package file. `signature` is its `.minisig`; it must verify against `keys` (those
    /// the repository's readers trust; the publisher's own when they are not known).
    pub fn publish(
        &self,
        current: Option<&Index>,
        artifact: &[u8],
        signature: &str,
        keys: &[TrustedKey],
    ) -> Result<Publication, PackageError> {
        let entry = self.check(artifact, signature, keys)?;
        let (name, version) = (entry.name.clone(), entry.version.clone());
        let mut index = current.cloned().unwrap_or_default();
        index.insert(entry)?;
        let mut publication = self.sign(index)?;
        let artifact = [
            (artifact_path(&name, &version), artifact.to_vec()),
            (signature_path(&name, &version), signature.as_bytes().to_vec()),
        ];
        publication.files.splice(0..0, artifact);
        Ok(publication)
    }

    /// Withdraws a version, or brings it back.
    pub fn yank(
        &self,
        current: &Index,
        name: &PackageName,
        version: &Version,
        yanked: bool,
    ) -> Result<Publication, PackageError> {
        let mut index = current.clone();
        let entry = index
            .packages
            .iter_mut()
            .find(|entry| entry.name == *name && entry.version == *version)
            .ok_or_else(|| PackageError::NotPublished {
                name: name.clone(),
                version: version.clone(),
            })?;
        entry.yanked = yanked;
        self.sign(index)
    }

    /// The same index, with a new version and a new expiry.
    pub fn refresh(&self, current: &Index) -> Result<Publication, PackageError> {
        self.sign(current.clone())
    }

    /// The index made anew from every package file and its signature. Its version follows
    /// `last`, the highest known; what `current` says is withdrawn stays so.
    pub fn rebuild<'b>(
        &self,
        artifacts: impl IntoIterator<Item = (&'b [u8], &'b str)>,
        keys: &[TrustedKey],
        current: Option<&Index>,
        last: u64,
    ) -> Result<Publication, PackageError> {
        let repository = current.and_then(|index| index.repository.clone());
        let mut index = Index { version: last, repository, ..Index::default() };
        for (artifact, signature) in artifacts {
            let mut entry = self.check(artifact, signature, keys)?;
            let known = current.and_then(|index| index.entry(&entry.name, &entry.version));
            entry.yanked = known.is_some_and(|known| known.yanked);
            index.insert(entry)?;
        }
        self.sign(index)
    }

    fn check(
        &self,
        artifact: &[u8],
        signature: &str,
        keys: &[TrustedKey],
    ) -> Result<IndexEntry, PackageError> {
        let package = Package::open(artifact, &Limits::default())?;
        package.check_objects().map_err(PackageError::Manifest)?;
        let (name, version) = (package.manifest.name, package.manifest.version);
        let digest = Digest::of(artifact);
        verify_package(artifact, signature, keys, self.now, &name, &version, &digest)?;
        Ok(IndexEntry { name, version, digest, length: artifact.len() as u64, yanked: false })
    }

    fn sign(&self, mut index: Index) -> Result<Publication, PackageError> {
        index.version = index.version.saturating_add(1);
        index.expires = self.now.saturating_add(self.lifetime);
        // What readers would refuse is not signed.
        index.check_bounds(self.now)?;
        if index.repository.is_none() {
            index.repository = Some(RepositoryId::generate()?);
        }
        let (bytes, signature) = index.sign(self.key)?;
        let files = vec![(INDEX.to_owned(), join(&bytes, &signature))];
        Ok(Publication { files, index })
    }
}
