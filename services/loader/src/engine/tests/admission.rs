//! What policy is asked about: no way of changing a host goes round it.

use super::world::*;
use crate::{
    core::{
        admission::{Signers, signers},
        resolve::Located,
    },
    engine::Engine,
    error::LoaderError,
};
use canopy_api::wire::{AdmissionItem, AdmissionVerb, MapName};
use canopy_kernel::fake::FakeKernel;
use canopy_package::SecretKey;
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn texts(items: &[AdmissionItem]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

/// The parts of an apply, in words.
fn parts(world: &World, engine: &Engine<FakeKernel>, document: Value) -> Vec<String> {
    let wishes = world.wishes(document).unwrap();
    let (_, parts) = engine.parts_of_apply(&wishes, &Signers::new(), &options()).unwrap();
    texts(&parts)
}

#[test]
fn an_apply_is_every_program_it_names_with_its_place_in_the_document() {
    let world = World::new();
    let engine = world.start();
    let wishes = world.wishes(two_programs()).unwrap();
    let key = SecretKey::generate().unwrap().public().unwrap();
    let block = wishes[0].wanted.as_ref().unwrap().programs[0].digest.clone();
    let by = Signers::from([(block, key.clone())]);
    let (_, items) = engine.parts_of_apply(&wishes, &by, &options()).unwrap();
    assert_eq!(texts(&items), ["apply block 1.0.0 on eth0/xdp", "apply limit 1.0.0 on eth0/xdp"]);
    assert_eq!(items[0].path, "document.chains[0].programs[0]");
    assert_eq!(items[0].publisher.as_deref(), Some(key.as_str()));
    assert_eq!(items[1].publisher, None, "nobody's signature counted");
    assert_eq!(items[0].program, "a".parse().ok());
}

#[test]
fn who_signed_is_what_was_verified() {
    let key = SecretKey::generate().unwrap().public().unwrap();
    let world = World::new();
    let package = world.wishes(two_programs()).unwrap();
    let digest = package[0].wanted.as_ref().unwrap().programs[0].digest.clone();
    let shelf = crate::cache::PackageSource::package(world.shelf.as_ref(), &digest).unwrap();
    let located = |signed_by| {
        let one = Located { digest: digest.clone(), package: shelf.clone(), signed_by };
        BTreeMap::from([("block@*".to_owned(), one)])
    };
    assert_eq!(signers(&located(Some(key.clone()))), Signers::from([(digest.clone(), key)]));
    assert_eq!(signers(&located(None)), Signers::new());
}

#[test]
fn an_apply_that_leaves_a_program_out_deletes_it() {
    let mut world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    // Out of the chain; under its name another package; the whole chain; an older version.
    let rest = document(&[chain("eth0", &[("b", "limit", &[])])]);
    assert_eq!(
        parts(&world, &engine, rest),
        ["apply limit 1.0.0 on eth0/xdp", "delete block 1.0.0 on eth0/xdp"]
    );
    let other = document(&[chain("eth0", &[("a", "limit", &[]), ("b", "limit", &[])])]);
    assert_eq!(
        parts(&world, &engine, other),
        [
            "apply limit 1.0.0 on eth0/xdp",
            "apply limit 1.0.0 on eth0/xdp",
            "delete block 1.0.0 on eth0/xdp"
        ]
    );
    assert_eq!(
        parts(&world, &engine, document(&[chain("eth0", &[])])),
        ["delete block 1.0.0 on eth0/xdp", "delete limit 1.0.0 on eth0/xdp"]
    );
    world.publish("block", "0.9.0");
    assert_eq!(
        parts(&world, &engine, two_programs()),
        [
            "apply block 0.9.0 on eth0/xdp",
            "apply limit 1.0.0 on eth0/xdp",
            "downgrade block 0.9.0 on eth0/xdp"
        ]
    );
    // Where nothing is known, what the kernel may have there.
    assert_eq!(parts(&world, &engine, document(&[chain("eth1", &[])])), ["delete on eth1/xdp"]);
}

#[test]
fn what_a_selector_takes_over_is_deleted_there() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, document(&[chain("eth*", &[("a", "block", &[])])])).unwrap();
    assert_eq!(
        parts(&world, &engine, document(&[chain("eth0", &[("a", "limit", &[])])])),
        ["apply limit 1.0.0 on eth0/xdp", "delete block 1.0.0 on eth0/xdp"]
    );
    assert_eq!(
        parts(&world, &engine, document(&[chain("eth1*", &[("a", "limit", &[])])])),
        ["apply limit 1.0.0 on eth1*/xdp", "delete block 1.0.0 on eth1/xdp"]
    );
    assert_eq!(
        parts(&world, &engine, document(&[chain("eth*", &[("a", "limit", &[])])])),
        [
            "apply limit 1.0.0 on eth*/xdp",
            "delete block 1.0.0 on eth*/xdp",
            "delete block 1.0.0 on eth0/xdp",
            "delete block 1.0.0 on eth1/xdp"
        ]
    );
}

#[test]
fn deletes_drains_and_writes_name_the_programs_they_are_about() {
    let world = World::new();
    let engine = world.start();
    assert_eq!(texts(&engine.parts_of_drain(false)), ["drain"]);
    world.apply(&engine, two_programs()).unwrap();
    let delete = |program| engine.parts_of_delete(&deletion(&eth0(), program), &options());
    assert_eq!(texts(&delete(Some("a")).unwrap()), ["delete block 1.0.0 on eth0/xdp"]);
    assert_eq!(delete(None).unwrap().len(), 2);
    assert!(matches!(delete(Some("c")), Err(LoaderError::NoProgram { .. })));
    assert_eq!(
        texts(&engine.parts_of_drain(true)),
        ["undrain block 1.0.0 on eth0/xdp", "undrain limit 1.0.0 on eth0/xdp"]
    );
    let name: MapName = serde_json::from_value(
        json!({ "interface": "eth0", "hook": "xdp", "program": "a", "map": "ports" }),
    )
    .unwrap();
    let part = engine.part_of_map(AdmissionVerb::MapSet, &name).unwrap();
    assert_eq!(part.to_string(), "map-set block 1.0.0 map ports on eth0/xdp");
    let nowhere = MapName { program: named("c"), ..name };
    assert!(engine.part_of_map(AdmissionVerb::MapSet, &nowhere).is_err());
}
