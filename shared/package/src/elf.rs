//! What an object file holds, read without the kernel: functions, maps, variables, licence.
//!
//! This is for comparing a manifest with its objects, early and with good messages. Loading is
//! the loader's business and reads the file again by itself.

use crate::{btf::Btf, layout::Field};
use object::{
    Architecture, Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind, read::File,
};
use std::collections::BTreeSet;

/// Why a file is not a usable eBPF object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// Not an ELF file, or a damaged one.
    #[error("it is not an ELF object: {reason}")]
    NotElf {
        /// What the reader met.
        reason: String,
    },
    /// Compiled for another machine.
    #[error("it is compiled for {found}, not for eBPF")]
    NotBpf {
        /// The machine.
        found: String,
    },
    /// Of the other byte order.
    #[error("it is compiled for big-endian hosts")]
    BigEndian,
    /// More than any compiler makes: tables over each other would make gigabytes of a few bytes.
    #[error("{what}")]
    TooMuch {
        /// Of what.
        what: String,
    },
    /// Its type information cannot be read.
    #[error("its BTF cannot be read: {reason}")]
    Btf {
        /// What is wrong.
        reason: &'static str,
    },
}

/// What an object file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectFile {
    /// Functions, with the section each is in.
    pub functions: Vec<Function>,
    /// Maps, of both kinds of definition.
    pub maps: Vec<MapShape>,
    /// Variables in `.rodata`, `.data` and `.bss`.
    pub globals: Vec<Global>,
    /// The licence string of the object, if it has one.
    pub license: Option<String>,
    /// Whether it has BTF (compiled with `-g`).
    pub has_btf: bool,
}

/// A function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Its section.
    pub section: String,
    /// What it takes and returns, as C writes it, where the object says: `int (struct xdp_md *)`.
    pub signature: Option<String>,
}

/// A map, as far as the object says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapShape {
    /// Its name.
    pub name: String,
    /// `enum bpf_map_type`.
    pub kind: Option<u32>,
    /// Size of a key, bytes.
    pub key_size: Option<u32>,
    /// Size of a value, bytes.
    pub value_size: Option<u32>,
    /// Number of entries.
    pub max_entries: Option<u32>,
    /// What lies where in a key.
    pub(crate) key_fields: Option<Vec<Field>>,
    /// What lies where in a value.
    pub(crate) value_fields: Option<Vec<Field>>,
}

/// A variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Global {
    /// Its name.
    pub name: String,
    /// Its size, bytes.
    pub size: u64,
    /// Its section.
    pub section: String,
}

impl ObjectFile {
    /// Reads an object file.
    pub fn read(bytes: &[u8]) -> Result<Self, ElfError> {
        let not_elf = |error: object::Error| ElfError::NotElf { reason: error.to_string() };
        let file: File<'_, &[u8]> = File::parse(bytes).map_err(not_elf)?;
        if file.architecture() != Architecture::Bpf {
            return Err(ElfError::NotBpf { found: format!("{:?}", file.architecture()) });
        }
        if !file.is_little_endian() {
            return Err(ElfError::BigEndian);
        }
        bounded(&file, bytes.len())?;
        let mut out = Self::default();
        for symbol in file.symbols() {
            let (Ok(name), Some(index)) = (symbol.name(), symbol.section_index()) else { continue };
            let Ok(section) = file.section_by_index(index) else { continue };
            let section_name = section.name().unwrap_or_default();
            if name.is_empty() {
                continue;
            }
            let (name, in_section) = (name.to_owned(), section_name.to_owned());
            match symbol.kind() {
                SymbolKind::Text if section.kind() == SectionKind::Text => {
                    let section = in_section;
                    out.functions.push(Function { name, section, signature: None });
                }
                SymbolKind::Data | SymbolKind::Unknown if is_data(section_name) => {
                    out.globals.push(Global { name, size: symbol.size(), section: in_section });
                }
                SymbolKind::Data | SymbolKind::Unknown if section_name == "maps" => {
                    let data = section.data().unwrap_or_default();
                    out.maps.push(legacy_map(name, data, symbol.address()));
                }
                _ => {}
            }
        }
        if let Some(section) = file.section_by_name("license") {
            let data = section.data().map_err(not_elf)?;
            let text = data.split(|byte| *byte == 0).next().unwrap_or_default();
            out.license = Some(String::from_utf8_lossy(text).into_owned());
        }
        if let Some(section) = file.section_by_name(".BTF") {
            let btf = Btf::read(section.data().map_err(not_elf)?)
                .map_err(|reason| ElfError::Btf { reason })?;
            out.has_btf = true;
            let names: BTreeSet<&str> =
                out.functions.iter().map(|function| function.name.as_str()).collect();
            let mut signatures = btf.signatures(&names);
            for function in &mut out.functions {
                function.signature = signatures.remove(function.name.as_str());
            }
            out.maps.extend(btf.maps());
        }
        Ok(out)
    }
}

/// Most sections of an object.
const SECTIONS: usize = 4096;
/// Most symbols of an object.
const SYMBOLS: usize = 1 << 16;
/// Longest name, bytes: the kernel's `KSYM_NAME_LEN`.
const LONGEST_NAME: usize = 512;

/// That reading an object takes memory and time by its length, and no more.
fn bounded<'a>(file: &File<'a, &'a [u8]>, length: usize) -> Result<(), ElfError> {
    let too_much = |what: String| Err(ElfError::TooMuch { what });
    let mut contents = 0;
    for (number, section) in file.sections().enumerate() {
        let data =
            section.data().map_err(|error| ElfError::NotElf { reason: error.to_string() })?;
        contents += data.len();
        if number >= SECTIONS {
            return too_much(format!("it has more than {SECTIONS} sections"));
        }
        if contents > length {
            return too_much("its sections lie over each other".to_owned());
        }
        // Names are looked up in tables of this kind only, from anywhere to the next zero.
        let mut names = data.split(|byte| *byte == 0);
        if section.kind() == SectionKind::Metadata && names.any(|name| name.len() > LONGEST_NAME) {
            return too_much(format!("a name in it is longer than {LONGEST_NAME} bytes"));
        }
    }
    if file.symbols().nth(SYMBOLS).is_some() {
        return too_much(format!("it has more than {SYMBOLS} symbols"));
    }
    Ok(())
}

/// Whether a section holds global variables.
pub(crate) fn is_data(section: &str) -> bool {
    [".rodata", ".data", ".bss"].iter().any(|kind| {
        section
            .strip_prefix(kind)
            .is_some_and(|rest| matches!(rest.chars().next(), None | Some('.')))
    })
}

/// `struct bpf_map_def`: type, `key_size`, `value_size`, `max_entries`, 4 bytes each, then more.
fn legacy_map(name: String, data: &[u8], address: u64) -> MapShape {
    let at = usize::try_from(address).unwrap_or(usize::MAX);
    let word = |n: usize| {
        let from = at.checked_add(n * 4)?;
        let bytes = data.get(from..from.checked_add(4)?)?;
        bytes.try_into().ok().map(u32::from_le_bytes)
    };
    MapShape {
        name,
        kind: word(0),
        key_size: word(1),
        value_size: word(2),
        max_entries: word(3),
        ..MapShape::default()
    }
}
