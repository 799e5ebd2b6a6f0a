//! CO-RE: instructions that depend on the layout of kernel types are fitted to this kernel.
//!
//! All kinds that clang and libbpf know, by libbpf's rules. A relocation that has no answer makes its
//! instruction one that the verifier refuses where it can be reached, so that only the programs that
//! reach it are refused; why is kept for the message. Types of kernel modules are not looked at.

mod compat;
mod patch;
mod spec;

pub(crate) use patch::UNRESOLVED;

use crate::{
    btf_ext::Record,
    elf::{Elf, ObjectError},
    kernel_btf::{KernelBtf, essential_name},
};
use canopy_chain::btf::{Btf, Type, kind};
use compat::{Pair, enumerator, is_enum, is_signed_integer, kinds_compatible};
use patch::{Resize, Value};
use spec::{Spec, bit_field};
use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, HashMap},
};

/// Most CO-RE relocations of an object.
const RELOCATIONS: usize = 1 << 16;
/// Most types that they are of.
const TYPES: usize = 1024;
/// Most steps through types for one relocation: large structs are compared in some thousands.
const STEPS: u32 = 1 << 20;
/// Most steps for all of an object's.
const ALL_STEPS: u32 = 1 << 25;

/// What a relocation asks: `enum bpf_core_relo_kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    FieldOffset,
    FieldSize,
    FieldExists,
    FieldSigned,
    FieldLeftShift,
    FieldRightShift,
    TypeIdLocal,
    TypeIdTarget,
    TypeExists,
    TypeSize,
    EnumeratorExists,
    EnumeratorValue,
    TypeMatches,
}

impl Kind {
    fn new(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::FieldOffset,
            1 => Self::FieldSize,
            2 => Self::FieldExists,
            3 => Self::FieldSigned,
            4 => Self::FieldLeftShift,
            5 => Self::FieldRightShift,
            6 => Self::TypeIdLocal,
            7 => Self::TypeIdTarget,
            8 => Self::TypeExists,
            9 => Self::TypeSize,
            10 => Self::EnumeratorExists,
            11 => Self::EnumeratorValue,
            12 => Self::TypeMatches,
            _ => return None,
        })
    }

    fn is_type(self) -> bool {
        matches!(
            self,
            Self::TypeIdLocal
                | Self::TypeIdTarget
                | Self::TypeExists
                | Self::TypeSize
                | Self::TypeMatches
        )
    }

    fn is_enumerator(self) -> bool {
        matches!(self, Self::EnumeratorExists | Self::EnumeratorValue)
    }
}

/// Steps through types that are left; hostile types must not run away.
#[derive(Debug)]
struct Steps(Cell<u32>);

impl Steps {
    fn take(&self) -> Result<(), String> {
        let left = self.0.get().checked_sub(1).ok_or("its types are too many to be compared")?;
        self.0.set(left);
        Ok(())
    }
}

/// What an object's relocations left to be known later.
#[derive(Debug, Default)]
pub(crate) struct Relocated {
    /// Instructions whose value is the number of one of the object's own types, by section and
    /// offset: numbers that change when types are merged.
    pub(crate) own_types: BTreeSet<(usize, u64)>,
    /// Instructions without an answer, and why.
    pub(crate) unresolved: BTreeMap<(usize, u64), String>,
}

/// Fits the object's functions to this kernel. `sections` are by the name that the relocations have.
pub(crate) fn relocate(
    elf: &mut Elf,
    btf: &Btf<'_>,
    relocations: &[Record<4>],
    sections: &BTreeMap<String, usize>,
) -> Result<Relocated, ObjectError> {
    let mut done = Relocated::default();
    if relocations.is_empty() {
        return Ok(done);
    }
    let types: BTreeSet<u32> = relocations.iter().map(|record| record.words[1]).collect();
    if relocations.len() > RELOCATIONS || types.len() > TYPES {
        return Err(ObjectError::Malformed(format!(
            "it has more than {RELOCATIONS} CO-RE relocations, or ones of more than {TYPES} types"
        )));
    }
    // struct bpf_core_relo: insn_off, type_id, access_str_off, kind. The first of an instruction
    // counts.
    let mut by_section: BTreeMap<usize, BTreeMap<u64, [u32; 4]>> = BTreeMap::new();
    for Record { section, words } in relocations {
        if let Some(section) = sections.get(btf.string(*section)) {
            let here = by_section.entry(*section).or_default();
            here.entry(u64::from(words[0])).or_insert(*words);
        }
    }
    let mut resolver = Resolver { btf, known: HashMap::new(), steps: Steps(Cell::new(ALL_STEPS)) };
    for function in &mut elf.functions {
        let Some(relocations) = by_section.get(&function.section) else { continue };
        let size = (function.instructions.len() * canopy_chain::insn::SIZE) as u64;
        let end = function.address.saturating_add(size);
        for (offset, [_, type_id, access, kind]) in relocations.range(function.address..end) {
            let place = (function.section, *offset);
            let within = usize::try_from(offset - function.address).unwrap_or(usize::MAX);
            let at = within / canopy_chain::insn::SIZE;
            let result = match resolver.answer(*type_id, *access, *kind)? {
                Ok(value) => patch::apply(&mut function.instructions, at, value)
                    .map_err(|why| format!("{}: {why}", subject(btf, *type_id))),
                Err(why) => Err(why.clone()),
            };
            match result {
                Ok(()) if Kind::new(*kind) == Some(Kind::TypeIdLocal) => {
                    done.own_types.insert(place);
                }
                Ok(()) => {}
                Err(why) => {
                    patch::refuse(&mut function.instructions, at);
                    done.unresolved.insert(place, why);
                }
            }
        }
    }
    Ok(done)
}

/// Whether a type of an object may stand for one of the kernel (`bpf_core_types_are_compat`).
pub(crate) fn compatible(
    btf: &Btf<'_>,
    local: u32,
    kernel: &KernelBtf,
    target: u32,
) -> Result<bool, String> {
    let steps = Steps(Cell::new(STEPS >> 6));
    Pair { local: btf, target: &kernel.btf, steps: &steps }.types_compatible(local, target, 32)
}

/// A type as its source has it: `struct sk_buff`.
fn subject(btf: &Btf<'_>, id: u32) -> String {
    let Some(ty) = btf.get(id) else { return "a type that is not there".to_owned() };
    let name = btf.string(ty.name);
    let kind = match ty.kind {
        kind::STRUCT => "struct ",
        kind::UNION => "union ",
        kind::ENUM | kind::ENUM64 => "enum ",
        _ => "type ",
    };
    let name = if name.is_empty() { "without a name" } else { essential_name(name) };
    format!("{kind}{name}")
}

type Outcome = Result<Value, String>;

/// Answers relocations, each once.
struct Resolver<'a, 'b> {
    btf: &'a Btf<'b>,
    known: HashMap<(u32, u32, u32), Outcome>,
    steps: Steps,
}

impl Resolver<'_, '_> {
    /// What a relocation comes to, or why it comes to nothing.
    fn answer(&mut self, id: u32, access: u32, kind: u32) -> Result<&Outcome, ObjectError> {
        let key = (id, access, kind);
        if !self.known.contains_key(&key) {
            let outcome = match Kind::new(kind) {
                Some(Kind::TypeIdLocal) => self.own_type(id, access),
                Some(kind) => {
                    let kernel = KernelBtf::get()?;
                    self.resolve(kernel, |name| kernel.of_modules(name), id, access, kind)
                }
                None => Err(format!("relocations of the kind {kind} are not known")),
            };
            self.known.insert(key, outcome);
        }
        self.known.get(&key).ok_or_else(|| ObjectError::Malformed("a relocation".to_owned()))
    }

    /// The number of a type of the object itself.
    fn own_type(&self, id: u32, access: u32) -> Outcome {
        Spec::parse(self.btf, id, self.btf.string(access), Kind::TypeIdLocal)?;
        if id != 0 && self.btf.get(id).is_none() {
            return Err("it refers to a type that is not there".to_owned());
        }
        Ok(Value { expected: None, wanted: u64::from(id), resize: None })
    }

    /// The kernel's answer; that of its modules where the kernel has no type of the name
    /// (`bpf_core_find_cands`).
    fn resolve<'k>(
        &self,
        kernel: &'k KernelBtf,
        modules: impl FnOnce(&str) -> Vec<&'k KernelBtf>,
        id: u32,
        access: u32,
        kind: Kind,
    ) -> Outcome {
        let subject = subject(self.btf, id);
        let told = |why: String| format!("{subject}: {why}");
        let spec = Spec::parse(self.btf, id, self.btf.string(access), kind).map_err(told)?;
        let local = self.btf.get(id).ok_or("it refers to a type that is not there")?;
        let name = essential_name(self.btf.string(local.name));
        if name.is_empty() {
            return Err(format!("{subject}: the kernel's types are found by name"));
        }
        // One relocation may take what is left, but no more than its share.
        let budget = self.steps.0.get().min(STEPS);
        let steps = Steps(Cell::new(budget));
        let mut found: Option<(Spec<'static>, Outcome)> = None;
        let mut same_name = false;
        let in_kernel = kernel.named(name).any(|(_, ty)| kinds_compatible(local, ty));
        let sources = if in_kernel { vec![kernel] } else { modules(name) };
        let candidates =
            sources.into_iter().flat_map(|kernel| kernel.named(name).map(move |one| (kernel, one)));
        let outcome = (|| {
            for (kernel, (target, ty)) in candidates {
                steps.take()?;
                if !kinds_compatible(local, ty) {
                    continue;
                }
                same_name = true;
                let pair = Pair { local: self.btf, target: &kernel.btf, steps: &steps };
                let Some(matched) = spec.matched(&pair, target, kind)? else { continue };
                let value = self.value(kernel, kind, &spec, Some(&matched))?;
                if let Some((before, known)) = &found {
                    let differs = known.as_ref().map(|known| known.wanted) != Ok(value.wanted);
                    if before.bit_offset != matched.bit_offset || differs {
                        return Err("the kernel has several types of the name that differ".into());
                    }
                } else {
                    found = Some((matched, Ok(value)));
                }
            }
            match found.take() {
                Some((_, value)) => value,
                None => self.value(kernel, kind, &spec, None),
            }
        })();
        self.steps.0.set(self.steps.0.get().saturating_sub(budget - steps.0.get()));
        outcome.map_err(|why: String| match why.as_str() {
            ABSENT => format!("this kernel has no {}", path(&subject, &spec, kind, same_name)),
            _ => told(why),
        })
    }

    /// The value that a relocation comes to (`bpf_core_calc_relo`): with the kernel's way through the
    /// type, or without where there is none.
    fn value(
        &self,
        kernel: &KernelBtf,
        kind: Kind,
        local: &Spec<'_>,
        target: Option<&Spec<'static>>,
    ) -> Outcome {
        if kind.is_type() {
            let of = |btf: &Btf<'_>, spec: Option<&Spec<'_>>| match (spec, kind) {
                (None, _) => Ok(0),
                (Some(spec), Kind::TypeIdTarget) => Ok(u64::from(spec.root)),
                (Some(spec), Kind::TypeSize) => btf
                    .size(spec.root)
                    .map(u64::from)
                    .ok_or_else(|| "the type has no size".to_owned()),
                _ => Ok(1),
            };
            // Numbers of types change when objects are linked.
            let expected = match kind {
                Kind::TypeIdTarget => None,
                _ => Some(of(self.btf, Some(local))?),
            };
            return Ok(Value { expected, wanted: of(&kernel.btf, target)?, resize: None });
        }
        if kind.is_enumerator() {
            let of = |btf: &Btf<'_>, spec: Option<&Spec<'_>>| match (spec, kind) {
                (spec, Kind::EnumeratorExists) => Ok(u64::from(spec.is_some())),
                (None, _) => Err(ABSENT.to_owned()),
                (Some(spec), _) => spec
                    .accessors
                    .first()
                    .and_then(|accessor| {
                        let ty = btf.get(accessor.type_id)?;
                        Some(enumerator(ty, accessor.index as usize).1)
                    })
                    .ok_or_else(|| ABSENT.to_owned()),
            };
            let expected = Some(of(self.btf, Some(local))?);
            return Ok(Value { expected, wanted: of(&kernel.btf, target)?, resize: None });
        }
        let before = Field::new(self.btf, kind, Some(local))?;
        let after = Field::new(&kernel.btf, kind, target)?;
        let resize = (before.size != after.size).then(|| Resize {
            from: before.size,
            to: after.size,
            safe: safe_resize(self.btf.get(before.type_id), kernel.btf.get(after.type_id)),
        });
        let expected = before.certain.then_some(before.value);
        Ok(Value { expected, wanted: after.value, resize })
    }
}

/// What is not there, as a person would look for it.
fn path(subject: &str, spec: &Spec<'_>, kind: Kind, same_name: bool) -> String {
    if !same_name || kind.is_type() {
        return subject.to_owned();
    }
    if kind.is_enumerator() {
        let name = spec.accessors.first().and_then(|accessor| accessor.name);
        return format!("value \"{}\" in {subject}", name.unwrap_or_default());
    }
    let mut path = String::new();
    for (place, accessor) in spec.accessors.iter().enumerate() {
        match accessor.name {
            Some(name) if path.is_empty() => path.push_str(name),
            Some(name) => path = format!("{path}.{name}"),
            None if place > 0 => path = format!("{path}[{}]", accessor.index),
            None => {}
        }
    }
    format!("field \"{path}\" of that type in {subject}")
}

/// There is no such thing; what it is, is put into words by the caller.
const ABSENT: &str = "absent";

/// Whether a field of another size reads as the same number.
fn safe_resize(local: Option<&Type<'_>>, target: Option<&Type<'_>>) -> bool {
    let (Some(local), Some(target)) = (local, target) else { return false };
    // libbpf compares the encoding with BTF_INT_SIGNED: a signed one, and no bool or char.
    let unsigned = |ty: &Type<'_>| ty.kind == kind::INT && ty.word(0) >> 24 & 0xf != 1;
    local.kind == kind::PTR && target.kind == kind::PTR || unsigned(local) && unsigned(target)
}

/// One side of a relocation about a field (`bpf_core_calc_field_relo`).
#[derive(Clone, Copy, Debug, Default)]
struct Field {
    value: u64,
    /// The field's size for an access, and its type; 0 where the relocation is about no access.
    size: u64,
    type_id: u32,
    /// Whether compilers agree on the value: of a bit field they do not.
    certain: bool,
}

impl Field {
    fn new(btf: &Btf<'_>, kind: Kind, spec: Option<&Spec<'_>>) -> Result<Self, String> {
        if kind == Kind::FieldExists {
            let value = u64::from(spec.is_some());
            return Ok(Self { value, certain: true, ..Self::default() });
        }
        let spec = spec.ok_or(ABSENT)?;
        let no_size = || "the field has no size".to_owned();
        let (Some(last), offset) = (spec.accessors.last(), spec.bit_offset) else {
            return Err(no_size());
        };
        let sized = |id: u32| btf.size(id).map(u64::from).ok_or_else(no_size);
        if last.name.is_none() {
            let size = sized(last.type_id)?;
            return match kind {
                Kind::FieldOffset => {
                    let (value, type_id) = (offset / 8, last.type_id);
                    Ok(Self { value, size, type_id, certain: true })
                }
                Kind::FieldSize => Ok(Self { value: size, certain: true, ..Self::default() }),
                _ => Err("an element of an array has no such property".to_owned()),
            };
        }
        let index = last.index as usize;
        let holder = btf.get(last.type_id).ok_or_else(no_size)?;
        let (id, ty) = btf.resolve(holder.word(index * 3 + 1)).ok_or_else(no_size)?;
        let mut bits = u64::from(bit_field(holder, index));
        let is_bit_field = bits > 0;
        let mut size = sized(id)?;
        let mut start = offset / 8;
        if is_bit_field {
            // The smallest aligned integer that has all of it.
            start = start.checked_div(size).ok_or_else(no_size)? * size;
            while offset + bits - start * 8 > size * 8 {
                if size >= 8 {
                    return Err("the bit field lies across 64 bits".to_owned());
                }
                size *= 2;
                start = offset / 8 / size * size;
            }
        } else {
            bits = size.saturating_mul(8);
        }
        let certain = !is_bit_field;
        let just = |value: u64, certain: bool| Self { value, certain, ..Self::default() };
        Ok(match kind {
            Kind::FieldOffset if is_bit_field => just(start, certain),
            Kind::FieldOffset => Self { value: start, size, type_id: id, certain },
            Kind::FieldSize => just(size, certain),
            Kind::FieldSigned => {
                just(u64::from(is_signed_integer(ty) || is_enum(ty) && ty.flag), true)
            }
            Kind::FieldLeftShift if cfg!(target_endian = "little") => {
                just(64_u64.wrapping_sub(offset + bits - start * 8), certain)
            }
            Kind::FieldLeftShift => just(
                8_u64.wrapping_sub(size).wrapping_mul(8).wrapping_add(offset - start * 8),
                certain,
            ),
            _ => just(64_u64.wrapping_sub(bits), true),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel_btf::tests::{kernel_and_module, structs};

    /// The offset of `x` in a struct, as an object that has it at 0 is answered.
    fn offset_of_x(name: &str, modules: &[&KernelBtf], kernel: &KernelBtf) -> Result<u64, String> {
        let mut local = structs(&[(name, 0)], 0, 0);
        // The way to the first member, behind the other strings.
        let strings = u32::from_ne_bytes(local[20..24].try_into().unwrap());
        local.extend(b"0:0\0");
        local[20..24].copy_from_slice(&(strings + 4).to_ne_bytes());
        let btf = Btf::parse(&local).unwrap();
        let steps = Steps(Cell::new(ALL_STEPS));
        let resolver = Resolver { btf: &btf, known: HashMap::new(), steps };
        let modules = |_: &str| modules.to_vec();
        let value = resolver.resolve(kernel, modules, 2, strings, Kind::FieldOffset)?;
        Ok(value.wanted)
    }

    #[test]
    fn types_are_looked_for_in_modules_after_the_kernel() {
        let (kernel, module) = kernel_and_module();
        assert_eq!(offset_of_x("of_module", &[&module], &kernel), Ok(8));
        assert_eq!(offset_of_x("of_kernel", &[&module], &kernel), Ok(0), "the kernel's goes first");
        let error = offset_of_x("of_module", &[], &kernel).unwrap_err();
        assert!(error.contains("struct of_module"), "{error}");
        // Two modules that have it alike, and two that have not.
        assert_eq!(offset_of_x("of_module", &[&module, &module], &kernel), Ok(8));
        let other = KernelBtf::of(structs(&[("of_module", 32)], 0, 0)).unwrap();
        let error = offset_of_x("of_module", &[&module, &other], &kernel).unwrap_err();
        assert!(error.contains("several types"), "{error}");
    }
}
