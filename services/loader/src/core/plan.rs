//! The planner: desired minus observed, as steps.

use super::state::{State, Wanted, WantedProgram};
use canopy_api::{ChainKey, Hook, InterfaceSelector, ProgramName, wire::Action};
use canopy_kernel::{LinkState, Observed};
use std::collections::BTreeMap;

/// A chain that a request comes to; `None` to have it removed.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// Which chain.
    pub key: ChainKey,
    /// The selector it comes from, where that is no plain name.
    pub rule: Option<InterfaceSelector>,
    /// What it is to be.
    pub wanted: Option<Wanted>,
    /// Where the request says so: `document.chains[0]`.
    pub path: String,
    /// Where it names each program.
    pub program_paths: BTreeMap<ProgramName, String>,
    /// Worth telling whoever asked.
    pub notes: Vec<String>,
}

/// What is to be done to one chain.
#[derive(Clone, Debug, PartialEq)]
pub struct ChainPlan {
    /// Which chain.
    pub key: ChainKey,
    /// What the reply calls it.
    pub action: Action,
    /// What is done.
    pub step: Step,
    /// Whether what is desired changes.
    pub desired_changes: bool,
    /// The differences between desired and observed, in words.
    pub lines: Vec<String>,
}

/// What is done to one chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it is so.
    Nothing,
    /// Build a generation and attach it.
    Build,
    /// Attach the generation that is built already.
    Attach(u64),
    /// Note where it comes from; the generation that runs stays.
    Note(u64),
    /// Detach it, and forget it.
    Remove,
}

/// Plans a request.
pub fn plan(state: &State, observed: &[Observed], asked: &[Asked]) -> Vec<ChainPlan> {
    asked
        .iter()
        .map(|asked| {
            let seen = observed.iter().find(|seen| seen.key == asked.key);
            chain(state, seen, asked)
        })
        .collect()
}

fn chain(state: &State, seen: Option<&Observed>, asked: &Asked) -> ChainPlan {
    let record = state.chains.get(&asked.key);
    let hook = asked.key.hook;
    let attached = seen.is_some_and(|seen| match &seen.state {
        // What cannot be seen may be attached.
        LinkState::Attached(_) | LinkState::Replaced { .. } | LinkState::Unseen { .. } => true,
        LinkState::Detached | LinkState::InterfaceMissing | LinkState::NetnsMissing => false,
    });
    let plan = |action, step, desired_changes, lines| ChainPlan {
        key: asked.key.clone(),
        action,
        step,
        desired_changes,
        lines,
    };
    let Some(wanted) = &asked.wanted else {
        return match record {
            Some(record) => {
                let lines = record.wanted.programs.iter().map(removed).collect();
                plan(Action::Removed, Step::Remove, true, lines)
            }
            None if attached => plan(
                Action::Removed,
                Step::Remove,
                false,
                vec!["remove what is attached and not in the state".to_owned()],
            ),
            None => plan(Action::Unchanged, Step::Nothing, false, Vec::new()),
        };
    };
    let created = if attached { Action::Updated } else { Action::Created };
    let Some(record) = record else {
        let lines = wanted.programs.iter().map(added).collect();
        return plan(created, Step::Build, true, lines);
    };
    if !record.wanted.builds_like(wanted) {
        return plan(created, Step::Build, true, differences(&record.wanted, wanted, hook));
    }
    let runs = seen.is_some_and(|seen| match &seen.state {
        LinkState::Attached(chain) => chain.generation == record.running,
        LinkState::Replaced { .. }
        | LinkState::Detached
        | LinkState::InterfaceMissing
        | LinkState::NetnsMissing
        | LinkState::Unseen { .. } => false,
    });
    let pinned = seen.is_some_and(|seen| seen.generations.contains(&record.running));
    let (handed, mut lines) = handed_over(record.rule.as_ref(), asked.rule.as_ref());
    // The bytes are the same; who signed them is only noted.
    let signed = record.wanted != *wanted;
    if signed {
        lines.extend(signed_by(&record.wanted, wanted));
    }
    let handed = handed || signed;
    if runs && pinned && handed {
        plan(Action::Updated, Step::Note(record.running), true, lines)
    } else if runs && pinned {
        plan(Action::Unchanged, Step::Nothing, false, Vec::new())
    } else if pinned {
        plan(created, Step::Attach(record.running), handed, lines)
    } else {
        plan(created, Step::Build, handed, lines)
    }
}

/// Whether a chain comes from elsewhere than before, and that in words.
fn handed_over(
    before: Option<&InterfaceSelector>,
    after: Option<&InterfaceSelector>,
) -> (bool, Vec<String>) {
    let from = match after {
        _ if before == after => return (false, Vec::new()),
        Some(selector) => format!("comes from {selector} now"),
        None => "is the interface's own now".to_owned(),
    };
    (true, vec![from])
}

/// Whose signature counts now, one line for each program of which it is another's.
fn signed_by<'a>(before: &'a Wanted, after: &'a Wanted) -> impl Iterator<Item = String> + 'a {
    let pairs = before.programs.iter().zip(&after.programs);
    pairs.filter(|(old, new)| old.publisher != new.publisher).map(|(_, new)| {
        let by = new.publisher.as_deref().unwrap_or("nobody");
        format!("{}: {} {} is signed by {by} now", new.name, new.package, new.version)
    })
}

fn added(program: &WantedProgram) -> String {
    let WantedProgram { name, package, version, priority, .. } = program;
    format!("add {name} ({package} {version}) at priority {priority}")
}

fn removed(program: &WantedProgram) -> String {
    let WantedProgram { name, package, version, .. } = program;
    format!("remove {name} ({package} {version})")
}

/// What changes between two descriptions of a chain, one line each.
fn differences(before: &Wanted, after: &Wanted, hook: Hook) -> Vec<String> {
    let mut lines = Vec::new();
    for old in &before.programs {
        if !after.programs.iter().any(|new| new.name == old.name) {
            lines.push(removed(old));
        }
    }
    for new in &after.programs {
        let Some(old) = before.programs.iter().find(|old| old.name == new.name) else {
            lines.push(added(new));
            continue;
        };
        let name = &new.name;
        if old.package != new.package || old.program != new.program {
            lines.push(format!(
                "{name}: {} {} {} becomes {} {} {}",
                old.package, old.version, old.program, new.package, new.version, new.program
            ));
        } else if old.version != new.version {
            lines.push(format!("{name}: {} {} becomes {}", new.package, old.version, new.version));
        } else if old.digest != new.digest {
            lines.push(format!("{name}: {} {} has other bytes", new.package, new.version));
        } else if old.object != new.object {
            lines.push(format!("{name}: {} becomes {}", old.object, new.object));
        } else if old.choice != new.choice {
            lines.push(format!("{name}: {} is chosen for other reasons", new.object));
        }
        if old.priority != new.priority {
            lines.push(format!("{name}: priority {} becomes {}", old.priority, new.priority));
        }
        if old.proceed_on != new.proceed_on {
            let names = |p: &WantedProgram| p.proceed_on.names(hook).join(", ");
            lines.push(format!("{name}: proceed on {} becomes {}", names(old), names(new)));
        }
        if old.config != new.config {
            let mut keys: Vec<&str> = Vec::new();
            for key in old.config.keys().chain(new.config.keys()) {
                if old.config.get(key) != new.config.get(key) && !keys.contains(&key.as_str()) {
                    keys.push(key);
                }
            }
            lines.push(format!("{name}: settings changed: {}", keys.join(", ")));
        }
    }
    if before.xdp_mode != after.xdp_mode {
        lines.push("XDP mode changes".to_owned());
    }
    if before.tc_mode != after.tc_mode {
        lines.push("TC mode changes".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::state::Chain;
    use canopy_api::{Digest, TcMode, VerdictSet, XdpMode, wire::ObservedChain};
    use proptest::{prelude::*, sample::select};

    fn key() -> ChainKey {
        ChainKey { netns: None, interface: "eth0".parse().unwrap(), hook: Hook::Xdp }
    }

    fn program(name: &str, version: u64, priority: u16, verdicts: u32) -> WantedProgram {
        WantedProgram {
            name: name.parse().unwrap(),
            package: "wall".parse().unwrap(),
            version: semver::Version::new(1, version, 0),
            digest: Digest::of(&version.to_le_bytes()),
            publisher: None,
            program: "main".to_owned(),
            object: "main.o".to_owned(),
            choice: None,
            function: "main".to_owned(),
            priority,
            proceed_on: VerdictSet::from_bits(verdicts),
            frags: false,
            config: serde_json::Map::new(),
        }
    }

    fn wanted() -> impl Strategy<Value = Option<Wanted>> {
        let one = (select(&["a", "b", "c"][..]), 0_u64..2, 0_u16..2, 1_u32..3)
            .prop_map(|(name, version, priority, bits)| program(name, version, priority, bits));
        let some = prop::collection::vec(one, 1..4).prop_map(|mut programs| {
            programs.sort_by(|a, b| a.name.cmp(&b.name));
            programs.dedup_by(|a, b| a.name == b.name);
            Wanted { xdp_mode: XdpMode::Best, tc_mode: TcMode::Best, programs }
        });
        prop::option::of(some)
    }

    fn link() -> impl Strategy<Value = Option<LinkState>> {
        let attached = (1_u64..4).prop_map(|generation| {
            LinkState::Attached(ObservedChain {
                program_id: 1,
                link_id: 1,
                tag: String::new(),
                ifindex: 1,
                mode: "native".to_owned(),
                generation,
                verified_instructions: 0,
                jited_bytes: 0,
                memory_bytes: 0,
                loaded: 0,
                timed_runs: 0,
                timed_ns: 0,
                functions: Vec::new(),
                function_bytes: Vec::new(),
                native_refused: None,
            })
        });
        prop_oneof![
            Just(None),
            attached.prop_map(Some),
            Just(Some(LinkState::Replaced { program_id: 9 })),
            Just(Some(LinkState::Detached)),
            Just(Some(LinkState::InterfaceMissing)),
            Just(Some(LinkState::NetnsMissing)),
            Just(Some(LinkState::Unseen { why: "forbidden".to_owned() })),
        ]
    }

    fn state(wanted: Option<Wanted>, running: u64) -> State {
        let mut state = State::new("web1".parse().unwrap());
        if let Some(wanted) = wanted {
            let chain = Chain {
                wanted,
                running,
                changed: 0,
                changed_by: "u-test".parse().unwrap(),
                restored: 0,
                since: BTreeMap::new(),
                rule: None,
            };
            state.chains.insert(key(), chain);
        }
        state
    }

    proptest! {
        #[test]
        fn a_plan_is_what_is_missing_and_no_more(
            have in wanted(),
            want in wanted(),
            link in link(),
            pinned in prop::collection::btree_set(1_u64..4, 0..3),
            running in 1_u64..4,
        ) {
            let observed: Vec<_> = link
                .clone()
                .map(|state| Observed {
                    key: key(),
                    state,
                    generations: pinned.iter().copied().collect(),
                    away: None,
                    pin_problem: None,
                })
                .into_iter()
                .collect();
            let state = state(have.clone(), running);
            let asked = Asked {
                key: key(),
                rule: None,
                wanted: want.clone(),
                path: String::new(),
                program_paths: BTreeMap::new(),
                notes: Vec::new(),
            };
            let plans = plan(&state, &observed, &[asked]);
            prop_assert_eq!(plans.len(), 1);
            let plan = &plans[0];
            let ours = matches!(&link, Some(LinkState::Attached(now)) if now.generation == running);
            let is_pinned = link.is_some() && pinned.contains(&running);
            let expected = match (&have, &want) {
                (None, None) if matches!(
                    link,
                    Some(
                        LinkState::Attached(_)
                            | LinkState::Replaced { .. }
                            | LinkState::Unseen { .. }
                    )
                ) => Step::Remove,
                (None, None) => Step::Nothing,
                (Some(_), None) => Step::Remove,
                (have, want) if have != want => Step::Build,
                (Some(_), Some(_)) if ours && is_pinned => Step::Nothing,
                (Some(_), Some(_)) if is_pinned => Step::Attach(running),
                _ => Step::Build,
            };
            prop_assert_eq!(plan.step, expected);
            prop_assert_eq!(plan.desired_changes, have != want);
            prop_assert_eq!(plan.action == Action::Unchanged, plan.step == Step::Nothing);
            // What changes in the intent is told in words, what does not is not.
            prop_assert_eq!(have != want, !plan.lines.is_empty() && have.is_some() || have.is_none() && want.is_some());
        }
    }
}
