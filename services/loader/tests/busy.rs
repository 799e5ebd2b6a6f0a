//! A policy service that is busy for a moment: the loader asks again within what its caller waits.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

use canopy_api::{
    ApiError, Code,
    endpoint::{Service, policy},
    error::{BUSY, RULES_UNUSABLE},
    wire::{AdmissionBasis, AdmissionDecision, AdmissionItem, AdmissionVerb, AdmitReply, Admitted},
};
use canopy_bus::{Bus, BusConfig, Caller, Notes, Server};
use canopy_loader::admission::{Admission, AdmissionMode};
use canopy_test_support::nats::NatsServer;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(30);

async fn connect(server: &NatsServer, principal: &str) -> Bus {
    let files = server.client(principal);
    let config = BusConfig::new(files.url, files.ca, files.cert, files.key);
    let bus = Bus::connect(&config, principal.parse().unwrap()).await.unwrap();
    bus.wait_ready(LIMIT).await.unwrap();
    bus
}

/// A policy service that refuses so many questions, and how often it was asked.
struct Policy {
    server: NatsServer,
    asked: Arc<AtomicU32>,
    admission: Admission,
    stop: CancellationToken,
}

impl Policy {
    async fn start(refuses: u32, reason: &'static str) -> Self {
        let server = NatsServer::start(&["web1"]).unwrap();
        let bus = connect(&server, "s-policy").await;
        let (asked, stop) = (Arc::new(AtomicU32::new(0)), CancellationToken::new());
        let count = Arc::clone(&asked);
        let (tell, mut ready) = tokio::sync::watch::channel(false);
        let service = Server::new(bus, Service::Policy, None)
            .on_ready(move |ok, _| {
                let _ = tell.send_replace(ok);
            })
            .handle::<policy::Admit, _, _>(move |_, request| {
                let number = count.fetch_add(1, Ordering::SeqCst);
                async move {
                    if number < refuses {
                        return Err(ApiError::new(Code::Unavailable, "not now").reason(reason));
                    }
                    let allowed =
                        AdmissionDecision { allowed: true, rule: None, reason: String::new() };
                    let decisions = vec![allowed; request.items.len()];
                    Ok(AdmitReply { basis: AdmissionBasis::Rules, decisions })
                }
            });
        tokio::spawn(service.serve(stop.clone()));
        tokio::time::timeout(LIMIT, ready.wait_for(|ready| *ready)).await.unwrap().unwrap();
        let admission =
            Admission::new(AdmissionMode::Required, connect(&server, "h-web1-loader").await);
        Self { server, asked, admission, stop }
    }

    async fn ask(&self, within: Duration) -> Result<Admitted, ApiError> {
        let caller = Caller {
            principal: "u-operator".parse().unwrap(),
            request_id: None,
            until: Some(Instant::now() + within),
            notes: Notes::default(),
        };
        let items = vec![AdmissionItem::new(AdmissionVerb::Drain)];
        self.admission.ask(&caller, items, false).await
    }

    fn end(self) -> u32 {
        self.stop.cancel();
        drop(self.server);
        self.asked.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn a_busy_policy_is_asked_again() {
    let policy = Policy::start(5, BUSY).await;
    policy.ask(Duration::from_secs(30)).await.unwrap();
    assert_eq!(policy.end(), 6);
}

#[tokio::test]
async fn a_busy_policy_is_asked_no_longer_than_the_caller_waits() {
    let policy = Policy::start(u32::MAX, BUSY).await;
    let begun = Instant::now();
    let refused = policy.ask(Duration::from_millis(2500)).await.unwrap_err();
    assert_eq!((refused.code, refused.retryable), (Code::Unavailable, true));
    assert!(begun.elapsed() < Duration::from_millis(2500), "{:?}", begun.elapsed());
    let asked = policy.end();
    assert!((3..60).contains(&asked), "asked {asked} times");
}

#[tokio::test]
async fn unusable_rules_are_asked_about_once() {
    let policy = Policy::start(u32::MAX, RULES_UNUSABLE).await;
    policy.ask(Duration::from_secs(30)).await.unwrap_err();
    assert_eq!(policy.end(), 1);
}
