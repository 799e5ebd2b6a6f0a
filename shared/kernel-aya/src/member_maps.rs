//! The maps of a generation: made, taken over from the running generation, or shared.

use crate::{
    chain_types::MapTypes,
    elf::ObjectError,
    member::{object_error, refused},
    meta::Meta,
    object::Object,
    object_maps::{ARENA, ARRAY, MapDef, PROG_ARRAY},
    observe,
    pins::{self, Pins},
    sys,
};
use canopy_api::{ChainKey, ProgramName};
use canopy_kernel::{Carry, KernelError, Member, ShareScope};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::PathBuf,
    sync::Arc,
};

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

/// A map of a generation.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) map: sys::Map,
    /// The contents of a read-only data section of the member's own.
    pub(crate) constant: Option<Arc<[u8]>>,
    /// Made now, to be filled; else it keeps what it holds.
    fresh: bool,
}

/// Makes the maps of one generation's members.
pub(crate) struct MapMaker<'a> {
    pins: &'a Pins,
    key: &'a ChainKey,
    /// The generation maps are taken over from, and what it was.
    old: Option<(u64, Option<Meta>)>,
    /// Shared maps pinned by this preparation, to be unpinned should it fail.
    pub(crate) pinned: Vec<PathBuf>,
}

impl<'a> MapMaker<'a> {
    /// For one chain. Maps are taken over from the generation that runs, else (the link was
    /// destroyed) from the newest that is whole.
    pub(crate) fn new(pins: &'a Pins, key: &'a ChainKey) -> Result<Self, KernelError> {
        let mut old = observe::running(pins, key)?;
        if old.is_none() {
            for generation in pins.generations(key)?.into_iter().rev() {
                if pins::open(&pins.prog(key, generation))?.is_some() {
                    old = Some(generation);
                    break;
                }
            }
        }
        let old = old.map(|generation| (generation, Meta::read(&pins.meta(key, generation)).ok()));
        Ok(Self { pins, key, old, pinned: Vec::new() })
    }

    /// Makes the maps of one member: those its code uses, those they hold, and those its settings
    /// fill. By the object's map number.
    pub(crate) fn make(
        &mut self,
        member: &Member,
        object: &Object,
        used: &BTreeSet<usize>,
        btf: Option<MapTypes<'_>>,
        notes: &mut Vec<String>,
    ) -> Result<Vec<Option<Made>>, KernelError> {
        let name = &member.name;
        let mut wanted = used.clone();
        for map in used.iter().filter_map(|map| object.maps.get(*map)) {
            for (_, symbol) in &map.values {
                wanted.extend(map_of(object, *symbol));
            }
        }
        for contents in &member.map_entries {
            let map = object.maps.iter().position(|map| map.name == contents.map);
            wanted.insert(map.ok_or_else(|| no_map(name, object, &contents.map))?);
        }
        for (map, _) in &member.max_entries {
            if !object.maps.iter().any(|known| known.name == *map) {
                return Err(no_map(name, object, map));
            }
        }
        for shared in &member.shared_maps {
            if !object.maps.iter().any(|known| known.name == shared.map) {
                return Err(no_map(name, object, &shared.map));
            }
        }
        let data = data_sections(member, object, &mut wanted)?;

        let mut kept = Vec::new();
        let mut maps = Vec::new();
        for (number, def) in object.maps.iter().enumerate() {
            if !wanted.contains(&number) {
                maps.push(None);
                continue;
            }
            let mut def = def.clone();
            if let Some((_, entries)) = member.max_entries.iter().find(|(map, _)| *map == def.name)
            {
                def.max_entries = *entries;
            }
            settle_size(name, &mut def)?;
            let made = if let Some(scope) = share_scope(member, &def) {
                self.share(name, &def, scope, btf)?
            } else if let Some(map) = self.carry(member, object, &def, btf, notes)? {
                kept.push(def.name.clone());
                Made { map, constant: None, fresh: false }
            } else {
                Made { map: create(name, &def, btf)?, constant: None, fresh: true }
            };
            maps.push(Some(made));
        }
        if !kept.is_empty() {
            notes.push(format!("\"{name}\" keeps the contents of {}", kept.join(", ")));
        }
        contents(member, object, &data, &mut maps)?;
        Ok(maps)
    }

    /// A map that others use too: theirs if it is there, else made and pinned for all.
    fn share(
        &mut self,
        name: &ProgramName,
        def: &MapDef,
        scope: ShareScope,
        btf: Option<MapTypes<'_>>,
    ) -> Result<Made, KernelError> {
        let path = self.pins.shared_map(self.key, scope, &def.name);
        if let Some(fd) = pins::open(&path)? {
            let map = sys::Map::new(fd).map_err(|error| os(name, &def.name, "open", error))?;
            if let Some(difference) = differs(&map, def) {
                return Err(refused(
                    name,
                    format!("the shared map \"{}\" is there with another {difference}", def.name),
                    "use versions that agree on the map, or remove the chains that use it first",
                ));
            }
            if def.own_types && !btf.is_some_and(|btf| btf.made(&map)) {
                return Err(refused(
                    name,
                    format!(
                        "the shared map \"{}\" holds objects of another chain's types, which the \
                         kernel lets no other use",
                        def.name
                    ),
                    "share maps of plain values only, or use the map in one chain whose members do \
                     not change",
                ));
            }
            return Ok(Made { map, constant: None, fresh: false });
        }
        let map = create(name, def, btf)?;
        if let Some(dir) = path.parent() {
            pins::make_dir(dir)?;
        }
        self.pinned.push(path.clone());
        pins::pin(&map, &path)?;
        Ok(Made { map, constant: None, fresh: true })
    }

    /// The same map of the old generation, if it is to be kept and is the same.
    fn carry(
        &self,
        member: &Member,
        object: &Object,
        def: &MapDef,
        btf: Option<MapTypes<'_>>,
        notes: &mut Vec<String>,
    ) -> Result<Option<sys::Map>, KernelError> {
        let name = &member.name;
        // Constants are the version's own; arrays the object fills hold its own programs.
        let own = def.data.as_ref().is_some_and(|data| data.read_only) || !def.values.is_empty();
        let Some((generation, meta)) = self.old.as_ref().filter(|_| !own) else { return Ok(None) };
        if !wanted(&member.carry, def) {
            return Ok(None);
        }
        let path = self.pins.map(self.key, *generation, name, &def.name);
        let Some(fd) = pins::open(&path)? else { return Ok(None) };
        let map = sys::Map::new(fd).map_err(|error| os(name, &def.name, "open", error))?;
        if def.own_types && !btf.is_some_and(|btf| btf.made(&map)) {
            notes.push(format!(
                "\"{name}\": map \"{}\" starts empty: the objects in it are of types of the chain as \
                 it was, and the chain is another now",
                def.name
            ));
            return Ok(None);
        }
        let layout = object.maps.iter().position(|map| map.name == def.name);
        let layout = layout.and_then(|at| object.layout(at));
        let was = meta.as_ref().and_then(|meta| meta.layout(name, &def.name));
        let same_layout = layout.is_some() && was == layout;
        let difference = differs(&map, def)
            .or_else(|| (!same_layout).then(|| "layout of its contents".to_owned()));
        match difference {
            None => Ok(Some(map)),
            Some(difference) => {
                notes.push(format!(
                    "\"{name}\": map \"{}\" starts empty: the new version has another {difference}",
                    def.name
                ));
                Ok(None)
            }
        }
    }
}

/// Puts into the new maps what they hold from the start.
fn contents(
    member: &Member,
    object: &Object,
    data: &BTreeMap<usize, Vec<u8>>,
    maps: &mut [Option<Made>],
) -> Result<(), KernelError> {
    let name = &member.name;
    for ((number, def), made) in object.maps.iter().enumerate().zip(maps.iter_mut()) {
        let Some(made) = made.as_mut().filter(|made| made.fresh) else { continue };
        if let (Some(section), Some(contents)) = (&def.data, data.get(&number)) {
            let written = made.map.update(&0u32.to_ne_bytes(), contents, 0);
            written.map_err(|error| os(name, &def.name, "fill", error))?;
            if section.read_only {
                made.map.freeze().map_err(|error| os(name, &def.name, "freeze", error))?;
                made.constant = Some(Arc::from(contents.as_slice()));
            }
        }
        let entries = member.map_entries.iter().filter(|contents| contents.map == def.name);
        for (key, value) in entries.flat_map(|contents| &contents.entries) {
            let written = made.map.update(key, value, 0);
            let room = made.map.info().max_entries;
            written.map_err(|error| entry_error(name, &def.name, room, error))?;
        }
    }
    Ok(())
}

/// Whether a map is to be kept.
fn wanted(carry: &Carry, def: &MapDef) -> bool {
    let among = |names: &[String]| {
        names.iter().any(|name| {
            *name == def.name
                // `.data` stands for `.data.counters` too.
                || def.data.is_some()
                    && def.name.strip_prefix(name.as_str()).is_some_and(|r| r.starts_with('.'))
        })
    };
    match carry {
        Carry::Nothing => false,
        Carry::AllBut(names) => !among(names),
        Carry::Only(names) => among(names),
    }
}

/// Who shares a map: as the settings say; else one that asks to be pinned by name is the
/// interface's.
fn share_scope(member: &Member, def: &MapDef) -> Option<ShareScope> {
    let said = member.shared_maps.iter().find(|shared| shared.map == def.name);
    said.map(|shared| shared.scope).or(def.pinned.then_some(ShareScope::Interface))
}

/// What of a map's shape is not as declared.
fn differs(map: &sys::Map, def: &MapDef) -> Option<String> {
    let info = map.info();
    [
        ("type", info.map_type, def.map_type),
        ("key size", info.key_size, def.key_size),
        ("value size", info.value_size, def.value_size),
        ("number of entries", info.max_entries, def.max_entries),
        ("set of flags", info.flags, def.flags),
    ]
    .into_iter()
    .find(|(_, have, want)| have != want)
    .map(|(what, have, want)| format!("{what} ({want}, was {have})"))
}

/// The map a symbol stands for.
fn map_of(object: &Object, symbol: usize) -> Option<usize> {
    let name = object.symbol(symbol)?;
    object.maps.iter().position(|map| map.data.is_none() && map.name == name)
}

/// The contents of the data sections, with the globals set.
fn data_sections(
    member: &Member,
    object: &Object,
    wanted: &mut BTreeSet<usize>,
) -> Result<BTreeMap<usize, Vec<u8>>, KernelError> {
    let name = &member.name;
    let mut contents: BTreeMap<usize, Vec<u8>> = object
        .maps
        .iter()
        .enumerate()
        .filter_map(|(number, map)| Some((number, map.data.as_ref()?.contents.clone())))
        .collect();
    for (global, value) in &member.globals {
        let (map, offset, size) = object.global(global).ok_or_else(|| {
            refused(
                name,
                format!("the object has no global variable \"{global}\""),
                "name a global variable of the object in the package's manifest",
            )
        })?;
        if value.len() != size {
            return Err(refused(
                name,
                format!("global \"{global}\" takes {size} bytes, and is given {}", value.len()),
                "give the parameter the type of the variable in the package's manifest",
            ));
        }
        let place = contents
            .get_mut(&map)
            .and_then(|contents| contents.get_mut(offset..offset.checked_add(size)?))
            .ok_or_else(|| {
                let what = format!("variable \"{global}\" lies outside its section");
                object_error(name, &ObjectError::Malformed(what))
            })?;
        place.copy_from_slice(value);
        wanted.insert(map);
    }
    Ok(contents)
}

/// Sizes that are not the object's to know.
fn settle_size(name: &ProgramName, def: &mut MapDef) -> Result<(), KernelError> {
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
fn create(
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

/// Puts the object's initial values into arrays of programs and of maps.
pub(crate) fn fill(
    name: &ProgramName,
    object: &Object,
    maps: &[Option<Made>],
    programs: &[(&str, BorrowedFd<'_>)],
) -> Result<(), KernelError> {
    for (def, made) in object.maps.iter().zip(maps) {
        let Some(made) = made.as_ref().filter(|made| made.fresh) else { continue };
        for (index, symbol) in &def.values {
            let value = if def.map_type == PROG_ARRAY {
                let function = object.symbol(*symbol);
                programs
                    .iter()
                    .find(|(name, _)| Some(*name) == function)
                    .map(|(_, fd)| fd.as_raw_fd())
            } else {
                map_of(object, *symbol)
                    .and_then(|map| maps.get(map)?.as_ref())
                    .map(|inner| inner.map.as_fd().as_raw_fd())
            };
            let Some(value) = value else { continue };
            made.map
                .update(&index.to_ne_bytes(), &value.to_ne_bytes(), 0)
                .map_err(|error| os(name, &def.name, "fill", error))?;
        }
    }
    Ok(())
}

fn no_map(name: &ProgramName, object: &Object, map: &str) -> KernelError {
    let have: Vec<&str> = object.maps.iter().map(|map| map.name.as_str()).collect();
    refused(
        name,
        format!("the object has no map \"{map}\"; it has {}", have.join(", ")),
        "name a map of the object in the package's manifest",
    )
}

fn entry_error(name: &ProgramName, map: &str, room: u32, error: io::Error) -> KernelError {
    match error.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC) => refused(
            name,
            format!("map \"{map}\" has room for {room} entries, and is given more"),
            "configure fewer entries, or raise max_entries in the package's manifest",
        ),
        None => refused(
            name,
            format!("an entry for map \"{map}\" does not fit it: {error}"),
            "give the parameter the key and value types of the map in the package's manifest",
        ),
        Some(_) => os(name, map, "fill", error),
    }
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

fn os(name: &ProgramName, map: &str, what: &str, source: io::Error) -> KernelError {
    KernelError::Os { operation: format!("{what} map \"{map}\" of \"{name}\""), source }
}
