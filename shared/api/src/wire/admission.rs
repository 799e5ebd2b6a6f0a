//! Admission: may this person do this here.

use crate::{
    desired::Hook,
    name::{HostId, PackageName, Principal, ProgramName},
    netns::{self, Netns},
    permission::Role,
    selector::InterfaceSelector,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, fmt, str::FromStr};

/// What is done to a host: what rules speak of.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum AdmissionVerb {
    /// A program is put into a chain, or stays in one that is applied again.
    Apply,
    /// A program goes back to an older version.
    Downgrade,
    /// A program is taken out of a chain: by `delete`, or by applying a chain without it.
    Delete,
    /// A program is detached with all others of its host.
    Drain,
    /// A drain is undone.
    Undrain,
    /// Entries of a program's map are written.
    MapSet,
    /// Entries of a program's map are removed.
    MapDelete,
    /// What a program puts into a ring buffer is read from it and published.
    MapFollow,
    /// Run times of a program are taken, as of all others of its host.
    Profile,
    /// A program comes to use a map together with a program of another publisher. Only a rule that names
    /// this verb allows it.
    ShareMap,
}

impl AdmissionVerb {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Apply,
        Self::Downgrade,
        Self::Delete,
        Self::Drain,
        Self::Undrain,
        Self::MapSet,
        Self::MapDelete,
        Self::MapFollow,
        Self::Profile,
        Self::ShareMap,
    ];

    /// As written in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "apply",
            Self::Downgrade => "downgrade",
            Self::Delete => "delete",
            Self::Drain => "drain",
            Self::Undrain => "undrain",
            Self::MapSet => "map-set",
            Self::MapDelete => "map-delete",
            Self::MapFollow => "map-follow",
            Self::Profile => "profile",
            Self::ShareMap => "share-map",
        }
    }

    /// Whether only a rule that names the verb allows it: one without verbs does not.
    pub fn is_named_only(self) -> bool {
        self == Self::ShareMap
    }
}

impl fmt::Display for AdmissionVerb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for AdmissionVerb {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|verb| verb.as_str() == text).ok_or_else(|| {
            format!("\"{text}\" is not a verb: one of {}", Self::ALL.map(Self::as_str).join(", "))
        })
    }
}

/// One thing a request would do. What has no meaning for it is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AdmissionItem {
    /// What would be done.
    pub verb: AdmissionVerb,
    /// The network namespace; absent for the loader's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// Where: the interface, or the selector as it was written. Absent for a drain of a host without
    /// chains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<InterfaceSelector>,
    /// A second selector, where only the interfaces are meant that both stand for: what one takes over
    /// from the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<InterfaceSelector>,
    /// On which hook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<Hook>,
    /// The program's name in the chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<ProgramName>,
    /// Its package.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<PackageName>,
    /// The exact version; of a downgrade the one it goes back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<semver::Version>,
    /// Of a delete: the program of the chain that would run before this one and end the chain for packets that
    /// reach it now. It stays in the chain, and is deleted for those packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<ProgramName>,
    /// The public key whose signature the loader has verified; only of what is applied or shares a map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publisher: Option<String>,
    /// The map that is written, followed or shared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<String>,
    /// The package of another publisher that has the shared map too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_with: Option<PackageName>,
    /// Where the request says so: `document.chains[0].programs[1]`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
}

impl AdmissionItem {
    /// An item of which nothing is known but what would be done.
    pub fn new(verb: AdmissionVerb) -> Self {
        Self {
            verb,
            netns: None,
            interface: None,
            within: None,
            hook: None,
            program: None,
            package: None,
            version: None,
            behind: None,
            publisher: None,
            map: None,
            shared_with: None,
            path: String::new(),
        }
    }
}

impl fmt::Display for AdmissionItem {
    /// `apply firewall 0.1.0 on eth0/xdp`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.verb)?;
        match (&self.package, &self.version) {
            (Some(package), Some(version)) => write!(f, " {package} {version}")?,
            (Some(package), None) => write!(f, " {package}")?,
            (None, _) => {}
        }
        if let Some(other) = &self.behind {
            write!(f, " behind {other}")?;
        }
        if let Some(map) = &self.map {
            write!(f, " map {map}")?;
        }
        if let Some(other) = &self.shared_with {
            write!(f, " with {other}")?;
        }
        match (&self.interface, &self.hook) {
            (Some(interface), Some(hook)) => write!(f, " on {interface}/{hook}")?,
            (Some(interface), None) => write!(f, " on {interface}")?,
            (None, Some(hook)) => write!(f, " on {hook}")?,
            (None, None) => {}
        }
        if let Some(within) = &self.within {
            write!(f, " within {within}")?;
        }
        write!(f, "{}", netns::In(self.netns.as_ref()))
    }
}

/// Most items of one question; a loader asks several times where a request has more.
pub const ADMIT_ITEMS: usize = 512;

/// May this person do all of this on the host whose loader asks?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AdmitRequest {
    /// Who asked the loader.
    pub principal: Principal,
    /// What would be done; at most [`ADMIT_ITEMS`].
    pub items: Vec<AdmissionItem>,
    /// Whether it is a rehearsal.
    #[serde(default)]
    pub dry_run: bool,
}

/// The decisions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AdmitReply {
    /// What they rest on.
    pub basis: AdmissionBasis,
    /// One for each item, in their order.
    pub decisions: Vec<AdmissionDecision>,
}

/// What decisions rest on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdmissionBasis {
    /// Rules: what none allows is denied.
    Rules,
    /// There are no rules: whoever the bus lets through may.
    Open,
    /// Policy was not asked: the loader's configuration says `admission: off`.
    Off,
}

/// A decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AdmissionDecision {
    /// Whether it may be done.
    pub allowed: bool,
    /// The rule that decided; absent where none applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Why.
    pub reason: String,
}

/// What a change was admitted by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Admitted {
    /// What it rests on.
    pub basis: AdmissionBasis,
    /// The rules that allowed its parts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<String>,
}

/// Which rule would decide, and what each says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainRequest {
    /// Who would ask.
    pub principal: Principal,
    /// On which host.
    pub host: HostId,
    /// What would be done.
    pub item: AdmissionItem,
}

/// The decision and how it comes about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainReply {
    /// What it rests on.
    pub basis: AdmissionBasis,
    /// The person's role; absent for somebody unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// The host's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The decision.
    pub decision: AdmissionDecision,
    /// What each rule says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleVerdict>,
}

/// What one rule says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuleVerdict {
    /// Its name.
    pub rule: String,
    /// What it does where it applies.
    pub effect: RuleEffect,
    /// Whether it applies.
    pub applies: bool,
    /// Why not, where it does not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// What a rule does where it applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RuleEffect {
    /// It may be done, if nothing denies it.
    Allow,
    /// It may not be done, whatever allows it.
    Deny,
}

impl fmt::Display for RuleEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

/// Asks for the rules in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RulesRequest {
    /// The text of the document page by page: empty for the first one, else the `next` of the page before.
    /// Absent for the whole document in one reply, which is refused where the bus does not carry it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// The rules in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RulesReply {
    /// What decisions rest on now.
    pub basis: AdmissionBasis,
    /// Since when these rules are in force.
    pub since: String,
    /// Digest of the file they were read from; absent without rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// What is wrong with the file as it stands: these rules are those before, or, where there are
    /// none, every change is refused until it is mended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// The document of the rules; nothing without rules, and on pages.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub document: Value,
    /// On a page: a piece of the document's JSON. The pieces of all pages, one after the other, are the
    /// document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// There is more of the document: `cursor` of the request for the next page. Absent on the last page,
    /// and without pages. Where the rules change between two pages, the next one is refused as a conflict
    /// of `cursor`: start again from the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
