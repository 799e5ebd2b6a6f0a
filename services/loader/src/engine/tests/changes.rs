//! Apply, delete, drain: what they promise when nothing, and when something, goes wrong.

use super::world::*;
use crate::{
    engine::{Options, Stage},
    error::LoaderError,
};
use canopy_api::{
    Code,
    wire::{Action, ChainState, DeleteRequest},
};
use canopy_kernel::{
    Kernel,
    fake::{Call, Fault},
};
use serde_json::json;
use std::{
    fs,
    time::{Duration, Instant},
};

#[test]
fn a_document_is_attached_and_told() {
    let world = World::new();
    let engine = world.start();
    let reply = world.apply(&engine, two_programs()).unwrap();
    assert_eq!(reply.generation, 1);
    assert_eq!(reply.chains[0].action, Action::Created);
    assert_eq!(reply.chains[0].programs.len(), 2);
    assert_eq!(
        world.kernel.running(&eth0()),
        reply.chains[0].observed.as_ref().map(|o| o.generation)
    );
    let status = status(&engine, &eth0());
    assert_eq!(status.state, ChainState::Active);
    assert_eq!(status.changed_by.as_deref(), Some("u-test"));
    let order: Vec<_> = status.programs.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(order, ["a", "b"]);
}

#[test]
fn applying_twice_changes_nothing_in_the_kernel() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    let before = status(&engine, &eth0()).observed;
    world.changing_calls();
    let reply = world.apply(&engine, two_programs()).unwrap();
    assert_eq!(reply.chains[0].action, Action::Unchanged);
    assert_eq!(reply.generation, 1);
    assert_eq!(reply.chains[0].observed, before, "an unchanged chain is told as well");
    assert_eq!(world.changing_calls(), []);
}

#[test]
fn priorities_order_a_chain_and_names_break_ties() {
    let world = World::new();
    let engine = world.start();
    let programs = json!([
        { "name": "c", "package": "block", "priority": 5 },
        { "name": "b", "package": "block" },
        { "name": "a", "package": "block" },
        { "name": "d", "package": "block", "priority": 65535 },
    ]);
    let chain = json!({ "interface": "eth0", "hook": "xdp", "programs": programs });
    world.apply(&engine, document(&[chain])).unwrap();
    let status = status(&engine, &eth0());
    let order: Vec<_> = status.programs.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(order, ["c", "a", "b", "d"]);
}

#[test]
fn chains_not_named_are_left_alone() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    let before = status(&engine, &eth0());
    world.apply(&engine, document(&[chain("eth1", &[("a", "block", &[])])])).unwrap();
    assert_eq!(status(&engine, &eth0()), before);
    assert_eq!(get(&engine).chains.len(), 2);
}

#[test]
fn removing_the_last_program_detaches_before_the_reply() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    engine.delete(&deletion(&eth0(), Some("a")), &options()).unwrap();
    assert_eq!(status(&engine, &eth0()).programs.len(), 1);
    let reply = engine.delete(&deletion(&eth0(), Some("b")), &options()).unwrap();
    assert_eq!(reply.chains[0].action, Action::Removed);
    assert_eq!(world.kernel.observe().unwrap(), [], "nothing attached, nothing pinned");
    assert_eq!(get(&engine).chains, []);
}

#[test]
fn an_empty_list_of_programs_removes_the_chain() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    let reply = world.apply(&engine, document(&[chain("eth0", &[])])).unwrap();
    assert_eq!(reply.chains[0].action, Action::Removed);
    assert_eq!(world.kernel.running(&eth0()), None);
    let again = world.apply(&engine, document(&[chain("eth0", &[])])).unwrap();
    assert_eq!(again.chains[0].action, Action::Unchanged);
}

#[test]
fn a_chain_on_a_missing_interface_can_be_removed() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    world.kernel.remove_interface(&eth0().interface);
    engine.delete(&deletion(&eth0(), None), &options()).unwrap();
    assert_eq!(get(&engine).chains, []);
    assert_eq!(world.kernel.observe().unwrap(), []);
}

#[test]
fn what_does_not_exist_is_named() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    let error = engine.delete(&deletion(&eth1(), None), &options()).unwrap_err().into_api();
    assert_eq!((error.code, error.path.as_str()), (Code::NotFound, "interface"));
    let error = engine.delete(&deletion(&eth0(), Some("x")), &options()).unwrap_err().into_api();
    assert_eq!((error.code, error.path.as_str()), (Code::NotFound, "program"));
    assert_eq!(error.remedy.as_deref(), Some("the chain has a, b"));
    let error =
        world.apply(&engine, document(&[chain("eth9", &[("a", "block", &[])])])).unwrap_err();
    let error = error.into_api();
    assert_eq!(error.path, "document.chains[0].interface");
    assert_eq!(error.remedy.as_deref(), Some("this host has eth0, eth1"));
}

#[test]
fn a_refused_program_leaves_everything_as_it_was() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    let before = (get(&engine), world.kernel.pinned(&eth0()));
    world.kernel.refuse_function("limit_main");
    let both = document(&[
        chain("eth1", &[("x", "block", &[])]),
        chain("eth0", &[("a", "block", &[80]), ("z", "limit", &[])]),
    ]);
    let error = world.apply_with(&engine, both, &atomic()).unwrap_err().into_api();
    assert_eq!(error.code, Code::Invalid);
    assert_eq!(error.path, "document.chains[1].programs[1]");
    assert!(error.problems[0].message.contains("R0 !read_ok"), "{error:?}");
    assert_eq!((get(&engine), world.kernel.pinned(&eth0())), before);
    assert_eq!(world.kernel.pinned(&eth1()), [] as [u64; 0]);
}

#[test]
fn a_change_that_was_refused_does_not_come_true_later() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, document(&[chain("eth0", &[("a", "block", &[])])])).unwrap();
    let before = get(&engine).chains[0].programs.clone();
    // One chain goes, the other cannot come, and the first cannot come back either.
    world.kernel.inject(Call::Switch, 0, Fault::Fail);
    world.kernel.inject(Call::Switch, 0, Fault::Fail);
    let swap = document(&[chain("eth0", &[]), chain("eth1", &[("a", "block", &[])])]);
    world.apply_with(&engine, swap.clone(), &atomic()).unwrap_err();
    assert_eq!(world.kernel.running(&eth0()), None, "the fault did not do what it is for");

    // The caller was told that it failed: once the kernel lets us, it is as before, also by a
    // loader that was started anew in between.
    drop(engine);
    let engine = world.start();
    engine.tick();
    let after = get(&engine);
    assert_eq!(after.chains.len(), 1);
    assert_eq!(after.chains[0].programs, before);
    assert!(world.kernel.running(&eth0()).is_some());
    assert_eq!(world.kernel.running(&eth1()), None);
    world.apply(&engine, swap).unwrap();
}

#[test]
fn a_switch_that_fails_takes_a_whole_atomic_request_back() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    world.kernel.packet(&eth0(), &[PASS, PASS]);
    let before = get(&engine);
    world.kernel.inject(Call::Switch, 1, Fault::Fail);
    let both =
        document(&[chain("eth0", &[("a", "block", &[])]), chain("eth1", &[("a", "block", &[])])]);
    let error = world.apply_with(&engine, both.clone(), &atomic()).unwrap_err().into_api();
    assert_eq!(error.code, Code::Unavailable);
    assert_eq!(get(&engine), before);
    assert_eq!(world.kernel.pinned(&eth0()).len(), 1);
    assert_eq!(world.kernel.pinned(&eth1()), [] as [u64; 0]);
    world.apply(&engine, both).unwrap();
}

#[test]
fn a_foreign_update_in_the_same_moment_is_a_conflict() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    at_stage(Stage::Journalled, |kernel| {
        kernel.tamper_replace(&eth0());
    });
    let other = document(&[chain("eth0", &[("a", "block", &[])])]);
    let error = world.apply(&engine, other.clone()).unwrap_err().into_api();
    assert_eq!(error.code, Code::Conflict);
    engine.tick();
    let status = status(&engine, &eth0());
    assert_eq!((status.state, status.programs.len()), (ChainState::Active, 2));
    world.apply(&engine, other).unwrap();
}

#[test]
fn a_rehearsal_verifies_and_leaves_nothing() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    let before = (get(&engine), world.kernel.pinned(&eth0()));
    let other = document(&[chain("eth0", &[("a", "limit", &[])])]);
    let reply = world.apply_with(&engine, other.clone(), &rehearsal()).unwrap();
    assert!(reply.dry_run);
    assert_eq!(reply.chains[0].action, Action::Updated);
    assert!(reply.chains[0].steps.iter().any(|step| step.contains("100 verified")), "{reply:?}");
    assert_eq!(reply.chains[0].observed, None);
    assert_eq!((get(&engine), world.kernel.pinned(&eth0())), before);
    world.kernel.refuse_function("limit_main");
    world.apply_with(&engine, other, &rehearsal()).unwrap_err();
}

#[test]
fn a_stale_generation_is_a_conflict() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    let stale = Options { expected_generation: Some(0), ..options() };
    let error = world.apply_with(&engine, two_programs(), &stale).unwrap_err();
    assert!(matches!(error, LoaderError::Generation { expected: 0, current: 1 }), "{error:?}");
    let right = Options { expected_generation: Some(1), ..options() };
    world.apply_with(&engine, document(&[chain("eth0", &[])]), &right).unwrap();
}

#[test]
fn a_drained_host_keeps_its_intent() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    world.kernel.packet(&eth0(), &[PASS, PASS]);
    assert_eq!(engine.drain(false, true).unwrap().chains[0].action, Action::Removed);
    assert!(world.kernel.running(&eth0()).is_some(), "a rehearsal drains nothing");
    engine.drain(false, false).unwrap();
    assert_eq!(world.kernel.running(&eth0()), None);
    let error = world.apply(&engine, two_programs()).unwrap_err().into_api();
    assert_eq!(error.code, Code::Conflict);
    assert!(error.remedy.unwrap().contains("--undo"));
    // Neither the check nor a restart brings it back.
    engine.tick();
    drop(engine);
    let engine = world.start();
    engine.tick();
    assert_eq!(world.kernel.running(&eth0()), None);
    assert_eq!(status(&engine, &eth0()).state, ChainState::Drained);
    assert_eq!(engine.drain(false, false).unwrap().chains[0].action, Action::Unchanged);
    engine.drain(true, false).unwrap();
    assert_eq!(status(&engine, &eth0()).state, ChainState::Active);
    assert_eq!(runs(&engine, &eth0(), "b"), 1);
}

#[test]
fn settings_reach_their_map_and_the_other_maps_are_kept() {
    let world = World::new();
    let engine = world.start();
    let with = |ports: &[u16]| document(&[chain("eth0", &[("a", "block", ports)])]);
    world.apply(&engine, with(&[80])).unwrap();
    world.kernel.write_map(&eth0(), &named("a"), "other", b"k", b"v");
    let entries = |map: &str| {
        let generation = world.kernel.running(&eth0()).unwrap();
        world.kernel.map_entries(&eth0(), generation, &named("a"), map, 10).unwrap_or_default()
    };
    assert_eq!(entries("ports")[0].0, 80_u16.to_ne_bytes());
    world.apply(&engine, with(&[443, 53])).unwrap();
    assert_eq!(entries("ports").len(), 2);
    assert_eq!(entries("other"), [(b"k".to_vec(), vec![b"v".to_vec()])]);
}

#[test]
fn another_version_keeps_only_what_its_manifest_carries_over() {
    let mut world = World::new();
    let engine = world.start();
    let wanted = document(&[chain("eth0", &[("a", "block", &[])])]);
    world.apply(&engine, wanted.clone()).unwrap();
    for map in ["kept", "other"] {
        world.kernel.write_map(&eth0(), &named("a"), map, b"k", b"v");
    }
    world.publish("block", "1.1.0");
    let reply = world.apply(&engine, wanted).unwrap();
    assert_eq!(reply.chains[0].action, Action::Updated);
    assert!(reply.chains[0].steps.iter().any(|s| s == "a: block 1.0.0 becomes 1.1.0"), "{reply:?}");
    let generation = world.kernel.running(&eth0()).unwrap();
    let there = |map| world.kernel.map_entries(&eth0(), generation, &named("a"), map, 1).is_ok();
    assert_eq!((there("kept"), there("other")), (true, false));
}

#[test]
fn a_full_disk_changes_nothing() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    let before = get(&engine);
    // Where the next state would be written there is a directory.
    let blocker = world.dir.path().join("state.json.new");
    fs::create_dir(&blocker).unwrap();
    let other = document(&[chain("eth0", &[("a", "block", &[])])]);
    let error = world.apply(&engine, other.clone()).unwrap_err().into_api();
    assert_eq!(error.code, Code::Unavailable);
    assert_eq!(get(&engine), before);
    fs::remove_dir(&blocker).unwrap();
    world.apply(&engine, other).unwrap();
}

#[test]
fn a_disk_that_fills_between_intent_and_commit_changes_nothing() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    world.kernel.packet(&eth0(), &[PASS, DROP]);
    let before = get(&engine);
    let path = world.dir.path().join("state.json.new");
    PATH.with_borrow_mut(|slot| *slot = Some(path.clone()));
    at_stage(Stage::Switched, |_| {
        PATH.with_borrow(|p| fs::create_dir(p.as_ref().unwrap()).unwrap());
    });
    let other = document(&[chain("eth0", &[("a", "block", &[])])]);
    world.apply(&engine, other.clone()).unwrap_err();
    assert_eq!(get(&engine), before);
    // A restart finds the journal on disk and comes to the same.
    drop(engine);
    fs::remove_dir(&path).unwrap();
    let engine = world.start();
    assert_eq!(get(&engine).chains, before.chains);
    assert_eq!(world.kernel.pinned(&eth0()).len(), 1);
    world.apply(&engine, other).unwrap();
}

thread_local! {
    static PATH: std::cell::RefCell<Option<std::path::PathBuf>> = const { std::cell::RefCell::new(None) };
}

/// A caller who waits no longer was told so: what is not in the journal by then does not come true, what
/// is in it goes on.
#[test]
fn a_change_whose_caller_left_stops_before_the_journal() {
    fn outlive(_: &canopy_kernel::fake::FakeKernel) {
        std::thread::sleep(Duration::from_millis(60));
    }
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, document(&[chain("eth0", &[("b", "limit", &[])])])).unwrap();
    let before = (get(&engine), world.kernel.pinned(&eth0()));
    let soon = || Options { until: Some(Instant::now() + Duration::from_millis(50)), ..options() };
    for stage in [Stage::Planned, Stage::Prepared] {
        for atomic in [false, true] {
            at_stage(stage, outlive);
            let options = Options { atomic, ..soon() };
            let late = world.apply_with(&engine, two_programs(), &options).unwrap_err();
            assert!(matches!(late, LoaderError::Late), "{stage:?}: {late:?}");
            let error = late.into_api();
            assert_eq!((error.code, error.retryable), (Code::Unavailable, true));
            assert_eq!((get(&engine), world.kernel.pinned(&eth0())), before, "{stage:?}");
        }
    }
    let gone = Some(Instant::now());
    let asked = engine.parts_of_drain(false);
    engine.drain_as_asked(false, false, gone, &asked).unwrap_err();
    let request = DeleteRequest {
        netns: None,
        interface: "eth0".parse().unwrap(),
        hook: canopy_api::Hook::Xdp,
        program: None,
        expected_generation: None,
        dry_run: false,
    };
    engine.delete(&request, &Options { until: gone, ..options() }).unwrap_err();
    engine.tick();
    assert_eq!((get(&engine), world.kernel.pinned(&eth0())), before);

    at_stage(Stage::Journalled, outlive);
    let reply = world.apply_with(&engine, two_programs(), &soon()).unwrap();
    assert_eq!(reply.chains[0].action, Action::Updated);
    assert_eq!(get(&engine).generation, before.0.generation + 1);
}
