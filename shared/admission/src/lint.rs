//! What is legal in a rule set, and most likely not meant.

use crate::{
    decide::is_selector,
    glob::Glob,
    rule::{Conditions, Rule, RuleSet},
};
use canopy_api::{
    Problem,
    endpoint::Class,
    permission::Role,
    wire::{AdmissionVerb, RuleEffect},
};

impl RuleSet {
    /// Remarks, each with its path. A rule of which it is said that it decides nothing could be
    /// removed without changing any decision.
    pub fn lint(&self) -> Vec<Problem> {
        let mut remarks = Vec::new();
        if !self.rules.iter().any(|rule| rule.effect == RuleEffect::Allow) {
            remarks.push(
                Problem::new("rules", "nothing is allowed: nobody can change any host")
                    .remedy("add a rule with `effect: allow`"),
            );
        }
        for (i, rule) in self.rules.iter().enumerate() {
            let at = format!("rules[{i}]");
            if let Some(remark) = self.decides_nothing(i, rule, &at) {
                remarks.push(remark);
                continue;
            }
            if rule.effect == RuleEffect::Allow && rule.when.is_empty() {
                remarks.push(
                    Problem::new(
                        format!("{at}.when"),
                        "without conditions everything is allowed to everybody",
                    )
                    .remedy("name at least the roles: when: { roles: [operator, admin] }"),
                );
            }
            conditions(&rule.when, &format!("{at}.when"), &mut remarks);
            if let Some(unless) = &rule.unless {
                conditions(unless, &format!("{at}.unless"), &mut remarks);
                exception(rule, unless, &format!("{at}.unless"), &mut remarks);
            }
            if rule.effect == RuleEffect::Deny {
                for (p, pattern) in rule.when.interfaces.iter().enumerate() {
                    if is_selector(pattern) {
                        remarks.push(
                            Problem::new(
                                format!("{at}.when.interfaces[{p}]"),
                                format!("\"{pattern}\" is denied only where it is written so; the interface's name gets round it"),
                            )
                            .remedy("deny by name, hook or host"),
                        );
                    }
                }
            }
        }
        remarks
    }

    /// Why a rule never decides anything, where that can be seen.
    fn decides_nothing(&self, i: usize, rule: &Rule, at: &str) -> Option<Problem> {
        if let Some(why) = rule.never_applies() {
            return Some(
                Problem::new(at, format!("\"{}\" never applies: {why}", rule.name))
                    .remedy("correct or remove it"),
            );
        }
        let others = || self.rules.iter().enumerate().filter(|(j, _)| *j != i);
        let deny = others().find(|(_, other)| {
            other.effect == RuleEffect::Deny
                && rule.effect == RuleEffect::Allow
                && other.covers(rule)
        });
        if let Some((_, deny)) = deny {
            return Some(
                Problem::new(
                    at,
                    format!("\"{}\" never decides: \"{}\" denies all of it", rule.name, deny.name),
                )
                .remedy("a deny is overruled by nothing: write the exception as its `unless`"),
            );
        }
        // Of two that say the same the later is too much.
        let same = others().find(|(j, other)| {
            other.effect == rule.effect
                && other.never_applies().is_none()
                && other.covers(rule)
                && (*j < i || !rule.covers(other))
        });
        same.map(|(_, other)| {
            Problem::new(
                at,
                format!("\"{}\" decides nothing that \"{}\" does not", rule.name, other.name),
            )
            .remedy("remove it, or make one of them narrower")
        })
    }
}

impl Rule {
    /// Whether this applies wherever `other` does.
    fn covers(&self, other: &Self) -> bool {
        let excepts_no_more = match (&self.unless, &other.unless) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(mine), Some(theirs)) => theirs.cover(mine),
        };
        // What only a rule that names it allows, one without verbs does not.
        let names_all = self.effect == RuleEffect::Deny
            || other.effect == RuleEffect::Deny
            || other
                .when
                .verbs
                .iter()
                .all(|verb| !verb.is_named_only() || self.when.verbs.contains(verb));
        self.when.cover(&other.when) && excepts_no_more && names_all
    }

    fn never_applies(&self) -> Option<String> {
        if self.unless.as_ref().is_some_and(|unless| unless.cover(&self.when)) {
            return Some("its exception is all of it".to_owned());
        }
        if self.effect == RuleEffect::Allow
            && !self.when.shared_with.is_empty()
            && self.when.verbs.is_empty()
        {
            return Some("share-map is allowed only by a rule that names it in verbs".to_owned());
        }
        self.when.cannot_hold()
    }
}

impl Conditions {
    /// Whether these hold wherever `other` do.
    fn cover(&self, other: &Self) -> bool {
        fn within<T>(mine: &[T], theirs: &[T], covers: impl Fn(&T, &T) -> bool) -> bool {
            mine.is_empty()
                || (!theirs.is_empty()
                    && theirs.iter().all(|their| mine.iter().any(|my| covers(my, their))))
        }
        within(&self.roles, &other.roles, |a, b| a == b)
            && within(&self.principals, &other.principals, Glob::covers)
            && within(&self.verbs, &other.verbs, |a, b| a == b)
            && within(&self.packages, &other.packages, |a, b| {
                a.name.covers(&b.name)
                    && (a.requirement.is_none() || a.requirement == b.requirement)
            })
            && within(&self.publishers, &other.publishers, |a, b| a == b)
            && within(&self.hooks, &other.hooks, |a, b| a == b)
            && within(&self.interfaces, &other.interfaces, Glob::covers)
            && within(&self.maps, &other.maps, Glob::covers)
            && within(&self.shared_with, &other.shared_with, Glob::covers)
            && within(&self.hosts, &other.hosts, Glob::covers)
            && self.labels.iter().all(|(name, values)| {
                other.labels.get(name).is_some_and(|theirs| within(values, theirs, Glob::covers))
            })
    }

    /// Why all of these never hold together, where that can be seen.
    fn cannot_hold(&self) -> Option<String> {
        let writes = |role: &Role| role.classes().contains(&Class::Write);
        if !self.roles.is_empty() && !self.roles.iter().any(writes) {
            let roles: Vec<_> = self.roles.iter().map(|role| role.as_str()).collect();
            return Some(format!("the bus lets no {} change a host", roles.join(" or ")));
        }
        let verbs = |fit: fn(AdmissionVerb) -> bool| {
            self.verbs.is_empty() || self.verbs.iter().any(|verb| fit(*verb))
        };
        if !self.publishers.is_empty() && !verbs(names_publisher) {
            return Some("only what is applied or shares a map has a publisher".to_owned());
        }
        if !self.maps.is_empty() && !verbs(names_map) {
            return Some(
                "only map-set, map-delete, map-follow and share-map name a map".to_owned(),
            );
        }
        let both = |verb| names_publisher(verb) && names_map(verb);
        if !self.maps.is_empty() && !self.publishers.is_empty() && !verbs(both) {
            return Some("of what has a publisher only share-map names a map".to_owned());
        }
        if !self.shared_with.is_empty() && !verbs(|verb| verb == AdmissionVerb::ShareMap) {
            return Some("only share-map names another package".to_owned());
        }
        None
    }
}

fn names_publisher(verb: AdmissionVerb) -> bool {
    matches!(verb, AdmissionVerb::Apply | AdmissionVerb::Downgrade | AdmissionVerb::ShareMap)
}

fn names_map(verb: AdmissionVerb) -> bool {
    matches!(
        verb,
        AdmissionVerb::MapSet
            | AdmissionVerb::MapDelete
            | AdmissionVerb::MapFollow
            | AdmissionVerb::ShareMap
    )
}

/// Remarks about single conditions.
fn conditions(conditions: &Conditions, at: &str, remarks: &mut Vec<Problem>) {
    let names: Vec<_> = conditions
        .packages
        .iter()
        .filter(|package| package.requirement.is_none())
        .map(|package| package.name.clone())
        .collect();
    let lists = [
        ("principals", conditions.principals.as_slice()),
        ("packages", names.as_slice()),
        ("interfaces", conditions.interfaces.as_slice()),
        ("maps", conditions.maps.as_slice()),
        ("shared_with", conditions.shared_with.as_slice()),
        ("hosts", conditions.hosts.as_slice()),
    ];
    for (field, list) in lists {
        if list.iter().any(Glob::is_everything) {
            remarks.push(
                Problem::new(
                    format!("{at}.{field}"),
                    "\"*\" is for every one there is: the condition keeps nothing out",
                )
                .remedy("leave the condition out, or write narrower patterns"),
            );
            continue;
        }
        for (i, glob) in list.iter().enumerate() {
            let other = list.iter().enumerate().find(|(j, other)| {
                *j != i && other.covers(glob) && (*j < i || !glob.covers(other))
            });
            if let Some((_, other)) = other {
                remarks.push(
                    Problem::new(
                        format!("{at}.{field}"),
                        format!("\"{glob}\" is too much beside \"{other}\""),
                    )
                    .remedy("remove it"),
                );
            }
        }
    }
}

/// Remarks about an exception.
fn exception(rule: &Rule, unless: &Conditions, at: &str, remarks: &mut Vec<Problem>) {
    if let Some(why) = unless.cannot_hold() {
        remarks.push(
            Problem::new(at, format!("the exception never holds: {why}"))
                .remedy("correct or remove it"),
        );
    } else if rule.effect == RuleEffect::Deny
        && !unless.publishers.is_empty()
        && (rule.when.verbs.is_empty()
            || rule.when.verbs.iter().any(|verb| !names_publisher(*verb)))
    {
        remarks.push(
            Problem::new(
                format!("{at}.publishers"),
                "only what is applied or shares a map has a publisher: this denies every delete, drain and map write too",
            )
            .remedy("say when: { verbs: [apply, downgrade] }"),
        );
    }
}
