//! What an object declares to be somewhere else: functions and variables of the kernel (`__ksym`) and
//! its configuration (`__kconfig`).
//!
//! What libbpf does (`bpf_object__resolve_externs`). Something that is not there refuses the programs
//! that refer to it, and no other.

use crate::{
    core_relocate,
    kconfig::{self, Configuration},
    kernel_btf::{KernelBtf, essential_name},
};
use canopy_chain::btf::{Btf, kind};
use std::{collections::BTreeMap, fs, sync::OnceLock};

/// Most declarations of an object.
const DECLARATIONS: usize = 4096;

/// The declarations of an object, by name.
#[derive(Debug, Default)]
pub(crate) struct Externs {
    declared: BTreeMap<String, Declared>,
    /// The kernel's variables that are declared without a type, by name.
    addresses: OnceLock<Result<BTreeMap<String, Address>, String>>,
}

#[derive(Clone, Debug)]
enum Declared {
    /// A kernel function, with its id if it is there.
    Function(Found),
    /// A kernel variable with a type.
    Variable(Found),
    /// A kernel symbol without one: only its address is asked for.
    Untyped,
    /// A variable of the configuration.
    Configured { offset: usize, outcome: kconfig::Outcome },
}

/// What the kernel has by that name.
#[derive(Clone, Debug)]
enum Found {
    Id(u32),
    Absent,
    /// There is one, of another type.
    Other,
    /// It is not known, because of this.
    Unknown(String),
}

/// Where a symbol of the kernel lies.
#[derive(Clone, Copy, Debug)]
enum Address {
    At(u64),
    /// Several have the name.
    Several,
}

/// What an instruction that refers to a declaration becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resolution {
    /// The kernel's function or variable with this number.
    Kernel(u32),
    /// A number: an address, or 0 for something weak that is not there.
    Number(u64),
    /// A place in the map of the configuration.
    Configured(usize),
}

/// Why an instruction cannot refer to a declaration: what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unresolved {
    pub(crate) what: String,
    pub(crate) remedy: &'static str,
}

const DECLARE_WEAK: &str = "declare it __weak and test for it, or use a kernel that has it";

impl Externs {
    /// The object's declarations, looked up in the kernel.
    pub(crate) fn new(btf: &Btf<'_>, configuration: Option<&Configuration>) -> Self {
        let mut declared = BTreeMap::new();
        let sections = btf
            .iter()
            .filter(|(_, ty)| ty.kind == kind::DATASEC && btf.string(ty.name) == ".ksyms")
            .flat_map(|(_, ty)| (0..usize::from(ty.vlen)).map(|index| ty.word(index * 3)));
        for id in sections.take(DECLARATIONS) {
            let Some(ty) = btf.get(id) else { continue };
            let name = btf.string(ty.name);
            let found = match ty.kind {
                kind::FUNC => Declared::Function(function(btf, name, ty.size_or_type)),
                kind::VAR if btf.resolve_or_void(ty.size_or_type) == Some(0) => Declared::Untyped,
                kind::VAR => Declared::Variable(variable(btf, name, ty.size_or_type)),
                _ => continue,
            };
            declared.insert(name.to_owned(), found);
        }
        for kconfig::Variable { name, offset, outcome } in
            configuration.iter().flat_map(|configuration| &configuration.variables)
        {
            let (offset, outcome) = (*offset, outcome.clone());
            declared.insert(name.clone(), Declared::Configured { offset, outcome });
        }
        Self { declared, addresses: OnceLock::new() }
    }

    /// What a reference to a declaration becomes; `None` for what is not declared. `call` is whether
    /// it is called.
    pub(crate) fn resolve(
        &self,
        name: &str,
        weak: bool,
        call: bool,
    ) -> Option<Result<Resolution, Unresolved>> {
        let unresolved = |what: String, remedy| Err(Unresolved { what, remedy });
        // What is weak and not there is 0, which is what programs test for; a call of it is refused
        // by the verifier where it can be reached.
        let absent = Ok(if call { Resolution::Kernel(0) } else { Resolution::Number(0) });
        Some(match self.declared.get(name)? {
            Declared::Configured { .. } | Declared::Variable(_) | Declared::Untyped if call => {
                unresolved(
                    format!("it calls \"{name}\", which it declares to be a variable"),
                    "declare it as a function",
                )
            }
            Declared::Configured { offset, outcome } => match outcome {
                kconfig::Outcome::Set => Ok(Resolution::Configured(*offset)),
                kconfig::Outcome::Absent if weak => Ok(Resolution::Configured(*offset)),
                kconfig::Outcome::Absent => unresolved(
                    format!("the kernel's configuration has no \"{name}\""),
                    "declare it __weak: it then reads as 0 where it is not set",
                ),
                kconfig::Outcome::Refused(why) => unresolved(
                    format!("the kernel's configuration: \"{name}\": {why}"),
                    "declare it with the type of the option: bool, char, enum libbpf_tristate, a \
                     number, or an array of char",
                ),
            },
            Declared::Function(Found::Id(id)) | Declared::Variable(Found::Id(id)) => {
                Ok(Resolution::Kernel(*id))
            }
            Declared::Function(Found::Absent | Found::Other)
            | Declared::Variable(Found::Absent)
                if weak =>
            {
                absent
            }
            Declared::Function(Found::Absent) => unresolved(
                format!("it refers to the kernel's function \"{name}\", which this kernel lacks"),
                DECLARE_WEAK,
            ),
            Declared::Variable(Found::Absent) => unresolved(
                format!("it refers to the kernel's variable \"{name}\", which this kernel lacks"),
                DECLARE_WEAK,
            ),
            Declared::Function(Found::Other) | Declared::Variable(Found::Other) => unresolved(
                format!("the kernel's \"{name}\" has another type than the object declares"),
                "declare it as this kernel has it (bpftool btf dump file /sys/kernel/btf/vmlinux)",
            ),
            Declared::Function(Found::Unknown(why)) | Declared::Variable(Found::Unknown(why)) => {
                unresolved(format!("the kernel's \"{name}\": {why}"), DECLARE_WEAK)
            }
            Declared::Untyped => match self.address(name) {
                Ok(Some(Address::At(address))) => Ok(Resolution::Number(address)),
                Ok(Some(Address::Several)) => unresolved(
                    format!("the kernel has several symbols \"{name}\""),
                    "declare the variable with its type",
                ),
                Ok(None) if weak => absent,
                Ok(None) => unresolved(
                    format!("the kernel has no symbol \"{name}\" (/proc/kallsyms)"),
                    DECLARE_WEAK,
                ),
                Err(why) => unresolved(
                    format!("the kernel's \"{name}\": /proc/kallsyms cannot be read: {why}"),
                    "make /proc/kallsyms readable for the loader",
                ),
            },
        })
    }

    /// Where a symbol of the kernel lies: all that the object declares are looked for at once.
    fn address(&self, name: &str) -> Result<Option<Address>, String> {
        let known = self.addresses.get_or_init(|| {
            let text = fs::read("/proc/kallsyms").map_err(|error| error.to_string())?;
            Ok(self.addresses_in(&String::from_utf8_lossy(&text)))
        });
        known.as_ref().map(|known| known.get(name).copied()).map_err(Clone::clone)
    }

    fn addresses_in(&self, symbols: &str) -> BTreeMap<String, Address> {
        let mut known = BTreeMap::new();
        for line in symbols.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some(address), Some(_), Some(name)) = (words.next(), words.next(), words.next())
            else {
                continue;
            };
            if !matches!(self.declared.get(name), Some(Declared::Untyped)) {
                continue;
            }
            let Ok(address) = u64::from_str_radix(address, 16) else { continue };
            known
                .entry(name.to_owned())
                .and_modify(|known| match known {
                    Address::At(other) if *other == address => {}
                    _ => *known = Address::Several,
                })
                .or_insert(Address::At(address));
        }
        known
    }
}

/// A function of the kernel that is declared with this prototype; its name may have a flavour.
fn function(btf: &Btf<'_>, name: &str, prototype: u32) -> Found {
    found(essential_name(name), kind::FUNC, |kernel, ty| {
        core_relocate::compatible(btf, prototype, kernel, ty)
    })
}

fn variable(btf: &Btf<'_>, name: &str, ty: u32) -> Found {
    found(name, kind::VAR, |kernel, target| core_relocate::compatible(btf, ty, kernel, target))
}

fn found(
    name: &str,
    kind: u8,
    compatible: impl FnOnce(&KernelBtf, u32) -> Result<bool, String>,
) -> Found {
    let kernel = match KernelBtf::get() {
        Ok(kernel) => kernel,
        Err(error) => return Found::Unknown(error.to_string()),
    };
    let Some(id) = kernel.find(name, kind) else { return Found::Absent };
    let target = kernel.btf.get(id).map_or(0, |ty| ty.size_or_type);
    match compatible(kernel, target) {
        Ok(true) => Found::Id(id),
        Ok(false) => Found::Other,
        Err(why) => Found::Unknown(why),
    }
}
