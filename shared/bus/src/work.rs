//! What happens to one request, from the message to the answer.

mod refuse;

use crate::{
    blocking::blocking,
    codec::Encoding,
    connection::Bus,
    for_log::for_log,
    header,
    idempotency::{Answer, Begin, Guard, Key, Table},
    in_flight::InFlightGuard,
    limits::Limits,
    micro::EndpointStatistics,
    refused_requests::RefusedRequests,
    retry,
    server::{Caller, Noted, Notes, Registered, Work, late},
    slots::{Entered, Owner, Permit, Slots},
    spool::Spool,
    trace,
};
use async_nats::{HeaderMap, HeaderName, HeaderValue, Message, Subject};
use canopy_api::{
    document::Lenient,
    endpoint::{Class, EndpointSpec, Service},
    error::{ApiError, BUSY, Code},
    name::{Digest, HostId, Principal},
    subject, time,
    wire::{Audit, Decision},
};
use canopy_audit::{Entry, Head, Kind, LineHash};
use futures::FutureExt as _;
use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    sync::{Semaphore, oneshot},
    time::timeout,
};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// Called with verb, code and time taken of each answered request.
pub(crate) type Observe = Arc<dyn Fn(&str, &str, Duration) + Send + Sync>;

/// What all requests of a service share.
pub(crate) struct Shop {
    pub(crate) bus: Bus,
    pub(crate) service: Service,
    pub(crate) host: Option<HostId>,
    pub(crate) me: Principal,
    pub(crate) limits: Limits,
    pub(crate) slots: Slots,
    pub(crate) refused: RefusedRequests,
    /// Answers to requests that had no slot, which are on their way.
    pub(crate) refusing: Arc<Semaphore>,
    pub(crate) table: Table,
    pub(crate) spool: Option<Arc<Spool>>,
    pub(crate) observe: Observe,
    pub(crate) tasks: TaskTracker,
}

/// How an answer is written. MessagePack is meant where none is named; a caller who names one is told one. A
/// request without headers is answered without any, as each costs the server and both sides.
#[derive(Clone, Copy)]
struct ReplyFormat {
    encoding: Encoding,
    /// Whether the answer names it.
    named: bool,
    /// Whether the answer says what time it is here; an error always does.
    timed: bool,
    /// How long the caller is taken to wait where it does not say so; told who does say so.
    default_timeout: Option<Duration>,
}

impl ReplyFormat {
    fn of(encoding: Encoding, headers: Option<&HeaderMap>, spec: &EndpointSpec) -> Self {
        let has_deadline = || header::get(headers, header::DEADLINE).is_some();
        Self {
            encoding,
            named: encoding != Encoding::MessagePack
                || header::get(headers, header::CONTENT_TYPE).is_some(),
            timed: headers.is_some(),
            default_timeout: (!spec.class.changes() && has_deadline()).then_some(spec.timeout),
        }
    }
}

impl From<Encoding> for ReplyFormat {
    fn from(encoding: Encoding) -> Self {
        Self { encoding, named: true, timed: true, default_timeout: None }
    }
}

/// A request that may be answered.
struct Accepted {
    caller: Principal,
    reply: String,
    /// Its headers are costly to copy.
    message: Arc<Message>,
    endpoint: Arc<Registered>,
    statistics: Arc<EndpointStatistics>,
    received: Instant,
    /// The connection that it came over.
    lane: Bus,
    /// Repeats of it are ignored until it is answered.
    _in_flight: InFlightGuard,
}

impl Shop {
    /// Takes a message. Everything slow happens in a task of its own.
    pub(crate) fn take(
        self: &Arc<Self>,
        endpoint: &Arc<Registered>,
        statistics: &Arc<EndpointStatistics>,
        lane: &Bus,
        message: Message,
    ) {
        let spec = endpoint.spec;
        let Some(caller) = subject::principal_of(&message.subject) else {
            tracing::warn!(
                subject = %for_log(&message.subject), "request without a principal in its subject ignored"
            );
            return;
        };
        let Some(reply) = message.reply.as_ref() else {
            tracing::debug!(verb = spec.verb, %caller, "request without a reply subject left alone");
            return;
        };
        let Some(reply) = subject::reply_subject(reply, &caller, &self.me) else {
            // Answering would publish with our rights to a place of the caller's choice.
            (self.observe)(spec.verb, Code::Denied.as_str(), Duration::ZERO);
            statistics.count(true, Duration::ZERO);
            let error = ApiError::new(
                Code::Denied,
                format!(
                    "reply subject \"{}\" is not the caller's own inbox for {}",
                    for_log(reply),
                    self.me
                ),
            );
            if self.note_refused(&caller, endpoint.spec, &error).record {
                let record = self.refusal(&caller, spec.verb, &message, &error);
                let shop = self.clone();
                self.tasks.spawn(async move { shop.record_refused(spec, record, 1).await });
            }
            return;
        };
        let is_repeat = header::get(message.headers.as_ref(), header::ATTEMPT).is_some();
        let Some(in_flight) = self.table.in_flight().enter(&reply, is_repeat) else {
            tracing::debug!(verb = spec.verb, %caller, "repeat of a request in flight ignored");
            return;
        };
        let owner = Owner::of(&caller);
        let entered = self.slots.enter(spec.class, owner, message.payload.len());
        if matches!(entered, Entered::Full) {
            self.refuse_at_once(endpoint, statistics, (caller, reply, lane), &message);
            return;
        }
        let span = tracing::info_span!(
            "request", otel.kind = "server", service = %self.service, verb = spec.verb, %caller
        );
        trace::adopt(&span, message.headers.as_ref());
        let accepted = Accepted {
            caller,
            reply,
            message: Arc::new(message),
            endpoint: endpoint.clone(),
            statistics: statistics.clone(),
            received: Instant::now(),
            lane: lane.clone(),
            _in_flight: in_flight,
        };
        let shop = self.clone();
        // A future of some kilobytes, which is moved a few times until it runs.
        self.tasks.spawn(Box::pin(shop.work(accepted, entered)).instrument(span));
    }

    async fn work(self: Arc<Self>, request: Accepted, entered: Entered) {
        let headers = request.message.headers.as_ref();
        let encoding = header::only(headers, header::CONTENT_TYPE).and_then(Encoding::of);
        // The answer to a request in an unknown encoding has to be in some encoding.
        let reply_encoding = encoding.as_ref().copied().unwrap_or(Encoding::Json);
        // Until the answer is sent: answers of a flood must not fill the way out, either.
        let mut held = None;
        let decided = match encoding {
            Ok(encoding) => {
                Arc::clone(&self).decide(&request, encoding, (entered, &mut held)).await
            }
            Err(error) => Decided::Refused(error),
        };
        let format = ReplyFormat::of(reply_encoding, headers, request.endpoint.spec);
        let recorded = matches!(decided, Decided::Worked(_));
        let answer = match decided {
            Decided::Refused(error) => Err(error),
            Decided::Worked(answer) => answer,
        }
        .map_err(ApiError::plain);
        let spec = request.endpoint.spec;
        let took = request.received.elapsed();
        let code = answer.as_ref().err().map_or("ok", |error| error.code.as_str());
        (self.observe)(spec.verb, code, took);
        request.statistics.count(answer.is_err(), took);
        let mut refusal = None;
        match &answer {
            Ok(_) => tracing::debug!(code, ?took, "answered"),
            Err(error) => {
                // What was worked on is told by who worked on it, at its end.
                let noted = self.note_refused(&request.caller, spec, error);
                if noted.record && changes(spec.class) && !recorded {
                    let caller = &request.caller;
                    refusal = Some(self.refusal(caller, spec.verb, &request.message, error));
                }
            }
        }
        self.answer((&request.lane, &request.reply), format, answer).await;
        if let Some(record) = refusal {
            // Here and below what is seldom needed is boxed: each request would carry its state along.
            Box::pin(self.record_refused(spec, record, 1)).await;
        }
        drop(held);
    }

    /// Everything that can speak against the request, then the request.
    async fn decide(
        self: Arc<Self>,
        request: &Accepted,
        encoding: Encoding,
        entered: (Entered, &mut Option<Arc<Permit>>),
    ) -> Decided {
        match self.accept(request, encoding, entered).await {
            Ok(Next::Work(job)) => Decided::Worked(self.run(*job).await),
            Ok(Next::Answered(answer)) => match answer {
                Ok(answer) => Decided::Worked(Ok(answer)),
                Err(error) => Decided::Refused(error),
            },
            Err(error) => Decided::Refused(error),
        }
    }

    /// What speaks against a request, and what is known of it from before.
    async fn accept(
        &self,
        request: &Accepted,
        encoding: Encoding,
        (entered, held): (Entered, &mut Option<Arc<Permit>>),
    ) -> Result<Next, ApiError> {
        let payload = &request.message.payload;
        if payload.len() > self.limits.request_bytes {
            return Err(ApiError::new(
                Code::Invalid,
                format!(
                    "the request is {} bytes; at most {} are taken",
                    payload.len(),
                    self.limits.request_bytes
                ),
            ));
        }
        let headers = request.message.headers.as_ref();
        let spec = request.endpoint.spec;
        let until = self.until(headers, request.received, spec)?;
        let request_id = request_id(header::only(headers, header::REQUEST_ID)?)?;
        let slot = Arc::new(slot(entered, until, request).await?);
        *held = Some(Arc::clone(&slot));
        // Before it is begun: what cannot be read changes nothing, and has no record of its own.
        let work = (request.endpoint.read)(payload, encoding)?;
        let guard = match &request_id {
            Some(request_id) if !spec.idempotent => {
                let key = Key {
                    principal: request.caller.to_string(),
                    verb: spec.verb.to_owned(),
                    request_id: request_id.clone(),
                };
                // The encoding is part of it: the kept reply is in that encoding.
                let mut whole = encoding.content_type().as_bytes().to_vec();
                whole.extend_from_slice(payload);
                match self.table.begin(key, Digest::of(&whole).to_string()) {
                    Begin::Work(guard) => Some(guard),
                    Begin::Answered(answer) => return Ok(Next::Answered(answer)),
                    Begin::Wait(done) => {
                        let answer = first_answer(done);
                        let answer = Box::pin(before(until, answer)).await;
                        let answer = answer.unwrap_or_else(|| {
                            Err(still_working(&Repeat::With(request_id.clone())))
                        });
                        return Ok(Next::Answered(answer));
                    }
                    Begin::Mismatch => {
                        return Err(ApiError::new(
                            Code::Conflict,
                            format!("{} was used for another request", header::REQUEST_ID),
                        )
                        .remedy("use a fresh id for each request, the same id only for a repeat"));
                    }
                }
            }
            _ => None,
        };
        // A repeat is answered above: what it asks for may have been done.
        if changes(spec.class) && until.is_some_and(|until| until <= Instant::now()) {
            return Err(late());
        }
        if changes(spec.class)
            && let Some(wait) = self.refused.wait(&Owner::of(&request.caller), spec, Instant::now())
        {
            return Err(ApiError::new(
                Code::Unavailable,
                format!("too many {} requests of {} failed lately", spec.verb, request.caller),
            )
            .remedy(format!(
                "correct what fails first; the next is taken in {:.1} s",
                wait.as_secs_f64()
            )));
        }
        let caller = Caller {
            principal: request.caller.clone(),
            request_id,
            until,
            notes: Notes::default(),
        };
        let begun = if changes(spec.class) {
            Box::pin(self.begin(request, caller.request_id.clone())).await?
        } else {
            None
        };
        Ok(Next::Work(Box::new(Job {
            caller,
            begun,
            guard,
            slot,
            work,
            encoding,
            endpoint: Arc::clone(&request.endpoint),
            message: Arc::clone(&request.message),
        })))
    }

    /// Works on a request.
    async fn run(self: Arc<Self>, job: Job) -> Answer {
        if changes(job.endpoint.spec.class) {
            Box::pin(self.run_change(job)).await
        } else {
            self.perform(job).await.0
        }
    }

    /// Works on a change. It goes on when its caller's time is over: just before that the caller is told so,
    /// and how to ask for the result.
    async fn run_change(self: Arc<Self>, job: Job) -> Answer {
        let until = job.caller.until;
        let repeat = match (&job.caller.request_id, job.endpoint.spec.idempotent) {
            (_, true) => Repeat::Again,
            (Some(id), false) => Repeat::With(id.clone()),
            (None, false) => Repeat::Look,
        };
        let (tell, answer) = oneshot::channel();
        let shop = Arc::clone(&self);
        self.tasks.spawn(
            async move {
                let (answer, record) = shop.perform(job).await;
                // Who asked may have gone.
                let _ = tell.send(answer);
                // What counts is in the trail before the answer; this is for those who listen.
                if let Some((record, head)) = record {
                    shop.audit(record, head).await;
                }
            }
            .in_current_span(),
        );
        match before(until, answer).await {
            Some(answer) => answer.unwrap_or_else(|_| Err(given_up())),
            None => Err(still_working(&repeat)),
        }
    }

    /// Works on a request to its end: the answer, once it is in the trail and kept for repeats, and what those
    /// who listen are to be told.
    async fn perform(&self, job: Job) -> (Answer, Option<(Audit, Option<Head>)>) {
        let Job { caller, begun, guard, slot, work, encoding, endpoint, message } = job;
        let (principal, notes) = (caller.principal.clone(), caller.notes.clone());
        let until = caller.until;
        let in_time = if changes(endpoint.spec.class) { caller.in_time() } else { Ok(()) };
        let answer = if let Err(late) = in_time {
            Err(late)
        } else {
            let running = async move { work(caller).await };
            let running = retry::within(until, AssertUnwindSafe(running).catch_unwind());
            match running.await {
                Ok(answer) => answer.map(Arc::new),
                Err(panic) => Err(panicked(panic.as_ref())),
            }
        }
        .map_err(ApiError::plain);
        let mut record = notes.take();
        if record.about.is_empty() && changes(endpoint.spec.class) {
            record.about = asked(encoding, &message.payload);
        }
        let about = record.about.clone();
        if answer.is_err() && begun.is_some() {
            self.refused.failed(Owner::of(&principal), endpoint.spec, Instant::now());
        }
        let head =
            if begun.is_some() { Box::pin(self.end(begun, &answer, record)).await } else { None };
        if let Some(guard) = guard {
            Box::pin(keep(guard, answer.clone())).await;
        }
        drop(slot);
        let spec = endpoint.spec;
        let record = changes(spec.class).then(|| {
            let (decision, reason) = outcome(&answer);
            let reason = described(&about, &reason);
            (self.record(&principal, spec.verb, &message, decision, &reason), head)
        });
        (answer, record)
    }

    fn entry(&self, kind: Kind, caller: &Principal, verb: &str) -> Entry {
        Entry {
            principal: Some(caller.clone()),
            host: self.host.clone(),
            verb: Some(verb.to_owned()),
            ..Entry::new(kind, time::rfc3339(self.bus.now()))
        }
    }

    /// Keeps a record, off the threads that others wait for; `None` without a trail.
    async fn keep_record(&self, entry: Entry) -> Result<Option<Head>, String> {
        let Some(spool) = self.spool.clone() else { return Ok(None) };
        match blocking(move || spool.append(entry)).await {
            Ok(Ok(head)) => Ok(Some(head)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("a defect in the service; its log has more".to_owned()),
        }
    }

    /// Records that a request is about to be worked on. What cannot be recorded is not.
    async fn begin(
        &self,
        request: &Accepted,
        request_id: Option<String>,
    ) -> Result<Option<(Entry, Head)>, ApiError> {
        let spec = request.endpoint.spec;
        let entry = Entry {
            request_id,
            request: Some(LineHash::of(&request.message.payload)),
            ..self.entry(Kind::Begun, &request.caller, spec.verb)
        };
        match self.keep_record(entry.clone()).await {
            Ok(head) => Ok(head.map(|head| (entry, head))),
            Err(error) => {
                tracing::error!(verb = spec.verb, caller = %request.caller, "no audit record, no change: {error}");
                Err(ApiError::new(
                    Code::Unavailable,
                    format!(
                        "the audit record of this cannot be kept, so nothing was done: {error}"
                    ),
                )
                .remedy(
                    "free space or mend the service's state directory; what runs keeps running",
                ))
            }
        }
    }

    /// Records what came of a request that was begun.
    async fn end(
        &self,
        begun: Option<(Entry, Head)>,
        answer: &Answer,
        noted: Noted,
    ) -> Option<Head> {
        let (entry, begun) = begun?;
        let (decision, reason) = outcome(answer);
        let reason = described(&noted.about, &reason);
        let entry = Entry {
            kind: Kind::Ended,
            time: time::rfc3339(self.bus.now()),
            of: Some(begun.seq),
            decision: Some(decision),
            rules: noted.rules.into_iter().collect(),
            reason: short(&reason),
            ..entry
        };
        match self.keep_record(entry).await {
            Ok(head) => head,
            Err(error) => {
                // The trail says that it was begun; that it has no end is seen by whoever verifies it.
                tracing::error!(
                    of = begun.seq,
                    ?decision,
                    "the end of a request is not in the audit trail: {error}"
                );
                None
            }
        }
    }

    /// When the caller stops waiting. Its own clock counts unless it is ahead of this one: then how long
    /// it said that it waits. What only reads is answered also where clocks are a little apart, and its caller
    /// waits as long as the endpoint says unless it says otherwise.
    fn until(
        &self,
        headers: Option<&HeaderMap>,
        received: Instant,
        spec: &EndpointSpec,
    ) -> Result<Option<Instant>, ApiError> {
        let strict = changes(spec.class);
        let default = (!strict).then_some(received + spec.timeout);
        if headers.is_none() {
            return Ok(default);
        }
        let millis = |name| -> Result<Option<u64>, ApiError> {
            let Some(text) = header::only(headers, name)? else { return Ok(None) };
            text.trim().parse().map(Some).map_err(|_| {
                ApiError::new(Code::Invalid, format!("{name} \"{text}\" is not milliseconds"))
                    .at(name)
                    .remedy(format!(
                        "{} is a time, milliseconds since 1970; {} is how long",
                        header::DEADLINE,
                        header::TIMEOUT
                    ))
            })
        };
        let left = match millis(header::DEADLINE)? {
            None => None,
            Some(deadline) => Some(self.left(time::from_unix_millis(deadline), strict)?),
        };
        let waits = millis(header::TIMEOUT)?.map(Duration::from_millis);
        let left = match (left, waits) {
            (Some(left), Some(waits)) => Some(left.min(waits)),
            (one, other) => one.or(other),
        };
        Ok(left.map(|left| received + left.min(self.limits.longest_deadline)).or(default))
    }

    /// How much time a deadline leaves by this service's clock.
    fn left(&self, deadline: SystemTime, strict: bool) -> Result<Duration, ApiError> {
        let now = self.bus.now();
        let tolerance = if strict { Duration::ZERO } else { self.limits.clock_tolerance };
        if let Ok(late) = now.duration_since(deadline)
            && late > tolerance
        {
            return Err(ApiError::new(
                Code::Unavailable,
                format!(
                    "the caller's deadline passed {:.1} s ago by this service's clock; nothing was done",
                    late.as_secs_f64()
                ),
            )
            .at(header::DEADLINE)
            .remedy("repeat the request; if it goes on, compare the clocks of both machines"));
        }
        let left = deadline.duration_since(now).unwrap_or_default();
        if left > self.limits.longest_deadline + self.limits.clock_tolerance {
            return Err(ApiError::new(
                Code::Invalid,
                format!(
                    "the deadline lies {:.0} s ahead by this service's clock; at most {} s are taken",
                    left.as_secs_f64(),
                    self.limits.longest_deadline.as_secs()
                ),
            )
            .at(header::DEADLINE)
            .remedy("compare the clocks of both machines"));
        }
        Ok(left)
    }

    async fn answer(&self, to: (&Bus, &str), format: impl Into<ReplyFormat>, answer: Answer) {
        let format = format.into();
        let answer = self.carried(answer);
        let Err(error) = self.send(to, format, answer).await else { return };
        tracing::error!(%error, "an answer could not be sent");
        let error = ApiError::new(Code::Internal, format!("the answer could not be sent: {error}"));
        // Closed connections have nobody to tell.
        let _ = Box::pin(self.send(to, format, Err(error))).await;
    }

    /// The answer, or an error in its place where the bus does not carry one of its size.
    fn carried(&self, answer: Answer) -> Answer {
        /// Room for subject and headers; no server is set up to carry less.
        const ROOM: usize = 16 * 1024;
        let payload = answer?;
        if payload.len() <= ROOM {
            return Ok(payload);
        }
        let most = self.bus.client.server_info().max_payload;
        if most == 0 || payload.len().saturating_add(ROOM) <= most {
            return Ok(payload);
        }
        let message = format!(
            "the answer is {} bytes long, and the bus carries at most {most} in one message",
            payload.len()
        );
        Err(ApiError::new(Code::Unsupported, message)
            .remedy("ask for a part of it: name an interface, a chain, a program or a package"))
    }

    async fn send(
        &self,
        (lane, reply): (&Bus, &str),
        ReplyFormat { encoding, named, timed, default_timeout }: ReplyFormat,
        answer: Answer,
    ) -> Result<(), String> {
        let mut headers = HeaderMap::new();
        if named {
            headers.insert(header::CONTENT_TYPE, encoding.content_type());
        }
        if timed || answer.is_err() {
            let now = HeaderValue::from(time::unix_millis(self.bus.now()));
            headers.insert(HeaderName::from_static(header::TIME), now);
        }
        if let Some(default) = default_timeout {
            let millis = u64::try_from(default.as_millis()).unwrap_or(u64::MAX);
            let name = HeaderName::from_static(header::DEFAULT_TIMEOUT);
            headers.insert(name, HeaderValue::from(millis));
        }
        let payload = match answer {
            Ok(payload) => Arc::unwrap_or_clone(payload),
            Err(error) => {
                headers.insert(header::ERROR, one_line(&error.message).as_str());
                headers.insert(header::ERROR_CODE, error.code.number().to_string().as_str());
                encoding.encode(&error)?
            }
        };
        lane.client
            .publish_with_headers(Subject::from(reply), headers, payload.into())
            .await
            .map_err(|error| error.to_string())
    }

    fn record(
        &self,
        caller: &Principal,
        verb: &str,
        message: &Message,
        decision: Decision,
        reason: &str,
    ) -> Audit {
        let request_id = header::get(message.headers.as_ref(), header::REQUEST_ID);
        Audit {
            time: time::rfc3339(self.bus.now()),
            principal: caller.clone(),
            service: self.service.to_string(),
            host: self.host.clone(),
            verb: verb.to_owned(),
            // It may be anything where the request was refused for it.
            request_id: request_id.filter(|id| is_request_id(id)).map(str::to_owned),
            decision,
            reason: short(reason),
            place: None,
        }
    }

    async fn audit(&self, mut record: Audit, head: Option<Head>) {
        record.place = self.spool.as_ref().zip(head).map(|(spool, head)| spool.name(head));
        tracing::info!(
            target: "audit", principal = %record.principal, verb = %record.verb,
            decision = ?record.decision, reason = %for_log(&record.reason), "audit"
        );
        if let Err(error) = self.bus.publish_audit(self.service, self.host.as_ref(), &record).await
        {
            tracing::warn!(%error, "audit record only in the log");
        }
    }
}

/// What came of looking at a request.
enum Decided {
    /// It was not worked on.
    Refused(ApiError),
    /// It was, now or before; who did leaves the record.
    Worked(Answer),
}

/// What is to be done with a request.
enum Next {
    /// It is to be worked on.
    Work(Box<Job>),
    /// It was, or somebody is at it.
    Answered(Answer),
}

/// A request that is worked on.
struct Job {
    caller: Caller,
    begun: Option<(Entry, Head)>,
    guard: Option<Guard>,
    slot: Arc<Permit>,
    work: Work,
    encoding: Encoding,
    endpoint: Arc<Registered>,
    message: Arc<Message>,
}

/// What is left for an answer to arrive before its caller has gone.
const ON_THE_WAY: Duration = Duration::from_millis(250);

/// What `work` comes to, if that is soon enough for an answer to reach a caller who waits until then.
async fn before<T>(until: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    let Some(until) = until else { return Some(work.await) };
    let left = until.saturating_duration_since(Instant::now());
    timeout(left.saturating_sub(ON_THE_WAY.min(left / 10)), work).await.ok()
}

/// How to hear what became of a request.
enum Repeat {
    /// It may simply be repeated.
    Again,
    /// With this request id.
    With(String),
    /// A repeat would be another request.
    Look,
}

/// The caller's time is over, and the work is not.
fn still_working(repeat: &Repeat) -> ApiError {
    let error = ApiError::new(
        Code::Unavailable,
        "the request is still being worked on; it may be done yet, or fail",
    );
    error.remedy(match repeat {
        Repeat::Again => "repeat the request for its result".to_owned(),
        Repeat::With(id) => format!("ask again for its result: --request-id {id}"),
        Repeat::Look => format!(
            "look at the state before you repeat it; a repeat of a request with a {} gets its result",
            header::REQUEST_ID
        ),
    })
}

fn given_up() -> ApiError {
    ApiError::new(Code::Unavailable, "the request was given up").remedy("repeat the request")
}

/// What a record says: what was done or tried, and why not where it was not.
fn described(about: &str, reason: &str) -> String {
    match (about, reason) {
        (about, "") => about.to_owned(),
        ("", reason) => reason.to_owned(),
        (about, reason) => format!("{about}: {reason}"),
    }
}

/// What was asked, where the handler does not say what was done: the request as JSON, long texts cut.
fn asked(encoding: Encoding, payload: &[u8]) -> String {
    const TEXT: usize = 80;
    fn cut(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::String(text) if text.chars().count() > TEXT => {
                *text = text.chars().take(TEXT).chain(['…']).collect();
            }
            serde_json::Value::Array(items) => items.iter_mut().for_each(cut),
            serde_json::Value::Object(fields) => fields.values_mut().for_each(cut),
            _ => {}
        }
    }
    let Ok(Lenient(mut value)) = encoding.decode(payload) else { return String::new() };
    cut(&mut value);
    short(&value.to_string())
}

/// As much of a reason as a record holds.
fn short(reason: &str) -> String {
    reason.chars().take(1000).collect()
}

/// Whether requests of a class leave a trail.
fn changes(class: Class) -> bool {
    class.changes()
}

/// What came of a request, and why where it was not done.
fn outcome(answer: &Answer) -> (Decision, String) {
    match answer {
        Ok(_) => (Decision::Done, String::new()),
        Err(error) if error.code == Code::Denied => (Decision::Denied, error.message.clone()),
        Err(error) => (Decision::Failed, error.message.clone()),
    }
}

fn request_id(header: Option<&str>) -> Result<Option<String>, ApiError> {
    let Some(id) = header else { return Ok(None) };
    if is_request_id(id) {
        Ok(Some(id.to_owned()))
    } else {
        Err(ApiError::new(
            Code::Invalid,
            format!("{} is not 1 to 64 printable characters", header::REQUEST_ID),
        )
        .at(header::REQUEST_ID))
    }
}

fn is_request_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
}

/// The slot of a request, once it has one; not later than its caller waits.
async fn slot(
    entered: Entered,
    until: Option<Instant>,
    request: &Accepted,
) -> Result<Permit, ApiError> {
    let granted = match entered {
        Entered::Now(permit) => Some(permit),
        Entered::Later(granted) => {
            let until = until.unwrap_or(request.received + request.endpoint.spec.timeout);
            before(Some(until), granted).await.and_then(Result::ok)
        }
        Entered::Full => None,
    };
    granted.ok_or_else(|| {
        ApiError::new(
            Code::Unavailable,
            format!(
                "other {} requests were worked on all the time; nothing was done",
                request.endpoint.spec.class
            ),
        )
        .remedy("try again in a moment")
        .reason(BUSY)
    })
}

async fn first_answer(mut done: tokio::sync::watch::Receiver<Option<Answer>>) -> Answer {
    let gone = || {
        ApiError::new(Code::Unavailable, "the first request of this id was given up")
            .remedy("repeat the request")
    };
    match done.wait_for(Option::is_some).await {
        Ok(answer) => answer.clone().unwrap_or_else(|| Err(gone())),
        Err(_) => Err(gone()),
    }
}

/// Keeps the answer, off the threads that others wait for.
async fn keep(guard: Guard, answer: Answer) {
    if blocking(move || guard.finish(&answer)).await.is_err() {
        tracing::error!("an answer could not be kept for repeats");
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> ApiError {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned());
    tracing::error!("a handler panicked: {}", for_log(&text));
    ApiError::new(Code::Internal, "a defect in the service; its log has more")
        .remedy("report it with the service's log")
}

/// Header values hold no line breaks.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(512).collect()
}
