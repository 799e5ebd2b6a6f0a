//! The connection: made once, kept for ever, its state known.

use crate::{
    config::{BusConfig, BusError},
    for_log::LogGate,
    inbox::Inbox,
    peer::Peer,
    refusal::{Refusal, diagnose, is_refusal},
    tls,
    unreachable::UnreachableCause,
};
use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use bytes::Bytes;
use canopy_api::{Code, endpoint::Service, name::Principal};
use canopy_secrets::Secret;
use futures::StreamExt as _;
use nkeys::{KeyPair, KeyPairType};
use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, timeout},
};

/// Where the time comes from; tests set clocks wrong with it.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// State of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Never been up yet.
    Connecting,
    /// Up.
    Connected,
    /// Was up; being retried.
    Disconnected,
}

/// What happened on the connection so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Times the connection came up.
    pub connects: u64,
    /// Messages dropped because this process did not read them in time.
    pub dropped: u64,
    /// Messages the server refused for want of permission.
    pub refused: u64,
}

/// A connection to the bus as one principal. Clones share it.
#[derive(Clone)]
pub struct Bus {
    /// Shared, because the library's client is a dozen handles, each counted by itself.
    pub(crate) client: Arc<Client>,
    pub(crate) shared: Arc<Shared>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus")
            .field("principal", &self.shared.principal)
            .field("url", &self.shared.config.url)
            .field("link", &self.link())
            .finish_non_exhaustive()
    }
}

/// Why there is no connection.
pub(crate) enum Why {
    /// The server refuses.
    Refused(Refusal),
    /// It does not get as far: the kind, and the words of the last attempt.
    Other(UnreachableCause, String),
}

/// Attempts to connect: how long they take, and how many in a row were refused.
#[derive(Debug, Default)]
struct Attempts {
    times: Mutex<Times>,
    refused: AtomicU32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Times {
    /// When the attempt at hand begins, which may still be to come.
    begins: Option<Instant>,
    /// How long the one before it took.
    took: Duration,
}

impl Attempts {
    /// How long to wait before the next attempt. Who is refused comes back seldom: no attempt of the same
    /// certificate and token mends that, and each costs the server and the policy service a decision.
    fn delay(&self, attempt: usize) -> Duration {
        let delay = match self.refused.load(Ordering::Relaxed) {
            0 => reconnect_delay(attempt),
            refused => refused_delay(refused),
        };
        self.begin_after(delay);
        delay
    }

    /// An attempt begins after so long; the one before it, if any, has failed.
    fn begin_after(&self, delay: Duration) {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        times.took = times.begins.map_or(Duration::ZERO, |begun| now.duration_since(begun));
        times.begins = Some(now + delay);
    }

    /// How long the attempt took that has just failed. That it has is told while the library waits for the
    /// next one.
    fn took(&self) -> Duration {
        let times = *self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match times.begins {
            Some(begun) if begun <= now => now.duration_since(begun),
            Some(_) | None => times.took,
        }
    }
}

/// A caller waiting on a subject, told when the server refuses it.
type Waiter = (u64, oneshot::Sender<()>);

pub(crate) struct Shared {
    pub(crate) principal: Principal,
    pub(crate) config: BusConfig,
    pub(crate) clock: Clock,
    /// The key this connection proves beside its certificate.
    nkey: Option<Arc<KeyPair>>,
    link: watch::Sender<Link>,
    waiting: Mutex<HashMap<String, Vec<Waiter>>>,
    /// Subscriptions the server refused.
    refused: Mutex<BTreeSet<String>>,
    last_error: Mutex<Option<String>>,
    attempts: Arc<Attempts>,
    /// Why the server refuses this process.
    refused_by: watch::Sender<Option<Refusal>>,
    connects: AtomicU64,
    dropped: AtomicU64,
    violations: AtomicU64,
    next: AtomicU64,
    listeners: Mutex<Vec<Listener>>,
    /// Whether the server said nothing when the connection was to end.
    silent: AtomicBool,
    pub(crate) inbox: Inbox,
    /// What services said of themselves, by service and place.
    peers: Mutex<HashMap<(Service, String), Peer>>,
    log: LogGate,
}

/// How long an attempt to find out why there is no connection may take: longer than the server waits for the
/// policy service.
pub(crate) const DIAGNOSIS: Duration = Duration::from_secs(3);

/// How long a server that says nothing is waited for when a service ends.
pub(crate) const ENDING: Duration = Duration::from_millis(700);

/// Told what happens on the connection.
type Listener = Arc<dyn Fn(&'static str) + Send + Sync>;

/// Takes a caller off the list however its wait ends.
pub(crate) struct Waiting<'a> {
    shared: &'a Shared,
    subject: &'a str,
    id: u64,
    pub(crate) refused: oneshot::Receiver<()>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(list) = waiting.get_mut(self.subject) {
            list.retain(|(id, _)| *id != self.id);
            if list.is_empty() {
                waiting.remove(self.subject);
            }
        }
    }
}

impl Shared {
    /// Asks to be told if the server refuses to take a message for `subject`. The server's notice
    /// names only the subject, so everybody who waits on it is told.
    pub(crate) fn wait_on<'a>(&'a self, subject: &'a str) -> Waiting<'a> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (tell, refused) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.entry(subject.to_owned()).or_default().push((id, tell));
        Waiting { shared: self, subject, id, refused }
    }

    /// What a service said of itself.
    pub(crate) fn peer(&self, name: &(Service, String)) -> Option<Peer> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Keeps what a service said of itself.
    pub(crate) fn keep_peer(&self, name: (Service, String), peer: Peer) {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).insert(name, peer);
    }

    /// Whether the server refused this subscription since the process started.
    pub(crate) fn subscription_refused(&self, subject: &str) -> bool {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).contains(subject)
    }

    fn note(&self, error: String) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    fn tell(&self, event: &'static str) {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for listener in listeners {
            listener(event);
        }
    }

    fn on_event(&self, event: Event) {
        match event {
            Event::Connected => {
                self.connects.fetch_add(1, Ordering::Relaxed);
                self.attempts.refused.store(0, Ordering::Relaxed);
                self.refused_by.send_replace(None);
                self.link.send_replace(Link::Connected);
                self.tell("connected");
                tracing::info!(url = %self.config.url, principal = %self.principal, "bus connected");
            }
            Event::Disconnected | Event::Closed => {
                self.link.send_replace(Link::Disconnected);
                self.tell("disconnected");
                tracing::warn!(url = %self.config.url, "bus disconnected");
            }
            Event::SlowConsumer(subscription) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                self.tell("dropped");
                if let Some(unlogged) = self.log.pass("dropped") {
                    tracing::warn!(
                        subscription,
                        unlogged,
                        "a message was dropped: not read in time"
                    );
                }
            }
            Event::ServerError(error) => self.on_server_error(&error.to_string()),
            Event::ClientError(error) => {
                let error = error.to_string();
                tracing::debug!(%error, "bus connection attempt failed");
                self.on_failed_attempt(&error);
                self.note(error);
            }
            Event::LameDuckMode | Event::Draining => {}
        }
    }

    fn diagnose(&self, error: &str, took: Duration) -> Option<Refusal> {
        if self.nkey.is_some() && is_refusal(error) {
            // The server alone decides about a user that it knows by a key.
            return Some(Refusal::UnknownKey);
        }
        diagnose(&self.config, &self.principal, error, took, (self.clock)())
    }

    /// Why the server refuses this process, as far as the attempts so far say.
    fn refusal(&self) -> Option<Refusal> {
        self.refused_by.borrow().clone()
    }

    fn on_failed_attempt(&self, error: &str) {
        let Some(refusal) = self.diagnose(error, self.attempts.took()) else {
            self.attempts.refused.store(0, Ordering::Relaxed);
            self.refused_by.send_replace(None);
            return;
        };
        // Where nobody decided, that may change any moment.
        let refused = if refusal.code() == Code::Unavailable {
            self.attempts.refused.store(0, Ordering::Relaxed);
            0
        } else {
            self.attempts.refused.fetch_add(1, Ordering::Relaxed)
        };
        let changed = self.refused_by.send_replace(Some(refusal.clone())) != Some(refusal.clone());
        // Once, and then about every half an hour.
        if changed || (refused > 0 && refused.is_multiple_of(REMINDED)) {
            tracing::error!(
                url = %self.config.url, principal = %self.principal, attempts = refused + 1,
                "the bus refuses this process: {refusal}; {}", refusal.remedy()
            );
        }
    }

    /// The library reports a refused publish or subscribe only here, as the server's text:
    /// `Permissions Violation for Publish to "subject"`.
    fn on_server_error(&self, error: &str) {
        let refused = error
            .to_ascii_lowercase()
            .contains("permissions violation")
            .then(|| error.split('"').nth(1))
            .flatten();
        let Some(subject) = refused else {
            tracing::warn!(%error, "the bus server reports an error");
            self.note(error.to_owned());
            return;
        };
        self.violations.fetch_add(1, Ordering::Relaxed);
        self.tell("refused");
        tracing::warn!(%subject, principal = %self.principal, "the bus server refused: {error}");
        if error.contains("Subscription") {
            self.refused.lock().unwrap_or_else(PoisonError::into_inner).insert(subject.to_owned());
            return;
        }
        self.inbox.refuse(subject);
        let told = self
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(subject)
            .unwrap_or_default();
        for (_, tell) in told {
            // A caller that has gone does not mind.
            let _ = tell.send(());
        }
    }
}

/// Exponential from 50 ms to 2 s, each drawn between half and the whole, so that a fleet does not
/// come back all at once.
fn reconnect_delay(attempt: usize) -> Duration {
    let ceiling = 50u64 << attempt.min(7).saturating_sub(1);
    let ceiling = ceiling.min(2000);
    Duration::from_millis(rand::random_range(ceiling / 2..=ceiling))
}

/// Exponential from 1 s to a minute, each drawn between half and the whole.
fn refused_delay(refused: u32) -> Duration {
    let ceiling = 1000_u64 << refused.clamp(1, 7).saturating_sub(1);
    let ceiling = ceiling.min(60_000);
    Duration::from_millis(rand::random_range(ceiling / 2..=ceiling))
}

/// Refusals between two reminders in the log.
const REMINDED: u32 = 40;

/// An unguessable token.
pub(crate) fn random_token() -> String {
    format!("{:032x}", rand::random::<u128>())
}

fn readable(field: &'static str, path: &std::path::Path) -> Result<(), BusError> {
    canopy_files::open(path).map(drop).map_err(|source| BusError::File {
        field,
        path: path.to_owned(),
        source,
    })
}

/// That nobody else decides whom this process takes for the bus.
fn protected(field: &'static str, path: &std::path::Path) -> Result<(), BusError> {
    canopy_files::check_protected(path).map_err(|open| BusError::Unprotected { field, open })
}

fn private(field: &'static str, path: &std::path::Path) -> Result<(), BusError> {
    canopy_secrets::read_private(path).map(drop).map_err(|error| BusError::Secret { field, error })
}

fn addresses(url: &str) -> Result<Vec<ServerAddr>, BusError> {
    let bad = || BusError::Address { url: url.to_owned() };
    url.split(',').map(|one| one.trim().parse().map_err(|_| bad())).collect()
}

/// What is said to the server beside the certificate: a signature of its nonce, where there is a key. A
/// token is read at each connection, so that one that was regenerated is used without a restart.
fn credentials(config: &BusConfig, nkey: Option<&Arc<KeyPair>>) -> ConnectOptions {
    if let Some(nkey) = nkey.cloned() {
        return ConnectOptions::with_auth_callback(move |nonce| {
            let nkey = Arc::clone(&nkey);
            async move {
                let mut auth = async_nats::Auth::new();
                auth.nkey = Some(nkey.public_key());
                let signature = nkey.sign(&nonce);
                auth.signature =
                    Some(signature.map_err(|error| async_nats::AuthError::new(error.to_string()))?);
                Ok(auth)
            }
        });
    }
    let Some(path) = config.token.clone() else { return ConnectOptions::new() };
    ConnectOptions::with_auth_callback(move |_| {
        let path = path.clone();
        async move {
            let mut auth = async_nats::Auth::new();
            let token = canopy_secrets::read_private(&path)
                .map_err(|error| async_nats::AuthError::new(error.to_string()))?;
            auth.token = Some(token.trim().to_owned());
            Ok(auth)
        }
    })
}

fn options(
    config: &BusConfig,
    principal: &Principal,
    nkey: Option<&Arc<KeyPair>>,
) -> Result<ConnectOptions, BusError> {
    let options = credentials(config, nkey);
    let options = if config.server_names.is_empty() {
        options
    } else {
        let client = tls::client(config).map_err(|error| BusError::Defect(error.to_string()))?;
        options.tls_client_config(client)
    };
    Ok(options
        .name(principal.as_str())
        .require_tls(true)
        .tls_first()
        .add_root_certificates(config.ca.clone())
        .add_client_certificate(config.cert.clone(), config.key.clone())
        .custom_inbox_prefix(format!("_INBOX.{principal}"))
        // A half-open link is noticed after about three of these.
        .ping_interval(Duration::from_secs(5))
        .connection_timeout(Duration::from_secs(5))
        .request_timeout(Some(Duration::from_secs(3)))
        .subscription_capacity(4096))
}

impl Bus {
    /// Starts a connection and returns at once; the connection is kept up in the background, for
    /// ever. [`Self::wait_ready`] waits until it carries messages.
    ///
    /// # Errors
    /// When the configuration cannot work: an address that is none, files that cannot be read.
    pub async fn connect(config: &BusConfig, principal: Principal) -> Result<Self, BusError> {
        Self::connect_with_clock(config, principal, Arc::new(SystemTime::now)).await
    }

    /// The same for a user that the server knows by a key: `seed` (`SU…`) signs the server's nonce at each
    /// connect. The certificate is shown as well, and its names count for nothing.
    ///
    /// # Errors
    /// As [`Self::connect`], and when `seed` is not such a seed, without repeating it.
    pub async fn connect_with_nkey(
        config: &BusConfig,
        principal: Principal,
        seed: &Secret,
    ) -> Result<Self, BusError> {
        let nkey = KeyPair::from_seed(seed.trim())
            .ok()
            .filter(|key| key.key_pair_type() == KeyPairType::User)
            .ok_or_else(|| {
                BusError::Defect(format!("{principal}: not the seed of a user (SU…)"))
            })?;
        Self::open(config, principal, Arc::new(SystemTime::now), Some(Arc::new(nkey))).await
    }

    /// The same with another clock.
    pub async fn connect_with_clock(
        config: &BusConfig,
        principal: Principal,
        clock: Clock,
    ) -> Result<Self, BusError> {
        Self::open(config, principal, clock, None).await
    }

    async fn open(
        config: &BusConfig,
        principal: Principal,
        clock: Clock,
        nkey: Option<Arc<KeyPair>>,
    ) -> Result<Self, BusError> {
        // Fails when it is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        protected("bus.ca", &config.ca)?;
        readable("bus.ca", &config.ca)?;
        readable("bus.cert", &config.cert)?;
        private("bus.key", &config.key)?;
        if let Some(token) = &config.token {
            private("bus.token", token)?;
        }
        let addresses = addresses(&config.url)?;
        let attempts = Arc::<Attempts>::default();
        let shared = Arc::new(Shared {
            principal: principal.clone(),
            config: config.clone(),
            clock,
            nkey: nkey.clone(),
            link: watch::Sender::new(Link::Connecting),
            waiting: Mutex::default(),
            refused: Mutex::default(),
            last_error: Mutex::default(),
            attempts: Arc::clone(&attempts),
            refused_by: watch::Sender::new(None),
            connects: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            violations: AtomicU64::new(0),
            next: AtomicU64::new(0),
            listeners: Mutex::default(),
            silent: AtomicBool::new(false),
            inbox: Inbox::default(),
            peers: Mutex::default(),
            log: LogGate::default(),
        });
        // The connection lives as long as who uses it, not the other way round.
        let events = Arc::downgrade(&shared);
        // The library asks how long to wait before the first attempt, too.
        let first = AtomicBool::new(true);
        let delay = move |attempt| {
            if first.swap(false, Ordering::Relaxed) {
                attempts.begin_after(Duration::ZERO);
                Duration::ZERO
            } else {
                attempts.delay(attempt)
            }
        };
        let client = options(config, &principal, nkey.as_ref())?
            .reconnect_delay_callback(delay)
            .retry_on_initial_connect()
            .event_callback(move |event| {
                let events = events.clone();
                async move {
                    if let Some(shared) = events.upgrade() {
                        shared.on_event(event);
                    }
                }
            })
            .connect(addresses)
            .await
            .map_err(|error| BusError::Unreachable {
                url: config.url.clone(),
                waited: Duration::ZERO,
                cause: UnreachableCause::of(&error),
                reason: error.to_string(),
            })?;
        Ok(Self { client: Arc::new(client), shared })
    }

    /// Another connection of the same principal, with a clock of the same. What happens on it is told to
    /// who listens here, beside its coming and going.
    pub(crate) async fn beside(&self) -> Result<Self, BusError> {
        let shared = &self.shared;
        let (principal, clock) = (shared.principal.clone(), Arc::clone(&shared.clock));
        let nkey = shared.nkey.clone();
        let bus = Self::open(&shared.config, principal, clock, nkey).await?;
        let first = Arc::downgrade(shared);
        bus.on_event(move |event| {
            if let Some(first) = first.upgrade().filter(|_| !event.ends_with("connected")) {
                first.tell(event);
            }
        });
        Ok(bus)
    }

    /// Who this connection speaks as.
    pub fn principal(&self) -> &Principal {
        &self.shared.principal
    }

    /// Where it connects to.
    pub fn url(&self) -> &str {
        &self.shared.config.url
    }

    /// State of the connection.
    pub fn link(&self) -> Link {
        *self.shared.link.borrow()
    }

    /// Follows the state of the connection.
    pub fn watch_link(&self) -> watch::Receiver<Link> {
        self.shared.link.subscribe()
    }

    /// Tells what happens on the connection from now on (see [`crate::Server::bus_events`]); a
    /// connection that is up already is told at once.
    pub(crate) fn on_event(&self, tell: impl Fn(&'static str) + Send + Sync + 'static) {
        let mut listeners = self.shared.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        if self.link() == Link::Connected {
            tell("connected");
        }
        listeners.push(Arc::new(tell));
    }

    /// What happened on the connection so far.
    pub fn statistics(&self) -> Statistics {
        Statistics {
            connects: self.shared.connects.load(Ordering::Relaxed),
            dropped: self.shared.dropped.load(Ordering::Relaxed),
            refused: self.shared.violations.load(Ordering::Relaxed),
        }
    }

    /// The time by this connection's clock.
    pub(crate) fn now(&self) -> SystemTime {
        (self.shared.clock)()
    }

    /// Waits until a message to a fresh inbox of our own has come back: the only proof that the
    /// connection carries messages (a flush is no barrier).
    ///
    /// # Errors
    /// [`BusError::Unreachable`] with the reason, [`BusError::Refused`] when the server does not let this
    /// process in, [`BusError::NotPermitted`] when the server knows
    /// this certificate as somebody else.
    pub async fn wait_ready(&self, limit: Duration) -> Result<(), BusError> {
        let until = Instant::now() + limit;
        let ready = async {
            while Instant::now() < until {
                if self.wait_connected(until).await && self.echo(until).await? {
                    return Ok(true);
                }
            }
            Ok::<_, BusError>(false)
        };
        // The cause is looked for within the limit, while the connection may still come up.
        let mut cause = Box::pin(async {
            let time = DIAGNOSIS.min(limit / 2);
            tokio::time::sleep_until(until - time).await;
            self.why_not(time).await
        });
        tokio::pin!(ready);
        let mut found = None;
        loop {
            tokio::select! {
                ready = &mut ready => if ready? { return Ok(()) } else { break },
                why = &mut cause, if found.is_none() => found = Some(why),
            }
        }
        let why = match (self.shared.refusal(), found) {
            (Some(refusal), _) => Why::Refused(refusal),
            (None, Some(why)) => why,
            (None, None) => cause.await,
        };
        let url = self.shared.config.url.clone();
        Err(match why {
            Why::Refused(refusal) => {
                BusError::Refused { url, principal: self.principal().to_string(), refusal }
            }
            Why::Other(cause, reason) => {
                BusError::Unreachable { url, waited: limit, cause, reason }
            }
        })
    }

    /// Waits until the connection is up, whether or not it carries messages both ways; false if it
    /// is not within `limit`.
    pub async fn wait_link(&self, limit: Duration) -> bool {
        self.wait_connected(Instant::now() + limit).await
    }

    /// Sends what is queued and waits until the server has seen it, at most 3 s.
    pub async fn flush(&self) {
        // Nothing to be done about a connection that is gone.
        let _ = timeout(Duration::from_secs(3), self.client.flush()).await;
    }

    /// The same at the end of a service, which a server that is gone or says nothing does not hold up.
    pub(crate) async fn flush_at_end(&self) {
        if self.link() == Link::Connected
            && !self.shared.silent.load(Ordering::Relaxed)
            && timeout(ENDING, self.client.flush()).await.is_err()
        {
            self.shared.silent.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the connection was up before `until`.
    pub(crate) async fn wait_connected(&self, until: Instant) -> bool {
        if self.link() == Link::Connected {
            return true;
        }
        let mut link = self.shared.link.subscribe();
        let connected = link.wait_for(|link| *link == Link::Connected);
        tokio::time::timeout_at(until, connected).await.is_ok_and(|up| up.is_ok())
    }

    async fn echo(&self, until: Instant) -> Result<bool, BusError> {
        let me = &self.shared.principal;
        let inbox = format!("_INBOX.{me}.{me}.{}", random_token());
        let Ok(mut replies) = self.client.subscribe(inbox.clone()).await else { return Ok(false) };
        let mut waiting = self.shared.wait_on(&inbox);
        if self.client.publish(inbox.clone(), Bytes::new()).await.is_err() {
            return Ok(false);
        }
        let once = Duration::from_secs(1).min(until.saturating_duration_since(Instant::now()));
        let denied = |what: &str| {
            Err(BusError::NotPermitted {
                principal: me.to_string(),
                what: format!("{what} {inbox}"),
            })
        };
        let outcome = timeout(once, async {
            tokio::select! {
                message = replies.next() => Ok(message.is_some()),
                Ok(()) = &mut waiting.refused => denied("publish to"),
            }
        })
        .await;
        if self.shared.subscription_refused(&inbox) {
            return denied("subscribe to");
        }
        outcome.unwrap_or(Ok(false))
    }

    /// Why there is no connection: what the attempts in the background met last, or one of our own whose
    /// error is not swallowed by the library's retries, within this time.
    pub(crate) async fn why_not(&self, time: Duration) -> Why {
        if self.link() == Link::Connected {
            return Why::Other(
                UnreachableCause::NoMessages,
                "connected, but messages do not come back".to_owned(),
            );
        }
        // Whoever is refused does not knock once more for the reason.
        if let Some(refusal) = self.shared.refusal() {
            return Why::Refused(refusal);
        }
        let Ok(addresses) = addresses(&self.shared.config.url) else {
            return Why::Other(UnreachableCause::Other, "not an address".to_owned());
        };
        let shared = &self.shared;
        let options = match options(&shared.config, &shared.principal, shared.nkey.as_ref()) {
            Ok(options) => options,
            Err(error) => return Why::Other(UnreachableCause::Other, error.to_string()),
        };
        let begun = Instant::now();
        match timeout(time, options.connect(addresses)).await {
            Ok(Ok(_)) => Why::Other(
                UnreachableCause::NoAnswer,
                "the connection came up only just now; try again".to_owned(),
            ),
            Ok(Err(error)) => {
                let cause = UnreachableCause::of(&error);
                let error = error.to_string();
                match self.shared.diagnose(&error, begun.elapsed()) {
                    Some(refusal) => Why::Refused(refusal),
                    None => Why::Other(cause, error),
                }
            }
            Err(_) => {
                let last = self.shared.last_error.lock().unwrap_or_else(PoisonError::into_inner);
                Why::Other(
                    UnreachableCause::NoAnswer,
                    last.clone().unwrap_or_else(|| "no answer".to_owned()),
                )
            }
        }
    }

    /// Why the server refuses this process; `None` while it does not.
    pub fn watch_refusal(&self) -> watch::Receiver<Option<Refusal>> {
        self.shared.refused_by.subscribe()
    }

    /// Sends what is queued and ends the connection.
    pub async fn close(&self) {
        self.flush_at_end().await;
        if self.link() == Link::Connected && !self.shared.silent.load(Ordering::Relaxed) {
            // Nothing could be done about a failure.
            let _ = timeout(ENDING, self.client.drain()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The library says that an attempt failed while it waits for the next, or just before.
    #[test]
    fn an_attempt_is_timed_whenever_its_failure_is_told() {
        let attempts = Attempts::default();
        attempts.begin_after(Duration::ZERO);
        std::thread::sleep(Duration::from_millis(60));
        assert!(attempts.took() >= Duration::from_millis(60));
        attempts.begin_after(Duration::from_mins(1));
        assert!(attempts.took() >= Duration::from_millis(60));
        attempts.begin_after(Duration::from_mins(1));
        assert_eq!(attempts.took(), Duration::ZERO);
    }

    #[test]
    fn refused_connections_come_back_seldom_and_others_soon() {
        let attempts = Attempts::default();
        for attempt in 1..200 {
            assert!(attempts.delay(attempt) <= Duration::from_secs(2));
        }
        let mut whole = Duration::ZERO;
        for refused in 1..=30 {
            attempts.refused.store(refused, Ordering::Relaxed);
            let delay = attempts.delay(1000);
            assert!(delay <= Duration::from_mins(1), "{delay:?}");
            whole += delay;
        }
        // An hour of it is some eighty attempts, where it was more than two thousand.
        assert!(whole > Duration::from_mins(10), "{whole:?}");
    }
}
