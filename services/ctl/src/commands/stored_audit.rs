//! `canopy get audit`, and of `canopy audit` what needs policy: the stored trail.

use crate::{
    cli::{AuditCommand, AuditFilterArgs, AuditVerifyArgs},
    commands::audit::{Filter, Signed, public_key, verify_directory},
    failure::{Exit, Failure},
    output::{Format, Screen},
    remote::Remote,
    view::stored_audit::{ChainReport, StoredRecords, StoredVerified},
};
use canopy_api::{
    HostId, Principal,
    endpoint::{Service, policy},
    permission::daemon_of,
    wire::{
        AuditCheckpointsRequest, AuditOrder, AuditReply, AuditRequest, SignedCheckpoint,
        StoredRecord,
    },
};
use canopy_audit::{Checkpoint, Finding, PublicKey, Record, Verifier};
use std::collections::{BTreeMap, btree_map::Entry};

/// Shows stored records, the newest last.
pub async fn get(
    filter: &AuditFilterArgs,
    (service, host): (Option<Service>, Option<HostId>),
    limit: u32,
    format: Format,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let times = Filter::of(filter)?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut request = AuditRequest {
        host,
        service,
        by: filter.by.clone(),
        since: times.since,
        until: times.until,
        decision: filter.decision,
        verb: filter.verb.clone(),
        ..AuditRequest::default()
    };
    let mut records: Vec<StoredRecord> = Vec::new();
    let more = loop {
        let left = limit.saturating_sub(records.len());
        request.limit = Some(u32::try_from(left.min(500)).unwrap_or(500));
        let page: AuditReply = remote.ask_centre::<policy::Audit>(&request).await?;
        records.extend(page.records);
        match page.next {
            Some(_) if records.len() >= limit => break true,
            Some(next) => request.from = Some(next),
            None => break false,
        }
    };
    records.reverse();
    let findings = records.iter().filter(|record| !record.finding.is_empty()).count();
    let stored = StoredRecords::of(&records);
    if format == Format::Json {
        for line in stored.lines() {
            screen.print_json_line(&line)?;
        }
    } else {
        screen.show(&stored, format)?;
    }
    if findings > 0 {
        screen.note(&format!(
            "warning: {findings} of these did not follow from what was stored: canopy audit verify"
        ));
    }
    if more {
        screen.note(&format!("note: there may be older ones; --limit shows more than {limit}"));
    }
    Ok(Exit::Done)
}

/// Runs what needs a connection.
pub async fn run(
    command: &AuditCommand,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    match command {
        AuditCommand::Checkpoints { writer } => {
            let (all, _) = checkpoints(writer.as_ref(), remote).await?;
            for signed in &all {
                let line = serde_json::to_string(signed).map_err(|error| {
                    Failure::new(Exit::Failed, format!("a checkpoint cannot be written: {error}"))
                })?;
                screen.print_json_line(&line)?;
            }
            Ok(Exit::Done)
        }
        AuditCommand::Verify(args) => {
            let (all, named) = checkpoints(args.writer.as_ref(), remote).await?;
            let key = key(args, named, screen)?;
            let mut signed = Signed::by(&key, &all);
            if let Some(file) = &args.checkpoints {
                // Kept elsewhere: what policy itself has may have been written anew.
                let kept = Signed::of_file(file, &key)?;
                signed.checkpoints.extend(kept.checkpoints);
                signed.refused.extend(kept.refused);
            }
            match &args.path {
                Some(path) => verify_directory(path, args, Some(&signed), screen),
                None => verify(args, signed, key, remote, screen).await,
            }
        }
        AuditCommand::Show(_) => Err(Failure::new(Exit::Failed, "this needs no connection")),
    }
}

/// The key that checkpoints are measured by.
fn key(
    args: &AuditVerifyArgs,
    named: PublicKey,
    screen: &mut Screen,
) -> Result<PublicKey, Failure> {
    if let Some(text) = &args.key {
        return public_key(text);
    }
    screen.note(&format!(
        "note: checkpoints are measured by the key {}, which policy itself names; --key takes yours",
        named.id()
    ));
    Ok(named)
}

/// Every checkpoint, and the key that policy says they are signed with.
async fn checkpoints(
    writer: Option<&Principal>,
    remote: &Remote,
) -> Result<(Vec<SignedCheckpoint>, PublicKey), Failure> {
    let mut request =
        AuditCheckpointsRequest { writer: writer.cloned(), ..AuditCheckpointsRequest::default() };
    let mut all = Vec::new();
    loop {
        let reply = remote.ask_centre::<policy::AuditCheckpoints>(&request).await?;
        all.extend(reply.checkpoints);
        request.after = reply.next;
        if request.after.is_none() {
            let key = reply.key.parse().map_err(|error| {
                Failure::new(Exit::Failed, format!("policy names no key: {error}"))
                    .fix("see that both sides run the same version")
            })?;
            return Ok((all, key));
        }
    }
}

/// A chain while it is read.
struct Reading {
    verifier: Verifier,
    opened: Option<String>,
}

/// Fetches what is stored and verifies it, chain by chain.
async fn verify(
    args: &AuditVerifyArgs,
    signed: Signed,
    key: PublicKey,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let mut request = AuditRequest {
        writer: args.writer.clone(),
        order: AuditOrder::OldestFirst,
        ..AuditRequest::default()
    };
    let mut chains: BTreeMap<(String, String), Reading> = BTreeMap::new();
    // In the order in which they were begun.
    let mut begun: Vec<(String, String)> = Vec::new();
    let mut oldest = 0;
    let mut last = None;
    'pages: loop {
        let page = remote.ask_centre::<policy::Audit>(&request).await?;
        if last.is_none() {
            oldest = page.oldest;
        }
        // Reading leaves records of its own: what comes meanwhile is for another time.
        let end = *last.get_or_insert(page.newest);
        for record in &page.records {
            if record.stored > end {
                break 'pages;
            }
            let name = (record.writer.clone(), record.chain.clone());
            let reading = match chains.entry(name.clone()) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    begun.push(name);
                    let expected = signed
                        .checkpoints
                        .iter()
                        .filter(|one| is_of(one, record) && one.stored >= record.stored);
                    let verifier = Verifier::expecting(expected.map(Checkpoint::head));
                    entry.insert(Reading { verifier: verifier.of_a_copy(), opened: None })
                }
            };
            reading.take(record);
        }
        match page.next {
            Some(next) if next <= end => request.from = Some(next),
            _ => break,
        }
    }

    let mut reports = Vec::new();
    let mut before: BTreeMap<String, String> = BTreeMap::new();
    for (writer, chain) in begun {
        let Some(mut reading) = chains.remove(&(writer.clone(), chain.clone())) else { continue };
        let of_host = writer.parse::<Principal>().ok().and_then(|writer| daemon_of(&writer));
        let earlier = before.insert(writer.clone(), chain.clone());
        if let (Some(before), Some(reason), Some((_, Some(_)))) =
            (earlier, reading.opened.take(), of_host)
        {
            let anew = Finding::BegunAnew { chain: chain.clone(), before, reason };
            reading.verifier.found(anew);
        }
        let checkpoint = signed
            .checkpoints
            .iter()
            .filter(|one| one.writer.as_str() == writer && one.chain == chain)
            .map(|one| one.seq)
            .max();
        reports.push(ChainReport { writer, chain, checkpoint, report: reading.verifier.end() });
    }
    // What is older than the oldest record was removed in order.
    let seen = |one: &&Checkpoint| {
        reports
            .iter()
            .any(|report| report.writer == one.writer.as_str() && report.chain == one.chain)
    };
    let missing = signed.checkpoints.iter().filter(|one| !seen(one) && one.stored >= oldest);
    // The one that goes furthest of each.
    let mut furthest: BTreeMap<(String, String), Checkpoint> = BTreeMap::new();
    for one in missing {
        let name = (one.writer.to_string(), one.chain.clone());
        if furthest.get(&name).is_none_or(|other| other.seq < one.seq) {
            furthest.insert(name, one.clone());
        }
    }
    for one in furthest.into_values() {
        let mut verifier = Verifier::default();
        verifier.found(Finding::ChainMissing { chain: one.chain.clone(), expected: one.seq });
        reports.push(ChainReport {
            writer: one.writer.to_string(),
            chain: one.chain,
            checkpoint: Some(one.seq),
            report: verifier.end(),
        });
    }
    let verified = StoredVerified { chains: reports, refused: signed.refused, key: key.id() };
    let exit = if verified.findings() == 0 { Exit::Done } else { Exit::Differs };
    screen.show(&verified, args.output.output)?;
    Ok(exit)
}

fn is_of(checkpoint: &Checkpoint, record: &StoredRecord) -> bool {
    checkpoint.writer.as_str() == record.writer && checkpoint.chain == record.chain
}

impl Reading {
    fn take(&mut self, stored: &StoredRecord) {
        let read: Option<Record> = serde_json::from_str(&stored.line).ok();
        if stored.beside {
            let seq = read.map_or(0, |record| record.seq);
            self.verifier.found(Finding::Forked { seq });
            return;
        }
        let foreign = read
            .as_ref()
            .is_some_and(|one| one.writer.as_str() != stored.writer || one.chain != stored.chain);
        if foreign && let Some(record) = read {
            let (writer, chain) = (record.writer.to_string(), record.chain);
            self.verifier.found(Finding::Foreign { line: stored.stored, writer, chain });
            return;
        }
        if let Some(record) = self.verifier.line(stored.line.as_bytes())
            && record.seq == 1
        {
            self.opened = Some(record.reason);
        }
    }
}
