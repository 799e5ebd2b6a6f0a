//! Changes of a host: apply, delete, drain, and what they did.

use super::{Admitted, ObservedChain, Omitted};
use crate::{
    desired::{ChainKey, Hook},
    error::ApiError,
    name::{Digest, HostId, InterfaceName, PackageName, ProgramName},
    netns::Netns,
    selector::{InterfaceSelector, Target},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Makes chains so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ApplyRequest {
    /// The document (`chains`), as the person wrote it; the loader checks it.
    pub document: Value,
    /// Refuse with `conflict` unless the host is at this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_generation: Option<u64>,
    /// Say what would change, verifier's verdict included, and change nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// Packages that may go back to an older version than the one that runs. Otherwise a document
    /// that would is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_downgrade: Vec<PackageName>,
    /// All or nothing: when one interface fails, every one is as it was. Otherwise each interface is
    /// changed, or left as it was, for itself, and the reply says which.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub atomic: bool,
}

/// Removes a chain (interface and hook), or one program of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeleteRequest {
    /// The network namespace; absent for the loader's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// The interface, as it was written when the chain was applied.
    pub interface: InterfaceSelector,
    /// The hook.
    pub hook: Hook,
    /// One program of the chain; absent for all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<ProgramName>,
    /// Refuse with `conflict` unless the host is at this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_generation: Option<u64>,
    /// Say what would change, and change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// Detaches every chain; the intent stays on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DrainRequest {
    /// Bring everything back instead.
    #[serde(default)]
    pub undo: bool,
    /// Say what would change, and change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a change did, chain by chain. At least one interface is as it was asked for: a request of which
/// nothing could be done is answered with an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ApplyReply {
    /// The host that answers.
    pub host: HostId,
    /// The host's generation after the request.
    pub generation: u64,
    /// Whether the request was a rehearsal.
    pub dry_run: bool,
    /// Each chain the request named, and each that a selector it named stands for.
    pub chains: Vec<ChainOutcome>,
    /// Each selector the request named that is not a plain name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub selectors: Vec<SelectorOutcome>,
    /// What admitted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admission: Option<Admitted>,
    /// What was left out because the bus does not carry a reply of that length. What was done, and what
    /// failed, is complete unless it says `chains`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub omitted: Vec<Omitted>,
}

/// What happened to what is described for the interfaces of a selector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SelectorOutcome {
    /// The network namespace; absent for the loader's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// The selector.
    pub interface: InterfaceSelector,
    /// The hook.
    pub hook: Hook,
    /// What was (or would be) done.
    pub action: Action,
    /// The interfaces it stands for now. Those whose chain failed get it as soon as that can be, unless
    /// the selector itself failed.
    pub interfaces: Vec<InterfaceName>,
}

/// What happened to one chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChainOutcome {
    /// The network namespace; absent for the loader's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// The interface.
    pub interface: InterfaceName,
    /// The hook.
    pub hook: Hook,
    /// What was (or would be) done.
    pub action: Action,
    /// Why it failed; the chain is as it was then, and so is every other of its interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
    /// The steps, in words, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<String>,
    /// Things worth knowing: generic fallback, maps kept or reset, a licence made stricter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The chain as it was asked for, versions and priorities resolved; empty for a removal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub programs: Vec<PlannedProgram>,
    /// The chain as the kernel has it now; absent after a removal, a failure or a rehearsal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<ObservedChain>,
}

/// One program of a chain that is to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlannedProgram {
    /// Its name in the chain.
    pub name: ProgramName,
    /// Its package.
    pub package: PackageName,
    /// The exact version.
    pub version: String,
    /// The exact bytes.
    pub digest: Digest,
    /// The program of the package.
    pub program: String,
    /// Which of its objects, where it has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<ChosenVariant>,
    /// Its priority.
    pub priority: u16,
    /// Verdicts after which the chain goes on.
    pub proceed_on: Vec<String>,
    /// Settings as given.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub config: Map<String, Value>,
}

/// Which of several objects of a program a host runs, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChosenVariant {
    /// The object file.
    pub object: String,
    /// The kernel release it was chosen for.
    pub kernel: String,
    /// The objects that go before it, and do not fit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passed_over: Vec<PassedOver>,
}

/// An object of a program that a host cannot run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PassedOver {
    /// The object file.
    pub object: String,
    /// What it needs and the host does not have.
    pub needs: String,
}

/// What was done to a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Attached where there was none.
    Created,
    /// Replaced in place, atomically.
    Updated,
    /// Already so; the kernel was not touched.
    Unchanged,
    /// Detached.
    Removed,
    /// Not done: it is as it was.
    Failed,
}

impl ApplyReply {
    /// The chains that could not be changed.
    pub fn failed(&self) -> impl Iterator<Item = (&ChainOutcome, &ApiError)> {
        self.chains.iter().filter_map(|chain| Some((chain, chain.error.as_ref()?)))
    }
}

/// Longest time for which one request has run times taken, seconds.
pub const PROFILE_SECONDS: u32 = 300;

/// Asks that the kernel takes the time of every run of a program, for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProfileRequest {
    /// For how long from now, seconds; a longer request that runs already is not cut short. 0 ends it for
    /// everybody.
    #[schemars(range(max = 300))]
    pub seconds: u32,
}

/// Run times are taken, and show as `timed_runs` and `timed_ns` of each chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProfileReply {
    /// The host that answers.
    pub host: HostId,
    /// Until when; absent once they are not taken any more for us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

impl ChainOutcome {
    /// Which chain this is.
    pub fn key(&self) -> ChainKey {
        ChainKey { netns: self.netns.clone(), interface: self.interface.clone(), hook: self.hook }
    }
}

impl SelectorOutcome {
    /// What it is about.
    pub fn target(&self) -> Target {
        Target { netns: self.netns.clone(), interface: self.interface.clone(), hook: self.hook }
    }
}
