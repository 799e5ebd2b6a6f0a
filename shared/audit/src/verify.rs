//! Whether a chain is what its writer wrote.

use crate::record::{Head, Kind, Line, LineHash, Record};
use canopy_api::Principal;
use serde::Serialize;
use std::collections::BTreeSet;

/// Something that is not as its writer wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum Finding {
    /// A line is no record, or not written as one.
    #[error("line {line} is no record: {reason}")]
    NoRecord {
        /// Which line, from 1.
        line: u64,
        /// Why.
        reason: String,
    },
    /// A record does not follow from the one before it.
    #[error("record {seq} does not follow from the record before it: one of the two was changed")]
    Changed {
        /// The later of the two.
        seq: u64,
    },
    /// Records are not there.
    #[error("records {from} to {to} are missing")]
    Missing {
        /// The first.
        from: u64,
        /// The last.
        to: u64,
    },
    /// A number comes again.
    #[error("record {seq} comes again, or too late")]
    Repeated {
        /// The number.
        seq: u64,
    },
    /// A record of somebody else, or of another chain.
    #[error("line {line} belongs to {writer}, chain {chain}")]
    Foreign {
        /// Which line.
        line: u64,
        /// Whose.
        writer: String,
        /// Its chain.
        chain: String,
    },
    /// The beginning is gone, and no record says that it was removed in order.
    #[error(
        "the chain begins at record {first}, and no record says that those before were removed in order"
    )]
    NoBeginning {
        /// The first there is.
        first: u64,
    },
    /// It ends before a record that it had.
    #[error("the chain ends at record {last}; it had {expected} already")]
    Truncated {
        /// The last there is.
        last: u64,
        /// The last that somebody saw.
        expected: u64,
    },
    /// A record is not the one that somebody saw.
    #[error("record {seq} is another one than was seen before")]
    Replaced {
        /// Its number.
        seq: u64,
    },
    /// A record of a number that another has already.
    #[error("there is a second record {seq}, which does not follow from what was stored before it")]
    Forked {
        /// Its number.
        seq: u64,
    },
    /// The writer, who goes on with a chain over restarts, began another.
    #[error("the writer began the chain {chain} although it had the chain {before}: {reason}")]
    BegunAnew {
        /// The new one.
        chain: String,
        /// The one before.
        before: String,
        /// What the first record of the new one says.
        reason: String,
    },
    /// Nothing is there of a chain that was there.
    #[error("nothing is there of the chain {chain}, which had {expected} records already")]
    ChainMissing {
        /// Which.
        chain: String,
        /// The last that was seen.
        expected: u64,
    },
    /// The record that somebody saw is among those removed in order: nothing can be said of it.
    #[error(
        "record {seq} was removed in order, so that nothing can be said of what was seen before"
    )]
    Gone {
        /// Its number.
        seq: u64,
    },
}

/// What was found of a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Who keeps it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writer: Option<Principal>,
    /// Its id.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub chain: String,
    /// Records there are.
    pub records: u64,
    /// Number of the first there is.
    pub first: u64,
    /// The last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<Head>,
    /// Requests that were begun, and of which nothing says how they ended: the writer died.
    pub unended: Vec<u64>,
    /// Whether the last line was being written when the writer died. It was never acted on.
    pub torn: bool,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Follows a chain line by line.
#[derive(Clone, Debug, Default)]
pub struct Verifier {
    report: Report,
    line: u64,
    /// The last good place.
    at: Option<Head>,
    /// What the first record follows.
    before_first: Option<LineHash>,
    /// Of records that say what was removed: the last one removed and its hash.
    trimmed: Vec<(u64, Option<LineHash>)>,
    begun: BTreeSet<u64>,
    /// Places that somebody kept, and whether they were met.
    expected: Vec<(Head, bool)>,
    may_begin_anywhere: bool,
}

impl Verifier {
    /// A verifier that knows places of the chain from before.
    pub fn expecting(expected: impl IntoIterator<Item = Head>) -> Self {
        let expected = expected.into_iter().map(|head| (head, false)).collect();
        Self { expected, ..Self::default() }
    }

    /// Of a copy whose oldest records are removed by who keeps it: that no record says so is no finding.
    #[must_use]
    pub fn of_a_copy(self) -> Self {
        Self { may_begin_anywhere: true, ..self }
    }

    /// Something that whoever reads the lines found.
    pub fn found(&mut self, finding: Finding) {
        self.find(finding);
    }

    /// The next line, without its line break. The record, if it is one.
    pub fn line(&mut self, line: &[u8]) -> Option<Record> {
        self.line += 1;
        let text = std::str::from_utf8(line).map_err(|error| error.to_string());
        let Line { record, hash, .. } = match text.and_then(Line::read) {
            Ok(line) => line,
            Err(reason) => {
                self.find(Finding::NoRecord { line: self.line, reason });
                return None;
            }
        };
        let report = &mut self.report;
        if report.writer.is_none() {
            report.writer = Some(record.writer.clone());
            report.chain.clone_from(&record.chain);
            report.first = record.seq;
            self.before_first = Some(record.previous);
        }
        if report.writer.as_ref() != Some(&record.writer) || report.chain != record.chain {
            let (writer, chain) = (record.writer.to_string(), record.chain.clone());
            self.find(Finding::Foreign { line: self.line, writer, chain });
            return None;
        }
        report.records += 1;
        if let Some(at) = self.at {
            if record.seq <= at.seq {
                self.find(Finding::Repeated { seq: record.seq });
                return Some(record);
            }
            if record.seq > at.seq + 1 {
                self.find(Finding::Missing { from: at.seq + 1, to: record.seq - 1 });
            } else if record.previous != at.hash {
                self.find(Finding::Changed { seq: record.seq });
            }
        }
        let head = Head { seq: record.seq, hash };
        self.at = Some(head);
        let mut replaced = false;
        for (expected, met) in &mut self.expected {
            if expected.seq == record.seq {
                *met = true;
                replaced |= expected.hash != hash;
            }
        }
        if replaced {
            self.find(Finding::Replaced { seq: record.seq });
        }
        match (record.kind, record.of) {
            (Kind::Begun, _) => {
                self.begun.insert(record.seq);
            }
            (Kind::Ended, Some(of)) => {
                self.begun.remove(&of);
            }
            (Kind::Trimmed, Some(of)) => self.trimmed.push((of, record.previous_of)),
            (Kind::Opened | Kind::Ended | Kind::Refused | Kind::Trimmed | Kind::Connected, _) => {}
        }
        Some(record)
    }

    /// A last line without a line break: it was being written.
    pub fn torn(&mut self) {
        self.report.torn = true;
    }

    /// The end.
    pub fn end(mut self) -> Report {
        let first = self.report.first;
        let beginning = match self.before_first {
            None => true,
            Some(_) if self.may_begin_anywhere && first > 1 => true,
            Some(before) if first == 1 => before == LineHash::NONE,
            // Whoever removed records in order wrote down which was the last, and its hash.
            Some(before) => self.trimmed.contains(&(first.saturating_sub(1), Some(before))),
        };
        if !beginning {
            self.find(Finding::NoBeginning { first });
        }
        let last = self.at.map_or(0, |at| at.seq);
        let unmet = self.expected.iter().filter(|(_, met)| !met).map(|(expected, _)| expected.seq);
        let unmet: Vec<u64> = unmet.collect();
        if let Some(expected) = unmet.iter().copied().filter(|seq| *seq > last).max() {
            self.find(Finding::Truncated { last, expected });
        }
        for seq in unmet.into_iter().filter(|seq| *seq < first && beginning) {
            self.find(Finding::Gone { seq });
        }
        self.report.head = self.at;
        self.report.unended = self.begun.into_iter().collect();
        self.report
    }

    fn find(&mut self, finding: Finding) {
        self.report.findings.push(finding);
    }
}
