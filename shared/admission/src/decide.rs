//! Decisions.

use crate::{
    glob::Glob,
    rule::{Conditions, Rule, RuleSet},
};
use canopy_api::{
    HostId, InterfaceSelector, Principal,
    permission::Role,
    wire::{AdmissionDecision, AdmissionItem, RuleEffect, RuleVerdict},
};
use std::{
    collections::BTreeMap,
    fmt::{self, Display},
};

/// Labels of a host.
pub type Labels = BTreeMap<String, String>;

/// Who asks, and where.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Who.
    pub principal: &'a Principal,
    /// Their role; `None` for somebody unknown.
    pub role: Option<Role>,
    /// The host.
    pub host: &'a HostId,
    /// Its labels.
    pub labels: &'a Labels,
}

/// How sure a condition has to be. They differ for a selector that may stand for several interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sure {
    /// It holds whichever interface it turns out to be.
    Certainly,
    /// It holds for one that it may turn out to be.
    Possibly,
}

impl Sure {
    fn other(self) -> Self {
        match self {
            Self::Certainly => Self::Possibly,
            Self::Possibly => Self::Certainly,
        }
    }
}

impl RuleSet {
    /// May this be done? Of several rules that decide alike the first of the file is named.
    pub fn decide(&self, subject: Subject<'_>, item: &AdmissionItem) -> AdmissionDecision {
        let mut applying = self.rules.iter().filter(|rule| rule.why_not(subject, item).is_none());
        let mut allowed_by = None;
        let denied_by = applying.find(|rule| match rule.effect {
            RuleEffect::Deny => true,
            RuleEffect::Allow => {
                allowed_by.get_or_insert(*rule);
                false
            }
        });
        match (denied_by, allowed_by) {
            (Some(rule), _) => decided(false, rule),
            (None, Some(rule)) => decided(true, rule),
            (None, None) => AdmissionDecision {
                allowed: false,
                rule: None,
                reason: "no rule allows it".to_owned(),
            },
        }
    }

    /// What each rule says.
    pub fn explain(&self, subject: Subject<'_>, item: &AdmissionItem) -> Vec<RuleVerdict> {
        self.rules
            .iter()
            .map(|rule| {
                let why = rule.why_not(subject, item);
                RuleVerdict {
                    rule: rule.name.clone(),
                    effect: rule.effect,
                    applies: why.is_none(),
                    why: why.unwrap_or_default(),
                }
            })
            .collect()
    }
}

fn decided(allowed: bool, rule: &Rule) -> AdmissionDecision {
    let reason = rule.reason.clone().unwrap_or_default();
    AdmissionDecision { allowed, rule: Some(rule.name.clone()), reason }
}

impl Rule {
    /// Why the rule does not apply; `None` where it does.
    fn why_not(&self, subject: Subject<'_>, item: &AdmissionItem) -> Option<String> {
        let sure = match self.effect {
            RuleEffect::Allow => Sure::Certainly,
            RuleEffect::Deny => Sure::Possibly,
        };
        if self.effect == RuleEffect::Allow
            && item.verb.is_named_only()
            && !self.when.verbs.contains(&item.verb)
        {
            return Some(format!("verbs: {} is allowed only where it is named", item.verb));
        }
        if let Some(unmet) = self.when.unmet(subject, item, sure) {
            return Some(unmet);
        }
        let excepted = |unless: &Conditions| unless.unmet(subject, item, sure.other()).is_none();
        self.unless.as_ref().is_some_and(excepted).then(|| "its exception holds".to_owned())
    }
}

impl Conditions {
    /// The first condition that does not hold, in words.
    fn unmet(&self, subject: Subject<'_>, item: &AdmissionItem, sure: Sure) -> Option<String> {
        let host = Some(subject.host.as_str());
        let package = item.package.as_ref();
        one_of("roles", &self.roles, subject.role.as_ref(), |role, own| role == own)
            .or_else(|| {
                let own = Some(subject.principal.as_str());
                one_of("principals", &self.principals, own, Glob::matches)
            })
            .or_else(|| one_of("verbs", &self.verbs, Some(&item.verb), |verb, own| verb == own))
            .or_else(|| {
                let described = package.map(|package| match &item.version {
                    Some(version) => format!("{package} {version}"),
                    None => package.to_string(),
                });
                one_of("packages", &self.packages, described.as_deref(), |pattern, _| {
                    let named =
                        package.is_some_and(|package| pattern.name.matches(package.as_str()));
                    let met = |requirement: &semver::VersionReq| {
                        item.version.as_ref().is_some_and(|version| requirement.matches(version))
                    };
                    named && pattern.requirement.as_ref().is_none_or(met)
                })
            })
            .or_else(|| {
                let own = item.publisher.as_deref();
                one_of("publishers", &self.publishers, own, |key, own| key.as_str() == own)
            })
            .or_else(|| one_of("hooks", &self.hooks, item.hook.as_ref(), |hook, own| hook == own))
            .or_else(|| {
                let own = item.interface.as_ref();
                // Names of interfaces are those of the host: another namespace's `eth0` is not the one
                // that a rule lets somebody change, but may be meant by one that forbids it.
                let host = item.netns.is_none() || sure == Sure::Possibly;
                let place = Place(own, item.within.as_ref());
                one_of("interfaces", &self.interfaces, own.map(|_| &place), |glob, place| {
                    (host || glob.is_everything()) && place.is_for(glob, sure)
                })
            })
            .or_else(|| one_of("maps", &self.maps, item.map.as_deref(), Glob::matches))
            .or_else(|| {
                let own = item.shared_with.as_ref().map(canopy_api::PackageName::as_str);
                one_of("shared_with", &self.shared_with, own, Glob::matches)
            })
            .or_else(|| one_of("hosts", &self.hosts, host, Glob::matches))
            .or_else(|| {
                self.labels.iter().find_map(|(name, values)| {
                    if values.is_empty() {
                        return Some(format!("labels.{name}: no value will do"));
                    }
                    let own = subject.labels.get(name).map(String::as_str);
                    one_of(&format!("labels.{name}"), values, own, Glob::matches)
                })
            })
    }
}

/// Nothing where the list is empty or one entry fits what there is; else why not.
fn one_of<T: Display, O: Display + ?Sized>(
    field: &str,
    list: &[T],
    own: Option<&O>,
    fits: impl Fn(&T, &O) -> bool,
) -> Option<String> {
    const SHOWN: usize = 5;
    if list.is_empty() {
        return None;
    }
    let Some(own) = own else { return Some(format!("{field}: there is none")) };
    if list.iter().any(|entry| fits(entry, own)) {
        return None;
    }
    let mut shown: Vec<String> = list.iter().take(SHOWN).map(ToString::to_string).collect();
    if list.len() > SHOWN {
        shown.push("…".to_owned());
    }
    Some(format!("{field}: {own} is not among {}", shown.join(", ")))
}

/// The interfaces that a selector stands for, or two do together.
struct Place<'a>(Option<&'a InterfaceSelector>, Option<&'a InterfaceSelector>);

impl Place<'_> {
    /// What both stand for is certainly meant by a pattern that is for one of the two; and possibly only
    /// by one that is for either.
    fn is_for(&self, pattern: &Glob, sure: Sure) -> bool {
        let mut both = self.0.into_iter().chain(self.1);
        match sure {
            Sure::Certainly => both.any(|own| interface(pattern, own, sure)),
            Sure::Possibly => both.all(|own| interface(pattern, own, sure)),
        }
    }
}

impl Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(interface) = self.0 {
            write!(f, "{interface}")?;
        }
        if let Some(within) = self.1 {
            write!(f, " within {within}")?;
        }
        Ok(())
    }
}

/// Whether a selector is, or may be, what a pattern of interface names is for.
fn interface(pattern: &Glob, own: &InterfaceSelector, sure: Sure) -> bool {
    let written = || pattern.as_str() == own.to_string();
    match own {
        InterfaceSelector::Name(name) => pattern.matches(name.as_str()),
        InterfaceSelector::Glob(_) => {
            let own = Glob::new(own.to_string());
            match sure {
                Sure::Certainly => pattern.covers(&own),
                Sure::Possibly => pattern.overlaps(&own),
            }
        }
        InterfaceSelector::DefaultRoute
        | InterfaceSelector::Mac(_)
        | InterfaceSelector::AltName(_) => match sure {
            Sure::Certainly => pattern.is_everything() || written(),
            // Any interface may be the one.
            Sure::Possibly => !is_selector(pattern) || written(),
        },
    }
}

/// Whether a pattern is no pattern of names but a selector of another kind.
pub(crate) fn is_selector(pattern: &Glob) -> bool {
    let text = pattern.as_str();
    text == "default-route" || text.starts_with("mac:") || text.starts_with("altname:")
}
