//! How much of the store each writer has, so that nobody pushes out what others wrote.
//!
//! A writer's records of all chains have so many bytes together; what is more is not stored and stays with
//! the writer. Of each chain so many records are stored, the oldest go first. Both are told when they happen.

use canopy_api::{Principal, subject};
use canopy_audit::LINE_BYTES;
use canopy_bus::{BusError, data::Log};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// How long a count is used: what went by age or number, and what other instances store, is seen then.
const COUNTED: Duration = Duration::from_mins(10);
/// The same where there is no room.
const COUNTED_FULL: Duration = Duration::from_secs(5);
/// How often the same writer is told of.
const TOLD: Duration = Duration::from_hours(1);
/// What the store takes for an entry beside its content.
const OVERHEAD: u64 = 200;
/// Records of a writer that contradict others and are stored all the same.
const BESIDE: u64 = 1000;

/// The rooms of all writers.
pub(super) struct Rooms {
    bytes: u64,
    records_of_chain: u64,
    of_writers: Mutex<BTreeMap<Principal, Room>>,
}

struct Room {
    bytes: u64,
    beside: u64,
    /// Records of each chain.
    records: BTreeMap<String, u64>,
    counted: Instant,
    told_full: Option<Instant>,
    told_rolling: BTreeMap<String, Instant>,
}

impl Room {
    fn is_fresh(&self, most: u64) -> bool {
        let fresh = if self.bytes >= most { COUNTED_FULL } else { COUNTED };
        self.counted.elapsed() < fresh
    }
}

/// What a record takes.
pub(super) fn taken(content: usize) -> u64 {
    u64::try_from(content).unwrap_or(u64::MAX).saturating_add(OVERHEAD)
}

fn due(told: Option<Instant>) -> bool {
    told.is_none_or(|told| told.elapsed() >= TOLD)
}

impl Rooms {
    /// Rooms of so many bytes, and chains of so many records.
    pub(super) fn new(bytes: u64, records_of_chain: u64) -> Self {
        Self { bytes, records_of_chain, of_writers: Mutex::default() }
    }

    /// Bytes of each.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Records of a chain.
    pub(super) fn records_of_chain(&self) -> u64 {
        self.records_of_chain
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Principal, Room>> {
        self.of_writers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what a writer has, where that is not known.
    pub(super) async fn look(&self, log: &Log, writer: &Principal) -> Result<(), BusError> {
        if self.lock().get(writer).is_some_and(|room| room.is_fresh(self.bytes)) {
            return Ok(());
        }
        let (mut bytes, mut beside, mut records) = (0, 0, BTreeMap::new());
        for (subject, count) in log.subjects(&subject::stored_audit_of(writer.as_str())).await? {
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            if subject.ends_with(".beside") {
                beside += count;
            } else if let Some((_, chain)) = subject::stored_chain(&subject) {
                bytes += log.total_of(&subject).await?;
                records.insert(chain.to_owned(), count);
            }
        }
        let mut rooms = self.lock();
        let (told_full, told_rolling) = rooms
            .remove(writer)
            .map_or_else(Default::default, |room| (room.told_full, room.told_rolling));
        let counted = Instant::now();
        let room = Room { bytes, beside, records, counted, told_full, told_rolling };
        rooms.insert(writer.clone(), room);
        Ok(())
    }

    /// Whether a writer has room for a record.
    pub(super) fn has_room(&self, writer: &Principal, content: usize) -> bool {
        let rooms = self.lock();
        let used = rooms.get(writer).map_or(0, |room| room.bytes);
        used.saturating_add(taken(content)) <= self.bytes
    }

    /// A record was stored. Whether the oldest of its chain goes for it, which is to be told.
    pub(super) fn stored(&self, (writer, chain): (&Principal, &str), content: usize) -> bool {
        let mut rooms = self.lock();
        let Some(room) = rooms.get_mut(writer) else { return false };
        room.bytes = room.bytes.saturating_add(taken(content));
        let records = room.records.entry(chain.to_owned()).or_default();
        *records += 1;
        let rolls = *records > self.records_of_chain;
        let tell = rolls && due(room.told_rolling.get(chain).copied());
        if tell {
            room.told_rolling.insert(chain.to_owned(), Instant::now());
        }
        tell
    }

    /// Takes a place for a record that contradicts others; whether there was one.
    pub(super) fn take_beside(&self, writer: &Principal) -> bool {
        let most = BESIDE.min(self.bytes / taken(LINE_BYTES));
        let mut rooms = self.lock();
        let Some(room) = rooms.get_mut(writer) else { return false };
        let has = room.beside < most;
        room.beside += u64::from(has);
        has
    }

    /// There was no room; whether that is to be told.
    pub(super) fn is_full(&self, writer: &Principal) -> bool {
        let mut rooms = self.lock();
        let Some(room) = rooms.get_mut(writer) else { return true };
        let tell = due(room.told_full);
        if tell {
            room.told_full = Some(Instant::now());
        }
        tell
    }
}
