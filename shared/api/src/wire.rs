//! Requests and replies. MessagePack with field names by default; JSON on request.
//!
//! Times are RFC 3339 text in UTC. Counters never go back while the host keeps its state.

mod admission;
mod audit;
mod desired;
pub mod hosts;
mod maps;
mod pages;
mod publish;
pub mod tokens;

pub use admission::*;
pub use audit::*;
pub use maps::*;
pub use pages::*;
pub use publish::*;

use crate::{
    blob::Blob,
    desired::{ChainKey, Hook, TcMode, XdpMode},
    error::ApiError,
    known::Fields,
    name::{Digest, HostId, InterfaceName, PackageName, Principal, ProgramName},
    netns::Netns,
    selector::{InterfaceSelector, Target},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, fmt};

/// A request that carries nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Empty {}

/// Answer to `health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// Whether everything the service needs is there.
    pub ready: bool,
    /// Each thing it needs, and its state.
    pub checks: Vec<Check>,
    /// Seconds since the service started.
    pub uptime_seconds: u64,
}

/// One thing a service needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// What is needed.
    pub name: String,
    /// Whether it is there.
    pub ok: bool,
    /// State in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// There, but in a way that somebody should know of: a protection that is switched off.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub warning: bool,
}

/// Asks for the version of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VersionRequest {
    /// Which fields the requests of its verbs may have, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fields: bool,
}

/// Answer to `version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Version {
    /// The service.
    pub service: String,
    /// Its semantic version.
    pub version: String,
    /// The host it runs on; absent for central services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// The fields of its requests by verb, as paths such as `entries[].key`, where they were asked for. A
    /// caller looks here before it sends a field that earlier releases do not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<Fields>,
}

// ---- loader ----------------------------------------------------------------------------------

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

/// Asks for the state of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GetRequest {
    /// Only this network namespace; absent for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// Only this interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<InterfaceName>,
    /// Only this hook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<Hook>,
    /// The `next` of the page before; absent for the first page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// State of a host, in pages: each reply fits into one message of the bus.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GetReply {
    /// The host.
    pub host: HostId,
    /// Its generation: one up for each change of what is desired.
    pub generation: u64,
    /// Whether the host is drained: intent kept, nothing attached.
    pub drained: bool,
    /// Kernel release.
    pub kernel: String,
    /// Version of the loader.
    pub version: String,
    /// When the loader started.
    pub started: String,
    /// Every chain that is desired or observed, in order.
    pub chains: Vec<ChainStatus>,
    /// Every selector that is not a plain name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub selectors: Vec<SelectorStatus>,
    /// Paths in the loader's directory on bpffs that are nothing of Canopy's: they are left alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stray_pins: Vec<String>,
    /// The state is longer than this page: `cursor` of the request for the next one. Absent on the last
    /// page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What is described for the interfaces of a selector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SelectorStatus {
    /// The network namespace; absent for the loader's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// The selector.
    pub interface: InterfaceSelector,
    /// The hook.
    pub hook: Hook,
    /// How XDP was asked to be attached; absent for `best`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xdp_mode: Option<XdpMode>,
    /// How TC was asked to be attached; absent for `best`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tc_mode: Option<TcMode>,
    /// The interfaces that have a chain by it; none while no interface fits.
    pub interfaces: Vec<InterfaceName>,
    /// When it was last changed.
    pub changed: String,
    /// Who changed it.
    pub changed_by: String,
    /// The programs, in order.
    pub programs: Vec<PlannedProgram>,
    /// The selector is longer than a page: the rest of its programs and settings begins the next page.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
}

/// Desired and observed state of one chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChainStatus {
    /// The network namespace; absent for the loader's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// The interface.
    pub interface: InterfaceName,
    /// The hook.
    pub hook: Hook,
    /// The selector it comes from; absent for a chain that was applied to the interface by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<InterfaceSelector>,
    /// How XDP was asked to be attached; absent for `best`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xdp_mode: Option<XdpMode>,
    /// How TC was asked to be attached; absent for `best`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tc_mode: Option<TcMode>,
    /// Verdict of the comparison.
    pub state: ChainState,
    /// Why, where it is not `active`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How often the loader restored the chain after somebody removed or replaced it.
    pub restored: u64,
    /// When the desired state of this chain last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<String>,
    /// Who changed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_by: Option<String>,
    /// What was asked, versions and priorities resolved; in chain order.
    pub programs: Vec<ProgramStatus>,
    /// What the kernel has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<ObservedChain>,
    /// Where it stands among what else handles the same packets; absent while nothing is attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<ChainPlacement>,
    /// Why the chain is attached and its pins cannot be used: they are hidden by a mount, moved or
    /// removed. Absent while they are in their place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin_problem: Option<String>,
    /// Packets that an XDP chain sent or redirected and the device dropped, by the device's own
    /// counter, since the chain was attached; zero ones left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub device_errors: BTreeMap<String, u64>,
    /// The chain is longer than a page: the rest of its programs, settings and metrics begins the next
    /// page, under the same interface and hook.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
}

/// Programs before a chain that `get` lists at most.
pub const LISTED_BEFORE: usize = 64;

/// Where a chain stands among the programs that the same packets meet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChainPlacement {
    /// Its position in the list of its hook, from 0.
    pub position: u32,
    /// Programs in that list.
    pub programs: u32,
    /// The revision of the list, which rises with each change of it; absent where the kernel counts none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// Programs of others that packets meet before the chain, in the order in which they run. Each can
    /// end a packet's way. `get` lists at most [`LISTED_BEFORE`] of them; `position` is their number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<ForeignProgram>,
}

/// A program that is not Canopy's, on an interface that has a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForeignProgram {
    /// How it is attached: `xdp-native`, `xdp-generic`, `xdp-offload`, `tcx` or `clsact`.
    pub attached: String,
    /// Its kernel id; 0 for a filter that runs no program.
    pub program_id: u32,
    /// Its name; absent where the loader may not ask (`CAP_SYS_ADMIN`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its tag, 16 hexadecimal digits; absent likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Its type, as `bpftool` names it; absent likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program_type: Option<String>,
    /// Kernel id of its link; absent where it has none, or where the kernel does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_id: Option<u32>,
    /// Where a filter of clsact stands; absent for what is no filter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<FilterPosition>,
}

/// Where a filter stands among those of a clsact hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FilterPosition {
    /// Its priority (`pref`): lower ones run first.
    pub priority: u32,
    /// Its handle within the priority.
    pub handle: u32,
}

impl fmt::Display for ForeignProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.program_id, &self.name) {
            (0, Some(kind)) => write!(f, "filter \"{kind}\"")?,
            (0, None) => f.write_str("a filter")?,
            (id, Some(name)) => write!(f, "program {id} \"{name}\"")?,
            (id, None) => write!(f, "program {id}")?,
        }
        write!(f, " ({}", self.attached)?;
        if let Some(link) = self.link_id {
            write!(f, ", link {link}")?;
        }
        if let Some(FilterPosition { priority, handle }) = self.filter {
            write!(f, ", pref {priority} handle {handle:#x}")?;
        }
        if let Some(program_type) = &self.program_type {
            write!(f, ", type {program_type}")?;
        }
        if let Some(tag) = &self.tag {
            write!(f, ", tag {tag}")?;
        }
        f.write_str(")")
    }
}

/// How desired and observed compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChainState {
    /// As desired.
    Active,
    /// Desired, not attached; being retried.
    Pending,
    /// Attached, but not what is desired.
    Diverged,
    /// Desired, detached by `drain`.
    Drained,
}

/// One program of a chain: what was asked and what it did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProgramStatus {
    /// Its name in the chain.
    pub name: ProgramName,
    /// Position in the chain, from 0.
    pub position: u32,
    /// Its package.
    pub package: PackageName,
    /// The exact version.
    pub version: String,
    /// The exact bytes.
    pub digest: Digest,
    /// The program of the package.
    pub program: String,
    /// The function in the object.
    pub function: String,
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
    /// Packets the program has seen since it joined this chain under this name.
    pub runs: u64,
    /// The same by verdict, zero ones left out.
    pub verdicts: BTreeMap<String, u64>,
    /// Packets whose way through the chain ended here, by verdict, zero ones left out.
    pub exits: BTreeMap<String, u64>,
    /// Metrics the package declares.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<MetricValue>,
}

/// How a metric goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MetricKind {
    /// Only up.
    Counter,
    /// Up and down.
    #[default]
    Gauge,
}

/// One value of a metric a package declares.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MetricValue {
    /// Name of the metric.
    pub name: String,
    /// What it counts.
    pub help: String,
    /// Whether it only goes up.
    #[serde(default)]
    pub kind: MetricKind,
    /// Labels, from the map's key where the manifest asks for them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

/// A chain as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ObservedChain {
    /// Kernel id of the fused program.
    pub program_id: u32,
    /// Kernel id of the link; 0 for a chain attached by a filter of clsact, which has none.
    pub link_id: u32,
    /// Tag of the fused program, 16 hexadecimal digits.
    pub tag: String,
    /// Index of the interface it hangs on.
    pub ifindex: u32,
    /// `native`, `generic`, `tcx` or `clsact`.
    pub mode: String,
    /// The chain's generation.
    pub generation: u64,
    /// Instructions the verifier walked.
    pub verified_instructions: u32,
    /// Size of the native code, bytes.
    pub jited_bytes: u32,
    /// Memory of the program, without its maps, bytes, as the kernel accounts for it.
    #[serde(default)]
    pub memory_bytes: u64,
    /// When the kernel loaded it, seconds since the epoch.
    #[serde(default)]
    pub loaded: u64,
    /// Runs that the kernel has timed: those while `kernel.bpf_stats_enabled` was on.
    #[serde(default)]
    pub timed_runs: u64,
    /// Nanoseconds that those took together.
    #[serde(default)]
    pub timed_ns: u64,
    /// The members' functions, in order, as the kernel names them; a small member lies inside the
    /// chain's `main` and has none.
    pub functions: Vec<String>,
    /// Size of each function's native code, bytes, the chain's `main` first; empty where the kernel
    /// does not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub function_bytes: Vec<u32>,
    /// What the kernel said to native XDP, where the chain was attached in generic mode instead; absent
    /// after a restart of the loader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native_refused: Option<String>,
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

impl SelectorStatus {
    /// What it is about.
    pub fn target(&self) -> Target {
        Target { netns: self.netns.clone(), interface: self.interface.clone(), hook: self.hook }
    }
}

impl ChainStatus {
    /// Which chain this is.
    pub fn key(&self) -> ChainKey {
        ChainKey { netns: self.netns.clone(), interface: self.interface.clone(), hook: self.hook }
    }
}

/// What a host can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FactsReply {
    /// The host.
    pub host: HostId,
    /// Kernel release.
    pub kernel: String,
    /// Machine architecture, as in `uname -m`.
    pub arch: String,
    /// The host's clock when it answered.
    pub time: String,
    /// Each ability, probed, not guessed.
    pub facts: Vec<Fact>,
}

/// Names of the abilities that are told of every host.
pub const FACTS: [&str; 18] = [
    "kernel",
    "capabilities",
    "bpffs",
    "memlock",
    "btf",
    "jit",
    "xdp-native",
    "xdp-generic",
    "tcx",
    "clsact",
    "netns",
    "ring-buffer",
    "grace-period",
    "fentry",
    "freplace",
    "lsm",
    "kprobe",
    "clock",
];

/// One ability of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Fact {
    /// Short name, one of [`FACTS`] where the host is as new as this.
    pub name: String,
    /// Whether the host has it.
    pub ok: bool,
    /// Whether Canopy needs it for what works today.
    pub required: bool,
    /// What the probe saw.
    pub detail: String,
    /// How to get it, where it is missing and can be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

// ---- registry --------------------------------------------------------------------------------

/// Lists packages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListRequest {
    /// Only this package.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<PackageName>,
    /// The `next` of the page before; absent for the first page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Packages and their versions, in pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListReply {
    /// Sorted by name.
    pub packages: Vec<PackageSummary>,
    /// Repositories that could not be read, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unavailable: Vec<RepositoryTrouble>,
    /// There are more packages: `cursor` of the request for the next page. Absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A repository that cannot be used now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RepositoryTrouble {
    /// The repository's name.
    pub repository: String,
    /// Why.
    pub reason: String,
}

/// A package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PackageSummary {
    /// Its name.
    pub name: PackageName,
    /// One line about it, from the newest version's manifest.
    pub description: String,
    /// Where its programs can be put, from the newest version's manifest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
    /// Words to be found by, from the newest version's manifest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keywords: Vec<String>,
    /// The repository it comes from.
    pub repository: String,
    /// Newest first.
    pub versions: Vec<VersionSummary>,
    /// How many older versions are left out: of one package up to 1,000 are told, of many fewer.
    #[serde(default)]
    pub older: u64,
}

/// Looks for packages; those that meet all of it are found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SearchRequest {
    /// Each stands somewhere in the name, the description, a keyword or a hook; capitals do not
    /// matter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub words: Vec<String>,
    /// A program can be put there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<Hook>,
    /// It has this keyword.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyword: Option<String>,
    /// The `next` of the page before; absent for the first page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Most packages on a page of a search.
pub const SEARCH_LIMIT: usize = 100;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SearchReply {
    /// The best first, at most [`SEARCH_LIMIT`].
    pub packages: Vec<PackageSummary>,
    /// How many more there are behind this page.
    pub more: u64,
    /// Repositories that could not be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unavailable: Vec<RepositoryTrouble>,
    /// `cursor` of the request for the next page; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The repositories as they stand now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RefreshReply {
    /// Each of them.
    pub repositories: Vec<RepositoryState>,
}

/// A repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RepositoryState {
    /// Its name.
    pub repository: String,
    /// Whether packages can be had from it.
    pub usable: bool,
    /// What it holds, or what is wrong with it.
    pub detail: String,
}

/// A version of a package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VersionSummary {
    /// Semantic version.
    pub version: String,
    /// Digest of the package file.
    pub digest: Digest,
    /// Length of the package file, bytes.
    pub length: u64,
    /// Withdrawn: only hosts that already have it keep it.
    pub yanked: bool,
}

/// A map in an object of a package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MapSummary {
    /// Its name.
    pub name: String,
    /// The object file.
    pub object: String,
    /// `hash`, `percpu_array`, …; a number for a kind without a name here; empty where the object does
    /// not say.
    pub kind: String,
    /// Bytes of a key, where the object says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_size: Option<u32>,
    /// Bytes of a value, where the object says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_size: Option<u32>,
    /// Room for so many entries, where the object or the manifest says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_entries: Option<u32>,
}

/// Asks for one version in full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DescribeRequest {
    /// The package.
    pub package: PackageName,
    /// Semver requirement; absent for the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requirement: Option<String>,
}

/// One version in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DescribeReply {
    /// Where it comes from.
    pub repository: String,
    /// The version.
    pub version: VersionSummary,
    /// Id of the key that signed it, 16 hexadecimal digits; absent when unsigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
    /// The manifest.
    pub manifest: Value,
    /// JSON Schema of what can be set: `config` of a program in a document.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub config_schema: Value,
    /// The maps of its objects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub maps: Vec<MapSummary>,
    /// The README of the package.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub readme: String,
    /// Fields that are left out or cut short, because a message of the bus does not hold them; those of
    /// the manifest as `manifest.metrics`. The package file has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub omitted: Vec<String>,
}

/// Asks which exact version a requirement means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResolveRequest {
    /// The package.
    pub package: PackageName,
    /// Semver requirement (Cargo's syntax).
    pub requirement: String,
    /// Machine architecture, as in `uname -m`; absent for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// Kernel release of the host; absent for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
}

/// Longest index that stands in an answer, bytes; a message of the bus has at most 1 MiB.
pub const INDEX_INLINE: usize = 256 * 1024;

/// An index that is fetched in chunks, as a package is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IndexAt {
    /// Digest of its JSON: what `artifact` is asked for.
    pub digest: Digest,
    /// Its length, bytes.
    pub length: u64,
}

/// The exact version, and everything the loader needs to check it again for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResolveReply {
    /// The package.
    pub package: PackageName,
    /// Where it comes from.
    pub repository: String,
    /// The version.
    pub version: VersionSummary,
    /// minisign signature file of the package; absent in an unsigned development repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// The repository's index, as it was signed; absent in an unsigned development repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<Blob>,
    /// minisign signature file of the index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_signature: Option<String>,
    /// Where the index is when it is too long to stand here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_at: Option<IndexAt>,
}

/// Asks for a chunk of a package file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ArtifactRequest {
    /// Which file.
    pub digest: Digest,
    /// Offset of the chunk, bytes.
    pub offset: u64,
}

/// Chunks are at most this long, bytes.
pub const ARTIFACT_CHUNK: usize = 512 * 1024;

/// A chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ArtifactReply {
    /// Length of the whole file, bytes.
    pub total: u64,
    /// At most [`ARTIFACT_CHUNK`] bytes from the offset asked for.
    pub data: Blob,
}

// ---- events ----------------------------------------------------------------------------------

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
