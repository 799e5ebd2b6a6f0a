//! The maps of a fake generation: kept, copied for changed settings, shared, or new.

use super::{Contents, FakeMap, Generation, Inner, running};
use crate::{Carry, ChainBuild, KernelError, MapContents, Member, ShareScope, SharedMap};
use canopy_api::{ChainKey, ProgramName};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

/// Maps by member and name.
pub(super) type Maps = BTreeMap<(ProgramName, String), Contents>;

/// What a generation's members share.
pub(super) type Shares = Vec<(ProgramName, SharedMap)>;

fn carried(carry: &Carry, map: &str) -> bool {
    match carry {
        Carry::Nothing => false,
        Carry::AllBut(names) => !names.iter().any(|name| name == map),
        Carry::Only(names) => names.iter().any(|name| name == map),
    }
}

fn entries<'a>(contents: &'a [MapContents], map: &str) -> &'a [(Vec<u8>, Vec<u8>)] {
    let found = contents.iter().find(|contents| contents.map == map);
    found.map(|contents| contents.entries.as_slice()).unwrap_or_default()
}

/// The keys that settings of the generation before put into a map and these do not.
fn stale<'a>(member: &'a Member, map: &str) -> impl Iterator<Item = &'a Vec<u8>> {
    let now = entries(&member.map_entries, map);
    let old = entries(&member.settings.old_entries, map);
    old.iter().map(|(key, _)| key).filter(|key| !now.iter().any(|(set, _)| set == *key))
}

/// Whether a map holds a member's settings, and none from before.
pub(super) fn hold(member: &Member, map: &str, contents: &FakeMap) -> bool {
    let have = contents.lock();
    entries(&member.map_entries, map)
        .iter()
        .all(|(key, value)| have.get(key).is_some_and(|have| have.iter().all(|v| v == value)))
        && !stale(member, map).any(|key| have.contains_key(key))
}

/// A map with a member's settings: a copy of one that is there, or a new one.
fn made(id: u32, member: &Member, map: &str, before: Option<&FakeMap>) -> Contents {
    let mut contents = before.map(|before| before.lock().clone()).unwrap_or_default();
    for key in stale(member, map) {
        contents.remove(key);
    }
    for (key, value) in entries(&member.map_entries, map) {
        contents.insert(key.clone(), vec![value.clone()]);
    }
    Arc::new(FakeMap { id, entries: Mutex::new(contents), ..FakeMap::default() })
}

/// Makes the maps of a generation's members; `old` is what they are taken over from.
pub(super) fn make(
    inner: &mut Inner,
    build: &ChainBuild,
    old: Option<u64>,
) -> Result<(Maps, Shares, Vec<String>), KernelError> {
    let (mut maps, mut shares, mut notes) = (Maps::new(), Shares::new(), Vec::new());
    for member in &build.members {
        let name = &member.name;
        let mut before = Maps::new();
        if let Some(old) = old.and_then(|old| inner.generation(&build.key, old).ok()) {
            let mine =
                old.maps.iter().filter(|((of, map), _)| of == name && carried(&member.carry, map));
            before.extend(mine.map(|(at, contents)| (at.clone(), Arc::clone(contents))));
        }
        let mut names: Vec<String> = before.keys().map(|(_, map)| map.clone()).collect();
        names.extend(member.map_entries.iter().map(|given| given.map.clone()));
        names.extend(inner.shapes.keys().cloned());
        names.sort();
        names.dedup();
        for map in names {
            let at = (name.clone(), map.clone());
            let declared = member.shared_maps.iter().find(|declared| declared.map == map);
            let contents = if let Some(shared) = declared {
                shares.push((name.clone(), shared.clone()));
                share(inner, build, member, shared, &maps, &shares)?
            } else if let Some(old) = before.get(&at).filter(|old| hold(member, &map, old)) {
                notes.push(format!("{name}: map {map} kept"));
                Arc::clone(old)
            } else {
                let id = inner.id();
                made(id, member, &map, before.get(&at).map(AsRef::as_ref))
            };
            maps.insert(at, contents);
        }
    }
    Ok((maps, shares, notes))
}

/// A map that others use too.
fn share(
    inner: &mut Inner,
    build: &ChainBuild,
    member: &Member,
    shared: &SharedMap,
    maps: &Maps,
    so_far: &Shares,
) -> Result<Contents, KernelError> {
    // Another member of the chain has it already.
    let first = so_far.iter().find(|(of, other)| other == shared && *of != member.name);
    if let Some(map) = first.and_then(|(of, _)| maps.get(&(of.clone(), shared.map.clone()))) {
        if !hold(member, &shared.map, map) {
            return Err(KernelError::Refused {
                member: Some(member.name.clone()),
                reason: format!("map \"{}\" has other settings", shared.map),
                remedy: "give all the same settings".to_owned(),
                log: None,
            });
        }
        return Ok(Arc::clone(map));
    }
    let mut base = None;
    let mut users = Vec::new();
    for (key, chain) in &inner.chains {
        if *key != build.key && !same_scope(key, &build.key, shared.scope) {
            continue;
        }
        let changes = build.together.iter().find(|(other, _)| other == key);
        let generation = match changes {
            Some((_, generation)) => *generation,
            None => running(inner, key).or_else(|| chain.generations.keys().next_back().copied()),
        };
        let generation = generation.and_then(|generation| chain.generations.get(&generation));
        let Some(map) = generation.and_then(|generation| shared_in(generation, shared)) else {
            continue;
        };
        // What a chain of the same step has goes before.
        if base.is_none() || changes.is_some() {
            base = Some(Arc::clone(map));
        }
        if *key != build.key {
            users.push((key.clone(), map.id));
        }
    }
    let Some(base) = base else {
        let id = inner.id();
        return Ok(made(id, member, &shared.map, None));
    };
    if hold(member, &shared.map, &base) {
        return Ok(base);
    }
    let users: Vec<ChainKey> =
        users.into_iter().filter(|(_, id)| *id == base.id).map(|(key, _)| key).collect();
    if !users.is_empty() {
        return Err(KernelError::SharedMap {
            member: member.name.clone(),
            reason: format!("the shared map \"{}\" has to be replaced", shared.map),
            remedy: "change all chains that use it".to_owned(),
            users,
        });
    }
    let id = inner.id();
    Ok(made(id, member, &shared.map, Some(&base)))
}

fn same_scope(one: &ChainKey, other: &ChainKey, scope: ShareScope) -> bool {
    scope == ShareScope::Host || (&one.netns, &one.interface) == (&other.netns, &other.interface)
}

fn shared_in<'a>(generation: &'a Generation, shared: &SharedMap) -> Option<&'a Contents> {
    let (member, _) = generation.shares.iter().find(|(_, other)| other == shared)?;
    generation.maps.get(&(member.clone(), shared.map.clone()))
}
