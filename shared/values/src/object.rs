//! Which types an object gives its maps and its variables.
//!
//! The object's own BTF is the source for every map, also for those the kernel keeps without (LPM
//! tries of some keys, queues, maps of maps) and for data sections, whose variables the kernel's
//! copy of the types does not have.

use crate::codec::Codec;
use canopy_chain::btf::{Btf, Type, kind};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, read::File};
use std::collections::BTreeMap;

/// Why an object's types cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TypesError {
    /// Not an ELF file, or a damaged one.
    #[error("it is not an ELF object: {0}")]
    Elf(String),
    /// The type information is damaged.
    #[error("its BTF cannot be read: {0}")]
    Btf(String),
}

/// The types of one object.
#[derive(Clone, Debug, Default)]
pub struct ObjectTypes {
    /// Contents of `.BTF`; empty without.
    btf: Vec<u8>,
    maps: BTreeMap<String, MapTypes>,
    sections: BTreeMap<String, Vec<Variable>>,
}

/// The types of a map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapTypes {
    /// Of its keys, if it says.
    pub key: Option<u32>,
    /// Of its values, if it says.
    pub value: Option<u32>,
}

/// A global variable in a data section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Where it begins, bytes.
    pub offset: usize,
    /// Its size, bytes.
    pub size: usize,
    /// Its type, if it is known.
    pub ty: Option<u32>,
}

/// Bytes each variable of `.kconfig` takes; see `canopy_kernel_aya::object_maps`.
const KCONFIG_SLOT: usize = 8;

impl ObjectTypes {
    /// Reads an object file.
    pub fn read(bytes: &[u8]) -> Result<Self, TypesError> {
        let elf = |error: object::Error| TypesError::Elf(error.to_string());
        let file: File<'_, &[u8]> = File::parse(bytes).map_err(elf)?;
        let mut types = Self::default();
        if let Some(section) = file.section_by_name(".BTF") {
            types.btf = section.data().map_err(elf)?.to_vec();
        }
        let raw = std::mem::take(&mut types.btf);
        let btf = if raw.is_empty() {
            None
        } else {
            Some(Btf::parse(&raw).map_err(|error| TypesError::Btf(error.to_string()))?)
        };
        let section = |name: &str| section_of(btf.as_ref(), name);
        for (name, ty) in section(".maps") {
            if let Some(btf) = &btf {
                types.maps.insert(name.to_owned(), map_types(btf, ty));
            }
        }
        for symbol in file.symbols() {
            let (Ok(name), Some(index)) = (symbol.name(), symbol.section_index()) else { continue };
            let Ok(place) = file.section_by_index(index) else { continue };
            let Some(place) = place.name().ok().filter(|place| is_data(place)) else { continue };
            let (Ok(offset), Ok(size)) =
                (usize::try_from(symbol.address()), usize::try_from(symbol.size()))
            else {
                continue;
            };
            if name.is_empty() || size == 0 {
                continue;
            }
            let ty = section(place).into_iter().find(|(known, _)| *known == name);
            types.sections.entry(place.to_owned()).or_default().push(Variable {
                name: name.to_owned(),
                offset,
                size,
                ty: ty.map(|(_, ty)| ty),
            });
        }
        let slots = section(".kconfig").into_iter().enumerate().filter_map(|(i, (name, ty))| {
            let size = btf.as_ref()?.size(ty)? as usize;
            let offset = i * KCONFIG_SLOT;
            Some(Variable { name: name.to_owned(), offset, size, ty: Some(ty) })
        });
        let slots: Vec<_> = slots.filter(|variable| variable.size <= KCONFIG_SLOT).collect();
        if !slots.is_empty() {
            types.sections.insert(".kconfig".to_owned(), slots);
        }
        for variables in types.sections.values_mut() {
            variables.sort_by(|a, b| (a.offset, &a.name).cmp(&(b.offset, &b.name)));
        }
        drop(btf);
        types.btf = raw;
        Ok(types)
    }

    /// What turns this object's bytes into JSON and back.
    pub fn codec(&self) -> Codec<'_> {
        Btf::parse(&self.btf).map(Codec::new).unwrap_or_default()
    }

    /// The types of a map declared in the object.
    pub fn map(&self, name: &str) -> MapTypes {
        self.maps.get(name).copied().unwrap_or_default()
    }

    /// The type of this name: `struct event`, `event`.
    pub fn named(&self, name: &str) -> Option<u32> {
        let (only, name) = match name.split_once(' ') {
            Some(("struct", name)) => (Some(kind::STRUCT), name),
            Some(("union", name)) => (Some(kind::UNION), name),
            Some(("enum", name)) => (Some(kind::ENUM), name),
            _ => (None, name),
        };
        let btf = Btf::parse(&self.btf).ok()?;
        let found = btf.iter().find(|(id, ty)| {
            let sized = !matches!(ty.kind, kind::VAR | kind::DATASEC | kind::FWD);
            only.is_none_or(|only| ty.kind == only)
                && sized
                && btf.string(ty.name) == name
                && btf.size(*id).is_some()
        });
        found.filter(|_| !name.is_empty()).map(|(id, _)| id)
    }

    /// The names of its structs, sorted.
    pub fn names(&self) -> Vec<String> {
        let Ok(btf) = Btf::parse(&self.btf) else { return Vec::new() };
        let structs = btf.iter().filter(|(_, ty)| ty.kind == kind::STRUCT);
        let names = structs.map(|(_, ty)| btf.string(ty.name)).filter(|name| !name.is_empty());
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort();
        names
    }

    /// The variables of a data section, by place.
    pub fn variables(&self, section: &str) -> &[Variable] {
        self.sections.get(section).map_or(&[], Vec::as_slice)
    }

    /// The data section a variable is in.
    pub fn section_of(&self, variable: &str) -> Option<&str> {
        let holds = |variables: &[Variable]| variables.iter().any(|known| known.name == variable);
        self.sections.iter().find(|(_, variables)| holds(variables)).map(|(name, _)| name.as_str())
    }
}

/// Whether a section holds global variables.
fn is_data(section: &str) -> bool {
    [".rodata", ".data", ".bss"].iter().any(|kind| {
        section.strip_prefix(kind).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// The variables that BTF has in a section: name and type.
fn section_of<'a>(btf: Option<&Btf<'a>>, name: &str) -> Vec<(&'a str, u32)> {
    let Some(btf) = btf else { return Vec::new() };
    let section =
        btf.iter().find(|(_, ty)| ty.kind == kind::DATASEC && btf.string(ty.name) == name);
    let Some((_, section)) = section else { return Vec::new() };
    (0..usize::from(section.vlen))
        .filter_map(|i| btf.get(section.word(i * 3)).filter(|ty| ty.kind == kind::VAR))
        .map(|variable| (btf.string(variable.name), variable.size_or_type))
        .collect()
}

/// What a map's definition says: `__type(key, T)` is a member `key` that points to `T`.
fn map_types(btf: &Btf<'_>, definition: u32) -> MapTypes {
    let mut types = MapTypes::default();
    let Some((_, definition)) = btf.resolve(definition) else { return types };
    if definition.kind != kind::STRUCT {
        return types;
    }
    let pointed = |ty| {
        let (_, pointer) =
            btf.resolve(ty).filter(|(_, ty): &(u32, &Type<'_>)| ty.kind == kind::PTR)?;
        Some(pointer.size_or_type).filter(|ty| btf.size(*ty).is_some())
    };
    for i in 0..usize::from(definition.vlen) {
        match btf.string(definition.word(i * 3)) {
            "key" => types.key = pointed(definition.word(i * 3 + 1)),
            "value" => types.value = pointed(definition.word(i * 3 + 1)),
            _ => {}
        }
    }
    types
}
