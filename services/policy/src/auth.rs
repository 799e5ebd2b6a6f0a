//! Who may connect: the bus server's questions, the verbs of tokens, the end of connections.

use crate::{
    audit::{Happening, Noter},
    config::{AuthConfig, Config, HostsRule, NkeySeeds},
    connect::{self, Identity, Refusal},
    connections::{Connections, seconds},
    hosts::{self, Hosts},
    limit_enforcer::LimitEnforcer,
    metrics::Metrics,
    rules::Admission,
    teller::Teller,
    tokens::Tokens,
    trust::Trust,
};
use canopy_api::{
    ApiError, Code, HostId, Principal,
    endpoint::{Service, policy},
    permission::{self, Seat},
    scope::Reach,
    wire::tokens::TokenRecord,
};
use canopy_bus::{
    Bus, BusConfig, BusError, Server,
    callout::{self, CalloutKeys, ConnectRequest, Grant},
    data::{Bucket, stream_of},
};
use canopy_runtime::{Context, Latch};
use canopy_secrets::Secret;
use canopy_store::SecretSource;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

/// The bucket of tokens.
const BUCKET: &str = "canopy_tokens";
/// The bucket of enrolled hosts.
const HOSTS: &str = "canopy_hosts";
/// The streams that tokens and enrolments are stored in.
pub(crate) fn streams() -> [String; 2] {
    [BUCKET, HOSTS].map(stream_of)
}

/// How long a bus that is away is waited for, each time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything that decides.
#[derive(Clone)]
pub(crate) struct Auth {
    pub(crate) trust: watch::Receiver<Arc<Trust>>,
    tokens: Tokens,
    pub(crate) hosts: Hosts,
    pub(crate) connections: Connections,
    pub(crate) admission: Arc<Admission>,
    metrics: Metrics,
    pub(crate) cx: Context,
    teller: Arc<Teller>,
    noter: Noter,
    enforcer: LimitEnforcer,
    data: Bus,
    system: Bus,
    replicas: usize,
}

/// The seeds of the keys by which the bus server knows our own connections.
#[derive(Clone)]
pub(crate) struct SeatNkeys {
    /// In APP.
    pub(crate) app: Secret,
    callout: Secret,
    data: Secret,
    system: Secret,
}

impl SeatNkeys {
    /// Reads them, which may take a cloud's answer.
    pub(crate) fn read(seeds: &NkeySeeds) -> anyhow::Result<Self> {
        let [app, callout, data, system] = seeds.all().map(|(at, seed)| read_secret(at, seed));
        Ok(Self { app: app?, callout: callout?, data: data?, system: system? })
    }
}

/// A connection of ours outside APP.
async fn seat(
    bus: &BusConfig,
    config: &AuthConfig,
    nkeys: &SeatNkeys,
    seat: Seat,
) -> anyhow::Result<Bus> {
    let (files, seed) = match seat {
        Seat::Callout => (&config.callout, &nkeys.callout),
        Seat::Data => (&config.data, &nkeys.data),
        Seat::System => (&config.system, &nkeys.system),
    };
    let config = bus.with_certificate(files.cert.clone(), files.key.clone());
    Ok(Bus::connect_with_nkey(&config, seat.name().parse()?, seed).await?)
}

/// The connection in DATA, when the bus is there.
pub(crate) async fn open_data(
    bus: &BusConfig,
    config: &AuthConfig,
    nkeys: &SeatNkeys,
) -> anyhow::Result<Bus> {
    let data = seat(bus, config, nkeys, Seat::Data).await?;
    data.wait_ready(PATIENCE).await?;
    Ok(data)
}

/// Opens the bucket of tokens over the connection in DATA.
pub(crate) async fn open_tokens(data: &Bus, config: &AuthConfig) -> Result<Tokens, BusError> {
    Ok(Tokens::new(Bucket::open(data, BUCKET, config.replicas).await?))
}

/// Waits until a connection carries messages, as long as it takes.
async fn carries(bus: &Bus, latch: &Latch) {
    while let Err(error) = bus.wait_ready(PATIENCE).await {
        not_yet(&error, latch).await;
    }
}

/// Opens a bucket, as long as it takes.
async fn open(data: &Bus, bucket: &str, replicas: usize, latch: &Latch) -> Bucket {
    loop {
        carries(data, latch).await;
        match Bucket::open(data, bucket, replicas).await {
            Ok(bucket) => return bucket,
            Err(error) => not_yet(&error, latch).await,
        }
    }
}

async fn not_yet(error: &BusError, latch: &Latch) {
    tracing::warn!("{error}; trying on");
    latch.set(false, error.to_string());
    sleep(Duration::from_millis(200)).await;
}

impl Auth {
    /// Connects, waits for the bus as long as it takes, and begins to answer the server. `None` when
    /// it was time to stop before.
    pub(crate) async fn start(
        config: &Config,
        (auth, nkeys): (&AuthConfig, &SeatNkeys),
        bus: &Bus,
        cx: &Context,
        trust: watch::Receiver<Arc<Trust>>,
        (admission, metrics, noter): (Arc<Admission>, Metrics, Noter),
    ) -> anyhow::Result<Option<Self>> {
        let latch = cx.readiness.latch("connections");
        latch.set(false, "waiting for the bus");
        let of = auth.clone();
        let keys = tokio::task::spawn_blocking(move || callout_keys(&of)).await??;
        let data = seat(&config.bus, auth, nkeys, Seat::Data).await?;
        let opening = Box::pin(async {
            let tokens = open(&data, BUCKET, auth.replicas, &latch).await;
            (tokens, open(&data, HOSTS, auth.replicas, &latch).await)
        });
        let opened = cx.shutdown.run_until_cancelled(opening).await;
        let Some((bucket, hosts)) = opened else { return Ok(None) };
        let changes = (bucket.changes().await?, hosts.changes().await?);
        let (tokens, hosts) = (Tokens::new(bucket), Hosts::new(hosts));
        // Before anybody is answered: rules speak of their labels.
        let before = admission.enrolments();
        admission.all_enrolled(&hosts.all().await?, before);
        let system = seat(&config.bus, auth, nkeys, Seat::System).await?;
        let connections = Connections {
            system: system.clone(),
            tokens: tokens.clone(),
            hosts: hosts.clone(),
            trust: trust.clone(),
            admission: Arc::clone(&admission),
            metrics: metrics.clone(),
            ended: Arc::default(),
        };
        let teller = Arc::new(Teller::new(bus.clone()));
        let enforcer = LimitEnforcer::new(
            system.clone(),
            trust.clone(),
            metrics.clone(),
            Arc::clone(&teller),
            noter.clone(),
        );
        cx.tasks.spawn(enforcer.clone().run(data.clone(), cx.clone()));
        let this = Self {
            trust,
            tokens,
            hosts,
            connections: connections.clone(),
            admission,
            metrics,
            cx: cx.clone(),
            teller,
            noter,
            enforcer,
            data,
            system,
            replicas: auth.replicas,
        };
        cx.tasks.spawn(connections.follow(cx.clone(), changes));

        let asked = seat(&config.bus, auth, nkeys, Seat::Callout).await?;
        let (decider, stop) = (this.clone(), cx.shutdown.clone());
        cx.tasks.spawn(async move {
            if stop.run_until_cancelled(carries(&asked, &latch)).await.is_none() {
                return;
            }
            latch.set(true, "the bus server's questions are answered");
            let (own, system, until) = (asked.clone(), decider.system.clone(), stop.clone());
            decider.cx.tasks.spawn(async move {
                while let Err(error) = callout::watch_peers(&own, &system, until.clone()).await {
                    tracing::warn!(%error, "other instances are not watched; trying again");
                    if until.run_until_cancelled(sleep(PATIENCE)).await.is_none() {
                        return;
                    }
                }
            });
            let decide = move |request| {
                let decider = decider.clone();
                async move { decider.decide(request).await }
            };
            if let Err(error) = callout::answer(&asked, keys, decide, stop).await {
                latch.set(false, error.to_string());
                tracing::error!(%error, "the bus server's questions are not answered");
            }
        });
        Ok(Some(this))
    }

    /// The connection in DATA.
    pub(crate) fn data(&self) -> &Bus {
        &self.data
    }

    /// The connection in SYS.
    pub(crate) fn system(&self) -> &Bus {
        &self.system
    }

    /// How many servers keep what is stored.
    pub(crate) fn replicas(&self) -> usize {
        self.replicas
    }

    /// The tokens.
    pub(crate) fn tokens(&self) -> Tokens {
        self.tokens.clone()
    }

    /// Whether somebody may connect, and what they may do.
    async fn decide(&self, request: ConnectRequest) -> Result<Grant, String> {
        let begun = Instant::now();
        let decided = self.grant(&request).await;
        self.metrics
            .connect_seconds
            .with_label_values(&[] as &[&str])
            .observe(begun.elapsed().as_secs_f64());
        let result = decided.as_ref().err().map_or("granted", |(refusal, _)| refusal.code());
        self.metrics.connects.with_label_values(&[result]).inc();
        match decided {
            Ok((grant, token)) => {
                tracing::debug!(user = %grant.user, address = %request.address, "connects");
                self.noter.note(Happening::connected(&request, &grant.user, token));
                Ok(grant)
            }
            Err((refusal, names)) => {
                self.noter.note(Happening::refused(&request, &refusal));
                self.teller.refused(&request, &refusal, names);
                Err(refusal.code().to_owned())
            }
        }
    }

    /// What is granted, and the id of the token it is granted for.
    async fn grant(
        &self,
        request: &ConnectRequest,
    ) -> Result<(Grant, Option<String>), (Refusal, Vec<String>)> {
        let trust = self.trust.borrow().clone();
        let identity = connect::identify(&trust, request, seconds())?;
        // Before the store is asked: a flood of connects costs no more than it has to.
        let principal = identity.principal().map_err(|refusal| (refusal, Vec::new()))?;
        let reserved = self.enforcer.reserve(&principal, request);
        let reserved = reserved.map_err(|refusal| (refusal, vec![principal.to_string()]))?;
        let granted = self.grant_to(&trust, identity).await?;
        reserved.keep();
        Ok(granted)
    }

    /// What somebody is granted, if token or enrolment are in force.
    async fn grant_to(
        &self,
        trust: &Trust,
        identity: Identity,
    ) -> Result<(Grant, Option<String>), (Refusal, Vec<String>)> {
        match identity {
            Identity::Daemon { service, host, certificate, until } => {
                let nobody = |error: canopy_api::name::NameError| {
                    (Refusal::Nobody(error.to_string()), Vec::new())
                };
                let me = permission::daemon_principal(service, host.as_ref()).map_err(nobody)?;
                let permissions = permission::daemon(service, host.as_ref()).map_err(nobody)?;
                let user = match &host {
                    Some(host) => self.host_user(trust, host, service, &certificate).await,
                    None => Ok(me.to_string()),
                };
                let user = user.map_err(|refusal| (refusal, vec![me.to_string()]))?;
                Ok((Grant { user, permissions, until: Some(until) }, None))
            }
            Identity::Person { claims, until } => {
                let away = |error: ApiError| (Refusal::StoreAway(error.to_string()), Vec::new());
                let none = || (Refusal::Unknown(claims.sub.clone()), Vec::new());
                let kept = self.tokens.get(&claims.sub).await.map_err(away)?.ok_or_else(none)?;
                kept.value.accepts(&claims).map_err(|refusal| (refusal, Vec::new()))?;
                let reach = claims.scope.as_ref().map_or(Reach::EVERYWHERE, |scope| {
                    let hosts = self.admission.hosts();
                    scope.reach(hosts.iter().map(|(host, labels)| {
                        (host, |name: &str| labels.get(name).map(String::as_str))
                    }))
                });
                // The server ends it on time; by its own clock, and not before we would refuse it.
                let end = claims.exp.map(|end| end.saturating_add(trust.skew.as_secs()));
                let until = end.map_or(until, |end| end.min(until));
                let grant = Grant {
                    user: kept.value.user(),
                    permissions: permission::person(&claims.sub, claims.role, &reach),
                    until: Some(until),
                };
                Ok((grant, Some(claims.jti)))
            }
        }
    }

    /// The name of the connections of a host's daemon, if its host is enrolled.
    async fn host_user(
        &self,
        trust: &Trust,
        host: &HostId,
        service: Service,
        certificate: &str,
    ) -> Result<String, Refusal> {
        let nobody = |error: canopy_api::name::NameError| Refusal::Nobody(error.to_string());
        let me = permission::daemon_principal(service, Some(host)).map_err(nobody)?;
        match trust.hosts {
            HostsRule::Enrolled => {
                let generation = self.hosts.admit(host, service, certificate, seconds()).await?;
                Ok(hosts::user(&me, generation))
            }
            HostsRule::Any => {
                let away = |error: ApiError| Refusal::StoreAway(error.to_string());
                match self.hosts.get(host).await.map_err(away)? {
                    Some(kept) if kept.value.is_revoked() => {
                        Err(Refusal::HostRevoked(host.clone()))
                    }
                    _ => Ok(me.to_string()),
                }
            }
        }
    }

    /// Serves the verbs of tokens.
    pub(crate) fn serve(&self, server: Server) -> Server {
        let (issue, regenerate, revoke, list) =
            (self.clone(), self.clone(), self.clone(), self.tokens.clone());
        server
            .handle::<policy::TokenIssue, _, _>(move |caller, request| {
                let this = issue.clone();
                async move {
                    let trust = this.trust.borrow().clone();
                    let giver = this.giver(&caller.principal).await?;
                    let reply = this.tokens.issue(&trust, &request, &giver, seconds()).await?;
                    tracing::warn!(principal = %request.principal, role = %request.role, by = %giver, "token issued");
                    caller.notes.about(told("issued", &reply.record));
                    Ok(reply)
                }
            })
            .handle::<policy::TokenRegenerate, _, _>(move |caller, request| {
                let this = regenerate.clone();
                async move {
                    let trust = this.trust.borrow().clone();
                    let giver = this.giver(&caller.principal).await?;
                    let reply =
                        this.tokens.regenerate(&trust, &request, &giver, seconds()).await?;
                    tracing::warn!(principal = %request.principal, by = %giver, "token regenerated");
                    caller.notes.about(told("regenerated", &reply.record));
                    this.end_connections(request.principal);
                    Ok(reply)
                }
            })
            .handle::<policy::TokenRevoke, _, _>(move |caller, request| {
                let this = revoke.clone();
                async move {
                    let giver = this.giver(&caller.principal).await?;
                    let record = this.tokens.revoke(&request.principal, &giver, seconds()).await?;
                    tracing::warn!(principal = %request.principal, by = %giver, "token revoked");
                    caller.notes.about(told("revoked", &record));
                    this.end_connections(request.principal);
                    Ok(record)
                }
            })
            .handle::<policy::TokenList, _, _>(move |_, request| {
                let tokens = list.clone();
                async move { tokens.list(&request, seconds()).await }
            })
    }

    /// Beside the answer, which would not arrive at who regenerates their own.
    fn end_connections(&self, principal: Principal) {
        let (connections, stop) = (self.connections.clone(), self.cx.shutdown.clone());
        self.cx.tasks.spawn(async move {
            stop.run_until_cancelled(connections.token_changed(&principal)).await
        });
    }
}

/// Answers the verbs of tokens where there are none.
pub(crate) fn without(server: Server) -> Server {
    let none = || {
        ApiError::new(Code::Unsupported, "this policy service issues no tokens")
            .remedy("give it `auth` in its configuration, and the bus server a callout")
    };
    server
        .handle::<policy::TokenIssue, _, _>(move |_, _| async move { Err(none()) })
        .handle::<policy::TokenRegenerate, _, _>(move |_, _| async move { Err(none()) })
        .handle::<policy::TokenRevoke, _, _>(move |_, _| async move { Err(none()) })
        .handle::<policy::TokenList, _, _>(move |_, _| async move { Err(none()) })
}

/// What the audit record says of a token.
fn told(done: &str, record: &TokenRecord) -> String {
    format!("{done}: token {} of {}, role {}", record.id, record.principal, record.role)
}

fn read_secret(at: &str, source: &SecretSource) -> anyhow::Result<Secret> {
    source.read().map_err(|error| anyhow::anyhow!("{at}: {error}; {}", error.remedy))
}

fn callout_keys(auth: &AuthConfig) -> anyhow::Result<CalloutKeys> {
    let issuer = read_secret("auth.issuer_seed", &auth.issuer_seed)?;
    let xkey = read_secret("auth.xkey_seed", &auth.xkey_seed)?;
    Ok(CalloutKeys::from_seeds(&issuer, &xkey)?)
}
