//! `canopy audit verify` of what policy has stored, over a real bus, with a stand-in for policy that
//! answers what somebody has made of the store.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use canopy_api::{
    endpoint::{Service, policy},
    wire::{
        AuditCheckpointsReply, AuditOrder, AuditReply, AuditRequest, SignedCheckpoint, StoredRecord,
    },
};
use canopy_audit::{Chain, Checkpoint, CheckpointKey, Entry, Kind, Line};
use canopy_bus::{Bus, BusConfig, Server};
use canopy_test_support::nats::NatsServer;
use serde_json::json;
use std::{
    fs,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const WEB1: &str = "h-web1-loader";
const WEB2: &str = "h-web2-loader";
const FIRST: &str = "00000000000000aa";
const SECOND: &str = "00000000000000bb";

fn key() -> CheckpointKey {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    CheckpointKey::from_pem(&pair.serialize_pem()).unwrap()
}

/// What the store has.
#[derive(Clone, Default)]
struct Store {
    records: Vec<StoredRecord>,
    checkpoints: Vec<SignedCheckpoint>,
    oldest: u64,
}

impl Store {
    /// Stores a chain of so many records after what is there, and signs how far it goes.
    fn chain(&mut self, writer: &str, id: &str, count: usize, key: &CheckpointKey) {
        let mut chain = Chain::new(writer.parse().unwrap(), id.to_owned());
        let mut last = None;
        for i in 0..count {
            let kind = if i == 0 { Kind::Opened } else { Kind::Begun };
            let principal = Some("u-operator".parse().unwrap());
            let entry = Entry { principal, reason: i.to_string(), ..Entry::new(kind, "t") };
            let (line, next) = chain.next(entry).unwrap();
            chain = next;
            last = Some(Line::read(line.as_str()).unwrap());
            self.records.push(stored(self.records.len() as u64 + 1, writer, id, line));
        }
        let (head, key_id) = (last.unwrap().head(), key.public().id());
        let checkpoint = Checkpoint {
            writer: writer.parse().unwrap(),
            chain: id.to_owned(),
            seq: head.seq,
            hash: head.hash,
            stored: self.records.len() as u64,
            time: "t".to_owned(),
            key: key_id,
        };
        self.checkpoints.push(key.sign(&checkpoint).unwrap());
    }
}

fn stored(number: u64, writer: &str, chain: &str, line: String) -> StoredRecord {
    StoredRecord {
        stored: number,
        writer: writer.to_owned(),
        chain: chain.to_owned(),
        beside: false,
        finding: String::new(),
        line,
    }
}

/// Pages of a few, as a store with much in it gives them.
fn page(store: &Store, request: &AuditRequest) -> AuditReply {
    assert_eq!(request.order, AuditOrder::OldestFirst);
    let from = request.from.unwrap_or(0);
    let fits = |one: &&StoredRecord| {
        one.stored >= from.max(store.oldest)
            && request.writer.as_ref().is_none_or(|writer| writer.as_str() == one.writer)
    };
    let records: Vec<_> = store.records.iter().filter(fits).take(3).cloned().collect();
    let newest = store.records.last().map_or(0, |one| one.stored);
    let next = records.last().map(|one| one.stored + 1).filter(|next| *next <= newest);
    AuditReply { records, next, oldest: store.oldest, newest }
}

async fn bus(server: &NatsServer, principal: &str) -> Bus {
    let files = server.client(principal);
    let config = BusConfig::new(files.url, files.ca, files.cert, files.key);
    let bus = Bus::connect(&config, principal.parse().unwrap()).await.unwrap();
    bus.wait_ready(Duration::from_secs(10)).await.unwrap();
    bus
}

struct World {
    _server: NatsServer,
    dir: TempDir,
    stop: CancellationToken,
    store: Arc<Mutex<Store>>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    async fn start(key: &CheckpointKey) -> Self {
        let server = NatsServer::start(&[]).unwrap();
        let store: Arc<Mutex<Store>> = Arc::default();
        let (records, checkpoints, named) = (store.clone(), store.clone(), key.public());
        let stop = CancellationToken::new();
        let (tell, mut ready) = tokio::sync::watch::channel(false);
        let policy = Server::new(bus(&server, "s-policy").await, Service::Policy, None)
            .handle::<policy::Audit, _, _>(move |_, request| {
                let reply = page(&records.lock().unwrap(), &request);
                async move { Ok(reply) }
            })
            .handle::<policy::AuditCheckpoints, _, _>(move |_, request| {
                let mut checkpoints = checkpoints.lock().unwrap().checkpoints.clone();
                if let Some(writer) = request.writer {
                    checkpoints.retain(|one| one.statement.contains(writer.as_str()));
                }
                let key = named.to_string();
                async move { Ok(AuditCheckpointsReply { checkpoints, key, next: None }) }
            })
            .on_ready(move |ok, _| {
                tell.send_replace(ok);
            });
        tokio::spawn(policy.serve(stop.clone()));
        ready.wait_for(|ready| *ready).await.unwrap();
        let dir = TempDir::new().unwrap();
        let files = server.client("u-admin");
        let context = json!({ "name": "admin", "url": files.url, "ca": files.ca,
                              "cert": files.cert, "key": files.key, "principal": "u-admin" });
        let file = json!({ "current": "admin", "contexts": [context] }).to_string();
        fs::write(dir.path().join("config.json"), file).unwrap();
        fs::write(dir.path().join("audit-signing.pub"), format!("{}\n", key.public())).unwrap();
        Self { _server: server, dir, stop, store }
    }

    /// Exit code and text of `canopy audit verify`.
    fn verify(&self, store: &Store, rest: &str) -> (i32, String) {
        *self.store.lock().unwrap() = store.clone();
        let output = Command::new(env!("CARGO_BIN_EXE_canopy"))
            .args(["audit", "verify"])
            .args(rest.split_whitespace())
            .current_dir(self.dir.path())
            .env("HOME", self.dir.path())
            .env("CANOPY_CONFIG", "config.json")
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(said).unwrap())
    }
}

type Change = fn(&mut Store);

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_done_to_the_store_is_found() {
    let key = key();
    let world = World::start(&key).await;
    let mut good = Store { oldest: 1, ..Store::default() };
    good.chain(WEB1, FIRST, 8, &key);
    good.chain(WEB2, SECOND, 5, &key);
    let (code, said) = world.verify(&good, "--key audit-signing.pub");
    assert!(code == 0 && said.contains("13 records, 2 chains, 2 writers"), "{said}");
    assert!(said.contains("records 1 to 8, signed to 8") && !said.contains("note:"), "{said}");
    let (code, said) = world.verify(&good, "");
    assert!(code == 0 && said.contains("which policy itself names"), "{said}");

    let changes: [(&str, Change, &str); 10] = [
        (
            "edit",
            |store| {
                let line = &mut store.records[3].line;
                *line = line.replace("u-operator", "u-nobody");
            },
            "record 5 does not follow from the record before it",
        ),
        (
            "last",
            |store| {
                let line = &mut store.records[7].line;
                *line = line.replace("u-operator", "u-nobody");
            },
            "record 8 is another one than was seen before",
        ),
        ("gap", |store| drop(store.records.remove(3)), "records 4 to 4 are missing"),
        ("cut", |store| drop(store.records.remove(7)), "ends at record 7; it had 8 already"),
        ("all", |store| drop(store.records.drain(..8)), "nothing is there of the chain"),
        ("no record", |store| store.records[2].line = "{}".to_owned(), "is no record"),
        ("beside", |store| store.records[2].beside = true, "there is a second record 3"),
        (
            "another's",
            |store| store.records[2].line = store.records[9].line.clone(),
            "belongs to h-web2-loader",
        ),
        ("begun anew", |store| store.chain(WEB1, SECOND, 1, &self::key()), "although it had"),
        (
            "signed by another",
            |store| {
                let other = self::key();
                let checkpoint = serde_json::from_str(&store.checkpoints[0].statement).unwrap();
                store.checkpoints[0] = other.sign(&checkpoint).unwrap();
            },
            "a checkpoint is not believed",
        ),
    ];
    for (name, change, finding) in changes {
        let mut store = good.clone();
        change(&mut store);
        let (code, said) = world.verify(&store, "--key audit-signing.pub");
        assert!(code == 3 && said.contains(finding), "{name}: {code} {said}");
    }
    // Whoever has policy's key writes another history, and signs it: kept checkpoints show it.
    let kept: Vec<String> =
        good.checkpoints.iter().map(|one| serde_json::to_string(one).unwrap()).collect();
    fs::write(world.dir.path().join("kept"), kept.join("\n")).unwrap();
    let mut other = Store { oldest: 1, ..Store::default() };
    other.chain(WEB1, FIRST, 7, &key);
    assert_eq!(world.verify(&other, "--key audit-signing.pub").0, 0);
    let (code, said) = world.verify(&other, "--key audit-signing.pub --checkpoints kept");
    for finding in [
        "h-web1-loader, chain 00000000000000aa: the chain ends at record 7; it had 8 already",
        "h-web2-loader, chain 00000000000000bb: nothing is there of the chain",
        "2 findings",
    ] {
        assert!(code == 3 && said.contains(finding), "{said}");
    }

    // What is asked of one writer is not disturbed by another's.
    let mut store = good.clone();
    store.records.remove(3);
    let (code, said) = world.verify(&store, "--key audit-signing.pub --writer h-web2-loader");
    assert!(code == 0 && said.contains("5 records, 1 chains"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_removed_is_no_finding() {
    let key = key();
    let world = World::start(&key).await;
    let mut store = Store { oldest: 1, ..Store::default() };
    store.chain(WEB1, FIRST, 8, &key);
    store.chain(WEB2, SECOND, 5, &key);
    for (oldest, expected) in [
        (4, "h-web1-loader, chain 00000000000000aa: records 4 to 8"),
        (9, "5 records, 1 chains"),
        (11, "h-web2-loader, chain 00000000000000bb: records 3 to 5"),
        (14, "0 records, 0 chains"),
    ] {
        let kept = Store { oldest, ..store.clone() };
        let (code, said) = world.verify(&kept, "--key audit-signing.pub");
        assert!(code == 0 && said.contains(expected), "from {oldest}: {said}");
    }
    // Removed from the middle is something else.
    let mut holed = Store { oldest: 4, ..store };
    holed.records.remove(5);
    let (code, said) = world.verify(&holed, "--key audit-signing.pub");
    assert!(code == 3 && said.contains("records 6 to 6 are missing"), "{said}");
}
