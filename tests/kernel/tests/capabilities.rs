//! The loader needs three capabilities and no more.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code: a failure is a panic")]

use canopy_api::wire::{ChainState, Fact, GetReply};
use canopy_kernel_tests::{
    files,
    host::{Site, Task},
};
use canopy_test_support::{
    bpffs::BpffsDir,
    netns::{NamedNetns, Netns},
    pair::{HOST_LINK, PEER_IP, Pair},
    traffic::ping,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Output},
};

/// A host on which everything runs with these capabilities.
struct Host {
    pair: Pair,
    bpffs: BpffsDir,
    dir: tempfile::TempDir,
    capabilities: &'static str,
}

impl Host {
    fn new(capabilities: &'static str) -> Self {
        Self {
            pair: Pair::new().unwrap(),
            bpffs: BpffsDir::new().unwrap(),
            dir: tempfile::tempdir().unwrap(),
            capabilities,
        }
    }

    /// Applies a document; with `more`, the kernel is probed and all pins are removed afterwards.
    fn change(&self, document: Value, more: bool) -> Output {
        self.perform(document, more, false)
    }

    /// The same; with `profile`, run times are asked for afterwards.
    fn perform(&self, document: Value, more: bool, profile: bool) -> Output {
        let dir = self.dir.path();
        let site = Site {
            state: dir.join("state"),
            bpffs: self.bpffs.path().to_owned(),
            packages: BTreeMap::from([
                ("firewall@*".to_owned(), files::write(dir, &files::starter("firewall"))),
                ("flowmeter@*".to_owned(), files::write(dir, &files::starter("flowmeter"))),
                // Too large to lie inside the generated function: it keeps its name.
                ("functions@*".to_owned(), files::write(dir, &files::corpus("functions", &[]))),
            ]),
        };
        let task = serde_json::to_string(&Task { site, document, more, profile }).unwrap();
        self.pair
            .host
            .run(|| {
                Ok(Command::new("setpriv")
                    .arg(format!("--bounding-set={}", self.capabilities))
                    .arg(format!("--inh-caps={}", self.capabilities))
                    .arg("--no-new-privs")
                    .arg(env!("CARGO_BIN_EXE_canopy-test-change"))
                    .arg(task)
                    .output()?)
            })
            .unwrap()
    }
}

fn chains(blocked: &[&str]) -> Value {
    json!({ "chains": [
        { "interface": HOST_LINK, "hook": "xdp", "programs": [
            { "name": "wall", "package": "firewall", "config": { "blocked": blocked } },
            { "name": "many", "package": "functions" },
        ]},
        { "interface": HOST_LINK, "hook": "tc-ingress", "programs": [
            { "name": "meter", "package": "flowmeter" },
        ]},
    ]})
}

fn pins(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(pins(&path));
        } else {
            found.push(path.display().to_string());
        }
    }
    found.sort();
    found
}

#[test]
fn three_capabilities_suffice() {
    let host = Host::new("-all,+bpf,+net_admin,+perfmon");
    let peer = PEER_IP.to_string();
    let done = |output: Output| -> (GetReply, Vec<Fact>) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert_eq!(ping(&host.pair, 2).unwrap(), 2);
    // Made; then, by another process, adopted and exchanged.
    for (blocked, replies) in [(vec![], 2), (vec![peer.as_str()], 0)] {
        let (reply, _) = done(host.change(chains(&blocked), false));
        let functions: Vec<_> = reply
            .chains
            .iter()
            .map(|chain| {
                assert_eq!(chain.state, ChainState::Active, "{chain:?}");
                chain.observed.as_ref().unwrap().functions.join(",")
            })
            .collect();
        assert!(functions.iter().any(|names| names.contains("_many,step")), "{functions:?}");
        assert_eq!(ping(&host.pair, 2).unwrap(), replies);
    }
    // What somebody unpins is pinned again: the counts are not lost.
    let before = pins(host.bpffs.path());
    let (reply, facts) = done(host.change(chains(&[&peer]), true));
    let failed: Vec<_> = facts.iter().filter(|fact| fact.required && !fact.ok).collect();
    assert!(failed.is_empty() && facts.len() > 5, "{failed:?}");
    assert_eq!(pins(host.bpffs.path()), before);
    let xdp = reply.chains.iter().find(|chain| chain.hook.as_str() == "xdp").unwrap();
    let wall = xdp.programs.iter().find(|program| program.name.as_str() == "wall").unwrap();
    assert_eq!((wall.runs, wall.exits["drop"]), (4, 2));
    // Removed.
    let nothing = json!({ "chains": [
        { "interface": HOST_LINK, "hook": "xdp", "programs": [] },
        { "interface": HOST_LINK, "hook": "tc-ingress", "programs": [] },
    ]});
    done(host.change(nothing, false));
    assert_eq!(ping(&host.pair, 2).unwrap(), 2);
    assert_eq!(pins(host.bpffs.path()), Vec::<String>::new());
}

#[test]
fn each_of_the_three_is_needed_and_its_lack_is_told() {
    for (without, told) in [
        ("-all,+net_admin,+perfmon", "CAP_BPF"),
        ("-all,+bpf,+perfmon", "CAP_NET_ADMIN"),
        ("-all,+bpf,+net_admin", "CAP_PERFMON"),
    ] {
        let host = Host::new(without);
        let output = host.change(chains(&[]), false);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{without} will do");
        assert!(said.contains(told), "{without}: {said}");
        assert_eq!(ping(&host.pair, 2).unwrap(), 2, "{without}");
    }
}

#[test]
fn other_namespaces_need_one_more_and_its_lack_keeps_nobody_from_the_rest() {
    let (named, netns) = NamedNetns::new().unwrap();
    let other = Pair { host: netns, peer: Netns::new().unwrap() };
    other.plug().unwrap();
    let peer = PEER_IP.to_string();
    let document = |own: &[&str]| {
        let mut document = chains(own);
        let there = json!({ "netns": named.name(), "interface": HOST_LINK, "hook": "xdp",
            "programs": [{ "name": "wall", "package": "firewall", "config": { "blocked": [peer] } }] });
        document["chains"].as_array_mut().unwrap().push(there);
        document
    };
    let four = Host::new("-all,+bpf,+net_admin,+perfmon,+sys_admin");
    let output = four.change(document(&[]), false);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((ping(&four.pair, 2).unwrap(), ping(&other, 2).unwrap()), (2, 0));

    // Started again without the right: the chain there runs on, the others are changed.
    let three = Host { capabilities: "-all,+bpf,+net_admin,+perfmon", ..four };
    let output = three.change(document(&[&peer]), false);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("cannot be entered without cap_sys_admin"), "{said}");
    assert_eq!((ping(&three.pair, 2).unwrap(), ping(&other, 2).unwrap()), (0, 0));
    let (reply, _): (GetReply, Vec<Fact>) = serde_json::from_slice(&output.stdout).unwrap();
    let there = reply.chains.iter().find(|chain| chain.netns.is_some()).unwrap();
    assert_eq!(there.state, ChainState::Diverged);
    assert!(there.reason.as_ref().unwrap().contains("netns.conf"), "{there:?}");

    // Taken off it can be: a link is detached from everywhere.
    let none =
        json!({ "netns": named.name(), "interface": HOST_LINK, "hook": "xdp", "programs": [] });
    let output = three.change(json!({ "chains": [none] }), false);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((ping(&three.pair, 2).unwrap(), ping(&other, 2).unwrap()), (0, 2));
}

#[test]
fn run_times_need_one_more_and_its_lack_is_told_with_what_to_do() {
    let three = Host::new("-all,+bpf,+net_admin,+perfmon");
    let output = three.perform(chains(&[]), false, true);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        said.contains("CAP_SYS_ADMIN") && said.contains("kernel.bpf_stats_enabled=1"),
        "{said}"
    );
    // The change itself was made.
    let again = three.change(chains(&[]), false);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));

    let four = Host::new("-all,+bpf,+net_admin,+perfmon,+sys_admin");
    let output = four.perform(chains(&[]), false, true);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
