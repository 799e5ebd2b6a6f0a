//! Maps listed and read: nobody is waited for.

use super::{ANSWER, Found, MOST, View, few, readable, size};
use crate::{core::map_settings, engine::Engine, error::LoaderError};
use canopy_api::{
    ApiError, ChainKey, Code, Problems, ProgramName,
    wire::{
        self, MORE_MAPS, MapDumpReply, MapDumpRequest, MapEntry, MapGetReply, MapGetRequest,
        MapInfo, MapListReply, MapListRequest, MapName, MapVariable, json_length,
    },
};
use canopy_kernel::{Kernel, MapAccess, MemberMap};
use canopy_package::Package;
use canopy_values::ObjectTypes;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Other names of a shared map that are listed with it.
const LISTED_SHARES: usize = 64;

/// Entries of a page, where the caller does not say.
const PAGE: u32 = 256;

impl<K: Kernel> Engine<K> {
    /// A page of the maps there are: at most about `room` bytes of JSON, at least one map.
    ///
    /// # Errors
    /// When the cursor is none.
    pub fn map_list(
        &self,
        request: &MapListRequest,
        room: usize,
    ) -> Result<MapListReply, LoaderError> {
        let from = request.cursor.as_deref().map(map_cursor).transpose()?;
        let chains: Vec<_> = {
            let inner = self.lock();
            let chains = inner.state.chains.iter();
            chains.map(|(key, chain)| (key.clone(), chain.clone())).collect()
        };
        let mut notes = BTreeSet::new();
        let mut all = Vec::new();
        for (key, chain) in &chains {
            match self.parts.kernel.maps(key, chain.running) {
                Ok(maps) => all.extend(maps.into_iter().map(|map| (key, chain, map))),
                // Replaced in this moment, or its pins are gone: the others are told all the same.
                Err(error) => {
                    let error = LoaderError::kernel(error).into_api();
                    notes.insert(format!("the maps of {key} cannot be read: {error}"));
                }
            }
        }
        let mut names: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for (key, _, map) in &all {
            names.entry(map.id).or_default().push(name(key, map).to_string());
        }
        all.sort_by_cached_key(|(key, _, map)| position(&name(key, map)));
        let mut types = BTreeMap::new();
        let mut told: Vec<MapInfo> = Vec::new();
        let mut left = room;
        let mut next = None;
        for (key, chain, map) in &all {
            let asked =
                request.netns.as_ref().is_none_or(|netns| Some(netns) == key.netns.as_ref())
                    && request.interface.as_ref().is_none_or(|name| *name == key.interface)
                    && request.hook.is_none_or(|hook| hook == key.hook)
                    && request.program.as_ref().is_none_or(|name| *name == map.member);
            let program = chain.wanted.programs.iter().find(|p| p.name == map.member);
            let (true, Some(program)) = (asked, program) else { continue };
            let here = name(key, map);
            if from.as_ref().is_some_and(|from| position(&here) < position(from)) {
                continue;
            }
            let (package, of) = types
                .entry((program.digest.clone(), program.object.clone()))
                .or_insert_with(|| self.types(program));
            let mut info = describe(key, chain.running, map, of, package.as_deref());
            let own = info.name.to_string();
            let others = names.get(&map.id).into_iter().flatten();
            let mut others = others.filter(|name| **name != own);
            info.shared_with = others.by_ref().take(LISTED_SHARES).cloned().collect();
            let more = others.count();
            if more > 0 {
                notes.insert(format!("{own} is shared with {more} more than are listed"));
            }
            if json_length(&info) > room {
                let note = format!("the types and variables of {own} are too long for a reply");
                (info.key_type, info.value_type, info.variables) = (None, None, Vec::new());
                notes.insert(note);
            }
            let length = json_length(&info).saturating_add(1);
            if length > left && !told.is_empty() {
                next = serde_json::to_string(&here).ok();
                notes.insert(MORE_MAPS.to_owned());
                break;
            }
            left = left.saturating_sub(length);
            if package.is_none() {
                notes.insert(format!(
                    "the package of \"{}\" is not in this host's cache: its maps have no types",
                    program.name
                ));
            }
            told.push(info);
        }
        Ok(MapListReply {
            host: self.parts.host.clone(),
            maps: told,
            notes: notes.into_iter().collect(),
            next,
        })
    }

    /// A page of a map's entries: at most about `room` bytes of JSON, at least one entry of those that
    /// there are.
    ///
    /// # Errors
    /// When there is no such map, it cannot be read, or the cursor is none or that of another map.
    pub fn map_dump(
        &self,
        request: &MapDumpRequest,
        room: usize,
    ) -> Result<MapDumpReply, LoaderError> {
        let limit = request.limit.unwrap_or(PAGE);
        if limit == 0 || limit as usize > MOST {
            return Err(ApiError::new(
                Code::Invalid,
                format!("{limit} is not a number of entries"),
            )
            .at("limit")
            .remedy(format!("write 1 to {MOST}"))
            .into());
        }
        self.reading(&request.map, |found| {
            let after = after(request.cursor.as_deref(), found)?;
            let (entries, next) = self.page(found, after.as_deref(), (limit as usize, room))?;
            Ok(MapDumpReply {
                host: self.parts.host.clone(),
                map: found.place.name.clone(),
                generation: found.place.generation,
                entries,
                next: next.map(|next| format!("{}-{}", found.map.id, hex::encode(next))),
            })
        })
    }

    /// Single entries.
    pub fn map_get(&self, request: &MapGetRequest) -> Result<MapGetReply, LoaderError> {
        few(request.keys.len(), "keys")?;
        self.reading(&request.map, |found| {
            readable(found)?;
            let view = found.view();
            let mut told = Vec::new();
            let mut absent = Vec::new();
            let mut length = 0;
            let mut problems = Problems::default();
            let section = match view.section {
                Some(_) => self.section(found)?,
                None if found.map.shape.kind.access() == MapAccess::Peek => {
                    let kind = found.map.shape.kind.name();
                    return Err(ApiError::new(Code::Invalid, format!("a {kind} has no keys"))
                        .remedy("dump it: that shows the entry that comes next")
                        .into());
                }
                None => Vec::new(),
            };
            for (i, key) in request.keys.iter().enumerate() {
                let path = format!("keys[{i}]");
                let entry = if view.section.is_some() {
                    section.iter().find(|entry| entry.key == *key).cloned()
                } else {
                    match view.take_key(key, &path) {
                        Ok(bytes) => self
                            .parts
                            .kernel
                            .map_lookup(found.at(), &bytes)
                            .map_err(LoaderError::kernel)?
                            .map(|values| view.tell(&bytes, &values)),
                        Err(wrong) => {
                            problems.0.extend(wrong.0);
                            continue;
                        }
                    }
                };
                match entry {
                    Some(entry) => {
                        length += size(&entry);
                        told.push(entry);
                    }
                    None => absent.push(key.clone()),
                }
                if length > ANSWER {
                    return Err(ApiError::new(
                        Code::Invalid,
                        "these entries are longer than one answer",
                    )
                    .at("keys")
                    .remedy("ask for fewer at once")
                    .into());
                }
            }
            problems.into_result()?;
            Ok(MapGetReply {
                host: self.parts.host.clone(),
                map: found.place.name.clone(),
                generation: found.place.generation,
                entries: told,
                absent,
            })
        })
    }

    /// Entries that fit an answer.
    fn page(
        &self,
        found: &Found,
        after: Option<&[u8]>,
        (limit, room): (usize, usize),
    ) -> Result<(Vec<MapEntry>, Option<Vec<u8>>), LoaderError> {
        readable(found)?;
        let view = found.view();
        let all = if view.section.is_some() { self.section(found)? } else { Vec::new() };
        let shape = found.map.shape;
        let bytes = shape.key_size as usize + shape.value_size as usize * shape.values;
        let mut limit = limit.min((room / bytes.max(1)).max(1));
        loop {
            let (entries, next) = if view.section.is_some() {
                slice(&all, after, limit)
            } else {
                let page = self.parts.kernel.map_page(found.at(), after, limit);
                let page = page.map_err(LoaderError::kernel)?;
                let told = page.entries.iter().map(|(key, values)| view.tell(key, values));
                (told.collect(), page.next)
            };
            if size(&entries) <= room {
                return Ok((entries, next));
            }
            if limit == 1 {
                return Err(ApiError::new(Code::Unsupported, "an entry is longer than one answer")
                    .remedy("read it on the host: `bpftool map dump`")
                    .into());
            }
            limit = (limit / 4).max(1);
        }
    }

    /// The variables of a data section as entries.
    fn section(&self, found: &Found) -> Result<Vec<MapEntry>, LoaderError> {
        let view = found.view();
        let bytes = self.section_bytes(found)?;
        let entry = |key: &str, value: Value| MapEntry {
            key: key.into(),
            value: Some(value),
            cpus: Vec::new(),
            sum: None,
        };
        let variables = view.section.unwrap_or_default();
        if variables.is_empty() {
            return Ok(vec![entry(&found.map.name, view.codec.decode(None, &bytes))]);
        }
        let told = variables.iter().filter_map(|variable| {
            let part = bytes.get(variable.offset..variable.offset.checked_add(variable.size)?)?;
            Some(entry(&variable.name, view.codec.decode(variable.ty, part)))
        });
        Ok(told.collect())
    }
}

fn describe(
    key: &ChainKey,
    generation: u64,
    map: &MemberMap,
    types: &ObjectTypes,
    package: Option<&Package>,
) -> MapInfo {
    let view = View::new(map, types);
    let variables = view.section.unwrap_or_default();
    let settings: BTreeSet<&str> = package
        .into_iter()
        .flat_map(|package| {
            let of_variables = variables
                .iter()
                .flat_map(|variable| map_settings::of_variable(&package.manifest, &variable.name));
            map_settings::of_map(&package.manifest, &map.name).into_iter().chain(of_variables)
        })
        .collect();
    let access = match map.shape.kind.access() {
        MapAccess::ReadWrite if map.shape.frozen => wire::MapAccess::Read,
        MapAccess::ReadWrite => wire::MapAccess::ReadWrite,
        MapAccess::Read => wire::MapAccess::Read,
        MapAccess::Peek => wire::MapAccess::Peek,
        MapAccess::Nothing => wire::MapAccess::Nothing,
    };
    MapInfo {
        name: name(key, map),
        generation,
        id: map.id,
        kind: map.shape.kind.name(),
        key_size: map.shape.key_size,
        value_size: map.shape.value_size,
        max_entries: map.shape.max_entries,
        values: u32::try_from(map.shape.values).unwrap_or(u32::MAX),
        flags: map.shape.flag_names(),
        memory: map.memory,
        access,
        key_type: view.key.map(|ty| view.codec.declare(ty)),
        value_type: view.value.map(|ty| view.codec.declare(ty)),
        variables: variables
            .iter()
            .map(|variable| MapVariable {
                name: variable.name.clone(),
                size: u64::try_from(variable.size).unwrap_or(u64::MAX),
                kind: variable.ty.map(|ty| view.codec.declare(ty)),
            })
            .collect(),
        settings: settings.into_iter().map(str::to_owned).collect(),
        shared_with: Vec::new(),
    }
}

/// Where a page of the list begins.
fn map_cursor(text: &str) -> Result<MapName, LoaderError> {
    serde_json::from_str(text).map_err(|_| {
        ApiError::new(Code::Invalid, "the cursor is not the \"next\" of a reply")
            .at("cursor")
            .remedy("leave it out for the first page")
            .into()
    })
}

/// Where a map stands in the list.
fn position(name: &MapName) -> (ChainKey, ProgramName, String) {
    (name.key(), name.program.clone(), name.map.clone())
}

/// What a map is called.
fn name(key: &ChainKey, map: &MemberMap) -> MapName {
    MapName {
        netns: key.netns.clone(),
        interface: key.interface.clone(),
        hook: key.hook,
        program: map.member.clone(),
        map: map.name.clone(),
    }
}

/// Where a page starts.
fn after(cursor: Option<&str>, found: &Found) -> Result<Option<Vec<u8>>, LoaderError> {
    let Some(cursor) = cursor else { return Ok(None) };
    let read = cursor
        .split_once('-')
        .and_then(|(id, after)| Some((id.parse::<u32>().ok()?, hex::decode(after).ok()?)));
    match read {
        Some((id, after)) if id == found.map.id => Ok(Some(after)),
        Some(_) => Err(ApiError::new(Code::Conflict, "the map was replaced since the last page")
            .at("cursor")
            .remedy("start again from the first page")
            .into()),
        None => Err(ApiError::new(Code::Invalid, "this is no answer's \"next\"")
            .at("cursor")
            .remedy("leave it out for the first page")
            .into()),
    }
}

/// Part of a data section's entries, from the number in `after`.
fn slice(all: &[MapEntry], after: Option<&[u8]>, limit: usize) -> (Vec<MapEntry>, Option<Vec<u8>>) {
    let from = after.and_then(|after| after.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let rest = all.get(from as usize..).unwrap_or_default();
    let end = from.saturating_add(u32::try_from(limit).unwrap_or(u32::MAX));
    let next = (rest.len() > limit).then(|| end.to_ne_bytes().to_vec());
    (rest.iter().take(limit).cloned().collect(), next)
}
