//! Admission rules: checked, tested, explained, in force.

use crate::output::{Answer, Cell, Table, Tone, text};
use canopy_admission::{Conditions, Outcome, RuleSet};
use canopy_api::{
    HostId, Principal, Problem,
    wire::{
        AdmissionBasis, AdmissionDecision, AdmissionItem, ExplainReply, RuleEffect, RulesReply,
    },
};
use serde::Serialize;
use std::fmt::Write as _;

/// `policy check`
#[derive(Debug, Serialize)]
pub struct Checked {
    /// The file.
    pub file: String,
    /// How many rules it has.
    pub rules: usize,
    /// What is most likely not meant.
    pub remarks: Vec<Problem>,
}

impl Answer for Checked {
    fn table(&self) -> Option<Table> {
        None
    }

    fn text(&self, colour: bool) -> String {
        let mut out = String::new();
        for Problem { path, message, remedy } in &self.remarks {
            let _ = writeln!(out, "{} {message}", Tone::Warn.paint("remark:", colour));
            let _ = writeln!(out, "  at: {}: {path}", self.file);
            if let Some(remedy) = remedy {
                let _ = writeln!(out, "  fix: {remedy}");
            }
        }
        let _ = match self.remarks.len() {
            0 => writeln!(out, "{}: {} rules, nothing to remark on", self.file, self.rules),
            1 => writeln!(out, "{}: {} rules, 1 remark", self.file, self.rules),
            n => writeln!(out, "{}: {} rules, {n} remarks", self.file, self.rules),
        };
        out
    }

    fn names(&self) -> Vec<String> {
        self.remarks.iter().map(|remark| remark.path.clone()).collect()
    }
}

/// `policy test`
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Tested(pub Vec<Outcome>);

impl Tested {
    /// How many came out otherwise than expected.
    pub fn failed(&self) -> usize {
        self.0.iter().filter(|outcome| !outcome.passed).count()
    }
}

impl Answer for Tested {
    fn table(&self) -> Option<Table> {
        None
    }

    fn text(&self, colour: bool) -> String {
        let mut out = String::new();
        for outcome in &self.0 {
            if outcome.passed {
                let _ = writeln!(out, "{} {}", Tone::Good.paint("ok    ", colour), outcome.name);
            } else {
                let _ = writeln!(out, "{} {}", Tone::Bad.paint("FAILED", colour), outcome.name);
                let _ = writeln!(out, "         expected: {}", outcome.expected);
                let _ = writeln!(out, "         decided:  {}", decided(&outcome.decision));
            }
        }
        let _ = match self.failed() {
            0 => writeln!(out, "{} cases, all as expected", self.0.len()),
            n => writeln!(out, "{} cases, {n} not as expected", self.0.len()),
        };
        out
    }

    fn names(&self) -> Vec<String> {
        let failed = self.0.iter().filter(|outcome| !outcome.passed);
        failed.map(|outcome| outcome.name.clone()).collect()
    }
}

fn decided(decision: &AdmissionDecision) -> String {
    let effect = if decision.allowed { RuleEffect::Allow } else { RuleEffect::Deny };
    match (&decision.rule, decision.reason.as_str()) {
        (Some(rule), "") => format!("{effect} by {rule}"),
        (Some(rule), reason) => format!("{effect} by {rule}: {reason}"),
        (None, reason) => format!("{effect}: {reason}"),
    }
}

/// `policy explain`
#[derive(Debug, Serialize)]
pub struct Explained {
    /// Who would ask.
    pub who: Principal,
    /// On which host.
    pub host: HostId,
    /// What would be done.
    pub item: AdmissionItem,
    /// The decision.
    #[serde(flatten)]
    pub reply: ExplainReply,
}

impl Answer for Explained {
    fn table(&self) -> Option<Table> {
        None
    }

    fn text(&self, colour: bool) -> String {
        let Self { who, host, item, reply } = self;
        let role = reply.role.map_or("no role".to_owned(), |role| role.to_string());
        let labels: Vec<String> =
            reply.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let labels = if labels.is_empty() { "no labels".to_owned() } else { labels.join(", ") };
        let decision = &reply.decision;
        let (word, tone) =
            if decision.allowed { ("allowed", Tone::Good) } else { ("denied", Tone::Bad) };
        let by = decision.rule.as_ref().map_or(String::new(), |rule| format!(" by {rule}"));
        let why = match decision.reason.as_str() {
            "" => String::new(),
            reason => format!(": {reason}"),
        };
        let mut out = format!("{who} ({role}) {item} at {host} ({labels})\n");
        let _ = writeln!(out, "{}{by}{why}", tone.paint(word, colour));
        let mut table =
            Table::new([text("RULE"), text("EFFECT"), text("APPLIES"), text("WHY NOT")]);
        for verdict in &reply.rules {
            let applies = match (verdict.applies, verdict.effect) {
                (true, RuleEffect::Allow) => Cell::toned("yes", Tone::Good),
                (true, RuleEffect::Deny) => Cell::toned("yes", Tone::Bad),
                (false, _) => Cell::toned("no", Tone::Dim),
            };
            table.row([
                verdict.rule.clone().into(),
                Cell::from(&verdict.effect),
                applies,
                verdict.why.clone().into(),
            ]);
        }
        if !table.is_empty() {
            out.push('\n');
            out.push_str(&table.render(false, colour));
        }
        out
    }

    fn names(&self) -> Vec<String> {
        self.reply.decision.rule.iter().cloned().collect()
    }
}

/// `get rules`
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Rules(pub RulesReply);

impl Rules {
    /// What is in force in a word, for the person's eyes.
    pub fn remarks(&self) -> Vec<String> {
        let RulesReply { basis, since, digest, trouble, .. } = &self.0;
        let basis = match (basis, digest) {
            (AdmissionBasis::Rules, Some(digest)) => format!("in force since {since}, {digest}"),
            (AdmissionBasis::Rules, None) => "no rules could be read".to_owned(),
            (AdmissionBasis::Open | AdmissionBasis::Off, _) => {
                "open: no rules, so that whoever the bus lets through may change hosts".to_owned()
            }
        };
        let trouble = trouble.iter().map(|trouble| format!("warning: {trouble}"));
        [basis].into_iter().chain(trouble).collect()
    }

    fn set(&self) -> RuleSet {
        serde_json::from_value(self.0.document.clone()).unwrap_or_default()
    }
}

impl Answer for Rules {
    fn table(&self) -> Option<Table> {
        let mut table = Table::new([
            text("RULE"),
            text("EFFECT"),
            text("WHEN").long(),
            text("UNLESS").long(),
            text("REASON").wide(),
        ]);
        for rule in self.set().rules {
            let unless = rule.unless.as_ref().map(conditions).unwrap_or_default();
            let when = match conditions(&rule.when) {
                when if when.is_empty() => "always".to_owned(),
                when => when,
            };
            table.row([
                rule.name.into(),
                Cell::from(&rule.effect),
                when.into(),
                unless.into(),
                rule.reason.unwrap_or_default().into(),
            ]);
        }
        Some(table)
    }

    fn names(&self) -> Vec<String> {
        self.set().rules.into_iter().map(|rule| rule.name).collect()
    }

    fn nothing(&self) -> String {
        "no rules".to_owned()
    }
}

/// `roles operator, admin; hooks xdp`
fn conditions(conditions: &Conditions) -> String {
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(conditions) else {
        return String::new();
    };
    let list = |value: &serde_json::Value| match value {
        serde_json::Value::Array(all) => {
            all.iter().filter_map(|one| one.as_str()).collect::<Vec<_>>().join(", ")
        }
        serde_json::Value::Object(labels) => labels
            .iter()
            .map(|(name, values)| {
                let values: Vec<&str> =
                    values.as_array().into_iter().flatten().filter_map(|v| v.as_str()).collect();
                format!("{name}={}", values.join("|"))
            })
            .collect::<Vec<_>>()
            .join(", "),
        _ => String::new(),
    };
    let parts = fields.iter().map(|(field, value)| format!("{field} {}", list(value)));
    parts.collect::<Vec<_>>().join("; ")
}
