//! Repositories in temporary directories.

#![allow(dead_code, reason = "each test uses its own part")]

use canopy_api::document::Format;
use canopy_package::{
    Index, Manifest, Package, SecretKey, TrustedKey,
    repository::{INDEX, Publisher},
};
use canopy_registry::{Registry, config::RepositoryConfig, metrics::Metrics};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{SystemTime, UNIX_EPOCH},
};
use tempfile::TempDir;

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// An eBPF object with one function `prog`.
fn object() -> Vec<u8> {
    static OBJECT: OnceLock<Vec<u8>> = OnceLock::new();
    let source = "
        #include <linux/bpf.h>
        #include <bpf/bpf_helpers.h>
        SEC(\"xdp\") int prog(struct xdp_md *ctx) { return XDP_PASS; }
        char _license[] SEC(\"license\") = \"GPL\";
    ";
    OBJECT.get_or_init(|| canopy_test_support::compile_text(source).unwrap()).clone()
}

/// A package of one program; `more` is added to the manifest.
pub(crate) fn package(name: &str, version: &str, more: &str) -> Package {
    let manifest = format!(
        "
name: {name}
version: {version}
description: The package {name}
license: MIT
programs: [{{ name: main, object: main.o, function: prog, hooks: [xdp] }}]
{more}
"
    );
    Package {
        manifest: Manifest::read(&manifest, Format::Yaml).unwrap(),
        objects: [("main.o".to_owned(), object())].into(),
        readme: Some(format!("# {name} {version}\n")),
        license_text: None,
    }
}

/// A directory with a publisher's key.
pub(crate) struct Directory {
    pub(crate) dir: TempDir,
    pub(crate) key: SecretKey,
}

impl Directory {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), key: SecretKey::generate().unwrap() }
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub(crate) fn trusted(&self) -> Vec<TrustedKey> {
        vec![TrustedKey::from(self.key.public().unwrap())]
    }

    pub(crate) fn index(&self) -> Option<Index> {
        let bytes = std::fs::read(self.path(INDEX)).ok()?;
        Some(Index::read_unverified(&bytes).unwrap())
    }

    pub(crate) fn write(&self, files: &[(String, Vec<u8>)]) {
        for (path, bytes) in files {
            write(&self.path(path), bytes);
        }
    }

    pub(crate) fn publish(&self, package: &Package) -> Vec<u8> {
        let (name, version) = (&package.manifest.name, &package.manifest.version);
        let bytes = package.build().unwrap();
        let signature = self.key.sign_package(&bytes, name, version).unwrap();
        let publication = Publisher::new(&self.key, now())
            .publish(self.index().as_ref(), &bytes, &signature, &self.trusted())
            .unwrap();
        self.write(&publication.files);
        bytes
    }

    /// As the configuration file says it; `change` replaces fields.
    pub(crate) fn config(&self, name: &str, packages: &[&str], change: &Value) -> RepositoryConfig {
        let mut value = json!({
            "name": name,
            "url": format!("file://{}", self.dir.path().display()),
            "packages": packages,
            "keys": self.trusted(),
        });
        for (field, new) in change.as_object().unwrap() {
            value[field] = new.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    pub(crate) fn registry(&self) -> Registry {
        registry(&[self.config("test", &["*"], &json!({}))])
    }
}

/// As a publisher writes: to a new file, then renamed.
pub(crate) fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let new = path.with_extension("new");
    std::fs::write(&new, bytes).unwrap();
    std::fs::rename(&new, path).unwrap();
}

pub(crate) fn registry(repositories: &[RepositoryConfig]) -> Registry {
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    Registry::new(repositories, 256 << 20, metrics, now)
}
