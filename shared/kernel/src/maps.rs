//! Maps of members: what they are, and what is read from and written to them.

use crate::KernelError;
use canopy_api::{ChainKey, ProgramName, map_kind};
use std::time::Duration;

/// One entry of a map: the key, and a value for each CPU (one for maps that are not per-CPU).
pub type MapEntry = (Vec<u8>, Vec<Vec<u8>>);

/// Which map.
#[derive(Clone, Copy, Debug)]
pub struct MapPlace<'a> {
    /// The chain.
    pub key: &'a ChainKey,
    /// The generation, which is pinned.
    pub generation: u64,
    /// The member.
    pub member: &'a ProgramName,
    /// The map's name in the member's object.
    pub map: &'a str,
}

/// A map of a member, as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberMap {
    /// The member.
    pub member: ProgramName,
    /// The map's name in the member's object; a data section's name for its variables.
    pub name: String,
    /// The kernel's id. The same id under two names is one map that is shared.
    pub id: u32,
    /// Its shape.
    pub shape: MapShape,
    /// Bytes of memory it takes, where the kernel says.
    pub memory: Option<u64>,
}

/// The shape of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// Its type.
    pub kind: MapKind,
    /// Bytes of a key; 0 for none.
    pub key_size: u32,
    /// Bytes of a value (on one CPU).
    pub value_size: u32,
    /// Entries at most.
    pub max_entries: u32,
    /// `BPF_F_…` it was made with.
    pub flags: u32,
    /// Whether it is closed to writes from outside for good.
    pub frozen: bool,
    /// Values an entry has: one for each possible CPU in a per-CPU map, else 1.
    pub values: usize,
}

/// Some entries of a map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapPage {
    /// The entries, in an order that other entries that come or go do not change.
    pub entries: Vec<MapEntry>,
    /// Where the next page starts; `None` after the last.
    pub next: Option<Vec<u8>>,
}

/// A ring buffer, open. It has one position up to which it was read: whoever takes from it takes
/// from everybody else who reads it.
pub trait Ring: Send {
    /// At most `most` records, oldest first. If there is none, waits for one; not longer than
    /// `wait`.
    fn take(&mut self, most: usize, wait: Duration) -> Result<Vec<Vec<u8>>, KernelError>;
}

/// When an entry is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WriteWhen {
    /// Whether it is there or not.
    #[default]
    Any,
    /// Only if it is not there (`BPF_NOEXIST`).
    Absent,
    /// Only if it is there (`BPF_EXIST`).
    Present,
}

/// `enum bpf_map_type` of `linux/bpf.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MapKind(pub u32);

/// What can be done with a map's entries from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapAccess {
    /// Read and written.
    ReadWrite,
    /// Read: they refer to programs, maps, devices, stacks, which JSON cannot make.
    Read,
    /// The next one can be looked at without taking it.
    Peek,
    /// Nothing, or only by taking from it what its reader waits for.
    Nothing,
}

impl MapKind {
    /// `BPF_MAP_TYPE_HASH`
    pub const HASH: Self = Self(1);
    /// `BPF_MAP_TYPE_ARRAY`
    pub const ARRAY: Self = Self(2);
    /// `BPF_MAP_TYPE_PROG_ARRAY`
    pub const PROG_ARRAY: Self = Self(3);
    /// `BPF_MAP_TYPE_PERCPU_HASH`
    pub const PERCPU_HASH: Self = Self(5);
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`
    pub const PERCPU_ARRAY: Self = Self(6);
    /// `BPF_MAP_TYPE_STACK_TRACE`
    pub const STACK_TRACE: Self = Self(7);
    /// `BPF_MAP_TYPE_LRU_HASH`
    pub const LRU_HASH: Self = Self(9);
    /// `BPF_MAP_TYPE_LRU_PERCPU_HASH`
    pub const LRU_PERCPU_HASH: Self = Self(10);
    /// `BPF_MAP_TYPE_LPM_TRIE`
    pub const LPM_TRIE: Self = Self(11);
    /// `BPF_MAP_TYPE_ARRAY_OF_MAPS`
    pub const ARRAY_OF_MAPS: Self = Self(12);
    /// `BPF_MAP_TYPE_HASH_OF_MAPS`
    pub const HASH_OF_MAPS: Self = Self(13);
    /// `BPF_MAP_TYPE_DEVMAP`
    pub const DEVMAP: Self = Self(14);
    /// `BPF_MAP_TYPE_CPUMAP`
    pub const CPUMAP: Self = Self(16);
    /// `BPF_MAP_TYPE_QUEUE`
    pub const QUEUE: Self = Self(22);
    /// `BPF_MAP_TYPE_STACK`
    pub const STACK: Self = Self(23);
    /// `BPF_MAP_TYPE_DEVMAP_HASH`
    pub const DEVMAP_HASH: Self = Self(25);
    /// `BPF_MAP_TYPE_RINGBUF`
    pub const RINGBUF: Self = Self(27);

    /// The kernel's name for it.
    pub fn name(self) -> String {
        map_kind(self.0).map_or_else(|| format!("type_{}", self.0), str::to_owned)
    }

    /// What can be done with its entries from outside.
    pub fn access(self) -> MapAccess {
        match self {
            Self::HASH
            | Self::ARRAY
            | Self::PERCPU_HASH
            | Self::PERCPU_ARRAY
            | Self::LRU_HASH
            | Self::LRU_PERCPU_HASH
            | Self::LPM_TRIE => MapAccess::ReadWrite,
            Self::PROG_ARRAY
            | Self::STACK_TRACE
            | Self::ARRAY_OF_MAPS
            | Self::HASH_OF_MAPS
            | Self::DEVMAP
            | Self::DEVMAP_HASH
            | Self::CPUMAP => MapAccess::Read,
            Self::QUEUE | Self::STACK => MapAccess::Peek,
            _ => MapAccess::Nothing,
        }
    }

    /// Whether its keys are the numbers from 0, whose entries are always there.
    pub fn is_array(self) -> bool {
        matches!(self, Self::ARRAY | Self::PERCPU_ARRAY)
    }

    /// Whether the kernel walks it by hash bucket: the next page starts at a bucket, whatever
    /// became of the entry at which the last one ended.
    pub fn is_hash(self) -> bool {
        matches!(self, Self::HASH | Self::PERCPU_HASH | Self::LRU_HASH | Self::LRU_PERCPU_HASH)
    }
}

/// Names of the flags a map is made with (`linux/bpf.h`), by bit.
const FLAGS: [&str; 18] = [
    "no_prealloc",
    "no_common_lru",
    "numa_node",
    "rdonly",
    "wronly",
    "stack_build_id",
    "zero_seed",
    "rdonly_prog",
    "wronly_prog",
    "clone",
    "mmapable",
    "preserve_elems",
    "inner_map",
    "link",
    "path_fd",
    "vtype_obj_fd",
    "token_fd",
    "segv_on_fault",
];

impl MapShape {
    /// The flags by name; those without one as hexadecimal numbers.
    pub fn flag_names(&self) -> Vec<String> {
        (0..32_usize)
            .filter(|bit| self.flags & (1 << bit) != 0)
            .map(|bit| match FLAGS.get(bit) {
                Some(name) => (*name).to_owned(),
                None => format!("{:#x}", 1_u32 << bit),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_have_the_kernels_names() {
        for (kind, name) in [
            (MapKind::HASH, "hash"),
            (MapKind::LRU_PERCPU_HASH, "lru_percpu_hash"),
            (MapKind::LPM_TRIE, "lpm_trie"),
            (MapKind::STACK, "stack"),
            (MapKind::RINGBUF, "ringbuf"),
            (MapKind(33), "arena"),
            (MapKind(99), "type_99"),
        ] {
            assert_eq!(kind.name(), name);
        }
    }

    #[test]
    fn nothing_is_taken_from_what_somebody_waits_for() {
        for kind in [MapKind::RINGBUF, MapKind(4), MapKind(30), MapKind(31), MapKind(99)] {
            assert_eq!(kind.access(), MapAccess::Nothing, "{}", kind.name());
        }
        assert_eq!(MapKind::QUEUE.access(), MapAccess::Peek);
    }

    #[test]
    fn flags_have_names() {
        let shape = MapShape {
            kind: MapKind::ARRAY,
            key_size: 4,
            value_size: 4,
            max_entries: 1,
            flags: 1 << 7 | 1 << 30,
            frozen: true,
            values: 1,
        };
        assert_eq!(shape.flag_names(), ["rdonly_prog", "0x40000000"]);
    }
}
