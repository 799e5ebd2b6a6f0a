//! Attached is not reached: what is told of a chain that is active and may have no effect, and of one
//! whose pins are hidden.

use super::world::*;
use crate::{engine::Engine, metrics::LoaderCollector};
use canopy_api::wire::{Action, ChainState, ForeignProgram, GetRequest};
use canopy_kernel::fake::{Call, FakeKernel};
use prometheus::core::Collector as _;
use std::{sync::Arc, time::Duration};

fn foreign() -> ForeignProgram {
    ForeignProgram {
        attached: "tcx".to_owned(),
        program_id: 99,
        name: Some("somebody_else".to_owned()),
        link_id: Some(7),
        ..ForeignProgram::default()
    }
}

/// The only series of a metric, if there is one.
fn scraped(engine: &Arc<Engine<FakeKernel>>, name: &str) -> Option<f64> {
    let families = LoaderCollector::new(Arc::clone(engine)).unwrap().collect();
    let family = families.into_iter().find(|family| family.name() == name)?;
    let [metric] = family.get_metric() else { panic!("{family:?}") };
    let gauge = metric.get_gauge().get_value();
    Some(gauge + metric.get_counter().get_value())
}

#[test]
fn who_stands_before_a_chain_is_told_everywhere() {
    const BEFORE: &str = "canopy_loader_chain_programs_before";
    let world = World::new();
    let engine = Arc::new(world.start());
    world.apply(&engine, two_programs()).unwrap();
    assert_eq!(scraped(&engine, BEFORE), Some(0.0));
    world.kernel.put_before(&eth0(), vec![foreign()]);
    let told = status(&engine, &eth0());
    assert_eq!(told.state, ChainState::Active);
    assert_eq!(told.placement.unwrap().before, [foreign()]);
    assert_eq!(scraped(&engine, BEFORE), Some(1.0));
    // Whoever changes the chain is told as well.
    let more = document(&[chain("eth0", &[("a", "block", &[])])]);
    let reply = world.apply(&engine, more).unwrap();
    let notes = reply.chains[0].notes.join("; ");
    assert!(notes.contains("program 99 \"somebody_else\" (tcx, link 7)"), "{notes}");
    // Nothing is done about it.
    world.changing_calls();
    assert_eq!(engine.tick(), []);
    assert!(world.changing_calls().is_empty());
    // The series goes with the chain.
    engine.delete(&deletion(&eth0(), None), &options()).unwrap();
    assert_eq!(scraped(&engine, BEFORE), None);
}

#[test]
fn what_the_device_drops_is_counted_when_metrics_are_read() {
    const ERRORS: &str = "canopy_loader_chain_device_errors_total";
    let world = World::new();
    let engine = Arc::new(world.start());
    world.apply(&engine, two_programs()).unwrap();
    engine.sample(Duration::from_secs(15)).unwrap();
    assert_eq!(scraped(&engine, ERRORS), None);
    world.kernel.set_device_error(&eth0(), "rx_xdp_tx_errors", 50);
    assert_eq!(status(&engine, &eth0()).device_errors["rx_xdp_tx_errors"], 50);
    engine.sample(Duration::ZERO).unwrap();
    assert_eq!(scraped(&engine, ERRORS), Some(50.0));
}

#[test]
fn strays_among_the_pins_are_told_to_whoever_asks_for_all() {
    let world = World::new();
    world.kernel.add_stray("/sys/fs/bpf/canopy/notes");
    let engine = world.start();
    assert_eq!(get(&engine).stray_pins, ["/sys/fs/bpf/canopy/notes"]);
    let one = GetRequest { interface: Some(eth0().interface), ..GetRequest::default() };
    assert_eq!(engine.get(&one).unwrap().stray_pins, [""; 0]);
}

#[test]
fn a_chain_whose_pins_are_hidden_is_taken_over() {
    let world = World::new();
    world.kernel.allow_ids(true);
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    let generation = world.kernel.running(&eth0());
    drop(engine);
    world.kernel.tamper_hide(&eth0());
    world.changing_calls();
    let engine = world.start();
    assert_eq!(world.kernel.running(&eth0()), generation);
    let told = status(&engine, &eth0());
    assert_eq!((told.state, told.restored), (ChainState::Active, 0));
    assert!(world.changing_calls().is_empty(), "nothing is built or attached");
}

#[test]
fn a_hidden_chain_out_of_reach_is_told_and_left_alone() {
    const HIDDEN: &str = "canopy_loader_chain_pins_hidden";
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    drop(engine);
    world.kernel.tamper_hide(&eth0());
    let engine = Arc::new(world.start());
    world.changing_calls();
    for _ in 0..3 {
        assert_eq!(engine.tick(), []);
    }
    let told = status(&engine, &eth0());
    assert_eq!(told.state, ChainState::Diverged);
    assert!(told.reason.unwrap().contains("pins are hidden"));
    assert!(told.pin_problem.is_some());
    assert_eq!(scraped(&engine, HIDDEN), Some(1.0));
    // Neither a change nor its removal is said to be done, nor is a drain.
    let more = document(&[chain("eth0", &[("a", "block", &[])])]);
    for wanted in [two_programs(), more] {
        let error = world.apply(&engine, wanted).unwrap_err().into_api();
        assert_eq!(error.remedy.as_deref(), Some("unmount what hides them"));
    }
    engine.delete(&deletion(&eth0(), None), &options()).unwrap_err();
    engine.drain(false, false).unwrap_err();
    assert!(world.changing_calls().is_empty());
    // Once it is uncovered everything is as before.
    world.kernel.uncover(&eth0());
    assert_eq!(engine.tick(), []);
    let told = status(&engine, &eth0());
    assert_eq!((told.state, told.pin_problem, told.restored), (ChainState::Active, None, 0));
    assert_eq!(scraped(&engine, HIDDEN), Some(0.0));
    let reply = world.apply(&engine, two_programs()).unwrap();
    assert_eq!(reply.chains[0].action, Action::Unchanged);
}

#[test]
fn ids_of_another_start_of_the_machine_mean_nothing() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    drop(engine);
    world.kernel.reboot();
    world.changing_calls();
    let engine = world.start();
    assert_eq!(world.changing_calls(), [Call::Prepare, Call::Switch]);
    assert_eq!(status(&engine, &eth0()).state, ChainState::Active);
}
