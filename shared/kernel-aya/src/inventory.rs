//! What a generation's program takes with it: a list of its maps and of where each is pinned, in a map
//! that is bound to the program. Whoever has the program and `CAP_SYS_ADMIN` finds by it what the pins
//! would tell, when those are gone or hidden.

use crate::{
    object_maps::{ARRAY, RDONLY_PROG},
    pins::{self, Pins},
    sys,
};
use canopy_api::ChainKey;
use canopy_kernel::{KernelError, ShareScope};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

/// The map's name.
const NAME: &str = "canopy.pins";
/// First word of its text, and the format's number.
const HEAD: &str = "canopy-pins 1";

/// Where a map is pinned: below what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    Generation,
    Interface,
    Host,
}

impl Base {
    const ALL: [Self; 3] = [Self::Generation, Self::Interface, Self::Host];

    fn word(self) -> &'static str {
        match self {
            Self::Generation => "generation",
            Self::Interface => "interface",
            Self::Host => "host",
        }
    }

    fn dir(self, pins: &Pins, key: &ChainKey, generation: u64) -> PathBuf {
        let scope = match self {
            Self::Generation => return pins.generation(key, generation),
            Self::Interface => ShareScope::Interface,
            Self::Host => ShareScope::Host,
        };
        pins.shared_map(key, scope, "x").parent().map(Path::to_owned).unwrap_or_default()
    }
}

/// Has the maps that a prepared generation pinned live as long as its program, with the list of them.
/// Without it a chain runs as well: what fails is only told.
pub(crate) fn bind(pins: &Pins, key: &ChainKey, generation: u64, prog: &OwnedFd) {
    if let Err(error) = try_bind(pins, key, generation, prog) {
        tracing::debug!(%key, generation, %error, "the program has no list of its pins");
    }
}

fn try_bind(
    pins: &Pins,
    key: &ChainKey,
    generation: u64,
    prog: &OwnedFd,
) -> Result<(), KernelError> {
    let failed = |error| pins::os(format!("bind the maps of {key}"), error);
    let mut bound = sys::prog_info(prog).map_err(failed)?.map_ids;
    let mut text = format!("{HEAD}\n");
    let mut add = |base: Base, id: u32, name: &Path| {
        use std::fmt::Write as _;
        let _ = writeln!(text, "{id} {} {}", base.word(), name.display());
    };
    let dir = pins.generation(key, generation);
    let mut paths = vec![
        pins.cells(key, generation),
        pins.constants(key, generation),
        pins.meta(key, generation),
    ];
    let members = pins.member_map_pins(key, generation)?;
    paths.extend(members.into_iter().map(|(_, _, path)| path));
    for path in paths {
        let Some(map) = pins::open_kind(&path, sys::Kind::Map)? else { continue };
        let id = sys::map_info(&map).map_err(failed)?.id;
        if !bound.contains(&id) {
            sys::prog_bind_map(prog, &map).map_err(failed)?;
            bound.push(id);
        }
        if let Ok(name) = path.strip_prefix(&dir) {
            add(Base::Generation, id, name);
        }
    }
    for base in [Base::Interface, Base::Host] {
        for (name, path) in pins::list(&base.dir(pins, key, generation))? {
            let Some(map) = pins::open_kind(&path, sys::Kind::Map)? else { continue };
            let id = sys::map_info(&map).map_err(failed)?.id;
            if bound.contains(&id) {
                add(base, id, Path::new(&name));
            }
        }
    }
    let map = write(&text).map_err(failed)?;
    sys::prog_bind_map(prog, &map).map_err(failed)
}

fn write(text: &str) -> io::Result<OwnedFd> {
    let map = sys::Map::new(sys::map_create(&sys::MapCreate {
        map_type: ARRAY,
        key_size: 4,
        value_size: u32::try_from(text.len()).map_err(io::Error::other)?,
        max_entries: 1,
        flags: RDONLY_PROG,
        name: NAME,
        ..sys::MapCreate::default()
    })?)?;
    map.update(&0u32.to_ne_bytes(), text.as_bytes(), 0)?;
    map.freeze()?;
    Ok(map.into_fd())
}

/// Pins a generation again, from its program: its maps by the program's list, the program last. Needs
/// `CAP_SYS_ADMIN`.
pub(crate) fn restore(
    pins: &Pins,
    key: &ChainKey,
    generation: u64,
    prog: &OwnedFd,
) -> Result<(), KernelError> {
    let failed = |error| pins::os(format!("find the maps of {key}"), error);
    let ids = sys::prog_info(prog).map_err(failed)?.map_ids;
    let mut maps = Vec::new();
    let mut list = None;
    for id in ids {
        let map = sys::fd_by_id(sys::Kind::Map, id).map_err(failed)?;
        if sys::map_info(&map).map_err(failed)?.name == NAME {
            let map = sys::Map::new(map).map_err(failed)?;
            list = map.lookup(&0u32.to_ne_bytes()).map_err(failed)?;
        } else {
            maps.push((id, map));
        }
    }
    let list = list.and_then(|list| String::from_utf8(list).ok()).as_deref().and_then(read);
    let Some(list) = list else {
        return Err(failed(io::Error::other("the program has no list of its pins")));
    };
    for (id, base, name) in list {
        let Some((_, map)) = maps.iter().find(|(of, _)| *of == id) else { continue };
        pin_missing(map, &base.dir(pins, key, generation).join(name))?;
    }
    // What has its program is whole.
    pin_missing(prog, &pins.prog(key, generation))
}

/// Pins an object where nothing is.
pub(crate) fn pin_missing(object: &impl AsFd, path: &Path) -> Result<(), KernelError> {
    if sys::timed(|| path.symlink_metadata()).is_ok() {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        pins::make_dir(dir)?;
    }
    pins::pin(object, path)
}

/// What a list says; names that lead elsewhere are left out.
fn read(text: &str) -> Option<Vec<(u32, Base, PathBuf)>> {
    let mut lines = text.lines();
    if lines.next() != Some(HEAD) {
        return None;
    }
    let entries = lines.filter_map(|line| {
        let mut words = line.splitn(3, ' ');
        let id = words.next()?.parse().ok()?;
        let word = words.next()?;
        let base = Base::ALL.into_iter().find(|base| base.word() == word)?;
        let name = PathBuf::from(words.next()?);
        let inside = name.components().all(|part| matches!(part, Component::Normal(_)));
        (inside && name.components().next().is_some()).then_some((id, base, name))
    });
    Some(entries.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_leads_nowhere_else() {
        let text = "canopy-pins 1\n3 generation cells\n4 generation maps/a/b\n5 interface m%2ex\n\
                    6 host ../../x\n7 host /etc\n8 nowhere x\nx generation y\n9 generation ";
        let read: Vec<_> = read(text).unwrap();
        assert_eq!(
            read,
            [
                (3, Base::Generation, PathBuf::from("cells")),
                (4, Base::Generation, PathBuf::from("maps/a/b")),
                (5, Base::Interface, PathBuf::from("m%2ex")),
            ]
        );
        assert_eq!(super::read("something else"), None);
    }
}
