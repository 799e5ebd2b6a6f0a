//! Whose packages may run here, and the checks that make it so. The registry checks first; what it
//! says counts for nothing here.

use canopy_api::{Digest, PackageName, Problem, Problems, wire::ResolveReply};
use canopy_package::{
    Index, IndexSource, Limits, Package, PackageError, PublicKey, TrustedKey, index::IndexEntry,
    sign::verify_package,
};
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;

/// A rule: these packages need a signature by one of these keys.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Trust {
    /// Names of packages; `*` stands for any text.
    #[schemars(length(min = 1))]
    pub packages: Vec<String>,
    /// Keys whose signatures count; any of them.
    #[serde(default)]
    pub keys: Vec<TrustedKey>,
    /// Keys whose signatures count on the index that names the packages, where its owner is not who
    /// publishes them. Default: `keys`.
    #[serde(default)]
    pub index_keys: Vec<TrustedKey>,
    /// Digests of package files (`sha256:…`) that are refused, whoever signed them. What runs already
    /// goes on until it is changed.
    #[serde(default)]
    pub revoked: Vec<Digest>,
    /// Whether signatures are needed.
    #[serde(default)]
    pub signatures: SignatureCheck,
}

/// Whether signatures are needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SignatureCheck {
    /// The package and the index that names it are signed, or the package is refused.
    #[default]
    Required,
    /// Anything the registry offers runs in the kernel. Never on a machine that matters.
    SkipForDevelopment,
}

impl Trust {
    /// Keys whose signatures count on the index that names the packages.
    pub fn keys_of_index(&self) -> &[TrustedKey] {
        if self.index_keys.is_empty() { &self.keys } else { &self.index_keys }
    }

    /// What the schema cannot check.
    pub fn check(&self, at: &str) -> Result<(), Problems> {
        let mut problems = Problems::default();
        if self.keys.is_empty() && self.signatures == SignatureCheck::Required {
            problems.push(
                Problem::new(format!("{at}.keys"), "no key: no package could ever pass")
                    .remedy("name the public keys of those who publish them"),
            );
        }
        for (i, pattern) in self.packages.iter().enumerate() {
            let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-*".contains(&b);
            if pattern.is_empty() || !pattern.bytes().all(fine) {
                problems.push(
                    Problem::new(
                        format!("{at}.packages[{i}]"),
                        format!("\"{pattern}\" cannot match a package name"),
                    )
                    .remedy("write a name, with * for any text: firewall, acme-*, *"),
                );
            }
        }
        problems.into_result()
    }
}

/// The rule for a package: the first that names it.
pub fn rule<'a>(rules: &'a [Trust], package: &PackageName) -> Option<&'a Trust> {
    rules.iter().find(|rule| rule.packages.iter().any(|pattern| matches(pattern, package.as_str())))
}

/// Whether a text is as a pattern says, `*` standing for any text.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.get(at..).is_some_and(|rest| matches(tail, rest)))
        }),
    }
}

/// What the signed index says of a package version, and the index with where it comes from (`None` where
/// signatures are skipped). `at_least` says the highest index version seen of a source: an older index is
/// refused, however well signed.
pub fn check_index(
    rule: &Trust,
    reply: &ResolveReply,
    version: &semver::Version,
    now: u64,
    at_least: impl FnOnce(&IndexSource) -> Result<u64, PackageError>,
) -> Result<(IndexEntry, Option<(Index, IndexSource)>), PackageError> {
    let (index, source) = match (&reply.index, &reply.index_signature, rule.signatures) {
        (Some(index), Some(signature), SignatureCheck::Required) => {
            Index::open_seen(&index.0, signature, rule.keys_of_index(), now, at_least)?
        }
        (None, _, SignatureCheck::Required) | (_, None, SignatureCheck::Required) => {
            return Err(PackageError::Unsigned { what: "the index" });
        }
        (_, _, SignatureCheck::SkipForDevelopment) => {
            let entry = IndexEntry {
                name: reply.package.clone(),
                version: version.clone(),
                digest: reply.version.digest.clone(),
                length: reply.version.length,
                yanked: reply.version.yanked,
            };
            entry.not_revoked(&rule.revoked)?;
            return Ok((entry, None));
        }
    };
    let entry = index.entry(&reply.package, version).ok_or_else(|| PackageError::NotPublished {
        name: reply.package.clone(),
        version: version.clone(),
    })?;
    if entry.digest != reply.version.digest {
        return Err(PackageError::WrongDigest {
            wanted: entry.digest.clone(),
            found: reply.version.digest.clone(),
        });
    }
    entry.not_revoked(&rule.revoked)?;
    Ok((entry.clone(), Some((index, source))))
}

/// Checks the bytes of a package against the index's entry and its signature, and opens it, unless
/// these bytes were opened before. With it the key that signed it, where signatures count.
pub fn check_package(
    rule: &Trust,
    entry: &IndexEntry,
    (bytes, signature): (&[u8], Option<&str>),
    opened: Option<Arc<Package>>,
    limits: &Limits,
    now: u64,
) -> Result<(Arc<Package>, Option<PublicKey>), PackageError> {
    entry.check(bytes)?;
    let signed_by = match (rule.signatures, signature) {
        (SignatureCheck::Required, Some(signature)) => {
            let IndexEntry { name, version, digest, .. } = entry;
            Some(verify_package(bytes, signature, &rule.keys, now, name, version, digest)?)
        }
        (SignatureCheck::Required, None) => {
            return Err(PackageError::Unsigned { what: "the package file" });
        }
        (SignatureCheck::SkipForDevelopment, _) => None,
    };
    let package = match opened {
        Some(opened) => opened,
        None => Arc::new(Package::open(bytes, limits)?),
    };
    let manifest = &package.manifest;
    if manifest.name != entry.name || manifest.version != entry.version {
        return Err(PackageError::WrongPackage {
            wanted: format!("{} {}", entry.name, entry.version),
            found: format!("{} {}", manifest.name, manifest.version),
        });
    }
    Ok((package, signed_by))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names() {
        for (pattern, text, yes) in [
            ("*", "firewall", true),
            ("fire*", "firewall", true),
            ("*wall", "firewall", true),
            ("f*w*l", "firewall", true),
            ("firewall", "firewall", true),
            ("firewall", "firewalls", false),
            ("wall*", "firewall", false),
            ("", "firewall", false),
        ] {
            assert_eq!(matches(pattern, text), yes, "{pattern} {text}");
        }
    }
}
