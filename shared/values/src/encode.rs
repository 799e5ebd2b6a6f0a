//! JSON to bytes.

use crate::{
    decode::kernels,
    shape::{DEPTH, Meaning, Record, Scalar, Shape, is_char, low, shape},
};
use canopy_api::{Problem, Problems};
use canopy_chain::btf::Btf;
use serde_json::{Map, Value};

/// Whether the type, all of it, can be written from JSON: what cannot is written as hexadecimal,
/// as it is read.
pub(crate) fn possible(btf: &Btf<'_>, ty: u32) -> bool {
    let Some(size) = btf.size(ty) else { return false };
    let zeros = vec![0; size as usize];
    crate::decode::value(btf, ty, &zeros, DEPTH).is_some()
}

/// The bytes of a value without a type.
pub(crate) fn hexadecimal(size: usize, value: &Value, path: &str) -> Result<Vec<u8>, Problem> {
    let wrong = || {
        Problem::new(path, format!("{} is not {size} bytes in hexadecimal text", shown(value)))
            .remedy(format!("write {} digits, in the order of memory", size * 2))
    };
    let Value::String(text) = value else { return Err(wrong()) };
    let digits: String = text.chars().filter(|c| !matches!(c, ' ' | ':')).collect();
    hex::decode(digits).ok().filter(|bytes| bytes.len() == size).ok_or_else(wrong)
}

/// The bytes of a value.
pub(crate) fn value(
    btf: &Btf<'_>,
    ty: u32,
    size: usize,
    value: &Value,
    path: &str,
) -> Result<Vec<u8>, Problems> {
    let mut encoder =
        Encoder { btf, bytes: vec![0; size], known: vec![0; size], problems: Problems::default() };
    encoder.value(ty, 0, value, path, DEPTH);
    encoder.problems.into_result()?;
    Ok(encoder.bytes)
}

/// Bytes being written. Members of a union lie over each other: which bits are known already says
/// whether two of them disagree.
struct Encoder<'a, 'b> {
    btf: &'b Btf<'a>,
    bytes: Vec<u8>,
    known: Vec<u8>,
    problems: Problems,
}

impl<'a> Encoder<'a, '_> {
    fn wrong(&mut self, path: &str, message: impl Into<String>, remedy: impl Into<String>) {
        self.problems.push(Problem::new(path, message).remedy(remedy));
    }

    /// Writes a value whose type begins at bit `at`.
    fn value(&mut self, ty: u32, at: usize, value: &Value, path: &str, depth: usize) {
        let Some(depth) = depth.checked_sub(1) else { return };
        match shape(self.btf, ty) {
            Shape::Scalar(scalar) => self.scalar(&scalar, at, value, path),
            Shape::Float(size) => match float(value, size) {
                Some(raw) => self.put(at, size * 8, raw, path),
                None => self.wrong(
                    path,
                    format!("{} is not a number", shown(value)),
                    "write a number, or \"inf\", \"-inf\" or \"nan\"",
                ),
            },
            Shape::Kernels(name) => self.kernels(name, value, path),
            Shape::Array { element, count, size } => {
                if let (Value::String(text), true) = (value, is_char(self.btf, element)) {
                    return self.text(text, at, count, path);
                }
                let Value::Array(items) = value else {
                    let what = format!("{} is not a list", shown(value));
                    return self.wrong(path, what, format!("write a list of {count} items"));
                };
                if items.len() != count && size != 0 {
                    let what = format!("it has {} items, not {count}", items.len());
                    return self.wrong(path, what, format!("write a list of {count} items"));
                }
                for (i, item) in items.iter().enumerate().take(count) {
                    self.value(element, at + i * size * 8, item, &format!("{path}[{i}]"), depth);
                }
            }
            Shape::Record(record) => {
                let Value::Object(fields) = value else {
                    let names = record.names(self.btf).join(", ");
                    let what = format!("{} is not an object", shown(value));
                    return self.wrong(path, what, format!("write an object with {names}"));
                };
                let names = record.names(self.btf);
                for name in fields.keys().filter(|name| !names.contains(&name.as_str())) {
                    let of = if record.name.is_empty() { "it" } else { record.name };
                    let what = format!("{of} has no field \"{name}\"");
                    self.wrong(&below(path, name), what, format!("it has {}", names.join(", ")));
                }
                self.record(&record, at, fields, path, depth);
            }
            Shape::Bytes => match self.btf.size(ty).map(|size| size as usize) {
                Some(size) => match hexadecimal(size, value, path) {
                    Ok(bytes) => {
                        for (i, byte) in bytes.into_iter().enumerate() {
                            self.put(at + i * 8, 8, byte.into(), path);
                        }
                    }
                    Err(problem) => self.problems.push(problem),
                },
                None => self.wrong(path, "its type has no size", "leave it out"),
            },
        }
    }

    fn record(
        &mut self,
        record: &Record<'a>,
        at: usize,
        fields: &Map<String, Value>,
        path: &str,
        depth: usize,
    ) {
        let Some(depth) = depth.checked_sub(1) else { return };
        let mut given = 0_usize;
        let mut offered = Vec::new();
        for member in &record.members {
            let place = at + member.bit;
            let shape = shape(self.btf, member.ty);
            if let (Shape::Record(inner), true) = (&shape, member.name.is_empty()) {
                let names = inner.names(self.btf);
                if record.union && !names.iter().any(|name| fields.contains_key(*name)) {
                    offered.extend(names);
                    continue;
                }
                given += 1;
                self.record(inner, place, fields, path, depth);
                continue;
            }
            let Some(value) = fields.get(member.name) else {
                let nothing =
                    matches!(shape, Shape::Kernels(_)) || self.btf.size(member.ty) == Some(0);
                if record.union {
                    offered.push(member.name);
                } else if !nothing {
                    let what = format!("\"{}\" is missing", member.name);
                    self.wrong(path, what, "give every field: read the entry, change it, write it");
                }
                continue;
            };
            given += 1;
            let path = below(path, member.name);
            match (&shape, member.part(&shape)) {
                (Shape::Scalar(scalar), Some((bit, bits))) => {
                    self.number(scalar, at + bit, bits, value, &path);
                }
                _ => self.value(member.ty, place, value, &path, depth),
            }
        }
        if record.union && given == 0 && !offered.is_empty() {
            self.wrong(
                path,
                "no member of the union is given",
                format!("give one of {}", offered.join(", ")),
            );
        }
    }

    /// A number that is not a bit-field of the struct it is in.
    fn scalar(&mut self, scalar: &Scalar<'_>, at: usize, value: &Value, path: &str) {
        match scalar.bits {
            Some((offset, bits)) => self.number(scalar, at + offset, bits, value, path),
            None => self.number(scalar, at, scalar.size * 8, value, path),
        }
    }

    fn number(&mut self, scalar: &Scalar<'_>, at: usize, bits: usize, value: &Value, path: &str) {
        match scalar.take(value, bits) {
            Ok(raw) if scalar.big_endian && bits == scalar.size * 8 => {
                let unused = 128 - bits.min(128);
                self.put(at, bits, raw.swap_bytes() >> unused, path);
            }
            Ok(raw) => self.put(at, bits, raw, path),
            Err((message, remedy)) => self.wrong(path, message, remedy),
        }
    }

    /// The kernel's own: it may be there as it was read, and is not written.
    fn kernels(&mut self, name: &str, value: &Value, path: &str) {
        if *value != Value::String(kernels(name)) {
            self.wrong(path, format!("a {name} belongs to the kernel"), "leave it out");
        }
    }

    fn text(&mut self, text: &str, at: usize, count: usize, path: &str) {
        if text.len() > count {
            let what = format!("the text has {} bytes, more than {count}", text.len());
            return self.wrong(path, what, "shorten it");
        }
        let bytes = text.bytes().chain(std::iter::repeat(0)).take(count);
        for (i, byte) in bytes.enumerate() {
            self.put(at + i * 8, 8, byte.into(), path);
        }
    }

    /// Writes bits, lowest first.
    fn put(&mut self, at: usize, bits: usize, raw: u128, path: &str) {
        let mut done = 0;
        while done < bits {
            let (byte, shift) = ((at + done) / 8, (at + done) % 8);
            let taken = (8 - shift).min(bits - done);
            let part = u8::try_from(low(raw >> done, taken) << shift).unwrap_or(0);
            let mask = u8::try_from(low(u128::MAX, taken) << shift).unwrap_or(0);
            let place = self.bytes.get_mut(byte).zip(self.known.get_mut(byte));
            let Some((place, known)) = place else { return };
            if *known & mask & (*place ^ part) != 0 {
                return self.wrong(
                    path,
                    "it says something else than another member of its union",
                    "give one member of the union",
                );
            }
            *place |= part;
            *known |= mask;
            done += taken;
        }
    }
}

impl Scalar<'_> {
    /// The bits that a JSON value stands for; else what is wrong and what to do.
    fn take(&self, value: &Value, bits: usize) -> Result<u128, (String, String)> {
        let named = match (&self.meaning, value) {
            (Meaning::Bool, Value::Bool(yes)) => Some(u128::from(*yes)),
            (Meaning::Char, Value::String(text)) => match text.as_bytes() {
                [byte] => Some(u128::from(*byte)),
                _ => None,
            },
            (Meaning::Enum(names), Value::String(text)) => {
                names.iter().find(|(name, _)| name == text).map(|(_, number)| low(*number, bits))
            }
            _ => None,
        };
        if let Some(raw) = named {
            return Ok(raw);
        }
        let most = low(u128::MAX, bits);
        let range = if self.signed {
            format!("write a number of -{} to {}", (most >> 1) + 1, most >> 1)
        } else {
            format!("write a number of 0 to {most}")
        };
        // Text is a character there, also if it is a digit.
        let no_number = matches!((&self.meaning, value), (Meaning::Char, Value::String(_)));
        if let Some(number) = whole(value).filter(|_| !no_number) {
            let raw = self.fits(number, bits);
            return raw.ok_or_else(|| (format!("{} is out of range", shown(value)), range));
        }
        let (noun, remedy) = match &self.meaning {
            Meaning::Integer => ("a whole number", range),
            Meaning::Bool => ("true or false", "write true or false".to_owned()),
            Meaning::Char => ("a character", "write one character, or its number".to_owned()),
            Meaning::Enum(known) => ("a name of its enumeration", some_of(known)),
            Meaning::Pointer => ("an address", "write it as \"0x…\"".to_owned()),
        };
        Err((format!("{} is not {noun}", shown(value)), remedy))
    }

    /// The bits of a number, if it is in range.
    fn fits(&self, number: Whole, bits: usize) -> Option<u128> {
        let most = low(u128::MAX, bits);
        match (number, self.signed) {
            (Whole::Positive(number), true) => (number <= most >> 1).then_some(number),
            (Whole::Positive(number), false) => (number <= most).then_some(number),
            (Whole::Negative(size), true) if size <= (most >> 1) + 1 => {
                Some(low(size.wrapping_neg(), bits))
            }
            (Whole::Negative(_), _) => None,
        }
    }
}

/// A whole number, with its size where it is below zero.
#[derive(Clone, Copy)]
enum Whole {
    Positive(u128),
    Negative(u128),
}

/// A whole number, as a number or as text.
fn whole(value: &Value) -> Option<Whole> {
    match value {
        Value::Number(number) => match number.as_u64() {
            Some(number) => Some(Whole::Positive(number.into())),
            None => number.as_i64().map(|number| Whole::Negative(number.unsigned_abs().into())),
        },
        Value::String(text) => match (text.strip_prefix("0x"), text.strip_prefix('-')) {
            (Some(digits), _) => digits_only(digits, 16).map(Whole::Positive),
            (None, Some(digits)) => digits_only(digits, 10).map(Whole::Negative),
            (None, None) => digits_only(text, 10).map(Whole::Positive),
        },
        _ => None,
    }
}

fn digits_only(text: &str, radix: u32) -> Option<u128> {
    // `from_str_radix` takes a sign.
    if text.chars().all(|c| c.is_digit(radix)) {
        u128::from_str_radix(text, radix).ok()
    } else {
        None
    }
}

/// The bits of a float.
fn float(value: &Value, size: usize) -> Option<u128> {
    let bits =
        |text: &str| digits_only(text.strip_prefix("0x")?, 16).filter(|n| low(*n, size * 8) == *n);
    let number = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => match text.as_str() {
            "inf" => f64::INFINITY,
            "-inf" => f64::NEG_INFINITY,
            "nan" if size == 4 => return Some(f32::NAN.to_bits().into()),
            "nan" => return Some(f64::NAN.to_bits().into()),
            text => return bits(text),
        },
        _ => return None,
    };
    if size == 8 {
        return Some(number.to_bits().into());
    }
    #[allow(clippy::cast_possible_truncation, reason = "rounded to the nearest, as C does")]
    let narrow = number as f32;
    // A number that is only infinite when it is narrow is out of range.
    (narrow.is_finite() || number.is_infinite()).then(|| narrow.to_bits().into())
}

fn some_of(names: &[(&str, u128)]) -> String {
    const SHOWN: usize = 12;
    let list: Vec<&str> = names.iter().take(SHOWN).map(|(name, _)| *name).collect();
    let more = if names.len() > SHOWN { ", …" } else { "" };
    format!("write one of {}{more}, or a number", list.join(", "))
}

fn below(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// A value as written, shortened.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 {
        return text;
    }
    format!("{}…", text.chars().take(59).collect::<String>())
}
