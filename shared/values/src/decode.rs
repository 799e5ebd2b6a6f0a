//! Bytes to JSON.

use crate::shape::{Meaning, Record, Scalar, Shape, is_char, low, shape, signed};
use canopy_chain::btf::Btf;
use serde_json::{Map, Number, Value};

/// What the bytes mean; `None` where the types do not fit them.
pub(crate) fn value(btf: &Btf<'_>, ty: u32, bytes: &[u8], depth: usize) -> Option<Value> {
    let depth = depth.checked_sub(1)?;
    Some(match shape(btf, ty) {
        Shape::Scalar(scalar) => {
            let (raw, bits) = scalar.read(bytes)?;
            scalar.tell(raw, bits)
        }
        Shape::Float(4) => float32(f32::from_ne_bytes(bytes.try_into().ok()?)),
        Shape::Float(_) => float64(f64::from_ne_bytes(bytes.try_into().ok()?)),
        Shape::Kernels(name) => Value::String(kernels(name)),
        Shape::Array { count, size, .. } if size == 0 || count == 0 => Value::Array(Vec::new()),
        Shape::Array { element, count, size } => {
            let bytes = bytes.get(..count.checked_mul(size)?)?;
            let text = if is_char(btf, element) { text(bytes) } else { None };
            match text {
                Some(text) => Value::String(text),
                None => bytes
                    .chunks_exact(size)
                    .map(|bytes| value(btf, element, bytes, depth))
                    .collect::<Option<_>>()?,
            }
        }
        Shape::Record(of) => {
            let mut fields = Map::new();
            record(btf, &of, bytes, depth, &mut fields)?;
            Value::Object(fields)
        }
        Shape::Bytes => Value::String(hex::encode(bytes)),
    })
}

fn record(
    btf: &Btf<'_>,
    of: &Record<'_>,
    bytes: &[u8],
    depth: usize,
    fields: &mut Map<String, Value>,
) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    for member in &of.members {
        let shape = shape(btf, member.ty);
        let told = if let (Shape::Scalar(scalar), Some((bit, bits))) = (&shape, member.part(&shape))
        {
            scalar.tell(read_bits(bytes, bit, bits)?, bits)
        } else {
            let from = member.bit / 8;
            let part = bytes.get(from..from.checked_add(btf.size(member.ty)? as usize)?)?;
            if let (Shape::Record(inner), true) = (&shape, member.name.is_empty()) {
                record(btf, inner, part, depth, fields)?;
                continue;
            }
            value(btf, member.ty, part, depth)?
        };
        fields.insert(member.name.to_owned(), told);
    }
    Some(())
}

/// How a field of the kernel's own is shown.
pub(crate) fn kernels(name: &str) -> String {
    format!("({name})")
}

/// Bits of memory as a number, lowest first (the order of this machine).
pub(crate) fn read_bits(bytes: &[u8], from: usize, bits: usize) -> Option<u128> {
    if bits > 128 {
        return None;
    }
    let mut raw = 0_u128;
    let mut done = 0;
    while done < bits {
        let at = from + done;
        let taken = (8 - at % 8).min(bits - done);
        let byte = u128::from(*bytes.get(at / 8)?) >> (at % 8);
        raw |= low(byte, taken) << done;
        done += taken;
    }
    Some(raw)
}

impl Scalar<'_> {
    /// The number in its bytes, and how many bits it has.
    pub(crate) fn read(&self, bytes: &[u8]) -> Option<(u128, usize)> {
        let mut buffer = [0; 16];
        let place = buffer.get_mut(..self.size)?;
        place.copy_from_slice(bytes.get(..self.size)?);
        if self.big_endian {
            place.reverse();
        }
        let raw = u128::from_le_bytes(buffer);
        Some(match self.bits {
            Some((offset, bits)) => (low(raw >> offset, bits), bits),
            None => (raw, self.size * 8),
        })
    }

    /// The number in JSON.
    pub(crate) fn tell(&self, raw: u128, bits: usize) -> Value {
        match &self.meaning {
            Meaning::Bool if raw <= 1 => Value::Bool(raw == 1),
            Meaning::Char if bits == 8 => match u8::try_from(raw) {
                Ok(byte) if byte.is_ascii_graphic() || byte == b' ' => {
                    Value::String(char::from(byte).to_string())
                }
                _ => self.number(raw, bits),
            },
            Meaning::Enum(names) => {
                match names.iter().find(|(_, known)| low(*known, bits) == raw) {
                    Some((name, _)) => Value::String((*name).to_owned()),
                    None => self.number(raw, bits),
                }
            }
            Meaning::Pointer => Value::String(format!("{raw:#x}")),
            Meaning::Integer | Meaning::Bool | Meaning::Char => self.number(raw, bits),
        }
    }

    fn number(&self, raw: u128, bits: usize) -> Value {
        if self.signed { signed_number(signed(raw, bits)) } else { unsigned_number(raw) }
    }
}

/// A number, as text where JSON libraries would round it.
pub(crate) fn unsigned_number(number: u128) -> Value {
    match u64::try_from(number) {
        Ok(number) => number.into(),
        Err(_) => Value::String(number.to_string()),
    }
}

/// As [`unsigned_number`].
pub(crate) fn signed_number(number: i128) -> Value {
    match i64::try_from(number) {
        Ok(number) => number.into(),
        Err(_) => Value::String(number.to_string()),
    }
}

/// Characters as text, if they are some: what can be printed, then zeros only.
fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (text, rest) = bytes.split_at_checked(end)?;
    if rest.iter().any(|byte| *byte != 0) {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?;
    (!text.contains(char::is_control)).then(|| text.to_owned())
}

/// The shortest decimal that reads back as the same number.
fn float32(number: f32) -> Value {
    let shortest = number.to_string().parse().ok().filter(|_| number.is_finite());
    match shortest.and_then(Number::from_f64) {
        Some(number) => Value::Number(number),
        None if number.is_nan() => {
            nan(number.to_bits() == f32::NAN.to_bits(), || format!("{:#010x}", number.to_bits()))
        }
        None => infinite(number.is_sign_negative()),
    }
}

fn float64(number: f64) -> Value {
    match Number::from_f64(number) {
        Some(number) => Value::Number(number),
        None if number.is_nan() => {
            nan(number.to_bits() == f64::NAN.to_bits(), || format!("{:#018x}", number.to_bits()))
        }
        None => infinite(number.is_sign_negative()),
    }
}

/// The usual one by name, any other by its bits.
fn nan(usual: bool, bits: impl FnOnce() -> String) -> Value {
    Value::String(if usual { "nan".to_owned() } else { bits() })
}

fn infinite(negative: bool) -> Value {
    Value::String(if negative { "-inf" } else { "inf" }.to_owned())
}
