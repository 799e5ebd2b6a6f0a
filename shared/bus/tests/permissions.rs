//! What the server refuses: cells of the permission matrix, tried with a client that is not ours.

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
    endpoint::{self, Class, Service, Status},
    permission::Role,
    subject::{self, Target},
};
use canopy_bus::{BusError, Server};
use canopy_test_support::nats::NatsServer;
use common::{LIMIT, Running, connect, loader, raw, registry};
use futures::StreamExt as _;
use std::{collections::BTreeSet, sync::atomic::Ordering, time::Duration};
use tokio::time::timeout;

fn json_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Content-Type", "application/json");
    headers
}

/// Every role by every served endpoint, each really published: the server takes exactly those of
/// the role's classes. A request it takes and nobody serves is answered "no responders"; one it
/// refuses is not answered at all.
#[tokio::test]
async fn each_role_reaches_exactly_its_classes() {
    let server = NatsServer::start(&["web1"]).unwrap();
    for role in Role::ALL {
        let me = format!("u-{role}").parse().unwrap();
        let mut client = raw(&server, &format!("u-{role}")).await;
        let mut replies = client.client.subscribe(format!("_INBOX.{me}.>")).await.unwrap();
        let mut refused = BTreeSet::new();
        let mut taken = BTreeSet::new();
        for (n, spec) in endpoint::all().enumerate() {
            let target = if spec.service.is_host_local() {
                Target::Host("web1".parse().unwrap())
            } else {
                Target::Central
            };
            let subject = subject::request(spec, &target, &me);
            let expected = role.classes().contains(&spec.class);
            let reply = format!("_INBOX.{me}.{}.{n}", target.responder(spec.service));
            client.client.publish_with_reply(subject.clone(), reply, "".into()).await.unwrap();
            if expected {
                taken.insert(n)
            } else {
                refused.insert(subject)
            };
        }
        client.client.flush().await.unwrap();
        while !taken.is_empty() {
            let message = timeout(LIMIT, replies.next())
                .await
                .unwrap_or_else(|_| panic!("{role}: refused or lost: {taken:?}"))
                .unwrap();
            let n = message.subject.rsplit('.').next().unwrap().parse().unwrap();
            assert_eq!(message.status, Some(async_nats::StatusCode::NO_RESPONDERS));
            assert!(taken.remove(&n), "{role}: {} was not to be taken", message.subject);
        }
        while !refused.is_empty() {
            let error = timeout(LIMIT, client.errors.recv())
                .await
                .unwrap_or_else(|_| panic!("{role}: not refused: {refused:?}"))
                .unwrap();
            if !error.contains("Permissions Violation") {
                continue;
            }
            let subject = error.split('"').nth(1);
            assert!(subject.is_some_and(|subject| refused.remove(subject)), "{role}: {error}");
        }
    }
}

#[tokio::test]
async fn nobody_speaks_as_another() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let web1 = loader(&server, "web1").await;
    let mut admin = raw(&server, "u-admin").await;
    let subject = "canopy.v1.rpc.loader.write.apply.web1.u-operator";
    let reply = "_INBOX.u-admin.h-web1-loader.1";
    admin
        .client
        .publish_with_reply_and_headers(subject, reply, json_headers(), "{}".into())
        .await
        .unwrap();
    admin.expect_refused(subject).await;
    // Nor publishes events, nor audit records, nor answers.
    for subject in [
        "canopy.v1.event.loader.host.alive.web1",
        "canopy.v1.audit.loader.web1",
        "_INBOX.u-viewer.h-web1-loader.1",
    ] {
        admin.client.publish(subject, "x".into()).await.unwrap();
        admin.expect_refused(subject).await;
    }
    assert_eq!(web1.applied.load(Ordering::SeqCst), 0);
    web1.stop().await;
}

#[tokio::test]
async fn one_hosts_loader_cannot_listen_act_or_answer_as_another() {
    let server = NatsServer::start(&["web1", "web2"]).unwrap();
    let mut web1 = raw(&server, "h-web1-loader").await;
    for listen in [
        "canopy.v1.rpc.loader.write.apply.web2.*",
        "canopy.v1.rpc.loader.*.*.*.*",
        "_INBOX.h-web2-loader.>",
        "_INBOX.h-web1-loader.>",
        "_INBOX.h-web1-loader.h-web2-loader.>",
        "_INBOX.>",
        "canopy.v1.event.>",
    ] {
        let _subscription = web1.client.subscribe(listen).await.unwrap();
        web1.expect_refused(listen).await;
    }
    for act in [
        "canopy.v1.rpc.registry.read.resolve._.h-web2-loader",
        "canopy.v1.rpc.registry.read.list._.h-web1-loader",
        "canopy.v1.rpc.loader.write.apply.web2.h-web1-loader",
        "canopy.v1.event.loader.host.alive.web2",
        "canopy.v1.audit.loader.web2",
        "_INBOX.u-viewer.h-web2-loader.1",
        "_INBOX.u-viewer.1",
        "$SRV.PING",
        "$JS.API.INFO",
    ] {
        web1.client.publish(act, "x".into()).await.unwrap();
        web1.expect_refused(act).await;
    }
    // A service that tries is told at its start.
    let bus = connect(&server, "h-web1-loader").await;
    let web2 = Server::new(bus.clone(), Service::Loader, Some("web2".parse().unwrap()));
    let error = Running::start(bus, web2).outcome().await.unwrap_err();
    assert!(matches!(error, BusError::NotPermitted { .. }), "{error}");
    assert!(error.to_string().contains("web2"), "{error}");
}

/// Messages and bytes that the server has sent to a principal.
async fn delivered(server: &NatsServer, principal: &str) -> (u64, u64) {
    let system = raw(server, "s-policy-system").await;
    let body = format!(r#"{{"auth": true, "user": "spiffe://canopy/{principal}"}}"#);
    let connz = "$SYS.REQ.SERVER.PING.CONNZ";
    let list = server_request(&system, "s-policy-system", connz, &body).await;
    let connections = list["data"]["connections"].as_array().unwrap();
    let sum = |field: &str| connections.iter().map(|one| one[field].as_u64().unwrap()).sum();
    (sum("out_msgs"), sum("out_bytes"))
}

/// One host's daemon sends 100 messages of 1 MB to a place where it may publish.
async fn push(from: &common::Raw, inbox: &str) {
    for _ in 0..100 {
        from.client.publish(inbox.to_owned(), vec![b'x'; 1_000_000].into()).await.unwrap();
    }
    from.client.flush().await.unwrap();
}

/// A daemon's inbox hears the services it calls, and no other host: those cut it with messages of 1 MB.
#[tokio::test]
async fn no_host_can_fill_another_daemons_inbox() {
    let server = NatsServer::start(&["web1", "web2"]).unwrap();
    let central = registry(&server).await;
    let web2 = loader(&server, "web2").await;
    let resolve = canopy_api::wire::ResolveRequest {
        package: "firewall".parse().unwrap(),
        requirement: "*".into(),
        arch: None,
        kernel: None,
    };
    // Nobody serves it; the inbox is open from now on.
    let answer = web2.bus.call::<endpoint::registry::Resolve>(&Target::Central, &resolve).await;
    assert!(matches!(answer, Err(canopy_bus::CallError::NoResponders { .. })), "{answer:?}");
    let attacker = raw(&server, "h-web1-loader").await;
    let before = delivered(&server, "h-web2-loader").await;
    push(&attacker, "_INBOX.h-web2-loader.h-web1-loader.x").await;
    assert_eq!(delivered(&server, "h-web2-loader").await, before);
    assert_eq!((web2.bus.statistics().connects, web2.bus.statistics().dropped), (1, 0));
    web2.stop().await;
    central.stop().await;
}

/// A person calls any host: the client library hears the hosts it is waiting for, and not for ever.
#[tokio::test]
async fn only_hosts_that_were_called_reach_a_callers_inbox() {
    let server = NatsServer::start(&["web1", "web2"]).unwrap();
    let web1 = loader(&server, "web1").await;
    let viewer = connect(&server, "u-viewer").await;
    let target = Target::Host("web1".parse().unwrap());
    let get = canopy_api::wire::GetRequest::default();
    viewer.call::<endpoint::loader::Get>(&target, &get).await.unwrap();
    let before = delivered(&server, "u-viewer").await;
    let other = raw(&server, "h-web2-loader").await;
    push(&other, "_INBOX.u-viewer.h-web2-loader.x").await;
    assert_eq!(delivered(&server, "u-viewer").await, before);
    // The one that was called is heard for a while.
    let until = std::time::Instant::now() + LIMIT;
    let called = raw(&server, "h-web1-loader").await;
    let inbox = "_INBOX.u-viewer.h-web1-loader.x";
    loop {
        let before = delivered(&server, "u-viewer").await;
        called.client.publish(inbox, "x".into()).await.unwrap();
        called.client.flush().await.unwrap();
        if delivered(&server, "u-viewer").await == before {
            break;
        }
        assert!(std::time::Instant::now() < until, "its inbox stays open");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // And again when it is called again.
    viewer.call::<endpoint::loader::Get>(&target, &get).await.unwrap();
    assert_eq!((viewer.statistics().connects, viewer.statistics().dropped), (1, 0));
    web1.stop().await;
}

#[tokio::test]
async fn a_foreign_reply_subject_is_refused_and_audited() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let web1 = loader(&server, "web1").await;
    let operator = raw(&server, "u-operator").await;
    let viewer = raw(&server, "u-viewer").await;
    let mut stolen = viewer.client.subscribe("_INBOX.u-viewer.>").await.unwrap();
    viewer.client.flush().await.unwrap();
    let mut audit = audit(&server).await;
    // Each would have the loader publish, with its own rights, where the caller points.
    for reply in [
        "_INBOX.u-viewer.h-web1-loader.x",
        "canopy.v1.event.loader.host.alive.web1",
        "_INBOX.u-operator.s-registry.x",
        "_INBOX.u-operator.h-web1-loader",
    ] {
        operator
            .client
            .publish_with_reply_and_headers(
                "canopy.v1.rpc.loader.write.apply.web1.u-operator",
                reply,
                json_headers(),
                r#"{"document": {}}"#.into(),
            )
            .await
            .unwrap();
        let record = timeout(LIMIT, audit.next()).await.expect("audited").unwrap();
        let record = record.value().unwrap();
        assert_eq!(record["principal"], "u-operator");
        assert_eq!(record["decision"], "denied");
        assert!(record["reason"].as_str().unwrap().contains(reply), "{record}");
    }
    assert_eq!(web1.applied.load(Ordering::SeqCst), 0, "work was done for a request refused");
    assert!(timeout(Duration::from_millis(200), stolen.next()).await.is_err());
    web1.stop().await;
}

/// What reaches the account DATA, where audit records are stored: only there are they readable.
async fn audit(server: &NatsServer) -> canopy_bus::Events {
    let bus = common::raw(server, "s-policy-data").await;
    drop(bus);
    let files = common::config(&server.client("s-policy-data"));
    let bus = canopy_bus::Bus::connect(&files, "s-policy-data".parse().unwrap()).await.unwrap();
    assert!(bus.wait_link(LIMIT).await);
    let events = bus.subscribe_events("canopy.v1.audit.>").await.unwrap();
    bus.flush().await;
    events
}

#[tokio::test]
async fn garbage_is_answered_and_the_service_lives() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let web1 = loader(&server, "web1").await;
    let operator = raw(&server, "u-operator").await;
    let subject = "canopy.v1.rpc.loader.write.apply.web1.u-operator";
    let mut strange = HeaderMap::new();
    strange.insert("Content-Type", "text/xml");
    let mut bad_deadline = json_headers();
    bad_deadline.insert("canopy-deadline", "tomorrow");
    let mut bad_id = json_headers();
    bad_id.insert("CANOPY-REQUEST-ID", "x".repeat(65).as_str());
    let mut two_ids = json_headers();
    two_ids.insert("Canopy-Request-Id", "one");
    two_ids.insert("canopy-request-id", "two");
    let mut two_types = json_headers();
    two_types.append("Content-Type", "application/msgpack");
    let cases: Vec<(HeaderMap, Vec<u8>)> = vec![
        (HeaderMap::new(), vec![0xc1; 64]),
        (HeaderMap::new(), b"{\"document\": {}}".to_vec()),
        (json_headers(), vec![0xff, 0x00, 0xfe]),
        (json_headers(), b"{\"document\": ".to_vec()),
        (json_headers(), b"[]".to_vec()),
        (json_headers(), b"{\"expected_generation\": -1}".to_vec()),
        (json_headers(), vec![b'['; 100_000]),
        (HeaderMap::new(), vec![0x91; 100_000]),
        (json_headers(), vec![b' '; 900 * 1024]),
        (strange, b"<x/>".to_vec()),
        (bad_deadline, b"{\"document\": {}}".to_vec()),
        (bad_id, b"{\"document\": {}}".to_vec()),
        (two_ids, b"{\"document\": {}}".to_vec()),
        (two_types, b"{\"document\": {}}".to_vec()),
    ];
    for (n, (headers, payload)) in cases.into_iter().enumerate() {
        let reply = format!("_INBOX.u-operator.h-web1-loader.{n}");
        let answer = operator.ask(subject, &reply, headers, payload).await;
        let answer = answer.unwrap_or_else(|| panic!("case {n} was not answered"));
        let headers = answer.headers.expect("headers");
        assert_eq!(headers.get("Nats-Service-Error-Code").unwrap().as_str(), "400", "case {n}");
        assert!(headers.get("Canopy-Time").is_some());
        assert!(!answer.payload.is_empty());
    }
    assert_eq!(web1.applied.load(Ordering::SeqCst), 0);
    let reply = "_INBOX.u-operator.h-web1-loader.good";
    let good = operator.ask(subject, reply, json_headers(), "{\"document\": {}}").await.unwrap();
    assert!(good.headers.unwrap().get("Nats-Service-Error-Code").is_none());
    assert!(String::from_utf8_lossy(&good.payload).contains("\"host\":\"web1\""));
    web1.stop().await;
}

#[tokio::test]
async fn discovery_is_for_operators_and_survives_requests_without_a_reply() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let central = registry(&server).await;
    let mut viewer = raw(&server, "u-viewer").await;
    viewer.client.publish("$SRV.PING", "".into()).await.unwrap();
    viewer.expect_refused("$SRV.PING").await;
    let operator = raw(&server, "u-operator").await;
    operator.client.publish("$SRV.PING.registry", "".into()).await.unwrap();
    // With the reply of a stranger nothing is published.
    operator
        .client
        .publish_with_reply("$SRV.PING.registry", "canopy.v1.event.registry.a.b._", "".into())
        .await
        .unwrap();
    let answer = operator
        .ask("$SRV.INFO.registry", "_INBOX.u-operator.s-registry.1", HeaderMap::new(), "")
        .await
        .expect("answered");
    let info: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
    assert_eq!(info["name"], "registry");
    let endpoints: BTreeSet<&str> =
        info["endpoints"].as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap()).collect();
    assert_eq!(endpoints, BTreeSet::from(["health", "list", "version"]));
    central.stop().await;
}

#[test]
fn the_table_has_served_endpoints_of_every_class_people_hold() {
    let served: BTreeSet<Class> = endpoint::all()
        .filter(|spec| spec.status == Status::Works)
        .map(|spec| spec.class)
        .collect();
    assert!(served.contains(&Class::Read) && served.contains(&Class::Write));
}

/// A request of the server's own JSON interfaces.
async fn server_request(
    client: &common::Raw,
    me: &str,
    subject: &str,
    body: &str,
) -> serde_json::Value {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let inbox = format!("_INBOX.{me}.{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let answer = client.ask(subject, &inbox, HeaderMap::new(), body).await;
    let answer = answer.unwrap_or_else(|| panic!("{subject} was not answered"));
    serde_json::from_slice(&answer.payload).unwrap()
}

/// Events and audit records are stored in DATA; what is stored there cannot be made to speak in
/// APP, which is where requests are.
#[tokio::test]
async fn what_is_stored_in_data_cannot_speak_in_app() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let web1 = loader(&server, "web1").await;
    let data = raw(&server, "s-policy-data").await;
    let created = server_request(
        &data,
        "s-policy-data",
        "$JS.API.STREAM.CREATE.events",
        r#"{"name": "events", "subjects": ["canopy.v1.event.>"], "storage": "memory"}"#,
    )
    .await;
    assert_eq!(created["config"]["name"], "events", "{created}");
    let host: canopy_api::HostId = "web1".parse().unwrap();
    // An event whose bytes are a request.
    let request = serde_json::json!({ "document": {} });
    web1.bus.publish_event(Service::Loader, "host", "alive", Some(&host), &request).await.unwrap();
    web1.bus.flush().await;
    let until = std::time::Instant::now() + LIMIT;
    loop {
        let info = server_request(&data, "s-policy-data", "$JS.API.STREAM.INFO.events", "").await;
        if info["state"]["messages"].as_u64() == Some(1) {
            break;
        }
        assert!(std::time::Instant::now() < until, "not stored: {info}");
    }
    // In DATA the server may be told to publish what is stored to any subject; whoever serves that
    // subject in APP hears nothing of it.
    let listener = raw(&server, "h-web1-loader").await;
    let subject = "canopy.v1.rpc.loader.write.apply.web1.";
    let mut requests = listener.client.subscribe(format!("{subject}*")).await.unwrap();
    listener.client.flush().await.unwrap();
    let get = "$JS.API.STREAM.MSG.GET.events";
    let body = r#"{"seq": 1}"#;
    data.client.publish_with_reply(get, format!("{subject}u-admin"), body.into()).await.unwrap();
    let stored = server_request(&data, "s-policy-data", get, body).await;
    assert_eq!(stored["message"]["seq"], 1, "{stored}");
    let operator = raw(&server, "u-operator").await;
    operator.client.publish(format!("{subject}u-operator"), "".into()).await.unwrap();
    let first = timeout(LIMIT, requests.next()).await.expect("the listener hears").unwrap();
    assert_eq!(first.subject.as_str(), format!("{subject}u-operator"));
    // People cannot ask JetStream at all: it is not in their account.
    for role in Role::ALL {
        let mut person = raw(&server, &format!("u-{role}")).await;
        person.client.publish("$JS.API.STREAM.MSG.GET.events", "{}".into()).await.unwrap();
        person.expect_refused("$JS.API.STREAM.MSG.GET.events").await;
    }
    web1.stop().await;
}

/// The system user lists connections by user and ends them, and can do nothing else.
#[tokio::test]
async fn the_system_user_sees_and_ends_connections() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let viewer = connect(&server, "u-viewer").await;
    let mut system = raw(&server, "s-policy-system").await;
    let list = server_request(
        &system,
        "s-policy-system",
        "$SYS.REQ.SERVER.PING.CONNZ",
        r#"{"auth": true, "user": "spiffe://canopy/u-viewer"}"#,
    )
    .await;
    let connections = list["data"]["connections"].as_array().unwrap();
    assert_eq!(connections.len(), 1, "{list}");
    let kick = format!("$SYS.REQ.SERVER.{}.KICK", list["server"]["id"].as_str().unwrap());
    let body = format!(r#"{{"cid": {}}}"#, connections[0]["cid"]);
    let before = viewer.statistics().connects;
    server_request(&system, "s-policy-system", &kick, &body).await;
    let mut link = viewer.watch_link();
    timeout(LIMIT, async {
        while viewer.statistics().connects == before {
            link.changed().await.unwrap();
        }
    })
    .await
    .expect("the connection was not ended");
    for subject in ["canopy.v1.event.loader.host.alive.web1", "$SYS.REQ.SERVER.PING.VARZ"] {
        system.client.publish(subject, "".into()).await.unwrap();
        system.expect_refused(subject).await;
    }
}
