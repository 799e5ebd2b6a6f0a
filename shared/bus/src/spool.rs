//! The audit trail of this service, on disk: a record is there before the change that it is about.
//!
//! A directory of segments, one record a line ([`canopy_audit`]), each appended and synced. The oldest
//! segments go when there is no more room, which a record says first. A trail that is not as it was
//! written is set aside whole, and a new chain says why it begins.

use crate::for_log::cut;
use canopy_api::{Principal, time};
use canopy_audit::{Chain, Entry, Head, Kind, LineHash, Verifier};
use std::{
    collections::VecDeque,
    fmt::Write as _,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};
use tokio::sync::Notify;

/// Segments a full trail has, about.
const SEGMENTS: u64 = 8;

/// Longest segment that is read, bytes: of any limit that a disk has room for.
const LONGEST: u64 = 4 << 30;
/// Lines that are kept in memory for whoever sends them on.
const RECENT: usize = 256;
/// Bytes of a record's reason.
const REASON: usize = 1000;
/// Bytes of a record's rules together.
const RULES: usize = 1000;
/// Bytes of any other text of a record.
const SHORT: usize = 100;

type Tell = Box<dyn Fn(bool, &str) + Send + Sync>;

/// A trail. Everything here blocks on the disk.
pub struct Spool {
    dir: PathBuf,
    writer: Principal,
    limit: u64,
    tell: Tell,
    state: Mutex<State>,
    grown: Notify,
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
    /// The last lines, without their breaks.
    recent: VecDeque<(u64, String)>,
    /// The last record that whoever stores copies has said to have.
    stored: u64,
}

impl Trail {
    fn new(chain: Chain, segments: VecDeque<Segment>) -> Self {
        Self { chain, segments, file: None, torn: false, recent: VecDeque::new(), stored: 0 }
    }
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
        let grown = Notify::new();
        let spool = Self { dir, writer, limit, tell: Box::new(tell), state, grown };
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
        let entry = bounded(entry);
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
        self.grown.notify_one();
        kept
    }

    /// Waits until there is a record more than before.
    pub(crate) async fn grown(&self) {
        self.grown.notified().await;
    }

    /// The chain and its last record; `None` while the trail cannot be used.
    pub(crate) fn at(&self) -> Option<(String, Head)> {
        let state = self.lock();
        state.trail.as_ref().map(|trail| (trail.chain.id().to_owned(), trail.chain.head()))
    }

    /// Number of the oldest record there is.
    pub(crate) fn first(&self) -> Option<u64> {
        let state = self.lock();
        let oldest = state.trail.as_ref()?.segments.front()?;
        first_of(&oldest.path)
    }

    /// Records behind one, in order, at most `lines` and about `bytes` of them; older ones than there
    /// are begin with the oldest.
    ///
    /// # Errors
    /// When the disk does not give them.
    pub(crate) fn after(&self, seq: u64, lines: usize, bytes: usize) -> io::Result<Vec<String>> {
        let mut files = Vec::new();
        {
            let state = self.lock();
            let Some(trail) = &state.trail else { return Ok(Vec::new()) };
            if trail.recent.front().is_some_and(|(first, _)| *first <= seq + 1) {
                let recent = trail.recent.iter().filter(|(one, _)| *one > seq);
                return Ok(some(recent.map(|(_, line)| line.clone()), lines, bytes));
            }
            let behind = trail.segments.iter().filter(|segment| segment.last.seq > seq);
            files.extend(behind.map(|segment| segment.path.clone()).take(2));
        }
        let mut found = Vec::new();
        for path in files {
            let Some(first) = first_of(&path) else { continue };
            let text = match canopy_files::read_text(&path, LONGEST) {
                // Removed meanwhile, as there is no more room.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                text => text?,
            };
            let whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
            let skip = usize::try_from((seq + 1).saturating_sub(first)).unwrap_or(usize::MAX);
            found.extend(whole.skip(skip).take(lines).map(str::to_owned));
        }
        Ok(some(found.into_iter(), lines, bytes))
    }

    /// Whoever stores copies has the records up to this one.
    pub(crate) fn stored(&self, seq: u64) {
        if let Some(trail) = &mut self.lock().trail {
            trail.stored = trail.stored.max(seq);
        }
    }

    /// Sets the trail aside and begins another, which says why.
    ///
    /// # Errors
    /// When the disk does not take it. The trail is as before, or begun anew with the next record.
    pub(crate) fn begin_anew(&self, why: &str, now: SystemTime) -> io::Result<()> {
        let mut state = self.lock();
        let aside = set_aside(&self.dir)?;
        state.trail = None;
        let reason = format!("the one before is set aside in {}: {why}", aside.display());
        state.trail = Some(self.begin(reason, &time::rfc3339(now))?);
        self.grown.notify_one();
        Ok(())
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
                return Ok(Trail::new(chain, segments));
            }
            (None, None) => "there was none".to_owned(),
            (_, finding) => {
                let what = finding.map_or("it is another writer's".to_owned(), ToString::to_string);
                let aside = set_aside(&self.dir)?;
                format!("the one before is set aside in {}: {what}", aside.display())
            }
        };
        self.begin(reason, now)
    }

    fn begin(&self, reason: String, now: &str) -> io::Result<Trail> {
        tracing::warn!(dir = %self.dir.display(), "an audit trail begins: {reason}");
        let chain = Chain::new(self.writer.clone(), format!("{:016x}", rand::random::<u64>()));
        let mut trail = Trail::new(chain, VecDeque::new());
        self.write(&mut trail, bounded(Entry { reason, ..Entry::new(Kind::Opened, now) }))?;
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
        let last = segment.last;
        trail.file = Some(file);
        trail.chain = next;
        line.pop();
        trail.recent.push_back((last.seq, line));
        if trail.recent.len() > RECENT {
            trail.recent.pop_front();
        }
        Ok(last)
    }

    /// Removes the oldest segments while there are too many bytes, and writes down which before.
    fn make_room(&self, trail: &mut Trail, time: &str) -> io::Result<()> {
        while trail.segments.len() > 1
            && trail.segments.iter().map(|segment| segment.bytes).sum::<u64>() > self.limit
        {
            let Some(oldest) = trail.segments.front().map(|oldest| oldest.last) else { break };
            let mut reason = format!("at most {} bytes are kept", self.limit);
            if trail.stored < oldest.seq {
                let _ = write!(reason, "; policy has said to have them up to {}", trail.stored);
                tracing::error!(
                    dir = %self.dir.display(), stored = trail.stored, removed = oldest.seq,
                    "audit records that policy does not have are removed, as there is no more room"
                );
            }
            let entry = Entry {
                of: Some(oldest.seq),
                previous_of: Some(oldest.hash),
                reason,
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

/// An entry whose line is not longer than [`canopy_audit::LINE_BYTES`]: what somebody else may have written
/// is cut, with a mark.
fn bounded(entry: Entry) -> Entry {
    let text = |text: Option<String>| text.map(|text| cut(&text, SHORT));
    let mut room = RULES;
    let mut rules = Vec::new();
    let all = entry.rules.len();
    for rule in entry.rules {
        let rule = cut(&rule, SHORT);
        let Some(left) = room.checked_sub(rule.len()) else {
            rules.push(format!("… ({} more)", all - rules.len()));
            break;
        };
        room = left;
        rules.push(rule);
    }
    Entry {
        reason: cut(&entry.reason, REASON),
        rules,
        verb: text(entry.verb),
        request_id: text(entry.request_id),
        peer: text(entry.peer),
        token: text(entry.token),
        ..entry
    }
}

/// Reads a segment; a last line without its break was never acted on, and goes.
fn read(path: PathBuf, verifier: &mut Verifier) -> io::Result<Segment> {
    let mut bytes = canopy_files::read(&path, LONGEST)?;
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

/// As many as there is room for, one at least.
fn some(all: impl Iterator<Item = String>, lines: usize, bytes: usize) -> Vec<String> {
    let mut taken = 0;
    let fits = |line: &String| {
        let first = taken == 0;
        taken += line.len();
        first || taken <= bytes
    };
    all.take(lines).take_while(fits).collect()
}

/// Number of a segment's first record, which its name is.
fn first_of(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.parse().ok()
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
    use serde_json::Value;
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
    fn records_behind_one_are_read_back_to_be_sent_on() {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path(), 1 << 20);
        for i in 0..600 {
            spool.append(entry(&format!("record {i}"))).unwrap();
        }
        let numbers = |spool: &Spool, after, lines, bytes| -> Vec<u64> {
            let lines = spool.after(after, lines, bytes).unwrap();
            lines
                .iter()
                .map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64())
                .map(Option::unwrap)
                .collect()
        };
        // From the disk, over two segments, and from memory: always what comes next.
        for after in [0, 1, 300, 343, 344, 345, 346, 500, 600] {
            let expected: Vec<u64> = (after + 1..=601).take(5).collect();
            assert_eq!(numbers(&spool, after, 5, 1 << 20), expected, "after {after}");
        }
        assert_eq!(numbers(&spool, 601, 5, 1 << 20), [0; 0]);
        assert_eq!(numbers(&spool, 7, 5, 1), [8], "one at least");
        let mut at = 0;
        while let Some(last) = numbers(&spool, at, 100, 1 << 20).last() {
            at = *last;
        }
        assert_eq!(at, 601);
        drop(spool);
        let spool = open(dir.path(), 1 << 20);
        assert_eq!(numbers(&spool, 599, 5, 1 << 20), [600, 601]);
    }

    #[test]
    fn a_trail_that_is_begun_anew_keeps_the_one_before_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path(), 1 << 20);
        spool.append(entry("a")).unwrap();
        let before = spool.at().unwrap();
        spool.begin_anew("policy has others", UNIX_EPOCH).unwrap();
        let (chain, head) = spool.at().unwrap();
        assert!(chain != before.0 && head.seq == 1, "{chain} {head}");
        assert_eq!(report(dir.path()).findings, []);
        assert_eq!(report(&dir.path().join("damaged-1")).head, Some(before.1));
        let opened = &spool.after(0, 1, 1000).unwrap()[0];
        assert!(opened.contains("policy has others") && opened.contains("damaged-1"), "{opened}");
    }

    #[test]
    fn records_that_nobody_has_a_copy_of_go_with_a_word_about_it() {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path(), 20_000);
        for i in 0..100 {
            spool.append(entry(&format!("record {i}"))).unwrap();
        }
        spool.stored(50);
        for i in 0..300 {
            spool.append(entry(&format!("record {i}"))).unwrap();
        }
        let text: String = segment_files(dir.path())
            .unwrap()
            .iter()
            .map(|path| fs::read_to_string(path).unwrap())
            .collect();
        assert!(text.contains("policy has said to have them up to 50"), "{text}");
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
    fn a_record_is_bounded_whatever_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path(), 1 << 30);
        // Each of these takes six bytes in JSON.
        let long = "\u{1}".repeat(700_000);
        let entry = Entry {
            verb: Some(long.clone()),
            request_id: Some(long.clone()),
            rules: vec![long.clone(); 50],
            peer: Some(long.clone()),
            token: Some(long.clone()),
            ..entry(&long)
        };
        spool.append(entry).unwrap();
        spool
            .append(Entry { rules: vec!["r".repeat(90); 50], ..super::tests::entry("x") })
            .unwrap();
        let text = fs::read_to_string(only(dir.path())).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().all(|line| line.len() <= canopy_audit::LINE_BYTES), "{text}");
        assert!(lines[1].contains("…"), "{text}");
        assert!(lines[2].contains("… (39 more)"), "{text}");
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
