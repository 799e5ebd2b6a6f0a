//! An eBPF object file: its sections, symbols, functions and relocations, checked once.
//!
//! Nothing here is indexed before it was checked: objects come from outside.

use canopy_chain::insn::{Insn, SIZE};
use object::{
    Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationFlags,
    RelocationTarget, SectionKind, SymbolKind, SymbolSection,
};
use std::collections::BTreeMap;

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
    pub(crate) licence: String,
}

impl Elf {
    /// Reads an object file.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ObjectError> {
        let broken = |error: object::read::Error| ObjectError::Elf(error.to_string());
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
        for section in file.sections() {
            let at = section.index().0;
            if at >= 1 << 16 {
                return Err(ObjectError::Malformed("too many sections".to_owned()));
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
                    data: section.data().map_err(broken)?.to_vec(),
                    size: section.size(),
                    relocations,
                };
            }
        }

        let mut symbols: Vec<Symbol> = Vec::new();
        for symbol in file.symbols() {
            let at = symbol.index().0;
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
        Ok(Self { sections, symbols, functions, licence })
    }

    /// The section of that name.
    pub(crate) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// The function that starts there.
    pub(crate) fn function_at(&self, section: usize, address: u64) -> Option<usize> {
        self.functions.iter().position(|f| f.section == section && f.address == address)
    }
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
    let mut functions = Vec::new();
    for (index, section) in sections.iter().enumerate() {
        if !section.executable || section.data.is_empty() {
            continue;
        }
        let end = section.data.len() as u64;
        let here =
            || symbols.iter().filter(move |s| s.section == Some(index) && !s.name.is_empty());
        let mut spans: Vec<(&str, u64, u64)> = here()
            .filter(|symbol| symbol.kind == SymbolKind::Text && symbol.size > 0)
            .map(|symbol| (symbol.name.as_str(), symbol.address, symbol.size))
            .collect();
        if spans.is_empty() {
            let untyped = || here().filter(|s| !s.name.starts_with("LBB") && s.address < end);
            spans = untyped()
                .map(|symbol| {
                    let next = untyped().map(|s| s.address).filter(|a| *a > symbol.address).min();
                    (symbol.name.as_str(), symbol.address, next.unwrap_or(end) - symbol.address)
                })
                .collect();
        }
        for (name, address, size) in spans {
            let bytes = usize::try_from(address).ok().zip(usize::try_from(size).ok());
            let bytes =
                bytes.and_then(|(from, size)| section.data.get(from..from.checked_add(size)?));
            let instructions = bytes
                .filter(|_| address.is_multiple_of(SIZE as u64))
                .and_then(Insn::parse)
                .ok_or_else(|| {
                    ObjectError::Malformed(format!(
                        "function \"{name}\" lies outside its section \"{}\"",
                        section.name
                    ))
                })?;
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
