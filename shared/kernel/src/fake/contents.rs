//! What maps of the fake hold: entries, and the records of ring buffers.

use super::{FakeKernel, running};
#[cfg(doc)]
use crate::Kernel;
use crate::{KernelError, MapPlace, MapShape, Ring};
use canopy_api::{ChainKey, ProgramName};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// A map, shared by the generations that carry it.
pub(super) type Contents = Arc<FakeMap>;

#[derive(Debug, Default)]
pub(super) struct FakeMap {
    pub(super) id: u32,
    pub(super) entries: Mutex<BTreeMap<Vec<u8>, Vec<Vec<u8>>>>,
    /// Of a ring buffer.
    pub(super) records: Mutex<VecDeque<Vec<u8>>>,
    /// There is a record.
    pub(super) arrived: Condvar,
}

/// A ring buffer, open.
pub(super) struct FakeRing(pub(super) Contents);

impl Ring for FakeRing {
    fn take(&mut self, most: usize, wait: Duration) -> Result<Vec<Vec<u8>>, KernelError> {
        let records = self.0.records.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut records, _) = self
            .0
            .arrived
            .wait_timeout_while(records, wait, |records| records.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        let count = records.len().min(most);
        Ok(records.drain(..count).collect())
    }
}

impl FakeMap {
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, Vec<Vec<u8>>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FakeKernel {
    /// Every member that is built from now on has a map of this name and shape. What is not said of
    /// a map is not checked either: keys and values may have any length.
    pub fn shape_map(&self, map: &str, shape: MapShape) {
        self.lock().shapes.insert(map.to_owned(), shape);
    }

    /// Every map that was read by [`Kernel::map_entries`] since the last time this was asked.
    pub fn take_map_reads(&self) -> Vec<(ChainKey, ProgramName, String)> {
        std::mem::take(&mut self.lock().map_reads)
    }

    /// A program writes an entry of its map in the generation that runs.
    pub fn write_map(
        &self,
        key: &ChainKey,
        member: &ProgramName,
        map: &str,
        entry_key: &[u8],
        value: &[u8],
    ) {
        let mut inner = self.lock();
        let Some(generation) = running(&inner, key) else { return };
        let Some(found) =
            inner.chains.get_mut(key).and_then(|chain| chain.generations.get_mut(&generation))
        else {
            return;
        };
        let contents = found.maps.entry((member.clone(), map.to_owned())).or_default();
        contents.lock().insert(entry_key.to_vec(), vec![value.to_vec()]);
    }

    /// A program puts a record into its ring buffer in the generation that runs. Returns whether
    /// there is such a buffer.
    pub fn put_record(
        &self,
        key: &ChainKey,
        member: &ProgramName,
        map: &str,
        record: &[u8],
    ) -> bool {
        let inner = self.lock();
        let Some(generation) = running(&inner, key) else { return false };
        let Ok((contents, _)) = inner.map(MapPlace { key, generation, member, map }) else {
            return false;
        };
        contents.records.lock().unwrap_or_else(PoisonError::into_inner).push_back(record.to_vec());
        contents.arrived.notify_all();
        true
    }

    /// Records of a ring buffer of the running generation that nobody took.
    pub fn waiting_records(&self, key: &ChainKey, member: &ProgramName, map: &str) -> usize {
        let inner = self.lock();
        let Some(generation) = running(&inner, key) else { return 0 };
        let place = MapPlace { key, generation, member, map };
        inner.map(place).map_or(0, |(contents, _)| {
            contents.records.lock().unwrap_or_else(PoisonError::into_inner).len()
        })
    }
}
