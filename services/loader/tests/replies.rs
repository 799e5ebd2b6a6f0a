//! Every reply of the loader fits into a message of the bus, whatever the state is: a real bus, and the
//! project's own firewall at the maximum of its settings on several interfaces.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

use canopy_api::{
    ApiError, ChainKey, Code, DesiredState, Digest, Hook,
    document::{self, Format},
    endpoint::{Service, loader},
    subject::Target,
    wire::{
        Action, ApplyReply, DrainRequest, GetReply, GetRequest, MORE_MAPS, MapListReply,
        MapListRequest, Omitted, Paged, json_length,
    },
};
use canopy_bus::{Bus, BusConfig, CallError, CallOptions, Encoding, Server};
use canopy_kernel::fake::FakeKernel;
use canopy_loader::{
    admission::{Admission, AdmissionMode},
    cache::Cache,
    core::resolve::{self, Located},
    engine::{Engine, Options},
    fake::{self, Shelf},
    fetch::Fetcher,
    handlers::Handlers,
};
use canopy_package::{Limits, Manifest, Package};
use canopy_test_support::nats::NatsServer;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// The shipped firewall; its lists take 4,096 prefixes each.
const FIREWALL: &str = include_str!("../../../ebpf/packages/firewall/package.yaml");
const PREFIXES: usize = 4_096;
/// What the bus carries in one message, here and by default.
const PAYLOAD: usize = 1 << 20;

struct Host {
    kernel: Arc<FakeKernel>,
    engine: Arc<Engine<FakeKernel>>,
    admin: Bus,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
    _nats: NatsServer,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn connect(nats: &NatsServer, principal: &str) -> Bus {
    let files = nats.client(principal);
    let config = BusConfig::new(files.url, files.ca, files.cert, files.key);
    let bus = Bus::connect(&config, principal.parse().unwrap()).await.unwrap();
    bus.wait_ready(Duration::from_secs(10)).await.unwrap();
    bus
}

fn web1() -> Target {
    Target::Host("web1".parse().unwrap())
}

fn key(interface: &str) -> ChainKey {
    ChainKey::new(interface.parse().unwrap(), Hook::Xdp)
}

fn prefixes(first: usize, number: usize) -> Vec<String> {
    let prefix = |n: usize| format!("2001:db8:{first:x}:{n:x}:8000:1234:5678:0/112");
    (0..number).map(prefix).collect()
}

impl Host {
    async fn start() -> Self {
        Self::with(PREFIXES).await
    }

    /// With so many prefixes in each list.
    async fn with(number: usize) -> Self {
        let nats = NatsServer::start(&["web1"]).unwrap();
        let kernel = Arc::new(FakeKernel::default());
        let dir = tempfile::tempdir().unwrap();
        let shelf = Arc::<Shelf>::default();
        let manifest = document::load::<Manifest>(FIREWALL, Format::Yaml).unwrap();
        let object = b"firewall".to_vec();
        let digest = Digest::of(&object);
        let package = Arc::new(Package {
            manifest,
            objects: [("firewall.bpf.o".to_owned(), object)].into(),
            readme: None,
            license_text: None,
        });
        shelf.put(digest.clone(), Arc::clone(&package));
        let host = "web1".parse().unwrap();
        let packages = Arc::clone(&shelf) as _;
        let engine = fake::engine(host, Arc::clone(&kernel), dir.path(), packages).unwrap();
        let engine = Arc::new(engine);
        let located = Located { digest, package, signed_by: None };
        let located = BTreeMap::from([("firewall@*".to_owned(), located)]);
        for (n, interface) in ["eth0", "eth1", "eth2"].into_iter().enumerate() {
            kernel.add_interface(&interface.parse().unwrap());
            let document: DesiredState = resolve::check(json!({ "chains": [{
                "interface": interface, "hook": "xdp", "programs": [{
                    "name": "fw", "package": "firewall",
                    "config": { "blocked": prefixes(n, number), "allowed": prefixes(n + 16, number) },
                }],
            }]}))
            .unwrap();
            let wishes = resolve::resolve(&document, &located, &BTreeMap::new()).unwrap();
            let by = "u-test".parse().unwrap();
            let options = Options {
                expected_generation: None,
                dry_run: false,
                atomic: false,
                by,
                until: None,
            };
            engine.apply(wishes, &options).unwrap();
            for map in ["fw_blocked_hits", "fw_allowed_hits"] {
                for slot in 0..u32::try_from(number).unwrap() {
                    let program = "fw".parse().unwrap();
                    let value = u64::from(slot).to_ne_bytes();
                    kernel.write_map(&key(interface), &program, map, &slot.to_ne_bytes(), &value);
                }
            }
        }
        let bus = connect(&nats, "h-web1-loader").await;
        let cache = Arc::new(Cache::new(&dir.path().join("cache"), Limits::default()).unwrap());
        let memory = Arc::clone(&engine) as _;
        let release = "6.18".to_owned();
        let fetcher =
            Fetcher::new(bus.clone(), cache, Vec::new(), Limits::default(), memory, release);
        let admission = Admission::new(AdmissionMode::Off, bus.clone());
        let handlers = Handlers::new(Arc::clone(&engine), fetcher, admission);
        let server = Server::new(bus, Service::Loader, Some("web1".parse().unwrap()));
        let stop = CancellationToken::new();
        let (tell, mut ready) = tokio::sync::watch::channel(false);
        let server = handlers.register(server).on_ready(move |ok, _| {
            tell.send_replace(ok);
        });
        tokio::spawn(server.serve(stop.clone()));
        ready.wait_for(|ready| *ready).await.unwrap();
        let admin = connect(&nats, "u-admin").await;
        Self { kernel, engine, admin, stop, _dir: dir, _nats: nats }
    }

    /// Every page, with their number.
    async fn pages<E: Paged>(
        &self,
        mut request: E::Request,
        encoding: Encoding,
    ) -> Result<(E::Reply, usize), ApiError> {
        let mut all: Option<E::Reply> = None;
        let mut pages = 0;
        loop {
            let options = CallOptions { encoding, ..CallOptions::default() };
            let page = match self.admin.call_with::<E>(&web1(), &request, options).await {
                Ok(page) => page,
                Err(CallError::Api(error)) => return Err(error),
                Err(other) => panic!("{other}"),
            };
            assert!(json_length(&page) < PAYLOAD);
            pages += 1;
            match &mut all {
                Some(all) => E::append(all, page),
                None => all = Some(page),
            }
            let all = all.as_ref().unwrap();
            if !E::advance(&mut request, all) {
                break;
            }
        }
        Ok((all.unwrap(), pages))
    }
}

/// Without what differs from one reading to the next.
fn comparable(reply: &GetReply) -> Value {
    json!({ "host": reply.host, "chains": reply.chains, "selectors": reply.selectors })
}

#[tokio::test(flavor = "multi_thread")]
async fn chains_longer_than_a_message_are_read_in_pages() {
    let host = Host::start().await;
    let whole = host.engine.get(&GetRequest::default()).unwrap();
    let length = json_length(&whole);
    assert!(json_length(&whole.chains[0]) > PAYLOAD, "one chain is longer than a message");
    let all = GetRequest::default();
    let (state, pages) = host.pages::<loader::Get>(all, Encoding::MessagePack).await.unwrap();
    assert_eq!(comparable(&state), comparable(&whole));
    assert!((length / PAYLOAD..100).contains(&pages), "{pages} pages of {length} bytes");
    assert_eq!(state.next, None);
    let chain = &whole.chains[1];
    assert_eq!(chain.programs[0].config["blocked"].as_array().unwrap().len(), PREFIXES);
    assert_eq!(chain.programs[0].metrics.len(), 2 * PREFIXES);

    // One chain alone is longer than a message, too.
    let one = GetRequest { interface: Some("eth1".parse().unwrap()), ..GetRequest::default() };
    let (state, pages) = host.pages::<loader::Get>(one, Encoding::Json).await.unwrap();
    assert!(pages > 1);
    assert_eq!(json!(state.chains), json!([chain]));

    // A client that knows no pages has an answer that says that there is more.
    let first = host.admin.call::<loader::Get>(&web1(), &GetRequest::default()).await.unwrap();
    assert!(first.next.is_some() && first.chains.last().unwrap().continues);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_changes_between_two_pages_is_read_again() {
    let host = Host::start().await;
    let first = host.admin.call::<loader::Get>(&web1(), &GetRequest::default()).await.unwrap();
    assert!(first.chains.last().unwrap().continues);
    let next = GetRequest { cursor: first.next, ..GetRequest::default() };
    host.admin.call::<loader::Get>(&web1(), &next).await.unwrap();
    let delete = canopy_api::wire::DeleteRequest {
        netns: None,
        interface: "eth2".parse().unwrap(),
        hook: Hook::Xdp,
        program: None,
        expected_generation: None,
        dry_run: false,
    };
    host.admin.call::<loader::Delete>(&web1(), &delete).await.unwrap();
    let error = host.admin.call::<loader::Get>(&web1(), &next).await.unwrap_err().to_api_error();
    assert_eq!((error.code, error.path.as_str()), (Code::Conflict, "cursor"), "{error}");
    for cursor in ["x", "{}", "{\"generation\":1}"] {
        let request = GetRequest { cursor: Some(cursor.to_owned()), ..GetRequest::default() };
        let error = host.admin.call::<loader::Get>(&web1(), &request).await.unwrap_err();
        let error = error.to_api_error();
        assert_eq!((error.code, error.path.as_str()), (Code::Invalid, "cursor"), "{error}");
    }
}

/// What a change did is told, and what the bus does not carry of it is named.
#[tokio::test(flavor = "multi_thread")]
async fn the_reply_to_a_change_of_long_chains_is_shortened() {
    let host = Host::start().await;
    let drain = |undo| DrainRequest { undo, dry_run: false };
    host.admin.call::<loader::Drain>(&web1(), &drain(false)).await.unwrap();
    let back: ApplyReply = host.admin.call::<loader::Drain>(&web1(), &drain(true)).await.unwrap();
    let actions: Vec<_> = back.chains.iter().map(|chain| chain.action).collect();
    assert_eq!(actions, [Action::Created; 3]);
    assert_eq!(back.omitted, [Omitted::Settings]);
    assert!(back.chains.iter().all(|chain| chain.programs[0].config.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn maps_are_listed_in_pages() {
    let host = Host::with(1).await;
    for interface in ["eth0", "eth1", "eth2"] {
        for n in 0..300 {
            let (program, map) = ("fw".parse().unwrap(), format!("map_{n:04}"));
            host.kernel.write_map(&key(interface), &program, &map, &[0; 4], &[0; 8]);
        }
    }
    let request = MapListRequest::default();
    let whole = host.engine.map_list(&request, usize::MAX).unwrap();
    let (list, pages) = host.pages::<loader::MapList>(request, Encoding::Json).await.unwrap();
    let names = |list: &MapListReply| -> Vec<String> {
        list.maps.iter().map(|info| info.name.to_string()).collect()
    };
    assert_eq!(names(&list), names(&whole));
    let (length, notes) = (json_length(&whole), list.notes);
    assert!(length > PAYLOAD && pages > 1, "{pages} pages of {length} bytes");
    assert!(!notes.iter().any(|note| note == MORE_MAPS), "{notes:?}");
    let small = host.engine.map_list(&MapListRequest::default(), 500).unwrap();
    assert!(small.next.is_some() && small.notes.contains(&MORE_MAPS.to_owned()));
}
