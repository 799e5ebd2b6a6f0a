//! What policy is asked about: no way of changing a host goes round it, and what is done is what was
//! asked.

use super::world::*;
use crate::{
    engine::{Engine, Stage},
    error::LoaderError,
};
use canopy_admission::{Labels, RuleSet, Subject};
use canopy_api::{
    ChainKey, Hook, InterfaceName,
    document::Format,
    permission::Role,
    wire::{
        Action, AdmissionItem, AdmissionVerb, ApplyReply, ChainState, DeleteRequest, MapName,
        MapSetRequest, ProfileRequest,
    },
};
use canopy_kernel::fake::FakeKernel;
use canopy_package::{
    PublicKey, SecretKey,
    manifest::{ManifestMap, Shared},
};
use serde_json::{Value, json};

/// Whoever asks here may do anything but take `block` off, write its maps, or take run times.
const RULES: &str = "\
rules:
  - { name: people, effect: allow }
  - { name: stays, effect: deny, reason: block stays,
      when: { verbs: [delete, downgrade, drain, map-set, map-delete, map-follow, profile], packages: [block] } }
";

fn rules(text: &str) -> RuleSet {
    canopy_admission::load(text, Format::Yaml).unwrap()
}

fn texts(items: &[AdmissionItem]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

/// The parts that rules deny.
fn denied(rules: &RuleSet, items: &[AdmissionItem]) -> Vec<String> {
    let (principal, host) = ("u-test".parse().unwrap(), "web1".parse().unwrap());
    let labels = Labels::new();
    let subject =
        Subject { principal: &principal, role: Some(Role::Operator), host: &host, labels: &labels };
    let denied = items.iter().filter(|item| !rules.decide(subject, item).allowed);
    denied.map(ToString::to_string).collect()
}

/// The parts of an apply, in words.
fn parts(world: &World, engine: &Engine<FakeKernel>, document: Value) -> Vec<String> {
    let wishes = world.wishes(document).unwrap();
    texts(engine.propose_apply(wishes, &options()).unwrap().parts())
}

/// Applies as the handlers do; what is denied where something is.
fn ask(
    world: &World,
    engine: &Engine<FakeKernel>,
    document: Value,
) -> Result<ApplyReply, Vec<String>> {
    let wishes = world.wishes(document).unwrap();
    let proposal = engine.propose_apply(wishes, &options()).unwrap();
    match denied(&rules(RULES), proposal.parts()) {
        denied if denied.is_empty() => Ok(engine.execute(&proposal).unwrap()),
        denied => Err(denied),
    }
}

fn name(text: &str) -> InterfaceName {
    text.parse().unwrap()
}

fn xdp(interface: &str) -> ChainKey {
    ChainKey { netns: None, interface: name(interface), hook: Hook::Xdp }
}

fn block(interface: &str) -> Value {
    document(&[chain(interface, &[("a", "block", &[])])])
}

fn limit(interface: &str) -> Value {
    document(&[chain(interface, &[("a", "limit", &[])])])
}

fn nothing(interface: &str) -> Value {
    document(&[chain(interface, &[])])
}

fn map_of(interface: &str, program: &str, map: &str) -> MapName {
    let name = json!({ "interface": interface, "hook": "xdp", "program": program, "map": map });
    serde_json::from_value(name).unwrap()
}

fn key() -> PublicKey {
    SecretKey::generate().unwrap().public().unwrap()
}

/// The package of each program that runs.
fn packages(engine: &Engine<FakeKernel>, interface: &str) -> Vec<String> {
    let status = status(engine, &xdp(interface));
    assert_eq!(status.state, ChainState::Active);
    status.programs.iter().map(|program| program.package.to_string()).collect()
}

#[test]
fn an_apply_is_every_program_it_names_with_its_place_in_the_document() {
    let mut world = World::new();
    let key = key();
    world.sign("block", &key);
    let engine = world.start();
    let wishes = world.wishes(two_programs()).unwrap();
    let proposal = engine.propose_apply(wishes, &options()).unwrap();
    let items = proposal.parts();
    assert_eq!(texts(items), ["apply block 1.0.0 on eth0/xdp", "apply limit 1.0.0 on eth0/xdp"]);
    assert_eq!(items[0].path, "document.chains[0].programs[0]");
    assert_eq!(items[0].publisher.as_deref(), Some(key.as_str()));
    assert_eq!(items[1].publisher, None, "nobody's signature counted");
    assert_eq!(items[0].program, "a".parse().ok());
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
        parts(&world, &engine, nothing("eth0")),
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
    assert_eq!(parts(&world, &engine, nothing("eth1")), ["delete on eth1/xdp"]);
}

/// A chain of programs that are called as their packages, each with its priority and what it goes on after.
fn ordered(interface: &str, programs: &[(&str, u16, Option<&[&str]>)]) -> Value {
    let programs: Vec<Value> = programs
        .iter()
        .map(|(package, priority, proceed_on)| {
            json!({ "name": package, "package": package, "priority": priority,
                "proceed_on": proceed_on, "config": { "ports": [] } })
        })
        .collect();
    document(&[json!({ "interface": interface, "hook": "xdp", "programs": programs })])
}

#[test]
fn a_program_that_stays_and_is_not_reached_is_deleted() {
    let world = World::new();
    let engine = world.start();
    let (block, end): (_, Option<&[&str]>) = (("block", 100, None), Some(&[]));
    ask(&world, &engine, ordered("eth0", &[block])).unwrap();
    let behind = |place: &str| Err(vec![format!("delete block 1.0.0 behind limit on {place}")]);
    // One that is put before it.
    for verdicts in [&[][..], &["drop"], &["tx", "redirect"]] {
        let before = ordered("eth0", &[block, ("limit", 99, Some(verdicts))]);
        assert_eq!(ask(&world, &engine, before), behind("eth0/xdp"), "{verdicts:?}");
    }
    let wishes = world.wishes(ordered("eth0", &[block, ("limit", 99, end)])).unwrap();
    let proposal = engine.propose_apply(wishes, &options()).unwrap();
    let item = proposal.parts().iter().find(|item| item.behind.is_some()).unwrap();
    assert_eq!(item.path, "document.chains[0].programs[1]", "the one that ends the chain");
    // What is first by its name of one priority is before it too: "block" is, and "limit" is not.
    ask(&world, &engine, ordered("eth0", &[block, ("limit", 100, end)])).unwrap();
    // The two change places; one that hands on does.
    let swapped = [("block", 101, None), ("limit", 100, end)];
    assert_eq!(ask(&world, &engine, ordered("eth0", &swapped)), behind("eth0/xdp"));
    ask(&world, &engine, ordered("eth0", &[block, ("limit", 9, Some(&["pass", "tx"]))])).unwrap();
    // One before it that hands less on than it did.
    for verdicts in [Some(&[][..]), Some(&["tx"]), Some(&["pass"]), None] {
        let less = ordered("eth0", &[block, ("limit", 9, verdicts)]);
        assert_eq!(ask(&world, &engine, less), behind("eth0/xdp"), "{verdicts:?}");
    }
    ask(&world, &engine, ordered("eth0", &[block])).unwrap();
    assert_eq!(packages(&engine, "eth0"), ["block"]);

    // On interfaces to come: in the selector itself, by a narrower one, by one that comes into its own.
    ask(&world, &engine, ordered("new*", &[block])).unwrap();
    for place in ["new*", "new1*", "new7"] {
        let before = ordered(place, &[block, ("limit", 99, end)]);
        assert_eq!(ask(&world, &engine, before), behind(&format!("{place}/xdp")), "{place}");
    }
    ask(&world, &engine, ordered("*", &[block, ("limit", 99, end)])).unwrap();
    let uncovered = ask(&world, &engine, nothing("new*"));
    assert_eq!(uncovered, behind("new*/xdp"));
    let delete = engine.propose_delete(&deletion(&eth0(), None), &options()).unwrap();
    assert_eq!(denied(&rules(RULES), delete.parts()), behind("eth0/xdp").unwrap_err());
}

#[test]
fn a_chain_that_was_renamed_keeps_its_programs_reached() {
    let world = World::new();
    let engine = world.start();
    let block = ("block", 100, None);
    ask(&world, &engine, ordered("eth0", &[block])).unwrap();
    world.kernel.rename_interface(&name("eth0"), &name("wan0"));
    let before = ordered("wan0", &[block, ("limit", 99, Some(&[]))]);
    assert_eq!(
        ask(&world, &engine, before).unwrap_err(),
        [
            "delete block 1.0.0 behind limit on eth0/xdp",
            "delete block 1.0.0 behind limit on wan0/xdp"
        ]
    );
}

#[test]
fn what_a_selector_takes_over_is_deleted_there() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, block("eth*")).unwrap();
    assert_eq!(
        parts(&world, &engine, limit("eth0")),
        ["apply limit 1.0.0 on eth0/xdp", "delete block 1.0.0 on eth0/xdp"]
    );
    assert_eq!(
        parts(&world, &engine, limit("eth1*")),
        [
            "apply limit 1.0.0 on eth1*/xdp",
            "delete block 1.0.0 on eth1*/xdp",
            "delete block 1.0.0 on eth1/xdp"
        ]
    );
    assert_eq!(
        parts(&world, &engine, limit("altname:up")),
        ["apply limit 1.0.0 on altname:up/xdp", "delete block 1.0.0 on altname:up/xdp within eth*"]
    );
    assert_eq!(
        parts(&world, &engine, limit("eth*")),
        [
            "apply limit 1.0.0 on eth*/xdp",
            "delete block 1.0.0 on eth*/xdp",
            "delete block 1.0.0 on eth0/xdp",
            "delete block 1.0.0 on eth1/xdp"
        ]
    );
}

#[test]
fn a_chain_of_an_absent_interface_is_not_replaced_unasked() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, block("eth0")).unwrap();
    world.kernel.remove_interface(&name("eth0"));
    let stays = Err(vec!["delete block 1.0.0 on eth0/xdp".to_owned()]);
    assert_eq!(ask(&world, &engine, limit("eth0")), stays);
    assert_eq!(ask(&world, &engine, nothing("eth0")), stays);
    let delete = engine.propose_delete(&deletion(&eth0(), None), &options()).unwrap();
    assert_eq!(denied(&rules(RULES), delete.parts()), stays.clone().unwrap_err());

    // It comes back between the decision and the change: nothing is done.
    let wishes = world.wishes(limit("eth0")).unwrap();
    let proposal = engine.propose_apply(wishes, &options()).unwrap();
    world.kernel.add_interface(&name("eth0"));
    let error = engine.execute(&proposal).unwrap_err();
    assert!(error.is_moved(), "{error:?}");
    let error = error.into_api();
    assert_eq!((error.code, error.retryable), (canopy_api::Code::Conflict, true));
    engine.tick();
    assert_eq!(packages(&engine, "eth0"), ["block"]);
    assert_eq!(ask(&world, &engine, limit("eth0")), stays);
}

#[test]
fn an_older_version_is_noticed_while_the_interface_is_away() {
    let mut world = World::new();
    let engine = world.start();
    world.publish("block", "2.0.0");
    world.apply(&engine, block("eth0")).unwrap();
    world.apply(&engine, block("wan*")).unwrap();
    world.kernel.remove_interface(&name("eth0"));
    world.publish("block", "1.5.0");
    for place in ["eth0", "wan*", "wan7", "altname:up"] {
        let wishes = world.wishes(block(place)).unwrap();
        let proposal = engine.propose_apply(wishes, &options()).unwrap();
        assert!(!proposal.downgrades().is_empty(), "{place}");
        assert!(denied(&rules(RULES), proposal.parts())[0].starts_with("downgrade"), "{place}");
    }
    // By removing what covers it.
    world.apply(&engine, block("wan1*")).unwrap();
    world.publish("block", "3.0.0");
    world.apply(&engine, block("wan11")).unwrap_err();
    world.kernel.add_interface(&name("wan11"));
    world.apply(&engine, block("wan11")).unwrap();
    let delete = engine.propose_delete(&deletion(&xdp("wan11"), None), &options()).unwrap();
    assert_eq!(denied(&rules(RULES), delete.parts()), ["downgrade block 1.5.0 on wan11/xdp"]);
}

#[test]
fn a_narrower_selector_takes_nothing_off_interfaces_to_come() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, block("new*")).unwrap();
    for (place, within) in [
        ("new1*", ""),
        ("new7", ""),
        // Of as many letters, and first by its text.
        ("*new", " within new*"),
        ("altname:up", " within new*"),
        ("mac:02:00:00:00:00:77", " within new*"),
        ("default-route", " within new*"),
    ] {
        let told = ask(&world, &engine, limit(place)).unwrap_err();
        assert_eq!(told, [format!("delete block 1.0.0 on {place}/xdp{within}")]);
    }
    // In the second before the selector's round.
    world.kernel.add_interface(&name("new7"));
    ask(&world, &engine, limit("new7")).unwrap_err();
    engine.tick();
    assert_eq!(packages(&engine, "new7"), ["block"]);
    // What loses nothing, and what cannot have such an interface, may be.
    ask(&world, &engine, document(&[chain("new8*", &[("a", "block", &[]), ("b", "limit", &[])])]))
        .unwrap();
    ask(&world, &engine, limit("eth0")).unwrap();
    ask(&world, &engine, limit("eth*")).unwrap();
}

#[test]
fn what_covers_a_program_is_not_put_down_and_taken_away() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, limit("*")).unwrap();
    world.apply(&engine, block("new1*")).unwrap();
    let told = ask(&world, &engine, nothing("new1*")).unwrap_err();
    assert_eq!(told, ["delete block 1.0.0 on new1*/xdp"]);
    // A part of a request may be done without the rest.
    let both =
        document(&[chain("*", &[("a", "block", &[]), ("b", "limit", &[])]), chain("new1*", &[])]);
    assert_eq!(ask(&world, &engine, both).unwrap_err(), ["delete block 1.0.0 on new1*/xdp"]);
    let uncovered = parts(&world, &engine, nothing("new1*"));
    assert_eq!(uncovered[0], "apply limit 1.0.0 on new1*/xdp");
}

#[test]
fn a_chain_that_hangs_on_a_renamed_interface_is_asked_about() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, block("eth0")).unwrap();
    world.kernel.rename_interface(&name("eth0"), &name("wan0"));
    assert_eq!(
        ask(&world, &engine, limit("wan0")).unwrap_err(),
        ["delete block 1.0.0 on eth0/xdp", "delete block 1.0.0 on wan0/xdp"]
    );
    assert!(world.kernel.running(&xdp("wan0")).is_none());
    // While the new chain is being verified.
    world.kernel.rename_interface(&name("wan0"), &name("eth0"));
    world.kernel.add_interface(&name("wan0"));
    at_stage(Stage::Planned, |kernel| {
        kernel.remove_interface(&name("wan0"));
        kernel.rename_interface(&name("eth0"), &name("wan0"));
    });
    let wishes = world.wishes(limit("wan0")).unwrap();
    let proposal = engine.propose_apply(wishes, &options()).unwrap();
    assert_eq!(denied(&rules(RULES), proposal.parts()), [""; 0]);
    assert!(engine.execute(&proposal).unwrap_err().is_moved());
    assert!(world.kernel.running(&xdp("wan0")).is_none());
    world.kernel.rename_interface(&name("wan0"), &name("eth0"));
    engine.tick();
    assert_eq!(packages(&engine, "eth0"), ["block"]);
}

#[test]
fn a_drain_and_a_profile_are_about_selectors_without_interfaces() {
    let world = World::new();
    let engine = world.start();
    assert_eq!(texts(&engine.parts_of_drain(false)), ["drain"]);
    assert_eq!(texts(&engine.parts_of_profile()), ["profile"]);
    world.apply(&engine, block("new*")).unwrap();
    assert_eq!(texts(&engine.parts_of_drain(false)), ["drain block 1.0.0 on new*/xdp"]);
    world.apply(&engine, limit("eth0")).unwrap();
    assert_eq!(
        texts(&engine.parts_of_drain(true)),
        ["undrain limit 1.0.0 on eth0/xdp", "undrain block 1.0.0 on new*/xdp"]
    );
    let asked = engine.parts_of_profile();
    assert_eq!(denied(&rules(RULES), &asked), ["profile block 1.0.0 on new*/xdp"]);
    // What comes after the question is not drained by it.
    let old = engine.parts_of_drain(false);
    world.kernel.add_interface(&name("new7"));
    engine.tick();
    assert!(engine.drain_as_asked(false, false, None, &old).unwrap_err().is_moved());
    let request = ProfileRequest { seconds: 1 };
    assert!(engine.profile_as_asked(&request, &asked).unwrap_err().is_moved());
    assert_eq!(packages(&engine, "new7"), ["block"]);
}

#[test]
fn deletes_name_the_programs_they_are_about() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    let delete = |program| {
        let request = deletion(&eth0(), program);
        engine.propose_delete(&request, &options()).map(|proposal| texts(proposal.parts()))
    };
    assert_eq!(delete(Some("a")).unwrap(), ["delete block 1.0.0 on eth0/xdp"]);
    assert_eq!(delete(None).unwrap().len(), 2);
    assert!(matches!(delete(Some("c")), Err(LoaderError::NoProgram { .. })));
    let request = DeleteRequest { interface: "eth*".parse().unwrap(), ..deletion(&eth0(), None) };
    assert!(engine.propose_delete(&request, &options()).is_err());
}

/// A host whose packages share the map `ports`, and nobody fills it by a setting.
fn sharing() -> World {
    let mut world = World::new();
    for name in ["block", "limit"] {
        world.publish_with(name, "1.0.1", name.as_bytes(), |manifest| {
            manifest.config.clear();
            manifest.maps.push(ManifestMap {
                name: "seen".to_owned(),
                carry_over: false,
                shared: Some(Shared::Host),
                max_entries: None,
            });
        });
    }
    let shape = canopy_kernel::MapShape {
        kind: canopy_kernel::MapKind::HASH,
        key_size: 4,
        value_size: 4,
        max_entries: 8,
        flags: 0,
        frozen: false,
        values: 1,
    };
    world.kernel.shape_map("seen", shape);
    world
}

fn plain(interface: &str, package: &str) -> Value {
    json!({ "interface": interface, "hook": "xdp",
        "programs": [{ "name": "a", "package": package }] })
}

#[test]
fn a_write_to_a_shared_map_is_about_every_program_that_has_it() {
    let world = sharing();
    let engine = world.start();
    world.apply(&engine, document(&[plain("eth0", "limit")])).unwrap();
    let map = map_of("eth0", "a", "seen");
    let asked = |verb| texts(&engine.parts_of_map(verb, &map).unwrap());
    let set = AdmissionVerb::MapSet;
    assert_eq!(asked(set), ["map-set limit 1.0.1 map seen on eth0/xdp"]);
    let before = engine.parts_of_map(set, &map).unwrap();
    // On an interface that is there, and on those that come.
    world.apply(&engine, document(&[plain("eth1", "block")])).unwrap();
    world.apply(&engine, document(&[plain("new*", "block")])).unwrap();
    let others = [
        "map-set limit 1.0.1 map seen on eth0/xdp",
        "map-set block 1.0.1 map seen on eth1/xdp",
        "map-set block 1.0.1 map seen on new*/xdp",
    ];
    assert_eq!(asked(set), others);
    assert_eq!(denied(&rules(RULES), &engine.parts_of_map(set, &map).unwrap()), others[1..]);
    assert_eq!(asked(AdmissionVerb::MapFollow).len(), 3);
    let request: MapSetRequest = serde_json::from_value(
        json!({ "map": map, "entries": [{ "key": "0x01000000", "value": "0x01000000" }] }),
    )
    .unwrap();
    let error = engine.map_set_as_asked(&request, None, &before).unwrap_err();
    assert!(error.is_moved(), "{error:?}");
    let own = map_of("eth0", "a", "kept");
    assert_eq!(engine.parts_of_map(set, &own).unwrap().len(), 1, "a map of its own");
    assert!(engine.parts_of_map(set, &map_of("eth0", "c", "seen")).is_err());
}

#[test]
fn a_map_of_another_publisher_is_shared_only_where_a_rule_says_so() {
    let mut world = sharing();
    let (ours, theirs) = (key(), key());
    world.sign("block", &ours);
    world.sign("limit", &theirs);
    let engine = world.start();
    ask(&world, &engine, document(&[plain("eth0", "block")])).unwrap();
    let stranger = document(&[plain("eth1", "limit")]);
    let told = ask(&world, &engine, stranger.clone()).unwrap_err();
    assert_eq!(told, ["share-map limit 1.0.1 map seen with block on eth1/xdp"]);
    assert!(world.kernel.running(&eth1()).is_none());
    // In one document, and on interfaces to come.
    let mut other = sharing();
    other.sign("block", &ours);
    other.sign("limit", &theirs);
    let both = document(&[plain("eth0", "block"), plain("new*", "limit")]);
    assert_eq!(ask(&other, &other.start(), both).unwrap_err().len(), 2);

    let named = format!(
        "{RULES}  - {{ name: shared, effect: allow, when: {{ verbs: [share-map], maps: [seen], \
         packages: [limit], publishers: [\"{theirs}\"], shared_with: [block] }} }}\n"
    );
    let wishes = world.wishes(stranger.clone()).unwrap();
    let proposal = engine.propose_apply(wishes, &options()).unwrap();
    assert_eq!(denied(&rules(&named), proposal.parts()), [""; 0]);
    engine.execute(&proposal).unwrap();
    // Signed by one key, nobody is asked.
    world.sign("limit", &ours);
    let reply = ask(&world, &engine, stranger.clone()).unwrap();
    assert_eq!(reply.chains[0].action, Action::Updated, "who signed is noted");
    assert_eq!(
        world.kernel.running(&eth1()),
        reply.chains[0].observed.as_ref().map(|o| o.generation)
    );
    let again = ask(&world, &engine, stranger).unwrap();
    assert_eq!(again.chains[0].action, Action::Unchanged);
}
