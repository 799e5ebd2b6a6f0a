//! `attack`: what an operator and an administrator feel while somebody with a valid certificate floods the
//! stack.
//!
//! The real stack in a network namespace of its own: bus, policy, registry, and a loader that attaches to a
//! real interface. An operator changes a chain again and again and an administrator revokes tokens, first in
//! quiet, then during each flood of [`FLOODS`]. An attacker has one thread, a client of their own and the
//! rights of one principal. Then single attacks ([`ATTEMPTS`]) that have to be refused.
//!
//! Another flood is one more row of [`FLOODS`] with a function that runs until [`Attacker::on`] says no.

use crate::{attack_bus, report::Report};
use anyhow::{Context as _, Result, anyhow, ensure};
use async_nats::{Client, ConnectOptions, HeaderMap};
use bytes::Bytes;
use canopy_api::{
    endpoint::{Endpoint, EndpointSpec, Service, loader, policy},
    name::Principal,
    subject::{self, Target},
    time,
    wire::{
        AdmissionItem, AdmitRequest, ApplyRequest, AuditAppendRequest, hosts::HostEnrolRequest,
        tokens::TokenRegenerateRequest,
    },
};
use canopy_audit::{Chain, Entry, Kind};
use canopy_bus::{Bus, BusConfig, CallOptions, Link};
use canopy_e2e::{HOST, INTERFACE, World};
use canopy_test_support::nats::private_file;
use futures::{StreamExt as _, future::BoxFuture};
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use xtask::stack::Stack;

/// How much to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How long each flood lasts, and the quiet before, seconds.
    #[arg(long, default_value_t = 15)]
    pub seconds: u64,
    /// Tokens revoked in each.
    #[arg(long, default_value_t = 10)]
    pub revocations: u32,
    /// Only this flood.
    #[arg(long)]
    pub only: Option<String>,
}

/// The host of whoever attacks with a host's certificate.
const EVIL: &str = "evil";
/// How long an attacker that was cut off tries to come back.
const BACK_OFF: Duration = Duration::from_mins(1);
/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(30);

/// A flood: its name in the JSON, who attacks, and how.
pub struct Flood {
    /// `flood_<name>_success`.
    pub name: &'static str,
    /// Whose certificate and token the attacker has.
    pub principal: &'static str,
    /// What they do with it, until they are told to end.
    pub attack: fn(Attacker) -> BoxFuture<'static, Result<()>>,
}

/// Every flood.
pub const FLOODS: &[Flood] = &[
    Flood { name: "facts_all", principal: "u-viewer", attack: |me| Box::pin(facts_all(me)) },
    Flood { name: "token_list", principal: "u-viewer", attack: |me| Box::pin(token_list(me)) },
    Flood { name: "host_admit", principal: "h-evil-loader", attack: |me| Box::pin(host_admit(me)) },
    Flood { name: "audit_fill", principal: "h-evil-loader", attack: |me| Box::pin(audit_fill(me)) },
    Flood {
        name: "invalid_requests",
        principal: "u-admin",
        attack: |me| Box::pin(invalid_requests(me)),
    },
    Flood { name: "inbox_1mb", principal: "h-evil-loader", attack: |me| Box::pin(inbox_1mb(me)) },
    Flood {
        name: "subscriptions",
        principal: "u-viewer",
        attack: |me| Box::pin(subscriptions(me)),
    },
];

/// Who attacks: one connection, and when to end.
#[derive(Clone)]
pub struct Attacker {
    /// Their connection, by the bare library.
    pub client: Client,
    /// Who they are.
    pub principal: Principal,
    /// Requests or whatever else they sent so far.
    pub sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    next: Arc<AtomicU64>,
}

impl Attacker {
    /// Whether to go on.
    pub fn on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Sends a request and does not wait for the answer, which goes to an own inbox.
    pub async fn send(&self, spec: &EndpointSpec, target: &Target, payload: Bytes) -> Result<()> {
        let subject = subject::request(spec, target, &self.principal);
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let responder = target.responder(spec.service);
        let reply = format!("_INBOX.{}.{responder}.flood{n}", self.principal);
        let mut headers = HeaderMap::new();
        headers.insert("Content-Type", "application/json");
        self.client.publish_with_reply_and_headers(subject, reply, headers, payload).await?;
        self.sent.fetch_add(1, Ordering::Relaxed);
        if n.is_multiple_of(64) {
            self.client.flush().await?;
        }
        Ok(())
    }

    /// Sends a request and waits for the answer's payload and whether it is an error.
    pub async fn ask(
        &self,
        spec: &EndpointSpec,
        target: &Target,
        payload: Bytes,
    ) -> Result<(bool, Bytes)> {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let responder = target.responder(spec.service);
        let reply = format!("_INBOX.{}.{responder}.ask{n}", self.principal);
        let mut answers = self.client.subscribe(reply.clone()).await?;
        let mut headers = HeaderMap::new();
        headers.insert("Content-Type", "application/json");
        let subject = subject::request(spec, target, &self.principal);
        self.client.publish_with_reply_and_headers(subject, reply, headers, payload).await?;
        self.sent.fetch_add(1, Ordering::Relaxed);
        let answer = tokio::time::timeout(LIMIT, answers.next()).await?.context("no answer")?;
        let failed = answer.headers.is_some_and(|all| all.get("Nats-Service-Error").is_some());
        Ok((failed, answer.payload))
    }
}

/// Asks every host what it can do, as fast as it goes.
async fn facts_all(me: Attacker) -> Result<()> {
    while me.on() {
        me.send(loader::Facts::SPEC, &Target::AllHosts, Bytes::from_static(b"{}")).await?;
    }
    Ok(())
}

/// Lists the tokens.
async fn token_list(me: Attacker) -> Result<()> {
    while me.on() {
        me.send(policy::TokenList::SPEC, &Target::Central, Bytes::from_static(b"{}")).await?;
    }
    Ok(())
}

/// One host asks for admission of as much as a request holds.
async fn host_admit(me: Attacker) -> Result<()> {
    let item: AdmissionItem = serde_json::from_value(json!({
        "verb": "apply", "path": "document", "interface": "eth0", "hook": "xdp",
        "program": "blocklist", "package": "firewall", "version": "0.1.0"
    }))?;
    let request =
        AdmitRequest { principal: "u-operator".parse()?, items: vec![item; 100], dry_run: true };
    let payload = Bytes::from(serde_json::to_vec(&request)?);
    while me.on() {
        me.send(policy::Admit::SPEC, &Target::Central, payload.clone()).await?;
    }
    Ok(())
}

/// One host has records stored that are as long as they may be, one after the other.
async fn audit_fill(me: Attacker) -> Result<()> {
    let id = format!("{:016x}", rand::random::<u64>());
    let mut chain = Chain::new(me.principal.clone(), id.clone());
    let mut after = None;
    while me.on() {
        let mut lines = Vec::new();
        let mut head = None;
        let mut next = chain.clone();
        for _ in 0..20 {
            let entry = Entry {
                reason: "x".repeat(15_000),
                ..Entry::new(Kind::Refused, time::rfc3339(SystemTime::now()))
            };
            let (line, grown) = next.next(entry)?;
            next = grown;
            head = Some(next.head().to_string());
            lines.push(line);
        }
        let request = AuditAppendRequest { chain: id.clone(), after: after.clone(), lines };
        let payload = Bytes::from(serde_json::to_vec(&request)?);
        let (failed, _) = me.ask(policy::AuditAppend::SPEC, &Target::Central, payload).await?;
        if !failed {
            (chain, after) = (next, head);
        }
    }
    Ok(())
}

/// Sends changes to a host that cannot be read, to push out what it recorded before.
async fn invalid_requests(me: Attacker) -> Result<()> {
    let target = Target::Host(HOST.parse()?);
    while me.on() {
        me.send(loader::Apply::SPEC, &target, Bytes::from_static(b"{\"documen\": {}}")).await?;
    }
    Ok(())
}

/// One host sends large messages to the inboxes of another host's loader and of an operator.
async fn inbox_1mb(me: Attacker) -> Result<()> {
    let loader = format!("h-{HOST}-loader");
    let victims = [loader.as_str(), "u-operator"];
    attack_bus::inbox_1mb(&me.client, &me.principal, &victims, &me.sent, || me.on()).await
}

/// Subscribes as often as it goes.
async fn subscriptions(me: Attacker) -> Result<()> {
    attack_bus::subscriptions(&me.client, &me.principal, &me.sent, || me.on()).await
}

/// A single attack that has to be refused.
pub struct Attempt {
    /// What is tried.
    pub what: &'static str,
    /// By whom.
    pub principal: &'static str,
    /// Whether it was refused.
    pub refused: fn(Attacker) -> BoxFuture<'static, Result<bool>>,
}

/// Every single attack.
pub const ATTEMPTS: &[Attempt] = &[
    Attempt {
        what: "an audit record of 740 KB",
        principal: "h-evil-loader",
        refused: |me| {
            Box::pin(async move {
                let id = format!("{:016x}", rand::random::<u64>());
                let chain = Chain::new(me.principal.clone(), id.clone());
                let reason = "x".repeat(600_000);
                let (line, _) = chain.next(Entry { reason, ..Entry::new(Kind::Begun, "t") })?;
                append_refused(&me, id, line).await
            })
        },
    },
    Attempt {
        what: "an audit record in another host's name",
        principal: "h-evil-loader",
        refused: |me| {
            Box::pin(async move {
                let id = format!("{:016x}", rand::random::<u64>());
                let other = format!("h-{HOST}-loader").parse()?;
                let (line, _) = Chain::new(other, id.clone()).next(Entry::new(Kind::Begun, "t"))?;
                append_refused(&me, id, line).await
            })
        },
    },
    Attempt {
        what: "a request of 900 KB",
        principal: "u-viewer",
        refused: |me| {
            Box::pin(async move {
                let long = format!("{{}}{}", " ".repeat(900_000));
                let (spec, target) = (policy::TokenList::SPEC, Target::Central);
                Ok(me.ask(spec, &target, long.into()).await?.0)
            })
        },
    },
    Attempt {
        what: "a request with a field that is not known",
        principal: "u-viewer",
        refused: |me| {
            Box::pin(async move {
                let (spec, target) = (policy::TokenList::SPEC, Target::Central);
                Ok(me.ask(spec, &target, Bytes::from_static(b"{\"al\": 1}")).await?.0)
            })
        },
    },
];

async fn append_refused(me: &Attacker, chain: String, line: String) -> Result<bool> {
    let request = AuditAppendRequest { chain, after: None, lines: vec![line] };
    let payload = serde_json::to_vec(&request)?;
    Ok(me.ask(policy::AuditAppend::SPEC, &Target::Central, payload.into()).await?.0)
}

/// A row of the result.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The flood; `quiet` without one.
    pub flood: &'static str,
    /// What the attacker sent, a second.
    pub sent_per_second: f64,
    /// Changes the operator asked for.
    pub changes: usize,
    /// How many of ten were made.
    pub success: f64,
    /// Of those, the middle one, milliseconds.
    pub median_ms: f64,
    /// 99 of 100 took at most this.
    pub p99_ms: f64,
    /// From asking for a revocation until the connection is gone, 99 of 100, milliseconds.
    pub revoke_p99_ms: f64,
}

/// What was measured during one flood.
struct Felt {
    changes: Vec<Option<f64>>,
    revocations: Vec<f64>,
}

struct Bench<'a> {
    stack: &'a Stack,
    dir: PathBuf,
}

/// Runs the bench.
pub fn run(options: &Options) -> Result<Report<Row>> {
    let chosen = |flood: &&Flood| options.only.as_deref().is_none_or(|only| only == flood.name);
    let floods: Vec<&Flood> = FLOODS.iter().filter(chosen).collect();
    ensure!(!floods.is_empty(), "there is no flood of that name");
    let world = World::start_under(Path::new("/dev/shm"))?;
    let report = world.inside(|stack| {
        let bench = Bench { stack, dir: stack.layout().dir.join("attack") };
        fs::create_dir_all(&bench.dir)?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(bench.measure(&floods, options))
    })?;
    world.end()?;
    Ok(report)
}

impl Bench<'_> {
    fn config(&self, principal: &str) -> BusConfig {
        let layout = self.stack.layout();
        let own = self.dir.join(format!("{principal}.crt"));
        let file = |ending: &str| layout.pki_dir().join(format!("{principal}.{ending}"));
        let (cert, key) = if own.exists() {
            (own, self.dir.join(format!("{principal}.key")))
        } else {
            (file("crt"), file("key"))
        };
        let token = layout.token(principal);
        BusConfig {
            token: Some(token).filter(|token| token.exists()),
            ..BusConfig::new(layout.bus_url(), layout.pki_dir().join("ca.crt"), cert, key)
        }
    }

    async fn connect(&self, principal: &str) -> Result<Bus> {
        let bus = Bus::connect(&self.config(principal), principal.parse()?).await?;
        bus.wait_ready(LIMIT).await?;
        Ok(bus)
    }

    /// Enrols the attacker's host.
    async fn enrol(&self, admin: &Bus) -> Result<()> {
        let mut certificates = BTreeMap::new();
        let mut keys = BTreeMap::new();
        for service in [Service::Loader, Service::Enforcer] {
            let principal = format!("h-{EVIL}-{service}").parse()?;
            let (key, request) = canopy_identity::request(&principal)?;
            keys.insert(service, (principal, key.to_string()));
            certificates.insert(service, request);
        }
        let request = HostEnrolRequest {
            host: EVIL.parse()?,
            certificates,
            labels: BTreeMap::new(),
            expires_in: None,
            replace: false,
        };
        let reply = admin.call::<policy::HostEnrol>(&Target::Central, &request).await?;
        for (service, certificate) in reply.certificates {
            let (principal, key) = keys.get(&service).context("a certificate nobody asked for")?;
            fs::write(self.dir.join(format!("{principal}.crt")), certificate)?;
            private_file(&self.dir.join(format!("{principal}.key")), key)?;
        }
        Ok(())
    }

    async fn measure(&self, floods: &[&Flood], options: &Options) -> Result<Report<Row>> {
        let admin = self.connect("u-admin").await?;
        self.enrol(&admin).await?;
        let operator = self.connect("u-operator").await?;
        // The first is cold.
        change(&operator, 0).await?;
        change(&operator, 1).await?;
        let mut quiet = Box::pin(self.felt(&operator, &admin, options)).await?;
        let mut rows = vec![row("quiet", 0.0, &mut quiet)];
        let mut ratios = BTreeMap::new();
        let mut revocations = quiet.revocations;
        let (mut tried, mut refused) = (0_u32, 0_u32);
        // Before the floods: whoever is cut off for one is refused for a while.
        for attempt in ATTEMPTS {
            let (stop, sent) = (Arc::default(), Arc::default());
            let config = self.config(attempt.principal);
            let me = attacker(&config, attempt.principal.parse()?, stop, sent).await?;
            let held = (attempt.refused)(me).await.with_context(|| attempt.what)?;
            tried += 1;
            refused += u32::from(held);
            if !held {
                eprintln!("not refused: {}", attempt.what);
            }
        }
        for flood in floods {
            eprintln!("flood: {}", flood.name);
            let (config, stop) = (self.config(flood.principal), Arc::new(AtomicBool::new(false)));
            let sent = Arc::new(AtomicU64::new(0));
            let (principal, attack) = (flood.principal.parse()?, flood.attack);
            let (ended, count) = (Arc::clone(&stop), Arc::clone(&sent));
            // One core of their own.
            let (connected, ready) = tokio::sync::oneshot::channel();
            let attacker = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async move {
                    let me = attacker(&config, principal, ended, count).await?;
                    // Nobody waits any more where the bench has ended.
                    let _ = connected.send(());
                    attack(me).await
                })
            });
            ready.await.with_context(|| format!("{} could not connect", flood.principal))?;
            let begun = Instant::now();
            let felt = Box::pin(self.felt(&operator, &admin, options)).await;
            let rate = float(sent.load(Ordering::Relaxed)) / begun.elapsed().as_secs_f64();
            stop.store(true, Ordering::Relaxed);
            let ended = attacker.join().map_err(|_| anyhow!("the attacker panicked"))?;
            let mut felt = felt?;
            // Whoever is cut off for the attack attacks no more: that is no failure of the bench.
            if let Err(error) = ended {
                eprintln!("{}: the attack ended: {error:#}", flood.name);
            }
            let row = row(flood.name, rate, &mut felt);
            revocations.append(&mut felt.revocations);
            let quiet = rows.first().map_or(f64::NAN, |quiet| quiet.p99_ms);
            let ratio = row.p99_ms / quiet;
            tried += 1;
            refused +=
                u32::from(row.success >= 0.95 && ratio <= 4.0 && row.revoke_p99_ms <= 1000.0);
            ratios.insert(format!("flood_{}_success", flood.name), row.success);
            ratios.insert(format!("flood_{}_p99_ratio", flood.name), ratio);
            rows.push(row);
        }
        ratios.insert("revoke_ms_p99".to_owned(), quantile(&mut revocations, 0.99));
        ratios.insert("attacks_tried".to_owned(), f64::from(tried));
        ratios.insert("attacks_refused".to_owned(), f64::from(refused));
        let table = table(&rows);
        Ok(Report { bench: "attack", kernel: crate::report::kernel()?, rows, ratios, table })
    }

    /// Changes, and revocations beside them, for a while.
    async fn felt(&self, operator: &Bus, admin: &Bus, options: &Options) -> Result<Felt> {
        let until = Instant::now() + Duration::from_secs(options.seconds);
        let changes = async {
            let mut changes = Vec::new();
            let mut variant = 0;
            while Instant::now() < until {
                let begun = Instant::now();
                let made = change(operator, variant).await;
                if let Err(error) = &made {
                    eprintln!("a change was not made: {error:#}");
                }
                changes.push(made.is_ok().then(|| begun.elapsed().as_secs_f64() * 1e3));
                variant += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(changes)
        };
        let revocations = async {
            let mut times = Vec::new();
            for _ in 0..options.revocations {
                times.push(self.revoke(admin).await.unwrap_or_else(|error| {
                    eprintln!("a token was not revoked in time: {error:#}");
                    LIMIT.as_secs_f64() * 1e3
                }));
                let pause = Duration::from_secs(options.seconds) / options.revocations.max(1);
                tokio::time::sleep(pause.min(until.saturating_duration_since(Instant::now())))
                    .await;
            }
            anyhow::Ok(times)
        };
        let (changes, revocations) = tokio::join!(changes, revocations);
        let changes: Result<_> = changes;
        Ok(Felt { changes: changes?, revocations: revocations? })
    }

    /// From asking that a token be replaced until the old one's connection is gone; milliseconds.
    async fn revoke(&self, admin: &Bus) -> Result<f64> {
        let request = TokenRegenerateRequest {
            principal: "u-publisher".parse()?,
            binding: None,
            expires_in: None,
        };
        let token = self.stack.layout().token("u-publisher");
        // The one before may have been answered too late to be known.
        let fresh = admin.call::<policy::TokenRegenerate>(&Target::Central, &request).await?;
        private_file(&token, &fresh.token.0)?;
        let live = self.connect("u-publisher").await?;
        let mut link = live.watch_link();
        let begun = Instant::now();
        admin.call::<policy::TokenRegenerate>(&Target::Central, &request).await?;
        tokio::time::timeout(LIMIT, link.wait_for(|link| *link != Link::Connected)).await??;
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }
}

async fn attacker(
    config: &BusConfig,
    principal: Principal,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
) -> Result<Attacker> {
    let mut options = ConnectOptions::new()
        .require_tls(true)
        .tls_first()
        .custom_inbox_prefix(format!("_INBOX.{principal}"))
        .add_root_certificates(config.ca.clone())
        .add_client_certificate(config.cert.clone(), config.key.clone());
    if let Some(token) = &config.token {
        options = options.token(fs::read_to_string(token)?.trim().to_owned());
    }
    // Whoever was cut off for the flood before is refused for a while.
    let until = Instant::now() + BACK_OFF;
    let client = loop {
        match options.clone().connect(&config.url).await {
            Ok(client) => break client,
            Err(error) if Instant::now() > until => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    };
    Ok(Attacker { client, principal, sent, stop, next: Arc::default() })
}

/// Another version of a small chain, made and read back.
async fn change(operator: &Bus, variant: u32) -> Result<()> {
    let document: Value = json!({ "chains": [{
        "interface": INTERFACE, "hook": "xdp",
        "programs": [{
            "name": "limit", "package": "ratelimit@^0.1", "priority": 20 + variant % 2,
            "config": { "rate": 10_000_000, "burst": 1_000_000 },
        }],
    }] });
    let request = ApplyRequest {
        document,
        expected_generation: None,
        dry_run: false,
        allow_downgrade: Vec::new(),
        atomic: false,
    };
    let target = Target::Host(HOST.parse()?);
    let made = operator.call_with::<loader::Apply>(&target, &request, CallOptions::default()).await;
    made.map(drop).map_err(|error| anyhow!("{error}"))
}

#[allow(clippy::cast_precision_loss, reason = "counts of a bench are small")]
fn float(count: u64) -> f64 {
    count as f64
}

fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place in a short list"
    )]
    let place = ((values.len().saturating_sub(1)) as f64 * q).ceil() as usize;
    values.get(place).copied().unwrap_or(f64::NAN)
}

fn row(flood: &'static str, sent_per_second: f64, felt: &mut Felt) -> Row {
    let mut times: Vec<f64> = felt.changes.iter().flatten().copied().collect();
    let count = |of: usize| float(u64::try_from(of).unwrap_or(u64::MAX));
    Row {
        flood,
        sent_per_second,
        changes: felt.changes.len(),
        success: count(times.len()) / count(felt.changes.len().max(1)),
        median_ms: quantile(&mut times, 0.5),
        p99_ms: quantile(&mut times, 0.99),
        revoke_p99_ms: quantile(&mut felt.revocations, 0.99),
    }
}

fn table(rows: &[Row]) -> Vec<String> {
    let mut table = vec![format!(
        "{:<18} {:>9} {:>8} {:>8} {:>10} {:>10} {:>12}",
        "flood", "sent/s", "changes", "success", "median ms", "p99 ms", "revoke p99"
    )];
    table.extend(rows.iter().map(|row| {
        format!(
            "{:<18} {:>9.0} {:>8} {:>8.3} {:>10.1} {:>10.1} {:>12.1}",
            row.flood,
            row.sent_per_second,
            row.changes,
            row.success,
            row.median_ms,
            row.p99_ms,
            row.revoke_p99_ms
        )
    }));
    table
}
