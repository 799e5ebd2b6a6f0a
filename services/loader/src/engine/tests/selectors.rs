//! Chains for what interfaces are, not only for what they are called.

use super::world::*;
use crate::{
    engine::{Engine, Options},
    error::LoaderError,
};
use canopy_api::{
    ChainKey, Hook, InterfaceName, TcMode, XdpMode,
    wire::{Action, ApplyReply, ChainState, DeleteRequest, SelectorStatus},
};
use canopy_kernel::{
    ChainBuild, Kernel as _,
    fake::{Call, FakeKernel, Fault},
};
use serde_json::{Value, json};

const NOBODY: [InterfaceName; 0] = [];

fn name(text: &str) -> InterfaceName {
    text.parse().unwrap()
}

fn xdp(interface: &str) -> ChainKey {
    ChainKey { netns: None, interface: name(interface), hook: Hook::Xdp }
}

/// `block` for a selector, with these ports.
fn block(selector: &str, ports: &[u16]) -> Value {
    chain(selector, &[("a", "block", ports)])
}

fn running(world: &World, interface: &str) -> bool {
    world.kernel.running(&xdp(interface)).is_some()
}

fn selector(engine: &Engine<FakeKernel>, text: &str) -> SelectorStatus {
    let all = get(engine).selectors;
    let found = all.iter().find(|selector| selector.interface.to_string() == text).cloned();
    found.unwrap_or_else(|| panic!("{all:?}"))
}

/// Which selector a chain comes from.
fn source(engine: &Engine<FakeKernel>, interface: &str) -> Option<String> {
    status(engine, &xdp(interface)).selector.map(|selector| selector.to_string())
}

fn outcomes(reply: &ApplyReply) -> Vec<(String, Action)> {
    reply.chains.iter().map(|chain| (chain.interface.to_string(), chain.action)).collect()
}

fn delete(engine: &Engine<FakeKernel>, text: &str) -> Result<ApplyReply, LoaderError> {
    let request = DeleteRequest { interface: text.parse().unwrap(), ..deletion(&eth0(), None) };
    engine.delete(&request, &options())
}

#[test]
fn a_pattern_gives_each_interface_a_chain_now_and_later() {
    let world = World::new();
    let engine = world.start();
    let reply = world.apply(&engine, document(&[block("eth*", &[])])).unwrap();
    assert_eq!(
        outcomes(&reply),
        [("eth0".to_owned(), Action::Created), ("eth1".to_owned(), Action::Created)]
    );
    assert_eq!(reply.selectors[0].action, Action::Created);
    assert_eq!(reply.selectors[0].interfaces, [name("eth0"), name("eth1")]);
    assert!(running(&world, "eth0") && running(&world, "eth1"));

    // Plugged in: no person, no bus.
    world.kernel.add_interface(&name("eth2"));
    world.kernel.add_interface(&name("wlan0"));
    assert_eq!(engine.tick(), []);
    assert!(running(&world, "eth2") && !running(&world, "wlan0"));
    let seen = status(&engine, &xdp("eth2"));
    assert_eq!((seen.state, seen.restored), (ChainState::Active, 0));
    assert_eq!(source(&engine, "eth2").as_deref(), Some("eth*"));
    assert_eq!(seen.changed_by.as_deref(), Some("u-test"));

    // Gone: its chain is forgotten, what is described for it is not.
    world.kernel.remove_interface(&name("eth1"));
    engine.tick();
    let left: Vec<_> = get(&engine).chains.into_iter().map(|chain| chain.interface).collect();
    assert_eq!(left, [name("eth0"), name("eth2")]);
    assert_eq!(world.kernel.pinned(&xdp("eth1")), [0_u64; 0]);
    world.kernel.add_interface(&name("eth1"));
    engine.tick();
    assert!(running(&world, "eth1"));
    // At rest nothing is touched.
    world.changing_calls();
    engine.tick();
    assert_eq!(world.changing_calls(), []);
    let again = world.apply(&engine, document(&[block("eth*", &[])])).unwrap();
    assert!(again.chains.iter().all(|chain| chain.action == Action::Unchanged), "{again:?}");
    assert_eq!(again.selectors[0].action, Action::Unchanged);
    assert_eq!(world.changing_calls(), []);
}

#[test]
fn a_selector_that_nothing_fits_waits() {
    let world = World::new();
    let engine = world.start();
    let reply = world.apply(&engine, document(&[block("mac:02:00:00:00:00:99", &[])])).unwrap();
    assert_eq!((reply.chains.len(), reply.generation), (0, 1));
    assert_eq!(reply.selectors[0].interfaces, NOBODY);
    assert_eq!(selector(&engine, "mac:02:00:00:00:00:99").interfaces, NOBODY);
    // It outlives the loader.
    drop(engine);
    let engine = world.start();
    world.kernel.add_interface(&name("nic7"));
    world.kernel.change_interface(&name("nic7"), |one| one.mac = Some([2, 0, 0, 0, 0, 0x99]));
    engine.tick();
    assert!(running(&world, "nic7"));
    assert_eq!(selector(&engine, "mac:02:00:00:00:00:99").interfaces, [name("nic7")]);
}

#[test]
fn what_an_interface_is_can_change() {
    let world = World::new();
    let engine = world.start();
    let rules = [block("default-route", &[]), chain("altname:wan", &[("b", "limit", &[])])];
    world.apply(&engine, document(&rules)).unwrap();
    assert!(!running(&world, "eth0") && !running(&world, "eth1"));
    world.kernel.set_default_route(&[&name("eth0")]);
    engine.tick();
    assert!(running(&world, "eth0") && !running(&world, "eth1"));
    // A route that is away for a moment takes nothing off; one that leads elsewhere does.
    world.kernel.set_default_route(&[]);
    engine.tick();
    assert!(running(&world, "eth0"));
    world.kernel.set_default_route(&[&name("eth1")]);
    engine.tick();
    assert!(running(&world, "eth1") && !running(&world, "eth0"));
    // The altname is more specific.
    let programs = |interface: &str| {
        let programs = status(&engine, &xdp(interface)).programs;
        programs.into_iter().map(|program| program.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(programs("eth1"), ["a"]);
    world.kernel.change_interface(&name("eth1"), |one| one.altnames.push("wan".to_owned()));
    engine.tick();
    assert_eq!(programs("eth1"), ["b"], "{:?}", status(&engine, &xdp("eth1")));
    assert_eq!(source(&engine, "eth1").as_deref(), Some("altname:wan"));
    world.kernel.change_interface(&name("eth1"), |one| one.altnames.clear());
    engine.tick();
    assert_eq!((programs("eth1"), running(&world, "eth1")), (vec!["a".to_owned()], true));
}

#[test]
fn a_chain_of_its_own_counts_before_a_selector() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, document(&[block("eth*", &[])])).unwrap();
    let before = world.kernel.running(&eth0());
    // The same programs: only where they come from changes, and the kernel is not touched.
    world.changing_calls();
    let reply = world.apply(&engine, document(&[block("eth0", &[])])).unwrap();
    assert_eq!(outcomes(&reply), [("eth0".to_owned(), Action::Updated)]);
    assert_eq!(reply.chains[0].steps, ["is the interface's own now"]);
    assert_eq!((world.changing_calls(), world.kernel.running(&eth0())), (vec![], before));
    assert_eq!(source(&engine, "eth0"), None);
    // The pattern goes, the chain stays.
    delete(&engine, "eth*").unwrap();
    assert!(running(&world, "eth0") && !running(&world, "eth1"));
    assert_eq!(get(&engine).selectors, []);

    // And the other way round: without its own, the pattern's.
    world.apply(&engine, document(&[block("eth0", &[80])])).unwrap();
    world.apply(&engine, document(&[block("eth*", &[])])).unwrap();
    assert_eq!(source(&engine, "eth0"), None);
    let reply = delete(&engine, "eth0").unwrap();
    assert_eq!(outcomes(&reply), [("eth0".to_owned(), Action::Updated)]);
    assert_eq!(source(&engine, "eth0").as_deref(), Some("eth*"));
    let error = delete(&engine, "eth0").unwrap_err();
    assert!(matches!(error, LoaderError::OfSelector { .. }), "{error:?}");
    let api = error.into_api();
    assert!(api.remedy.as_deref().unwrap().contains("eth*/xdp"), "{api:?}");
}

#[test]
fn a_document_with_both_gives_each_interface_the_more_specific() {
    let world = World::new();
    let engine = world.start();
    let both = [block("*", &[]), chain("eth1", &[("b", "limit", &[])]), block("eth0*", &[80])];
    let reply = world.apply(&engine, document(&both)).unwrap();
    assert_eq!(reply.chains.len(), 2, "{reply:?}");
    assert_eq!(source(&engine, "eth0").as_deref(), Some("eth0*"));
    assert_eq!(source(&engine, "eth1"), None);
    // When the more specific one goes, the other has the interface in the same step.
    let reply = delete(&engine, "eth0*").unwrap();
    assert_eq!(outcomes(&reply), [("eth0".to_owned(), Action::Updated)]);
    assert_eq!(source(&engine, "eth0").as_deref(), Some("*"));
    assert!(running(&world, "eth0"));
}

#[test]
fn two_selectors_of_equal_right_are_refused_with_both_paths() {
    let world = World::new();
    let engine = world.start();
    let error = world
        .apply(&engine, document(&[block("eth*", &[]), block("e*h0", &[])]))
        .unwrap_err()
        .into_api();
    assert_eq!(error.path, "document.chains[0].interface");
    assert!(error.message.contains("e*h0/xdp") && error.message.contains("eth*/xdp"), "{error:?}");
    assert!(error.message.contains("both stand for eth0/xdp"), "{error:?}");
    assert!(error.remedy.unwrap().contains("document.chains[1].interface"));
    assert!(!running(&world, "eth0"));
    // With one that is there already.
    world.apply(&engine, document(&[block("eth*", &[])])).unwrap();
    let error = world.apply(&engine, document(&[block("e*h0", &[])])).unwrap_err().into_api();
    assert!(error.remedy.unwrap().contains("the host has eth*/xdp already"));
    // On another hook there is no question.
    let egress = json!({ "interface": "e*h0", "hook": "tc-egress", "programs": [
        { "name": "a", "package": "block" } ]});
    world.apply(&engine, document(&[egress])).unwrap();
    // One that comes later and that both fit is given to the same one every time.
    world.apply(&engine, document(&[block("*x", &[]), block("*y", &[])])).unwrap();
    assert!(get(&engine).selectors.len() == 4);
}

#[test]
fn a_renamed_interface_keeps_its_chain_and_its_counts() {
    let world = World::new();
    let engine = world.start();
    world.kernel.change_interface(&name("eth0"), |one| one.altnames.push("wan".to_owned()));
    world.apply(&engine, document(&[block("altname:wan", &[])])).unwrap();
    world.kernel.packet(&eth0(), &[DROP]);
    world.apply(&engine, document(&[block("altname:wan", &[80])])).unwrap();
    world.kernel.packet(&eth0(), &[DROP]);
    let generation = world.kernel.running(&eth0());
    world.changing_calls();

    world.kernel.rename_interface(&name("eth0"), &name("wan0"));
    assert_eq!(engine.tick(), []);
    assert_eq!(world.changing_calls(), [Call::Rename], "the chain was touched");
    assert_eq!(world.kernel.running(&xdp("wan0")), generation);
    assert_eq!(get(&engine).chains.len(), 1);
    let seen = status(&engine, &xdp("wan0"));
    assert_eq!((seen.state, seen.restored), (ChainState::Active, 0));
    assert_eq!(runs(&engine, &xdp("wan0"), "a"), 2);
    world.kernel.packet(&xdp("wan0"), &[DROP]);
    drop(engine);
    let engine = world.start();
    assert_eq!(runs(&engine, &xdp("wan0"), "a"), 3);
    // Out of a pattern it goes without its chain.
    delete(&engine, "altname:wan").unwrap();
    world.apply(&engine, document(&[block("wan*", &[])])).unwrap();
    world.kernel.rename_interface(&name("wan0"), &name("lan0"));
    engine.tick();
    assert!(!running(&world, "lan0") && !running(&world, "wan0"));
    assert_eq!(get(&engine).chains, []);
}

#[test]
fn a_rename_survives_death_and_failure_at_every_step() {
    for call in [Call::Rename, Call::Observe] {
        for (skip, fault) in [
            (0, Fault::Fail),
            (0, Fault::CrashBefore),
            (0, Fault::CrashAfter),
            (1, Fault::CrashBefore),
            (1, Fault::Fail),
        ] {
            let world = World::new();
            let engine = world.start();
            world.kernel.change_interface(&name("eth0"), |one| one.altnames.push("wan".into()));
            world.apply(&engine, document(&[block("altname:wan", &[])])).unwrap();
            world.kernel.packet(&eth0(), &[DROP]);
            let generation = world.kernel.running(&eth0());
            world.kernel.rename_interface(&name("eth0"), &name("wan0"));
            world.kernel.inject(call, skip, fault);
            let alive = until_death(|| engine.tick());
            world.kernel.clear_faults();
            let engine = if alive.is_some() {
                engine
            } else {
                drop(engine);
                world.start()
            };
            wait(1);
            engine.tick();
            let told = format!("{call:?} {skip} {fault:?}");
            assert_eq!(world.kernel.running(&xdp("wan0")), generation, "{told}");
            assert_eq!(runs(&engine, &xdp("wan0"), "a"), 1, "{told}");
            assert_eq!(get(&engine).chains.len(), 1, "{told}");
        }
    }
}

#[test]
fn a_rename_waits_until_leftovers_of_the_new_name_are_swept() {
    let world = World::new();
    let engine = world.start();
    world.kernel.change_interface(&name("eth0"), |one| one.altnames.push("wan".to_owned()));
    world.apply(&engine, document(&[block("altname:wan", &[])])).unwrap();
    world.kernel.packet(&eth0(), &[DROP]);
    let generation = world.kernel.running(&eth0());
    // Something was prepared for an interface of that name, and its discarding never came to be.
    world.kernel.add_interface(&name("wan0"));
    let leftover = ChainBuild {
        key: xdp("wan0"),
        generation: 99,
        xdp_mode: XdpMode::Best,
        tc_mode: TcMode::Best,
        members: Vec::new(),
        together: Vec::new(),
        left_entries: Vec::new(),
    };
    world.kernel.prepare(&leftover).unwrap();
    world.kernel.remove_interface(&name("wan0"));
    world.kernel.rename_interface(&name("eth0"), &name("wan0"));
    engine.tick();
    engine.tick();
    assert_eq!(world.kernel.running(&xdp("wan0")), generation);
    assert_eq!(world.kernel.pinned(&xdp("wan0")), [generation.unwrap()]);
    assert_eq!(runs(&engine, &xdp("wan0"), "a"), 1);
}

#[test]
fn a_chain_by_name_stays_with_the_name_and_says_where_it_is() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, document(&[block("eth0", &[])])).unwrap();
    world.kernel.rename_interface(&name("eth0"), &name("wan0"));
    engine.tick();
    let seen = status(&engine, &eth0());
    assert_eq!(seen.state, ChainState::Pending);
    let reason = seen.reason.unwrap();
    assert!(
        reason.contains("no interface \"eth0\"") && reason.contains("\"wan0\" now"),
        "{reason}"
    );
    world.kernel.rename_interface(&name("wan0"), &name("eth0"));
    engine.tick();
    let seen = status(&engine, &eth0());
    assert_eq!((seen.state, seen.restored), (ChainState::Active, 0));
}

#[test]
fn one_interface_that_cannot_have_the_chain_keeps_nobody_else_from_it() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, document(&[block("eth*", &[])])).unwrap();
    world.kernel.add_interface(&name("eth2"));
    world.kernel.add_interface(&name("eth3"));
    world.kernel.inject(Call::Switch, 0, Fault::Fail);
    engine.tick();
    assert!(!running(&world, "eth2") && running(&world, "eth3"));
    let seen = status(&engine, &xdp("eth2"));
    assert_eq!(seen.state, ChainState::Pending);
    assert!(seen.reason.is_some());
    assert_eq!(engine.alive().chains["pending"], 1);
    // Later, not at once.
    engine.tick();
    assert!(!running(&world, "eth2"));
    wait(1);
    engine.tick();
    assert!(running(&world, "eth2"));
    assert_eq!(status(&engine, &xdp("eth2")).state, ChainState::Active);
}

#[test]
fn a_selector_is_changed_as_a_whole_where_that_is_asked_for() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, document(&[block("eth*", &[])])).unwrap();
    // One chain that fails takes all back, the description too.
    world.kernel.inject(Call::Switch, 1, Fault::Fail);
    let other = document(&[block("eth*", &[80])]);
    world.apply_with(&engine, other.clone(), &Options { atomic: true, ..options() }).unwrap_err();
    let ports = |engine: &Engine<FakeKernel>| {
        selector(engine, "eth*").programs[0].config.get("ports").cloned()
    };
    assert_eq!(ports(&engine), Some(json!([])));
    assert_eq!(engine.tick(), []);
    let reply = world.apply_with(&engine, other.clone(), &rehearsal()).unwrap();
    assert_eq!(reply.selectors[0].action, Action::Updated);
    assert_eq!(ports(&engine), Some(json!([])), "a rehearsal changes nothing");
    world.apply(&engine, other).unwrap();
    assert_eq!(ports(&engine), Some(json!([80])));

    // Drained, nothing comes; afterwards all of it.
    engine.drain(false, false).unwrap();
    world.kernel.add_interface(&name("eth2"));
    engine.tick();
    assert!(!running(&world, "eth0") && !running(&world, "eth2"));
    engine.drain(true, false).unwrap();
    engine.tick();
    assert!(running(&world, "eth0") && running(&world, "eth2"));
    let reply = delete(&engine, "eth*").unwrap();
    assert_eq!(reply.chains.len(), 3);
    assert_eq!((get(&engine).chains, get(&engine).selectors), (vec![], vec![]));
}

#[test]
fn death_at_every_call_of_a_round_leaves_the_selector_whole() {
    for call in [Call::Prepare, Call::Switch, Call::Detach, Call::Discard, Call::Observe] {
        for skip in 0..3 {
            for fault in [Fault::CrashBefore, Fault::CrashAfter] {
                let world = World::new();
                let engine = world.start();
                world.apply(&engine, document(&[block("eth*", &[])])).unwrap();
                world.kernel.add_interface(&name("eth2"));
                world.kernel.remove_interface(&name("eth1"));
                world.kernel.inject(call, skip, fault);
                let alive = until_death(|| engine.tick());
                world.kernel.clear_faults();
                let engine = if alive.is_some() {
                    engine
                } else {
                    drop(engine);
                    world.start()
                };
                engine.tick();
                let told = format!("{call:?} {skip} {fault:?}");
                assert!(running(&world, "eth0") && running(&world, "eth2"), "{told}");
                let names: Vec<_> = get(&engine).chains.into_iter().map(|c| c.interface).collect();
                assert_eq!(names, [name("eth0"), name("eth2")], "{told}");
                assert_eq!(world.kernel.pinned(&xdp("eth1")), [0_u64; 0], "{told}");
                assert_eq!(world.kernel.pinned(&xdp("eth2")).len(), 1, "{told}");
            }
        }
    }
}

#[test]
fn a_selector_that_would_take_programs_back_says_so_for_each_interface() {
    let mut world = World::new();
    let engine = world.start();
    world.publish("block", "2.0.0");
    world.apply(&engine, document(&[block("eth*", &[80])])).unwrap();
    world.publish("block", "1.5.0");
    let back = |selector: &str| {
        let wishes = world.wishes(document(&[block(selector, &[80])])).unwrap();
        let proposal = engine.propose_apply(wishes, &options()).unwrap();
        let back = proposal.downgrades().iter();
        back.map(|one| format!("{} {}", one.target, one.from)).collect::<Vec<_>>()
    };
    assert_eq!(back("eth*"), ["eth*/xdp 2.0.0", "eth0/xdp 2.0.0", "eth1/xdp 2.0.0"]);
    assert_eq!(back("eth7*"), ["eth7*/xdp 2.0.0"], "on interfaces to come");
    assert_eq!(back("eth1"), ["eth1/xdp 2.0.0"], "by name, what the selector put there");
    world.publish("block", "2.1.0");
    let wishes = world.wishes(document(&[block("eth*", &[80])])).unwrap();
    assert!(engine.propose_apply(wishes, &options()).unwrap().downgrades().is_empty());
}

#[test]
fn the_document_of_a_host_applies_back_unchanged() {
    let world = World::new();
    let engine = world.start();
    let mut native = chain("eth0", &[("a", "block", &[80, 443]), ("b", "limit", &[])]);
    native["xdp_mode"] = json!("native");
    native["programs"][0]["priority"] = json!(7);
    native["programs"][1]["proceed_on"] = json!(["pass", "tx"]);
    let mut tc = block("eth*", &[22]);
    tc["hook"] = json!("tc-egress");
    tc["tc_mode"] = json!("clsact");
    let waiting = block("mac:02:00:00:00:00:99", &[]);
    world.apply(&engine, document(&[native, tc, waiting])).unwrap();

    let reply = get(&engine);
    let state = reply.desired();
    assert_eq!(state.chains.len(), 3, "{state:?}");
    let again = world.apply(&engine, serde_json::to_value(&state).unwrap()).unwrap();
    assert!(again.chains.iter().all(|chain| chain.action == Action::Unchanged), "{again:?}");
    assert!(again.selectors.iter().all(|one| one.action == Action::Unchanged), "{again:?}");
    assert_eq!(again.generation, reply.generation);

    // A chain that comes from a selector, asked for alone.
    let one = engine
        .get(&canopy_api::wire::GetRequest { interface: Some(name("eth1")), ..Default::default() });
    let state = one.unwrap().desired();
    assert_eq!(state.chains[0].interface.to_string(), "eth*");
    let again = world.apply(&engine, serde_json::to_value(&state).unwrap()).unwrap();
    assert!(again.selectors.iter().all(|one| one.action == Action::Unchanged), "{again:?}");
}
