//! What is said and kept of requests that are refused.

use super::{Shop, changes, short};
use crate::{
    codec::Encoding,
    connection::Bus,
    for_log::for_log,
    header,
    micro::EndpointStatistics,
    refused_requests::{Counted, Noted, RefusedKind},
    server::Registered,
};
use async_nats::Message;
use canopy_api::{
    endpoint::EndpointSpec,
    error::{ApiError, BUSY, Code},
    name::Principal,
    time,
    wire::{Audit, Decision},
};
use canopy_audit::{Entry, Kind};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// Why a request has no slot.
const REASON: &str = "too many requests of yours wait already";

impl Shop {
    /// Tells a caller of whom too many requests wait already, at the least cost: what comes of a flood
    /// must take less time here than sending it took, or it pushes others' requests out of the client
    /// library's queue.
    pub(super) fn refuse_at_once(
        self: &Arc<Self>,
        endpoint: &Registered,
        statistics: &EndpointStatistics,
        (caller, reply, lane): (Principal, String, &Bus),
        message: &Message,
    ) {
        let spec = endpoint.spec;
        (self.observe)(spec.verb, Code::Unavailable.as_str(), Duration::ZERO);
        statistics.count(true, Duration::ZERO);
        let kind = RefusedKind { caller: caller.clone(), spec, code: Code::Unavailable };
        let noted = self.refused.note(kind, REASON, Instant::now());
        if noted.log {
            tracing::info!(%caller, verb = spec.verb, code = "unavailable", "refused: {REASON}");
        }
        if !noted.answer {
            return;
        }
        let error = ApiError::new(Code::Unavailable, REASON)
            .remedy("send fewer at once; try again in a moment")
            .reason(BUSY);
        let record = noted.record.then(|| self.refusal(&caller, spec.verb, message, &error));
        // Answers that cannot be sent on must not pile up.
        let Ok(answering) = Arc::clone(&self.refusing).try_acquire_owned() else { return };
        let encoding = header::only(message.headers.as_ref(), header::CONTENT_TYPE)
            .and_then(Encoding::of)
            .unwrap_or(Encoding::Json);
        let (shop, lane) = (Arc::clone(self), lane.clone());
        self.tasks.spawn(async move {
            shop.answer((&lane, &reply), encoding, Err(error)).await;
            drop(answering);
            if let Some(record) = record.filter(|_| changes(spec.class)) {
                shop.record_refused(spec, record, 1).await;
            }
        });
    }

    /// Takes note of a refused request, and logs it where that is due.
    pub(super) fn note_refused(
        &self,
        caller: &Principal,
        spec: &'static EndpointSpec,
        error: &ApiError,
    ) -> Noted {
        let kind = RefusedKind { caller: caller.clone(), spec, code: error.code };
        let noted = self.refused.note(kind, &error.message, Instant::now());
        if noted.log {
            let (code, path) = (error.code.as_str(), for_log(&error.path));
            let reason = for_log(&error.message);
            tracing::info!(%caller, verb = spec.verb, code, %path, "refused: {reason}");
        }
        noted
    }

    /// Logs and records the refused requests that were counted, until the end.
    pub(crate) async fn report_refused(self: Arc<Self>, draining: CancellationToken) {
        let mut timer = interval(Duration::from_secs(1));
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let end = tokio::select! {
                _ = timer.tick() => false,
                () = draining.cancelled() => true,
            };
            let due = self.refused.due(Instant::now(), end);
            for Counted { kind, count, reason } in due.log {
                let (caller, verb, code) = (&kind.caller, kind.spec.verb, kind.code.as_str());
                let reason = for_log(&reason);
                tracing::info!(%caller, verb, code, count, "refused, the last: {reason}");
            }
            if due.others > 0 {
                tracing::info!(count = due.others, "refused, of too many kinds to be told apart");
            }
            for Counted { kind, count, reason } in due.record {
                // Of what only reads there is no record.
                if !changes(kind.spec.class) {
                    continue;
                }
                let record = Audit {
                    time: time::rfc3339(self.bus.now()),
                    principal: kind.caller,
                    service: self.service.to_string(),
                    host: self.host.clone(),
                    verb: kind.spec.verb.to_owned(),
                    request_id: None,
                    decision: refused_as(kind.code),
                    reason,
                    place: None,
                };
                self.record_refused(kind.spec, record, count).await;
            }
            if end {
                return;
            }
        }
    }

    /// Puts refused requests into the trail and tells the bus.
    pub(super) async fn record_refused(&self, spec: &EndpointSpec, mut record: Audit, count: u64) {
        let entry = Entry {
            decision: Some(record.decision),
            request_id: record.request_id.clone(),
            reason: short(&record.reason),
            count: (count > 1).then_some(count),
            ..self.entry(Kind::Refused, &record.principal, &record.verb)
        };
        // Who may only read must not be able to push others' records out of the trail.
        let head =
            if changes(spec.class) { self.keep_record(entry).await.ok().flatten() } else { None };
        if count > 1 {
            record.reason = short(&format!("{count} times: {}", record.reason));
        }
        self.audit(record, head).await;
    }

    /// What is told of a refused request.
    pub(super) fn refusal(
        &self,
        caller: &Principal,
        verb: &str,
        message: &Message,
        error: &ApiError,
    ) -> Audit {
        self.record(caller, verb, message, refused_as(error.code), &error.message)
    }
}

/// What a refusal of this code is recorded as.
fn refused_as(code: Code) -> Decision {
    if code == Code::Denied { Decision::Denied } else { Decision::Failed }
}
