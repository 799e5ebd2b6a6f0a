//! A server, services and clients for the tests of the bus.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use async_nats::{Client, ConnectOptions, HeaderMap, Message};
use canopy_api::{
    endpoint::{Service, loader, registry},
    error::{ApiError, Code},
    name::HostId,
    wire::{ApplyReply, ApplyRequest, GetReply, GetRequest, ListReply},
};
use canopy_bus::{Bus, BusConfig, BusError, Clock, Server};
use canopy_test_support::nats::{ClientFiles, NatsServer};
use futures::StreamExt as _;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes, also on a machine busy with other things.
pub const LIMIT: Duration = Duration::from_secs(30);

pub fn config(files: &ClientFiles) -> BusConfig {
    let ClientFiles { url, ca, cert, key } = files.clone();
    BusConfig::new(url, ca, cert, key)
}

/// A client that carries messages.
pub async fn connect(server: &NatsServer, principal: &str) -> Bus {
    let bus =
        Bus::connect(&config(&server.client(principal)), principal.parse().unwrap()).await.unwrap();
    bus.wait_ready(LIMIT).await.unwrap();
    bus
}

/// The same with a clock that is off.
pub async fn connect_off(server: &NatsServer, principal: &str, ahead: i64) -> Bus {
    let clock: Clock = Arc::new(move || {
        let by = Duration::from_secs(ahead.unsigned_abs());
        if ahead < 0 { SystemTime::now() - by } else { SystemTime::now() + by }
    });
    let files = config(&server.client(principal));
    let bus = Bus::connect_with_clock(&files, principal.parse().unwrap(), clock).await.unwrap();
    bus.wait_ready(LIMIT).await.unwrap();
    bus
}

/// A client without our library, as an adversary has.
pub struct Raw {
    pub client: Client,
    pub errors: tokio::sync::mpsc::UnboundedReceiver<String>,
}

pub async fn raw(server: &NatsServer, principal: &str) -> Raw {
    let files = server.client(principal);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (tell, errors) = tokio::sync::mpsc::unbounded_channel();
    let client = ConnectOptions::new()
        .require_tls(true)
        .tls_first()
        .add_root_certificates(files.ca)
        .add_client_certificate(files.cert, files.key)
        .event_callback(move |event| {
            let tell = tell.clone();
            async move {
                let _ = tell.send(event.to_string());
            }
        })
        .connect(&files.url)
        .await
        .unwrap();
    Raw { client, errors }
}

impl Raw {
    /// Publishes, subscribing to `reply` first; the answer, `None` if there is none in [`LIMIT`].
    pub async fn ask(
        &self,
        subject: &str,
        reply: &str,
        headers: HeaderMap,
        payload: impl Into<Vec<u8>>,
    ) -> Option<Message> {
        let mut replies = self.client.subscribe(reply.to_owned()).await.unwrap();
        self.client
            .publish_with_reply_and_headers(
                subject.to_owned(),
                reply.to_owned(),
                headers,
                payload.into().into(),
            )
            .await
            .unwrap();
        self.client.flush().await.unwrap();
        timeout(LIMIT, replies.next()).await.ok().flatten()
    }

    /// Waits until the server has refused something that names `text`.
    pub async fn expect_refused(&mut self, text: &str) {
        let mut seen = Vec::new();
        let found = timeout(LIMIT, async {
            while let Some(error) = self.errors.recv().await {
                if error.contains("Permissions Violation") && error.contains(text) {
                    return true;
                }
                seen.push(error);
            }
            false
        })
        .await;
        assert_eq!(found, Ok(true), "{text} was not refused; seen {seen:?}");
    }
}

/// A service that runs in the test.
pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), BusError>>,
    pub ready: tokio::sync::watch::Receiver<bool>,
    pub bus: Bus,
    /// Handler invocations of `apply`.
    pub applied: Arc<AtomicU32>,
}

impl Running {
    pub fn start(bus: Bus, server: Server) -> Self {
        let stop = CancellationToken::new();
        let (tell, ready) = tokio::sync::watch::channel(false);
        let server = server.on_ready(move |ok, _| {
            tell.send_replace(ok);
        });
        let task = tokio::spawn(server.serve(stop.clone()));
        Self { stop, task, ready, bus, applied: Arc::default() }
    }

    pub async fn wait_ready(mut self) -> Self {
        timeout(LIMIT, self.ready.wait_for(|ready| *ready)).await.expect("ready in time").unwrap();
        self
    }

    pub async fn stop(self) {
        self.stop.cancel();
        timeout(LIMIT, self.task).await.expect("ends in time").unwrap().unwrap();
        self.bus.close().await;
    }

    /// What `serve` returned.
    pub async fn outcome(self) -> Result<(), BusError> {
        timeout(LIMIT, self.task).await.expect("ends in time").unwrap()
    }
}

pub fn get_reply(host: &HostId) -> GetReply {
    GetReply {
        host: host.clone(),
        generation: 7,
        drained: false,
        kernel: "6.18".into(),
        version: "0".into(),
        started: String::new(),
        chains: Vec::new(),
        selectors: Vec::new(),
        stray_pins: Vec::new(),
        next: None,
    }
}

/// A loader without a kernel. `apply` takes documents with `wait` (milliseconds before it
/// answers), `panic`, `fail` (unavailable).
pub async fn loader(server: &NatsServer, host: &str) -> Running {
    let bus = connect(server, &format!("h-{host}-loader")).await;
    loader_on(bus, host, |server| server).await
}

pub async fn loader_on(bus: Bus, host: &str, more: impl FnOnce(Server) -> Server) -> Running {
    let host: HostId = host.parse().unwrap();
    let applied = Arc::new(AtomicU32::new(0));
    let count = applied.clone();
    let (for_get, for_apply) = (host.clone(), host.clone());
    let service = Server::new(bus.clone(), Service::Loader, Some(host))
        .handle::<loader::Get, _, _>(move |_, _: GetRequest| {
            let reply = get_reply(&for_get);
            async move { Ok(reply) }
        })
        .handle::<loader::Apply, _, _>(move |_, request: ApplyRequest| {
            let (count, host) = (count.clone(), for_apply.clone());
            async move {
                let generation = count.fetch_add(1, Ordering::SeqCst) + 1;
                if let Some(wait) = request.document["wait"].as_u64() {
                    tokio::time::sleep(Duration::from_millis(wait)).await;
                }
                assert!(request.document["panic"].is_null(), "asked to panic");
                if !request.document["fail"].is_null() {
                    return Err(ApiError::new(Code::Unavailable, "not now"));
                }
                Ok(ApplyReply {
                    host,
                    generation: generation.into(),
                    dry_run: request.dry_run,
                    chains: Vec::new(),
                    selectors: Vec::new(),
                    admission: None,
                    omitted: Vec::new(),
                })
            }
        });
    let mut running = Running::start(bus, more(service)).wait_ready().await;
    running.applied = applied;
    running
}

pub async fn registry(server: &NatsServer) -> Running {
    let bus = connect(server, "s-registry").await;
    let service = Server::new(bus.clone(), Service::Registry, None)
        .handle::<registry::List, _, _>(|_, _| async { Ok(ListReply::default()) });
    Running::start(bus, service).wait_ready().await
}

pub fn apply(document: serde_json::Value) -> ApplyRequest {
    ApplyRequest {
        document,
        expected_generation: None,
        dry_run: false,
        allow_downgrade: Vec::new(),
        atomic: false,
    }
}
