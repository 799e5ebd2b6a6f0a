//! When a type of an object and a type of the kernel are the same for a relocation: the rules of
//! libbpf's `relo_core.c`, which clang's built-ins are specified by.

use super::Steps;
use crate::kernel_btf::essential_name;
use canopy_chain::btf::{Btf, Type, kind};

/// How deep types are followed (`bpf_core_types_are_compat`, `bpf_core_types_match`).
const DEPTH: u32 = 32;

/// Two types that are compared, each in its own BTF.
#[derive(Clone, Copy)]
pub(super) struct Pair<'a, 'b> {
    pub(super) local: &'a Btf<'b>,
    pub(super) target: &'a Btf<'static>,
    pub(super) steps: &'a Steps,
}

/// A comparison that cannot be finished: too deep, or of something that is not there.
pub(super) type Answer = Result<bool, String>;

fn too_deep() -> String {
    "its types are nested too deeply".to_owned()
}

fn missing() -> String {
    "it refers to a type that is not there".to_owned()
}

pub(super) fn is_enum(ty: &Type<'_>) -> bool {
    matches!(ty.kind, kind::ENUM | kind::ENUM64)
}

pub(super) fn is_composite(ty: &Type<'_>) -> bool {
    matches!(ty.kind, kind::STRUCT | kind::UNION)
}

/// `btf_kind_core_compat`: the two widths of an enum are one kind.
pub(super) fn kinds_compatible(local: &Type<'_>, target: &Type<'_>) -> bool {
    local.kind == target.kind || is_enum(local) && is_enum(target)
}

/// A type that may be void.
enum Resolved<'a, 'b> {
    Void,
    Type(&'a Type<'b>),
}

fn resolve<'a, 'b>(btf: &'a Btf<'b>, id: u32) -> Result<Resolved<'a, 'b>, String> {
    match btf.resolve_or_void(id) {
        Some(0) => Ok(Resolved::Void),
        Some(id) => btf.get(id).map(Resolved::Type).ok_or_else(missing),
        None => Err(missing()),
    }
}

/// `btf_int_offset(...) == 0`: not an integer of the old form that is a bit field.
fn whole_integer(ty: &Type<'_>) -> bool {
    // BTF_INT_OFFSET
    let [_, _, offset, _] = ty.word(0).to_le_bytes();
    offset == 0
}

/// `BTF_INT_ENCODING & BTF_INT_SIGNED`
pub(super) fn is_signed_integer(ty: &Type<'_>) -> bool {
    ty.kind == kind::INT && ty.word(0) >> 24 & 1 != 0
}

impl Pair<'_, '_> {
    /// Compatibility of the types of fields (`bpf_core_fields_are_compat`).
    pub(super) fn fields_compatible(&self, mut local: u32, mut target: u32) -> Answer {
        loop {
            self.steps.take()?;
            let (Resolved::Type(a), Resolved::Type(b)) =
                (resolve(self.local, local)?, resolve(self.target, target)?)
            else {
                // Both void: no field is.
                return Ok(false);
            };
            if is_composite(a) && is_composite(b) {
                return Ok(true);
            }
            if !kinds_compatible(a, b) {
                return Ok(false);
            }
            return Ok(match a.kind {
                kind::PTR | kind::FLOAT => true,
                kind::FWD | kind::ENUM | kind::ENUM64 => {
                    let a = essential_name(self.local.string(a.name));
                    let b = essential_name(self.target.string(b.name));
                    a.is_empty() || b.is_empty() || a == b
                }
                kind::INT => whole_integer(a) && whole_integer(b),
                kind::ARRAY => {
                    (local, target) = (a.word(0), b.word(0));
                    continue;
                }
                _ => false,
            });
        }
    }

    /// Compatibility of whole types whose names match (`bpf_core_types_are_compat`).
    pub(super) fn types_compatible(&self, local: u32, target: u32, level: u32) -> Answer {
        let (mut local, mut target) = (local, target);
        for _ in 0..DEPTH {
            self.steps.take()?;
            let (a, b) = match (resolve(self.local, local)?, resolve(self.target, target)?) {
                (Resolved::Void, Resolved::Void) => return Ok(true),
                (Resolved::Type(a), Resolved::Type(b)) => (a, b),
                _ => return Ok(false),
            };
            if !kinds_compatible(a, b) {
                return Ok(false);
            }
            match a.kind {
                kind::STRUCT | kind::UNION | kind::ENUM | kind::FWD | kind::ENUM64 => {
                    return Ok(true);
                }
                kind::INT => return Ok(whole_integer(a) && whole_integer(b)),
                kind::PTR => (local, target) = (a.size_or_type, b.size_or_type),
                kind::ARRAY => (local, target) = (a.word(0), b.word(0)),
                kind::FUNC_PROTO => {
                    if a.vlen != b.vlen {
                        return Ok(false);
                    }
                    let deeper = level.checked_sub(1).ok_or_else(too_deep)?;
                    for parameter in 0..usize::from(a.vlen) {
                        let word = parameter * 2 + 1;
                        if !self.types_compatible(a.word(word), b.word(word), deeper)? {
                            return Ok(false);
                        }
                    }
                    (local, target) = (a.size_or_type, b.size_or_type);
                }
                _ => return Ok(false),
            }
        }
        Err(too_deep())
    }

    /// `bpf_core_names_match`: two names, their flavours aside.
    fn names_match(&self, local: u32, target: u32) -> bool {
        essential_name(self.local.string(local)) == essential_name(self.target.string(target))
    }

    /// Whether the kernel's type has the shape of the object's (`bpf_core_types_match`).
    pub(super) fn types_match(
        &self,
        local: u32,
        target: u32,
        mut behind_pointer: bool,
        level: u32,
    ) -> Answer {
        if level == 0 {
            return Err(too_deep());
        }
        let (mut local, mut target) = (local, target);
        for _ in 0..DEPTH {
            self.steps.take()?;
            let (a, b) = match (resolve(self.local, local)?, resolve(self.target, target)?) {
                (Resolved::Void, Resolved::Void) => return Ok(true),
                (Resolved::Type(a), Resolved::Type(b)) => (a, b),
                // A void's name is empty.
                _ => return Ok(false),
            };
            if !self.names_match(a.name, b.name) {
                return Ok(false);
            }
            if is_enum(a) {
                return Ok(is_enum(b) && self.enums_match(a, b)?);
            }
            if matches!(a.kind, kind::FWD | kind::STRUCT | kind::UNION) {
                return match (a.kind == b.kind, behind_pointer) {
                    (same, true) => Ok(if same {
                        a.kind != kind::FWD || a.flag == b.flag
                    } else {
                        forward_matches(a, b)
                    }),
                    (false, false) => Ok(false),
                    (true, false) if a.kind == kind::FWD => Ok(a.flag == b.flag),
                    (true, false) => self.composites_match(a, b, level),
                };
            }
            if a.kind != b.kind {
                return Ok(false);
            }
            match a.kind {
                kind::INT => {
                    return Ok(a.size_or_type == b.size_or_type
                        && is_signed_integer(a) == is_signed_integer(b));
                }
                kind::PTR => {
                    behind_pointer = true;
                    (local, target) = (a.size_or_type, b.size_or_type);
                }
                kind::ARRAY => {
                    if a.word(2) != b.word(2) {
                        return Ok(false);
                    }
                    (local, target) = (a.word(0), b.word(0));
                }
                kind::FUNC_PROTO => {
                    if a.vlen != b.vlen {
                        return Ok(false);
                    }
                    for parameter in 0..usize::from(a.vlen) {
                        let word = parameter * 2 + 1;
                        let (a, b) = (a.word(word), b.word(word));
                        if !self.types_match(a, b, behind_pointer, level - 1)? {
                            return Ok(false);
                        }
                    }
                    (local, target) = (a.size_or_type, b.size_or_type);
                }
                _ => return Ok(false),
            }
        }
        Err(too_deep())
    }

    /// The names of enumerators with the words each has.
    fn enums_match(&self, local: &Type<'_>, target: &Type<'_>) -> Answer {
        if local.size_or_type != target.size_or_type || local.vlen > target.vlen {
            return Ok(false);
        }
        for value in 0..usize::from(local.vlen) {
            let name = enumerator(local, value).0;
            let mut found = false;
            for other in 0..usize::from(target.vlen) {
                self.steps.take()?;
                if self.names_match(name, enumerator(target, other).0) {
                    found = true;
                    break;
                }
            }
            if !found {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn composites_match(&self, local: &Type<'_>, target: &Type<'_>, level: u32) -> Answer {
        if local.vlen > target.vlen {
            return Ok(false);
        }
        for member in 0..usize::from(local.vlen) {
            let mut found = false;
            for other in 0..usize::from(target.vlen) {
                self.steps.take()?;
                if !self.names_match(local.word(member * 3), target.word(other * 3)) {
                    continue;
                }
                let (a, b) = (local.word(member * 3 + 1), target.word(other * 3 + 1));
                if self.types_match(a, b, false, level - 1)? {
                    found = true;
                    break;
                }
            }
            if !found {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Behind a pointer a forward declaration stands for the struct or union that its flag says.
fn forward_matches(local: &Type<'_>, target: &Type<'_>) -> bool {
    match (local.kind, target.kind) {
        (kind::FWD, kind::STRUCT) => !local.flag,
        (kind::FWD, kind::UNION) => local.flag,
        (kind::STRUCT, kind::FWD) => !target.flag,
        (kind::UNION, kind::FWD) => target.flag,
        _ => false,
    }
}

/// An enumerator's name and value.
pub(super) fn enumerator(ty: &Type<'_>, index: usize) -> (u32, u64) {
    if ty.kind == kind::ENUM64 {
        let value = u64::from(ty.word(index * 3 + 2)) << 32 | u64::from(ty.word(index * 3 + 1));
        (ty.word(index * 3), value)
    } else {
        // libbpf sign-extends, whatever the enum's own signedness.
        let value = i64::from(ty.word(index * 2 + 1).cast_signed());
        (ty.word(index * 2), value.cast_unsigned())
    }
}
