//! How much of the store each writer has, so that nobody pushes out what others wrote.
//!
//! A writer's records of all chains have so many bytes together; what is more is not stored and stays with
//! the writer. Of each chain so many records are stored, the oldest go first. Both are told when they happen.
//!
//! Of a central service each chain has that room, and all of them [`CENTRAL_ROOMS`]: its instances are one
//! writer, and what everybody can cause, such as records of who connects, must not keep its changes out.

use canopy_api::{Principal, permission::daemon_of, subject};
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
/// The same where there is little room left.
const COUNTED_FULL: Duration = Duration::from_secs(5);
/// Content of one request at most: with less room than that it is counted again before a record is refused.
const REQUEST: u64 = 1 << 20;
/// How often the same writer is told of.
const TOLD: Duration = Duration::from_hours(1);
/// What the store takes for an entry beside its content.
const OVERHEAD: u64 = 200;
/// Rooms that the chains of a central service have together: half of the store.
const CENTRAL_ROOMS: u64 = 4;
/// Records of a writer that contradict others and are stored all the same.
const BESIDE: u64 = 1000;

/// The rooms of all writers.
pub(super) struct Rooms {
    bytes: u64,
    records_of_chain: u64,
    of_writers: Mutex<BTreeMap<Principal, Room>>,
}

struct Room {
    chains: BTreeMap<String, Taken>,
    beside: u64,
    counted: Instant,
    told_full: Option<Instant>,
    told_rolling: BTreeMap<String, Instant>,
}

/// What is stored of a chain.
#[derive(Clone, Copy, Default)]
struct Taken {
    bytes: u64,
    records: u64,
}

impl Room {
    /// Whether a record of so many bytes has room in a chain, where one room has `most`.
    fn fits(&self, writer: &Principal, chain: &str, bytes: u64, most: u64) -> bool {
        let all = self.chains.values().fold(0_u64, |sum, one| sum.saturating_add(one.bytes));
        let fits = |used: u64, most: u64| used.saturating_add(bytes) <= most;
        if !is_central(writer) {
            return fits(all, most);
        }
        let own = self.chains.get(chain).map_or(0, |one| one.bytes);
        fits(own, most) && fits(all, most.saturating_mul(CENTRAL_ROOMS))
    }

    fn is_fresh(&self, writer: &Principal, chain: &str, most: u64) -> bool {
        let full = !self.fits(writer, chain, REQUEST, most);
        self.counted.elapsed() < if full { COUNTED_FULL } else { COUNTED }
    }
}

fn is_central(writer: &Principal) -> bool {
    daemon_of(writer).is_some_and(|(_, host)| host.is_none())
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
    pub(super) async fn look(
        &self,
        log: &Log,
        (writer, chain): (&Principal, &str),
    ) -> Result<(), BusError> {
        if self.lock().get(writer).is_some_and(|room| room.is_fresh(writer, chain, self.bytes)) {
            return Ok(());
        }
        let (mut beside, mut chains) = (0, BTreeMap::new());
        for (subject, count) in log.subjects(&subject::stored_audit_of(writer.as_str())).await? {
            let records = u64::try_from(count).unwrap_or(u64::MAX);
            if subject.ends_with(".beside") {
                beside += records;
            } else if let Some((_, chain)) = subject::stored_chain(&subject) {
                let bytes = log.total_of(&subject).await?;
                chains.insert(chain.to_owned(), Taken { bytes, records });
            }
        }
        let mut rooms = self.lock();
        let (told_full, told_rolling) = rooms
            .remove(writer)
            .map_or_else(Default::default, |room| (room.told_full, room.told_rolling));
        let counted = Instant::now();
        let room = Room { chains, beside, counted, told_full, told_rolling };
        rooms.insert(writer.clone(), room);
        Ok(())
    }

    /// Whether a writer has room for a record of a chain.
    pub(super) fn has_room(&self, (writer, chain): (&Principal, &str), content: usize) -> bool {
        let rooms = self.lock();
        let room = rooms.get(writer);
        room.is_none_or(|room| room.fits(writer, chain, taken(content), self.bytes))
    }

    /// A record was stored. Whether the oldest of its chain goes for it, which is to be told.
    pub(super) fn stored(&self, (writer, chain): (&Principal, &str), content: usize) -> bool {
        let mut rooms = self.lock();
        let Some(room) = rooms.get_mut(writer) else { return false };
        let of_chain = room.chains.entry(chain.to_owned()).or_default();
        of_chain.bytes = of_chain.bytes.saturating_add(taken(content));
        of_chain.records += 1;
        let rolls = of_chain.records > self.records_of_chain;
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
