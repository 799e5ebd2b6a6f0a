//! Requests and replies over a real server: what a caller sees in each case.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use canopy_api::{
    Code, HostId,
    endpoint::{Endpoint as _, Service, loader, registry},
    subject::Target,
    wire::{Empty, GetRequest, ListReply, ListRequest, RepositoryTrouble, VersionRequest},
};
use canopy_bus::{Bus, BusError, CallError, CallOptions, Encoding, Server, UnreachableCause};
use canopy_test_support::nats::NatsServer;
use common::{LIMIT, apply, config, connect, connect_off, loader, loader_on, registry};
use serde_json::json;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

fn host(name: &str) -> Target {
    Target::Host(name.parse::<HostId>().unwrap())
}

#[tokio::test]
async fn both_encodings_reach_host_and_central_services() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let web1 = loader(&server, "web1").await;
    let central = registry(&server).await;
    let viewer = connect(&server, "u-viewer").await;
    for encoding in [Encoding::MessagePack, Encoding::Json] {
        let options = || CallOptions { encoding, ..CallOptions::default() };
        let reply = viewer
            .call_with::<loader::Get>(&host("web1"), &GetRequest::default(), options())
            .await
            .unwrap();
        assert_eq!((reply.host.as_str(), reply.generation), ("web1", 7));
        let reply = viewer
            .call_with::<registry::List>(&Target::Central, &ListRequest::default(), options())
            .await
            .unwrap();
        assert!(reply.packages.is_empty());
    }
    let version =
        viewer.call::<loader::Version>(&host("web1"), &VersionRequest::default()).await.unwrap();
    assert_eq!(
        (version.service.as_str(), version.version.as_str()),
        ("loader", env!("CARGO_PKG_VERSION"))
    );
    let health = viewer.call::<registry::Health>(&Target::Central, &Empty {}).await.unwrap();
    assert!(health.ready);
    central.stop().await;
    web1.stop().await;
}

#[tokio::test]
async fn nobody_there_silent_and_not_allowed_are_told_apart() {
    let server = NatsServer::start(&["web1", "web2"]).unwrap();
    let web1 = loader(&server, "web1").await;
    let viewer = connect(&server, "u-viewer").await;
    let operator = connect(&server, "u-operator").await;

    let before = Instant::now();
    let error =
        viewer.call::<loader::Get>(&host("web9"), &GetRequest::default()).await.unwrap_err();
    assert!(matches!(error, CallError::NoResponders { .. }), "{error}");
    assert_eq!(error.to_string(), "nobody serves loader.get at host web9");
    assert!(error.to_api_error().remedy.unwrap().contains("canopy-loader"));
    assert!(before.elapsed() < loader::Get::SPEC.timeout, "{:?}", before.elapsed());

    let before = Instant::now();
    let error = viewer.call::<loader::Apply>(&host("web1"), &apply(json!({}))).await.unwrap_err();
    assert!(matches!(error, CallError::NotPermitted { .. }), "{error}");
    assert_eq!(error.to_api_error().code, Code::Denied);
    assert!(error.to_string().contains("u-viewer may not call loader.apply"), "{error}");
    assert!(before.elapsed() < loader::Apply::SPEC.timeout, "{:?}", before.elapsed());
    assert_eq!(web1.applied.load(Ordering::SeqCst), 0);

    let options =
        CallOptions { timeout: Some(Duration::from_millis(200)), ..CallOptions::default() };
    let error = operator
        .call_with::<loader::Apply>(&host("web1"), &apply(json!({"wait": 1500})), options)
        .await
        .unwrap_err();
    // Told before the caller has gone, and how to hear what became of it.
    assert!(matches!(error, CallError::Api(_)), "{error}");
    let error = error.to_api_error();
    assert_eq!((error.code, error.retryable), (Code::Unavailable, true));
    assert!(error.message.contains("still being worked on"), "{error}");
    assert!(error.remedy.unwrap().contains("--request-id "));

    // Somebody listens and says nothing.
    let silent = common::raw(&server, "h-web2-loader").await;
    let all = "canopy.v1.rpc.loader.write.apply.web2.*";
    let _requests = silent.client.subscribe(all).await.unwrap();
    // Once this has come back the server knows of it.
    let echo = "_INBOX.h-web2-loader.h-web2-loader.x";
    silent.ask(echo, echo, async_nats::HeaderMap::new(), "").await.expect("an echo");
    let error = operator
        .call_with::<loader::Apply>(
            &host("web2"),
            &apply(json!({})),
            CallOptions {
                timeout: Some(Duration::from_millis(200)),
                request_id: Some("r-9".to_owned()),
                ..CallOptions::default()
            },
        )
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::Timeout { .. }), "{error}");
    let error = error.to_api_error();
    assert_eq!(error.code, Code::Unavailable);
    assert!(error.remedy.unwrap().ends_with("--request-id r-9"));
    web1.stop().await;
}

/// What is wrong then is not what the person wrote.
#[tokio::test]
async fn a_field_that_an_older_service_lacks_is_told_as_that() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let old = common::raw(&server, "h-web1-loader").await;
    let all = "canopy.v1.rpc.loader.write.apply.web1.*".to_owned();
    let mut requests = old.client.subscribe(all).await.unwrap();
    let echo = "_INBOX.h-web1-loader.h-web1-loader.x";
    old.ask(echo, echo, async_nats::HeaderMap::new(), "").await.expect("an echo");
    let client = old.client.clone();
    tokio::spawn(async move {
        for field in ["atomic", "atomik"] {
            let request = futures::StreamExt::next(&mut requests).await.unwrap();
            let error = json!({
                "code": "invalid", "path": field, "retryable": false,
                "message": format!("unknown field \"{field}\""),
            });
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Content-Type", "application/json");
            headers.insert("Nats-Service-Error-Code", "400");
            let reply = request.reply.unwrap();
            let payload = error.to_string().into();
            client.publish_with_headers(reply, headers, payload).await.unwrap();
        }
    });
    let operator = connect(&server, "u-operator").await;
    for code in [Code::Unsupported, Code::Invalid] {
        let error = operator.call::<loader::Apply>(&host("web1"), &apply(json!({}))).await;
        assert_eq!(error.unwrap_err().to_api_error().code, code);
    }
}

/// The caller hears that the work goes on, and by the same id what became of it; a repeat that comes while
/// it is worked on, too.
#[tokio::test]
async fn a_slow_change_is_asked_for_by_its_request_id() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let web1 = loader(&server, "web1").await;
    let operator = connect(&server, "u-operator").await;
    let ask = |millis| {
        let options = CallOptions {
            timeout: Some(Duration::from_millis(millis)),
            request_id: Some("r1".to_owned()),
            ..CallOptions::default()
        };
        let operator = operator.clone();
        async move {
            let request = apply(json!({"wait": 1200}));
            operator.call_with::<loader::Apply>(&host("web1"), &request, options).await
        }
    };
    for _ in 0..2 {
        let error = ask(300).await.unwrap_err().to_api_error();
        assert!(error.message.contains("still being worked on"), "{error}");
        assert!(error.remedy.unwrap().ends_with("--request-id r1"));
    }
    assert_eq!(ask(20_000).await.unwrap().generation, 1);
    assert_eq!(web1.applied.load(Ordering::SeqCst), 1, "it was made twice");
    web1.stop().await;
}

/// A request that was on its way for as long as its caller waits changes nothing, whatever the clocks say.
#[tokio::test]
async fn a_change_that_arrives_too_late_is_not_made() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let web1 = loader(&server, "web1").await;
    let client = common::raw(&server, "u-operator").await;
    let now = canopy_api::time::unix_millis(std::time::SystemTime::now());
    for (deadline, timeout, done) in [
        (Some(now - 1000), None, false),
        (Some(now - 1000), Some(30_000), false),
        (None, Some(0), false),
        // The caller's clock is ahead.
        (Some(now + 30_000), Some(0), false),
        (Some(now + 30_000), Some(30_000), true),
        (None, Some(30_000), true),
    ] {
        let before = web1.applied.load(Ordering::SeqCst);
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Content-Type", "application/json");
        for (name, millis) in [("Canopy-Deadline", deadline), ("Canopy-Timeout", timeout)] {
            if let Some(millis) = millis {
                headers.insert(name, millis.to_string().as_str());
            }
        }
        let answer = client
            .ask(
                "canopy.v1.rpc.loader.write.apply.web1.u-operator",
                "_INBOX.u-operator.h-web1-loader.x",
                headers,
                r#"{"document":{}}"#,
            )
            .await
            .expect("an answer");
        let refused =
            answer.headers.as_ref().is_some_and(|h| h.get("Nats-Service-Error-Code").is_some());
        assert_eq!(refused, !done, "{deadline:?} {timeout:?}");
        let applied = web1.applied.load(Ordering::SeqCst) - before;
        assert_eq!(applied, u32::from(done), "{deadline:?} {timeout:?}");
        if refused {
            let error: canopy_api::ApiError = serde_json::from_slice(&answer.payload).unwrap();
            assert_eq!((error.code, error.retryable), (Code::Unavailable, true));
            assert!(error.message.contains("nothing was done"), "{error}");
        }
    }
    web1.stop().await;
}

#[tokio::test]
async fn every_host_answers_a_request_to_all_and_only_for_itself() {
    let hosts = ["web1", "web2", "web3"];
    let server = NatsServer::start(&hosts).unwrap();
    let mut loaders = Vec::new();
    for name in hosts {
        loaders.push(loader(&server, name).await);
    }
    let viewer = connect(&server, "u-viewer").await;
    let wait = Duration::from_secs(2);
    let answers = viewer.call_all::<loader::Get>(&GetRequest::default(), wait).await.unwrap();
    let seen: Vec<_> = answers
        .iter()
        .map(|(from, reply)| (from.to_string(), reply.as_ref().unwrap().host.to_string()))
        .collect();
    let expected: Vec<_> =
        hosts.iter().map(|host| (format!("h-{host}-loader"), (*host).to_owned())).collect();
    assert_eq!(seen, expected);

    // What changes something is not asked of all at once: nobody listens.
    let operator = connect(&server, "u-operator").await;
    let answers = operator.call_all::<loader::Apply>(&apply(json!({})), wait).await.unwrap();
    assert!(answers.is_empty());
    for loader in loaders {
        assert_eq!(loader.applied.load(Ordering::SeqCst), 0);
        loader.stop().await;
    }
}

#[tokio::test]
async fn a_deadline_that_has_passed_is_refused_and_says_how_far_the_clock_is_off() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let web1 = loader(&server, "web1").await;
    let behind = connect_off(&server, "u-operator", -60).await;
    let error = behind.call::<loader::Apply>(&host("web1"), &apply(json!({}))).await.unwrap_err();
    let error = error.to_api_error();
    assert_eq!((error.code, error.path.as_str()), (Code::Unavailable, "Canopy-Deadline"));
    assert!(error.message.contains("nothing was done"), "{error}");
    let (_, off) = error.message.split_once("the clock of h-web1-loader is ").expect("the clock");
    let (seconds, rest) = off.split_once(' ').unwrap();
    assert!((50.0..=60.0).contains(&seconds.parse::<f64>().unwrap()), "{error}");
    assert_eq!(rest, "s ahead of this machine's");
    assert_eq!(web1.applied.load(Ordering::SeqCst), 0);

    // Within the tolerance nothing is said.
    let near = connect_off(&server, "u-operator", -4).await;
    near.call::<loader::Apply>(&host("web1"), &apply(json!({}))).await.unwrap();

    // A clock far ahead would keep dead requests alive.
    let ahead = connect_off(&server, "u-operator", 3600).await;
    let error = ahead.call::<loader::Apply>(&host("web1"), &apply(json!({}))).await.unwrap_err();
    assert_eq!(error.to_api_error().code, Code::Invalid);
    web1.stop().await;
}

#[tokio::test]
async fn a_repeated_request_gets_the_first_answer_also_after_a_restart() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let file = server.dir().join("answers");
    let bus = connect(&server, "h-web1-loader").await;
    let web1 = loader_on(bus, "web1", |server| server.idempotency_file(&file)).await;
    let operator = connect(&server, "u-operator").await;
    let ask = |id: &str, document| {
        let options = CallOptions { request_id: Some(id.to_owned()), ..CallOptions::default() };
        let operator = operator.clone();
        async move {
            operator.call_with::<loader::Apply>(&host("web1"), &apply(document), options).await
        }
    };
    assert_eq!(ask("r1", json!({})).await.unwrap().generation, 1);
    assert_eq!(ask("r1", json!({})).await.unwrap().generation, 1);
    assert_eq!(ask("r2", json!({})).await.unwrap().generation, 2);
    let error = ask("r1", json!({"other": 1})).await.unwrap_err();
    assert_eq!(error.to_api_error().code, Code::Conflict);

    // A repeat that comes while the first is worked on waits for it.
    let both = (ask("r3", json!({"wait": 300})), ask("r3", json!({"wait": 300})));
    let (first, second) = tokio::join!(both.0, both.1);
    assert_eq!((first.unwrap().generation, second.unwrap().generation), (3, 3));

    // "Later" is not an answer: the repeat is the retry.
    assert_eq!(
        ask("r4", json!({"fail": 1})).await.unwrap_err().to_api_error().code,
        Code::Unavailable
    );
    assert_eq!(
        ask("r4", json!({"fail": 1})).await.unwrap_err().to_api_error().code,
        Code::Unavailable
    );
    assert_eq!(web1.applied.load(Ordering::SeqCst), 5);

    web1.stop().await;
    let bus = connect(&server, "h-web1-loader").await;
    let again = loader_on(bus, "web1", |server| server.idempotency_file(&file)).await;
    assert_eq!(ask("r2", json!({})).await.unwrap().generation, 2);
    assert_eq!(again.applied.load(Ordering::SeqCst), 0);
    again.stop().await;
}

#[tokio::test]
async fn a_panic_costs_one_request() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let web1 = loader(&server, "web1").await;
    let operator = connect(&server, "u-operator").await;
    let error = operator
        .call::<loader::Apply>(&host("web1"), &apply(json!({"panic": 1})))
        .await
        .unwrap_err();
    assert_eq!(error.to_api_error().code, Code::Internal);
    operator.call::<loader::Apply>(&host("web1"), &apply(json!({}))).await.unwrap();
    web1.stop().await;
}

#[tokio::test]
async fn requests_over_the_limit_are_told_to_come_back() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let bus = connect(&server, "h-web1-loader").await;
    let limits =
        canopy_bus::Limits { in_flight: 1, waiting_of_caller: 0, ..canopy_bus::Limits::default() };
    let web1 = loader_on(bus, "web1", |server| server.limits(limits)).await;
    let operator = connect(&server, "u-operator").await;
    let slow = tokio::spawn({
        let operator = operator.clone();
        async move { operator.call::<loader::Apply>(&host("web1"), &apply(json!({"wait": 800}))).await }
    });
    let until = Instant::now() + LIMIT;
    while web1.applied.load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < until, "the slow request never began");
        tokio::task::yield_now().await;
    }
    let error = operator.call::<loader::Apply>(&host("web1"), &apply(json!({}))).await.unwrap_err();
    let error = error.to_api_error();
    assert_eq!((error.code, error.retryable), (Code::Unavailable, true));
    slow.await.unwrap().unwrap();
    web1.stop().await;
}

#[tokio::test]
async fn shutdown_answers_what_it_accepted() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let web1 = loader(&server, "web1").await;
    let operator = connect(&server, "u-operator").await;
    let mut callers = Vec::new();
    let lost = Arc::new(AtomicU32::new(0));
    for n in 0..200 {
        let (operator, dropped) = (operator.clone(), lost.clone());
        callers.push(tokio::spawn(async move {
            let options = CallOptions {
                timeout: Some(Duration::from_secs(5)),
                request_id: Some(format!("request-{n}")),
                ..CallOptions::default()
            };
            let (target, request) = (host("web1"), apply(json!({"wait": 20})));
            let first =
                operator.call_with::<loader::Apply>(&target, &request, options.clone()).await;
            match first {
                // async-nats forgets a subscription that drains without waiting for the server's
                // word; what is on its way just then it drops. Such a request was not accepted, and
                // whoever repeats it hears so.
                Err(CallError::Timeout { .. }) => {
                    dropped.fetch_add(1, Ordering::SeqCst);
                    operator.call_with::<loader::Apply>(&target, &request, options).await
                }
                other => other,
            }
        }));
    }
    let applied = web1.applied.clone();
    let until = Instant::now() + LIMIT;
    while applied.load(Ordering::SeqCst) < 20 {
        assert!(Instant::now() < until, "only {} began", applied.load(Ordering::SeqCst));
        tokio::task::yield_now().await;
    }
    web1.stop().await;
    let (mut answered, mut refused, mut busy) = (0, 0, 0);
    for caller in callers {
        match caller.await.unwrap() {
            Ok(_) => answered += 1,
            Err(CallError::NoResponders { .. }) => refused += 1,
            Err(CallError::Api(error)) if error.code == Code::Unavailable => busy += 1,
            Err(lost) => panic!("a request was lost: {lost}"),
        }
    }
    // Whatever began was answered; whatever was not accepted heard so at once.
    assert_eq!(answered, applied.load(Ordering::SeqCst), "{refused} refused, {busy} busy");
    assert_eq!(answered + refused + busy, 200);
    let lost = lost.load(Ordering::SeqCst);
    assert!(lost <= 3, "{lost} requests were dropped on the way");
}

fn signal(server: &NatsServer, signal: &str) {
    let pid = server.pid().unwrap().to_string();
    assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
}

/// Nothing is in flight, so there is nothing to wait for, whether the server is gone or says nothing.
#[tokio::test]
async fn a_service_ends_at_once_without_its_bus() {
    for gone in [true, false] {
        let mut server = NatsServer::start(&["web1"]).unwrap();
        let mut web1 = loader(&server, "web1").await;
        if gone {
            server.kill();
            tokio::time::timeout(LIMIT, web1.ready.wait_for(|ready| !ready))
                .await
                .expect("notices")
                .unwrap();
        } else {
            signal(&server, "-STOP");
        }
        let begun = Instant::now();
        web1.stop().await;
        let took = begun.elapsed();
        if !gone {
            signal(&server, "-CONT");
        }
        let most = if gone { Duration::from_secs(1) } else { Duration::from_secs(2) };
        assert!(took < most, "gone: {gone}: {took:?}");
    }
}

#[tokio::test]
async fn the_bus_comes_back_after_a_crash_of_the_server() {
    let mut server = NatsServer::start(&["web1"]).unwrap();
    let mut web1 = loader(&server, "web1").await;
    let viewer = connect(&server, "u-viewer").await;
    server.kill();
    tokio::time::timeout(LIMIT, web1.ready.wait_for(|ready| !ready))
        .await
        .expect("notices")
        .unwrap();
    let options =
        CallOptions { timeout: Some(Duration::from_millis(300)), ..CallOptions::default() };
    let error = viewer
        .call_with::<loader::Get>(&host("web1"), &GetRequest::default(), options)
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::Disconnected { .. }), "{error}");
    server.restart().unwrap();
    tokio::time::timeout(LIMIT, web1.ready.wait_for(|ready| *ready))
        .await
        .expect("returns")
        .unwrap();
    viewer.wait_ready(LIMIT).await.unwrap();
    viewer.call::<loader::Get>(&host("web1"), &GetRequest::default()).await.unwrap();
    assert!(viewer.statistics().connects >= 2);
    web1.stop().await;
}

#[tokio::test]
async fn new_certificates_are_used_without_a_restart() {
    let mut server = NatsServer::start(&["web1"]).unwrap();
    let mut web1 = loader(&server, "web1").await;
    let viewer = connect(&server, "u-viewer").await;
    // All of them, the authority too: what was read at the start is worth nothing now.
    server.renew_certificates().unwrap();
    server.restart().unwrap();
    let before = viewer.statistics().connects;
    let mut link = viewer.watch_link();
    tokio::time::timeout(LIMIT, async {
        while viewer.statistics().connects == before {
            link.changed().await.unwrap();
        }
        web1.ready.wait_for(|ready| *ready).await.unwrap();
    })
    .await
    .expect("reconnects");
    viewer.wait_ready(LIMIT).await.unwrap();
    tokio::time::timeout(LIMIT, async {
        while web1.bus.statistics().connects < 2 {
            tokio::task::yield_now().await;
        }
        web1.bus.wait_ready(LIMIT).await.unwrap();
    })
    .await
    .expect("the service reconnects");
    viewer.call::<loader::Get>(&host("web1"), &GetRequest::default()).await.unwrap();
    web1.stop().await;
}

/// The caller hears of an answer that is too large for the bus, at once, and the service goes on.
#[tokio::test]
async fn an_answer_the_bus_cannot_carry_is_told_apart() {
    let server = NatsServer::start(&[]).unwrap();
    let bus = connect(&server, "s-registry").await;
    let service = Server::new(bus.clone(), Service::Registry, None).handle::<registry::List, _, _>(
        |_, request| async move {
            let reason =
                if request == ListRequest::default() { "x".repeat(2 << 20) } else { String::new() };
            let unavailable = vec![RepositoryTrouble { repository: "dev".to_owned(), reason }];
            Ok(ListReply { unavailable, ..ListReply::default() })
        },
    );
    let _central = common::Running::start(bus, service).wait_ready().await;
    let viewer = connect(&server, "u-viewer").await;
    let error = viewer
        .call::<registry::List>(&Target::Central, &ListRequest::default())
        .await
        .unwrap_err()
        .to_api_error();
    assert_eq!(error.code, Code::Unsupported, "{error}");
    assert!(error.message.contains("bytes long, and the bus carries at most 1"), "{error}");
    assert!(error.remedy.is_some_and(|hint| hint.starts_with("ask for a part of it")));
    let small =
        ListRequest { package: Some("firewall".parse().unwrap()), ..ListRequest::default() };
    viewer.call::<registry::List>(&Target::Central, &small).await.unwrap();
}

#[tokio::test]
async fn a_bus_that_cannot_be_reached_says_why() {
    let mut server = NatsServer::start(&["web1"]).unwrap();
    let short = Duration::from_millis(700);
    // Certificate of another authority.
    let stranger = server.stranger("u-viewer").unwrap();
    let bus = Bus::connect(&config(&stranger), "u-viewer".parse().unwrap()).await.unwrap();
    let error = bus.wait_ready(short).await.unwrap_err();
    assert!(matches!(error, BusError::Unreachable { .. }), "{error}");
    // Somebody else's certificate.
    let other = server.client("u-viewer");
    let bus = Bus::connect(&config(&other), "u-admin".parse().unwrap()).await.unwrap();
    let error = bus.wait_ready(Duration::from_secs(5)).await.unwrap_err();
    assert!(matches!(error, BusError::NotPermitted { .. }), "{error}");
    // Nobody there.
    let files = server.client("u-viewer");
    server.kill();
    let bus = Bus::connect(&config(&files), "u-viewer".parse().unwrap()).await.unwrap();
    let error = bus.wait_ready(short).await.unwrap_err();
    let cause = UnreachableCause::ConnectionRefused;
    assert!(matches!(&error, BusError::Unreachable { cause: found, .. } if *found == cause));
    let error = error.to_string();
    assert!(error.contains(&files.url) && error.contains("refused"), "{error}");
    let mut nowhere = config(&files);
    nowhere.url = "tls://nohost.invalid:4222".to_owned();
    let bus = Bus::connect(&nowhere, "u-viewer".parse().unwrap()).await.unwrap();
    let error = bus.wait_ready(short).await.unwrap_err();
    let cause = UnreachableCause::UnknownName;
    assert!(matches!(&error, BusError::Unreachable { cause: found, .. } if *found == cause));
    // No file.
    let mut missing = config(&files);
    missing.key = "/nowhere/key.pem".into();
    let error = Bus::connect(&missing, "u-viewer".parse().unwrap()).await.unwrap_err().to_string();
    assert!(error.starts_with("bus.key cannot be used: /nowhere/key.pem: No such file"), "{error}");
}

#[tokio::test]
async fn an_authority_that_others_may_write_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let server = NatsServer::start(&[]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&server.client("u-viewer"));
    let ca = dir.path().join("ca.crt");
    std::fs::copy(&config.ca, &ca).unwrap();
    config.ca = ca.clone();
    let connect = async || Bus::connect(&config, "u-viewer".parse().unwrap()).await;
    for (path, mode) in [(ca.as_path(), 0o666), (dir.path(), 0o777)] {
        let before = std::fs::metadata(path).unwrap().permissions();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        let error = connect().await.unwrap_err().to_string();
        let fix = format!("chmod go-w {}", path.display());
        assert!(error.starts_with("bus.ca is not used: ") && error.ends_with(&fix), "{error}");
        std::fs::set_permissions(path, before).unwrap();
    }
    connect().await.unwrap().wait_ready(LIMIT).await.unwrap();
}

/// One subscription takes all answers; it must not keep alive what nobody uses any more.
#[tokio::test]
async fn a_connection_nobody_uses_any_more_ends() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let web1 = loader(&server, "web1").await;
    let system = connect(&server, "s-policy-system").await;
    let user = Some("spiffe://canopy/u-viewer");
    let viewer = connect(&server, "u-viewer").await;
    viewer.call::<loader::Get>(&host("web1"), &GetRequest::default()).await.unwrap();
    let found = canopy_bus::system::connections(&system, user, LIMIT).await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    drop(viewer);
    let until = std::time::Instant::now() + LIMIT;
    while !canopy_bus::system::connections(&system, user, LIMIT).await.unwrap().is_empty() {
        assert!(std::time::Instant::now() < until, "the connection is still there");
    }
    web1.stop().await;
}

#[tokio::test]
async fn events_reach_people_and_carry_their_content() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let bus = connect(&server, "h-web1-loader").await;
    let viewer = connect(&server, "u-viewer").await;
    let mut events = viewer.subscribe_events("canopy.v1.event.>").await.unwrap();
    viewer.wait_ready(LIMIT).await.unwrap();
    let web1: HostId = "web1".parse().unwrap();
    bus.publish_event(
        canopy_api::endpoint::Service::Loader,
        "host",
        "alive",
        Some(&web1),
        &json!({"generation": 3}),
    )
    .await
    .unwrap();
    let event = tokio::time::timeout(LIMIT, events.next()).await.unwrap().unwrap();
    assert_eq!(event.subject, "canopy.v1.event.loader.host.alive.web1");
    assert_eq!(event.value().unwrap(), json!({"generation": 3}));
}

/// MessagePack is meant where no encoding is named; who names one is told one.
#[tokio::test]
async fn a_reply_names_its_encoding_where_the_request_did() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let web1 = loader(&server, "web1").await;
    let viewer = common::raw(&server, "u-viewer").await;
    let subject = "canopy.v1.rpc.loader.read.get.web1.u-viewer";
    for (number, (asked, told)) in [
        (None, None),
        (Some("application/msgpack"), Some("application/msgpack")),
        (Some("application/json"), Some("application/json")),
        (Some("text/xml"), Some("application/json")),
    ]
    .into_iter()
    .enumerate()
    {
        let mut headers = async_nats::HeaderMap::new();
        if let Some(asked) = asked {
            headers.insert("Content-Type", asked);
        }
        let reply = format!("_INBOX.u-viewer.h-web1-loader.{number}");
        let answer = viewer.ask(subject, &reply, headers, "").await.expect("answered");
        let headers = answer.headers.unwrap_or_default();
        let named = headers.get("Content-Type").map(|value| value.as_str().to_owned());
        assert_eq!(named.as_deref(), told, "{asked:?}");
        // A request without headers is answered without any.
        assert_eq!(headers.get("Canopy-Time").is_some(), asked.is_some(), "{asked:?}");
    }
    web1.stop().await;
}

/// Headers cost more than a small request: what a service assumes is not said to it each time.
#[tokio::test]
async fn reads_omit_the_deadline_that_the_service_assumes() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let web1 = loader(&server, "web1").await;
    let listener = common::raw(&server, "h-web1-loader").await;
    let pattern = "canopy.v1.rpc.loader.*.*.web1.*";
    let mut requests = listener.client.subscribe(pattern).await.unwrap();
    let echo = "_INBOX.h-web1-loader.h-web1-loader.x";
    listener.ask(echo, echo, async_nats::HeaderMap::new(), "").await.expect("an echo");
    let operator = connect(&server, "u-operator").await;
    let get = |timeout| {
        let options = CallOptions { timeout, ..CallOptions::default() };
        let operator = operator.clone();
        async move {
            let request = GetRequest::default();
            operator.call_with::<loader::Get>(&host("web1"), &request, options).await.unwrap()
        }
    };
    let mut sent = async || {
        let request = tokio::time::timeout(LIMIT, futures::StreamExt::next(&mut requests)).await;
        request.unwrap().unwrap().headers.unwrap_or_default()
    };
    // The first asks what is assumed; the others say what differs from it.
    let spec = loader::Get::SPEC;
    for (timeout, names_deadline) in [
        (None, true),
        (None, false),
        (Some(spec.timeout), false),
        (Some(spec.timeout * 2), true),
        (None, false),
    ] {
        get(timeout).await;
        let headers = sent().await;
        let deadline = headers.get("Canopy-Deadline").is_some();
        assert_eq!(deadline, names_deadline, "{timeout:?}");
        assert_eq!(headers.is_empty(), !names_deadline, "{headers:?}");
    }
    // Changes say all of it, each time.
    for _ in 0..2 {
        operator.call::<loader::Apply>(&host("web1"), &apply(json!({}))).await.unwrap();
        let headers = sent().await;
        for name in ["Canopy-Deadline", "Canopy-Timeout", "Canopy-Request-Id"] {
            assert!(headers.get(name).is_some(), "{name}");
        }
    }
    web1.stop().await;
}

/// A release from before does not say what it assumes, so it is told the deadline each time.
#[tokio::test]
async fn an_older_service_gets_the_deadline_with_each_read() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let old = common::raw(&server, "h-web1-loader").await;
    let mut requests = old.client.subscribe("canopy.v1.rpc.loader.read.get.web1.*").await.unwrap();
    let echo = "_INBOX.h-web1-loader.h-web1-loader.x";
    old.ask(echo, echo, async_nats::HeaderMap::new(), "").await.expect("an echo");
    let viewer = connect(&server, "u-viewer").await;
    let reply = rmp_serde::to_vec_named(&common::get_reply(&"web1".parse().unwrap())).unwrap();
    for _ in 0..3 {
        let answer = async {
            let request = futures::StreamExt::next(&mut requests).await.unwrap();
            let mut headers = async_nats::HeaderMap::new();
            let now = canopy_api::time::unix_millis(std::time::SystemTime::now());
            headers.insert("Canopy-Time", now.to_string().as_str());
            let to = request.reply.unwrap();
            old.client.publish_with_headers(to, headers, reply.clone().into()).await.unwrap();
            request.headers.unwrap_or_default()
        };
        let (target, get) = (host("web1"), GetRequest::default());
        let call = viewer.call::<loader::Get>(&target, &get);
        let (headers, answered) = tokio::join!(answer, call);
        answered.unwrap();
        assert!(headers.get("Canopy-Deadline").is_some(), "{headers:?}");
    }
}
