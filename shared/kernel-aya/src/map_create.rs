//! Making maps as objects declare them, and comparing maps that are there with a declaration.

use crate::{
    chain_types::MapTypes,
    member::refused,
    object_maps::{ARENA, ARRAY, MapDef},
    sys,
};
use canopy_api::{ProgramName, map_kind};
use canopy_kernel::KernelError;
use std::{io, os::fd::AsFd};

// enum bpf_map_type
const PERF_EVENT_ARRAY: u32 = 4;
const STACK_TRACE: u32 = 7;
const CGROUP_ARRAY: u32 = 8;
pub(crate) const ARRAY_OF_MAPS: u32 = 12;
pub(crate) const HASH_OF_MAPS: u32 = 13;
const DEVMAP: u32 = 14;
const SOCKMAP: u32 = 15;
const CPUMAP: u32 = 16;
const XSKMAP: u32 = 17;
const SOCKHASH: u32 = 18;
const QUEUE: u32 = 22;
const STACK: u32 = 23;
const DEVMAP_HASH: u32 = 25;
const STRUCT_OPS: u32 = 26;
const RINGBUF: u32 = 27;
const USER_RINGBUF: u32 = 31;

/// Map types the kernel does not take type information for (libbpf, `bpf_object__create_map`).
const WITHOUT_BTF: [u32; 15] = [
    PERF_EVENT_ARRAY,
    STACK_TRACE,
    CGROUP_ARRAY,
    ARRAY_OF_MAPS,
    HASH_OF_MAPS,
    DEVMAP,
    SOCKMAP,
    CPUMAP,
    XSKMAP,
    SOCKHASH,
    QUEUE,
    STACK,
    DEVMAP_HASH,
    RINGBUF,
    ARENA,
];

/// What of a map's shape is not what the kernel makes of the declaration: it adds flags to some types
/// and rounds the number of entries of others.
pub(crate) fn differs(name: &ProgramName, map: &sys::Map, def: &MapDef) -> Option<String> {
    let have = map.info();
    let difference = |declared: &[(&str, u64, u64)]| {
        let found = declared.iter().find(|(_, have, want)| have != want);
        found.map(|(what, have, want)| format!("{what} ({want}, was {have})"))
    };
    if have.map_type != def.map_type {
        let kind = |number| map_kind(number).map_or_else(|| format!("{number}"), str::to_owned);
        return Some(format!("type ({}, was {})", kind(def.map_type), kind(have.map_type)));
    }
    let fixed = difference(&[
        ("key size", have.key_size.into(), def.key_size.into()),
        ("value size", have.value_size.into(), def.value_size.into()),
    ]);
    if fixed.is_some() {
        return fixed;
    }
    let adjusted = |entries: u32, flags: u32, extra: u64| {
        difference(&[
            ("number of entries", have.max_entries.into(), entries.into()),
            ("set of flags", have.flags.into(), flags.into()),
            ("extra word", have.extra, extra),
        ])
    };
    let declared = adjusted(def.max_entries, def.flags, def.extra);
    declared.as_ref()?;
    // Asked by having it made once more. What cannot be made is told when it is made.
    let Ok(made) = create(name, def, None) else { return declared };
    let made = made.info();
    adjusted(made.max_entries, made.flags, made.extra)
}

/// Sizes that are not the object's to know.
pub(crate) fn settle_size(name: &ProgramName, def: &mut MapDef) -> Result<(), KernelError> {
    match def.map_type {
        PERF_EVENT_ARRAY if def.max_entries == 0 => {
            let cpus = sys::possible_cpus().map_err(|error| os(name, &def.name, "size", error))?;
            def.max_entries = u32::try_from(cpus).unwrap_or(u32::MAX);
            Ok(())
        }
        // A power of two of whole pages (`ringbuf_map_alloc`); libbpf rounds up too.
        RINGBUF | USER_RINGBUF if def.max_entries != 0 => {
            def.max_entries = def.max_entries.next_power_of_two().max(4096);
            // A declared value says what a record is; the kernel takes no sizes.
            (def.key_size, def.value_size) = (0, 0);
            Ok(())
        }
        STRUCT_OPS => Err(refused(
            name,
            format!("map \"{}\" is of type struct_ops, which no chain can have", def.name),
            "leave it out of the program",
        )),
        0 => Err(refused(
            name,
            format!("map \"{}\" declares no type", def.name),
            "declare a type in the object",
        )),
        // Storage and bloom filters take 0 for "as needed"; the kernel judges.
        1..=9 | 11..=18 | 25 if def.max_entries == 0 => Err(refused(
            name,
            format!("map \"{}\" declares no number of entries", def.name),
            "set max_entries for the map in the package's manifest",
        )),
        _ => Ok(()),
    }
}

/// Makes a map; without type information when the kernel refuses it with (an LPM trie of some key
/// types), as libbpf does.
pub(crate) fn create(
    name: &ProgramName,
    def: &MapDef,
    btf: Option<MapTypes<'_>>,
) -> Result<sys::Map, KernelError> {
    let failed = |error: io::Error| os(name, &def.name, "make", error);
    let inner = def.inner.as_ref().map(|inner| create(name, inner, btf)).transpose()?;
    if inner.is_none() && matches!(def.map_type, ARRAY_OF_MAPS | HASH_OF_MAPS) {
        return Err(refused(
            name,
            format!("map \"{}\" of maps does not say what its maps are like", def.name),
            "declare its inner map with __array(values, ...)",
        ));
    }
    let kernel_name = kernel_name(name, def);
    let mut map = sys::MapCreate {
        map_type: def.map_type,
        key_size: def.key_size,
        value_size: def.value_size,
        max_entries: def.max_entries,
        flags: def.flags,
        name: &kernel_name,
        inner: inner.as_ref().map(AsFd::as_fd),
        btf: btf
            .filter(|_| !WITHOUT_BTF.contains(&def.map_type) && def.btf_value != 0)
            .map(|btf| btf.of(def.btf_key, def.btf_value)),
        extra: def.extra,
        numa_node: def.numa_node,
    };
    let fd = match sys::map_create(&map) {
        Err(_) if map.btf.is_some() => {
            map.btf = None;
            sys::map_create(&map)
        }
        result => result,
    };
    let fd = fd.map_err(|error| create_error(name, def, error))?;
    if def.map_type == ARENA {
        let contents = def.arena.as_ref().map(|arena| arena.contents.as_slice());
        sys::arena_place(&fd, def.max_entries, def.extra, contents.unwrap_or_default())
            .map_err(|error| os(name, &def.name, "map", error))?;
    }
    sys::Map::new(fd).map_err(failed)
}

/// The name in the kernel: the map's own; a data section's is preceded by as much of the member's
/// as there is room for.
fn kernel_name(name: &ProgramName, def: &MapDef) -> String {
    if def.data.is_none() {
        return def.name.clone();
    }
    let room = (sys::OBJ_NAME_LEN - 1).saturating_sub(def.name.len());
    format!("{}{}", name.as_str().chars().take(room).collect::<String>(), def.name)
}

fn create_error(name: &ProgramName, def: &MapDef, error: io::Error) -> KernelError {
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::E2BIG) => refused(
            name,
            format!(
                "the kernel does not take map \"{}\": type {}, key {} bytes, value {} bytes, {} \
                 entries, flags {:#x}",
                def.name, def.map_type, def.key_size, def.value_size, def.max_entries, def.flags
            ),
            if def.map_type == ARRAY {
                "make the map smaller"
            } else {
                "check the map's declaration: some sizes and flags belong to some types only"
            },
        ),
        _ => os(name, &def.name, "make", error),
    }
}

/// A call that failed for a map of a member.
pub(crate) fn os(name: &ProgramName, map: &str, what: &str, source: io::Error) -> KernelError {
    KernelError::Os { operation: format!("{what} map \"{map}\" of \"{name}\""), source }
}
