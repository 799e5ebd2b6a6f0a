//! Attacks on repositories, as data: one directory each under `data/`, with the keys and the
//! answers that belong to it in `attack.json`. `data/README.md` says how they are made.
//!
//! **Owns:** the description of an attack and how it is read. **Must not know:** how it is refused.

use anyhow::{Context as _, Result};
use canopy_api::{
    Blob, Code, Digest, PackageRef,
    wire::{ResolveReply, VersionSummary},
};
use canopy_package::{
    Index, TrustedKey,
    index::split,
    repository::{INDEX, artifact_path, signature_path},
};
use semver::Version;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The time of every attack, 2026-01-01T00:00:00Z, seconds since the epoch.
pub const NOW: u64 = 1_767_225_600;

/// The attacks that must be there, each a directory.
pub const NAMES: &[&str] = &[
    "another-package-in-the-file",
    "another-package-signature",
    "artifact-of-another-version",
    "bus-swaps-bytes",
    "decompression-bomb",
    "endless-artifact",
    "endless-file",
    "expired-index",
    "expired-key",
    "index-counts-for-ever",
    "index-of-another-time",
    "index-version-used-up",
    "key-of-another-repository",
    "older-index",
    "older-index-for-another-package",
    "path-in-file-name",
    "path-in-package-name",
    "registry-goes-back",
    "registry-names-another-digest",
    "registry-names-another-package",
    "revoked-file",
    "revoked-key",
    "unsigned-index",
    "unsigned-package",
    "wrong-digest",
    "wrong-length",
];

/// The directory that is not an attack: the others differ from it by what they are named for.
pub const GENUINE: &str = "genuine";

/// An attack, as `attack.json` says it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attack {
    /// What somebody does, in one line.
    pub what: String,
    /// The package asked for.
    pub asks: PackageRef,
    /// Keys that registry and loader trust.
    pub keys: Vec<TrustedKey>,
    /// Files that they know to be bad.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked: Vec<Digest>,
    /// A directory that both have read before; none for the first time they look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// The package that they were asked for then, if it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asks_before: Option<PackageRef>,
    /// What a registry or a bus that lies makes of `repository`; the loader alone sees it.
    #[serde(default, skip_serializing_if = "Lie::is_none")]
    pub lie: Lie,
    /// What the registry says.
    pub registry: Outcome,
    /// What the loader says when a registry gives it everything unchecked.
    pub loader: Outcome,
}

/// How an answer on the bus differs from the repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lie {
    /// Another name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub package: Option<canopy_api::PackageName>,
    /// Another version of the repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// Another digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// A file beside `attack.json` with the bytes that arrive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<String>,
    /// Whether they come again and again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub endless: bool,
}

impl Lie {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// What comes of asking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// This version is given: there is nothing wrong that could be seen there.
    Given(Version),
    /// It is refused.
    Refused {
        /// The code of the answer.
        code: Code,
        /// The one word of the metric and the event.
        reason: String,
        /// The message, whole.
        message: String,
    },
}

impl Attack {
    /// The package that was asked for before.
    pub fn asked_before(&self) -> &PackageRef {
        self.asks_before.as_ref().unwrap_or(&self.asks)
    }
}

/// Where the attacks are.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data")
}

/// Reads one by its directory's name.
pub fn read(name: &str) -> Result<Attack> {
    let path = root().join(name).join("attack.json");
    let text = fs::read(&path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&text).with_context(|| path.display().to_string())
}

/// What a registry that checks nothing answers from a directory: the newest version that was asked
/// for, and its file. `lie` is done to it.
pub fn unchecked(
    attack: &Path,
    repository: &str,
    asks: &PackageRef,
    lie: &Lie,
) -> Result<(ResolveReply, Vec<u8>)> {
    let at = |path: &str| attack.join(repository).join(path);
    let file = fs::read(at(INDEX)).context(INDEX)?;
    let (index, index_signature) = split(&file)?;
    let text = |path: &str| fs::read_to_string(at(path)).ok();
    // Whoever checks nothing takes a name that is none for the one that was asked for.
    let known = Index::open_unsigned(index).unwrap_or_default();
    let entry = match &lie.version {
        Some(version) => known.entry(&asks.name, version),
        None => known.matching(&asks.name, &asks.requirement).next(),
    };
    let (version, digest, length) = match entry {
        Some(entry) => (entry.version.clone(), entry.digest.clone(), entry.length),
        None => (Version::new(1, 1, 0), Digest::of(b""), 0),
    };
    let artifact = match &lie.bytes {
        Some(bytes) => fs::read(attack.join(bytes)).context(bytes.clone())?,
        None => fs::read(at(&artifact_path(&asks.name, &version))).unwrap_or_default(),
    };
    let reply = ResolveReply {
        package: lie.package.clone().unwrap_or_else(|| asks.name.clone()),
        repository: "unchecked".to_owned(),
        version: VersionSummary {
            version: version.to_string(),
            digest: lie.digest.clone().unwrap_or(digest),
            length,
            yanked: false,
        },
        signature: text(&signature_path(&asks.name, &version)),
        index: Some(Blob(index.to_vec())),
        index_signature: Some(index_signature.to_owned()).filter(|text| !text.is_empty()),
        index_at: None,
    };
    Ok((reply, artifact))
}
