//! What a document would change: the rehearsal's outcome against what is desired now.

use super::{
    change::{left_out, selected, word},
    value,
};
use crate::output::{Answer, Table, Tone};
use canopy_api::{
    ApiError, ChainKey, Hook, HostId, InterfaceName, Netns, ProgramName,
    wire::{
        Action, ApplyReply, ChosenVariant, GetReply, Omitted, PlannedProgram, ProgramStatus,
        SelectorOutcome,
    },
};
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

/// Differences of one host.
#[derive(Debug, Serialize)]
pub struct Diff {
    /// The host.
    pub host: HostId,
    /// The generation they were computed at.
    pub generation: u64,
    /// Whether there is any.
    pub differs: bool,
    /// Chain by chain.
    pub chains: Vec<ChainDiff>,
    /// Selectors that change.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub selectors: Vec<SelectorOutcome>,
    /// What was not compared, because the reply was too long to have it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub omitted: Vec<Omitted>,
}

/// Differences of one chain.
#[derive(Debug, Serialize)]
pub struct ChainDiff {
    /// The network namespace; absent for the loader's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// The interface.
    pub interface: InterfaceName,
    /// The hook.
    pub hook: Hook,
    /// What apply would do.
    pub action: Action,
    /// Program by program, in the order of the chain to be; removed ones last.
    pub programs: Vec<ProgramDiff>,
    /// Why apply would leave it as it is, where it would.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
    /// What apply would say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Differences of one program.
#[derive(Debug, Serialize)]
pub struct ProgramDiff {
    /// Its name.
    pub name: ProgramName,
    /// What happens to it.
    pub change: ProgramChange,
    /// Field by field; `from` is absent for what is new, `to` for what goes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldDiff>,
}

/// What happens to a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProgramChange {
    /// New in the chain.
    Added,
    /// No longer in the chain.
    Removed,
    /// Stays, otherwise than before.
    Changed,
    /// Stays as it is.
    Same,
}

/// Difference of one field.
#[derive(Debug, PartialEq, Serialize)]
pub struct FieldDiff {
    /// Its path in the program: `config.rate`.
    pub field: String,
    /// What it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Value>,
    /// What it would be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Value>,
}

type Flat = BTreeMap<String, Value>;

fn flat_status(p: &ProgramStatus) -> Flat {
    let flat =
        flat(&p.package, &p.version, &p.digest, &p.program, p.priority, &p.proceed_on, &p.config);
    with_variant(flat, p.variant.as_ref())
}

fn flat_planned(p: &PlannedProgram) -> Flat {
    let flat =
        flat(&p.package, &p.version, &p.digest, &p.program, p.priority, &p.proceed_on, &p.config);
    with_variant(flat, p.variant.as_ref())
}

fn with_variant(mut flat: Flat, variant: Option<&ChosenVariant>) -> Flat {
    flat.extend(variant.map(|variant| ("variant".to_owned(), variant.object.clone().into())));
    flat
}

fn flat(
    package: &canopy_api::PackageName,
    version: &str,
    digest: &canopy_api::Digest,
    program: &str,
    priority: u16,
    proceed_on: &[String],
    config: &serde_json::Map<String, Value>,
) -> Flat {
    let mut flat = Flat::from([
        ("package".to_owned(), format!("{package}@{version}").into()),
        ("digest".to_owned(), digest.to_string().into()),
        ("program".to_owned(), program.into()),
        ("priority".to_owned(), priority.into()),
        // A set: the order in which it was written says nothing.
        (
            "proceed_on".to_owned(),
            proceed_on.iter().collect::<BTreeSet<_>>().into_iter().cloned().collect(),
        ),
    ]);
    flat.extend(config.iter().map(|(name, value)| (format!("config.{name}"), value.clone())));
    flat
}

fn fields(from: &Flat, to: &Flat) -> Vec<FieldDiff> {
    let names: BTreeSet<&String> = from.keys().chain(to.keys()).collect();
    names
        .into_iter()
        .filter(|name| from.get(*name) != to.get(*name))
        .map(|name| FieldDiff {
            field: name.clone(),
            from: from.get(name).cloned(),
            to: to.get(name).cloned(),
        })
        .collect()
}

impl ChainDiff {
    fn key(&self) -> ChainKey {
        ChainKey { netns: self.netns.clone(), interface: self.interface.clone(), hook: self.hook }
    }
}

impl Diff {
    /// Compares what is desired now with what a rehearsal says would be.
    pub fn between(now: &GetReply, rehearsal: ApplyReply) -> Self {
        let omitted = rehearsal.omitted;
        let chains: Vec<ChainDiff> = rehearsal
            .chains
            .into_iter()
            .map(|outcome| {
                let empty = Vec::new();
                let old: &[ProgramStatus] = now
                    .chains
                    .iter()
                    .find(|chain| chain.key() == outcome.key())
                    .map_or(&empty, |chain| &chain.programs);
                let programs = if omitted.contains(&Omitted::Programs) {
                    Vec::new()
                } else {
                    programs(old, &outcome.programs, !omitted.contains(&Omitted::Settings))
                };
                ChainDiff {
                    programs,
                    netns: outcome.netns,
                    interface: outcome.interface,
                    hook: outcome.hook,
                    action: outcome.action,
                    error: outcome.error,
                    notes: outcome.notes,
                }
            })
            .collect();
        let selectors: Vec<_> = rehearsal
            .selectors
            .into_iter()
            .filter(|selector| selector.action != Action::Unchanged)
            .collect();
        Self {
            host: rehearsal.host,
            generation: rehearsal.generation,
            differs: !selectors.is_empty()
                || chains.iter().any(|chain| chain.action != Action::Unchanged),
            chains,
            selectors,
            omitted,
        }
    }
}

/// `settings` says whether the new programs' settings are known.
fn programs(old: &[ProgramStatus], new: &[PlannedProgram], settings: bool) -> Vec<ProgramDiff> {
    let nothing = Flat::new();
    let flat_status = |program: &ProgramStatus| {
        let mut flat = flat_status(program);
        flat.retain(|name, _| settings || !name.starts_with("config."));
        flat
    };
    let stay = new.iter().map(|program| {
        let to = flat_planned(program);
        match old.iter().find(|before| before.name == program.name) {
            None => ProgramDiff {
                name: program.name.clone(),
                change: ProgramChange::Added,
                fields: fields(&nothing, &to),
            },
            Some(before) => {
                let fields = fields(&flat_status(before), &to);
                let change =
                    if fields.is_empty() { ProgramChange::Same } else { ProgramChange::Changed };
                ProgramDiff { name: program.name.clone(), change, fields }
            }
        }
    });
    let go = old.iter().filter(|before| new.iter().all(|after| after.name != before.name)).map(
        |before| ProgramDiff {
            name: before.name.clone(),
            change: ProgramChange::Removed,
            fields: fields(&flat_status(before), &nothing),
        },
    );
    stay.chain(go).collect()
}

impl Answer for Diff {
    fn table(&self) -> Option<Table> {
        None
    }

    fn text(&self, colour: bool) -> String {
        let mut out = String::new();
        for chain in &self.chains {
            if chain.action == Action::Unchanged {
                continue;
            }
            let (word, tone) = word(chain.action);
            let would = if chain.action == Action::Failed { "would have" } else { "would be" };
            let _ = writeln!(out, "{} {would} {}", chain.key(), tone.paint(word, colour));
            for program in &chain.programs {
                write_program(&mut out, program, colour);
            }
            for note in &chain.notes {
                let _ = writeln!(out, "  {} {note}", Tone::Warn.paint("note:", colour));
            }
        }
        for selector in &self.selectors {
            let _ = writeln!(out, "{}", selected(selector, true, colour));
        }
        if !self.omitted.is_empty() {
            let note = Tone::Warn.paint("note:", colour);
            let _ = writeln!(out, "{note} {}: they are not compared", left_out(&self.omitted));
        }
        if !self.differs {
            let _ = writeln!(out, "{}: no differences (generation {})", self.host, self.generation);
        }
        out
    }

    fn names(&self) -> Vec<String> {
        self.chains
            .iter()
            .filter(|chain| chain.action != Action::Unchanged)
            .map(|chain| format!("{}/{}", self.host, chain.key()))
            .collect()
    }
}

fn write_program(out: &mut String, program: &ProgramDiff, colour: bool) {
    let (sign, tone) = match program.change {
        ProgramChange::Added => ('+', Tone::Good),
        ProgramChange::Removed => ('-', Tone::Bad),
        ProgramChange::Changed => ('~', Tone::Warn),
        ProgramChange::Same => (' ', Tone::Dim),
    };
    let _ = writeln!(out, "{}", tone.paint(&format!("{sign} {}", program.name), colour).trim_end());
    for field in &program.fields {
        if let Some(from) = &field.from {
            let line = format!("-   {}: {}", field.field, value(from));
            let _ = writeln!(out, "{}", Tone::Bad.paint(&line, colour));
        }
        if let Some(to) = &field.to {
            let line = format!("+   {}: {}", field.field, value(to));
            let _ = writeln!(out, "{}", Tone::Good.paint(&line, colour));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{
        change::tests::{outcome, planned, reply},
        tests::host,
    };

    #[test]
    fn a_diff_names_every_field_that_changes() {
        let mut now = host();
        now.chains[0].programs[0].digest = canopy_api::Digest::of(b"0.1.0");
        let same = planned("blocklist", "0.1.0", 10);
        let mut added = planned("count", "0.1.0", 15);
        added.config.clear();
        let mut to = outcome(Action::Updated, vec![same, added]);
        to.notes.clear();
        let diff = Diff::between(&now, reply(true, vec![to]));
        assert!(diff.differs);
        let count = canopy_api::Digest::of(b"0.1.0");
        let limit = canopy_api::Digest::of(b"x");
        let want = format!(
            "\
eth0/xdp would be updated
  blocklist
+ count
+   digest: {count}
+   package: firewall@0.1.0
+   priority: 15
+   proceed_on: [\"pass\"]
+   program: firewall
- limit
-   config.blocked: [\"198.51.100.0/24\"]
-   digest: {limit}
-   package: firewall@0.1.0
-   priority: 20
-   proceed_on: [\"pass\"]
-   program: firewall
"
        );
        assert_eq!(diff.text(false), want);
    }

    #[test]
    fn a_changed_program_shows_only_what_changes() {
        let mut program = planned("blocklist", "x", 11);
        program.digest = canopy_api::Digest::of(b"x");
        program.version = "0.1.0".to_owned();
        program.config.insert("blocked".to_owned(), serde_json::json!([]));
        let limit = PlannedProgram {
            digest: canopy_api::Digest::of(b"x"),
            ..planned("limit", "0.1.0", 20)
        };
        let mut to = outcome(Action::Updated, vec![program, limit]);
        to.notes.clear();
        let diff = Diff::between(&host(), reply(true, vec![to]));
        assert_eq!(
            diff.text(false),
            "eth0/xdp would be updated\n\
             ~ blocklist\n\
             -   config.blocked: [\"198.51.100.0/24\"]\n\
             +   config.blocked: []\n\
             -   priority: 10\n\
             +   priority: 11\n  limit\n"
        );
        let value = serde_json::to_value(&diff).unwrap();
        assert_eq!(value["chains"][0]["programs"][0]["change"], "changed");
        assert_eq!(value["chains"][0]["programs"][0]["fields"][1]["to"], 11);
    }

    #[test]
    fn a_selector_that_nothing_fits_is_a_difference() {
        let mut rehearsal = reply(true, vec![]);
        rehearsal.selectors.push(SelectorOutcome {
            netns: None,
            interface: "eth*".parse().unwrap(),
            hook: canopy_api::Hook::Xdp,
            action: Action::Created,
            interfaces: vec![],
        });
        let diff = Diff::between(&host(), rehearsal);
        assert!(diff.differs);
        assert_eq!(
            diff.text(false),
            "eth*/xdp would be created: no interface fits now; one that comes gets the chain\n"
        );
    }

    #[test]
    fn no_differences_are_said_so() {
        let diff = Diff::between(&host(), reply(true, vec![outcome(Action::Unchanged, vec![])]));
        assert!(!diff.differs);
        assert_eq!(diff.text(false), "web1: no differences (generation 5)\n");
    }
}
