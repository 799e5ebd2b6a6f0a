//! Requests that are lost on the way, and what their repeats do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use async_nats::{HeaderMap, Message, Subscriber};
use canopy_api::{
    Code, HostId,
    endpoint::{Service, loader, registry},
    subject::Target,
    wire::{GetRequest, ResetIndexReply, ResetRepositoryRequest},
};
use canopy_bus::{CallError, CallOptions, Server};
use canopy_test_support::nats::NatsServer;
use common::{LIMIT, Raw, Running, apply, connect, get_reply, loader, raw};
use futures::StreamExt as _;
use serde_json::json;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::time::timeout;

fn web1() -> Target {
    Target::Host("web1".parse::<HostId>().unwrap())
}

/// A service in the tests' hands: it gets the requests, and answers what a test wants answered.
async fn requests(server: &NatsServer, verb: &str) -> (Raw, Subscriber) {
    let service = raw(server, "h-web1-loader").await;
    let requests = service.client.subscribe(format!("canopy.v1.rpc.loader.{verb}.web1.*")).await;
    // Once this has come back the server knows of the subscription.
    let echo = "_INBOX.h-web1-loader.h-web1-loader.x";
    service.ask(echo, echo, HeaderMap::new(), "").await.expect("an echo");
    (service, requests.unwrap())
}

async fn next(requests: &mut Subscriber) -> Message {
    timeout(LIMIT, requests.next()).await.expect("a request in time").unwrap()
}

fn value<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    message.headers.as_ref()?.get(name).map(async_nats::HeaderValue::as_str)
}

async fn answer(service: &Raw, request: &Message, payload: Vec<u8>) {
    let reply = request.reply.clone().unwrap();
    service.client.publish(reply, payload.into()).await.unwrap();
}

#[tokio::test]
async fn a_lost_read_is_sent_again_to_the_same_inbox() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let (service, mut requests) = requests(&server, "read.get").await;
    let viewer = connect(&server, "u-viewer").await;
    let call =
        tokio::spawn(
            async move { viewer.call::<loader::Get>(&web1(), &GetRequest::default()).await },
        );
    let lost = next(&mut requests).await;
    let begun = Instant::now();
    let repeat = next(&mut requests).await;
    assert!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!((&lost.reply, &lost.payload), (&repeat.reply, &repeat.payload));
    assert_eq!(value(&lost, "Canopy-Attempt"), None);
    assert_eq!(value(&repeat, "Canopy-Attempt"), Some("2"));
    assert_eq!(
        value(&lost, "Canopy-Deadline").is_some(),
        value(&repeat, "Canopy-Deadline").is_some()
    );
    let reply = rmp_serde::to_vec_named(&get_reply(&"web1".parse().unwrap())).unwrap();
    answer(&service, &repeat, reply.clone()).await;
    assert_eq!(call.await.unwrap().unwrap().generation, 7);
    // An answer that nobody waits for any more does no harm.
    answer(&service, &repeat, reply).await;
}

#[tokio::test]
async fn a_lost_change_is_sent_again_with_its_request_id() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let (_service, mut requests) = requests(&server, "write.apply").await;
    let operator = connect(&server, "u-operator").await;
    let timeout = Some(Duration::from_secs(3));
    let options = CallOptions { timeout, ..CallOptions::default() };
    let begun = Instant::now();
    let call = operator.call_with::<loader::Apply>(&web1(), &apply(json!({})), options).await;
    let error = call.unwrap_err();
    assert!(matches!(error, CallError::Timeout { request_id: Some(_), .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let (first, second) = (next(&mut requests).await, next(&mut requests).await);
    assert_eq!(value(&second, "Canopy-Attempt"), Some("2"));
    assert!(value(&first, "Canopy-Request-Id").is_some());
    assert_eq!(value(&first, "Canopy-Request-Id"), value(&second, "Canopy-Request-Id"));
    let left = |message| value(message, "Canopy-Timeout").unwrap().parse::<u64>().unwrap();
    assert!(left(&second) < left(&first) && left(&first) <= 3000, "{first:?} {second:?}");
}

/// A caller with little time asks again by itself.
#[tokio::test]
async fn a_short_wait_sends_one_request() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let (_service, mut requests) = requests(&server, "read.get").await;
    let viewer = connect(&server, "u-viewer").await;
    let timeout = Some(Duration::from_millis(900));
    let options = CallOptions { timeout, ..CallOptions::default() };
    let call = viewer.call_with::<loader::Get>(&web1(), &GetRequest::default(), options).await;
    assert!(matches!(call, Err(CallError::Timeout { .. })), "{call:?}");
    next(&mut requests).await;
    let more = tokio::time::timeout(Duration::from_millis(100), requests.next()).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test]
async fn slow_work_is_done_once_however_often_it_is_repeated() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let bus = connect(&server, "h-web1-loader").await;
    let reads = Arc::new(AtomicU32::new(0));
    let changes = Arc::new(AtomicU32::new(0));
    let (count_reads, count_changes) = (Arc::clone(&reads), Arc::clone(&changes));
    let service = Server::new(bus.clone(), Service::Loader, Some("web1".parse().unwrap()))
        .handle::<loader::Get, _, _>(move |_, _| {
            count_reads.fetch_add(1, Ordering::SeqCst);
            async {
                tokio::time::sleep(Duration::from_millis(3500)).await;
                Ok(get_reply(&"web1".parse().unwrap()))
            }
        })
        .handle::<loader::Apply, _, _>(move |_, _| {
            count_changes.fetch_add(1, Ordering::SeqCst);
            async {
                tokio::time::sleep(Duration::from_millis(3500)).await;
                Err(canopy_api::ApiError::new(Code::Conflict, "done by the handler"))
            }
        });
    let running = Running::start(bus, service).wait_ready().await;
    let operator = connect(&server, "u-operator").await;
    // Another listener sees that requests are repeated.
    let system = raw(&server, "h-web1-loader").await;
    let mut repeats = system.client.subscribe("canopy.v1.rpc.loader.*.*.web1.*").await.unwrap();
    let echo = "_INBOX.h-web1-loader.h-web1-loader.x";
    system.ask(echo, echo, HeaderMap::new(), "").await.expect("an echo");
    let (get, document) = (GetRequest::default(), apply(json!({})));
    let target = web1();
    let (read, change) = tokio::join!(
        operator.call::<loader::Get>(&target, &get),
        operator.call::<loader::Apply>(&target, &document),
    );
    assert_eq!(read.unwrap().generation, 7);
    assert_eq!(change.unwrap_err().to_api_error().message, "done by the handler");
    assert_eq!((reads.load(Ordering::SeqCst), changes.load(Ordering::SeqCst)), (1, 1));
    let mut repeated = 0;
    while let Ok(Some(message)) = timeout(Duration::from_millis(200), repeats.next()).await {
        repeated += u32::from(value(&message, "Canopy-Attempt").is_some());
    }
    assert!(repeated >= 2, "{repeated} repeats");
    running.stop().await;
}

/// A service whose bus server was killed is back in a moment; a caller of before waits for that.
#[tokio::test]
async fn a_service_that_was_there_is_looked_for_a_while() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let before = loader(&server, "web1").await;
    let operator = connect(&server, "u-operator").await;
    let call = async |document| operator.call::<loader::Apply>(&web1(), &apply(document)).await;
    call(json!({})).await.unwrap();
    before.stop().await;
    let (found, after) = tokio::join!(call(json!({})), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        loader(&server, "web1").await
    });
    assert_eq!(found.unwrap().generation, 1);
    after.stop().await;
    // Not for long, and not again.
    let begun = Instant::now();
    let gone = call(json!({})).await.unwrap_err();
    assert!(matches!(gone, CallError::NoResponders { .. }), "{gone}");
    assert!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());
    let begun = Instant::now();
    let gone = call(json!({})).await.unwrap_err();
    assert!(matches!(gone, CallError::NoResponders { .. }), "{gone}");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

/// Of two instances that work on the same change, the slower one may find it done.
#[tokio::test]
async fn after_a_repeat_an_error_waits_for_a_better_answer() {
    let server = NatsServer::start(&[]).unwrap();
    let service = raw(&server, "s-registry").await;
    let verb = "canopy.v1.rpc.registry.admin.reset-index._.*";
    let mut requests = service.client.subscribe(verb).await.unwrap();
    let echo = "_INBOX.s-registry.s-registry.x";
    service.ask(echo, echo, HeaderMap::new(), "").await.expect("an echo");
    let admin = connect(&server, "u-admin").await;
    let call = || {
        let admin = admin.clone();
        let request = ResetRepositoryRequest { repository: "dev".to_owned() };
        let options =
            CallOptions { timeout: Some(Duration::from_secs(5)), ..CallOptions::default() };
        tokio::spawn(async move {
            admin.call_with::<registry::ResetIndex>(&Target::Central, &request, options).await
        })
    };
    let conflict = async |request: &Message| {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Service-Error-Code", "409");
        headers.insert("Nats-Service-Error", "it is done already");
        let error = canopy_api::ApiError::new(Code::Conflict, "it is done already");
        let (reply, error) = (request.reply.clone().unwrap(), rmp_serde::to_vec_named(&error));
        let error = error.unwrap().into();
        service.client.publish_with_headers(reply, headers, error).await.unwrap();
    };
    let done = ResetIndexReply { repository: "dev".to_owned(), id: None, from: 1, to: 2 };

    let running = call();
    let first = next(&mut requests).await;
    conflict(&next(&mut requests).await).await;
    answer(&service, &first, rmp_serde::to_vec_named(&done).unwrap()).await;
    assert_eq!(running.await.unwrap().unwrap(), done);

    // Without a better one it is the answer, long before the caller's time is over.
    let running = call();
    next(&mut requests).await;
    conflict(&next(&mut requests).await).await;
    let begun = Instant::now();
    assert_eq!(running.await.unwrap().unwrap_err().to_api_error().code, Code::Conflict);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());

    // Before a repeat there is nothing to wait for.
    let running = call();
    conflict(&next(&mut requests).await).await;
    let begun = Instant::now();
    assert_eq!(running.await.unwrap().unwrap_err().to_api_error().code, Code::Conflict);
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
}
