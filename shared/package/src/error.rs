//! Why a package, a signature or an index is refused.

use canopy_api::{ApiError, Code, Digest, PackageName, Problems, time::rfc3339};
use std::time::{Duration, UNIX_EPOCH};

/// Why a package, a signature or an index is refused. `Display` is one line and leaves the cause
/// to `source()`; [`PackageError::remedy`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// The manifest is wrong.
    #[error("the manifest (package.yaml) is wrong")]
    Manifest(#[source] Problems),
    /// Something is larger than what is read.
    #[error("{what} is larger than the limit of {limit} bytes")]
    TooLarge {
        /// What it is: "the package file", "the unpacked package", "package.yaml".
        what: String,
        /// The limit, bytes.
        limit: u64,
    },
    /// More files than are read.
    #[error("the package holds more than {limit} files")]
    TooManyFiles {
        /// The limit.
        limit: usize,
    },
    /// Not a package file, or a part of one.
    #[error("the package file is cut short or damaged: {reason}")]
    Damaged {
        /// What the decoder met.
        reason: String,
    },
    /// A file in the package that a package must not hold.
    #[error("the package holds \"{name}\", {fault}")]
    Entry {
        /// The file's name in the archive.
        name: String,
        /// What is wrong with it.
        fault: EntryFault,
    },
    /// No manifest.
    #[error("the package has no package.yaml")]
    NoManifest,
    /// The file is another package than it was taken for.
    #[error("the file holds {found}, not {wanted}")]
    WrongPackage {
        /// Name and version asked for.
        wanted: String,
        /// Name and version in the manifest.
        found: String,
    },

    /// Not a key.
    #[error("\"{text}\" is not a minisign {what}")]
    Key {
        /// "public key" or "secret key".
        what: &'static str,
        /// The text, shortened; empty for a secret key.
        text: String,
    },
    /// A secret key that a password protects.
    #[error("the secret key is protected by a password")]
    KeyLocked,
    /// Making a key or a signature failed.
    #[error("cannot sign: {reason}")]
    Signing {
        /// What the library said.
        reason: String,
    },
    /// No signature at all.
    #[error("{what} is not signed")]
    Unsigned {
        /// "the package file" or "the index".
        what: &'static str,
    },
    /// Not a signature file.
    #[error("the signature of {what} cannot be read: {reason}")]
    SignatureFormat {
        /// "the package file" or "the index".
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Signed by a key that nobody here trusts.
    #[error("{what} is signed by key {key}, which is not trusted here")]
    UntrustedKey {
        /// "the package file" or "the index".
        what: &'static str,
        /// Id of the key.
        key: String,
        /// Ids of the keys that are.
        trusted: Vec<String>,
    },
    /// Signed by a key whose time is over.
    #[error("{what} is signed by key {key}, which is trusted only until {}", day(*.not_after))]
    KeyExpired {
        /// "the package file" or "the index".
        what: &'static str,
        /// Id of the key.
        key: String,
        /// Seconds since the epoch.
        not_after: u64,
    },
    /// Signed by a key that was revoked.
    #[error("{what} is signed by key {key}, which is revoked")]
    KeyRevoked {
        /// "the package file" or "the index".
        what: &'static str,
        /// Id of the key.
        key: String,
    },
    /// That very file was revoked, however well signed.
    #[error("the package file {digest} is revoked")]
    DigestRevoked {
        /// Its digest.
        digest: Digest,
    },
    /// The bytes are not those that were signed.
    #[error("{what} does not match its signature by key {key}: it was changed after signing")]
    Tampered {
        /// "the package file" or "the index".
        what: &'static str,
        /// Id of the key.
        key: String,
    },
    /// The signature is genuine, but for another name, version or digest.
    #[error("the signature is for \"{found}\", not for \"{wanted}\"")]
    SignedForAnother {
        /// What the trusted comment must say.
        wanted: String,
        /// What it says.
        found: String,
    },
    /// The bytes are not those the index or the caller named.
    #[error("the package file has digest {found}, not {wanted}")]
    WrongDigest {
        /// Digest asked for.
        wanted: Digest,
        /// Digest of the bytes.
        found: Digest,
    },
    /// Not as long as the index says.
    #[error("the package file has {found} bytes, not {wanted}")]
    WrongLength {
        /// Length in the index, bytes.
        wanted: u64,
        /// Length of the file, bytes.
        found: u64,
    },

    /// Not an index.
    #[error("the index cannot be read: {reason}")]
    IndexFormat {
        /// What is wrong.
        reason: String,
    },
    /// The index is too old to be believed.
    #[error("the index expired on {}", day(*.expires))]
    IndexExpired {
        /// Seconds since the epoch.
        expires: u64,
    },
    /// The index is older than one seen before.
    #[error("the index has version {version}, older than version {at_least} seen before")]
    IndexRolledBack {
        /// Its version.
        version: u64,
        /// The highest seen.
        at_least: u64,
    },
    /// A version that no repository can have come to by now.
    #[error(
        "the index has version {version}; today it can be at most {limit}, one for each second since 1970"
    )]
    IndexVersionTooHigh {
        /// Its version.
        version: u64,
        /// The highest that is accepted.
        limit: u64,
    },
    /// It would count for longer than an index may.
    #[error("the index expires on {}; today it can be {} at the latest", day(*.expires), day(*.limit))]
    IndexExpiresTooLate {
        /// Seconds since the epoch.
        expires: u64,
        /// The latest that is accepted.
        limit: u64,
    },
    /// It does not say which repository it is of, though its signer does so by now.
    #[error("the index does not say which repository it is of; newer ones signed by key {key} do")]
    IndexWithoutId {
        /// Id of the key.
        key: String,
    },
    /// A version can be published once.
    #[error("{name} {version} is already published with other bytes")]
    AlreadyPublished {
        /// The package.
        name: PackageName,
        /// The version.
        version: semver::Version,
    },
    /// The repository has no such version.
    #[error("{name} {version} is not in the index")]
    NotPublished {
        /// The package.
        name: PackageName,
        /// The version.
        version: semver::Version,
    },
}

/// What is wrong with a file in a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryFault {
    /// A symbolic or hard link, a device, a directory, a named pipe, an extension header.
    #[error("which is not a plain file")]
    NotAFile,
    /// Starts with `/`.
    #[error("whose path is absolute")]
    Absolute,
    /// Has `..` in it.
    #[error("whose path leaves the package")]
    Traversal,
    /// In a directory.
    #[error("which is in a directory; a package is flat")]
    Nested,
    /// Characters that are not allowed, or too long.
    #[error(
        "whose name is not 1 to 100 of a-z, A-Z, 0-9, '.', '_' and '-', starting with a letter or digit"
    )]
    Name,
    /// Twice.
    #[error("twice")]
    Duplicate,
    /// Twice, were it not for capitals.
    #[error("which differs from another file by capitals only")]
    CaseCollision,
    /// Neither manifest, README, licence nor an object of the manifest.
    #[error("which the manifest does not mention")]
    Unmentioned,
}

impl PackageError {
    /// What kind of failure it is, on the wire.
    pub fn code(&self) -> Code {
        match self {
            Self::Manifest(_)
            | Self::TooLarge { .. }
            | Self::TooManyFiles { .. }
            | Self::Damaged { .. }
            | Self::Entry { .. }
            | Self::NoManifest
            | Self::WrongPackage { .. }
            | Self::Key { .. }
            | Self::KeyLocked
            | Self::SignatureFormat { .. }
            | Self::IndexFormat { .. } => Code::Invalid,
            Self::Unsigned { .. }
            | Self::UntrustedKey { .. }
            | Self::KeyExpired { .. }
            | Self::KeyRevoked { .. }
            | Self::DigestRevoked { .. }
            | Self::Tampered { .. }
            | Self::SignedForAnother { .. }
            | Self::WrongDigest { .. }
            | Self::WrongLength { .. }
            | Self::IndexExpired { .. }
            | Self::IndexRolledBack { .. }
            | Self::IndexVersionTooHigh { .. }
            | Self::IndexExpiresTooLate { .. }
            | Self::IndexWithoutId { .. } => Code::Denied,
            Self::AlreadyPublished { .. } => Code::Conflict,
            Self::NotPublished { .. } => Code::NotFound,
            Self::Signing { .. } => Code::Internal,
        }
    }

    /// The kind in one word, for a metric's label.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Manifest(_) => "manifest",
            Self::TooLarge { .. } => "too_large",
            Self::TooManyFiles { .. } => "too_many_files",
            Self::Damaged { .. } => "damaged",
            Self::Entry { .. } => "entry",
            Self::NoManifest => "no_manifest",
            Self::WrongPackage { .. } => "wrong_package",
            Self::Key { .. } => "key",
            Self::KeyLocked => "key_locked",
            Self::Signing { .. } => "signing",
            Self::Unsigned { .. } => "unsigned",
            Self::SignatureFormat { .. } => "signature_format",
            Self::UntrustedKey { .. } => "untrusted_key",
            Self::KeyExpired { .. } => "key_expired",
            Self::KeyRevoked { .. } => "key_revoked",
            Self::DigestRevoked { .. } => "digest_revoked",
            Self::Tampered { .. } => "tampered",
            Self::SignedForAnother { .. } => "signed_for_another",
            Self::WrongDigest { .. } => "wrong_digest",
            Self::WrongLength { .. } => "wrong_length",
            Self::IndexFormat { .. } => "index_format",
            Self::IndexExpired { .. } => "index_expired",
            Self::IndexRolledBack { .. } => "index_rolled_back",
            Self::IndexVersionTooHigh { .. } => "index_version_too_high",
            Self::IndexExpiresTooLate { .. } => "index_expires_too_late",
            Self::IndexWithoutId { .. } => "index_without_id",
            Self::AlreadyPublished { .. } => "already_published",
            Self::NotPublished { .. } => "not_published",
        }
    }

    /// What to do about it, in one line.
    pub fn remedy(&self) -> String {
        match self {
            Self::Manifest(problems) => match problems.0.first() {
                Some(first) if problems.0.len() == 1 => first.to_string(),
                Some(first) => format!("{first}; and {} more", problems.0.len() - 1),
                None => "run `canopy package check` on the package".to_owned(),
            },
            Self::TooLarge { .. } | Self::TooManyFiles { .. } => {
                "make the package smaller: strip the objects, drop files that are not needed"
                    .to_owned()
            }
            Self::Damaged { .. } => {
                "fetch it again; if it stays so, build and publish it again".to_owned()
            }
            Self::Entry { .. } | Self::NoManifest => {
                "build it with `canopy package build`".to_owned()
            }
            Self::WrongPackage { .. } => {
                "publish each package under its own name and version".to_owned()
            }
            Self::Key { .. } => "give the key made by `canopy package keygen` or `minisign -G`: \
                 the file, or for a public key its second line"
                .to_owned(),
            Self::KeyLocked => "sign with `minisign -S`, or use a key made without a password \
                 (`canopy package keygen`, `minisign -G -W`)"
                .to_owned(),
            Self::Signing { .. } => "try again; if it stays so, report it".to_owned(),
            Self::Unsigned { .. } => {
                "sign it (`canopy package sign`) and publish it again".to_owned()
            }
            Self::SignatureFormat { .. } => {
                "sign it again with `canopy package sign` or `minisign -S`".to_owned()
            }
            Self::UntrustedKey { trusted, .. } if trusted.is_empty() => {
                "no key is trusted for it: add its public key to the configuration".to_owned()
            }
            Self::UntrustedKey { trusted, .. } => format!(
                "sign it with a trusted key ({}), or add this one to the configuration",
                trusted.join(", ")
            ),
            Self::KeyExpired { .. } | Self::KeyRevoked { .. } => {
                "sign it again with a key that is trusted".to_owned()
            }
            Self::DigestRevoked { .. } => {
                "ask for another version; its publisher should withdraw this one: `canopy package yank`"
                    .to_owned()
            }
            Self::Tampered { .. } => "do not use it; find out who changed it, then publish the \
                 genuine one again"
                .to_owned(),
            Self::SignedForAnother { .. } => {
                "sign this very file for its own name and version with `canopy package sign`"
                    .to_owned()
            }
            Self::WrongDigest { .. } | Self::WrongLength { .. } => {
                "do not use it; publish the version the index names again".to_owned()
            }
            Self::IndexFormat { .. } => {
                "publish again, or rebuild the index from the packages with \
                 `canopy package publish --rebuild-index`"
                    .to_owned()
            }
            Self::IndexExpired { .. } => {
                "sign the index again: `canopy package publish --refresh-index`".to_owned()
            }
            Self::IndexRolledBack { .. } => {
                "restore the repository's newest index; an older one is not accepted. If the newer \
                 one was a mistake: canopy package trust reset-index"
                    .to_owned()
            }
            Self::IndexVersionTooHigh { .. } => {
                "restore the index before it, or make it anew: `canopy package publish \
                 --rebuild-index`; if it is right, set this machine's clock"
                    .to_owned()
            }
            Self::IndexExpiresTooLate { .. } => {
                "sign the index again with a shorter --expires-in: `canopy package publish \
                 --refresh-index`; if it is right, set this machine's clock"
                    .to_owned()
            }
            Self::IndexWithoutId { .. } => "restore the repository's newest index, or sign it again \
                 with a canopy that is not older: `canopy package publish --refresh-index`"
                .to_owned(),
            Self::AlreadyPublished { .. } => "raise the version in package.yaml".to_owned(),
            Self::NotPublished { .. } => "see `canopy get packages` for what there is".to_owned(),
        }
    }
}

impl From<&PackageError> for ApiError {
    fn from(error: &PackageError) -> Self {
        let mut api = Self::new(error.code(), error.to_string()).remedy(error.remedy());
        if let PackageError::Manifest(problems) = error {
            problems.0.clone_into(&mut api.problems);
        }
        api
    }
}

/// `2026-03-01T12:00:00Z`.
fn day(seconds: u64) -> String {
    let text = rfc3339(UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH));
    text.replace(".000Z", "Z")
}
