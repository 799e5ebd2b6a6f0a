//! What of an attached chain is held besides its pins, so that removing the pins neither detaches it
//! nor loses its counters.

use crate::{
    clsact, link, netif,
    pins::{self, Pins, os},
    sys,
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
    /// `None` for a chain attached by a filter of clsact.
    pub(crate) link: Option<OwnedFd>,
    pub(crate) generation: u64,
    /// What the kernel said to native XDP, where the link is generic instead.
    pub(crate) native_refused: Option<String>,
    prog: OwnedFd,
    /// Every map, by pin. A descriptor for each, although the program keeps most of them: only
    /// `CAP_SYS_ADMIN` turns the kernel's ids into descriptors.
    maps: Vec<(PathBuf, OwnedFd)>,
}

impl Held {
    /// Whether this is the kernel's id of its program.
    pub(crate) fn runs(&self, program_id: u32) -> bool {
        sys::prog_info(&self.prog).is_ok_and(|info| info.id == program_id)
    }

    /// Holds a generation's link and program; what `before` knew of the same generation is kept.
    pub(crate) fn new(
        pins: &Pins,
        key: &ChainKey,
        generation: u64,
        link: Option<OwnedFd>,
        prog: OwnedFd,
        before: Option<Self>,
    ) -> Result<Self, KernelError> {
        // It is said when a link is made; another generation in the same link runs as it did.
        let native_refused = before.as_ref().and_then(|before| before.native_refused.clone());
        if let Some(before) = before.filter(|before| before.generation == generation) {
            return Ok(Self { link, prog, ..before });
        }
        let mut paths = vec![
            pins.cells(key, generation),
            pins.constants(key, generation),
            pins.meta(key, generation),
        ];
        let members = pins.member_map_pins(key, generation)?;
        paths.extend(members.into_iter().map(|(_, _, path)| path));
        let mut maps = Vec::with_capacity(paths.len());
        for path in paths {
            if let Some(map) = pins::open_kind(&path, sys::Kind::Map)? {
                maps.push((path, map));
            }
        }
        Ok(Self { link, generation, native_refused, prog, maps })
    }

    /// The generation and its program, if that is the one that runs.
    pub(crate) fn running(
        &self,
        key: &ChainKey,
        program_id: u32,
    ) -> Result<Option<(u64, OwnedFd)>, KernelError> {
        let failed = |error| os(format!("read the program of {key}"), error);
        if sys::prog_info(&self.prog).map_err(failed)?.id != program_id {
            return Ok(None);
        }
        self.prog.try_clone().map(|prog| Some((self.generation, prog))).map_err(failed)
    }

    /// What was said to native XDP, of a chain that runs in this mode.
    pub(crate) fn told_of(&self, mode: &str) -> Option<String> {
        self.native_refused.clone().filter(|_| mode == "generic")
    }

    /// Pins again what somebody unpinned, if the directory of pins is there.
    pub(crate) fn repair(&self, pins: &Pins, key: &ChainKey) -> Result<(), KernelError> {
        let paths = self.maps.iter().map(|(path, _)| path.clone());
        let link = self.link.as_ref().map(|_| pins.link(key));
        let mut all = paths.chain([pins.prog(key, self.generation)]).chain(link);
        if all.all(|path| sys::timed(|| path.exists())) {
            return pins.ensure_writable();
        }
        // Where bpffs is gone, its mount point is a directory like any other.
        pins.claim()?;
        for (path, map) in &self.maps {
            restore(map, path)?;
        }
        // Last, as in preparing: what has its program is whole.
        restore(&self.prog, &pins.prog(key, self.generation))?;
        match &self.link {
            Some(link) => restore(link, &pins.link(key)),
            None => Ok(()),
        }
    }

    /// Whether it is attached, as far as it can be seen without its pins.
    pub(crate) fn is_attached(&self, key: &ChainKey) -> Result<bool, KernelError> {
        if let Some(link) = &self.link {
            return Ok(link::link_index(link, key)? != 0);
        }
        let Some(device) = netif::device(&key.interface)? else { return Ok(false) };
        let Some(filter) = clsact::filter(key, &device)? else { return Ok(false) };
        let ours = sys::prog_info(&self.prog)
            .map_err(|error| os(format!("read the program of {key}"), error))?;
        Ok(filter.program_id == ours.id)
    }
}

fn restore(object: &impl AsFd, path: &Path) -> Result<(), KernelError> {
    if sys::timed(|| path.exists()) {
        return Ok(());
    }
    tracing::warn!(pin = %path.display(), "a pin was removed; pinned again");
    if let Some(dir) = path.parent() {
        pins::make_dir(dir)?;
    }
    pins::pin(object, path)
}
