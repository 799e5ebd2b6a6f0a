//! What a change did: answers to apply, delete and drain.

use crate::output::{Answer, Table, Tone};
use canopy_api::wire::{
    Action, AdmissionBasis, Admitted, ApplyReply, ChainOutcome, Omitted, SelectorOutcome,
};
use serde::Serialize;
use std::fmt::Write as _;

/// The answer to a change.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Change(pub ApplyReply);

/// What was done, in a word, and its tone.
pub(crate) fn word(action: Action) -> (&'static str, Tone) {
    match action {
        Action::Created => ("created", Tone::Good),
        Action::Updated => ("updated", Tone::Good),
        Action::Unchanged => ("unchanged", Tone::Dim),
        Action::Removed => ("removed", Tone::Warn),
        Action::Failed => ("failed", Tone::Bad),
    }
}

impl Answer for Change {
    fn table(&self) -> Option<Table> {
        None
    }

    fn text(&self, colour: bool) -> String {
        let reply = &self.0;
        let mut out = String::new();
        for chain in &reply.chains {
            let _ = writeln!(out, "{}", headline(chain, reply.dry_run, colour));
            if reply.dry_run && chain.error.is_none() {
                for step in &chain.steps {
                    let _ = writeln!(out, "  {step}");
                }
            }
            for note in &chain.notes {
                let _ = writeln!(out, "  {} {note}", Tone::Warn.paint("note:", colour));
            }
        }
        for selector in &reply.selectors {
            let _ = writeln!(out, "{}", selected(selector, reply.dry_run, colour));
        }
        if reply.dry_run
            && let Some(admitted) = &reply.admission
        {
            let _ = writeln!(out, "{}", admission(admitted));
        }
        if !reply.omitted.is_empty() {
            let _ = writeln!(
                out,
                "{} {}; canopy get chains shows all",
                Tone::Warn.paint("note:", colour),
                left_out(&reply.omitted)
            );
        }
        let rehearsal = if reply.dry_run { "; nothing was changed" } else { "" };
        let _ = writeln!(out, "{}: generation {}{rehearsal}", reply.host, reply.generation);
        out
    }

    fn names(&self) -> Vec<String> {
        let chains = &self.0.chains;
        chains.iter().map(|c| format!("{}/{}", self.0.host, c.key())).collect()
    }
}

/// What a reply leaves out.
pub(crate) fn left_out(omitted: &[Omitted]) -> String {
    let parts: Vec<&str> = omitted.iter().map(|part| part.as_str()).collect();
    format!("the reply is too long and leaves out: {}", parts.join(", "))
}

/// What would admit a change.
fn admission(admitted: &Admitted) -> String {
    match admitted.basis {
        AdmissionBasis::Rules if admitted.rules.is_empty() => {
            "would be admitted: it changes nothing".to_owned()
        }
        AdmissionBasis::Rules => format!("would be admitted by {}", admitted.rules.join(", ")),
        AdmissionBasis::Open => "would be admitted: there are no rules".to_owned(),
        AdmissionBasis::Off => "would be admitted: this host asks nobody".to_owned(),
    }
}

pub(crate) fn selected(selector: &SelectorOutcome, dry_run: bool, colour: bool) -> String {
    let (word, tone) = word(selector.action);
    let would = match (dry_run, selector.action) {
        (false, _) => "",
        (true, Action::Failed) => "would have ",
        (true, _) => "would be ",
    };
    let SelectorOutcome { interfaces, action, .. } = selector;
    let names: Vec<&str> = interfaces.iter().map(canopy_api::InterfaceName::as_str).collect();
    let stands = match (action, names.is_empty()) {
        (Action::Removed, _) => String::new(),
        (Action::Failed, _) => ": it is as it was, and so are its interfaces".to_owned(),
        (_, true) => ": no interface fits now; one that comes gets the chain".to_owned(),
        (_, false) => format!(": {}", names.join(", ")),
    };
    format!("{} {would}{}{stands}", selector.target(), tone.paint(word, colour))
}

fn headline(chain: &ChainOutcome, dry_run: bool, colour: bool) -> String {
    let (word, tone) = word(chain.action);
    let would = match (dry_run, chain.action) {
        (false, _) => "",
        (true, Action::Unchanged) => "would be left ",
        (true, Action::Failed) => "would have ",
        (true, _) => "would be ",
    };
    let mut line = format!("{} {would}{}", chain.key(), tone.paint(word, colour));
    if chain.action == Action::Failed {
        line.push_str(": it is as it was");
    } else if !chain.programs.is_empty() {
        let programs: Vec<String> = chain
            .programs
            .iter()
            .map(|p| {
                let package = format!("{}@{}", p.package, p.version);
                if p.name.as_str() == p.package.as_str() {
                    package
                } else {
                    format!("{} ({package})", p.name)
                }
            })
            .collect();
        let _ = write!(line, ": {}", programs.join(" -> "));
    }
    if let Some(seen) = &chain.observed {
        let _ = write!(line, " [{}, program {}]", seen.mode, seen.program_id);
    }
    line
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::view::tests::host;
    use canopy_api::{Digest, Hook, wire::PlannedProgram};

    pub(crate) fn planned(name: &str, version: &str, priority: u16) -> PlannedProgram {
        PlannedProgram {
            name: name.parse().unwrap(),
            package: "firewall".parse().unwrap(),
            version: version.to_owned(),
            digest: Digest::of(version.as_bytes()),
            program: "firewall".to_owned(),
            variant: None,
            priority,
            proceed_on: vec!["pass".to_owned()],
            config: serde_json::json!({"blocked": ["198.51.100.0/24"]})
                .as_object()
                .unwrap()
                .clone(),
        }
    }

    pub(crate) fn outcome(action: Action, programs: Vec<PlannedProgram>) -> ChainOutcome {
        ChainOutcome {
            netns: None,
            interface: "eth0".parse().unwrap(),
            hook: Hook::Xdp,
            action,
            error: None,
            steps: vec!["load".to_owned(), "switch".to_owned()],
            notes: vec!["the driver has no native XDP: attached generic".to_owned()],
            programs,
            observed: None,
        }
    }

    pub(crate) fn reply(dry_run: bool, chains: Vec<ChainOutcome>) -> ApplyReply {
        ApplyReply {
            host: "web1".parse().unwrap(),
            generation: 5,
            dry_run,
            chains,
            selectors: Vec::new(),
            admission: None,
            omitted: Vec::new(),
        }
    }

    #[test]
    fn a_change_says_what_is_now_true() {
        let mut chain = outcome(
            Action::Updated,
            vec![planned("firewall", "0.2.0", 10), planned("limit", "0.1.0", 20)],
        );
        chain.observed = host().chains.remove(0).observed;
        assert_eq!(
            Change(reply(false, vec![chain])).text(false),
            "eth0/xdp updated: firewall@0.2.0 -> limit (firewall@0.1.0) [native, program 42]\n  \
             note: the driver has no native XDP: attached generic\n\
             web1: generation 5\n"
        );
    }

    #[test]
    fn a_selector_says_what_it_stands_for() {
        let mut reply = reply(false, vec![]);
        for (action, interfaces) in [
            (Action::Created, vec!["eth0".parse().unwrap(), "eth1".parse().unwrap()]),
            (Action::Unchanged, vec![]),
            (Action::Removed, vec![]),
        ] {
            let interface = "eth*".parse().unwrap();
            let outcome =
                SelectorOutcome { netns: None, interface, hook: Hook::Xdp, action, interfaces };
            reply.selectors.push(outcome);
        }
        assert_eq!(
            Change(reply).text(false),
            "eth*/xdp created: eth0, eth1\n\
             eth*/xdp unchanged: no interface fits now; one that comes gets the chain\n\
             eth*/xdp removed\nweb1: generation 5\n"
        );
    }

    #[test]
    fn what_failed_is_as_it_was() {
        let mut failed = outcome(Action::Failed, vec![planned("firewall", "0.2.0", 10)]);
        failed.notes.clear();
        failed.error = Some(canopy_api::ApiError::new(canopy_api::Code::Invalid, "no"));
        assert_eq!(
            Change(reply(false, vec![failed.clone()])).text(false),
            "eth0/xdp failed: it is as it was\nweb1: generation 5\n"
        );
        assert_eq!(
            Change(reply(true, vec![failed])).text(false),
            "eth0/xdp would have failed: it is as it was\n\
             web1: generation 5; nothing was changed\n"
        );
    }

    #[test]
    fn a_rehearsal_says_would() {
        let mut chain = outcome(Action::Removed, vec![]);
        chain.notes.clear();
        assert_eq!(
            Change(reply(true, vec![chain])).text(false),
            "eth0/xdp would be removed\n  load\n  switch\nweb1: generation 5; nothing was changed\n"
        );
    }
}
