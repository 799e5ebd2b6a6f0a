//! `canopy audit`: trails on this machine.

use crate::{
    cli::{AuditCommand, AuditFilterArgs, AuditShowArgs, AuditVerifyArgs, duration},
    failure::{Exit, Failure},
    output::{Format, Screen},
    view::audit::{Records, Verified},
};
use canopy_api::{time::rfc3339, wire::SignedCheckpoint};
use canopy_audit::{Checkpoint, Finding, Head, PublicKey, Record, Report, Verifier};
use canopy_runtime::clock;
use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
};

/// Longest line that is read; a record is a small part of it.
const LINE: u64 = 1 << 20;

/// Runs a subcommand that needs no connection; the others are given back.
pub fn offline(command: &AuditCommand, screen: &mut Screen) -> Option<Result<Exit, Failure>> {
    match command {
        AuditCommand::Show(args) => Some(show(args, screen)),
        AuditCommand::Verify(args) if !args.from_policy => {
            let path = args.path.as_deref()?;
            Some(verify(path, args, screen))
        }
        AuditCommand::Verify(_) | AuditCommand::Checkpoints { .. } => None,
    }
}

fn verify(path: &Path, args: &AuditVerifyArgs, screen: &mut Screen) -> Result<Exit, Failure> {
    let signed = match (&args.checkpoints, &args.key) {
        (Some(file), Some(key)) => Some(Signed::of_file(file, &public_key(key)?)?),
        _ => None,
    };
    verify_directory(path, args, signed.as_ref(), screen)
}

/// Verifies a directory, against signed checkpoints if there are some.
pub fn verify_directory(
    path: &Path,
    args: &AuditVerifyArgs,
    signed: Option<&Signed>,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let mut expected: Vec<Head> = args.head.into_iter().collect();
    let mut further = Vec::new();
    if let Some(signed) = signed {
        // Whose it is says the trail itself; that it says so rightly is what is compared then.
        let first = read(path, None, |_| {})?;
        further.extend(signed.refused.iter().cloned());
        let of_writer =
            signed.checkpoints.iter().filter(|one| Some(&one.writer) == first.writer.as_ref());
        let (own, others): (Vec<_>, Vec<_>) = of_writer.partition(|one| one.chain == first.chain);
        expected.extend(own.iter().map(|one| one.head()));
        if own.is_empty() {
            further.extend(others.first().map(|one| {
                Finding::ChainMissing { chain: one.chain.clone(), expected: one.seq }.to_string()
            }));
            if others.is_empty() {
                screen
                    .note("note: there is no checkpoint of this writer; nothing is compared with");
            }
        }
    }
    let report = read(path, expected, |_| {})?;
    let good = report.findings.is_empty() && further.is_empty();
    let verified = Verified { path: path.display().to_string(), report, further };
    screen.show(&verified, args.output.output)?;
    Ok(if good { Exit::Done } else { Exit::Differs })
}

/// A public key, or a file with one.
pub fn public_key(text: &str) -> Result<PublicKey, Failure> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    let path = Path::new(text);
    let content = fs::read_to_string(path).map_err(|error| Failure::io("read", path, &error))?;
    content.parse().map_err(|error: canopy_audit::CheckpointKeyError| {
        Failure::new(Exit::Invalid, format!("{text}: {error}"))
            .fix("name the file audit-signing.pub beside policy's key, or what is in it")
    })
}

/// Checkpoints whose signature is right, and what is to be said of the others.
#[derive(Debug, Default)]
pub struct Signed {
    /// Those that are believed.
    pub checkpoints: Vec<Checkpoint>,
    /// Findings.
    pub refused: Vec<String>,
}

impl Signed {
    /// Verifies checkpoints.
    pub fn by(key: &PublicKey, all: &[SignedCheckpoint]) -> Self {
        let mut this = Self::default();
        for signed in all {
            match key.verify(signed) {
                Ok(checkpoint) => this.checkpoints.push(checkpoint),
                Err(error) => {
                    let statement: String = signed.statement.chars().take(120).collect();
                    this.refused
                        .push(format!("a checkpoint is not believed: {error}: {statement}"));
                }
            }
        }
        this
    }

    /// Reads and verifies checkpoints that `canopy audit checkpoints` has printed.
    pub fn of_file(file: &Path, key: &PublicKey) -> Result<Self, Failure> {
        let text = fs::read_to_string(file).map_err(|error| Failure::io("read", file, &error))?;
        let mut all = Vec::new();
        for (i, line) in text.lines().enumerate() {
            all.push(serde_json::from_str(line).map_err(|_| {
                Failure::new(Exit::Invalid, format!("line {} is not a checkpoint", i + 1))
                    .at(file.display().to_string())
                    .fix("name a file that canopy audit checkpoints has printed")
            })?);
        }
        Ok(Self::by(key, &all))
    }
}

/// A filter of records, with times as they are compared.
pub struct Filter<'a> {
    args: &'a AuditFilterArgs,
    /// Not before.
    pub since: Option<String>,
    /// Not after.
    pub until: Option<String>,
}

impl<'a> Filter<'a> {
    /// From the arguments.
    pub fn of(args: &'a AuditFilterArgs) -> Result<Self, Failure> {
        let (since, until) = (moment(args.since.as_deref())?, moment(args.until.as_deref())?);
        Ok(Self { args, since, until })
    }

    fn wants(&self, record: &Record) -> bool {
        let AuditFilterArgs { by, verb, decision, .. } = self.args;
        self.since.as_ref().is_none_or(|since| record.time >= *since)
            && self.until.as_ref().is_none_or(|until| record.time <= *until)
            && (by.is_none() || record.principal == *by)
            && (verb.is_none() || record.verb == *verb)
            && (decision.is_none() || record.decision == *decision)
    }
}

fn show(args: &AuditShowArgs, screen: &mut Screen) -> Result<Exit, Failure> {
    let filter = Filter::of(&args.filter)?;
    let mut records = Vec::new();
    let report = read(&args.path, None, |record| {
        if filter.wants(&record) {
            records.push(record);
        }
    })?;
    if args.output.output == Format::Json {
        for record in &records {
            let line = record.to_line().map_err(|error| {
                Failure::new(Exit::Failed, format!("a record cannot be written: {error}"))
            })?;
            screen.print_json_line(&line)?;
        }
    } else {
        screen.show(&Records(records), args.output.output)?;
    }
    if !report.findings.is_empty() {
        screen.note("warning: the trail is not as it was written: canopy audit verify says how");
    }
    Ok(Exit::Done)
}

/// `2h` ago, or a time.
fn moment(text: Option<&str>) -> Result<Option<String>, Failure> {
    let Some(text) = text else { return Ok(None) };
    if let Ok(ago) = duration(text) {
        return Ok(clock::now().checked_sub(ago).map(rfc3339));
    }
    // Times of records are UTC and of one length, so that their order is the text's.
    let shape = |b: (usize, u8)| match b.0 {
        4 | 7 => b.1 == b'-',
        10 => b.1 == b'T',
        13 | 16 => b.1 == b':',
        19 => b.1 == b'Z',
        _ => b.1.is_ascii_digit(),
    };
    if text.len() == 20 && text.bytes().enumerate().all(shape) {
        return Ok(Some(text.to_owned()));
    }
    Err(Failure::new(Exit::Invalid, format!("\"{text}\" is not a time"))
        .fix("write 2h for two hours ago, or a time in UTC: 2026-01-31T12:00:00Z"))
}

/// Reads a trail, a directory of segments or one file, and verifies it.
fn read(
    path: &Path,
    expected: impl IntoIterator<Item = Head>,
    mut each: impl FnMut(Record),
) -> Result<Report, Failure> {
    let mut verifier = Verifier::expecting(expected);
    let files = segments(path)?;
    if files.is_empty() {
        return Err(Failure::new(Exit::NotFound, "there are no records here")
            .at(path.display().to_string())
            .fix("name a loader's audit directory: /var/lib/canopy/loader/audit"));
    }
    for file in files {
        let failed = |error| Failure::io("read", &file, &error);
        let mut reader = BufReader::new(File::open(&file).map_err(failed)?);
        loop {
            let mut line = Vec::new();
            let length = (&mut reader).take(LINE).read_until(b'\n', &mut line).map_err(failed)?;
            if length == 0 {
                break;
            }
            match line.strip_suffix(b"\n") {
                Some(line) => {
                    if let Some(record) = verifier.line(line) {
                        each(record);
                    }
                }
                None if length as u64 == LINE => drop(verifier.line(&line)),
                None => verifier.torn(),
            }
        }
    }
    Ok(verifier.end())
}

fn segments(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |error| Failure::io("read", path, &error);
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        if file.is_file() && file.extension().is_some_and(|extension| extension == "jsonl") {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}
