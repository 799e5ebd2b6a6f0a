//! The loader believes no registry: over a real bus, a registry that lies in every way there is,
//! and a chain that runs on untouched.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::expect_used,
    clippy::float_cmp,
    reason = "test code: a failure is a panic"
)]

use canopy_api::{
    ApiError, Blob, ChainKey, Code, Digest, Hook, HostId, PackageName,
    endpoint::{Service, loader, registry},
    subject::Target,
    wire::{
        ARTIFACT_CHUNK, Action, ApplyReply, ApplyRequest, ArtifactReply, ChainChanged,
        DeleteRequest, DrainRequest, GetRequest, IndexAt, PackageDowngraded, ResetHostRequest,
        ResolveReply, VersionSummary,
    },
};
use canopy_bus::{Bus, BusConfig, CallError, CallOptions, Server, Spool};
use canopy_kernel::fake::{Call, FakeKernel};
use canopy_loader::{
    admission::{Admission, AdmissionMode},
    cache::Cache,
    core::{
        state::State,
        trust::{SignatureCheck, Trust},
    },
    engine::Engine,
    fake,
    fetch::{FetchError, Fetcher},
    handlers::Handlers,
    store::Store,
};
use canopy_package::{
    Index, IndexEntry, IndexSource, Limits, Package, RepositoryId, SecretKey, TrustedKey,
    manifest::{Manifest, ManifestProgram, Requires},
};
use canopy_test_support::nats::NatsServer;
use serde_json::{Value, json};
use std::{
    fs,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio_util::sync::CancellationToken;

/// What the registry answers; a test bends it.
#[derive(Clone)]
struct Answers {
    resolve: ResolveReply,
    artifact: Vec<u8>,
    /// Announced instead of the true length.
    total: Option<u64>,
    /// Bytes in a chunk, and how long each takes.
    chunk: usize,
    pause: Duration,
    /// The registry is of no use from this offset on.
    ends_at: Option<u64>,
    /// Offsets asked for.
    asked: Arc<Mutex<Vec<u64>>>,
    /// An index that does not stand in the answer, and how often it was fetched.
    long_index: Option<Vec<u8>>,
    indexes: Arc<Mutex<u32>>,
    /// What it says instead of which version is meant.
    refuses: Option<ApiError>,
}

struct World {
    kernel: Arc<FakeKernel>,
    answers: Arc<Mutex<Answers>>,
    admin: Bus,
    key: SecretKey,
    engine: Arc<Engine<FakeKernel>>,
    cache: Arc<Cache>,
    loader: Bus,
    stop: CancellationToken,
    registry: CancellationToken,
    dir: tempfile::TempDir,
    _nats: NatsServer,
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn package(version: &str, size: usize) -> Package {
    let program = ManifestProgram {
        name: "main".to_owned(),
        object: "main.o".to_owned(),
        variants: Vec::new(),
        function: "main".to_owned(),
        hooks: vec![Hook::Xdp],
        priority: 100,
        proceed_on: None,
        frags: false,
        tail_calls: None,
    };
    let manifest = Manifest {
        name: "wall".parse().unwrap(),
        version: version.parse().unwrap(),
        description: "A wall".to_owned(),
        license: "GPL-2.0-only".to_owned(),
        keywords: Vec::new(),
        authors: Vec::new(),
        requires: Requires::default(),
        programs: vec![program],
        config: Vec::new(),
        metrics: Vec::new(),
        maps: Vec::new(),
    };
    Package {
        manifest,
        objects: [("main.o".to_owned(), noise(size))].into(),
        readme: None,
        license_text: None,
    }
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

/// An honest answer for a version of `wall`, in an index of this version.
fn honest(key: &SecretKey, version: &str, index: u64, expires: u64) -> Answers {
    honest_of(key, version, 4000, index, expires)
}

fn honest_of(key: &SecretKey, version: &str, size: usize, index: u64, expires: u64) -> Answers {
    let bytes = package(version, size).build().unwrap();
    let name: PackageName = "wall".parse().unwrap();
    let semver: semver::Version = version.parse().unwrap();
    let entry = IndexEntry {
        name: name.clone(),
        version: semver.clone(),
        digest: Digest::of(&bytes),
        length: bytes.len() as u64,
        yanked: false,
    };
    let listing =
        Index { version: index, expires, packages: vec![entry.clone()], repository: None };
    let (listing, listing_signature) = listing.sign(key).unwrap();
    let summary = VersionSummary {
        version: version.to_owned(),
        digest: entry.digest,
        length: entry.length,
        yanked: false,
    };
    Answers {
        resolve: ResolveReply {
            package: name.clone(),
            repository: "main".to_owned(),
            version: summary,
            signature: Some(key.sign_package(&bytes, &name, &semver).unwrap()),
            index: Some(Blob(listing)),
            index_signature: Some(listing_signature),
            index_at: None,
        },
        artifact: bytes,
        total: None,
        chunk: ARTIFACT_CHUNK,
        pause: Duration::ZERO,
        ends_at: None,
        asked: Arc::default(),
        long_index: None,
        indexes: Arc::default(),
        refuses: None,
    }
}

/// The same, with an index too long for the answer.
fn long(mut answers: Answers) -> Answers {
    let index = answers.resolve.index.take().unwrap().0;
    answers.resolve.index_at =
        Some(IndexAt { digest: Digest::of(&index), length: index.len() as u64 });
    answers.long_index = Some(index);
    answers
}

async fn connect(nats: &NatsServer, principal: &str) -> Bus {
    let files = nats.client(principal);
    let config = BusConfig::new(files.url, files.ca, files.cert, files.key);
    let bus = Bus::connect(&config, principal.parse().unwrap()).await.unwrap();
    bus.wait_ready(Duration::from_secs(10)).await.unwrap();
    bus
}

/// A registry that answers as it is told.
fn registry(bus: Bus, answers: &Arc<Mutex<Answers>>) -> Server {
    let (resolve, artifact) = (Arc::clone(answers), Arc::clone(answers));
    Server::new(bus, Service::Registry, None)
        .handle::<registry::Resolve, _, _>(move |_, _| {
            let answers = resolve.lock().unwrap();
            let reply = answers.refuses.clone().map_or(Ok(answers.resolve.clone()), Err);
            async move { reply }
        })
        .handle::<registry::Artifact, _, _>(move |_, request| {
            let answers = artifact.lock().unwrap().clone();
            async move {
                let from = usize::try_from(request.offset).unwrap().min(answers.artifact.len());
                let to = (from + answers.chunk).min(answers.artifact.len());
                if let Some(index) = &answers.long_index
                    && answers
                        .resolve
                        .index_at
                        .as_ref()
                        .is_some_and(|at| at.digest == request.digest)
                {
                    *answers.indexes.lock().unwrap() += 1;
                    let data = Blob(index[usize::try_from(request.offset).unwrap()..].to_vec());
                    return Ok(ArtifactReply { total: index.len() as u64, data });
                }
                tokio::time::sleep(answers.pause).await;
                answers.asked.lock().unwrap().push(request.offset);
                if answers.ends_at.is_some_and(|end| request.offset >= end) {
                    return Err(ApiError::new(Code::Unavailable, "the store is away"));
                }
                let total = answers.total.unwrap_or(answers.artifact.len() as u64);
                Ok(ArtifactReply { total, data: Blob(answers.artifact[from..to].to_vec()) })
            }
        })
}

impl World {
    async fn new(signatures: SignatureCheck) -> Self {
        let nats = NatsServer::start(&["web1"]).unwrap();
        let key = SecretKey::generate().unwrap();
        let answers = Arc::new(Mutex::new(honest(&key, "1.0.0", 5, seconds() + 3600)));
        let stop = CancellationToken::new();
        let registry_stop = stop.child_token();
        let server = registry(connect(&nats, "s-registry").await, &answers);
        tokio::spawn(server.serve(registry_stop.clone()));

        let dir = tempfile::tempdir().unwrap();
        let kernel = Arc::new(FakeKernel::default());
        kernel.add_interface(&"eth0".parse().unwrap());
        let cache = Arc::new(Cache::new(&dir.path().join("cache"), Limits::default()).unwrap());
        let host = "web1".parse().unwrap();
        let packages = Arc::clone(&cache) as _;
        let engine = fake::engine(host, Arc::clone(&kernel), dir.path(), packages);
        let engine = Arc::new(engine.unwrap());
        let bus = connect(&nats, "h-web1-loader").await;
        let rules = vec![Trust {
            packages: vec!["w*".to_owned()],
            keys: vec![TrustedKey::from(key.public().unwrap())],
            index_keys: Vec::new(),
            revoked: Vec::new(),
            signatures,
        }];
        let memory = Arc::clone(&engine) as _;
        let release = "6.18".to_owned();
        let limits = Limits::default();
        let kept = Arc::clone(&cache);
        let fetcher = Fetcher::new(bus.clone(), kept, rules, limits, memory, release);
        let admission = Admission::new(AdmissionMode::Off, bus.clone());
        let writer = bus.principal().clone();
        let trail = dir.path().join("audit");
        let trail = Spool::new(trail, writer, 1 << 20, SystemTime::now(), |_, _| {});
        let server =
            Server::new(bus.clone(), Service::Loader, Some("web1".parse().unwrap())).audit(trail);
        let handlers = Handlers::new(Arc::clone(&engine), fetcher, admission);
        tokio::spawn(handlers.register(server).serve(stop.clone()));

        let admin = connect(&nats, "u-admin").await;
        let world = Self {
            kernel,
            answers,
            admin,
            key,
            engine,
            cache,
            loader: bus,
            stop,
            registry: registry_stop,
            dir,
            _nats: nats,
        };
        world.until_served().await;
        world
    }

    /// Waits until registry and loader answer.
    async fn until_served(&self) {
        for _ in 0..200 {
            let host = Target::Host("web1".parse().unwrap());
            let loader = self.admin.call::<loader::Get>(&host, &GetRequest::default()).await;
            let empty = canopy_api::wire::VersionRequest::default();
            let registry = self.admin.call::<registry::Version>(&Target::Central, &empty).await;
            if loader.is_ok() && registry.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("registry and loader do not answer");
    }

    async fn apply(&self, reference: &str) -> Result<ApplyReply, ApiError> {
        let program = json!({ "name": "a", "package": reference });
        self.apply_document(json!({ "chains": [
            { "interface": "eth0", "hook": "xdp", "programs": [program] }
        ]}))
        .await
    }

    async fn apply_document(&self, document: Value) -> Result<ApplyReply, ApiError> {
        self.apply_allowing(document, &[]).await
    }

    async fn apply_allowing(
        &self,
        document: Value,
        downgrades: &[&str],
    ) -> Result<ApplyReply, ApiError> {
        let request = ApplyRequest {
            document,
            expected_generation: None,
            dry_run: false,
            allow_downgrade: downgrades.iter().map(|name| name.parse().unwrap()).collect(),
            atomic: false,
        };
        let host = Target::Host("web1".parse().unwrap());
        match self.admin.call::<loader::Apply>(&host, &request).await {
            Ok(reply) => Ok(reply),
            Err(CallError::Api(error)) => Err(error),
            Err(other) => panic!("{other}"),
        }
    }

    /// What the audit trail says of requests that ended: who, what, and what came of it.
    fn audited(&self) -> Vec<(String, String, String, String)> {
        let mut files: Vec<_> = std::fs::read_dir(self.dir.path().join("audit"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        let text = |record: &Value, field: &str| record[field].as_str().unwrap_or("").to_owned();
        files
            .iter()
            .flat_map(|file| {
                let lines = std::fs::read_to_string(file).unwrap();
                lines
                    .lines()
                    .map(|line| serde_json::from_str::<Value>(line).unwrap())
                    .collect::<Vec<_>>()
            })
            .filter(|record| record["kind"] == "ended")
            .map(|record| {
                let by = text(&record, "principal");
                (by, text(&record, "verb"), text(&record, "decision"), text(&record, "reason"))
            })
            .collect()
    }

    fn answer(&self, answers: Answers) {
        *self.answers.lock().unwrap() = answers;
    }

    fn bend(&self, how: impl FnOnce(&mut Answers)) {
        how(&mut self.answers.lock().unwrap());
    }

    /// Whatever was tried, the chain is as it was.
    fn assert_untouched(&self, what: &str) {
        let calls: Vec<_> = self.kernel.take_log().into_iter().filter(|c| c.changes()).collect();
        assert_eq!(calls, [] as [Call; 0], "{what}");
        assert_eq!(self.kernel.running(&key()), Some(1), "{what}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn key() -> ChainKey {
    ChainKey { netns: None, interface: "eth0".parse().unwrap(), hook: Hook::Xdp }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_package_in_several_chunks_is_applied() {
    let world = World::new(SignatureCheck::Required).await;
    let large = honest_of(&world.key, "1.0.0", ARTIFACT_CHUNK + 100_000, 5, seconds() + 3600);
    assert!(large.artifact.len() > ARTIFACT_CHUNK);
    world.answer(large);
    let reply = world.apply("wall@^1").await.unwrap();
    assert_eq!(reply.chains[0].action, Action::Created);
    assert_eq!(reply.chains[0].programs[0].version, "1.0.0");
    // A second time it comes from the cache.
    world.bend(|answers| answers.artifact.clear());
    let reply = world.apply("wall@^1").await.unwrap();
    assert_eq!(reply.chains[0].action, Action::Unchanged);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_breaks_off_goes_on_where_it_stopped() {
    let world = World::new(SignatureCheck::Required).await;
    let mut large = honest_of(&world.key, "1.0.0", 400_000, 5, seconds() + 3600);
    large.chunk = 100_000;
    large.ends_at = Some(200_000);
    let asked = Arc::clone(&large.asked);
    let bytes = large.artifact.len() as u64;
    world.answer(large);
    let error = world.apply("wall@^1").await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable, "{error:?}");
    assert_eq!(std::mem::take(&mut *asked.lock().unwrap()), [0, 100_000, 200_000]);

    world.bend(|answers| answers.ends_at = None);
    world.apply("wall@^1").await.unwrap();
    let offsets = std::mem::take(&mut *asked.lock().unwrap());
    assert_eq!(offsets[0], 200_000, "what was there is not fetched again: {offsets:?}");
    assert_eq!(offsets.len() as u64, (bytes - 200_000).div_ceil(100_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_about_of_a_download_is_not_believed() {
    let world = World::new(SignatureCheck::Required).await;
    let large = honest_of(&world.key, "1.0.0", 200_000, 5, seconds() + 3600);
    let (asked, digest) = (Arc::clone(&large.asked), Digest::of(&large.artifact));
    world.answer(large);
    world.cache.add_part(&digest, &[0; 1000]).unwrap();
    world.apply("wall@^1").await.unwrap();
    assert_eq!(*asked.lock().unwrap(), [1000, 0], "and it is fetched from its beginning");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_too_long_for_an_answer_is_fetched_once_and_believed_no_more_than_another() {
    let world = World::new(SignatureCheck::Required).await;
    let answers = long(honest(&world.key, "1.0.0", 5, seconds() + 3600));
    let fetched = Arc::clone(&answers.indexes);
    world.answer(answers);
    world.apply("wall@^1").await.unwrap();
    world.apply("wall@^1").await.unwrap();
    assert_eq!(*fetched.lock().unwrap(), 1);
    world.kernel.take_log();

    let cases: [(&str, Lie); 4] = [
        ("answered sha256:", |a, _| a.long_index.as_mut().unwrap()[20] ^= 1),
        ("announced", |a, _| a.long_index.as_mut().unwrap().push(0)),
        ("larger than", |a, _| a.resolve.index_at.as_mut().unwrap().length = 1 << 40),
        ("older than version 5", |a, key| {
            *a = long(honest(key, "1.1.0", 4, seconds() + 3600));
        }),
    ];
    for (words, lie) in cases {
        let mut answers = long(honest(&world.key, "1.1.0", 6, seconds() + 3600));
        lie(&mut answers, &world.key);
        world.answer(answers);
        let error = world.apply("wall@^1").await.expect_err(words);
        assert!(error.message.contains(words), "{words}: {error:?}");
        world.assert_untouched(words);
    }
}

/// A way to bend honest answers, given the trusted key.
type Lie = fn(&mut Answers, &SecretKey);

/// What it is called, the code and words of the answer, the lie.
const LIES: &[(&str, Code, &str, Lie)] = &[
    ("unsigned package", Code::Denied, "not signed", |a, _| a.resolve.signature = None),
    ("unsigned index", Code::Denied, "not signed", |a, _| a.resolve.index_signature = None),
    ("no index", Code::Denied, "not signed", |a, _| a.resolve.index = None),
    ("another's key", Code::Denied, "not trusted", |a, _| {
        *a = honest(&SecretKey::generate().unwrap(), "1.1.0", 6, seconds() + 3600);
    }),
    ("another's package signature", Code::Denied, "not trusted", |a, _| {
        let other = honest(&SecretKey::generate().unwrap(), "1.1.0", 6, seconds() + 3600);
        a.resolve.signature = other.resolve.signature;
    }),
    ("signature of another version", Code::Denied, "is for", |a, key| {
        let (name, version) = ("wall".parse().unwrap(), "9.9.9".parse().unwrap());
        a.resolve.signature = Some(key.sign_package(&a.artifact, &name, &version).unwrap());
    }),
    ("truncated package", Code::Denied, "announced", |a, _| {
        let half = a.artifact.len() / 2;
        a.artifact.truncate(half);
    }),
    ("package that ends early", Code::Denied, "announced", |a, _| {
        a.total = Some(a.artifact.len() as u64);
        let most = a.artifact.len() - 1;
        a.artifact.truncate(most);
    }),
    ("longer package", Code::Denied, "announced", |a, _| a.artifact.push(0)),
    ("endless package", Code::Denied, "announced", |a, _| {
        a.total = Some(a.artifact.len() as u64);
        a.artifact.extend_from_within(..);
    }),
    ("one flipped bit", Code::Denied, "digest", |a, _| a.artifact[1000] ^= 1),
    ("index rolled back", Code::Denied, "older than", |a, key| {
        *a = honest(key, "1.1.0", 4, seconds() + 3600);
    }),
    ("index version used up", Code::Denied, "today it can be at most", |a, key| {
        *a = honest(key, "1.1.0", u64::MAX, seconds() + 3600);
    }),
    ("index that counts for ever", Code::Denied, "at the latest", |a, key| {
        *a = honest(key, "1.1.0", 6, u64::MAX);
    }),
    ("index expired", Code::Denied, "expired", |a, key| {
        *a = honest(key, "1.1.0", 6, seconds() - 1);
    }),
    ("another package", Code::Denied, "answered", |a, _| {
        a.resolve.package = "wool".parse().unwrap();
    }),
    ("a version that was not asked for", Code::Denied, "answered", |a, key| {
        *a = honest(key, "2.0.0", 6, seconds() + 3600);
    }),
    ("a version that is none", Code::Denied, "answered", |a, _| {
        "latest".clone_into(&mut a.resolve.version.version);
    }),
    ("a version that is not in the index", Code::NotFound, "not in the index", |a, key| {
        let other = honest(key, "1.2.0", 6, seconds() + 3600);
        a.resolve.version = other.resolve.version;
    }),
    ("another digest than the index says", Code::Denied, "digest", |a, _| {
        a.resolve.version.digest = Digest::of(b"evil");
    }),
    ("garbage for an index", Code::Denied, "changed after signing", |a, _| {
        a.resolve.index = Some(Blob(vec![0xff; 64]));
    }),
    ("garbage for a signature", Code::Invalid, "signature", |a, _| {
        a.resolve.signature = Some("garbage".to_owned());
    }),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_lie_of_a_registry_is_refused_and_the_chain_runs_on() {
    let world = World::new(SignatureCheck::Required).await;
    world.apply("wall@^1").await.unwrap();
    world.kernel.take_log();
    for (what, code, words, lie) in LIES {
        let mut answers = honest(&world.key, "1.1.0", 6, seconds() + 3600);
        lie(&mut answers, &world.key);
        world.answer(answers);
        let error = world.apply("wall@^1").await.expect_err(what);
        assert_eq!(error.code, *code, "{what}: {error:?}");
        assert!(error.message.contains(words), "{what}: {error:?}");
        assert_eq!(error.path, "document.chains[0].programs[0].package", "{what}");
        assert!(error.remedy.as_ref().is_some_and(|r| !r.is_empty()), "{what}: {error:?}");
        assert!(!error.message.contains('\n'), "{what}: {error:?}");
        world.assert_untouched(what);
    }
    // The honest one passes still.
    world.answer(honest(&world.key, "1.1.0", 6, seconds() + 3600));
    let reply = world.apply("wall@^1").await.unwrap();
    assert_eq!(reply.chains[0].action, Action::Updated);
    assert_eq!(reply.chains[0].programs[0].version, "1.1.0");
}

/// The index of a repository with this id, as a registry answers it for `wall`.
fn of_repository(id: &RepositoryId, mut answers: Answers, key: &SecretKey) -> Answers {
    let bytes = answers.resolve.index.take().unwrap().0;
    let repository = Some(id.clone());
    let listing = Index { repository, ..serde_json::from_slice(&bytes).unwrap() };
    let (bytes, signature) = listing.sign(key).unwrap();
    answers.resolve.index = Some(Blob(bytes));
    answers.resolve.index_signature = Some(signature);
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_accepts_an_older_index_down_to_a_version_and_is_audited() {
    let world = World::new(SignatureCheck::Required).await;
    let id = RepositoryId::generate().unwrap();
    let index = |version: u64| {
        of_repository(&id, honest(&world.key, "1.0.0", version, seconds() + 3600), &world.key)
    };
    world.answer(index(9));
    world.apply("wall@^1").await.unwrap();
    let reset = async |repository: &str, id: Option<&RepositoryId>, to: u64| {
        let request = ResetHostRequest {
            repository: repository.to_owned(),
            id: id.map(ToString::to_string),
            to,
        };
        let host = Target::Host("web1".parse().unwrap());
        let reply = world.admin.call::<loader::ResetIndex>(&host, &request).await.unwrap();
        (reply.from, reply.to)
    };
    // Of another repository nothing is forgotten.
    assert_eq!(reset("other", None, 3).await, (0, 0));
    world.answer(index(8));
    let error = world.apply("wall@^1").await.unwrap_err();
    assert!(error.message.contains("has version 8, older than version 9 seen"), "{error}");
    assert!(error.remedy.unwrap().contains("reset-index"));
    // By its id, whatever the registry calls it now; and no more than once.
    assert_eq!(reset("renamed", Some(&id), 8).await, (9, 8));
    assert_eq!(reset("main", Some(&id), 8).await, (8, 8));
    world.apply("wall@^1").await.unwrap();
    world.answer(index(7));
    world.apply("wall@^1").await.unwrap_err();
    // It never raises, and what is accepted has to be signed.
    assert_eq!(reset("main", None, u64::MAX).await, (8, 8));
    world.answer(honest(&SecretKey::generate().unwrap(), "1.0.0", 8, seconds() + 3600));
    let error = world.apply("wall@^1").await.unwrap_err();
    assert!(error.message.contains("not trusted"), "{error}");
    let trail = fs::read_dir(world.dir.path().join("audit")).unwrap();
    let records: String =
        trail.filter_map(|file| fs::read_to_string(file.unwrap().path()).ok()).collect();
    assert!(records.contains("highest index version of renamed reset from 9 to 8"), "{records}");
}

/// An older version of the loader remembered by package, and may have been used up.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_from_before_repositories_counts_on_and_can_be_reset() {
    let world = World::new(SignatureCheck::Required).await;
    let path = world.dir.path().join("before");
    let store = Store::open(&path).unwrap();
    let host: HostId = "web1".parse().unwrap();
    let mut state = State::new(host.clone());
    state.index_versions.insert("wall".parse().unwrap(), u64::MAX);
    store.save(&state).unwrap();
    let text = fs::read_to_string(path.join("state.json")).unwrap();
    assert!(text.starts_with("{\"format\":1,") && !text.contains("trusted_versions"), "{text}");
    drop(store);

    let packages = Arc::clone(&world.cache) as _;
    let engine = fake::engine(host.clone(), Arc::clone(&world.kernel), &path, packages).unwrap();
    let key = world.key.public().unwrap();
    let keys = [TrustedKey::from(key.clone())];
    let source = IndexSource { repository: Some(RepositoryId::generate().unwrap()), key };
    let at_least =
        |name: &str| engine.index_at_least(&name.parse().unwrap(), &source, "main", &keys).unwrap();
    assert_eq!((at_least("wall"), at_least("other")), (u64::MAX, 0));
    let request = ResetHostRequest { repository: "main".to_owned(), id: None, to: 4 };
    let reply = engine.reset_index(&request).unwrap();
    assert_eq!((reply.from, reply.to), (u64::MAX, 4));
    engine.remember_index(&"wall".parse().unwrap(), &source, "main", 5).unwrap();
    assert_eq!((at_least("wall"), at_least("other")), (5, 5));
    drop(engine);
    let text = fs::read_to_string(path.join("state.json")).unwrap();
    assert!(text.starts_with("{\"format\":3,"), "{text}");
    let packages = Arc::clone(&world.cache) as _;
    let engine = fake::engine(host, Arc::clone(&world.kernel), &path, packages).unwrap();
    let at_least = engine.index_at_least(&"new".parse().unwrap(), &source, "main", &keys);
    assert_eq!(at_least.unwrap(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_yanked_version_stays_where_it_is_and_goes_nowhere_else() {
    let world = World::new(SignatureCheck::Required).await;
    let yanked = |index: u64| {
        let mut answers = honest(&world.key, "1.0.0", index, seconds() + 3600);
        let bytes = answers.resolve.index.take().unwrap().0;
        let mut listing: Index = serde_json::from_slice(&bytes).unwrap();
        listing.packages[0].yanked = true;
        let (bytes, signature) = listing.sign(&world.key).unwrap();
        answers.resolve.index = Some(Blob(bytes));
        answers.resolve.index_signature = Some(signature);
        answers
    };
    world.answer(yanked(6));
    let error = world.apply("wall@=1.0.0").await.unwrap_err();
    assert!(error.message.contains("withdrawn"), "{error:?}");
    world.answer(honest(&world.key, "1.0.0", 6, seconds() + 3600));
    world.apply("wall@=1.0.0").await.unwrap();
    world.answer(yanked(7));
    let reply = world.apply("wall@=1.0.0").await.unwrap();
    assert_eq!(reply.chains[0].action, Action::Unchanged);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_that_no_rule_names_is_refused() {
    let world = World::new(SignatureCheck::Required).await;
    let error = world.apply("other").await.unwrap_err();
    assert_eq!(error.code, Code::Denied);
    assert!(error.remedy.unwrap().contains("`trust`"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_registry_the_version_at_hand_will_do() {
    let world = World::new(SignatureCheck::Required).await;
    world.apply("wall@^1").await.unwrap();
    world.registry.cancel();
    let mut last = None;
    for _ in 0..200 {
        let reply = world.apply("wall@^1").await.unwrap();
        if reply.chains[0].notes.iter().any(|note| note.contains("cannot be asked")) {
            assert_eq!(reply.chains[0].action, Action::Unchanged);
            let error = world.apply("wall@^2").await.unwrap_err();
            assert_eq!((error.code, error.retryable), (Code::Unavailable, true), "{error:?}");
            return;
        }
        last = Some(reply);
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the registry still answers: {last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_takes_no_host_back_to_an_older_version() {
    let world = World::new(SignatureCheck::Required).await;
    // Both versions are published, signed and good; the registry says which one is meant.
    let meant = |version: &str, index: u64| {
        let mut answers = honest(&world.key, version, index, seconds() + 3600);
        let packages = ["1.0.0", "1.1.0"].map(|version| {
            let bytes = honest(&world.key, version, index, 0).resolve.index.unwrap().0;
            serde_json::from_slice::<Index>(&bytes).unwrap().packages.remove(0)
        });
        let expires = seconds() + 3600;
        let listing =
            Index { version: index, expires, packages: packages.to_vec(), repository: None };
        let (bytes, signature) = listing.sign(&world.key).unwrap();
        answers.resolve.index = Some(Blob(bytes));
        answers.resolve.index_signature = Some(signature);
        answers
    };
    // Nothing is there yet: it may be the newest for this host's kernel. It is said.
    world.answer(meant("1.0.0", 6));
    let reply = world.apply("wall@^1").await.unwrap();
    let note = reply.chains[0].notes.iter().find(|note| note.contains("1.1.0 is published too"));
    assert!(note.is_some(), "{reply:?}");
    world.answer(meant("1.1.0", 6));
    let reply = world.apply("wall@^1").await.unwrap();
    assert_eq!(reply.chains[0].programs[0].version, "1.1.0");
    assert_eq!(reply.chains[0].notes, [] as [String; 0]);
    world.kernel.take_log();
    let running = world.kernel.running(&key());

    world.answer(meant("1.0.0", 7));
    let error = world.apply("wall@^1").await.unwrap_err();
    assert_eq!(error.code, Code::Denied, "{error:?}");
    assert!(error.message.contains("older than the 1.1.0 of this host"), "{error:?}");
    assert_eq!(world.kernel.running(&key()), running);
    // Asking for the exact version is not enough either: a document may be an old one.
    let exact = json!({ "chains": [{ "interface": "eth0", "hook": "xdp", "programs": [
        { "name": "a", "package": "wall@=1.0.0" }
    ]}]});
    for allowed in [&[][..], &["other"]] {
        let error = world.apply_allowing(exact.clone(), allowed).await.unwrap_err();
        assert_eq!(error.code, Code::Denied, "{error:?}");
        assert_eq!(
            error.message,
            "wall 1.0.0 is older than the 1.1.0 that runs as \"a\" on eth0/xdp"
        );
        assert_eq!(error.path, "document.chains[0].programs[0].package");
        assert_eq!(world.kernel.running(&key()), running);
    }
    // On purpose it is possible, and told.
    let mut events =
        world.admin.subscribe_events("canopy.v1.event.loader.package.downgraded.>").await.unwrap();
    let reply = world.apply_allowing(exact, &["wall"]).await.unwrap();
    assert_eq!(reply.chains[0].programs[0].version, "1.0.0");
    let told = tokio::time::timeout(Duration::from_secs(10), events.next()).await.unwrap();
    let told: PackageDowngraded = told.unwrap().decode().unwrap();
    assert_eq!((told.from.as_str(), told.to.as_str()), ("1.1.0", "1.0.0"));
    assert_eq!(told.by.as_str(), "u-admin");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_drips_keeps_nobody_from_draining() {
    let world = World::new(SignatureCheck::Required).await;
    world.bend(|answers| {
        answers.chunk = 1;
        answers.pause = Duration::from_millis(100);
    });
    let (apply, drain) = tokio::join!(world.apply("wall@^1"), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let host = Target::Host("web1".parse().unwrap());
        let request = DrainRequest { undo: false, dry_run: true };
        world.admin.call::<loader::Drain>(&host, &request).await
    });
    let error = apply.unwrap_err();
    assert_eq!(error.code, Code::Unavailable, "{error:?}");
    assert!(error.message.contains("did not come within"), "{error:?}");
    drain.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_whose_caller_has_gone_is_not_made_later() {
    let world = World::new(SignatureCheck::Required).await;
    world.bend(|answers| {
        answers.chunk = 1;
        answers.pause = Duration::from_millis(100);
    });
    let host = Target::Host("web1".parse().unwrap());
    let slow = world.apply("wall@^1");
    let late = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let timeout = Some(Duration::from_secs(1));
        let options = CallOptions { timeout, ..CallOptions::default() };
        let request = DrainRequest { undo: false, dry_run: false };
        world.admin.call_with::<loader::Drain>(&host, &request, options).await
    };
    let (_, late) = tokio::join!(slow, late);
    let late = late.unwrap_err().to_api_error();
    assert_eq!((late.code, late.retryable), (Code::Unavailable, true));
    assert!(late.message.contains("nothing was done"), "{late:?}");
    // Behind it in the queue, so its turn would have come by now.
    world.answer(honest(&world.key, "1.0.0", 6, seconds() + 3600));
    world.apply("wall@^1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_or_file_is_refused_with_and_without_a_registry() {
    let world = World::new(SignatureCheck::Required).await;
    world.apply("wall@^1").await.unwrap();
    let locate = |revoked: bool, revoked_file: Option<Digest>| {
        let trusted = TrustedKey { revoked, ..TrustedKey::from(world.key.public().unwrap()) };
        let rules = vec![Trust {
            packages: vec!["*".to_owned()],
            keys: vec![trusted],
            index_keys: Vec::new(),
            revoked: revoked_file.into_iter().collect(),
            signatures: SignatureCheck::Required,
        }];
        let (cache, memory) = (Arc::clone(&world.cache), Arc::clone(&world.engine) as _);
        let (bus, limits) = (world.loader.clone(), Limits::default());
        let fetcher = Fetcher::new(bus, cache, rules, limits, memory, "6.18".to_owned());
        async move { fetcher.locate(&"wall@^1".parse().unwrap()).await }
    };
    // An honest registry that still offers the file.
    let offered = Digest::of(&world.answers.lock().unwrap().artifact);
    let error = locate(false, Some(offered)).await.unwrap_err().into_api();
    assert!(error.message.contains("revoked"), "{error:?}");
    world.registry.cancel();
    for _ in 0..200 {
        let found = locate(false, None).await;
        if let Ok((located, Some(note))) = found
            && note.contains("cannot be asked")
        {
            let refused = [locate(true, None).await, locate(false, Some(located.digest)).await];
            for error in refused.map(|outcome| outcome.unwrap_err().into_api()) {
                assert_eq!(error.code, Code::Denied, "{error:?}");
                assert!(error.message.contains("revoked"), "{error:?}");
            }
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the registry still answers");
}

/// A document with one program, and another priority as the change of its settings.
fn with_priority(reference: &str, priority: u32) -> Value {
    let program = json!({ "name": "a", "package": reference, "priority": priority });
    json!({ "chains": [{ "interface": "eth0", "hook": "xdp", "programs": [program] }] })
}

/// What the registry says of a repository whose index has expired.
fn expired() -> ApiError {
    let said = "repository \"main\" cannot be used: the index expired on 2026-01-01T00:00:00Z";
    ApiError::new(Code::Denied, said)
        .remedy("have the publisher sign it again")
        .reason("index_expired")
}

/// What the registry will not give is not taken from this host either: only an expired index says nothing
/// of the package.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_the_registry_is_not_evaded_by_the_cache() {
    let world = World::new(SignatureCheck::Required).await;
    world.apply("wall@1.0.0").await.unwrap();
    world.kernel.take_log();
    let running = world.kernel.running(&key());
    for reason in [
        Some("digest_revoked"),
        Some("key_revoked"),
        Some("key_expired"),
        Some("untrusted_key"),
        Some("tampered"),
        Some("index_gone"),
        Some("index_rolled_back"),
        None,
    ] {
        let said = format!("wall 1.0.0 is refused: {reason:?}");
        let mut refuses = ApiError::new(Code::Denied, &said);
        refuses.reason = reason.map(Box::from);
        world.bend(|answers| answers.refuses = Some(refuses));
        for reference in ["wall@1.0.0", "wall@^1", "wall"] {
            let error = world.apply_document(with_priority(reference, 9)).await.unwrap_err();
            assert_eq!(error.code, Code::Denied, "{reference}: {error:?}");
            assert!(error.message.contains(&said), "{reference}: {error:?}");
            assert_eq!(world.kernel.running(&key()), running, "{reference}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_change_though_the_index_has_expired() {
    let world = World::new(SignatureCheck::Required).await;
    world.apply("wall@^1").await.unwrap();
    let of_now = honest(&world.key, "1.0.0", 6, seconds() - 1);
    // The loader finds it expired, or the registry does; the version is a range or exact.
    let mut priority = 10;
    for refuses in [None, Some(expired())] {
        for reference in ["wall@^1", "wall@1.0.0", "wall"] {
            let mut answers = of_now.clone();
            answers.refuses = refuses.clone();
            answers.artifact.clear();
            world.answer(answers);
            priority += 1;
            let document = with_priority(reference, priority);
            let reply = world.apply_document(document).await.unwrap();
            let chain = &reply.chains[0];
            assert_eq!(chain.action, Action::Updated, "{reference}");
            assert_eq!(chain.programs[0].version, "1.0.0");
            let told =
                |note: &String| note.contains("the index expired on") && note.contains("1.0.0");
            assert!(chain.notes.iter().any(told), "{:?}", chain.notes);
        }
    }
    // Something that is new to this host is not taken by an index that has expired, nor is one that names
    // another version than the one that runs.
    world.kernel.take_log();
    let running = world.kernel.running(&key());
    for (reference, refuses) in
        [("wall@^1", None), ("wall@1.1.0", None), ("wall@1.1.0", Some(expired()))]
    {
        let mut answers = honest(&world.key, "1.1.0", 6, seconds() - 1);
        answers.refuses = refuses;
        world.answer(answers);
        let error = world.apply_document(with_priority(reference, 99)).await.unwrap_err();
        assert_eq!(error.code, Code::Denied, "{reference}: {error:?}");
        assert!(error.message.contains("the index expired on"), "{reference}: {error:?}");
        assert_eq!(world.kernel.running(&key()), running);
    }
    // An index that is worse than expired is none that anything is taken by.
    for (words, bend) in [
        ("older than", honest(&world.key, "1.0.0", 4, seconds() - 1)),
        ("not trusted", honest(&SecretKey::generate().unwrap(), "1.0.0", 6, seconds() - 1)),
    ] {
        world.answer(bend);
        let error = world.apply_document(with_priority("wall@^1", 99)).await.unwrap_err();
        assert!(error.message.contains(words), "{error:?}");
    }
    // The version of the index that had expired was not remembered.
    world.answer(honest(&world.key, "1.0.0", 5, seconds() + 3600));
    world.apply("wall@^1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_version_is_gone_back_to_without_an_index() {
    let world = World::new(SignatureCheck::Required).await;
    world.apply("wall@1.0.0").await.unwrap();
    let newer = honest(&world.key, "1.1.0", 6, seconds() + 3600);
    world.answer(newer.clone());
    world.apply("wall@1.1.0").await.unwrap();
    let away = ApiError::new(Code::Unavailable, "the store is away");
    for refuses in [away.clone(), expired()] {
        world.bend(|answers| answers.refuses = Some(refuses.clone()));
        let back = with_priority("wall@1.0.0", 1);
        // Going back is as deliberate as ever.
        let error = world.apply_document(back.clone()).await.unwrap_err();
        assert_eq!(error.code, Code::Denied, "{error:?}");
        assert!(error.message.contains("older than the 1.1.0"), "{error:?}");
        let reply = world.apply_allowing(back, &["wall"]).await.unwrap();
        assert_eq!(reply.chains[0].programs[0].version, "1.0.0");
        let told = |note: &String| {
            note.contains(&refuses.message) && note.contains("from this host's cache")
        };
        assert!(reply.chains[0].notes.iter().any(told), "{reply:?}");
        // And forward to where it was.
        let reply = world.apply("wall@1.1.0").await.unwrap();
        assert_eq!(reply.chains[0].programs[0].version, "1.1.0");
    }
    // An index that has expired, and is told all the same, still says what was withdrawn.
    let running = world.kernel.running(&key());
    let of_expired = |yanked: bool| {
        let mut answers = honest(&world.key, "1.0.0", 7, seconds() - 1);
        let bytes = answers.resolve.index.take().unwrap().0;
        let mut listing: Index = serde_json::from_slice(&bytes).unwrap();
        listing.packages[0].yanked = yanked;
        let (bytes, signature) = listing.sign(&world.key).unwrap();
        answers.resolve.index = Some(Blob(bytes));
        answers.resolve.index_signature = Some(signature);
        answers
    };
    world.answer(of_expired(true));
    let error = world.apply_allowing(with_priority("wall@1.0.0", 1), &["wall"]).await.unwrap_err();
    assert!(error.message.contains("the index expired"), "{error:?}");
    assert_eq!(world.kernel.running(&key()), running);
    world.answer(of_expired(false));
    let reply = world.apply_allowing(with_priority("wall@1.0.0", 1), &["wall"]).await.unwrap();
    assert_eq!(reply.chains[0].programs[0].version, "1.0.0");
    world.answer(newer);
    world.apply("wall@1.1.0").await.unwrap();
    let running = world.kernel.running(&key());
    world.bend(|answers| answers.refuses = Some(away.clone()));
    // Neither a range nor a version that was never here is answered by the cache.
    for reference in ["wall@<1.1", "wall@~1.0", "wall@1.2.0"] {
        let document = with_priority(reference, 1);
        let error = world.apply_allowing(document, &["wall"]).await.unwrap_err();
        assert_eq!(error.code, Code::Unavailable, "{reference}: {error:?}");
        assert_eq!(world.kernel.running(&key()), running, "{reference}");
    }
    // What the registry denies by name, it denies.
    let gone = ApiError::new(Code::NotFound, "no version of \"wall\" matches =1.0.0");
    world.bend(|answers| answers.refuses = Some(gone));
    let error = world.apply_allowing(with_priority("wall@1.0.0", 1), &["wall"]).await.unwrap_err();
    assert_eq!(error.code, Code::NotFound, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_in_the_cache_is_verified_anew() {
    let world = World::new(SignatureCheck::Required).await;
    world.apply("wall@1.0.0").await.unwrap();
    let older = world.answers.lock().unwrap().clone();
    world.answer(honest(&world.key, "1.1.0", 6, seconds() + 3600));
    world.apply("wall@1.1.0").await.unwrap();
    let away = ApiError::new(Code::Unavailable, "the store is away");
    world.bend(|answers| answers.refuses = Some(away));
    let locate = |reference: &str, change: &dyn Fn(&mut Trust)| {
        let mut rule = Trust {
            packages: vec!["*".to_owned()],
            keys: vec![TrustedKey::from(world.key.public().unwrap())],
            index_keys: Vec::new(),
            revoked: Vec::new(),
            signatures: SignatureCheck::Required,
        };
        change(&mut rule);
        let (cache, memory) = (Arc::clone(&world.cache), Arc::clone(&world.engine) as _);
        let (bus, limits) = (world.loader.clone(), Limits::default());
        let fetcher = Fetcher::new(bus, cache, vec![rule], limits, memory, "6.18".to_owned());
        let reference = reference.parse().unwrap();
        async move { fetcher.locate(&reference).await.map_err(FetchError::into_api) }
    };
    let (located, note) = locate("wall@1.0.0", &|_| {}).await.unwrap();
    assert_eq!(located.digest, Digest::of(&older.artifact));
    assert_eq!(located.signed_by, Some(world.key.public().unwrap()));
    assert!(note.unwrap().contains("cache"));
    let digest = located.digest.clone();
    let refusals: [(&str, Change<'_>); 4] = [
        ("revoked", &|rule| rule.revoked.push(digest.clone())),
        ("revoked", &|rule| rule.keys[0].revoked = true),
        ("trusted only until", &|rule| rule.keys[0].not_after = Some(1)),
        ("not trusted", &|rule| {
            rule.keys = vec![SecretKey::generate().unwrap().public().unwrap().into()];
        }),
    ];
    for (words, change) in refusals {
        let error = locate("wall@1.0.0", change).await.unwrap_err();
        assert_eq!(error.code, Code::Denied, "{words}: {error:?}");
        assert!(error.message.contains(words), "{words}: {error:?}");
    }
    // Unsigned files say nothing of which version they are.
    let skips = |rule: &mut Trust| rule.signatures = SignatureCheck::SkipForDevelopment;
    assert_eq!(locate("wall@1.0.0", &skips).await.unwrap_err().code, Code::Unavailable);

    // A signature that claims another version than the file is.
    let (name, other) = ("wall".parse().unwrap(), "1.0.5".parse().unwrap());
    let bytes = package("1.0.6", 4000).build().unwrap();
    let claims = world.key.sign_package(&bytes, &name, &other).unwrap();
    world.cache.keep(&Digest::of(&bytes), &bytes, Some(&claims)).unwrap();
    let error = locate("wall@1.0.5", &|_| {}).await.unwrap_err();
    assert_eq!(error.code, Code::Invalid, "{error:?}");
    assert!(error.message.contains("1.0.6"), "{error:?}");
    // Two files that claim one version: neither.
    let again = package("1.0.5", 5000).build().unwrap();
    let signature = world.key.sign_package(&again, &name, &other).unwrap();
    world.cache.keep(&Digest::of(&again), &again, Some(&signature)).unwrap();
    assert_eq!(locate("wall@1.0.5", &|_| {}).await.unwrap_err().code, Code::Unavailable);
    // A file that was damaged since.
    let file = world.dir.path().join("cache").join(format!("{}.cpkg", digest.hex()));
    std::fs::write(file, "damaged").unwrap();
    assert_eq!(locate("wall@1.0.0", &|_| {}).await.unwrap_err().code, Code::Unavailable);
}

/// A change of what a host trusts.
type Change<'a> = &'a dyn Fn(&mut Trust);

/// Whose key signs the index and whose the package are two questions.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_and_a_package_may_have_keys_of_their_own() {
    let world = World::new(SignatureCheck::Required).await;
    let (owner, author) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
    let mut answers = honest(&owner, "1.0.0", 5, seconds() + 3600);
    let by_owner = answers.resolve.signature.clone();
    answers.resolve.signature = honest(&author, "1.0.0", 5, 0).resolve.signature;
    world.answer(answers);
    let locate = || {
        let rules = vec![Trust {
            packages: vec!["*".to_owned()],
            keys: vec![author.public().unwrap().into()],
            index_keys: vec![owner.public().unwrap().into()],
            revoked: Vec::new(),
            signatures: SignatureCheck::Required,
        }];
        let (cache, memory) = (Arc::clone(&world.cache), Arc::clone(&world.engine) as _);
        let (bus, limits) = (world.loader.clone(), Limits::default());
        let fetcher = Fetcher::new(bus, cache, rules, limits, memory, "6.18".to_owned());
        async move { fetcher.locate(&"wall@^1".parse().unwrap()).await }
    };
    locate().await.unwrap();
    world.bend(|answers| answers.resolve.signature = by_owner);
    let error = locate().await.unwrap_err().into_api();
    assert!(error.message.contains("not trusted"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_are_skipped_only_where_the_host_says_so() {
    let world = World::new(SignatureCheck::SkipForDevelopment).await;
    world.bend(|answers| {
        answers.resolve.signature = None;
        answers.resolve.index = None;
        answers.resolve.index_signature = None;
    });
    world.apply("wall").await.unwrap();
    // Bytes are still the bytes that were named.
    world.bend(|answers| {
        let other = honest(&SecretKey::generate().unwrap(), "1.1.0", 6, 0);
        answers.resolve.version = other.resolve.version;
    });
    world.apply("wall").await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_itemised_request_gets_its_first_answer() {
    let world = World::new(SignatureCheck::Required).await;
    world.kernel.add_interface(&"eth1".parse().unwrap());
    let on = |interface: &str| json!({ "interface": interface, "hook": "xdp", "programs": [{ "name": "a", "package": "wall" }] });
    let request = ApplyRequest {
        document: json!({ "chains": [on("eth0"), on("eth1"), on("eth7")] }),
        expected_generation: None,
        dry_run: false,
        allow_downgrade: Vec::new(),
        atomic: false,
    };
    let host = Target::Host("web1".parse().unwrap());
    let ask = || {
        let options = CallOptions { request_id: Some("once".to_owned()), ..CallOptions::default() };
        world.admin.call_with::<loader::Apply>(&host, &request, options)
    };
    let first = ask().await.unwrap();
    let failed: Vec<_> = first.failed().map(|(chain, error)| (&chain.interface, error)).collect();
    assert_eq!(failed.len(), 1, "{first:?}");
    assert_eq!((failed[0].0.as_str(), failed[0].1.code), ("eth7", Code::NotFound));
    assert_eq!(failed[0].1.path, "document.chains[2].interface");
    assert!(world.kernel.running(&key()).is_some());
    // What it lacked is there now, and the answer is the first all the same.
    world.kernel.add_interface(&"eth7".parse().unwrap());
    world.kernel.take_log();
    assert_eq!(ask().await.unwrap(), first);
    world.assert_untouched("a repeat");

    // A mistake of the document refuses the whole, whatever else is in it.
    let wrong = json!({ "interface": "eth1", "hook": "xdp", "programs": [{ "name": "a", "package": "wall", "config": { "x": 1 } }] });
    let error = world.apply_document(json!({ "chains": [on("eth7"), wrong] })).await.unwrap_err();
    assert_eq!(error.path, "document.chains[1].programs[0].config.x");
    world.assert_untouched("a mistake");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mistake_of_a_document_is_told_with_its_path() {
    let world = World::new(SignatureCheck::Required).await;
    world.apply("wall").await.unwrap();
    world.kernel.take_log();
    let on = |interface: &str, hook: &str, programs: Value| json!({ "chains": [{ "interface": interface, "hook": hook, "programs": programs }] });
    let plain = json!([{ "name": "a", "package": "wall" }]);
    let cases = [
        (json!("nonsense"), "document"),
        (json!({ "chain": [] }), "document"),
        (on("a/b", "xdp", json!([])), "document.chains[0].interface"),
        (on("eth0", "xpd", json!([])), "document.chains[0].hook"),
        (on("eth7", "xdp", plain.clone()), "document.chains[0].interface"),
        (on("eth0", "tc-ingress", plain), "document.chains[0].programs[0].package"),
        (
            on("eth0", "xdp", json!([{ "name": "a", "package": "wall", "config": { "x": 1 } }])),
            "document.chains[0].programs[0].config.x",
        ),
        (
            on("eth0", "xdp", json!([{ "name": "a", "package": "wall", "priority": 70_000 }])),
            "document.chains[0].programs[0].priority",
        ),
        (
            on("eth0", "xdp", json!([{ "name": "a", "package": "wall@one" }])),
            "document.chains[0].programs[0].package",
        ),
    ];
    for (document, path) in cases {
        let error = world.apply_document(document.clone()).await.unwrap_err();
        assert!(error.path.starts_with(path), "{document}: {error:?}");
        world.assert_untouched(path);
    }
}

/// Who took the firewall off eth0? Of each change the audit trail alone says who, what, from which programs
/// to which, and with which result; whoever follows the bus hears it too.
#[tokio::test]
async fn audit_and_events_say_what_was_changed_by_whom() {
    let world = World::new(SignatureCheck::Required).await;
    let mut events =
        world.admin.subscribe_events("canopy.v1.event.loader.chain.changed.web1").await.unwrap();
    world.admin.wait_ready(Duration::from_secs(10)).await.unwrap();
    let host = Target::Host("web1".parse().unwrap());

    world.apply("wall@^1").await.unwrap();
    world.apply("wall@^9").await.unwrap_err();
    let delete = |dry_run| DeleteRequest {
        netns: None,
        interface: "eth0".parse().unwrap(),
        hook: Hook::Xdp,
        program: None,
        expected_generation: None,
        dry_run,
    };
    world.admin.call::<loader::Delete>(&host, &delete(true)).await.unwrap();
    let options = CallOptions { request_id: Some("r-7".to_owned()), ..CallOptions::default() };
    world.admin.call_with::<loader::Delete>(&host, &delete(false), options).await.unwrap();
    world.admin.call::<loader::Delete>(&host, &delete(false)).await.unwrap_err();
    world.apply("wall@^1").await.unwrap();
    let drain = |undo| DrainRequest { undo, dry_run: false };
    world.admin.call::<loader::Drain>(&host, &drain(false)).await.unwrap();
    world.admin.call::<loader::Drain>(&host, &drain(true)).await.unwrap();

    let audited = world.audited();
    let expected = [
        ("apply", "done", "eth0/xdp created: nothing → a wall 1.0.0"),
        ("apply", "denied", "eth0/xdp: a wall@^9: "),
        ("delete", "done", "dry run: eth0/xdp removed: a wall 1.0.0 → nothing"),
        ("delete", "done", "eth0/xdp removed: a wall 1.0.0 → nothing"),
        ("delete", "failed", "eth0/xdp: there is no chain on eth0/xdp"),
        ("apply", "done", "eth0/xdp created: nothing → a wall 1.0.0"),
        ("drain", "done", "eth0/xdp removed: a wall 1.0.0 → nothing"),
        ("drain", "done", "eth0/xdp created: "),
    ];
    assert_eq!(audited.len(), expected.len(), "{audited:#?}");
    for (found, (verb, decision, what)) in audited.iter().zip(expected) {
        assert_eq!((found.0.as_str(), found.1.as_str()), ("u-admin", verb), "{found:?}");
        assert_eq!(found.2, decision, "{found:?}");
        assert!(found.3.starts_with(what), "{found:?} lacks {what:?}");
    }

    let mut heard = Vec::new();
    for _ in 0..5 {
        let event = tokio::time::timeout(Duration::from_secs(10), events.next()).await.unwrap();
        heard.push(event.unwrap().decode::<ChainChanged>().unwrap());
    }
    let told: Vec<_> = heard.iter().map(|one| (one.verb.as_str(), one.action)).collect();
    assert_eq!(
        told,
        [
            ("apply", Action::Created),
            ("delete", Action::Removed),
            ("apply", Action::Created),
            ("drain", Action::Removed),
            ("undrain", Action::Created),
        ]
    );
    let removed = &heard[1];
    assert_eq!(
        (removed.by.as_str(), removed.interface.to_string()),
        ("u-admin", "eth0".to_owned())
    );
    assert_eq!((removed.before[0].to_string().as_str(), removed.after.len()), ("a wall 1.0.0", 0));
    assert_eq!(removed.request_id.as_deref(), Some("r-7"));
    assert_eq!(removed.generation, 2);
}
