//! Several objects of one program: which one a host runs, and what happens when the host changes.

use super::world::{
    World, chain, document, eth0, eth1, get, options, rehearsal, status, until_death, wait,
};
use crate::engine::{Engine, Stage};
use canopy_api::wire::{Action, ChainState, Fact};
use canopy_kernel::{MapKind, MapShape, fake::FakeKernel};
use canopy_package::manifest::Requires;
use serde_json::Value;

const OLD: &str = "5.15.0-100-generic";
const NEW: &str = "6.18.0-fake";

/// `flows` 1.0.0: `loop.o` for kernels from 6.1, `ring.o` where there are ring buffers, `main.o`.
fn world() -> World {
    let mut world = World::new();
    publish(&mut world, "1.0.0");
    world.kernel.set_facts(facts(true));
    world
}

fn publish(world: &mut World, version: &str) {
    let newer = Requires { kernel: Some("6.1".to_owned()), ..Requires::default() };
    let ring = Requires { features: vec!["ring-buffer".to_owned()], ..Requires::default() };
    let variants = [("loop.o", newer), ("ring.o", ring)];
    world.publish_variants("flows", version, format!("plain {version}").as_bytes(), &variants);
}

fn facts(ring: bool) -> Vec<Fact> {
    let fact = |name: &str, ok| Fact {
        name: name.to_owned(),
        ok,
        required: false,
        detail: String::new(),
        remedy: None,
    };
    vec![fact("ring-buffer", ring), fact("tcx", true)]
}

fn flows(interface: &str) -> Value {
    document(&[chain(interface, &[("f", "flows", &[])])])
}

/// What the kernel runs, and what the loader says that it runs.
fn running(world: &World, engine: &Engine<FakeKernel>) -> (String, String) {
    let objects = world.kernel.objects(&eth0());
    let object = String::from_utf8(objects[0].to_vec()).unwrap();
    let told = status(engine, &eth0()).programs[0].variant.clone().unwrap();
    let over: Vec<_> =
        told.passed_over.iter().map(|over| format!("{}: {}", over.object, over.needs)).collect();
    (object, format!("{} on {}; {}", told.object, told.kernel, over.join("; ")))
}

#[track_caller]
fn is((runs, says): &(String, String), object: &str, told: &str) {
    assert_eq!((runs.as_str(), says.as_str()), (object, told));
}

const LOOP: &str = "loop.o on 6.18.0-fake; ";
const RING: &str = "ring.o on 5.15.0-100-generic; loop.o: kernel 6.1 or later; this is \
    5.15.0-100-generic";
const PLAIN: &str = "main.o on 5.15.0-100-generic; loop.o: kernel 6.1 or later; this is \
    5.15.0-100-generic; ring.o: \"ring-buffer\", which this host does not have";

#[test]
fn each_host_runs_the_first_object_it_can_and_says_why() {
    let world = world();
    for (kernel, ring, object, told) in [
        (NEW, true, "loop.o", LOOP),
        (NEW, false, "loop.o", LOOP),
        (OLD, true, "ring.o", RING),
        (OLD, false, "plain 1.0.0", PLAIN),
    ] {
        world.kernel.set_release(kernel);
        world.kernel.set_facts(facts(ring));
        let engine = world.start();
        let reply = world.apply(&engine, flows("eth0")).unwrap();
        let planned = reply.chains[0].programs[0].variant.clone().unwrap();
        is(&running(&world, &engine), object, told);
        assert_eq!(Some(planned), status(&engine, &eth0()).programs[0].variant);
    }
}

#[test]
fn a_program_with_one_object_has_no_variant() {
    let world = world();
    let engine = world.start();
    world.apply(&engine, document(&[chain("eth0", &[("a", "block", &[])])])).unwrap();
    assert_eq!(status(&engine, &eth0()).programs[0].variant, None);
}

#[test]
fn applying_twice_changes_nothing() {
    let world = world();
    let engine = world.start();
    world.apply(&engine, flows("eth0")).unwrap();
    world.changing_calls();
    let again = world.apply(&engine, flows("eth0")).unwrap();
    assert_eq!(again.chains[0].action, Action::Unchanged);
    assert_eq!(world.changing_calls(), []);
}

/// A probe that fails for once, at a restart, is no reason to exchange what runs.
#[test]
fn a_restart_keeps_the_choice_whatever_the_probes_say() {
    let world = world();
    world.kernel.set_release(OLD);
    let engine = world.start();
    world.apply(&engine, flows("eth0")).unwrap();
    drop(engine);
    world.kernel.set_facts(facts(false));
    world.changing_calls();
    let engine = world.start();
    engine.tick();
    assert_eq!(world.changing_calls(), []);
    is(&running(&world, &engine), "ring.o", RING);
}

#[test]
fn an_apply_chooses_by_what_the_host_can_do_now() {
    let world = world();
    world.kernel.set_release(OLD);
    world.kernel.set_facts(facts(false));
    let engine = world.start();
    world.apply(&engine, flows("eth0")).unwrap();
    world.kernel.set_facts(facts(true));
    let plan = world.apply_with(&engine, flows("eth0"), &rehearsal()).unwrap();
    assert!(
        plan.chains[0].steps.contains(&"f: main.o becomes ring.o".to_owned()),
        "{:?}",
        plan.chains[0].steps
    );
    is(&running(&world, &engine), "plain 1.0.0", PLAIN);
    world.apply(&engine, flows("eth0")).unwrap();
    is(&running(&world, &engine), "ring.o", RING);
}

/// What is in another object's data sections means something else: only what the manifest marks goes
/// over from one to the other.
#[test]
fn another_object_keeps_what_the_manifest_says_and_no_more() {
    let world = world();
    for map in ["kept", "other"] {
        let shape = MapShape {
            kind: MapKind::HASH,
            key_size: 4,
            value_size: 8,
            max_entries: 16,
            flags: 0,
            frozen: false,
            values: 1,
        };
        world.kernel.shape_map(map, shape);
    }
    world.kernel.set_release(OLD);
    world.kernel.set_facts(facts(false));
    let engine = world.start();
    world.apply(&engine, flows("eth0")).unwrap();
    world.kernel.set_facts(facts(true));
    let reply = world.apply(&engine, flows("eth0")).unwrap();
    assert_eq!(reply.chains[0].notes, ["f: map kept kept"]);
}

/// A reboot into a kernel that can more, then into one that can less, then into the same.
#[test]
fn another_kernel_gets_its_own_choice_without_an_apply() {
    let world = world();
    world.kernel.set_release(OLD);
    let engine = world.start();
    world.apply(&engine, flows("eth0")).unwrap();
    let generation = get(&engine).generation;
    drop(engine);
    for (kernel, ring, object, told) in [
        (NEW, true, "loop.o", LOOP),
        (OLD, false, "plain 1.0.0", PLAIN),
        // The same kernel: the choice stands.
        (OLD, true, "plain 1.0.0", PLAIN),
        (NEW, true, "loop.o", LOOP),
        (OLD, true, "ring.o", RING),
    ] {
        world.kernel.reboot();
        world.kernel.set_release(kernel);
        world.kernel.set_facts(facts(ring));
        let engine = world.start();
        is(&running(&world, &engine), object, told);
        assert_eq!(status(&engine, &eth0()).state, ChainState::Active);
        assert_eq!(get(&engine).generation, generation, "nobody asked for anything else");
    }
}

#[test]
fn a_selector_s_chains_get_the_choice_of_another_kernel_at_once_and_for_ever() {
    let world = world();
    world.kernel.set_release(OLD);
    let engine = world.start();
    world.apply(&engine, flows("eth*")).unwrap();
    is(&running(&world, &engine), "ring.o", RING);
    drop(engine);
    world.kernel.reboot();
    world.kernel.set_release(NEW);
    let engine = world.start();
    is(&running(&world, &engine), "loop.o", LOOP);
    assert_eq!(world.kernel.objects(&eth1()), world.kernel.objects(&eth0()));
    world.changing_calls();
    for _ in 0..3 {
        wait(60);
        engine.tick();
    }
    assert_eq!(world.changing_calls(), [], "it goes on being built");
    // One that comes later gets the same.
    world.kernel.add_interface(&"eth7".parse().unwrap());
    engine.tick();
    let key = canopy_api::ChainKey { interface: "eth7".parse().unwrap(), ..eth0() };
    assert_eq!(world.kernel.objects(&key), world.kernel.objects(&eth0()));
    let told = get(&engine).selectors[0].programs[0].variant.clone().unwrap();
    assert_eq!((told.object.as_str(), told.kernel.as_str()), ("loop.o", NEW));
}

/// What was chosen is refused, as a kernel of the same name with another configuration would: what
/// the host can do is asked again, and the next object is taken.
#[test]
fn what_cannot_be_built_is_chosen_again() {
    for interface in ["eth0", "eth*"] {
        let world = world();
        world.kernel.set_release(OLD);
        let engine = world.start();
        world.apply(&engine, flows(interface)).unwrap();
        drop(engine);
        world.kernel.reboot();
        world.kernel.refuse_object(b"ring.o");
        world.kernel.set_facts(facts(false));
        let engine = world.start();
        assert_eq!(status(&engine, &eth0()).state, ChainState::Pending, "{interface}");
        wait(2);
        engine.tick();
        is(&running(&world, &engine), "plain 1.0.0", PLAIN);
        world.changing_calls();
        wait(60);
        engine.tick();
        assert_eq!(world.changing_calls(), [], "{interface}: it goes on being built");
    }
}

#[test]
fn what_no_choice_can_mend_stays_asked_for() {
    let world = world();
    let engine = world.start();
    world.apply(&engine, flows("eth0")).unwrap();
    drop(engine);
    world.kernel.reboot();
    world.kernel.set_release(OLD);
    world.kernel.refuse_function("flows_main");
    let engine = world.start();
    for _ in 0..20 {
        wait(10);
        engine.tick();
    }
    let now = status(&engine, &eth0());
    assert_eq!(now.state, ChainState::Pending);
    // What is noted is what was last built.
    assert_eq!(now.programs[0].variant.as_ref().unwrap().object, "loop.o");
    assert!(now.reason.unwrap().contains("the verifier refuses it"));
}

#[test]
fn a_package_that_is_not_at_hand_loses_no_intent() {
    let world = world();
    world.kernel.set_release(OLD);
    let engine = world.start();
    world.apply(&engine, flows("eth*")).unwrap();
    let digest = status(&engine, &eth0()).programs[0].digest.clone();
    drop(engine);
    world.kernel.reboot();
    world.kernel.set_release(NEW);
    let package = world.shelf.take(&digest).unwrap();
    let engine = world.start();
    let waiting = status(&engine, &eth0());
    assert_eq!(waiting.state, ChainState::Pending);
    assert_eq!(waiting.programs[0].variant.as_ref().unwrap().object, "ring.o");
    world.shelf.put(digest.clone(), package);
    wait(2);
    engine.tick();
    is(&running(&world, &engine), "loop.o", LOOP);
}

/// A death anywhere in the boot into another kernel, and one in the boot after that.
#[test]
fn death_in_a_boot_into_another_kernel_leaves_the_choice_whole() {
    for interface in ["eth0", "eth*"] {
        for stage in Stage::ALL {
            let world = world();
            world.kernel.set_release(OLD);
            let engine = world.start();
            world.apply(&engine, flows(interface)).unwrap();
            drop(engine);
            world.kernel.reboot();
            world.kernel.set_release(NEW);
            super::world::die_at(stage);
            drop(until_death(|| world.start()));
            super::world::live();
            let engine = world.start();
            wait(2);
            engine.tick();
            is(&running(&world, &engine), "loop.o", LOOP);
            assert_eq!(world.kernel.pinned(&eth0()).len(), 1, "{interface} {stage:?}");
        }
    }
}

#[test]
fn what_remains_of_a_chain_keeps_its_choices() {
    let world = world();
    world.kernel.set_release(OLD);
    let engine = world.start();
    let both = document(&[chain("eth0", &[("f", "flows", &[]), ("g", "block", &[])])]);
    world.apply(&engine, both).unwrap();
    world.kernel.set_facts(facts(false));
    engine.delete(&super::world::deletion(&eth0(), Some("g")), &options()).unwrap();
    is(&running(&world, &engine), "ring.o", RING);
}
