//! The stored audit trail: everything once, whoever is away; what does not follow is told; what is signed
//! stays.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod stack;

use async_nats::jetstream::{self, stream};
use canopy_api::{
    Code,
    endpoint::policy,
    permission::Role,
    subject::Target,
    wire::{
        AdmissionItem, AdmissionVerb, AdmitRequest, AuditAppendReply, AuditAppendRequest,
        AuditCheckpointsReply, AuditCheckpointsRequest, AuditFinding, AuditOrder, AuditRequest,
        Decision, StoredRecord, tokens::TokenRevokeRequest,
    },
};
use canopy_audit::{
    Chain, Checkpoint, Entry, Finding, Head, Kind, Line, PublicKey, Record, Report, Verifier,
};
use canopy_bus::{Bus, Spool, forward};
use futures::future::join_all;
use stack::{LIMIT, Stack};
use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio_util::sync::CancellationToken;

const LOADER: &str = "h-web1-loader";

/// Waits until something is there.
async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let until = Instant::now() + LIMIT;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(seen) if Instant::now() > until => panic!("{what}: {seen}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(30)).await,
        }
    }
}

/// Every stored record that is asked for, page by page.
async fn stored(admin: &Bus, request: AuditRequest) -> Vec<StoredRecord> {
    let mut all = Vec::new();
    let mut request = request;
    loop {
        let page = admin.call::<policy::Audit>(&Target::Central, &request).await.unwrap();
        all.extend(page.records);
        match page.next {
            Some(next) => request.from = Some(next),
            None => return all,
        }
    }
}

async fn of(admin: &Bus, writer: &str) -> Vec<StoredRecord> {
    let writer = Some(writer.parse().unwrap());
    let order = AuditOrder::OldestFirst;
    stored(admin, AuditRequest { writer, order, ..AuditRequest::default() }).await
}

fn record(stored: &StoredRecord) -> Record {
    serde_json::from_str(&stored.line).unwrap()
}

/// What verification says of stored records of one chain.
fn report(records: &[StoredRecord], signed: &[Checkpoint]) -> Report {
    let mut verifier = Verifier::expecting(signed.iter().map(Checkpoint::head)).of_a_copy();
    for record in records.iter().filter(|record| !record.beside) {
        verifier.line(record.line.as_bytes());
    }
    verifier.end()
}

async fn checkpoints(stack: &Stack, admin: &Bus) -> Vec<Checkpoint> {
    let request = AuditCheckpointsRequest::default();
    let asked = admin.call::<policy::AuditCheckpoints>(&Target::Central, &request).await;
    let AuditCheckpointsReply { checkpoints, key, .. } = asked.unwrap();
    let public = fs::read_to_string(stack.path("keys/audit-signing.pub")).unwrap();
    assert_eq!(key, public.trim());
    let public: PublicKey = public.trim().parse().unwrap();
    checkpoints.iter().map(|signed| public.verify(signed).unwrap()).collect()
}

/// Lines of a chain as its writer would write it.
struct Writer {
    chain: Chain,
    lines: Vec<Line>,
}

impl Writer {
    fn new(id: &str) -> Self {
        Self::of(LOADER, id)
    }

    fn of(writer: &str, id: &str) -> Self {
        let chain = Chain::new(writer.parse().unwrap(), id.to_owned());
        let mut writer = Self { chain, lines: Vec::new() };
        writer.write(Kind::Opened, "there was none");
        writer
    }

    fn write(&mut self, kind: Kind, reason: &str) {
        let time = canopy_api::time::rfc3339(SystemTime::now());
        let entry = Entry {
            principal: Some("u-operator".parse().unwrap()),
            verb: Some("apply".to_owned()),
            reason: reason.to_owned(),
            ..Entry::new(kind, time)
        };
        let (text, next) = self.chain.next(entry).unwrap();
        self.chain = next;
        self.lines.push(Line::read(text).unwrap());
    }

    fn more(mut self, count: usize) -> Self {
        for i in 0..count {
            self.write(Kind::Begun, &format!("{i}"));
        }
        self
    }

    fn clone_more(&self, count: usize) -> Self {
        Self { chain: self.chain.clone(), lines: self.lines.clone() }.more(count)
    }

    fn request(&self, after: Option<usize>, lines: std::ops::Range<usize>) -> AuditAppendRequest {
        AuditAppendRequest {
            chain: self.chain.id().to_owned(),
            after: after.map(|i| self.lines[i].head().to_string()),
            lines: self.lines[lines].iter().map(|line| line.text.clone()).collect(),
        }
    }
}

async fn append(bus: &Bus, request: &AuditAppendRequest) -> AuditAppendReply {
    bus.call::<policy::AuditAppend>(&Target::Central, request).await.unwrap()
}

const CHAIN: &str = "00000000000000aa";

#[tokio::test]
async fn records_that_come_many_times_at_once_are_stored_once_by_two_instances() {
    let mut stack = Stack::start();
    stack.start_policy();
    let loader = stack.connect(LOADER).await;
    let admin = stack.connect("u-admin").await;
    let writer = Writer::new(CHAIN).more(399);
    let mut at: Option<usize> = None;
    for round in 0.. {
        assert!(round < 2000, "it does not come to an end");
        let from = at.map_or(0, |at| at + 1);
        if from == 400 {
            break;
        }
        let request = writer.request(at, from..(from + 50).min(400));
        // The same again and again, to both, as a writer does that hears no answer.
        let replies = join_all((0..8).map(|_| append(&loader, &request))).await;
        let heads = replies.into_iter().map(|reply| {
            assert!(!reply.diverged);
            let head: Head = reply.head.unwrap().parse().unwrap();
            usize::try_from(head.seq).unwrap() - 1
        });
        at = heads.max();
    }
    let records = of(&admin, LOADER).await;
    let sequence: Vec<u64> = records.iter().map(|one| record(one).seq).collect();
    assert_eq!(sequence, (1..=400).collect::<Vec<u64>>());
    assert!(records.iter().all(|one| one.finding.is_empty() && !one.beside));
    assert_eq!(report(&records, &[]).findings, []);
}

/// A stack that stores little, and what is told of its findings.
async fn small_store(records_of_chain: u64) -> (Stack, canopy_bus::Events) {
    let mut stack = Stack::without_policy();
    let mut config = stack.config_with_audit(0);
    config["audit"]["store_bytes"] = (1_u64 << 20).into();
    config["audit"]["records_of_chain"] = records_of_chain.into();
    stack.start_policy_with(config);
    stack.bootstrap("u-admin");
    let admin = stack.connect("u-admin").await;
    let told = admin.subscribe_events("canopy.v1.event.policy.audit.finding._").await.unwrap();
    admin.flush().await;
    (stack, told)
}

async fn next_finding(told: &mut canopy_bus::Events) -> (String, String) {
    let event = tokio::time::timeout(LIMIT, told.next()).await.expect("a finding").unwrap();
    let finding: AuditFinding = event.decode().unwrap();
    (finding.code, finding.writer.to_string())
}

/// One host's certificate erased everybody's stored trail with long records.
#[tokio::test]
async fn a_writer_fills_its_own_room_and_no_others() {
    let (stack, mut told) = small_store(100_000).await;
    let admin = stack.connect("u-admin").await;
    let other = stack.connect("h-web2-loader").await;
    let trail = Writer::of("h-web2-loader", "00000000000000bb").more(5);
    append(&other, &trail.request(None, 0..6)).await;

    let attacker = stack.connect(LOADER).await;
    let mut writer = Writer::new(CHAIN);
    let mut stored = 0;
    let mut refused = None;
    // Four times what the whole store holds.
    for at in 0..256 {
        writer.write(Kind::Refused, &"x".repeat(15_000));
        let request = writer.request(None, at..at + 1);
        let after = (at > 0).then(|| writer.lines[at - 1].head().to_string());
        let request = AuditAppendRequest { after, ..request };
        match attacker.call::<policy::AuditAppend>(&Target::Central, &request).await {
            Ok(reply) => {
                assert_eq!(reply.head, Some(writer.lines[at].head().to_string()));
                stored += 1;
            }
            Err(error) => {
                refused = Some(error.to_api_error());
                break;
            }
        }
    }
    let refused = refused.expect("the room is never full");
    assert_eq!(refused.reason.as_deref(), Some("room_full"), "{refused:?}");
    assert!((5..=9).contains(&stored), "{stored} records of 15 KB are in a room of 128 KiB");
    assert_eq!(next_finding(&mut told).await, ("full".to_owned(), LOADER.to_owned()));
    // Another chain has no room of its own, and what contradicts the stored ones has little.
    let mut anew = Writer::new("00000000000000cc");
    anew.write(Kind::Begun, &"x".repeat(15_000));
    let begun = anew.request(None, 0..2);
    let refused = attacker.call::<policy::AuditAppend>(&Target::Central, &begun).await;
    let refused = refused.unwrap_err().to_api_error();
    assert_eq!(refused.reason.as_deref(), Some("room_full"), "{refused:?}");
    for (at, reason) in ["x".repeat(15_000), "y".repeat(15_000)].iter().enumerate() {
        let mut fork = Writer::new(CHAIN);
        fork.write(Kind::Begun, &format!("{at}{reason}"));
        let after = Some(writer.lines[stored - 1].head().to_string());
        append(&attacker, &AuditAppendRequest { after, ..fork.request(None, 0..2) }).await;
    }
    let kept = of(&admin, LOADER).await;
    let bytes: usize = kept.iter().map(|one| one.line.len()).sum();
    assert!(bytes < 256 << 10, "{bytes} bytes are stored of one writer");

    // The other's trail is whole, and goes on.
    append(&other, &trail.clone_more(1).request(Some(5), 6..7)).await;
    let records = of(&admin, "h-web2-loader").await;
    assert_eq!((records.len(), report(&records, &[]).findings), (7, vec![]));
}

/// Records of who connects are of the same writer as those of changes, and anybody can cause them.
#[tokio::test]
async fn a_full_chain_of_a_central_service_leaves_its_others_room() {
    let (stack, mut told) = small_store(100_000).await;
    let registry = stack.connect("s-registry").await;
    let fill = async |id: &str| {
        let mut writer = Writer::of("s-registry", id);
        for at in 0..64 {
            writer.write(Kind::Refused, &"x".repeat(15_000));
            let request = writer.request((at > 0).then(|| at - 1), at..at + 1);
            let stored = registry.call::<policy::AuditAppend>(&Target::Central, &request).await;
            if let Err(error) = stored {
                return (at, error.to_api_error().reason.unwrap().to_string());
            }
        }
        panic!("{id} is never full");
    };
    let room_full = "room_full".to_owned();
    let (first, reason) = fill("00000000000000a0").await;
    assert_eq!((reason, next_finding(&mut told).await.0), (room_full.clone(), "full".to_owned()));
    for id in ["00000000000000a1", "00000000000000a2"] {
        assert_eq!(fill(id).await, (first, room_full.clone()));
    }
    // All of them together have half of the store.
    let (fourth, _) = fill("00000000000000a3").await;
    let (fifth, _) = fill("00000000000000a4").await;
    assert!(fourth <= first + 1 && fifth <= 3, "{first}, {fourth}, {fifth}");
}

#[tokio::test]
async fn a_record_longer_than_any_is_refused_and_told() {
    let (stack, mut told) = small_store(100_000).await;
    let attacker = stack.connect(LOADER).await;
    let mut writer = Writer::new(CHAIN);
    writer.write(Kind::Begun, &"x".repeat(600_000));
    let refused = attacker
        .call::<policy::AuditAppend>(&Target::Central, &writer.request(None, 0..2))
        .await
        .unwrap_err()
        .to_api_error();
    assert_eq!((refused.code, refused.path.as_str()), (Code::Invalid, "lines[1]"), "{refused:?}");
    assert_eq!(next_finding(&mut told).await, ("long".to_owned(), LOADER.to_owned()));
    let admin = stack.connect("u-admin").await;
    assert_eq!(of(&admin, LOADER).await.len(), 0, "nothing of the request is stored");
}

#[tokio::test]
async fn the_oldest_records_of_a_chain_go_with_a_finding() {
    let (stack, mut told) = small_store(100).await;
    let loader = stack.connect(LOADER).await;
    let writer = Writer::new(CHAIN).more(149);
    append(&loader, &writer.request(None, 0..100)).await;
    append(&loader, &writer.request(Some(99), 100..150)).await;
    assert_eq!(next_finding(&mut told).await, ("rolling".to_owned(), LOADER.to_owned()));
    let (_, metrics) = stack.policy[0].get("/metrics").unwrap();
    let line = "canopy_policy_audit_findings_total{finding=\"rolling\"} 1";
    assert!(metrics.contains(line), "told once, not with each record:\n{metrics}");
}

fn spool(dir: &Path) -> Arc<Spool> {
    let writer = LOADER.parse().unwrap();
    Arc::new(Spool::new(dir, writer, 1 << 22, SystemTime::now(), |_, _| {}))
}

async fn keep(spool: &Arc<Spool>, count: usize) {
    let spool = Arc::clone(spool);
    let kept = tokio::task::spawn_blocking(move || {
        for i in 0..count {
            let entry = Entry { reason: i.to_string(), ..Entry::new(Kind::Begun, "t") };
            spool.append(entry).unwrap();
        }
    });
    kept.await.unwrap();
}

#[tokio::test]
async fn what_was_done_while_policy_was_away_is_stored_afterwards() {
    let mut stack = Stack::start();
    let dir = tempfile::tempdir().unwrap();
    let loader = stack.connect(LOADER).await;
    let stop = CancellationToken::new();
    let trail = spool(dir.path());
    let sending = tokio::spawn(forward::to_policy(loader.clone(), trail.clone(), stop.clone()));
    keep(&trail, 3).await;
    let admin = stack.connect("u-admin").await;
    let count = async |expected: usize| {
        eventually("records are stored", async || {
            let records = of(&admin, LOADER).await;
            if records.len() == expected { Ok(records) } else { Err(records.len().to_string()) }
        })
        .await
    };
    count(4).await;

    drop(stack.policy.pop());
    keep(&trail, 600).await;
    // The writer ends meanwhile, too, and knows no more of what was stored.
    stop.cancel();
    sending.await.unwrap();
    drop(trail);
    let stop = CancellationToken::new();
    let trail = spool(dir.path());
    let sending = tokio::spawn(forward::to_policy(loader.clone(), trail.clone(), stop.clone()));
    keep(&trail, 5).await;
    stack.start_policy();
    let records = count(609).await;
    let found = report(&records, &[]);
    assert_eq!((found.findings, found.first, found.records), (vec![], 1, 609));
    stop.cancel();
    sending.await.unwrap();
}

#[tokio::test]
async fn what_does_not_follow_is_stored_with_a_finding_and_told() {
    let stack = Stack::start();
    let loader = stack.connect(LOADER).await;
    let admin = stack.connect("u-admin").await;
    let mut told = admin.subscribe_events("canopy.v1.event.policy.audit.finding._").await.unwrap();
    admin.flush().await;
    let mut next = async || {
        let event = tokio::time::timeout(LIMIT, told.next()).await.unwrap().unwrap();
        let finding: AuditFinding = event.decode().unwrap();
        assert_eq!(finding.writer.as_str(), LOADER);
        (finding.code, finding.seq)
    };
    let ours = Writer::new(CHAIN).more(9);
    append(&loader, &ours.request(None, 0..3)).await;
    // Another place than is stored: nothing is stored, and the answer says which.
    let reply = append(&loader, &ours.request(Some(4), 5..6)).await;
    assert_eq!(reply.head, Some(ours.lines[2].head().to_string()));
    assert_eq!(of(&admin, LOADER).await.len(), 3);

    let reply = append(&loader, &ours.request(Some(2), 5..7)).await;
    assert_eq!((reply.head, reply.diverged), (Some(ours.lines[6].head().to_string()), false));
    assert_eq!(next().await, ("gap".to_owned(), 6));

    let mut other = Writer::new(CHAIN);
    other.write(Kind::Begun, "something else");
    let forked = AuditAppendRequest {
        after: Some(ours.lines[6].head().to_string()),
        ..other.request(None, 0..2)
    };
    let reply = append(&loader, &forked).await;
    assert_eq!((reply.head, reply.diverged), (Some(ours.lines[6].head().to_string()), true));
    assert_eq!(next().await, ("fork".to_owned(), 1));
    assert_eq!(next().await, ("fork".to_owned(), 2));

    let anew = Writer::new("00000000000000bb");
    append(&loader, &anew.request(None, 0..1)).await;
    assert_eq!(next().await, ("begun_anew".to_owned(), 1));

    let mut foreign = ours.request(Some(6), 7..8);
    foreign.lines[0] = foreign.lines[0].replace(LOADER, "h-web2-loader");
    let refused = loader.call::<policy::AuditAppend>(&Target::Central, &foreign).await;
    assert!(refused.unwrap_err().to_string().contains("sent a record of h-web2-loader"));
    assert_eq!(next().await, ("foreign".to_owned(), 8));

    let records = of(&admin, LOADER).await;
    let told: Vec<_> =
        records.iter().map(|one| (record(one).seq, one.beside, one.finding.as_str())).collect();
    assert_eq!(
        told,
        [
            (1, false, ""),
            (2, false, ""),
            (3, false, ""),
            (6, false, "records 4 to 5 are missing"),
            (7, false, ""),
            (1, true, "contradicts what is stored"),
            (2, true, "contradicts what is stored"),
            (1, false, ""),
        ]
    );
    let (_, metrics) = stack.policy[0].get("/metrics").unwrap();
    for (finding, count) in [("gap", 1), ("fork", 2), ("begun_anew", 1), ("foreign", 1)] {
        let line = format!("canopy_policy_audit_findings_total{{finding=\"{finding}\"}} {count}");
        assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn a_writer_whose_trail_is_not_the_stored_one_begins_another_and_loses_none() {
    let stack = Stack::start();
    let loader = stack.connect(LOADER).await;
    let admin = stack.connect("u-admin").await;
    let dir = tempfile::tempdir().unwrap();
    let trail = spool(dir.path());
    keep(&trail, 9).await;
    let file = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read_to_string(&file).unwrap();
    let stop = CancellationToken::new();
    let sending = tokio::spawn(forward::to_policy(loader.clone(), trail.clone(), stop.clone()));
    eventually("records are stored", async || {
        let count = of(&admin, LOADER).await.len();
        if count == 10 { Ok(()) } else { Err(count.to_string()) }
    })
    .await;
    stop.cancel();
    sending.await.unwrap();
    drop(trail);
    // The host's root takes the last three away; the loader sees nothing wrong with what is left.
    let cut: String = whole.lines().take(7).flat_map(|line| [line, "\n"]).collect();
    fs::write(&file, cut).unwrap();
    let trail = spool(dir.path());
    keep(&trail, 1).await;
    let stop = CancellationToken::new();
    let sending = tokio::spawn(forward::to_policy(loader.clone(), trail.clone(), stop.clone()));
    let records = eventually("another chain is stored", async || {
        let records = of(&admin, LOADER).await;
        let chains = records.iter().filter(|one| record(one).kind == Kind::Opened).count();
        if chains == 2 { Ok(records) } else { Err(chains.to_string()) }
    })
    .await;
    assert!(records.iter().take(10).enumerate().all(|(i, one)| record(one).seq == i as u64 + 1));
    let opened = record(records.last().unwrap());
    assert!(opened.reason.contains("policy has 10 records of it; 8 are left"), "{opened:?}");
    keep(&trail, 1).await;
    eventually("it goes on", async || {
        let count = of(&admin, LOADER).await.len();
        if count == 12 { Ok(()) } else { Err(count.to_string()) }
    })
    .await;
    stop.cancel();
    sending.await.unwrap();
}

/// What whoever has the rights of the DATA connection can do to the store.
async fn tamper(stack: &Stack, first: Option<u64>, change: impl Fn(Vec<String>) -> Vec<String>) {
    let client = stack
        .attempt_from(&stack.credentials("s-policy-data"), |options| {
            options.custom_inbox_prefix("_INBOX.s-policy-data")
        })
        .await
        .unwrap();
    let context = jetstream::new(client);
    let mut old = context.get_stream("CANOPY_AUDIT").await.unwrap();
    let last = old.info().await.unwrap().state.last_sequence;
    let mut kept = Vec::new();
    for number in 1..=last {
        if let Ok(message) = old.get_raw_message(number).await {
            kept.push((message.subject, String::from_utf8(message.payload.to_vec()).unwrap()));
        }
    }
    // Not even they take out or change single ones.
    old.delete_message(last).await.unwrap_err();
    old.purge().await.unwrap_err();
    let config = old.cached_info().config.clone();
    context.delete_stream("CANOPY_AUDIT").await.unwrap();
    let config = stream::Config { first_sequence: first, ..config };
    context.create_stream(config).await.unwrap();
    let (ours, others): (Vec<_>, Vec<_>) =
        kept.into_iter().partition(|(subject, _)| subject.contains(LOADER));
    let Some((subject, _)) = ours.first() else { panic!("nothing is stored") };
    let lines = change(ours.iter().map(|(_, line)| line.clone()).collect());
    let ours = lines.into_iter().map(|line| (subject.clone(), line));
    for (subject, line) in ours.chain(others) {
        context.publish(subject, line.into()).await.unwrap().await.unwrap();
    }
}

/// Waits until what is stored of the loader's chain is signed as far.
async fn signed(stack: &Stack, admin: &Bus, seq: u64) -> Checkpoint {
    eventually("it is signed", async || {
        let all = checkpoints(stack, admin).await;
        let found = all.iter().find(|one| one.writer.as_str() == LOADER && one.seq == seq);
        found.cloned().ok_or_else(|| format!("{all:?}"))
    })
    .await
}

#[tokio::test]
async fn an_edit_a_gap_and_a_truncation_of_the_store_are_found() {
    type Change = fn(Vec<String>) -> Vec<String>;
    let without = |at: usize| {
        move |mut lines: Vec<String>| {
            lines.remove(at);
            lines
        }
    };
    let _ = without;
    let edit: Change = |mut lines| {
        lines[4] = lines[4].replace("u-operator", "u-nobody");
        lines
    };
    let gap: Change = |mut lines| {
        lines.remove(4);
        lines
    };
    let cut: Change = |mut lines| {
        lines.pop();
        lines
    };
    for (name, change, expected) in [
        ("edit", edit, Finding::Changed { seq: 6 }),
        ("gap", gap, Finding::Missing { from: 5, to: 5 }),
        ("cut", cut, Finding::Truncated { last: 9, expected: 10 }),
    ] {
        let stack = Stack::start();
        let loader = stack.connect(LOADER).await;
        let admin = stack.connect("u-admin").await;
        append(&loader, &Writer::new(CHAIN).more(9).request(None, 0..10)).await;
        let signed = signed(&stack, &admin, 10).await;
        let before = report(&of(&admin, LOADER).await, std::slice::from_ref(&signed));
        assert_eq!(before.findings, [], "{name}");
        tamper(&stack, None, change).await;
        let after = report(&of(&admin, LOADER).await, &[signed]);
        assert_eq!(after.findings, [expected], "{name}");
    }
}

#[tokio::test]
async fn a_store_that_was_cut_is_told_and_filled_again_by_the_writer() {
    let mut stack = Stack::start();
    let loader = stack.connect(LOADER).await;
    let admin = stack.connect("u-admin").await;
    let ours = Writer::new(CHAIN).more(10);
    append(&loader, &ours.request(None, 0..10)).await;
    signed(&stack, &admin, 10).await;
    // An instance that has seen it all in its time is no help: it asks the store again.
    tamper(&stack, None, |mut lines| {
        lines.truncate(6);
        lines
    })
    .await;
    let reply = append(&loader, &ours.request(Some(9), 10..11)).await;
    assert_eq!(reply.head, Some(ours.lines[5].head().to_string()), "what is there now");
    let (_, metrics) = stack.policy[0].get("/metrics").unwrap();
    assert!(metrics.contains("canopy_policy_audit_findings_total{finding=\"cut\"}"), "{metrics}");
    append(&loader, &ours.request(Some(5), 6..11)).await;
    assert_eq!(report(&of(&admin, LOADER).await, &[]).records, 11);
    stack.policy.clear();
}

#[tokio::test]
async fn retention_removes_records_and_keeps_what_was_signed() {
    let mut stack = Stack::without_policy();
    let mut config = stack.config_with_audit(0);
    config["audit"]["records_of_chain"] = 100.into();
    stack.start_policy_with(config);
    stack.bootstrap("u-admin");
    let loader = stack.connect(LOADER).await;
    let admin = stack.connect("u-admin").await;
    let ours = Writer::new(CHAIN).more(300);
    append(&loader, &ours.request(None, 0..150)).await;
    append(&loader, &ours.request(Some(149), 150..300)).await;
    let signed = signed(&stack, &admin, 300).await;
    let records = of(&admin, LOADER).await;
    let found = report(&records, std::slice::from_ref(&signed));
    assert_eq!((found.findings, found.first, found.records), (vec![], 201, 100));
    // What is left is still what was signed, and nothing else.
    let mut changed = records.clone();
    changed[99].line = changed[99].line.replace("u-operator", "u-nobody");
    assert_eq!(
        report(&changed, std::slice::from_ref(&signed)).findings,
        [Finding::Replaced { seq: 300 }]
    );

    // All of them are too old and gone: the checkpoint stays, and the chain goes on from it.
    tamper(&stack, Some(1000), |_| Vec::new()).await;
    let request = ours.request(Some(299), 300..301);
    // An instance that has seen it otherwise looks again, and says that it goes on from there.
    assert_eq!(append(&loader, &request).await.head, request.after);
    assert_eq!(append(&loader, &request).await.head, Some(ours.lines[300].head().to_string()));
    let left = of(&admin, LOADER).await;
    assert_eq!(left.iter().map(|one| record(one).seq).collect::<Vec<_>>(), [301]);
    assert!(left[0].finding.is_empty(), "{left:?}");
}

#[tokio::test]
async fn policy_records_what_it_changes_and_who_connects_with_which_token() {
    let mut stack = Stack::start();
    let admin = stack.connect("u-admin").await;
    let reply = stack.issue(&admin, "u-operator", Role::Operator).await;
    let token = reply.record.id;
    let operator = stack.connect("u-operator").await;
    let revoke = TokenRevokeRequest { principal: "u-operator".parse().unwrap() };
    admin.call::<policy::TokenRevoke>(&Target::Central, &revoke).await.unwrap();
    let denied = operator.call::<policy::TokenRevoke>(&Target::Central, &revoke).await;
    denied.unwrap_err();
    let stranger = stack.credentials("u-publisher");
    for _ in 0..60 {
        stack.attempt(&stranger).await.unwrap_err();
    }
    let records = eventually("all of it is stored", async || {
        let records: Vec<Record> = of(&admin, "s-policy").await.iter().map(record).collect();
        let about = |text: &str| records.iter().any(|one| one.reason.contains(text));
        let connected =
            |one: &Record| one.kind == Kind::Connected && one.token.as_ref() == Some(&token);
        if about("revoked: token") && records.iter().any(connected) && about("the bus server") {
            Ok(records)
        } else {
            Err(format!("{records:#?}"))
        }
    })
    .await;
    let ended: Vec<_> = records
        .iter()
        .filter(|one| one.kind == Kind::Ended && one.verb.as_deref() != Some("audit"))
        .map(|one| (one.verb.clone().unwrap(), one.decision.unwrap(), one.reason.clone()))
        .collect();
    let of_operator = format!("token {token} of u-operator, role operator");
    assert_eq!(
        ended,
        [
            ("token-issue".to_owned(), Decision::Done, format!("issued: {of_operator}")),
            ("token-revoke".to_owned(), Decision::Done, format!("revoked: {of_operator}")),
        ]
    );
    let connects = records.iter().find(|one| one.token.as_ref() == Some(&token)).unwrap();
    assert_eq!(connects.principal.as_ref().unwrap().as_str(), "u-operator");
    assert_eq!(connects.peer.as_deref(), Some("127.0.0.1"));
    assert_eq!(connects.reason, "u-operator/1");

    // Sixty refusals, twice each: what this service says, and what the bus server says.
    stack.policy.pop().unwrap().end().unwrap();
    let mut counted = std::collections::BTreeMap::new();
    let mut lines = 0;
    for file in fs::read_dir(stack.audit_dir(0).join("connections")).unwrap() {
        for line in fs::read_to_string(file.unwrap().path()).unwrap().lines() {
            let record: Record = serde_json::from_str(line).unwrap();
            if record.kind == Kind::Refused && record.verb.as_deref() == Some("connect") {
                assert_eq!(record.peer.as_deref(), Some("127.0.0.1"));
                lines += 1;
                *counted.entry(record.reason).or_insert(0) += record.count.unwrap_or(1);
            }
        }
    }
    assert!(lines <= 6, "{lines} records: {counted:?}");
    let bus_server = counted.iter().find(|(reason, _)| reason.starts_with("the bus server"));
    assert!(*bus_server.unwrap().1 >= 60, "{counted:?}");
    let own: u64 =
        counted.iter().filter(|(reason, _)| !reason.starts_with("the bus")).map(|(_, n)| n).sum();
    assert!(own >= 60, "{counted:?}");
}

#[tokio::test]
async fn what_admission_denies_and_the_ninth_chain_of_a_host_are_on_record() {
    let mut stack = Stack::without_policy();
    let mut config = stack.config_with_audit(0);
    let rules = stack.path("rules.yaml");
    fs::write(&rules, "rules: [{ name: nobody, effect: deny, reason: ask, when: {} }]\n").unwrap();
    config["rules"] = rules.to_str().unwrap().into();
    stack.start_policy_with(config);
    stack.bootstrap("u-admin");
    let loader = stack.connect(LOADER).await;
    let admin = stack.connect("u-admin").await;
    let item = AdmissionItem::new(AdmissionVerb::Drain);
    let principal = "u-admin".parse().unwrap();
    let request = AdmitRequest { principal, items: vec![item], dry_run: false };
    let reply = loader.call::<policy::Admit>(&Target::Central, &request).await.unwrap();
    assert!(!reply.decisions[0].allowed);
    let denied = AuditRequest {
        host: Some("web1".parse().unwrap()),
        decision: Some(Decision::Denied),
        ..AuditRequest::default()
    };
    let denial = eventually("the denial is stored", async || {
        stored(&admin, denied.clone()).await.first().map(record).ok_or("nothing yet".to_owned())
    })
    .await;
    assert_eq!((denial.kind, denial.verb.as_deref()), (Kind::Refused, Some("admit")));
    assert_eq!(denial.principal.unwrap().as_str(), "u-admin");
    assert_eq!((denial.writer.as_str(), denial.rules), ("s-policy", vec!["nobody".to_owned()]));

    // A host that begins one chain after the other fills the store with eight of them.
    for i in 0..10 {
        let writer = Writer::new(&format!("{i:016x}"));
        let request = writer.request(None, 0..1);
        match loader.call::<policy::AuditAppend>(&Target::Central, &request).await {
            Ok(_) => assert!(i < 8, "chain {i} is stored"),
            Err(error) => {
                assert!(i >= 8 && error.to_string().contains("8 chains of"), "{i}: {error}");
            }
        }
    }
    assert_eq!(of(&admin, LOADER).await.len(), 8);
}

#[tokio::test]
async fn what_is_asked_for_is_found_and_nothing_else() {
    let stack = Stack::start();
    let admin = stack.connect("u-admin").await;
    for (host, by) in [("web1", "u-operator"), ("web2", "u-admin")] {
        let principal = format!("h-{host}-loader");
        let loader = stack.connect(&principal).await;
        let mut chain = Chain::new(
            principal.parse().unwrap(),
            format!("{host:0>16}").replace(|c: char| !c.is_ascii_hexdigit(), "0"),
        );
        let mut lines = Vec::new();
        for i in 0..700 {
            let kind = if i == 0 { Kind::Opened } else { Kind::Ended };
            let decision = if i % 10 == 0 { Decision::Denied } else { Decision::Done };
            let (text, next) = chain
                .next(Entry {
                    principal: Some(by.parse().unwrap()),
                    host: Some(host.parse().unwrap()),
                    verb: Some(if i % 2 == 0 { "apply" } else { "drain" }.to_owned()),
                    decision: Some(decision),
                    ..Entry::new(kind, format!("2026-01-01T00:{:02}:{:02}.000Z", i / 60, i % 60))
                })
                .unwrap();
            chain = next;
            lines.push(text);
        }
        let mut after = None;
        for part in lines.chunks(250) {
            let chain = chain.id().to_owned();
            let request = AuditAppendRequest { chain, after, lines: part.to_vec() };
            after = append(&loader, &request).await.head;
        }
    }
    let ask = async |request: AuditRequest| -> Vec<Record> {
        stored(&admin, request).await.iter().map(record).collect()
    };
    let web1 = Some("web1".parse().unwrap());
    let base = AuditRequest { host: web1.clone(), ..AuditRequest::default() };
    let all = ask(base.clone()).await;
    assert_eq!(all.len(), 700);
    assert!(all.windows(2).all(|pair| pair[0].seq > pair[1].seq), "the newest first");
    let oldest = ask(AuditRequest { order: AuditOrder::OldestFirst, ..base.clone() }).await;
    assert!(oldest.len() == 700 && oldest.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    for (count, request) in [
        (70, AuditRequest { decision: Some(Decision::Denied), ..base.clone() }),
        (350, AuditRequest { verb: Some("drain".to_owned()), ..base.clone() }),
        (0, AuditRequest { by: Some("u-admin".parse().unwrap()), ..base.clone() }),
        (700, AuditRequest { by: Some("u-operator".parse().unwrap()), ..AuditRequest::default() }),
        (100, AuditRequest { since: Some("2026-01-01T00:10:00.000Z".to_owned()), ..base.clone() }),
        (61, AuditRequest { until: Some("2026-01-01T00:01:00.000Z".to_owned()), ..base.clone() }),
        (
            700,
            AuditRequest {
                writer: Some("h-web2-loader".parse().unwrap()),
                ..AuditRequest::default()
            },
        ),
        (
            0,
            AuditRequest {
                service: Some(canopy_api::endpoint::Service::Registry),
                ..AuditRequest::default()
            },
        ),
        (
            1400,
            AuditRequest {
                service: Some(canopy_api::endpoint::Service::Loader),
                limit: Some(33),
                ..AuditRequest::default()
            },
        ),
    ] {
        let found = ask(request.clone()).await;
        assert_eq!(found.len(), count, "{request:?}");
    }
    let page = AuditRequest { limit: Some(5), ..base };
    let page = admin.call::<policy::Audit>(&Target::Central, &page).await.unwrap();
    assert_eq!(
        page.records.iter().map(|one| record(one).seq).collect::<Vec<_>>(),
        [700, 699, 698, 697, 696]
    );
    // Who may only read, or change hosts, does not see who did what.
    stack.issue(&admin, "u-operator", Role::Operator).await;
    let operator = stack.connect("u-operator").await;
    let refused = operator.call::<policy::Audit>(&Target::Central, &AuditRequest::default()).await;
    assert!(refused.unwrap_err().to_string().contains("needs the permission \"admin\""));
}
