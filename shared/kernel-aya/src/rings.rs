//! Ring buffers, read as their one consumer. aya maps and walks them.

use crate::{
    AyaKernel,
    pins::{self, os},
};
use aya::maps::{Map, MapData, RingBuf};
use canopy_kernel::{KernelError, MapPlace, Ring};
use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    path::PathBuf,
    time::Duration,
};

/// A member's ring buffer; see [`canopy_kernel::Kernel::ring`].
pub(crate) fn ring(kernel: &AyaKernel, place: MapPlace<'_>) -> Result<Box<dyn Ring>, KernelError> {
    let MapPlace { key, generation, member, map } = place;
    let path = kernel.pins.map(key, generation, member, map);
    let failed = |error| os(format!("open {}", path.display()), error);
    let fd = pins::open(&path)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let map = MapData::from_fd(fd)
        .and_then(Map::from_map_data)
        .and_then(RingBuf::try_from)
        .map_err(|error| failed(io::Error::other(error)))?;
    Ok(Box::new(Consumer { map, path }))
}

struct Consumer {
    map: RingBuf<MapData>,
    path: PathBuf,
}

impl Ring for Consumer {
    fn take(&mut self, most: usize, wait: Duration) -> Result<Vec<Vec<u8>>, KernelError> {
        let mut records = self.there(most);
        if records.is_empty() && !wait.is_zero() {
            self.wait(wait)?;
            records = self.there(most);
        }
        Ok(records)
    }
}

impl Consumer {
    /// What is there now.
    fn there(&mut self, most: usize) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        while records.len() < most {
            // Each record is given back to the kernel as soon as it is copied.
            let Some(record) = self.map.next() else { break };
            records.push(record.to_vec());
        }
        records
    }

    /// Until something is there, or the time is over.
    fn wait(&self, wait: Duration) -> Result<(), KernelError> {
        let mut place =
            libc::pollfd { fd: self.map.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let wait = libc::c_int::try_from(wait.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: one live structure, as the count says; the descriptor is open for as long as
        // `self` is.
        if unsafe { libc::poll(&raw mut place, 1, wait) } >= 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            error => Err(os(format!("wait for {}", self.path.display()), error)),
        }
    }
}
