//! Packages on this host, by digest, so that a restart needs neither bus nor registry.

use canopy_api::Digest;
use canopy_package::{Limits, Package};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// Where packages come from once they were verified.
pub trait PackageSource: Send + Sync {
    /// The package of these bytes, or why it is not at hand, in one line.
    fn package(&self, digest: &Digest) -> Result<Arc<Package>, String>;

    /// Forgets what is not among these.
    fn retain(&self, digests: &BTreeSet<Digest>);
}

/// A directory of package files named by digest, each with its signature beside it. Files are
/// checked against their name at each reading; whoever puts one there has checked its signature.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    limits: Limits,
    open: Mutex<BTreeMap<Digest, Arc<Package>>>,
}

impl Cache {
    /// A cache in this directory, which is made if need be.
    pub fn new(dir: &Path, limits: Limits) -> std::io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned(), limits, open: Mutex::default() })
    }

    fn file(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{}.cpkg", digest.hex()))
    }

    /// The bytes of a package, if they are here and whole.
    pub fn bytes(&self, digest: &Digest) -> Option<Vec<u8>> {
        let bytes = fs::read(self.file(digest)).ok()?;
        (Digest::of(&bytes) == *digest).then_some(bytes)
    }

    fn signature_file(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{}.cpkg.minisig", digest.hex()))
    }

    /// The signature a package was kept with, to be checked again: keys may have been revoked.
    pub fn signature(&self, digest: &Digest) -> Option<String> {
        fs::read_to_string(self.signature_file(digest)).ok()
    }

    /// Keeps a package whose signature, digest and length were checked.
    pub fn keep(
        &self,
        digest: &Digest,
        bytes: &[u8],
        signature: Option<&str>,
    ) -> std::io::Result<()> {
        // The signature first: a package without one would have to be fetched again.
        if let Some(signature) = signature {
            self.write(digest, &self.signature_file(digest), signature.as_bytes())?;
        }
        self.write(digest, &self.file(digest), bytes)?;
        fs::File::open(&self.dir)?.sync_all()
    }

    fn write(&self, digest: &Digest, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        let new = self.dir.join(format!("{}.new", digest.hex()));
        fs::write(&new, bytes)?;
        fs::File::open(&new)?.sync_all()?;
        fs::rename(&new, path)
    }
}

impl PackageSource for Cache {
    fn package(&self, digest: &Digest) -> Result<Arc<Package>, String> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(package) = open.get(digest) {
            return Ok(Arc::clone(package));
        }
        let path = self.file(digest);
        let bytes = self
            .bytes(digest)
            .ok_or_else(|| format!("{} is missing or damaged", path.display()))?;
        let package = Package::open(&bytes, &self.limits).map_err(|error| {
            format!("{}: {}", path.display(), crate::error::with_causes(&error))
        })?;
        let package = Arc::new(package);
        open.insert(digest.clone(), Arc::clone(&package));
        Ok(package)
    }

    fn retain(&self, digests: &BTreeSet<Digest>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|digest, _| digests.contains(digest));
        drop(open);
        let Ok(files) = fs::read_dir(&self.dir) else { return };
        for path in files.flatten().map(|file| file.path()) {
            let kept = digests
                .iter()
                .any(|digest| self.file(digest) == path || self.signature_file(digest) == path);
            if !kept && let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "old package stays in the cache");
            }
        }
    }
}
