//! Chains in other network namespaces: those that are not there, those that may not be entered, and
//! interfaces that go from one to another.

use super::world::*;
use crate::metrics::LoaderCollector;
use canopy_api::{
    ChainKey, Code, Netns,
    wire::{Action, ChainOutcome, ChainState, ChainStatus},
};
use canopy_kernel::fake::FakeKernel;
use prometheus::core::Collector as _;
use serde_json::{Value, json};
use std::{fs, sync::Arc};

fn blue() -> Netns {
    "blue".parse().unwrap()
}

/// `eth0` of the namespace.
fn there() -> ChainKey {
    ChainKey { netns: Some(blue()), ..eth0() }
}

/// `block` for an interface of the namespace.
fn block(interface: &str) -> Value {
    let mut chain = chain(interface, &[("a", "block", &[])]);
    chain["netns"] = json!("blue");
    chain
}

/// A world whose namespace has an `eth0`, as the loader's own has.
fn world() -> World {
    let world = World::new();
    come(&world.kernel);
    world
}

fn come(kernel: &FakeKernel) {
    kernel.add_netns(&blue());
    kernel.add_interface_in(Some(&blue()), &eth0().interface);
}

fn reason(status: ChainStatus) -> String {
    status.reason.unwrap_or_default()
}

#[test]
fn the_same_interface_in_two_namespaces_is_two() {
    let world = world();
    let engine = world.start();
    let both = [chain("eth0", &[("b", "limit", &[])]), block("eth0")];
    let reply = world.apply(&engine, document(&both)).unwrap();
    assert_eq!(reply.chains.iter().map(ChainOutcome::key).collect::<Vec<_>>(), [eth0(), there()]);
    world.kernel.packet(&there(), &[DROP]);
    assert_eq!((runs(&engine, &eth0(), "b"), runs(&engine, &there(), "a")), (0, 1));

    // Both outlive the loader, and are told apart by what it writes down.
    let written = fs::read_to_string(world.dir.path().join("state.json")).unwrap();
    assert!(written.starts_with(r#"{"format":2,"#), "{written}");
    drop(engine);
    let engine = world.start();
    world.changing_calls();
    assert_eq!(engine.tick(), []);
    assert_eq!(world.changing_calls(), []);
    assert_eq!(get(&engine).chains.len(), 2);

    engine.delete(&deletion(&there(), None), &options()).unwrap();
    assert_eq!(world.kernel.running(&there()), None);
    assert_eq!(status(&engine, &eth0()).state, ChainState::Active);
    let error = engine.delete(&deletion(&there(), None), &options()).unwrap_err().into_api();
    assert_eq!(error.message, "there is no chain on eth0/xdp in network namespace blue");
}

#[test]
fn a_namespace_that_is_not_there_fails_for_itself() {
    let world = world();
    world.kernel.remove_netns(&blue());
    let engine = world.start();
    let both = [block("eth0"), chain("eth0", &[("b", "limit", &[])])];
    let reply = world.apply(&engine, document(&both)).unwrap();
    let actions: Vec<_> = reply.chains.iter().map(|one| (one.key(), one.action)).collect();
    assert_eq!(actions, [(eth0(), Action::Created), (there(), Action::Failed)]);
    let error = reply.chains[1].error.as_ref().unwrap();
    assert_eq!((error.code, error.path.as_str()), (Code::NotFound, "document.chains[0].netns"));

    // An interface that is not there is another mistake.
    come(&world.kernel);
    let error = world.apply(&engine, document(&[block("eth7")])).unwrap_err().into_api();
    assert_eq!(error.message, "there is no interface \"eth7\" in network namespace blue");
    assert_eq!(
        (error.path.as_str(), error.remedy.as_deref()),
        ("document.chains[0].interface", Some("this host has eth0"))
    );
}

#[test]
fn a_chain_waits_for_its_namespace() {
    let world = world();
    let engine = world.start();
    world
        .apply(&engine, document(&[block("eth0"), chain("eth0", &[("b", "limit", &[])])]))
        .unwrap();
    world.kernel.remove_netns(&blue());
    assert_eq!(engine.tick(), []);
    let waits = status(&engine, &there());
    assert_eq!(waits.state, ChainState::Pending);
    assert!(reason(waits).starts_with("there is no network namespace blue"));
    assert_eq!(status(&engine, &eth0()).state, ChainState::Active);
    // The rest is changed meanwhile.
    world.apply(&engine, document(&[chain("eth0", &[("b", "block", &[])])])).unwrap();

    come(&world.kernel);
    assert_eq!(engine.tick(), [], "nobody tampered");
    let back = status(&engine, &there());
    assert_eq!((back.state, back.restored), (ChainState::Active, 0));
}

#[test]
fn what_may_not_be_entered_is_left_as_it_is() {
    let world = world();
    let engine = world.start();
    world.apply(&engine, document(&[block("eth*")])).unwrap();
    let running = world.kernel.running(&there());
    assert!(running.is_some());
    drop(engine);

    world.kernel.confine(true);
    let engine = world.start();
    world.changing_calls();
    assert_eq!(engine.tick(), []);
    assert_eq!(world.changing_calls(), [], "neither removed nor built anew");
    assert_eq!(world.kernel.running(&there()), running);
    let told = status(&engine, &there());
    assert_eq!(told.state, ChainState::Diverged);
    assert!(reason(told).contains("cannot be entered"));
    // A change there fails and says what to do, one elsewhere does not.
    let both = [block("eth0"), chain("eth0", &[("b", "limit", &[])])];
    let reply = world.apply(&engine, document(&both)).unwrap();
    let error = reply.chains[1].error.as_ref().unwrap();
    assert_eq!((error.code, error.path.as_str()), (Code::Unsupported, "document.chains[0].netns"));
    assert_eq!(error.remedy.as_deref(), Some("give the loader cap_sys_admin"));
    assert_eq!(status(&engine, &eth0()).state, ChainState::Active);

    world.kernel.confine(false);
    assert_eq!(engine.tick(), []);
    let told = status(&engine, &there());
    assert_eq!((told.state, told.restored), (ChainState::Active, 0));
    assert_eq!(world.kernel.running(&there()), running);
}

#[test]
fn a_chain_can_be_removed_where_nobody_may_enter() {
    let world = world();
    let engine = world.start();
    world.apply(&engine, document(&[block("eth0")])).unwrap();
    world.kernel.confine(true);
    engine.delete(&deletion(&there(), None), &options()).unwrap();
    assert_eq!((world.kernel.running(&there()), get(&engine).chains.len()), (None, 0));
    engine.tick();
    world.kernel.confine(false);
    engine.tick();
    assert_eq!(world.kernel.pinned(&there()), [0_u64; 0]);
}

#[test]
fn selectors_stand_for_interfaces_of_their_own_namespace() {
    let world = world();
    let engine = world.start();
    let all = [chain("eth*", &[("b", "limit", &[])]), block("eth*"), block("default-route")];
    let reply = world.apply(&engine, document(&all)).unwrap();
    let keys: Vec<_> = reply.chains.iter().map(ChainOutcome::key).collect();
    assert_eq!(keys, [eth0(), eth1(), there()]);
    world.kernel.add_interface_in(Some(&blue()), &eth1().interface);
    engine.tick();
    let there = ChainKey { netns: Some(blue()), ..eth1() };
    assert_eq!(status(&engine, &there).programs[0].package.as_str(), "block");
    world.kernel.remove_netns(&blue());
    engine.tick();
    assert_eq!(get(&engine).chains.len(), 2, "its interfaces are gone, what is described is not");
    assert_eq!(get(&engine).selectors.len(), 3);
}

#[test]
fn an_interface_that_is_moved_takes_its_link_along() {
    let world = world();
    let engine = world.start();
    let all = [chain("eth1", &[("b", "limit", &[])]), block("eth*")];
    world.apply(&engine, document(&all)).unwrap();
    let link = |key: &ChainKey| status(&engine, key).observed.unwrap().link_id;
    let (name, moved) = (eth1().interface, ChainKey { netns: Some(blue()), ..eth1() });
    let before = link(&eth1());
    world.kernel.move_interface(&name, None, Some(&blue()));
    engine.tick();
    assert_eq!(link(&moved), before);
    let waits = status(&engine, &eth1());
    assert_eq!(waits.state, ChainState::Pending);
    assert_eq!(reason(waits), "there is no interface \"eth1\"");

    world.kernel.move_interface(&name, Some(&blue()), None);
    engine.tick();
    engine.tick();
    assert_eq!((status(&engine, &eth1()).state, link(&eth1())), (ChainState::Active, before));
    assert_eq!(world.kernel.pinned(&moved), [0_u64; 0]);
}

#[test]
fn series_of_another_namespace_say_so() {
    let world = world();
    let engine = Arc::new(world.start());
    let both = [chain("eth0", &[("b", "limit", &[])]), block("eth0")];
    world.apply(&engine, document(&both)).unwrap();
    world.kernel.packet(&there(), &[DROP]);
    let families = LoaderCollector::new(Arc::clone(&engine)).unwrap().collect();
    let runs =
        families.iter().find(|one| one.name() == "canopy_loader_program_runs_total").unwrap();
    let told: Vec<_> = runs
        .get_metric()
        .iter()
        .map(|one| {
            let labels = one.get_label().iter();
            let labels: Vec<_> =
                labels.map(|one| format!("{}={}", one.name(), one.value())).collect();
            (labels.join(" "), one.get_counter().get_value())
        })
        .collect();
    assert_eq!(
        told,
        [
            ("hook=xdp interface=eth0 program=b".to_owned(), 0.0),
            ("hook=xdp interface=eth0 netns=blue program=a".to_owned(), 1.0),
        ]
    );
}
