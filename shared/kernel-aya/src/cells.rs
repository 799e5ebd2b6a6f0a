//! Reading what a generation counted, and its members' maps.

use crate::{
    AyaKernel,
    map_pages::{self, PageError},
    meta::Meta,
    pins::{self, os},
    sys::Map,
};
use canopy_api::{ChainKey, ProgramName};
use canopy_kernel::{KernelError, MapEntry, MemberCells};
use std::{io, path::Path};

/// Exact accounting; see [`canopy_kernel::Kernel::cells`].
pub(crate) fn cells(
    kernel: &AyaKernel,
    key: &ChainKey,
    generation: u64,
) -> Result<Vec<MemberCells>, KernelError> {
    let failed = |error| os(format!("read the counters of {key} generation {generation}"), error);
    let meta = Meta::read(&kernel.pins.meta(key, generation)).map_err(failed)?;
    let map = open(&kernel.pins.cells(key, generation))?;
    let value = map
        .lookup(&0_u32.to_ne_bytes())
        .map_err(failed)?
        .ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let (names, proceed_on): (Vec<_>, Vec<_>) = meta.members.into_iter().unzip();
    let accounts = canopy_chain::decode(key.hook, &proceed_on, &sum(&map.split(&value)));
    Ok(names
        .into_iter()
        .zip(accounts)
        .map(|(name, account)| MemberCells {
            name,
            exits: account.exits,
            proceeds: account.proceeds,
        })
        .collect())
}

/// The cells of all CPUs together.
fn sum(cpus: &[Vec<u8>]) -> Vec<u64> {
    let mut cells = vec![0_u64; cpus.first().map_or(0, Vec::len) / 8];
    for cpu in cpus {
        let (counts, _) = cpu.as_chunks::<8>();
        for (cell, count) in cells.iter_mut().zip(counts) {
            *cell = cell.wrapping_add(u64::from_ne_bytes(*count));
        }
    }
    cells
}

/// A member's map; see [`canopy_kernel::Kernel::map_entries`].
///
/// A map that changes while it is read may show an entry twice or not at all, as for every reader of
/// a hash map.
pub(crate) fn map_entries(
    kernel: &AyaKernel,
    key: &ChainKey,
    generation: u64,
    member: &ProgramName,
    map: &str,
    limit: usize,
) -> Result<Vec<MapEntry>, KernelError> {
    let path = kernel.pins.map(key, generation, member, map);
    let map = open(&path)?;
    let failed = |error| os(format!("read {}", path.display()), error);
    map_pages::entries(&map, limit).map_err(|error| match error {
        PageError::Kernel(error) => failed(error),
        PageError::Changing => KernelError::Conflict {
            what: format!("{} changes faster than it can be read", path.display()),
            remedy: "read it again".to_owned(),
        },
    })
}

fn open(path: &Path) -> Result<Map, KernelError> {
    let failed = |error| os(format!("open {}", path.display()), error);
    let fd = pins::open(path)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    Map::new(fd).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_summed_over_cpus() {
        let cpu = |a: u64, b: u64| [a.to_ne_bytes(), b.to_ne_bytes()].concat();
        assert_eq!(sum(&[cpu(1, u64::MAX), cpu(2, 5)]), [3, 4]);
        assert_eq!(sum(&[]), [0_u64; 0]);
    }
}
