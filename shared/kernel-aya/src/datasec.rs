//! The types of data sections, made whole: compilers leave the sizes of sections and the places of
//! global variables to whoever links, and the kernel wants both (`btf_fixup_datasec` of libbpf).

use crate::elf::Elf;
use canopy_chain::btf::{Btf, Type, kind};
use std::collections::{BTreeMap, HashMap};

/// The object's BTF with the data sections among `sections` (index by name) made whole; `None` where
/// nothing is to be changed.
pub(crate) fn settled(
    raw: &[u8],
    btf: &Btf<'_>,
    elf: &Elf,
    sections: &BTreeMap<String, usize>,
) -> Option<Vec<u8>> {
    let word = |at: usize| -> Option<usize> {
        let bytes = raw.get(at..at.checked_add(4)?)?.try_into().ok()?;
        usize::try_from(u32::from_ne_bytes(bytes)).ok()
    };
    // struct btf_header: its own length at 4, the offset of the types at 8.
    let mut at = word(4)?.checked_add(word(8)?)?;
    let mut whole = raw.to_vec();
    let mut changed = false;
    for (_, ty) in btf.iter() {
        let length = 12 + ty.extra.len() * 4;
        if ty.kind == kind::DATASEC
            && let Some(index) = sections.get(btf.string(ty.name))
            && let Some(section) = elf.sections.get(*index)
            && let Ok(size) = u32::try_from(section.size)
        {
            let variables = variables(btf, elf, *index, ty);
            let words = std::iter::once(size).chain(variables.into_iter().flatten());
            // struct btf_type: the size at 8; then the variables.
            let bytes: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
            whole.get_mut(at + 8..at + length)?.copy_from_slice(&bytes);
            changed = true;
        }
        at += length;
    }
    changed.then_some(whole)
}

/// The variables of a section by offset: type, offset, size (`struct btf_var_secinfo`).
fn variables(btf: &Btf<'_>, elf: &Elf, index: usize, section: &Type<'_>) -> Vec<[u32; 3]> {
    let symbols: HashMap<&str, u64> = elf
        .symbols
        .iter()
        .filter(|symbol| symbol.section == Some(index) && !symbol.name.is_empty())
        .map(|symbol| (symbol.name.as_str(), symbol.address))
        .collect();
    let mut variables: Vec<[u32; 3]> = (0..usize::from(section.vlen))
        .map(|place| {
            let [id, offset, size] = [0, 1, 2].map(|word| section.word(place * 3 + word));
            let ty = btf.get(id);
            let symbol = ty.and_then(|ty| symbols.get(btf.string(ty.name)));
            let known = symbol.and_then(|address| u32::try_from(*address).ok());
            [id, known.unwrap_or(offset), size]
        })
        .collect();
    variables.sort_by_key(|[_, offset, _]| *offset);
    variables
}
