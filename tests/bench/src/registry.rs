//! `registry`: what a large repository costs, and what many hosts cost.
//!
//! One repository in a directory: its index names `packages` × `versions`; the newest version of each
//! package has a file, the others are listed only (resolving does not touch them). Then many hosts ask
//! for one large package at once, each fetching it in chunks from the registry's own code, without a
//! bus.

use crate::report::Report;
use anyhow::{Context as _, Result};
use canopy_api::{
    Digest,
    document::Format,
    wire::{ArtifactRequest, ListRequest, ResolveRequest},
};
use canopy_package::{
    Index, IndexEntry, Manifest, Package, SecretKey, TrustedKey,
    index::join,
    repository::{INDEX, artifact_path, signature_path},
};
use canopy_registry::{Registry, config::RepositoryConfig, metrics::Metrics};
use canopy_runtime::clock;
use serde::Serialize;
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant, UNIX_EPOCH},
};
use tempfile::TempDir;

/// How much to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Packages in the repository.
    #[arg(long, default_value_t = 100)]
    pub packages: u32,
    /// Versions of each.
    #[arg(long, default_value_t = 1_000)]
    pub versions: u32,
    /// Questions.
    #[arg(long, default_value_t = 2_000)]
    pub questions: u32,
    /// Hosts that ask at once.
    #[arg(long, default_value_t = 100)]
    pub hosts: u32,
    /// Size of the package they ask for, MB.
    #[arg(long, default_value_t = 5)]
    pub megabytes: u32,
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: &'static str,
    /// How much.
    pub value: f64,
    /// In what.
    pub unit: &'static str,
}

fn seconds() -> u64 {
    clock::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A repository and its owner.
struct World {
    dir: TempDir,
    key: SecretKey,
    index: Index,
}

impl World {
    fn new() -> Result<Self> {
        let index = Index { version: 1, expires: seconds() + 86_400, ..Index::default() };
        Ok(Self { dir: TempDir::new()?, key: SecretKey::generate()?, index })
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        fs::write(&path, bytes).with_context(|| path.display().to_string())
    }

    /// A package whose newest version has a file, with as many bytes of README that do not compress.
    fn publish(&mut self, name: &str, versions: u32, object: &[u8], noise: usize) -> Result<()> {
        let newest = format!("1.{versions}.0");
        let manifest = format!(
            "{{ name: {name}, version: {newest}, description: Package {name}, license: MIT, \
             keywords: [bench], programs: [{{ name: main, object: main.o, function: prog, \
             hooks: [xdp] }}] }}"
        );
        let package = Package {
            manifest: Manifest::read(&manifest, Format::Yaml)?,
            objects: [("main.o".to_owned(), object.to_vec())].into(),
            readme: Some(text(noise)),
            license_text: None,
        };
        let bytes = package.build()?;
        for minor in 1..=versions {
            let version: semver::Version = format!("1.{minor}.0").parse()?;
            let own = minor == versions;
            self.index.packages.push(IndexEntry {
                name: name.parse()?,
                digest: if own { Digest::of(&bytes) } else { Digest::of(manifest.as_bytes()) },
                length: bytes.len() as u64,
                yanked: false,
                version: version.clone(),
            });
            if own {
                let name = name.parse()?;
                let signature = self.key.sign_package(&bytes, &name, &version)?;
                self.write(&artifact_path(&name, &version), &bytes)?;
                self.write(&signature_path(&name, &version), signature.as_bytes())?;
            }
        }
        Ok(())
    }

    /// Signs and writes the index, as its next version.
    fn sign(&mut self) -> Result<usize> {
        self.index.version += 1;
        self.index.packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
        let (json, signature) = self.index.sign(&self.key)?;
        let file = join(&json, &signature);
        self.write(INDEX, &file)?;
        Ok(file.len())
    }

    fn registry(&self) -> Result<Registry> {
        let config: RepositoryConfig = serde_json::from_value(json!({
            "name": "bench",
            "url": format!("file://{}", self.dir.path().display()),
            "packages": ["*"],
            "keys": [TrustedKey::from(self.key.public()?)],
            "timeout_seconds": 60,
        }))?;
        let metrics = Metrics::register(&prometheus::Registry::new())?;
        Ok(Registry::new(&[config], 256 << 20, metrics, seconds))
    }
}

/// Text that does not compress well.
fn text(length: usize) -> String {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            char::from(b'!' + state.to_le_bytes()[3] % 94)
        })
        .collect()
}

/// Measures.
pub fn run(options: &Options) -> Result<Report<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(options))
}

async fn measure(options: &Options) -> Result<Report<Row>> {
    let object = canopy_test_support::compile_text(
        "
        #include <linux/bpf.h>
        #include <bpf/bpf_helpers.h>
        SEC(\"xdp\") int prog(struct xdp_md *ctx) { return XDP_PASS; }
        char _license[] SEC(\"license\") = \"GPL\";
        ",
    )?;
    let mut rows = Vec::new();
    let mut row = |what, value, unit| rows.push(Row { what, value, unit });
    let mut world = World::new()?;
    for number in 0..options.packages {
        world.publish(&format!("package-{number}"), options.versions, &object, 64)?;
    }
    let bytes = world.sign()?;
    row("index", count(bytes as u64) / 1e6, "MB");

    let registry = world.registry()?;
    let before = resident()?;
    let begin = Instant::now();
    registry.refresh().await;
    row("first look at the repository", millis(begin.elapsed()), "ms");
    row("memory for its index", count(resident()?.saturating_sub(before)) / 1e6, "MB");
    let begin = Instant::now();
    registry.list(&ListRequest::default(), canopy_api::wire::PAGE_BYTES).await?;
    row("first list (opens every newest file)", millis(begin.elapsed()), "ms");

    let mut times = Vec::new();
    for number in 0..options.questions {
        let package = number.wrapping_mul(2_654_435_761) % options.packages;
        times.push(resolve(&registry, &format!("package-{package}"), "^1").await?.0);
    }
    times.sort_unstable();
    row("resolve, p50", millis(percentile(&times, 50)), "ms");
    row("resolve, p99", millis(percentile(&times, 99)), "ms");
    world.sign()?;
    let begin = Instant::now();
    registry.refresh().await;
    row("look at a changed index", millis(begin.elapsed()), "ms");

    let mut large = World::new()?;
    large.publish("large", 1, &object, options.megabytes as usize * 1_220_000)?;
    large.sign()?;
    let registry = large.registry()?;
    let begin = Instant::now();
    let hosts = (0..options.hosts).map(|_| host(&registry));
    let sent: u64 = futures::future::try_join_all(hosts).await?.into_iter().sum();
    let took = begin.elapsed();
    row("hosts that fetched one large package", f64::from(options.hosts), "");
    row("its size", count(sent) / f64::from(options.hosts) / 1e6, "MB");
    row("time for all of them", millis(took), "ms");
    row("sent", count(sent) / 1e6 / took.as_secs_f64(), "MB/s");

    let table =
        rows.iter().map(|r| format!("{:<40} {:>12.2} {}", r.what, r.value, r.unit)).collect();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    Ok(Report { bench: "registry", kernel, rows, ratios: BTreeMap::new(), table })
}

async fn resolve(
    registry: &Registry,
    name: &str,
    requirement: &str,
) -> Result<(Duration, canopy_api::wire::ResolveReply)> {
    let request = ResolveRequest {
        package: name.parse()?,
        requirement: requirement.to_owned(),
        arch: None,
        kernel: None,
    };
    let begin = Instant::now();
    let reply = registry.resolve(&request).await?;
    Ok((begin.elapsed(), reply))
}

/// What one host does; the bytes it got.
async fn host(registry: &Registry) -> Result<u64> {
    let (_, reply) = resolve(registry, "large", "*").await?;
    let mut offset = 0;
    while offset < reply.version.length {
        let request = ArtifactRequest { digest: reply.version.digest.clone(), offset };
        offset += registry.artifact(&request).await?.data.0.len() as u64;
    }
    Ok(offset)
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let place = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(place).copied().unwrap_or_default()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn count(value: u64) -> f64 {
    value as f64
}

/// Resident memory of this process, bytes.
fn resident() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest run there is: that it runs, and that every figure is one.
    #[test]
    fn a_very_small_registry_is_measured() {
        let options = Options { packages: 3, versions: 4, questions: 20, hosts: 5, megabytes: 1 };
        let report = run(&options).unwrap();
        let value = |what: &str| report.rows.iter().find(|row| row.what == what).unwrap().value;
        assert!(value("resolve, p99") >= value("resolve, p50"));
        assert!(value("its size") > 0.9, "{}", value("its size"));
        assert!(report.rows.iter().all(|row| row.value.is_finite()));
    }
}
