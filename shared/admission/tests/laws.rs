//! The laws that any set of rules keeps, whatever is in it.

#![allow(clippy::unwrap_used, reason = "tests: a failure is the message")]

use canopy_admission::{Conditions, Glob, Labels, PackagePattern, Rule, RuleSet, Subject};
use canopy_api::{
    Hook, HostId, Principal,
    permission::Role,
    wire::{AdmissionItem, AdmissionVerb, RuleEffect},
};
use proptest::{collection::vec, option, prelude::*, sample::select};

const NAMES: [&str; 6] = ["eth0", "eth1", "e", "up0", "up1", "lo"];
const PATTERNS: [&str; 8] = ["*", "eth*", "eth?", "eth0", "up*", "e*", "??0", "up0"];

fn globs(from: &'static [&'static str]) -> impl Strategy<Value = Vec<Glob>> {
    vec(select(from).prop_map(Glob::new), 0..3)
}

fn conditions() -> impl Strategy<Value = Conditions> {
    let who = (
        vec(select(Role::ALL.as_slice()), 0..3),
        globs(&["u-*", "u-alice", "u-bob", "u-a*"]),
        vec(select(AdmissionVerb::ALL.as_slice()), 0..4),
    );
    let what = (
        vec(select(&["f", "f@^1", "f@^2", "f@>=1", "f*@<1"][..]), 0..2),
        vec(select(Hook::ALL.as_slice()), 0..3),
        globs(&PATTERNS),
        globs(&["m", "m*", "n"]),
        globs(&["g", "g*", "h"]),
    );
    let host = (
        globs(&["web*", "web1", "db1"]),
        option::of(globs(&["prod", "p*", "test"]).prop_filter("a value", |v| !v.is_empty())),
    );
    (who, what, host).prop_map(|(who, what, host)| Conditions {
        roles: who.0,
        principals: who.1,
        verbs: who.2,
        packages: what.0.into_iter().map(|text| text.parse::<PackagePattern>().unwrap()).collect(),
        publishers: Vec::new(),
        hooks: what.1,
        interfaces: what.2,
        maps: what.3,
        shared_with: what.4,
        hosts: host.0,
        labels: host.1.map(|values| ("env".to_owned(), values)).into_iter().collect(),
    })
}

/// Conditions of which most ask little, so that rules apply often.
fn few() -> impl Strategy<Value = Conditions> {
    (conditions(), vec(prop::bool::weighted(0.3), 10)).prop_map(|(mut all, keep)| {
        let gone = |i: usize| keep.get(i) != Some(&true);
        if gone(0) {
            all.roles.clear();
        }
        if gone(1) {
            all.principals.clear();
        }
        if gone(2) {
            all.verbs.clear();
        }
        if gone(3) {
            all.packages.clear();
        }
        if gone(4) {
            all.hooks.clear();
        }
        if gone(5) {
            all.interfaces.clear();
        }
        if gone(6) {
            all.maps.clear();
        }
        if gone(7) {
            all.hosts.clear();
        }
        if gone(8) {
            all.labels.clear();
        }
        if gone(9) {
            all.shared_with.clear();
        }
        all
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    (any::<bool>(), few(), option::of(few().prop_filter("something", |c| !c.is_empty()))).prop_map(
        |(allow, when, unless)| Rule {
            name: String::new(),
            effect: if allow { RuleEffect::Allow } else { RuleEffect::Deny },
            reason: Some("because".to_owned()),
            when,
            unless,
        },
    )
}

/// Two rules that have much in common, so that often one says all that the other says.
fn relatives() -> impl Strategy<Value = Vec<Rule>> {
    (rule(), few(), vec(any::<bool>(), 4), option::of(few())).prop_map(
        |(one, more, pick, unless)| {
            let picked = |i: usize| pick.get(i) == Some(&true);
            let mut other = one.clone();
            if picked(0) && other.when.verbs.is_empty() {
                other.when.verbs = more.verbs;
            }
            if picked(1) {
                other.when.packages = more.packages;
            }
            if picked(2) {
                other.when.interfaces = more.interfaces;
            }
            other.unless = match (other.unless, unless) {
                (Some(mut own), Some(more)) => {
                    own.hooks = more.hooks;
                    own.packages.extend(more.packages);
                    Some(own)
                }
                (own, None) => own,
                (None, unless) => unless,
            };
            other.unless = other.unless.filter(|unless| !unless.is_empty());
            if picked(3) {
                other.effect = RuleEffect::Deny;
            }
            vec![one, other]
        },
    )
}

fn set() -> impl Strategy<Value = RuleSet> {
    vec(relatives(), 0..4).prop_map(|rules| RuleSet {
        rules: rules
            .into_iter()
            .flatten()
            .enumerate()
            .map(|(i, rule)| Rule { name: format!("r{i}"), ..rule })
            .collect(),
    })
}

#[derive(Clone, Debug)]
struct Question {
    principal: Principal,
    role: Option<Role>,
    host: HostId,
    labels: Labels,
    item: AdmissionItem,
}

fn question() -> impl Strategy<Value = Question> {
    let who = (select(&["u-alice", "u-bob"][..]), option::of(select(Role::ALL.as_slice())));
    let host = (select(&["web1", "db1"][..]), option::of(select(&["prod", "test"][..])));
    let what = (
        select(AdmissionVerb::ALL.as_slice()),
        option::weighted(0.8, (select(&["f", "g"][..]), select(&["1.0.0", "2.0.0", "0.1.0"][..]))),
        option::of(select(Hook::ALL.as_slice())),
        option::of(select(&NAMES[..])),
        option::of(select(&["m", "mm", "n"][..])),
        select(&["g", "gg", "h"][..]),
    );
    (who, host, what).prop_map(|(who, host, what)| Question {
        principal: who.0.parse().unwrap(),
        role: who.1,
        host: host.0.parse().unwrap(),
        labels: host.1.map(|env| ("env".to_owned(), env.to_owned())).into_iter().collect(),
        item: AdmissionItem {
            package: what.1.map(|(name, _)| name.parse().unwrap()),
            version: what.1.map(|(_, version)| version.parse().unwrap()),
            hook: what.2,
            interface: what.3.map(|name| name.parse().unwrap()),
            map: what.4.map(str::to_owned),
            shared_with: (what.0 == AdmissionVerb::ShareMap).then(|| what.5.parse().unwrap()),
            ..AdmissionItem::new(what.0)
        },
    })
}

impl Question {
    fn subject(&self) -> Subject<'_> {
        Subject {
            principal: &self.principal,
            role: self.role,
            host: &self.host,
            labels: &self.labels,
        }
    }

    fn allowed(&self, rules: &RuleSet) -> bool {
        rules.decide(self.subject(), &self.item).allowed
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_order_of_rules_decides_nothing(
        (rules, shuffled) in set().prop_flat_map(|set| {
            (Just(set.clone()), Just(set.rules).prop_shuffle().prop_map(|rules| RuleSet { rules }))
        }),
        questions in vec(question(), 16),
    ) {
        for question in questions {
            prop_assert_eq!(question.allowed(&rules), question.allowed(&shuffled));
        }
    }

    #[test]
    fn another_deny_allows_nothing_and_another_allow_denies_nothing(
        rules in set(), more in rule(), questions in vec(question(), 16),
    ) {
        let mut with = rules.clone();
        with.rules.push(more.clone());
        for question in questions {
            let (before, after) = (question.allowed(&rules), question.allowed(&with));
            match more.effect {
                RuleEffect::Deny => prop_assert!(before || !after),
                RuleEffect::Allow => prop_assert!(!before || after),
            }
        }
    }

    #[test]
    fn nothing_is_allowed_without_a_rule_that_says_so(
        rules in set(), questions in vec(question(), 16),
    ) {
        for question in questions {
            let decision = rules.decide(question.subject(), &question.item);
            let verdicts = rules.explain(question.subject(), &question.item);
            let applies = |effect| {
                verdicts.iter().filter(move |one| one.applies && one.effect == effect)
            };
            let denies = applies(RuleEffect::Deny).next();
            let allows = applies(RuleEffect::Allow).next();
            prop_assert_eq!(decision.allowed, denies.is_none() && allows.is_some());
            let by = denies.or(allows).map(|one| one.rule.clone());
            prop_assert_eq!(decision.rule, by);
            for verdict in &verdicts {
                prop_assert_eq!(verdict.applies, verdict.why.is_empty());
            }
        }
    }

    #[test]
    fn a_pattern_is_allowed_only_where_every_interface_of_it_is(
        rules in set(), questions in vec(question(), 8), pattern in select(&PATTERNS[..]),
    ) {
        let glob = Glob::new(pattern);
        for mut question in questions {
            question.item.interface = Some(pattern.parse().unwrap());
            if !question.allowed(&rules) {
                continue;
            }
            for name in NAMES.iter().filter(|name| glob.matches(name)) {
                question.item.interface = Some(name.parse().unwrap());
                prop_assert!(question.allowed(&rules), "{} is allowed, {} is not", pattern, name);
            }
        }
    }

    #[test]
    fn what_is_allowed_of_two_selectors_is_for_all_of_both(
        rules in set(), questions in vec(question(), 8),
        one in select(&PATTERNS[..]), other in select(&PATTERNS[..]),
    ) {
        let (a, b) = (Glob::new(one), Glob::new(other));
        for mut question in questions {
            question.item.interface = Some(one.parse().unwrap());
            question.item.within = Some(other.parse().unwrap());
            if !question.allowed(&rules) {
                continue;
            }
            question.item.within = None;
            for name in NAMES.iter().filter(|name| a.matches(name) && b.matches(name)) {
                question.item.interface = Some(name.parse().unwrap());
                prop_assert!(question.allowed(&rules), "{} within {}: not {}", one, other, name);
            }
        }
    }

    #[test]
    fn sharing_a_map_is_allowed_only_where_it_is_named(
        rules in set(), questions in vec(question(), 16),
    ) {
        for mut question in questions {
            question.item.verb = AdmissionVerb::ShareMap;
            let decision = rules.decide(question.subject(), &question.item);
            let by = decision.rule.and_then(|by| rules.rules.iter().find(|rule| rule.name == by));
            if decision.allowed {
                prop_assert!(by.unwrap().when.verbs.contains(&AdmissionVerb::ShareMap));
            }
        }
    }

    #[test]
    fn what_is_allowed_in_another_namespace_is_allowed_in_the_hosts_own(
        rules in set(), questions in vec(question(), 8),
    ) {
        for mut question in questions {
            question.item.netns = Some("blue".parse().unwrap());
            if question.allowed(&rules) {
                question.item.netns = None;
                prop_assert!(question.allowed(&rules), "{}", question.item);
            }
        }
    }

    #[test]
    fn a_rule_that_is_said_to_decide_nothing_decides_nothing(
        rules in set(), questions in vec(question(), 48),
    ) {
        for remark in rules.lint() {
            let decides_nothing =
                remark.message.contains("never") || remark.message.contains("decides nothing");
            let place = remark.path.strip_prefix("rules[").and_then(|rest| rest.strip_suffix(']'));
            let Some(i) = place.and_then(|i| i.parse::<usize>().ok()) else { continue };
            prop_assert!(decides_nothing, "{}", remark);
            let mut without = rules.clone();
            without.rules.remove(i);
            for question in &questions {
                // What the bus never lets through may be decided either way.
                let role = question.role.unwrap_or(Role::Admin);
                let reaches = role.classes().contains(&canopy_api::endpoint::Class::Write);
                let of_maps = matches!(
                    question.item.verb,
                    AdmissionVerb::MapSet
                        | AdmissionVerb::MapDelete
                        | AdmissionVerb::MapFollow
                        | AdmissionVerb::ShareMap
                );
                if reaches && (of_maps || question.item.map.is_none()) {
                    prop_assert_eq!(question.allowed(&rules), question.allowed(&without));
                }
            }
        }
    }
}
