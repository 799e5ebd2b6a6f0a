//! Maps of the programs in chains: listing, reading, writing.
//!
//! Keys and values are JSON by the types in the program's object: integers are numbers (decimal
//! text beyond 64 bits, network order read as the host does), enumerations names, `char` arrays
//! text, structs objects, unions objects with every view; without types hexadecimal text in the
//! order of memory. A variable of a data section (`.data`, `.bss`, `.rodata`) is an entry whose key
//! is its name.

use crate::{
    desired::{ChainKey, Hook},
    name::{HostId, InterfaceName, Principal, ProgramName},
    netns::{self, Netns},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// Which map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MapName {
    /// The network namespace; absent for the loader's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// The interface.
    pub interface: InterfaceName,
    /// The hook.
    pub hook: Hook,
    /// The program's name in the chain.
    pub program: ProgramName,
    /// The map's name in the program's object; a data section's for global variables.
    pub map: String,
}

impl MapName {
    /// The chain it belongs to.
    pub fn key(&self) -> ChainKey {
        ChainKey { netns: self.netns.clone(), interface: self.interface.clone(), hook: self.hook }
    }
}

impl fmt::Display for MapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { netns, interface, hook, program, map } = self;
        write!(f, "{interface}/{hook}/{program}/{map}{}", netns::In(netns.as_ref()))
    }
}

/// Asks which maps there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MapListRequest {
    /// Only in this network namespace; absent for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// Only on this interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<InterfaceName>,
    /// Only on this hook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<Hook>,
    /// Only of this program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<ProgramName>,
    /// The `next` of the page before; absent for the first page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// The maps of a host's programs, in pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MapListReply {
    /// The host.
    pub host: HostId,
    /// In order of chain, program and name.
    pub maps: Vec<MapInfo>,
    /// Worth knowing: a package that is not cached, types left out because they are too long, that
    /// there are more pages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// There are more maps: `cursor` of the request for the next page. Absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// One map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MapInfo {
    /// Which.
    #[serde(flatten)]
    pub name: MapName,
    /// The chain's generation.
    pub generation: u64,
    /// The kernel's id.
    pub id: u32,
    /// Its type, as the kernel names it: `hash`, `percpu_array`, `lpm_trie` …
    #[serde(rename = "type")]
    pub kind: String,
    /// Bytes of a key; 0 for none.
    pub key_size: u32,
    /// Bytes of a value (on one CPU).
    pub value_size: u32,
    /// Entries at most.
    pub max_entries: u32,
    /// Values of an entry: the possible CPUs for a per-CPU map, else 1.
    pub values: u32,
    /// Flags it was made with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// Bytes of memory it takes, where the kernel says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// What `map-dump` and `map-set` can do with it.
    pub access: MapAccess,
    /// The type of its keys, as C declares it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_type: Option<String>,
    /// The type of its values, as C declares it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_type: Option<String>,
    /// The variables of a data section.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variables: Vec<MapVariable>,
    /// Settings of the program that fill the map, or variables in it: those are not written here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<String>,
    /// Other names of the same map: it is shared. At most 64 are listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_with: Vec<String>,
}

/// A variable of a data section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MapVariable {
    /// Its name.
    pub name: String,
    /// Its size, bytes.
    pub size: u64,
    /// Its type, as C declares it.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

/// What can be done with a map's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MapAccess {
    /// Read and written.
    ReadWrite,
    /// Read: constants, or entries that refer to programs, maps or devices (by id).
    Read,
    /// The entry that comes next can be looked at: queues and stacks.
    Peek,
    /// Nothing: its contents are taken by whoever reads them (ring buffers), or not shown at all.
    Nothing,
}

/// Asks for the entries of a map, page by page. A page has as many as fit into one message of the bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MapDumpRequest {
    /// Which map.
    pub map: MapName,
    /// About how many entries, 1 to 4096; fewer where they are large. Default 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// The `next` of the page before; absent for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Entries of a map. Each is told as it is when its page is read. Of a map that changes between two pages,
/// an entry that is there all the time is on one page exactly, one that comes or goes on one or on none; a
/// map that was replaced by another is told as a conflict of `cursor`: start again from the first page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MapDumpReply {
    /// The host.
    pub host: HostId,
    /// Which map.
    pub map: MapName,
    /// The chain's generation.
    pub generation: u64,
    /// In the kernel's order (maps of maps and of devices by hash: by the bytes of the key); variables by
    /// place.
    pub entries: Vec<MapEntry>,
    /// Asks for the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// One entry. Keys and values are JSON by the types of the program's object: integers are numbers
/// (decimal text beyond 64 bits; network order as the host reads it), enumerations names, `char`
/// arrays text, structs objects, unions objects with every view, pointers `0x` text; what has no
/// type is hexadecimal text in the order of memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MapEntry {
    /// Its key; `null` in queues and stacks.
    pub key: Value,
    /// Its value; absent in per-CPU maps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// Its value on each possible CPU, in per-CPU maps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<Value>,
    /// The integers in those, added up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sum: Option<Value>,
}

/// Asks for single entries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MapGetRequest {
    /// Which map.
    pub map: MapName,
    /// Their keys, at most 4096. In an LPM trie: the longest prefix that matches.
    pub keys: Vec<Value>,
}

/// Single entries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MapGetReply {
    /// The host.
    pub host: HostId,
    /// Which map.
    pub map: MapName,
    /// The chain's generation.
    pub generation: u64,
    /// Those there are, as asked.
    pub entries: Vec<MapEntry>,
    /// Keys without an entry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub absent: Vec<Value>,
}

/// Writes entries. All are checked first; then they are written one by one, in this order. If the
/// kernel refuses one, the error says which; those before it are written, those after it are not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MapSetRequest {
    /// Which map.
    pub map: MapName,
    /// What to write, at most 4096.
    pub entries: Vec<MapWrite>,
    /// Whether an entry has to be there or must not. Default any.
    #[serde(default)]
    pub when: MapWriteWhen,
    /// Check everything, and write nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// One entry to write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MapWrite {
    /// Its key.
    pub key: Value,
    /// Its value; in a per-CPU map the value on every CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// In a per-CPU map: the value on each possible CPU, in place of `value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<Value>,
}

/// When an entry is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MapWriteWhen {
    /// Always.
    #[default]
    Any,
    /// Only if it is not there.
    Absent,
    /// Only if it is there.
    Present,
}

/// Removes entries, one by one, in this order; all keys are checked first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MapDeleteRequest {
    /// Which map.
    pub map: MapName,
    /// Keys of what to remove, at most 4096.
    pub keys: Vec<Value>,
    /// Check everything, and remove nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What was written or removed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MapChangeReply {
    /// The host.
    pub host: HostId,
    /// Which map.
    pub map: MapName,
    /// The chain's generation.
    pub generation: u64,
    /// Whether the request was a rehearsal.
    pub dry_run: bool,
    /// Entries written or removed (that would be, in a rehearsal of writing).
    pub changed: u64,
    /// Keys to be removed that had no entry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub absent: Vec<Value>,
    /// Worth knowing: who else uses the map.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Asks that what programs put into a ring buffer is published as events. What the loader takes from
/// the buffer no other reader gets. Ends by itself when nobody has asked for `lease_seconds`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MapFollowRequest {
    /// Which ring buffer.
    pub map: MapName,
    /// The type of its records in the program's object, such as `struct event`; absent for the one
    /// that the map declares for its values. Without either, records are hexadecimal text.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub record_type: Option<String>,
}

/// A ring buffer is followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MapFollowReply {
    /// The host.
    pub host: HostId,
    /// Which ring buffer.
    pub map: MapName,
    /// The chain's generation.
    pub generation: u64,
    /// Where the events are published; each says which map it is of.
    pub subject: String,
    /// Ask again within this time, or it ends.
    pub lease_seconds: u64,
    /// The type of a record, as C declares it.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub record_type: Option<String>,
}

/// Records of a ring buffer that is followed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MapRecords {
    /// The host.
    pub host: HostId,
    /// Which ring buffer.
    pub map: MapName,
    /// What it was called when the following began, where its interface was renamed since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub formerly: Option<MapName>,
    /// The chain's generation whose programs wrote them.
    pub generation: u64,
    /// The number of the first record here, from 0 since the following began. A gap to the record
    /// before it is what was dropped, or lost on the way.
    pub first: u64,
    /// The records, oldest first: JSON by their type, else hexadecimal text.
    pub records: Vec<Value>,
    /// Records taken from the buffer and dropped since the following began: the bus was too slow, or
    /// a record is larger than a message.
    pub dropped: u64,
}

/// `event.loader.map.changed.<host>`: a request wrote or removed entries of a map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MapChanged {
    /// The host.
    pub host: HostId,
    /// Which map.
    pub map: MapName,
    /// What was asked: `map-set` or `map-delete`.
    pub verb: String,
    /// Entries written or removed.
    pub entries: u64,
    /// The chain's generation.
    pub generation: u64,
    /// Who asked for it.
    pub by: Principal,
    /// The id of the request, by which the audit trail has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// When.
    pub time: String,
}
