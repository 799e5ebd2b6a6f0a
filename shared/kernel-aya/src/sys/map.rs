//! Maps: create, read, write, freeze.

use super::{
    Cmd, OBJ_NAME_LEN, address, address_mut, bpf, bpf_fd, obj_info, object_name, raw, text,
};
use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::OnceLock,
};

/// A map for the kernel to make.
#[derive(Clone, Copy, Debug, Default)]
pub struct MapCreate<'a> {
    /// `enum bpf_map_type`.
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries at most.
    pub max_entries: u32,
    /// `BPF_F_…` of `BPF_MAP_CREATE`.
    pub flags: u32,
    /// Name; made fit for the kernel by [`object_name`].
    pub name: &'a str,
    /// The template of a map of maps.
    pub inner: Option<BorrowedFd<'a>>,
    /// Type information, with the ids of the key's and the value's type.
    pub btf: Option<(BorrowedFd<'a>, u32, u32)>,
    /// What some types take besides (`map_extra`).
    pub extra: u64,
    /// The memory node to be made on, with `BPF_F_NUMA_NODE`.
    pub numa_node: u32,
}

#[repr(C)]
struct MapCreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; OBJ_NAME_LEN],
    map_ifindex: u32,
    btf_fd: u32,
    btf_key_type_id: u32,
    btf_value_type_id: u32,
    btf_vmlinux_value_type_id: u32,
    map_extra: u64,
}

/// Makes a map (`BPF_MAP_CREATE`).
pub fn map_create(map: &MapCreate<'_>) -> io::Result<OwnedFd> {
    let (btf, btf_key_type_id, btf_value_type_id) =
        map.btf.as_ref().map_or((0, 0, 0), |(fd, key, value)| (raw(fd), *key, *value));
    let mut attr = MapCreateAttr {
        map_type: map.map_type,
        key_size: map.key_size,
        value_size: map.value_size,
        max_entries: map.max_entries,
        map_flags: map.flags,
        inner_map_fd: map.inner.as_ref().map_or(0, raw),
        numa_node: map.numa_node,
        map_name: object_name(map.name),
        map_ifindex: 0,
        btf_fd: btf,
        btf_key_type_id,
        btf_value_type_id,
        btf_vmlinux_value_type_id: 0,
        map_extra: map.extra,
    };
    // SAFETY: the layout is the kernel's and holds no address.
    unsafe { bpf_fd(Cmd::MapCreate, &mut attr) }
}

/// Gives an arena (`BPF_MAP_TYPE_ARENA`) its place in memory, which programs that use it are loaded for:
/// that of its first mapping. It keeps it when the mapping goes.
pub fn arena_place(map: &impl AsFd, pages: u32) -> io::Result<()> {
    let length = super::page_size() as usize * pages as usize;
    let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, map.as_fd().as_raw_fd());
    // SAFETY: a new mapping, where the kernel likes; nothing refers to it.
    let place =
        unsafe { libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_SHARED, fd, 0) };
    if place == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping that was just made, of this length; nothing was put there.
    match unsafe { libc::munmap(place, length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the kernel says about a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapInfo {
    /// Its id.
    pub id: u32,
    /// `enum bpf_map_type`.
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value (on one CPU).
    pub value_size: u32,
    /// Entries at most.
    pub max_entries: u32,
    /// `BPF_F_…`.
    pub flags: u32,
    /// What some types take besides (`map_extra`).
    pub extra: u64,
    /// Its name.
    pub name: String,
    /// Id of its type information; 0 for none.
    pub btf_id: u32,
    /// The key's type there.
    pub btf_key_type_id: u32,
    /// The value's type there.
    pub btf_value_type_id: u32,
}

#[repr(C)]
#[derive(Default)]
struct RawMapInfo {
    map_type: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    name: [u8; OBJ_NAME_LEN],
    ifindex: u32,
    btf_vmlinux_value_type_id: u32,
    netns_dev: u64,
    netns_ino: u64,
    btf_id: u32,
    btf_key_type_id: u32,
    btf_value_type_id: u32,
    btf_vmlinux_id: u32,
    map_extra: u64,
}

/// What the kernel says about a map.
pub fn map_info(map: &impl AsFd) -> io::Result<MapInfo> {
    let mut info = RawMapInfo::default();
    // SAFETY: laid out as `struct bpf_map_info`, which holds no address.
    unsafe { obj_info(map, &mut info) }?;
    Ok(MapInfo {
        id: info.id,
        map_type: info.map_type,
        key_size: info.key_size,
        value_size: info.value_size,
        max_entries: info.max_entries,
        flags: info.map_flags,
        extra: info.map_extra,
        name: text(&info.name),
        btf_id: info.btf_id,
        btf_key_type_id: info.btf_key_type_id,
        btf_value_type_id: info.btf_value_type_id,
    })
}

/// What the kernel says about a map only in `/proc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapState {
    /// Bytes of memory it takes (`memlock`; since 6.4 what it really takes).
    pub memory: Option<u64>,
    /// Whether it is closed to writes from user space.
    pub frozen: bool,
}

/// What the kernel says about a map of this process in `/proc`.
pub fn map_state(map: &impl AsFd) -> io::Result<MapState> {
    let text = fdinfo(map)?;
    Ok(MapState {
        memory: field(&text, "memlock").and_then(|bytes| bytes.parse().ok()),
        frozen: field(&text, "frozen") == Some("1"),
    })
}

/// Bytes of memory that a program or a map of this process takes; `None` where the kernel does not
/// say.
pub fn memory(object: &impl AsFd) -> io::Result<Option<u64>> {
    Ok(field(&fdinfo(object)?, "memlock").and_then(|bytes| bytes.parse().ok()))
}

fn fdinfo(object: &impl AsFd) -> io::Result<String> {
    let path = format!("/proc/self/fdinfo/{}", raw(object));
    super::timed(|| fs::read_to_string(path))
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
}

/// CPUs the kernel may ever have: a per-CPU value has one part for each.
pub fn possible_cpus() -> io::Result<usize> {
    // As long as the machine runs they are the same.
    static KNOWN: OnceLock<usize> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(*known);
    }
    let counted = count_cpus()?;
    Ok(*KNOWN.get_or_init(|| counted))
}

fn count_cpus() -> io::Result<usize> {
    let path = "/sys/devices/system/cpu/possible";
    let text = fs::read_to_string(path)?;
    let last = text.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<usize>().ok());
    last.map(|last| last + 1)
        .ok_or_else(|| io::Error::other(format!("{path}: not a list of CPUs: {text:?}")))
}

/// A map with its shape, so that no key or value of a wrong length reaches the kernel.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    info: MapInfo,
    /// Bytes of a value as bpf(2) transfers it.
    transfer: usize,
    cpus: usize,
}

/// Bytes from one CPU's part to the next.
fn stride(value_size: u32) -> usize {
    (value_size as usize).next_multiple_of(8)
}

// enum bpf_map_type: PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH, PERCPU_CGROUP_STORAGE
const PER_CPU: [u32; 4] = [5, 6, 10, 21];
// HASH, PERCPU_HASH, LRU_HASH, LRU_PERCPU_HASH, LPM_TRIE have keys that may be deleted meanwhile.

impl Map {
    /// Takes a map over, asking the kernel for its shape.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let info = map_info(&fd)?;
        let (transfer, cpus) = if PER_CPU.contains(&info.map_type) {
            let cpus = possible_cpus()?;
            (stride(info.value_size) * cpus, cpus)
        } else {
            (info.value_size as usize, 1)
        };
        Ok(Self { fd, info, transfer, cpus })
    }

    /// The same map by another descriptor.
    pub fn try_clone(&self) -> io::Result<Self> {
        let fd = self.fd.try_clone()?;
        Ok(Self { fd, info: self.info.clone(), transfer: self.transfer, cpus: self.cpus })
    }

    /// The map's shape.
    pub fn info(&self) -> &MapInfo {
        &self.info
    }

    /// Parts a value has: the possible CPUs for a per-CPU map, else 1.
    pub fn parts(&self) -> usize {
        self.cpus
    }

    /// Splits a value as transferred into one per CPU (one in all for other maps).
    pub fn split(&self, value: &[u8]) -> Vec<Vec<u8>> {
        if !PER_CPU.contains(&self.info.map_type) {
            return vec![value.to_vec()];
        }
        value
            .chunks_exact(stride(self.info.value_size).max(1))
            .filter_map(|part| part.get(..self.info.value_size as usize))
            .map(<[u8]>::to_vec)
            .collect()
    }

    /// Puts values together as they are transferred, the opposite of [`Self::split`].
    pub fn join(&self, values: &[Vec<u8>]) -> Vec<u8> {
        if !PER_CPU.contains(&self.info.map_type) {
            return values.concat();
        }
        let mut whole = Vec::with_capacity(self.transfer);
        for value in values {
            whole.extend_from_slice(value);
            whole.resize(whole.len().next_multiple_of(8), 0);
        }
        whole
    }

    /// The value under a key, as transferred (per-CPU maps: every CPU's part, see [`Self::split`]);
    /// `None` when there is none.
    pub fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.check_key(key)?;
        let mut value = vec![0; self.transfer];
        let mut attr = ElementAttr {
            map_fd: raw(&self.fd),
            padding: 0,
            key: address(key),
            value: address_mut(&mut value),
            flags: 0,
        };
        // SAFETY: the layout is the kernel's; `key` and `value` have the lengths this map's shape
        // makes the kernel read and write, and outlive the call.
        match unsafe { bpf(Cmd::MapLookup, &mut attr) } {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes one entry. `value` is as transferred; for a per-CPU map one CPU's value will do and
    /// is written to each.
    pub fn update(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        self.check_key(key)?;
        let spread;
        let value = if value.len() == self.transfer {
            value
        } else if self.cpus > 1 && value.len() == self.info.value_size as usize {
            let mut one = value.to_vec();
            one.resize(stride(self.info.value_size), 0);
            spread = one.repeat(self.cpus);
            &spread
        } else {
            return Err(wrong_length("value", self.transfer, value.len()));
        };
        let mut attr = ElementAttr {
            map_fd: raw(&self.fd),
            padding: 0,
            key: address(key),
            value: address(value),
            flags,
        };
        // SAFETY: as in `lookup`; the kernel only reads.
        unsafe { bpf(Cmd::MapUpdate, &mut attr) }.map(drop)
    }

    /// Removes one entry; whether there was one.
    pub fn delete(&self, key: &[u8]) -> io::Result<bool> {
        self.check_key(key)?;
        let mut attr = ElementAttr {
            map_fd: raw(&self.fd),
            padding: 0,
            key: address(key),
            value: 0,
            flags: 0,
        };
        // SAFETY: as in `lookup`; the kernel only reads the key.
        match unsafe { bpf(Cmd::MapDelete, &mut attr) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The key after `key` in the kernel's order, the first for `None`. A key that is gone counts as
    /// before the first.
    pub fn next_key(&self, key: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        if let Some(key) = key {
            self.check_key(key)?;
        }
        let mut next = vec![0; self.info.key_size as usize];
        let mut attr = ElementAttr {
            map_fd: raw(&self.fd),
            padding: 0,
            key: key.map_or(0, address),
            value: address_mut(&mut next),
            flags: 0,
        };
        // SAFETY: as in `lookup`; the kernel writes one key to `next`.
        match unsafe { bpf(Cmd::MapGetNextKey, &mut attr) } {
            Ok(_) => Ok(Some(next)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Some entries (`BPF_MAP_LOOKUP_BATCH`), values split, and where the next begin; `None` after the
    /// last. Of a hash map whole buckets: `ENOSPC` when one bucket has more than `most`.
    ///
    /// For hash maps, arrays and tries; kernels before 5.13 know it for the first two only.
    pub fn lookup_batch(&self, from: Option<&[u8]>, most: usize) -> io::Result<Batch> {
        // enum bpf_map_type: HASH, PERCPU_HASH, LRU_HASH, LRU_PERCPU_HASH give a bucket's number as
        // the place; ARRAY, PERCPU_ARRAY, LPM_TRIE a key.
        let place = match self.info.map_type {
            1 | 5 | 9 | 10 => 4,
            2 | 6 | 11 => self.info.key_size as usize,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        if let Some(from) = from.filter(|from| from.len() != place) {
            return Err(wrong_length("place", place, from.len()));
        }
        let key_size = self.info.key_size as usize;
        let room = |each: usize| most.checked_mul(each).ok_or(io::ErrorKind::OutOfMemory);
        let mut keys = vec![0_u8; room(key_size)?];
        let mut values = vec![0_u8; room(self.transfer)?];
        let mut next = vec![0_u8; place];
        let mut attr = BatchAttr {
            from: from.map_or(0, address),
            next: address_mut(&mut next),
            keys: address_mut(&mut keys),
            values: address_mut(&mut values),
            count: u32::try_from(most).map_err(io::Error::other)?,
            map_fd: raw(&self.fd),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: the layout is the kernel's; `from` and `next` have the length of the place that this
        // type of map takes and gives; `keys` and `values` have room for the `count` entries that the
        // kernel writes at most, each of the lengths of this map's shape; all outlive the call.
        let ended = match unsafe { bpf(Cmd::MapLookupBatch, &mut attr) } {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        let count = attr.count as usize;
        let entries = keys
            .chunks_exact(key_size.max(1))
            .zip(values.chunks_exact(self.transfer.max(1)))
            .take(count)
            .map(|(key, value)| (key.to_vec(), self.split(value)))
            .collect();
        Ok((entries, (!ended).then_some(next)))
    }

    /// Closes the map to writes from user space for good (`BPF_MAP_FREEZE`).
    pub fn freeze(&self) -> io::Result<()> {
        #[repr(C)]
        struct Attr {
            map_fd: u32,
        }
        // SAFETY: the layout is the kernel's and holds no address.
        unsafe { bpf(Cmd::MapFreeze, &mut Attr { map_fd: raw(&self.fd) }) }.map(drop)
    }

    /// The descriptor.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    fn check_key(&self, key: &[u8]) -> io::Result<()> {
        if key.len() == self.info.key_size as usize {
            Ok(())
        } else {
            Err(wrong_length("key", self.info.key_size as usize, key.len()))
        }
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn wrong_length(what: &str, want: usize, have: usize) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("a {what} of this map has {want} bytes, not {have}"),
    )
}

/// Entries of a map, values split, and where the next ones begin.
pub type Batch = (Vec<(Vec<u8>, Vec<Vec<u8>>)>, Option<Vec<u8>>);

#[repr(C)]
struct BatchAttr {
    from: u64,
    next: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}
