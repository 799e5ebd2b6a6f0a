//! The running kernel's own type information, parsed once a process and found by name.

use crate::elf::ObjectError;
use canopy_chain::btf::{Btf, Type, kind};
use std::{
    collections::{HashMap, hash_map::Entry},
    fs,
    sync::OnceLock,
};

/// Where the kernel keeps it.
const PATH: &str = "/sys/kernel/btf/vmlinux";

/// The kernel's types with an index of their names. Those of modules are not in it.
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
        let bytes = fs::read(PATH).map_err(|error| error.to_string())?;
        // It lives as long as the process: it is read once, and every object is compared with it.
        let bytes: &'static [u8] = Vec::leak(bytes);
        Ok(Self::index(Btf::parse(bytes).map_err(|error| error.to_string())?))
    }

    fn index(btf: Btf<'static>) -> Self {
        let mut next = vec![0; btf.len() + 1];
        let mut first = HashMap::with_capacity(btf.len() / 2);
        // From the end, so that the chain of a name rises.
        for id in (1..=u32::try_from(btf.len()).unwrap_or(u32::MAX)).rev() {
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

/// A name without its flavour: `sample___v2` means the kernel's `sample`
/// (`bpf_core_essential_name_len`).
pub(crate) fn essential_name(name: &str) -> &str {
    let bytes = name.as_bytes();
    let separator = |window: &[u8]| matches!(window, [before, b'_', b'_', b'_', after] if *before != b'_' && *after != b'_');
    let end = bytes.windows(5).rposition(separator).map_or(name.len(), |at| at + 1);
    name.get(..end).unwrap_or(name)
}

#[cfg(test)]
mod tests {
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
