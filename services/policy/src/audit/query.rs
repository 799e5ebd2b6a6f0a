//! Answering what was done, by whom.

use super::away;
use canopy_api::{
    ApiError, Code, HostId,
    endpoint::Service,
    permission::daemon_principal,
    subject,
    time::rfc3339,
    wire::{AUDIT_PAGE, AuditOrder, AuditReply, AuditRequest, StoredRecord},
};
use canopy_audit::Record;
use canopy_bus::data::{Log, LogEntry};
use std::time::{Duration, UNIX_EPOCH};
use tokio::time::Instant;

/// Entries looked at at once.
const STEP: u64 = 5000;
/// Content of an answer, about.
const BYTES: usize = 400 * 1024;
/// After that an answer is given with what was found; whoever asked goes on from there.
const LONG: Duration = Duration::from_secs(3);
/// By how much a writer's clock may be ahead of the store's.
const SKEW: Duration = Duration::from_mins(5);

/// Looks for records.
pub(super) async fn query(log: &Log, request: &AuditRequest) -> Result<AuditReply, ApiError> {
    let limit = usize::try_from(request.limit.unwrap_or(u32::MAX)).unwrap_or(usize::MAX);
    if limit == 0 {
        return Err(ApiError::new(Code::Invalid, "no record is not a page").at("limit"));
    }
    let (oldest, newest) = log.bounds().await.map_err(|error| away(&error))?;
    let mut page = Page { request, limit: limit.min(AUDIT_PAGE), bytes: 0, records: Vec::new() };
    let until = Instant::now() + LONG;
    let patterns = patterns(request);
    let next = match request.order {
        AuditOrder::NewestFirst => {
            let mut before = request.from.unwrap_or(newest + 1).min(newest + 1);
            loop {
                if before <= oldest {
                    break None;
                }
                if Instant::now() >= until {
                    break Some(before);
                }
                let from = before.saturating_sub(STEP).max(oldest);
                let mut entries = read(log, &patterns, (from, before)).await?;
                entries.reverse();
                match page.take(&entries) {
                    Taken::All => before = from,
                    // The one that was taken last is not looked at again.
                    Taken::Until(last) => break Some(last),
                    Taken::Before => break None,
                }
            }
        }
        AuditOrder::OldestFirst => {
            let mut from = request.from.unwrap_or(0).max(oldest);
            loop {
                if from > newest {
                    break None;
                }
                if Instant::now() >= until {
                    break Some(from);
                }
                let before = (from + STEP).min(newest + 1);
                let entries = read(log, &patterns, (from, before)).await?;
                match page.take(&entries) {
                    Taken::All | Taken::Before => from = before,
                    Taken::Until(last) => break Some(last + 1),
                }
            }
        }
    };
    Ok(AuditReply { records: page.records, next, oldest, newest })
}

async fn read(
    log: &Log,
    patterns: &[String],
    range: (u64, u64),
) -> Result<Vec<LogEntry>, ApiError> {
    let most = usize::try_from(STEP).unwrap_or(usize::MAX);
    log.read(patterns.to_vec(), range, most).await.map_err(|error| away(&error))
}

/// Which subjects may have what is asked for.
fn patterns(request: &AuditRequest) -> Vec<String> {
    let of = |writer: &str| {
        [false, true].map(|beside| subject::stored_audit(writer, "*", beside)).to_vec()
    };
    if let Some(writer) = &request.writer {
        return of(writer.as_str());
    }
    let writer = |service: Service, host: Option<&HostId>| {
        daemon_principal(service, host).ok().map(|writer| writer.to_string())
    };
    match (&request.host, request.service) {
        // What central services record about a host is asked for with it.
        (Some(host), service) => Service::ALL
            .into_iter()
            .filter(|one| service.is_none_or(|service| service == *one))
            .filter_map(|one| writer(one, one.is_host_local().then_some(host)))
            .flat_map(|writer| of(&writer))
            .collect(),
        (None, Some(service)) if !service.is_host_local() => {
            writer(service, None).map_or_else(Vec::new, |writer| of(&writer))
        }
        (None, _) => vec![subject::all_stored_audit()],
    }
}

/// What became of entries.
enum Taken {
    /// All were looked at.
    All,
    /// There is no more room, after this one.
    Until(u64),
    /// They are from before the time that is asked for.
    Before,
}

struct Page<'a> {
    request: &'a AuditRequest,
    limit: usize,
    bytes: usize,
    records: Vec<StoredRecord>,
}

impl Page<'_> {
    fn take(&mut self, entries: &[LogEntry]) -> Taken {
        for entry in entries {
            let latest = UNIX_EPOCH + Duration::from_secs(entry.at) + SKEW;
            if self.request.since.as_ref().is_some_and(|since| rfc3339(latest) < *since) {
                // It was stored before, and so were those before it.
                if self.request.order == AuditOrder::NewestFirst {
                    return Taken::Before;
                }
                continue;
            }
            let line = String::from_utf8_lossy(&entry.content).into_owned();
            if !self.fits(&line) {
                continue;
            }
            self.bytes += line.len() + entry.note.len();
            let (writer, chain) = subject::stored_chain(&entry.subject).unwrap_or_default();
            self.records.push(StoredRecord {
                stored: entry.number,
                writer: writer.to_owned(),
                chain: chain.to_owned(),
                beside: entry.subject.ends_with(".beside"),
                finding: entry.note.clone(),
                line,
            });
            if self.records.len() >= self.limit || self.bytes >= BYTES {
                return Taken::Until(entry.number);
            }
        }
        Taken::All
    }

    /// Whether a record is asked for. What is no record fits where nothing is asked of its content, as
    /// whoever verifies has to see it.
    fn fits(&self, line: &str) -> bool {
        let AuditRequest { host, service, by, since, until, decision, verb, .. } = self.request;
        let Ok(record) = serde_json::from_str::<Record>(line) else {
            return [host.is_none(), service.is_none(), by.is_none(), since.is_none()]
                .into_iter()
                .chain([until.is_none(), decision.is_none(), verb.is_none()])
                .all(|none| none);
        };
        let of_service = |service: &Service| {
            canopy_api::permission::daemon_of(&record.writer).is_some_and(|(of, _)| of == *service)
        };
        let of_host = |host: &HostId| {
            record.host.as_ref() == Some(host)
                || canopy_api::permission::daemon_of(&record.writer)
                    .is_some_and(|(_, of)| of.as_ref() == Some(host))
        };
        host.as_ref().is_none_or(of_host)
            && service.as_ref().is_none_or(of_service)
            && (by.is_none() || record.principal == *by)
            && since.as_ref().is_none_or(|since| record.time >= *since)
            && until.as_ref().is_none_or(|until| record.time <= *until)
            && (decision.is_none() || record.decision == *decision)
            && (verb.is_none() || record.verb == *verb)
    }
}
