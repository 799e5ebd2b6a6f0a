//! What lies among our pins and is nothing of ours: it is reported and left alone.

use crate::{
    pins::{self, Entry, Pins},
    sys::Kind,
};
use canopy_api::{Hook, ProgramName};
use canopy_kernel::KernelError;
use std::path::{Path, PathBuf};

/// At most so many are told: whoever cleans up sees the next ones afterwards.
const MOST: usize = 64;

/// What the kernel itself puts at the top of a BPF file system.
const KERNELS: [&str; 2] = ["maps.debug", "progs.debug"];

/// Every path below the root that is not one of ours; see [`canopy_kernel::Kernel::stray_pins`].
pub(crate) fn stray_pins(pins: &Pins) -> Result<Vec<PathBuf>, KernelError> {
    let mut found = Vec::new();
    for entry in pins::entries(pins.root())? {
        let name = entry.name.as_deref().unwrap_or_default();
        if entry.is_dir && entry.path == pins.shared() {
            shared(&entry.path, &mut found);
        } else if entry.is_dir && entry.path == pins.other_netns() {
            for netns in list(&entry.path, &mut found) {
                let known =
                    netns.name.as_deref().is_some_and(|name| pins::netns_of(name).is_some());
                if netns.is_dir && known {
                    for entry in list(&netns.path, &mut found) {
                        interface(&entry, &mut found);
                    }
                } else {
                    found.push(netns.path);
                }
            }
        } else if !name.starts_with("@probe-") && !KERNELS.contains(&name) {
            interface(&entry, &mut found);
        }
    }
    found.sort();
    found.truncate(MOST);
    Ok(found)
}

/// What is in a directory; one that cannot be read is a stray itself.
fn list(dir: &Path, found: &mut Vec<PathBuf>) -> Vec<Entry> {
    pins::entries(dir).unwrap_or_else(|_| {
        found.push(dir.to_owned());
        Vec::new()
    })
}

fn shared(dir: &Path, found: &mut Vec<PathBuf>) {
    for scope in list(dir, found) {
        if !scope.is_dir {
            found.push(scope.path);
            continue;
        }
        for map in list(&scope.path, found) {
            pin(&map, &["*"], Kind::Map, found);
        }
    }
}

fn interface(entry: &Entry, found: &mut Vec<PathBuf>) {
    let known = entry.name.as_deref().is_some_and(|name| pins::interface_of(name).is_some());
    if !entry.is_dir || !known {
        found.push(entry.path.clone());
        return;
    }
    let before = found.len();
    let inside = list(&entry.path, found);
    if inside.is_empty() && found.len() == before {
        // Ours go with what was in them.
        found.push(entry.path.clone());
    }
    for entry in inside {
        match entry.name.as_deref() {
            Some("clsact") if entry.is_dir => {
                for index in list(&entry.path, found) {
                    let number =
                        index.name.as_deref().is_some_and(|name| name.parse::<u32>().is_ok());
                    if !index.is_dir || !number {
                        found.push(index.path);
                    }
                }
            }
            Some(name) if entry.is_dir && name.parse::<Hook>().is_ok() => chain(&entry.path, found),
            _ => found.push(entry.path),
        }
    }
}

fn chain(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in list(dir, found) {
        let name = entry.name.as_deref().unwrap_or_default();
        if entry.is_dir && pins::generation_number(name).is_some() {
            generation(&entry.path, found);
        } else {
            pin(&entry, &["link"], Kind::Link, found);
        }
    }
}

fn generation(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in list(dir, found) {
        match entry.name.as_deref() {
            Some("maps") if entry.is_dir => {
                for member in list(&entry.path, found) {
                    let name = member.name.as_deref().and_then(pins::unescape);
                    let known = name.is_some_and(|name| name.parse::<ProgramName>().is_ok());
                    if !member.is_dir || !known {
                        found.push(member.path);
                        continue;
                    }
                    for map in list(&member.path, found) {
                        pin(&map, &["*"], Kind::Map, found);
                    }
                }
            }
            Some("prog" | "prog%new") => pin(&entry, &["prog"], Kind::Prog, found),
            _ => pin(&entry, &["cells", "constants", "meta"], Kind::Map, found),
        }
    }
}

/// A pin of ours has one of these names ("*": any that is escaped), perhaps not quite yet, and its kind.
fn pin(entry: &Entry, names: &[&str], kind: Kind, found: &mut Vec<PathBuf>) {
    let name = entry.name.as_deref().unwrap_or_default();
    let name = name.strip_suffix("%new").unwrap_or(name);
    let is_ours = names.contains(&name) || (names == ["*"] && pins::unescape(name).is_some());
    // What went meanwhile was ours.
    let other = || {
        !matches!(pins::open_kind(&entry.path, kind), Ok(Some(_)))
            && entry.path.symlink_metadata().is_ok()
    };
    if entry.is_dir || !is_ours || other() {
        found.push(entry.path.clone());
    }
}
