//! Ring buffers as events: one reader for each, however many follow it.
//!
//! A ring buffer has one position up to which it was read: two readers would take records from each
//! other. So the loader reads it once, and publishes what it read as events for everybody who
//! listens. A follow is a lease: who wants more asks again before it ends, and when nobody does, the
//! reader stops and the buffer is left alone. What cannot be published in time is dropped, counted
//! and said, so that a slow bus never fills the buffer and the programs never wait.

use crate::{
    engine::{Engine, Source, Watch},
    error::LoaderError,
};
use canopy_api::{
    ApiError, Code, HostId,
    wire::{MapFollowReply, MapFollowRequest, MapName, MapRecords},
};
use canopy_kernel::Kernel;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

/// How long a follow lasts without being asked for again.
pub const LEASE: Duration = Duration::from_secs(30);
/// Ring buffers followed at once.
const MOST: usize = 16;
/// Records of an event, and bytes of them in JSON.
const RECORDS: usize = 256;
const BYTES: usize = 256 << 10;
/// How long the reader waits for a record before it looks around.
const WAIT: Duration = Duration::from_millis(200);

/// Where events go. `false` when there is no room: the records are dropped and counted.
pub type Sink = Arc<dyn Fn(MapRecords) -> bool + Send + Sync>;

/// The ring buffers that are followed.
pub struct Followers<K> {
    engine: Arc<Engine<K>>,
    sink: Sink,
    lease: Duration,
    followed: Mutex<Vec<Followed>>,
}

/// One of them.
struct Followed {
    /// What it was called when its reader began. An interface that was renamed since takes its ring
    /// buffers along, under its new name.
    first: MapName,
    /// Held by the reader for as long as it runs.
    watch: Weak<Watch>,
    until: Instant,
    /// The type its records are told by, as asked.
    ty: Option<String>,
    declared: Option<String>,
}

impl Followed {
    /// What it is called now; `None` once its reader has ended.
    fn name(&self) -> Option<MapName> {
        Some(self.watch.upgrade()?.name())
    }
}

impl<K: Kernel> Followers<K> {
    /// None yet. `lease` is [`LEASE`] but in tests.
    pub fn new(engine: Arc<Engine<K>>, sink: Sink, lease: Duration) -> Arc<Self> {
        Arc::new(Self { engine, sink, lease, followed: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Followed>> {
        // Each change is a single push or remove: a panic elsewhere leaves the list whole.
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a ring buffer is called now that was first followed under this name.
    pub fn name_now(&self, name: &MapName) -> MapName {
        let known = self.lock().iter().find(|known| known.first == *name).and_then(Followed::name);
        // Another interface may have the name meanwhile.
        known.filter(|_| self.engine.ring_generation(name).is_err()).unwrap_or_else(|| name.clone())
    }

    /// Starts a reader, or lets the one there is go on for another lease. Blocks on the kernel.
    pub fn follow(
        self: &Arc<Self>,
        request: &MapFollowRequest,
    ) -> Result<MapFollowReply, ApiError> {
        let name = &request.map;
        let mut followed = self.lock();
        // One that failed is as none.
        followed.retain(|known| known.watch.strong_count() > 0);
        let by_name = followed.iter().position(|known| known.name().as_ref() == Some(name));
        // Under the old name of an interface, as long as no other has that name and such a buffer.
        let by_first = || {
            let former = followed.iter().position(|known| known.first == *name)?;
            self.engine.ring_generation(name).is_err().then_some(former)
        };
        if let Some(known) = by_name.or_else(by_first).and_then(|at| followed.get_mut(at)) {
            let name = known.name().unwrap_or_else(|| name.clone());
            if request.record_type.is_some() && request.record_type != known.ty {
                let as_what = known.ty.as_deref().unwrap_or("the type of the map");
                return Err(ApiError::new(
                    Code::Conflict,
                    format!("{name} is followed already, with records told as {as_what}"),
                )
                .at("type")
                .remedy("leave the type out, or wait until the others are done"));
            }
            // Gone since the reader looked last: better said now than never.
            let generation = self.engine.ring_generation(&name).map_err(LoaderError::into_api)?;
            known.until = Instant::now() + self.lease;
            return Ok(self.reply(&name, generation, known.declared.clone()));
        }
        if followed.len() >= MOST {
            return Err(ApiError::new(
                Code::Unavailable,
                format!("{MOST} ring buffers of this host are followed already"),
            )
            .remedy("end one of them first"));
        }
        let (source, watch) = self
            .engine
            .watch(&request.map, request.record_type.as_deref())
            .map_err(LoaderError::into_api)?;
        let reply = self.reply(&request.map, source.generation, source.declared.clone());
        followed.push(Followed {
            first: name.clone(),
            watch: Arc::downgrade(&watch),
            until: Instant::now() + self.lease,
            ty: request.record_type.clone(),
            declared: source.declared.clone(),
        });
        let reader = Reader {
            followers: Arc::downgrade(self),
            host: self.engine.host().clone(),
            first: name.clone(),
            watch,
            sink: Arc::clone(&self.sink),
            number: 0,
            dropped: 0,
        };
        let started =
            std::thread::Builder::new().name("ring".to_owned()).spawn(move || reader.run(source));
        if let Err(error) = started {
            followed.pop();
            let said = format!("no reader can be started: {error}");
            return Err(ApiError::new(Code::Unavailable, said).remedy("try again"));
        }
        tracing::info!(map = %name, "a ring buffer is followed");
        Ok(reply)
    }

    /// How many ring buffers are followed.
    pub fn followed(&self) -> usize {
        self.lock().iter().filter(|known| known.watch.strong_count() > 0).count()
    }

    fn reply(&self, map: &MapName, generation: u64, declared: Option<String>) -> MapFollowReply {
        let host = self.engine.host();
        MapFollowReply {
            host: host.clone(),
            map: map.clone(),
            generation,
            subject: canopy_api::subject::event(
                canopy_api::endpoint::Service::Loader,
                "map",
                "records",
                Some(host),
            ),
            lease_seconds: self.lease.as_secs(),
            record_type: declared,
        }
    }

    /// Whether a reader is to go on; when its lease is over it is forgotten in the same step, so
    /// that whoever follows next starts another.
    fn wanted(&self, watch: &Arc<Watch>) -> bool {
        let mut followed = self.lock();
        let mine = |known: &Followed| std::ptr::eq(known.watch.as_ptr(), Arc::as_ptr(watch));
        let wanted = followed.iter().any(|known| mine(known) && Instant::now() < known.until);
        if !wanted {
            followed.retain(|known| !mine(known));
        }
        wanted
    }
}

/// Reads one ring buffer.
struct Reader<K> {
    followers: Weak<Followers<K>>,
    host: HostId,
    /// What the buffer was called at first.
    first: MapName,
    watch: Arc<Watch>,
    sink: Sink,
    /// Records taken so far.
    number: u64,
    /// Those of them that nobody was told.
    dropped: u64,
}

impl<K: Kernel> Reader<K> {
    fn run(mut self, mut source: Source) {
        let mut looked = Instant::now();
        loop {
            match source.ring.take(RECORDS, WAIT) {
                Ok(records) => self.publish(&source, &records),
                Err(error) => {
                    let map = self.watch.name();
                    tracing::warn!(%map, %error, "the ring buffer cannot be read");
                    std::thread::sleep(WAIT);
                }
            }
            if let Some(next) = self.watch.next() {
                self.move_on(&mut source, next);
            }
            if looked.elapsed() < WAIT {
                continue;
            }
            looked = Instant::now();
            // Threads do not keep the loader from ending.
            let Some(followers) = self.followers.upgrade() else { return };
            if !followers.wanted(&self.watch) {
                let (map, records, dropped) = (self.watch.name(), self.number, self.dropped);
                tracing::info!(%map, records, dropped, "no longer followed");
                return;
            }
        }
    }

    /// Goes on with the ring buffer of the next generation, once the one at hand is read to its end.
    fn move_on(&mut self, source: &mut Source, next: Source) {
        while let Ok(records) = source.ring.take(RECORDS, Duration::ZERO) {
            if records.is_empty() {
                break;
            }
            self.publish(source, &records);
        }
        let map = self.watch.name();
        tracing::info!(%map, generation = next.generation, "following the next generation");
        *source = next;
    }

    /// Tells of records, in events that fit a message.
    fn publish(&mut self, source: &Source, records: &[Vec<u8>]) {
        let mut told = Vec::new();
        let mut length = 0;
        for value in source.tell(records) {
            let size = serde_json::to_vec(&value).map_or(usize::MAX, |json| json.len());
            if size > BYTES {
                // Larger than any message.
                self.send(source, &mut told);
                self.number += 1;
                self.dropped += 1;
                continue;
            }
            if length + size > BYTES {
                self.send(source, &mut told);
                length = 0;
            }
            length += size;
            told.push(value);
        }
        self.send(source, &mut told);
    }

    fn send(&mut self, source: &Source, told: &mut Vec<serde_json::Value>) {
        let records = std::mem::take(told);
        let count = u64::try_from(records.len()).unwrap_or(u64::MAX);
        if count == 0 {
            return;
        }
        let map = self.watch.name();
        let event = MapRecords {
            host: self.host.clone(),
            formerly: (map != self.first).then(|| self.first.clone()),
            map,
            generation: source.generation,
            first: self.number,
            records,
            dropped: self.dropped,
        };
        self.number += count;
        if !(self.sink)(event) {
            self.dropped += count;
        }
    }
}
