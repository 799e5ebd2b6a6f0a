//! Who may connect: the bus server's questions, the verbs of tokens, the end of connections.

use crate::{
    config::{AuthConfig, Config},
    connect::{self, Identity, Refusal},
    connections::{Connections, seconds},
    metrics::Metrics,
    rules::Admission,
    tokens::Tokens,
    trust::Trust,
};
use canopy_api::{
    ApiError, Code, Principal,
    endpoint::{Service, policy},
    permission::{self, Seat},
    scope::Reach,
    time,
    wire::{ConnectRefused, tokens::TokenListReply},
};
use canopy_bus::{
    Bus, BusConfig, Server,
    callout::{self, CalloutKeys, ConnectRequest, Grant},
    data::Bucket,
};
use canopy_runtime::{Context, clock};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

/// The bucket of tokens.
const BUCKET: &str = "canopy_tokens";
/// How long a bus that is away is waited for, each time.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the configuration file is looked at.
const CONFIGURATION: Duration = Duration::from_secs(1);
/// Refusals told as events, a second; the others are counted.
const TOLD: u64 = 20;

/// Everything that decides.
#[derive(Clone)]
pub(crate) struct Auth {
    trust: watch::Receiver<Arc<Trust>>,
    tokens: Tokens,
    connections: Connections,
    admission: Arc<Admission>,
    metrics: Metrics,
    cx: Context,
    teller: Arc<Teller>,
}

/// A connection of ours outside APP.
async fn seat(bus: &BusConfig, config: &AuthConfig, seat: Seat) -> anyhow::Result<Bus> {
    let files = match seat {
        Seat::Callout => &config.callout,
        Seat::Data => &config.data,
        Seat::System => &config.system,
    };
    let config = bus.with_certificate(files.cert.clone(), files.key.clone());
    Ok(Bus::connect(&config, seat.name().parse()?).await?)
}

/// Opens the bucket of tokens over the connection in DATA, when the bus is there.
pub(crate) async fn open_tokens(
    bus: &BusConfig,
    config: &AuthConfig,
) -> anyhow::Result<(Bus, Tokens)> {
    let data = seat(bus, config, Seat::Data).await?;
    data.wait_ready(PATIENCE).await?;
    let bucket = Bucket::open(&data, BUCKET, config.replicas).await?;
    Ok((data, Tokens::new(bucket)))
}

impl Auth {
    /// Connects, waits for the bus as long as it takes, and begins to answer the server. `None` when
    /// it was time to stop before.
    pub(crate) async fn start(
        config: &Config,
        auth: &AuthConfig,
        bus: &Bus,
        cx: &Context,
        (admission, metrics): (Arc<Admission>, Metrics),
    ) -> anyhow::Result<Option<Self>> {
        let latch = cx.readiness.latch("connections");
        latch.set(false, "waiting for the bus");
        let trust = Trust::read(auth)?;
        let keys = callout_keys(auth)?;
        let data = seat(&config.bus, auth, Seat::Data).await?;
        let bucket = loop {
            let opened = async {
                data.wait_ready(PATIENCE).await?;
                Bucket::open(&data, BUCKET, auth.replicas).await
            };
            let opened = tokio::select! {
                opened = opened => opened,
                () = cx.shutdown.cancelled() => return Ok(None),
            };
            match opened {
                Ok(bucket) => break bucket,
                Err(error) => {
                    tracing::warn!("{error}; trying on");
                    latch.set(false, error.to_string());
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        };
        let changes = bucket.changes().await?;
        let tokens = Tokens::new(bucket);
        let system = seat(&config.bus, auth, Seat::System).await?;
        let connections = Connections::new(system, tokens.clone(), metrics.clone());
        let (change, trust) = watch::channel(Arc::new(trust));
        let this = Self {
            trust,
            tokens,
            connections: connections.clone(),
            admission,
            metrics: metrics.clone(),
            cx: cx.clone(),
            teller: Arc::new(Teller::new(bus.clone())),
        };
        cx.tasks.spawn(connections.follow(cx.clone(), changes));
        cx.tasks.spawn(reload(config.clone(), change, metrics, cx.clone()));

        let asked = seat(&config.bus, auth, Seat::Callout).await?;
        let (decider, stop) = (this.clone(), cx.shutdown.clone());
        let running = latch.clone();
        cx.tasks.spawn(async move {
            let decide = move |request| {
                let decider = decider.clone();
                async move { decider.decide(request).await }
            };
            if let Err(error) = callout::answer(&asked, keys, decide, stop).await {
                running.set(false, error.to_string());
                tracing::error!(%error, "the bus server's questions are not answered");
            }
        });
        latch.set(true, "the bus server's questions are answered");
        Ok(Some(this))
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
            Ok(grant) => {
                tracing::debug!(user = %grant.user, address = %request.address, "connects");
                Ok(grant)
            }
            Err((refusal, names)) => {
                self.teller.refused(&request, &refusal, names);
                Err(refusal.code().to_owned())
            }
        }
    }

    async fn grant(&self, request: &ConnectRequest) -> Result<Grant, (Refusal, Vec<String>)> {
        let trust = self.trust.borrow().clone();
        match connect::identify(&trust, request, seconds())? {
            Identity::Daemon { service, host, until } => {
                let nobody = |error: canopy_api::name::NameError| {
                    (Refusal::Nobody(error.to_string()), Vec::new())
                };
                let me = permission::daemon_principal(service, host.as_ref()).map_err(nobody)?;
                let permissions = permission::daemon(service, host.as_ref()).map_err(nobody)?;
                Ok(Grant { user: me.to_string(), permissions, until: Some(until) })
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
                let until = claims.exp.map_or(until, |end| end.min(until));
                Ok(Grant {
                    user: kept.value.user(),
                    permissions: permission::person(&claims.sub, claims.role, &reach),
                    until: Some(until),
                })
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
                    let by = caller.principal.as_str();
                    let (_, reply) = this.tokens.issue(&trust, &request, by, seconds()).await?;
                    tracing::warn!(principal = %request.principal, role = %request.role, by, "token issued");
                    Ok(reply)
                }
            })
            .handle::<policy::TokenRegenerate, _, _>(move |caller, request| {
                let this = regenerate.clone();
                async move {
                    let trust = this.trust.borrow().clone();
                    let by = caller.principal.as_str();
                    let (_, reply) = this.tokens.regenerate(&trust, &request, by, seconds()).await?;
                    tracing::warn!(principal = %request.principal, by, "token regenerated");
                    this.end_connections(request.principal);
                    Ok(reply)
                }
            })
            .handle::<policy::TokenRevoke, _, _>(move |caller, request| {
                let this = revoke.clone();
                async move {
                    let by = caller.principal.as_str();
                    let (_, record) = this.tokens.revoke(&request.principal, by, seconds()).await?;
                    tracing::warn!(principal = %request.principal, by, "token revoked");
                    this.end_connections(request.principal);
                    Ok(record)
                }
            })
            .handle::<policy::TokenList, _, _>(move |_, request| {
                let tokens = list.clone();
                async move {
                    let tokens = tokens.records(request.principal.as_ref(), seconds()).await?;
                    Ok(TokenListReply { tokens })
                }
            })
    }

    /// Beside the answer, which would not arrive at who regenerates their own.
    fn end_connections(&self, principal: Principal) {
        let connections = self.connections.clone();
        self.cx.tasks.spawn(async move { connections.token_changed(&principal).await });
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

fn callout_keys(auth: &AuthConfig) -> anyhow::Result<CalloutKeys> {
    let read = |at: &str, reference: &canopy_secrets::SecretRef| {
        reference.read().map_err(|error| anyhow::anyhow!("{at}: {error}; {}", error.remedy))
    };
    let issuer = read("auth.issuer_seed", &auth.issuer_seed)?;
    let xkey = read("auth.xkey_seed", &auth.xkey_seed)?;
    Ok(CalloutKeys::from_seeds(&issuer, &xkey)?)
}

/// Uses a changed configuration, whole or not at all.
async fn reload(config: Config, change: watch::Sender<Arc<Trust>>, metrics: Metrics, cx: Context) {
    let gauge = metrics.configuration.with_label_values(&[] as &[&str]);
    gauge.set(1);
    let Some(mut file) = cx.config_file.clone() else { return };
    let mut timer = interval(CONFIGURATION);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cx.shutdown.cancelled() => return,
            _ = timer.tick() => {}
        }
        let looked = tokio::task::spawn_blocking(move || {
            let changed = file.changed::<Config>().map(|loaded| {
                let loaded = loaded.map_err(|problems| problems.to_string())?;
                let auth = loaded.auth.as_ref().ok_or("`auth` is gone; it is kept")?;
                let trust = Trust::read(auth).map_err(|error| format!("{error:#}"))?;
                Ok::<_, String>((loaded, trust))
            });
            (file, changed)
        });
        let Ok((kept, changed)) = looked.await else {
            tracing::error!("the configuration is not followed any more; restart the service");
            return;
        };
        file = kept;
        match changed {
            None => {}
            Some(Ok((loaded, trust))) => {
                gauge.set(i64::from(only_trust_differs(&config, &loaded)));
                tracing::warn!(signs = trust.signing.id(), believes = ?trust.keys, "configuration changed");
                change.send_replace(Arc::new(trust));
            }
            Some(Err(problem)) => {
                gauge.set(0);
                tracing::error!("the changed configuration is not used: {problem}");
            }
        }
    }
}

/// Whether nothing changed that only a restart can use.
fn only_trust_differs(running: &Config, new: &Config) -> bool {
    let mut new = new.clone();
    // What admission follows by itself.
    new.rules.clone_from(&running.rules);
    new.people.clone_from(&running.people);
    new.hosts.clone_from(&running.hosts);
    if let (Some(running), Some(new)) = (&running.auth, &mut new.auth) {
        new.signing_keys.clone_from(&running.signing_keys);
        new.people.clone_from(&running.people);
        new.clock_skew_seconds = running.clock_skew_seconds;
    }
    let same = new == *running;
    if !same {
        tracing::error!("the configuration has changes that need a restart");
    }
    same
}

/// Tells of refusals, not more than can be read.
struct Teller {
    bus: Bus,
    second: Mutex<(u64, u64)>,
    untold: AtomicU64,
}

impl Teller {
    fn new(bus: Bus) -> Self {
        Self { bus, second: Mutex::default(), untold: AtomicU64::new(0) }
    }

    fn may_tell(&self) -> bool {
        let now = seconds();
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        if second.0 != now {
            *second = (now, 0);
        }
        second.1 += 1;
        second.1 <= TOLD
    }

    fn refused(&self, request: &ConnectRequest, refusal: &Refusal, names: Vec<String>) {
        if !self.may_tell() {
            self.untold.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let refused = ConnectRefused {
            time: time::rfc3339(clock::now()),
            address: request.address.clone(),
            client: request.name.clone(),
            names,
            code: refusal.code().to_owned(),
            reason: refusal.to_string(),
            untold: self.untold.swap(0, Ordering::Relaxed),
        };
        tracing::warn!(
            address = %refused.address, client = %refused.client, names = ?refused.names,
            untold = refused.untold, "connection refused: {}", refused.reason
        );
        let bus = self.bus.clone();
        tokio::spawn(async move {
            let told = bus.publish_event(Service::Policy, "connect", "refused", None, &refused);
            if let Err(error) = told.await {
                tracing::warn!(%error, "the bus was not told of a refusal");
            }
        });
    }
}
