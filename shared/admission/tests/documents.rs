//! Documents of rules and cases: what is refused, what is remarked on, what is decided.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests: a failure is the message"
)]

use canopy_admission::{Cases, Labels, RuleSet, Subject, load};
use canopy_api::{
    document::{self, Format},
    wire::{AdmissionItem, AdmissionVerb},
};

const KEY: &str = "RWSuMCRPjLJ7i+9n2jBqZSAWS+YkC3xKPnY5Z6gkYJUnx6MFc+fKDJmX";

fn rules(text: &str) -> RuleSet {
    load(text, Format::Yaml).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn every_mistake_is_told_with_its_place() {
    let said = |text: &str| load(text, Format::Yaml).unwrap_err().to_string();
    let schema = said(
        "rules:\n\
         - { name: A, effect: permit, when: { hooks: [xpd], roles: [operater], verbs: [aply] } }\n\
         - { name: b, effect: allow, when: { package: [x], publishers: [abc] } }\n",
    );
    for expected in [
        "rules[0].name: \"A\" is not allowed",
        "rules[0].effect: \"permit\" is not one of allow, deny",
        "rules[0].when.hooks[0]: \"xpd\" is not one of xdp, tc-ingress, tc-egress (did you mean \"xdp\"?)",
        "rules[0].when.roles[0]: \"operater\"",
        "did you mean \"operator\"?",
        "rules[0].when.verbs[0]: \"aply\"",
        "did you mean \"apply\"?",
        "rules[1].when.package: unknown field \"package\" (did you mean \"packages\"?)",
        "rules[1].when.publishers[0]: \"abc\" is not allowed",
    ] {
        assert!(schema.contains(expected), "{expected}\nis not in\n{schema}");
    }
    let meaning = said(
        "rules:\n\
         - { name: a, effect: deny, unless: {} }\n\
         - { name: a, effect: allow, when: { principals: [alice], packages: [\"f@>2, <1\"], hosts: [Web1] } }\n\
         - { name: c, effect: deny, reason: \"one\\ntwo\", when: { labels: { \"a b\": [x], env: [] }, interfaces: [\"a/b\"] } }\n",
    );
    for expected in [
        "rules[0].reason: a deny says why",
        "rules[0].unless: without a condition the rule would never apply",
        "rules[1].name: \"a\" is already the name of rules[0]",
        "rules[1].when.principals[0]: \"alice\" matches nothing",
        "rules[1].when.packages[0]: \"f@>2, <1\" fits no version",
        "rules[1].when.hosts[0]: \"Web1\" matches nothing",
        "rules[2].reason: a reason is one line",
        "rules[2].when.labels.a b: \"a b\" is not a label's name",
        "rules[2].when.labels.env: no value will do",
        "rules[2].when.interfaces[0]: \"a/b\" matches nothing",
    ] {
        assert!(meaning.contains(expected), "{expected}\nis not in\n{meaning}");
    }
}

#[test]
fn what_is_most_likely_not_meant_is_remarked_on() {
    let remarks = rules(&format!(
        "rules:\n\
         - {{ name: all, effect: allow }}\n\
         - {{ name: narrow, effect: allow, when: {{ hooks: [xdp] }} }}\n\
         - {{ name: no-web, effect: deny, reason: r, when: {{ hosts: [\"web*\"] }} }}\n\
         - {{ name: web1, effect: allow, when: {{ hosts: [web1] }} }}\n\
         - {{ name: viewers, effect: deny, reason: r, when: {{ roles: [viewer] }} }}\n\
         - {{ name: moot, effect: deny, reason: r, when: {{ hooks: [xdp] }}, unless: {{ hooks: [xdp, tc-egress] }} }}\n\
         - {{ name: signed, effect: deny, reason: r, when: {{ labels: {{ env: [prod] }} }}, unless: {{ publishers: [{KEY}] }} }}\n\
         - {{ name: maps, effect: deny, reason: r, when: {{ verbs: [apply], maps: [x] }} }}\n\
         - {{ name: route, effect: deny, reason: r, when: {{ interfaces: [default-route] }} }}\n\
         - {{ name: star, effect: deny, reason: r, when: {{ verbs: [drain], packages: [\"*\", x] }} }}\n\
         - {{ name: twice, effect: deny, reason: r, when: {{ verbs: [drain], packages: [\"a*\", ab] }} }}\n"
    ))
    .lint();
    let said: Vec<String> = remarks.iter().map(ToString::to_string).collect();
    let expected = [
        "rules[0].when: without conditions everything is allowed to everybody",
        "rules[1]: \"narrow\" decides nothing that \"all\" does not",
        "rules[3]: \"web1\" never decides: \"no-web\" denies all of it",
        "rules[4]: \"viewers\" never applies: the bus lets no viewer change a host",
        "rules[5]: \"moot\" never applies: its exception is all of it",
        "rules[6].unless.publishers: only what is applied or shares a map has a publisher",
        "rules[7]: \"maps\" never applies: only map-set, map-delete, map-follow and share-map name a map",
        "rules[8].when.interfaces[0]: \"default-route\" is denied only where it is written so",
        "rules[9].when.packages: \"*\" is for every one there is",
        "rules[10]: \"twice\" decides nothing that \"star\" does not",
    ];
    assert_eq!(said.len(), expected.len(), "{said:#?}");
    for (said, expected) in said.iter().zip(expected) {
        assert!(said.starts_with(expected), "{said}\nis not\n{expected}");
    }
    // Other versions are other packages, and a narrower rule is too much in either place.
    let versions = |one: &str, other: &str| {
        let allow = |name, package| {
            format!("- {{ name: {name}, effect: allow, when: {{ packages: [\"{package}\"] }} }}\n")
        };
        let set = rules(&format!("rules:\n{}{}", allow("one", one), allow("other", other)));
        set.lint().into_iter().map(|remark| remark.path).collect::<Vec<_>>()
    };
    assert_eq!(versions("f@^1", "f@^2"), [] as [&str; 0]);
    assert_eq!(versions("f@^1", "f"), ["rules[0]"]);
    assert_eq!(versions("f", "f"), ["rules[1]"]);
    let nothing = rules("rules: []").lint();
    assert!(nothing[0].message.contains("nobody can change any host"));
}

/// What a security engineer writes on the first day.
const TYPICAL: &str = "\
rules:
  - name: platform
    effect: allow
    when: { roles: [operator, admin], packages: [firewall, ratelimit, \"acme-*@>=1.0\"] }
  - name: host-verbs
    effect: allow
    when: { roles: [admin], verbs: [drain, undrain] }
  - name: prod-is-signed-by-release
    effect: deny
    reason: production runs only what the release key signed
    when: { labels: { env: [prod] }, verbs: [apply, downgrade] }
    unless: { publishers: [KEY] }
  - name: firewall-stays
    effect: deny
    reason: the network team takes firewalls off
    when: { verbs: [delete, drain], packages: [firewall] }
    unless: { principals: [u-neta, u-netb] }
  - name: uplinks
    effect: deny
    reason: uplinks are changed by the network team
    when: { interfaces: [\"uplink*\"] }
    unless: { principals: [\"u-net?\"] }
";

#[test]
fn a_typical_set_decides_as_its_author_means() {
    let cases = "\
cases:
  - { name: an operator applies, principal: u-alice, role: operator, host: web1, verb: apply, package: firewall@0.1.0, hook: xdp, interface: eth0, expect: allow, rule: platform }
  - { name: not what nobody listed, principal: u-alice, role: operator, host: web1, verb: apply, package: other@0.1.0, hook: xdp, interface: eth0, expect: deny, rule: none }
  - { name: not an old version, principal: u-alice, role: operator, host: web1, verb: apply, package: acme-x@0.9.0, hook: xdp, interface: eth0, expect: deny, rule: none }
  - { name: nobody without a role, principal: u-mallory, host: web1, verb: apply, package: firewall@0.1.0, hook: xdp, interface: eth0, expect: deny }
  - { name: prod wants the release key, principal: u-alice, role: operator, host: web1, labels: { env: prod }, verb: apply, package: firewall@0.1.0, hook: xdp, interface: eth0, expect: deny, rule: prod-is-signed-by-release }
  - { name: and has it, principal: u-alice, role: operator, host: web1, labels: { env: prod }, verb: apply, package: firewall@0.1.0, publisher: KEY, hook: xdp, interface: eth0, expect: allow }
  - { name: firewalls stay, principal: u-alice, role: admin, host: web1, verb: delete, package: firewall@0.1.0, hook: xdp, interface: eth0, expect: deny, rule: firewall-stays }
  - { name: but for the network team, principal: u-neta, role: admin, host: web1, verb: delete, package: firewall@0.1.0, hook: xdp, interface: eth0, expect: allow }
  - { name: an uplink by name, principal: u-alice, role: admin, host: web1, verb: apply, package: firewall@0.1.0, hook: xdp, interface: uplink0, expect: deny, rule: uplinks }
  - { name: an uplink by pattern, principal: u-alice, role: admin, host: web1, verb: apply, package: firewall@0.1.0, hook: xdp, interface: \"up*\", expect: deny, rule: uplinks }
  - { name: an uplink by what it may be, principal: u-alice, role: admin, host: web1, verb: apply, package: firewall@0.1.0, hook: xdp, interface: default-route, expect: deny, rule: uplinks }
  - { name: no uplink, principal: u-alice, role: admin, host: web1, verb: apply, package: firewall@0.1.0, hook: xdp, interface: \"eth*\", expect: allow }
  - { name: perhaps an uplink elsewhere, principal: u-alice, role: admin, host: web1, verb: apply, package: firewall@0.1.0, hook: xdp, netns: blue, interface: uplink0, expect: deny, rule: uplinks }
  - { name: no uplink elsewhere, principal: u-alice, role: admin, host: web1, verb: apply, package: firewall@0.1.0, hook: xdp, netns: blue, interface: eth0, expect: allow, rule: platform }
";
    let rules = rules(&TYPICAL.replace("KEY", KEY));
    assert_eq!(rules.lint(), []);
    let cases: Cases = document::load(&cases.replace("KEY", KEY), Format::Yaml).unwrap();
    cases.check(&rules).unwrap();
    for outcome in cases.run(&rules) {
        assert!(outcome.passed, "{outcome:?}");
    }
}

#[test]
fn an_interface_that_a_rule_allows_is_one_of_the_host() {
    let rules = rules(
        "rules:\n- { name: lab, effect: allow, when: { interfaces: [eth0] } }\n- { name: net, effect: allow, when: { interfaces: [\"*\"], principals: [u-neta] } }\n",
    );
    let cases = "\
cases:
  - { name: the hosts own, principal: u-alice, role: admin, host: web1, verb: apply, interface: eth0, expect: allow, rule: lab }
  - { name: another one of that name, principal: u-alice, role: admin, host: web1, verb: apply, netns: blue, interface: eth0, expect: deny, rule: none }
  - { name: any at all, principal: u-neta, role: admin, host: web1, verb: apply, netns: blue, interface: eth0, expect: allow, rule: net }
";
    let cases: Cases = document::load(cases, Format::Yaml).unwrap();
    for outcome in cases.run(&rules) {
        assert!(outcome.passed, "{outcome:?}");
    }
}

#[test]
fn a_case_that_comes_out_otherwise_says_what_was_decided() {
    let rules = rules(&TYPICAL.replace("KEY", KEY));
    let cases: Cases = document::load(
        "cases: [{ name: c, principal: u-alice, role: admin, host: web1, verb: drain, package: firewall@0.1.0, expect: allow }]",
        Format::Yaml,
    )
    .unwrap();
    let outcome = &cases.run(&rules)[0];
    assert!(!outcome.passed && outcome.expected == "allow", "{outcome:?}");
    assert_eq!(outcome.decision.rule.as_deref(), Some("firewall-stays"));
    let wrong: Cases = document::load(
        "cases:\n\
         - { name: c, principal: u-a, host: w, verb: apply, package: firewall, expect: deny, rule: nope }\n\
         - { name: c, principal: u-a, host: w, verb: apply, labels: { env: \"\" }, expect: deny }\n",
        Format::Yaml,
    )
    .unwrap();
    let said = wrong.check(&rules).unwrap_err().to_string();
    for expected in [
        "cases[0].package: \"firewall\" has no version",
        "cases[0].rule: there is no rule \"nope\"",
        "cases[1].name: \"c\" is already the name of cases[0]",
        "cases[1].labels.env: ",
    ] {
        assert!(said.contains(expected), "{expected} is not in\n{said}");
    }
}

#[test]
fn an_explanation_names_the_condition_that_does_not_hold() {
    let rules = rules(&TYPICAL.replace("KEY", KEY));
    let (alice, web1) = ("u-alice".parse().unwrap(), "web1".parse().unwrap());
    let labels = Labels::from([("env".to_owned(), "test".to_owned())]);
    let subject =
        Subject { principal: &alice, role: "operator".parse().ok(), host: &web1, labels: &labels };
    let item = AdmissionItem {
        package: "other".parse().ok(),
        version: "1.2.3".parse().ok(),
        ..AdmissionItem::new(AdmissionVerb::Apply)
    };
    let said: Vec<String> = rules
        .explain(subject, &item)
        .into_iter()
        .map(|one| format!("{}: {} {}", one.rule, one.applies, one.why))
        .collect();
    assert_eq!(
        said,
        [
            "platform: false packages: other 1.2.3 is not among firewall, ratelimit, acme-*@>=1.0",
            "host-verbs: false roles: operator is not among admin",
            "prod-is-signed-by-release: false labels.env: test is not among prod",
            "firewall-stays: false verbs: apply is not among delete, drain",
            "uplinks: false interfaces: there is none",
        ]
    );
}

/// The page that people copy from.
#[test]
fn the_example_of_the_documentation_is_good_and_passes_its_cases() {
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/admission.md"));
    let page = page.unwrap();
    let block = |title: &str| {
        let begin = page.find(title).unwrap_or_else(|| panic!("no {title} on the page"));
        page[begin..].split("```").next().unwrap().replace("\n   ", "\n")
    };
    let rules = rules(&block("# rules.yaml\n"));
    assert_eq!(rules.lint(), []);
    let cases: Cases = document::load(&block("# cases.yaml\n"), Format::Yaml).unwrap();
    cases.check(&rules).unwrap();
    assert!(cases.run(&rules).iter().all(|outcome| outcome.passed), "{:?}", cases.run(&rules));
}
