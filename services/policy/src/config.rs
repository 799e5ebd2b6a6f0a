//! Configuration of the service.

use crate::{audit::AuditConfig, limits::LimitsConfig};
use canopy_admission::is_label;
use canopy_api::{HostId, Principal, Problem, Problems, permission::Role, san::SanPatterns};
use canopy_audit::CheckpointKey;
use canopy_bus::BusConfig;
use canopy_identity::{Authority, SigningKey};
use canopy_runtime::{NamedFiles, RuntimeConfig, ServiceConfig};
use canopy_secrets::Secret;
use canopy_store::SecretSource;
use schemars::JsonSchema;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

/// Most a clock may be off, seconds.
const MOST_SKEW: u64 = 300;

/// Configuration of the policy service. The file is looked at every second: new `rules`, `people` and
/// `hosts` are used without a restart, as is what says so in `auth`; a file with a mistake changes
/// nothing.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How to reach the bus. The certificate's URI name is `spiffe://canopy/s-policy`.
    pub bus: BusConfig,
    /// Who may connect: the bus server asks this service. Without it the server's own configuration
    /// says so, and there are no tokens.
    #[serde(default)]
    pub auth: Option<AuthConfig>,
    /// Where audit records are kept. Without it none is stored, and this service keeps none of its own.
    /// Needs `auth`, whose connection to what is stored it uses.
    #[serde(default)]
    pub audit: Option<AuditConfig>,
    /// Logs, metrics, traces.
    #[serde(default)]
    pub runtime: RuntimeConfig,
    /// The file with the admission rules, JSON or YAML; looked at every second. Without one whoever the
    /// bus lets through may change hosts.
    #[serde(default)]
    pub rules: Option<PathBuf>,
    /// The roles of people, by their names on the bus, for rules that speak of roles. Only without
    /// `auth`: with it the role is the token's.
    #[serde(default)]
    pub people: BTreeMap<Principal, Person>,
    /// Hosts, for rules that speak of labels.
    #[serde(default)]
    pub hosts: BTreeMap<HostId, Host>,
}

/// A person.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Person {
    /// Their role.
    pub role: Role,
}

/// A host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Its labels: `{ "env": "prod" }`. Names and values are 1 to 63 letters, digits, '_', '.', '-'; names
    /// may have '/'.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Who may connect.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuthConfig {
    /// Certificate of the connection in which the server asks.
    pub callout: Files,
    /// Certificate of the connection to what is stored.
    pub data: Files,
    /// Certificate of the connection that ends others.
    pub system: Files,
    /// Seeds (`SU…`) of the keys by which the server knows this service's own connections; their
    /// certificates' names count for nothing there. `canopy-policy nkeys` makes them.
    pub nkeys: NkeySeeds,
    /// Seed (`SA…`) of the key that the server's configuration names as `issuer`. Whoever has it can
    /// be anybody on the bus.
    pub issuer_seed: SecretSource,
    /// Seed (`SX…`) of the key that the server's configuration names as `xkey`.
    pub xkey_seed: SecretSource,
    /// Keys that sign people's tokens, Ed25519 in PEM. The first signs; tokens of all of them are
    /// believed, so that a new key can be put before the old one, and the old one taken away when
    /// its tokens have been regenerated. Changed without a restart.
    #[schemars(length(min = 1))]
    pub signing_keys: Vec<SecretSource>,
    /// Certificates of people: one of these has to fit. Default: `[{"uri": {"glob":
    /// "spiffe://canopy/u-*"}}]`. A certificate with a name of ours (`spiffe://canopy/…`) is that
    /// person's only, whatever fits. Changed without a restart.
    #[serde(default = "people")]
    pub people: SanPatterns,
    /// Hosts' daemons: `enrolled` (default), those whose certificate was enrolled with `canopy host
    /// enrol`; or `any`: whoever has a certificate of the authority with a host's name, which is for
    /// development. Changed without a restart.
    #[serde(default)]
    pub hosts: HostsRule,
    /// The authority that signs certificates of hosts' daemons. Without it, those it has signed
    /// elsewhere are enrolled. Changed without a restart.
    #[serde(default)]
    pub ca: Option<CaConfig>,
    /// By how much clocks may differ, seconds: at most 300. Default 30. Changed without a restart.
    #[serde(default = "clock_skew")]
    pub clock_skew_seconds: u64,
    /// How often the keys above are read again, so that one that was rotated where it is kept is used
    /// without a restart, seconds: 1 to 86400. Default 300. The issuer's and the encryption key need one.
    #[serde(default = "secrets_seconds")]
    pub secrets_seconds: u64,
    /// How much of the bus each principal may use. Changed without a restart.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Servers of a cluster that keep what is stored: 1, 3 or 5. Default 1.
    #[serde(default = "replicas")]
    pub replicas: usize,
}

/// The seeds of the keys of this service's own connections. Whoever has one of them and any certificate of
/// the bus's authority is that connection.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NkeySeeds {
    /// Of the connection that answers requests, whose certificate is the one of `bus`.
    pub app: SecretSource,
    /// Of the connection in which the server asks.
    pub callout: SecretSource,
    /// Of the connection to what is stored.
    pub data: SecretSource,
    /// Of the connection that ends others.
    pub system: SecretSource,
}

impl NkeySeeds {
    /// Each, by the name of its field.
    pub(crate) fn all(&self) -> [(&'static str, &SecretSource); 4] {
        [
            ("auth.nkeys.app", &self.app),
            ("auth.nkeys.callout", &self.callout),
            ("auth.nkeys.data", &self.data),
            ("auth.nkeys.system", &self.system),
        ]
    }
}

/// Which daemons of hosts may connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostsRule {
    /// Those of enrolled hosts.
    #[default]
    Enrolled,
    /// Any with a certificate of the authority; whoever can have one signed is a host.
    Any,
}

/// The authority that signs hosts' certificates.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CaConfig {
    /// PEM file of its certificate, which the bus server trusts: the bus's authority, or one of its
    /// own below it.
    pub cert: PathBuf,
    /// Its key, PKCS #8 in PEM.
    pub key: SecretSource,
    /// How long the certificates it signs are valid, days: 1 to 825. Default 90.
    #[serde(default = "ca_days")]
    pub days: u16,
}

/// Longest life of a host's certificate, days.
const MOST_DAYS: u16 = 825;

fn ca_days() -> u16 {
    90
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// PEM file of the certificate.
    pub cert: PathBuf,
    /// PEM file of its key: this service's user's, mode 0600 or less.
    pub key: PathBuf,
}

fn people() -> SanPatterns {
    use canopy_api::san::{Expression, NamePattern, SanPattern};
    // The pattern is a constant that a test reads.
    let glob = Expression::new("spiffe://canopy/u-*").map(NamePattern::Glob).map(SanPattern::Uri);
    SanPatterns(glob.into_iter().collect())
}

fn secrets_seconds() -> u64 {
    300
}

fn clock_skew() -> u64 {
    30
}

fn replicas() -> usize {
    1
}

/// Says so where the content of a secret is not what it has to be; what it is is not repeated.
fn parsed<E: fmt::Display>(
    (field, source): (&str, &SecretSource),
    content: Option<Secret>,
    files: &mut NamedFiles,
    parse: impl FnOnce(&str) -> Result<(), E>,
) {
    if let Some(Err(error)) = content.map(|content| parse(&content)) {
        files.push(
            Problem::new(field, format!("{source} cannot be used: {error}"))
                .remedy("canopy-policy keys --output DIR makes such keys"),
        );
    }
}

impl ServiceConfig for Config {
    fn runtime(&self) -> &RuntimeConfig {
        &self.runtime
    }

    fn check_files(&self, files: &mut NamedFiles) {
        files.bus(&self.bus.ca, &self.bus.cert, &self.bus.key);
        if let Some(rules) = &self.rules {
            crate::rules::check_file("rules", rules, files);
        }
        if let Some(audit) = &self.audit {
            files.directory("audit.dir", &audit.dir);
            let key = audit.signing_key.check_file("audit.signing_key", files);
            let at = ("audit.signing_key", &audit.signing_key);
            parsed(at, key, files, |pem| CheckpointKey::from_pem(pem).map(drop));
        }
        let Some(auth) = &self.auth else { return };
        for (field, Files { cert, key }) in
            [("callout", &auth.callout), ("data", &auth.data), ("system", &auth.system)]
        {
            let (cert_field, key_field) =
                (format!("auth.{field}.cert"), format!("auth.{field}.key"));
            files.certificate_and_key((&cert_field, cert), (&key_field, key));
        }
        for (field, seed) in auth.nkeys.all() {
            seed.check_file(field, files);
        }
        auth.issuer_seed.check_file("auth.issuer_seed", files);
        auth.xkey_seed.check_file("auth.xkey_seed", files);
        for (index, key) in auth.signing_keys.iter().enumerate() {
            let field = format!("auth.signing_keys[{index}]");
            let pem = key.check_file(&field, files);
            parsed((&field, key), pem, files, |pem| SigningKey::from_pem(pem).map(drop));
        }
        if let Some(ca) = &auth.ca {
            files.authorities("auth.ca.cert", &ca.cert);
            let key = ca.key.check_file("auth.ca.key", files);
            parsed(("auth.ca.key", &ca.key), key, files, |key| {
                // A certificate that cannot be read is told already.
                let certificate = canopy_files::read_text(&ca.cert, 1 << 20).unwrap_or_default();
                if certificate.is_empty() {
                    return Ok(());
                }
                Authority::new(&certificate, key).map(drop)
            });
        }
    }

    fn own_key(&self) -> Option<&Path> {
        Some(&self.bus.key)
    }

    fn check(&self) -> Result<(), Problems> {
        let mut problems = Problems::default();
        for (host, Host { labels }) in &self.hosts {
            for (name, value) in labels {
                if !is_label(name, true) || !is_label(value, false) {
                    problems.push(
                        Problem::new(
                            format!("hosts.{host}.labels.{name}"),
                            format!("{name}={value} is not a label"),
                        )
                        .remedy("name and value are 1 to 63 letters, digits, '_', '.' and '-'"),
                    );
                }
            }
        }
        if let Some(audit) = &self.audit {
            audit.check(&mut problems);
            if self.auth.is_none() {
                problems.push(
                    Problem::new("audit", "without `auth` there is nowhere to store records")
                        .remedy("give `auth` as well, or leave `audit` out"),
                );
            }
        }
        let Some(auth) = &self.auth else { return problems.into_result() };
        if !self.people.is_empty() {
            problems.push(
                Problem::new("people", "with `auth`, people's roles are those of their tokens")
                    .remedy("leave it out; canopy token list tells the roles"),
            );
        }
        if auth.signing_keys.is_empty() {
            problems.push(
                Problem::new("auth.signing_keys", "there is none, so no token can be issued")
                    .remedy("canopy-policy keys --output DIR makes one"),
            );
        }
        if auth.people.0.is_empty() {
            problems.push(
                Problem::new("auth.people", "there is no pattern, so nobody can connect")
                    .remedy("leave it out for the default"),
            );
        }
        if auth.clock_skew_seconds > MOST_SKEW {
            problems.push(
                Problem::new(
                    "auth.clock_skew_seconds",
                    format!("{} s is more than {MOST_SKEW}", auth.clock_skew_seconds),
                )
                .remedy("let the clocks be set by NTP, and allow 30"),
            );
        }
        if let Some(ca) = auth.ca.as_ref().filter(|ca| !(1..=MOST_DAYS).contains(&ca.days)) {
            problems.push(
                Problem::new("auth.ca.days", format!("{} days is not 1 to {MOST_DAYS}", ca.days))
                    .remedy("leave it out for 90; daemons renew with canopy host renew"),
            );
        }
        if !(1..=86_400).contains(&auth.secrets_seconds) {
            problems.push(
                Problem::new(
                    "auth.secrets_seconds",
                    format!("{} s is not 1 to 86400", auth.secrets_seconds),
                )
                .remedy("leave it out for 300"),
            );
        }
        auth.limits.check(&mut problems);
        auth.issuer_seed.check("auth.issuer_seed", &mut problems);
        auth.xkey_seed.check("auth.xkey_seed", &mut problems);
        for (at, seed) in auth.nkeys.all() {
            seed.check(at, &mut problems);
        }
        for (i, key) in auth.signing_keys.iter().enumerate() {
            key.check(&format!("auth.signing_keys[{i}]"), &mut problems);
        }
        if let Some(ca) = &auth.ca {
            ca.key.check("auth.ca.key", &mut problems);
        }
        if ![1, 3, 5].contains(&auth.replicas) {
            problems.push(Problem::new("auth.replicas", "1, 3 or 5 servers can keep a value"));
        }
        problems.into_result()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_people_are_ours() {
        let names = |uri: &str| canopy_api::san::SubjectNames {
            uri: vec![uri.to_owned()],
            ..canopy_api::san::SubjectNames::default()
        };
        assert!(people().fit(&names("spiffe://canopy/u-alice")));
        assert!(!people().fit(&names("spiffe://canopy/s-registry")));
        assert!(!people().fit(&names("spiffe://canopy/u-alice/admin")));
    }
}
