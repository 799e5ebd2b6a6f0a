//! From a signed package to a dropped packet, and back to nothing.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::float_cmp,
    reason = "tests: a failure is the message"
)]

use canopy_api::{
    Hook,
    endpoint::Service,
    wire::{Action, ChainState},
};
use canopy_e2e::{BLOCKED, HOST, INTERFACE, World};
use canopy_test_support::pair::PEER_IP;
use xtask::outside;

#[test]
fn a_signed_package_drops_packets_until_it_is_deleted() {
    let world = World::start().unwrap();
    assert_eq!(world.send(BLOCKED, 20).unwrap(), 20, "nothing blocks yet");

    let reply = world.apply(&World::firewall()).unwrap();
    assert_eq!(reply.chains.len(), 1);
    assert_eq!(reply.chains[0].action, Action::Created);

    assert_eq!(world.send(BLOCKED, 100).unwrap(), 0, "blocked packets came through");
    assert_eq!(world.send(PEER_IP, 100).unwrap(), 100, "allowed packets did not");

    // Inside: each program's verdicts.
    let blocklist = world.program("blocklist").unwrap();
    assert_eq!((blocklist.position, blocklist.runs), (0, 200));
    assert_eq!(blocklist.verdicts.get("drop"), Some(&100));
    assert_eq!(blocklist.exits.get("drop"), Some(&100));
    let metric = |name: &str| blocklist.metrics.iter().find(|m| m.name == name).unwrap().value;
    assert_eq!(metric("blocked"), 100.0);
    let limit = world.program("limit").unwrap();
    assert_eq!((limit.position, limit.runs), (1, 100));
    assert_eq!(limit.exits.get("pass"), Some(&100));

    // Outside: the kernel's own word.
    let chain = world.chain(Hook::Xdp).unwrap();
    let observed = chain.observed.unwrap();
    let link = world.kernel_link().unwrap().unwrap();
    assert_eq!(link.id, u64::from(observed.link_id));
    assert_eq!(link.prog_id, u64::from(observed.program_id));
    assert_eq!(outside::program(link.prog_id).unwrap().tag, observed.tag);

    // Prometheus sees the same.
    let labels =
        [("interface", INTERFACE), ("hook", "xdp"), ("program", "blocklist"), ("verdict", "drop")];
    let drops = world.metric(Service::Loader, "canopy_loader_program_exits_total", &labels);
    assert_eq!(drops.unwrap(), 100.0);

    let deleted = world
        .canopy_as("operator", &["delete", "chain", INTERFACE, "xdp", "--host", HOST])
        .unwrap();
    deleted.text().unwrap();
    assert!(world.kernel_link().unwrap().is_none(), "the reply came before the detaching");
    assert_eq!(world.send(BLOCKED, 20).unwrap(), 20);
    assert!(world.chains().unwrap().is_empty());
    world.end().unwrap();
}

#[test]
fn both_hooks_run_their_chains_at_once() {
    let world = World::start().unwrap();
    let document = format!(
        "{}- interface: {INTERFACE}\n  hook: tc-ingress\n  programs:\n  \
         - {{ name: flows, package: flowmeter }}\n",
        World::firewall()
    );
    world.apply(&document).unwrap();
    assert_eq!(world.send(BLOCKED, 10).unwrap(), 0);
    assert_eq!(world.send(PEER_IP, 30).unwrap(), 30);
    let flows = world.chain(Hook::TcIngress).unwrap();
    assert_eq!(flows.state, ChainState::Active);
    // XDP comes first: TC never sees what XDP dropped.
    assert_eq!(flows.programs[0].runs, 30);
    let metric = |name: &str| {
        flows.programs[0].metrics.iter().find(|m| m.name == name).map(|metric| metric.value)
    };
    assert_eq!((metric("packets"), metric("flows")), (Some(30.0), Some(1.0)));
    world.end().unwrap();
}

#[test]
fn applying_twice_changes_nothing_in_the_kernel() {
    let world = World::start().unwrap();
    world.apply(&World::firewall()).unwrap();
    let before = world.kernel_link().unwrap();
    let generation = world.chain(Hook::Xdp).unwrap().observed.unwrap().generation;
    let reply = world.apply(&World::firewall()).unwrap();
    assert_eq!(reply.chains[0].action, Action::Unchanged);
    assert_eq!(world.kernel_link().unwrap(), before);
    assert_eq!(world.chain(Hook::Xdp).unwrap().observed.unwrap().generation, generation);
    world.end().unwrap();
}

#[test]
fn a_rehearsal_changes_nothing() {
    let world = World::start().unwrap();
    std::fs::write(world.dir().join("document.yaml"), World::firewall()).unwrap();
    let reply: canopy_api::wire::ApplyReply = world
        .canopy_as("operator", &["apply", "-f", "document.yaml", "--dry-run", "-o", "json"])
        .unwrap()
        .json()
        .unwrap();
    assert!(reply.dry_run);
    assert_eq!(reply.chains[0].action, Action::Created);
    assert!(world.kernel_link().unwrap().is_none());
    assert!(world.chains().unwrap().is_empty());
    world.end().unwrap();
}

#[test]
fn drain_detaches_everything_and_undo_brings_it_back() {
    let world = World::start().unwrap();
    world.apply(&World::firewall()).unwrap();
    world.canopy_as("operator", &["drain"]).unwrap().text().unwrap();
    assert!(world.kernel_link().unwrap().is_none());
    assert_eq!(world.send(BLOCKED, 10).unwrap(), 10);
    assert_eq!(world.chain(Hook::Xdp).unwrap().state, ChainState::Drained);
    world.canopy_as("operator", &["drain", "--undo"]).unwrap().text().unwrap();
    assert_eq!(world.send(BLOCKED, 10).unwrap(), 0);
    world.end().unwrap();
}

#[test]
fn every_service_answers_and_serves_metrics() {
    let world = World::start().unwrap();
    let versions = world.canopy(&["version"]).unwrap();
    let text = versions.text().unwrap();
    for service in Service::ALL {
        assert!(text.contains(service.as_str()), "{service} is missing in\n{text}");
        let metrics = world.inside(|stack| stack.metrics(service)).unwrap();
        assert!(metrics.contains("\n# TYPE canopy_") || metrics.starts_with("# "), "{metrics}");
    }
    world.end().unwrap();
}

#[test]
fn a_role_does_what_it_may_and_no_more() {
    let world = World::start().unwrap();
    world.apply(&World::firewall()).unwrap();
    let before = world.kernel_link().unwrap();
    for role in ["viewer", "publisher"] {
        let answer = world.canopy_as(role, &["delete", "chain", INTERFACE, "xdp"]).unwrap();
        assert_eq!(answer.code, 6, "{role}: {}{}", answer.out, answer.err);
        assert!(answer.err.contains("fix:"), "{}", answer.err);
        world.canopy_as(role, &["get", "chains"]).unwrap().text().unwrap();
    }
    assert_eq!(world.kernel_link().unwrap(), before);
    world.end().unwrap();
}
