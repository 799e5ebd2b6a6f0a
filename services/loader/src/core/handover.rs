//! What runs where, before a request against after it, on every interface that there may be: those that
//! are there, those that are away, and those that nobody has seen yet.
//!
//! Descriptions are compared as sets of interfaces. What cannot be told from the selectors alone (which
//! interface has an alternative name, an address, the default route) may be.

use super::{
    resolve::Wish,
    state::{State, Wanted, WantedProgram},
};
use canopy_api::{Hook, InterfaceSelector, Netns, ProgramName, Target, VerdictSet};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

/// What is described for interfaces by name and for selectors.
pub type Described<'a> = BTreeMap<Target, &'a Wanted>;

/// Everything that a state describes.
pub fn described(state: &State) -> Described<'_> {
    let by_name = state.chains.iter().filter(|(_, chain)| chain.rule.is_none());
    let by_name = by_name.map(|(key, chain)| (Target::from(key.clone()), &chain.wanted));
    by_name.chain(state.rules.iter().map(|(target, rule)| (target.clone(), &rule.wanted))).collect()
}

/// Namespaces that are called by two names: what is described for the one is for the other too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aliases(pub BTreeSet<(Option<Netns>, Option<Netns>)>);

impl Aliases {
    fn same(&self, a: Option<&Netns>, b: Option<&Netns>) -> bool {
        let pair = |one: &(Option<Netns>, Option<Netns>)| {
            let (one, other) = (one.0.as_ref(), one.1.as_ref());
            (one, other) == (a, b) || (other, one) == (a, b)
        };
        a == b || self.0.iter().any(pair)
    }

    /// Whether there may be an interface that two targets stand for, on whichever hook.
    pub fn may_meet(&self, a: &Target, b: &Target) -> bool {
        self.same(a.netns.as_ref(), b.netns.as_ref()) && a.interface.may_meet(&b.interface)
    }
}

/// Interfaces on which one description may take the place of another.
#[derive(Clone, Debug)]
pub struct Handover<'a> {
    /// Which: those of this target,
    pub place: Target,
    /// that this selector stands for too.
    pub within: Option<InterfaceSelector>,
    /// What is described for them now.
    pub before: &'a Wanted,
    /// What would be; `None` for nothing.
    pub after: Option<&'a Wanted>,
    /// Whether `after` was described before and comes into its own because `before` goes.
    pub uncovers: bool,
    /// What asks for it.
    pub wish: &'a Wish,
}

/// Every handover that a request may lead to, also where only a part of it can be done.
pub fn handovers<'a>(
    before: &Described<'a>,
    wishes: &'a [Wish],
    aliases: &Aliases,
) -> Vec<Handover<'a>> {
    wishes.iter().flat_map(|wish| of_wish(before, wishes, wish, aliases)).collect()
}

fn of_wish<'a>(
    before: &Described<'a>,
    wishes: &'a [Wish],
    wish: &'a Wish,
    aliases: &Aliases,
) -> Vec<Handover<'a>> {
    let own = before.get(&wish.target).copied();
    match (own, &wish.wanted) {
        (Some(own), Some(wanted)) => vec![Handover {
            place: wish.target.clone(),
            within: None,
            before: own,
            after: Some(wanted),
            uncovers: false,
            wish,
        }],
        (None, Some(wanted)) => before
            .iter()
            .filter(|(below, _)| is_below(below, &wish.target, aliases))
            .map(|(below, own)| Handover {
                after: Some(wanted),
                uncovers: false,
                ..meeting(&wish.target, below, own, wish)
            })
            .collect(),
        (Some(own), None) => uncovered(before, wishes, wish, own, aliases),
        (None, None) => Vec::new(),
    }
}

/// What comes into its own where a description goes: of those below it the first that fits, and which
/// that is depends on the interface. Nothing, where none is sure to fit.
fn uncovered<'a>(
    before: &Described<'a>,
    wishes: &'a [Wish],
    wish: &'a Wish,
    own: &'a Wanted,
    aliases: &Aliases,
) -> Vec<Handover<'a>> {
    let asked: BTreeMap<&Target, Option<&Wanted>> =
        wishes.iter().map(|wish| (&wish.target, wish.wanted.as_ref())).collect();
    let mut below: BTreeSet<&Target> = before.keys().collect();
    below.extend(asked.keys().copied());
    let mut below: Vec<_> = below
        .into_iter()
        .filter(|target| {
            target.netns == wish.target.netns && is_below(target, &wish.target, aliases)
        })
        .collect();
    below.sort_by_key(|target| Reverse(rank(target)));
    let mut found = Vec::new();
    for target in below {
        let old = before.get(target).copied();
        // Of a request a part may be done without the rest.
        let new = asked.get(target).copied().flatten();
        for (after, uncovers) in [(old, true), (new, false)] {
            if let Some(after) = after {
                let meeting = meeting(&wish.target, target, own, wish);
                found.push(Handover { after: Some(after), uncovers, ..meeting });
            }
        }
        let goes = asked.get(target).is_some_and(Option::is_none);
        if old.is_some() && !goes && target.interface.covers(&wish.target.interface) {
            return found;
        }
    }
    found.push(Handover {
        place: wish.target.clone(),
        within: None,
        before: own,
        after: None,
        uncovers: false,
        wish,
    });
    found
}

/// The interfaces of two targets.
fn meeting<'a>(target: &Target, other: &Target, own: &'a Wanted, wish: &'a Wish) -> Handover<'a> {
    let (interface, within) = if other.interface.covers(&target.interface) {
        (&target.interface, None)
    } else if target.interface.covers(&other.interface) {
        (&other.interface, None)
    } else {
        (&target.interface, Some(other.interface.clone()))
    };
    let place = Target { interface: interface.clone(), ..target.clone() };
    Handover { place, within, before: own, after: None, uncovers: false, wish }
}

/// Which of two that fit an interface counts: the greater.
fn rank(target: &Target) -> (usize, Reverse<String>) {
    (target.interface.specificity(), Reverse(target.interface.to_string()))
}

/// Whether a description may have an interface that it loses to another one.
fn is_below(below: &Target, above: &Target, aliases: &Aliases) -> bool {
    below != above
        && below.hook == above.hook
        && aliases.may_meet(below, above)
        // Of two names for one namespace neither is above the other.
        && (below.netns != above.netns || rank(below) < rank(above))
}

impl Handover<'_> {
    /// The programs that go, and those that packets would no longer reach.
    pub fn lost(&self) -> impl Iterator<Item = Lost<'_>> {
        lost(self.place.hook, self.before, self.after)
    }
}

/// A program that a chain would lose, for all packets or for some.
#[derive(Clone, Copy, Debug)]
pub struct Lost<'a> {
    /// The program.
    pub program: &'a WantedProgram,
    /// Where it stays in the chain: the one that would run before it and end the chain for packets that reach
    /// it now.
    pub behind: Option<&'a WantedProgram>,
}

/// The programs of a chain that it would lose.
///
/// One that stays under its name with another package goes; so does one that changes its name. One that
/// stays is lost for the packets that an earlier program would end the chain for: each that runs before it
/// has to go on after every verdict that it went on after before, and one that did not run before it after
/// those that a chain of that hook goes on after by default.
pub fn lost<'a>(
    hook: Hook,
    before: &'a Wanted,
    after: Option<&'a Wanted>,
) -> impl Iterator<Item = Lost<'a>> {
    before.programs.iter().enumerate().filter_map(move |(place, program)| {
        let gone = Some(Lost { program, behind: None });
        let Some(after) = after else { return gone };
        let Some(now) = after.programs.iter().position(|one| same(one, program)) else {
            return gone;
        };
        let handed_on = |earlier: &WantedProgram| {
            let known = before.programs.iter().take(place).find(|one| same(one, earlier));
            known.map_or(VerdictSet::default_for(hook), |one| one.proceed_on)
        };
        let mut earlier = after.programs.iter().take(now);
        let behind = earlier.find(|one| !one.proceed_on.covers(handed_on(one)))?;
        Some(Lost { program, behind: Some(behind) })
    })
}

/// Whether two are one program of a chain, of whichever version.
fn same(one: &WantedProgram, other: &WantedProgram) -> bool {
    one.name == other.name && one.package == other.package
}

/// Where a request names a program, or else the chain.
pub fn path_of(wish: &Wish, program: &ProgramName) -> String {
    wish.program_paths.get(program).unwrap_or(&wish.path).clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::state::tests::wanted;
    use canopy_api::Verdict;

    const HOOK: canopy_api::Hook = canopy_api::Hook::Xdp;

    fn target(text: &str) -> Target {
        Target { netns: None, interface: text.parse().unwrap(), hook: HOOK }
    }

    fn wish(text: &str, programs: &[&str]) -> Wish {
        Wish {
            target: target(text),
            wanted: (!programs.is_empty()).then(|| wanted(programs)),
            path: String::new(),
            program_paths: BTreeMap::new(),
            notes: Vec::new(),
        }
    }

    /// What goes where, in words: `block on eth1* within mac:…`.
    fn goes(host: &[(&str, &[&str])], wishes: &[Wish]) -> Vec<String> {
        let host: Vec<_> =
            host.iter().map(|(text, programs)| (target(text), wanted(programs))).collect();
        let before: Described<'_> =
            host.iter().map(|(target, own)| (target.clone(), own)).collect();
        let mut told: Vec<String> = handovers(&before, wishes, &Aliases::default())
            .iter()
            .flat_map(|one| {
                let within = one.within.as_ref().map(|it| format!(" within {it}"));
                let place = format!("{}{}", one.place.interface, within.unwrap_or_default());
                one.lost().map(move |lost| {
                    let behind = lost.behind.map(|it| format!(" behind {}", it.name));
                    format!("{}{} on {place}", lost.program.name, behind.unwrap_or_default())
                })
            })
            .collect();
        told.sort();
        told.dedup();
        told
    }

    #[test]
    fn what_takes_interfaces_to_come_over_is_seen() {
        let host: &[(&str, &[&str])] = &[("eth*", &["block"])];
        assert_eq!(goes(host, &[wish("eth1*", &["limit"])]), ["block on eth1*"]);
        assert_eq!(goes(host, &[wish("eth9", &["limit"])]), ["block on eth9"]);
        // Of equal letters, the first by its text has what both stand for.
        assert_eq!(goes(host, &[wish("*th0", &["limit"])]), ["block on *th0 within eth*"]);
        assert_eq!(goes(&[("*th0", &["block"])], &[wish("eth*", &["limit"])]), [""; 0]);
        assert_eq!(goes(host, &[wish("*h0?1", &["limit"])]), ["block on *h0?1 within eth*"]);
        let up = wish("altname:up", &["limit"]);
        assert_eq!(goes(host, std::slice::from_ref(&up)), ["block on altname:up within eth*"]);
        assert_eq!(goes(host, &[wish("wan0", &["limit"])]), [""; 0]);
        assert_eq!(goes(host, &[wish("*", &["limit"])]), [""; 0], "it takes nothing over");
        assert_eq!(goes(host, &[wish("eth1*", &["block", "limit"])]), [""; 0], "it stays");
    }

    #[test]
    fn what_is_uncovered_keeps_only_what_each_that_may_fit_has() {
        let all: &[(&str, &[&str])] = &[("*", &["block"]), ("eth1*", &["block", "limit"])];
        assert_eq!(goes(all, &[wish("eth1*", &[])]), ["limit on eth1*"]);
        // One in between that may fit, and has it not.
        let between: &[(&str, &[&str])] =
            &[("*", &["block"]), ("e*", &["limit"]), ("eth1*", &["block"])];
        assert_eq!(goes(between, &[wish("eth1*", &[])]), ["block on eth1*"]);
        let maybe: &[(&str, &[&str])] =
            &[("*", &["block"]), ("default-route", &["limit"]), ("eth1", &["block"])];
        assert_eq!(goes(maybe, &[wish("eth1", &[])]), ["block on eth1 within default-route"]);
        // None is sure to fit.
        let none: &[(&str, &[&str])] = &[("default-route", &["block"]), ("eth1", &["block"])];
        assert_eq!(goes(none, &[wish("eth1", &[])]), ["block on eth1"]);
        let lo: &[(&str, &[&str])] = &[("*", &["block"]), ("lo", &["block"])];
        assert_eq!(goes(lo, &[wish("lo", &[])]), ["block on lo"], "a pattern leaves it out");
    }

    /// A chain of these programs, each with the names of the verdicts that it goes on after.
    fn in_order(hook: Hook, programs: &[(&str, &[&str])]) -> Wanted {
        let names: Vec<&str> = programs.iter().map(|(name, _)| *name).collect();
        let mut chain = wanted(&names);
        for (program, (_, verdicts)) in chain.programs.iter_mut().zip(programs) {
            let verdicts = verdicts.iter().map(|name| Verdict::parse(hook, name).unwrap());
            program.proceed_on = verdicts.collect();
        }
        chain
    }

    #[test]
    fn a_program_behind_one_that_ends_the_chain_is_lost() {
        type Programs<'a> = &'a [(&'a str, &'a [&'a str])];
        let told = |hook, before: Programs<'_>, after: Programs<'_>| -> Vec<String> {
            let (before, after) = (in_order(hook, before), in_order(hook, after));
            lost(hook, &before, Some(&after))
                .map(|lost| match lost.behind {
                    Some(behind) => format!("{} behind {}", lost.program.name, behind.name),
                    None => lost.program.name.to_string(),
                })
                .collect()
        };
        let xdp = |before: Programs<'_>, after: Programs<'_>| told(Hook::Xdp, before, after);
        let block: (&str, &[&str]) = ("block", &["pass"]);
        let meter: (&str, &[&str]) = ("meter", &["pass"]);
        // One that is put before it.
        assert_eq!(xdp(&[block], &[("meter", &[]), block]), ["block behind meter"]);
        assert_eq!(xdp(&[block], &[("meter", &["drop"]), block]), ["block behind meter"]);
        assert_eq!(xdp(&[block], &[meter, block]), [""; 0]);
        assert_eq!(xdp(&[block], &[block, ("meter", &[])]), [""; 0]);
        // One that was there, and hands less on; though it hands on what is the default.
        assert_eq!(xdp(&[meter, block], &[("meter", &[]), block]), ["block behind meter"]);
        let more: (&str, &[&str]) = ("meter", &["pass", "tx"]);
        assert_eq!(xdp(&[more, block], &[meter, block]), ["block behind meter"]);
        assert_eq!(xdp(&[meter, block], &[more, block]), [""; 0]);
        // It was so before.
        assert_eq!(xdp(&[("meter", &[]), block], &[("meter", &[]), block]), [""; 0]);
        // The two change places, or there is another in its place.
        let ends: (&str, &[&str]) = ("meter", &[]);
        assert_eq!(xdp(&[block, ends], &[ends, block]), ["block behind meter"]);
        assert_eq!(xdp(&[ends, block], &[("other", &[]), block]), ["meter", "block behind other"]);
        // Not the nearest one.
        let third: (&str, &[&str]) = ("third", &["pass"]);
        assert_eq!(
            xdp(&[third, block], &[ends, third, block]),
            ["third behind meter", "block behind meter"]
        );
        let tc = |after: Programs<'_>| {
            told(Hook::TcEgress, &[("block", &["ok", "pipe", "unspec"])], after)
        };
        let block: (&str, &[&str]) = ("block", &["ok", "pipe", "unspec"]);
        assert_eq!(tc(&[("meter", &["ok", "pipe", "unspec"]), block]), [""; 0]);
        for some in [&["ok", "pipe"], &["ok", "unspec"], &["pipe", "unspec"]] {
            assert_eq!(tc(&[("meter", some), block]), ["block behind meter"]);
        }
    }

    #[test]
    fn a_part_of_a_request_may_be_done_without_the_rest() {
        let host: &[(&str, &[&str])] = &[("eth*", &["limit"]), ("eth1*", &["block"])];
        let moved = [wish("eth1*", &[]), wish("eth*", &["limit", "block"])];
        assert_eq!(goes(host, &moved), ["block on eth1*"]);
    }

    #[test]
    fn two_names_of_one_namespace_are_one_place() {
        let there = |text: &str| Target { netns: Some("pid:7".parse().unwrap()), ..target(text) };
        let own = wanted(&["block"]);
        let before = Described::from([(target("eth*"), &own)]);
        let wishes = [Wish { target: there("eth0"), ..wish("eth0", &["limit"]) }];
        assert!(handovers(&before, &wishes, &Aliases::default()).is_empty());
        let aliases = Aliases([(None, Some("pid:7".parse().unwrap()))].into());
        assert_eq!(handovers(&before, &wishes, &aliases).len(), 1);
    }
}
