//! Whether the maps of a pinned generation have its settings, asked of the kernel.

use super::{object, settings};
use crate::{
    pins::{self, Pins},
    shared_maps::{self, Share},
    sys,
};
use canopy_kernel::{ChainBuild, KernelError};

/// The shared maps of a generation that others run with already.
pub(crate) fn running_shares(pins: &Pins, build: &ChainBuild) -> Result<Vec<Share>, KernelError> {
    let (key, generation) = (&build.key, build.generation);
    let mut running = Vec::new();
    for share in shared_maps::read(pins, key, generation)?.into_iter().flatten() {
        let own = pins.map(key, generation, &share.member, &share.map);
        let index = pins.shared_map(key, share.scope, &share.map);
        if shared_maps::id(&own)? == shared_maps::id(&index)? {
            running.push(share);
        }
    }
    Ok(running)
}

/// A setting that a pinned generation does not have in its maps, but for these shared ones; see
/// [`canopy_kernel::Kernel::unmet_setting`].
pub(crate) fn unmet_setting(
    pins: &Pins,
    build: &ChainBuild,
    known: &[Share],
) -> Result<Option<String>, KernelError> {
    let (key, generation) = (&build.key, build.generation);
    for member in &build.members {
        if member.globals.is_empty() && member.map_entries.is_empty() {
            continue;
        }
        let object = object(member)?;
        for (number, def) in object.maps.iter().enumerate() {
            let settings = settings(member, &object, number, def)?;
            // What others share, and runs already, was read when it was taken over.
            let runs = |share: &Share| share.member == member.name && share.map == def.name;
            if !settings.any() || known.iter().any(runs) {
                continue;
            }
            let path = pins.map(key, generation, &member.name, &def.name);
            let failed = |error| pins::os(format!("read {}", path.display()), error);
            let Some(fd) = pins::open(&path)? else { continue };
            let map = sys::Map::new(fd).map_err(failed)?;
            if let Some(key) = settings.missing(&map).map_err(failed)? {
                let what = if def.data.is_some() {
                    format!("the variables in {} of \"{}\"", def.name, member.name)
                } else {
                    format!("map \"{}\" of \"{}\" under key {key:02x?}", def.name, member.name)
                };
                return Ok(Some(what));
            }
        }
    }
    Ok(None)
}
