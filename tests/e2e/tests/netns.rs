//! A chain in another network namespace, by the command line and the real loader.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::float_cmp,
    reason = "tests: a failure is the message"
)]

use canopy_api::{Hook, endpoint::Service, wire::ChainStatus};
use canopy_e2e::{BLOCKED, INTERFACE, World};
use canopy_test_support::{
    netns::{NamedNetns, Netns},
    pair::{PEER_IP, Pair},
    traffic::ping,
    wait_for,
};
use serde_json::Value;
use std::time::Duration;

/// The firewall on [`INTERFACE`] here, and there one that blocks everything from the peer.
fn document(netns: &str) -> String {
    World::firewall()
        + &format!(
            "- netns: {netns}\n  interface: {INTERFACE}\n  hook: xdp\n  programs:\n  \
             - {{ name: wall, package: firewall@^0.1, config: {{ blocked: [{PEER_IP}] }} }}\n"
        )
}

#[test]
fn a_chain_in_another_namespace_is_applied_shown_followed_and_deleted() {
    let world = World::start().unwrap();
    let (mut named, netns) = NamedNetns::new().unwrap();
    let there = Pair { host: netns, peer: Netns::new().unwrap() };
    there.plug().unwrap();
    let name = named.name().to_owned();
    let reply = world.apply(&document(&name)).unwrap();
    assert_eq!(reply.chains.len(), 2, "{reply:?}");
    assert_eq!((world.send(BLOCKED, 20).unwrap(), ping(&there, 3).unwrap()), (0, 0));

    // Shown: as a column of its own, as a label, and by itself.
    let viewer = |arguments: &[&str]| world.canopy_as("viewer", arguments).unwrap();
    let table = viewer(&["get", "chains"]);
    let rows: Vec<Vec<&str>> =
        table.text().unwrap().lines().map(|row| row.split_whitespace().collect()).collect();
    assert_eq!(rows[0][..3], ["HOST", "NETNS", "INTERFACE"]);
    assert_eq!(rows[1][..4], ["e2e", "-", INTERFACE, "xdp"]);
    assert_eq!(rows[2][..5], ["e2e", &name, INTERFACE, "xdp", "active"]);
    let only: Vec<ChainStatus> =
        viewer(&["get", "chains", "--netns", &name, "-o", "json"]).json().unwrap();
    assert_eq!((only.len(), only[0].programs[0].runs), (1, 3));
    let labels = [("hook", "xdp"), ("interface", INTERFACE), ("netns", &name), ("program", "wall")];
    let runs = "canopy_loader_program_runs_total";
    assert_eq!(world.metric(Service::Loader, runs, &labels).unwrap(), 3.0);
    let described = viewer(&["describe", "chain", INTERFACE, "xdp", "--netns", &name]);
    let want = format!("chain:     {INTERFACE}/xdp in network namespace {name}\n");
    assert!(described.text().unwrap().starts_with(&want), "{}", described.out);
    let own = viewer(&["describe", "chain", INTERFACE, "xdp"]);
    assert!(!own.text().unwrap().contains("namespace"), "{}", own.out);
    let maps: Vec<Value> = viewer(&["map", "list", "--netns", &name, "-o", "json"]).json().unwrap();
    let map = maps[0]["map"].as_str().unwrap();
    let dumped = ["map", "dump", INTERFACE, "xdp", "wall", map, "--netns", &name, "-o", "json"];
    viewer(&dumped).json::<Value>().unwrap();
    let same = world.canopy_as("operator", &["diff", "-f", "document.yaml"]).unwrap();
    assert_eq!(same.code, 0, "{}{}", same.out, same.err);

    // Followed: one that is made anew under the name has the chain within moments, without a person.
    named.delete().unwrap();
    let anew = Pair { host: named.add().unwrap(), peer: Netns::new().unwrap() };
    anew.plug().unwrap();
    wait_for(Duration::from_secs(20), "the chain to be there", || match ping(&anew, 1) {
        Ok(0) => Ok(()),
        other => Err(other.map_err(|error| format!("{error:#}"))),
    })
    .unwrap();
    assert_eq!(world.chain(Hook::Xdp).unwrap().restored, 0);

    let gone = ["delete", "chain", INTERFACE, "xdp", "--netns", &name];
    world.canopy_as("operator", &gone).unwrap().text().unwrap();
    assert_eq!((ping(&anew, 3).unwrap(), world.send(BLOCKED, 20).unwrap()), (3, 0));
    assert_eq!(world.chains().unwrap().len(), 1);
    world.end().unwrap();
}
