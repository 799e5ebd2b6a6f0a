//! The one-second check, and what a start finds.

use super::world::*;
use crate::engine::{Event, Stage};
use canopy_api::wire::{Action, ChainState};
use canopy_kernel::{
    Kernel,
    fake::{Call, Fault},
};
use std::fs;

#[test]
fn a_detached_chain_is_restored_from_its_pins() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    let generation = world.kernel.running(&eth0());
    world.kernel.tamper_detach(&eth0());
    world.changing_calls();
    let events = engine.tick();
    let [Event::Restored(event)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((event.found.as_str(), event.restored), ("detached", 1));
    assert_eq!(world.changing_calls(), [Call::Switch], "nothing is built again");
    assert_eq!(world.kernel.running(&eth0()), generation);
    assert_eq!(engine.tick(), []);
    assert_eq!(status(&engine, &eth0()).restored, 1);
    // The count outlives the process.
    drop(engine);
    assert_eq!(status(&world.start(), &eth0()).restored, 1);
}

#[test]
fn a_replaced_program_is_put_back() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    let foreign = world.kernel.tamper_replace(&eth0());
    assert_eq!(status(&engine, &eth0()).state, ChainState::Diverged);
    let events = engine.tick();
    let [Event::Restored(event)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(event.foreign_program_id, Some(foreign));
    assert_eq!(status(&engine, &eth0()).state, ChainState::Active);
}

#[test]
fn removed_pins_are_made_again_and_counts_stay() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    world.kernel.packet(&eth0(), &[PASS, DROP]);
    engine.tick();
    world.kernel.tamper_unpin(&eth0());
    let events = engine.tick();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(status(&engine, &eth0()).state, ChainState::Active);
    assert_eq!(runs(&engine, &eth0(), "b"), 1);
}

#[test]
fn an_interface_that_goes_and_comes_gets_its_chain_back() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    world.kernel.remove_interface(&eth0().interface);
    assert_eq!(engine.tick(), []);
    let gone = status(&engine, &eth0());
    assert_eq!(gone.state, ChainState::Pending);
    assert!(gone.reason.unwrap().contains("no interface \"eth0\""));
    world.kernel.add_interface(&eth0().interface);
    assert_eq!(engine.tick(), [], "nobody tampered");
    let back = status(&engine, &eth0());
    assert_eq!((back.state, back.restored), (ChainState::Active, 0));
}

#[test]
fn a_restart_takes_over_without_touching_the_kernel() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    world.kernel.packet(&eth0(), &[PASS, PASS]);
    let before = status(&engine, &eth0());
    drop(engine);
    world.changing_calls();
    let engine = world.start();
    engine.tick();
    assert_eq!(world.changing_calls(), []);
    assert_eq!(status(&engine, &eth0()), before);
}

#[test]
fn a_reboot_is_recovered_from_state_and_cache() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    drop(engine);
    world.kernel.reboot();
    let engine = world.start();
    let status = status(&engine, &eth0());
    assert_eq!((status.state, status.restored), (ChainState::Active, 0));
    assert_eq!(world.kernel.pinned(&eth0()).len(), 1);
}

#[test]
fn a_boot_without_the_interface_waits_for_it() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    drop(engine);
    world.kernel.reboot();
    world.kernel.remove_interface(&eth0().interface);
    let engine = world.start();
    assert_eq!(status(&engine, &eth0()).state, ChainState::Pending);
    world.kernel.add_interface(&eth0().interface);
    engine.tick();
    let status = status(&engine, &eth0());
    assert_eq!((status.state, status.restored), (ChainState::Active, 0));
}

#[test]
fn a_chain_that_cannot_be_built_is_tried_less_and_less_often() {
    let world = World::new();
    let engine = world.start();
    let both =
        document(&[chain("eth0", &[("a", "limit", &[])]), chain("eth1", &[("a", "block", &[])])]);
    world.apply(&engine, both).unwrap();
    drop(engine);
    world.kernel.reboot();
    world.kernel.refuse_function("limit_main");
    let engine = world.start();
    // The other one runs.
    assert_eq!(status(&engine, &eth1()).state, ChainState::Active);
    let bad = status(&engine, &eth0());
    assert_eq!(bad.state, ChainState::Pending);
    assert!(bad.reason.unwrap().contains("the verifier refuses it"));
    world.changing_calls();
    let mut attempts = 0;
    for _ in 0..120 {
        wait(1);
        engine.tick();
        attempts += world.changing_calls().len();
    }
    assert!((4..=9).contains(&attempts), "{attempts} attempts in two minutes");
}

#[test]
fn one_sick_chain_does_not_keep_others_from_being_restored() {
    let world = World::new();
    let engine = world.start();
    let both =
        document(&[chain("eth0", &[("a", "block", &[])]), chain("eth1", &[("a", "block", &[])])]);
    world.apply(&engine, both).unwrap();
    world.kernel.tamper_detach(&eth0());
    world.kernel.tamper_detach(&eth1());
    world.kernel.inject(Call::Switch, 0, Fault::Fail);
    assert_eq!(engine.tick().len(), 1);
    assert_eq!(status(&engine, &eth1()).state, ChainState::Active);
    assert_eq!(engine.tick().len(), 1);
    assert_eq!(status(&engine, &eth0()).state, ChainState::Active);
}

#[test]
fn a_damaged_state_falls_back_to_the_one_before() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    world.apply(&engine, document(&[chain("eth1", &[("a", "block", &[])])])).unwrap();
    drop(engine);
    fs::write(world.dir.path().join("state.json"), b"\0\0\0").unwrap();
    // The one before is that of the journal: the kernel says that the change was made.
    let engine = world.start();
    assert_eq!(engine.lost(), None);
    assert_eq!(get(&engine).chains.len(), 2);
    assert!(get(&engine).chains.iter().all(|chain| chain.state == ChainState::Active));
}

#[test]
fn what_a_forgotten_generation_counted_is_not_lost() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    world.kernel.packet(&eth0(), &[PASS, PASS]);
    at_stage(Stage::Switched, |kernel| {
        kernel.packet(&eth0(), &[PASS, PASS]);
        die_at(Stage::Switched);
    });
    let other = document(&[chain("eth0", &[("b", "limit", &[80])])]);
    assert!(until_death(|| world.apply(&engine, other)).is_none());
    drop(engine);
    // The one before knows nothing of the change.
    fs::write(world.dir.path().join("state.json"), b"torn").unwrap();
    let engine = world.start();
    assert_eq!(status(&engine, &eth0()).programs.len(), 2, "the old chain");
    assert_eq!(runs(&engine, &eth0(), "b"), 2);
    assert_eq!(world.kernel.pinned(&eth0()).len(), 1);
    drop(engine);
    assert_eq!(runs(&world.start(), &eth0(), "b"), 2);
}

#[test]
fn a_lost_state_removes_nothing_and_an_apply_takes_over() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    let running = world.kernel.running(&eth0());
    drop(engine);
    for name in ["state.json", "state.previous.json"] {
        fs::write(world.dir.path().join(name), b"torn").unwrap();
    }
    world.changing_calls();
    let engine = world.start();
    engine.tick();
    assert!(engine.lost().unwrap().contains("state.json"));
    assert_eq!(world.changing_calls(), []);
    assert_eq!(world.kernel.running(&eth0()), running);
    assert_eq!(status(&engine, &eth0()).state, ChainState::Diverged);
    // Nor does the start after that, which finds no state at all.
    drop(engine);
    let engine = world.start();
    engine.tick();
    assert_eq!(world.changing_calls(), []);
    assert_eq!(world.kernel.pinned(&eth0()).len(), 1);
    let reply = world.apply(&engine, two_programs()).unwrap();
    assert_eq!(reply.chains[0].action, Action::Updated);
    assert_eq!(status(&engine, &eth0()).state, ChainState::Active);
}

#[test]
fn a_kernel_that_cannot_be_observed_is_left_alone() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    world.kernel.inject(Call::Observe, 0, Fault::Fail);
    assert_eq!(engine.tick(), []);
    world.kernel.take_log();
    engine.tick();
    assert_eq!(world.changing_calls(), []);
    assert_eq!(world.kernel.observe().unwrap().len(), 1);
}
