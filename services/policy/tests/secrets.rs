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
use canopy_test_support::{service::ServiceProcess, stores::Secrets};
use rcgen::{KeyPair, PKCS_ED25519};
use serde_json::json;
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
