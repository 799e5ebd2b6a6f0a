//! The rules of the workspace that no compiler checks: dependencies point down only, and the pure
//! crates stay pure (`docs/ARCHITECTURE.md`).

use crate::{compile, paths, shell};
use anyhow::{Context as _, Result};
use serde::Deserialize;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Crates that only one of ours may use.
const KEPT_IN: &[(&str, &[&str])] = &[
    ("async-nats", &["canopy-bus"]),
    ("aya", &["canopy-kernel-aya"]),
    ("aya-obj", &["canopy-kernel-aya"]),
    ("axum", &["canopy-runtime"]),
    ("hyper", &["canopy-runtime"]),
    ("hyper-util", &["canopy-runtime"]),
    ("tracing-subscriber", &["canopy-runtime"]),
    ("opentelemetry_sdk", &["canopy-runtime"]),
    ("opentelemetry-otlp", &["canopy-runtime"]),
    ("minisign", &["canopy-package"]),
    ("jsonwebtoken", &["canopy-identity"]),
    ("nkeys", &["canopy-bus"]),
    ("object_store", &["canopy-store"]),
];

/// What each library of ours may use of ours.
const MAY_USE: &[(&str, &[&str])] = &[
    ("canopy-api", &[]),
    ("canopy-admission", &["canopy-api", "canopy-package"]),
    ("canopy-chain", &["canopy-api"]),
    ("canopy-package", &["canopy-api"]),
    ("canopy-values", &["canopy-api", "canopy-chain"]),
    ("canopy-kernel", &["canopy-api"]),
    ("canopy-kernel-aya", &["canopy-api", "canopy-chain", "canopy-kernel"]),
    ("canopy-audit", &["canopy-api"]),
    ("canopy-identity", &["canopy-api"]),
    ("canopy-files", &[]),
    ("canopy-secrets", &["canopy-files"]),
    (
        "canopy-bus",
        &["canopy-api", "canopy-audit", "canopy-files", "canopy-identity", "canopy-secrets"],
    ),
    ("canopy-runtime", &["canopy-api", "canopy-files", "canopy-identity", "canopy-secrets"]),
    ("canopy-store", &["canopy-api", "canopy-files", "canopy-runtime", "canopy-secrets"]),
];

/// Bytes in, verdict out.
const PURE: &[&str] = &[
    "canopy-admission",
    "canopy-api",
    "canopy-audit",
    "canopy-chain",
    "canopy-identity",
    "canopy-package",
    "canopy-values",
];

/// What a pure crate does not use.
const IMPURE_CRATES: &[&str] =
    &["tokio", "tokio-util", "futures", "nix", "libc", "tempfile", "object_store", "rand"];
const IMPURE_CALLS: &[&str] = &[
    "SystemTime::now",
    "Instant::now",
    "std::fs",
    "std::net::",
    "std::env::",
    "std::process::",
    "std::thread",
    "File::open",
];

/// The services: none depends on another, and no library depends on one.
const SERVICES: &[&str] = &[
    "canopy-loader",
    "canopy-registry",
    "canopy-policy",
    "canopy-cert-monitor",
    "canopy-enforcer",
    "canopy-ctl",
];

/// The only crates with `unsafe`.
const UNSAFE_IN: &[&str] = &["shared/kernel-aya", "shared/test-support"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `dev`, `build` or absent for a normal one.
    kind: Option<String>,
}

/// Every breach, in words.
pub fn breaches() -> Result<Vec<String>> {
    let text =
        shell::output(compile::cargo("metadata")?.args(["--format-version=1", "--no-deps"]))?;
    let metadata: Metadata = serde_json::from_str(&text).context("cargo's metadata")?;
    let mut breaches = dependency_breaches(&metadata);
    for package in &metadata.packages {
        let dir = package.manifest_path.parent().unwrap_or(Path::new("."));
        if PURE.contains(&package.name.as_str()) {
            impure_calls(&dir.join("src"), &mut breaches)?;
        }
        let relative = paths::short(dir);
        if !UNSAFE_IN.contains(&relative.as_str()) {
            allowed_unsafe(dir, &mut breaches)?;
        }
    }
    Ok(breaches)
}

fn dependency_breaches(metadata: &Metadata) -> Vec<String> {
    let mut breaches = Vec::new();
    for package in &metadata.packages {
        let name = package.name.as_str();
        // Nothing depends on a crate of tests: it may use what it tests.
        if paths::short(&package.manifest_path).starts_with("tests/") {
            continue;
        }
        for dependency in &package.dependencies {
            let on = dependency.name.as_str();
            let only_tests = dependency.kind.as_deref() == Some("dev");
            if let Some((_, keepers)) = KEPT_IN.iter().find(|(kept, _)| *kept == on)
                && !keepers.contains(&name)
                && !only_tests
            {
                breaches.push(format!("{name} uses {on}, which only {} may", keepers.join(", ")));
            }
            if SERVICES.contains(&on) && !only_tests {
                breaches.push(format!("{name} depends on the service {on}"));
            }
            if only_tests {
                continue;
            }
            if let Some((_, allowed)) = MAY_USE.iter().find(|(library, _)| *library == name)
                && on.starts_with("canopy-")
                && !allowed.contains(&on)
            {
                breaches.push(format!("{name} may not know {on}"));
            }
            if PURE.contains(&name) && IMPURE_CRATES.contains(&on) {
                breaches.push(format!("{name} is pure and may not use {on}"));
            }
        }
    }
    breaches
}

fn impure_calls(source: &Path, breaches: &mut Vec<String>) -> Result<()> {
    for (file, text) in rust_files(source)? {
        // Tests may read files.
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            let line = line.trim_start();
            if line.starts_with("//") {
                continue;
            }
            for call in IMPURE_CALLS.iter().filter(|call| line.contains(**call)) {
                breaches.push(format!(
                    "{}:{}: a pure crate has no {call}",
                    paths::short(&file),
                    number + 1
                ));
            }
        }
    }
    Ok(())
}

fn allowed_unsafe(dir: &Path, breaches: &mut Vec<String>) -> Result<()> {
    for (file, text) in rust_files(dir)? {
        // Written in two parts so that this file does not accuse itself.
        if text.contains(concat!("(unsafe", "_code")) {
            breaches.push(format!("{}: unsafe code is for kernel-aya", paths::short(&file)));
        }
    }
    Ok(())
}

fn rust_files(dir: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)?;
            files.push((path, text));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_keeps_its_rules() {
        let breaches = breaches().unwrap();
        assert!(breaches.is_empty(), "{}", breaches.join("\n"));
    }

    #[test]
    fn breaches_are_seen() {
        let metadata: Metadata = serde_json::from_value(serde_json::json!({ "packages": [
            { "name": "canopy-api", "manifest_path": "/x/Cargo.toml", "dependencies": [
                { "name": "tokio", "kind": null },
                { "name": "canopy-bus", "kind": null },
            ]},
            { "name": "canopy-loader", "manifest_path": "/y/Cargo.toml", "dependencies": [
                { "name": "async-nats", "kind": null },
                { "name": "canopy-registry", "kind": null },
                { "name": "canopy-policy", "kind": "dev" },
            ]},
        ]}))
        .unwrap();
        assert_eq!(
            dependency_breaches(&metadata),
            [
                "canopy-api is pure and may not use tokio",
                "canopy-api may not know canopy-bus",
                "canopy-loader uses async-nats, which only canopy-bus may",
                "canopy-loader depends on the service canopy-registry",
            ]
        );
    }
}
