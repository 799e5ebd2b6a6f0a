//! What `doctor` found.

use crate::output::{Answer, Table, Tone};
use canopy_api::wire::{Check, Fact};
use serde::Serialize;
use std::fmt::Write as _;

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// As it should be.
    Ok,
    /// Not as it should be, and something does not work because of it.
    Failed,
    /// Not there; what works today works without it.
    Missing,
    /// Works, and somebody should know how: it will not for ever, or something that protects is off.
    Warn,
    /// Could not be looked at.
    Skipped,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub name: String,
    /// How it stands.
    pub standing: Standing,
    /// What was seen.
    pub detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    /// A finding.
    pub fn new(name: impl Into<String>, standing: Standing, detail: impl Into<String>) -> Self {
        Self { name: name.into(), standing, detail: detail.into(), remedy: None }
    }

    /// With what to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// An ability of a host.
    pub fn fact(fact: Fact) -> Self {
        let standing = match (fact.ok, fact.required) {
            (true, _) => Standing::Ok,
            (false, true) => Standing::Failed,
            (false, false) => Standing::Missing,
        };
        Self { name: fact.name, standing, detail: fact.detail, remedy: fact.remedy }
    }

    /// Something a service needs.
    pub fn check(check: Check) -> Self {
        let standing = match (check.ok, check.warning) {
            (false, _) => Standing::Failed,
            (true, true) => Standing::Warn,
            (true, false) => Standing::Ok,
        };
        Self::new(check.name, standing, check.detail)
    }
}

/// Things looked at in one place.
#[derive(Debug, Serialize)]
pub struct Section {
    /// The place.
    pub place: String,
    /// What was found.
    pub findings: Vec<Finding>,
}

/// Everything that was looked at.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Report(pub Vec<Section>);

impl Report {
    /// Adds a place, unless nothing was looked at there.
    pub fn add(&mut self, place: impl Into<String>, findings: Vec<Finding>) {
        if !findings.is_empty() {
            self.0.push(Section { place: place.into(), findings });
        }
    }

    /// How many things stand so.
    pub fn count(&self, standing: Standing) -> usize {
        self.findings().filter(|finding| finding.standing == standing).count()
    }

    fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.0.iter().flat_map(|section| &section.findings)
    }
}

impl Answer for Report {
    fn table(&self) -> Option<Table> {
        None
    }

    fn text(&self, colour: bool) -> String {
        let mut out = String::new();
        let width = self.findings().map(|finding| finding.name.len()).max().unwrap_or(0);
        for section in &self.0 {
            let _ = writeln!(out, "{}", section.place);
            for finding in &section.findings {
                let (word, tone) = match finding.standing {
                    Standing::Ok => ("ok     ", Tone::Good),
                    Standing::Failed => ("FAILED ", Tone::Bad),
                    Standing::Missing => ("missing", Tone::Dim),
                    Standing::Warn => ("warning", Tone::Warn),
                    Standing::Skipped => ("skipped", Tone::Dim),
                };
                let word = tone.paint(word, colour);
                let line = format!("  {word}  {:width$}  {}", finding.name, finding.detail);
                let _ = writeln!(out, "{}", line.trim_end());
                if let Some(remedy) = &finding.remedy {
                    let _ = writeln!(out, "           {:width$}  fix: {remedy}", "");
                }
            }
        }
        let _ = match self.count(Standing::Failed) {
            0 => writeln!(out, "\neverything that is needed is there"),
            1 => writeln!(out, "\n1 problem"),
            n => writeln!(out, "\n{n} problems"),
        };
        out
    }

    fn names(&self) -> Vec<String> {
        let bad = self.findings().filter(|finding| finding.standing == Standing::Failed);
        bad.map(|finding| finding.name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_says_how_it_stands_and_what_to_do() {
        let fact = |name: &str, ok, required, remedy: Option<&str>| {
            Finding::fact(Fact {
                name: name.to_owned(),
                ok,
                required,
                detail: "seen".to_owned(),
                remedy: remedy.map(str::to_owned),
            })
        };
        let mut report = Report::default();
        report.add(
            "this machine",
            vec![
                fact("btf", true, true, None),
                fact("tcx", false, true, Some("Linux 6.6")),
                fact("lsm", false, false, None),
            ],
        );
        report.add("nowhere", vec![]);
        assert_eq!(
            report.text(false),
            "\
this machine
  ok       btf  seen
  FAILED   tcx  seen
                fix: Linux 6.6
  missing  lsm  seen

1 problem
"
        );
        assert_eq!(report.names(), ["tcx"]);
    }
}
