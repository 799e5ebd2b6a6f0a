//! Keys and tokens stay where they belong: a whole run is searched for them.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests: a failure is the message")]

use canopy_api::endpoint::Service;
use canopy_e2e::{BLOCKED, INTERFACE, World};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Every file below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// What is secret in a key, seed or token: each line of it, and of a token its signature too, which is
/// what a token without its first part would be told by.
fn secrets(path: &Path) -> Vec<Vec<u8>> {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().filter(|line| line.len() > 20 && !line.starts_with("--"));
    let comment = "untrusted comment";
    lines
        .filter(|line| !line.starts_with(comment))
        .flat_map(|line| [line, line.rsplit('.').next().unwrap()])
        .map(|part| part.as_bytes().to_vec())
        .collect()
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[test]
fn a_whole_run_says_no_key_and_no_token() {
    let world = World::start().unwrap();
    // Changes that are made, denied and wrong; tokens made, replaced, taken back, shown.
    world.apply(&World::firewall()).unwrap();
    world.send(BLOCKED, 5).unwrap();
    world.canopy_as("viewer", &["delete", "chain", INTERFACE, "xdp"]).unwrap();
    world.try_apply("chains: [{ interface: v0, hook: xdp, programs: [{ name: x }] }]").unwrap();
    let replaced = world.dir().join("replaced.token");
    let output = replaced.to_str().unwrap();
    let answer = ["token", "regenerate", "u-viewer", "--save", output];
    world.canopy_as("admin", &answer).unwrap().text().unwrap();
    let mut printed = String::new();
    for ask in [&["token", "list", "-o", "json"][..], &["token", "show", "u-admin", "-o", "yaml"]] {
        printed += world.canopy_as("admin", ask).unwrap().text().unwrap();
    }
    world.canopy_as("admin", &["token", "revoke", "u-viewer"]).unwrap().text().unwrap();

    let layout = world.stack().layout();
    let mut secret: BTreeMap<PathBuf, Vec<Vec<u8>>> = BTreeMap::new();
    let mut said: Vec<(String, Vec<u8>)> =
        vec![("the command line's output".into(), printed.into())];
    for path in files(world.dir()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        if [".key", ".seed", ".pem", ".token"].iter().any(|ending| name.ends_with(ending)) {
            secret.insert(path.clone(), secrets(&path));
        } else {
            said.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    for pid in world.alive().unwrap() {
        for what in ["cmdline", "environ"] {
            let path = format!("/proc/{pid}/{what}");
            said.push((path.clone(), fs::read(path).unwrap()));
        }
    }
    for service in Service::ALL {
        let metrics = world.inside(|stack| stack.metrics(service)).unwrap();
        said.push((format!("metrics of {service}"), metrics.into()));
    }

    // The search sees what it should: logs, settings, state and processes, and every kind of secret.
    for (place, text) in [
        (layout.log_dir(), "token issued"),
        (layout.service_config(Service::Policy), "signing_keys"),
        (layout.state_dir(), "u-operator"),
        (PathBuf::from("/proc"), "canopy-loader"),
    ] {
        let seen = said.iter().any(|(from, said)| {
            from.starts_with(place.to_str().unwrap()) && contains(said, text.as_bytes())
        });
        assert!(seen, "no \"{text}\" in {}", place.display());
    }
    let bytes: usize = said.iter().map(|(_, text)| text.len()).sum();
    println!("{} keys and tokens, {} places, {bytes} bytes", secret.len(), said.len());
    for kind in
        ["issuer.seed", "token-signing.pem", "u-admin.key", "u-admin.token", "replaced.token"]
    {
        assert!(secret.keys().any(|path| path.ends_with(kind)), "no {kind}");
    }
    for (path, parts) in &secret {
        assert!(!parts.is_empty(), "nothing to look for in {}", path.display());
        for (place, text) in &said {
            for part in parts {
                assert!(!contains(text, part), "{} is in {place}", path.display());
            }
        }
    }
    world.end().unwrap();
}
