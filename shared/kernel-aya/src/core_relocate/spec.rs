//! What a relocation is about: a way through a type of the object, and the same way through a type
//! of the kernel.

use super::{
    Kind,
    compat::{Pair, enumerator, is_composite, is_enum},
};
use crate::kernel_btf::essential_name;
use canopy_chain::btf::{Btf, Type, kind};

/// Most steps of a way (`BPF_CORE_SPEC_MAX_LEN`).
const LENGTH: usize = 64;

/// A step that means something: a named field, or an element of an array.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accessor<'a> {
    /// The struct or union of a field, else the type of the element.
    pub(super) type_id: u32,
    pub(super) index: u32,
    pub(super) name: Option<&'a str>,
}

/// A way through a type.
#[derive(Clone, Debug, Default)]
pub(super) struct Spec<'a> {
    pub(super) root: u32,
    pub(super) accessors: Vec<Accessor<'a>>,
    /// Steps in all, unnamed ones too.
    steps: usize,
    pub(super) bit_offset: u64,
}

fn malformed(what: &str) -> String {
    format!("the relocation is malformed: {what}")
}

/// The name, type and place in bits of a member of a struct or union.
fn member<'a>(btf: &Btf<'a>, ty: &Type<'a>, index: usize) -> (&'a str, u32, u64) {
    let place = ty.word(index * 3 + 2);
    let bits = if ty.flag { place & 0x00ff_ffff } else { place };
    (btf.string(ty.word(index * 3)), ty.word(index * 3 + 1), u64::from(bits))
}

/// Bits of a member that is a bit field; 0 for others.
pub(super) fn bit_field(ty: &Type<'_>, index: usize) -> u32 {
    if ty.flag { ty.word(index * 3 + 2) >> 24 } else { 0 }
}

/// Whether an array without a length is the last member of the struct that it was reached by.
fn is_flexible(btf: &Btf<'_>, before: Option<&Accessor<'_>>, array: &Type<'_>) -> bool {
    let Some(before) = before.filter(|before| before.name.is_some()) else { return false };
    array.word(2) == 0
        && btf.get(before.type_id).is_some_and(|ty| before.index + 1 == u32::from(ty.vlen))
}

fn elements(btf: &Btf<'_>, id: u32, index: u32) -> Result<u64, String> {
    let size = btf.size(id).ok_or_else(|| malformed("a type has no size"))?;
    (u64::from(index) * u64::from(size))
        .checked_mul(8)
        .filter(|bits| u32::try_from(*bits).is_ok())
        .ok_or_else(|| malformed("it is about something far away"))
}

impl<'a> Spec<'a> {
    /// Reads what the compiler wrote (`bpf_core_parse_spec`).
    pub(super) fn parse(
        btf: &Btf<'a>,
        root: u32,
        access: &str,
        kind: Kind,
    ) -> Result<Self, String> {
        let mut spec = Self { root, ..Self::default() };
        if kind.is_type() {
            return if access == "0" {
                Ok(spec)
            } else {
                Err(malformed("of a type, with a field"))
            };
        }
        let indices: Vec<u32> = access
            .split(':')
            .map(|index| index.parse::<u32>().ok().filter(|index| i32::try_from(*index).is_ok()))
            .collect::<Option<_>>()
            .ok_or_else(|| malformed("its way is no list of numbers"))?;
        if indices.len() > LENGTH {
            return Err(malformed("its way is too long"));
        }
        let (Some(first), Some((mut id, ty))) = (indices.first().copied(), btf.resolve(root))
        else {
            return Err(malformed("its type is not there"));
        };
        spec.steps = indices.len();
        if kind.is_enumerator() {
            if !is_enum(ty) || indices.len() > 1 || first >= u32::from(ty.vlen) {
                return Err(malformed("it is about no enumerator"));
            }
            let name = btf.string(enumerator(ty, first as usize).0);
            spec.accessors.push(Accessor { type_id: id, index: first, name: Some(name) });
            return Ok(spec);
        }
        spec.accessors.push(Accessor { type_id: id, index: first, name: None });
        spec.bit_offset = elements(btf, id, first)?;
        for index in indices.into_iter().skip(1) {
            let (at, ty) = btf.resolve(id).ok_or_else(|| malformed("a type is not there"))?;
            if is_composite(ty) {
                if index >= u32::from(ty.vlen) {
                    return Err(malformed("a field is not there"));
                }
                let (name, next, bits) = member(btf, ty, index as usize);
                spec.bit_offset += bits;
                if !name.is_empty() {
                    spec.accessors.push(Accessor { type_id: at, index, name: Some(name) });
                }
                id = next;
            } else if ty.kind == kind::ARRAY {
                if index >= ty.word(2) && !is_flexible(btf, spec.accessors.last(), ty) {
                    return Err(malformed("an element is outside its array"));
                }
                let (element, _) =
                    btf.resolve(ty.word(0)).ok_or_else(|| malformed("a type is not there"))?;
                spec.accessors.push(Accessor { type_id: element, index, name: None });
                spec.bit_offset += elements(btf, element, index)?;
                id = element;
            } else {
                return Err(malformed("it is about a field of what has none"));
            }
        }
        Ok(spec)
    }

    /// The same way through a type of the kernel (`bpf_core_spec_match`); `None` where there is
    /// none.
    pub(super) fn matched(
        &self,
        pair: &Pair<'_, '_>,
        target: u32,
        kind: Kind,
    ) -> Result<Option<Spec<'static>>, String> {
        let mut spec = Spec { root: target, ..Spec::default() };
        if kind.is_type() {
            let same = if kind == Kind::TypeMatches {
                pair.types_match(self.root, target, false, 32)?
            } else {
                pair.types_compatible(self.root, target, 32)?
            };
            return Ok(same.then_some(spec));
        }
        if kind.is_enumerator() {
            let Some((id, ty)) = pair.target.resolve(target).filter(|(_, ty)| is_enum(ty)) else {
                return Ok(None);
            };
            let wanted = self.accessors.first().and_then(|accessor| accessor.name);
            let wanted = essential_name(wanted.unwrap_or_default());
            for index in 0..u32::from(ty.vlen) {
                pair.steps.take()?;
                let name = pair.target.string(enumerator(ty, index as usize).0);
                if essential_name(name) == wanted {
                    spec.accessors.push(Accessor { type_id: id, index, name: Some(name) });
                    return Ok(Some(spec));
                }
            }
            return Ok(None);
        }
        let mut id = target;
        for (place, accessor) in self.accessors.iter().enumerate() {
            let Some((at, ty)) = pair.target.resolve(id) else { return Ok(None) };
            if accessor.name.is_some() {
                match spec.enter(pair, accessor, at)? {
                    Some(next) => id = next,
                    None => return Ok(None),
                }
                continue;
            }
            id = at;
            // The first step is over whole values of the type itself.
            if place > 0 {
                if ty.kind != kind::ARRAY {
                    return Ok(None);
                }
                if accessor.index >= ty.word(2)
                    && !is_flexible(pair.target, spec.accessors.last(), ty)
                {
                    return Ok(None);
                }
                let Some((element, _)) = pair.target.resolve(ty.word(0)) else { return Ok(None) };
                id = element;
            }
            spec.step()?;
            spec.accessors.push(Accessor { type_id: id, index: accessor.index, name: None });
            spec.bit_offset += elements(pair.target, id, accessor.index)?;
        }
        Ok(Some(spec))
    }

    fn step(&mut self) -> Result<(), String> {
        if self.steps == LENGTH {
            return Err("its types are nested too deeply".to_owned());
        }
        self.steps += 1;
        Ok(())
    }
}

impl Spec<'static> {
    /// Goes to the field of that name in a type of the kernel, through what has no name; the type of
    /// the field (`bpf_core_match_member`).
    fn enter(
        &mut self,
        pair: &Pair<'_, '_>,
        accessor: &Accessor<'_>,
        target: u32,
    ) -> Result<Option<u32>, String> {
        let Some((id, ty)) = pair.target.resolve(target).filter(|(_, ty)| is_composite(ty)) else {
            return Ok(None);
        };
        let local = pair.local.get(accessor.type_id);
        let Some(local) = local.map(|ty| member(pair.local, ty, accessor.index as usize)) else {
            return Ok(None);
        };
        for index in 0..ty.vlen {
            pair.steps.take()?;
            let (name, next, bits) = member(pair.target, ty, usize::from(index));
            self.step()?;
            self.bit_offset += bits;
            if name.is_empty() {
                if let Some(found) = self.enter(pair, accessor, next)? {
                    return Ok(Some(found));
                }
            } else if name == local.0 {
                if !pair.fields_compatible(local.1, next)? {
                    return Ok(None);
                }
                let index = u32::from(index);
                self.accessors.push(Accessor { type_id: id, index, name: Some(name) });
                return Ok(Some(next));
            }
            self.bit_offset -= bits;
            self.steps -= 1;
        }
        Ok(None)
    }
}
