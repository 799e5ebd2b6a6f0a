//! Requests whose chains share a map: what changes together, and who is in the way.

use super::world::*;
use crate::engine::{Engine, Stage};
use canopy_api::{ChainKey, Code, wire::Action};
use canopy_kernel::{
    Kernel as _,
    fake::{Call, FakeKernel, Fault},
};
use canopy_package::manifest::{ManifestMap, Shared};

/// A host whose packages share the map that their list fills.
fn sharing() -> World {
    let mut world = World::new();
    for name in ["block", "limit"] {
        world.publish_with(name, "1.0.1", name.as_bytes(), |manifest| {
            manifest.maps.push(ManifestMap {
                name: "ports".to_owned(),
                carry_over: false,
                shared: Some(Shared::Host),
                max_entries: None,
            });
        });
    }
    world
}

fn running(world: &World, key: &ChainKey) -> u64 {
    world.kernel.running(key).unwrap()
}

/// The number of a chain's map, and the ports in it.
fn ports(world: &World, key: &ChainKey) -> (u32, Vec<u16>) {
    let generation = running(world, key);
    let maps = world.kernel.maps(key, generation).unwrap();
    let map = maps.iter().find(|map| map.name == "ports").unwrap();
    let entries = world.kernel.map_entries(key, generation, &map.member, "ports", 9).unwrap();
    let ports = entries.into_iter().map(|(key, _)| u16::from_ne_bytes(key.try_into().unwrap()));
    (map.id, ports.collect())
}

fn both(world: &World, engine: &Engine<FakeKernel>, list: &[u16]) {
    let document =
        document(&[chain("eth0", &[("a", "block", list)]), chain("eth1", &[("b", "block", list)])]);
    let reply = world.apply(engine, document).unwrap();
    assert!(reply.chains.iter().all(|chain| chain.error.is_none()), "{reply:?}");
    assert_eq!(ports(world, &eth0()), ports(world, &eth1()));
    assert_eq!(ports(world, &eth0()).1, list);
}

#[test]
fn chains_that_share_a_map_change_in_one_step() {
    let world = sharing();
    let engine = world.start();
    both(&world, &engine, &[1]);
    let before = ports(&world, &eth0()).0;
    both(&world, &engine, &[2, 3]);
    assert_ne!(ports(&world, &eth0()).0, before, "what ran was not written to");
    // One that fails takes the other back with it.
    let generations = (running(&world, &eth0()), running(&world, &eth1()));
    world.kernel.inject(Call::Switch, 1, Fault::Fail);
    let wanted =
        document(&[chain("eth0", &[("a", "block", &[4])]), chain("eth1", &[("b", "block", &[4])])]);
    assert!(world.apply(&engine, wanted).is_err());
    assert_eq!((running(&world, &eth0()), running(&world, &eth1())), generations);
    assert_eq!(ports(&world, &eth0()).1, [2, 3]);
}

#[test]
fn a_shared_map_stays_while_a_user_is_not_in_the_request() {
    let world = sharing();
    let engine = world.start();
    both(&world, &engine, &[1]);
    let generation = running(&world, &eth0());
    let alone = document(&[chain("eth0", &[("a", "block", &[2])])]);
    let error = world.apply(&engine, alone).unwrap_err().into_api();
    assert_eq!(error.code, Code::Conflict, "{error:?}");
    assert_eq!(running(&world, &eth0()), generation);
    assert_eq!(ports(&world, &eth0()).1, [1]);
}

#[test]
fn a_chain_that_stays_is_built_anew_for_a_map_that_it_shares() {
    let world = sharing();
    let engine = world.start();
    let reader = chain("eth0", &[("a", "limit", &[])]);
    world.apply(&engine, document(std::slice::from_ref(&reader))).unwrap();
    let wanted = document(&[reader, chain("eth1", &[("b", "block", &[7])])]);
    let reply = world.apply(&engine, wanted.clone()).unwrap();
    let [first, second] = reply.chains.as_slice() else { panic!("{reply:?}") };
    assert_eq!((first.action, second.action), (Action::Updated, Action::Created));
    assert!(first.steps.iter().any(|step| step.contains("shares")), "{first:?}");
    assert_eq!(ports(&world, &eth0()), ports(&world, &eth1()));
    assert_eq!(ports(&world, &eth0()).1, [7]);
    // At rest nothing is left of it, and the same document changes nothing.
    let reply = world.apply(&engine, wanted).unwrap();
    assert!(reply.chains.iter().all(|chain| chain.action == Action::Unchanged), "{reply:?}");
    let seen = world.kernel.observe().unwrap();
    assert!(seen.iter().all(|chain| chain.generations.len() == 1), "{seen:?}");
}

#[test]
fn settings_that_something_overwrites_are_not_attached() {
    let world = sharing();
    let engine = world.start();
    at_stage(Stage::Planned, FakeKernel::forget_settings);
    let wanted = document(&[chain("eth0", &[("a", "block", &[1])])]);
    let error = world.apply(&engine, wanted).unwrap_err().into_api();
    assert!(error.message.contains("\"ports\""), "{error:?}");
    assert!(world.kernel.running(&eth0()).is_none());
}

#[test]
fn the_same_document_puts_back_settings_that_were_lost() {
    for world in [World::new(), sharing()] {
        let engine = world.start();
        let wanted = document(&[chain("eth0", &[("a", "block", &[1, 2])])]);
        world.apply(&engine, wanted.clone()).unwrap();
        let key = eth0();
        world.kernel.write_map(&key, &"a".parse().unwrap(), "ports", &1_u16.to_ne_bytes(), &[9; 4]);
        // A rehearsal tells, and changes nothing.
        let rehearsal = world.apply_with(&engine, wanted.clone(), &rehearsal()).unwrap();
        assert_eq!(rehearsal.chains[0].action, Action::Updated);

        let reply = world.apply(&engine, wanted.clone()).unwrap();
        assert_eq!(reply.chains[0].action, Action::Updated);
        let notes = reply.chains[0].notes.join("; ");
        assert!(notes.contains("put back the settings that map \"ports\""), "{notes}");
        let reply = world.apply(&engine, wanted).unwrap();
        assert_eq!(reply.chains[0].action, Action::Unchanged, "{reply:?}");
    }
}
