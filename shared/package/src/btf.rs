//! As much of BTF as says the shape of the maps in `.maps` and the signatures of functions
//! (<https://docs.kernel.org/bpf/btf.html>, "BTF type and string encoding").

use crate::elf::MapShape;
use std::collections::{BTreeMap, BTreeSet};

const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;

/// Steps through typedefs and arrays before a type is given up as endless.
const DEPTH: u32 = 32;

/// Members of a map's definition that are looked at; there are about ten.
const MEMBERS: usize = 64;

/// Longest name that is read whole, bytes: the kernel's `KSYM_NAME_LEN`.
const LONGEST_NAME: usize = 512;

/// The types of an object.
pub(crate) struct Btf<'a> {
    /// Type `i + 1` (type 0 is void).
    types: Vec<Type<'a>>,
    strings: &'a [u8],
}

#[derive(Clone, Copy)]
pub(crate) struct Type<'a> {
    pub(crate) name: u32,
    pub(crate) kind: u32,
    /// The flag beside the kind.
    pub(crate) flag: bool,
    /// Size of the type, or the type it refers to (`union { size; type; }` in the kernel).
    pub(crate) referred: u32,
    /// What follows the three common words.
    pub(crate) rest: &'a [u8],
}

impl<'a> Btf<'a> {
    pub(crate) fn read(data: &'a [u8]) -> Result<Self, &'static str> {
        if data.get(..2) != Some(&0xeb9f_u16.to_le_bytes()) {
            return Err("it does not start with the BTF magic number");
        }
        let header = |at| word(data, at).ok_or("its header is cut short");
        let length = header(4)?;
        let part = |offset: u32, size: u32| {
            let from = length.checked_add(offset)? as usize;
            data.get(from..from.checked_add(size as usize)?)
        };
        let types = part(header(8)?, header(12)?).ok_or("its types are cut short")?;
        let strings = part(header(16)?, header(20)?).ok_or("its strings are cut short")?;
        Ok(Self { types: read_types(types)?, strings })
    }

    /// The maps defined in the section `.maps`.
    pub(crate) fn maps(&self) -> Vec<MapShape> {
        let section = |ty: &&Type<'a>| ty.kind == DATASEC && self.name(ty.name) == ".maps";
        let Some(section) = self.types.iter().find(section) else { return Vec::new() };
        section
            .rest
            .chunks_exact(12)
            .filter_map(|entry| self.get(word(entry, 0)?).filter(|ty| ty.kind == VAR))
            .map(|var| self.map(var))
            .collect()
    }

    /// What each of these functions takes and returns: `int (struct xdp_md *)`.
    pub(crate) fn signatures(&self, of: &BTreeSet<&str>) -> BTreeMap<&'a str, String> {
        let mut signatures = BTreeMap::new();
        for function in self.types.iter().filter(|ty| ty.kind == FUNC) {
            let name = self.name(function.name);
            // No function that the kernel takes from outside has more than five parameters.
            let proto = self
                .get(function.referred)
                .filter(|ty| ty.kind == FUNC_PROTO && ty.rest.len() <= 5 * 8);
            let Some(proto) = proto.filter(|_| of.contains(name)) else { continue };
            signatures.entry(name).or_insert_with(|| {
                let parameters = proto.rest.chunks_exact(8);
                let takes: Vec<_> = parameters
                    .map(|parameter| self.spelled(word(parameter, 4).unwrap_or(0)))
                    .collect();
                format!("{} ({})", self.spelled(proto.referred), takes.join(", "))
            });
        }
        signatures
    }

    /// A type in C, typedefs and qualifiers looked through: `struct xdp_md *`.
    fn spelled(&self, mut id: u32) -> String {
        let mut stars = String::new();
        for _ in 0..DEPTH {
            let Some(ty) = self.resolve(id) else { return format!("void{stars}") };
            let name = self.name(ty.name);
            return match ty.kind {
                PTR => {
                    // `T *`, `T **`
                    let gap = if stars.is_empty() { " *" } else { "*" };
                    stars.push_str(gap);
                    id = ty.referred;
                    continue;
                }
                STRUCT => format!("struct {name}{stars}"),
                5 => format!("union {name}{stars}"),
                6 | 19 => format!("enum {name}{stars}"),
                _ => format!("{name}{stars}"),
            };
        }
        format!("?{stars}")
    }

    fn map(&self, var: Type<'a>) -> MapShape {
        let mut map = MapShape { name: self.name(var.name).to_owned(), ..MapShape::default() };
        let Some(ty) = self.resolve(var.referred).filter(|ty| ty.kind == STRUCT) else {
            return map;
        };
        for member in ty.rest.chunks_exact(12).take(MEMBERS) {
            let (Some(name), Some(ty)) = (word(member, 0), word(member, 4)) else { continue };
            let pointee = || self.resolve(ty).filter(|ty| ty.kind == PTR).map(|ty| ty.referred);
            // `__uint(name, n)` is `int (*name)[n]`: the number is the array's length.
            let number =
                || pointee().and_then(|ty| self.resolve(ty)).and_then(|ty| word(ty.rest, 8));
            match self.name(name) {
                "type" => map.kind = number(),
                "max_entries" => map.max_entries = number(),
                "key_size" => map.key_size = number(),
                "value_size" => map.value_size = number(),
                "key" => {
                    map.key_size = pointee().and_then(|ty| self.size(ty, DEPTH));
                    map.key_fields = pointee().and_then(|ty| self.fields(ty));
                }
                "value" => {
                    map.value_size = pointee().and_then(|ty| self.size(ty, DEPTH));
                    map.value_fields = pointee().and_then(|ty| self.fields(ty));
                }
                _ => {}
            }
        }
        map
    }

    pub(crate) fn get(&self, id: u32) -> Option<Type<'a>> {
        self.types.get((id as usize).checked_sub(1)?).copied()
    }

    /// Through typedefs and qualifiers.
    pub(crate) fn resolve(&self, mut id: u32) -> Option<Type<'a>> {
        for _ in 0..DEPTH {
            let ty = self.get(id)?;
            match ty.kind {
                // typedef, volatile, const, restrict, type tag
                8..=11 | 18 => id = ty.referred,
                _ => return Some(ty),
            }
        }
        None
    }

    pub(crate) fn size(&self, id: u32, depth: u32) -> Option<u32> {
        let depth = depth.checked_sub(1)?;
        let ty = self.resolve(id)?;
        match ty.kind {
            // int, struct, union, enum, float, enum64
            1 | STRUCT | 5 | 6 | 16 | 19 => Some(ty.referred),
            PTR => Some(8),
            ARRAY => self.size(word(ty.rest, 0)?, depth)?.checked_mul(word(ty.rest, 8)?),
            _ => None,
        }
    }

    pub(crate) fn name(&self, offset: u32) -> &'a str {
        let tail = self.strings.get(offset as usize..).unwrap_or_default();
        // Many types may have one name: together they must not be longer than the file by much.
        let tail = tail.get(..LONGEST_NAME).unwrap_or(tail);
        let bytes = tail.split(|byte| *byte == 0).next().unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

fn read_types(mut data: &[u8]) -> Result<Vec<Type<'_>>, &'static str> {
    let mut types = Vec::new();
    while !data.is_empty() {
        let cut = "a type is cut short";
        let (name, info) = (word(data, 0).ok_or(cut)?, word(data, 4).ok_or(cut)?);
        let referred = word(data, 8).ok_or(cut)?;
        let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        let length = match kind {
            1 | VAR | 17 => 4,
            ARRAY => 12,
            STRUCT | 5 | DATASEC | 19 => 12 * count,
            6 | 13 => 8 * count,
            PTR | 7..=12 | 16 | 18 => 0,
            _ => return Err("it has a type of a kind that is not known"),
        };
        let rest = data.get(12..12 + length).ok_or(cut)?;
        types.push(Type { name, kind, flag: info >> 31 != 0, referred, rest });
        data = data.get(12 + length..).unwrap_or_default();
    }
    Ok(types)
}

pub(crate) fn word(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}
