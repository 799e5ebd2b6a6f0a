//! The running kernel's own type information and that of its modules, parsed once a process and found by
//! name.

use crate::elf::ObjectError;
use canopy_chain::btf::{Btf, Type, kind};
use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    fs,
    sync::{Mutex, OnceLock, PoisonError},
};

/// Where the kernel keeps it.
const PATH: &str = "/sys/kernel/btf/vmlinux";
/// Where it and each loaded module have theirs.
const DIRECTORY: &str = "/sys/kernel/btf";

/// The kernel's types with an index of their names; or those of a module, which refer to the kernel's.
#[derive(Debug)]
pub(crate) struct KernelBtf {
    pub(crate) btf: Btf<'static>,
    /// The lowest id of each essential name.
    first: HashMap<&'static str, u32>,
    /// By id: the next higher id of the same essential name; 0 for none.
    next: Vec<u32>,
}

impl KernelBtf {
    /// The running kernel's: it is read and indexed once.
    pub(crate) fn get() -> Result<&'static Self, ObjectError> {
        static KERNEL: OnceLock<Result<KernelBtf, String>> = OnceLock::new();
        KERNEL.get_or_init(Self::read).as_ref().map_err(|error| ObjectError::Unsupported {
            what: format!("the kernel's type information cannot be read: {error}"),
            remedy: format!("use a kernel with CONFIG_DEBUG_INFO_BTF ({PATH})"),
        })
    }

    fn read() -> Result<Self, String> {
        Self::of(fs::read(PATH).map_err(|error| error.to_string())?)
    }

    /// Those of these bytes.
    pub(crate) fn of(bytes: Vec<u8>) -> Result<Self, String> {
        // It lives as long as the process: it is read once, and every object is compared with it.
        let bytes: &'static [u8] = Vec::leak(bytes);
        Ok(Self::index(Btf::parse(bytes).map_err(|error| error.to_string())?, 1))
    }

    /// The types of the loaded modules that have a type of this essential name. A module is read when a name
    /// is looked for that it may have, and kept as long as the process.
    pub(crate) fn of_modules(&self, name: &str) -> Vec<&'static Self> {
        static MODULES: Mutex<BTreeMap<String, Option<&'static KernelBtf>>> =
            Mutex::new(BTreeMap::new());
        let mut known = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        for file in fs::read_dir(DIRECTORY).into_iter().flatten().flatten() {
            let Some(module) = file.file_name().to_str().map(str::to_owned) else { continue };
            if module == "vmlinux" {
                continue;
            }
            if !known.contains_key(&module) {
                let Ok(bytes) = fs::read(file.path()) else { continue };
                // Most modules have nothing of what is looked for.
                if !has_text(&bytes, name) {
                    continue;
                }
                let types = self.with_module(&bytes);
                known.insert(module.clone(), types.map(|types| &*Box::leak(Box::new(types))));
            }
            found.extend(known.get(&module).copied().flatten());
        }
        found.retain(|module: &&Self| module.named(name).next().is_some());
        found
    }

    /// The types of a module behind the kernel's; its own are found by name. `None` for what is none.
    fn with_module(&self, bytes: &[u8]) -> Option<Self> {
        let strings: &'static [u8] = Vec::leak(self.btf.joined_strings(bytes).ok()?);
        let bytes: &'static [u8] = Vec::leak(bytes.to_vec());
        let first = u32::try_from(self.btf.len()).ok()?.checked_add(1)?;
        Some(Self::index(self.btf.with_split(bytes, strings).ok()?, first))
    }

    /// Indexes the names of types from one on.
    fn index(btf: Btf<'static>, from: u32) -> Self {
        let mut next = vec![0; btf.len() + 1];
        let mut first = HashMap::with_capacity(btf.len() / 2);
        // From the end, so that the chain of a name rises.
        for id in (from..=u32::try_from(btf.len()).unwrap_or(u32::MAX)).rev() {
            let name = btf.get(id).map_or("", |ty| essential_name(btf.string(ty.name)));
            if name.is_empty() {
                continue;
            }
            match first.entry(name) {
                Entry::Occupied(mut known) => {
                    let after = known.insert(id);
                    if let Some(place) = next.get_mut(id as usize) {
                        *place = after;
                    }
                }
                Entry::Vacant(place) => {
                    place.insert(id);
                }
            }
        }
        Self { btf, first, next }
    }

    /// The types of this essential name, by rising id.
    pub(crate) fn named(&self, name: &str) -> impl Iterator<Item = (u32, &Type<'static>)> {
        let first = self.first.get(name).copied().unwrap_or(0);
        let after = |id: &u32| self.next.get(*id as usize).copied().filter(|id| *id != 0);
        std::iter::successors(Some(first).filter(|id| *id != 0), after)
            .filter_map(|id| Some((id, self.btf.get(id)?)))
    }

    /// The type of exactly this name and kind.
    pub(crate) fn find(&self, name: &str, kind: u8) -> Option<u32> {
        self.named(essential_name(name))
            .find(|(_, ty)| ty.kind == kind && self.btf.string(ty.name) == name)
            .map(|(id, _)| id)
    }

    /// Whether the kernel has a struct or union of this name.
    pub(crate) fn has_composite(&self, name: &str) -> bool {
        self.find(name, kind::STRUCT).or_else(|| self.find(name, kind::UNION)).is_some()
    }
}

/// Whether a name is among these bytes, to the end of a string or with a flavour.
fn has_text(bytes: &[u8], name: &str) -> bool {
    let name = name.as_bytes();
    !name.is_empty() && bytes.windows(name.len()).any(|window| window == name)
}

/// A name without its flavour: `sample___v2` means the kernel's `sample`
/// (`bpf_core_essential_name_len`).
pub(crate) fn essential_name(name: &str) -> &str {
    let bytes = name.as_bytes();
    let separator = |window: &[u8]| matches!(window, [before, b'_', b'_', b'_', after] if *before != b'_' && *after != b'_');
    let end = bytes.windows(5).rposition(separator).map_or(name.len(), |at| at + 1);
    name.get(..end).unwrap_or(name)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn flavours_are_cut_from_names() {
        for (name, essential) in [
            ("sample", "sample"),
            ("sample___v2", "sample"),
            ("sample___a___b", "sample___a"),
            ("sample____x", "sample____x"),
            ("___x", "___x"),
            ("sample___", "sample___"),
            ("", ""),
        ] {
            assert_eq!(essential_name(name), essential, "{name}");
        }
    }

    /// BTF of structs with one member, an int named `x` at a bit offset; `ints` is the id of the int, and
    /// 0 has one added.
    pub(crate) fn structs(named: &[(&str, u32)], int: u32, strings_before: u32) -> Vec<u8> {
        let mut strings = vec![0_u8];
        let mut text = |name: &str| {
            let at = strings_before + u32::try_from(strings.len()).unwrap();
            strings.extend(name.bytes().chain([0]));
            at
        };
        let mut types: Vec<u32> = Vec::new();
        let mut int = int;
        if int == 0 {
            // BTF_KIND_INT, signed, 32 bits.
            types.extend([text("int"), 1 << 24, 4, 1 << 24 | 32]);
            int = 1;
        }
        for (name, offset) in named {
            types.extend([text(name), 4 << 24 | 1, offset / 8 + 4, text("x"), int, *offset]);
        }
        let types: Vec<u8> = types.into_iter().flat_map(u32::to_ne_bytes).collect();
        let lengths = [24, 0, types.len(), types.len(), strings.len()];
        let mut btf = [0xeb9f_u16.to_ne_bytes(), [1, 0]].concat();
        btf.extend(lengths.iter().flat_map(|n| u32::try_from(*n).unwrap().to_ne_bytes()));
        [btf, types, strings].concat()
    }

    /// A kernel with one struct, and a module with two.
    pub(crate) fn kernel_and_module() -> (KernelBtf, KernelBtf) {
        let kernel = structs(&[("of_kernel", 0)], 0, 0);
        let strings = u32::from_ne_bytes(kernel[20..24].try_into().unwrap());
        let kernel = KernelBtf::of(kernel).unwrap();
        let module = structs(&[("of_module", 64), ("of_kernel", 32)], 1, strings);
        let module = kernel.with_module(&module).unwrap();
        (kernel, module)
    }

    #[test]
    fn types_of_a_module_refer_to_those_of_the_kernel() {
        let (kernel, module) = kernel_and_module();
        assert!(kernel.find("of_module", kind::STRUCT).is_none());
        let id = module.find("of_module", kind::STRUCT).unwrap();
        assert_eq!(id, 3, "numbers go on behind the kernel's");
        let ty = *module.btf.get(id).unwrap();
        assert_eq!((module.btf.string(ty.word(0)), ty.word(2)), ("x", 64));
        let (_, int) = module.btf.resolve(ty.word(1)).unwrap();
        assert_eq!(module.btf.string(int.name), "int", "a type and a string of the kernel's");
        // Only its own are found by name.
        let ids: Vec<u32> = module.named("of_kernel").map(|(id, _)| id).collect();
        assert_eq!(ids, [4]);
        assert!(module.find("int", kind::INT).is_none());
    }

    #[test]
    fn types_of_the_running_kernel_are_found_by_name() {
        let kernel = KernelBtf::get().unwrap();
        let id = kernel.find("sk_buff", kind::STRUCT).unwrap();
        assert_eq!(kernel.btf.string(kernel.btf.get(id).unwrap().name), "sk_buff");
        assert!(kernel.named("list_head").any(|(_, ty)| ty.kind == kind::STRUCT));
        assert!(kernel.find("no_such_struct", kind::STRUCT).is_none());
        let ids: Vec<u32> = kernel.named("list_head").map(|(id, _)| id).collect();
        assert!(ids.is_sorted());
    }
}
