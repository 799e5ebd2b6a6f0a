//! Keys that are kept elsewhere.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod stack;

use canopy_api::permission::Role;
use canopy_identity::SigningKey;
use canopy_test_support::{
    service::{self, ServiceProcess},
    stores::Secrets,
};
use rcgen::{KeyPair, PKCS_ED25519};
use serde_json::{Value, json};
use stack::{LIMIT, PROGRAM, Stack};
use std::{fs, path::Path, time::Instant};

fn key() -> String {
    KeyPair::generate_for(&PKCS_ED25519).unwrap().serialize_pem()
}

fn id(pem: &str) -> String {
    SigningKey::from_pem(pem).unwrap().id().to_owned()
}

/// A signing key is rotated where it is kept: the service signs with the new one and believes the one
/// before, and nobody touches it.
#[tokio::test]
async fn a_key_is_rotated_in_the_cloud() {
    let secrets = Secrets::start().unwrap();
    let (first, second, third) = (key(), key(), key());
    for one in [&first, &second] {
        secrets.put("signing", Some(one)).unwrap();
    }
    let mut stack = Stack::without_policy();
    secrets
        .put("issuer", Some(&fs::read_to_string(stack.path("keys/issuer.seed")).unwrap()))
        .unwrap();
    stack.change_auth = Some(Box::new({
        let current = secrets.source("signing");
        let mut previous = current.clone();
        previous["aws_secrets_manager"]["version_stage"] = json!("AWSPREVIOUS");
        let issuer = secrets.source("issuer");
        move |auth| {
            auth["signing_keys"] = json!([current, previous]);
            auth["issuer_seed"] = issuer.clone();
            auth["secrets_seconds"] = json!(1);
        }
    }));
    stack.start_policy();
    stack.bootstrap("u-admin");
    let admin = stack.connect("u-admin").await;
    let before = stack.issue(&admin, "u-viewer", Role::Viewer).await.record.key;
    assert_eq!(before, id(&second));

    secrets.put("signing", Some(&third)).unwrap();
    let until = Instant::now() + LIMIT;
    loop {
        let signed = stack.issue(&admin, "u-operator", Role::Operator).await.record.key;
        if signed == id(&third) {
            break;
        }
        assert!(Instant::now() < until, "the key of before still signs");
        let revoke = canopy_api::wire::tokens::TokenRevokeRequest {
            principal: "u-operator".parse().unwrap(),
        };
        let centre = canopy_api::subject::Target::Central;
        admin.call::<canopy_api::endpoint::policy::TokenRevoke>(&centre, &revoke).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    stack.attempt(&stack.credentials("u-viewer")).await.unwrap();
    stack.attempt(&stack.credentials("u-operator")).await.unwrap();

    // Away or spoiled, the keys of before stay.
    secrets.put("signing", Some("rubbish")).unwrap();
    canopy_test_support::wait_for(LIMIT, "the spoiled key is told of", || {
        let log = stack.policy[0].log();
        if log.contains("the keys of before stay in use") { Ok(()) } else { Err(log) }
    })
    .unwrap();
    drop(secrets);
    stack.attempt(&stack.credentials("u-operator")).await.unwrap();
    let log = stack.policy[0].log();
    for secret in [&second, &third] {
        let line = secret.lines().nth(1).unwrap();
        assert!(!log.contains(line), "a key is in the log");
    }
    // A service that starts then says what it lacks, and does not start.
    let said = match ServiceProcess::start(Path::new(PROGRAM), stack.config()) {
        Ok(process) => {
            canopy_test_support::wait_for(LIMIT, "it says what it lacks", || {
                let log = process.log();
                if log.contains("AWS secret") { Ok(()) } else { Err(log) }
            })
            .unwrap();
            process.log()
        }
        Err(error) => error.to_string(),
    };
    assert!(said.contains("AWS secret signing"), "{said}");
}

/// What would keep the service from starting is told at once, and nothing is made.
#[test]
fn check_finds_every_file_that_cannot_be_used() {
    let stack = Stack::without_policy();
    let mut config = stack.config_with_audit(0);
    config["rules"] = json!(stack.path("rules.yaml"));
    fs::write(stack.path("rules.yaml"), "rules: []\n").unwrap();
    let check = |config: &Value| {
        let output = service::check(Path::new(PROGRAM), &config.to_string()).unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(check(&config), (Some(0), String::new()));
    assert!(!stack.audit_dir(0).exists());

    config["bus"]["cert"] = json!(stack.path("missing.crt"));
    config["auth"]["data"]["key"] = config["auth"]["system"]["key"].clone();
    config["auth"]["nkeys"]["app"] = json!({ "file": stack.path("missing.seed") });
    config["auth"]["signing_keys"][0] = config["auth"]["issuer_seed"].clone();
    config["auth"]["ca"]["key"] = json!({ "file": config["auth"]["system"]["key"] });
    config["audit"]["dir"] = json!(stack.path("rules.yaml"));
    fs::write(stack.path("rules.yaml"), "rules: [{}]\n").unwrap();
    let (code, text) = check(&config);
    assert_eq!(code, Some(2), "{text}");
    for expected in [
        "bus.cert: cannot read ",
        "rules: ",
        "audit.dir: cannot write into ",
        "auth.data.key: ",
        "auth.nkeys.app: ",
        "auth.signing_keys[0]: ",
        "auth.ca.key: ",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    assert!(text.contains("rules[0].name"), "{text}");
}
