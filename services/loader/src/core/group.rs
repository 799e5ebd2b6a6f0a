//! What of a request goes together: each interface is changed whole or not at all.

use super::{
    plan::Asked,
    state::{RuleChange, State},
};
use canopy_api::Target;

/// Chains and rules that change together, as places in the request's lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// The chains.
    pub chains: Vec<usize>,
    /// The rules that these chains need, or need gone: the first group that is done brings them about.
    pub rules: Vec<usize>,
}

/// Groups a request by interface, in its order; with `atomic` all of it is one group. Rules that no
/// chain of the request needs are a group of their own.
///
/// A chain needs the rule that it comes from. Its old rule it needs gone where that goes, or the next
/// round would give it back; not so a chain that is the interface's own now, which no rule is laid over.
pub fn group(state: &State, asked: &[Asked], rules: &[RuleChange], atomic: bool) -> Vec<Group> {
    if atomic {
        let all = Group { chains: (0..asked.len()).collect(), rules: (0..rules.len()).collect() };
        return Vec::from_iter((!asked.is_empty() || !rules.is_empty()).then_some(all));
    }
    let mut groups: Vec<Group> = Vec::new();
    for (chain, one) in asked.iter().enumerate() {
        let same = |group: &&mut Group| {
            let first = group.chains.first().and_then(|first| asked.get(*first));
            first.is_some_and(|first| {
                (&first.key.netns, &first.key.interface) == (&one.key.netns, &one.key.interface)
            })
        };
        let needed = rules.iter().enumerate().filter(|(_, rule)| needs(state, one, rule));
        let needed = needed.map(|(rule, _)| rule);
        if let Some(group) = groups.iter_mut().find(same) {
            group.chains.push(chain);
            for rule in needed {
                if !group.rules.contains(&rule) {
                    group.rules.push(rule);
                }
            }
        } else {
            groups.push(Group { chains: vec![chain], rules: needed.collect() });
        }
    }
    let free: Vec<_> = (0..rules.len())
        .filter(|rule| groups.iter().all(|group| !group.rules.contains(rule)))
        .collect();
    if !free.is_empty() {
        groups.push(Group { chains: Vec::new(), rules: free });
    }
    groups
}

fn needs(state: &State, asked: &Asked, change: &RuleChange) -> bool {
    let is = |selector: &canopy_api::InterfaceSelector| {
        change.target == Target::of(&asked.key, selector.clone())
    };
    let own = asked.wanted.is_some() && asked.rule.is_none();
    let old = state.chains.get(&asked.key).and_then(|chain| chain.rule.as_ref());
    asked.rule.as_ref().is_some_and(is) || (change.rule.is_none() && !own && old.is_some_and(is))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::state::{Chain, Rule, Wanted};
    use canopy_api::{ChainKey, Hook, InterfaceSelector, TcMode, XdpMode};
    use std::collections::BTreeMap;

    fn wanted() -> Wanted {
        Wanted { xdp_mode: XdpMode::Best, tc_mode: TcMode::Best, programs: Vec::new() }
    }

    fn selector(text: &str) -> InterfaceSelector {
        text.parse().unwrap()
    }

    fn asked(interface: &str, hook: Hook, rule: Option<&str>, there: bool) -> Asked {
        Asked {
            key: ChainKey { netns: None, interface: interface.parse().unwrap(), hook },
            rule: rule.map(selector),
            wanted: there.then(wanted),
            path: String::new(),
            program_paths: BTreeMap::new(),
            notes: Vec::new(),
        }
    }

    fn change(text: &str, there: bool) -> RuleChange {
        let rule = Rule { wanted: wanted(), changed: 0, changed_by: "u-test".parse().unwrap() };
        RuleChange {
            target: Target { netns: None, interface: selector(text), hook: Hook::Xdp },
            rule: there.then_some(rule),
        }
    }

    fn of(chains: &[usize], rules: &[usize]) -> Group {
        Group { chains: chains.to_vec(), rules: rules.to_vec() }
    }

    #[test]
    fn the_hooks_of_an_interface_go_together() {
        let state = State::new("web1".parse().unwrap());
        let request = [
            asked("eth1", Hook::Xdp, None, true),
            asked("eth0", Hook::Xdp, None, true),
            asked("eth1", Hook::TcIngress, None, false),
        ];
        assert_eq!(group(&state, &request, &[], false), [of(&[0, 2], &[]), of(&[1], &[])]);
        assert_eq!(group(&state, &request, &[], true), [of(&[0, 1, 2], &[])]);
        assert_eq!(group(&state, &[], &[], true), []);
    }

    #[test]
    fn a_rule_goes_with_each_interface_that_needs_it() {
        let mut state = State::new("web1".parse().unwrap());
        for interface in ["eth1", "eth2"] {
            let chain = Chain {
                wanted: wanted(),
                running: 1,
                changed: 0,
                changed_by: "u-test".parse().unwrap(),
                restored: 0,
                since: BTreeMap::new(),
                rule: Some(selector("e*")),
            };
            let key =
                ChainKey { netns: None, interface: interface.parse().unwrap(), hook: Hook::Xdp };
            state.chains.insert(key, chain);
        }
        let request = [
            asked("eth0", Hook::Xdp, Some("eth*"), true),
            asked("eth1", Hook::Xdp, Some("eth*"), true),
            asked("eth2", Hook::Xdp, None, true),
        ];
        let rules =
            [change("eth*", true), change("e*", false), change("mac:02:00:00:00:00:01", true)];
        assert_eq!(
            group(&state, &request, &rules, false),
            [of(&[0], &[0]), of(&[1], &[0, 1]), of(&[2], &[]), of(&[], &[2])]
        );
        // One that changes is not brought about by a chain that leaves it.
        let rules = [change("eth*", true), change("e*", true)];
        assert_eq!(group(&state, &request[1..2], &rules, false), [of(&[0], &[0]), of(&[], &[1])]);
    }
}
