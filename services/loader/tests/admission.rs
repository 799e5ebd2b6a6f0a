//! What policy is asked about over a real bus, and what is done while the host changes under it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

use canopy_admission::{Labels, RuleSet, Subject};
use canopy_api::{
    ApiError, ChainKey, Code, DesiredState, Digest, Hook,
    document::{self, Format},
    endpoint::{Class, Endpoint, Service, Status, loader, policy},
    permission::Role,
    subject::Target,
    wire::{
        AdmissionBasis, AdmitReply, ApplyRequest, DeleteRequest, DrainRequest, GetRequest,
        MapDeleteRequest, MapFollowRequest, MapSetRequest, ProfileRequest,
    },
};
use canopy_bus::{Bus, BusConfig, CallError, Server};
use canopy_kernel::{MapKind, MapShape, fake::FakeKernel};
use canopy_loader::{
    admission::{Admission, AdmissionMode},
    cache::Cache,
    core::{
        resolve::{self, Located},
        trust::{SignatureCheck, Trust},
    },
    engine::{Engine, Options},
    fake::{self, Shelf},
    fetch::Fetcher,
    handlers::Handlers,
};
use canopy_package::{Limits, Manifest, Package};
use canopy_test_support::nats::NatsServer;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio_util::sync::CancellationToken;

const MANIFEST: &str = "\
name: wall
version: 1.0.0
description: A wall
license: GPL-2.0-only
programs: [{ name: main, object: main.o, function: main, hooks: [xdp] }]
";

/// What happens to the host while policy is asked.
type Meanwhile = Box<dyn Fn(usize, &FakeKernel) + Send + Sync>;

struct World {
    kernel: Arc<FakeKernel>,
    engine: Arc<Engine<FakeKernel>>,
    admin: Bus,
    asked: Arc<Mutex<Vec<Vec<String>>>>,
    stop: CancellationToken,
    located: BTreeMap<String, Located>,
    _dir: tempfile::TempDir,
    _nats: NatsServer,
}

async fn connect(nats: &NatsServer, principal: &str) -> Bus {
    let files = nats.client(principal);
    let config = BusConfig::new(files.url, files.ca, files.cert, files.key);
    let bus = Bus::connect(&config, principal.parse().unwrap()).await.unwrap();
    bus.wait_ready(Duration::from_secs(10)).await.unwrap();
    bus
}

/// A policy that decides by rules, and notes what it is asked.
fn policy(
    bus: Bus,
    rules: &str,
    kernel: Arc<FakeKernel>,
    asked: Arc<Mutex<Vec<Vec<String>>>>,
    meanwhile: Meanwhile,
) -> Server {
    let rules: Arc<RuleSet> = Arc::new(canopy_admission::load(rules, Format::Yaml).unwrap());
    let (meanwhile, count) = (Arc::new(meanwhile), Arc::new(AtomicUsize::new(0)));
    Server::new(bus, Service::Policy, None).handle::<policy::Admit, _, _>(move |_, request| {
        let (rules, kernel, asked) = (Arc::clone(&rules), Arc::clone(&kernel), Arc::clone(&asked));
        let (meanwhile, count) = (Arc::clone(&meanwhile), Arc::clone(&count));
        async move {
            asked.lock().unwrap().push(request.items.iter().map(ToString::to_string).collect());
            let (host, labels) = ("web1".parse().unwrap(), Labels::new());
            let (principal, role) = (&request.principal, Some(Role::Admin));
            let subject = Subject { principal, role, host: &host, labels: &labels };
            let decisions = request.items.iter().map(|item| rules.decide(subject, item)).collect();
            meanwhile(count.fetch_add(1, Ordering::SeqCst), &kernel);
            Ok(AdmitReply { basis: AdmissionBasis::Rules, decisions })
        }
    })
}

impl World {
    /// A host with a chain `a` on `eth0`.
    async fn new(rules: &str, meanwhile: Meanwhile) -> Self {
        let nats = NatsServer::start(&["web1"]).unwrap();
        let kernel = Arc::new(FakeKernel::default());
        kernel.add_interface(&"eth0".parse().unwrap());
        let shape = |kind| MapShape {
            kind,
            key_size: 4,
            value_size: 4,
            max_entries: 8,
            flags: 0,
            frozen: false,
            values: 1,
        };
        kernel.shape_map("flows", shape(MapKind::HASH));
        kernel.shape_map("events", shape(MapKind::RINGBUF));
        let (asked, stop) = (Arc::default(), CancellationToken::new());
        let server = policy(
            connect(&nats, "s-policy").await,
            rules,
            Arc::clone(&kernel),
            Arc::clone(&asked),
            meanwhile,
        );
        tokio::spawn(server.serve(stop.clone()));

        let dir = tempfile::tempdir().unwrap();
        let shelf = Arc::<Shelf>::default();
        let object = b"an object".to_vec();
        let digest = Digest::of(&object);
        let package = Arc::new(Package {
            manifest: document::load::<Manifest>(MANIFEST, Format::Yaml).unwrap(),
            objects: [("main.o".to_owned(), object)].into(),
            readme: None,
            license_text: None,
        });
        shelf.put(digest.clone(), Arc::clone(&package));
        let located =
            BTreeMap::from([("wall@*".to_owned(), Located { digest, package, signed_by: None })]);
        let engine =
            fake::engine("web1".parse().unwrap(), Arc::clone(&kernel), dir.path(), shelf as _);
        let engine = Arc::new(engine.unwrap());
        let bus = connect(&nats, "h-web1-loader").await;
        let cache = Arc::new(Cache::new(&dir.path().join("cache"), Limits::default()).unwrap());
        let trust = vec![Trust {
            packages: vec!["*".to_owned()],
            keys: Vec::new(),
            index_keys: Vec::new(),
            revoked: Vec::new(),
            signatures: SignatureCheck::SkipForDevelopment,
        }];
        let memory = Arc::clone(&engine) as _;
        let fetcher =
            Fetcher::new(bus.clone(), cache, trust, Limits::default(), memory, "6.18".to_owned());
        let admission = Admission::new(AdmissionMode::Required, bus.clone());
        let server = Server::new(bus, Service::Loader, Some("web1".parse().unwrap()));
        let handlers = Handlers::new(Arc::clone(&engine), fetcher, admission);
        tokio::spawn(handlers.register(server).serve(stop.clone()));

        let admin = connect(&nats, "u-admin").await;
        let world = Self { kernel, engine, admin, asked, stop, located, _dir: dir, _nats: nats };
        world.put(&chain("eth0", "a"));
        let get = GetRequest::default();
        for _ in 0..400 {
            if world.call::<loader::Get>(&get).await.is_ok() {
                return world;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("the loader does not answer");
    }

    /// Puts chains there, and asks nobody.
    fn put(&self, document: &Value) {
        let document: DesiredState = resolve::check(document.clone()).unwrap();
        let wishes = resolve::resolve(&document, &self.located, &BTreeMap::new()).unwrap();
        let options = Options {
            expected_generation: None,
            dry_run: false,
            atomic: false,
            by: "u-test".parse().unwrap(),
            until: None,
        };
        self.engine.apply(wishes, &options).unwrap();
    }

    async fn call<E: Endpoint>(&self, request: &E::Request) -> Result<E::Reply, ApiError> {
        let host = Target::Host("web1".parse().unwrap());
        match self.admin.call::<E>(&host, request).await {
            Ok(reply) => Ok(reply),
            Err(CallError::Api(error)) => Err(error),
            Err(other) => panic!("{other}"),
        }
    }

    async fn apply(&self, document: &Value) -> Result<(), ApiError> {
        self.call::<loader::Apply>(&apply(document)).await.map(drop)
    }

    fn questions(&self) -> Vec<Vec<String>> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    /// The names of the programs on `eth0`.
    fn programs(&self) -> Vec<String> {
        let told = self.engine.get(&GetRequest::default()).unwrap();
        let on = |chain: &&canopy_api::wire::ChainStatus| chain.interface.as_str() == "eth0";
        let chain = told.chains.iter().find(on);
        chain.into_iter().flat_map(|chain| &chain.programs).map(|p| p.name.to_string()).collect()
    }

    fn running(&self) -> Option<u64> {
        self.kernel.running(&key())
    }
}

fn key() -> ChainKey {
    ChainKey { netns: None, interface: "eth0".parse().unwrap(), hook: Hook::Xdp }
}

fn chain(interface: &str, program: &str) -> Value {
    json!({ "chains": [{ "interface": interface, "hook": "xdp",
        "programs": [{ "name": program, "package": "wall" }] }] })
}

fn apply(document: &Value) -> ApplyRequest {
    serde_json::from_value(json!({ "document": document })).unwrap()
}

fn request<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

const ALL: &str = "rules: [{ name: all, effect: allow }]";
const STAYS: &str = "\
rules:
  - { name: all, effect: allow }
  - { name: stays, effect: deny, reason: it stays, when: { verbs: [delete] } }
";

#[tokio::test(flavor = "multi_thread")]
async fn an_interface_that_comes_back_meanwhile_keeps_its_chain() {
    let back: Meanwhile = Box::new(|_, kernel| {
        kernel.add_interface(&"eth0".parse().unwrap());
    });
    let world = World::new(STAYS, back).await;
    for _ in 0..30 {
        world.kernel.remove_interface(&"eth0".parse().unwrap());
        let error = world.apply(&chain("eth0", "c")).await.unwrap_err();
        assert_eq!(error.code, Code::Denied, "{error:?}");
        assert!(error.message.contains("delete wall 1.0.0 on eth0/xdp"), "{error:?}");
    }
    world.engine.tick();
    assert_eq!(world.programs(), ["a"]);
    assert!(world.running().is_some());
    world.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_is_not_so_any_more_is_made_and_asked_about_again() {
    let back: Meanwhile = Box::new(|count, kernel| {
        if count == 0 {
            kernel.add_interface(&"eth0".parse().unwrap());
        }
    });
    let world = World::new(ALL, back).await;
    world.kernel.remove_interface(&"eth0".parse().unwrap());
    world.apply(&chain("eth0", "c")).await.unwrap();
    let question = ["apply wall 1.0.0 on eth0/xdp", "delete wall 1.0.0 on eth0/xdp"];
    assert_eq!(world.questions(), [question, question]);
    assert_eq!(world.programs(), ["c"]);
    world.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_never_rests_is_left_alone_after_a_few_plans() {
    let restless: Meanwhile = Box::new(|count, kernel| {
        let name = "eth0".parse().unwrap();
        if count % 2 == 0 {
            kernel.remove_interface(&name);
        } else {
            kernel.add_interface(&name);
        }
    });
    let world = World::new(ALL, restless).await;
    let error = world.apply(&chain("eth0", "c")).await.unwrap_err();
    assert_eq!((error.code, error.retryable), (Code::Conflict, true), "{error:?}");
    assert_eq!(world.questions().len(), 5);
    assert_eq!(world.programs(), ["a"]);
    // What has nothing to do with the request is in nobody's way.
    world.apply(&chain("wan*", "c")).await.unwrap();
    assert_eq!(world.questions().len(), 1);
    world.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_write_of_the_loader_is_asked_about() {
    let rules = "rules: [{ name: none, effect: deny, reason: nobody may }]";
    let world = World::new(rules, Box::new(|_, _| {})).await;
    let map = |map: &str| json!({ "interface": "eth0", "hook": "xdp", "program": "a", "map": map });
    let (flows, events) = (map("flows"), map("events"));
    let before = world.running();
    let writes = loader::ALL
        .iter()
        .filter(|spec| spec.class == Class::Write && spec.status == Status::Works);
    for spec in writes {
        let error = match spec.verb {
            "apply" => world.apply(&chain("eth0", "c")).await.unwrap_err(),
            "delete" => {
                let delete =
                    request::<DeleteRequest>(json!({ "interface": "eth0", "hook": "xdp" }));
                world.call::<loader::Delete>(&delete).await.unwrap_err()
            }
            "drain" => {
                let drain = DrainRequest::default();
                world.call::<loader::Drain>(&drain).await.unwrap_err()
            }
            "profile" => {
                let profile = ProfileRequest { seconds: 5 };
                world.call::<loader::Profile>(&profile).await.unwrap_err()
            }
            "map-set" => {
                let entries = json!([{ "key": "0x01000000", "value": "0x01000000" }]);
                let set = request::<MapSetRequest>(json!({ "map": flows, "entries": entries }));
                world.call::<loader::MapSet>(&set).await.unwrap_err()
            }
            "map-delete" => {
                let keys = json!(["0x01000000"]);
                let delete = request::<MapDeleteRequest>(json!({ "map": flows, "keys": keys }));
                world.call::<loader::MapDelete>(&delete).await.unwrap_err()
            }
            "map-follow" => {
                let follow = request::<MapFollowRequest>(json!({ "map": events }));
                world.call::<loader::MapFollow>(&follow).await.unwrap_err()
            }
            other => panic!("nobody is asked about {other}"),
        };
        assert_eq!(error.code, Code::Denied, "{}: {error:?}", spec.verb);
        let asked = world.questions();
        assert_eq!(asked.len(), 1, "{}: {asked:?}", spec.verb);
        assert!(asked[0][0].starts_with(spec.verb), "{}: {asked:?}", spec.verb);
    }
    assert_eq!(world.running(), before);
    assert_eq!(world.kernel.takes_times(), 0);
    world.stop.cancel();
}
