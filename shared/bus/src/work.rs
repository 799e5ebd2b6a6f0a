//! What happens to one request, from the message to the answer.

use crate::{
    blocking::blocking,
    codec::Encoding,
    connection::Bus,
    header,
    idempotency::{Answer, Begin, Guard, Key, Table},
    limits::Limits,
    micro::EndpointStatistics,
    server::{Caller, Noted, Notes, Registered},
    spool::Spool,
    trace,
};
use async_nats::{HeaderMap, Message};
use canopy_api::{
    endpoint::{Class, Service},
    error::{ApiError, Code},
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
use tokio::sync::Semaphore;
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
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) table: Table,
    pub(crate) spool: Option<Arc<Spool>>,
    pub(crate) observe: Observe,
    pub(crate) tasks: TaskTracker,
}

/// A request that may be answered.
struct Accepted {
    caller: Principal,
    reply: String,
    message: Message,
    endpoint: Arc<Registered>,
    statistics: Arc<EndpointStatistics>,
    received: Instant,
}

impl Shop {
    /// Takes a message. Everything slow happens in a task of its own.
    pub(crate) fn take(
        self: &Arc<Self>,
        endpoint: &Arc<Registered>,
        statistics: &Arc<EndpointStatistics>,
        message: Message,
    ) {
        let spec = endpoint.spec;
        let Some(caller) = subject::principal_of(&message.subject) else {
            tracing::warn!(subject = %message.subject, "request of nobody left alone");
            return;
        };
        let Some(reply) = message.reply.as_ref() else {
            tracing::debug!(verb = spec.verb, %caller, "request without a reply subject left alone");
            return;
        };
        let Some(reply) = subject::reply_subject(reply, &caller, &self.me) else {
            // Answering would publish with our rights to a place of the caller's choice.
            tracing::warn!(verb = spec.verb, %caller, reply = %reply, "request with a foreign reply subject refused");
            (self.observe)(spec.verb, Code::Denied.as_str(), Duration::ZERO);
            let record = self.record(
                &caller,
                spec.verb,
                &message,
                Decision::Denied,
                format!("reply subject \"{reply}\" is not the caller's own inbox for {}", self.me),
            );
            let shop = self.clone();
            self.tasks.spawn(async move {
                let entry = shop.entry(Kind::Refused, &record.principal, &record.verb);
                let decision = Some(record.decision);
                let entry = Entry { decision, reason: short(&record.reason), ..entry };
                // Who may only read must not be able to push others' records out of the trail.
                let head = if changes(spec.class) {
                    shop.keep_record(entry).await.ok().flatten()
                } else {
                    None
                };
                shop.audit(record, head).await;
            });
            return;
        };
        let span = tracing::info_span!(
            "request", otel.kind = "server", service = %self.service, verb = spec.verb, %caller
        );
        trace::adopt(&span, message.headers.as_ref());
        let accepted = Accepted {
            caller,
            reply,
            message,
            endpoint: endpoint.clone(),
            statistics: statistics.clone(),
            received: Instant::now(),
        };
        let shop = self.clone();
        self.tasks.spawn(async move { shop.work(accepted).await }.instrument(span));
    }

    async fn work(&self, request: Accepted) {
        let headers = request.message.headers.as_ref();
        let encoding = header::only(headers, header::CONTENT_TYPE).and_then(Encoding::of);
        // The answer to a request in an unknown encoding has to be in some encoding.
        let reply_encoding = encoding.as_ref().copied().unwrap_or(Encoding::Json);
        let mut head = None;
        let answer = match encoding {
            Ok(encoding) => self.decide(&request, encoding, &mut head).await,
            Err(error) => Err(error),
        }
        .map_err(ApiError::plain);
        let spec = request.endpoint.spec;
        let took = request.received.elapsed();
        let code = answer.as_ref().err().map_or("ok", |error| error.code.as_str());
        (self.observe)(spec.verb, code, took);
        request.statistics.count(answer.is_err(), took);
        match &answer {
            Ok(_) => tracing::debug!(code, ?took, "answered"),
            Err(error) => tracing::info!(code, path = %error.path, ?took, "refused: {error}"),
        }
        let record = changes(spec.class).then(|| {
            let (decision, reason) = outcome(&answer);
            self.record(&request.caller, spec.verb, &request.message, decision, reason)
        });
        self.answer(&request.reply, reply_encoding, answer).await;
        // What counts is in the trail before the answer; this is for those who listen.
        if let Some(record) = record {
            self.audit(record, head).await;
        }
    }

    /// Everything that can speak against the request, then the request.
    /// `head` is where in the trail the request ended, if it got as far.
    async fn decide(
        &self,
        request: &Accepted,
        encoding: Encoding,
        head: &mut Option<Head>,
    ) -> Answer {
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
        let deadline = self.deadline(header::only(headers, header::DEADLINE)?)?;
        let request_id = request_id(header::only(headers, header::REQUEST_ID)?)?;
        let Ok(_slot) = self.slots.clone().try_acquire_owned() else {
            return Err(ApiError::new(
                Code::Unavailable,
                format!("{} requests are being worked on already", self.limits.in_flight),
            )
            .remedy("try again in a moment"));
        };
        let notes = Notes::default();
        let caller = Caller {
            principal: request.caller.clone(),
            request_id: request_id.clone(),
            deadline,
            notes: notes.clone(),
        };
        let spec = request.endpoint.spec;
        let guard = match request_id {
            Some(request_id) if !spec.idempotent => {
                let key = Key {
                    principal: request.caller.to_string(),
                    verb: spec.verb.to_owned(),
                    request_id,
                };
                // The encoding is part of it: the kept reply is in that encoding.
                let mut whole = encoding.content_type().as_bytes().to_vec();
                whole.extend_from_slice(payload);
                match self.table.begin(key, Digest::of(&whole).to_string()) {
                    Begin::Work(guard) => Some(guard),
                    Begin::Answered(answer) => return answer,
                    Begin::Wait(done) => return first_answer(done).await,
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
        let begun = self.begin(request, caller.request_id.clone()).await?;
        let running = (request.endpoint.run)(caller, payload.clone(), encoding);
        let answer = match AssertUnwindSafe(running).catch_unwind().await {
            Ok(answer) => answer.map(Arc::new),
            Err(panic) => Err(panicked(panic.as_ref())),
        };
        *head = self.end(begun, &answer, notes.take()).await;
        if let Some(guard) = guard {
            keep(guard, answer.clone()).await;
        }
        answer
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
        if !changes(spec.class) {
            return Ok(None);
        }
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
        let reason = if decision == Decision::Done { noted.about } else { reason };
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

    fn deadline(&self, header: Option<&str>) -> Result<Option<SystemTime>, ApiError> {
        let Some(text) = header else { return Ok(None) };
        let Ok(millis) = text.trim().parse() else {
            return Err(ApiError::new(
                Code::Invalid,
                format!("{} \"{text}\" is not milliseconds since 1970", header::DEADLINE),
            )
            .at(header::DEADLINE));
        };
        let (deadline, now) = (time::from_unix_millis(millis), self.bus.now());
        if let Ok(late) = now.duration_since(deadline)
            && late > self.limits.clock_tolerance
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
        if let Ok(ahead) = deadline.duration_since(now)
            && ahead > self.limits.longest_deadline
        {
            return Err(ApiError::new(
                Code::Invalid,
                format!(
                    "the deadline lies {:.0} s ahead by this service's clock; at most {} s are taken",
                    ahead.as_secs_f64(),
                    self.limits.longest_deadline.as_secs()
                ),
            )
            .at(header::DEADLINE)
            .remedy("compare the clocks of both machines"));
        }
        Ok(Some(deadline))
    }

    async fn answer(&self, reply: &str, encoding: Encoding, answer: Answer) {
        let Err(error) = self.send(reply, encoding, answer).await else { return };
        tracing::error!(%error, "an answer could not be sent");
        let error = ApiError::new(Code::Internal, format!("the answer could not be sent: {error}"));
        // Closed connections have nobody to tell.
        let _ = self.send(reply, encoding, Err(error)).await;
    }

    async fn send(&self, reply: &str, encoding: Encoding, answer: Answer) -> Result<(), String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, encoding.content_type());
        headers.insert(header::TIME, time::unix_millis(self.bus.now()).to_string().as_str());
        let payload = match answer {
            Ok(payload) => Arc::unwrap_or_clone(payload),
            Err(error) => {
                headers.insert(header::ERROR, one_line(&error.message).as_str());
                headers.insert(header::ERROR_CODE, error.code.number().to_string().as_str());
                encoding.encode(&error)?
            }
        };
        self.bus
            .client
            .publish_with_headers(reply.to_owned(), headers, payload.into())
            .await
            .map_err(|error| error.to_string())
    }

    fn record(
        &self,
        caller: &Principal,
        verb: &str,
        message: &Message,
        decision: Decision,
        reason: String,
    ) -> Audit {
        let request_id = header::get(message.headers.as_ref(), header::REQUEST_ID);
        Audit {
            time: time::rfc3339(self.bus.now()),
            principal: caller.clone(),
            service: self.service.to_string(),
            host: self.host.clone(),
            verb: verb.to_owned(),
            request_id: request_id.map(str::to_owned),
            decision,
            reason,
            place: None,
        }
    }

    async fn audit(&self, mut record: Audit, head: Option<Head>) {
        record.place = self.spool.as_ref().zip(head).map(|(spool, head)| spool.name(head));
        tracing::info!(
            target: "audit", principal = %record.principal, verb = %record.verb,
            decision = ?record.decision, reason = %record.reason, "audit"
        );
        if let Err(error) = self.bus.publish_audit(self.service, self.host.as_ref(), &record).await
        {
            tracing::warn!(%error, "audit record only in the log");
        }
    }
}

/// As much of a reason as a record holds.
fn short(reason: &str) -> String {
    reason.chars().take(1000).collect()
}

/// Whether requests of a class leave a trail.
fn changes(class: Class) -> bool {
    match class {
        Class::Write | Class::Publish | Class::Admin => true,
        Class::Read | Class::Internal => false,
    }
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
    if (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(Some(id.to_owned()))
    } else {
        Err(ApiError::new(
            Code::Invalid,
            format!("{} is not 1 to 64 printable characters", header::REQUEST_ID),
        )
        .at(header::REQUEST_ID))
    }
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
    tracing::error!("a handler panicked: {text}");
    ApiError::new(Code::Internal, "a defect in the service; its log has more")
        .remedy("report it with the service's log")
}

/// Header values hold no line breaks.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(512).collect()
}
