//! Floods against a service: each class and each caller keeps its share, and what is refused costs little.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use async_nats::HeaderMap;
use canopy_api::{
    endpoint::{Endpoint, Service, loader},
    subject::{self, Target},
    wire::{ApplyReply, GetRequest},
};
use canopy_audit::{Kind, Record};
use canopy_bus::{CallOptions, Limits, Server, Spool, is_busy};
use canopy_test_support::nats::NatsServer;
use common::{LIMIT, Raw, Running, apply, connect, get_reply, loader_on, raw};
use serde_json::json;
use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::task::JoinHandle;

const WEB1: &str = "web1";
/// Within the time that callers wait, also on a busy machine; without shares nobody is served.
const SOON: Duration = Duration::from_secs(4);
/// A flood takes a core: one at a time.
static FLOODING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn web1() -> Target {
    Target::Host(WEB1.parse().unwrap())
}

/// A loader whose `get` takes 50 ms, as a slow read does, and whose `apply` takes no time.
async fn slow_reader(server: &NatsServer) -> Running {
    let bus = connect(server, "h-web1-loader").await;
    let host = WEB1.parse().unwrap();
    let service = Server::new(bus.clone(), Service::Loader, Some(host))
        .handle::<loader::Get, _, _>(|_, _| async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(get_reply(&WEB1.parse().unwrap()))
        })
        .handle::<loader::Apply, _, _>(|_, request| async move {
            if let Some(wait) = request.document["wait"].as_u64() {
                tokio::time::sleep(Duration::from_millis(wait)).await;
            }
            Ok(ApplyReply {
                omitted: Vec::new(),
                host: WEB1.parse().unwrap(),
                generation: 1,
                dry_run: request.dry_run,
                chains: Vec::new(),
                selectors: Vec::new(),
                admission: None,
            })
        });
    Running::start(bus, service).wait_ready().await
}

/// Publishes some thousand requests a second, without waiting for answers.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Flood {
    fn start<E: Endpoint>(attacker: Raw, principal: &str, payload: Vec<u8>) -> Self {
        let principal = principal.parse().unwrap();
        let subject = subject::request(E::SPEC, &web1(), &principal);
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (ended, count) = (stop.clone(), sent.clone());
        let task = tokio::spawn(async move {
            let mut headers = HeaderMap::new();
            headers.insert("Content-Type", "application/json");
            let payload = bytes::Bytes::from(payload);
            while !ended.load(Ordering::Relaxed) {
                let n = count.fetch_add(1, Ordering::Relaxed);
                let reply = format!("_INBOX.{principal}.h-web1-loader.f{n}");
                attacker
                    .client
                    .publish_with_reply_and_headers(
                        subject.clone(),
                        reply,
                        headers.clone(),
                        payload.clone(),
                    )
                    .await
                    .unwrap();
                if n % 64 == 0 {
                    attacker.client.flush().await.unwrap();
                    // Server, service and callers share this process; `bench attack` leaves this out.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            attacker.client.flush().await.unwrap();
        });
        Self { stop, sent, task }
    }

    async fn end(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        self.sent.load(Ordering::Relaxed)
    }
}

/// Calls one after the other for a while; how many there were, and how long each took.
async fn calls<E: Endpoint>(bus: &canopy_bus::Bus, request: E::Request) -> Vec<Duration> {
    let begun = Instant::now();
    let mut times = Vec::new();
    while begun.elapsed() < Duration::from_millis(800) {
        let asked = Instant::now();
        bus.call::<E>(&web1(), &request).await.expect("served during the flood");
        times.push(asked.elapsed());
    }
    times.sort_unstable();
    times
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_reads_stops_no_change() {
    let _alone = FLOODING.lock().await;
    let server = NatsServer::start(&[WEB1]).unwrap();
    let running = slow_reader(&server).await;
    let operator = connect(&server, "u-operator").await;
    let viewer = raw(&server, "u-viewer").await;
    let flood = Flood::start::<loader::Get>(viewer, "u-viewer", b"{}".to_vec());
    let times = calls::<loader::Apply>(&operator, apply(json!({}))).await;
    let sent = flood.end().await;
    assert!(sent > 200, "only {sent} requests are no flood");
    let worst = times.last().unwrap();
    assert!(*worst < SOON, "{} changes, the slowest {worst:?}", times.len());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_callers_reads_leave_others_their_share() {
    let _alone = FLOODING.lock().await;
    let server = NatsServer::start(&[WEB1]).unwrap();
    let running = slow_reader(&server).await;
    let operator = connect(&server, "u-operator").await;
    let viewer = raw(&server, "u-viewer").await;
    let flood = Flood::start::<loader::Get>(viewer, "u-viewer", b"{}".to_vec());
    let times = calls::<loader::Get>(&operator, GetRequest::default()).await;
    flood.end().await;
    let worst = times.last().unwrap();
    assert!(*worst < SOON, "{} reads, the slowest {worst:?}", times.len());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_callers_changes_leave_others_their_share() {
    let _alone = FLOODING.lock().await;
    let server = NatsServer::start(&[WEB1]).unwrap();
    let running = slow_reader(&server).await;
    let admin = connect(&server, "u-admin").await;
    let operator = raw(&server, "u-operator").await;
    let slow = serde_json::to_vec(&apply(json!({ "wait": 100 }))).unwrap();
    let flood = Flood::start::<loader::Apply>(operator, "u-operator", slow);
    let times = calls::<loader::Apply>(&admin, apply(json!({}))).await;
    flood.end().await;
    let worst = times.last().unwrap();
    assert!(*worst < SOON, "{} changes, the slowest {worst:?}", times.len());
    running.stop().await;
}

/// Requests that wait are in memory: a bounded number of bytes of each caller.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_long_requests_waits_in_bounded_memory() {
    let _alone = FLOODING.lock().await;
    let server = NatsServer::start(&[WEB1]).unwrap();
    let running = slow_reader(&server).await;
    let operator = connect(&server, "u-operator").await;
    let viewer = raw(&server, "u-viewer").await;
    let before = resident();
    let long = format!("{{}}{}", " ".repeat(700_000)).into_bytes();
    let flood = Flood::start::<loader::Get>(viewer, "u-viewer", long);
    let times = calls::<loader::Apply>(&operator, apply(json!({}))).await;
    let grown = resident().saturating_sub(before);
    flood.end().await;
    let worst = times.last().unwrap();
    assert!(*worst < SOON, "{} changes, the slowest {worst:?}", times.len());
    assert!(grown < 300 << 20, "{} MiB more", grown >> 20);
    running.stop().await;
}

/// Bytes of memory of this process.
fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn records(dir: &Path) -> Vec<Record> {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let text: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn spool(dir: &Path) -> Spool {
    Spool::new(dir, "h-web1-loader".parse().unwrap(), 1 << 26, SystemTime::now(), |_, _| {})
}

/// Whoever would push their own traces out of the trail gets a few records.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_requests_are_counted_in_the_trail() {
    let _alone = FLOODING.lock().await;
    let server = NatsServer::start(&[WEB1]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let bus = connect(&server, "h-web1-loader").await;
    let trail = spool(dir.path());
    let running = loader_on(bus, WEB1, |server| server.audit(trail)).await;
    let operator = connect(&server, "u-operator").await;
    operator.call::<loader::Apply>(&web1(), &apply(json!({ "trace": 1 }))).await.unwrap();
    let other = raw(&server, "u-operator").await;
    let flood = Flood::start::<loader::Apply>(other, "u-operator", b"{\"documen\": {}}".to_vec());
    tokio::time::sleep(Duration::from_millis(800)).await;
    let sent = flood.end().await;
    // Until the last one was looked at: this one waits behind those of the same caller.
    let (options, until) = (CallOptions::default(), Instant::now() + LIMIT);
    operator
        .call_again::<loader::Apply>(&web1(), &apply(json!({})), &options, until, is_busy)
        .await
        .unwrap();
    running.stop().await;
    let all = records(dir.path());
    let refused: Vec<_> = all.iter().filter(|one| one.kind == Kind::Refused).collect();
    assert!(refused.len() <= 40, "{} records of {sent} requests", refused.len());
    let counted: u64 = refused.iter().map(|one| one.count.unwrap_or(1)).sum();
    assert_eq!(counted, u64::from(sent), "{refused:?}");
    assert!(refused.iter().all(|one| one.principal.as_ref().unwrap().as_str() == "u-operator"));
    let begun = all.iter().filter(|one| one.kind == Kind::Begun).count();
    assert_eq!(begun, 2, "what cannot be read is not begun");
}

/// What is read and then fails leaves two records, so each caller has a budget of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_changes_fill_no_trail() {
    let _alone = FLOODING.lock().await;
    let server = NatsServer::start(&[WEB1]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let bus = connect(&server, "h-web1-loader").await;
    let trail = spool(dir.path());
    let limits = Limits { failed_changes: 20, ..Limits::default() };
    let running = loader_on(bus, WEB1, |server| server.audit(trail).limits(limits)).await;
    let other = raw(&server, "u-operator").await;
    let fails = serde_json::to_vec(&apply(json!({ "fail": 1 }))).unwrap();
    let flood = Flood::start::<loader::Apply>(other, "u-operator", fails);
    tokio::time::sleep(Duration::from_millis(800)).await;
    let admin = connect(&server, "u-admin").await;
    admin.call::<loader::Apply>(&web1(), &apply(json!({}))).await.expect("another caller's");
    let sent = flood.end().await;
    let begun = Instant::now();
    let operator = connect(&server, "u-operator").await;
    while let Err(error) = operator.call::<loader::Apply>(&web1(), &apply(json!({}))).await {
        assert!(error.to_api_error().retryable, "{error}");
        assert!(begun.elapsed() < LIMIT, "the budget does not grow again: {error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    running.stop().await;
    let all = records(dir.path());
    let kept = all.iter().filter(|one| one.kind == Kind::Begun).count();
    // Those that were begun at once, and two a second.
    assert!(kept < 20 + 16 + 64, "{kept} of {sent} requests were recorded one by one");
    assert!(sent > 200, "only {sent} requests are no flood");
}
