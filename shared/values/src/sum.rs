//! Sums over the values of several CPUs.

use crate::{
    decode::{read_bits, signed_number, unsigned_number},
    shape::{Meaning, Record, Scalar, Shape, shape, signed},
};
use canopy_chain::btf::Btf;
use serde_json::{Map, Value};

/// The sum of each integer of the type; `None` where there is none. A union has none: which of its
/// members counts is not known.
pub(crate) fn sum(btf: &Btf<'_>, ty: u32, values: &[&[u8]], depth: usize) -> Option<Value> {
    let depth = depth.checked_sub(1)?;
    match shape(btf, ty) {
        Shape::Scalar(scalar) => {
            let numbers: Option<Vec<_>> = values.iter().map(|value| scalar.read(value)).collect();
            scalar.add(&numbers?)
        }
        Shape::Array { element, count, size } if size > 0 => {
            let items = (0..count).map(|i| {
                let parts = part(values, i.checked_mul(size)?, size)?;
                sum(btf, element, &parts, depth)
            });
            items.collect::<Option<Vec<_>>>().filter(|items| !items.is_empty()).map(Value::Array)
        }
        Shape::Record(record) => {
            let mut fields = Map::new();
            fields_of(btf, &record, values, depth, &mut fields)?;
            (!fields.is_empty()).then_some(Value::Object(fields))
        }
        Shape::Array { .. } | Shape::Float(_) | Shape::Kernels(_) | Shape::Bytes => None,
    }
}

fn fields_of(
    btf: &Btf<'_>,
    record: &Record<'_>,
    values: &[&[u8]],
    depth: usize,
    fields: &mut Map<String, Value>,
) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    if record.union {
        return Some(());
    }
    for member in &record.members {
        let shape = shape(btf, member.ty);
        let total =
            if let (Shape::Scalar(scalar), Some((bit, bits))) = (&shape, member.part(&shape)) {
                let read = |value: &&[u8]| Some((read_bits(value, bit, bits)?, bits));
                scalar.add(&values.iter().map(read).collect::<Option<Vec<_>>>()?)
            } else {
                let parts = part(values, member.bit / 8, btf.size(member.ty)? as usize)?;
                if let (Shape::Record(inner), true) = (&shape, member.name.is_empty()) {
                    fields_of(btf, inner, &parts, depth, fields)?;
                    continue;
                }
                sum(btf, member.ty, &parts, depth)
            };
        if let Some(total) = total {
            fields.insert(member.name.to_owned(), total);
        }
    }
    Some(())
}

fn part<'a>(values: &[&'a [u8]], from: usize, size: usize) -> Option<Vec<&'a [u8]>> {
    values.iter().map(|value| value.get(from..from.checked_add(size)?)).collect()
}

impl Scalar<'_> {
    fn add(&self, numbers: &[(u128, usize)]) -> Option<Value> {
        match self.meaning {
            Meaning::Integer if self.signed => {
                let numbers = numbers.iter().map(|(raw, bits)| signed(*raw, *bits));
                numbers.reduce(i128::saturating_add).map(signed_number)
            }
            Meaning::Integer => {
                let numbers = numbers.iter().map(|(raw, _)| *raw);
                numbers.reduce(u128::saturating_add).map(unsigned_number)
            }
            Meaning::Bool | Meaning::Char | Meaning::Enum(_) | Meaning::Pointer => None,
        }
    }
}
