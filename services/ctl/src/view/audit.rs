//! Audit trails.

use crate::output::{Answer, Cell, Table, Tone, number, text};
use canopy_api::wire::Decision;
use canopy_audit::{Finding, Kind, Record, Report};
use serde::Serialize;
use std::fmt::Write as _;

/// `audit verify`
#[derive(Debug, Serialize)]
pub struct Verified {
    /// The trail.
    pub path: String,
    /// What was found.
    #[serde(flatten)]
    pub report: Report,
    /// What was found beside the trail itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub further: Vec<String>,
}

impl Answer for Verified {
    fn table(&self) -> Option<Table> {
        None
    }

    fn text(&self, colour: bool) -> String {
        let Self { path, report, further } = self;
        let mut out = String::new();
        for finding in self.names() {
            let _ = writeln!(out, "{} {finding}", Tone::Bad.paint("finding:", colour));
        }
        let list = |numbers: &[u64]| {
            numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        if !report.unended.is_empty() {
            let note = Tone::Warn.paint("note:", colour);
            let _ = writeln!(
                out,
                "{note} begun, and nothing says how it ended: record {}",
                list(&report.unended)
            );
        }
        if report.torn {
            let note = Tone::Warn.paint("note:", colour);
            let _ = writeln!(out, "{note} the last line is not whole; it was never acted on");
        }
        let writer = report.writer.as_ref().map_or_else(String::new, ToString::to_string);
        let end = report.head.map_or(0, |head| head.seq);
        let _ = writeln!(
            out,
            "{path}: {writer}, chain {}, records {} to {end}",
            report.chain, report.first
        );
        let _ = match report.findings.len() + further.len() {
            0 => writeln!(out, "{}", Tone::Good.paint("as it was written", colour)),
            1 => writeln!(out, "{}", Tone::Bad.paint("1 finding", colour)),
            n => writeln!(out, "{}", Tone::Bad.paint(&format!("{n} findings"), colour)),
        };
        if let Some(head) = report.head {
            let _ = writeln!(out, "head {head}");
        }
        out
    }

    fn names(&self) -> Vec<String> {
        self.report.findings.iter().map(Finding::to_string).chain(self.further.clone()).collect()
    }
}

/// `audit show`
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Records(pub Vec<Record>);

impl Answer for Records {
    fn table(&self) -> Option<Table> {
        let mut table = Table::new([
            number("SEQ"),
            text("TIME"),
            text("WHO"),
            text("VERB"),
            text("RECORD"),
            text("RULES"),
            text("REASON"),
            text("REQUEST ID").wide(),
        ]);
        for record in &self.0 {
            let who = record.principal.as_ref().map(ToString::to_string);
            table.row([
                Cell::from(&record.seq),
                record.time.clone().into(),
                who.unwrap_or_default().into(),
                record.verb.clone().unwrap_or_default().into(),
                word(record),
                record.rules.join(", ").into(),
                record.reason.clone().into(),
                record.request_id.clone().unwrap_or_default().into(),
            ]);
        }
        Some(table)
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(|record| record.seq.to_string()).collect()
    }

    fn nothing(&self) -> String {
        "no records".to_owned()
    }
}

/// What a record says, in a word.
pub(super) fn word(record: &Record) -> Cell {
    match (record.kind, record.decision) {
        (Kind::Begun, _) => Cell::toned("begun", Tone::Dim),
        (Kind::Opened, _) => Cell::toned("chain opened", Tone::Warn),
        (Kind::Trimmed, _) => Cell::toned("trimmed", Tone::Dim),
        (Kind::Connected, _) => Cell::toned("connected", Tone::Good),
        (Kind::Ended | Kind::Refused, Some(Decision::Done)) => Cell::toned("done", Tone::Good),
        (Kind::Ended | Kind::Refused, Some(Decision::Denied)) => Cell::toned("denied", Tone::Bad),
        (Kind::Ended | Kind::Refused, _) => Cell::toned("failed", Tone::Warn),
    }
}
