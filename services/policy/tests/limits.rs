//! What one principal may use of the bus, tried by clients that are not ours against a real server that
//! asks real policy services: above the limit it is cut, and nobody else is.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod stack;

use async_nats::{Client, ConnectOptions, Event};
use canopy_api::{
    endpoint::policy,
    permission::Role,
    subject::Target,
    wire::{AuditRequest, ConnectCut, ConnectRefused},
};
use canopy_bus::{Bus, Events, system};
use futures::{StreamExt as _, future::join_all};
use serde_json::{Value, json};
use stack::{Credentials, LIMIT, Stack};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};

/// A stack with these limits, its administrator and what the administrator hears.
struct Scene {
    stack: Stack,
    admin: Bus,
    system: Bus,
    cut: Events,
    refused: Events,
}

impl Scene {
    async fn new(limits: Value) -> Self {
        let mut stack = Stack::without_policy();
        stack.change_auth = Some(Box::new(move |auth| auth["limits"] = limits.clone()));
        stack.start_policy();
        stack.bootstrap("u-admin");
        let admin = stack.connect("u-admin").await;
        for (name, role) in [("u-viewer", Role::Viewer), ("u-operator", Role::Operator)] {
            stack.issue(&admin, name, role).await;
        }
        let hear = async |what: &str| {
            let subject = format!("canopy.v1.security.policy.connect.{what}._");
            admin.subscribe_events(&subject).await.unwrap()
        };
        let (cut, refused) = (hear("cut").await, hear("refused").await);
        admin.flush().await;
        let system = stack.connect("s-policy-system").await;
        Self { stack, admin, system, cut, refused }
    }

    async fn cut(&mut self) -> ConnectCut {
        let event = timeout(LIMIT, self.cut.next()).await.expect("nobody was cut").unwrap();
        event.decode().unwrap()
    }

    async fn refusal(&mut self) -> ConnectRefused {
        let event = timeout(LIMIT, self.refused.next()).await.expect("nobody was refused").unwrap();
        event.decode().unwrap()
    }

    /// The connections of a principal, by their subscriptions.
    async fn subscriptions(&self, principal: &str) -> Vec<u64> {
        let found = system::connections(&self.system, None, LIMIT).await.unwrap();
        let of = |user: &str| user.split('/').next() == Some(principal);
        let mut all: Vec<u64> =
            found.iter().filter(|one| of(&one.user)).map(|one| one.usage.subscriptions).collect();
        all.sort_unstable();
        all
    }

    async fn wait_subscriptions(&self, principal: &str, wanted: &[u64]) {
        let until = Instant::now() + LIMIT;
        let mut found = self.subscriptions(principal).await;
        while found != wanted && Instant::now() < until {
            sleep(Duration::from_millis(50)).await;
            found = self.subscriptions(principal).await;
        }
        assert_eq!(found, wanted, "connections of {principal}, by their subscriptions");
    }
}

/// A client that does not come back by itself, and whether it was ended.
async fn client(stack: &Stack, with: &Credentials) -> Result<(Client, Arc<AtomicBool>), String> {
    let gone = Arc::new(AtomicBool::new(false));
    let tell = Arc::clone(&gone);
    // The library asks for the delay before the first attempt as well.
    let first = AtomicBool::new(true);
    let delay =
        move |_| if first.swap(false, Ordering::SeqCst) { Duration::ZERO } else { 10 * LIMIT };
    let change = |options: ConnectOptions| {
        options.reconnect_delay_callback(delay).event_callback(move |event| {
            if matches!(event, Event::Disconnected | Event::Closed) {
                tell.store(true, Ordering::SeqCst);
            }
            async {}
        })
    };
    Ok((stack.attempt_from(with, change).await?, gone))
}

/// Subscribes so many times to its own inbox, as fast as it goes.
async fn subscribe(client: &Client, me: &str, count: u32) {
    for number in 0..count {
        let mut one = client.subscribe(format!("_INBOX.{me}.x.{number}")).await.unwrap();
        tokio::spawn(async move { while one.next().await.is_some() {} });
    }
    let _ = timeout(Duration::from_secs(2), client.flush()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_above_the_limit_are_refused() {
    let mut scene = Scene::new(json!({ "people": { "connections": 8 } })).await;
    let viewer = scene.stack.credentials("u-viewer");
    let attempts = join_all((0..40).map(|_| client(&scene.stack, &viewer))).await;
    let granted: Vec<_> = attempts.into_iter().filter_map(Result::ok).collect();
    assert_eq!(granted.len(), 8);
    let refused = scene.refusal().await;
    assert_eq!(
        (refused.code.as_str(), &refused.names[0][..]),
        ("too_many_connections", "u-viewer")
    );
    // Nobody else is refused, and those who are in stay.
    scene.stack.connect("u-operator").await;
    assert!(granted.iter().all(|(_, gone)| !gone.load(Ordering::SeqCst)));
    // Who goes makes room.
    drop(granted);
    let until = Instant::now() + LIMIT;
    while scene.stack.attempt(&viewer).await.is_err() {
        assert!(Instant::now() < until, "there is no room although all have gone");
        sleep(Duration::from_millis(50)).await;
    }
}

/// 20,000 subscriptions of one connection cost the server 700 MB.
#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_of_one_principal_are_bounded() {
    let limits = json!({ "people": { "subscriptions": 700 }, "back_off_seconds": 3 });
    let mut scene = Scene::new(limits).await;
    // Two instances: what one ends, the other refuses.
    scene.stack.start_policy();
    let viewer = scene.stack.credentials("u-viewer");
    let operator = scene.stack.connect("u-operator").await;
    let (small, small_gone) = client(&scene.stack, &viewer).await.unwrap();
    subscribe(&small, "u-viewer", 3).await;
    let (first, first_gone) = client(&scene.stack, &viewer).await.unwrap();
    subscribe(&first, "u-viewer", 20_000).await;
    // The server takes so many of one connection and leaves it alone.
    scene.wait_subscriptions("u-viewer", &[3, 512]).await;
    assert!(!first_gone.load(Ordering::SeqCst));

    let (second, second_gone) = client(&scene.stack, &viewer).await.unwrap();
    subscribe(&second, "u-viewer", 500).await;
    let cut = scene.cut().await;
    assert_eq!((cut.principal.as_str(), &cut.code[..]), ("u-viewer", "subscriptions"), "{cut:?}");
    assert_eq!((cut.connections, cut.times, cut.refused_for_ms), (1, 1, 3000), "{cut:?}");
    assert_eq!(cut.addresses, ["127.0.0.1"]);
    assert!(cut.reason.contains("700"), "{cut:?}");
    // The worst of them is ended, and nobody else.
    scene.wait_subscriptions("u-viewer", &[3, 500]).await;
    assert!(first_gone.load(Ordering::SeqCst));
    assert!(!small_gone.load(Ordering::SeqCst) && !second_gone.load(Ordering::SeqCst));
    assert_eq!(operator.statistics().connects, 1);

    for _ in 0..6 {
        assert!(scene.stack.attempt(&viewer).await.is_err(), "let in during the back-off");
    }
    assert_eq!(scene.refusal().await.code, "back_off");
    scene.stack.connect("u-operator").await;
    let until = Instant::now() + LIMIT;
    while scene.stack.attempt(&viewer).await.is_err() {
        assert!(Instant::now() < until, "still refused after the back-off");
        sleep(Duration::from_millis(100)).await;
    }
    let metrics = scene.stack.policy.iter().map(|policy| policy.get("/metrics").unwrap().1);
    let counted = "canopy_policy_connections_cut_total{limit=\"subscriptions\"} 1";
    assert!(metrics.into_iter().any(|text| text.contains(counted)));
    let until = Instant::now() + LIMIT;
    loop {
        let request = AuditRequest::default();
        let reply = scene.admin.call::<policy::Audit>(&Target::Central, &request).await.unwrap();
        let recorded = reply.records.iter().any(|record| {
            record.line.contains("\"verb\":\"cut\"") && record.line.contains("u-viewer")
        });
        if recorded {
            break;
        }
        assert!(Instant::now() < until, "it is not in the audit trail");
        sleep(Duration::from_millis(100)).await;
    }
}

/// A client that asks for more than it reads has the server hold it.
#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_are_cut() {
    let mut scene = Scene::new(json!({ "people": { "pending_bytes": 2_000_000 } })).await;
    let viewer = scene.stack.credentials("u-viewer");
    let (sender, sender_gone) = client(&scene.stack, &viewer).await.unwrap();
    let operator = scene.stack.connect("u-operator").await;
    let (tell, reading) = std::sync::mpsc::channel();
    let (stack, with, cuts) = (&scene.stack, &viewer, &mut scene.cut);
    std::thread::scope(|scope| {
        // A runtime that does nothing more once it has subscribed reads nothing more.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let reader = scope.spawn(move || {
            let (_client, _messages, gone) = runtime.block_on(async {
                let (client, gone) = client(stack, with).await.unwrap();
                let messages = client.subscribe("_INBOX.u-viewer.u-viewer.x").await.unwrap();
                client.flush().await.unwrap();
                (client, messages, gone)
            });
            tell.send(()).unwrap();
            let until = Instant::now() + Duration::from_secs(4);
            while Instant::now() < until {
                std::thread::sleep(Duration::from_millis(50));
            }
            // It was ended while it slept, by policy: the server alone waits 5 s.
            runtime.block_on(async {
                let until = Instant::now() + LIMIT;
                while !gone.load(Ordering::SeqCst) && Instant::now() < until {
                    sleep(Duration::from_millis(10)).await;
                }
            });
            gone.load(Ordering::SeqCst)
        });
        reading.recv().unwrap();
        let send = async {
            for _ in 0..24 {
                let megabyte = vec![b'x'; 1_000_000];
                sender.publish("_INBOX.u-viewer.u-viewer.x", megabyte.into()).await.unwrap();
            }
            sender.flush().await.unwrap();
            cuts.next().await.unwrap().decode::<ConnectCut>().unwrap()
        };
        let runtime = tokio::runtime::Handle::current();
        let cut = tokio::task::block_in_place(|| runtime.block_on(timeout(LIMIT, send)));
        let cut = cut.expect("nobody was cut");
        assert_eq!((cut.principal.as_str(), &cut.code[..]), ("u-viewer", "pending_bytes"));
        assert_eq!(cut.connections, 1, "{cut:?}");
        assert!(reader.join().unwrap(), "the slow reader is still connected");
    });
    assert!(!sender_gone.load(Ordering::SeqCst), "the connection that reads was cut");
    assert_eq!(operator.statistics().connects, 1);
}

/// One host's daemon sends large messages without end.
#[tokio::test(flavor = "multi_thread")]
async fn floods_of_bytes_are_cut() {
    let mut scene = Scene::new(json!({ "hosts": { "bytes_per_second": 4_000_000 } })).await;
    let other = scene.stack.connect("h-web2-loader").await;
    let (flood, gone) =
        client(&scene.stack, &scene.stack.credentials("h-web1-loader")).await.unwrap();
    let megabyte = bytes::Bytes::from(vec![b'x'; 1_000_000]);
    let until = Instant::now() + LIMIT;
    while !gone.load(Ordering::SeqCst) && Instant::now() < until {
        let subject = "_INBOX.u-viewer.h-web1-loader.x";
        let sent = timeout(Duration::from_secs(1), flood.publish(subject, megabyte.clone()));
        let _ = sent.await;
        sleep(Duration::from_millis(40)).await;
    }
    let cut = scene.cut().await;
    assert_eq!((cut.principal.as_str(), &cut.code[..]), ("h-web1-loader", "bytes_per_second"));
    assert_eq!(cut.connections, 1, "{cut:?}");
    assert_eq!(other.statistics().connects, 1);
}

/// The same in many short connections, none of which is there when policy looks.
#[tokio::test(flavor = "multi_thread")]
async fn floods_of_short_connections_are_cut() {
    let mut scene = Scene::new(json!({ "hosts": { "bytes_per_second": 4_000_000 } })).await;
    let host = scene.stack.credentials("h-web1-loader");
    let megabyte = bytes::Bytes::from(vec![b'x'; 1_000_000]);
    let begun = Instant::now();
    let cut = loop {
        if let Ok((client, _)) = client(&scene.stack, &host).await {
            for _ in 0..4 {
                let subject = "_INBOX.u-viewer.h-web1-loader.x";
                client.publish(subject, megabyte.clone()).await.unwrap();
            }
            let _ = timeout(Duration::from_secs(2), client.flush()).await;
        }
        if let Ok(event) = timeout(Duration::from_millis(200), scene.cut.next()).await {
            break event.unwrap().decode::<ConnectCut>().unwrap();
        }
        assert!(begun.elapsed() < LIMIT, "nobody was cut");
    };
    assert_eq!((cut.principal.as_str(), &cut.code[..]), ("h-web1-loader", "bytes_per_second"));
    assert!(scene.stack.attempt(&host).await.is_err(), "let in during the back-off");
    assert_eq!(scene.refusal().await.code, "back_off");
}

/// One person sends small requests without end: cut within seconds, and somebody else's are answered.
#[tokio::test(flavor = "multi_thread")]
async fn floods_of_messages_are_cut() {
    let mut scene = Scene::new(json!({})).await;
    let operator = scene.stack.connect("u-operator").await;
    let (flood, gone) = client(&scene.stack, &scene.stack.credentials("u-viewer")).await.unwrap();
    let until = Instant::now() + LIMIT;
    while !gone.load(Ordering::SeqCst) && Instant::now() < until {
        for _ in 0..100 {
            let _ = flood.publish("_INBOX.u-viewer.u-viewer.x", "x".into()).await;
        }
        let _ = timeout(Duration::from_secs(1), flood.flush()).await;
        sleep(Duration::from_millis(1)).await;
    }
    let cut = scene.cut().await;
    assert_eq!((cut.principal.as_str(), &cut.code[..]), ("u-viewer", "messages_per_second"));
    assert_eq!(cut.connections, 1, "{cut:?}");
    assert_eq!(operator.statistics().connects, 1);
}

/// One person connects and goes again without end.
#[tokio::test(flavor = "multi_thread")]
async fn loops_of_connects_are_refused() {
    let mut scene = Scene::new(json!({ "people": { "connects_per_second": 2 } })).await;
    let viewer = scene.stack.credentials("u-viewer");
    let begun = Instant::now();
    let (mut tried, mut granted) = (0_u64, 0_u64);
    while begun.elapsed() < Duration::from_secs(3) {
        granted += u64::from(scene.stack.attempt(&viewer).await.is_ok());
        tried += 1;
    }
    let allowed = 4 + 2 * begun.elapsed().as_secs() + 2;
    assert!(granted <= allowed, "{granted} of {tried}");
    assert!(granted >= 4, "{granted} of {tried}");
    let refusal = scene.refusal().await;
    assert_eq!((refusal.code.as_str(), &refusal.names[0][..]), ("too_many_connects", "u-viewer"));
    // Somebody else is let in.
    scene.stack.connect("u-operator").await;
}
