//! The document: rules, and the conditions under which each applies.

use crate::glob::{Glob, LONGEST};
use canopy_api::{
    Hook, Problem, Problems,
    permission::Role,
    wire::{AdmissionVerb, RuleEffect},
};
use canopy_package::PublicKey;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use semver::VersionReq;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

/// Most rules of a set: a question is compared with each.
pub const MAX_RULES: usize = 500;

/// Admission rules. A change is allowed when at least one `allow` applies to each of its parts and no
/// `deny` applies to any; the order of the rules decides nothing. What no rule allows is denied.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleSet {
    /// The rules, at most 500, each name once.
    #[schemars(length(max = 500))]
    pub rules: Vec<Rule>,
}

/// A rule: what it does to the parts of a request that meet its conditions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its name, told in every decision it makes: 1 to 63 of a-z, 0-9, '_' and '-'.
    #[schemars(
        regex(pattern = r"^[a-z0-9][a-z0-9_-]{0,62}$"),
        extend("x-rule" = "1 to 63 of a-z, 0-9, '_' and '-', starting with a letter or digit")
    )]
    pub name: String,
    /// `allow`, or `deny`, which no `allow` overrules.
    pub effect: RuleEffect,
    /// Why, for whoever is refused by it. Required of a `deny`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 300))]
    pub reason: Option<String>,
    /// It applies where all of these hold. Without any it applies to everything.
    #[serde(default, skip_serializing_if = "Conditions::is_empty")]
    pub when: Conditions,
    /// Except where all of these hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unless: Option<Conditions>,
}

/// Conditions. All that are given must hold; of a list one entry must fit. A condition on something
/// that a part of a request does not have does not hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Conditions {
    /// Roles of whoever asks. Somebody whom policy does not know has none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<Role>,
    /// Who asks: names on the bus, such as `u-alice`, `u-ci-*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<Glob>,
    /// What is done. `share-map` is allowed only by a rule that names it here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verbs: Vec<AdmissionVerb>,
    /// Packages, and which versions of them: `firewall`, `acme-*`, `firewall@^0.1`, `*@>=1.0`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<PackagePattern>,
    /// Public keys of whoever signed the package, as the loader verified it. Known of what is applied or
    /// comes to share a map, not of what is deleted, drained or written to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publishers: Vec<PublicKey>,
    /// Hooks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
    /// Interfaces, by name: `eth0`, `eth*`. A selector that may stand for others too (`e*`,
    /// `default-route`) is allowed only by a pattern that is for all of them, and denied by one that is
    /// for any; so are the interfaces that two selectors stand for together. `default-route`, `mac:…` and `altname:…` are selectors written exactly so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Glob>,
    /// Maps that are written, followed or shared, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub maps: Vec<Glob>,
    /// The other package that has the map, of a `share-map`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shared_with: Vec<Glob>,
    /// Hosts, by id.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Glob>,
    /// Labels of the host, each with the values that will do: `{ env: [prod, stage-*] }`. A host without
    /// the label does not meet it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Vec<Glob>>,
}

impl Conditions {
    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A pattern of package names, and which versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackagePattern {
    /// The names.
    pub name: Glob,
    /// Which versions; `None` for all.
    pub requirement: Option<VersionReq>,
}

impl FromStr for PackagePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, requirement) = match text.split_once('@') {
            Some((name, requirement)) => (name, Some(requirement)),
            None => (text, None),
        };
        let requirement = requirement.map(|requirement| {
            // As in documents: a bare full version means exactly it.
            let exact = semver::Version::parse(requirement).is_ok();
            let text = if exact { format!("={requirement}") } else { requirement.to_owned() };
            VersionReq::parse(&text).map_err(|error| {
                format!("\"{requirement}\": {error}; write name@requirement, such as firewall@^0.1")
            })
        });
        Ok(Self { name: Glob::new(name), requirement: requirement.transpose()? })
    }
}

impl fmt::Display for PackagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.requirement {
            Some(requirement) => write!(f, "{}@{requirement}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

impl Serialize for PackagePattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PackagePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for PackagePattern {
    fn schema_name() -> Cow<'static, str> {
        "PackagePattern".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[a-z0-9_*?-]{1,63}(@.+)?$",
            "description": "a package's name or a pattern of names, and @requirement for some versions only: firewall, acme-*, firewall@^0.1"
        })
    }
}

impl RuleSet {
    /// What the schema cannot check; every mistake, with its path.
    pub fn check(&self) -> Result<(), Problems> {
        let mut problems = Problems::default();
        let mut names = BTreeMap::new();
        for (i, rule) in self.rules.iter().enumerate() {
            let at = format!("rules[{i}]");
            if let Some(first) = names.insert(&rule.name, i) {
                problems.push(
                    Problem::new(
                        format!("{at}.name"),
                        format!("\"{}\" is already the name of rules[{first}]", rule.name),
                    )
                    .remedy("give each rule its own name: decisions tell it"),
                );
            }
            if rule.effect == RuleEffect::Deny && rule.reason.is_none() {
                problems.push(
                    Problem::new(format!("{at}.reason"), "a deny says why")
                        .remedy("write what whoever is refused should know, and whom to ask"),
                );
            }
            if rule.reason.as_ref().is_some_and(|reason| reason.contains(char::is_control)) {
                problems.push(
                    Problem::new(format!("{at}.reason"), "a reason is one line")
                        .remedy("write it without line breaks (in YAML: > or quotes)"),
                );
            }
            check(&rule.when, &format!("{at}.when"), &mut problems);
            if let Some(unless) = &rule.unless {
                if unless.is_empty() {
                    problems.push(
                        Problem::new(
                            format!("{at}.unless"),
                            "without a condition the rule would never apply",
                        )
                        .remedy("name the exception, or remove `unless`"),
                    );
                }
                check(unless, &format!("{at}.unless"), &mut problems);
            }
        }
        problems.into_result()
    }
}

/// What can stand in names of a kind, and the beginnings one of which they must have.
struct Kind {
    what: &'static str,
    may_have: fn(u8) -> bool,
    begins: &'static [&'static str],
    example: &'static str,
}

fn token(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-'
}

const PRINCIPAL: Kind = Kind {
    what: "a name on the bus",
    may_have: token,
    begins: &["u-", "s-", "h-"],
    example: "u-alice, u-ci-*",
};
const HOST: Kind =
    Kind { what: "a host id", may_have: token, begins: &[""], example: "web1, web*" };
const PACKAGE: Kind =
    Kind { what: "a package's name", may_have: token, begins: &[""], example: "firewall, acme-*" };
const INTERFACE: Kind = Kind {
    what: "an interface's name",
    may_have: |b| b.is_ascii_graphic() && b != b'/',
    begins: &[""],
    example: "eth0, eth*",
};
const MAP: Kind = Kind {
    what: "a map's name",
    may_have: |b| b.is_ascii_alphanumeric() || b"_.-".contains(&b),
    begins: &[""],
    example: "fw_blocked, .data",
};
const LABEL: Kind = Kind {
    what: "a label's value",
    may_have: |b| b.is_ascii_alphanumeric() || b"_.-".contains(&b),
    begins: &[""],
    example: "prod, stage-*",
};

/// Whether a text can be a label's name or value: 1 to 63 letters, digits, '_', '.', '-', and '/' in a
/// name.
pub fn is_label(text: &str, name: bool) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b) || (name && b == b'/'))
}

fn check(conditions: &Conditions, at: &str, problems: &mut Problems) {
    let Conditions {
        roles,
        principals,
        verbs,
        packages,
        publishers,
        hooks,
        interfaces,
        maps,
        shared_with,
        hosts,
        labels,
    } = conditions;
    // Of these a type has made all that can be wrong impossible.
    let _ = (roles, verbs, publishers, hooks);
    patterns(principals, &PRINCIPAL, &format!("{at}.principals"), problems);
    let names: Vec<_> = packages.iter().map(|package| package.name.clone()).collect();
    patterns(&names, &PACKAGE, &format!("{at}.packages"), problems);
    for (i, package) in packages.iter().enumerate() {
        if package.requirement.as_ref().is_some_and(|requirement| !can_be_met(requirement)) {
            problems.push(
                Problem::new(
                    format!("{at}.packages[{i}]"),
                    format!("\"{package}\" fits no version"),
                )
                .remedy("correct the requirement: >=1.0, <2.0"),
            );
        }
    }
    patterns(interfaces, &INTERFACE, &format!("{at}.interfaces"), problems);
    patterns(maps, &MAP, &format!("{at}.maps"), problems);
    patterns(shared_with, &PACKAGE, &format!("{at}.shared_with"), problems);
    patterns(hosts, &HOST, &format!("{at}.hosts"), problems);
    for (name, values) in labels {
        let at = format!("{at}.labels.{name}");
        if !is_label(name, true) {
            problems.push(
                Problem::new(&at, format!("\"{name}\" is not a label's name"))
                    .remedy("1 to 63 letters, digits, '_', '.', '-' and '/'"),
            );
        }
        if values.is_empty() {
            problems.push(
                Problem::new(&at, "no value will do, so that the rule never applies")
                    .remedy(format!("list the values: {name}: [prod]; any: {name}: [\"*\"]")),
            );
        }
        patterns(values, &LABEL, &at, problems);
    }
}

fn patterns(globs: &[Glob], kind: &Kind, at: &str, problems: &mut Problems) {
    for (i, glob) in globs.iter().enumerate() {
        let text = glob.as_str();
        let legal = text.bytes().all(|b| b == b'*' || b == b'?' || (kind.may_have)(b));
        let begins = kind.begins.iter().any(|begin| glob.overlaps(&Glob::new(format!("{begin}*"))));
        if !legal || !begins || text.is_empty() || text.len() > LONGEST {
            problems.push(
                Problem::new(
                    format!("{at}[{i}]"),
                    format!("\"{text}\" matches nothing: it cannot be {}", kind.what),
                )
                .remedy(format!("write a name or a pattern, such as {}", kind.example)),
            );
        }
    }
}

/// Whether any version meets a requirement. A requirement is an intersection of ranges; if it is not
/// empty, the beginning of one of them is in it.
fn can_be_met(requirement: &VersionReq) -> bool {
    let mut beginnings = BTreeSet::from([semver::Version::new(0, 0, 0)]);
    for comparator in &requirement.comparators {
        let (major, minor, patch) =
            (comparator.major, comparator.minor.unwrap_or(0), comparator.patch.unwrap_or(0));
        let mut add = |major, minor, patch| {
            beginnings.insert(semver::Version::new(major, minor, patch));
        };
        add(major, minor, patch);
        add(major, minor, patch.saturating_add(1));
        add(major, minor.saturating_add(1), 0);
        add(major.saturating_add(1), 0, 0);
        let mut pre = semver::Version::new(major, minor, patch);
        pre.pre = comparator.pre.clone();
        beginnings.insert(pre.clone());
        // The version after a pre-release is that with one more field.
        if let Ok(next) = semver::Prerelease::new(&format!("{}.0", comparator.pre)) {
            pre.pre = next;
            beginnings.insert(pre);
        }
    }
    beginnings.iter().any(|version| requirement.matches(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_requirement_that_no_version_meets_is_known() {
        for (text, met) in [
            ("*", true),
            ("^0.1", true),
            (">1.2", true),
            (">1", true),
            (">=1.0, <2", true),
            ("<0.1", true),
            (">1.2.3-rc.1, <1.2.3", true),
            ("=1.0.0-rc.1", true),
            (">2, <1", false),
            ("^1, ^2", false),
            (">=1.2.0, <1.2.0", false),
            ("<0.0.0", false),
        ] {
            assert_eq!(can_be_met(&text.parse().unwrap()), met, "{text}");
        }
    }
}
