//! What policy is asked about: the parts of a request, each with the package it is about.

use super::{
    downgrade::Downgrade,
    plan::Asked,
    resolve::{Located, Wish},
    state::{State, Wanted, WantedProgram},
};
use canopy_api::{
    ChainKey, Digest, InterfaceSelector, Target,
    wire::{AdmissionItem, AdmissionVerb},
};
use canopy_package::PublicKey;
use std::collections::BTreeMap;

/// Who signed each package of a request.
pub type Signers = BTreeMap<Digest, PublicKey>;

/// Who signed what was located.
pub fn signers(located: &BTreeMap<String, Located>) -> Signers {
    let signed = |one: &Located| Some((one.digest.clone(), one.signed_by.clone()?));
    located.values().filter_map(signed).collect()
}

/// The parts of an apply: each program it names; each that would go back to an older version; and each
/// that is in a chain and would be no more.
pub fn of_apply(
    wishes: &[Wish],
    signers: &Signers,
    downgrades: &[Downgrade],
    lost: Vec<AdmissionItem>,
) -> Vec<AdmissionItem> {
    let mut items = Vec::new();
    for wish in wishes {
        for program in wish.wanted.iter().flat_map(|wanted| &wanted.programs) {
            items.push(AdmissionItem {
                publisher: signers.get(&program.digest).map(ToString::to_string),
                path: wish.program_paths.get(&program.name).cloned().unwrap_or_default(),
                ..part(AdmissionVerb::Apply, &wish.target, program)
            });
        }
    }
    items.extend(downgrades.iter().map(|back| {
        AdmissionItem {
            netns: back.key.netns.clone(),
            interface: Some(back.key.interface.clone().into()),
            hook: Some(back.key.hook),
            program: Some(back.program.clone()),
            package: Some(back.package.clone()),
            version: Some(back.to.clone()),
            publisher: wishes
                .iter()
                .flat_map(|wish| wish.wanted.iter().flat_map(|wanted| &wanted.programs))
                .find(|program| program.package == back.package && program.version == back.to)
                .and_then(|program| signers.get(&program.digest))
                .map(ToString::to_string),
            path: back.path.clone(),
            ..AdmissionItem::new(AdmissionVerb::Downgrade)
        }
    }));
    // A chain that the kernel has and the loader knows nothing of is removed too.
    for wish in wishes.iter().filter(|wish| wish.wanted.is_none()) {
        if !lost.iter().any(|item| item.path == wish.path) {
            items.push(AdmissionItem { path: wish.path.clone(), ..bare(&wish.target) });
        }
    }
    items.extend(lost);
    items
}

/// The programs that chains, and what selectors stand for, would lose by a request. One that stays
/// under its name with another package is lost; so is one that changes its name.
pub fn lost(state: &State, wishes: &[Wish], asked: &[Asked]) -> Vec<AdmissionItem> {
    let mut items = Vec::new();
    for wish in wishes {
        let Some(rule) = state.rules.get(&wish.target) else { continue };
        missing(&rule.wanted, wish.wanted.as_ref(), &wish.target, &wish.path, &mut items);
    }
    for asked in asked {
        let Some(chain) = state.chains.get(&asked.key) else { continue };
        let target = asked.key.clone().into();
        missing(&chain.wanted, asked.wanted.as_ref(), &target, &asked.path, &mut items);
    }
    items
}

fn missing(
    old: &Wanted,
    new: Option<&Wanted>,
    target: &Target,
    path: &str,
    items: &mut Vec<AdmissionItem>,
) {
    for program in &old.programs {
        let stays = |p: &WantedProgram| p.name == program.name && p.package == program.package;
        if !new.is_some_and(|new| new.programs.iter().any(stays)) {
            let item = part(AdmissionVerb::Delete, target, program);
            items.push(AdmissionItem { path: path.to_owned(), ..item });
        }
    }
}

/// The parts of a delete. A chain of which nothing is known is one part.
pub fn of_delete(target: &Target, lost: Vec<AdmissionItem>) -> Vec<AdmissionItem> {
    if lost.is_empty() { vec![bare(target)] } else { lost }
}

/// A chain of which only the place is known.
fn bare(target: &Target) -> AdmissionItem {
    AdmissionItem {
        netns: target.netns.clone(),
        interface: Some(target.interface.clone()),
        hook: Some(target.hook),
        ..AdmissionItem::new(AdmissionVerb::Delete)
    }
}

/// The parts of a drain, or of undoing one: every program of the host.
pub fn of_drain(state: &State, undo: bool) -> Vec<AdmissionItem> {
    let verb = if undo { AdmissionVerb::Undrain } else { AdmissionVerb::Drain };
    let chains = state.chains.iter().map(|(key, chain)| (Target::from(key.clone()), &chain.wanted));
    let mut items = Vec::new();
    for (target, wanted) in chains {
        items.extend(wanted.programs.iter().map(|program| part(verb, &target, program)));
    }
    if items.is_empty() {
        items.push(AdmissionItem::new(verb));
    }
    items
}

/// The part of a write to a map.
pub fn of_map(
    verb: AdmissionVerb,
    key: &ChainKey,
    program: &WantedProgram,
    map: &str,
) -> AdmissionItem {
    AdmissionItem {
        map: Some(map.to_owned()),
        path: "map".to_owned(),
        ..part(verb, &key.clone().into(), program)
    }
}

fn part(verb: AdmissionVerb, target: &Target, program: &WantedProgram) -> AdmissionItem {
    let interface: InterfaceSelector = target.interface.clone();
    AdmissionItem {
        netns: target.netns.clone(),
        interface: Some(interface),
        hook: Some(target.hook),
        program: Some(program.name.clone()),
        package: Some(program.package.clone()),
        version: Some(program.version.clone()),
        ..AdmissionItem::new(verb)
    }
}
