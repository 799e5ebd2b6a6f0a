//! Asking.

use crate::{
    codec::Encoding,
    config::BusError,
    connection::{Bus, DIAGNOSIS, Link, Why, random_token},
    header,
    inbox::{Expected, Outcome},
    refusal::Refusal,
    repeat::{Repeats, Search},
    trace,
};
use async_nats::{HeaderMap, HeaderName, HeaderValue, Message, StatusCode, Subject};
use bytes::Bytes;
use canopy_api::{
    document,
    endpoint::{Class, Endpoint, EndpointSpec},
    error::{ApiError, Code},
    known,
    name::Principal,
    subject::{self, Target},
    time,
};
use futures::StreamExt as _;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout_at};

/// How far clocks may be apart before it is worth a word.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(5);

/// Why a call has no reply. Each is one line; [`CallError::to_api_error`] adds code and remedy.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The service answered with an error.
    #[error("{0}")]
    Api(ApiError),
    /// Nobody serves the subject.
    #[error("nobody serves {endpoint} at {target}")]
    NoResponders {
        /// `loader.apply`.
        endpoint: String,
        /// The host, or `the centre`.
        target: String,
    },
    /// Somebody serves it and did not answer in time.
    #[error("{endpoint} at {target} did not answer within {after:?}")]
    Timeout {
        /// `loader.apply`.
        endpoint: String,
        /// The host, or `the centre`.
        target: String,
        /// How long was waited.
        after: Duration,
        /// By which to ask again for what became of it, where it may have changed something.
        request_id: Option<String>,
    },
    /// The server did not take the request: the principal's role does not hold its class.
    #[error("{principal} may not call {endpoint}: it needs the permission \"{class}\"")]
    NotPermitted {
        /// Who asked.
        principal: String,
        /// `loader.apply`.
        endpoint: String,
        /// The class of the endpoint.
        class: String,
    },
    /// There is no connection.
    #[error("not connected to the bus at {url}: {reason}")]
    Disconnected {
        /// Where it should be.
        url: String,
        /// What the last attempt met.
        reason: String,
        /// By which to ask again for what became of the request, where it was sent and may have changed
        /// something.
        request_id: Option<String>,
    },
    /// The server does not let this process in.
    #[error("the bus at {url} refuses {principal}: {refusal}")]
    Refused {
        /// Where.
        url: String,
        /// Who asked.
        principal: String,
        /// Why.
        refusal: Refusal,
    },
    /// Request or reply cannot be written or read.
    #[error("{endpoint}: {reason}")]
    Codec {
        /// `loader.apply`.
        endpoint: String,
        /// What is wrong.
        reason: String,
    },
}

impl CallError {
    /// The same with code and remedy, as a service would answer it.
    pub fn to_api_error(&self) -> ApiError {
        let error = |code| ApiError::new(code, self.to_string());
        match self {
            Self::Api(error) => error.clone(),
            Self::NoResponders { endpoint, target } => {
                let service = endpoint.split('.').next().unwrap_or_default();
                error(Code::Unavailable).remedy(format!(
                    "see that canopy-{service} runs ({target}), and that the host's name is right"
                ))
            }
            Self::Timeout { request_id: Some(id), .. }
            | Self::Disconnected { request_id: Some(id), .. } => {
                error(Code::Unavailable).remedy(format!(
                    "whether it was done is not known; ask again for its result: --request-id {id}"
                ))
            }
            Self::Timeout { request_id: None, .. } => error(Code::Unavailable)
                .remedy("try again; if it goes on, look at the service's log and /ready?verbose"),
            Self::NotPermitted { .. } => error(Code::Denied).remedy(
                "use a role that holds the permission; where the token is for some hosts or services only, \
                 name one of them (--host); or ask an administrator",
            ),
            Self::Disconnected { request_id: None, .. } => error(Code::Unavailable).remedy(
                "see that nats-server runs at that address, and that the certificates belong to it",
            ),
            Self::Refused { refusal, .. } => error(refusal.code()).remedy(refusal.remedy()),
            Self::Codec { .. } => {
                error(Code::Internal).remedy("see that both sides run the same version")
            }
        }
    }
}

/// How to ask.
#[derive(Clone, Debug, Default)]
pub struct CallOptions {
    /// How long to wait; default: the endpoint's.
    pub timeout: Option<Duration>,
    /// The idempotency key; default: a fresh one. A repeat of a request that changes something,
    /// with the same key, gets the first answer.
    pub request_id: Option<String>,
    /// How request and reply are written.
    pub encoding: Encoding,
}

/// How long others are waited for once everybody has answered who was expected to.
const STRAGGLERS: Duration = Duration::from_millis(100);

/// How long answers of many are waited for.
#[derive(Clone, Debug, Default)]
pub struct Gather {
    /// At most so long.
    pub wait: Duration,
    /// Until nothing has come for so long.
    pub quiet: Option<Duration>,
    /// Until all of these have answered, where there are any, and no other does.
    pub expected: BTreeSet<Principal>,
}

fn endpoint_name(spec: &EndpointSpec) -> String {
    format!("{}.{}", spec.service, spec.verb)
}

fn target_name(target: &Target) -> String {
    match target {
        Target::Host(host) => format!("host {host}"),
        Target::AllHosts => "any host".to_owned(),
        Target::Central => "the centre".to_owned(),
    }
}

/// A request as it goes out, for the first time or again.
struct Outgoing<'a> {
    spec: &'static EndpointSpec,
    subject: Subject,
    reply: Subject,
    payload: Bytes,
    options: &'a CallOptions,
    /// When its caller stops waiting.
    until: Instant,
    /// Whether its receiver takes its caller to wait as long as it does without being told.
    is_default_timeout: bool,
}

/// How long an error is kept back that answers a request which was sent more than once: of two instances that work
/// on it, one may fail because the other was quicker.
const BETTER_ANSWER: Duration = Duration::from_secs(1);

/// How much of the default timeout may have passed when a request goes out without a deadline.
const DEFAULT_TOLERANCE: Duration = Duration::from_millis(100);

fn encode<E: Endpoint>(request: &E::Request, options: &CallOptions) -> Result<Bytes, CallError> {
    let payload = options
        .encoding
        .encode(request)
        .map_err(|reason| CallError::Codec { endpoint: endpoint_name(E::SPEC), reason })?;
    Ok(payload.into())
}

/// Keeps what a responder says of its default timeout.
fn note_default_timeout(expected: &Expected<'_>, spec: &EndpointSpec, message: &Message) {
    let millis = header::get(message.headers.as_ref(), header::DEFAULT_TIMEOUT);
    if let Some(millis) = millis.and_then(|millis| millis.parse().ok()) {
        expected.set_default_timeout(spec.verb, Duration::from_millis(millis));
    }
}

impl Bus {
    /// Asks and waits for the reply, as long as the endpoint's timeout.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call<E: Endpoint>(
        &self,
        target: &Target,
        request: &E::Request,
    ) -> Result<E::Reply, CallError> {
        self.call_with::<E>(target, request, CallOptions::default()).await
    }

    /// The same with options.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call_with<E: Endpoint>(
        &self,
        target: &Target,
        request: &E::Request,
        mut options: CallOptions,
    ) -> Result<E::Reply, CallError> {
        let spec = E::SPEC;
        // Found once for each endpoint, which takes none of the caller's time. Reads are not asked about.
        let newer = (spec.class != Class::Read).then(known::newer::<E>);
        let wait = options.timeout.unwrap_or(spec.timeout);
        let until = Instant::now() + wait;
        if let Some(newer) = newer {
            // Here and below what is seldom needed is boxed: each call would carry its state along.
            Box::pin(self.ensure_newer_known::<E>(target, request, &newer, wait)).await?;
        }
        if spec.class.changes() {
            options.request_id.get_or_insert_with(random_token);
        }
        let responder = target.responder(spec.service);
        let payload = encode::<E>(request, &options)?;
        let mut search = Search::within(wait);
        loop {
            let subject = Subject::from(subject::request(spec, target, self.principal()));
            // Registered before the request goes out: the refusal may be quick.
            let mut expected =
                self.shared.inbox.expect(self.principal().as_str(), &responder, &subject);
            let is_default = wait == spec.timeout && !spec.class.changes();
            let outgoing = Outgoing {
                spec,
                subject,
                reply: expected.reply.clone(),
                payload: payload.clone(),
                options: &options,
                until,
                is_default_timeout: is_default
                    && expected.is_default_timeout(spec.verb, spec.timeout),
            };
            let ready = async {
                if expected.is_open() {
                    return Ok(());
                }
                Box::pin(expected.open(self)).await.map_err(|_| self.closed())
            };
            self.send(&outgoing, ready).await?;
            let message = self.answer(&outgoing, &mut expected, target, wait).await?;
            let is_reachable = message.status != Some(StatusCode::NO_RESPONDERS);
            if is_reachable {
                expected.set_reachable(true);
                note_default_timeout(&expected, spec, &message);
            } else if expected.is_reachable() {
                // It was there before: its connection may be on its way to another server.
                if let Some(pause) = search.next_pause() {
                    sleep(pause).await;
                    continue;
                }
                expected.set_reachable(false);
            }
            return self.read::<E>(target, &message);
        }
    }

    /// Waits for the answer to a request that was sent, and sends it again where that does nothing twice.
    async fn answer(
        &self,
        outgoing: &Outgoing<'_>,
        expected: &mut Expected<'_>,
        target: &Target,
        wait: Duration,
    ) -> Result<Message, CallError> {
        let Outgoing { spec, options, until, .. } = *outgoing;
        let mut repeats = Repeats::of(spec, options.request_id.is_some(), wait);
        // Of what changes nothing, or the same again, there is nothing to ask for.
        let request_id = || options.request_id.clone().filter(|_| !spec.idempotent);
        let pause_from_now = |pause: Duration| Instant::now() + pause;
        let mut next = repeats.next_pause().map(pause_from_now);
        let mut attempt = 1;
        loop {
            let mut wake = next.unwrap_or(until).min(until);
            if attempt > 1 {
                wake = wake.min(Instant::now() + BETTER_ANSWER / 4);
            }
            match timeout_at(wake, &mut expected.outcome).await {
                Ok(Ok(Outcome::Answered(message))) => return Ok(message),
                Ok(Ok(Outcome::Refused)) => return Err(self.not_permitted(spec)),
                Ok(Err(_)) => return Err(self.lost("the connection was closed", request_id())),
                Err(_) => {}
            }
            let now = Instant::now();
            let patience = if now < until { BETTER_ANSWER } else { Duration::ZERO };
            if attempt > 1
                && let Some(error) = expected.take_error(patience)
            {
                return Ok(error);
            }
            if now >= until {
                break;
            }
            if next.is_some_and(|next| next <= now) {
                attempt += 1;
                expected.set_repeated();
                Box::pin(self.repeat(outgoing, attempt)).await;
                next = repeats.next_pause().map(pause_from_now);
            }
        }
        if self.link() != Link::Connected {
            return Err(self.lost("the connection was lost while waiting", request_id()));
        }
        Err(CallError::Timeout {
            endpoint: endpoint_name(spec),
            target: target_name(target),
            after: wait,
            request_id: request_id(),
        })
    }

    /// Sends a request again.
    async fn repeat(&self, outgoing: &Outgoing<'_>, attempt: u32) {
        let until = outgoing.until;
        // Without a connection it would be queued, and sent when its caller has gone.
        if !self.wait_connected(until).await {
            return;
        }
        let endpoint = endpoint_name(outgoing.spec);
        tracing::debug!(%endpoint, attempt, "no answer; the request is sent again");
        // What failed is told by the time running out.
        if let Ok(Err(error)) = timeout_at(until, self.publish_request(outgoing, attempt)).await {
            tracing::debug!(%endpoint, %error, "the request could not be sent again");
        }
    }

    /// Asks every host and collects what comes within `wait`; the first answer of each counts. Who
    /// answered is the subject's word, which the server vouches for.
    ///
    /// # Errors
    /// See [`CallError`]; nobody answering is an empty list.
    pub async fn call_all<E: Endpoint>(
        &self,
        request: &E::Request,
        wait: Duration,
    ) -> Result<Vec<(Principal, Result<E::Reply, ApiError>)>, CallError> {
        self.gather::<E>(request, &Gather { wait, ..Gather::default() }).await
    }

    /// Asks every host and collects what comes, as [`Gather`] says; the first answer of each counts.
    ///
    /// # Errors
    /// See [`CallError`]; nobody answering is an empty list.
    pub async fn gather<E: Endpoint>(
        &self,
        request: &E::Request,
        gather: &Gather,
    ) -> Result<Vec<(Principal, Result<E::Reply, ApiError>)>, CallError> {
        let spec = E::SPEC;
        let subject = subject::request(spec, &Target::AllHosts, self.principal());
        let random = random_token();
        let reply = format!("_INBOX.{}.all.{random}", self.principal());
        let listen = format!("_INBOX.{}.*.{random}", self.principal());
        let mut waiting = self.shared.wait_on(&subject);
        let options = CallOptions::default();
        let outgoing = Outgoing {
            spec,
            subject: Subject::from(subject.as_str()),
            reply: Subject::from(reply.as_str()),
            payload: encode::<E>(request, &options)?,
            options: &options,
            until: Instant::now() + gather.wait,
            is_default_timeout: false,
        };
        let until = outgoing.until;
        let ready = async { self.client.subscribe(listen).await.map_err(|_| self.closed()) };
        let mut replies = self.send(&outgoing, ready).await?;
        let mut answers = BTreeMap::new();
        let mut missing = gather.expected.clone();
        loop {
            // Who was not expected may answer, too.
            let complete = missing.is_empty() && !gather.expected.is_empty();
            let quiet = if complete { Some(STRAGGLERS) } else { gather.quiet };
            let quiet = quiet.map_or(until, |quiet| until.min(Instant::now() + quiet));
            let message = tokio::select! {
                message = timeout_at(quiet, replies.next()) => message,
                Ok(()) = &mut waiting.refused => return Err(self.not_permitted(spec)),
            };
            let Ok(Some(message)) = message else { break };
            if message.status == Some(StatusCode::NO_RESPONDERS) {
                if *message.subject == *reply {
                    break;
                }
                // The server says it at the request's own reply subject, where nobody may publish.
                // One host must not end the wait for the others.
                continue;
            }
            let from = message.subject.split('.').nth(2).and_then(|token| token.parse().ok());
            let Some(from) = from else { continue };
            let answer =
                self.read::<E>(&Target::AllHosts, &message).map_err(|error| error.to_api_error());
            missing.remove(&from);
            answers.entry(from).or_insert(answer);
        }
        Ok(answers.into_iter().collect())
    }

    /// Publishes a request once `ready` is done, which is that answers can arrive.
    async fn send<R>(
        &self,
        outgoing: &Outgoing<'_>,
        ready: impl Future<Output = Result<R, CallError>>,
    ) -> Result<R, CallError> {
        let until = outgoing.until;
        // A request queued while disconnected would be executed after the reconnect, long after
        // its caller has gone: it is not queued.
        if self.link() != Link::Connected && !Box::pin(self.wait_connected(until)).await {
            return Err(match Box::pin(self.why_not(DIAGNOSIS)).await {
                Why::Refused(refusal) => CallError::Refused {
                    url: self.url().to_owned(),
                    principal: self.principal().to_string(),
                    refusal,
                },
                Why::Other(_, reason) => self.disconnected(reason),
            });
        }
        let sending = async {
            let ready = ready.await?;
            self.publish_request(outgoing, 1).await?;
            Ok(ready)
        };
        // Publishing blocks while the client's queue is full, which its own timeouts ignore.
        timeout_at(until, sending)
            .await
            .map_err(|_| self.disconnected("the send queue is full".to_owned()))?
    }

    /// Publishes a request for the first or another time, with the headers that say more than what its
    /// receiver takes for granted: each costs the server and both sides.
    async fn publish_request(
        &self,
        outgoing: &Outgoing<'_>,
        attempt: u32,
    ) -> Result<(), CallError> {
        let Outgoing { spec, options, .. } = *outgoing;
        let left = outgoing.until.saturating_duration_since(Instant::now());
        let mut headers = HeaderMap::new();
        // MessagePack is meant where there is no type.
        if options.encoding != Encoding::MessagePack {
            headers.insert(header::CONTENT_TYPE, options.encoding.content_type());
        }
        if !outgoing.is_default_timeout || left + DEFAULT_TOLERANCE < spec.timeout {
            let deadline = HeaderValue::from(time::unix_millis(self.now() + left));
            headers.insert(HeaderName::from_static(header::DEADLINE), deadline);
        }
        if spec.class.changes() {
            let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            headers.insert(HeaderName::from_static(header::TIMEOUT), HeaderValue::from(left));
        }
        if let Some(request_id) = &options.request_id {
            let name = HeaderName::from_static(header::REQUEST_ID);
            headers.insert(name, request_id.as_str());
        }
        if attempt > 1 {
            headers.insert(HeaderName::from_static(header::ATTEMPT), HeaderValue::from(attempt));
        }
        trace::inject(&mut headers);
        let (subject, reply) = (outgoing.subject.clone(), outgoing.reply.clone());
        self.client
            .publish_with_reply_and_headers(subject, reply, headers, outgoing.payload.clone())
            .await
            .map_err(|error| match error.kind() {
                async_nats::PublishErrorKind::MaxPayloadExceeded
                | async_nats::PublishErrorKind::InvalidSubject => {
                    CallError::Codec { endpoint: endpoint_name(spec), reason: error.to_string() }
                }
                async_nats::PublishErrorKind::Send => self.closed(),
            })
    }

    fn read<E: Endpoint>(&self, target: &Target, message: &Message) -> Result<E::Reply, CallError> {
        let spec = E::SPEC;
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(CallError::NoResponders {
                endpoint: endpoint_name(spec),
                target: target_name(target),
            });
        }
        let headers = message.headers.as_ref();
        let codec = |reason| CallError::Codec { endpoint: endpoint_name(spec), reason };
        let encoding = Encoding::of(header::get(headers, header::CONTENT_TYPE))
            .map_err(|error| codec(error.message))?;
        let clock = self.clock_difference(message);
        if let Some(difference) = &clock {
            tracing::warn!(endpoint = %endpoint_name(spec), "{difference}");
        }
        if header::get(headers, header::ERROR_CODE).is_none() {
            return encoding.decode(&message.payload).map_err(|error| {
                codec(format!("the reply is not what this version expects: {error}"))
            });
        }
        let mut error: ApiError = encoding
            .decode::<ApiError>(&message.payload)
            .unwrap_or_else(|_| {
                let text = header::get(headers, header::ERROR).unwrap_or("error without a text");
                ApiError::new(Code::Internal, text)
            })
            .plain();
        if let Some(difference) = clock
            && error.path == header::DEADLINE
        {
            error.message = format!("{}; {difference}", error.message);
            error.remedy = Some("set the clocks (NTP)".to_owned());
        }
        if let Some(field) = newer_field::<E>(&error) {
            let (endpoint, target) = (endpoint_name(spec), target_name(target));
            error = ApiError::new(
                Code::Unsupported,
                format!("{endpoint} at {target} does not know \"{field}\": the service is older than this program, and did nothing"),
            )
            .at(field)
            .remedy("update the service, or ask without it");
        }
        Err(CallError::Api(error))
    }

    /// By how much the responder's clock differs from ours, in words, where it is more than 5 s.
    fn clock_difference(&self, message: &Message) -> Option<String> {
        let theirs = header::get(message.headers.as_ref(), header::TIME)?.parse().ok()?;
        let ours = time::unix_millis(self.now());
        let off = Duration::from_millis(ours.abs_diff(theirs));
        if off <= CLOCK_TOLERANCE {
            return None;
        }
        let who = message.subject.split('.').nth(2).unwrap_or("the service");
        let direction = if theirs > ours { "ahead of" } else { "behind" };
        Some(format!("the clock of {who} is {:.1} s {direction} this machine's", off.as_secs_f64()))
    }

    fn not_permitted(&self, spec: &EndpointSpec) -> CallError {
        CallError::NotPermitted {
            principal: self.principal().to_string(),
            endpoint: endpoint_name(spec),
            class: spec.class.to_string(),
        }
    }

    fn closed(&self) -> CallError {
        self.disconnected("the connection is closed".to_owned())
    }

    fn disconnected(&self, reason: String) -> CallError {
        CallError::Disconnected { url: self.url().to_owned(), reason, request_id: None }
    }

    /// The connection was lost after the request was sent.
    fn lost(&self, reason: &str, request_id: Option<String>) -> CallError {
        CallError::Disconnected {
            url: self.url().to_owned(),
            reason: reason.to_owned(),
            request_id,
        }
    }
}

/// A field that the receiver says it does not know, and that the request has: what a person wrote is not
/// wrong, the receiver is of an earlier version.
fn newer_field<E: Endpoint>(error: &ApiError) -> Option<String> {
    if error.code != Code::Invalid {
        return None;
    }
    let problems = error.problems.iter().map(|problem| (&problem.path, &problem.message));
    let mut problems = problems.chain([(&error.path, &error.message)]);
    let (path, _) = problems.find(|(path, message)| {
        message.starts_with("unknown field ") && document::has_field::<E::Request>(path)
    })?;
    Some(path.clone())
}

impl From<BusError> for ApiError {
    fn from(error: BusError) -> Self {
        let code = match &error {
            BusError::Unreachable { .. }
            | BusError::Unavailable(_)
            | BusError::Store(_)
            | BusError::Closed => Code::Unavailable,
            BusError::Refused { refusal, .. } => refusal.code(),
            BusError::NotPermitted { .. } => Code::Denied,
            BusError::Address { .. }
            | BusError::File { .. }
            | BusError::Unprotected { .. }
            | BusError::Secret { .. } => Code::Invalid,
            BusError::Remembering { .. } | BusError::Defect(_) => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}
