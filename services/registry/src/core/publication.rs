//! Whether a new index is the one before with what a publisher asked for, and nothing else.

use canopy_api::{Digest, PackageName};
use canopy_package::{Index, IndexEntry};
use semver::Version;

/// What a publisher says that the new index changes.
#[derive(Clone, Copy, Debug)]
pub enum Named<'a> {
    /// It names these files.
    Packages(&'a [Digest]),
    /// A version is withdrawn, or brought back.
    Yank {
        /// The package.
        name: &'a PackageName,
        /// Its version.
        version: &'a Version,
        /// Whether it is withdrawn.
        yanked: bool,
    },
}

/// Why a new index is not what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unasked {
    /// Its version does not rise by one.
    #[error(
        "the new index has version {new}, the one before has {old}: over the bus it rises by one"
    )]
    Version {
        /// Of the index that is there.
        old: u64,
        /// Of the new one.
        new: u64,
    },
    /// It is of another repository.
    #[error("the new index is not of the same repository as the one before")]
    Repository,
    /// Something is not in it any more.
    #[error("the new index leaves out {name} {version}")]
    LeftOut {
        /// The package.
        name: PackageName,
        /// Its version.
        version: Version,
    },
    /// A version has other bytes.
    #[error("{name} {version} is already published with other bytes")]
    OtherBytes {
        /// The package.
        name: PackageName,
        /// Its version.
        version: Version,
    },
    /// Something else changes.
    #[error("the new index changes {name} {version}, which was not asked for")]
    Changed {
        /// The package.
        name: PackageName,
        /// Its version.
        version: Version,
    },
    /// What was asked for is not in it.
    #[error("the new index does not name {what}")]
    Missing {
        /// A digest, or a package and its version.
        what: String,
    },
}

/// The entries of the new index that are published, withdrawn or brought back.
///
/// # Errors
///
/// When it says anything else that the one before does not say.
pub fn changes(old: &Index, new: &Index, named: Named<'_>) -> Result<Vec<IndexEntry>, Unasked> {
    if old.version.checked_add(1) != Some(new.version) {
        return Err(Unasked::Version { old: old.version, new: new.version });
    }
    if old.repository.is_some() && new.repository != old.repository {
        return Err(Unasked::Repository);
    }
    for IndexEntry { name, version, digest, .. } in &old.packages {
        let (name, version) = (name.clone(), version.clone());
        match new.entry(&name, &version) {
            None => return Err(Unasked::LeftOut { name, version }),
            Some(now) if now.digest != *digest => {
                return Err(Unasked::OtherBytes { name, version });
            }
            Some(_) => {}
        }
    }
    let mut changed = Vec::new();
    for entry in &new.packages {
        let before = old.entry(&entry.name, &entry.version);
        let asked = match named {
            // The same file once more is well, and ends a withdrawal.
            Named::Packages(digests) => !entry.yanked && digests.contains(&entry.digest),
            Named::Yank { name, version, yanked } => {
                (&entry.name, &entry.version, entry.yanked) == (name, version, yanked)
                    && before.is_some_and(|before| before.length == entry.length)
            }
        };
        if asked {
            changed.push(entry.clone());
        } else if before != Some(entry) {
            let (name, version) = (entry.name.clone(), entry.version.clone());
            return Err(Unasked::Changed { name, version });
        }
    }
    let missing = match named {
        Named::Packages(digests) => digests
            .iter()
            .find(|digest| !changed.iter().any(|entry| entry.digest == **digest))
            .map(ToString::to_string),
        Named::Yank { name, version, .. } => {
            changed.is_empty().then(|| format!("{name} {version} so"))
        }
    };
    missing.map_or(Ok(changed), |what| Err(Unasked::Missing { what }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, version: &str, bytes: &str, yanked: bool) -> IndexEntry {
        IndexEntry {
            name: name.parse().unwrap(),
            version: version.parse().unwrap(),
            digest: Digest::of(bytes.as_bytes()),
            length: bytes.len() as u64,
            yanked,
        }
    }

    fn index(version: u64, packages: &[IndexEntry]) -> Index {
        Index { version, packages: packages.to_vec(), ..Index::default() }
    }

    #[test]
    fn what_is_asked_for_may_change_and_nothing_else() {
        let [a, b, c] = [
            entry("a", "1.0.0", "a", false),
            entry("b", "1.0.0", "b", false),
            entry("c", "1.0.0", "c", false),
        ];
        let old = index(4, &[a.clone(), b.clone()]);
        let digests = [c.digest.clone()];
        let add = Named::Packages(&digests);
        let good = index(5, &[a.clone(), b.clone(), c.clone()]);
        assert_eq!(changes(&old, &good, add).unwrap(), std::slice::from_ref(&c));
        // The same file again, and a new expiry alone.
        let again = changes(&good, &index(6, &good.packages), add).unwrap();
        assert_eq!(again, std::slice::from_ref(&c));
        assert_eq!(changes(&old, &index(5, &old.packages), Named::Packages(&[])).unwrap(), []);

        let yanked = |entry: &IndexEntry| IndexEntry { yanked: true, ..entry.clone() };
        let other = IndexEntry { digest: Digest::of(b"x"), ..b.clone() };
        let longer = IndexEntry { length: 9, ..b.clone() };
        for (new, said) in [
            (index(4, &good.packages), "has version 4"),
            (index(3, &good.packages), "has version 3"),
            (index(5, &[b.clone(), c.clone()]), "leaves out a 1.0.0"),
            (index(5, &[a.clone(), other, c.clone()]), "b 1.0.0 is already published"),
            (index(5, &[a.clone(), longer, c.clone()]), "changes b 1.0.0"),
            (index(5, &[a.clone(), yanked(&b), c.clone()]), "changes b 1.0.0"),
            (index(5, &[a.clone(), b.clone(), yanked(&c)]), "changes c 1.0.0"),
            (index(5, &old.packages), "does not name sha256:"),
            (
                index(5, &[a.clone(), b.clone(), c.clone(), entry("d", "1.0.0", "d", false)]),
                "changes d 1.0.0",
            ),
        ] {
            let error = changes(&old, &new, add).unwrap_err();
            assert!(error.to_string().contains(said), "{error}, not {said}");
        }

        let named = |entry: &IndexEntry| (entry.name.clone(), entry.version.clone());
        let (name, version) = named(&b);
        let yank = Named::Yank { name: &name, version: &version, yanked: true };
        let withdrawn = index(5, &[a.clone(), yanked(&b)]);
        assert_eq!(changes(&old, &withdrawn, yank).unwrap(), [yanked(&b)]);
        for (new, said) in [
            (index(5, &old.packages), "does not name b 1.0.0 so"),
            (index(5, &[yanked(&a), yanked(&b)]), "changes a 1.0.0"),
            (index(5, &[a.clone(), yanked(&b), c.clone()]), "changes c 1.0.0"),
            (index(5, std::slice::from_ref(&a)), "leaves out b 1.0.0"),
        ] {
            let error = changes(&old, &new, yank).unwrap_err();
            assert!(error.to_string().contains(said), "{error}, not {said}");
        }
        let undo = Named::Yank { name: &name, version: &version, yanked: false };
        assert_eq!(changes(&withdrawn, &index(6, &[a, b.clone()]), undo).unwrap(), [b]);
        // Nobody is brought in by bringing back.
        let (name, version) = named(&c);
        let undo = Named::Yank { name: &name, version: &version, yanked: false };
        assert!(changes(&old, &good, undo).is_err());
    }
}
