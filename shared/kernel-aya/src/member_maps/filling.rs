//! What arrays of programs and maps of maps hold from the start.

use super::{Made, map_of};
use crate::{
    map_create::{ARRAY_OF_MAPS, HASH_OF_MAPS, os},
    object::Object,
    object_maps::PROG_ARRAY,
    sys,
};
use canopy_api::ProgramName;
use canopy_kernel::KernelError;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// What an array or hash of programs or maps holds: key and the kernel's id.
pub(super) fn references(map: &sys::Map) -> std::io::Result<Vec<(Vec<u8>, u32)>> {
    let mut found = Vec::new();
    let mut last: Option<Vec<u8>> = None;
    let steps = (map.info().max_entries as usize).saturating_mul(2).saturating_add(16);
    for _ in 0..steps {
        let Some(key) = map.next_key(last.as_deref())? else { break };
        let id = map.lookup(&key)?;
        if let Some(id) = id.and_then(|id| id.as_slice().try_into().ok()).map(u32::from_ne_bytes) {
            found.push((key.clone(), id));
        }
        last = Some(key);
    }
    Ok(found)
}

/// Puts the object's initial values into arrays of programs and of maps, and what others put there.
pub(crate) fn fill(
    name: &ProgramName,
    object: &Object,
    maps: &[Option<Made>],
    programs: &[(&str, BorrowedFd<'_>)],
    notes: &mut Vec<String>,
) -> Result<(), KernelError> {
    for (def, made) in object.maps.iter().zip(maps) {
        let Some(made) = made.as_ref().filter(|made| made.fresh) else { continue };
        let failed = |error| os(name, &def.name, "fill", error);
        for (index, symbol) in &def.values {
            let value = if def.map_type == PROG_ARRAY {
                let function = object.symbol(*symbol);
                programs
                    .iter()
                    .find(|(name, _)| Some(*name) == function)
                    .map(|(_, fd)| fd.as_raw_fd())
            } else {
                map_of(object, *symbol)
                    .and_then(|map| maps.get(map)?.as_ref())
                    .map(|inner| inner.map.as_fd().as_raw_fd())
            };
            let Some(value) = value else { continue };
            made.map.update(&index.to_ne_bytes(), &value.to_ne_bytes(), 0).map_err(failed)?;
        }
        let Some(before) = &made.before else { continue };
        let kind = match def.map_type {
            PROG_ARRAY => sys::Kind::Prog,
            ARRAY_OF_MAPS | HASH_OF_MAPS => sys::Kind::Map,
            _ => continue,
        };
        let mut lost = 0;
        for (key, id) in references(before).map_err(failed)? {
            let index = <[u8; 4]>::try_from(key.as_slice()).map(u32::from_ne_bytes);
            if index.is_ok_and(|index| def.values.iter().any(|(filled, _)| *filled == index)) {
                continue;
            }
            let copied = sys::fd_by_id(kind, id)
                .and_then(|fd| made.map.update(&key, &fd.as_raw_fd().to_ne_bytes(), 0));
            lost += usize::from(copied.is_err());
        }
        if lost > 0 {
            notes.push(format!(
                "\"{name}\": {lost} entries that others put into map \"{}\" are not kept: the kernel \
                 does not take them into the new one",
                def.name
            ));
        }
    }
    Ok(())
}
