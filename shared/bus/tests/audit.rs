//! The audit trail: a record is there before the change.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use canopy_api::{
    endpoint::loader,
    error::Code,
    subject::Target,
    wire::{Decision, GetRequest},
};
use canopy_audit::{Kind, LineHash, Record, Verifier};
use canopy_bus::{CallError, Spool};
use canopy_test_support::nats::NatsServer;
use common::{apply, connect, loader_on};
use serde_json::json;
use std::{fs, path::Path, sync::atomic::Ordering, time::SystemTime};

fn records(dir: &Path) -> Vec<Record> {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut verifier = Verifier::default();
    let mut records = Vec::new();
    for file in files {
        for line in fs::read_to_string(file).unwrap().lines() {
            records.extend(verifier.line(line.as_bytes()));
        }
    }
    assert_eq!(verifier.end().findings, []);
    records
}

fn spool(dir: &Path) -> Spool {
    let writer = "h-web1-loader".parse().unwrap();
    Spool::new(dir, writer, 1 << 20, SystemTime::now(), |_, _| {})
}

#[tokio::test]
async fn every_change_is_recorded_before_it_is_made_and_after() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let bus = connect(&server, "h-web1-loader").await;
    let trail = spool(dir.path());
    let running = loader_on(bus, "web1", |server| server.audit(trail)).await;
    let operator = connect(&server, "u-operator").await;
    let web1 = Target::Host("web1".parse().unwrap());
    operator.call::<loader::Get>(&web1, &GetRequest::default()).await.unwrap();
    assert_eq!(records(dir.path()).len(), 1, "reading leaves no record");

    operator.call::<loader::Apply>(&web1, &apply(json!({}))).await.unwrap();
    operator.call::<loader::Apply>(&web1, &apply(json!({ "fail": 1 }))).await.unwrap_err();
    operator.call::<loader::Apply>(&web1, &apply(json!({ "panic": 1 }))).await.unwrap_err();
    let all = records(dir.path());
    let told: Vec<_> = all[1..].iter().map(|one| (one.kind, one.of, one.decision)).collect();
    assert_eq!(
        told,
        [
            (Kind::Begun, None, None),
            (Kind::Ended, Some(2), Some(Decision::Done)),
            (Kind::Begun, None, None),
            (Kind::Ended, Some(4), Some(Decision::Failed)),
            (Kind::Begun, None, None),
            (Kind::Ended, Some(6), Some(Decision::Failed)),
        ]
    );
    // What was asked, where the handler does not say what it did, and why it was not done.
    assert!(all[2].reason.starts_with("{\"document\":{}"), "{}", all[2].reason);
    assert!(all[4].reason.ends_with(": not now"), "{}", all[4].reason);
    for record in &all[1..] {
        assert_eq!(record.principal.as_ref().unwrap().as_str(), "u-operator");
        assert_eq!(record.verb.as_deref(), Some("apply"));
        assert!(record.request_id.is_some() && record.request != Some(LineHash::NONE));
    }
    running.stop().await;
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_done() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("audit");
    fs::write(&place, "in the way").unwrap();
    let bus = connect(&server, "h-web1-loader").await;
    let trail = spool(&place);
    let running = loader_on(bus, "web1", |server| server.audit(trail)).await;
    let operator = connect(&server, "u-operator").await;
    let web1 = Target::Host("web1".parse().unwrap());
    let refused = operator.call::<loader::Apply>(&web1, &apply(json!({}))).await.unwrap_err();
    let CallError::Api(error) = refused else { panic!("{refused}") };
    assert_eq!(error.code, Code::Unavailable);
    assert!(error.message.contains("cannot be kept, so nothing was done"), "{error:?}");
    assert_eq!(running.applied.load(Ordering::SeqCst), 0, "it was done all the same");
    operator.call::<loader::Get>(&web1, &GetRequest::default()).await.unwrap();

    fs::remove_file(&place).unwrap();
    operator.call::<loader::Apply>(&web1, &apply(json!({}))).await.unwrap();
    assert_eq!(records(&place).len(), 3);
    running.stop().await;
}
