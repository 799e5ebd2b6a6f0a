//! `index.signed`: the signed list of what a repository holds, JSON with its minisign signature behind
//! it. One file, so that nobody ever sees an index beside the signature of another one:
//!
//! ```text
//! { "version": 7, "expires": 1798761600, "packages": [ … ] }
//! untrusted comment: signature from canopy
//! RUQ…
//! trusted comment: index version=7 repository=5d41402abc4b2a76b9719d911017c592
//! mT8…
//! ```
//!
//! It answers the attacks a signature on each file cannot: an older state of the repository
//! (version), a frozen one (expiry), and a mixture of files from different times (name, version,
//! digest and length of each file bound together).
//!
//! Version and expiry have bounds that depend on the clock alone, so that a single index, by mistake or by
//! malice, cannot use up what is left for those after it: see [`highest_version`] and [`latest_expiry`].

use crate::{
    archive::Limits,
    error::PackageError,
    sign::{SecretKey, TrustedKey, told_repository, verify_index},
    trusted_versions::{IndexSource, RepositoryId},
};
use canopy_api::{Digest, PackageName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A repository's index.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// Rises by one with each publication; a reader refuses to go back.
    pub version: u64,
    /// Seconds since the epoch after which the index is stale.
    pub expires: u64,
    /// What the repository holds, by name, then version.
    pub packages: Vec<IndexEntry>,
    /// Which repository it is of. It stands in the trusted comment of the signature, which readers from
    /// before there were ids pass over; `None` in an index that they made.
    #[serde(skip)]
    pub repository: Option<RepositoryId>,
}

/// One package version in an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IndexEntry {
    /// The package.
    pub name: PackageName,
    /// The version.
    pub version: semver::Version,
    /// Digest of the package file.
    pub digest: Digest,
    /// Its length, bytes.
    pub length: u64,
    /// Withdrawn.
    #[serde(default)]
    pub yanked: bool,
}

/// How a signature begins; within the JSON no line can begin so.
const SIGNATURE: &[u8] = b"\nuntrusted comment:";

/// Largest index that is read, bytes: some 100,000 versions.
pub const INDEX_LIMIT: usize = 32 << 20;

/// Days an index counts after it was signed, unless the publisher says otherwise.
pub const DEFAULT_LIFETIME_DAYS: u64 = 90;

/// Longest time an index may count for, days: more than anybody should leave a repository alone.
pub const MOST_LIFETIME_DAYS: u64 = 731;

/// By how much the clocks of signers and readers may differ before a bound refuses, seconds.
const CLOCK_SLACK: u64 = 86_400;

/// The highest version that an index can have at a time, given in seconds since the epoch: one for each
/// second, and a day's more. A host that was away for years has to take any honest version, so a bound by how
/// far it rises would refuse honest ones; nobody publishes once a second for fifty years, and where a
/// version came near it there is room for another one a second later.
pub fn highest_version(now: u64) -> u64 {
    now.saturating_add(CLOCK_SLACK)
}

/// The latest expiry that an index can have at a time; both in seconds since the epoch.
pub fn latest_expiry(now: u64) -> u64 {
    now.saturating_add(MOST_LIFETIME_DAYS * 86_400).saturating_add(CLOCK_SLACK)
}

impl Index {
    /// Verifies signature, expiry, version (`at_least` is the highest seen before) and their bounds, and
    /// parses.
    pub fn open(
        bytes: &[u8],
        signature: &str,
        keys: &[TrustedKey],
        now: u64,
        at_least: u64,
    ) -> Result<Self, PackageError> {
        Self::open_seen(bytes, signature, keys, now, |_| Ok(at_least)).map(|(index, _)| index)
    }

    /// The same, where the highest version seen before depends on where the index comes from.
    pub fn open_seen(
        bytes: &[u8],
        signature: &str,
        keys: &[TrustedKey],
        now: u64,
        at_least: impl FnOnce(&IndexSource) -> Result<u64, PackageError>,
    ) -> Result<(Self, IndexSource), PackageError> {
        let (index, source) = Self::open_signed(bytes, signature, keys, now)?;
        index.check_bounds(now)?;
        let at_least = at_least(&source)?;
        if index.version < at_least {
            return Err(PackageError::IndexRolledBack { version: index.version, at_least });
        }
        if index.expires < now {
            return Err(PackageError::IndexExpired { expires: index.expires });
        }
        Ok((index, source))
    }

    /// Refuses a version or an expiry that would leave those after it no room.
    pub fn check_bounds(&self, now: u64) -> Result<(), PackageError> {
        let (version, expires) = (self.version, self.expires);
        let limit = highest_version(now);
        if version > limit {
            return Err(PackageError::IndexVersionTooHigh { version, limit });
        }
        let limit = latest_expiry(now);
        if expires > limit {
            return Err(PackageError::IndexExpiresTooLate { expires, limit });
        }
        Ok(())
    }

    /// Verifies the signature only, and says where the index comes from.
    pub fn open_signed(
        bytes: &[u8],
        signature: &str,
        keys: &[TrustedKey],
        now: u64,
    ) -> Result<(Self, IndexSource), PackageError> {
        size(bytes)?;
        let source = verify_index(bytes, signature, keys, now)?;
        let repository = source.repository.clone();
        let index = Self { repository, ..Self::open_unsigned(bytes)? };
        Ok((index, source))
    }

    /// Verifies the signature only: for a publisher, who signs what is there anew and must not
    /// sign what somebody else put there. An expired index is what a publisher refreshes.
    pub fn open_to_extend(
        bytes: &[u8],
        signature: &str,
        keys: &[TrustedKey],
        now: u64,
    ) -> Result<Self, PackageError> {
        Self::open_signed(bytes, signature, keys, now).map(|(index, _)| index)
    }

    /// Parses an `index.signed` with what its signature says, and verifies nothing.
    pub fn read_unverified(file: &[u8]) -> Result<Self, PackageError> {
        let (json, signature) = split(file)?;
        Ok(Self { repository: told_repository(signature), ..Self::open_unsigned(json)? })
    }

    /// Parses without any check of who wrote it or when: for `unsigned-development`.
    pub fn open_unsigned(bytes: &[u8]) -> Result<Self, PackageError> {
        size(bytes)?;
        let index: Self = serde_json::from_slice(bytes)
            .map_err(|error| PackageError::IndexFormat { reason: error.to_string() })?;
        for pair in index.packages.windows(2) {
            if let [a, b] = pair
                && a.key() >= b.key()
            {
                let reason = format!("{} {} is twice in it or out of order", b.name, b.version);
                return Err(PackageError::IndexFormat { reason });
            }
        }
        let limit = Limits::default().archive_bytes as u64;
        if let Some(entry) = index.packages.iter().find(|entry| entry.length > limit) {
            let what = format!("{} {}", entry.name, entry.version);
            return Err(PackageError::TooLarge { what, limit });
        }
        Ok(index)
    }

    /// The JSON; the same content gives the same bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, PackageError> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| PackageError::IndexFormat { reason: error.to_string() })?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// The JSON, and its signature as a `.minisig` file would have it: [`join`] makes one file of
    /// the two.
    pub fn sign(&self, key: &SecretKey) -> Result<(Vec<u8>, String), PackageError> {
        let bytes = self.to_bytes()?;
        let signature = key.sign_index(&bytes, self.version, self.repository.as_ref())?;
        Ok((bytes, signature))
    }

    /// Every version of a package, newest first.
    pub fn versions<'a>(
        &'a self,
        name: &'a PackageName,
    ) -> impl Iterator<Item = &'a IndexEntry> + 'a {
        let from = self.packages.partition_point(|entry| entry.name < *name);
        let to = self.packages.partition_point(|entry| entry.name <= *name);
        self.packages.get(from..to).unwrap_or_default().iter().rev()
    }

    /// The versions that fulfil a requirement, newest first. Yanked ones are left out, and
    /// pre-releases too unless the requirement names one (Cargo's rule).
    pub fn matching<'a>(
        &'a self,
        name: &'a PackageName,
        requirement: &'a semver::VersionReq,
    ) -> impl Iterator<Item = &'a IndexEntry> + 'a {
        self.versions(name).filter(|entry| !entry.yanked && requirement.matches(&entry.version))
    }

    /// One version.
    pub fn entry(&self, name: &PackageName, version: &semver::Version) -> Option<&IndexEntry> {
        self.packages
            .binary_search_by(|entry| entry.key().cmp(&(name, version)))
            .ok()
            .and_then(|found| self.packages.get(found))
    }

    /// Every package name, sorted.
    pub fn names(&self) -> Vec<&PackageName> {
        let mut names: Vec<_> = self.packages.iter().map(|entry| &entry.name).collect();
        names.dedup();
        names
    }

    /// Adds a version in its place. The same bytes again change nothing (but end a withdrawal).
    pub(crate) fn insert(&mut self, entry: IndexEntry) -> Result<(), PackageError> {
        match self.packages.binary_search_by(|known| known.key().cmp(&entry.key())) {
            Ok(found) => {
                if let Some(known) = self.packages.get_mut(found) {
                    if known.digest != entry.digest {
                        let IndexEntry { name, version, .. } = entry;
                        return Err(PackageError::AlreadyPublished { name, version });
                    }
                    known.yanked = entry.yanked;
                }
            }
            Err(place) => self.packages.insert(place, entry),
        }
        Ok(())
    }
}

/// The content of `index.signed`.
pub fn join(index: &[u8], signature: &str) -> Vec<u8> {
    [index, signature.as_bytes()].concat()
}

/// The JSON and the signature in `index.signed`; the signature is empty where there is none.
pub fn split(file: &[u8]) -> Result<(&[u8], &str), PackageError> {
    let start = file.windows(SIGNATURE.len()).rposition(|window| window == SIGNATURE);
    let (index, signature) = file.split_at(start.map_or(file.len(), |newline| newline + 1));
    size(index)?;
    let signature = std::str::from_utf8(signature).map_err(|_| PackageError::SignatureFormat {
        what: "the index",
        reason: "it is not text".to_owned(),
    })?;
    Ok((index, signature))
}

impl IndexEntry {
    /// Refuses a file that is on a list of revoked ones, whoever signed it.
    pub fn not_revoked(&self, revoked: &[Digest]) -> Result<(), PackageError> {
        if revoked.contains(&self.digest) {
            return Err(PackageError::DigestRevoked { digest: self.digest.clone() });
        }
        Ok(())
    }

    fn key(&self) -> (&PackageName, &semver::Version) {
        (&self.name, &self.version)
    }

    /// Whether these bytes are the ones the index names.
    pub fn check(&self, bytes: &[u8]) -> Result<(), PackageError> {
        if bytes.len() as u64 != self.length {
            return Err(PackageError::WrongLength {
                wanted: self.length,
                found: bytes.len() as u64,
            });
        }
        let found = Digest::of(bytes);
        if found != self.digest {
            return Err(PackageError::WrongDigest { wanted: self.digest.clone(), found });
        }
        Ok(())
    }
}

fn size(bytes: &[u8]) -> Result<(), PackageError> {
    if bytes.len() > INDEX_LIMIT {
        return Err(PackageError::TooLarge {
            what: "the index".to_owned(),
            limit: INDEX_LIMIT as u64,
        });
    }
    Ok(())
}
