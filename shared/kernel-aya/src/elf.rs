//! An eBPF object file: its sections, symbols, functions and relocations, checked once.
//!
//! Nothing here is indexed before it was checked: objects come from outside. What an object may make of
//! memory and time is bounded: by counts far above what compilers make, and by its own length. Where
//! tables may lie over each other in the file, a few bytes would else become gigabytes.

use canopy_chain::insn::{Insn, SIZE};
use object::{
    Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationFlags,
    RelocationTarget, SectionKind, SymbolKind, SymbolSection,
};
use std::collections::BTreeMap;

/// Longest object file, bytes: as long as an unpacked package.
const LONGEST: usize = 64 << 20;
/// Most sections.
const SECTIONS: usize = 4096;
/// Most symbols.
const SYMBOLS: usize = 1 << 16;
/// Most functions.
const FUNCTIONS: usize = 4096;
/// Most instructions of all functions together: what the verifier walks in a program at most.
const INSTRUCTIONS: usize = 1_000_000;
/// Longest name, bytes: the kernel's `KSYM_NAME_LEN`.
const LONGEST_NAME: usize = 512;

/// Why an object file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ObjectError {
    /// Not an ELF file, or a broken one.
    #[error("the object is not a readable ELF file: {0}")]
    Elf(String),
    /// Not for eBPF, or for a machine of the other byte order.
    #[error("the object is not a relocatable eBPF file of this machine's byte order")]
    Machine,
    /// Something in it contradicts itself.
    #[error("the object is malformed: {0}")]
    Malformed(String),
    /// The function asked for is not in it.
    #[error("the object has no function \"{name}\"; it has {}", have.join(", "))]
    NoFunction {
        /// The function.
        name: String,
        /// Those it has.
        have: Vec<String>,
    },
    /// It needs something that is not done here.
    #[error("{what}")]
    Unsupported {
        /// What it needs.
        what: String,
        /// What to do instead.
        remedy: String,
    },
}

/// One section.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    pub(crate) name: String,
    pub(crate) executable: bool,
    /// Takes memory in a running program.
    pub(crate) allocated: bool,
    /// Empty for sections without contents in the file (`.bss`).
    pub(crate) data: Vec<u8>,
    pub(crate) size: u64,
    /// By offset in the section.
    pub(crate) relocations: BTreeMap<u64, usize>,
}

/// One symbol.
#[derive(Clone, Debug)]
pub(crate) struct Symbol {
    pub(crate) name: String,
    /// The section it lies in; `None` when undefined or absolute.
    pub(crate) section: Option<usize>,
    pub(crate) address: u64,
    pub(crate) size: u64,
    pub(crate) kind: SymbolKind,
    pub(crate) weak: bool,
}

/// One function.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) section: usize,
    /// Offset in the section, bytes.
    pub(crate) address: u64,
    pub(crate) instructions: Vec<Insn>,
}

/// An object file.
#[derive(Clone, Debug)]
pub(crate) struct Elf {
    /// By ELF section index.
    pub(crate) sections: Vec<Section>,
    /// By ELF symbol index.
    pub(crate) symbols: Vec<Symbol>,
    pub(crate) functions: Vec<Function>,
    /// The functions by section and address.
    places: BTreeMap<(usize, u64), usize>,
    pub(crate) licence: String,
}

impl Elf {
    /// Reads an object file.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ObjectError> {
        let broken = |error: object::read::Error| ObjectError::Elf(error.to_string());
        if bytes.len() > LONGEST {
            return Err(too_much("bytes", LONGEST));
        }
        let file = object::File::parse(bytes).map_err(broken)?;
        let native =
            if cfg!(target_endian = "little") { Endianness::Little } else { Endianness::Big };
        if file.architecture() != object::Architecture::Bpf
            || file.kind() != object::ObjectKind::Relocatable
            || file.endianness() != native
            || !file.is_64()
        {
            return Err(ObjectError::Machine);
        }

        let mut sections: Vec<Section> = Vec::new();
        let mut contents = 0;
        for section in file.sections() {
            let at = section.index().0;
            if at >= SECTIONS {
                return Err(too_much("sections", SECTIONS));
            }
            let data = section.data().map_err(broken)?;
            contents += data.len();
            if contents > bytes.len() {
                return Err(ObjectError::Malformed("its sections lie over each other".to_owned()));
            }
            // Names are looked up in tables of this kind only, from anywhere to the next zero.
            if section.kind() == SectionKind::Metadata {
                short_names(data)?;
            }
            if sections.len() <= at {
                sections.resize_with(at + 1, Section::none);
            }
            let executable = section.kind() == SectionKind::Text;
            let mut relocations = BTreeMap::new();
            for (offset, relocation) in section.relocations() {
                if let (RelocationTarget::Symbol(symbol), RelocationFlags::Elf { r_type }) =
                    (relocation.target(), relocation.flags())
                    && r_type != object::elf::R_BPF_NONE
                {
                    relocations.insert(offset, symbol.0);
                }
            }
            if let Some(place) = sections.get_mut(at) {
                *place = Section {
                    name: section.name().map_err(broken)?.to_owned(),
                    executable,
                    allocated: matches!(section.flags(),
                        object::SectionFlags::Elf { sh_flags, .. }
                            if sh_flags.0 & object::elf::SHF_ALLOC.0 != 0),
                    data: data.to_vec(),
                    size: section.size(),
                    relocations,
                };
            }
        }

        let mut symbols: Vec<Symbol> = Vec::new();
        for symbol in file.symbols() {
            let at = symbol.index().0;
            if at >= SYMBOLS {
                return Err(too_much("symbols", SYMBOLS));
            }
            // The null symbol is not listed.
            symbols.resize_with(at, Symbol::none);
            symbols.push(Symbol {
                name: symbol.name().map_err(broken)?.to_owned(),
                section: match symbol.section() {
                    SymbolSection::Section(index) => Some(index.0),
                    _ => None,
                },
                address: symbol.address(),
                size: symbol.size(),
                kind: symbol.kind(),
                weak: symbol.is_weak(),
            });
        }

        let licence = sections.iter().find(|section| section.name == "license");
        let licence = licence.map_or_else(String::new, |section| {
            let end = section.data.iter().position(|byte| *byte == 0);
            let text = section.data.get(..end.unwrap_or(section.data.len())).unwrap_or_default();
            String::from_utf8_lossy(text).into_owned()
        });
        let functions = functions(&sections, &symbols)?;
        let mut places = BTreeMap::new();
        for (number, function) in functions.iter().enumerate() {
            places.entry((function.section, function.address)).or_insert(number);
        }
        Ok(Self { sections, symbols, functions, places, licence })
    }

    /// The section of that name.
    pub(crate) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// The function that starts there.
    pub(crate) fn function_at(&self, section: usize, address: u64) -> Option<usize> {
        self.places.get(&(section, address)).copied()
    }
}

fn too_much(what: &str, limit: usize) -> ObjectError {
    ObjectError::Malformed(format!("it has more than {limit} {what}"))
}

/// That no name in a table of strings is longer than [`LONGEST_NAME`].
fn short_names(table: &[u8]) -> Result<(), ObjectError> {
    if table.split(|byte| *byte == 0).any(|name| name.len() > LONGEST_NAME) {
        return Err(ObjectError::Malformed(format!(
            "a name in it is longer than {LONGEST_NAME} bytes"
        )));
    }
    Ok(())
}

impl Section {
    fn none() -> Self {
        Self {
            name: String::new(),
            executable: false,
            allocated: false,
            data: Vec::new(),
            size: 0,
            relocations: BTreeMap::new(),
        }
    }
}

impl Symbol {
    fn none() -> Self {
        Self {
            name: String::new(),
            section: None,
            address: 0,
            size: 0,
            kind: SymbolKind::Unknown,
            weak: false,
        }
    }
}

/// The functions of every executable section. Compilers before LLVM 10 leave them untyped: a
/// section without a typed one takes its untyped symbols, each up to the next.
fn functions(sections: &[Section], symbols: &[Symbol]) -> Result<Vec<Function>, ObjectError> {
    let mut named: BTreeMap<usize, Vec<&Symbol>> = BTreeMap::new();
    for symbol in symbols.iter().filter(|symbol| !symbol.name.is_empty()) {
        if let Some(section) = symbol.section {
            named.entry(section).or_default().push(symbol);
        }
    }
    let mut functions = Vec::new();
    let mut room = INSTRUCTIONS;
    for (index, section) in sections.iter().enumerate() {
        if !section.executable || section.data.is_empty() {
            continue;
        }
        let here = named.get(&index).map(Vec::as_slice).unwrap_or_default();
        for (name, address, size) in spans(section, here) {
            let bytes = usize::try_from(address).ok().zip(usize::try_from(size).ok());
            let bytes =
                bytes.and_then(|(from, size)| section.data.get(from..from.checked_add(size)?));
            // Functions may lie over each other, as aliases do.
            room = room
                .checked_sub(bytes.map_or(0, <[u8]>::len) / SIZE)
                .ok_or_else(|| too_much("instructions in functions", INSTRUCTIONS))?;
            let instructions = bytes
                .filter(|_| address.is_multiple_of(SIZE as u64))
                .and_then(Insn::parse)
                .ok_or_else(|| {
                    ObjectError::Malformed(format!(
                        "function \"{name}\" lies outside its section \"{}\"",
                        section.name
                    ))
                })?;
            if functions.len() == FUNCTIONS {
                return Err(too_much("functions", FUNCTIONS));
            }
            functions.push(Function {
                name: name.to_owned(),
                section: index,
                address,
                instructions,
            });
        }
    }
    Ok(functions)
}

/// The functions that the symbols of a section are: name, address, size.
fn spans<'a>(section: &Section, symbols: &[&'a Symbol]) -> Vec<(&'a str, u64, u64)> {
    let typed: Vec<_> = symbols
        .iter()
        .filter(|symbol| symbol.kind == SymbolKind::Text && symbol.size > 0)
        .map(|symbol| (symbol.name.as_str(), symbol.address, symbol.size))
        .collect();
    if !typed.is_empty() {
        return typed;
    }
    let end = section.data.len() as u64;
    let untyped = || symbols.iter().filter(|s| !s.name.starts_with("LBB") && s.address < end);
    let mut starts: Vec<_> = untyped().map(|symbol| symbol.address).collect();
    starts.sort_unstable();
    untyped()
        .map(|symbol| {
            let behind = starts.partition_point(|start| *start <= symbol.address);
            let next = starts.get(behind).copied().unwrap_or(end);
            (symbol.name.as_str(), symbol.address, next - symbol.address)
        })
        .collect()
}
