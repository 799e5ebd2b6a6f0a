//! Maps that several members or chains use together are pinned apart, by scope; those that no
//! generation uses any more are unpinned.

use crate::{
    pins::{self, Pins},
    sys,
};
use canopy_kernel::KernelError;
use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{PoisonError, RwLock, RwLockReadGuard},
};

/// A preparation may have found a shared map and not yet pinned it in its generation: nothing is
/// unpinned meanwhile.
static PREPARING: RwLock<()> = RwLock::new(());

/// Held while a generation is prepared.
pub(crate) fn preparing() -> RwLockReadGuard<'static, ()> {
    PREPARING.read().unwrap_or_else(PoisonError::into_inner)
}

/// Unpins the shared maps that no pinned generation uses.
pub(crate) fn collect(pins: &Pins) -> Result<(), KernelError> {
    let shared = || -> Result<Vec<PathBuf>, KernelError> {
        let mut paths = Vec::new();
        for (_, scope) in pins::directories(&pins.shared())? {
            paths.extend(pins::list(&scope)?.into_iter().map(|(_, path)| path));
        }
        Ok(paths)
    };
    // Most hosts share nothing.
    if shared()?.is_empty() {
        return Ok(());
    }
    let _alone = PREPARING.write().unwrap_or_else(PoisonError::into_inner);
    let mut used = BTreeSet::new();
    for key in pins.chains()? {
        for generation in pins.generations(&key)? {
            for (member, map) in pins.member_maps(&key, generation)? {
                used.extend(id(&pins.map(&key, generation, &member, &map))?);
            }
        }
    }
    for path in shared()? {
        if id(&path)?.is_some_and(|id| !used.contains(&id)) {
            pins::remove_file(&path)?;
            if let Some(dir) = path.parent() {
                pins::prune(pins.root(), dir);
            }
        }
    }
    Ok(())
}

/// The kernel's id of a pinned map; `None` when it is gone, or is no map.
fn id(path: &std::path::Path) -> Result<Option<u32>, KernelError> {
    let Some(fd) = pins::open_kind(path, sys::Kind::Map)? else { return Ok(None) };
    sys::map_info(&fd)
        .map(|info| Some(info.id))
        .map_err(|error| pins::os(format!("read {}", path.display()), error))
}
