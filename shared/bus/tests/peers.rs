//! A caller asks what the receiver of a change knows before it sends a field that came later: real servers of
//! this release and of others, and what reaches them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use async_nats::{HeaderMap, Message};
use canopy_api::{
    Code, HostId,
    endpoint::{Class, Endpoint, EndpointSpec, Service, Status, loader, policy},
    error::ApiError,
    subject::Target,
    wire::{
        AdmissionBasis, AdmissionItem, AdmissionVerb, AdmitReply, AdmitRequest, ApplyReply,
        VersionRequest,
    },
};
use canopy_bus::{CallError, CallOptions, Server};
use canopy_test_support::nats::NatsServer;
use common::{Raw, Running, apply, connect, loader};
use futures::StreamExt as _;
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

/// `apply` as a later release has it.
struct LaterApply;

#[derive(Default, Serialize, Deserialize, JsonSchema)]
struct LaterRequest {
    document: Value,
    #[serde(default)]
    dry_run: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rollout: Option<Rollout>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Rollout {
    waves: u32,
}

/// A verb of a later release.
struct LaterVerb;

const fn later(verb: &'static str) -> EndpointSpec {
    EndpointSpec {
        service: Service::Loader,
        class: Class::Write,
        verb,
        timeout: Duration::from_secs(5),
        idempotent: false,
        status: Status::Works,
        callers: &[],
        summary: "",
        schemas: Some(|| (schema_for!(LaterRequest), schema_for!(ApplyReply))),
    }
}

impl Endpoint for LaterApply {
    const SPEC: &'static EndpointSpec = &later("apply");
    type Request = LaterRequest;
    type Reply = ApplyReply;
}

impl Endpoint for LaterVerb {
    const SPEC: &'static EndpointSpec = &later("roll-out");
    type Request = LaterRequest;
    type Reply = ApplyReply;
}

fn web1() -> Target {
    Target::Host("web1".parse::<HostId>().unwrap())
}

fn request(waves: Option<u32>) -> LaterRequest {
    let rollout = waves.map(|waves| Rollout { waves });
    LaterRequest { document: json!({ "chains": [] }), rollout, ..LaterRequest::default() }
}

/// A loader of another release: which requests reached it, by verb.
struct OtherRelease {
    requests: Arc<Mutex<Vec<(String, Value)>>>,
    _raw: Raw,
}

impl OtherRelease {
    /// `version` is what it answers to `version`; without one it refuses the question for fields, as
    /// releases do that do not tell theirs.
    async fn start(server: &NatsServer, version: Value) -> Self {
        let raw = common::raw(server, "h-web1-loader").await;
        let requests = Arc::<Mutex<Vec<_>>>::default();
        for verb in ["read.version", "write.apply"] {
            let subject = format!("canopy.v1.rpc.loader.{verb}.web1.*");
            let mut messages = raw.client.subscribe(subject).await.unwrap();
            let (client, requests, version) =
                (raw.client.clone(), Arc::clone(&requests), version.clone());
            tokio::spawn(async move {
                while let Some(message) = messages.next().await {
                    let body = decoded(&message);
                    let tells = version.get("fields").is_some();
                    let answer = match verb {
                        "read.version" if body.get("fields").is_some() && !tells => Err(json!({
                            "code": "invalid", "path": "fields", "retryable": false,
                            "message": "unknown field \"fields\" (it has none)",
                        })),
                        "read.version" => Ok(version.clone()),
                        _ => Ok(json!({ "host": "web1", "generation": 1, "dry_run": false,
                                        "chains": [] })),
                    };
                    requests.lock().unwrap().push((verb.to_owned(), body));
                    let mut headers = HeaderMap::new();
                    headers.insert("Content-Type", "application/json");
                    if answer.is_err() {
                        headers.insert("Nats-Service-Error-Code", "400");
                    }
                    let (Ok(answer) | Err(answer)) = answer;
                    let reply = message.reply.unwrap();
                    let payload = answer.to_string().into();
                    client.publish_with_headers(reply, headers, payload).await.unwrap();
                }
            });
        }
        // Once this has come back the server knows of the subscriptions.
        let echo = "_INBOX.h-web1-loader.h-web1-loader.x";
        raw.ask(echo, echo, HeaderMap::new(), "").await.expect("an echo");
        Self { requests, _raw: raw }
    }

    fn writes(&self) -> usize {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|(verb, _)| verb == "write.apply").count()
    }

    fn questions(&self) -> usize {
        let all = self.requests.lock().unwrap().len();
        all - self.writes()
    }
}

fn decoded(message: &Message) -> Value {
    if message.payload.is_empty() {
        return json!({});
    }
    rmp_serde::from_slice(&message.payload).unwrap()
}

#[track_caller]
fn refused(error: &ApiError, version: &str, field: &str) {
    assert_eq!(error.code, Code::Unsupported, "{error}");
    assert_eq!(error.path, field, "{error}");
    assert_eq!(
        error.message,
        format!(
            "host web1 runs canopy-loader {version}, which does not know the field \"{field}\"; \
             nothing was sent"
        )
    );
    assert_eq!(error.remedy.as_deref(), Some("upgrade it, or leave the field out"));
}

#[tokio::test]
async fn a_field_that_the_receiver_lacks_is_refused_before_it_is_sent() {
    for (release, version) in [
        // One that tells its fields, and one from before that.
        (
            "0.2.0",
            json!({ "service": "loader", "version": "0.2.0", "host": "web1",
                          "fields": { "apply": ["document", "dry_run"] } }),
        ),
        ("0.1.0", json!({ "service": "loader", "version": "0.1.0", "host": "web1" })),
    ] {
        let server = NatsServer::start(&["web1"]).unwrap();
        let old = OtherRelease::start(&server, version).await;
        let operator = connect(&server, "u-operator").await;
        let error = operator.call::<LaterApply>(&web1(), &request(Some(2))).await.unwrap_err();
        refused(&error.to_api_error(), release, "rollout");
        assert_eq!(old.writes(), 0, "{release}: a write was sent");
        // Without the field it is sent, and nothing is asked.
        let asked = old.questions();
        operator.call::<LaterApply>(&web1(), &request(None)).await.unwrap();
        assert_eq!((old.writes(), old.questions()), (1, asked));
        // A verb that it does not serve.
        let error = operator.call::<LaterVerb>(&web1(), &request(None)).await.unwrap_err();
        let error = error.to_api_error();
        assert_eq!(error.code, Code::Unsupported, "{error}");
        assert!(error.message.contains(&format!("{release}, which does not serve \"roll-out\"")));
    }
}

#[tokio::test]
async fn a_release_that_knows_the_field_gets_the_request() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let fields = json!({ "apply": ["document", "dry_run", "rollout", "rollout.waves"] });
    let later = OtherRelease::start(
        &server,
        json!({ "service": "loader", "version": "0.3.0", "host": "web1", "fields": fields }),
    )
    .await;
    let operator = connect(&server, "u-operator").await;
    for _ in 0..3 {
        operator.call::<LaterApply>(&web1(), &request(Some(2))).await.unwrap();
    }
    assert_eq!((later.writes(), later.questions()), (3, 1), "it is asked once");
}

#[tokio::test]
async fn this_release_tells_its_fields_where_they_are_asked_for() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let web1_loader = loader(&server, "web1").await;
    let operator = connect(&server, "u-operator").await;
    let version = async |fields| {
        operator.call::<loader::Version>(&web1(), &VersionRequest { fields }).await.unwrap()
    };
    assert_eq!(version(false).await.fields, None);
    let fields = version(true).await.fields.unwrap();
    assert!(fields["apply"].contains("atomic") && fields["get"].contains("cursor"));
    let error = operator.call::<LaterApply>(&web1(), &request(Some(2))).await.unwrap_err();
    refused(&error.to_api_error(), env!("CARGO_PKG_VERSION"), "rollout");
    assert_eq!(web1_loader.applied.load(Ordering::SeqCst), 0);
    operator.call::<loader::Apply>(&web1(), &apply(json!({}))).await.unwrap();
    assert_eq!(web1_loader.applied.load(Ordering::SeqCst), 1);
    web1_loader.stop().await;
}

/// The question before a change waits behind no read: a service whose reads are flooded is asked under the class
/// of the change.
#[tokio::test]
async fn the_question_before_a_change_is_no_read() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let flooded = common::raw(&server, "h-web1-loader").await;
    let subject = |verb| format!("canopy.v1.rpc.loader.{verb}.web1.*");
    let mut reads = flooded.client.subscribe(subject("read.version")).await.unwrap();
    let mut questions = flooded.client.subscribe(subject("write.version")).await.unwrap();
    let echo = "_INBOX.h-web1-loader.h-web1-loader.x";
    flooded.ask(echo, echo, HeaderMap::new(), "").await.expect("an echo");
    let client = flooded.client.clone();
    let answering = tokio::spawn(async move {
        let question = questions.next().await.unwrap();
        let answer = json!({ "service": "loader", "version": "0.3.0", "host": "web1",
                             "fields": { "apply": ["document", "dry_run"] } });
        let answer = rmp_serde::to_vec_named(&answer).unwrap();
        client.publish(question.reply.unwrap(), answer.into()).await.unwrap();
    });
    let operator = connect(&server, "u-operator").await;
    let error = operator.call::<LaterApply>(&web1(), &request(Some(2))).await.unwrap_err();
    refused(&error.to_api_error(), "0.3.0", "rollout");
    answering.await.unwrap();
    // What it says is believed for a while.
    operator.call::<LaterApply>(&web1(), &request(Some(2))).await.unwrap_err();
    flooded.ask(echo, echo, HeaderMap::new(), "").await.expect("an echo");
    let asked = tokio::time::timeout(Duration::ZERO, reads.next()).await;
    assert!(asked.is_err(), "{asked:?} was read");
}

/// It is answered by this release, to whoever may change something and into their own inbox alone.
#[tokio::test]
async fn the_question_before_a_change_is_for_who_may_change() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let web1_loader = loader(&server, "web1").await;
    let subject = |who| format!("canopy.v1.rpc.loader.write.version.web1.{who}");
    let mut viewer = common::raw(&server, "u-viewer").await;
    let mut heard = viewer.client.subscribe("_INBOX.u-viewer.>").await.unwrap();
    viewer.client.publish(subject("u-viewer"), "".into()).await.unwrap();
    viewer.expect_refused("loader.write.version").await;

    let operator = common::raw(&server, "u-operator").await;
    let others = "_INBOX.u-viewer.h-web1-loader.1";
    let question = operator.client.publish_with_reply(subject("u-operator"), others, "".into());
    question.await.unwrap();
    let own = "_INBOX.u-operator.h-web1-loader.1";
    let answer = operator.ask(&subject("u-operator"), own, HeaderMap::new(), "").await;
    let version: Value = rmp_serde::from_slice(&answer.expect("an answer").payload).unwrap();
    assert!(version["fields"]["apply"].as_array().unwrap().contains(&json!("atomic")));
    viewer.client.flush().await.unwrap();
    let answered = tokio::time::timeout(Duration::ZERO, heard.next()).await;
    assert!(answered.is_err(), "{answered:?} in another's inbox");
    assert_eq!(web1_loader.applied.load(Ordering::SeqCst), 0);
    web1_loader.stop().await;
}

/// Who does not say what it knows is sent the request: it refuses what it does not know itself.
#[tokio::test]
async fn a_silent_receiver_is_not_waited_for_long() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let silent = common::raw(&server, "h-web1-loader").await;
    let subject = |verb| format!("canopy.v1.rpc.loader.{verb}.web1.*");
    let _version = silent.client.subscribe(subject("read.version")).await.unwrap();
    let _apply = silent.client.subscribe(subject("write.apply")).await.unwrap();
    let echo = "_INBOX.h-web1-loader.h-web1-loader.x";
    silent.ask(echo, echo, HeaderMap::new(), "").await.expect("an echo");
    let operator = connect(&server, "u-operator").await;
    let options =
        CallOptions { timeout: Some(Duration::from_millis(1200)), ..CallOptions::default() };
    let begun = std::time::Instant::now();
    let error = operator.call_with::<LaterApply>(&web1(), &request(Some(2)), options).await;
    let error = error.unwrap_err();
    assert!(matches!(error, CallError::Timeout { .. }), "{error}");
    // The question before it is within the time of the request.
    assert!(begun.elapsed() < Duration::from_millis(1700), "{:?}", begun.elapsed());
}

/// Daemons put only the questions that the table has them put: a service that they call refuses by itself
/// what it does not know.
#[tokio::test]
async fn a_daemon_asks_nothing_that_it_may_not_ask() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let bus = connect(&server, "s-policy").await;
    let service = Server::new(bus.clone(), Service::Policy, None).handle::<policy::Admit, _, _>(
        |_, request: AdmitRequest| async move {
            assert!(request.items[0].within.is_some());
            Ok(AdmitReply { basis: AdmissionBasis::Open, decisions: Vec::new() })
        },
    );
    let service = Running::start(bus, service).wait_ready().await;
    let web1 = connect(&server, "h-web1-loader").await;
    let item = AdmissionItem {
        within: Some("eth*".parse().unwrap()),
        ..AdmissionItem::new(AdmissionVerb::Apply)
    };
    let request = AdmitRequest {
        principal: "u-operator".parse().unwrap(),
        items: vec![item],
        dry_run: false,
    };
    web1.call::<policy::Admit>(&Target::Central, &request).await.unwrap();
    assert_eq!(web1.statistics().refused, 0, "the bus server refused a question");
    service.stop().await;
}
