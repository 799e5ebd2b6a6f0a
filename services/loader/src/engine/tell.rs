//! What a reply tells of each chain and selector.

use super::{Inner, items::Item, journal::After};
use crate::core::{
    plan::Step,
    state::{RuleChange, Wanted},
};
use canopy_api::{
    ApiError, ChainKey, Hook, Target, XdpMode,
    wire::{Action, ChainOutcome, ObservedChain, PlannedProgram},
};

/// What a request does to a selector.
pub(super) fn rule_action(inner: &Inner, rules: &[RuleChange], target: &Target) -> Action {
    let change = rules.iter().find(|change| change.target == *target);
    match (change.map(|change| &change.rule), inner.state.rules.contains_key(target)) {
        (None, _) => Action::Unchanged,
        (Some(None), _) => Action::Removed,
        (Some(Some(_)), true) => Action::Updated,
        (Some(Some(_)), false) => Action::Created,
    }
}

/// Programs as replies tell them.
pub(super) fn planned(wanted: &Wanted, hook: Hook) -> Vec<PlannedProgram> {
    wanted
        .programs
        .iter()
        .map(|program| PlannedProgram {
            name: program.name.clone(),
            package: program.package.clone(),
            version: program.version.to_string(),
            digest: program.digest.clone(),
            program: program.program.clone(),
            variant: program.variant(),
            priority: program.priority,
            proceed_on: program.proceed_on.names(hook),
            config: program.config.clone(),
        })
        .collect()
}

/// What is told of a chain that is as it was asked for.
pub(super) fn outcome(item: Item, after: &After) -> ChainOutcome {
    let Item { asked, plan, build, prepared, before: _, hidden: _ } = item;
    let observed = after.get(&asked.key).cloned().flatten();
    let mut steps = plan.lines;
    match plan.step {
        Step::Nothing | Step::Note(_) => {}
        Step::Build => {
            let (generation, members) =
                build.as_ref().map_or((0, 0), |build| (build.generation, build.members.len()));
            let verified = prepared.as_ref().map_or(0, |p| p.verified_instructions);
            steps.push(format!(
                "load generation {generation}: {members} program(s), {verified} verified instructions"
            ));
            steps.push(match plan.action {
                Action::Updated => "replace what is attached in one step".to_owned(),
                Action::Created | Action::Unchanged | Action::Removed | Action::Failed => {
                    "attach it".to_owned()
                }
            });
        }
        Step::Attach(generation) => steps.push(format!("attach generation {generation} again")),
        Step::Remove => steps.push("detach".to_owned()),
    }
    let mut notes = asked.notes;
    notes.extend(prepared.into_iter().flat_map(|prepared| prepared.notes));
    let generic = observed.as_ref().filter(|chain| chain.mode == "generic");
    let mode = asked.wanted.as_ref().map(|wanted| wanted.xdp_mode);
    if let (Some(chain), Hook::Xdp, Some(XdpMode::Best)) = (generic, asked.key.hook, mode) {
        notes.push(generic_note(&asked.key, chain));
    }
    ChainOutcome {
        netns: asked.key.netns,
        interface: asked.key.interface,
        hook: asked.key.hook,
        action: plan.action,
        error: None,
        steps,
        notes,
        programs: asked.wanted.as_ref().map_or_else(Vec::new, |w| planned(w, asked.key.hook)),
        observed,
    }
}

/// That a chain runs in generic mode, and what the kernel said to native XDP, if that is known.
fn generic_note(key: &ChainKey, chain: &ObservedChain) -> String {
    let interface = &key.interface;
    match &chain.native_refused {
        Some(reason) => format!(
            "{interface} runs XDP in generic mode (slower): the kernel refused native XDP: {reason}"
        ),
        None => format!("{interface} runs XDP in generic mode (slower)"),
    }
}

/// What is told of a chain whose interface is as it was.
pub(super) fn failure(
    item: Item,
    key: Option<&ChainKey>,
    error: &ApiError,
    stays: bool,
) -> ChainOutcome {
    let Item { asked, plan, .. } = item;
    let mut error = match key {
        Some(key) if *key != asked.key => {
            ApiError::new(error.code, format!("left as it was, because {key} failed"))
                .remedy(format!("see what is told of {key}"))
        }
        Some(_) | None => error.clone(),
    };
    if error.path.is_empty() {
        error.path.clone_from(&asked.path);
    }
    let mut notes = asked.notes;
    if let (true, Some(selector)) = (stays, &asked.rule) {
        notes.push(format!("{selector} stands for it: the loader goes on trying"));
    }
    ChainOutcome {
        netns: asked.key.netns,
        interface: asked.key.interface,
        hook: asked.key.hook,
        action: Action::Failed,
        error: Some(error),
        steps: plan.lines,
        notes,
        programs: asked.wanted.as_ref().map_or_else(Vec::new, |w| planned(w, asked.key.hook)),
        observed: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generic_mode_is_told_with_what_the_kernel_said() {
        let key = ChainKey::new("eth0".parse().unwrap(), Hook::Xdp);
        let mut chain = ObservedChain {
            program_id: 1,
            link_id: 1,
            tag: String::new(),
            ifindex: 1,
            mode: "generic".to_owned(),
            generation: 1,
            verified_instructions: 0,
            jited_bytes: 0,
            memory_bytes: 0,
            loaded: 0,
            timed_runs: 0,
            timed_ns: 0,
            functions: Vec::new(),
            function_bytes: Vec::new(),
            native_refused: Some("Invalid argument (os error 22): MTU too large".to_owned()),
        };
        let note = generic_note(&key, &chain);
        assert!(
            note.ends_with("refused native XDP: Invalid argument (os error 22): MTU too large")
        );
        // Nobody asked: no cause.
        chain.native_refused = None;
        assert_eq!(generic_note(&key, &chain), "eth0 runs XDP in generic mode (slower)");
    }
}
