//! Serving: a service's endpoints on the bus.

use crate::{
    codec::Encoding,
    config::BusError,
    connection::{Bus, ENDING, Link, random_token},
    field_question,
    idempotency::Table,
    lanes::{self, Lanes},
    limits::Limits,
    micro::{EndpointStatistics, Inventory},
    refused_requests::RefusedRequests,
    slots::Slots,
    spool::Spool,
    work::{Observe, Shop},
};
use async_nats::Subscriber;
use bytes::Bytes;
use canopy_api::{
    endpoint::{self, Class, Endpoint, EndpointSpec, Service, Status},
    error::{ApiError, Code},
    known,
    name::{HostId, Principal},
    permission::daemon_principal,
    subject::{self, Target},
    time,
    wire::{Empty, Health, Version, VersionRequest},
};
use futures::{StreamExt as _, future::BoxFuture, stream::SelectAll};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Who asks.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Their name, granted by the server.
    pub principal: Principal,
    /// Their idempotency key, if they gave one.
    pub request_id: Option<String>,
    /// When they stop waiting. What has not changed anything by then does not; what has goes on.
    pub until: Option<Instant>,
    /// What the handler wants the audit record to say besides.
    pub notes: Notes,
}

impl Caller {
    /// To be asked just before something is changed.
    ///
    /// # Errors
    /// When the caller does not wait any more: it was told, or will be, that it got no answer.
    pub fn in_time(&self) -> Result<(), ApiError> {
        match self.until {
            Some(until) if Instant::now() >= until => Err(late()),
            Some(_) | None => Ok(()),
        }
    }
}

/// The caller's time ran out before anything was changed.
pub(crate) fn late() -> ApiError {
    ApiError::new(
        Code::Unavailable,
        "the caller's time ran out before anything was changed; nothing was done",
    )
    .remedy("repeat the request, with more time (--timeout)")
}

/// What a handler adds to the audit record of its request. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Notes(Arc<Mutex<Noted>>);

/// What was noted.
#[derive(Debug, Default)]
pub(crate) struct Noted {
    pub(crate) rules: BTreeSet<String>,
    pub(crate) about: String,
}

impl Notes {
    /// These admission rules decided.
    pub fn rules(&self, names: impl IntoIterator<Item = String>) {
        self.lock().rules.extend(names);
    }

    /// This was done, in a few words.
    pub fn about(&self, done: impl Into<String>) {
        self.lock().about = done.into();
    }

    /// What was noted so far.
    pub(crate) fn take(&self) -> Noted {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that was read, with its handler.
pub(crate) type Work =
    Box<dyn FnOnce(Caller) -> BoxFuture<'static, Result<Vec<u8>, ApiError>> + Send>;

type Read = dyn Fn(&Bytes, Encoding) -> Result<Work, ApiError> + Send + Sync;

/// An endpoint with its handler.
pub(crate) struct Registered {
    pub(crate) spec: &'static EndpointSpec,
    pub(crate) read: Box<Read>,
}

/// Answers that requests are refused without being looked at, which wait to be sent; more are not given.
const REFUSING: usize = 256;

type HealthFn = Arc<dyn Fn() -> Health + Send + Sync>;
type ReadyFn = Arc<dyn Fn(bool, &str) + Send + Sync>;

/// A service on the bus, before it serves. `health` and `version` are answered without a handler.
pub struct Server {
    bus: Bus,
    service: Service,
    host: Option<HostId>,
    limits: Limits,
    endpoints: Vec<Registered>,
    health: HealthFn,
    observe: Observe,
    on_ready: ReadyFn,
    idempotency_file: Option<PathBuf>,
    spool: Option<Arc<Spool>>,
}

impl Server {
    /// A service without endpoints yet; `host` is given for host-local ones.
    pub fn new(bus: Bus, service: Service, host: Option<HostId>) -> Self {
        let started = bus.now();
        let now = bus.clone();
        let health = move || Health {
            ready: true,
            checks: Vec::new(),
            uptime_seconds: now.now().duration_since(started).unwrap_or_default().as_secs(),
        };
        Self {
            bus,
            service,
            host,
            limits: Limits::default(),
            endpoints: Vec::new(),
            health: Arc::new(health),
            observe: Arc::new(|_, _, _| {}),
            on_ready: Arc::new(|_, _| {}),
            idempotency_file: None,
            spool: None,
        }
    }

    /// What answers `health`. Default: ready.
    #[must_use]
    pub fn health(mut self, health: impl Fn() -> Health + Send + Sync + 'static) -> Self {
        self.health = Arc::new(health);
        self
    }

    /// Called with verb, code (`ok` or the error's) and time taken of every answered request.
    #[must_use]
    pub fn observe(
        mut self,
        observe: impl Fn(&str, &str, Duration) + Send + Sync + 'static,
    ) -> Self {
        self.observe = Arc::new(observe);
        self
    }

    /// Called when the service becomes or ceases to be reachable over the bus, with a reason.
    #[must_use]
    pub fn on_ready(mut self, on_ready: impl Fn(bool, &str) + Send + Sync + 'static) -> Self {
        self.on_ready = Arc::new(on_ready);
        self
    }

    /// Called with what happens on the connection: `connected`, `disconnected`, `dropped` (a message
    /// not read in time), `refused` (by the server, for want of permission).
    #[must_use]
    pub fn bus_events(self, tell: impl Fn(&'static str) + Send + Sync + 'static) -> Self {
        self.bus.on_event(tell);
        self
    }

    /// Other limits than the default ones.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Where answers to non-idempotent requests are kept, so that a repeat after a restart gets the
    /// first answer. Without it they are kept in memory.
    #[must_use]
    pub fn idempotency_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.idempotency_file = Some(path.into());
        self
    }

    /// Where a record of every request that may change something is kept before it is worked on, and of
    /// what came of it. What cannot be recorded is not worked on.
    #[must_use]
    pub fn audit(mut self, spool: impl Into<Arc<Spool>>) -> Self {
        self.spool = Some(spool.into());
        self
    }

    /// Serves an endpoint. A panic in the handler costs that request.
    #[must_use]
    pub fn handle<E, F, Fut>(mut self, handler: F) -> Self
    where
        E: Endpoint,
        F: Fn(Caller, E::Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<E::Reply, ApiError>> + Send + 'static,
    {
        self.endpoints.push(Registered { spec: E::SPEC, read: reader(handler) });
        self
    }

    /// Serves until `stop`, then ends in order: not ready, no new requests, those in flight
    /// answered (with a limit), everything sent.
    ///
    /// # Errors
    /// When the server does not let this process serve here, or the connection never carries
    /// messages: it waits for the bus as long as it takes, so only what waiting cannot mend.
    pub async fn serve(mut self, stop: CancellationToken) -> Result<(), BusError> {
        self.built_in()?;
        let me = daemon_principal(self.service, self.host.as_ref())
            .map_err(|error| BusError::Defect(error.to_string()))?;
        let path = self.idempotency_file.as_deref();
        let table =
            Table::open(self.limits.remembered_requests, self.limits.remembered_bytes, path)
                .map_err(|source| BusError::Remembering {
                    path: path.map(PathBuf::from).unwrap_or_default(),
                    source,
                })?;
        (self.on_ready)(false, "waiting for the bus");
        let classes: Vec<Class> = self.endpoints.iter().map(|one| one.spec.class).collect();
        let lanes = Lanes::open(&self.bus, &classes).await?;
        if !self.wait_for_bus(&lanes, &stop).await? {
            return Ok(());
        }

        let tasks = TaskTracker::new();
        let desk = Arc::new(Shop {
            bus: self.bus.clone(),
            service: self.service,
            host: self.host.clone(),
            me: me.clone(),
            limits: self.limits,
            slots: Slots::new(self.limits.slots()),
            refused: RefusedRequests::new(Instant::now(), self.limits.failed_changes),
            refusing: Arc::new(Semaphore::new(REFUSING)),
            table,
            spool: self.spool.take(),
            observe: self.observe.clone(),
            tasks: tasks.clone(),
        });
        let draining = CancellationToken::new();
        let mut statistics = Vec::new();
        let mut subjects = Vec::new();
        for endpoint in std::mem::take(&mut self.endpoints) {
            let endpoint = Arc::new(endpoint);
            for (subject, queue) in self.places(endpoint.spec) {
                let lane = lanes.of(endpoint.spec.class).clone();
                let requests = subscribe(&lane, &subject, queue.as_deref()).await?;
                let counts = Arc::new(EndpointStatistics::new(
                    endpoint.spec.verb,
                    endpoint.spec.class.as_str(),
                    subject.clone(),
                    queue,
                ));
                statistics.push(counts.clone());
                subjects.push(subject);
                let (desk, endpoint) = (desk.clone(), endpoint.clone());
                let link = lane.watch_link();
                tasks.spawn(pump(requests, link, draining.clone(), move |message| {
                    desk.take(&endpoint, &counts, &lane, message);
                }));
            }
        }
        tasks.spawn(Arc::clone(&desk).report_refused(draining.clone()));
        let (bus, service, host) = (&self.bus, self.service, self.host.as_ref());
        let asked = field_question::Asked { bus, service, host, me: &me };
        subjects.extend(asked.serve(&tasks, &draining).await?);
        subjects.extend(self.discovery(me, statistics, &tasks, &draining).await?);

        // Refused subscriptions are known only by what the server says; by the time a message has
        // come back it has said it.
        if !self.wait_for_bus(&lanes, &stop).await? {
            return Ok(());
        }
        if let Some(refused) = subjects.iter().find(|s| lanes.subscription_refused(s)) {
            return Err(BusError::NotPermitted {
                principal: self.bus.principal().to_string(),
                what: format!("subscribe to {refused}"),
            });
        }
        tracing::info!(service = %self.service, subjects = subjects.len(), "serving");
        self.follow(&lanes, &stop).await;

        (self.on_ready)(false, "ending");
        draining.cancel();
        tasks.close();
        if timeout(self.limits.drain, tasks.wait()).await.is_err() {
            tracing::warn!(left = tasks.len(), "requests in flight given up at the end");
        }
        // Nothing to be done about answers that cannot leave.
        lanes.end().await;
        Ok(())
    }

    /// Adds `health` and `version`, looks for handlers that are missing or not ours.
    fn built_in(&mut self) -> Result<(), BusError> {
        if self.host.is_some() != self.service.is_host_local() {
            return Err(BusError::Defect(format!("{} with host {:?}", self.service, self.host)));
        }
        let health = self.health.clone();
        let version = Version {
            service: self.service.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: self.host.clone(),
            fields: None,
        };
        let service = self.service;
        for spec in endpoint::all()
            .filter(|spec| spec.service == self.service && spec.status == Status::Works)
        {
            let read = match spec.verb {
                "health" => {
                    let health = health.clone();
                    reader(move |_, _: Empty| {
                        let health = health();
                        async move { Ok(health) }
                    })
                }
                "version" => {
                    let version = version.clone();
                    reader(move |_, request: VersionRequest| {
                        let fields = request.fields.then(|| known::served(service));
                        let version = Version { fields, ..version.clone() };
                        async move { Ok(version) }
                    })
                }
                verb => {
                    if !self.endpoints.iter().any(|one| one.spec.verb == verb) {
                        tracing::error!(service = %self.service, verb, "no handler for a verb the table says works");
                    }
                    continue;
                }
            };
            self.endpoints.push(Registered { spec, read });
        }
        let mut verbs = std::collections::BTreeSet::new();
        for endpoint in &self.endpoints {
            if endpoint.spec.service != self.service || !verbs.insert(endpoint.spec.verb) {
                let (service, verb) = (endpoint.spec.service, endpoint.spec.verb);
                return Err(BusError::Defect(format!("{} serves {service}.{verb}", self.service)));
            }
        }
        Ok(())
    }

    /// Where an endpoint listens. Central services share a queue group. Of a host-local one every
    /// host answers, so it has none; only what changes nothing is asked of all hosts at once.
    fn places(&self, spec: &EndpointSpec) -> Vec<(String, Option<String>)> {
        match &self.host {
            None => vec![(
                subject::subscription(spec, &Target::Central),
                Some(self.service.to_string()),
            )],
            Some(host) => {
                let own = subject::subscription(spec, &Target::Host(host.clone()));
                let mut places = vec![(own, None)];
                if spec.class == Class::Read {
                    places.push((subject::subscription(spec, &Target::AllHosts), None));
                }
                places
            }
        }
    }

    async fn discovery(
        &self,
        me: Principal,
        endpoints: Vec<Arc<EndpointStatistics>>,
        tasks: &TaskTracker,
        draining: &CancellationToken,
    ) -> Result<Vec<String>, BusError> {
        let inventory = Inventory {
            name: self.service.as_str(),
            id: random_token(),
            started: time::rfc3339(self.bus.now()),
            me,
            endpoints,
        };
        let subjects = inventory.subjects();
        let mut requests = SelectAll::new();
        for subject in &subjects {
            requests.push(subscribe(&self.bus, subject, None).await?);
        }
        let (client, draining) = (self.bus.client.clone(), draining.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = inventory.serve(&client, requests) => {}
                () = draining.cancelled() => {}
            }
        });
        Ok(subjects)
    }

    /// Waits until the bus carries messages; false when it is time to stop.
    async fn wait_for_bus(
        &self,
        lanes: &Lanes,
        stop: &CancellationToken,
    ) -> Result<bool, BusError> {
        loop {
            let ready = tokio::select! {
                ready = lanes.wait_ready(Duration::from_secs(10)) => ready,
                () = stop.cancelled() => return Ok(false),
            };
            match ready {
                Ok(()) => return Ok(true),
                Err(error @ BusError::Unreachable { .. }) => {
                    tracing::warn!("{error}; retrying");
                    (self.on_ready)(false, &error.to_string());
                }
                // Said once by the connection, and seldom repeated.
                Err(error @ BusError::Refused { .. }) => {
                    (self.on_ready)(false, &error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Keeps readiness true to the connection until `stop`.
    async fn follow(&self, lanes: &Lanes, stop: &CancellationToken) {
        let (mut links, mut refusal) = (lanes.watch(), self.bus.watch_refusal());
        let connected = format!("connected to {} as {}", self.bus.url(), self.bus.principal());
        (self.on_ready)(true, &connected);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = lanes::changed(&mut links) => if !changed { return },
                changed = refusal.changed() => if changed.is_err() { return },
            }
            let refused = refusal.borrow_and_update().clone();
            if !lanes::all_connected(&mut links) {
                let why = match refused {
                    Some(refusal) => format!("the bus refuses this process: {refusal}"),
                    None => "disconnected; retrying".to_owned(),
                };
                (self.on_ready)(false, &why);
                continue;
            }
            match self.wait_for_bus(lanes, stop).await {
                Ok(true) => (self.on_ready)(true, &connected),
                Ok(false) => return,
                Err(error) => (self.on_ready)(false, &error.to_string()),
            }
        }
    }
}

async fn subscribe(bus: &Bus, subject: &str, queue: Option<&str>) -> Result<Subscriber, BusError> {
    let client = &bus.client;
    let subscribed = match queue {
        Some(queue) => client.queue_subscribe(subject.to_owned(), queue.to_owned()).await,
        None => client.subscribe(subject.to_owned()).await,
    };
    subscribed.map_err(|error| BusError::Defect(format!("{subject}: {error}")))
}

/// Reads messages until told to drain, then those already on their way.
async fn pump(
    mut requests: Subscriber,
    mut link: watch::Receiver<Link>,
    draining: CancellationToken,
    take: impl Fn(async_nats::Message),
) {
    loop {
        tokio::select! {
            message = requests.next() => match message {
                Some(message) => take(message),
                None => return,
            },
            () = draining.cancelled() => break,
        }
    }
    // The server hears "no more" only after what it has sent is here.
    let rest = async {
        if requests.drain().await.is_ok() {
            // A server that hangs never says that there is no more.
            while let Ok(Some(message)) = timeout(ENDING, requests.next()).await {
                take(message);
            }
        }
    };
    tokio::select! {
        () = rest => {}
        // Without a connection the end of a subscription waits for the next one, and nothing comes.
        _ = link.wait_for(|link| *link != Link::Connected) => {}
    }
}

/// Reads requests, and gives each with its handler.
fn reader<Q, P, F, Fut>(handler: F) -> Box<Read>
where
    Q: DeserializeOwned + JsonSchema + Send + 'static,
    P: Serialize + 'static,
    F: Fn(Caller, Q) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<P, ApiError>> + Send + 'static,
{
    let handler = Arc::new(handler);
    Box::new(move |payload, encoding| {
        let request = encoding.decode_request::<Q>(payload)?;
        let handler = Arc::clone(&handler);
        Ok(Box::new(move |caller| {
            let work = handler(caller, request);
            Box::pin(async move {
                let reply = work.await?;
                encoding.encode(&reply).map_err(|error| {
                    ApiError::new(
                        canopy_api::Code::Internal,
                        format!("the reply cannot be written: {error}"),
                    )
                })
            })
        }))
    })
}
