//! Answers to requests that change something, kept so that a repeat gets the first answer.
//!
//! Bounded in number and bytes, oldest out first; kept in a file where one is given, one JSON object a
//! line, appended before the answer is sent: a process that is killed then has it. It is not synced: a
//! crash between the work and that line, or a power cut soon after it, means that a repeat is worked on
//! again. Endpoints have to bear that (generations do).
//! Answers that say "later" are not kept: the repeat is the retry.

use crate::in_flight::InFlight;
use canopy_api::{Blob, error::ApiError};
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, VecDeque},
    fs::{File, OpenOptions},
    io::{self, BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::watch;

/// Whose request, to which verb, with which id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Key {
    pub(crate) principal: String,
    pub(crate) verb: String,
    pub(crate) request_id: String,
}

/// A finished answer: the encoded reply, or the error.
pub(crate) type Answer = Result<Arc<Vec<u8>>, ApiError>;

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    key: Key,
    /// Digest of the request: the same id with another request is a mistake.
    request: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reply: Option<Blob>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<ApiError>,
}

enum Entry {
    Running { request: String, done: watch::Receiver<Option<Answer>> },
    Done { request: String, answer: Answer },
}

#[derive(Default)]
struct State {
    entries: HashMap<Key, Entry>,
    /// Finished ones, oldest first.
    order: VecDeque<(Key, usize)>,
    bytes: usize,
}

struct Store {
    path: PathBuf,
    file: File,
    /// Lines in it, and bytes added since it was written anew.
    lines: usize,
    added: usize,
}

/// The table. Clones share it.
#[derive(Clone)]
pub(crate) struct Table(Arc<Inner>);

struct Inner {
    in_flight: InFlight,
    state: Mutex<State>,
    store: Option<Mutex<Store>>,
    most: usize,
    most_bytes: usize,
}

/// What to do with a request.
pub(crate) enum Begin {
    /// Never seen: work on it, then tell.
    Work(Guard),
    /// The first one is still being worked on: wait for its answer.
    Wait(watch::Receiver<Option<Answer>>),
    /// Answered before.
    Answered(Answer),
    /// The id belongs to another request.
    Mismatch,
}

/// Held while a request is worked on. Dropped without an answer, the request is forgotten.
pub(crate) struct Guard {
    table: Table,
    key: Key,
    request: String,
    tell: watch::Sender<Option<Answer>>,
}

impl Table {
    /// Reads what the file remembers. A last line cut off by a crash is left out; so are lines that
    /// cannot be read.
    pub(crate) fn open(most: usize, most_bytes: usize, path: Option<&Path>) -> io::Result<Self> {
        let mut state = State::default();
        let mut store = None;
        if let Some(path) = path {
            if let Ok(file) = canopy_files::open(path) {
                for line in BufReader::new(file).lines() {
                    let Ok(line) = line else { break };
                    let Ok(line) = serde_json::from_str::<Line>(&line) else { continue };
                    let answer = match (line.reply, line.error) {
                        (Some(reply), None) => Ok(Arc::new(reply.0)),
                        (None, Some(error)) => Err(error),
                        _ => continue,
                    };
                    state.insert(line.key, line.request, answer, most, most_bytes);
                }
            }
            let (file, lines) = state.write(path)?;
            store = Some(Mutex::new(Store { path: path.to_owned(), file, lines, added: 0 }));
        }
        Ok(Self(Arc::new(Inner {
            in_flight: InFlight::default(),
            state: Mutex::new(state),
            store,
            most,
            most_bytes,
        })))
    }

    /// Requests of any kind that have no answer yet.
    pub(crate) fn in_flight(&self) -> &InFlight {
        &self.0.in_flight
    }

    /// Looks a request up, and takes it on if it is new.
    pub(crate) fn begin(&self, key: Key, request: String) -> Begin {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.entries.get(&key) {
            Some(Entry::Running { request: first, .. } | Entry::Done { request: first, .. })
                if *first != request =>
            {
                Begin::Mismatch
            }
            Some(Entry::Running { done, .. }) => Begin::Wait(done.clone()),
            Some(Entry::Done { answer, .. }) => Begin::Answered(answer.clone()),
            None => {
                let (tell, done) = watch::channel(None);
                state
                    .entries
                    .insert(key.clone(), Entry::Running { request: request.clone(), done });
                Begin::Work(Guard { table: self.clone(), key, request, tell })
            }
        }
    }

    fn remember(&self, line: &Line) -> io::Result<()> {
        let Some(store) = &self.0.store else { return Ok(()) };
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
        // Before this line is added: it is not in the state yet.
        if store.lines >= self.0.most.saturating_mul(4)
            || store.added >= self.0.most_bytes.saturating_mul(4)
        {
            let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
            let (file, lines) = state.write(&store.path)?;
            (store.file, store.lines, store.added) = (file, lines, 0);
        }
        store.file.write_all(&text)?;
        store.lines += 1;
        store.added += text.len();
        Ok(())
    }
}

impl State {
    fn insert(
        &mut self,
        key: Key,
        request: String,
        answer: Answer,
        most: usize,
        most_bytes: usize,
    ) {
        let size = match &answer {
            Ok(reply) => reply.len(),
            Err(error) => error_size(error),
        };
        self.order.push_back((key.clone(), size));
        self.bytes += size;
        self.entries.insert(key, Entry::Done { request, answer });
        while self.order.len() > most || self.bytes > most_bytes {
            let Some((old, size)) = self.order.pop_front() else { break };
            self.bytes -= size;
            self.entries.remove(&old);
        }
    }

    /// Writes everything anew, beside the old file and then over it.
    fn write(&self, path: &Path) -> io::Result<(File, usize)> {
        let temporary = path.with_extension("new");
        let mut file = File::create(&temporary)?;
        let mut lines = 0;
        for (key, _) in &self.order {
            let Some(Entry::Done { request, answer }) = self.entries.get(key) else { continue };
            let (reply, error) = match answer {
                Ok(reply) => (Some(Blob(reply.to_vec())), None),
                Err(error) => (None, Some(error.clone())),
            };
            let line = Line { key: key.clone(), request: request.clone(), reply, error };
            serde_json::to_writer(&mut file, &line)?;
            file.write_all(b"\n")?;
            lines += 1;
        }
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        Ok((OpenOptions::new().append(true).open(path)?, lines))
    }
}

/// What an error takes, about: one of them may carry a verifier's whole log.
fn error_size(error: &ApiError) -> usize {
    let problems = error.problems.iter().map(|problem| {
        let remedy = problem.remedy.as_ref().map_or(0, String::len);
        problem.path.len() + problem.message.len() + remedy
    });
    let remedy = error.remedy.as_ref().map_or(0, String::len);
    256 + error.message.len() + error.path.len() + remedy + problems.sum::<usize>()
}

impl Guard {
    /// Keeps the answer and tells those who wait for it. Blocks on the disk.
    pub(crate) fn finish(self, answer: &Answer) {
        if !answer.as_ref().is_err_and(|error| error.retryable) {
            let table = &self.table.0;
            let (reply, error) = match answer {
                Ok(reply) => (Some(Blob(reply.to_vec())), None),
                Err(error) => (None, Some(error.clone())),
            };
            let line = Line { key: self.key.clone(), request: self.request.clone(), reply, error };
            if let Err(error) = self.table.remember(&line) {
                tracing::error!(%error, "an answer is remembered only until the next restart");
            }
            table.state.lock().unwrap_or_else(PoisonError::into_inner).insert(
                self.key.clone(),
                self.request.clone(),
                answer.clone(),
                table.most,
                table.most_bytes,
            );
        }
        self.tell.send_replace(Some(answer.clone()));
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut state = self.table.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Entry::Running { .. }) = state.entries.get(&self.key) {
            state.entries.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use canopy_api::error::Code;

    fn key(id: &str) -> Key {
        Key { principal: "u-a".into(), verb: "apply".into(), request_id: id.into() }
    }

    fn work(table: &Table, id: &str, answer: &Answer) {
        match table.begin(key(id), "r".into()) {
            Begin::Work(guard) => guard.finish(answer),
            _ => panic!("{id} was known"),
        }
    }

    fn known(table: &Table, id: &str) -> Option<Answer> {
        match table.begin(key(id), "r".into()) {
            Begin::Answered(answer) => Some(answer),
            _ => None,
        }
    }

    #[allow(clippy::unnecessary_wraps, reason = "an answer is a result")]
    fn reply(text: &str) -> Answer {
        Ok(Arc::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn a_repeat_gets_the_first_answer() {
        let table = Table::open(8, 1024, None).unwrap();
        work(&table, "1", &reply("first"));
        assert_eq!(known(&table, "1"), Some(reply("first")));
        assert!(matches!(table.begin(key("1"), "other".into()), Begin::Mismatch));
    }

    #[test]
    fn later_is_not_an_answer_and_a_dropped_worker_forgets() {
        let table = Table::open(8, 1024, None).unwrap();
        work(&table, "1", &Err(ApiError::new(Code::Unavailable, "later")));
        assert_eq!(known(&table, "1"), None);
        match table.begin(key("2"), "r".into()) {
            Begin::Work(guard) => drop(guard),
            _ => panic!("known"),
        }
        assert!(matches!(table.begin(key("2"), "r".into()), Begin::Work(_)));
    }

    #[test]
    fn bounded_by_number_and_bytes() {
        let table = Table::open(2, 1024, None).unwrap();
        for id in ["1", "2", "3"] {
            work(&table, id, &reply("x"));
        }
        assert_eq!(known(&table, "1"), None);
        assert!(known(&table, "3").is_some());
        let table = Table::open(100, 10, None).unwrap();
        work(&table, "1", &reply("12345678"));
        work(&table, "2", &reply("12345678"));
        assert_eq!(known(&table, "1"), None);
        assert!(known(&table, "2").is_some());
    }

    /// The file is written anew now and then; the answer at hand at that moment is in it too.
    #[test]
    fn every_answer_is_on_disk_when_it_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers");
        let table = Table::open(2, 1024, Some(&path)).unwrap();
        for id in 0..30 {
            work(&table, &id.to_string(), &reply("x"));
            let restarted = Table::open(2, 1024, Some(&copy(&path, dir.path()))).unwrap();
            assert_eq!(known(&restarted, &id.to_string()), Some(reply("x")), "{id}");
        }
    }

    #[test]
    fn a_long_error_takes_the_room_it_takes() {
        let table = Table::open(100, 10_000, None).unwrap();
        let long = Err(ApiError::new(Code::Invalid, "x".repeat(6000)));
        work(&table, "1", &long);
        work(&table, "2", &long);
        assert_eq!(known(&table, "1"), None);
        assert_eq!(known(&table, "2"), Some(long));
    }

    #[test]
    fn the_file_is_bounded_in_bytes_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers");
        let table = Table::open(1000, 10_000, Some(&path)).unwrap();
        for id in 0..200 {
            work(&table, &id.to_string(), &reply(&"x".repeat(4000)));
        }
        let length = std::fs::metadata(&path).unwrap().len();
        assert!(length < 100_000, "{length} bytes");
    }

    fn copy(path: &Path, to: &Path) -> PathBuf {
        let copy = to.join("copy");
        std::fs::copy(path, &copy).unwrap();
        copy
    }

    #[test]
    fn kept_over_a_restart_and_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers");
        let table = Table::open(2, 1024, Some(&path)).unwrap();
        let denied = Err(ApiError::new(Code::Invalid, "no"));
        for id in 0..20 {
            work(&table, &id.to_string(), &reply("x"));
        }
        work(&table, "last", &denied);
        drop(table);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"key\":{").unwrap();
        let table = Table::open(2, 1024, Some(&path)).unwrap();
        assert_eq!(known(&table, "last"), Some(denied));
        assert_eq!(known(&table, "19"), Some(reply("x")));
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
    }
}
