//! Maps of the chains' programs: listed, read, written.
//!
//! Types come from the program's object in the package that runs, never from the kernel, which does
//! not have them for every map. Reading waits for nobody. Writing waits for changes and keeps them
//! waiting, so that what is written is in the generation that runs when the answer is given; what
//! settings fill is not written.

mod read;
mod write;

use super::{Engine, Inner};
use crate::{core::state::WantedProgram, error::LoaderError};
use canopy_api::{
    ApiError, ChainKey, Code, Problem, Problems,
    wire::{MapEntry, MapName, MapWrite},
};
use canopy_kernel::{Kernel, MapAccess, MapKind, MapPlace, MemberMap};
use canopy_package::Package;
use canopy_values::{Codec, ObjectTypes, Variable};
use serde_json::Value;
use std::sync::Arc;

/// Entries of a page, or keys of a request, at most.
const MOST: usize = 4096;
/// Bytes of an answer's entries in JSON: what the bus carries, with room for the rest.
const ANSWER: usize = 512 << 10;

/// Where a map is, as the state has it.
pub(super) struct Place {
    name: MapName,
    pub(super) key: ChainKey,
    pub(super) generation: u64,
    pub(super) program: WantedProgram,
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
            return Err(LoaderError::NoMap { name: Box::new(place.name), known });
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

    fn section_bytes(&self, found: &Found) -> Result<Vec<u8>, LoaderError> {
        let values = self.parts.kernel.map_lookup(found.at(), &0_u32.to_ne_bytes());
        let values = values.map_err(LoaderError::kernel)?.unwrap_or_default();
        Ok(values.into_iter().next().unwrap_or_default())
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

/// Bytes of an answer's part in JSON.
fn size(part: &impl serde::Serialize) -> usize {
    serde_json::to_vec(part).map_or(usize::MAX, |json| json.len())
}
