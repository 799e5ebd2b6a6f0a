//! Every attack is refused with its own error, by the registry and by the loader, each without the
//! other's help; and both tell the bus.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a failure is a panic"
)]

use canopy_api::{
    ApiError, Blob,
    endpoint::{Service, loader, registry},
    subject::Target,
    wire::{
        ARTIFACT_CHUNK, ApplyRequest, ArtifactReply, ArtifactRequest, GetRequest, PackageRefused,
        ResolveReply, ResolveRequest, VersionRequest,
    },
};
use canopy_attacks::{Attack, GENUINE, Lie, NAMES, NOW, Outcome, read, root, unchecked};
use canopy_bus::{Bus, BusConfig, CallError, Server};
use canopy_kernel::fake::{Call, FakeKernel};
use canopy_loader::{
    admission::{Admission, AdmissionMode},
    cache::Cache,
    core::trust::{SignatureCheck, Trust},
    engine::{Engine, Parts},
    fetch::Fetcher,
    handlers::Handlers,
    metrics::PackageMetrics,
    store::Store,
};
use canopy_package::Limits;
use canopy_registry::{Registry, config::RepositoryConfig, metrics::Metrics};
use canopy_test_support::nats::NatsServer;
use serde_json::json;
use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

fn seconds() -> u64 {
    NOW
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

/// Every attack's name and description, and the repository that is none at the end.
fn all() -> impl Iterator<Item = (&'static str, Attack)> {
    NAMES.iter().chain([&GENUINE]).map(|name| (*name, read(name).unwrap()))
}

#[test]
fn every_directory_is_an_attack_that_is_tried() {
    let mut found: Vec<_> = fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("attack.json").is_file())
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    found.sort();
    let mut known: Vec<_> = NAMES.iter().chain([&GENUINE]).map(|name| (*name).to_owned()).collect();
    known.sort();
    assert_eq!(found, known);
    // Each has its own words: nobody has to guess which it was.
    let mut said: Vec<_> = all()
        .filter_map(|(name, attack)| match attack.loader {
            Outcome::Refused { message, .. } => Some((message, name)),
            Outcome::Given(_) => None,
        })
        .collect();
    said.sort();
    for pair in said.windows(2) {
        assert_ne!(pair[0].0, pair[1].0, "{} and {}", pair[0].1, pair[1].1);
    }
    assert_eq!(said.len(), NAMES.len(), "the loader refuses every attack");
}

/// What was expected and what came, in one form.
fn outcome(result: Result<String, ApiError>, reason: Option<String>) -> Outcome {
    match result {
        Ok(version) => Outcome::Given(version.parse().unwrap()),
        Err(error) => {
            assert!(error.remedy.is_some_and(|remedy| !remedy.is_empty()), "{}", error.message);
            Outcome::Refused {
                code: error.code,
                reason: reason.expect("the refusal is told"),
                message: error.message,
            }
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), &to).unwrap();
        }
    }
}

#[tokio::test]
async fn the_registry_refuses_every_attack_with_its_own_error() {
    for (name, attack) in all() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("repository");
        let config = |timeout: u64| -> RepositoryConfig {
            serde_json::from_value(json!({
                "name": "test",
                "url": format!("file://{}", place.display()),
                "packages": ["*"],
                "keys": attack.keys,
                "revoked": attack.revoked,
                "timeout_seconds": timeout,
            }))
            .unwrap()
        };
        let counted = prometheus::Registry::new();
        let metrics = Metrics::register(&counted).unwrap();
        let (tell, mut told) = mpsc::channel(8);
        let mut registry = Registry::new(&[config(4)], 1 << 24, metrics, seconds).telling(tell);
        let request = ResolveRequest {
            package: attack.asks.name.clone(),
            requirement: attack.asks.requirement.to_string(),
            arch: None,
            kernel: None,
        };
        if let Some(before) = &attack.before {
            copy(&root().join(name).join(before), &place);
            let before = ResolveRequest {
                package: attack.asked_before().name.clone(),
                requirement: attack.asked_before().requirement.to_string(),
                ..request.clone()
            };
            registry.resolve(&before).await.unwrap();
            // So that nothing but the index's version is left of what it knew.
            registry = registry.successor(&[config(5)], 1 << 24);
            fs::remove_dir_all(&place).unwrap();
        }
        copy(&root().join(name).join("repository"), &place);

        let result = registry.resolve(&request).await;
        let result = result.map(|reply| reply.version.version).map_err(ApiError::from);
        let refused = told.try_recv().ok();
        let reason = refused.as_ref().map(|refused| refused.reason.clone());
        assert_eq!(outcome(result, reason), attack.registry, "{name}");
        let Some(refused) = refused else { continue };
        assert_eq!(refused.repository.as_deref(), Some("test"), "{name}");
        let count = counted.gather().into_iter().find(|family| {
            family.name() == "canopy_registry_refused_total"
                && family.get_metric()[0].get_label()[0].value() == refused.reason
        });
        assert!(count.is_some(), "{name}: {} is not counted", refused.reason);
    }
}

/// What the registry that checks nothing answers.
type Answers = Arc<Mutex<(ResolveReply, Vec<u8>, bool)>>;

async fn connect(nats: &NatsServer, principal: &str) -> Bus {
    let files = nats.client(principal);
    let config = BusConfig::new(files.url, files.ca, files.cert, files.key);
    let bus = Bus::connect(&config, principal.parse().unwrap()).await.unwrap();
    bus.wait_ready(Duration::from_secs(10)).await.unwrap();
    bus
}

fn credulous(bus: Bus, answers: &Answers) -> Server {
    let (resolve, artifact) = (Arc::clone(answers), Arc::clone(answers));
    Server::new(bus, Service::Registry, None)
        .handle::<registry::Resolve, _, _>(move |_, _| {
            let reply = resolve.lock().unwrap().0.clone();
            async move { Ok(reply) }
        })
        .handle::<registry::Artifact, _, _>(move |_, request: ArtifactRequest| {
            let (reply, bytes, endless) = artifact.lock().unwrap().clone();
            async move {
                if endless {
                    let data = bytes.iter().copied().cycle().take(ARTIFACT_CHUNK).collect();
                    return Ok(ArtifactReply { total: reply.version.length, data: Blob(data) });
                }
                let from = usize::try_from(request.offset).unwrap().min(bytes.len());
                let to = (from + ARTIFACT_CHUNK).min(bytes.len());
                let data = Blob(bytes[from..to].to_vec());
                Ok(ArtifactReply { total: bytes.len() as u64, data })
            }
        })
}

/// A loader that remembers nothing, over a kernel that is none.
struct Loader {
    kernel: Arc<FakeKernel>,
    counted: prometheus::Registry,
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Loader {
    fn start(bus: &Bus, attack: &Attack) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kernel = Arc::new(FakeKernel::default());
        kernel.add_interface(&"eth0".parse().unwrap());
        let cache = Arc::new(Cache::new(&dir.path().join("cache"), Limits::default()).unwrap());
        let engine = Engine::start(Parts {
            host: "web1".parse().unwrap(),
            version: "0".to_owned(),
            kernel: Arc::clone(&kernel),
            store: Store::open(dir.path()).unwrap(),
            packages: Arc::clone(&cache) as _,
            now,
            on_stage: |_| {},
        });
        let engine = Arc::new(engine.unwrap());
        let rules = vec![Trust {
            packages: vec!["*".to_owned()],
            keys: attack.keys.clone(),
            index_keys: Vec::new(),
            revoked: attack.revoked.clone(),
            signatures: SignatureCheck::Required,
        }];
        let counted = prometheus::Registry::new();
        let (limits, release) = (Limits::default(), "6.18".to_owned());
        let memory = Arc::clone(&engine) as _;
        let fetcher = Fetcher::new(bus.clone(), cache, rules, limits, memory, release)
            .counted(PackageMetrics::register(&counted).unwrap());
        let admission = Admission::new(AdmissionMode::Off, bus.clone());
        let server = Server::new(bus.clone(), Service::Loader, Some("web1".parse().unwrap()));
        let stop = CancellationToken::new();
        let serving =
            Handlers::new(engine, fetcher, admission).register(server).serve(stop.clone());
        let ended = tokio::spawn(async move {
            serving.await.unwrap();
        });
        Self { kernel, counted, stop, ended, _dir: dir }
    }

    async fn end(self) {
        self.stop.cancel();
        self.ended.await.unwrap();
    }
}

/// Applies what is asked for to the one chain; the version that runs then.
async fn apply(admin: &Bus, asks: &str) -> Result<String, ApiError> {
    let host = Target::Host("web1".parse().unwrap());
    let program = json!({ "name": "a", "package": asks });
    let document = json!({ "chains": [
        { "interface": "eth0", "hook": "xdp", "programs": [program] }
    ]});
    let request = ApplyRequest {
        document,
        expected_generation: None,
        dry_run: false,
        allow_downgrade: Vec::new(),
        atomic: false,
    };
    match admin.call::<loader::Apply>(&host, &request).await {
        Ok(reply) => Ok(reply.chains[0].programs[0].version.clone()),
        Err(CallError::Api(error)) => Err(error),
        Err(other) => panic!("{other}"),
    }
}

/// Waits until registry and loader answer.
async fn until_served(admin: &Bus) {
    let host = Target::Host("web1".parse().unwrap());
    for _ in 0..400 {
        let loader = admin.call::<loader::Get>(&host, &GetRequest::default()).await;
        let registry =
            admin.call::<registry::Version>(&Target::Central, &VersionRequest::default()).await;
        if loader.is_ok() && registry.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("registry and loader do not answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loader_refuses_every_attack_with_its_own_error_and_the_chain_runs_on() {
    let nats = NatsServer::start(&["web1"]).unwrap();
    let admin = connect(&nats, "u-admin").await;
    let mut events =
        admin.subscribe_events("canopy.v1.event.loader.package.refused.>").await.unwrap();
    let honest = root().join(GENUINE);
    let asks = "wall@^1".parse().unwrap();
    let (reply, bytes) = unchecked(&honest, "repository", &asks, &Lie::default()).unwrap();
    let answers: Answers = Arc::new(Mutex::new((reply, bytes, false)));
    let stop = CancellationToken::new();
    let server = credulous(connect(&nats, "s-registry").await, &answers);
    let ended = tokio::spawn(server.serve(stop.clone()));

    let bus = connect(&nats, "h-web1-loader").await;
    for (name, attack) in all() {
        let dir = root().join(name);
        let loader = Loader::start(&bus, &attack);
        until_served(&admin).await;
        if let Some(before) = &attack.before {
            let asks = attack.asked_before();
            let (reply, bytes) = unchecked(&dir, before, asks, &Lie::default()).unwrap();
            *answers.lock().unwrap() = (reply, bytes, false);
            apply(&admin, &asks.to_string()).await.unwrap();
        }
        loader.kernel.take_log();
        let (reply, bytes) = unchecked(&dir, "repository", &attack.asks, &attack.lie).unwrap();
        *answers.lock().unwrap() = (reply, bytes, attack.lie.endless);

        let result = apply(&admin, &attack.asks.to_string()).await;
        let mut reason = None;
        if let Err(error) = &result {
            assert_eq!(error.path, "document.chains[0].programs[0].package", "{name}");
            let calls: Vec<_> =
                loader.kernel.take_log().into_iter().filter(|call| call.changes()).collect();
            assert_eq!(calls, [] as [Call; 0], "{name}");
            let told = tokio::time::timeout(Duration::from_secs(10), events.next()).await;
            let told = told.expect("the refusal is told").unwrap();
            let told: PackageRefused = told.decode().unwrap();
            assert_eq!(told.host, Some("web1".parse().unwrap()), "{name}");
            assert_eq!(told.package.as_ref(), Some(&attack.asks.name), "{name}");
            assert_eq!(told.message, error.message, "{name}");
            let family = loader.counted.gather().remove(0);
            let counted = &family.get_metric()[0];
            assert_eq!(counted.get_label()[0].value(), told.reason, "{name}");
            reason = Some(told.reason);
        }
        assert_eq!(outcome(result, reason), attack.loader, "{name}");
        loader.end().await;
    }
    stop.cancel();
    ended.await.unwrap().unwrap();
}
