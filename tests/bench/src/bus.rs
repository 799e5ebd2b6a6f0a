//! `bus`: what security costs on the bus.
//!
//! Requests and replies over a server with TLS, accounts, permissions, private inboxes and the policy
//! service, by the project's own client and server, against an echo over a plain server by the bare
//! library: the same bytes both ways, in turns, in one run. Then how long a connect takes, how long
//! a connection outlives its token, and what good clients feel of others who try bad tokens.

use crate::report::Report;
use anyhow::{Context as _, Result, bail};
use async_nats::{Client, ConnectOptions};
use canopy_api::{
    endpoint::{Service, policy, registry},
    subject::{self, Target},
    wire::{RepositoryTrouble, SearchReply, SearchRequest, tokens::TokenRegenerateRequest},
};
use canopy_bus::{Bus, BusConfig, Link, Server};
use canopy_test_support::nats::{nats_server, private_file};
use futures::{StreamExt as _, stream};
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use xtask::{config::Layout, config::free_address, stack::Stack};

/// How much to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Turns; each measures both servers.
    #[arg(long, default_value_t = 10)]
    pub rounds: u32,
    /// Requests in a turn, one after the other.
    #[arg(long, default_value_t = 1_000)]
    pub sequential: u32,
    /// Requests in a turn, 64 in flight.
    #[arg(long, default_value_t = 10_000)]
    pub parallel: u32,
    /// Connects, and tokens regenerated.
    #[arg(long, default_value_t = 50)]
    pub connects: u32,
    /// How long bad tokens are tried, seconds.
    #[arg(long, default_value_t = 5)]
    pub attack_seconds: u64,
}

/// Requests in flight.
const IN_FLIGHT: usize = 64;
/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(30);
/// What makes a message 244 bytes.
const FILL: usize = 230;

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: &'static str,
    /// How much.
    pub value: f64,
    /// In what.
    pub unit: &'static str,
}

/// The whole with the policy service; the processes end with it.
struct Secure {
    stack: Stack,
    _dir: TempDir,
}

impl Drop for Secure {
    fn drop(&mut self) {
        // What is left is told by the next run.
        let _ = self.stack.remove();
    }
}

impl Secure {
    fn start() -> Result<Self> {
        let dir = TempDir::with_prefix("canopy-bench-")?;
        let layout = Layout {
            dir: dir.path().join("stack"),
            bpffs: dir.path().join("no-bpffs"),
            host: "bench".parse()?,
            bus: free_address(0)?,
            admin_port: 0,
        };
        let this = Self { stack: Stack::new(layout, nats_server()?), _dir: dir };
        this.stack.prepare()?;
        this.lift_limits()?;
        this.stack.start_bus()?;
        this.stack.wait_for_bus()?;
        this.stack.start_service(Service::Policy)?;
        this.stack.wait_ready(Service::Policy)?;
        this.stack.issue_tokens()?;
        Ok(this)
    }

    /// One person sends and connects here as much as a whole fleet.
    fn lift_limits(&self) -> Result<()> {
        let path = self.stack.layout().service_config(Service::Policy);
        let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
        let auth = config.get_mut("auth").and_then(Value::as_object_mut).context("no auth")?;
        let people =
            json!({ "messages_per_second": 0, "bytes_per_second": 0, "connects_per_second": 0 });
        auth.insert("limits".to_owned(), json!({ "people": people }));
        fs::write(&path, serde_json::to_vec_pretty(&config)?)?;
        Ok(())
    }

    fn config(&self, principal: &str) -> BusConfig {
        let layout = self.stack.layout();
        let file = |ending: &str| layout.pki_dir().join(format!("{principal}.{ending}"));
        BusConfig {
            token: Some(self.token(principal)).filter(|token| token.exists()),
            ..BusConfig::new(
                layout.bus_url(),
                layout.pki_dir().join("ca.crt"),
                file("crt"),
                file("key"),
            )
        }
    }

    fn token(&self, principal: &str) -> PathBuf {
        self.stack.layout().token(principal)
    }

    async fn connect(&self, principal: &str) -> Result<Bus> {
        let bus = Bus::connect(&self.config(principal), principal.parse()?).await?;
        bus.wait_ready(LIMIT).await?;
        Ok(bus)
    }
}

/// A server without any security, and its echo.
struct Plain {
    server: Child,
    _dir: TempDir,
    client: Client,
}

impl Drop for Plain {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Plain {
    async fn start() -> Result<Self> {
        let dir = TempDir::new()?;
        let address: SocketAddr = free_address(0)?;
        let server = Command::new(nats_server()?)
            .args(["-a", &address.ip().to_string(), "-p", &address.port().to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("nats-server")?;
        let connect = || async {
            let until = Instant::now() + LIMIT;
            loop {
                match ConnectOptions::new().connect(address.to_string()).await {
                    Ok(client) => return anyhow::Ok(client),
                    Err(error) if Instant::now() > until => bail!("no plain server: {error}"),
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let echo = connect().await?;
        let mut requests = echo.subscribe("echo").await?;
        echo.flush().await?;
        tokio::spawn(async move {
            while let Some(message) = requests.next().await {
                if let Some(reply) = message.reply {
                    let _ = echo.publish(reply, message.payload).await;
                }
            }
        });
        Ok(Self { server, _dir: dir, client: connect().await? })
    }
}

/// The bare library over the server with all security: what the project's own client and server add is
/// the difference to this.
struct Bare {
    client: Client,
    subject: String,
    headers: async_nats::HeaderMap,
}

impl Bare {
    async fn start(secure: &Secure) -> Result<Self> {
        let connect = async |principal: &str, inbox: &str| {
            let config = secure.config(principal);
            let mut options = ConnectOptions::new()
                .require_tls(true)
                .tls_first()
                .custom_inbox_prefix(inbox)
                .add_root_certificates(config.ca)
                .add_client_certificate(config.cert, config.key);
            if let Some(token) = config.token {
                options = options.token(std::fs::read_to_string(token)?.trim().to_owned());
            }
            anyhow::Ok(options.connect(&config.url).await?)
        };
        let echo = connect("s-registry", "_INBOX.s-registry.none").await?;
        // A verb of its own, which the service that is measured beside does not serve.
        let spec = <registry::Resolve as canopy_api::endpoint::Endpoint>::SPEC;
        let subject = subject::request(spec, &Target::Central, &"u-operator".parse()?);
        let mut requests = echo.subscribe(subject::subscription(spec, &Target::Central)).await?;
        echo.flush().await?;
        tokio::spawn(async move {
            while let Some(message) = requests.next().await {
                if let Some(reply) = message.reply {
                    let headers = message.headers.unwrap_or_default();
                    let _ = if headers.is_empty() {
                        echo.publish(reply, message.payload).await
                    } else {
                        echo.publish_with_headers(reply, headers, message.payload).await
                    };
                }
            }
        });
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Content-Type", "application/msgpack");
        headers.insert("Canopy-Deadline", "1700000000000");
        headers.insert("Canopy-Request-Id", "0123456789abcdef0123456789abcdef");
        let client = connect("u-operator", "_INBOX.u-operator.s-registry").await?;
        Ok(Self { client, subject, headers })
    }
}

/// Asks in turn; each time, microseconds.
async fn sequential<F: Future<Output = Result<()>>>(
    count: u32,
    ask: impl Fn() -> F,
) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let begun = Instant::now();
        ask().await?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}

/// Asks with so many in flight; requests a second.
async fn parallel<F: Future<Output = Result<()>>>(count: u32, ask: impl Fn() -> F) -> Result<f64> {
    let begun = Instant::now();
    let mut running = stream::iter(0..count).map(|_| ask()).buffer_unordered(IN_FLIGHT);
    while let Some(done) = running.next().await {
        done?;
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}

fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place in a short list"
    )]
    let place = ((values.len().saturating_sub(1)) as f64 * q).round() as usize;
    values.get(place).copied().unwrap_or(f64::NAN)
}

/// Runs the bench.
pub fn run(options: &Options) -> Result<Report<Row>> {
    let secure = Secure::start()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(&secure, options))
}

async fn measure(secure: &Secure, options: &Options) -> Result<Report<Row>> {
    let plain = Plain::start().await?;
    let stop = CancellationToken::new();
    let service = secure.connect("s-registry").await?;
    let fill = "x".repeat(FILL);
    let reply = SearchReply {
        packages: Vec::new(),
        unavailable: vec![RepositoryTrouble { repository: "r".to_owned(), reason: fill.clone() }],
        ..SearchReply::default()
    };
    let server = Server::new(service, Service::Registry, None).handle::<registry::Search, _, _>(
        move |_, _| {
            let reply = reply.clone();
            async move { Ok(reply) }
        },
    );
    let serving = tokio::spawn(server.serve(stop.clone()));
    let operator = secure.connect("u-operator").await?;
    let question = SearchRequest { words: vec![fill.clone()], ..SearchRequest::default() };
    let secure_ask = || async {
        operator.call::<registry::Search>(&Target::Central, &question).await?;
        Ok(())
    };
    let bytes = bytes::Bytes::from("x".repeat(244));
    let plain_ask = || async {
        plain.client.request("echo", bytes.clone()).await?;
        Ok(())
    };
    let bare = Bare::start(secure).await?;
    let bare_ask = || async {
        bare.client.request(bare.subject.clone(), bytes.clone()).await?;
        Ok(())
    };
    let headed_ask = || async {
        let (subject, headers) = (bare.subject.clone(), bare.headers.clone());
        bare.client.request_with_headers(subject, headers, bytes.clone()).await?;
        Ok(())
    };
    // Until the service has subscribed.
    let until = Instant::now() + LIMIT;
    while secure_ask().await.is_err() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    sequential(200, plain_ask).await?;
    sequential(200, secure_ask).await?;
    sequential(200, headed_ask).await?;

    let (mut plain_times, mut secure_times) = (Vec::new(), Vec::new());
    let (mut plain_rates, mut secure_rates) = (Vec::new(), Vec::new());
    let (mut bare_rates, mut headed_rates) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        plain_times.extend(sequential(options.sequential, plain_ask).await?);
        secure_times.extend(sequential(options.sequential, secure_ask).await?);
        plain_rates.push(parallel(options.parallel, plain_ask).await?);
        bare_rates.push(parallel(options.parallel, bare_ask).await?);
        headed_rates.push(parallel(options.parallel, headed_ask).await?);
        secure_rates.push(parallel(options.parallel, secure_ask).await?);
    }
    let connects = connects(secure, options.connects).await?;
    let cuts = cuts(secure, options.connects).await?;
    let attack = attack(secure, &operator, &question, options.attack_seconds).await?;
    stop.cancel();
    serving.await??;
    report(
        [&mut plain_times, &mut secure_times],
        [&mut plain_rates, &mut bare_rates, &mut headed_rates, &mut secure_rates],
        connects,
        cuts,
        attack,
    )
}

/// Connects as a person until a message comes back; milliseconds.
async fn connects(secure: &Secure, count: u32) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for _ in 0..count {
        let begun = Instant::now();
        let bus = secure.connect("u-operator").await?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        bus.close().await;
    }
    Ok(times)
}

/// From the answer that a token was regenerated until the old one's connection is gone;
/// milliseconds.
async fn cuts(secure: &Secure, count: u32) -> Result<Vec<f64>> {
    let admin = secure.connect("u-admin").await?;
    let request =
        TokenRegenerateRequest { principal: "u-viewer".parse()?, binding: None, expires_in: None };
    let mut times = Vec::new();
    for _ in 0..count {
        let live = secure.connect("u-viewer").await?;
        let mut link = live.watch_link();
        let new = admin.call::<policy::TokenRegenerate>(&Target::Central, &request).await?;
        let begun = Instant::now();
        tokio::time::timeout(LIMIT, link.wait_for(|link| *link != Link::Connected)).await??;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        private_file(&secure.token("u-viewer"), &new.token.0)?;
    }
    Ok(times)
}

/// What good clients feel.
struct Attack {
    /// Refused connects a second.
    rate: f64,
    /// Times of good requests meanwhile, microseconds.
    requests: Vec<f64>,
    /// Times of good connects meanwhile, milliseconds.
    connects: Vec<f64>,
}

/// One core tries bad tokens as fast as it can.
async fn attack(
    secure: &Secure,
    operator: &Bus,
    question: &SearchRequest,
    seconds: u64,
) -> Result<Attack> {
    let config = secure.config("u-publisher");
    let (stop, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let attacker = {
        let (stop, refused) = (stop.clone(), refused.clone());
        std::thread::spawn(move || -> Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let attempt = || async {
                ConnectOptions::new()
                    .require_tls(true)
                    .tls_first()
                    .token("eyJhbGciOiJFZERTQSJ9.e30.AAAA".to_owned())
                    .add_root_certificates(config.ca.clone())
                    .add_client_certificate(config.cert.clone(), config.key.clone())
                    .connect(&config.url)
                    .await
            };
            runtime.block_on(async {
                let on = (0..u64::MAX).take_while(|_| !stop.load(Ordering::Relaxed));
                let mut running = stream::iter(on).map(|_| attempt()).buffer_unordered(16);
                while let Some(outcome) = running.next().await {
                    if outcome.is_ok() {
                        bail!("a bad token was let in");
                    }
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        })
    };
    let begun = Instant::now();
    let limit = Duration::from_secs(seconds);
    let (mut requests, mut connects) = (Vec::new(), Vec::new());
    while begun.elapsed() < limit {
        let asked = sequential(100, || async {
            operator.call::<registry::Search>(&Target::Central, question).await?;
            Ok(())
        });
        requests.extend(asked.await?);
        connects.extend(self::connects(secure, 1).await?);
    }
    let rate = f64::from(refused.load(Ordering::Relaxed)) / begun.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    attacker.join().map_err(|_| anyhow::anyhow!("the attackers panicked"))??;
    Ok(Attack { rate, requests, connects })
}

fn report(
    [plain_times, secure_times]: [&mut Vec<f64>; 2],
    [plain_rates, bare_rates, headed_rates, secure_rates]: [&mut Vec<f64>; 4],
    mut connects: Vec<f64>,
    mut cuts: Vec<f64>,
    mut attack: Attack,
) -> Result<Report<Row>> {
    let row = |what, value, unit| Row { what, value, unit };
    let (plain_p50, secure_p50) = (quantile(plain_times, 0.5), quantile(secure_times, 0.5));
    let (plain_rate, secure_rate) = (quantile(plain_rates, 0.5), quantile(secure_rates, 0.5));
    let bare_rate = quantile(bare_rates, 0.5);
    let connect_p50 = quantile(&mut connects, 0.5);
    let cut_p99 = quantile(&mut cuts, 0.99);
    let rows = vec![
        row("plain echo, one after the other, median", plain_p50, "µs"),
        row("secure request, one after the other, median", secure_p50, "µs"),
        row("secure request, p99", quantile(secure_times, 0.99), "µs"),
        row("plain echo, 64 in flight", plain_rate, "1/s"),
        row("bare library over the secure server, 64 in flight", bare_rate, "1/s"),
        row("the same with three headers, 64 in flight", quantile(headed_rates, 0.5), "1/s"),
        row("secure request, 64 in flight", secure_rate, "1/s"),
        row("connect until a message came back, median", connect_p50, "ms"),
        row("connect, p99", quantile(&mut connects, 0.99), "ms"),
        row("regenerated until cut, median", quantile(&mut cuts, 0.5), "ms"),
        row("regenerated until cut, p99", cut_p99, "ms"),
        row("under attack: bad connects refused", attack.rate, "1/s"),
        row("under attack: request, median", quantile(&mut attack.requests, 0.5), "µs"),
        row("under attack: request, p99", quantile(&mut attack.requests, 0.99), "µs"),
        row("under attack: connect, p99", quantile(&mut attack.connects, 0.99), "ms"),
    ];
    let ratios = BTreeMap::from([
        ("secure_vs_plain_seq_p50".to_owned(), secure_p50 / plain_p50),
        ("secure_vs_plain_c64_throughput".to_owned(), secure_rate / plain_rate),
        ("secure_vs_bare_c64".to_owned(), secure_rate / bare_rate),
        ("connect_ms_p50".to_owned(), connect_p50),
        ("cut_ms_p99".to_owned(), cut_p99),
    ]);
    let table = rows
        .iter()
        .map(|row| format!("{:<48} {:>12.1} {}", row.what, row.value, row.unit))
        .collect();
    Ok(Report { bench: "bus", kernel: crate::report::kernel()?, rows, ratios, table })
}
