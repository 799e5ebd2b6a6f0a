//! The stored audit trail.

use crate::{
    output::{Answer, Cell, Table, Tone, number, text},
    view::audit::word,
};
use canopy_api::wire::StoredRecord;
use canopy_audit::{Record, Report};
use serde::Serialize;
use serde_json::{Map, Value};
use std::{collections::BTreeSet, fmt::Write as _};

/// The column of reasons.
const REASON: usize = 8;

/// `get audit`
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct StoredRecords(Vec<Value>);

impl StoredRecords {
    /// Records, with what the store says of each.
    pub fn of(stored: &[StoredRecord]) -> Self {
        let each = stored.iter().map(|one| {
            let record = serde_json::from_str::<Map<String, Value>>(&one.line);
            let mut fields = record.unwrap_or_else(|_| {
                Map::from_iter([("not_a_record".to_owned(), one.line.clone().into())])
            });
            fields.insert("stored".to_owned(), one.stored.into());
            if !one.finding.is_empty() {
                fields.insert("finding".to_owned(), one.finding.clone().into());
            }
            if one.beside {
                fields.insert("beside".to_owned(), true.into());
            }
            fields.into()
        });
        Self(each.collect())
    }

    /// A line of JSON for each.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(Value::to_string)
    }
}

impl Answer for StoredRecords {
    fn table(&self) -> Option<Table> {
        let mut table = Table::new([
            text("TIME"),
            text("WRITER"),
            text("WHO"),
            text("VERB"),
            text("RECORD"),
            text("TIMES"),
            text("FROM").long(),
            text("RULES").long(),
            text("REASON").long(),
            text("TOKEN").wide(),
            text("REQUEST ID").wide(),
            number("SEQ").wide(),
        ]);
        for value in &self.0 {
            let mut bare = value.clone();
            if let Some(fields) = bare.as_object_mut() {
                for field in ["stored", "finding", "beside"] {
                    fields.remove(field);
                }
            }
            let Ok(record) = serde_json::from_value::<Record>(bare) else {
                let said = format!("no record: {}", value["not_a_record"]);
                let mut row = vec![Cell::from(""); 12];
                if let Some(cell) = row.get_mut(REASON) {
                    *cell = Cell::toned(said, Tone::Bad);
                }
                table.row(row);
                continue;
            };
            let who = record.principal.as_ref().map(ToString::to_string);
            let word = if value["beside"].as_bool() == Some(true) {
                Cell::toned("contradicts", Tone::Bad)
            } else {
                word(&record)
            };
            table.row([
                record.time.clone().into(),
                record.writer.to_string().into(),
                who.unwrap_or_default().into(),
                record.verb.clone().unwrap_or_default().into(),
                word,
                record.count.map_or_else(String::new, |count| count.to_string()).into(),
                record.peer.clone().unwrap_or_default().into(),
                record.rules.join(", ").into(),
                record.reason.clone().into(),
                record.token.clone().unwrap_or_default().into(),
                record.request_id.clone().unwrap_or_default().into(),
                Cell::from(&record.seq),
            ]);
        }
        Some(table)
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(|value| value["stored"].to_string()).collect()
    }

    fn nothing(&self) -> String {
        "no records".to_owned()
    }
}

/// What was found of a stored chain.
#[derive(Debug, Serialize)]
pub struct ChainReport {
    /// Whose.
    pub writer: String,
    /// Which.
    pub chain: String,
    /// How far it goes by the last checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<u64>,
    /// What was found.
    #[serde(flatten)]
    pub report: Report,
}

/// `audit verify` of what policy has stored
#[derive(Debug, Serialize)]
pub struct StoredVerified {
    /// The chains.
    pub chains: Vec<ChainReport>,
    /// Checkpoints that are not believed.
    pub refused: Vec<String>,
    /// Id of the key that checkpoints were measured by.
    pub key: String,
}

impl StoredVerified {
    /// How much is wrong.
    pub fn findings(&self) -> usize {
        self.refused.len() + self.chains.iter().map(|one| one.report.findings.len()).sum::<usize>()
    }

    fn said(&self) -> Vec<String> {
        let of_chains = self.chains.iter().flat_map(|one| {
            let each = one.report.findings.iter();
            each.map(|finding| format!("{}, chain {}: {finding}", one.writer, one.chain))
        });
        self.refused.iter().cloned().chain(of_chains).collect()
    }
}

impl Answer for StoredVerified {
    fn table(&self) -> Option<Table> {
        None
    }

    fn text(&self, colour: bool) -> String {
        let mut out = String::new();
        for finding in self.said() {
            let _ = writeln!(out, "{} {finding}", Tone::Bad.paint("finding:", colour));
        }
        let mut records = 0;
        for ChainReport { writer, chain, checkpoint, report } in &self.chains {
            records += report.records;
            let end = report.head.map_or(0, |head| head.seq);
            let signed =
                checkpoint.map_or("not signed yet".to_owned(), |seq| format!("signed to {seq}"));
            let _ = writeln!(
                out,
                "{writer}, chain {chain}: records {} to {end}, {signed}",
                report.first
            );
        }
        let writers: BTreeSet<_> = self.chains.iter().map(|one| &one.writer).collect();
        let _ = writeln!(
            out,
            "{records} records, {} chains, {} writers; checkpoints by the key {}",
            self.chains.len(),
            writers.len(),
            self.key
        );
        let _ = match self.findings() {
            0 => writeln!(out, "{}", Tone::Good.paint("as it was written", colour)),
            1 => writeln!(out, "{}", Tone::Bad.paint("1 finding", colour)),
            n => writeln!(out, "{}", Tone::Bad.paint(&format!("{n} findings"), colour)),
        };
        out
    }

    fn names(&self) -> Vec<String> {
        self.said()
    }
}
