//! `canopy audit`: trails on this machine.

use crate::{
    cli::{AuditCommand, AuditShowArgs, duration},
    failure::{Exit, Failure},
    output::{Format, Screen},
    view::audit::{Records, Verified},
};
use canopy_api::time::rfc3339;
use canopy_audit::{Head, Record, Report, Verifier};
use canopy_runtime::clock;
use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
};

/// Longest line that is read; a record is a small part of it.
const LINE: u64 = 1 << 20;

/// Runs a subcommand.
pub fn run(command: &AuditCommand, screen: &mut Screen) -> Result<Exit, Failure> {
    match command {
        AuditCommand::Verify { path, head, output } => verify(path, *head, output.output, screen),
        AuditCommand::Show(args) => show(args, screen),
    }
}

fn verify(
    path: &Path,
    head: Option<Head>,
    format: Format,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let report = read(path, head, |_| {})?;
    let exit = if report.findings.is_empty() { Exit::Done } else { Exit::Differs };
    screen.show(&Verified { path: path.display().to_string(), report }, format)?;
    Ok(exit)
}

fn show(args: &AuditShowArgs, screen: &mut Screen) -> Result<Exit, Failure> {
    let (since, until) = (moment(args.since.as_deref())?, moment(args.until.as_deref())?);
    let wanted = |record: &Record| {
        since.as_ref().is_none_or(|since| record.time >= *since)
            && until.as_ref().is_none_or(|until| record.time <= *until)
            && (args.by.is_none() || record.principal == args.by)
            && (args.verb.is_none() || record.verb == args.verb)
            && (args.decision.is_none() || record.decision == args.decision)
    };
    let mut records = Vec::new();
    let report = read(&args.path, None, |record| {
        if wanted(&record) {
            records.push(record);
        }
    })?;
    if args.output.output == Format::Json {
        for record in &records {
            let line = record.to_line().map_err(|error| {
                Failure::new(Exit::Failed, format!("a record cannot be written: {error}"))
            })?;
            screen.print(&format!("{line}\n"))?;
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
fn read(path: &Path, head: Option<Head>, mut each: impl FnMut(Record)) -> Result<Report, Failure> {
    let mut verifier = Verifier::expecting(head);
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
