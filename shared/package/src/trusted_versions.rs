//! The highest index versions that were verified, by repository: what a reader remembers so that an older
//! state of a repository is refused, also for a package that the reader never had.
//!
//! A repository is known by the id that its index carries in the signed comment, together with the key that
//! signed it: whoever is trusted for other packages cannot use up the versions of this one. An index from
//! before ids is known by the key and the name that the registry gives the repository.

use crate::{
    error::PackageError,
    sign::{PublicKey, SecretKey, TrustedKey},
};
use canopy_api::{Digest, PackageName};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::{borrow::Cow, collections::BTreeSet, fmt, str::FromStr};

/// Most repositories that are remembered. What comes beyond is checked by package alone.
const MOST: usize = 1_024;

/// Longest name of a repository that is kept.
const NAME: usize = 63;

/// Which repository an index is of: 128 bits, made with its first index and kept ever after.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct RepositoryId(String);

impl RepositoryId {
    /// Another one for each repository.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn generate() -> Result<Self, PackageError> {
        // Randomness comes into this crate by new keys alone: of one that nobody keeps.
        let key = SecretKey::generate()?.public()?;
        let digest = Digest::of(key.as_str().as_bytes()).to_string();
        digest.trim_start_matches("sha256:").chars().take(32).collect::<String>().parse()
    }

    /// 32 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepositoryId {
    type Err = PackageError;

    fn from_str(text: &str) -> Result<Self, PackageError> {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 32 && text.bytes().all(hex) {
            return Ok(Self(text.to_owned()));
        }
        let shown: String = text.chars().take(64).collect();
        let reason = format!("\"{shown}\" is not the id of a repository: 32 hexadecimal digits");
        Err(PackageError::IndexFormat { reason })
    }
}

impl fmt::Display for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RepositoryId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for RepositoryId {
    fn schema_name() -> Cow<'static, str> {
        "RepositoryId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[0-9a-f]{32}$",
            "description": "the id of a repository: 32 of 0-9 and a-f"
        })
    }
}

/// Where a verified index comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexSource {
    /// The repository, as the signed comment says; `None` in an index from before there were ids.
    pub repository: Option<RepositoryId>,
    /// The key that signed it.
    pub key: PublicKey,
}

/// One repository's highest version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TrustedVersion {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    repository: Option<RepositoryId>,
    key: PublicKey,
    /// What the registry called it the last time: for people, and for an index without an id.
    name: String,
    version: u64,
    /// Packages that it was read for.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    packages: BTreeSet<PackageName>,
}

/// Highest versions by repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TrustedVersions(Vec<TrustedVersion>);

/// What forgetting did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reset {
    /// The highest version that was remembered; `None` where none was.
    pub from: Option<u64>,
    /// Packages that the repository was read for.
    pub packages: BTreeSet<PackageName>,
}

impl TrustedVersions {
    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The version that an index of this source must have at least; 0 for one that was never seen. `name` is
    /// the registry's for the repository, `keys` are those whose indexes count for whoever asks: a key that
    /// was replaced by another of them takes nobody back.
    ///
    /// # Errors
    /// When the index has no id, and its key has signed one for the repository that has.
    pub fn at_least(
        &self,
        source: &IndexSource,
        name: &str,
        keys: &[TrustedKey],
    ) -> Result<u64, PackageError> {
        let trusted = |key: &PublicKey| keys.iter().any(|trusted| trusted.key == *key);
        let named = self.0.iter().filter(|entry| entry.name == name);
        let Some(repository) = &source.repository else {
            if named.clone().any(|entry| entry.repository.is_some() && entry.key == source.key) {
                return Err(PackageError::IndexWithoutId { key: source.key.id() });
            }
            let same = named.filter(|entry| entry.repository.is_none() && trusted(&entry.key));
            return Ok(same.map(|entry| entry.version).max().unwrap_or(0));
        };
        let same = self
            .0
            .iter()
            .filter(|entry| entry.repository.as_ref() == Some(repository) && trusted(&entry.key));
        Ok(same.map(|entry| entry.version).max().unwrap_or(0))
    }

    /// Remembers a version of a source, read for this package. Says whether that is anything new.
    pub fn remember(
        &mut self,
        source: &IndexSource,
        name: &str,
        package: Option<&PackageName>,
        version: u64,
    ) -> bool {
        let name: String = name.chars().take(NAME).collect();
        let same = |entry: &TrustedVersion| {
            entry.key == source.key
                && entry.repository == source.repository
                && (source.repository.is_some() || entry.name == name)
        };
        // The first index with an id goes on where those without ended.
        let without = |entry: &TrustedVersion| {
            entry.repository.is_none() && entry.key == source.key && entry.name == name
        };
        let at = self.0.iter().position(same).or_else(|| self.0.iter().position(without));
        let Some(entry) = at.and_then(|at| self.0.get_mut(at)) else {
            if self.0.len() >= MOST {
                return false;
            }
            let IndexSource { repository, key } = source.clone();
            let packages = package.cloned().into_iter().collect();
            self.0.push(TrustedVersion { repository, key, name, version, packages });
            return true;
        };
        let before = entry.clone();
        entry.repository.clone_from(&source.repository);
        entry.name = name;
        entry.version = entry.version.max(version);
        entry.packages.extend(package.cloned());
        *entry != before
    }

    /// The highest version remembered of what the registry calls `name`.
    pub fn highest(&self, name: &str) -> Option<u64> {
        self.0.iter().filter(|entry| entry.name == name).map(|entry| entry.version).max()
    }

    /// Packages that some repository was read for.
    pub fn packages(&self) -> impl Iterator<Item = &PackageName> {
        self.0.iter().flat_map(|entry| &entry.packages)
    }

    /// Takes what is remembered of the repository with that id, and of what the registry calls `name`, down to
    /// a version; what is lower stays.
    pub fn reset(&mut self, name: &str, id: Option<&str>, to: u64) -> Reset {
        let mut reset = Reset::default();
        let meant = |entry: &TrustedVersion| {
            let of_entry = entry.repository.as_ref().map(RepositoryId::as_str);
            entry.name == name || (id.is_some() && of_entry == id)
        };
        for entry in self.0.iter_mut().filter(|entry| meant(entry)) {
            reset.from = reset.from.max(Some(entry.version));
            reset.packages.extend(entry.packages.iter().cloned());
            entry.version = entry.version.min(to);
        }
        reset
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::SecretKey;

    fn key() -> PublicKey {
        SecretKey::generate().unwrap().public().unwrap()
    }

    fn source(repository: Option<&RepositoryId>, key: &PublicKey) -> IndexSource {
        IndexSource { repository: repository.cloned(), key: key.clone() }
    }

    #[test]
    fn a_version_counts_for_every_package_of_its_repository() {
        let (id, other, key) =
            (RepositoryId::generate().unwrap(), RepositoryId::generate().unwrap(), key());
        let keys = [key.clone().into()];
        let mut versions = TrustedVersions::default();
        assert!(versions.remember(&source(Some(&id), &key), "starter", None, 7));
        assert!(!versions.remember(&source(Some(&id), &key), "starter", None, 6));
        let at_least = |source: &IndexSource, name: &str| versions.at_least(source, name, &keys);
        // Whatever the registry calls it.
        for name in ["starter", "another"] {
            assert_eq!(at_least(&source(Some(&id), &key), name).unwrap(), 7);
        }
        assert_eq!(at_least(&source(Some(&other), &key), "starter").unwrap(), 0);
    }

    #[test]
    fn a_key_of_others_cannot_use_up_a_repositorys_versions() {
        let (id, key, rogue) = (RepositoryId::generate().unwrap(), key(), key());
        let mut versions = TrustedVersions::default();
        versions.remember(&source(Some(&id), &rogue), "starter", None, 1_000_000);
        let mine = [key.clone().into()];
        assert_eq!(versions.at_least(&source(Some(&id), &key), "starter", &mine).unwrap(), 0);
        // Of two keys that count for the same, neither takes the other's versions back.
        let both = [key.clone().into(), rogue.into()];
        let at_least = versions.at_least(&source(Some(&id), &key), "starter", &both).unwrap();
        assert_eq!(at_least, 1_000_000);
    }

    #[test]
    fn an_index_without_id_is_known_by_key_and_name_until_it_has_one() {
        let (id, key) = (RepositoryId::generate().unwrap(), key());
        let keys = [key.clone().into()];
        let mut versions = TrustedVersions::default();
        versions.remember(&source(None, &key), "starter", None, 5);
        assert_eq!(versions.at_least(&source(None, &key), "starter", &keys).unwrap(), 5);
        assert_eq!(versions.at_least(&source(None, &key), "second", &keys).unwrap(), 0);
        versions.remember(&source(Some(&id), &key), "starter", None, 6);
        assert_eq!(versions.0.len(), 1, "{versions:?}");
        let error = versions.at_least(&source(None, &key), "starter", &keys).unwrap_err();
        assert!(matches!(error, PackageError::IndexWithoutId { .. }), "{error}");
        assert_eq!(versions.at_least(&source(None, &key), "second", &keys).unwrap(), 0);
    }

    #[test]
    fn a_reset_lowers_what_is_meant_and_nothing_else() {
        let (one, two, key) =
            (RepositoryId::generate().unwrap(), RepositoryId::generate().unwrap(), key());
        let keys = [key.clone().into()];
        let wall: PackageName = "wall".parse().unwrap();
        let mut versions = TrustedVersions::default();
        versions.remember(&source(Some(&one), &key), "starter", Some(&wall), u64::MAX);
        versions.remember(&source(Some(&two), &key), "second", None, 9);
        let reset = versions.reset("starter", None, 4);
        assert_eq!(reset, Reset { from: Some(u64::MAX), packages: [wall].into() });
        assert_eq!(versions.at_least(&source(Some(&one), &key), "starter", &keys).unwrap(), 4);
        assert_eq!(versions.at_least(&source(Some(&two), &key), "second", &keys).unwrap(), 9);
        // It never raises.
        assert_eq!(versions.reset("renamed", Some(one.as_str()), 100).from, Some(4));
        assert_eq!(versions.highest("starter"), Some(4));
        assert_eq!(versions.reset("nobody", None, 0).from, None);
    }

    #[test]
    fn it_is_bounded_and_survives_json() {
        let key = key();
        let mut versions = TrustedVersions::default();
        for number in 0..2 * MOST {
            versions.remember(&source(None, &key), &format!("name-{number}"), None, 1);
        }
        assert_eq!(versions.0.len(), MOST);
        let text = serde_json::to_string(&versions).unwrap();
        assert_eq!(serde_json::from_str::<TrustedVersions>(&text).unwrap(), versions);
    }
}
