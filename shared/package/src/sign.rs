//! minisign signatures (Ed25519 over `BLAKE2b`, <https://jedisct1.github.io/minisign/>).
//!
//! The files are those of the stock `minisign` tool, in both directions. A package's signature
//! carries a trusted comment that binds name, version and digest, so that a genuine signature of
//! one package cannot pass for another's:
//!
//! ```text
//! trusted comment: package=firewall version=0.1.0 digest=sha256:5d41…
//! ```

mod verified;

use crate::{
    error::PackageError,
    trusted_versions::{IndexSource, RepositoryId},
};
use canopy_api::{Digest, PackageName};
use minisign::{KeyPair, SecretKeyBox, SignatureBox};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::{borrow::Cow, fmt, io::Cursor, str::FromStr};

/// Longest signature file that is read, bytes. A real one has about 300.
const SIGNATURE_LIMIT: usize = 8 * 1024;

/// What stands before a repository's id in the trusted comment of its index. Readers from before ids look
/// at nothing there.
const REPOSITORY: &str = " repository=";

const PACKAGE: &str = "the package file";
const INDEX: &str = "the index";

/// A minisign public key: the base64 line of a `.pub` file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct PublicKey(String);

impl PublicKey {
    /// The base64 line.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key's id as minisign shows it: 16 hexadecimal digits.
    pub fn id(&self) -> String {
        self.parsed().map(|key| id(key.keynum())).unwrap_or_default()
    }

    /// The content of a `.pub` file.
    pub fn to_file(&self) -> String {
        format!("untrusted comment: minisign public key {}\n{}\n", self.id(), self.0)
    }

    fn parsed(&self) -> Option<minisign::PublicKey> {
        minisign::PublicKey::from_base64(&self.0).ok()
    }
}

/// From the base64 line, or the whole content of a `.pub` file.
impl FromStr for PublicKey {
    type Err = PackageError;

    fn from_str(text: &str) -> Result<Self, PackageError> {
        let line = text
            .lines()
            .map(str::trim)
            .find(|line| !line.is_empty() && !line.starts_with("untrusted comment:"))
            .unwrap_or_default();
        let well_formed = minisign::PublicKey::from_base64(line)
            .is_ok_and(|key| key.to_bytes().starts_with(b"Ed"));
        if well_formed {
            Ok(Self(line.to_owned()))
        } else {
            let shown: String = line.chars().take(64).collect();
            Err(PackageError::Key { what: "public key", text: shown })
        }
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for PublicKey {
    fn schema_name() -> Cow<'static, str> {
        "PublicKey".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^RW[A-Za-z0-9+/]{54}$",
            "description": "A minisign public key: the second line of a .pub file"
        })
    }
}

/// A key somebody trusts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrustedKey {
    /// The key.
    pub key: PublicKey,
    /// Seconds since the epoch after which its signatures count no more. Default: no end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<u64>,
    /// Its signatures count nowhere. Default false.
    #[serde(default)]
    pub revoked: bool,
}

impl From<PublicKey> for TrustedKey {
    fn from(key: PublicKey) -> Self {
        Self { key, not_after: None, revoked: false }
    }
}

/// A minisign secret key, unlocked. Never printed.
#[derive(Clone)]
pub struct SecretKey(minisign::SecretKey);

impl SecretKey {
    /// A new one, without a password: whoever writes the file keeps it at mode 0600.
    pub fn generate() -> Result<Self, PackageError> {
        KeyPair::generate_unencrypted_keypair().map(|pair| Self(pair.sk)).map_err(signing)
    }

    /// From the content of a secret key file; one without a password.
    pub fn from_file(text: &str) -> Result<Self, PackageError> {
        let malformed = || PackageError::Key { what: "secret key", text: String::new() };
        if text.len() > SIGNATURE_LIMIT {
            return Err(malformed());
        }
        let boxed = || SecretKeyBox::from_string(text).map_err(|_| malformed());
        match boxed()?.into_unencrypted_secret_key() {
            Ok(key) => Ok(Self(key)),
            Err(error) if error.to_string() == "Key might be encrypted" => {
                Err(PackageError::KeyLocked)
            }
            Err(_) => Err(malformed()),
        }
    }

    /// The content of a secret key file.
    pub fn to_file(&self) -> Result<String, PackageError> {
        self.0
            .to_box(Some("minisign secret key, without a password"))
            .map(|boxed| boxed.to_string())
            .map_err(signing)
    }

    /// The key that checks its signatures.
    pub fn public(&self) -> Result<PublicKey, PackageError> {
        minisign::PublicKey::from_secret_key(&self.0)
            .map(|key| PublicKey(key.to_base64()))
            .map_err(signing)
    }

    /// Signs a package file; returns the content of its `.minisig`.
    pub fn sign_package(
        &self,
        bytes: &[u8],
        name: &PackageName,
        version: &semver::Version,
    ) -> Result<String, PackageError> {
        self.sign(bytes, &comment(name, version, &Digest::of(bytes)))
    }

    /// Signs an index of a repository; returns the content of its `.minisig`.
    pub fn sign_index(
        &self,
        bytes: &[u8],
        version: u64,
        repository: Option<&RepositoryId>,
    ) -> Result<String, PackageError> {
        let mut comment = format!("index version={version}");
        if let Some(repository) = repository {
            comment.push_str(REPOSITORY);
            comment.push_str(repository.as_str());
        }
        self.sign(bytes, &comment)
    }

    fn sign(&self, bytes: &[u8], trusted_comment: &str) -> Result<String, PackageError> {
        minisign::sign(
            None,
            &self.0,
            Cursor::new(bytes),
            Some(trusted_comment),
            Some("signature from canopy"),
        )
        .map(minisign::SignatureBox::into_string)
        .map_err(signing)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", id(self.0.keynum()))
    }
}

/// What a package's trusted comment says. `minisign -S -t "$(canopy package comment FILE)"` needs
/// exactly this.
pub fn comment(name: &PackageName, version: &semver::Version, digest: &Digest) -> String {
    format!("package={name} version={version} digest={digest}")
}

/// Name, version and digest of the package that a signature file is for, as its trusted comment says.
/// **Nothing is verified**: [`verify_package`] does.
pub fn told(signature: &str) -> Option<(PackageName, semver::Version, Digest)> {
    let comment = signature.lines().find_map(|line| line.strip_prefix("trusted comment: "))?;
    let mut words = comment.split(' ').zip(["package=", "version=", "digest="]);
    let mut next = || words.next().and_then(|(word, key)| word.strip_prefix(key));
    let (name, version, digest) = (next()?, next()?, next()?);
    Some((name.parse().ok()?, version.parse().ok()?, digest.parse().ok()?))
}

/// Checks a package file's signature and that its trusted comment says exactly this name, version
/// and digest. Returns the key that made it.
pub fn verify_package(
    bytes: &[u8],
    signature: &str,
    keys: &[TrustedKey],
    now: u64,
    name: &PackageName,
    version: &semver::Version,
    digest: &Digest,
) -> Result<PublicKey, PackageError> {
    let found = Digest::of(bytes);
    if found != *digest {
        return Err(PackageError::WrongDigest { wanted: digest.clone(), found });
    }
    let (key, found) = verify(PACKAGE, bytes, signature, keys, now)?;
    let wanted = comment(name, version, digest);
    if found == wanted { Ok(key) } else { Err(PackageError::SignedForAnother { wanted, found }) }
}

/// Checks an index's signature. Returns the repository that it is of and the key that made it.
pub fn verify_index(
    bytes: &[u8],
    signature: &str,
    keys: &[TrustedKey],
    now: u64,
) -> Result<IndexSource, PackageError> {
    let (key, comment) = verify(INDEX, bytes, signature, keys, now)?;
    Ok(IndexSource { repository: repository_in(&comment)?, key })
}

/// The repository that an index's signature says it is of. **Nothing is verified**: [`verify_index`] does.
pub fn told_repository(signature: &str) -> Option<RepositoryId> {
    let comment = signature.lines().find_map(|line| line.strip_prefix("trusted comment: "))?;
    repository_in(comment).ok().flatten()
}

fn repository_in(comment: &str) -> Result<Option<RepositoryId>, PackageError> {
    comment.split_once(REPOSITORY).map(|(_, id)| id.trim_end().parse()).transpose()
}

/// Key and trusted comment of a good signature.
fn verify(
    what: &'static str,
    bytes: &[u8],
    signature: &str,
    keys: &[TrustedKey],
    now: u64,
) -> Result<(PublicKey, String), PackageError> {
    let text = signature;
    let signature = read(what, text)?;
    let key = id(signature.keynum());
    // Several entries may have one id: the id is chosen by whoever makes a key. One of them must
    // check the signature, and none of those that do may be revoked.
    let candidates: Vec<_> = keys.iter().filter(|trusted| trusted.key.id() == key).collect();
    if candidates.is_empty() {
        let trusted = keys.iter().filter(|key| !key.revoked).map(|key| key.key.id()).collect();
        return Err(PackageError::UntrustedKey { what, key, trusted });
    }
    let signed = Digest::of(bytes);
    let checks = |trusted: &&&TrustedKey| {
        verified::fact(&trusted.key, text, &signed, || {
            trusted.key.parsed().is_some_and(|public| {
                minisign::verify(&public, &signature, Cursor::new(bytes), true, false, false)
                    .is_ok()
            })
        })
    };
    let good: Vec<_> = candidates.iter().filter(checks).collect();
    let Some(maker) = good.first() else {
        return Err(PackageError::Tampered { what, key });
    };
    if good.iter().any(|trusted| trusted.revoked) {
        return Err(PackageError::KeyRevoked { what, key });
    }
    // Listed twice, the longer time counts.
    let not_after = good.iter().map(|trusted| trusted.not_after.unwrap_or(u64::MAX)).max();
    if let Some(not_after) = not_after.filter(|end| *end < now) {
        return Err(PackageError::KeyExpired { what, key, not_after });
    }
    let comment = signature
        .trusted_comment()
        .map_err(|error| PackageError::SignatureFormat { what, reason: error.to_string() })?;
    Ok((maker.key.clone(), comment))
}

/// Reads a signature file. The library indexes into the last line's bytes without looking at
/// their number, so that number is checked here first.
fn read(what: &'static str, text: &str) -> Result<SignatureBox, PackageError> {
    let malformed = |reason: String| PackageError::SignatureFormat { what, reason };
    if text.trim().is_empty() {
        return Err(PackageError::Unsigned { what });
    }
    if text.len() > SIGNATURE_LIMIT {
        return Err(malformed(format!("it is longer than {SIGNATURE_LIMIT} bytes")));
    }
    let lines: Vec<_> = text.lines().collect();
    let [_, signature, _, global] = lines.as_slice() else {
        return Err(malformed(format!("it has {} lines, not 4", lines.len())));
    };
    let length = |line: &str| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.decode(line.trim()).map(|bytes| bytes.len()).ok()
    };
    // 2 bytes algorithm, 8 key id, 64 signature; and 64 for the one over the trusted comment.
    if length(signature) != Some(74) || length(global) != Some(64) {
        return Err(malformed("a line is not base64 of a signature's length".to_owned()));
    }
    let signature =
        SignatureBox::from_string(text).map_err(|error| malformed(error.to_string()))?;
    if !signature.is_prehashed() {
        return Err(malformed("it is of the legacy kind, made with `minisign -l`".to_owned()));
    }
    Ok(signature)
}

/// minisign shows the eight bytes as a little-endian number.
fn id(keynum: &[u8]) -> String {
    hex::encode_upper(keynum.iter().rev().copied().collect::<Vec<_>>())
}

#[expect(clippy::needless_pass_by_value, reason = "the form map_err wants")]
fn signing(error: minisign::PError) -> PackageError {
    PackageError::Signing { reason: error.to_string() }
}
