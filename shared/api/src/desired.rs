//! What a person writes: which programs should run where, in which order, with which settings.

use crate::{
    document::placeholder::{NOT_EXPANDED, is_placeholder, is_whole_placeholder, not_expanded},
    name::{InterfaceName, PackageName, ProgramName},
    netns::{self, Netns},
    problem::{Problem, Problems},
    selector::{InterfaceSelector, Target},
    verdict::{Verdict, VerdictSet},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value};
use std::{borrow::Cow, collections::BTreeMap, fmt, str::FromStr};

/// Where on an interface a chain is attached.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    /// In the driver (native) or before the stack (generic).
    Xdp,
    /// Traffic control, packets coming in.
    TcIngress,
    /// Traffic control, packets going out.
    TcEgress,
}

impl Hook {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Xdp, Self::TcIngress, Self::TcEgress];

    /// As written in a document.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::TcIngress => "tc-ingress",
            Self::TcEgress => "tc-egress",
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Hook {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|hook| hook.as_str() == text)
            .ok_or_else(|| format!("\"{text}\" is not a hook: one of xdp, tc-ingress, tc-egress"))
    }
}

/// How an XDP chain is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum XdpMode {
    /// Native where the driver can, else generic; the reply says which.
    #[default]
    Best,
    /// In the driver, or not at all.
    Native,
    /// In the stack, before everything else; works on every interface, slower.
    Generic,
}

/// How a TC chain is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TcMode {
    /// By a TCX link where the kernel has those, else by clsact; the reply says which.
    #[default]
    Best,
    /// By a TCX link (Linux 6.6), or not at all.
    Tcx,
    /// By a direct-action filter of a clsact qdisc; works on every kernel. Whoever administers
    /// traffic control can remove or replace it, and it is put back.
    Clsact,
}

impl TcMode {
    /// Whether nothing was chosen.
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
    pub fn is_best(&self) -> bool {
        *self == Self::Best
    }
}

/// Which chain: one interface of one network namespace, one hook.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct ChainKey {
    /// The network namespace; absent for the loader's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// The interface.
    pub interface: InterfaceName,
    /// The hook on it.
    pub hook: Hook,
}

impl ChainKey {
    /// A chain in the loader's own network namespace.
    pub fn new(interface: InterfaceName, hook: Hook) -> Self {
        Self { netns: None, interface, hook }
    }

    /// The chain on the same hook of another interface of the same namespace.
    #[must_use]
    pub fn on(&self, interface: InterfaceName) -> Self {
        Self { netns: self.netns.clone(), interface, hook: self.hook }
    }
}

impl fmt::Display for ChainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.interface, self.hook, netns::In(self.netns.as_ref()))
    }
}

/// A package and the versions of it that will do: `firewall@^0.1`, `ratelimit@0.1.0` (exactly that
/// version), `firewall` (the newest). Requirements are Cargo's, except that a bare full version
/// means exactly it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageRef {
    /// The package.
    pub name: PackageName,
    /// Which versions will do.
    pub requirement: semver::VersionReq,
}

impl FromStr for PackageRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, written) = text.split_once('@').unwrap_or((text, "*"));
        let name = name.parse().map_err(|error: crate::name::NameError| error.to_string())?;
        let exact = semver::Version::parse(written).is_ok();
        let requirement = if exact { format!("={written}") } else { written.to_owned() };
        let requirement = semver::VersionReq::parse(&requirement).map_err(|_| {
            if is_placeholder(text) || is_placeholder(written) {
                return format!("\"{text}\" {NOT_EXPANDED}; expand it before, or write the version");
            }
            format!(
                "\"{written}\" in \"{text}\" is not a version requirement; write name@requirement, such as \
                 firewall@^0.1 or firewall@0.1.0"
            )
        })?;
        Ok(Self { name, requirement })
    }
}

impl fmt::Display for PackageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.requirement)
    }
}

impl Serialize for PackageRef {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PackageRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for PackageRef {
    fn schema_name() -> Cow<'static, str> {
        "PackageRef".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[a-z0-9][a-z0-9_-]{0,62}(@.+)?$",
            "description": "name@requirement: firewall@^0.1, ratelimit@0.1.0 (exactly), firewall (newest)"
        })
    }
}

/// What should run on a host. Each chain named here is replaced as a whole; chains not named are
/// left alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DesiredState {
    /// The chains, each (network namespace, interface, hook) at most once.
    #[serde(default)]
    pub chains: Vec<ChainSpec>,
}

/// The ordered programs on one (interface, hook).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChainSpec {
    /// The network namespace that the interface is in: a name of ip-netns (`blue`), the absolute path of
    /// a namespace's file or a process (`pid:4711`). Absent for the loader's own. The loader needs
    /// `CAP_SYS_ADMIN` to enter another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// The interface, by name or by what it is. `eth0`, a pattern such as `eth*`, `default-route`,
    /// `mac:<address>` or `altname:<name>`. What is not a plain name gives every interface that fits a
    /// chain of its own, also one that appears later; where several fit, the most specific counts, in
    /// the order name, altname, mac, default-route, pattern.
    pub interface: InterfaceSelector,
    /// The hook on it.
    pub hook: Hook,
    /// How an XDP chain is attached; only with `hook: xdp`. Default `best`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xdp_mode: Option<XdpMode>,
    /// How a TC chain is attached; only with `hook: tc-ingress` and `tc-egress`. Default `best`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tc_mode: Option<TcMode>,
    /// The programs; an empty list removes the chain.
    pub programs: Vec<ProgramSpec>,
}

impl ChainSpec {
    /// What this describes.
    pub fn target(&self) -> Target {
        Target { netns: self.netns.clone(), interface: self.interface.clone(), hook: self.hook }
    }
}

/// One program of a chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProgramSpec {
    /// Its name in the chain.
    pub name: ProgramName,
    /// The package it comes from.
    pub package: PackageRef,
    /// Which program of the package; may be left out when the package has one for this hook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// Its place: low runs first, equal ones by name. 0 to 65535; default from the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u16>,
    /// The verdicts after which the chain goes on. Default from the manifest, else the hook's:
    /// `pass` for XDP; `ok`, `pipe`, `unspec` for TC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proceed_on: Option<Vec<String>>,
    /// Settings, as the package's manifest declares them.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub config: Map<String, Value>,
}

impl ProgramSpec {
    /// The verdicts of `proceed_on`, if given; unknown names are problems at `path`.
    pub fn proceed_on(&self, hook: Hook, path: &str) -> Result<Option<VerdictSet>, Problems> {
        self.proceed_on.as_ref().map(|names| parse_proceed_on(names, hook, path)).transpose()
    }
}

/// Verdict names to a set; each unknown name is a problem at `path[i]`.
pub fn parse_proceed_on(names: &[String], hook: Hook, path: &str) -> Result<VerdictSet, Problems> {
    let mut set = Vec::new();
    let mut problems = Problems::default();
    for (i, name) in names.iter().enumerate() {
        match Verdict::parse(hook, name) {
            Some(verdict) => set.push(verdict),
            None => problems.push(
                Problem::new(
                    format!("{path}[{i}]"),
                    format!("\"{name}\" is not a verdict of {hook}"),
                )
                .remedy(format!("one of {}", Verdict::names(hook).join(", "))),
            ),
        }
    }
    problems.into_result()?;
    Ok(set.into_iter().collect())
}

impl DesiredState {
    /// Checks what the schema cannot: duplicates and verdicts. Paths start with `chains`.
    pub fn check(&self) -> Result<(), Problems> {
        let mut problems = Problems::default();
        let mut seen = BTreeMap::new();
        for (c, chain) in self.chains.iter().enumerate() {
            let at = format!("chains[{c}]");
            if let Some(first) = seen.insert(chain.target(), c) {
                problems.push(
                    Problem::new(
                        &at,
                        format!("{} is already described by chains[{first}]", chain.target()),
                    )
                    .remedy("merge the two: a chain is replaced as a whole"),
                );
            }
            let netns = chain.netns.as_ref().map(ToString::to_string);
            let interface = chain.interface.to_string();
            for (field, name) in [("interface", Some(&interface)), ("netns", netns.as_ref())] {
                if let Some(name) = name.filter(|name| is_placeholder(name)) {
                    problems.push(not_expanded(format!("{at}.{field}"), name));
                }
            }
            let xdp = chain.hook == Hook::Xdp;
            for (field, misplaced) in [
                ("xdp_mode", chain.xdp_mode.is_some() && !xdp),
                ("tc_mode", chain.tc_mode.is_some() && xdp),
            ] {
                if misplaced {
                    problems.push(
                        Problem::new(
                            format!("{at}.{field}"),
                            format!("{field} has no meaning on {}", chain.hook),
                        )
                        .remedy("remove it"),
                    );
                }
            }
            let mut names = BTreeMap::new();
            for (p, program) in chain.programs.iter().enumerate() {
                let at = format!("{at}.programs[{p}]");
                if let Some(first) = names.insert(&program.name, p) {
                    problems.push(
                        Problem::new(
                            format!("{at}.name"),
                            format!(
                                "\"{}\" is already the name of programs[{first}]",
                                program.name
                            ),
                        )
                        .remedy("give each program of a chain its own name"),
                    );
                }
                if let Err(bad) = program.proceed_on(chain.hook, &format!("{at}.proceed_on")) {
                    problems.0.extend(bad.0);
                }
                let texts = [("program", program.program.as_ref())];
                for (field, text) in texts {
                    if let Some(text) = text.filter(|text| is_placeholder(text)) {
                        problems.push(not_expanded(format!("{at}.{field}"), text));
                    }
                }
                for (name, value) in &program.config {
                    if is_placeholder(name) {
                        problems.push(not_expanded(format!("{at}.config"), name));
                    }
                    placeholders(value, &format!("{at}.config.{name}"), &mut problems);
                }
            }
        }
        problems.into_result()
    }
}

/// Every value of a setting that is a placeholder and nothing else.
fn placeholders(value: &Value, path: &str, problems: &mut Problems) {
    match value {
        Value::String(text) if is_whole_placeholder(text) => {
            problems.push(not_expanded(path.to_owned(), text));
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                placeholders(item, &format!("{path}[{i}]"), problems);
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                placeholders(field, &format!("{path}.{name}"), problems);
            }
        }
        _ => {}
    }
}
