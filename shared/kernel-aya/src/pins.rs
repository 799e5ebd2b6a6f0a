//! What is pinned where. One directory a chain:
//!
//! ```text
//! <root>/<interface>/<hook>/link
//!                          /gen-<N>/prog
//!                                  /cells
//!                                  /meta
//!                                  /shares
//!                                  /maps/<member>/<map>
//!                   /clsact/<interface's index>
//! <root>/@netns/<network namespace>/<interface>/<hook>/…
//! <root>/@shared/<interface, <interface>@<network namespace>, or "@host">/<map>
//! ```
//!
//! Chains of the loader's own network namespace lie at the root, those of others below `@netns`.
//!
//! bpffs takes no '.' in a name (`bpf_lookup`: reserved for its own use), so names are escaped: what
//! is not a letter, a digit, '_' or '-' becomes '%' and two hexadecimal digits.

use crate::sys::{self, Kind};
use canopy_api::{ChainKey, InterfaceName, Netns, ProgramName};
use canopy_kernel::{KernelError, ShareScope};
use nix::sys::{
    statfs::{BPF_FS_MAGIC, statfs},
    statvfs::{FsFlags, statvfs},
};
use std::{
    fmt::Write as _,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

/// The directory of maps that several chains use. Cannot be an interface's: '@' is escaped there.
const SHARED: &str = "@shared";
const HOST: &str = "@host";
/// The directory of what is in other network namespaces; neither can it be an interface's.
const NETNS: &str = "@netns";

/// Where everything of one bpffs root lies.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The layout under `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory of everything.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the root, on bpffs.
    pub(crate) fn claim(&self) -> Result<(), KernelError> {
        // The nearest directory that is there must be on bpffs, else this would fill a disk with
        // directories in which nothing can be pinned.
        let there = self.root.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
        let kind = statfs(there)
            .map_err(|error| os(format!("look at {}", there.display()), error.into()))?;
        if kind.filesystem_type() != BPF_FS_MAGIC {
            return Err(KernelError::Unsupported {
                what: format!("{} is not on a BPF file system", self.root.display()),
                remedy: "mount one: mount -t bpf bpf /sys/fs/bpf".to_owned(),
            });
        }
        make_dir(&self.root)
    }

    /// Refuses a file system that is mounted read-only: a pin on it can be neither made nor opened.
    pub(crate) fn ensure_writable(&self) -> Result<(), KernelError> {
        match sys::timed(|| statvfs(&self.root)) {
            Ok(found) if found.flags().contains(FsFlags::ST_RDONLY) => {
                Err(KernelError::Unsupported {
                    what: format!("{} is mounted read-only", self.root.display()),
                    remedy: "mount it for writing: mount -o remount,rw".to_owned(),
                })
            }
            Ok(_) => Ok(()),
            Err(error) => Err(os(format!("look at {}", self.root.display()), error.into())),
        }
    }

    /// The directory of an interface's chains.
    fn interface(&self, key: &ChainKey) -> PathBuf {
        let of = match &key.netns {
            Some(netns) => self.root.join(NETNS).join(escape(&netns.to_string())),
            None => self.root.clone(),
        };
        of.join(escape(key.interface.as_str()))
    }

    /// The chain's directory.
    pub fn chain(&self, key: &ChainKey) -> PathBuf {
        self.interface(key).join(key.hook.to_string())
    }

    /// The chain's link.
    pub fn link(&self, key: &ChainKey) -> PathBuf {
        self.chain(key).join("link")
    }

    /// Says which interface, by index, has a clsact qdisc that was made for one of its chains: the
    /// name of a directory in this one. Beside the hooks, and none of them.
    pub fn qdisc(&self, key: &ChainKey) -> PathBuf {
        self.interface(key).join("clsact")
    }

    /// One generation's directory.
    pub fn generation(&self, key: &ChainKey, generation: u64) -> PathBuf {
        self.chain(key).join(format!("gen-{generation}"))
    }

    /// A generation's fused program.
    pub fn prog(&self, key: &ChainKey, generation: u64) -> PathBuf {
        self.generation(key, generation).join("prog")
    }

    /// A generation's accounting map.
    pub fn cells(&self, key: &ChainKey, generation: u64) -> PathBuf {
        self.generation(key, generation).join("cells")
    }

    /// The map of constants that a generation's members share.
    pub fn constants(&self, key: &ChainKey, generation: u64) -> PathBuf {
        self.generation(key, generation).join("constants")
    }

    /// The map that says who the generation's members are.
    pub fn meta(&self, key: &ChainKey, generation: u64) -> PathBuf {
        self.generation(key, generation).join("meta")
    }

    /// The map that says which maps the generation's members share; only there if they share some.
    pub(crate) fn shares(&self, key: &ChainKey, generation: u64) -> PathBuf {
        self.generation(key, generation).join("shares")
    }

    /// The directory of a member's maps.
    pub fn maps(&self, key: &ChainKey, generation: u64, member: &ProgramName) -> PathBuf {
        self.generation(key, generation).join("maps").join(escape(member.as_str()))
    }

    /// One map of a member.
    pub fn map(&self, key: &ChainKey, generation: u64, member: &ProgramName, map: &str) -> PathBuf {
        self.maps(key, generation, member).join(escape(map))
    }

    /// A map that several members or chains share.
    pub fn shared_map(&self, key: &ChainKey, scope: ShareScope, map: &str) -> PathBuf {
        let scope = match scope {
            ShareScope::Interface => self.shared_of(key),
            ShareScope::Host => self.shared().join(HOST),
        };
        scope.join(escape(map))
    }

    /// The directory of the maps that an interface's chains share.
    fn shared_of(&self, key: &ChainKey) -> PathBuf {
        let interface = escape(key.interface.as_str());
        self.shared().join(match &key.netns {
            Some(netns) => format!("{interface}@{}", escape(&netns.to_string())),
            None => interface,
        })
    }

    /// The directory of all shared maps, one directory a scope.
    pub fn shared(&self) -> PathBuf {
        self.root.join(SHARED)
    }

    /// Gives a chain's pins the name that its interface has now.
    pub(crate) fn rename(&self, from: &ChainKey, to: &InterfaceName) -> Result<(), KernelError> {
        let new = from.on(to.clone());
        let (old, new_dir) = (self.chain(from), self.chain(&new));
        if new_dir.exists() {
            return Err(KernelError::Conflict {
                what: format!("{} is there already", new_dir.display()),
                remedy: format!("remove the chain on {new}"),
            });
        }
        make_dir(&self.interface(&new))?;
        // What belongs to the interface goes with the first of its chains. The chain's own directory
        // is last: with it the chain has its new name.
        for (old, new) in [
            (self.qdisc(from), self.qdisc(&new)),
            (self.shared_of(from), self.shared_of(&new)),
            (old, new_dir),
        ] {
            if old.exists() && !new.exists() {
                fs::rename(&old, &new)
                    .map_err(|error| os(format!("rename {}", old.display()), error))?;
            }
        }
        prune(&self.root, &self.interface(from));
        Ok(())
    }

    /// The directory of what is in other network namespaces.
    pub(crate) fn other_netns(&self) -> PathBuf {
        self.root.join(NETNS)
    }

    /// Every chain that has a directory, in order. What else lies there is left alone.
    pub fn chains(&self) -> Result<Vec<ChainKey>, KernelError> {
        let mut keys = chains_in(&self.root, None)?;
        for (name, path) in readable(directories(&self.other_netns()))? {
            let netns = netns_of(&name);
            if netns.is_some() {
                keys.extend(chains_in(&path, netns.as_ref())?);
            }
        }
        keys.sort();
        Ok(keys)
    }

    /// Whether a chain has a directory.
    pub(crate) fn has(&self, key: &ChainKey) -> Result<bool, KernelError> {
        Ok(is_directory(&self.interface(key))? && is_directory(&self.chain(key))?)
    }

    /// Refuses where something that is not Canopy's has the name of a directory of the chain's.
    pub(crate) fn ensure_unobstructed(&self, key: &ChainKey) -> Result<(), KernelError> {
        let chain = self.chain(key);
        let below = chain.ancestors().take_while(|dir| *dir != self.root);
        for dir in below {
            let kind = sys::timed(|| fs::symlink_metadata(dir)).map(|found| found.is_dir());
            if kind.is_ok_and(|is_dir| !is_dir) {
                return Err(obstructed(dir));
            }
        }
        let link = self.link(key);
        if sys::timed(|| fs::symlink_metadata(&link)).is_ok()
            && open_kind(&link, Kind::Link)?.is_none()
        {
            return Err(obstructed(&link));
        }
        Ok(())
    }

    /// The chain's generations, oldest first: also one whose preparation was cut short (it has no
    /// `prog`), so that it can be discarded.
    pub fn generations(&self, key: &ChainKey) -> Result<Vec<u64>, KernelError> {
        let mut found: Vec<u64> = readable(directories(&self.chain(key)))?
            .into_iter()
            .filter_map(|(name, _)| generation_number(&name))
            .collect();
        found.sort_unstable();
        Ok(found)
    }

    /// The generation whose program has this kernel id.
    pub fn generation_of(&self, key: &ChainKey, prog_id: u32) -> Result<Option<u64>, KernelError> {
        // The newest is the likeliest.
        for generation in self.generations(key)?.into_iter().rev() {
            if let Some(prog) = open_kind(&self.prog(key, generation), Kind::Prog)? {
                let info = sys::prog_info(&prog).map_err(|error| {
                    os(format!("read the program of {key} generation {generation}"), error)
                })?;
                if info.id == prog_id {
                    return Ok(Some(generation));
                }
            }
        }
        Ok(None)
    }

    /// Every map below the generation's maps, as (member, map).
    pub fn member_maps(
        &self,
        key: &ChainKey,
        generation: u64,
    ) -> Result<Vec<(ProgramName, String)>, KernelError> {
        let mut found = Vec::new();
        for (member, map, path) in self.member_map_pins(key, generation)? {
            if open_kind(&path, Kind::Map)?.is_some() {
                found.push((member, map));
            }
        }
        Ok(found)
    }

    /// The same with the path of each, before anybody looked at what is pinned there.
    pub(crate) fn member_map_pins(
        &self,
        key: &ChainKey,
        generation: u64,
    ) -> Result<Vec<(ProgramName, String, PathBuf)>, KernelError> {
        let mut found = Vec::new();
        for (member, path) in directories(&self.generation(key, generation).join("maps"))? {
            let Some(member) = unescape(&member).and_then(|name| name.parse().ok()) else {
                continue;
            };
            let member: ProgramName = member;
            for (map, path) in list(&path)? {
                found.extend(unescape(&map).map(|map| (member.clone(), map, path)));
            }
        }
        found.sort();
        Ok(found)
    }
}

/// Every chain that has a directory in the one of a network namespace.
fn chains_in(dir: &Path, netns: Option<&Netns>) -> Result<Vec<ChainKey>, KernelError> {
    let mut keys = Vec::new();
    for (name, path) in directories(dir)? {
        let Some(interface) = interface_of(&name) else { continue };
        for (hook, _) in readable(directories(&path))? {
            if let Ok(hook) = hook.parse() {
                keys.push(ChainKey { netns: netns.cloned(), interface: interface.clone(), hook });
            }
        }
    }
    Ok(keys)
}

/// The interface whose chains a directory of this name has.
pub(crate) fn interface_of(name: &str) -> Option<InterfaceName> {
    unescape(name)?.parse().ok()
}

/// The network namespace whose chains a directory of this name has.
pub(crate) fn netns_of(name: &str) -> Option<Netns> {
    let netns: Netns = unescape(name)?.parse().ok()?;
    (escape(&netns.to_string()) == name).then_some(netns)
}

/// The number of the generation whose directory has this name.
pub(crate) fn generation_number(name: &str) -> Option<u64> {
    let generation = name.strip_prefix("gen-")?.parse().ok()?;
    (format!("gen-{generation}") == name).then_some(generation)
}

/// A name bpffs takes, from any name.
pub fn escape(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02x}");
        }
    }
    out
}

/// The name that [`escape`] was given; `None` for what it cannot have made.
pub fn unescape(name: &str) -> Option<String> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'%' {
            let (digits, tail) = tail.split_at_checked(2)?;
            out.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = tail;
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    let out = String::from_utf8(out).ok()?;
    (escape(&out) == name).then_some(out)
}

/// The entries of a directory by name; none when it is not there, or is no directory.
pub(crate) fn list(dir: &Path) -> Result<Vec<(String, PathBuf)>, KernelError> {
    let entries = entries(dir)?.into_iter();
    let named = entries.filter_map(|entry| Some((entry.name?, entry.path)));
    Ok(named.collect())
}

/// The directories in a directory by name; what else lies there, links to others among it, is none of ours.
pub(crate) fn directories(dir: &Path) -> Result<Vec<(String, PathBuf)>, KernelError> {
    let entries = entries(dir)?.into_iter().filter(|entry| entry.is_dir);
    let named = entries.filter_map(|entry| Some((entry.name?, entry.path)));
    Ok(named.collect())
}

/// What is in a directory that we may not read is none of ours.
fn readable<T: Default>(listed: Result<T, KernelError>) -> Result<T, KernelError> {
    match listed {
        Err(KernelError::Os { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
            Ok(T::default())
        }
        listed => listed,
    }
}

/// What lies in a directory.
pub(crate) struct Entry {
    /// `None` for what is no text.
    pub(crate) name: Option<String>,
    pub(crate) path: PathBuf,
    /// Whether it is a directory itself, not a link to one.
    pub(crate) is_dir: bool,
}

/// What lies in a directory, in order; nothing when it is not there, or is no directory.
pub(crate) fn entries(dir: &Path) -> Result<Vec<Entry>, KernelError> {
    let failed = |error| os(format!("list {}", dir.display()), error);
    let entries: Vec<_> = match sys::timed(|| fs::read_dir(dir).map(Iterator::collect)) {
        Ok(entries) => entries,
        Err(error) if is_absence(&error) => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry: fs::DirEntry = entry.map_err(failed)?;
        found.push(Entry {
            name: entry.file_name().into_string().ok(),
            path: entry.path(),
            is_dir: entry.file_type().is_ok_and(|kind| kind.is_dir()),
        });
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn is_directory(path: &Path) -> Result<bool, KernelError> {
    match sys::timed(|| fs::symlink_metadata(path)) {
        Ok(found) => Ok(found.is_dir()),
        Err(error) if is_absence(&error) => Ok(false),
        Err(error) => Err(os(format!("look at {}", path.display()), error)),
    }
}

/// Something that is not Canopy's has a name that is needed.
fn obstructed(path: &Path) -> KernelError {
    KernelError::Conflict {
        what: format!("{} is in the way: it is nothing of Canopy's", path.display()),
        remedy: format!("find out whose it is, and move or remove it: {}", path.display()),
    }
}

/// Makes a directory and its parents.
pub fn make_dir(dir: &Path) -> Result<(), KernelError> {
    sys::timed(|| fs::create_dir_all(dir))
        .map_err(|error| os(format!("make {}", dir.display()), error))
}

/// Pins an object; what had that name before is unpinned.
///
/// Whoever opens the path meanwhile gets the old object or the new one: bpffs renames in one step.
pub fn pin(object: &impl AsFd, path: &Path) -> Result<(), KernelError> {
    let failed = |error| os(format!("pin {}", path.display()), error);
    let new = unfinished(path);
    remove_file(&new)?;
    sys::obj_pin(object, &new).map_err(failed)?;
    sys::timed(|| fs::rename(&new, path)).map_err(failed)
}

/// Pins an object in a directory that is not in use yet, where nothing has that name.
pub fn pin_first(object: &impl AsFd, path: &Path) -> Result<(), KernelError> {
    sys::obj_pin(object, path).map_err(|error| os(format!("pin {}", path.display()), error))
}

/// Where an object is pinned on its way to `path`.
pub fn unfinished(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}%new"))
}

/// Opens a pinned object; `None` when the pin is not there.
pub fn open(path: &Path) -> Result<Option<OwnedFd>, KernelError> {
    match sys::obj_get(path) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(os(format!("open {}", path.display()), error)),
    }
}

/// Opens a pinned object of a kind; `None` when nothing is pinned there, or something else is.
pub(crate) fn open_kind(path: &Path, kind: Kind) -> Result<Option<OwnedFd>, KernelError> {
    match open(path) {
        Ok(Some(fd)) => {
            Ok(Some(fd).filter(|fd| sys::kind_of(fd).is_none_or(|found| found == kind)))
        }
        Ok(None) => Ok(None),
        Err(error) => {
            // A directory, or a link that leads astray.
            let found = sys::timed(|| fs::symlink_metadata(path));
            let other = match &found {
                Ok(found) => !found.is_file(),
                Err(error) => is_absence(error),
            };
            if other { Ok(None) } else { Err(error) }
        }
    }
}

/// Removes a file, if it is there.
pub fn remove_file(path: &Path) -> Result<(), KernelError> {
    match sys::timed(|| fs::remove_file(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(os(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// Removes a directory with all in it, if it is there.
pub fn remove_tree(path: &Path) -> Result<(), KernelError> {
    match sys::timed(|| fs::remove_dir_all(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(os(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// Removes empty directories from `dir` upwards, as far as below `root`.
pub fn prune(root: &Path, dir: &Path) {
    for dir in dir.ancestors().take_while(|dir| *dir != root && dir.starts_with(root)) {
        // Not empty: somebody needs it, and so all above.
        if sys::timed(|| fs::remove_dir(dir)).is_err() {
            return;
        }
    }
}

/// A failed call.
pub(crate) fn os(operation: String, source: io::Error) -> KernelError {
    KernelError::Os { operation, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use canopy_api::Hook;

    #[test]
    fn a_name_bpffs_refuses_is_escaped_and_comes_back() {
        for name in ["eth0.100", "a%2eb", "veth_a-1", "x@if2", "ü", "%", ".rodata.str1.1"] {
            let escaped = escape(name);
            assert!(!escaped.contains('.'), "{escaped}");
            assert_eq!(unescape(&escaped).as_deref(), Some(name));
        }
        for foreign in ["@shared", "link%new", "a.b", "%2", "%zz", "%61"] {
            assert_eq!(unescape(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn interfaces_do_not_collide_with_our_own_directories() {
        let pins = Pins::new("/x");
        let interface: InterfaceName = "@shared".parse().unwrap();
        let mut key = ChainKey::new(interface, Hook::Xdp);
        assert_eq!(pins.link(&key), Path::new("/x/%40shared/xdp/link"));
        assert_eq!(
            pins.shared_map(&key, ShareScope::Interface, "m.x"),
            Path::new("/x/@shared/%40shared/m%2ex")
        );
        key.netns = Some("/run/a.b".parse().unwrap());
        assert_eq!(pins.link(&key), Path::new("/x/@netns/%2frun%2fa%2eb/%40shared/xdp/link"));
        assert_eq!(
            pins.shared_map(&key, ShareScope::Interface, "m.x"),
            Path::new("/x/@shared/%40shared@%2frun%2fa%2eb/m%2ex")
        );
    }

    #[test]
    fn only_the_name_that_is_given_is_a_generations() {
        assert_eq!(generation_number("gen-12"), Some(12));
        for other in ["gen-012", "gen-+12", "gen-", "gen-x", "gen-12 ", "Gen-1", "12"] {
            assert_eq!(generation_number(other), None, "{other}");
        }
    }

    #[test]
    fn the_longest_namespace_is_one_name_still() {
        let pins = Pins::new("/x");
        let netns = format!("/{}", ".a".repeat(32)).chars().take(64).collect::<String>();
        let interface = ".".repeat(15);
        let key = ChainKey {
            netns: Some(netns.replace('a', ".").replacen("..", "a.", 1).parse().unwrap()),
            interface: interface.parse().unwrap(),
            hook: Hook::Xdp,
        };
        for path in [pins.link(&key), pins.shared_map(&key, ShareScope::Interface, "m")] {
            for part in &path {
                assert!(part.len() <= 255, "{}", path.display());
            }
        }
    }
}
