//! Publishing over the bus: what a publisher without a way to the store can do, what nobody can, and what
//! is left when the registry dies.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests"
)]

mod common;

use canopy_api::{
    ApiError, Blob, Code, Digest,
    endpoint::registry::{Publish, PublishIndex, PublishUpload, ResetIndex, Resolve, Yank},
    subject::Target,
    wire::{
        ARTIFACT_CHUNK, PackagePublished, PackageRefused, PublishIndexRequest, PublishReply,
        PublishRequest, PublishUploadRequest, PublishedPackage, ResetRepositoryRequest,
        ResolveRequest, YankRequest,
    },
};
use canopy_bus::{Bus, BusConfig, CallError};
use canopy_package::{
    Index, IndexEntry, Package, RepositoryId, SecretKey, index::join, repository::artifact_path,
};
use canopy_test_support::{
    nats::{ClientFiles, NatsServer},
    service::ServiceProcess,
    wait_for,
};
use common::{Directory, now, package, write};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::Path,
    thread,
    time::{Duration, SystemTime},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_canopy-registry");

async fn connect(server: &NatsServer, principal: &str) -> Bus {
    let ClientFiles { url, ca, cert, key } = server.client(principal);
    let config = BusConfig::new(url, ca, cert, key);
    let bus = Bus::connect(&config, principal.parse().unwrap()).await.unwrap();
    bus.wait_ready(Duration::from_secs(10)).await.unwrap();
    bus
}

/// A registry that is published to through `directory`, as `starter`.
fn config(server: &NatsServer, directory: &Directory, change: &Value) -> Value {
    let ClientFiles { url, ca, cert, key } = server.client("s-registry");
    let mut repository = json!({
        "name": "starter",
        "url": format!("file://{}", directory.dir.path().display()),
        "packages": ["p*"],
        "keys": directory.trusted(),
        "writable": true,
    });
    for (field, value) in change.as_object().unwrap() {
        repository[field] = value.clone();
    }
    let mirror = json!({
        "name": "mirror",
        "url": format!("file://{}", directory.dir.path().join("mirror").display()),
        "packages": ["*"],
        "keys": directory.trusted(),
    });
    json!({
        "bus": { "url": url, "ca": ca, "cert": cert, "key": key },
        "repositories": [repository, mirror],
    })
}

fn start(config: &Value) -> ServiceProcess {
    let process = ServiceProcess::start(Path::new(PROGRAM), config.clone()).unwrap();
    process.wait_status(200).unwrap();
    process
}

/// A publisher: keys of their own, and the bus.
struct Publisher<'a> {
    bus: Bus,
    directory: &'a Directory,
}

type Outcome = Result<PublishReply, ApiError>;

impl Publisher<'_> {
    async fn upload(&self, bytes: &[u8]) -> Result<Digest, ApiError> {
        let digest = Digest::of(bytes);
        for (number, data) in bytes.chunks(ARTIFACT_CHUNK).enumerate() {
            let request = PublishUploadRequest {
                repository: "starter".to_owned(),
                digest: digest.clone(),
                total: bytes.len() as u64,
                offset: (number * ARTIFACT_CHUNK) as u64,
                data: Blob(data.to_vec()),
            };
            self.call::<PublishUpload>(&request).await?;
        }
        Ok(digest)
    }

    async fn call<E: canopy_api::endpoint::Endpoint>(
        &self,
        request: &E::Request,
    ) -> Result<E::Reply, ApiError> {
        let answer = self.bus.call::<E>(&Target::Central, request).await;
        answer.map_err(|error| error.to_api_error())
    }

    /// The index as it is there, as a file and read.
    async fn index(&self) -> Result<(Option<Vec<u8>>, Index), ApiError> {
        let mut file = Vec::new();
        loop {
            let offset = file.len() as u64;
            let request = PublishIndexRequest { repository: "starter".to_owned(), offset };
            let reply = self.call::<PublishIndex>(&request).await?;
            let Some(digest) = reply.digest else { return Ok((None, Index::default())) };
            file.extend(reply.data.0);
            if file.len() as u64 == reply.total {
                if Digest::of(&file) != digest {
                    // It changed between two pieces.
                    file.clear();
                    continue;
                }
                let index = Index::read_unverified(&file).unwrap();
                return Ok((Some(file), index));
            }
        }
    }

    /// Sends everything and asks, by an index that `change` makes of the one that is there.
    async fn publish(
        &self,
        packages: &[Package],
        change: impl FnOnce(&mut Index, &mut Vec<PublishedPackage>),
    ) -> Outcome {
        self.publish_by(&self.directory.key, &self.directory.key, packages, change).await
    }

    async fn publish_by(
        &self,
        index_key: &SecretKey,
        package_key: &SecretKey,
        packages: &[Package],
        change: impl FnOnce(&mut Index, &mut Vec<PublishedPackage>),
    ) -> Outcome {
        let (before, mut index) = self.index().await?;
        index.version += 1;
        index.expires = now() + 3600;
        index.repository.get_or_insert_with(|| RepositoryId::generate().unwrap());
        let mut named = Vec::new();
        for package in packages {
            let bytes = package.build().unwrap();
            let (name, version) = (&package.manifest.name, &package.manifest.version);
            let signature = package_key.sign_package(&bytes, name, version).unwrap();
            let digest = self.upload(&bytes).await?;
            named.push(PublishedPackage { digest: digest.clone(), signature });
            let length = bytes.len() as u64;
            let (name, version) = (name.clone(), version.clone());
            index.packages.retain(|entry| (&entry.name, &entry.version) != (&name, &version));
            index.packages.push(IndexEntry { name, version, digest, length, yanked: false });
            sort(&mut index);
        }
        change(&mut index, &mut named);
        sort(&mut index);
        let (json, signature) = index.sign(index_key).unwrap();
        let request = PublishRequest {
            repository: "starter".to_owned(),
            packages: named,
            index: self.upload(&join(&json, &signature)).await?,
            replaces: before.as_deref().map(Digest::of),
        };
        self.call::<Publish>(&request).await
    }

    /// Publishes until nobody else is quicker.
    async fn persist(&self, package: &Package) -> PublishReply {
        for _ in 0..50 {
            match self.publish(std::slice::from_ref(package), |_, _| {}).await {
                Ok(reply) => return reply,
                Err(error) => assert_eq!(
                    (error.code, error.path.as_str()),
                    (Code::Conflict, "replaces"),
                    "{error}"
                ),
            }
        }
        panic!("others were quicker 50 times");
    }

    async fn yank(&self, name: &str, yanked: bool, change: impl FnOnce(&mut Index)) -> Outcome {
        let (before, mut index) = self.index().await?;
        index.version += 1;
        index.expires = now() + 3600;
        for entry in index.packages.iter_mut().filter(|entry| entry.name.as_str() == name) {
            entry.yanked = yanked;
        }
        change(&mut index);
        let (json, signature) = index.sign(&self.directory.key).unwrap();
        let request = YankRequest {
            repository: "starter".to_owned(),
            package: name.parse().unwrap(),
            version: "0.1.0".to_owned(),
            yanked,
            index: self.upload(&join(&json, &signature)).await?,
            replaces: Digest::of(&before.unwrap()),
        };
        self.call::<Yank>(&request).await
    }
}

fn sort(index: &mut Index) {
    index.packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
}

fn resolve(name: &str) -> ResolveRequest {
    ResolveRequest {
        package: name.parse().unwrap(),
        requirement: "*".to_owned(),
        arch: None,
        kernel: None,
    }
}

/// Every file of the repository that a reader could come upon, and what is in it.
fn visible(directory: &Directory) -> Vec<(String, Vec<u8>)> {
    fn walk(dir: &Path, found: &mut Vec<(String, Vec<u8>)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.starts_with('.') {
                continue;
            }
            if path.is_dir() {
                walk(&path, found);
            } else if let Ok(bytes) = fs::read(&path) {
                found.push((path.display().to_string(), bytes));
            }
        }
    }
    let mut found = Vec::new();
    walk(directory.dir.path(), &mut found);
    found.sort();
    found
}

fn waiting(directory: &Directory) -> usize {
    let Ok(publishers) = fs::read_dir(directory.path(".uploads")) else { return 0 };
    let files = publishers.flat_map(|publisher| fs::read_dir(publisher.unwrap().path()).unwrap());
    files.map(|file| fs::read_dir(file.unwrap().path()).unwrap().count()).sum()
}

#[tokio::test]
async fn a_publisher_who_cannot_write_there_publishes_withdraws_and_brings_back() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let directory = Directory::new();
    let process = start(&config(&server, &directory, &json!({})));
    let publisher = Publisher { bus: connect(&server, "u-publisher").await, directory: &directory };
    let viewer = connect(&server, "u-viewer").await;
    let mut events = viewer.subscribe_events("canopy.v1.event.registry.package.*.*").await.unwrap();

    // More than a message holds, of bytes that do not compress.
    let mut large = package("p-large", "0.1.0", "");
    let mut noise = 1_u32;
    let text: String = std::iter::repeat_with(|| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(b' ' + u8::try_from(noise >> 26).unwrap())
    })
    .take(2 << 20)
    .collect();
    large.readme = Some(text);
    let packages = [package("p", "0.1.0", ""), large];
    assert_eq!(publisher.publish(&packages, |_, _| {}).await.unwrap().index_version, 1);
    assert_eq!(waiting(&directory), 0, "pieces of what is published are left");
    for name in ["p", "p-large"] {
        let reply = viewer.call::<Resolve>(&Target::Central, &resolve(name)).await.unwrap();
        let path = artifact_path(&name.parse().unwrap(), &"0.1.0".parse().unwrap());
        let bytes = fs::read(directory.path(&path)).unwrap();
        assert_eq!(Digest::of(&bytes), reply.version.digest);
    }
    for name in ["p", "p-large"] {
        let told: PackagePublished = events.next().await.unwrap().decode().unwrap();
        assert_eq!((told.package.as_str(), told.yanked, told.index_version), (name, false, 1));
        assert_eq!(told.by.as_str(), "u-publisher");
    }

    assert_eq!(publisher.yank("p", true, |_| {}).await.unwrap().index_version, 2);
    let gone = viewer.call::<Resolve>(&Target::Central, &resolve("p")).await.unwrap_err();
    assert_eq!(gone.to_api_error().code, Code::NotFound);
    let told: PackagePublished = events.next().await.unwrap().decode().unwrap();
    assert_eq!((told.package.as_str(), told.yanked), ("p", true));
    publisher.yank("p", false, |_| {}).await.unwrap();
    viewer.call::<Resolve>(&Target::Central, &resolve("p")).await.unwrap();
    // A new expiry and nothing else.
    assert_eq!(publisher.publish(&[], |_, _| {}).await.unwrap().index_version, 4);
    assert!(process.end().unwrap().success());
}

#[tokio::test]
async fn what_is_published_is_recorded_and_what_cannot_be_recorded_is_not_published() {
    let server = NatsServer::start(&[]).unwrap();
    let directory = Directory::new();
    let place = tempfile::tempdir().unwrap();
    let trail = place.path().join("audit");
    let mut config = config(&server, &directory, &json!({}));
    config["audit"] = json!({ "dir": trail });
    let process = start(&config);
    let publisher = Publisher { bus: connect(&server, "u-publisher").await, directory: &directory };
    publisher.publish(&[package("p", "0.1.0", "")], |_, _| {}).await.unwrap();
    publisher.yank("p", true, |_| {}).await.unwrap();
    publisher.publish(&[], |_, _| {}).await.unwrap();
    let mut told = Vec::new();
    for file in fs::read_dir(&trail).unwrap() {
        for line in fs::read_to_string(file.unwrap().path()).unwrap().lines() {
            let record: Value = serde_json::from_str(line).unwrap();
            assert_eq!(record["writer"], "s-registry");
            let verb = record["verb"].as_str().unwrap_or_default();
            if record["kind"] == "ended" && ["publish", "yank"].contains(&verb) {
                assert_eq!(record["principal"], "u-publisher");
                told.push(record["reason"].as_str().unwrap().to_owned());
            }
        }
    }
    assert_eq!(
        told,
        [
            "published in starter: p@0.1.0",
            "withdrawn in starter: p@0.1.0",
            "published in starter: the index alone"
        ]
    );
    assert!(process.end().unwrap().success());

    fs::remove_dir_all(&trail).unwrap();
    fs::write(&trail, "in the way").unwrap();
    let before = visible(&directory);
    let process = ServiceProcess::start(Path::new(PROGRAM), config).unwrap();
    process.wait_status(503).unwrap();
    let refused = wait_for(Duration::from_secs(10), "it says why", || {
        let said = process.get("/ready?verbose").unwrap().1;
        if said.contains("audit") { Ok(said) } else { Err(said) }
    });
    refused.unwrap();
    let packages = [package("p", "0.2.0", "")];
    let refused = loop {
        match publisher.publish(&packages, |_, _| {}).await {
            // Not there yet.
            Err(error) if !error.message.contains("audit record") => {
                assert_eq!(error.code, Code::Unavailable, "{error:?}");
            }
            other => break other.unwrap_err(),
        }
    };
    assert!(refused.message.contains("cannot be kept, so nothing was done"), "{refused:?}");
    assert_eq!(visible(&directory), before);
}

#[tokio::test]
async fn who_has_no_role_for_it_publishes_nothing() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let directory = Directory::new();
    let _process = start(&config(&server, &directory, &json!({})));
    for principal in ["u-viewer", "u-operator", "h-web1-loader"] {
        let bus = connect(&server, principal).await;
        let repository = || "starter".to_owned();
        let (digest, central) = (Digest::of(b"x"), Target::Central);
        let refused = [
            bus.call::<PublishIndex>(
                &central,
                &PublishIndexRequest { repository: repository(), offset: 0 },
            )
            .await
            .err(),
            bus.call::<PublishUpload>(
                &central,
                &PublishUploadRequest {
                    repository: repository(),
                    digest: digest.clone(),
                    total: 1,
                    offset: 0,
                    data: Blob(b"x".to_vec()),
                },
            )
            .await
            .err(),
            bus.call::<Publish>(
                &central,
                &PublishRequest {
                    repository: repository(),
                    packages: Vec::new(),
                    index: digest.clone(),
                    replaces: None,
                },
            )
            .await
            .err(),
            bus.call::<Yank>(
                &central,
                &YankRequest {
                    repository: repository(),
                    package: "p".parse().unwrap(),
                    version: "0.1.0".to_owned(),
                    yanked: true,
                    index: digest.clone(),
                    replaces: digest,
                },
            )
            .await
            .err(),
        ];
        for error in refused {
            assert!(
                matches!(error, Some(CallError::NotPermitted { .. })),
                "{principal}: {error:?}"
            );
        }
    }
    assert_eq!((visible(&directory), waiting(&directory)), (Vec::new(), 0));
}

#[tokio::test]
async fn publishers_at_once_over_the_bus_lose_nothing() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let directory = Directory::new();
    // Two registries share the pieces.
    let config = config(&server, &directory, &json!({}));
    let _processes = [start(&config), start(&config)];
    let name = |publisher: usize, number: usize| format!("p{publisher}-{number}");
    let publishers = (0..3).map(|publisher| {
        let (server, directory) = (&server, &directory);
        async move {
            let bus = connect(server, "u-publisher").await;
            let me = Publisher { bus, directory };
            for number in 0..4 {
                me.persist(&package(&name(publisher, number), "0.1.0", "")).await;
            }
        }
    });
    futures::future::join_all(publishers).await;
    let index = directory.index().unwrap();
    let named: BTreeSet<_> = index.packages.iter().map(|entry| entry.name.to_string()).collect();
    let wanted = (0..3).flat_map(|p| (0..4).map(move |n| name(p, n))).collect();
    assert_eq!(named, wanted);
    assert_eq!(index.version, 12);
    for entry in &index.packages {
        let path = artifact_path(&entry.name, &entry.version);
        entry.check(&fs::read(directory.path(&path)).unwrap()).unwrap();
    }
}

/// A repository with `p` and `p-old`, and a publisher who is about to lie.
struct Liar<'a> {
    me: Publisher<'a>,
    before: Vec<(String, Vec<u8>)>,
    _process: ServiceProcess,
}

impl<'a> Liar<'a> {
    async fn new(server: &NatsServer, directory: &'a Directory, change: &Value) -> Self {
        let process = start(&config(server, directory, change));
        let me = Publisher { bus: connect(server, "u-publisher").await, directory };
        let packages = [package("p", "0.1.0", ""), package("p-old", "0.1.0", "")];
        me.publish(&packages, |_, _| {}).await.unwrap();
        Self { me, before: visible(directory), _process: process }
    }

    /// It is refused so, and nothing has changed.
    #[track_caller]
    fn refused(&self, outcome: Outcome, code: Code, said: &str) {
        let error = outcome.expect_err(said);
        assert_eq!(error.code, code, "{error}");
        assert!(error.to_string().contains(said), "{error}, not {said}");
        assert_eq!(visible(self.me.directory), self.before, "{said}");
    }
}

fn new() -> [Package; 1] {
    [package("p-new", "0.1.0", "")]
}

fn entry<'a>(index: &'a mut Index, name: &str) -> &'a mut IndexEntry {
    index.packages.iter_mut().find(|entry| entry.name.as_str() == name).unwrap()
}

#[tokio::test]
async fn what_is_not_rightly_signed_is_not_published() {
    let (server, directory) = (NatsServer::start(&["web1"]).unwrap(), Directory::new());
    let revoked = package("p-revoked", "0.1.0", "");
    let digest = Digest::of(&revoked.build().unwrap());
    let liar = Liar::new(&server, &directory, &json!({ "revoked": [digest.clone()] })).await;
    let viewer = connect(&server, "u-viewer").await;
    let mut refusals =
        viewer.subscribe_events("canopy.v1.event.registry.package.refused.*").await.unwrap();
    let (me, own, stranger) = (&liar.me, &directory.key, SecretKey::generate().unwrap());

    let outcome = me.publish_by(own, &stranger, &new(), |_, _| {}).await;
    liar.refused(outcome, Code::Denied, "which is not trusted here");
    let told: PackageRefused = refusals.next().await.unwrap().decode().unwrap();
    assert_eq!(told.reason, "untrusted_key");
    assert_eq!(told.repository.as_deref(), Some("starter"));

    let outcome = me.publish_by(&stranger, own, &new(), |_, _| {}).await;
    liar.refused(outcome, Code::Denied, "the index is signed by key");
    let outcome = me.publish(&new(), |_, named| named[0].signature.clear()).await;
    liar.refused(outcome, Code::Denied, "the package file is not signed");
    let outcome = me.publish(&[revoked], |_, _| {}).await;
    liar.refused(outcome, Code::Denied, &format!("{digest} is revoked"));
    let other = |index: &mut Index| entry(index, "p-new").name = "p-other".parse().unwrap();
    let outcome = me.publish(&new(), |index, _| other(index)).await;
    liar.refused(outcome, Code::Denied, "the signature is for");
    let outcome = me.publish(&new(), |index, _| entry(index, "p-new").length += 1).await;
    liar.refused(outcome, Code::Denied, "bytes, not");
    // And all the same, what is true is published.
    me.publish(&new(), |_, _| {}).await.unwrap();
    assert_ne!(visible(&directory), liar.before);
}

#[tokio::test]
async fn an_index_that_lies_is_refused_and_changes_nothing() {
    let (server, directory) = (NatsServer::start(&["web1"]).unwrap(), Directory::new());
    let liar = Liar::new(&server, &directory, &json!({})).await;
    let me = &liar.me;
    let outcome = me.publish(&new(), |index, _| index.version = 1).await;
    liar.refused(outcome, Code::Denied, "has version 1, the one before has 1");
    let outcome = me.publish(&new(), |index, _| index.version = 0).await;
    liar.refused(outcome, Code::Denied, "older than version 1 seen before");
    let outcome = me.publish(&new(), |index, _| index.expires = now() - 10).await;
    liar.refused(outcome, Code::Denied, "the index expired");
    let forget = |index: &mut Index| index.packages.retain(|e| e.name.as_str() != "p-old");
    let outcome = me.publish(&new(), |index, _| forget(index)).await;
    liar.refused(outcome, Code::Denied, "leaves out p-old 0.1.0");
    let outcome = me.publish(&new(), |index, _| entry(index, "p-old").yanked = true).await;
    liar.refused(outcome, Code::Denied, "changes p-old 0.1.0");
    let outcome = me.publish(&new(), |_, named| named.clear()).await;
    liar.refused(outcome, Code::Denied, "changes p-new 0.1.0");
    let outcome = me.publish(&[package("p", "0.1.0", "keywords: [other]")], |_, _| {}).await;
    liar.refused(outcome, Code::Conflict, "p 0.1.0 is already published with other bytes");
    let outcome = me.publish(&[package("other", "0.1.0", "")], |_, _| {}).await;
    liar.refused(outcome, Code::Invalid, "\"other\" does not come from this repository");

    let all = |index: &mut Index| index.packages.iter_mut().for_each(|one| one.yanked = true);
    let outcome = me.yank("p", true, all).await;
    liar.refused(outcome, Code::Denied, "changes p-old 0.1.0");
    let outcome = me.yank("p-none", true, |_| {}).await;
    liar.refused(outcome, Code::Denied, "does not name p-none 0.1.0 so");
}

#[tokio::test]
async fn an_index_that_uses_up_versions_is_refused_and_changes_nothing() {
    let (server, directory) = (NatsServer::start(&["web1"]).unwrap(), Directory::new());
    let liar = Liar::new(&server, &directory, &json!({})).await;
    let me = &liar.me;
    for version in [3, 1 << 30] {
        let outcome = me.publish(&new(), |index, _| index.version = version).await;
        liar.refused(outcome, Code::Denied, "the one before has 1: over the bus it rises by one");
    }
    for version in [1 << 53, u64::MAX] {
        let outcome = me.publish(&new(), |index, _| index.version = version).await;
        liar.refused(outcome, Code::Denied, "today it can be at most");
    }
    for expires in [now() + 733 * 86_400, u64::MAX] {
        let outcome = me.publish(&new(), |index, _| index.expires = expires).await;
        liar.refused(outcome, Code::Denied, "at the latest");
    }
    for (repository, said) in [
        (None, "does not say which repository it is of"),
        (Some(RepositoryId::generate().unwrap()), "not of the same repository as the one before"),
    ] {
        let outcome = me.publish(&new(), |index, _| index.repository = repository).await;
        liar.refused(outcome, Code::Denied, said);
    }
    me.publish(&new(), |_, _| {}).await.unwrap();
}

/// With nothing said of it the registry remembers beside its audit trail.
#[tokio::test]
async fn a_repository_put_back_while_the_registry_is_away_is_refused() {
    let (server, directory) = (NatsServer::start(&["web1"]).unwrap(), Directory::new());
    let place = tempfile::tempdir().unwrap();
    let mut config = config(&server, &directory, &json!({}));
    config["audit"] = json!({ "dir": place.path().join("audit") });
    let process = start(&config);
    let me = Publisher { bus: connect(&server, "u-publisher").await, directory: &directory };
    me.publish(&[package("p", "0.1.0", "")], |_, _| {}).await.unwrap();
    let older = fs::read(directory.path("index.signed")).unwrap();
    me.yank("p", true, |_| {}).await.unwrap();
    assert!(process.end().unwrap().success());
    write(&directory.path("index.signed"), &older);

    let _process = ServiceProcess::start(Path::new(PROGRAM), config).unwrap();
    let admin = connect(&server, "u-admin").await;
    let error = loop {
        let refused = admin.call::<Resolve>(&Target::Central, &resolve("p")).await.unwrap_err();
        match refused.to_api_error() {
            error if error.code == Code::Unavailable => {}
            error => break error,
        }
    };
    assert_eq!(error.reason.as_deref(), Some("index_rolled_back"), "{error:?}");
    let request = ResetRepositoryRequest { repository: "starter".to_owned() };
    let denied = me.bus.call::<ResetIndex>(&Target::Central, &request).await.unwrap_err();
    assert_eq!(denied.to_api_error().code, Code::Denied);
    let reply = admin.call::<ResetIndex>(&Target::Central, &request).await.unwrap();
    assert_eq!((reply.from, reply.to), (2, 1));
    admin.call::<Resolve>(&Target::Central, &resolve("p")).await.unwrap();
    let trail = fs::read_dir(place.path().join("audit")).unwrap();
    let records: String =
        trail.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect();
    assert!(records.contains("highest index version of starter reset from 2 to 1"), "{records}");
}

#[tokio::test]
async fn what_is_not_there_is_neither_replaced_nor_published() {
    let (server, directory) = (NatsServer::start(&["web1"]).unwrap(), Directory::new());
    let liar = Liar::new(&server, &directory, &json!({})).await;
    let me = &liar.me;
    let (_, index) = me.index().await.unwrap();
    let next = Index { version: 2, expires: now() + 60, ..index };
    let (json, signature) = next.sign(&directory.key).unwrap();
    let index = me.upload(&join(&json, &signature)).await.unwrap();
    let mut request = PublishRequest {
        repository: "starter".to_owned(),
        packages: Vec::new(),
        index,
        replaces: Some(Digest::of(b"another")),
    };
    let outcome = me.call::<Publish>(&request).await;
    liar.refused(outcome, Code::Conflict, "another publisher was quicker");
    request.index = Digest::of(b"nothing");
    let outcome = me.call::<Publish>(&request).await;
    liar.refused(outcome, Code::NotFound, "was not sent, or not whole");
    for (repository, code, said) in [
        ("mirror", Code::Denied, "nothing is published to this repository over the bus"),
        ("none", Code::NotFound, "there is no repository \"none\""),
    ] {
        let request = PublishIndexRequest { repository: repository.to_owned(), offset: 0 };
        let error = me.call::<PublishIndex>(&request).await.unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (code, said));
    }
}

#[tokio::test]
async fn pieces_that_are_none_are_refused() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let directory = Directory::new();
    let _process = start(&config(&server, &directory, &json!({})));
    let me = Publisher { bus: connect(&server, "u-publisher").await, directory: &directory };
    let chunk = ARTIFACT_CHUNK as u64;
    let send = async |total: u64, offset: u64, length: usize| {
        let request = PublishUploadRequest {
            repository: "starter".to_owned(),
            digest: Digest::of(b"x"),
            total,
            offset,
            data: Blob(vec![b'x'; length]),
        };
        me.call::<PublishUpload>(&request).await
    };
    for (total, offset, length) in [
        (0, 0, 0),
        (10, 0, 9),
        (10, 0, 11),
        (10, 10, 0),
        (10, 1, 9),
        (2 * chunk, 0, 10),
        (2 * chunk, 7, ARTIFACT_CHUNK),
        (1 << 40, 0, ARTIFACT_CHUNK),
        (u64::MAX, u64::MAX - 1, 1),
    ] {
        let error = send(total, offset, length).await.unwrap_err();
        assert_eq!(error.code, Code::Invalid, "{total} {offset} {length}: {error}");
    }
    let error = send(2 * chunk, chunk, ARTIFACT_CHUNK).await.unwrap_err();
    assert_eq!(error.code, Code::NotFound, "the first piece comes first: {error}");
    assert_eq!(waiting(&directory), 0);
    // Other bytes than their digest says: nothing is made of them.
    send(1, 0, 1).await.unwrap();
    assert_eq!(me.upload(b"x").await.unwrap(), Digest::of(b"x"));
}

#[tokio::test]
async fn files_that_wait_are_bounded_and_forgotten() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let directory = Directory::new();
    let mut config = config(&server, &directory, &json!({}));
    config["refresh_seconds"] = json!(1);
    let _process = start(&config);
    let me = Publisher { bus: connect(&server, "u-publisher").await, directory: &directory };
    let mut refused = None;
    for number in 0..40_u8 {
        if let Err(error) = me.upload(&[number]).await {
            refused = Some((number, error));
            break;
        }
    }
    let (number, error) = refused.expect("files wait without a bound");
    assert_eq!((number, error.code), (24, Code::Unavailable), "{error}");
    assert_eq!(waiting(&directory), 24);
    // One that is there already may be sent again.
    me.upload(&[0]).await.unwrap();

    let old = SystemTime::now() - Duration::from_mins(11);
    for publisher in fs::read_dir(directory.path(".uploads")).unwrap() {
        for file in fs::read_dir(publisher.unwrap().path()).unwrap() {
            for piece in fs::read_dir(file.unwrap().path()).unwrap() {
                File::options()
                    .write(true)
                    .open(piece.unwrap().path())
                    .unwrap()
                    .set_modified(old)
                    .unwrap();
            }
        }
    }
    wait_for(Duration::from_secs(20), "old pieces are forgotten", || match waiting(&directory) {
        0 => Ok(()),
        left => Err(format!("{left} left")),
    })
    .unwrap();
    me.publish(&[package("p", "0.1.0", "")], |_, _| {}).await.unwrap();
}

/// Who publishes into the directory itself holds its lock; who comes over the bus waits, and not for ever.
#[tokio::test]
async fn the_direct_way_and_the_bus_take_turns() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let directory = Directory::new();
    let _process = start(&config(&server, &directory, &json!({ "timeout_seconds": 2 })));
    let me = Publisher { bus: connect(&server, "u-publisher").await, directory: &directory };
    let lock = File::create(directory.path(".index.lock")).unwrap();
    lock.lock().unwrap();
    let error = me.publish(&[package("p", "0.1.0", "")], |_, _| {}).await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    assert!(error.message.contains("another publisher is at it"), "{error}");
    assert!(directory.index().is_none());

    // Published meanwhile, and the lock given back: the one that was read is not there any more.
    let unlock = async {
        // With the two of the attempt before.
        wait_until(|| waiting(&directory) >= 4).await;
        directory.publish(&package("q", "0.1.0", ""));
        lock.unlock().unwrap();
    };
    let packages = [package("p2", "0.1.0", "")];
    let asked = me.publish(&packages, |_, _| {});
    let (asked, ()) = futures::future::join(asked, unlock).await;
    let error = asked.unwrap_err();
    assert_eq!((error.code, error.path.as_str()), (Code::Conflict, "replaces"), "{error}");
    me.persist(&packages[0]).await;
    assert_eq!(directory.index().unwrap().packages.len(), 2);
}

async fn wait_until(so: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !so() {
        assert!(begun.elapsed() < Duration::from_secs(10), "it does not come about");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Killed while it writes: the index names nothing or everything, what it names is whole, and the same
/// again succeeds.
#[tokio::test]
async fn a_registry_that_is_killed_while_it_publishes_leaves_nothing_half() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let mut in_the_middle = 0;
    for attempt in 0..20_u64 {
        let directory = Directory::new();
        let config = config(&server, &directory, &json!({}));
        let process = start(&config);
        let packages: Vec<_> =
            (0..8).map(|number| package(&format!("p{number}"), "0.1.0", "")).collect();
        let me = Publisher { bus: connect(&server, "u-publisher").await, directory: &directory };
        let first = directory.path("p0/0.1.0/p0-0.1.0.cpkg");
        let killer = thread::spawn(move || {
            while !first.exists() {
                thread::yield_now();
            }
            // A little later each time, from the first file to after the index.
            let until = std::time::Instant::now() + Duration::from_micros(500 * attempt);
            while std::time::Instant::now() < until {
                thread::yield_now();
            }
            drop(process);
        });
        // Whoever asked hears nothing, or that it is done.
        let asked = me.publish(&packages, |_, _| {});
        let _ = tokio::time::timeout(Duration::from_secs(2), asked).await;
        killer.join().unwrap();

        assert!(!visible(&directory).is_empty());
        let index = directory.index();
        if index.is_none() {
            in_the_middle += 1;
        }
        for entry in index.iter().flat_map(|index| &index.packages) {
            let path = artifact_path(&entry.name, &entry.version);
            entry.check(&fs::read(directory.path(&path)).unwrap()).unwrap();
            assert!(directory.path(&format!("{path}.minisig")).exists());
        }
        assert!(index.as_ref().is_none_or(|index| index.packages.len() == 8));

        let again = start(&config);
        me.publish(&packages, |_, _| {}).await.unwrap();
        assert_eq!(directory.index().unwrap().packages.len(), 8);
        let loader = connect(&server, "h-web1-loader").await;
        loader.call::<Resolve>(&Target::Central, &resolve("p7")).await.unwrap();
        drop(again);
        if in_the_middle >= 2 && attempt >= 3 {
            return;
        }
    }
    assert!(in_the_middle > 0, "it was never killed in the middle");
}
