//! `canopy map follow`

use crate::{
    failure::{Exit, Failure},
    output::{Format, Screen},
    remote::Remote,
    view::address::Declared,
};
use canopy_api::{
    HostId,
    endpoint::{Service, loader},
    subject,
    wire::{MapFollowReply, MapFollowRequest, MapName, MapRecords},
};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// What to follow, and until when.
#[derive(Debug)]
pub struct Follow<'a> {
    /// The ring buffer.
    pub map: &'a MapName,
    /// The type of a record.
    pub record_type: Option<&'a str>,
    /// Ends after so many records.
    pub count: Option<u64>,
    /// The host.
    pub host: &'a HostId,
    /// How records are written.
    pub format: Format,
}

/// Shows records as they come, one a line, until there were enough or it is interrupted.
pub async fn run(
    follow: &Follow<'_>,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let host = follow.host;
    let subject = subject::event(Service::Loader, "map", "records", Some(host));
    // Before anything is taken from the buffer.
    let mut events = remote.events(&subject).await?;
    let first = renew(follow, host, remote).await?;
    if follow.format == Format::Table || follow.format == Format::Wide {
        let ty = first.record_type.as_deref().unwrap_or("unknown: in hexadecimal");
        screen.note(&format!(
            "following {}; what is shown is taken from the buffer; type {ty}",
            first.map
        ));
    }
    let record_type = Declared::parse(first.record_type.as_deref().unwrap_or_default());
    let mut due = Instant::now() + pause(&first);
    let mut seen = Seen::default();
    loop {
        tokio::select! {
            event = events.next() => {
                let Some(event) = event else {
                    return Err(Failure::new(Exit::Unavailable, "the connection has ended"));
                };
                let Ok(records) = event.decode::<MapRecords>() else {
                    screen.note("note: an event of another version cannot be read");
                    continue;
                };
                let mine = follow.map.clone();
                if (records.map == mine || records.formerly.as_ref() == Some(&mine))
                    && show(follow, &record_type, &records, &mut seen, screen)? {
                    return Ok(Exit::Done);
                }
            }
            () = sleep_until(due) => {
                remote.begin();
                due = Instant::now() + pause(&renew(follow, host, remote).await?);
            }
        }
    }
}

async fn renew(
    follow: &Follow<'_>,
    host: &HostId,
    remote: &Remote,
) -> Result<MapFollowReply, Failure> {
    let request = MapFollowRequest {
        map: follow.map.clone(),
        record_type: follow.record_type.map(str::to_owned),
    };
    remote.ask_host::<loader::MapFollow>(host, &request, "following on").await
}

/// Long before the lease is over: a request may be lost.
fn pause(reply: &MapFollowReply) -> Duration {
    Duration::from_secs(reply.lease_seconds.max(3) / 3)
}

/// How far the records have come.
#[derive(Debug, Default)]
struct Seen {
    shown: u64,
    /// The number of the record that comes next.
    next: Option<u64>,
    dropped: u64,
}

/// Shows records; whether there were enough.
fn show(
    follow: &Follow<'_>,
    record_type: &Declared,
    event: &MapRecords,
    seen: &mut Seen,
    screen: &mut Screen,
) -> Result<bool, Failure> {
    if let Some(lost) = lost(seen, event) {
        screen.note(&format!("note: {lost}"));
    }
    for (number, record) in (event.first..).zip(&event.records) {
        let record = &record_type.shown(record);
        match follow.format {
            Format::Table | Format::Wide => screen.line(&crate::view::value(record))?,
            Format::Name => screen.line(&number.to_string())?,
            Format::Json | Format::Yaml => {
                let line = serde_json::json!({ "number": number, "generation": event.generation, "record": record });
                screen.print_json_line(&line.to_string())?;
            }
        }
        seen.shown += 1;
        if follow.count.is_some_and(|count| seen.shown >= count) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What is missing before this event, in words.
fn lost(seen: &mut Seen, event: &MapRecords) -> Option<String> {
    let count = u64::try_from(event.records.len()).unwrap_or(u64::MAX);
    let gap = seen.next.map_or(0, |next| event.first.saturating_sub(next));
    let dropped = event.dropped.saturating_sub(seen.dropped).min(gap);
    // A reader that was started anew counts from 0 again.
    seen.next = Some(event.first.saturating_add(count));
    seen.dropped = event.dropped;
    match (gap, dropped) {
        (0, _) => None,
        (gap, 0) => Some(format!("{gap} records were lost on the way")),
        (gap, dropped) if gap == dropped => Some(format!("the host dropped {gap} records")),
        (gap, dropped) => Some(format!(
            "the host dropped {dropped} records, {} were lost on the way",
            gap - dropped
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_missing_is_said_once() {
        let event = |first: u64, records: usize, dropped: u64| MapRecords {
            host: "web1".parse().unwrap(),
            map: serde_json::from_value(json!({
                "interface": "eth0", "hook": "xdp", "program": "a", "map": "events"
            }))
            .unwrap(),
            formerly: None,
            generation: 1,
            first,
            records: vec![json!(1); records],
            dropped,
        };
        let mut seen = Seen::default();
        // Who comes later has missed nothing.
        assert_eq!(lost(&mut seen, &event(7, 3, 2)), None);
        assert_eq!(lost(&mut seen, &event(10, 5, 2)), None);
        assert_eq!(lost(&mut seen, &event(20, 1, 7)).unwrap(), "the host dropped 5 records");
        assert_eq!(lost(&mut seen, &event(24, 1, 7)).unwrap(), "3 records were lost on the way");
        assert_eq!(
            lost(&mut seen, &event(30, 1, 8)).unwrap(),
            "the host dropped 1 records, 4 were lost on the way"
        );
        // A new reader.
        assert_eq!(lost(&mut seen, &event(0, 2, 0)), None);
    }
}
