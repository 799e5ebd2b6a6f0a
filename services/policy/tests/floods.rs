//! Floods of somebody with a valid certificate: admission of other hosts and revocations go on meanwhile.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod stack;

use async_nats::HeaderMap;
use canopy_api::{
    endpoint::{Endpoint, policy},
    permission::Role,
    subject::{self, Target},
    wire::{
        AdmissionItem, AdmissionVerb, AdmitRequest,
        tokens::{TokenListRequest, TokenRegenerateRequest},
    },
};
use canopy_bus::{Bus, Link};
use canopy_test_support::nats::private_file;
use stack::{LIMIT, Stack};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// A flood takes a core: one at a time.
static FLOODING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Sends thousands of requests a second on a thread of its own, without waiting for answers.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU32>,
    thread: std::thread::JoinHandle<()>,
}

impl Flood {
    async fn start<E: Endpoint>(stack: &Stack, principal: &str, request: &E::Request) -> Self {
        let client = stack.attempt(&stack.credentials(principal)).await.unwrap();
        let subject = subject::request(E::SPEC, &Target::Central, &principal.parse().unwrap());
        let payload = serde_json::to_vec(request).unwrap();
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (ended, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let principal = principal.to_owned();
        let work = async move {
            let mut headers = HeaderMap::new();
            headers.insert("Content-Type", "application/json");
            while !ended.load(Ordering::Relaxed) {
                let n = count.fetch_add(1, Ordering::Relaxed);
                let reply = format!("_INBOX.{principal}.s-policy.flood{n}");
                let (subject, headers) = (subject.clone(), headers.clone());
                let sent = client.publish_with_reply_and_headers(
                    subject,
                    reply,
                    headers,
                    payload.clone().into(),
                );
                sent.await.unwrap();
                if n % 64 == 0 {
                    client.flush().await.unwrap();
                    // Everything here shares a small machine; `bench attack` leaves this out.
                    tokio::time::sleep(Duration::from_millis(15)).await;
                }
            }
        };
        let runtime = tokio::runtime::Handle::current();
        let thread = std::thread::spawn(move || runtime.block_on(work));
        Self { stop, sent, thread }
    }

    fn end(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.sent.load(Ordering::Relaxed)
    }
}

fn admit() -> AdmitRequest {
    let items = vec![AdmissionItem::new(AdmissionVerb::Drain)];
    AdmitRequest { principal: "u-operator".parse().unwrap(), items, dry_run: true }
}

/// Another host asks for admission again and again: how many were answered of how many.
async fn admitted(loader: &Bus) -> (usize, usize, Duration) {
    let begun = Instant::now();
    let (mut answered, mut asked, mut worst) = (0, 0, Duration::ZERO);
    while begun.elapsed() < Duration::from_secs(1) {
        asked += 1;
        let at = Instant::now();
        let reply = loader.call::<policy::Admit>(&Target::Central, &admit()).await;
        answered += usize::from(reply.is_ok());
        worst = worst.max(at.elapsed());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    (answered, asked, worst)
}

/// From asking for it until the connection is gone.
async fn revoked(stack: &Stack, admin: &Bus) -> Duration {
    let live = stack.connect("u-publisher").await;
    let mut link = live.watch_link();
    let principal = "u-publisher".parse().unwrap();
    let request = TokenRegenerateRequest { principal, binding: None, expires_in: None };
    let begun = Instant::now();
    let new = admin.call::<policy::TokenRegenerate>(&Target::Central, &request).await.unwrap();
    let cut = link.wait_for(|link| *link != Link::Connected);
    tokio::time::timeout(LIMIT, cut).await.unwrap().unwrap();
    let took = begun.elapsed();
    private_file(&stack.path("u-publisher.token"), &new.token.0).unwrap();
    took
}

async fn survives<E: Endpoint>(attacker: &str, request: E::Request) {
    let _alone = FLOODING.lock().await;
    let stack = Stack::start();
    let admin = stack.connect("u-admin").await;
    for (name, role) in [("u-viewer", Role::Viewer), ("u-publisher", Role::Publisher)] {
        stack.issue(&admin, name, role).await;
    }
    let loader = stack.connect("h-web1-loader").await;
    loader.call::<policy::Admit>(&Target::Central, &admit()).await.unwrap();
    let flood = Flood::start::<E>(&stack, attacker, &request).await;
    let (answered, asked, worst) = admitted(&loader).await;
    let took = revoked(&stack, &admin).await;
    let sent = flood.end();
    assert!(sent > 200, "only {sent} requests are no flood");
    assert!(
        answered * 100 >= asked * 95,
        "{answered} of {asked} were answered, the slowest in {worst:?}"
    );
    assert!(took < Duration::from_secs(2), "revoked after {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_viewers_flood_of_reads_stops_no_admission() {
    survives::<policy::TokenList>("u-viewer", TokenListRequest::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_hosts_flood_of_admit_stops_no_other_hosts() {
    let items = vec![AdmissionItem::new(AdmissionVerb::Drain); 100];
    let request = AdmitRequest { items, ..admit() };
    survives::<policy::Admit>("h-web2-loader", request).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_hosts_flood_of_audit_records_stops_no_other_hosts() {
    let chain = "00000000000000aa".to_owned();
    let request = canopy_api::wire::AuditAppendRequest { chain, after: None, lines: Vec::new() };
    survives::<policy::AuditAppend>("h-web2-loader", request).await;
}
