//! Publishing into a bucket: the same commands as for a directory, and nobody's work is lost.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests"
)]

use canopy_api::document::Format;
use canopy_package::{
    Index, Manifest, Package, SecretKey, TrustedKey,
    index::split,
    repository::{INDEX, artifact_path, signature_path},
    sign::verify_package,
};
use canopy_store::{Location, Store, StoreConfig};
use canopy_test_support::stores::Buckets;
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A repository, and somebody with the key to it.
struct World {
    dir: TempDir,
    buckets: Option<Buckets>,
    url: String,
    store: Store,
    key: SecretKey,
    runtime: Runtime,
}

impl World {
    /// A bucket of this store.
    fn bucket(buckets: Buckets) -> Self {
        buckets.make("packages").unwrap();
        let url = buckets.url("packages", "team/canopy");
        let config: StoreConfig = serde_json::from_value(buckets.store().clone()).unwrap();
        Self::new(url, config, Some(buckets))
    }

    /// A directory.
    fn directory() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}", dir.keep().display());
        Self::new(url, StoreConfig::default(), None)
    }

    fn new(url: String, config: StoreConfig, buckets: Option<Buckets>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = SecretKey::generate().unwrap();
        let file = dir.path().join("canopy.key");
        fs::write(&file, key.to_file().unwrap()).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let location = Location::parse(&url).unwrap();
        let store = Store::new(location, config, Duration::from_secs(10));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { dir, buckets, url, store, key, runtime }
    }

    /// A package file on disk.
    fn package(&self, name: &str, version: &str, readme: &str) -> PathBuf {
        let object = canopy_test_support::compile_text(
            "
            #include <linux/bpf.h>
            #include <bpf/bpf_helpers.h>
            SEC(\"xdp\") int prog(struct xdp_md *ctx) { return XDP_PASS; }
            char _license[] SEC(\"license\") = \"GPL\";
            ",
        );
        let manifest = format!(
            "{{ name: {name}, version: {version}, description: A {name}, license: MIT, \
             programs: [{{ name: main, object: main.o, function: prog, hooks: [xdp] }}] }}"
        );
        let package = Package {
            manifest: Manifest::read(&manifest, Format::Yaml).unwrap(),
            objects: [("main.o".to_owned(), object.unwrap())].into(),
            readme: Some(readme.to_owned()),
            license_text: None,
        };
        let path = self.dir.path().join(format!("{name}-{version}-{}.cpkg", readme.len()));
        fs::write(&path, package.build().unwrap()).unwrap();
        path
    }

    fn command(&self, verb: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_canopy"));
        command.args(["package", verb, "--repository", &self.url]).args(arguments);
        command.arg("--key").arg(self.dir.path().join("canopy.key")).stdin(Stdio::null());
        if let Some(buckets) = &self.buckets {
            command.arg("--store").arg(buckets.store_file().unwrap());
        }
        command
    }

    /// What the command said; fails when it did not end with `code`.
    fn run(&self, code: i32, verb: &str, arguments: &[&str]) -> String {
        let output = self.command(verb, arguments).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        said
    }

    fn publish(&self, path: &Path) -> String {
        self.run(0, "publish", &[path.to_str().unwrap()])
    }

    fn trusted(&self) -> Vec<TrustedKey> {
        vec![TrustedKey::from(self.key.public().unwrap())]
    }

    fn read(&self, path: &str) -> Vec<u8> {
        self.runtime.block_on(self.store.read(path, 1 << 24)).unwrap().to_vec()
    }

    /// The index as a reader sees it, and that every file it names is there and is right.
    fn checked(&self) -> Index {
        let file = self.read(INDEX);
        let (json, signature) = split(&file).unwrap();
        let index = Index::open(json, signature, &self.trusted(), now(), 0).unwrap();
        for entry in &index.packages {
            let bytes = self.read(&artifact_path(&entry.name, &entry.version));
            entry.check(&bytes).unwrap();
            let signature = self.read(&signature_path(&entry.name, &entry.version));
            let signature = String::from_utf8(signature).unwrap();
            let (name, version) = (&entry.name, &entry.version);
            let keys = self.trusted();
            verify_package(&bytes, &signature, &keys, now(), name, version, &entry.digest).unwrap();
        }
        index
    }
}

/// What publishing has to do wherever it is.
fn every_command(world: &World) {
    let first = world.package("wall", "0.1.0", "one");
    let said = world.publish(&first);
    assert!(said.contains("wall 0.1.0 published"), "{said}");
    assert_eq!(world.checked().version, 1);
    assert!(world.publish(&first).contains("published already"));
    assert_eq!(world.checked().version, 1, "the same again changes nothing");

    let other = world.package("wall", "0.1.0", "something else");
    let said = world.run(5, "publish", &[other.to_str().unwrap()]);
    assert!(said.contains("already published with other bytes"), "{said}");

    world.run(0, "yank", &["wall@0.1.0"]);
    assert!(world.checked().packages[0].yanked);
    world.run(0, "yank", &["wall@0.1.0", "--undo"]);
    assert!(!world.checked().packages[0].yanked);
    world.run(0, "publish", &["--refresh-index"]);
    assert_eq!(world.checked().version, 4);

    // An index that is lost is made anew from what is there.
    world.runtime.block_on(world.store.write(INDEX, b"rubbish".to_vec())).unwrap();
    let next = world.package("wall", "0.2.0", "two");
    let said = world.run(6, "publish", &[next.to_str().unwrap()]);
    assert!(said.contains("--rebuild-index"), "{said}");
    world.run(0, "publish", &["--rebuild-index"]);
    world.publish(&next);
    let versions: Vec<_> =
        world.checked().packages.iter().map(|entry| entry.version.to_string()).collect();
    assert_eq!(versions, ["0.1.0", "0.2.0"]);
}

/// Ten publishers at once, each with a version of its own, and all of them with one that they agree
/// on.
fn many_publishers(world: &World) {
    let common = world.package("common", "1.0.0", "the same for all");
    let running: Vec<_> = (0..10)
        .map(|number| {
            let own = world.package("wall", &format!("0.{number}.0"), "own");
            let files = [own.to_str().unwrap(), common.to_str().unwrap()];
            let mut command = world.command("publish", &files);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in running {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
    let index = world.checked();
    assert_eq!(index.packages.len(), 11, "somebody's work is lost: {index:?}");
    assert_eq!(index.version, 11, "one for each package that was added");
}

#[test]
fn every_command_works_in_a_directory_named_by_url() {
    every_command(&World::directory());
}

#[test]
fn publishers_at_once_lose_nothing_in_a_directory() {
    many_publishers(&World::directory());
}

#[test]
fn every_command_works_in_s3_and_publishers_at_once_lose_nothing() {
    let world = World::bucket(Buckets::s3().unwrap());
    every_command(&world);
    let busy = World::bucket(Buckets::s3().unwrap());
    many_publishers(&busy);
}

#[test]
fn every_command_works_in_azure_and_publishers_at_once_lose_nothing() {
    let world = World::bucket(Buckets::azure().unwrap());
    every_command(&world);
    let busy = World::bucket(Buckets::azure().unwrap());
    many_publishers(&busy);
}

/// Two with the same version and different files: the first one's file stays whatever the other does,
/// and what the index names is what is there.
#[test]
fn two_files_under_one_version_leave_one_of_them_whole() {
    let world = World::bucket(Buckets::s3().unwrap());
    let files = ["one", "another one"].map(|readme| world.package("wall", "0.1.0", readme));
    let running = files.map(|file| {
        let mut command = world.command("publish", &[file.to_str().unwrap()]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    });
    let mut codes = running.map(|child| child.wait_with_output().unwrap().status.code().unwrap());
    codes.sort_unstable();
    assert_eq!(codes, [0, 5]);
    assert_eq!(world.checked().packages.len(), 1);
}

/// A publisher that ends between its file and the index leaves a file that no reader knows of. The
/// same file can be published again; another one under its version cannot.
#[test]
fn a_publication_broken_off_is_finished_by_publishing_again() {
    let world = World::bucket(Buckets::s3().unwrap());
    world.publish(&world.package("other", "0.1.0", ""));
    let [file, another] =
        ["one", "another one"].map(|readme| world.package("wall", "0.1.0", readme));
    let path = artifact_path(&"wall".parse().unwrap(), &"0.1.0".parse().unwrap());
    world.runtime.block_on(world.store.write(&path, fs::read(&file).unwrap())).unwrap();
    let said = world.run(5, "publish", &[another.to_str().unwrap()]);
    assert!(said.contains("does not name it yet"), "{said}");
    world.publish(&file);
    assert_eq!(world.checked().packages.len(), 2);
}

#[test]
fn a_web_server_is_no_place_to_publish_to() {
    let world = World::new("https://127.0.0.1:1/x".to_owned(), StoreConfig::default(), None);
    let said = world.run(2, "publish", &[world.package("p", "0.1.0", "").to_str().unwrap()]);
    assert!(said.contains("fix: publish to the directory it serves"), "{said}");
}
