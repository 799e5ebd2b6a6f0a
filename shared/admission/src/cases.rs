//! A table of cases with the decisions expected of a rule set.

use crate::{
    decide::{Labels, Subject},
    rule::{RuleSet, is_label},
};
use canopy_api::{
    Hook, HostId, InterfaceSelector, Netns, PackageName, Principal, Problem, Problems,
    permission::Role,
    wire::{AdmissionDecision, AdmissionItem, AdmissionVerb, RuleEffect},
};
use canopy_package::PublicKey;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Cases for `canopy policy test`: what is asked, and what is to be decided.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cases {
    /// The cases, each name once.
    #[schemars(length(min = 1))]
    pub cases: Vec<Case>,
}

/// A case.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What it shows.
    #[schemars(length(min = 1, max = 200))]
    pub name: String,
    /// Who asks.
    pub principal: Principal,
    /// Their role; without one policy does not know them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// The host.
    pub host: HostId,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// What is done.
    pub verb: AdmissionVerb,
    /// The package, and the exact version: `firewall@0.1.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<String>,
    /// The public key that signed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publisher: Option<PublicKey>,
    /// The hook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<Hook>,
    /// The network namespace, as a document names it; absent for the host's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// The interface, as a document names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<InterfaceSelector>,
    /// A second selector, where only the interfaces are meant that both stand for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<InterfaceSelector>,
    /// The map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<String>,
    /// The other package that has the map, of a `share-map`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_with: Option<PackageName>,
    /// The decision expected.
    pub expect: RuleEffect,
    /// The rule expected to make it; `none` for a denial because no rule allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// Its name.
    pub name: String,
    /// Whether it came out as expected.
    pub passed: bool,
    /// What was decided.
    pub decision: AdmissionDecision,
    /// What was expected instead, where it was not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub expected: String,
}

/// `firewall@0.1.0`
pub fn exact_package(text: &str) -> Result<(PackageName, semver::Version), String> {
    let (name, version) =
        text.split_once('@').ok_or_else(|| format!("\"{text}\" has no version"))?;
    let name = name.parse().map_err(|error: canopy_api::name::NameError| error.to_string())?;
    let version = version
        .parse()
        .map_err(|error| format!("\"{version}\" is not an exact version: {error}"))?;
    Ok((name, version))
}

impl Cases {
    /// What the schema cannot check; every mistake, with its path.
    pub fn check(&self, rules: &RuleSet) -> Result<(), Problems> {
        let mut problems = Problems::default();
        let mut names = BTreeMap::new();
        for (i, case) in self.cases.iter().enumerate() {
            let at = format!("cases[{i}]");
            if let Some(first) = names.insert(&case.name, i) {
                problems.push(
                    Problem::new(
                        format!("{at}.name"),
                        format!("\"{}\" is already the name of cases[{first}]", case.name),
                    )
                    .remedy("give each case its own name"),
                );
            }
            if let Some(Err(error)) = case.package.as_deref().map(exact_package) {
                problems.push(
                    Problem::new(format!("{at}.package"), error)
                        .remedy("write name@version, such as firewall@0.1.0"),
                );
            }
            for (name, value) in &case.labels {
                if !is_label(name, true) || !is_label(value, false) {
                    problems.push(
                        Problem::new(
                            format!("{at}.labels.{name}"),
                            format!("{name}={value} is not a label"),
                        )
                        .remedy("name and value are 1 to 63 letters, digits, '_', '.' and '-'"),
                    );
                }
            }
            let known =
                |name: &String| name == "none" || rules.rules.iter().any(|rule| rule.name == *name);
            if let Some(rule) = case.rule.as_ref().filter(|rule| !known(rule)) {
                problems.push(
                    Problem::new(format!("{at}.rule"), format!("there is no rule \"{rule}\""))
                        .remedy("correct the name, or leave it out; `none` where none applies"),
                );
            }
        }
        problems.into_result()
    }

    /// Decides every case.
    pub fn run(&self, rules: &RuleSet) -> Vec<Outcome> {
        self.cases.iter().map(|case| case.run(rules)).collect()
    }
}

impl Case {
    fn run(&self, rules: &RuleSet) -> Outcome {
        let package = self.package.as_deref().and_then(|text| exact_package(text).ok());
        let (package, version) =
            package.map_or((None, None), |(name, version)| (Some(name), Some(version)));
        let item = AdmissionItem {
            netns: self.netns.clone(),
            interface: self.interface.clone(),
            within: self.within.clone(),
            hook: self.hook,
            package,
            version,
            publisher: self.publisher.as_ref().map(ToString::to_string),
            map: self.map.clone(),
            shared_with: self.shared_with.clone(),
            ..AdmissionItem::new(self.verb)
        };
        let subject = Subject {
            principal: &self.principal,
            role: self.role,
            host: &self.host,
            labels: &self.labels,
        };
        let decision = rules.decide(subject, &item);
        let effect = if decision.allowed { RuleEffect::Allow } else { RuleEffect::Deny };
        let by = decision.rule.as_deref().unwrap_or("none");
        let passed =
            effect == self.expect && self.rule.as_deref().is_none_or(|expected| expected == by);
        let expected = match &self.rule {
            _ if passed => String::new(),
            Some(rule) => format!("{} by {rule}", self.expect),
            None => self.expect.to_string(),
        };
        Outcome { name: self.name.clone(), passed, decision, expected }
    }
}
