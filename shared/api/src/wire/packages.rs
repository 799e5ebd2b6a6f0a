//! Packages: lists, descriptions, versions, files.

use crate::{
    blob::Blob,
    desired::Hook,
    name::{Digest, PackageName},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Lists packages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListRequest {
    /// Only this package.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<PackageName>,
    /// The `next` of the page before; absent for the first page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Packages and their versions, in pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListReply {
    /// Sorted by name.
    pub packages: Vec<PackageSummary>,
    /// Repositories that could not be read, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unavailable: Vec<RepositoryTrouble>,
    /// There are more packages: `cursor` of the request for the next page. Absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A repository that cannot be used now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RepositoryTrouble {
    /// The repository's name.
    pub repository: String,
    /// Why.
    pub reason: String,
}

/// A package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PackageSummary {
    /// Its name.
    pub name: PackageName,
    /// One line about it, from the newest version's manifest.
    pub description: String,
    /// Where its programs can be put, from the newest version's manifest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
    /// Words to be found by, from the newest version's manifest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keywords: Vec<String>,
    /// The repository it comes from.
    pub repository: String,
    /// Newest first.
    pub versions: Vec<VersionSummary>,
    /// How many older versions are left out: of one package up to 1,000 are told, of many fewer.
    #[serde(default)]
    pub older: u64,
}

/// Looks for packages; those that meet all of it are found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SearchRequest {
    /// Each stands somewhere in the name, the description, a keyword or a hook; capitals do not
    /// matter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub words: Vec<String>,
    /// A program can be put there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<Hook>,
    /// It has this keyword.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyword: Option<String>,
    /// The `next` of the page before; absent for the first page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Most packages on a page of a search.
pub const SEARCH_LIMIT: usize = 100;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SearchReply {
    /// The best first, at most [`SEARCH_LIMIT`].
    pub packages: Vec<PackageSummary>,
    /// How many more there are behind this page.
    pub more: u64,
    /// Repositories that could not be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unavailable: Vec<RepositoryTrouble>,
    /// `cursor` of the request for the next page; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The repositories as they stand now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RefreshReply {
    /// Each of them.
    pub repositories: Vec<RepositoryState>,
}

/// A repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RepositoryState {
    /// Its name.
    pub repository: String,
    /// Whether packages can be had from it.
    pub usable: bool,
    /// What is there now cannot be used; what was read before is given out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
    /// What it holds, or what is wrong with it.
    pub detail: String,
}

/// A version of a package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VersionSummary {
    /// Semantic version.
    pub version: String,
    /// Digest of the package file.
    pub digest: Digest,
    /// Length of the package file, bytes.
    pub length: u64,
    /// Withdrawn: only hosts that already have it keep it.
    pub yanked: bool,
}

/// A map in an object of a package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MapSummary {
    /// Its name.
    pub name: String,
    /// The object file.
    pub object: String,
    /// `hash`, `percpu_array`, …; a number for a kind without a name here; empty where the object does
    /// not say.
    pub kind: String,
    /// Bytes of a key, where the object says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_size: Option<u32>,
    /// Bytes of a value, where the object says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_size: Option<u32>,
    /// Room for so many entries, where the object or the manifest says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_entries: Option<u32>,
}

/// Asks for one version in full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DescribeRequest {
    /// The package.
    pub package: PackageName,
    /// Semver requirement; absent for the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requirement: Option<String>,
}

/// One version in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DescribeReply {
    /// Where it comes from.
    pub repository: String,
    /// The version.
    pub version: VersionSummary,
    /// Id of the key that signed it, 16 hexadecimal digits; absent when unsigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
    /// The manifest.
    pub manifest: Value,
    /// JSON Schema of what can be set: `config` of a program in a document.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub config_schema: Value,
    /// The maps of its objects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub maps: Vec<MapSummary>,
    /// The README of the package.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub readme: String,
    /// Fields that are left out or cut short, because a message of the bus does not hold them; those of
    /// the manifest as `manifest.metrics`. The package file has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub omitted: Vec<String>,
}

/// Asks which exact version a requirement means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResolveRequest {
    /// The package.
    pub package: PackageName,
    /// Semver requirement (Cargo's syntax).
    pub requirement: String,
    /// Machine architecture, as in `uname -m`; absent for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// Kernel release of the host; absent for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
}

/// Longest index that stands in an answer, bytes; a message of the bus has at most 1 MiB.
pub const INDEX_INLINE: usize = 256 * 1024;

/// An index that is fetched in chunks, as a package is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IndexAt {
    /// Digest of its JSON: what `artifact` is asked for.
    pub digest: Digest,
    /// Its length, bytes.
    pub length: u64,
}

/// The exact version, and everything the loader needs to check it again for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResolveReply {
    /// The package.
    pub package: PackageName,
    /// Where it comes from.
    pub repository: String,
    /// The version.
    pub version: VersionSummary,
    /// minisign signature file of the package; absent in an unsigned development repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// The repository's index, as it was signed; absent in an unsigned development repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<Blob>,
    /// minisign signature file of the index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_signature: Option<String>,
    /// Where the index is when it is too long to stand here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_at: Option<IndexAt>,
}

/// Asks for a chunk of a package file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ArtifactRequest {
    /// Which file.
    pub digest: Digest,
    /// Offset of the chunk, bytes.
    pub offset: u64,
}

/// Chunks are at most this long, bytes.
pub const ARTIFACT_CHUNK: usize = 512 * 1024;

/// A chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ArtifactReply {
    /// Length of the whole file, bytes.
    pub total: u64,
    /// At most [`ARTIFACT_CHUNK`] bytes from the offset asked for.
    pub data: Blob,
}
