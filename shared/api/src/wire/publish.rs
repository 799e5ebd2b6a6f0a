//! Publishing through the registry. The publisher signs; the registry verifies and writes.

use crate::{
    blob::Blob,
    name::{Digest, PackageName, Principal},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most package files of one publication.
pub const PUBLISH_PACKAGES: usize = 16;

/// Asks for a piece of the index of a repository that is published to, as its file `index.signed` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PublishIndexRequest {
    /// The repository.
    pub repository: String,
    /// Offset of the piece, bytes.
    pub offset: u64,
}

/// A piece of an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PublishIndexReply {
    /// Digest of the whole file; absent where nothing was published yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Length of the whole file, bytes.
    pub total: u64,
    /// At most [`super::ARTIFACT_CHUNK`] bytes from the offset asked for.
    pub data: Blob,
}

/// A piece of a package file or an index that is going to be published. A file whose pieces do not all
/// come within ten minutes is forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PublishUploadRequest {
    /// The repository it is for.
    pub repository: String,
    /// Digest of the whole file.
    pub digest: Digest,
    /// Length of the whole file, bytes.
    pub total: u64,
    /// Offset of the piece: a multiple of [`super::ARTIFACT_CHUNK`]; the piece at 0 comes first.
    pub offset: u64,
    /// [`super::ARTIFACT_CHUNK`] bytes, or what is left of the file.
    pub data: Blob,
}

/// A piece is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PublishUploadReply {
    /// Where the next piece starts; the file's length after the last.
    pub next: u64,
}

/// Publishes package files, or an index with a new expiry; everything was sent before, by digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PublishRequest {
    /// The repository.
    pub repository: String,
    /// The package files that the new index names and the one before does not; at most
    /// [`PUBLISH_PACKAGES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<PublishedPackage>,
    /// Digest of the new `index.signed`.
    pub index: Digest,
    /// Digest of the `index.signed` that it replaces; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<Digest>,
}

/// A package file to be published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PublishedPackage {
    /// Its digest.
    pub digest: Digest,
    /// Its minisign signature file.
    pub signature: String,
}

/// Withdraws a version, or brings it back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct YankRequest {
    /// The repository.
    pub repository: String,
    /// The package.
    pub package: PackageName,
    /// Its version.
    pub version: String,
    /// Whether it is withdrawn; false brings it back.
    pub yanked: bool,
    /// Digest of the new `index.signed`, which says so and nothing else new; it was sent before.
    pub index: Digest,
    /// Digest of the `index.signed` that it replaces.
    pub replaces: Digest,
}

/// Forgets how high the versions of a repository's index were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResetRepositoryRequest {
    /// The repository. Its index as it is now, which has to be rightly signed, is the oldest that is accepted
    /// from now on; without one, any signed index is.
    pub repository: String,
}

/// Forgets how high the versions of a repository's index were, on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResetHostRequest {
    /// The repository, as the registry calls it.
    pub repository: String,
    /// Its id, as its index has it: what the registry's `reset-index` answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The oldest version that is accepted from now on: what the registry's `reset-index` answered. It is never
    /// raised by this.
    pub to: u64,
}

/// From which version to which.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResetIndexReply {
    /// The repository.
    pub repository: String,
    /// Its id, where its index has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The highest version that was remembered; 0 where none was.
    pub from: u64,
    /// The oldest that is accepted now.
    pub to: u64,
}

/// It is in the repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PublishReply {
    /// Version of the index that is there now.
    pub index_version: u64,
}

/// `event.registry.package.published._` and `event.registry.package.yanked._`: a version was published,
/// withdrawn or brought back through the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PackagePublished {
    /// The repository.
    pub repository: String,
    /// The package.
    pub package: PackageName,
    /// Its version.
    pub version: String,
    /// Digest of the package file.
    pub digest: Digest,
    /// Whether it is withdrawn now.
    pub yanked: bool,
    /// Version of the index that says so.
    pub index_version: u64,
    /// Who asked.
    pub by: Principal,
    /// When.
    pub time: String,
}
