//! Bytes to JSON and back, by type.

use crate::{decode, encode, shape::DEPTH, sum};
use canopy_api::Problems;
use canopy_chain::btf::{Btf, Type, kind};
use serde_json::Value;

/// Bytes to JSON and back. The default knows no types: everything is hexadecimal.
#[derive(Clone, Debug, Default)]
pub struct Codec<'a> {
    btf: Option<Btf<'a>>,
    /// By type id: how many values a value of it holds.
    weights: Vec<u64>,
}

/// Values in a value before it is told as bytes: more than any map's value of 4 MiB has, and few
/// enough that types made to be endless cost nothing.
const HEAVIEST: u64 = 8 << 20;

impl<'a> Codec<'a> {
    /// By the types of an object.
    pub fn new(btf: Btf<'a>) -> Self {
        let weights = weights(&btf);
        Self { btf: Some(btf), weights }
    }

    /// What the bytes mean; hexadecimal where the type does not say, or does not fit them.
    pub fn decode(&self, ty: Option<u32>, bytes: &[u8]) -> Value {
        self.fitting(ty, bytes.len())
            .and_then(|(btf, ty)| decode::value(btf, ty, bytes, DEPTH))
            .unwrap_or_else(|| Value::String(hex::encode(bytes)))
    }

    /// The `size` bytes that mean this; every mistake at once, with paths below `path`.
    ///
    /// What a type leaves open (padding, the kernel's own fields) is zero.
    pub fn encode(
        &self,
        ty: Option<u32>,
        size: usize,
        value: &Value,
        path: &str,
    ) -> Result<Vec<u8>, Problems> {
        match self.fitting(ty, size).filter(|(btf, ty)| encode::possible(btf, *ty)) {
            Some((btf, ty)) => encode::value(btf, ty, size, value, path),
            None => encode::hexadecimal(size, value, path).map_err(Problems::from),
        }
    }

    /// The sum of several values of the type: of each integer in it, over all of them. `None` where
    /// there is none. Sums are exact.
    pub fn sum<B: AsRef<[u8]>>(&self, ty: Option<u32>, values: &[B]) -> Option<Value> {
        let values: Vec<&[u8]> = values.iter().map(AsRef::as_ref).collect();
        let size = values.first()?.len();
        if values.iter().any(|value| value.len() != size) {
            return None;
        }
        let (btf, ty) = self.fitting(ty, size)?;
        sum::sum(btf, ty, &values, DEPTH)
    }

    /// The type as C declares it, in one line.
    pub fn declare(&self, ty: u32) -> String {
        self.btf.as_ref().map(|btf| crate::declare::declare(btf, ty)).unwrap_or_default()
    }

    /// The type, if it is one of so many bytes.
    fn fitting(&self, ty: Option<u32>, size: usize) -> Option<(&Btf<'a>, u32)> {
        let (btf, ty) = (self.btf.as_ref()?, ty?);
        let light = self.weights.get(ty as usize).is_some_and(|weight| *weight <= HEAVIEST);
        (light && btf.size(ty)? as usize == size).then_some((btf, ty))
    }
}

/// How many values a value of each type holds, itself included; as many as there can be for a type
/// that holds itself.
fn weights(btf: &Btf<'_>) -> Vec<u64> {
    const ENDLESS: u64 = u64::MAX;
    let count = btf.iter().count() + 1;
    let mut weights: Vec<Option<u64>> = vec![None; count];
    // Types on the way from the one being weighed, each with the weight of what was seen of it.
    let mut path: Vec<(u32, usize, u64)> = Vec::new();
    let mut on_way = vec![false; count];
    let mut mark = |id: u32, on: bool| {
        on_way.get_mut(id as usize).is_some_and(|slot| std::mem::replace(slot, on))
    };
    for (start, _) in btf.iter() {
        path.push((start, 0, 1));
        mark(start, true);
        while let Some((id, next, so_far)) = path.last().copied() {
            let Some(ty) = btf.get(id) else { break };
            if let Some(weight) = weights.get(id as usize).copied().flatten() {
                path.pop();
                mark(id, false);
                add(&mut path, btf, weight);
                continue;
            }
            match held(ty, next) {
                None => {
                    if let Some(slot) = weights.get_mut(id as usize) {
                        *slot = Some(so_far);
                    }
                }
                Some(inner) => {
                    if let Some(top) = path.last_mut() {
                        top.1 += 1;
                    }
                    if btf.get(inner).is_none() {
                        continue;
                    }
                    if mark(inner, true) {
                        add(&mut path, btf, ENDLESS);
                    } else {
                        path.push((inner, 0, 1));
                    }
                }
            }
        }
    }
    weights.into_iter().map(|weight| weight.unwrap_or(1)).collect()
}

/// The type on the way holds another of this weight, as often as an array does.
fn add(path: &mut [(u32, usize, u64)], btf: &Btf<'_>, weight: u64) {
    let Some((id, _, so_far)) = path.last_mut() else { return };
    let times = match btf.get(*id) {
        Some(ty) if ty.kind == kind::ARRAY => u64::from(ty.word(2)),
        _ => 1,
    };
    *so_far = so_far.saturating_add(weight.saturating_mul(times));
}

/// The type of the part of this number that a value of a type has; pointers hold nothing.
fn held(ty: &Type<'_>, part: usize) -> Option<u32> {
    match ty.kind {
        kind::ARRAY if part == 0 => Some(ty.word(0)),
        kind::STRUCT | kind::UNION if part < usize::from(ty.vlen) => Some(ty.word(part * 3 + 1)),
        kind::TYPEDEF
        | kind::VOLATILE
        | kind::CONST
        | kind::RESTRICT
        | kind::TYPE_TAG
        | kind::VAR
            if part == 0 =>
        {
            Some(ty.size_or_type)
        }
        _ => None,
    }
}
