//! The registry's configuration file.

use crate::core::route::{Pattern, overlaps};
use canopy_api::{Digest, PackageName, Problem, Problems};
use canopy_bus::BusConfig;
use canopy_package::TrustedKey;
use canopy_runtime::{NamedFiles, RuntimeConfig, ServiceConfig};
use canopy_store::{Location, StoreConfig};
use schemars::JsonSchema;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Where packages come from, and whose signatures count. The file is looked at every second: new
/// `repositories`, `refresh_seconds` and `cache_bytes` are used without a restart, and a file with a
/// mistake changes nothing; `bus`, `state_dir`, `audit` and `runtime` are read at the start only.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How to reach the bus.
    pub bus: BusConfig,
    /// Logs, metrics, traces.
    #[serde(default)]
    pub runtime: RuntimeConfig,
    /// The repositories, at least one. A package comes from the one with the most specific
    /// pattern for its name.
    #[schemars(length(min = 1))]
    pub repositories: Vec<RepositoryConfig>,
    /// Seconds between looking at all repositories. Whoever asks for a version has its repository
    /// looked at in any case. 1 to 86400; default 30.
    #[serde(default = "default_refresh")]
    #[schemars(range(min = 1, max = 86400))]
    pub refresh_seconds: u64,
    /// A directory of this instance's own for the highest index versions that it has verified, so that after
    /// a restart it refuses older states of the repositories: `/var/lib/canopy/registry`. Default: beside the
    /// directory of `audit`, with its name and `-indexes`; without `audit` they are forgotten when the process
    /// ends.
    #[serde(default)]
    pub state_dir: Option<PathBuf>,
    /// Verified package files kept in memory, bytes. Default 256 MiB.
    #[serde(default = "default_cache")]
    pub cache_bytes: u64,
    /// Where this instance keeps the audit trail of what is published and withdrawn through it:
    /// `/var/lib/canopy/registry/audit`. What cannot be recorded there is not done. Without it records
    /// are told on the bus and kept nowhere.
    #[serde(default)]
    pub audit: Option<AuditConfig>,
}

/// An audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditConfig {
    /// A directory of this instance's own.
    pub dir: PathBuf,
    /// Bytes kept there; the oldest records go first. At least 65536; default 64 MiB.
    #[serde(default = "default_audit")]
    #[schemars(range(min = 65536))]
    pub bytes: u64,
}

/// A trail of a few records would be of no use.
const LEAST_AUDIT: u64 = 65_536;

fn default_audit() -> u64 {
    64 << 20
}

fn default_refresh() -> u64 {
    30
}

fn default_cache() -> u64 {
    256 << 20
}

fn default_timeout() -> u64 {
    4
}

/// A repository.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RepositoryConfig {
    /// Its name, for people: `starter`.
    pub name: String,
    /// Where it is: a directory (`file:///srv/canopy/packages`; the path is taken as it stands), a
    /// web server (`https://packages.example.org/canopy`), or a bucket: of S3 or of a store that
    /// speaks its protocol (`s3://bucket/folder`) or of Azure (`az://container/folder`). Credentials do
    /// not stand in it.
    pub url: String,
    /// How a web server or a bucket is reached.
    #[serde(default)]
    pub store: StoreConfig,
    /// The packages that come from it: names, each with at most one `*` for any text. `firewall`
    /// is more specific than `fire*`, and that more than `*`.
    #[schemars(length(min = 1))]
    pub packages: Vec<String>,
    /// Keys whose signatures count, on packages and index.
    #[serde(default)]
    pub keys: Vec<TrustedKey>,
    /// Keys for some packages of the repository, instead of `keys`: of several entries that name a
    /// package the most specific counts. The index is signed by one of `keys` in any case.
    #[serde(default)]
    pub package_keys: Vec<PackageKeys>,
    /// Digests of package files (`sha256:…`) that are refused, whoever signed them.
    #[serde(default)]
    pub revoked: Vec<Digest>,
    /// What must be signed. Default `signed`.
    #[serde(default)]
    pub trust: Trust,
    /// Whether people of a role with the class `publish` publish to it over the bus, through this
    /// registry, which then needs to be able to write there. Signatures count as ever: the registry has
    /// no key. Default false.
    #[serde(default)]
    pub writable: bool,
    /// Seconds a read may take, tries again included. 1 to 60; default 4.
    #[serde(default = "default_timeout")]
    #[schemars(range(min = 1, max = 60))]
    pub timeout_seconds: u64,
}

/// Keys for some packages of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PackageKeys {
    /// The packages: names, each with at most one `*` for any text.
    #[schemars(length(min = 1))]
    pub packages: Vec<String>,
    /// Keys whose signatures count on them.
    #[schemars(length(min = 1))]
    pub keys: Vec<TrustedKey>,
}

/// What must be signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// Index and packages, by one of the keys.
    #[default]
    Signed,
    /// DANGER: nothing. A directory of loose `.cpkg` files will do. For a developer's own machine:
    /// whoever can write there runs code in the kernel of every host that believes this registry.
    UnsignedDevelopment,
}

impl RepositoryConfig {
    /// The keys whose signatures count on a package.
    pub fn keys_of(&self, name: &PackageName) -> &[TrustedKey] {
        let all = self.package_keys.iter().flat_map(|own| {
            let patterns = own.packages.iter().filter_map(|text| text.parse::<Pattern>().ok());
            patterns.map(move |pattern| (pattern, &own.keys))
        });
        all.filter(|(pattern, _)| pattern.matches(name.as_str()))
            .max_by_key(|(pattern, _)| pattern.specificity())
            .map_or(&self.keys, |(_, keys)| keys)
    }

    fn check_package_keys(&self, at: &str, problems: &mut Problems) {
        let mut known: Vec<(Pattern, usize)> = Vec::new();
        for (i, own) in self.package_keys.iter().enumerate() {
            let at = format!("{at}.package_keys[{i}]");
            if own.keys.iter().all(|key| key.revoked) {
                problems.push(
                    Problem::new(format!("{at}.keys"), "no key is trusted for these packages")
                        .remedy("name the public keys of those who publish them"),
                );
            }
            for (p, text) in own.packages.iter().enumerate() {
                let at = format!("{at}.packages[{p}]");
                let Ok(pattern) = text.parse::<Pattern>() else {
                    problems.push(
                        Problem::new(at, format!("\"{text}\" cannot match a package name"))
                            .remedy("a name such as firewall, or one with a * such as net-*"),
                    );
                    continue;
                };
                let clash = known.iter().find(|(other, of)| {
                    *of != i
                        && other.specificity() == pattern.specificity()
                        && overlaps(other, &pattern)
                });
                if let Some((other, _)) = clash {
                    problems.push(
                        Problem::new(
                            at,
                            format!(
                                "\"{pattern}\" is as specific as \"{other}\", and a name can match both"
                            ),
                        )
                        .remedy("make one of them more specific"),
                    );
                }
                known.push((pattern, i));
            }
        }
        if self.trust == Trust::UnsignedDevelopment && !self.package_keys.is_empty() {
            problems.push(
                Problem::new(
                    format!("{at}.package_keys"),
                    "keys mean nothing with trust: unsigned-development",
                )
                .remedy("remove the keys, or write trust: signed"),
            );
        }
    }

    fn check(&self, at: &str, problems: &mut Problems) {
        if self.name.parse::<PackageName>().is_err() {
            problems.push(
                Problem::new(
                    format!("{at}.name"),
                    format!("\"{}\" is not a repository's name", self.name),
                )
                .remedy("1 to 63 of a-z, 0-9, '_' and '-', starting with a letter or digit"),
            );
        }
        match Location::parse(&self.url) {
            Ok(location) => {
                self.store.check(&location, at, problems);
                if self.writable && matches!(location, Location::Web(_)) {
                    problems.push(
                        Problem::new(
                            format!("{at}.writable"),
                            "nothing can be written through a web server",
                        )
                        .remedy("name the directory it serves, or the bucket"),
                    );
                }
                if self.trust == Trust::UnsignedDevelopment && !location.is_directory() {
                    problems.push(
                        Problem::new(
                            format!("{at}.trust"),
                            "unsigned-development is for a directory of this machine",
                        )
                        .remedy("sign the packages, or serve a directory"),
                    );
                }
            }
            Err(bad) => {
                problems.push(Problem::new(format!("{at}.url"), bad.message).remedy(bad.remedy));
            }
        }
        for (i, pattern) in self.packages.iter().enumerate() {
            if let Err(problem) = pattern.parse::<Pattern>() {
                problems.push(
                    Problem::new(format!("{at}.packages[{i}]"), problem.to_string())
                        .remedy("a name such as firewall, or one with a * such as net-*"),
                );
            }
        }
        self.check_package_keys(at, problems);
        if self.writable && self.trust == Trust::UnsignedDevelopment {
            problems.push(
                Problem::new(
                    format!("{at}.writable"),
                    "without signatures anybody who may publish could publish anything",
                )
                .remedy("write trust: signed with keys, or put the files there yourself"),
            );
        }
        match self.trust {
            Trust::Signed if self.keys.iter().all(|key| key.revoked) => problems.push(
                Problem::new(format!("{at}.keys"), "no key is trusted, so nothing can be served")
                    .remedy("add the public key made by `canopy package keygen`"),
            ),
            Trust::UnsignedDevelopment if !self.keys.is_empty() => problems.push(
                Problem::new(
                    format!("{at}.keys"),
                    "keys mean nothing with trust: unsigned-development",
                )
                .remedy("remove the keys, or write trust: signed"),
            ),
            Trust::Signed | Trust::UnsignedDevelopment => {}
        }
    }
}

impl RepositoryConfig {
    fn check_files(&self, at: &str, files: &mut NamedFiles) {
        if let Ok(Location::Directory(dir)) = Location::parse(&self.url) {
            let field = format!("{at}.url");
            if self.writable {
                files.directory(&field, &dir);
            } else {
                files.readable_directory(&field, &dir);
            }
        }
        self.store.check_files(&format!("{at}.store"), files);
    }
}

impl Config {
    /// Where the highest index versions are kept where nothing is said: beside the audit trail.
    pub fn default_state_dir(&self) -> Option<PathBuf> {
        let audit = self.audit.as_ref()?;
        let mut name = audit.dir.file_name()?.to_owned();
        name.push("-indexes");
        Some(audit.dir.with_file_name(name))
    }
}

impl ServiceConfig for Config {
    fn runtime(&self) -> &RuntimeConfig {
        &self.runtime
    }

    fn check_files(&self, files: &mut NamedFiles) {
        files.bus(&self.bus.ca, &self.bus.cert, &self.bus.key);
        if let Some(dir) = &self.state_dir {
            files.directory("state_dir", dir);
        } else if let Some(dir) = self.default_state_dir() {
            let without = "after a restart an older state of a repository is not recognised here";
            files.optional_directory("state_dir", &dir, without);
        }
        if let Some(audit) = &self.audit {
            files.directory("audit.dir", &audit.dir);
        }
        for (index, repository) in self.repositories.iter().enumerate() {
            repository.check_files(&format!("repositories[{index}]"), files);
        }
    }

    fn own_key(&self) -> Option<&Path> {
        Some(&self.bus.key)
    }

    fn check(&self) -> Result<(), Problems> {
        let mut problems = Problems::default();
        if let Some(audit) = self.audit.as_ref().filter(|audit| audit.bytes < LEAST_AUDIT) {
            problems.push(
                Problem::new("audit.bytes", format!("{} is less than {LEAST_AUDIT}", audit.bytes))
                    .remedy("leave it out for the default"),
            );
        }
        if let Some(dir) = self.state_dir.as_ref().filter(|dir| !dir.is_absolute()) {
            let said = format!("{} is not an absolute path", dir.display());
            problems.push(Problem::new("state_dir", said).remedy("write it from /"));
        }
        let mut names = BTreeMap::new();
        let mut patterns: Vec<(Pattern, usize)> = Vec::new();
        for (r, repository) in self.repositories.iter().enumerate() {
            let at = format!("repositories[{r}]");
            repository.check(&at, &mut problems);
            if let Some(first) = names.insert(&repository.name, r) {
                problems.push(
                    Problem::new(
                        format!("{at}.name"),
                        format!(
                            "\"{}\" is already the name of repositories[{first}]",
                            repository.name
                        ),
                    )
                    .remedy("give each its own name"),
                );
            }
            for (p, text) in repository.packages.iter().enumerate() {
                let Ok(pattern) = text.parse::<Pattern>() else { continue };
                let clash = patterns.iter().find(|(known, of)| {
                    *of != r
                        && known.specificity() == pattern.specificity()
                        && overlaps(known, &pattern)
                });
                if let Some((known, of)) = clash {
                    problems.push(
                        Problem::new(
                            format!("{at}.packages[{p}]"),
                            format!(
                                "\"{pattern}\" is as specific as \"{known}\" of repositories[{of}], \
                                 and a name can match both"
                            ),
                        )
                        .remedy("make one of them more specific"),
                    );
                }
                patterns.push((pattern, r));
            }
        }
        problems.into_result()
    }
}
