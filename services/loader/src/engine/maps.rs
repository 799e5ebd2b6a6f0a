//! Maps of the chains' programs: listed, read, written.
//!
//! Types come from the program's object in the package that runs, never from the kernel, which does
//! not have them for every map. Reading waits for nobody. Writing waits for changes and keeps them
//! waiting, so that what is written is in the generation that runs when the answer is given; what
//! settings fill is not written.

use super::{Engine, Inner, change::no_journal};
use crate::{
    core::{map_settings, state::WantedProgram},
    error::LoaderError,
};
use canopy_api::{
    ApiError, ChainKey, Code, Problem, Problems,
    wire::{
        self, MapChangeReply, MapDeleteRequest, MapDumpReply, MapDumpRequest, MapEntry,
        MapGetReply, MapGetRequest, MapInfo, MapListReply, MapListRequest, MapName, MapSetRequest,
        MapVariable, MapWrite, MapWriteWhen,
    },
};
use canopy_kernel::{Kernel, KernelError, MapAccess, MapKind, MapPlace, MemberMap, WriteWhen};
use canopy_package::Package;
use canopy_values::{Codec, ObjectTypes, Variable};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
};

/// Entries of a page, where the caller does not say.
const PAGE: u32 = 256;
/// Entries of a page, or keys of a request, at most.
const MOST: usize = 4096;
/// Bytes of an answer's entries in JSON: what the bus carries, with room for the rest.
const ANSWER: usize = 512 << 10;

/// Bytes of a request's entries as the kernel takes them: little JSON may mean much memory.
const WRITTEN: usize = 64 << 20;

/// What a rehearsal in a trie cannot see.
const TRIE: &str =
    "a rehearsal finds the longest prefix that matches; removed is only the one that is named";

/// Where a map is, as the state has it.
pub(super) struct Place {
    name: MapName,
    key: ChainKey,
    pub(super) generation: u64,
    program: WantedProgram,
}

/// A map that was found, and what is known of its types.
pub(super) struct Found {
    pub(super) place: Place,
    pub(super) map: MemberMap,
    package: Option<Arc<Package>>,
    pub(super) types: ObjectTypes,
}

impl Found {
    pub(super) fn at(&self) -> MapPlace<'_> {
        MapPlace {
            key: &self.place.key,
            generation: self.place.generation,
            member: &self.map.member,
            map: &self.map.name,
        }
    }

    fn view(&self) -> View<'_> {
        View::new(&self.map, &self.types)
    }
}

/// A map's entries as JSON.
struct View<'a> {
    map: &'a MemberMap,
    codec: Codec<'a>,
    key: Option<u32>,
    value: Option<u32>,
    /// The variables, if it is a data section.
    section: Option<&'a [Variable]>,
}

impl<'a> View<'a> {
    fn new(map: &'a MemberMap, types: &'a ObjectTypes) -> Self {
        let of = types.map(&map.name);
        // No name in C begins with a dot.
        let section = map.name.starts_with('.').then(|| types.variables(&map.name));
        Self { map, codec: types.codec(), key: of.key, value: of.value, section }
    }

    /// Whether bytes without a type are one number: an index, or the id of what an entry refers to.
    fn number(ty: Option<u32>, bytes: usize, refers: bool) -> bool {
        ty.is_none() && bytes == 4 && refers
    }

    fn indexed(&self) -> bool {
        let kind = self.map.shape.kind;
        kind.is_array()
            || matches!(
                kind,
                MapKind::PROG_ARRAY | MapKind::ARRAY_OF_MAPS | MapKind::DEVMAP | MapKind::CPUMAP
            )
    }

    fn tell_key(&self, bytes: &[u8]) -> Value {
        match bytes.try_into().map(u32::from_ne_bytes) {
            _ if bytes.is_empty() => Value::Null,
            Ok(index) if Self::number(self.key, bytes.len(), self.indexed()) => index.into(),
            _ => self.codec.decode(self.key, bytes),
        }
    }

    fn tell_value(&self, bytes: &[u8]) -> Value {
        let refers = self.map.shape.kind.access() == MapAccess::Read;
        match bytes.try_into().map(u32::from_ne_bytes) {
            Ok(id) if Self::number(self.value, bytes.len(), refers) => id.into(),
            _ => self.codec.decode(self.value, bytes),
        }
    }

    fn tell(&self, key: &[u8], values: &[Vec<u8>]) -> MapEntry {
        let key = self.tell_key(key);
        if self.map.shape.values == 1 {
            let value = values.first().map(|value| self.tell_value(value));
            return MapEntry { key, value, cpus: Vec::new(), sum: None };
        }
        MapEntry {
            key,
            value: None,
            cpus: values.iter().map(|value| self.tell_value(value)).collect(),
            sum: self.codec.sum(self.value, values),
        }
    }

    /// The bytes of a key.
    fn take_key(&self, key: &Value, path: &str) -> Result<Vec<u8>, Problems> {
        let size = self.map.shape.key_size as usize;
        if !Self::number(self.key, size, self.indexed()) {
            return self.codec.encode(self.key, size, key, path);
        }
        let index = key.as_u64().and_then(|index| u32::try_from(index).ok());
        index.map(|index| index.to_ne_bytes().to_vec()).ok_or_else(|| {
            Problem::new(path, format!("{key} is not an index"))
                .remedy("write a number from 0")
                .into()
        })
    }

    /// The bytes of a written value, for each CPU.
    fn take_values(&self, entry: &MapWrite, path: &str) -> Result<Vec<Vec<u8>>, Problems> {
        let size = self.map.shape.value_size as usize;
        let cpus = self.map.shape.values;
        let one = |value: &Value, path: &str| self.codec.encode(self.value, size, value, path);
        match &entry.value {
            Some(value) if entry.cpus.is_empty() => {
                Ok(vec![one(value, &format!("{path}.value"))?; cpus])
            }
            None if entry.cpus.len() == cpus && cpus > 1 => {
                let values = entry.cpus.iter().enumerate();
                values.map(|(i, value)| one(value, &format!("{path}.cpus[{i}]"))).collect()
            }
            _ if cpus > 1 => {
                Err(Problem::new(path, "it does not say one value, or one for each CPU")
                    .remedy(format!(
                        "write \"value\" for every CPU, or \"cpus\" with {cpus} values"
                    ))
                    .into())
            }
            _ => Err(Problem::new(path, "it does not say one value")
                .remedy("write \"value\"")
                .into()),
        }
    }
}

impl<K: Kernel> Engine<K> {
    /// Which maps there are.
    pub fn map_list(&self, request: &MapListRequest) -> Result<MapListReply, LoaderError> {
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
            names.entry(map.id).or_default().push(format!("{key}/{}/{}", map.member, map.name));
        }
        let mut types = BTreeMap::new();
        let mut told = Vec::new();
        for (key, chain, map) in &all {
            let asked = request.interface.as_ref().is_none_or(|name| *name == key.interface)
                && request.hook.is_none_or(|hook| hook == key.hook)
                && request.program.as_ref().is_none_or(|name| *name == map.member);
            let program = chain.wanted.programs.iter().find(|p| p.name == map.member);
            let (true, Some(program)) = (asked, program) else { continue };
            let (package, of) = types
                .entry((program.digest.clone(), program.object.clone()))
                .or_insert_with(|| self.types(program));
            if package.is_none() {
                notes.insert(format!(
                    "the package of \"{}\" is not in this host's cache: its maps have no types",
                    program.name
                ));
            }
            let mut info = describe(key, chain.running, map, of, package.as_deref());
            let own = info.name.to_string();
            let others = names.get(&map.id).into_iter().flatten();
            info.shared_with = others.filter(|name| **name != own).cloned().collect();
            told.push(info);
        }
        if size(&told) > ANSWER {
            notes.insert("types are left out of so long a list; name a program".to_owned());
            for info in &mut told {
                (info.key_type, info.value_type, info.variables) = (None, None, Vec::new());
            }
        }
        if size(&told) > ANSWER {
            return Err(ApiError::new(
                Code::Invalid,
                "this host has more maps than one answer holds",
            )
            .remedy("name an interface, a hook or a program")
            .into());
        }
        Ok(MapListReply {
            host: self.parts.host.clone(),
            maps: told,
            notes: notes.into_iter().collect(),
        })
    }

    /// A page of a map's entries.
    pub fn map_dump(&self, request: &MapDumpRequest) -> Result<MapDumpReply, LoaderError> {
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
            let (entries, next) = self.page(found, after.as_deref(), limit as usize)?;
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

    /// Writes entries.
    pub fn map_set(&self, request: &MapSetRequest) -> Result<MapChangeReply, LoaderError> {
        few(request.entries.len(), "entries")?;
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut inner = self.lock();
        self.settle_journal(&mut inner);
        no_journal(&inner)?;
        let found = self.open(place(&inner, &request.map)?)?;
        let view = found.view();
        let variables: Vec<&str> = match view.section {
            Some(_) => request.entries.iter().filter_map(|entry| entry.key.as_str()).collect(),
            None => Vec::new(),
        };
        let notes = self.writable(&inner, &found, &variables)?;
        if let Some(variables) = view.section {
            let patches = patches(&view, variables, request)?;
            if !request.dry_run {
                self.patch(&found, &patches)?;
            }
            return Ok(self.changed(&found, request.dry_run, request.entries.len(), notes));
        }

        let shape = found.map.shape;
        let bytes = (shape.value_size as usize).saturating_mul(shape.values);
        if bytes.saturating_mul(request.entries.len()) > WRITTEN {
            let what = format!("{} entries of {bytes} bytes in one request", request.entries.len());
            return Err(ApiError::new(Code::Invalid, what)
                .at("entries")
                .remedy("write fewer at once")
                .into());
        }
        let mut problems = Problems::default();
        let mut seen = BTreeMap::new();
        let mut writes = Vec::new();
        for (i, entry) in request.entries.iter().enumerate() {
            let path = format!("entries[{i}]");
            let key = view.take_key(&entry.key, &format!("{path}.key"));
            let values = view.take_values(entry, &path);
            match (key, values) {
                (Ok(key), Ok(values)) => {
                    if let Some(first) = seen.insert(key.clone(), i) {
                        problems.push(twice(&format!("{path}.key"), &entry.key, first));
                    }
                    writes.push((key, values));
                }
                (key, values) => {
                    problems.0.extend(key.err().into_iter().flat_map(|wrong| wrong.0));
                    problems.0.extend(values.err().into_iter().flat_map(|wrong| wrong.0));
                }
            }
        }
        problems.into_result()?;
        let when = match request.when {
            MapWriteWhen::Any => WriteWhen::Any,
            MapWriteWhen::Absent => WriteWhen::Absent,
            MapWriteWhen::Present => WriteWhen::Present,
        };
        if !request.dry_run {
            for (i, (key, values)) in writes.iter().enumerate() {
                self.parts
                    .kernel
                    .map_update(found.at(), key, values, when)
                    .map_err(|error| part_way(error, "entries", i, "written"))?;
            }
        }
        Ok(self.changed(&found, request.dry_run, writes.len(), notes))
    }

    /// Removes entries.
    pub fn map_delete(&self, request: &MapDeleteRequest) -> Result<MapChangeReply, LoaderError> {
        few(request.keys.len(), "keys")?;
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut inner = self.lock();
        self.settle_journal(&mut inner);
        no_journal(&inner)?;
        let found = self.open(place(&inner, &request.map)?)?;
        let mut notes = self.writable(&inner, &found, &[])?;
        let view = found.view();
        if view.section.is_some() || found.map.shape.kind.is_array() {
            let what = if view.section.is_some() { "variables" } else { "entries of an array" };
            return Err(ApiError::new(Code::Invalid, format!("{what} are always there"))
                .at("map.map")
                .remedy("write zeros over them instead: `canopy map set`")
                .into());
        }
        let mut problems = Problems::default();
        let mut keys = Vec::new();
        let mut seen = BTreeMap::new();
        for (i, key) in request.keys.iter().enumerate() {
            let path = format!("keys[{i}]");
            match view.take_key(key, &path) {
                Ok(bytes) => {
                    if let Some(first) = seen.insert(bytes.clone(), i) {
                        problems.push(twice(&path, key, first));
                    }
                    keys.push((bytes, key));
                }
                Err(wrong) => problems.0.extend(wrong.0),
            }
        }
        problems.into_result()?;
        let mut absent = Vec::new();
        for (i, (bytes, key)) in keys.iter().enumerate() {
            let there = if request.dry_run {
                let value = self.parts.kernel.map_lookup(found.at(), bytes);
                value.map_err(LoaderError::kernel)?.is_some()
            } else {
                self.parts
                    .kernel
                    .map_delete(found.at(), bytes)
                    .map_err(|error| part_way(error, "keys", i, "removed"))?
            };
            if !there {
                absent.push((*key).clone());
            }
        }
        let changed = keys.len() - absent.len();
        if request.dry_run && found.map.shape.kind == MapKind::LPM_TRIE {
            notes.push(TRIE.to_owned());
        }
        Ok(MapChangeReply { absent, ..self.changed(&found, request.dry_run, changed, notes) })
    }

    fn changed(
        &self,
        found: &Found,
        dry_run: bool,
        changed: usize,
        notes: Vec<String>,
    ) -> MapChangeReply {
        MapChangeReply {
            host: self.parts.host.clone(),
            map: found.place.name.clone(),
            generation: found.place.generation,
            dry_run,
            changed: u64::try_from(changed).unwrap_or(u64::MAX),
            absent: Vec::new(),
            notes,
        }
    }

    /// Reads a map of the generation that runs; once more if it was replaced meanwhile.
    pub(super) fn reading<T>(
        &self,
        name: &MapName,
        read: impl Fn(&Found) -> Result<T, LoaderError>,
    ) -> Result<T, LoaderError> {
        let here = place(&self.lock(), name)?;
        let generation = here.generation;
        let result = self.open(here).and_then(|found| read(&found));
        match result {
            Err(LoaderError::Kernel { .. } | LoaderError::NoMap { .. }) => {
                let now = place(&self.lock(), name)?;
                if now.generation == generation {
                    return result;
                }
                self.open(now).and_then(|found| read(&found))
            }
            result => result,
        }
    }

    pub(super) fn open(&self, place: Place) -> Result<Found, LoaderError> {
        let maps = self
            .parts
            .kernel
            .maps(&place.key, place.generation)
            .map_err(LoaderError::kernel)?
            .into_iter()
            .filter(|map| map.member == place.program.name);
        let mut known = Vec::new();
        let mut found = None;
        for map in maps {
            known.push(map.name.clone());
            if map.name == place.name.map {
                found = Some(map);
            }
        }
        let Some(map) = found else {
            return Err(LoaderError::NoMap { name: place.name, known });
        };
        let (package, types) = self.types(&place.program);
        Ok(Found { place, map, package, types })
    }

    /// The types of a program's object, if its package is at hand.
    fn types(&self, program: &WantedProgram) -> (Option<Arc<Package>>, ObjectTypes) {
        let package = self.parts.packages.package(&program.digest).ok();
        let object = package.as_ref().and_then(|package| package.objects.get(&program.object));
        let types = object.map(|object| ObjectTypes::read(object));
        let types = types.and_then(|types| {
            types.map_err(|error| tracing::debug!(program = %program.name, %error, "no types")).ok()
        });
        (package, types.unwrap_or_default())
    }

    /// Entries that fit an answer.
    fn page(
        &self,
        found: &Found,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<(Vec<MapEntry>, Option<Vec<u8>>), LoaderError> {
        readable(found)?;
        let view = found.view();
        let all = if view.section.is_some() { self.section(found)? } else { Vec::new() };
        let shape = found.map.shape;
        let bytes = shape.key_size as usize + shape.value_size as usize * shape.values;
        let mut limit = limit.min((ANSWER / bytes.max(1)).max(1));
        loop {
            let (entries, next) = if view.section.is_some() {
                slice(&all, after, limit)
            } else {
                let page = self.parts.kernel.map_page(found.at(), after, limit);
                let page = page.map_err(LoaderError::kernel)?;
                let told = page.entries.iter().map(|(key, values)| view.tell(key, values));
                (told.collect(), page.next)
            };
            if size(&entries) <= ANSWER {
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

    fn section_bytes(&self, found: &Found) -> Result<Vec<u8>, LoaderError> {
        let values = self.parts.kernel.map_lookup(found.at(), &0_u32.to_ne_bytes());
        let values = values.map_err(LoaderError::kernel)?.unwrap_or_default();
        Ok(values.into_iter().next().unwrap_or_default())
    }

    /// Writes variables. The kernel takes a section only as a whole: what the programs write to its
    /// other variables between the reading and the writing is lost.
    fn patch(&self, found: &Found, patches: &[(usize, Vec<u8>)]) -> Result<(), LoaderError> {
        let mut bytes = self.section_bytes(found)?;
        for (offset, patch) in patches {
            if let Some(place) = bytes.get_mut(*offset..*offset + patch.len()) {
                place.copy_from_slice(patch);
            }
        }
        self.parts
            .kernel
            .map_update(found.at(), &0_u32.to_ne_bytes(), &[bytes], WriteWhen::Any)
            .map_err(|error| part_way(error, "entries", 0, "written"))
    }

    /// Whether the map may be written at all; what is worth knowing: the other names it has.
    fn writable(
        &self,
        inner: &Inner,
        found: &Found,
        variables: &[&str],
    ) -> Result<Vec<String>, LoaderError> {
        let name = &found.map.name;
        let kind = found.map.shape.kind;
        let not = |message: String, remedy: &str| {
            Err(ApiError::new(Code::Invalid, message).at("map.map").remedy(remedy).into())
        };
        if found.map.shape.frozen {
            return not(
                format!("\"{name}\" is constant: it was closed to writes when it was loaded"),
                "constants that are settings are changed by applying the document",
            );
        }
        match kind.access() {
            MapAccess::ReadWrite => {}
            MapAccess::Read => {
                return not(
                    format!(
                        "\"{name}\" is of type {}: its entries refer to objects of the kernel",
                        kind.name()
                    ),
                    "the program's object says what is in it",
                );
            }
            MapAccess::Peek | MapAccess::Nothing => {
                return not(
                    format!("\"{name}\" is of type {}, which is not written here", kind.name()),
                    "`canopy map list` says what can be done with each map",
                );
            }
        }
        let mut shared = Vec::new();
        for (key, chain) in &inner.state.chains {
            let maps = self.parts.kernel.maps(key, chain.running).map_err(LoaderError::kernel)?;
            for map in maps.iter().filter(|map| map.id == found.map.id) {
                let own =
                    *key == found.place.key && map.member == found.map.member && map.name == *name;
                let program = chain.wanted.programs.iter().find(|p| p.name == map.member);
                let package = match program {
                    _ if own => found.package.clone(),
                    Some(program) => self.parts.packages.package(&program.digest).ok(),
                    None => None,
                };
                let Some(package) = package else {
                    return Err(ApiError::new(Code::Unavailable, format!(
                            "whether settings of \"{}\" fill \"{name}\" is not known: its package is \
                             not in this host's cache",
                            map.member
                        ))
                    .remedy("apply the document again, so that it is fetched").into());
                };
                if let [setting, ..] = map_settings::of_map(&package.manifest, &map.name)[..] {
                    return not(
                        format!(
                            "\"{name}\" is filled by the setting \"{setting}\" of \"{}\"",
                            map.member
                        ),
                        "change the setting in the document and apply it",
                    );
                }
                for variable in variables {
                    let settings = map_settings::of_variable(&package.manifest, variable);
                    if let [setting, ..] = settings[..] {
                        return not(
                            format!(
                                "\"{variable}\" is the setting \"{setting}\" of \"{}\"",
                                map.member
                            ),
                            "change the setting in the document and apply it",
                        );
                    }
                }
                if !own {
                    shared.push(format!("{key}/{}/{} is the same map", map.member, map.name));
                }
            }
        }
        Ok(shared)
    }
}

/// Where the state has the program of a map.
pub(super) fn place(inner: &Inner, name: &MapName) -> Result<Place, LoaderError> {
    let key = name.key();
    let Some(chain) = inner.state.chains.get(&key) else {
        let known = inner.state.chains.keys().map(ToString::to_string).collect();
        return Err(LoaderError::NoChain { target: key.into(), known });
    };
    let programs = &chain.wanted.programs;
    let Some(program) = programs.iter().find(|program| program.name == name.program) else {
        let known = programs.iter().map(|program| program.name.to_string()).collect();
        return Err(LoaderError::NoProgram {
            target: key.into(),
            program: name.program.clone(),
            known,
        });
    };
    let (generation, program) = (chain.running, program.clone());
    Ok(Place { name: name.clone(), key, generation, program })
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
        name: MapName {
            interface: key.interface.clone(),
            hook: key.hook,
            program: map.member.clone(),
            map: map.name.clone(),
        },
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

/// The places and bytes of variables to write.
fn patches(
    view: &View<'_>,
    variables: &[Variable],
    request: &MapSetRequest,
) -> Result<Vec<(usize, Vec<u8>)>, LoaderError> {
    let mut problems = Problems::default();
    if request.when == MapWriteWhen::Absent {
        problems.push(Problem::new("when", "variables are always there").remedy("leave it out"));
    }
    let mut seen = BTreeMap::new();
    let mut patches = Vec::new();
    for (i, entry) in request.entries.iter().enumerate() {
        let path = format!("entries[{i}]");
        let named = |variable: &&Variable| entry.key.as_str() == Some(variable.name.as_str());
        let Some(variable) = variables.iter().find(named) else {
            let known: Vec<&str> = variables.iter().map(|known| known.name.as_str()).collect();
            let what = format!("\"{}\" has no variable {}", view.map.name, entry.key);
            let remedy = format!("it has {}", known.join(", "));
            problems.push(Problem::new(format!("{path}.key"), what).remedy(remedy));
            continue;
        };
        if let Some(first) = seen.insert(&variable.name, i) {
            problems.push(twice(&format!("{path}.key"), &entry.key, first));
        }
        let Some(value) = &entry.value else {
            let problem = Problem::new(&path, "it does not say one value");
            problems.push(problem.remedy("write \"value\""));
            continue;
        };
        let path = format!("{path}.value");
        match view.codec.encode(variable.ty, variable.size, value, &path) {
            Ok(bytes) => patches.push((variable.offset, bytes)),
            Err(wrong) => problems.0.extend(wrong.0),
        }
    }
    problems.into_result()?;
    Ok(patches)
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

/// Whether anything of the map can be shown.
fn readable(found: &Found) -> Result<(), LoaderError> {
    let kind = found.map.shape.kind;
    if kind.access() != MapAccess::Nothing {
        return Ok(());
    }
    let what = format!("\"{}\" is of type {}", found.map.name, kind.name());
    let why = if kind == MapKind::RINGBUF {
        "what is read from it is taken from its own reader; `canopy map follow` does"
    } else {
        "the kernel does not show its entries"
    };
    Err(ApiError::new(Code::Unsupported, format!("{what}: {why}"))
        .at("map.map")
        .remedy("`canopy map list` says what can be done with each map")
        .into())
}

/// Whether a request names a number of things that is worked on.
fn few(number: usize, what: &str) -> Result<(), LoaderError> {
    if (1..=MOST).contains(&number) {
        return Ok(());
    }
    let error = ApiError::new(Code::Invalid, format!("{number} {what} in one request"));
    Err(error.at(what).remedy(format!("give 1 to {MOST}")).into())
}

fn twice(path: &str, key: &Value, first: usize) -> Problem {
    Problem::new(path, format!("{key} is already number {first} of the request"))
        .remedy("remove one of the two")
}

/// The kernel refused number `at` of a request that was checked.
fn part_way(error: KernelError, what: &str, at: usize, done: &str) -> LoaderError {
    let mut error = LoaderError::kernel(error).into_api().at(format!("{what}[{at}]"));
    let so_far = match at.checked_sub(1) {
        None => format!("nothing was {done}"),
        Some(0) => format!("{what}[0] was {done}, nothing else"),
        Some(last) => format!("{what}[0] to {what}[{last}] were {done}, nothing else"),
    };
    error.message = format!("{}; {so_far}", error.message);
    error.into()
}

/// Bytes of an answer's part in JSON.
fn size(part: &impl serde::Serialize) -> usize {
    serde_json::to_vec(part).map_or(usize::MAX, |json| json.len())
}
