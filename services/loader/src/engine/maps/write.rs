//! Maps written: entries and variables, checked as a whole before the first is written.

use super::{Found, View, few, place};
use crate::{
    core::map_settings,
    engine::{Engine, Inner, admission::as_asked, change::no_journal, in_time},
    error::LoaderError,
};
use canopy_api::{
    ApiError, Code, Problem, Problems,
    wire::{
        AdmissionItem, AdmissionVerb, MapChangeReply, MapDeleteRequest, MapSetRequest, MapWriteWhen,
    },
};
use canopy_kernel::{Kernel, KernelError, MapAccess, MapKind, WriteWhen};
use canopy_values::Variable;
use serde_json::Value;
use std::{collections::BTreeMap, sync::PoisonError, time::Instant};

/// Bytes of a request's entries as the kernel takes them: little JSON may mean much memory.
const WRITTEN: usize = 64 << 20;

/// What a rehearsal in a trie cannot see.
const TRIE: &str =
    "a rehearsal finds the longest prefix that matches; removed is only the one that is named";

impl<K: Kernel> Engine<K> {
    /// Writes entries. Policy is not asked: see [`Self::map_set_as_asked`].
    pub fn map_set(&self, request: &MapSetRequest) -> Result<MapChangeReply, LoaderError> {
        self.map_set_of(request, None, None)
    }

    /// The same, if the first entry is written by then and policy was asked about just this.
    pub fn map_set_as_asked(
        &self,
        request: &MapSetRequest,
        until: Option<Instant>,
        asked: &[AdmissionItem],
    ) -> Result<MapChangeReply, LoaderError> {
        self.map_set_of(request, until, Some(asked))
    }

    fn map_set_of(
        &self,
        request: &MapSetRequest,
        until: Option<Instant>,
        asked: Option<&[AdmissionItem]>,
    ) -> Result<MapChangeReply, LoaderError> {
        few(request.entries.len(), "entries")?;
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut inner = self.lock();
        self.settle_journal(&mut inner);
        no_journal(&inner)?;
        as_asked(asked, || self.parts_of_map_in(&inner, AdmissionVerb::MapSet, &request.map))?;
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
                in_time(until)?;
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
            in_time(until)?;
            for (i, (key, values)) in writes.iter().enumerate() {
                self.parts
                    .kernel
                    .map_update(found.at(), key, values, when)
                    .map_err(|error| part_way(error, "entries", i, "written"))?;
            }
        }
        Ok(self.changed(&found, request.dry_run, writes.len(), notes))
    }

    /// Removes entries. Policy is not asked: see [`Self::map_delete_as_asked`].
    pub fn map_delete(&self, request: &MapDeleteRequest) -> Result<MapChangeReply, LoaderError> {
        self.map_delete_of(request, None, None)
    }

    /// The same, if the first entry is removed by then and policy was asked about just this.
    pub fn map_delete_as_asked(
        &self,
        request: &MapDeleteRequest,
        until: Option<Instant>,
        asked: &[AdmissionItem],
    ) -> Result<MapChangeReply, LoaderError> {
        self.map_delete_of(request, until, Some(asked))
    }

    fn map_delete_of(
        &self,
        request: &MapDeleteRequest,
        until: Option<Instant>,
        asked: Option<&[AdmissionItem]>,
    ) -> Result<MapChangeReply, LoaderError> {
        few(request.keys.len(), "keys")?;
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut inner = self.lock();
        self.settle_journal(&mut inner);
        no_journal(&inner)?;
        as_asked(asked, || self.parts_of_map_in(&inner, AdmissionVerb::MapDelete, &request.map))?;
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
        if !request.dry_run {
            in_time(until)?;
        }
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
