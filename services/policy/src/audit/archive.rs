//! Storing what writers send.

use super::{
    AuditConfig, away,
    checkpoints::Checkpoints,
    findings::Findings,
    rooms::{Rooms, taken},
};
use crate::metrics::Metrics;
use canopy_api::{
    ApiError, Code, Principal,
    endpoint::Service,
    permission::daemon_of,
    subject,
    time::rfc3339,
    wire::{AUDIT_LINES, AuditAppendReply, AuditAppendRequest, AuditFinding},
};
use canopy_audit::{Head, LINE_BYTES, Line, Place, place};
use canopy_bus::{
    Bus, BusError,
    data::{Append, Log, LogConfig},
    for_log,
    forward::{NotStored, Store},
};
use canopy_runtime::clock;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The log of all records.
pub(super) const LOG: &str = "CANOPY_AUDIT";
/// Chains that are stored of a writer beside a host. It goes on with its chain over restarts, so that
/// each new one is news; and no host is to fill the store.
const CHAINS_OF_HOST: usize = 8;
/// Of a central service: each instance has its own.
const CHAINS: usize = 64;

/// A chain: whose, and which.
pub(super) type Name = (Principal, String);

/// How far a chain is stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    /// The last record.
    pub(super) head: Head,
    /// Its number in the log; 0 where it is not there any more.
    pub(super) number: u64,
    /// Bytes of the chain up to it.
    total: u64,
}

/// What is stored.
pub(super) struct Archive {
    pub(super) log: Log,
    pub(super) checkpoints: Checkpoints,
    bus: Bus,
    metrics: Metrics,
    rooms: Rooms,
    findings: Findings,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// As this instance saw it last; another may have stored more.
    heads: BTreeMap<Name, Stored>,
    grown: BTreeSet<Name>,
}

impl Archive {
    pub(super) async fn open(
        data: &Bus,
        bus: &Bus,
        config: &AuditConfig,
        replicas: usize,
        metrics: &Metrics,
    ) -> Result<Self, BusError> {
        let log = LogConfig {
            name: LOG,
            subjects: subject::all_stored_audit(),
            max_age: Duration::from_secs(u64::from(config.keep_days) * 86_400),
            max_bytes: config.store_bytes,
            max_of_subject: config.records_of_chain,
            replicas,
        };
        let log = Log::open(data, &log).await?;
        let checkpoints = Checkpoints::open(data, replicas).await?;
        let (bus, metrics) = (bus.clone(), metrics.clone());
        let rooms = Rooms::new(config.room_of_writer(), config.records_of_chain);
        let (findings, state) = (Findings::default(), Mutex::default());
        Ok(Self { log, checkpoints, bus, metrics, rooms, findings, state })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chains that have grown since they were asked for the last time, and how far they go.
    pub(super) fn grown(&self) -> Vec<(Name, Stored)> {
        let mut state = self.state();
        let grown = std::mem::take(&mut state.grown);
        let of = |name: Name| state.heads.get(&name).map(|stored| (name.clone(), *stored));
        grown.into_iter().filter_map(of).collect()
    }

    /// They are still to be signed.
    pub(super) fn still_grown(&self, name: Name) {
        self.state().grown.insert(name);
    }

    /// Looks at every stored chain: an instance that died may have left some without a checkpoint.
    pub(super) async fn look(&self) -> Result<(), BusError> {
        let subjects = self.log.subjects(&subject::stored_audit("*", "*", false)).await?;
        for subject in subjects.keys() {
            let Some((writer, chain)) = subject::stored_chain(subject) else { continue };
            let Ok(writer) = writer.parse::<Principal>() else { continue };
            let name = (writer, chain.to_owned());
            if let Some(stored) = self.load(&name).await? {
                let mut state = self.state();
                state.heads.insert(name.clone(), stored);
                state.grown.insert(name);
            }
        }
        Ok(())
    }

    /// Stores what follows, and what does not beside it.
    pub(super) async fn append(
        &self,
        writer: &Principal,
        request: &AuditAppendRequest,
    ) -> Result<AuditAppendReply, ApiError> {
        let chain = &request.chain;
        if chain.len() != 16 || !chain.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(invalid(
                "chain",
                format!("\"{}\" is not 16 of 0-9 and a-f", for_log(chain)),
            ));
        }
        if request.lines.len() > AUDIT_LINES {
            let said = format!("{} lines; at most {AUDIT_LINES} at once", request.lines.len());
            return Err(invalid("lines", said));
        }
        let after: Option<Head> = request
            .after
            .as_ref()
            .map(|after| after.parse())
            .transpose()
            .map_err(|said| invalid("after", said))?;
        let name = (writer.clone(), chain.clone());
        let lines = self.read(&name, &request.lines).await?;
        let cached = self.state().heads.get(&name).copied();
        let mut stored = match cached {
            // What the writer takes for the last is what it is: nobody else has to be asked.
            Some(stored) if after == Some(stored.head) => Some(stored),
            _ => self.load(&name).await.map_err(|error| away(&error))?,
        };
        let reply = |stored: Option<Stored>, diverged| AuditAppendReply {
            head: stored.map(|stored| stored.head.to_string()),
            diverged,
        };
        if lines.is_empty() || stored.map(|stored| stored.head) != after {
            self.know(&name, stored, false);
            return Ok(reply(stored, false));
        }
        if stored.is_none()
            && let Some(line) = lines.first()
        {
            self.first_of_chain(&name, line).await?;
        }
        self.rooms.look(&self.log, (writer, chain)).await.map_err(|error| away(&error))?;
        let mut diverged = false;
        for line in &lines {
            let head = stored.map(|stored| stored.head);
            let placed = if diverged { Place::Fork } else { place(head, line) };
            let note = match placed {
                Place::Follows => String::new(),
                Place::Gap { from, to } => format!("records {from} to {to} are missing"),
                Place::Fork => "contradicts what is stored".to_owned(),
            };
            let content = line.text.clone().into_bytes();
            if placed == Place::Fork {
                diverged = true;
                if !self.rooms.take_beside(writer) {
                    let said = format!("{note}; too many records that do are stored already");
                    self.find(&name, line.record.seq, "fork", said).await;
                    continue;
                }
                let subject = subject::stored_audit(writer.as_str(), chain, true);
                let id = format!("{chain}/{}", line.head());
                self.log
                    .append_once(subject, content, &note, &id)
                    .await
                    .map_err(|error| away(&error))?;
                self.find(&name, line.record.seq, "fork", note).await;
                continue;
            }
            let length = content.len();
            if !self.rooms.has_room((writer, chain), length) {
                return Err(self.full(&name, line.record.seq).await);
            }
            let subject = subject::stored_audit(writer.as_str(), chain, false);
            let (number, total) = stored.map_or((0, 0), |stored| (stored.number, stored.total));
            let total = total.saturating_add(taken(length));
            let appended = self.log.append(subject, content, (&note, total), number).await;
            match appended {
                Ok(Append::Done(number)) => {
                    stored = Some(Stored { head: line.head(), number, total });
                    self.know(&name, stored, true);
                    self.metrics.audit_stored();
                    if self.rooms.stored((writer, chain), length) {
                        self.rolls(&name, line.record.seq).await;
                    }
                }
                Ok(Append::Overtaken) => {
                    // Another instance has stored these or others: the writer compares.
                    self.know(&name, None, false);
                    let now = self.load(&name).await.map_err(|error| away(&error))?;
                    return Ok(reply(now, false));
                }
                Err(error) => {
                    // It may be stored all the same.
                    self.know(&name, None, false);
                    return Err(away(&error));
                }
            }
            if let Place::Gap { .. } = placed {
                self.find(&name, line.record.seq, "gap", note).await;
            }
        }
        Ok(reply(stored, diverged))
    }

    /// The lines of a request, which have to be the writer's.
    async fn read(&self, name: &Name, texts: &[String]) -> Result<Vec<Line>, ApiError> {
        let (writer, chain) = name;
        let mut lines = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            let at = format!("lines[{i}]");
            if text.len() > LINE_BYTES {
                let said =
                    format!("a record of {} bytes; at most {LINE_BYTES} are stored", text.len());
                self.find(name, 0, "long", said.clone()).await;
                return Err(invalid(&at, said));
            }
            let line = Line::read(text.as_str()).map_err(|said| invalid(&at, said))?;
            if line.record.writer != *writer || line.record.chain != *chain {
                let said = format!(
                    "{writer} sent a record of {}, chain {}",
                    line.record.writer,
                    for_log(&line.record.chain)
                );
                self.find(name, line.record.seq, "foreign", said.clone()).await;
                return Err(ApiError::new(Code::Denied, said).at(at));
            }
            lines.push(line);
        }
        Ok(lines)
    }

    fn know(&self, name: &Name, stored: Option<Stored>, grown: bool) {
        let mut state = self.state();
        match stored {
            Some(stored) => state.heads.insert(name.clone(), stored),
            None => state.heads.remove(name),
        };
        if grown {
            state.grown.insert(name.clone());
        }
    }

    /// How far a chain is stored. What was signed and is not there any more is found here.
    async fn load(&self, name: &Name) -> Result<Option<Stored>, BusError> {
        let (writer, chain) = name;
        let subject = subject::stored_audit(writer.as_str(), chain, false);
        let last = self.log.last(&subject).await?;
        let signed = self.checkpoints.of(name).await?;
        let stored = last.and_then(|entry| {
            let line = Line::read(String::from_utf8_lossy(&entry.content)).ok()?;
            Some(Stored { head: line.head(), number: entry.number, total: entry.total })
        });
        let Some(signed) = signed else { return Ok(stored) };
        let last = stored.map_or(0, |stored| stored.head.seq);
        if last >= signed.seq {
            return Ok(stored);
        }
        if stored.is_none() && self.log.bounds().await?.0 > signed.stored {
            // Removed in order, all of them; the chain goes on.
            return Ok(Some(Stored { head: signed.head(), number: 0, total: 0 }));
        }
        let said = format!("{last} records are stored; {} were", signed.seq);
        self.find(name, last, "cut", said).await;
        Ok(stored)
    }

    /// A chain that nothing is stored of yet.
    async fn first_of_chain(&self, name: &Name, line: &Line) -> Result<(), ApiError> {
        let (writer, chain) = name;
        let pattern = subject::stored_audit_of(writer.as_str());
        let subjects = self.log.subjects(&pattern).await.map_err(|error| away(&error))?;
        let chains = subjects.keys().filter_map(|subject| subject::stored_chain(subject));
        let others: BTreeSet<&str> =
            chains.map(|(_, other)| other).filter(|other| other != chain).collect();
        let of_host = daemon_of(writer).is_some_and(|(_, host)| host.is_some());
        let most = if of_host { CHAINS_OF_HOST } else { CHAINS };
        if others.len() >= most {
            let said = format!("{} chains of {writer} are stored already", others.len());
            self.find(name, line.record.seq, "begun_anew", said.clone()).await;
            return Err(ApiError::new(Code::Denied, said).remedy(
                "find out why its trail begins again and again; it is kept there meanwhile",
            ));
        }
        if of_host && let Some(before) = others.first() {
            let said = format!(
                "{writer} began the chain {chain} although it had {before}: {}",
                line.record.reason
            );
            self.find(name, line.record.seq, "begun_anew", said).await;
        }
        Ok(())
    }

    /// A writer has filled its room. Its records wait with it.
    async fn full(&self, name: &Name, seq: u64) -> ApiError {
        let (writer, most) = (&name.0, self.rooms.bytes());
        let said = format!(
            "the {most} bytes that are stored of {writer} are full; record {seq} and later ones stay with it"
        );
        if self.rooms.is_full(writer) {
            self.find(name, seq, "full", said.clone()).await;
        }
        ApiError::new(Code::Unavailable, said).reason("room_full").remedy(
            "find out what it records so much of; raise audit.writer_bytes if that is right",
        )
    }

    /// The oldest records of a chain go for its newest.
    async fn rolls(&self, name: &Name, seq: u64) {
        let said = format!(
            "more than {} records are stored of the chain: with each new one the oldest goes; see who \
             caused the latest of them",
            self.rooms.records_of_chain()
        );
        self.find(name, seq, "rolling", said).await;
    }

    /// Tells of something that is not as it should be.
    async fn find(&self, (writer, chain): &Name, seq: u64, code: &str, finding: String) {
        self.metrics.audit_finding(code);
        let Some(untold) = self.findings.note(writer, code) else { return };
        let finding = match untold {
            0 => finding,
            untold => format!("{finding} ({untold} more like it since the last that was reported)"),
        };
        tracing::error!(%writer, %chain, seq, code, "audit: {finding}");
        let event = AuditFinding {
            time: rfc3339(clock::now()),
            writer: writer.clone(),
            chain: chain.clone(),
            seq,
            code: code.to_owned(),
            finding,
        };
        let told = self.bus.publish_event(Service::Policy, "audit", "finding", None, &event).await;
        if let Err(error) = told {
            tracing::warn!(%error, "the bus was not told of a finding");
        }
    }
}

fn invalid(at: &str, said: String) -> ApiError {
    ApiError::new(Code::Invalid, said).at(at).remedy("send whole lines of one chain, in order")
}

/// This service's own records.
pub(super) struct Own(pub(super) Arc<Archive>, pub(super) Principal);

impl Store for Own {
    async fn store(&self, request: AuditAppendRequest) -> Result<AuditAppendReply, NotStored> {
        let stored = self.0.append(&self.1, &request).await;
        stored.map_err(|error| NotStored::NotNow(error.message))
    }
}
