//! The audit trail of this service, on disk: a record is there before the change that it is about.
//!
//! A directory of segments, one record a line ([`canopy_audit`]), each appended and synced. The oldest
//! segments go when there is no more room, which a record says first. A trail that is not as it was
//! written is set aside whole, and a new chain says why it begins.

use canopy_api::{Principal, time};
use canopy_audit::{Chain, Entry, Head, Kind, LineHash, Verifier};
use std::{
    collections::VecDeque,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

/// Segments a full trail has, about.
const SEGMENTS: u64 = 8;

type Tell = Box<dyn Fn(bool, &str) + Send + Sync>;

/// A trail. Everything here blocks on the disk.
pub struct Spool {
    dir: PathBuf,
    writer: Principal,
    limit: u64,
    tell: Tell,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// `None` while it could not be opened.
    trail: Option<Trail>,
    well: Option<bool>,
}

/// A trail that is open.
struct Trail {
    chain: Chain,
    /// Oldest first; the last one grows.
    segments: VecDeque<Segment>,
    /// The last one, open.
    file: Option<File>,
    /// Whether it may end in a part of a line, which is left out when it is read anew.
    torn: bool,
}

struct Segment {
    path: PathBuf,
    bytes: u64,
    /// Its last record.
    last: Head,
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spool").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Spool {
    /// A trail in a directory, which is made if it is not there, of at most `limit` bytes. `tell` is
    /// called when records can be kept and when they cannot be any more, with a reason. A directory that
    /// cannot be used now is tried again with every record.
    pub fn new(
        dir: impl Into<PathBuf>,
        writer: Principal,
        limit: u64,
        now: SystemTime,
        tell: impl Fn(bool, &str) + Send + Sync + 'static,
    ) -> Self {
        let dir = dir.into();
        let state = Mutex::default();
        let spool = Self { dir, writer, limit, tell: Box::new(tell), state };
        let mut state = spool.lock();
        let opened = spool.opened(&mut state, &time::rfc3339(now)).map(drop);
        spool.told(&mut state, opened.map_err(|error| error.to_string()));
        drop(state);
        spool
    }

    /// A record's place, as it is told: `<chain>/<seq>:<hash>`.
    pub(crate) fn name(&self, head: Head) -> String {
        match &self.lock().trail {
            Some(trail) => format!("{}/{head}", trail.chain.id()),
            None => head.to_string(),
        }
    }

    /// Keeps a record, durably, and says which it is. When it cannot, there is no trace of it.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn append(&self, entry: Entry) -> io::Result<Head> {
        let mut state = self.lock();
        let time = entry.time.clone();
        let kept = self.opened(&mut state, &time).and_then(|trail| {
            let head = self.write(trail, entry)?;
            // The record is kept whatever becomes of this.
            if let Err(error) = self.make_room(trail, &time) {
                tracing::error!(dir = %self.dir.display(), "old audit records stay: {error}");
            }
            Ok(head)
        });
        if state.trail.as_ref().is_some_and(|trail| trail.torn) {
            state.trail = None;
        }
        self.told(&mut state, kept.as_ref().map(drop).map_err(ToString::to_string));
        kept
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self, state: &mut State, kept: Result<(), String>) {
        if state.well == Some(kept.is_ok()) {
            return;
        }
        state.well = Some(kept.is_ok());
        match kept {
            Ok(()) => (self.tell)(true, "records are kept before every change"),
            Err(error) => (self.tell)(false, &format!("{}: {error}", self.dir.display())),
        }
    }

    fn opened<'a>(&self, state: &'a mut State, now: &str) -> io::Result<&'a mut Trail> {
        if state.trail.is_none() {
            state.trail = Some(self.open(now)?);
        }
        state.trail.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Reads what is there, or begins a chain.
    fn open(&self, now: &str) -> io::Result<Trail> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let mut verifier = Verifier::default();
        let mut segments = VecDeque::new();
        for path in segment_files(&self.dir)? {
            segments.push_back(read(path, &mut verifier)?);
        }
        let report = verifier.end();
        let writer = self.writer.clone();
        let foreign = report.writer.as_ref().is_some_and(|of| *of != writer);
        let reason = match (report.head, report.findings.first()) {
            (Some(head), None) if !foreign => {
                let chain = Chain::at(writer, report.chain, head);
                tracing::info!(chain = chain.id(), %head, "the audit trail goes on");
                return Ok(Trail { chain, segments, file: None, torn: false });
            }
            (None, None) => "there was none".to_owned(),
            (_, finding) => {
                let what = finding.map_or("it is another writer's".to_owned(), ToString::to_string);
                let aside = set_aside(&self.dir)?;
                format!("the one before is set aside in {}: {what}", aside.display())
            }
        };
        tracing::warn!(dir = %self.dir.display(), "an audit trail begins: {reason}");
        let chain = Chain::new(writer, format!("{:016x}", rand::random::<u64>()));
        let mut trail = Trail { chain, segments: VecDeque::new(), file: None, torn: false };
        self.write(&mut trail, Entry { reason, ..Entry::new(Kind::Opened, now) })?;
        Ok(trail)
    }

    fn write(&self, trail: &mut Trail, entry: Entry) -> io::Result<Head> {
        let (mut line, next) = trail.chain.next(entry)?;
        line.push('\n');
        let full = |segment: &Segment| segment.bytes >= self.limit / SEGMENTS;
        if trail.segments.back().is_none_or(full) {
            let path = self.dir.join(format!("{:020}.jsonl", next.head().seq));
            let open = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
            File::open(&self.dir)?.sync_all()?;
            trail.file = Some(open);
            let last = trail.chain.head();
            trail.segments.push_back(Segment { path, bytes: 0, last });
        }
        let Some(segment) = trail.segments.back_mut() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let mut file = match trail.file.take() {
            Some(file) => file,
            None => OpenOptions::new().append(true).open(&segment.path)?,
        };
        let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_data());
        if let Err(error) = written {
            // A part of the line must not be taken for the beginning of the next.
            trail.torn = file.set_len(segment.bytes).is_err();
            return Err(error);
        }
        segment.bytes += line.len() as u64;
        segment.last = next.head();
        trail.file = Some(file);
        trail.chain = next;
        Ok(segment.last)
    }

    /// Removes the oldest segments while there are too many bytes, and writes down which before.
    fn make_room(&self, trail: &mut Trail, time: &str) -> io::Result<()> {
        while trail.segments.len() > 1
            && trail.segments.iter().map(|segment| segment.bytes).sum::<u64>() > self.limit
        {
            let Some(oldest) = trail.segments.front().map(|oldest| oldest.last) else { break };
            let entry = Entry {
                of: Some(oldest.seq),
                previous_of: Some(oldest.hash),
                reason: format!("at most {} bytes are kept", self.limit),
                ..Entry::new(Kind::Trimmed, time)
            };
            self.write(trail, entry)?;
            if let Some(oldest) = trail.segments.pop_front() {
                fs::remove_file(&oldest.path)?;
            }
        }
        Ok(())
    }
}

/// Reads a segment; a last line without its break was never acted on, and goes.
fn read(path: PathBuf, verifier: &mut Verifier) -> io::Result<Segment> {
    let mut bytes = fs::read(&path)?;
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    if whole < bytes.len() {
        let file = OpenOptions::new().write(true).open(&path)?;
        file.set_len(whole as u64)?;
        file.sync_all()?;
        bytes.truncate(whole);
    }
    let mut last = Head { seq: 0, hash: LineHash::NONE };
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        if let Some(record) = verifier.line(line) {
            last = Head { seq: record.seq, hash: LineHash::of(line) };
        }
    }
    Ok(Segment { path, bytes: bytes.len() as u64, last })
}

/// The segments of a trail, oldest first.
fn segment_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_file() && path.extension().is_some_and(|extension| extension == "jsonl") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Moves every segment into a directory of its own.
fn set_aside(dir: &Path) -> io::Result<PathBuf> {
    let mut number = 1;
    let aside = loop {
        let aside = dir.join(format!("damaged-{number}"));
        match DirBuilder::new().mode(0o700).create(&aside) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            made => break made.map(|()| aside)?,
        }
    };
    for path in segment_files(dir)? {
        if let Some(name) = path.file_name() {
            fs::rename(&path, aside.join(name))?;
        }
    }
    File::open(dir)?.sync_all()?;
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use canopy_audit::Report;
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        time::{Duration, UNIX_EPOCH},
    };

    fn open(dir: &Path, limit: u64) -> Spool {
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        Spool::new(dir, "h-web1-loader".parse().unwrap(), limit, now, |_, _| {})
    }

    fn entry(text: &str) -> Entry {
        Entry { reason: text.to_owned(), ..Entry::new(Kind::Begun, "t") }
    }

    fn report(dir: &Path) -> Report {
        let mut verifier = Verifier::default();
        for path in segment_files(dir).unwrap() {
            for line in fs::read_to_string(path).unwrap().lines() {
                verifier.line(line.as_bytes());
            }
        }
        verifier.end()
    }

    fn only(dir: &Path) -> PathBuf {
        let files = segment_files(dir).unwrap();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }

    #[test]
    fn a_chain_goes_on_over_restarts_and_torn_lines() {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path(), 1 << 20);
        assert_eq!(spool.append(entry("a")).unwrap().seq, 2, "after the one that opens it");
        drop(spool);
        let file = only(dir.path());
        OpenOptions::new().append(true).open(&file).unwrap().write_all(b"{\"seq\":3,").unwrap();
        let spool = open(dir.path(), 1 << 20);
        assert_eq!(spool.append(entry("b")).unwrap().seq, 3);
        let report = report(dir.path());
        assert_eq!((report.findings, report.records, report.head.unwrap().seq), (vec![], 3, 3));
    }

    #[test]
    fn a_trail_that_was_changed_is_set_aside_and_the_new_one_says_so() {
        for change in ["edit", "cut", "empty"] {
            let dir = tempfile::tempdir().unwrap();
            let spool = open(dir.path(), 1 << 20);
            for text in ["a", "b", "c"] {
                spool.append(entry(text)).unwrap();
            }
            let chain = report(dir.path()).chain;
            drop(spool);
            let file = only(dir.path());
            let text = fs::read_to_string(&file).unwrap();
            let changed = match change {
                "edit" => text.replace("\"reason\":\"b\"", "\"reason\":\"x\""),
                "cut" => text.lines().skip(1).flat_map(|line| [line, "\n"]).collect(),
                _ => "not a record\n".to_owned(),
            };
            fs::write(&file, changed).unwrap();
            let spool = open(dir.path(), 1 << 20);
            spool.append(entry("d")).unwrap();
            let report = report(dir.path());
            assert_eq!((report.findings, report.records), (vec![], 2), "{change}");
            assert_ne!(report.chain, chain, "{change}");
            let now = fs::read_to_string(only(dir.path())).unwrap();
            assert!(now.contains("\"kind\":\"opened\"") && now.contains("set aside in"), "{now}");
            let aside = fs::read_dir(dir.path()).unwrap().filter_map(Result::ok);
            let aside = aside.filter(|entry| entry.path().is_dir()).count();
            assert_eq!(aside, 1, "{change}: what was there is kept");
        }
    }

    #[test]
    fn the_oldest_records_go_in_order_and_the_rest_is_still_a_chain() {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path(), 20_000);
        for i in 0..400 {
            spool.append(entry(&format!("record {i}"))).unwrap();
            if i % 37 == 0 {
                assert_eq!(report(dir.path()).findings, [], "after {i}");
            }
        }
        let bytes: u64 = segment_files(dir.path())
            .unwrap()
            .iter()
            .map(|path| fs::metadata(path).unwrap().len())
            .sum();
        assert!(bytes < 24_000, "{bytes} bytes");
        let now = report(dir.path());
        assert!(now.findings.is_empty() && now.first > 200, "{now:?}");
        drop(spool);
        // One more segment away is not in order.
        let first = segment_files(dir.path()).unwrap().remove(0);
        fs::remove_file(first).unwrap();
        assert_eq!(report(dir.path()).findings.len(), 1);
    }

    #[test]
    fn what_cannot_be_kept_leaves_no_trace_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let well = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&well);
        let now = UNIX_EPOCH;
        let writer: Principal = "h-web1-loader".parse().unwrap();
        let spool = Spool::new(dir.path(), writer, 1 << 20, now, move |ok, _| {
            told.store(ok, Ordering::SeqCst);
        });
        assert!(well.load(Ordering::SeqCst));
        // A descriptor that takes nothing stands for a disk that is full.
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        spool.lock().trail.as_mut().unwrap().file = Some(full);
        spool.append(entry("lost")).unwrap_err();
        assert!(!well.load(Ordering::SeqCst));
        let head = spool.append(entry("kept")).unwrap();
        assert!(well.load(Ordering::SeqCst));
        assert_eq!(head.seq, 2);
        assert_eq!(report(dir.path()).findings, []);
    }

    #[test]
    fn a_place_that_cannot_be_used_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("audit");
        fs::write(&place, "in the way").unwrap();
        let spool = open(&place, 1 << 20);
        spool.append(entry("a")).unwrap_err();
        fs::remove_file(&place).unwrap();
        assert_eq!(spool.append(entry("b")).unwrap().seq, 2);
        assert_eq!(report(&place).findings, []);
    }
}
