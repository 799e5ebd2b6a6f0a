//! What requests and replies may hold, for every endpoint of the table: a request with a field that it does
//! not have is refused, wherever the field stands; a reply or an event with one is read.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

#[path = "common/sample.rs"]
mod sample;

use canopy_api::{
    ApiError, Code,
    endpoint::{self, Class, Endpoint, EndpointSpec, EndpointVisitor, Service},
    permission::daemon_principal,
    subject::{self, Target},
    wire,
};
use canopy_bus::{Encoding, Server};
use canopy_test_support::nats::NatsServer;
use common::{Raw, Running, connect, raw};
use sample::{full, host, pointer, structures};
use schemars::{JsonSchema, schema_for};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

const ENCODINGS: [Encoding; 2] = [Encoding::Json, Encoding::MessagePack];

/// Serves every endpoint of the table; what comes as far as a handler is counted.
struct Stubs {
    servers: BTreeMap<Service, Server>,
    reached: Arc<AtomicU32>,
}

impl EndpointVisitor for Stubs {
    fn visit<E: Endpoint>(&mut self) {
        // Served by every server without a handler.
        if ["health", "version"].contains(&E::SPEC.verb) {
            return;
        }
        let reached = Arc::clone(&self.reached);
        let server = self.servers.remove(&E::SPEC.service).unwrap();
        let server = server.handle::<E, _, _>(move |_, _| {
            reached.fetch_add(1, Ordering::SeqCst);
            async { Err(ApiError::new(Code::Unsupported, "reached")) }
        });
        self.servers.insert(E::SPEC.service, server);
    }
}

/// Who may call an endpoint.
fn caller(spec: &EndpointSpec) -> &'static str {
    match spec.class {
        Class::Read | Class::Write | Class::Admin => "u-admin",
        Class::Publish => "u-publisher",
        Class::Internal => "h-web1-loader",
    }
}

fn target(spec: &EndpointSpec) -> Target {
    if spec.service.is_host_local() { Target::Host(host()) } else { Target::Central }
}

fn encoded(encoding: Encoding, value: &Value) -> Vec<u8> {
    match encoding {
        Encoding::Json => serde_json::to_vec(value).unwrap(),
        Encoding::MessagePack => rmp_serde::to_vec_named(value).unwrap(),
    }
}

fn decoded<T: DeserializeOwned>(encoding: Encoding, bytes: &[u8]) -> Result<T, String> {
    match encoding {
        Encoding::Json => serde_json::from_slice(bytes).map_err(|e| e.to_string()),
        Encoding::MessagePack => rmp_serde::from_slice(bytes).map_err(|e| e.to_string()),
    }
}

/// Asks as a stranger's client would; the error that is answered, `None` where it is no error.
async fn ask(
    clients: &BTreeMap<&str, Raw>,
    spec: &EndpointSpec,
    encoding: Encoding,
    payload: Vec<u8>,
) -> Option<ApiError> {
    let me = caller(spec).parse().unwrap();
    let target = target(spec);
    let subject = subject::request(spec, &target, &me);
    let random = rand_token();
    let reply = format!("_INBOX.{me}.{}.{random}", target.responder(spec.service));
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Content-Type", encoding.content_type());
    let answer = clients[caller(spec)].ask(&subject, &reply, headers, payload).await;
    let answer = answer.unwrap_or_else(|| panic!("{} was not answered", spec.verb));
    let failed = answer.headers.as_ref().is_some_and(|h| h.get("Nats-Service-Error").is_some());
    failed.then(|| decoded(encoding, &answer.payload).unwrap())
}

fn rand_token() -> String {
    use std::sync::atomic::AtomicU64;
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("r{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Blobs are bytes in MessagePack, not text.
fn has_blob(schema: &Value) -> bool {
    schema.pointer("/$defs/Blob").is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_refuses_unknown_fields_at_every_depth() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let mut stubs = Stubs { servers: BTreeMap::new(), reached: Arc::default() };
    let mut buses = BTreeMap::new();
    for service in Service::ALL {
        let of = service.is_host_local().then(host);
        let me = daemon_principal(service, of.as_ref()).unwrap();
        let bus = connect(&server, me.as_str()).await;
        stubs.servers.insert(service, Server::new(bus.clone(), service, of));
        buses.insert(service, bus);
    }
    endpoint::for_each(&mut stubs);
    let reached = Arc::clone(&stubs.reached);
    let mut running = Vec::new();
    for (service, server) in stubs.servers {
        running.push(Running::start(buses[&service].clone(), server).wait_ready().await);
    }
    let mut clients = BTreeMap::new();
    for who in ["u-admin", "u-publisher", "h-web1-loader"] {
        clients.insert(who, raw(&server, who).await);
    }

    let (mut endpoints, mut misspelt) = (0, 0);
    for spec in endpoint::all() {
        let Some(schemas) = spec.schemas else { continue };
        let schema = Value::from(schemas().0);
        let whole = full(&schema);
        endpoints += 1;
        for encoding in ENCODINGS {
            let name = format!("{}.{} {encoding:?}", spec.service, spec.verb);
            if encoding == Encoding::Json || !has_blob(&schema) {
                // As it should be it reaches the handler, so that what is refused below is refused for
                // the field.
                let before = reached.load(Ordering::SeqCst);
                let answer = ask(&clients, spec, encoding, encoded(encoding, &whole)).await;
                if let Some(error) = answer {
                    assert_eq!(error.code, Code::Unsupported, "{name}: {whole}: {error:?}");
                    assert_eq!(reached.load(Ordering::SeqCst), before + 1, "{name}");
                }
            }
            let before = reached.load(Ordering::SeqCst);
            for place in structures(&whole) {
                let fields: Vec<String> = match whole.pointer(&pointer(&place)).unwrap() {
                    Value::Object(fields) => fields.keys().cloned().collect(),
                    _ => unreachable!(),
                };
                // Each field that is there with a letter too many, and one that is there beside them all.
                for field in fields.iter().map(Some).chain([None]) {
                    let mut wrong = whole.clone();
                    let object = wrong.pointer_mut(&pointer(&place)).unwrap();
                    let object = object.as_object_mut().unwrap();
                    let (slip, value) = match field {
                        Some(field) => (format!("{field}x"), object.remove(field).unwrap()),
                        None => ("nobodys".to_owned(), json!({"a": [1]})),
                    };
                    object.insert(slip.clone(), value);
                    let answer = ask(&clients, spec, encoding, encoded(encoding, &wrong)).await;
                    let said = format!("{name}: {wrong}: {answer:?}");
                    let error = answer.expect(&said);
                    assert_eq!(error.code, Code::Invalid, "{said}");
                    let mut problems = error.problems.clone();
                    problems.push(canopy_api::Problem {
                        path: error.path.clone(),
                        message: error.message.clone(),
                        remedy: error.remedy.clone(),
                    });
                    let steps: String = place
                        .iter()
                        .map(|step| match step.parse::<usize>() {
                            Ok(at) => format!("[{at}]"),
                            Err(_) => format!(".{step}"),
                        })
                        .collect();
                    let path = format!("{steps}.{slip}");
                    let path = path.strip_prefix('.').unwrap_or(&path);
                    let told = problems.iter().find(|problem| problem.path == path).expect(&said);
                    assert_eq!(told.message, format!("unknown field \"{slip}\""), "{said}");
                    if let Some(field) = field {
                        let meant = format!("did you mean \"{field}\"?");
                        assert_eq!(told.remedy.as_ref(), Some(&meant), "{said}");
                    }
                    misspelt += 1;
                }
            }
            assert_eq!(reached.load(Ordering::SeqCst), before, "{name}: a handler was reached");
        }
    }
    assert!(endpoints >= 45 && misspelt >= 400, "{endpoints} endpoints, {misspelt} requests");
    for service in running {
        service.stop().await;
    }
}

/// A value with a field that nobody knows in every structure of it.
fn with_more(schema: &Value) -> Value {
    let mut value = full(schema);
    for place in structures(&value) {
        let object = value.pointer_mut(&pointer(&place)).unwrap().as_object_mut().unwrap();
        // The one field of an enumeration with content says which it is.
        if object.keys().any(|name| ["x5t#S256", "dns", "exact"].contains(&name.as_str())) {
            continue;
        }
        object.insert("nobodys".to_owned(), json!({"a": [1]}));
    }
    value
}

fn is_read<T: DeserializeOwned + JsonSchema>(name: &str) {
    let schema = Value::from(schema_for!(T));
    let value = with_more(&schema);
    for encoding in ENCODINGS {
        if encoding == Encoding::Json || !has_blob(&schema) {
            let read = decoded::<T>(encoding, &encoded(encoding, &value));
            assert!(read.is_ok(), "{name} {encoding:?}: {:?}: {value}", read.err());
        }
    }
}

struct Replies(u32);

impl EndpointVisitor for Replies {
    fn visit<E: Endpoint>(&mut self) {
        is_read::<E::Reply>(E::SPEC.verb);
        self.0 += 1;
    }
}

#[test]
fn readers_of_replies_and_events_ignore_unknown_fields() {
    let mut replies = Replies(0);
    endpoint::for_each(&mut replies);
    assert!(replies.0 >= 45, "{} replies", replies.0);
    is_read::<ApiError>("error");
    is_read::<wire::Audit>("audit");
    is_read::<wire::HostAlive>("host.alive");
    is_read::<wire::ChainRestored>("chain.restored");
    is_read::<wire::ChainChanged>("chain.changed");
    is_read::<wire::MapChanged>("map.changed");
    is_read::<wire::PackageRefused>("package.refused");
    is_read::<wire::PackageDowngraded>("package.downgraded");
    is_read::<wire::PackagePublished>("package.published");
    is_read::<wire::ConnectRefused>("connect.refused");
    is_read::<wire::ConnectCut>("connect.cut");
    is_read::<wire::AuditFinding>("audit.finding");
    is_read::<wire::MapRecords>("map.records");
}
