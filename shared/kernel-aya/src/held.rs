//! What of an attached chain is held besides its pins, so that removing the pins neither detaches it
//! nor loses its counters.

use crate::{
    pins::{self, Pins, os},
    sys::{self, Kind},
};
use canopy_api::ChainKey;
use canopy_kernel::KernelError;
use std::{
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

/// An attached generation, held by descriptor.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) link: OwnedFd,
    pub(crate) generation: u64,
    prog: OwnedFd,
    /// No program uses this map, so the descriptor is all that keeps it.
    meta: Option<OwnedFd>,
    /// The maps that the program keeps, by pin and kernel id: a descriptor for each would soon
    /// reach the limit of a process.
    maps: Vec<(PathBuf, u32)>,
}

impl Held {
    /// Holds a generation's link and program; what `before` knew of the same generation is kept.
    pub(crate) fn new(
        pins: &Pins,
        key: &ChainKey,
        generation: u64,
        link: OwnedFd,
        prog: OwnedFd,
        before: Option<Self>,
    ) -> Result<Self, KernelError> {
        if let Some(before) = before.filter(|before| before.generation == generation) {
            return Ok(Self { link, prog, ..before });
        }
        let mut paths = vec![pins.cells(key, generation), pins.constants(key, generation)];
        for (member, map) in pins.member_maps(key, generation)? {
            paths.push(pins.map(key, generation, &member, &map));
        }
        let mut maps = Vec::with_capacity(paths.len());
        for path in paths {
            if let Some(map) = pins::open(&path)? {
                let info = sys::map_info(&map)
                    .map_err(|error| os(format!("read {}", path.display()), error))?;
                maps.push((path, info.id));
            }
        }
        let meta = pins::open(&pins.meta(key, generation))?;
        Ok(Self { link, generation, prog, meta, maps })
    }

    /// Pins again what somebody unpinned.
    pub(crate) fn repair(&self, pins: &Pins, key: &ChainKey) -> Result<(), KernelError> {
        for (path, id) in &self.maps {
            if !path.exists() {
                // A map that the program does not use went with its pin.
                if let Ok(map) = sys::fd_by_id(Kind::Map, *id) {
                    pin_again(&map, path)?;
                }
            }
        }
        if let Some(meta) = &self.meta {
            restore(meta, &pins.meta(key, self.generation))?;
        }
        // Last, as in preparing: what has its program is whole.
        restore(&self.prog, &pins.prog(key, self.generation))?;
        restore(&self.link, &pins.link(key))
    }
}

fn restore(object: &impl AsFd, path: &Path) -> Result<(), KernelError> {
    if path.exists() { Ok(()) } else { pin_again(object, path) }
}

fn pin_again(object: &impl AsFd, path: &Path) -> Result<(), KernelError> {
    tracing::warn!(pin = %path.display(), "a pin was removed; pinned again");
    if let Some(dir) = path.parent() {
        pins::make_dir(dir)?;
    }
    pins::pin(object, path)
}
