//! What is stored is taken out of one bus server and put into another.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod stack;

use canopy_api::{
    endpoint::policy,
    permission::Role,
    subject::Target,
    wire::{AuditRequest, tokens::TokenListRequest},
};
use canopy_bus::Bus;
use nix::sys::signal::Signal;
use stack::{LIMIT, Stack, run};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::Output,
    time::{Duration, Instant},
};

fn command(stack: &Stack, name: &str, option: &str, dir: &str) -> Output {
    let config = stack.path("backup.json");
    fs::write(&config, stack.config().to_string()).unwrap();
    let dir = stack.path(dir);
    run(&[name, "--config", config.to_str().unwrap(), option, dir.to_str().unwrap()])
}

fn text(output: &Output) -> String {
    let both = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8(both).unwrap()
}

async fn records(admin: &Bus) -> usize {
    let request = AuditRequest { verb: Some("token-issue".to_owned()), ..AuditRequest::default() };
    admin.call::<policy::Audit>(&Target::Central, &request).await.unwrap().records.len()
}

#[tokio::test]
async fn a_backup_is_restored_into_an_empty_store() {
    let mut stack = Stack::start();
    let admin = stack.connect("u-admin").await;
    stack.issue(&admin, "u-viewer", Role::Viewer).await;
    let until = Instant::now() + LIMIT;
    while records(&admin).await == 0 {
        assert!(Instant::now() < until, "the record of the token is not stored");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let before = records(&admin).await;
    admin.close().await;
    for process in stack.policy.drain(..) {
        process.end_by(Signal::SIGTERM).unwrap();
    }
    let made = command(&stack, "backup", "--output", "kept");
    assert!(made.status.success(), "{}", text(&made));
    for stream in ["KV_canopy_tokens", "KV_canopy_hosts", "CANOPY_AUDIT"] {
        assert!(text(&made).contains(stream), "{}", text(&made));
        let file = stack.path(&format!("kept/{stream}.snapshot"));
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    let again = command(&stack, "backup", "--output", "kept");
    assert!(text(&again).contains("kept exists; choose another directory"), "{}", text(&again));
    let over = command(&stack, "restore", "--input", "kept");
    assert!(!over.status.success());
    assert!(text(&over).contains("KV_canopy_tokens exists"), "{}", text(&over));

    // Another server's store, or a cluster's that starts with nothing.
    stack.server.kill();
    fs::remove_dir_all(stack.server.dir().join("jetstream")).unwrap();
    stack.server.restart().unwrap();
    let empty = command(&stack, "backup", "--output", "none");
    assert!(text(&empty).contains("nothing is stored there"), "{}", text(&empty));
    assert!(!stack.path("none").exists());
    let wrong = command(&stack, "restore", "--input", "none");
    assert!(text(&wrong).contains("has no backup"), "{}", text(&wrong));
    let restored = command(&stack, "restore", "--input", "kept");
    assert!(restored.status.success(), "{}", text(&restored));

    // Both tokens are in force, the trail is there, and it goes on.
    stack.start_policy();
    let admin = stack.connect("u-admin").await;
    stack.connect("u-viewer").await;
    let list = TokenListRequest::default();
    let tokens = admin.call::<policy::TokenList>(&Target::Central, &list).await.unwrap().tokens;
    assert_eq!(tokens.len(), 2);
    assert_eq!(records(&admin).await, before);
    stack.issue(&admin, "u-operator", Role::Operator).await;
    let until = Instant::now() + LIMIT;
    while records(&admin).await == before {
        assert!(Instant::now() < until, "the trail does not go on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
