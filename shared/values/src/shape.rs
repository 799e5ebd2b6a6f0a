//! What a type is made of, as far as its bytes and its JSON are concerned.

use canopy_chain::btf::{Btf, KERNEL_FIELDS, KERNEL_POINTER_TAGS, Type, kind};

/// Types within types before one is given up as endless.
pub(crate) const DEPTH: usize = 32;

// BTF_INT_*
const SIGNED: u32 = 1;
const CHAR: u32 = 2;
const BOOL: u32 = 4;

/// What a type is made of.
#[derive(Clone, Debug)]
pub(crate) enum Shape<'a> {
    /// Something that fits one number.
    Scalar(Scalar<'a>),
    /// IEEE 754, of 4 or 8 bytes.
    Float(usize),
    /// The kernel's own.
    Kernels(&'a str),
    /// So many of one type.
    Array { element: u32, count: usize, size: usize },
    /// A struct or a union.
    Record(Record<'a>),
    /// Nothing that can be told in JSON.
    Bytes,
}

/// Something that fits one number.
#[derive(Clone, Debug)]
pub(crate) struct Scalar<'a> {
    pub(crate) meaning: Meaning<'a>,
    /// Bytes.
    pub(crate) size: usize,
    pub(crate) signed: bool,
    pub(crate) big_endian: bool,
    /// Where the number lies in the bytes, for an integer that is a bit-field by its own type.
    pub(crate) bits: Option<(usize, usize)>,
}

/// What the number means.
#[derive(Clone, Debug)]
pub(crate) enum Meaning<'a> {
    Integer,
    Bool,
    Char,
    /// Names and the bits they stand for.
    Enum(Vec<(&'a str, u128)>),
    Pointer,
}

/// A struct or a union.
#[derive(Clone, Debug)]
pub(crate) struct Record<'a> {
    pub(crate) name: &'a str,
    pub(crate) union: bool,
    pub(crate) members: Vec<Member<'a>>,
}

/// A field.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member<'a> {
    /// Empty for an anonymous struct or union.
    pub(crate) name: &'a str,
    pub(crate) ty: u32,
    /// From the start of the record.
    pub(crate) bit: usize,
    /// Of a bit-field.
    pub(crate) bits: Option<usize>,
}

/// What the type with this id is made of.
pub(crate) fn shape<'a>(btf: &Btf<'a>, id: u32) -> Shape<'a> {
    let Some((_, ty)) = btf.resolve(id) else { return Shape::Bytes };
    let size = ty.size_or_type as usize;
    let scalar = |meaning, size, signed| Scalar {
        meaning,
        size,
        signed,
        big_endian: big_endian(btf, id),
        bits: None,
    };
    match ty.kind {
        kind::INT => integer(btf, ty, big_endian(btf, id)),
        kind::ENUM | kind::ENUM64 if matches!(size, 1 | 2 | 4 | 8) => {
            Shape::Scalar(scalar(Meaning::Enum(names(btf, ty, size)), size, ty.flag))
        }
        kind::FLOAT if matches!(size, 4 | 8) => Shape::Float(size),
        kind::PTR => match btf.get(ty.size_or_type) {
            Some(tag)
                if tag.kind == kind::TYPE_TAG
                    && KERNEL_POINTER_TAGS.contains(&btf.string(tag.name)) =>
            {
                Shape::Kernels(btf.string(tag.name))
            }
            _ => Shape::Scalar(scalar(Meaning::Pointer, 8, false)),
        },
        kind::ARRAY => {
            let (element, count) = (ty.word(0), ty.word(2) as usize);
            match btf.size(element) {
                Some(size) => Shape::Array { element, count, size: size as usize },
                None => Shape::Bytes,
            }
        }
        kind::STRUCT | kind::UNION => record(btf, ty),
        _ => Shape::Bytes,
    }
}

/// An integer, by its encoding.
fn integer<'a>(btf: &Btf<'a>, ty: &Type<'a>, big_endian: bool) -> Shape<'a> {
    let size = ty.size_or_type as usize;
    let word = ty.word(0);
    let (encoding, offset, bits) =
        (word >> 24 & 0xf, (word >> 16 & 0xff) as usize, (word & 0xff) as usize);
    if !matches!(size, 1 | 2 | 4 | 8 | 16) || bits == 0 || offset + bits > size * 8 {
        return Shape::Bytes;
    }
    let meaning = if encoding & BOOL != 0 {
        Meaning::Bool
    } else if size == 1 && (encoding & CHAR != 0 || btf.string(ty.name) == "char") {
        Meaning::Char
    } else {
        Meaning::Integer
    };
    let bits = (bits != size * 8 || offset != 0).then_some((offset, bits));
    Shape::Scalar(Scalar { meaning, size, signed: encoding & SIGNED != 0, big_endian, bits })
}

/// An enumeration's names, and the bits of each in so many bytes.
fn names<'a>(btf: &Btf<'a>, ty: &Type<'a>, size: usize) -> Vec<(&'a str, u128)> {
    let words = if ty.kind == kind::ENUM64 { 3 } else { 2 };
    if words == 2 && size == 8 {
        // Compilers that do not know ENUM64 (clang 14) cut the numbers to 32 bits: no name is sure.
        return Vec::new();
    }
    (0..usize::from(ty.vlen))
        .map(|i| {
            let first = u64::from(ty.word(i * words + 1));
            let second = if words == 3 { u64::from(ty.word(i * words + 2)) } else { 0 };
            (btf.string(ty.word(i * words)), low(u128::from(second << 32 | first), size * 8))
        })
        .collect()
}

fn record<'a>(btf: &Btf<'a>, ty: &Type<'a>) -> Shape<'a> {
    let name = btf.string(ty.name);
    if KERNEL_FIELDS.contains(&name) {
        return Shape::Kernels(name);
    }
    let members = (0..usize::from(ty.vlen))
        .map(|i| {
            let offset = ty.word(i * 3 + 2);
            // BTF_MEMBER_BITFIELD_SIZE, BTF_MEMBER_BIT_OFFSET: only with the flag.
            let (bit, bits) =
                if ty.flag { (offset & 0x00ff_ffff, offset >> 24) } else { (offset, 0) };
            Member {
                name: btf.string(ty.word(i * 3)),
                ty: ty.word(i * 3 + 1),
                bit: bit as usize,
                bits: (bits > 0).then_some(bits as usize),
            }
        })
        .collect();
    Shape::Record(Record { name, union: ty.kind == kind::UNION, members })
}

/// Whether one of the type's names says that it is in network order.
fn big_endian(btf: &Btf<'_>, mut id: u32) -> bool {
    for _ in 0..DEPTH {
        let Some(ty) = btf.get(id) else { return false };
        match ty.kind {
            kind::TYPEDEF if matches!(btf.string(ty.name), "__be16" | "__be32" | "__be64") => {
                return true;
            }
            kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                id = ty.size_or_type;
            }
            _ => return false,
        }
    }
    false
}

/// The low bits alone.
pub(crate) fn low(raw: u128, bits: usize) -> u128 {
    if bits >= 128 { raw } else { raw & !(u128::MAX << bits) }
}

/// The low bits as a signed number.
pub(crate) fn signed(raw: u128, bits: usize) -> i128 {
    let unused = 128 - bits.clamp(1, 128);
    (raw << unused).cast_signed() >> unused
}

/// Whether values of the type are the elements of text.
pub(crate) fn is_char(btf: &Btf<'_>, id: u32) -> bool {
    matches!(shape(btf, id), Shape::Scalar(Scalar { meaning: Meaning::Char, .. }))
}

impl Member<'_> {
    /// Where a bit-field lies in its record, and how many bits it has: said by the record, or (an
    /// old form) by the integer's own type.
    pub(crate) fn part(&self, shape: &Shape<'_>) -> Option<(usize, usize)> {
        match shape {
            Shape::Scalar(Scalar { bits: Some((offset, bits)), .. }) if self.bits.is_none() => {
                Some((self.bit + offset, *bits))
            }
            _ => self.bits.map(|bits| (self.bit, bits)),
        }
    }
}

impl<'a> Record<'a> {
    /// Every name that a JSON object of it may have: those of anonymous members too.
    pub(crate) fn names(&self, btf: &Btf<'a>) -> Vec<&'a str> {
        let mut names = Vec::new();
        self.collect(btf, 0, &mut names);
        names
    }

    fn collect(&self, btf: &Btf<'a>, depth: usize, names: &mut Vec<&'a str>) {
        for member in &self.members {
            if !member.name.is_empty() {
                names.push(member.name);
            } else if let (Shape::Record(inner), true) = (shape(btf, member.ty), depth < DEPTH) {
                inner.collect(btf, depth + 1, names);
            }
        }
    }
}
