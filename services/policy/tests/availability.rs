//! Several policy services, and what it costs when one dies, hangs, or all are away.

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
    wire::{
        Empty,
        tokens::{TokenListRequest, TokenRevokeRequest},
    },
};
use canopy_bus::Link;
use canopy_test_support::wait_for;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use stack::{LIMIT, Stack};
use std::{
    io::Write as _,
    net::TcpStream,
    time::{Duration, Instant},
};
use tokio::time::timeout;

/// One of two is killed: nobody is refused, and what one knew the other knows.
#[tokio::test]
async fn one_of_two_is_killed() {
    let mut stack = Stack::start();
    stack.start_policy();
    let admin = stack.connect("u-admin").await;
    stack.issue(&admin, "u-viewer", Role::Viewer).await;
    let first = stack.policy.remove(0);
    first.end_by(Signal::SIGKILL).unwrap();
    for _ in 0..10 {
        stack.attempt(&stack.credentials("u-viewer")).await.unwrap();
    }
    // What the dead one would have done, the other does.
    let live = stack.connect("u-viewer").await;
    let mut link = live.watch_link();
    let revoke = TokenRevokeRequest { principal: "u-viewer".parse().unwrap() };
    admin.call::<policy::TokenRevoke>(&Target::Central, &revoke).await.unwrap();
    timeout(LIMIT, link.wait_for(|link| *link == Link::Disconnected)).await.unwrap().unwrap();
}

/// One of two hangs: the server gives up on what it asked it after 2 s, and a client that tries again
/// comes through; within seconds the other has it disconnected, and nobody waits any more.
#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_hangs() {
    let mut stack = Stack::start();
    stack.start_policy();
    let hung = Pid::from_raw(stack.policy[0].pid().cast_signed());
    kill(hung, Signal::SIGSTOP).unwrap();
    let begun = Instant::now();
    for _ in 0..3 {
        let registry = stack.connect("s-registry").await;
        registry.close().await;
    }
    println!("3 connects took {:?}", begun.elapsed());
    let told = |stack: &Stack, what: &str| {
        let log = stack.policy[1].log();
        if log.contains(what) { Ok(()) } else { Err(log) }
    };
    wait_for(LIMIT, "the other notices", || told(&stack, "it is asked no more")).unwrap();
    // By itself the server would have taken 15 s; a machine that is busy takes a while, too.
    let noticed = begun.elapsed();
    println!("noticed after {noticed:?}");
    assert!(noticed < Duration::from_secs(14), "{noticed:?}");
    let credentials = stack.credentials("s-registry");
    for _ in 0..20 {
        stack.attempt(&credentials).await.unwrap();
    }
    // It goes on: connects again, and does not take the other for one that hangs.
    kill(hung, Signal::SIGCONT).unwrap();
    let other = stack.policy.remove(1);
    let bus = stack.connect("s-registry").await;
    stack.policy[0].wait_status(200).unwrap();
    assert!(!stack.policy[0].log().contains("it is asked no more"), "{}", stack.policy[0].log());
    other.end_by(Signal::SIGKILL).unwrap();
    wait_for(LIMIT, "the one that hung answers", || {
        let runtime = tokio::runtime::Handle::current();
        let attempt = stack.attempt(&credentials);
        tokio::task::block_in_place(|| runtime.block_on(attempt)).map(drop)
    })
    .unwrap();
    bus.close().await;
}

/// All are away: who is connected goes on, nobody new connects, not even with everything good; when
/// one is back they do, by themselves.
#[tokio::test]
async fn all_are_away() {
    let mut stack = Stack::start();
    let admin = stack.connect("u-admin").await;
    stack.issue(&admin, "u-viewer", Role::Viewer).await;
    let loader = stack.connect("h-web1-loader").await;
    for process in stack.policy.drain(..) {
        process.end_by(Signal::SIGKILL).unwrap();
    }
    // An echo through the server: connected, and carrying messages.
    loader.wait_ready(LIMIT).await.unwrap();
    admin.wait_ready(LIMIT).await.unwrap();
    stack.attempt(&stack.credentials("u-viewer")).await.unwrap_err();
    stack.attempt(&stack.credentials("h-web2-loader")).await.unwrap_err();
    // It waits, as a service does.
    let waiting = canopy_bus::Bus::connect(
        &stack.config_of(&stack.credentials("h-web2-loader")),
        "h-web2-loader".parse().unwrap(),
    )
    .await
    .unwrap();
    stack.start_policy();
    waiting.wait_ready(LIMIT).await.unwrap();
    let list = TokenListRequest::default();
    let tokens = admin.call::<policy::TokenList>(&Target::Central, &list).await.unwrap().tokens;
    assert_eq!(tokens.len(), 2);
    loader.wait_ready(LIMIT).await.unwrap();
    assert_eq!(loader.statistics().connects, 1);
}

/// What was changed while this service was away is made true of connections when it is back.
#[tokio::test]
async fn connections_of_ended_tokens_are_found_at_the_start() {
    let mut stack = Stack::start();
    let admin = stack.connect("u-admin").await;
    let issued = stack.issue(&admin, "u-viewer", Role::Viewer).await;
    let live = stack.connect("u-viewer").await;
    for process in stack.policy.drain(..) {
        process.end_by(Signal::SIGKILL).unwrap();
    }
    // As another instance would have changed it, and died before it ended anything.
    let data = stack.connect("s-policy-data").await;
    let bucket = canopy_bus::data::Bucket::open(&data, "canopy_tokens", 1).await.unwrap();
    let stored = bucket.get::<serde_json::Value>("u-viewer").await.unwrap().unwrap();
    let mut changed = stored.value;
    changed["revoked"] = serde_json::json!([1_700_000_000, "u-admin"]);
    bucket.replace("u-viewer", &changed, stored.revision).await.unwrap();
    assert_eq!(live.link(), Link::Connected);
    let mut link = live.watch_link();
    stack.start_policy();
    timeout(LIMIT, link.wait_for(|link| *link == Link::Disconnected)).await.unwrap().unwrap();
    assert_eq!(issued.record.generation, 1);
}

/// Hundreds of connections that never say anything keep nobody else out.
#[tokio::test]
async fn connections_that_say_nothing_keep_nobody_out() {
    let stack = Stack::start();
    let address = stack.server.url().trim_start_matches("tls://").to_owned();
    let silent: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let slow: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut stream = TcpStream::connect(&address).unwrap();
            // The beginning of a handshake.
            stream.write_all(&[0x16, 0x03, 0x01]).unwrap();
            stream
        })
        .collect();
    let begun = Instant::now();
    let admin = stack.connect("u-admin").await;
    let health = admin.call::<policy::Health>(&Target::Central, &Empty {}).await.unwrap();
    assert!(health.ready);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    drop((silent, slow));
}

/// A CONNECT that is too long is refused by the server; the policy service is not asked.
#[tokio::test]
async fn a_token_longer_than_a_line_is_not_even_asked_about() {
    let stack = Stack::start();
    let admin = stack.credentials("u-admin");
    let long = stack.with_token(&admin, "long", &"a".repeat(20_000));
    let said = stack.attempt(&long).await.map(drop).unwrap_err();
    assert!(!said.contains("AuthorizationViolation"), "{said}");
    // One that fits the line, and no token: asked, and refused.
    let fits = stack.with_token(&admin, "fits", &"a".repeat(12_000));
    let said = stack.attempt(&fits).await.map(drop).unwrap_err();
    assert!(said.contains("AuthorizationViolation"), "{said}");
    let said = stack.policy[0].log();
    assert_eq!(said.matches("connection refused").count(), 1, "{said}");
    stack.connect("u-admin").await;
}

/// Nothing is in flight, so a service that is asked to end has nothing to wait for: neither with its bus
/// gone, just now or for a while, nor, but for a moment, with one that hangs.
#[tokio::test]
async fn policy_ends_at_once_without_its_bus() {
    for (signal, before) in [
        (Signal::SIGKILL, Duration::ZERO),
        // Longer than the pauses of what it does again and again.
        (Signal::SIGKILL, Duration::from_millis(1200)),
        (Signal::SIGSTOP, Duration::ZERO),
    ] {
        let mut stack = Stack::start();
        let admin = stack.connect("u-admin").await;
        stack.issue(&admin, "u-viewer", Role::Viewer).await;
        let server = Pid::from_raw(stack.server.pid().unwrap().cast_signed());
        if signal == Signal::SIGKILL {
            stack.server.kill();
        } else {
            kill(server, signal).unwrap();
        }
        let policy = stack.policy.remove(0);
        tokio::time::sleep(before).await;
        let limit = Duration::from_secs(if signal == Signal::SIGKILL { 1 } else { 3 });
        let ended = policy.end_within(limit);
        if signal == Signal::SIGSTOP {
            kill(server, Signal::SIGCONT).unwrap();
        }
        ended.unwrap_or_else(|error| panic!("{signal}, {before:?} before: {error:#}"));
    }
}
