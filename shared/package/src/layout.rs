//! What lies where in a map's key or value, by the object's types, and whether a manifest reads it as
//! what it is.

use crate::btf::{Btf, Type, word};
use std::fmt::Write as _;

/// Most fields of a type that are told apart; a type with more is not judged.
const FIELDS: usize = 1024;
/// Types within types before one is given up as endless.
const DEPTH: u32 = 16;

/// What a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FieldKind {
    /// A whole number, an enumeration or a truth value.
    Integer,
    /// The same in network byte order: `__be16`, `__be32`, `__be64`.
    BigEndian,
    /// Bytes in a row.
    Bytes,
    /// Less than whole bytes.
    Bits,
    /// A pointer, a lock, a timer, a floating-point number: no number to be read.
    Opaque,
}

/// A field that is no struct, union or array of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    /// Its path in C: `flow.source`.
    pub(crate) name: String,
    /// Bytes before it.
    pub(crate) offset: u32,
    /// Its bytes.
    pub(crate) size: u32,
    pub(crate) kind: FieldKind,
}

impl Field {
    fn end(&self) -> u32 {
        self.offset.saturating_add(self.size)
    }
}

/// How bytes are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// As a number in the host's byte order.
    Host,
    /// As a number in network byte order.
    Network,
    /// As they are.
    Bytes,
}

/// Why a piece of a key or value is not what it is read as, in one line with the fields' names; `None`
/// where it may be. Members of a union lie over each other: one that fits is enough.
pub(crate) fn contradiction(
    fields: &[Field],
    offset: u32,
    width: u32,
    reading: Reading,
) -> Option<String> {
    let end = offset.saturating_add(width);
    let touched: Vec<&Field> =
        fields.iter().filter(|field| field.offset < end && offset < field.end()).collect();
    let fits = |field: &&Field| {
        let whole = field.offset == offset && field.size == width;
        let within = field.offset <= offset && end <= field.end();
        match (field.kind, reading) {
            (FieldKind::Integer, Reading::Network | Reading::Host)
            | (FieldKind::BigEndian, Reading::Network) => whole,
            (FieldKind::Integer | FieldKind::BigEndian, Reading::Bytes) => whole || within,
            (FieldKind::Bytes, _) => within,
            (FieldKind::BigEndian, Reading::Host) | (FieldKind::Bits | FieldKind::Opaque, _) => {
                false
            }
        }
    };
    if touched.iter().any(fits) {
        return None;
    }
    let bytes = format!("bytes {offset} to {}", end.saturating_sub(1));
    let first = match touched.as_slice() {
        [] => return Some(format!("{bytes} are padding between the fields")),
        [first, ..] => first,
    };
    if let Some(opaque) = touched.iter().find(|field| field.kind == FieldKind::Opaque) {
        return Some(format!("{bytes} are in {}, which is no number", opaque.name));
    }
    if let Some(bits) = touched.iter().find(|field| field.kind == FieldKind::Bits) {
        return Some(format!("{bytes} are in {}, which is a bit field", bits.name));
    }
    // An address may be kept as several numbers, without a gap.
    if reading == Reading::Bytes && tiles(&touched, offset, end) {
        return None;
    }
    if let [only] = touched.as_slice() {
        let is_whole = only.offset == offset && only.size == width;
        return Some(if is_whole && only.kind == FieldKind::BigEndian {
            format!("{} is in network byte order, and is read in the host's", only.name)
        } else {
            format!(
                "{bytes} are not {}, which is {} bytes from byte {}",
                only.name, only.size, only.offset
            )
        });
    }
    let mut text = format!("{bytes} are not one field but {}", first.name);
    for field in touched.iter().skip(1).take(3) {
        let _ = write!(text, ", {}", field.name);
    }
    Some(text)
}

/// Whether the fields cover the range one after the other, all of one size.
fn tiles(fields: &[&Field], offset: u32, end: u32) -> bool {
    let mut at = offset;
    for field in fields {
        if field.offset != at || fields.iter().any(|other| other.size != field.size) {
            return false;
        }
        at = field.end();
    }
    at == end
}

impl Btf<'_> {
    /// The fields of a type; `None` where it says nothing, or has too many.
    pub(crate) fn fields(&self, id: u32) -> Option<Vec<Field>> {
        let mut fields = Vec::new();
        self.lay_out(id, "", 0, DEPTH, &mut fields)?;
        for field in &mut fields {
            if field.name.is_empty() {
                "the whole of it".clone_into(&mut field.name);
            }
        }
        Some(fields)
    }

    fn lay_out(
        &self,
        id: u32,
        name: &str,
        offset: u32,
        depth: u32,
        fields: &mut Vec<Field>,
    ) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        if fields.len() >= FIELDS {
            return None;
        }
        let ty = self.resolve(id)?;
        let size = self.size(id, DEPTH)?;
        let mut push = |kind| {
            fields.push(Field { name: name.to_owned(), offset, size, kind });
            Some(())
        };
        match ty.kind {
            // int, enum, enum64
            1 | 6 | 19 if self.is_big_endian(id) => push(FieldKind::BigEndian),
            1 | 6 | 19 => push(FieldKind::Integer),
            // array
            3 => {
                let element = word(ty.rest, 0)?;
                let (step, count) = (self.size(element, DEPTH)?, word(ty.rest, 8)?);
                if step == 1 {
                    return push(FieldKind::Bytes);
                }
                if usize::try_from(count).ok()? > FIELDS {
                    return None;
                }
                for index in 0..count {
                    let at = offset.checked_add(step.checked_mul(index)?)?;
                    self.lay_out(element, &format!("{name}[{index}]"), at, depth, fields)?;
                }
                Some(())
            }
            // struct, union
            4 | 5 if self.is_kernels(ty) => push(FieldKind::Opaque),
            4 | 5 => self.members(ty, name, offset, depth, fields),
            // pointer, float
            _ => push(FieldKind::Opaque),
        }
    }

    fn members(
        &self,
        ty: Type<'_>,
        name: &str,
        offset: u32,
        depth: u32,
        fields: &mut Vec<Field>,
    ) -> Option<()> {
        for member in ty.rest.chunks_exact(12) {
            let (own, id, place) = (word(member, 0)?, word(member, 4)?, word(member, 8)?);
            // With the flag beside the kind the upper byte is the size of a bit field.
            let (bits, place) =
                if ty.flag { (place >> 24, place & 0x00ff_ffff) } else { (0, place) };
            let name = match (name, self.name(own)) {
                ("", own) => own.to_owned(),
                (outer, "") => outer.to_owned(),
                (outer, own) => format!("{outer}.{own}"),
            };
            let at = offset.checked_add(place / 8)?;
            if bits != 0 || place % 8 != 0 {
                let size = (place % 8 + bits.max(1)).div_ceil(8);
                fields.push(Field { name, offset: at, size, kind: FieldKind::Bits });
            } else {
                self.lay_out(id, &name, at, depth, fields)?;
            }
        }
        Some(())
    }

    fn is_big_endian(&self, mut id: u32) -> bool {
        for _ in 0..DEPTH {
            let Some(ty) = self.get(id) else { return false };
            if matches!(self.name(ty.name), "__be16" | "__be32" | "__be64") {
                return true;
            }
            match ty.kind {
                8..=11 | 18 => id = ty.referred,
                _ => return false,
            }
        }
        false
    }

    /// Whether it is a struct whose contents are the kernel's: a lock, a timer.
    fn is_kernels(&self, ty: Type<'_>) -> bool {
        let name = self.name(ty.name);
        name.starts_with("bpf_") && !name.contains("fib_lookup") && !name.contains("sock_tuple")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &str, offset: u32, size: u32, kind: FieldKind) -> Field {
        Field { name: name.to_owned(), offset, size, kind }
    }

    fn flow() -> Vec<Field> {
        use FieldKind::{BigEndian, Bits, Bytes, Integer, Opaque};
        vec![
            field("source", 0, 16, Bytes),
            field("port", 16, 2, BigEndian),
            field("protocol", 18, 1, Integer),
            // One byte of padding.
            field("a", 20, 4, Integer),
            field("b", 24, 4, Integer),
            field("packets", 32, 8, Integer),
            field("lock", 40, 4, Opaque),
            field("flags", 44, 1, Bits),
        ]
    }

    #[test]
    fn what_a_field_is_may_be_read() {
        for (offset, width, reading) in [
            (0, 16, Reading::Bytes),
            (3, 1, Reading::Host),
            (16, 2, Reading::Network),
            (18, 1, Reading::Host),
            (20, 4, Reading::Host),
            // Programs keep network order in plain integers too.
            (24, 4, Reading::Network),
            (32, 8, Reading::Host),
        ] {
            assert_eq!(contradiction(&flow(), offset, width, reading), None, "{offset}");
        }
    }

    #[test]
    fn what_no_field_is_may_not_be_read() {
        for (offset, width, reading, part) in [
            (20, 8, Reading::Host, "not one field but a, b"),
            (19, 1, Reading::Host, "padding"),
            (28, 4, Reading::Host, "padding"),
            (16, 2, Reading::Host, "network byte order"),
            (32, 4, Reading::Host, "packets, which is 8 bytes"),
            (36, 4, Reading::Host, "packets"),
            (18, 2, Reading::Host, "protocol"),
            (40, 4, Reading::Host, "lock, which is no number"),
            (44, 1, Reading::Host, "bit field"),
            (8, 16, Reading::Bytes, "source"),
        ] {
            let said = contradiction(&flow(), offset, width, reading).unwrap();
            assert!(said.contains(part), "{offset}: {said}");
        }
    }

    #[test]
    fn an_address_may_be_kept_as_several_numbers() {
        use FieldKind::{BigEndian, Integer};
        let words: Vec<_> =
            (0..4).map(|i| field(&format!("addr[{i}]"), i * 4, 4, BigEndian)).collect();
        assert_eq!(contradiction(&words, 0, 16, Reading::Bytes), None);
        assert!(contradiction(&words, 4, 16, Reading::Bytes).is_some());
        let uneven =
            [field("a", 0, 8, Integer), field("b", 8, 4, Integer), field("c", 12, 4, Integer)];
        assert!(contradiction(&uneven, 0, 16, Reading::Bytes).is_some());
    }

    #[test]
    fn one_member_of_a_union_is_enough() {
        use FieldKind::Integer;
        let union = [field("whole", 0, 8, Integer), field("low", 0, 4, Integer)];
        assert_eq!(contradiction(&union, 0, 4, Reading::Host), None);
        assert_eq!(contradiction(&union, 0, 8, Reading::Host), None);
        assert!(contradiction(&union, 2, 4, Reading::Host).is_some());
    }
}
