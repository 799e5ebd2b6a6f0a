//! A new host comes to a fleet by the commands a person types, renews, and is taken back.
#![allow(clippy::unwrap_used, reason = "tests: a failure is the message")]

use canopy_e2e::World;
use serde_json::Value;
use std::{fs, os::unix::fs::PermissionsExt as _};

#[test]
fn a_host_is_requested_enrolled_installed_renewed_and_revoked() {
    let world = World::start().unwrap();
    let admin = |arguments: &[&str]| world.canopy_as("admin", arguments).unwrap();
    let state = |host: &str| {
        let shown: Value = admin(&["host", "show", host, "-o", "json"]).json().unwrap();
        shown[0]["state"].as_str().unwrap().to_owned()
    };
    // The stack's own host came in the same way.
    assert_eq!(state("e2e"), "active");

    let request = ["host", "request", "web9", "--dir", "tls", "--save", "web9.request"];
    let keys: Value = admin(&[&request[..], &["-o", "json"]].concat()).json().unwrap();
    for service in ["loader", "enforcer"] {
        let key = fs::metadata(world.dir().join(format!("tls/{service}.key"))).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
    }
    let again = admin(&["host", "request", "web9", "--dir", "tls", "--save", "other.request"]);
    assert_eq!(again.code, 1, "{}", again.err);
    assert!(again.err.contains("a key is never written over"), "{}", again.err);
    let carried = fs::read_to_string(world.dir().join("web9.request")).unwrap();
    assert!(!carried.contains("PRIVATE"), "{carried}");

    let enrol = ["host", "enrol", "web9.request", "--label", "rack=7", "--save", "web9.enrolment"];
    // Nothing is signed before the keys are confirmed.
    let asked = admin(&enrol);
    assert_eq!(asked.code, 2, "{}", asked.err);
    for service in ["loader", "enforcer"] {
        let key = keys["keys"][service].as_str().unwrap();
        assert!(asked.err.contains(key), "{key} is not in {}", asked.err);
    }
    assert_eq!(admin(&["host", "show", "web9"]).code, 4);
    let expected = keys["keys"]["loader"].as_str().unwrap();
    let one = admin(&[&enrol[..], &["--expect-fingerprint", expected]].concat());
    assert_eq!(one.code, 6, "{}", one.err);
    assert_eq!(admin(&["host", "show", "web9"]).code, 4);
    let other = keys["keys"]["enforcer"].as_str().unwrap();
    let both = ["--expect-fingerprint", expected, "--expect-fingerprint", other];
    let enrol = [&enrol[..], &both].concat();
    let denied = world.canopy_as("operator", &enrol).unwrap();
    assert_eq!(denied.code, 6, "{}", denied.err);
    let enrolled: Value = admin(&[&enrol[..], &["-o", "json"]].concat()).json().unwrap();
    assert_eq!(enrolled[0]["labels"]["rack"], "7");
    // What the administrator sees is what the host showed.
    assert_eq!(enrolled[0]["certificates"]["loader"]["key"], keys["keys"]["loader"]);
    fs::rename(world.dir().join("web9.enrolment"), world.dir().join("carried")).unwrap();
    let twice = admin(&enrol);
    assert_eq!(twice.code, 5, "{}", twice.err);
    assert!(twice.err.contains("web9 is enrolled already"), "{}", twice.err);

    // Another host's keys are not what was signed.
    admin(&["host", "request", "web9", "--dir", "wrong", "--save", "wrong.request"])
        .text()
        .unwrap();
    let wrong = admin(&["host", "install", "carried", "--dir", "wrong"]);
    assert_eq!(wrong.code, 2, "{}", wrong.err);
    assert!(wrong.err.contains("is of another key"), "{}", wrong.err);
    assert!(!world.dir().join("wrong/loader.crt").exists());

    let said = admin(&["host", "install", "carried", "--dir", "tls"]);
    assert!(said.text().unwrap().contains("tls://127.0.0.1:4222"), "{}", said.out);
    assert_eq!(state("web9"), "waiting");

    // With what was installed, and nothing else, both daemons come in; each has its own renewed.
    let before = fs::read_to_string(world.dir().join("tls/loader.crt")).unwrap();
    let early: Value = admin(&["host", "renew", "--dir", "tls", "-o", "json"]).json().unwrap();
    assert_eq!(early["loader"]["renewed"], false, "{early}");
    let renew = ["host", "renew", "--dir", "tls", "--now", "-o", "json"];
    let renewed: Value = admin(&renew).json().unwrap();
    assert_eq!(
        (&renewed["loader"]["renewed"], &renewed["enforcer"]["renewed"]),
        (&true.into(), &true.into())
    );
    assert_ne!(fs::read_to_string(world.dir().join("tls/loader.crt")).unwrap(), before);
    assert_eq!(state("web9"), "active");
    admin(&renew).text().unwrap();

    let labels: Value =
        admin(&["host", "label", "web9", "env=prod", "rack-", "-o", "json"]).json().unwrap();
    assert_eq!(labels[0]["labels"], serde_json::json!({ "env": "prod" }));

    admin(&["host", "revoke", "web9"]).text().unwrap();
    assert_eq!(state("web9"), "revoked");
    let out = admin(&renew);
    assert_eq!(out.code, 11, "{}", out.err);
    let log =
        fs::read_to_string(world.stack().process(canopy_api::endpoint::Service::Policy).log())
            .unwrap();
    assert!(log.contains("the host web9 was revoked"), "{log}");
    world.end().unwrap();
}
