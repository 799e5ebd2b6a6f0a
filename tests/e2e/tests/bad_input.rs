//! Everything a person or a stranger can get wrong: one clear error with a code, a place and a
//! remedy; the running chain is untouched; no service dies.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests: a failure is the message"
)]

use anyhow::Result;
use canopy_api::{Hook, wire::ChainStatus};
use canopy_e2e::{Answer, BLOCKED, INTERFACE, World};
use canopy_test_support::pair::PEER_IP;
use std::fs;
use xtask::{compile, outside, shell};

// Exit codes of the command line; each is one error code.
const INVALID: i32 = 2;
const NOT_FOUND: i32 = 4;
const DENIED: i32 = 6;

/// A chain that must not notice anything, and what it looked like before.
struct Running {
    world: World,
    link: outside::Link,
    chain: ChainStatus,
    processes: Vec<i32>,
    dropped: u64,
}

impl Running {
    fn new() -> Self {
        let world = World::start().unwrap();
        world.apply(&World::firewall()).unwrap();
        let link = world.kernel_link().unwrap().unwrap();
        let chain = world.chain(Hook::Xdp).unwrap();
        let processes = world.alive().unwrap();
        Self { world, link, chain, processes, dropped: 0 }
    }

    /// The same link, program and processes; packets are dropped and counted, one for one.
    fn assert_untouched(&mut self, after: &str) {
        assert_eq!(self.world.kernel_link().unwrap().unwrap(), self.link, "{after}");
        assert_eq!(self.world.send(BLOCKED, 10).unwrap(), 0, "{after}");
        assert_eq!(self.world.send(PEER_IP, 10).unwrap(), 10, "{after}");
        self.dropped += 10;
        let chain = self.world.chain(Hook::Xdp).unwrap();
        assert_eq!(chain.observed, self.chain.observed, "{after}");
        assert_eq!(chain.programs[0].exits.get("drop"), Some(&self.dropped), "{after}");
        assert_eq!(chain.programs[1].exits.get("pass"), Some(&self.dropped), "{after}");
        assert_eq!(self.world.alive().unwrap(), self.processes, "{after}");
    }

    /// Applies; the answer has this exit code, this place, these words, and a remedy.
    fn refused(&mut self, case: &str, document: &str, code: i32, place: &str, words: &[&str]) {
        let answer = self.world.try_apply(document).unwrap();
        assert_error(case, &answer, code, place, words);
        self.assert_untouched(case);
    }
}

fn assert_error(case: &str, answer: &Answer, code: i32, place: &str, words: &[&str]) {
    let said = format!("{case}: exit code {}\n{}{}", answer.code, answer.out, answer.err);
    assert_eq!(answer.code, code, "{said}");
    assert!(answer.err.starts_with("error: "), "{said}");
    let at = answer.err.lines().find(|line| line.trim_start().starts_with("at: "));
    assert!(at.is_some_and(|at| at.contains(place)), "{place} is not the place in\n{said}");
    let remedy = ["\n  fix: ", "; write "].iter().any(|words| answer.err.contains(words));
    assert!(remedy, "no remedy in\n{said}");
    for word in words {
        assert!(answer.err.contains(word), "{word:?} is missing in\n{said}");
    }
    assert!(!answer.err.contains("panicked"), "{said}");
}

/// A chain of one program on the test's interface.
fn one(package: &str, config: &str) -> String {
    format!(
        "chains:\n- interface: {INTERFACE}\n  hook: xdp\n  programs:\n  \
         - {{ name: it, package: \"{package}\", config: {{ {config} }} }}\n"
    )
}

#[test]
fn what_a_person_writes_wrongly_is_refused_with_place_and_remedy() {
    let mut running = Running::new();
    for (case, document, code, place, words) in [
        ("not YAML", "chains: [".to_owned(), INVALID, "document.yaml", &["YAML"][..]),
        (
            "unknown field",
            World::firewall().replace("priority: 10", "prioritty: 10"),
            INVALID,
            "chains[0].programs[0]",
            &["prioritty", "priority"],
        ),
        (
            "unknown hook",
            World::firewall().replace("hook: xdp", "hook: xpd"),
            INVALID,
            "chains[0].hook",
            &["xdp"],
        ),
        (
            "unknown package",
            one("firewal", ""),
            NOT_FOUND,
            "chains[0].programs[0].package",
            &["firewal"],
        ),
        (
            "impossible version",
            one("firewall@^99", ""),
            NOT_FOUND,
            "chains[0].programs[0].package",
            &["0.1.1"],
        ),
        (
            "no version at all",
            one("firewall@latest", ""),
            INVALID,
            "chains[0].programs[0].package",
            &["firewall@latest"],
        ),
        (
            "missing interface",
            World::firewall().replace(INTERFACE, "nosuch0"),
            NOT_FOUND,
            "chains[0].interface",
            &["nosuch0"],
        ),
        (
            "wrong type of a setting",
            one("ratelimit", "rate: \"fast\""),
            INVALID,
            "chains[0].programs[0].config.rate",
            &["rate"],
        ),
        (
            "setting out of range",
            one("ratelimit", "rate: 0"),
            INVALID,
            "chains[0].programs[0].config.rate",
            &["1"],
        ),
        (
            "unknown setting",
            one("ratelimit", "ratte: 5"),
            INVALID,
            "chains[0].programs[0].config",
            &["ratte", "rate"],
        ),
        (
            "not a prefix",
            one("firewall", "blocked: [\"300.1.2.3\"]"),
            INVALID,
            "chains[0].programs[0].config.blocked[0]",
            &["300.1.2.3"],
        ),
        (
            "program of another hook",
            one("flowmeter", ""),
            INVALID,
            "chains[0].programs[0]",
            &["xdp"],
        ),
    ] {
        running.refused(case, &document, code, place, words);
    }
    running.world.end().unwrap();
}

/// What is done to a repository.
type Damage = dyn Fn(&World) -> Result<()>;

/// Broken files in the repository, each under a name of its own.
#[test]
fn packages_that_are_not_what_they_should_be_are_refused() {
    let mut running = Running::new();
    let other = running.world.dir().join("other-key");
    shell::quiet(
        std::process::Command::new(compile::binary("canopy").unwrap())
            .args(["package", "keygen", "-o"])
            .arg(&other),
    )
    .unwrap();
    let breakages: [(&str, &str, &Damage); 6] = [
        ("truncated", "bytes, not", &|world| {
            let (file, _) = world.repository().files("truncated");
            let bytes = fs::read(&file)?;
            Ok(fs::write(&file, &bytes[..bytes.len() / 2])?)
        }),
        ("oversized", "is larger than", &|world| {
            let (file, _) = world.repository().files("oversized");
            Ok(fs::OpenOptions::new().write(true).open(file)?.set_len(64 << 20)?)
        }),
        ("changed", "has digest", &|world| {
            let (file, _) = world.repository().files("changed");
            let mut bytes = fs::read(&file)?;
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            Ok(fs::write(&file, bytes)?)
        }),
        ("unsigned", "is not signed", &|world| {
            Ok(fs::remove_file(world.repository().files("unsigned").1)?)
        }),
        ("wrongly-signed", "which is not trusted here", &|world| {
            let (file, signature) = world.repository().files("wrongly-signed");
            fs::remove_file(signature)?;
            world
                .canopy(&[
                    "package",
                    "sign",
                    file.to_str().unwrap(),
                    "--key",
                    world.dir().join("other-key/canopy.key").to_str().unwrap(),
                ])?
                .text()
                .map(drop)
        }),
        ("swapped-signature", "does not match its signature", &|world| {
            let (_, signature) = world.repository().files("swapped-signature");
            Ok(fs::copy(world.repository().files("changed").1, signature).map(drop)?)
        }),
    ];
    for (name, ..) in &breakages {
        running.world.repository().publish(name, |_| Ok(())).unwrap();
    }
    for (name, words, damage) in &breakages {
        damage(&running.world).unwrap();
        let answer = running.world.try_apply(&one(name, "")).unwrap();
        assert_error(name, &answer, DENIED, "chains[0].programs[0].package", &[name, words]);
        running.assert_untouched(name);
    }
    running.world.end().unwrap();
}

/// Reads packet bytes without a check of the packet's end.
const UNCHECKED: &str = r#"
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
SEC("xdp") int firewall(struct xdp_md *ctx)
{
    char *data = (char *)(long)ctx->data;
    return data[100] ? XDP_DROP : XDP_PASS;
}
char LICENSE[] SEC("license") = "GPL";
"#;

#[test]
fn a_program_that_the_verifier_refuses_is_named_with_its_log() {
    let mut running = Running::new();
    running
        .world
        .repository()
        .publish("unchecked", |dir| {
            let object = canopy_test_support::compile_text(UNCHECKED)?;
            fs::write(dir.join("firewall.bpf.o"), object)?;
            let manifest = dir.join("package.yaml");
            let text = fs::read_to_string(&manifest)?;
            // Nothing of the firewall's maps and settings is in this object.
            let (head, _) = text.split_once("config:\n").unwrap();
            Ok(fs::write(&manifest, head)?)
        })
        .unwrap();
    let document = one("unchecked", "").replace("config: {  } ", "");
    running.refused(
        "refused by the verifier",
        &document,
        INVALID,
        "chains[0].programs[0]",
        &["program \"it\"", "the verifier rejects it", "invalid access to packet"],
    );
    running.world.end().unwrap();
}
