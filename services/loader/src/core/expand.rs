//! From what is described for interfaces to chains: which interface has which chain.

use super::{
    plan::Asked,
    resolve::Wish,
    state::{Rule, RuleChange, State},
};
use canopy_api::{ChainKey, InterfaceSelector, Netns, Target};
use canopy_kernel::Interface;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

/// The interfaces of a host, in its own network namespace and those that somebody names.
#[derive(Clone, Debug, Default)]
pub struct Interfaces {
    /// All of them.
    pub all: Vec<Interface>,
    /// Those that the default route of their namespace leads to, by index; empty where nobody asks.
    pub default_route: Vec<(Option<Netns>, u32)>,
    /// Namespaces that could not be looked into.
    pub unreached: BTreeMap<Netns, Unreached>,
}

/// Why a namespace could not be looked into.
#[derive(Clone, Debug)]
pub struct Unreached {
    /// Whether it is not there: then neither are its interfaces.
    pub missing: bool,
    /// What is the matter.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl Interfaces {
    /// Whether an interface is what a target stands for.
    pub fn fits(&self, target: &Target, interface: &Interface) -> bool {
        if target.netns != interface.netns {
            return false;
        }
        match &target.interface {
            InterfaceSelector::Name(name) => interface.name == *name,
            InterfaceSelector::Glob(glob) => glob.matches(interface.name.as_str()),
            InterfaceSelector::DefaultRoute => {
                let leads = |(netns, index): &(Option<Netns>, u32)| {
                    *netns == interface.netns && *index == interface.index
                };
                self.default_route.iter().any(leads)
            }
            InterfaceSelector::Mac(mac) => interface.mac == Some(*mac),
            InterfaceSelector::AltName(name) => interface.altnames.contains(name),
        }
    }

    /// Whether a namespace has no default route.
    fn no_route(&self, netns: Option<&Netns>) -> bool {
        !self.default_route.iter().any(|(of, _)| of.as_ref() == netns)
    }

    /// Whether it is not known what interfaces there are where a chain is.
    fn unknown(&self, key: &ChainKey) -> bool {
        let unreached = key.netns.as_ref().and_then(|netns| self.unreached.get(netns));
        unreached.is_some_and(|why| !why.missing)
    }
}

/// Which selector each chain that was not applied by name comes from.
pub type Owners = BTreeMap<ChainKey, InterfaceSelector>;

/// Which chains the rules make. A chain that was applied by name is nobody's; of several selectors the
/// most specific counts, of equal ones the first by text.
///
/// A default route that is away leads where it led: a lease that ran out takes no chain off. Nor does a
/// network namespace that cannot be looked into.
pub fn owners(
    rules: &BTreeMap<Target, Rule>,
    state: &State,
    by_name: impl Fn(&ChainKey) -> bool,
    interfaces: &Interfaces,
) -> Owners {
    let mut owners = Owners::new();
    for interface in &interfaces.all {
        for rule in rules.keys() {
            let key = rule.on(interface.name.clone());
            let led_here = || {
                rule.interface == InterfaceSelector::DefaultRoute
                    && rule.netns == interface.netns
                    && interfaces.no_route(rule.netns.as_ref())
                    && state.chains.get(&key).and_then(|chain| chain.rule.as_ref())
                        == Some(&rule.interface)
            };
            if by_name(&key) || !(interfaces.fits(rule, interface) || led_here()) {
                continue;
            }
            let rank = |selector: &InterfaceSelector| {
                (selector.specificity(), Reverse(selector.to_string()))
            };
            let owner = owners.entry(key).or_insert_with(|| rule.interface.clone());
            if rank(&rule.interface) > rank(owner) {
                *owner = rule.interface.clone();
            }
        }
    }
    for (key, chain) in state.chains.iter().filter(|(key, _)| interfaces.unknown(key)) {
        if let Some(selector) = &chain.rule
            && rules.contains_key(&Target::of(key, selector.clone()))
            && !by_name(key)
        {
            owners.insert(key.clone(), selector.clone());
        }
    }
    owners
}

/// What a request comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Expanded {
    /// Each chain that it names or that a selector it names stands for.
    pub asked: Vec<Asked>,
    /// Each rule that changes.
    pub rules: Vec<RuleChange>,
    /// Each selector it names, with the interfaces that have a chain by it afterwards.
    pub selectors: Vec<(Target, Vec<canopy_api::InterfaceName>)>,
}

/// Two selectors that stand for the same interface, and neither is more specific.
#[derive(Debug, thiserror::Error)]
#[error("{one} and {other} both stand for {key}, and neither is more specific")]
pub struct Ambiguous {
    /// The one that is asked for.
    pub one: Target,
    /// Where the request names it.
    pub path: String,
    /// The other one.
    pub other: Target,
    /// Where the request names that; `None` for one that the host has.
    pub other_path: Option<String>,
    /// The chain that both stand for.
    pub key: ChainKey,
}

/// Lays a request out over the interfaces there are.
pub fn expand(
    state: &State,
    interfaces: &Interfaces,
    wishes: Vec<Wish>,
    author: (&canopy_api::Principal, u64),
) -> Result<Expanded, Box<Ambiguous>> {
    let mut rules = state.rules.clone();
    let mut by_name: BTreeSet<ChainKey> = state
        .chains
        .iter()
        .filter(|(_, chain)| chain.rule.is_none())
        .map(|(key, _)| key.clone())
        .collect();
    let mut changes = Vec::new();
    for wish in &wishes {
        if let Some(key) = wish.target.key() {
            match wish.wanted {
                Some(_) => by_name.insert(key),
                None => by_name.remove(&key),
            };
            continue;
        }
        let rule = wish.wanted.clone().map(|wanted| Rule {
            wanted,
            changed: author.1,
            changed_by: author.0.clone(),
        });
        let same = match (&rule, rules.get(&wish.target)) {
            (Some(rule), Some(old)) => rule.wanted == old.wanted,
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if !same {
            match &rule {
                Some(rule) => rules.insert(wish.target.clone(), rule.clone()),
                None => rules.remove(&wish.target),
            };
            changes.push(RuleChange { target: wish.target.clone(), rule });
        }
    }
    unambiguous(&rules, &by_name, interfaces, &wishes)?;
    let owners = owners(&rules, state, |key| by_name.contains(key), interfaces);
    let wanted_of = |key: &ChainKey| {
        let interface = owners.get(key)?.clone();
        let rule = rules.get(&Target::of(key, interface.clone()))?;
        Some((interface, rule.wanted.clone()))
    };

    let mut expanded = Expanded { asked: Vec::new(), rules: changes, selectors: Vec::new() };
    // What goes over from one selector of a request to another is asked for once.
    let mut once = BTreeSet::new();
    for wish in wishes {
        let Wish { target, wanted, path, program_paths, notes } = wish;
        let mut asked = |key: ChainKey, rule, wanted| {
            if !once.insert(key.clone()) {
                return;
            }
            expanded.asked.push(Asked {
                key,
                rule,
                wanted,
                path: path.clone(),
                program_paths: program_paths.clone(),
                notes: notes.clone(),
            });
        };
        if let Some(key) = target.key() {
            match (wanted, wanted_of(&key)) {
                (None, Some((rule, wanted))) => asked(key, Some(rule), Some(wanted)),
                (wanted, _) => asked(key, None, wanted),
            }
            continue;
        }
        let of = |key: &ChainKey| key.hook == target.hook && key.netns == target.netns;
        let had = state
            .chains
            .iter()
            .filter(|(key, chain)| of(key) && chain.rule.as_ref() == Some(&target.interface));
        let has = owners.iter().filter(|(key, owner)| of(key) && **owner == target.interface);
        let interfaces = has.clone().map(|(key, _)| key.interface.clone()).collect();
        let keys: BTreeSet<ChainKey> =
            had.map(|(key, _)| key.clone()).chain(has.map(|(key, _)| key.clone())).collect();
        for key in keys.into_iter().filter(|key| !by_name.contains(key)) {
            match wanted_of(&key) {
                Some((rule, wanted)) => asked(key, Some(rule), Some(wanted)),
                None => asked(key, None, None),
            }
        }
        expanded.selectors.push((target, interfaces));
    }
    Ok(expanded)
}

/// Refuses a request after which two selectors that it names, or one of them and one that the host
/// has, stand for the same interface with equal right.
fn unambiguous(
    rules: &BTreeMap<Target, Rule>,
    by_name: &BTreeSet<ChainKey>,
    interfaces: &Interfaces,
    wishes: &[Wish],
) -> Result<(), Box<Ambiguous>> {
    let path = |target: &Target| {
        let wish = wishes.iter().find(|wish| wish.target == *target)?;
        Some(format!("{}.interface", wish.path))
    };
    let named = wishes.iter().filter(|wish| rules.contains_key(&wish.target));
    for one in named.map(|wish| &wish.target) {
        for other in rules.keys().filter(|other| {
            *other != one
                && other.hook == one.hook
                && other.netns == one.netns
                && other.interface.specificity() == one.interface.specificity()
        }) {
            let both = interfaces.all.iter().find(|interface| {
                interfaces.fits(one, interface)
                    && interfaces.fits(other, interface)
                    && !by_name.contains(&one.on(interface.name.clone()))
            });
            if let Some(interface) = both {
                return Err(Box::new(Ambiguous {
                    one: one.clone(),
                    path: path(one).unwrap_or_default(),
                    other: other.clone(),
                    other_path: path(other),
                    key: one.on(interface.name.clone()),
                }));
            }
        }
    }
    Ok(())
}
