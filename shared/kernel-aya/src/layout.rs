//! A number for the layout of a map's contents: the same for the same layout, so that the next
//! version of a program may take a map over. The kernel compares sizes at most.

use crate::{object::Object, object_maps::MapDef};
use canopy_chain::btf::{Btf, kind};
use std::fmt::Write as _;

/// The number of each map of an object.
pub(crate) fn numbers(object: &Object) -> Vec<u64> {
    let btf = object.btf.as_deref().and_then(|raw| Btf::parse(raw).ok());
    object.maps.iter().map(|map| number(object, btf.as_ref(), map)).collect()
}

/// The number. Names of fields and variables count: a field that moved or was renamed means
/// something else. Without type information a map's layout is 0, a data section's that of its
/// symbols.
fn number(object: &Object, btf: Option<&Btf<'_>>, map: &MapDef) -> u64 {
    let mut text = String::new();
    if map.data.is_some() {
        let section = btf.and_then(|btf| {
            btf.iter().find(|(_, ty)| ty.kind == kind::DATASEC && btf.string(ty.name) == map.name)
        });
        for (name, offset, size) in object.variables(map) {
            let _ = write!(text, "{name}@{offset}+{size}:");
            if let (Some(btf), Some((_, section))) = (btf, section) {
                let variable = (0..usize::from(section.vlen))
                    .map(|i| section.word(i * 3))
                    .find(|id| btf.get(*id).is_some_and(|ty| btf.string(ty.name) == name));
                if let Some(ty) = variable.and_then(|id| btf.get(id)) {
                    describe(btf, ty.size_or_type, 0, &mut text);
                }
            }
            text.push(';');
        }
    } else if let Some(inner) = &map.inner {
        // The kernel does not tell what the maps in a map are like.
        let MapDef { map_type, key_size, value_size, max_entries, flags, extra, .. } = **inner;
        let _ =
            write!(text, "maps:{map_type}:{key_size}:{value_size}:{max_entries}:{flags}:{extra}:");
        if let Some(btf) = btf {
            describe(btf, inner.btf_key, 0, &mut text);
            text.push_str("->");
            describe(btf, inner.btf_value, 0, &mut text);
        }
    } else if let Some(btf) = btf.filter(|_| map.btf_key != 0 || map.btf_value != 0) {
        describe(btf, map.btf_key, 0, &mut text);
        text.push_str("->");
        describe(btf, map.btf_value, 0, &mut text);
    }
    if text.is_empty() { 0 } else { fnv1a(text.as_bytes()) }
}

/// Writes what decides a type's layout. Pointers end it: what they point to is not in the map.
fn describe(btf: &Btf<'_>, id: u32, depth: u32, text: &mut String) {
    // Enough for any real value; a malformed one must not run away.
    if depth > 16 || text.len() > 64 << 10 {
        return;
    }
    let Some((_, ty)) = btf.resolve(id) else {
        text.push('0');
        return;
    };
    match ty.kind {
        kind::STRUCT | kind::UNION => {
            let _ = write!(text, "{}{}{{", ty.kind, ty.size_or_type);
            for member in 0..usize::from(ty.vlen) {
                let name = btf.string(ty.word(member * 3));
                let _ = write!(text, "{name}@{}:", ty.word(member * 3 + 2));
                describe(btf, ty.word(member * 3 + 1), depth + 1, text);
                text.push(',');
            }
            text.push('}');
        }
        kind::ARRAY => {
            let _ = write!(text, "[{}]", ty.word(2));
            describe(btf, ty.word(0), depth + 1, text);
        }
        kind::PTR => text.push('*'),
        // Signed or not is in the encoding word.
        kind::INT => {
            let _ = write!(text, "i{}:{}", ty.size_or_type, ty.word(0));
        }
        _ => {
            let _ = write!(text, "{}:{}", ty.kind, ty.size_or_type);
        }
    }
}

/// FNV-1a, 64 bits: stable over builds, and nobody gains by a collision but the map's own owner.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
