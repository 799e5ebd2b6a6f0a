//! The maps an object declares: in BTF (`.maps`), in the old form (`maps`), and its data sections.

use crate::{
    elf::{Elf, ObjectError, Section},
    kconfig::{self, Configuration},
    kernel_btf::KernelBtf,
};
use canopy_chain::btf::{Btf, KERNEL_FIELDS, KERNEL_POINTER_TAGS, Type, kind};
use object::SymbolKind;
use std::collections::BTreeMap;

/// One map of an object.
#[derive(Clone, Debug, Default)]
pub(crate) struct MapDef {
    pub(crate) name: String,
    /// The section it is declared in, and where.
    pub(crate) section: usize,
    pub(crate) address: u64,
    pub(crate) map_type: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
    pub(crate) extra: u64,
    /// The memory node to be made on (`BPF_F_NUMA_NODE`).
    pub(crate) numa_node: u32,
    /// Declared `LIBBPF_PIN_BY_NAME`.
    pub(crate) pinned: bool,
    /// The key's and the value's type in the object's BTF; 0 for none.
    pub(crate) btf_key: u32,
    pub(crate) btf_value: u32,
    /// Its values hold objects of the program's own types: lists, trees, pointers. The kernel takes it
    /// only in programs loaded with the very type information that it was made with.
    pub(crate) own_types: bool,
    /// What in its values is the kernel's own: locks, timers, pointers. It is not copied with the rest.
    pub(crate) kernel_fields: Vec<KernelField>,
    /// What a map of maps holds.
    pub(crate) inner: Option<Box<MapDef>>,
    /// What it holds from the start: index and symbol, of a map or a function.
    pub(crate) values: Vec<(u32, usize)>,
    /// A data section, with its initial contents.
    pub(crate) data: Option<Data>,
    /// The variables at the start of an arena.
    pub(crate) arena: Option<ArenaData>,
}

/// Something of the kernel's own in a map's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelField {
    /// Its name, with those of the structs it is in: `flow.timer`.
    pub(crate) name: String,
    /// Its type: `bpf_timer`, or the tag of a pointer.
    pub(crate) kind: String,
}

/// The section of variables in an arena.
#[derive(Clone, Debug)]
pub(crate) struct ArenaData {
    pub(crate) section: usize,
    pub(crate) contents: Vec<u8>,
}

/// `BPF_MAP_TYPE_ARENA`
pub(crate) const ARENA: u32 = 33;
/// The section of variables in an arena: the address space's number.
const ARENA_SECTION: &str = ".addr_space.1";

/// A data section.
#[derive(Clone, Debug)]
pub(crate) struct Data {
    pub(crate) contents: Vec<u8>,
    pub(crate) read_only: bool,
}

/// `BPF_MAP_TYPE_ARRAY`
pub(crate) const ARRAY: u32 = 2;
/// `BPF_MAP_TYPE_PROG_ARRAY`
pub(crate) const PROG_ARRAY: u32 = 3;
/// `BPF_F_RDONLY_PROG`
pub(crate) const RDONLY_PROG: u32 = 1 << 7;

/// Most maps of an object. A program can use 64.
const MAPS: usize = 1024;
/// Most members of a map's definition; there are about ten.
const MEMBERS: usize = 64;
/// Most data of an object, bytes.
const DATA: usize = 64 << 20;
/// Most entries that maps of an object are filled with from the start.
const VALUES: usize = 1 << 16;

/// The map that `__kconfig` variables live in.
pub(crate) fn kernel_configuration(configuration: &Configuration) -> Option<MapDef> {
    Some(MapDef {
        name: kconfig::SECTION.to_owned(),
        section: usize::MAX,
        map_type: ARRAY,
        key_size: 4,
        value_size: u32::try_from(configuration.contents.len()).ok()?,
        max_entries: 1,
        flags: RDONLY_PROG,
        data: Some(Data { contents: configuration.contents.clone(), read_only: true }),
        ..MapDef::default()
    })
}

/// Every map of the object.
pub(crate) fn parse(elf: &Elf, btf: Option<&Btf<'_>>) -> Result<Vec<MapDef>, ObjectError> {
    let mut maps = Vec::new();
    for (index, section) in elf.sections.iter().enumerate() {
        if section.name == ".maps" {
            let btf = btf.ok_or_else(|| {
                ObjectError::Malformed("maps are declared in BTF, and it has none".to_owned())
            })?;
            declared(elf, btf, index, section, &mut maps)?;
        } else if section.name == "maps" || section.name.starts_with("maps/") {
            old_form(elf, index, section, &mut maps)?;
        } else if let Some(def) = data_section(index, section)? {
            maps.push(def);
        }
        bounded(&maps)?;
    }
    arena_variables(elf, &mut maps)?;
    Ok(maps)
}

/// Puts the variables of an arena where they belong: in the only arena that a program may have.
fn arena_variables(elf: &Elf, maps: &mut [MapDef]) -> Result<(), ObjectError> {
    let mut sections = elf.sections.iter().enumerate();
    let found = sections.find(|(_, section)| section.name == ARENA_SECTION && section.size > 0);
    let Some((index, section)) = found else { return Ok(()) };
    let Some(arena) = maps.iter_mut().find(|map| map.map_type == ARENA) else { return Ok(()) };
    let room = usize::try_from(arena.max_entries).ok();
    let room = room.and_then(|pages| pages.checked_mul(crate::sys::page_size() as usize));
    let size = usize::try_from(section.size).ok().filter(|size| *size <= DATA);
    let size = size.filter(|size| room.is_some_and(|room| *size <= room)).ok_or_else(|| {
        ObjectError::Malformed(format!(
            "its variables do not fit the {} pages of the arena \"{}\"",
            arena.max_entries, arena.name
        ))
    })?;
    let mut contents = section.data.clone();
    contents.resize(size, 0);
    arena.arena = Some(ArenaData { section: index, contents });
    Ok(())
}

/// The data sections that are maps, by name.
pub(crate) fn data_sections(maps: &[MapDef]) -> BTreeMap<String, usize> {
    maps.iter()
        .filter(|map| map.data.is_some())
        .map(|map| (map.name.clone(), map.section))
        .collect()
}

/// Gives data sections their types, and notes which maps hold objects of the program's own.
pub(crate) fn type_values(maps: &mut [MapDef], btf: &Btf<'_>) {
    for map in maps {
        if map.data.is_some() {
            let section = btf.iter().find(|(_, ty)| {
                ty.kind == kind::DATASEC
                    && btf.string(ty.name) == map.name
                    && ty.size_or_type == map.value_size
                    && btf.is_whole_section(ty)
            });
            map.btf_value = section.map_or(0, |(id, _)| id);
        }
        let mut steps = STEPS;
        let mut holds = |id: u32| id != 0 && holds_own_types(btf, id, 16, &mut steps);
        map.own_types =
            holds(map.btf_value) || map.inner.as_ref().is_some_and(|inner| holds(inner.btf_value));
        let mut fields = KernelFields { btf, steps: STEPS, found: Vec::new() };
        fields.look(map.btf_value, "", 16);
        map.kernel_fields = fields.found;
    }
}

/// A search for what is the kernel's own in a value.
struct KernelFields<'a> {
    btf: &'a Btf<'a>,
    steps: u32,
    found: Vec<KernelField>,
}

impl KernelFields<'_> {
    fn look(&mut self, id: u32, name: &str, depth: u32) {
        let Some((_, ty)) = self.btf.resolve(id).filter(|_| id != 0) else { return };
        let (Some(depth), Some(left)) = (depth.checked_sub(1), self.steps.checked_sub(1)) else {
            return;
        };
        self.steps = left;
        let mut found = |kind: &str| {
            self.found.push(KernelField { name: name.to_owned(), kind: kind.to_owned() });
        };
        match ty.kind {
            kind::STRUCT if KERNEL_FIELDS.contains(&self.btf.string(ty.name)) => {
                found(self.btf.string(ty.name));
            }
            kind::STRUCT | kind::UNION => {
                for (member, ty, _) in members(self.btf, ty) {
                    let dot = if name.is_empty() || member.is_empty() { "" } else { "." };
                    self.look(ty, &format!("{name}{dot}{member}"), depth);
                }
            }
            kind::DATASEC => {
                for variable in (0..usize::from(ty.vlen)).map(|variable| ty.word(variable * 3)) {
                    let of = self.btf.get(variable).filter(|ty| ty.kind == kind::VAR);
                    let Some(of) = of else { continue };
                    self.look(of.size_or_type, self.btf.string(of.name), depth);
                }
            }
            kind::ARRAY => self.look(ty.word(0), name, depth),
            kind::PTR => {
                let tag = self.btf.get(ty.size_or_type).filter(|tag| tag.kind == kind::TYPE_TAG);
                let tag = tag.map(|tag| self.btf.string(tag.name));
                if let Some(tag) = tag.filter(|tag| KERNEL_POINTER_TAGS.contains(tag)) {
                    found(tag);
                }
            }
            _ => {}
        }
    }
}

/// Most types that are looked at in a map's value.
const STEPS: u32 = 1 << 16;

/// Whether a value holds a list, a tree, or a pointer to something that only the program knows.
fn holds_own_types(btf: &Btf<'_>, id: u32, depth: u32, steps: &mut u32) -> bool {
    let Some((_, ty)) = btf.resolve(id) else { return false };
    let (Some(depth), Some(left)) = (depth.checked_sub(1), steps.checked_sub(1)) else {
        return false;
    };
    *steps = left;
    match ty.kind {
        kind::STRUCT | kind::UNION => {
            matches!(btf.string(ty.name), "bpf_list_head" | "bpf_rb_root")
                || (0..usize::from(ty.vlen))
                    .any(|member| holds_own_types(btf, ty.word(member * 3 + 1), depth, steps))
        }
        kind::DATASEC => (0..usize::from(ty.vlen))
            .any(|variable| holds_own_types(btf, ty.word(variable * 3), depth, steps)),
        kind::VAR => holds_own_types(btf, ty.size_or_type, depth, steps),
        kind::ARRAY => holds_own_types(btf, ty.word(0), depth, steps),
        kind::PTR => points_to_own_type(btf, ty.size_or_type),
        _ => false,
    }
}

/// Whether a pointer is one that the kernel keeps for the program (`__kptr`), to a type that the kernel
/// itself does not have.
fn points_to_own_type(btf: &Btf<'_>, id: u32) -> bool {
    let tagged = btf.get(id).is_some_and(|tag| {
        tag.kind == kind::TYPE_TAG && matches!(btf.string(tag.name), "kptr" | "percpu_kptr")
    });
    tagged
        && btf.resolve(id).is_some_and(|(_, ty)| {
            let known = |kernel: &KernelBtf| kernel.has_composite(btf.string(ty.name));
            !KernelBtf::get().is_ok_and(known)
        })
}

/// That the maps so far are not more than an object has that is meant to be loaded.
fn bounded(maps: &[MapDef]) -> Result<(), ObjectError> {
    let data = maps.iter().filter_map(|map| map.data.as_ref());
    for (what, found, limit) in [
        ("maps", maps.len(), MAPS),
        ("bytes of variables", data.map(|data| data.contents.len()).sum(), DATA),
        ("values in maps", maps.iter().map(|map| map.values.len()).sum(), VALUES),
    ] {
        if found > limit {
            return Err(ObjectError::Malformed(format!("it has more than {limit} {what}")));
        }
    }
    Ok(())
}

fn data_section(index: usize, section: &Section) -> Result<Option<MapDef>, ObjectError> {
    let is = |base: &str| {
        section.name.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let read_only = is(".rodata");
    if !(section.allocated && section.size > 0 && (read_only || is(".data") || is(".bss"))) {
        return Ok(None);
    }
    // The kernel's own bound for a value is far below; this one is against a .bss that claims
    // terabytes.
    let size = u32::try_from(section.size)
        .ok()
        .filter(|size| usize::try_from(*size).is_ok_and(|size| size <= DATA))
        .ok_or_else(|| {
            ObjectError::Malformed(format!("section \"{}\" is too large", section.name))
        })?;
    let mut contents = section.data.clone();
    contents.resize(size as usize, 0);
    Ok(Some(MapDef {
        name: section.name.clone(),
        section: index,
        map_type: ARRAY,
        key_size: 4,
        value_size: size,
        max_entries: 1,
        flags: if read_only { RDONLY_PROG } else { 0 },
        data: Some(Data { contents, read_only }),
        ..MapDef::default()
    }))
}

/// What iproute2's definition of a map says of maps in maps.
struct Nesting {
    /// The map's place among all, and its symbol.
    map: usize,
    symbol: usize,
    id: u32,
    /// The id of the map whose like it holds.
    inner_id: u32,
    /// Where in such a map it is put; `u32::MAX` for nowhere.
    inner_index: u32,
}

/// Gives maps of maps what they hold, by iproute2's rules (`bpf_maps_attach_all` in `lib/bpf_legacy.c`).
fn nest(maps: &mut [MapDef], nestings: &[Nesting]) -> Result<(), ObjectError> {
    for outer in nestings.iter().filter(|nesting| nesting.inner_id != 0) {
        let name = maps.get(outer.map).map(|map| map.name.clone()).unwrap_or_default();
        let held =
            || nestings.iter().filter(|inner| inner.id == outer.inner_id && inner.inner_id == 0);
        let like = held().next().and_then(|inner| maps.get(inner.map)).cloned();
        let like = like.ok_or_else(|| ObjectError::Unsupported {
            what: format!(
                "map \"{name}\" holds maps like the one with id {}, and no map of the object has that id",
                outer.inner_id
            ),
            remedy: "declare the inner map with this id in the same object, or declare the maps in BTF \
                     (SEC(\".maps\"), __array(values, ...))"
                .to_owned(),
        })?;
        let Some(map) = maps.get_mut(outer.map) else { continue };
        map.inner = Some(Box::new(like));
        map.values = held()
            .filter(|inner| inner.inner_index != u32::MAX)
            .map(|inner| (inner.inner_index, inner.symbol))
            .collect();
    }
    Ok(())
}

/// `struct bpf_map_def` and what iproute2 made of it (`struct bpf_elf_map`): type, key size, value
/// size, entries, flags, then id, pinning, `inner_id` and `inner_idx` where the symbol is that long.
fn old_form(
    elf: &Elf,
    index: usize,
    section: &Section,
    maps: &mut Vec<MapDef>,
) -> Result<(), ObjectError> {
    let here = elf.symbols.iter().enumerate().filter(|(_, symbol)| {
        symbol.section == Some(index)
            && !symbol.name.is_empty()
            && matches!(symbol.kind, SymbolKind::Data | SymbolKind::Unknown | SymbolKind::Label)
    });
    let mut nestings = Vec::new();
    for (number, symbol) in here {
        let bytes = usize::try_from(symbol.address).ok().and_then(|at| section.data.get(at..));
        let size = if symbol.size == 0 { 20 } else { usize::try_from(symbol.size).unwrap_or(0) };
        let bytes = bytes.and_then(|bytes| bytes.get(..size)).filter(|bytes| bytes.len() >= 20);
        let bytes = bytes.ok_or_else(|| {
            ObjectError::Malformed(format!("map \"{}\" is not a whole definition", symbol.name))
        })?;
        let word =
            |at: usize| bytes.as_chunks::<4>().0.get(at).copied().map_or(0, u32::from_ne_bytes);
        nestings.push(Nesting {
            map: maps.len(),
            symbol: number,
            id: word(5),
            inner_id: word(7),
            inner_index: word(8),
        });
        maps.push(MapDef {
            name: symbol.name.clone(),
            section: index,
            address: symbol.address,
            map_type: word(0),
            key_size: word(1),
            value_size: word(2),
            max_entries: word(3),
            flags: word(4),
            pinned: word(6) != 0,
            ..MapDef::default()
        });
        bounded(maps)?;
    }
    nest(maps, &nestings)?;
    bounded(maps)
}

fn declared(
    elf: &Elf,
    btf: &Btf<'_>,
    index: usize,
    section: &Section,
    maps: &mut Vec<MapDef>,
) -> Result<(), ObjectError> {
    let variables = btf
        .iter()
        .filter(|(_, ty)| ty.kind == kind::DATASEC && btf.string(ty.name) == ".maps")
        .flat_map(|(_, ty)| (0..usize::from(ty.vlen)).map(|i| ty.word(i * 3)));
    for variable in variables {
        let Some(ty) = btf.get(variable).filter(|ty| ty.kind == kind::VAR) else { continue };
        let name = btf.string(ty.name);
        let malformed = |what: &str| ObjectError::Malformed(format!("map \"{name}\": {what}"));
        // The offset in BTF is only right after linking; the symbol's is always.
        let symbol = elf.symbols.iter().find(|s| s.section == Some(index) && s.name == name);
        let symbol = symbol.ok_or_else(|| malformed("it has no symbol"))?;
        let (_, definition) = btf
            .resolve(ty.size_or_type)
            .filter(|(_, ty)| ty.kind == kind::STRUCT)
            .ok_or_else(|| malformed("its definition is not a struct"))?;
        let mut def = definition_of(btf, definition, name, Inner::Allowed)?;
        name.clone_into(&mut def.name);
        def.section = index;
        def.address = symbol.address;
        if let Some(offset) = values_offset(btf, definition) {
            let first = symbol.address.saturating_add(u64::from(offset));
            let end = symbol.address.saturating_add(symbol.size);
            def.values = section
                .relocations
                .range(first..end.max(first))
                .filter_map(|(at, symbol)| Some((u32::try_from((at - first) / 8).ok()?, *symbol)))
                .collect();
        }
        maps.push(def);
        bounded(maps)?;
    }
    Ok(())
}

/// The members of a map's definition: name, type.
fn members<'a>(btf: &Btf<'a>, ty: &Type<'a>) -> Vec<(&'a str, u32, u32)> {
    (0..usize::from(ty.vlen))
        .map(|i| (btf.string(ty.word(i * 3)), ty.word(i * 3 + 1), ty.word(i * 3 + 2)))
        .collect()
}

/// Offset of the `values` member, bytes.
fn values_offset(btf: &Btf<'_>, definition: &Type<'_>) -> Option<u32> {
    let (_, _, bits) = members(btf, definition).into_iter().find(|(name, ..)| *name == "values")?;
    Some((bits & 0x00ff_ffff) / 8)
}

/// `__uint(x, n)` is a pointer to an array of `n`.
fn number(btf: &Btf<'_>, id: u32) -> Option<u32> {
    let (_, pointer) = btf.resolve(id).filter(|(_, ty)| ty.kind == kind::PTR)?;
    let (_, array) = btf.resolve(pointer.size_or_type).filter(|(_, ty)| ty.kind == kind::ARRAY)?;
    Some(array.word(2))
}

/// `__type(x, t)` is a pointer to `t`: its id and size.
fn pointed(btf: &Btf<'_>, id: u32) -> Option<(u32, u32)> {
    let (_, pointer) = btf.resolve(id).filter(|(_, ty)| ty.kind == kind::PTR)?;
    Some((pointer.size_or_type, btf.size(pointer.size_or_type)?))
}

/// Whether a map may hold maps: the kernel knows none that hold maps of maps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inner {
    Allowed,
    Refused,
}

fn definition_of(
    btf: &Btf<'_>,
    ty: &Type<'_>,
    map: &str,
    inner: Inner,
) -> Result<MapDef, ObjectError> {
    let mut def = MapDef { name: map.to_owned(), ..MapDef::default() };
    let mut sizes = Sizes::default();
    if usize::from(ty.vlen) > MEMBERS {
        let what = format!("map \"{map}\": its definition has more than {MEMBERS} members");
        return Err(ObjectError::Malformed(what));
    }
    for (name, id, _) in members(btf, ty) {
        let malformed =
            || ObjectError::Malformed(format!("map \"{map}\": \"{name}\" cannot be read"));
        let value = || number(btf, id).ok_or_else(malformed);
        match name {
            "type" => def.map_type = value()?,
            "max_entries" => def.max_entries = value()?,
            "map_flags" => def.flags = value()?,
            "map_extra" => def.extra = long_number(btf, id).ok_or_else(malformed)?,
            "numa_node" => def.numa_node = value()?,
            "key_size" => sizes.key(value()?).ok_or_else(|| conflict(map, name))?,
            "value_size" => sizes.value(value()?).ok_or_else(|| conflict(map, name))?,
            "pinning" => def.pinned = pinned(map, value()?)?,
            "key" => {
                let (ty, size) = pointed(btf, id).ok_or_else(malformed)?;
                def.btf_key = ty;
                sizes.key(size).ok_or_else(|| conflict(map, name))?;
            }
            "value" => {
                let (ty, size) = pointed(btf, id).ok_or_else(malformed)?;
                def.btf_value = ty;
                sizes.value(size).ok_or_else(|| conflict(map, name))?;
            }
            "values" => {
                let (_, array) = btf
                    .resolve(id)
                    .filter(|(_, ty)| ty.kind == kind::ARRAY)
                    .ok_or_else(malformed)?;
                let (_, pointer) = btf
                    .resolve(array.word(0))
                    .filter(|(_, ty)| ty.kind == kind::PTR)
                    .ok_or_else(malformed)?;
                let (_, target) = btf.resolve(pointer.size_or_type).ok_or_else(malformed)?;
                // What it holds is told to the kernel by descriptor.
                sizes.value(4).ok_or_else(|| conflict(map, name))?;
                match target.kind {
                    kind::FUNC_PROTO => {}
                    kind::STRUCT if inner == Inner::Allowed => {
                        let name = format!("{map}.inner");
                        let inner = definition_of(btf, target, &name, Inner::Refused)?;
                        def.inner = Some(Box::new(inner));
                    }
                    _ => return Err(malformed()),
                }
            }
            // As libbpf: what is not known may be a flag that is misspelt.
            _ => {
                return Err(ObjectError::Unsupported {
                    what: format!("map \"{map}\": \"{name}\" is no attribute of a map"),
                    remedy: "use type, max_entries, map_flags, map_extra, numa_node, key, value, \
                             key_size, value_size, values and pinning"
                        .to_owned(),
                });
            }
        }
    }
    // Arrays whose keys nobody declared are indexed by numbers of 32 bits.
    let indexed = values_offset(btf, ty).is_some();
    def.key_size = sizes.key.unwrap_or(if indexed { 4 } else { 0 });
    def.value_size = sizes.value.unwrap_or(0);
    Ok(def)
}

/// The sizes of a map's keys and values, which may be said twice if they are said alike.
#[derive(Debug, Default)]
struct Sizes {
    key: Option<u32>,
    value: Option<u32>,
}

impl Sizes {
    fn key(&mut self, size: u32) -> Option<()> {
        (*self.key.get_or_insert(size) == size).then_some(())
    }

    fn value(&mut self, size: u32) -> Option<()> {
        (*self.value.get_or_insert(size) == size).then_some(())
    }
}

fn conflict(map: &str, attribute: &str) -> ObjectError {
    ObjectError::Malformed(format!("map \"{map}\": \"{attribute}\" contradicts another size of it"))
}

/// `LIBBPF_PIN_NONE` or `LIBBPF_PIN_BY_NAME`.
fn pinned(map: &str, word: u32) -> Result<bool, ObjectError> {
    match word {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(ObjectError::Malformed(format!(
            "map \"{map}\": \"pinning\" is {other}; it is 0 (none) or 1 (by name)"
        ))),
    }
}

/// A number of 64 bits: `__ulong(x, n)` is an enum with the one value, `__uint(x, n)` does too.
fn long_number(btf: &Btf<'_>, id: u32) -> Option<u64> {
    let (_, ty) = btf.resolve(id)?;
    match (ty.kind, ty.vlen) {
        (kind::ENUM, 1) => {
            let word = ty.word(1);
            // As libbpf reads it: a signed enum's value keeps its sign.
            Some(if ty.flag {
                i64::from(word.cast_signed()).cast_unsigned()
            } else {
                u64::from(word)
            })
        }
        (kind::ENUM64, 1) => Some(u64::from(ty.word(2)) << 32 | u64::from(ty.word(1))),
        _ => number(btf, id).map(u64::from),
    }
}
