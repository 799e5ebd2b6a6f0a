//! Events of loaders and registries.

use super::Action;
use crate::{
    desired::Hook,
    name::{HostId, InterfaceName, PackageName, Principal, ProgramName},
    netns::Netns,
    selector::InterfaceSelector,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// `event.loader.host.alive.<host>`, every ten seconds and at start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostAlive {
    /// The host.
    pub host: HostId,
    /// Kernel release.
    pub kernel: String,
    /// Version of the loader.
    pub version: String,
    /// Generation of the desired state.
    pub generation: u64,
    /// Number of chains by state.
    pub chains: BTreeMap<String, u32>,
    /// When it was sent.
    pub time: String,
}

/// `event.loader.chain.restored.<host>`: somebody removed or replaced a chain, and it is back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChainRestored {
    /// The host.
    pub host: HostId,
    /// The network namespace; absent for the loader's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// The interface.
    pub interface: InterfaceName,
    /// The hook.
    pub hook: Hook,
    /// What was found: `detached`, `replaced`, `unpinned`.
    pub found: String,
    /// Kernel id of the program that was in its place, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign_program_id: Option<u32>,
    /// The generation that runs again.
    pub generation: u64,
    /// How often this chain was restored, this time included.
    pub restored: u64,
    /// How long the repair took once it was noticed, milliseconds.
    pub repair_ms: u64,
    /// When.
    pub time: String,
}

/// A program of a chain, as events tell it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProgramVersion {
    /// Its name in the chain.
    pub name: ProgramName,
    /// Its package.
    pub package: PackageName,
    /// The exact version.
    pub version: String,
}

impl fmt::Display for ProgramVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.name, self.package, self.version)
    }
}

/// `event.loader.chain.changed.<host>`: a request changed a chain, or failed to; and
/// `event.loader.selector.changed.<host>`: what is described for the interfaces of a selector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChainChanged {
    /// The host.
    pub host: HostId,
    /// The network namespace; absent for the loader's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// The interface, or the selector.
    pub interface: InterfaceSelector,
    /// The hook.
    pub hook: Hook,
    /// What was asked: `apply`, `delete`, `drain` or `undrain`.
    pub verb: String,
    /// What was done.
    pub action: Action,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The programs before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<ProgramVersion>,
    /// The programs that were asked for: those that run now, unless it failed. Of a selector each of its
    /// chains says so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<ProgramVersion>,
    /// The host's generation after the request.
    pub generation: u64,
    /// Who asked for it.
    pub by: Principal,
    /// The id of the request, by which the audit trail has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// When.
    pub time: String,
}

/// `event.loader.package.refused.<host>` and `event.registry.package.refused._`: an index or a package
/// file was read and not believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PackageRefused {
    /// The host; absent when it was the registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// The repository, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// The package; absent when it was the index of a repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<PackageName>,
    /// Why, in one word: `index_rolled_back`, `wrong_digest`, `key_revoked`, …
    pub reason: String,
    /// Why, in words.
    pub message: String,
    /// When.
    pub time: String,
}

/// `event.loader.package.downgraded.<host>`: a program went back to an older version, on purpose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PackageDowngraded {
    /// The host.
    pub host: HostId,
    /// The network namespace; absent for the loader's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// The interface.
    pub interface: InterfaceName,
    /// The hook.
    pub hook: Hook,
    /// The program's name in the chain.
    pub program: ProgramName,
    /// Its package.
    pub package: PackageName,
    /// The version that ran.
    pub from: String,
    /// The version that runs now.
    pub to: String,
    /// Who asked for it.
    pub by: Principal,
    /// When.
    pub time: String,
}
