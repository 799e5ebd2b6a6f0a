//! Reading and writing the maps of members.

use crate::{
    AyaKernel,
    map_pages::{self, PageError},
    pins::{self, os},
    sys::{self, Map},
};
use canopy_api::ChainKey;
use canopy_kernel::{
    KernelError, MapAccess, MapEntry, MapKind, MapPage, MapPlace, MapShape, MemberMap, WriteWhen,
};
use std::{io, path::PathBuf};

/// The maps of a generation's members; see [`canopy_kernel::Kernel::maps`].
pub(crate) fn maps(
    kernel: &AyaKernel,
    key: &ChainKey,
    generation: u64,
) -> Result<Vec<MemberMap>, KernelError> {
    let mut found = Vec::new();
    for (member, name) in kernel.pins.member_maps(key, generation)? {
        let path = kernel.pins.map(key, generation, &member, &name);
        // Unpinned by somebody in this moment: it is pinned again at the next check.
        let Some(fd) = pins::open(&path)? else { continue };
        let failed = |error| os(format!("read {}", path.display()), error);
        let more = sys::map_state(&fd).map_err(failed)?;
        let map = Map::new(fd).map_err(failed)?;
        let info = map.info();
        found.push(MemberMap {
            member,
            name,
            id: info.id,
            shape: MapShape {
                kind: MapKind(info.map_type),
                key_size: info.key_size,
                value_size: info.value_size,
                max_entries: info.max_entries,
                flags: info.flags,
                frozen: more.frozen,
                values: map.parts(),
            },
            memory: more.memory,
        });
    }
    Ok(found)
}

/// A member's map, open.
struct Open {
    path: PathBuf,
    map: Map,
    kind: MapKind,
}

impl Open {
    fn new(kernel: &AyaKernel, place: MapPlace<'_>) -> Result<Self, KernelError> {
        let MapPlace { key, generation, member, map } = place;
        let path = kernel.pins.map(key, generation, member, map);
        let failed = |error| os(format!("open {}", path.display()), error);
        let fd = pins::open(&path)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let map = Map::new(fd).map_err(failed)?;
        let kind = MapKind(map.info().map_type);
        Ok(Self { path, map, kind })
    }

    fn failed(&self, what: &str, error: io::Error) -> KernelError {
        // ENOTSUPP: the kernel's own, not in any header of user space.
        const ENOTSUPP: i32 = 524;
        match error.raw_os_error() {
            Some(ENOTSUPP | libc::EOPNOTSUPP | libc::EPERM) => KernelError::Unsupported {
                what: format!(
                    "the kernel does not {what} entries of this map: it is of type {}{}",
                    self.kind.name(),
                    if error.raw_os_error() == Some(libc::EPERM) { " and closed" } else { "" }
                ),
                remedy: "`canopy map list` says what can be done with each map".to_owned(),
            },
            Some(libc::EINVAL) => KernelError::Refused {
                member: None,
                reason: format!(
                    "the kernel does not {what} such an entry of a map of type {}",
                    self.kind.name()
                ),
                remedy: "look at the key: a prefix is not longer than its address, for instance"
                    .to_owned(),
                log: None,
            },
            _ => os(format!("{what} an entry of {}", self.path.display()), error),
        }
    }
}

/// The value under a key; see [`canopy_kernel::Kernel::map_lookup`].
pub(crate) fn lookup(
    kernel: &AyaKernel,
    place: MapPlace<'_>,
    entry: &[u8],
) -> Result<Option<Vec<Vec<u8>>>, KernelError> {
    let open = Open::new(kernel, place)?;
    let value = open.map.lookup(entry).map_err(|error| open.failed("show", error))?;
    Ok(value.map(|value| open.map.split(&value)))
}

/// Writes an entry; see [`canopy_kernel::Kernel::map_update`].
pub(crate) fn update(
    kernel: &AyaKernel,
    place: MapPlace<'_>,
    entry: &[u8],
    values: &[Vec<u8>],
    when: WriteWhen,
) -> Result<(), KernelError> {
    let open = Open::new(kernel, place)?;
    // BPF_ANY, BPF_NOEXIST, BPF_EXIST
    let flags = match when {
        WriteWhen::Any => 0,
        WriteWhen::Absent => 1,
        WriteWhen::Present => 2,
    };
    let conflict =
        |what: String, remedy: &str| Err(KernelError::Conflict { what, remedy: remedy.to_owned() });
    match open.map.update(entry, &open.map.join(values), flags) {
        Ok(()) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::EEXIST) => {
                conflict("the entry is there already".to_owned(), "read it, then decide anew")
            }
            Some(libc::ENOENT) => {
                conflict("there is no such entry".to_owned(), "read the map, then decide anew")
            }
            Some(libc::E2BIG | libc::ENOSPC) => {
                let room = open.map.info().max_entries;
                let what = if open.kind.is_array() {
                    format!("it has the entries 0 to {}", room.saturating_sub(1))
                } else {
                    format!("it is full: it has room for {room} entries")
                };
                conflict(what, "delete entries, or raise max_entries in the package's manifest")
            }
            _ => Err(open.failed("change", error)),
        },
    }
}

/// Removes an entry; see [`canopy_kernel::Kernel::map_delete`].
pub(crate) fn delete(
    kernel: &AyaKernel,
    place: MapPlace<'_>,
    entry: &[u8],
) -> Result<bool, KernelError> {
    let open = Open::new(kernel, place)?;
    open.map.delete(entry).map_err(|error| open.failed("delete", error))
}

/// Some entries; see [`canopy_kernel::Kernel::map_page`].
pub(crate) fn page(
    kernel: &AyaKernel,
    place: MapPlace<'_>,
    after: Option<&[u8]>,
    limit: usize,
) -> Result<MapPage, KernelError> {
    let open = Open::new(kernel, place)?;
    match open.kind.access() {
        MapAccess::Peek => {
            let value = open.map.lookup(&[]).map_err(|error| open.failed("show", error))?;
            let entries: Vec<MapEntry> =
                value.into_iter().map(|value| (Vec::new(), open.map.split(&value))).collect();
            Ok(MapPage { entries, next: None })
        }
        _ => map_pages::page(&open.map, after, limit).map_err(|error| match error {
            PageError::Kernel(error) => open.failed("show", error),
            PageError::Changing => KernelError::Conflict {
                what: "the map changes faster than it can be read".to_owned(),
                remedy: "read it again, or on the host: `bpftool map dump`".to_owned(),
            },
        }),
    }
}
