//! The state of a host in pages of every length.

use super::world::*;
use crate::{engine::Engine, error::LoaderError};
use canopy_api::{
    ApiError, ChainKey, Code, InterfaceName,
    endpoint::loader,
    wire::{ChainStatus, GetReply, GetRequest, Paged, json_length},
};
use canopy_kernel::{Kernel as _, MapPlace, fake::FakeKernel};
use canopy_package::manifest::{KeyLabel, KeyType, Metric, MetricKind, PerCpu, Select, ValueType};
use serde_json::json;
use std::collections::BTreeSet;

/// A host whose `block` tells what each key of its map `kept` holds.
fn counting() -> World {
    let mut world = World::new();
    world.publish_with("block", "1.0.0", b"counting", |manifest| {
        let key = KeyLabel { label: "source".to_owned(), offset: 0, kind: KeyType::U32 };
        manifest.metrics = vec![Metric {
            name: "seen_total".to_owned(),
            help: "Packets by source".to_owned(),
            kind: MetricKind::Counter,
            map: "kept".to_owned(),
            select: Select::Top { count: 100, labels: vec![key] },
            offset: 0,
            value: ValueType::U64,
            per_cpu: PerCpu::Sum,
        }];
    });
    world
}

/// A source that a program counted; more of the first ones, so that they come first.
fn count(world: &World, program: &str, source: u32) {
    let value = u64::from(1_000_000 - source).to_ne_bytes();
    world.kernel.write_map(&eth0(), &named(program), "kept", &source.to_ne_bytes(), &value);
}

fn page(
    engine: &Engine<FakeKernel>,
    cursor: Option<&str>,
    room: usize,
) -> Result<GetReply, ApiError> {
    let request = GetRequest { cursor: cursor.map(str::to_owned), ..GetRequest::default() };
    engine.get_page(&request, room).map_err(LoaderError::into_api)
}

/// Every page of at most about `room` bytes, put together, and their number.
fn pages(engine: &Engine<FakeKernel>, request: &GetRequest, room: usize) -> (GetReply, usize) {
    let mut request = request.clone();
    let mut all: Option<GetReply> = None;
    for number in 1.. {
        let page = engine.get_page(&request, room).unwrap();
        assert!(
            !page.chains.is_empty() || !page.selectors.is_empty() || !page.stray_pins.is_empty(),
            "a page with nothing on it"
        );
        match &mut all {
            Some(all) => loader::Get::append(all, page),
            None => all = Some(page),
        }
        let reply = all.as_ref().unwrap();
        if !loader::Get::advance(&mut request, reply) {
            return (all.unwrap(), number);
        }
    }
    unreachable!("pages without an end")
}

#[test]
fn pages_of_any_length_hold_the_same_state() {
    let world = World::new();
    let engine = world.start();
    let ports: Vec<u16> = (1..=300).collect();
    let mut chains = Vec::new();
    for n in 2..8 {
        world.kernel.add_interface(&format!("eth{n}").parse().unwrap());
        let few = &ports[..n * 3];
        chains.push(chain(&format!("eth{n}"), &[("a", "block", few), ("b", "limit", &ports)]));
    }
    chains.push(json!({ "interface": "wan*", "hook": "xdp", "programs": [
        { "name": "a", "package": "block", "config": { "ports": ports } },
    ]}));
    world.apply(&engine, document(&chains)).unwrap();
    for n in 0..40 {
        world.kernel.add_stray(format!("/sys/fs/bpf/canopy/stray-{n:02}"));
    }
    let whole = get(&engine);
    assert_eq!((whole.chains.len(), whole.selectors.len(), whole.stray_pins.len()), (6, 1, 40));
    let length = json_length(&whole);
    for room in [1, 700, 2_000, 5_000, length / 2, length + 1_000] {
        let (again, number) = pages(&engine, &GetRequest::default(), room);
        assert_eq!(again, whole, "pages of {room}");
        assert_eq!(number == 1, room > length, "{number} pages of {room}");
    }
    // Questions for a part are answered in pages, too.
    let one = GetRequest { interface: Some("eth5".parse().unwrap()), ..GetRequest::default() };
    let (part, number) = pages(&engine, &one, 500);
    assert!(number > 1);
    assert_eq!(part.chains, [whole.chains[3].clone()]);
    assert!(part.selectors.is_empty() && part.stray_pins.is_empty());
}

#[test]
fn metrics_are_read_for_the_programs_of_a_page_only() {
    let world = counting();
    let engine = world.start();
    let ports: Vec<u16> = (1..=300).collect();
    let names = ["a", "b", "c", "d", "e", "f"];
    let programs = names.map(|name| (name, "block", &ports[..]));
    world.apply(&engine, document(&[chain("eth0", &programs)])).unwrap();
    for name in names {
        for source in 0..5 {
            count(&world, name, source);
        }
    }
    let whole = get(&engine);
    assert!(whole.chains[0].programs.iter().all(|program| program.metrics.len() == 5));
    for room in [1_500, 3_000, 5_000] {
        world.kernel.take_map_reads();
        let (mut cursor, mut again, mut pages) = (None::<String>, None::<GetReply>, 0);
        loop {
            let reply = page(&engine, cursor.as_deref(), room).unwrap();
            let shown: Vec<_> =
                reply.chains[0].programs.iter().map(|program| program.name.clone()).collect();
            let read: Vec<_> =
                world.kernel.take_map_reads().into_iter().map(|(_, name, _)| name).collect();
            let once: BTreeSet<_> = read.iter().collect();
            assert_eq!(once.len(), read.len(), "read twice for a page: {read:?}");
            // Where a page ends at a program's beginning, that one was looked at.
            let more: Vec<_> = read.iter().filter(|name| !shown.contains(name)).collect();
            assert!(more.len() <= 1, "{read:?} for {shown:?}");
            cursor = reply.next.clone();
            pages += 1;
            match &mut again {
                Some(all) => loader::Get::append(all, reply),
                None => again = Some(reply),
            }
            if cursor.is_none() {
                break;
            }
        }
        assert!(pages > 1);
        assert_eq!(again.unwrap().chains, whole.chains, "pages of {room}");
    }
}

#[test]
fn series_that_come_and_go_move_no_other_of_a_program() {
    let world = counting();
    let engine = world.start();
    world.apply(&engine, document(&[chain("eth0", &[("a", "block", &[])])])).unwrap();
    for source in (0..60).step_by(2) {
        count(&world, "a", source);
    }
    let key = eth0();
    let forget = |source: u32| {
        let (member, generation) = (named("a"), world.kernel.running(&key).unwrap());
        let place = MapPlace { key: &key, generation, member: &member, map: "kept" };
        assert!(world.kernel.map_delete(place, &source.to_ne_bytes()).unwrap());
    };
    let sources = |reply: &GetReply| -> Vec<u32> {
        let metrics = reply.chains.iter().flat_map(|chain| &chain.programs[0].metrics);
        metrics.map(|metric| metric.labels["source"].parse().unwrap()).collect()
    };
    let (mut shown, mut cursor, mut pages) = (Vec::new(), None::<String>, 0);
    loop {
        let reply = page(&engine, cursor.as_deref(), 1_600).unwrap();
        let here = sources(&reply);
        cursor = reply.next;
        if cursor.is_none() {
            shown.extend(here);
            break;
        }
        // One comes and one goes among those that were shown, and one comes behind them.
        pages += 1;
        let (first, last) = (here[0], *here.last().unwrap());
        assert!(last > first, "{here:?}");
        forget(first);
        count(&world, "a", first + 1);
        count(&world, "a", last + 1);
        shown.extend(here);
    }
    assert!(pages > 3, "{pages}");
    let even: Vec<u32> = shown.iter().copied().filter(|source| source % 2 == 0).collect();
    assert_eq!(even, (0..60).step_by(2).collect::<Vec<_>>());
    let once: BTreeSet<_> = shown.iter().collect();
    assert_eq!(once.len(), shown.len(), "{shown:?}");

    // The very series that the next page begins behind.
    let first = page(&engine, None, 1_600).unwrap();
    forget(*sources(&first).last().unwrap());
    let error = page(&engine, first.next.as_deref(), 1_600).unwrap_err();
    assert_eq!((error.code, error.path.as_str()), (Code::Conflict, "cursor"), "{error}");
}

#[test]
fn rounds_of_selectors_between_pages_break_no_chain_in_two() {
    let world = World::new();
    let engine = world.start();
    let ports: Vec<u16> = (1..=400).collect();
    world.apply(&engine, document(&[chain("eth*", &[("a", "block", &ports)])])).unwrap();
    let (generation, _) = engine.generation();
    let name = |text: &str| text.parse::<InterfaceName>().unwrap();
    let on = |text: &str| ChainKey { interface: name(text), ..eth0() };
    let first = page(&engine, None, 1_500).unwrap();
    assert!(first.chains[0].key() == eth0() && first.chains[0].continues);

    // What comes and goes elsewhere moves nothing.
    world.kernel.add_interface(&name("eth2"));
    world.kernel.remove_interface(&name("eth1"));
    engine.tick();
    let mut all = first.clone();
    let mut request = GetRequest::default();
    while loader::Get::advance(&mut request, &all) {
        loader::Get::append(&mut all, engine.get_page(&request, 1_500).unwrap());
    }
    let whole = get(&engine);
    assert_eq!(whole.chains.iter().map(ChainStatus::key).collect::<Vec<_>>(), [eth0(), on("eth2")]);
    assert_eq!((&all.chains, &all.selectors), (&whole.chains, &whole.selectors));

    // The chain that was read in part goes; then there is another in its place.
    let conflict = |cursor: &str| {
        let error = page(&engine, Some(cursor), 1_500).unwrap_err();
        assert_eq!((error.code, error.path.as_str()), (Code::Conflict, "cursor"), "{error}");
        assert!(error.remedy.is_some(), "{error}");
    };
    let cursor = first.next.unwrap();
    world.kernel.remove_interface(&name("eth0"));
    engine.tick();
    conflict(&cursor);
    assert_eq!(engine.generation().0, generation, "a round makes no generation");
    world.kernel.add_interface(&name("eth0"));
    engine.tick();
    page(&engine, Some(&cursor), 1_500).unwrap();
    let mut text: serde_json::Value = serde_json::from_str(&cursor).unwrap();
    text["programs"] = json!(format!("sha256:{}", "0".repeat(64)));
    conflict(&text.to_string());
    text.as_object_mut().unwrap().remove("programs");
    conflict(&text.to_string());
}
