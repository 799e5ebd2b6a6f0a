//! Maps that several members or chains use together are pinned apart, by scope.
//!
//! Each generation pins the maps it uses, and says which of them it shares. The pin by scope is an
//! index beside: it leads to the map of the generations that run, follows when they are switched, and
//! is removed with the last generation that uses its map.

use crate::{
    map_settings::Claims,
    meta::{Meta, read_text, write_text},
    pins::{self, Pins, escape, unescape},
    sys,
};
use canopy_api::{ChainKey, ProgramName};
use canopy_kernel::{KernelError, ShareScope};
use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock, RwLockReadGuard},
};

/// A preparation may have found a shared map and not yet pinned it in its generation: nothing is
/// unpinned meanwhile.
static PREPARING: RwLock<()> = RwLock::new(());

/// Held while a generation is prepared.
pub(crate) fn preparing() -> RwLockReadGuard<'static, ()> {
    PREPARING.read().unwrap_or_else(PoisonError::into_inner)
}

/// A map that a member of a generation shares, and what the member's settings say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) member: ProgramName,
    pub(crate) map: String,
    pub(crate) scope: ShareScope,
    pub(crate) claims: Claims,
}

/// First word of the text, and the format's number.
const HEAD: &str = "canopy-shares 1";

fn to_text(shares: &[Share]) -> String {
    let mut text = format!("{HEAD}\n");
    for Share { member, map, scope, claims } in shares {
        let scope = match scope {
            ShareScope::Interface => "interface",
            ShareScope::Host => "host",
        };
        let _ = write!(text, "share {member} {} {scope} ", escape(map));
        match claims.list {
            Some(list) => {
                let _ = write!(text, "{list:x}");
            }
            None => text.push('-'),
        }
        for (key, at, bytes) in &claims.fields {
            let _ = write!(text, " {}:{at}:{}", hex(key), hex(bytes));
        }
        text.push('\n');
    }
    text
}

fn from_text(text: &str) -> Option<Vec<Share>> {
    let mut lines = text.lines();
    if lines.next() != Some(HEAD) {
        return None;
    }
    lines
        .map(|line| {
            let mut words = line.strip_prefix("share ")?.split(' ');
            let member = words.next()?.parse().ok()?;
            let map = unescape(words.next()?)?;
            let scope = match words.next()? {
                "interface" => ShareScope::Interface,
                "host" => ShareScope::Host,
                _ => return None,
            };
            let list = match words.next()? {
                "-" => None,
                list => Some(u64::from_str_radix(list, 16).ok()?),
            };
            let fields = words.map(field).collect::<Option<_>>()?;
            Some(Share { member, map, scope, claims: Claims { list, fields } })
        })
        .collect()
}

fn field(word: &str) -> Option<(Vec<u8>, usize, Vec<u8>)> {
    let mut parts = word.split(':');
    let field = (unhex(parts.next()?)?, parts.next()?.parse().ok()?, unhex(parts.next()?)?);
    parts.next().is_none().then_some(field)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let pairs = pairs.iter().map(|pair| std::str::from_utf8(pair).ok());
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

/// A map that says what a generation shares.
pub(crate) fn write(shares: &[Share]) -> io::Result<OwnedFd> {
    write_text("canopy.shares", &to_text(shares))
}

/// What a generation says that it shares; `None` for one that says nothing.
pub(crate) fn read(
    pins: &Pins,
    key: &ChainKey,
    generation: u64,
) -> Result<Option<Vec<Share>>, KernelError> {
    let path = pins.shares(key, generation);
    match read_text(&path) {
        Ok(text) => Ok(from_text(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(pins::os(format!("read {}", path.display()), error)),
    }
}

/// A member of another chain that uses a map.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) key: ChainKey,
    pub(crate) member: ProgramName,
    /// What its settings say of the map; `None` where its generation does not tell.
    pub(crate) claims: Option<Claims>,
    /// What its generation is.
    pub(crate) meta: Option<Meta>,
}

/// Who uses a map beside a chain: of the chains that change together with it those that are prepared
/// already, of the others what runs.
pub(crate) fn users(
    pins: &Pins,
    own: &ChainKey,
    together: &[(ChainKey, Option<u64>)],
    name: &str,
    map: u32,
) -> Result<Vec<User>, KernelError> {
    let mut users = Vec::new();
    for key in pins.chains()?.into_iter().filter(|key| key != own) {
        let changes = together.iter().find(|(other, _)| *other == key);
        let generation = match changes {
            // It goes, or it will be judged when it is prepared.
            Some((_, None)) => None,
            Some((_, Some(new))) => pins::open(&pins.prog(&key, *new))?.map(|_| *new),
            None => current(pins, &key)?,
        };
        let Some(generation) = generation else { continue };
        let mut shares = None;
        for (member, _) in
            pins.member_maps(&key, generation)?.into_iter().filter(|(_, other)| other == name)
        {
            if id(&pins.map(&key, generation, &member, name))? != Some(map) {
                continue;
            }
            if shares.is_none() {
                shares = Some(read(pins, &key, generation)?);
            }
            let claims = shares.as_ref().and_then(Option::as_ref).map(|shares| {
                let mine = |share: &&Share| share.member == member && share.map == name;
                shares.iter().find(mine).map(|share| share.claims.clone()).unwrap_or_default()
            });
            let meta = Meta::read(&pins.meta(&key, generation)).ok();
            users.push(User { key: key.clone(), member, claims, meta });
        }
    }
    Ok(users)
}

/// The generation of a chain that runs, or would if it were attached again.
fn current(pins: &Pins, key: &ChainKey) -> Result<Option<u64>, KernelError> {
    if let Some(link) = pins::open(&pins.link(key))? {
        let info = sys::link_info(&link)
            .map_err(|error| pins::os(format!("read the link of {key}"), error))?;
        if let Some(generation) = pins.generation_of(key, info.prog_id)? {
            return Ok(Some(generation));
        }
    }
    for generation in pins.generations(key)?.into_iter().rev() {
        if pins::open(&pins.prog(key, generation))?.is_some() {
            return Ok(Some(generation));
        }
    }
    Ok(None)
}

/// The map that a chain which changes together with this one, and is prepared already, has for a scope.
pub(crate) fn prepared(
    pins: &Pins,
    together: &[(ChainKey, Option<u64>)],
    path: &Path,
) -> Result<Option<OwnedFd>, KernelError> {
    // Those before it have found the same: one is enough.
    for (key, generation) in together.iter().rev() {
        let Some(generation) = *generation else { continue };
        for share in read(pins, key, generation)?.into_iter().flatten() {
            if pins.shared_map(key, share.scope, &share.map) == path {
                return pins::open(&pins.map(key, generation, &share.member, &share.map));
            }
        }
    }
    Ok(None)
}

/// Has the pins by scope lead to the maps of a generation, which runs now.
pub(crate) fn follow(pins: &Pins, key: &ChainKey, generation: u64) -> Result<(), KernelError> {
    for Share { member, map, scope, .. } in read(pins, key, generation)?.into_iter().flatten() {
        let own = pins.map(key, generation, &member, &map);
        let index = pins.shared_map(key, scope, &map);
        let Some(fd) = pins::open(&own)? else { continue };
        let failed = |error| pins::os(format!("read {}", own.display()), error);
        let new = sys::map_info(&fd).map_err(failed)?.id;
        if id(&index)? == Some(new) {
            continue;
        }
        if let Some(dir) = index.parent() {
            pins::make_dir(dir)?;
        }
        pins::pin(&fd, &index)?;
    }
    Ok(())
}

/// Has them lead to what runs, after a process that died in the middle of a switch.
pub(crate) fn clean_up(pins: &Pins) -> Result<(), KernelError> {
    for key in pins.chains()? {
        if let Some(generation) = current(pins, &key)? {
            follow(pins, &key, generation)?;
        }
    }
    Ok(())
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
pub(crate) fn id(path: &Path) -> Result<Option<u32>, KernelError> {
    let Some(fd) = pins::open_kind(path, sys::Kind::Map)? else { return Ok(None) };
    sys::map_info(&fd)
        .map(|info| Some(info.id))
        .map_err(|error| pins::os(format!("read {}", path.display()), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_survive_their_text() {
        let shares = vec![
            Share {
                member: "one".parse().unwrap(),
                map: "a.b c".to_owned(),
                scope: ShareScope::Host,
                claims: Claims { list: Some(7), fields: Vec::new() },
            },
            Share {
                member: "two".parse().unwrap(),
                map: ".data".to_owned(),
                scope: ShareScope::Interface,
                claims: Claims {
                    list: None,
                    fields: vec![(vec![0; 4], 12, vec![1, 255]), (vec![1, 0, 0, 0], 0, vec![9])],
                },
            },
        ];
        assert_eq!(from_text(&to_text(&shares)), Some(shares));
        assert_eq!(from_text("something else"), None);
    }
}
