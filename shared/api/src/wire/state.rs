//! The state of a host: what is desired, what is observed, what it counted, what it can do.

use super::{ChosenVariant, PlannedProgram};
use crate::{
    desired::{ChainKey, Hook, TcMode, XdpMode},
    name::{Digest, HostId, InterfaceName, PackageName, ProgramName},
    netns::Netns,
    selector::{InterfaceSelector, Target},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, fmt};

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
