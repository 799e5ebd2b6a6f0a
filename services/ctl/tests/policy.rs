//! Admission rules by the command line, without a bus.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Output},
};
use tempfile::TempDir;

const RULES: &str = "\
rules:
  - { name: operators, effect: allow, when: { roles: [operator] } }
  - { name: no-drain, effect: deny, reason: ask the owners, when: { verbs: [drain], labels: { env: [prod] } } }
";

const CASES: &str = "\
cases:
  - { name: operators apply, principal: u-alice, role: operator, host: web1, verb: apply, package: firewall@0.1.0, expect: allow, rule: operators }
  - { name: prod is not drained, principal: u-alice, role: operator, host: web1, labels: { env: prod }, verb: drain, expect: deny, rule: no-drain }
";

fn canopy(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_canopy"))
        .args(arguments)
        .current_dir(dir)
        .env("HOME", dir)
        .env_remove("CANOPY_HOST")
        .output()
        .unwrap()
}

#[track_caller]
fn said(dir: &Path, exit: i32, arguments: &[&str]) -> String {
    let output = canopy(dir, arguments);
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {text}");
    text
}

fn files() -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("rules.yaml"), RULES).unwrap();
    fs::write(dir.path().join("cases.yaml"), CASES).unwrap();
    dir
}

#[test]
fn rules_are_checked_with_every_mistake_and_every_remark() {
    let dir = files();
    let dir = dir.path();
    let good = said(dir, 0, &["policy", "check", "rules.yaml", "--strict"]);
    assert_eq!(good, "rules.yaml: 2 rules, nothing to remark on\n");

    fs::write(dir.join("bad.yaml"), RULES.replace("[drain]", "[drian]").replace("roles", "role"))
        .unwrap();
    let bad = said(dir, 2, &["policy", "check", "bad.yaml"]);
    for expected in [
        "at: bad.yaml: rules[0].when.role",
        "did you mean \"roles\"",
        "at: bad.yaml: rules[1].when.verbs[0]",
        "did you mean \"drain\"",
    ] {
        assert!(bad.contains(expected), "{expected} is not in\n{bad}");
    }
    fs::write(dir.join("bad.yaml"), RULES.replace("reason: ask the owners, ", "")).unwrap();
    assert!(said(dir, 2, &["policy", "check", "bad.yaml"]).contains("a deny says why"));

    let wide = RULES.replace("when: { roles: [operator] } ", "");
    fs::write(dir.join("wide.yaml"), wide).unwrap();
    let remark = said(dir, 0, &["policy", "check", "wide.yaml"]);
    assert!(remark.contains("remark: without conditions everything is allowed"), "{remark}");
    assert!(remark.contains("at: wide.yaml: rules[0].when"), "{remark}");
    said(dir, 3, &["policy", "check", "wide.yaml", "--strict"]);
    said(dir, 4, &["policy", "check", "nowhere.yaml"]);
}

#[test]
fn a_table_of_cases_says_which_came_out_otherwise_and_how() {
    let dir = files();
    let dir = dir.path();
    let good = said(dir, 0, &["policy", "test", "rules.yaml", "cases.yaml"]);
    assert!(good.ends_with("2 cases, all as expected\n"), "{good}");

    fs::write(dir.join("looser.yaml"), RULES.replace("env: [prod]", "env: [production]")).unwrap();
    let other = said(dir, 3, &["policy", "test", "looser.yaml", "cases.yaml"]);
    for expected in [
        "ok     operators apply",
        "FAILED prod is not drained",
        "expected: deny by no-drain",
        "decided:  allow by operators",
        "2 cases, 1 not as expected",
    ] {
        assert!(other.contains(expected), "{expected} is not in\n{other}");
    }
    let json = said(dir, 3, &["policy", "test", "looser.yaml", "cases.yaml", "-o", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json[0]["passed"], &json[1]["passed"]), (&true.into(), &false.into()));

    fs::write(dir.join("wrong.yaml"), CASES.replace("rule: no-drain", "rule: no-drian")).unwrap();
    let wrong = said(dir, 2, &["policy", "test", "rules.yaml", "wrong.yaml"]);
    assert!(wrong.contains("there is no rule \"no-drian\""), "{wrong}");
}

#[test]
fn a_decision_is_explained_by_a_file() {
    let dir = files();
    let dir = dir.path();
    let explain = |exit, rest: &[&str]| {
        let first = ["policy", "explain", "u-alice", "drain", "--rules", "rules.yaml"];
        said(dir, exit, &[&first[..], rest].concat())
    };
    let denied = explain(6, &["--host", "web1", "--role", "operator", "--label", "env=prod"]);
    assert!(denied.starts_with("u-alice (operator) drain at web1 (env=prod)\n"), "{denied}");
    assert!(denied.contains("denied by no-drain: ask the owners"), "{denied}");
    let allowed = explain(0, &["--host", "web1", "--role", "operator"]);
    assert!(allowed.contains("allowed by operators"), "{allowed}");
    assert!(allowed.contains("labels.env: there is none"), "{allowed}");
    let nobody = explain(6, &["--host", "web1"]);
    assert!(nobody.contains("denied: no rule allows it"), "{nobody}");
    assert!(nobody.contains("roles: there is none"), "{nobody}");
    assert!(explain(2, &[]).contains("no host was named"));
    assert!(explain(2, &["--host", "web1", "--label", "prod"]).contains("is not a label"));
    let mistyped = said(dir, 2, &["policy", "explain", "u-alice", "aply"]);
    assert!(mistyped.contains("'apply'"), "{mistyped}");
}
