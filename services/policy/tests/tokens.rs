//! Tokens on a real bus: issued, used, regenerated, revoked, by several instances.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod stack;

use canopy_api::{
    Code,
    endpoint::policy,
    permission::Role,
    subject::Target,
    wire::{
        Empty,
        tokens::{
            TokenIssueRequest, TokenListRequest, TokenRegenerateRequest, TokenRevokeRequest,
            TokenState,
        },
    },
};
use canopy_bus::{
    Bus, BusConfig, BusError, CallError, CallOptions, Link, Refusal,
    data::{Bucket, ensure_replicas},
};
use canopy_test_support::nats::private_file;
use serde_json::json;
use stack::{LIMIT, Stack};
use std::time::{Duration, Instant};
use tokio::time::timeout;

#[tokio::test]
async fn a_person_connects_with_certificate_and_token() {
    let stack = Stack::start();
    let admin = stack.connect("u-admin").await;
    let reply = stack.issue(&admin, "u-viewer", Role::Viewer).await;
    assert_eq!((reply.record.generation, reply.record.state), (1, TokenState::Active));
    assert_eq!(reply.record.issued_by, "u-admin");
    let viewer = stack.connect("u-viewer").await;
    let health = viewer.call::<policy::Health>(&Target::Central, &Empty {}).await.unwrap();
    assert!(health.ready, "{health:?}");

    // What a viewer may not, a viewer cannot.
    let request = TokenRevokeRequest { principal: "u-admin".parse().unwrap() };
    let refused = viewer.call::<policy::TokenRevoke>(&Target::Central, &request).await;
    assert!(
        refused.as_ref().is_err_and(|error| error.to_api_error().code == Code::Denied),
        "{refused:?}"
    );

    let list = TokenListRequest::default();
    let tokens = viewer.call::<policy::TokenList>(&Target::Central, &list).await.unwrap().tokens;
    let who: Vec<_> = tokens.iter().map(|one| (one.principal.as_str(), one.role)).collect();
    assert_eq!(who, [("u-admin", Role::Admin), ("u-viewer", Role::Viewer)]);
    assert!(!format!("{reply:?}").contains(&reply.token.0));
}

#[tokio::test]
async fn a_daemon_connects_with_its_certificate_alone() {
    let stack = Stack::start();
    for name in ["h-web1-loader", "h-web2-enforcer", "s-registry", "s-cert-monitor"] {
        let bus = stack.connect(name).await;
        bus.close().await;
    }
}

/// Regenerating ends the old token for new connections at once, and its live ones within a second.
#[tokio::test]
async fn a_regenerated_token_ends_the_old_one_and_its_connections() {
    let mut stack = Stack::start();
    // Two instances: whichever answers, the other agrees.
    stack.start_policy();
    let admin = stack.connect("u-admin").await;
    stack.issue(&admin, "u-operator", Role::Operator).await;
    let old = stack.credentials("u-operator");
    let kept = std::fs::read_to_string(old.token.as_ref().unwrap()).unwrap();
    let old = stack.with_token(&old, "old", &kept);
    let live = stack.connect_with("u-operator", &old).await;
    let mut link = live.watch_link();

    let request = TokenRegenerateRequest {
        principal: "u-operator".parse().unwrap(),
        binding: None,
        expires_in: None,
    };
    let reply = admin.call::<policy::TokenRegenerate>(&Target::Central, &request).await.unwrap();
    let answered = Instant::now();
    assert_eq!(reply.record.generation, 2);
    for _ in 0..6 {
        let refused = stack.attempt(&old).await.unwrap_err();
        assert!(refused.contains("AuthorizationViolation"), "{refused}");
    }
    timeout(LIMIT, link.wait_for(|link| *link == Link::Disconnected)).await.unwrap().unwrap();
    println!("cut after {:?}", answered.elapsed());
    assert!(answered.elapsed() < Duration::from_secs(5));

    // The new one, bound as the old one was, lives on through all that follows.
    private_file(&stack.path("u-operator.token"), &reply.token.0).unwrap();
    let new = stack.connect("u-operator").await;
    let before = new.statistics().connects;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((new.link(), new.statistics().connects), (Link::Connected, before));
}

#[tokio::test]
async fn a_revoked_token_ends_until_another_is_issued() {
    let stack = Stack::start();
    let admin = stack.connect("u-admin").await;
    stack.issue(&admin, "u-viewer", Role::Viewer).await;
    let live = stack.connect("u-viewer").await;
    let mut link = live.watch_link();
    let revoke = TokenRevokeRequest { principal: "u-viewer".parse().unwrap() };
    let record = admin.call::<policy::TokenRevoke>(&Target::Central, &revoke).await.unwrap();
    assert_eq!(record.state, TokenState::Revoked);
    assert_eq!(record.revoked.unwrap().by, "u-admin");
    timeout(LIMIT, link.wait_for(|link| *link == Link::Disconnected)).await.unwrap().unwrap();
    stack.attempt(&stack.credentials("u-viewer")).await.unwrap_err();
    let regenerate = TokenRegenerateRequest {
        principal: "u-viewer".parse().unwrap(),
        binding: None,
        expires_in: None,
    };
    let refused =
        admin.call::<policy::TokenRegenerate>(&Target::Central, &regenerate).await.unwrap_err();
    assert_eq!(refused.to_api_error().code, Code::Conflict);
    let again = stack.issue(&admin, "u-viewer", Role::Operator).await;
    assert_eq!(again.record.generation, 2);
    stack.connect("u-viewer").await;
}

/// The look after the request, that after what the store tells, and that at all connections find the same.
#[tokio::test(flavor = "multi_thread")]
async fn an_ended_connection_is_counted_once() {
    let stack = Stack::start();
    let admin = stack.connect("u-admin").await;
    stack.issue(&admin, "u-viewer", Role::Viewer).await;
    let mut connected = Vec::new();
    for _ in 0..3 {
        connected.push(stack.connect("u-viewer").await);
    }
    let counted = || -> u64 {
        let (_, metrics) = stack.policy[0].get("/metrics").unwrap();
        let value = |line: &str| {
            Some(line.strip_prefix("canopy_policy_connections_ended_total ")?.parse().unwrap())
        };
        metrics.lines().find_map(value).unwrap_or(0)
    };
    assert_eq!(counted(), 0);
    let revoke = TokenRevokeRequest { principal: "u-viewer".parse().unwrap() };
    admin.call::<policy::TokenRevoke>(&Target::Central, &revoke).await.unwrap();
    for bus in &connected {
        let mut refusal = bus.watch_refusal();
        timeout(LIMIT, refusal.wait_for(Option::is_some)).await.unwrap().unwrap();
    }
    // Until well after the second of the looks that follow a change.
    let until = Instant::now() + Duration::from_secs(1);
    while counted() < 3 || Instant::now() < until {
        assert!(counted() <= 3, "{} counted of 3", counted());
        assert!(Instant::now() < until + LIMIT, "{} counted of 3", counted());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The server says "authorization violation" each time; what it means is told apart by who asks with what,
/// and by how long the server took. Who is refused comes back seldom.
#[tokio::test]
async fn refused_revoked_and_undecided_are_told_apart() {
    let mut stack = Stack::start();
    let admin = stack.connect("u-admin").await;
    stack.issue(&admin, "u-viewer", Role::Viewer).await;
    let live = stack.connect("u-viewer").await;
    let mut refusal = live.watch_refusal();
    let revoke = TokenRevokeRequest { principal: "u-viewer".parse().unwrap() };
    admin.call::<policy::TokenRevoke>(&Target::Central, &revoke).await.unwrap();
    let told = timeout(LIMIT, refusal.wait_for(Option::is_some)).await.unwrap().unwrap().clone();
    assert_eq!(told, Some(Refusal::TokenRevoked));
    let call = live.call_with::<policy::Health>(
        &Target::Central,
        &Empty {},
        CallOptions { timeout: Some(Duration::from_millis(300)), ..CallOptions::default() },
    );
    let error = call.await.unwrap_err();
    assert!(matches!(error, CallError::Refused { .. }), "{error}");
    let error = error.to_api_error();
    assert_eq!((error.code, error.retryable), (Code::Denied, false));

    let why = |mut config: BusConfig, who: &'static str, token: bool| async move {
        if !token {
            config.token = None;
        }
        let bus = Bus::connect(&config, who.parse().unwrap()).await.unwrap();
        match bus.wait_ready(Duration::from_secs(1)).await.unwrap_err() {
            BusError::Refused { refusal, .. } => refusal,
            other => panic!("{other}"),
        }
    };
    let viewer = || stack.config_of(&stack.credentials("u-viewer"));
    assert_eq!(why(viewer(), "u-viewer", true).await, Refusal::TokenRevoked);
    assert_eq!(why(viewer(), "u-viewer", false).await, Refusal::NoToken);
    let bound = stack.with_token(
        &stack.credentials("u-viewer"),
        "admins",
        &std::fs::read_to_string(stack.path("u-admin.token")).unwrap(),
    );
    let others = Refusal::OthersToken("u-admin".to_owned());
    assert_eq!(why(stack.config_of(&bound), "u-viewer", true).await, others);

    for process in stack.policy.drain(..) {
        process.end_by(nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    let registry = stack.config_of(&stack.credentials("s-registry"));
    let bus = Bus::connect(&registry, "s-registry".parse().unwrap()).await.unwrap();
    let error = bus.wait_ready(Duration::from_secs(4)).await.unwrap_err();
    assert!(matches!(&error, BusError::Refused { refusal: Refusal::Undecided, .. }), "{error}");
    assert_eq!(canopy_api::ApiError::from(error).code, Code::Unavailable);
}

/// The Python program of the reference page, on a bus that asks for a token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_program_of_the_page_connects_with_a_token() {
    let stack = Stack::start();
    let admin = stack.connect("u-admin").await;
    stack.issue(&admin, "u-viewer", Role::Viewer).await;
    let page = canopy_api::reference::subjects_markdown();
    let (_, rest) = page.split_once("```python\n").expect("a program on the page");
    let file = stack.path("call.py");
    std::fs::write(&file, rest.split_once("\n```").expect("its end").0).unwrap();
    let packages = canopy_test_support::python::packages(&["nats-py==2.16.0", "msgpack==1.2.4"]);
    let packages = packages.unwrap();
    let config = stack.config_of(&stack.credentials("u-viewer"));
    let call = |token: bool| {
        let mut command = std::process::Command::new("timeout");
        command.arg("20").arg("python3").arg(&file).arg(&config.url);
        command.args([&config.ca, &config.cert, &config.key]);
        command.args(["u-viewer", "policy.read.token-list", "_", "{}", "msgpack"]);
        command.args(config.token.iter().filter(|_| token));
        command.env("PYTHONPATH", &packages).env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap()
    };
    let output = call(true);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let reply: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(reply["tokens"][1]["principal"], "u-viewer");
    let output = call(false);
    let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
    assert!(!output.status.success() && said.contains("authorization violation"), "{said}");
}

/// `replicas` counts for what is stored already; what the servers cannot do is left as it is.
#[tokio::test]
async fn replicas_that_the_cluster_lacks_leave_the_bucket_usable() {
    let stack = Stack::start();
    let credentials = stack.credentials("s-policy-data");
    let bus = stack.connect_with("s-policy-data", &credentials).await;
    for replicas in [1, 3, 1] {
        let copies = ensure_replicas(&bus, "KV_canopy_tokens", replicas).await;
        assert_eq!(copies.is_ok(), replicas == 1, "{copies:?}");
        let bucket = Bucket::open(&bus, "canopy_tokens", replicas).await.unwrap();
        assert_eq!(bucket.keys().await.unwrap(), ["u-admin"]);
    }
}

#[tokio::test]
async fn a_token_that_was_never_sound_is_not_issued() {
    let stack = Stack::start();
    let admin = stack.connect("u-admin").await;
    let good = TokenIssueRequest {
        principal: "u-bob".parse().unwrap(),
        role: Role::Viewer,
        scope: None,
        binding: None,
        expires_in: None,
    };
    let cases = [
        (TokenIssueRequest { role: Role::Admin, ..good.clone() }, "binding"),
        (TokenIssueRequest { role: Role::Publisher, ..good.clone() }, "binding"),
        (
            TokenIssueRequest { principal: "s-registry".parse().unwrap(), ..good.clone() },
            "principal",
        ),
        (
            TokenIssueRequest { principal: "h-web1-loader".parse().unwrap(), ..good.clone() },
            "principal",
        ),
        (TokenIssueRequest { expires_in: Some(59), ..good.clone() }, "expires_in"),
        (TokenIssueRequest { expires_in: Some(u64::MAX), ..good.clone() }, "expires_in"),
    ];
    for (request, path) in cases {
        let refused = admin.call::<policy::TokenIssue>(&Target::Central, &request).await;
        let error = refused.unwrap_err().to_api_error();
        assert_eq!((error.code, error.path.as_str()), (Code::Invalid, path), "{error}");
    }
    admin.call::<policy::TokenIssue>(&Target::Central, &good).await.unwrap();
    let twice = admin.call::<policy::TokenIssue>(&Target::Central, &good).await;
    assert_eq!(twice.unwrap_err().to_api_error().code, Code::Conflict);
}

/// Many at once, through two instances: each change is one generation, none is lost.
#[tokio::test]
async fn changes_at_once_are_one_after_the_other() {
    let mut stack = Stack::start();
    stack.start_policy();
    let admin = stack.connect("u-admin").await;
    stack.issue(&admin, "u-viewer", Role::Viewer).await;
    let request = TokenRegenerateRequest {
        principal: "u-viewer".parse().unwrap(),
        binding: None,
        expires_in: None,
    };
    let all = futures::future::join_all(
        (0..6).map(|_| admin.call::<policy::TokenRegenerate>(&Target::Central, &request)),
    )
    .await;
    let mut generations: Vec<u64> =
        all.iter().flatten().map(|reply| reply.record.generation).collect();
    generations.sort_unstable();
    let expected: Vec<u64> = (2..).take(generations.len()).collect();
    assert_eq!(generations, expected, "{all:?}");
    // Only the last one is good.
    for reply in all.iter().flatten() {
        let credentials = stack.with_token(&stack.credentials("u-viewer"), "one", &reply.token.0);
        let connected = stack.attempt(&credentials).await.is_ok();
        assert_eq!(connected, reply.record.generation == *expected.last().unwrap());
    }
}

/// Another signing key is put before the old one, and the old one taken away, while the service runs.
#[tokio::test]
async fn signing_keys_are_rotated_without_a_restart() {
    let stack = Stack::start();
    let admin = stack.connect("u-admin").await;
    let old = stack.issue(&admin, "u-viewer", Role::Viewer).await.record.key;
    let made = stack::run(&["keys", "--output", stack.path("next").to_str().unwrap()]);
    assert!(made.status.success(), "{made:?}");
    let key = |dir: &str| json!({ "file": stack.path(dir).join("token-signing.pem") });
    let configured = |keys: serde_json::Value| {
        let mut config = stack.config_with_audit(0);
        config["auth"]["signing_keys"] = keys;
        stack.policy[0].configure(config).unwrap();
    };
    let current = "canopy_policy_configuration_current ";
    let wait = |state: &str| {
        let said = format!("{current}{state}");
        canopy_test_support::wait_for(LIMIT, "the configuration is looked at", || {
            let metrics = stack.policy[0].get("/metrics").unwrap().1;
            if metrics.lines().any(|line| line == said) { Ok(()) } else { Err(metrics) }
        })
        .unwrap();
    };

    // A key that is not there changes nothing.
    configured(json!([key("nowhere"), key("keys")]));
    wait("0");
    stack.attempt(&stack.credentials("u-viewer")).await.unwrap();

    // Both are believed, the new one signs.
    configured(json!([key("next"), key("keys")]));
    wait("1");
    stack.attempt(&stack.credentials("u-viewer")).await.unwrap();
    let new = stack.issue(&admin, "u-operator", Role::Operator).await.record.key;
    assert_ne!(new, old);
    stack.attempt(&stack.credentials("u-operator")).await.unwrap();

    // The old one is worth nothing any more.
    configured(json!([key("next")]));
    let until = Instant::now() + LIMIT;
    while stack.attempt(&stack.credentials("u-viewer")).await.is_ok() {
        assert!(Instant::now() < until, "the old key is still believed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stack.attempt(&stack.credentials("u-operator")).await.unwrap();
    // Nobody was cut off by it.
    assert_eq!((admin.link(), admin.statistics().connects), (Link::Connected, 1));
}
