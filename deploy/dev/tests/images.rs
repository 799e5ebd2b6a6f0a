//! What goes into container images, and what does not.
#![allow(clippy::unwrap_used, reason = "tests: a failure is the message")]

use std::{fs, path::Path};
use xtask::paths;

/// The file that every builder reads, and the one that `BuildKit` prefers.
const FILES: [&str; 2] = [".dockerignore", "deploy/docker/Dockerfile.dockerignore"];

/// Whether a path of the work tree is kept from the builder: the last pattern that matches it or a directory
/// above it decides (<https://docs.docker.com/build/concepts/context/#dockerignore-files>).
fn ignored(patterns: &str, path: &str) -> bool {
    let mut ignored = false;
    for line in patterns.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (keeps, pattern) = match line.strip_prefix('!') {
            Some(pattern) => (true, pattern),
            None => (false, line),
        };
        let pattern: Vec<&str> = pattern.trim_matches('/').split('/').collect();
        let matches = Path::new(path).ancestors().any(|part| {
            let part: Vec<&str> = part.to_str().unwrap().split('/').collect();
            matches(&pattern, &part)
        });
        if matches {
            ignored = !keeps;
        }
    }
    ignored
}

fn matches(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((&"**", rest)), _) => {
            (0..=path.len()).any(|at| path.get(at..).is_some_and(|below| matches(rest, below)))
        }
        (Some((first, rest)), Some((name, below))) => {
            !name.is_empty() && fits(first, name) && matches(rest, below)
        }
        _ => false,
    }
}

/// `*` stands for any text in one name.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.get(at..).is_some_and(|rest| fits(tail, rest)))
        }),
    }
}

#[test]
fn no_key_build_output_or_history_reaches_an_image() {
    let root = paths::workspace();
    let texts = FILES.map(|file| fs::read_to_string(root.join(file)).unwrap());
    assert_eq!(texts[0], texts[1], "with and without BuildKit");
    let secret = [
        ".canopy/pki/ca.key",
        ".canopy/pki/ca.crt",
        ".canopy/policy-keys/issuer.seed",
        ".canopy/policy-keys/token-signing.pem",
        ".canopy/tokens/u-admin.token",
        ".canopy/signing/canopy.key",
        ".canopy/contexts.json",
        ".canopy",
        ".git/config",
        ".git",
        "target/debug/canopy",
        "target",
        // Made by hand, by the commands of the documents.
        "keys/issuer.seed",
        "keys/callout.json",
        "alice.token",
        "web9.request",
        ".env",
        "services/loader/.canopy/pki/ca.key",
        "services/loader/target/debug/x",
        "deploy/dev/ca.key",
        "shared/a/b/issuer.seed",
        "tests/e2e/token-signing.pem",
        "services/tokens/u-admin.token",
        "deploy/dev/compose.env",
        "deploy/nats/server.key",
    ];
    for path in secret {
        assert!(ignored(&texts[0], path), "{path} would be in an image");
    }
}

#[test]
fn an_image_is_built_from_every_source_file() {
    let root = paths::workspace();
    let patterns = fs::read_to_string(root.join(FILES[0])).unwrap();
    let mut seen = 0;
    for path in sources(&root, Path::new("")) {
        assert!(!ignored(&patterns, &path), "{path} would be missing");
        seen += 1;
    }
    assert!(seen > 100, "only {seen} files");
}

/// What cargo and the compiler read: manifests, sources, and what sources include.
fn sources(root: &Path, below: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            if !["target", ".canopy", ".git"].contains(&name.as_str()) {
                found.extend(sources(root, &path));
            }
            continue;
        }
        let included = ["services/ctl/template", "shared/api/src"];
        let is_read = path.extension().is_some_and(|extension| extension == "rs")
            || ["Cargo.toml", "Cargo.lock", "rust-toolchain.toml"].contains(&name.as_str())
            || path == Path::new(".cargo/config.toml")
            || included.iter().any(|dir| path.starts_with(dir));
        if is_read {
            found.push(path.to_str().unwrap().to_owned());
        }
    }
    found
}

#[test]
fn patterns_are_read_as_a_builder_reads_them() {
    for (patterns, path, expected) in [
        ("*", "a/b", true),
        ("*\n!a", "a/b/c", false),
        ("*\n!a\n**/*.key", "a/b/c.key", true),
        ("**/target", "target/x", true),
        ("**/target", "a/b/target/x", true),
        ("**/target", "a/targets/x", false),
        ("a/*.key", "a/b/c.key", false),
        ("*.key", "a/c.key", false),
        ("# *\n\n", "a", false),
        ("*\n!a/b", "a/c", true),
        ("*\n!a/b", "a/b/c", false),
    ] {
        assert_eq!(ignored(patterns, path), expected, "{patterns:?} {path}");
    }
}
