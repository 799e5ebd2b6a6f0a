//! Ring buffers as events, over a real bus: one reader for all who follow, started only by who may
//! change the host, and ended when nobody asks for it any more.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

use canopy_api::{
    ChainKey, Code, DesiredState, Digest, Hook, InterfaceName, ProgramName,
    document::{self, Format},
    endpoint::{Service, loader},
    subject::{self, Target},
    wire::{GetRequest, MapFollowRequest, MapName, MapRecords},
};
use canopy_bus::{Bus, BusConfig, CallError, Events, Server};
use canopy_kernel::{MapKind, MapShape, fake::FakeKernel};
use canopy_loader::{
    admission::{Admission, AdmissionMode},
    cache::Cache,
    core::resolve::{self, Located},
    engine::{Engine, Options},
    fake::{self, Shelf},
    fetch::Fetcher,
    follow::Followers,
    handlers::Handlers,
};
use canopy_package::{Limits, Manifest, Package};
use canopy_test_support::{compile_text, nats::NatsServer, wait_for};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio_util::sync::CancellationToken;

const MANIFEST: &str = "
    name: watch
    version: 1.0.0
    description: d
    license: GPL-2.0-only
    programs: [{ name: watch, object: watch.o, function: watch, hooks: [xdp] }]
";

/// The object that says what an event is.
static OBJECT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    compile_text(
        r#"
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

struct event { __be16 port; __u16 unused; __u32 count; };
struct other { __u64 number; } other;

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
	__type(value, struct event);
} events SEC(".maps");

SEC("xdp")
int watch(struct xdp_md *ctx)
{
	struct event event = { .count = ctx->data };

	bpf_ringbuf_output(&events, &event, sizeof(event), 0);
	return XDP_PASS;
}
"#,
    )
    .unwrap()
});

/// A host whose chain on `eth0` has `a`, which has a ring buffer.
struct Host {
    kernel: Arc<FakeKernel>,
    engine: Arc<Engine<FakeKernel>>,
    shelf: Arc<Shelf>,
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let kernel = Arc::new(FakeKernel::default());
        kernel.add_interface(&"eth0".parse().unwrap());
        let shape = |kind| MapShape {
            kind,
            key_size: 0,
            value_size: 0,
            max_entries: 4096,
            flags: 0,
            frozen: false,
            values: 1,
        };
        kernel.shape_map("events", shape(MapKind::RINGBUF));
        kernel.shape_map("flows", shape(MapKind::HASH));
        let dir = tempfile::tempdir().unwrap();
        let shelf = Arc::<Shelf>::default();
        let host = "web1".parse().unwrap();
        let packages = Arc::clone(&shelf) as _;
        let engine = fake::engine(host, Arc::clone(&kernel), dir.path(), packages);
        let host = Self { kernel, engine: Arc::new(engine.unwrap()), shelf, dir };
        host.apply(0);
        host
    }

    /// A version of the package, which keeps nothing of the one before.
    fn apply(&self, version: u8) {
        self.apply_to("eth0", version);
    }

    fn apply_to(&self, interface: &str, version: u8) {
        let object = [OBJECT.as_slice(), &[version]].concat();
        let digest = Digest::of(&object);
        let package = Arc::new(Package {
            manifest: document::load::<Manifest>(MANIFEST, Format::Yaml).unwrap(),
            objects: [("watch.o".to_owned(), object)].into(),
            readme: None,
            license_text: None,
        });
        self.shelf.put(digest.clone(), Arc::clone(&package));
        let document: DesiredState = resolve::check(json!({ "chains": [
            { "interface": interface, "hook": "xdp", "programs": [{ "name": "a", "package": "watch" }] },
        ]}))
        .unwrap();
        let located =
            BTreeMap::from([("watch@*".to_owned(), Located { digest, package, signed_by: None })]);
        let asked = resolve::resolve(&document, &located, &BTreeMap::new()).unwrap();
        self.engine.apply(asked, &options()).unwrap();
    }

    /// The program says something.
    fn say(&self, count: u32) {
        self.say_on(&key(), count);
    }

    fn say_on(&self, key: &ChainKey, count: u32) {
        let record = [80_u16.to_be_bytes().to_vec(), vec![0; 2], count.to_ne_bytes().to_vec()];
        assert!(self.kernel.put_record(key, &member(), "events", &record.concat()));
    }

    /// What nobody took.
    fn waiting(&self) -> usize {
        self.kernel.waiting_records(&key(), &member(), "events")
    }
}

fn options() -> Options {
    let by = "u-test".parse().unwrap();
    Options { expected_generation: None, dry_run: false, atomic: false, by, until: None }
}

fn key() -> ChainKey {
    ChainKey { netns: None, interface: "eth0".parse().unwrap(), hook: Hook::Xdp }
}

fn member() -> ProgramName {
    "a".parse().unwrap()
}

fn request(map: &str, ty: Option<&str>) -> MapFollowRequest {
    let (interface, hook) = (key().interface, Hook::Xdp);
    let map = MapName { netns: None, interface, hook, program: member(), map: map.to_owned() };
    MapFollowRequest { map, record_type: ty.map(str::to_owned) }
}

fn event(count: u32) -> Value {
    json!({ "port": 80, "unused": 0, "count": count })
}

/// A sink that keeps what it gets, unless it is closed.
#[derive(Default)]
struct Kept {
    events: Mutex<Vec<MapRecords>>,
    closed: AtomicBool,
}

impl Kept {
    fn followers(self: &Arc<Self>, host: &Host, lease: Duration) -> Arc<Followers<FakeKernel>> {
        let kept = Arc::clone(self);
        let sink = move |event| {
            if kept.closed.load(Ordering::SeqCst) {
                return false;
            }
            kept.events.lock().unwrap().push(event);
            true
        };
        Followers::new(Arc::clone(&host.engine), Arc::new(sink), lease)
    }

    /// Number and record of each, once there are so many.
    fn records(&self, count: usize) -> Vec<(u64, Value)> {
        wait_for(Duration::from_secs(10), "every record told", || {
            let events = self.events.lock().unwrap();
            let all: Vec<_> = events
                .iter()
                .flat_map(|event| (event.first..).zip(event.records.iter().cloned()))
                .collect();
            if all.len() >= count { Ok(all) } else { Err(format!("{} of {count}", all.len())) }
        })
        .unwrap()
    }
}

const LONG: Duration = Duration::from_mins(10);

#[test]
fn records_are_told_by_the_type_that_was_named_or_the_map_declares() {
    let host = Host::new();
    let kept = Arc::<Kept>::default();
    let followers = kept.followers(&host, LONG);
    let reply = followers.follow(&request("events", Some("struct event"))).unwrap();
    assert_eq!(
        reply.record_type.unwrap(),
        "struct event { __be16 port; __u16 unused; __u32 count; }"
    );
    assert_eq!(reply.subject, "canopy.v1.event.loader.map.records.web1");
    host.say(7);
    host.kernel.put_record(&key(), &member(), "events", &[1, 2]);
    // What is not as long as the type says is told as bytes.
    assert_eq!(kept.records(2), [(0, event(7)), (1, json!("0102"))]);

    let other = followers.follow(&request("events", Some("struct other"))).unwrap_err();
    assert_eq!(other.code, Code::Conflict);
    followers.follow(&request("events", None)).unwrap();

    // Without a name it is the type that the map declares.
    for (ty, told) in
        [(None, event(9)), (Some("other"), json!({ "number": (9_u64 << 32) | 0x5000 }))]
    {
        let (host, kept) = (Host::new(), Arc::<Kept>::default());
        let followers = kept.followers(&host, LONG);
        followers.follow(&request("events", ty)).unwrap();
        host.say(9);
        assert_eq!(kept.records(1), [(0, told)]);
    }
    let host = Host::new();
    let followers = kept.followers(&host, LONG);
    let error = followers.follow(&request("events", Some("struct evnt"))).unwrap_err();
    assert_eq!(error.code, Code::NotFound);
    assert!(error.remedy.unwrap().starts_with("it has event, other, xdp_md"));
    let error = followers.follow(&request("flows", None)).unwrap_err();
    assert_eq!(error.message, "\"flows\" is of type hash");
    assert_eq!(followers.followed(), 0);
}

#[test]
fn a_change_of_the_chain_loses_no_record() {
    let host = Host::new();
    let kept = Arc::<Kept>::default();
    let followers = kept.followers(&host, LONG);
    followers.follow(&request("events", Some("event"))).unwrap();
    for round in 0..4_u8 {
        for i in 0..100 {
            host.say(u32::from(round) * 100 + i);
        }
        host.apply(round + 1);
    }
    host.say(400);
    let want: Vec<_> = (0..=400).map(|i| (u64::from(i), event(i))).collect();
    assert_eq!(kept.records(401), want);
    let generations: BTreeSet<u64> =
        kept.events.lock().unwrap().iter().map(|event| event.generation).collect();
    assert!(generations.len() > 1, "{generations:?}");
}

#[test]
fn a_renamed_interface_takes_its_followers_along() {
    let host = Host::new();
    // A chain that follows names, in the place of the one that has one.
    host.apply_to("eth*", 0);
    let document = json!({ "chains": [{ "interface": "eth0", "hook": "xdp", "programs": [] }] });
    let nothing = resolve::check(document).unwrap();
    let nothing = resolve::resolve(&nothing, &BTreeMap::new(), &BTreeMap::new()).unwrap();
    host.engine.apply(nothing, &options()).unwrap();
    let kept = Arc::<Kept>::default();
    let followers = kept.followers(&host, LONG);
    let old = request("events", Some("event"));
    followers.follow(&old).unwrap();
    host.say(0);
    assert_eq!(kept.records(1), [(0, event(0))]);

    let wan: InterfaceName = "eth7".parse().unwrap();
    host.kernel.rename_interface(&key().interface, &wan);
    host.engine.tick();
    let renamed = ChainKey { netns: None, interface: wan.clone(), hook: Hook::Xdp };
    let say = |count| host.say_on(&renamed, count);
    say(1);
    assert_eq!(kept.records(2).len(), 2);
    // It goes on from generation to generation, under the new name.
    host.apply_to("eth*", 1);
    say(2);
    assert_eq!(kept.records(3)[2], (2, event(2)));
    let last = kept.events.lock().unwrap().last().unwrap().clone();
    assert_eq!(last.map, MapName { interface: wan.clone(), ..old.map.clone() });
    assert_eq!(last.formerly.as_ref(), Some(&old.map));

    // Whoever asks again, under either name, gets the reader that is there.
    let mut new = old.clone();
    new.map.interface = wan;
    for asked in [&old, &new] {
        assert_eq!(followers.follow(asked).unwrap().map, new.map);
    }
    assert_eq!(followers.followed(), 1);

    // Until another interface has the old name, and a buffer of its own.
    host.kernel.add_interface(&key().interface);
    host.engine.tick();
    assert_eq!(followers.follow(&old).unwrap().map, old.map);
    assert_eq!(followers.followed(), 2);
    host.say(9);
    say(3);
    let told = kept.records(5);
    assert!(told.contains(&(3, event(3))) && told.contains(&(0, event(9))), "{told:?}");
}

#[test]
fn a_follow_ends_by_itself_and_leaves_the_buffer_alone() {
    let host = Host::new();
    let kept = Arc::<Kept>::default();
    let followers = kept.followers(&host, Duration::from_millis(300));
    followers.follow(&request("events", None)).unwrap();
    host.say(1);
    kept.records(1);
    wait_for(Duration::from_secs(10), "the end of the lease", || match followers.followed() {
        0 => Ok(()),
        n => Err(format!("{n} followed")),
    })
    .unwrap();
    // The last thing a reader does is to look whether it is wanted: nothing is taken afterwards.
    for i in 2..5 {
        host.say(i);
    }
    assert_eq!(host.waiting(), 3);
    followers.follow(&request("events", None)).unwrap();
    assert_eq!(kept.records(4).len(), 4);
    assert_eq!(host.waiting(), 0);
}

#[test]
fn what_finds_no_room_is_dropped_counted_and_said() {
    let host = Host::new();
    let kept = Arc::<Kept>::default();
    let followers = kept.followers(&host, LONG);
    followers.follow(&request("events", Some("event"))).unwrap();
    host.say(0);
    kept.records(1);
    kept.closed.store(true, Ordering::SeqCst);
    for i in 1..=5 {
        host.say(i);
    }
    wait_for(Duration::from_secs(10), "an empty buffer", || match host.waiting() {
        0 => Ok(()),
        n => Err(format!("{n} records wait: the programs would too")),
    })
    .unwrap();
    // The batch that was taken last may be on its way to the sink: said only when it is refused.
    wait_for(Duration::from_secs(10), "the next record told with what was dropped", || {
        kept.closed.store(false, Ordering::SeqCst);
        host.say(6);
        let events = kept.events.lock().unwrap();
        let last = events.last().unwrap();
        if last.first > 0 { Ok(()) } else { Err(format!("{last:?}")) }
    })
    .unwrap();
    let events = kept.events.lock().unwrap();
    let missing = events[1].first - 1;
    assert!(missing > 0 && missing <= 5, "{events:?}");
    assert_eq!(events[1].dropped, missing, "{events:?}");
}

async fn connect(nats: &NatsServer, principal: &str) -> Bus {
    let files = nats.client(principal);
    let config = BusConfig::new(files.url, files.ca, files.cert, files.key);
    let bus = Bus::connect(&config, principal.parse().unwrap()).await.unwrap();
    bus.wait_ready(Duration::from_secs(10)).await.unwrap();
    bus
}

/// The records of so many events of this connection.
async fn next(events: &mut Events, count: usize) -> Vec<(u64, Value)> {
    let mut all = Vec::new();
    while all.len() < count {
        let event = tokio::time::timeout(Duration::from_secs(10), events.next()).await;
        let event = event.unwrap_or_else(|_| panic!("only {} of {count}", all.len()));
        let event: MapRecords = event.unwrap().decode().unwrap();
        assert_eq!(event.dropped, 0);
        all.extend((event.first..).zip(event.records));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_follows_and_everybody_who_reads_may_listen() {
    let host = Host::new();
    let nats = NatsServer::start(&["web1"]).unwrap();
    let bus = connect(&nats, "h-web1-loader").await;
    let cache = Arc::new(Cache::new(&host.dir.path().join("cache"), Limits::default()).unwrap());
    let memory = Arc::clone(&host.engine) as _;
    let release = "6.18".to_owned();
    let fetcher = Fetcher::new(bus.clone(), cache, Vec::new(), Limits::default(), memory, release);
    let admission = Admission::new(AdmissionMode::Off, bus.clone());
    let server = Server::new(bus, Service::Loader, Some("web1".parse().unwrap()));
    let stop = CancellationToken::new();
    let handlers = Handlers::new(Arc::clone(&host.engine), fetcher, admission);
    tokio::spawn(handlers.register(server).serve(stop.clone()));
    let target = Target::Host("web1".parse().unwrap());
    let (viewer, operator, admin) = (
        connect(&nats, "u-viewer").await,
        connect(&nats, "u-operator").await,
        connect(&nats, "u-admin").await,
    );
    for _ in 0..400 {
        if viewer.call::<loader::Get>(&target, &GetRequest::default()).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }

    let subject = subject::event(Service::Loader, "map", "records", Some(&"web1".parse().unwrap()));
    let (mut seen, mut also) = (
        viewer.subscribe_events(&subject).await.unwrap(),
        admin.subscribe_events(&subject).await.unwrap(),
    );
    // What a viewer asks for takes nothing from the buffer.
    for i in 0..3 {
        host.say(i);
    }
    let ask = request("events", Some("event"));
    match viewer.call::<loader::MapFollow>(&target, &ask).await {
        Err(CallError::NotPermitted { .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(host.waiting(), 3);

    // Two who follow share one reader: each sees everything once.
    operator.call::<loader::MapFollow>(&target, &ask).await.unwrap();
    admin.call::<loader::MapFollow>(&target, &ask).await.unwrap();
    for i in 3..300 {
        host.say(i);
    }
    let want: Vec<_> = (0..300).map(|i| (u64::from(i), event(i))).collect();
    assert_eq!(next(&mut seen, 300).await, want);
    assert_eq!(next(&mut also, 300).await, want);
    stop.cancel();
}
