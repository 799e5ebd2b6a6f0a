//! Which version a requirement means, and why none does.

use canopy_api::PackageName;
use canopy_package::{Index, IndexEntry, check::release, manifest::Requires};
use semver::VersionReq;

/// Versions looked into for one that fits the host; beyond them the host is simply too old.
pub const CANDIDATES: usize = 32;

/// The host a version is wanted for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Platform<'a> {
    /// Machine architecture, as in `uname -m`.
    pub arch: Option<&'a str>,
    /// Kernel release.
    pub kernel: Option<&'a str>,
}

/// What a package needs that the host has not; `None` when it fits.
pub fn lacking(requires: &Requires, platform: Platform<'_>) -> Option<String> {
    if let (Some(least), Some(kernel)) = (&requires.kernel, platform.kernel)
        && numbers(kernel) < numbers(least)
    {
        return Some(format!("kernel {least} or later; the host has {kernel}"));
    }
    let arch = platform.arch.filter(|_| !requires.arch.is_empty())?;
    if requires.arch.iter().any(|known| known == arch) {
        return None;
    }
    Some(format!("{}; the host is {arch}", requires.arch.join(" or ")))
}

/// `6.18.0-rc1-amd64` to (6, 18, 0); missing numbers are 0.
fn numbers(text: &str) -> [u32; 3] {
    let plain = text.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default();
    let plain = plain.trim_end_matches('.');
    let parts = release(plain)
        .unwrap_or_else(|| plain.split('.').map_while(|part| part.parse().ok()).collect());
    let mut parts = parts.into_iter();
    std::array::from_fn(|_| parts.next().unwrap_or(0))
}

/// Why a requirement has no version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Absent {
    /// What exists, newest first, at most ten.
    pub exist: Vec<String>,
    /// How many more exist.
    pub more: usize,
    /// The newest that would match, were it not withdrawn.
    pub yanked: Option<String>,
    /// The newest that would match, were it not a pre-release.
    pub prerelease: Option<String>,
}

/// Looks for the reason that [`Index::matching`] is empty.
pub fn absent(index: &Index, name: &PackageName, requirement: &VersionReq) -> Absent {
    let usable = || index.versions(name).filter(|entry| !entry.yanked);
    let exist: Vec<_> = usable().take(10).map(|entry| entry.version.to_string()).collect();
    let newest = |entry: Option<&IndexEntry>| entry.map(|entry| entry.version.to_string());
    // A pre-release of a version that would match.
    let released = |entry: &&IndexEntry| {
        let mut version = entry.version.clone();
        version.pre = semver::Prerelease::EMPTY;
        !entry.version.pre.is_empty() && requirement.matches(&version)
    };
    Absent {
        more: usable().count() - exist.len(),
        exist,
        yanked: newest(
            index.versions(name).find(|entry| entry.yanked && requirement.matches(&entry.version)),
        ),
        prerelease: newest(usable().find(released)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(versions: &[(&str, bool)]) -> Index {
        let mut packages: Vec<_> = versions
            .iter()
            .map(|(version, yanked)| IndexEntry {
                name: "p".parse().unwrap(),
                version: version.parse().unwrap(),
                digest: canopy_api::Digest::of(version.as_bytes()),
                length: 1,
                yanked: *yanked,
            })
            .collect();
        packages.sort_by(|a, b| a.version.cmp(&b.version));
        Index { version: 1, packages, ..Index::default() }
    }

    fn first(index: &Index, requirement: &str) -> Option<String> {
        let (name, requirement) = ("p".parse().unwrap(), requirement.parse().unwrap());
        let mut found = index.matching(&name, &requirement);
        found.next().map(|entry| entry.version.to_string())
    }

    #[test]
    fn the_newest_that_matches_and_is_not_withdrawn() {
        let index =
            index(&[("0.1.0", false), ("0.1.10", false), ("0.1.9", false), ("0.1.11", true)]);
        assert_eq!(first(&index, "^0.1").as_deref(), Some("0.1.10"));
        assert_eq!(first(&index, "*").as_deref(), Some("0.1.10"));
        assert_eq!(first(&index, "=0.1.11"), None);
    }

    #[test]
    fn pre_releases_only_when_asked() {
        let index = index(&[("1.0.0", false), ("1.1.0-rc.1", false)]);
        assert_eq!(first(&index, "*").as_deref(), Some("1.0.0"));
        assert_eq!(first(&index, ">=1.1.0-rc.1").as_deref(), Some("1.1.0-rc.1"));
        let absent = absent(&index, &"p".parse().unwrap(), &"^1.1".parse().unwrap());
        assert_eq!(absent.prerelease.as_deref(), Some("1.1.0-rc.1"));
    }

    #[test]
    fn the_reason_is_told() {
        let index = index(&[("1.0.0", false), ("2.0.0", true)]);
        let absent = absent(&index, &"p".parse().unwrap(), &"^2".parse().unwrap());
        assert_eq!(absent.exist, ["1.0.0"]);
        assert_eq!(absent.yanked.as_deref(), Some("2.0.0"));
    }

    #[test]
    fn a_host_must_have_what_a_package_needs() {
        let requires = Requires {
            kernel: Some("6.6".to_owned()),
            arch: vec!["x86_64".to_owned()],
            features: Vec::new(),
        };
        let at =
            |kernel, arch| lacking(&requires, Platform { kernel: Some(kernel), arch: Some(arch) });
        assert_eq!(at("6.18.0-rc1-amd64", "x86_64"), None);
        assert_eq!(at("6.6", "x86_64"), None);
        assert!(at("6.1.0-18-amd64", "x86_64").unwrap().contains("6.6"));
        assert!(at("6.18+", "riscv64").unwrap().contains("x86_64"));
        assert_eq!(lacking(&requires, Platform::default()), None);
    }
}
