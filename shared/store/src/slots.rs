//! A bound on what one store may keep busy. Work on a directory blocks a thread, and a file system that
//! hangs keeps it: nothing in this process can end that. So a store has few turns, each is taken until its
//! work has really ended, and who finds none is told so at once.

use crate::StoreError;
use canopy_runtime::clock;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// Pieces of work that one store does at once.
pub(crate) const AT_ONCE: usize = 8;

/// The turns of one store.
#[derive(Debug)]
pub(crate) struct Slots {
    free: Arc<Semaphore>,
    busy: Mutex<Busy>,
}

/// Since when each turn is taken.
#[derive(Debug, Default)]
struct Busy {
    next: u64,
    since: BTreeMap<u64, Instant>,
}

/// A turn; given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
    number: u64,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.busy().since.remove(&self.number);
    }
}

impl Slots {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { free: Arc::new(Semaphore::new(AT_ONCE)), busy: Mutex::default() })
    }

    fn busy(&self) -> MutexGuard<'_, Busy> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn, at most as long as one piece of work may take; not at all where every turn is
    /// taken for longer than that.
    pub(crate) async fn take(self: &Arc<Self>, limit: Duration) -> Result<Slot, StoreError> {
        if let Some(hung) = self.hung(limit) {
            return Err(hung);
        }
        let free = Arc::clone(&self.free).acquire_owned();
        let Ok(Ok(permit)) = timeout(limit, free).await else {
            return Err(self.hung(Duration::ZERO).unwrap_or(NONE_FREE));
        };
        let mut busy = self.busy();
        let number = busy.next;
        busy.next += 1;
        busy.since.insert(number, clock::monotonic());
        drop(busy);
        Ok(Slot { slots: Arc::clone(self), number, _permit: permit })
    }

    /// What is wrong where every turn is taken, each for longer than work may take.
    pub(crate) fn hung(&self, limit: Duration) -> Option<StoreError> {
        let busy = self.busy();
        let all = busy.since.len() == AT_ONCE;
        let youngest = busy.since.values().map(Instant::elapsed).min()?;
        let oldest = busy.since.values().map(Instant::elapsed).max()?;
        (all && youngest >= limit)
            .then_some(StoreError::Hung { operations: AT_ONCE, seconds: oldest.as_secs() })
    }
}

/// Somebody took a turn and gave it back in the very moment.
const NONE_FREE: StoreError = StoreError::Hung { operations: AT_ONCE, seconds: 0 };
