//! Ring buffers of running chains, for those who follow them.

use super::{
    Engine, Inner,
    maps::{Found, place},
};
use crate::error::LoaderError;
use canopy_api::{ApiError, ChainKey, Code, wire::MapName};
use canopy_kernel::{Kernel, MapKind, Ring};
use canopy_values::ObjectTypes;
use serde_json::Value;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

/// A ring buffer that is open, and what its records mean.
pub struct Source {
    /// The chain's generation.
    pub generation: u64,
    /// The kernel's id of the map.
    pub id: u32,
    /// The records.
    pub ring: Box<dyn Ring>,
    /// The type of a record, as C declares it, if it is known.
    pub declared: Option<String>,
    types: ObjectTypes,
    ty: Option<u32>,
}

impl Source {
    /// Records as JSON; hexadecimal without a type, or where one is not as long as the type says.
    pub fn tell(&self, records: &[Vec<u8>]) -> Vec<Value> {
        let codec = self.types.codec();
        records.iter().map(|record| codec.decode(self.ty, record)).collect()
    }
}

/// Hands a reader the ring buffers of the generations to come, each opened when its generation
/// began to run: none is missed, however quickly changes follow each other.
pub struct Watch {
    ty: Option<String>,
    handed: Mutex<Handed>,
}

struct Handed {
    /// What the buffer is called now: its interface may be renamed.
    name: MapName,
    /// The kernel's id of the newest.
    newest: u32,
    next: VecDeque<Source>,
}

impl Watch {
    /// The ring buffer after the one at hand, if its generation runs by now. The last packet has
    /// left the programs that wrote to the one at hand: what is in it is all there will be.
    pub fn next(&self) -> Option<Source> {
        self.lock().next.pop_front()
    }

    /// What the buffer is called now.
    pub fn name(&self) -> MapName {
        self.lock().name.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Handed> {
        self.handed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Kernel> Engine<K> {
    /// Opens a ring buffer of the generation that runs, and from then on those of the generations
    /// that follow. What is taken from them, nobody else gets. `ty` names the type of the records;
    /// without it, it is the type the map declares for its values.
    pub fn watch(
        &self,
        name: &MapName,
        ty: Option<&str>,
    ) -> Result<(Source, Arc<Watch>), LoaderError> {
        // No generation comes between the opening and the watching.
        let inner = self.lock();
        let source = self.source(&self.open(place(&inner, name)?)?, ty)?;
        let watch = Arc::new(Watch {
            ty: ty.map(str::to_owned),
            handed: Mutex::new(Handed {
                name: name.clone(),
                newest: source.id,
                next: VecDeque::new(),
            }),
        });
        self.watches().push(Arc::downgrade(&watch));
        Ok((source, watch))
    }

    /// The generation whose programs write to a ring buffer of this name now.
    pub fn ring_generation(&self, name: &MapName) -> Result<u64, LoaderError> {
        self.reading(name, |found| ring_buffer(found).map(|()| found.place.generation))
    }

    /// New generations of these chains run: whoever reads a ring buffer of theirs gets the new one.
    pub(super) fn hand_over<'a>(&self, inner: &Inner, keys: impl Iterator<Item = &'a ChainKey>) {
        let keys: Vec<_> = keys.collect();
        let mut watches = self.watches();
        watches.retain(|watch| watch.strong_count() > 0);
        for watch in watches.iter().filter_map(Weak::upgrade) {
            let name = watch.name();
            if !keys.contains(&&name.key()) {
                continue;
            }
            let source = place(inner, &name)
                .and_then(|place| self.source(&self.open(place)?, watch.ty.as_deref()));
            match source {
                Ok(source) => {
                    let mut handed = watch.lock();
                    // The same buffer was carried over: it is read already.
                    if source.id != handed.newest {
                        handed.newest = source.id;
                        handed.next.push_back(source);
                    }
                }
                // The chain, the program or the buffer is gone; it may come back.
                Err(error) => tracing::debug!(map = %name, %error, "nothing to follow"),
            }
        }
    }

    /// The chain has another name now, and with it its ring buffers: their readers go on.
    pub(super) fn rename_watches(&self, from: &ChainKey, to: &ChainKey) {
        for watch in self.watches().iter().filter_map(Weak::upgrade) {
            let name = &mut watch.lock().name;
            if name.key() == *from {
                name.interface.clone_from(&to.interface);
            }
        }
    }

    fn watches(&self) -> MutexGuard<'_, Vec<Weak<Watch>>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn source(&self, found: &Found, ty: Option<&str>) -> Result<Source, LoaderError> {
        ring_buffer(found)?;
        let ty = match ty {
            Some(wanted) => Some(found.types.named(wanted).ok_or_else(|| {
                ApiError::new(Code::NotFound, format!("the object has no type \"{wanted}\""))
                    .at("type")
                    .remedy(format!(
                        "it has {}; compilers keep types that a map or a global variable uses",
                        list(&found.types.names())
                    ))
            })?),
            None => found.types.map(&found.map.name).value,
        };
        let ring = self.parts.kernel.ring(found.at()).map_err(LoaderError::kernel)?;
        Ok(Source {
            generation: found.place.generation,
            id: found.map.id,
            ring,
            declared: ty.map(|ty| found.types.codec().declare(ty)),
            types: found.types.clone(),
            ty,
        })
    }
}

fn ring_buffer(found: &Found) -> Result<(), LoaderError> {
    let kind = found.map.shape.kind;
    if kind == MapKind::RINGBUF {
        return Ok(());
    }
    let what = format!("\"{}\" is of type {}", found.map.name, kind.name());
    Err(ApiError::new(Code::Invalid, what)
        .at("map.map")
        .remedy("only a ringbuf is followed; `canopy map dump` shows entries")
        .into())
}

fn list(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let more = if names.len() > SHOWN { ", …" } else { "" };
    names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ") + more
}
