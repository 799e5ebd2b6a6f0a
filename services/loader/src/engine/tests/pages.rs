//! The state of a host in pages of every length.

use super::world::*;
use canopy_api::{
    endpoint::loader,
    wire::{GetReply, GetRequest, Paged, json_length},
};
use serde_json::json;

/// Every page of at most about `room` bytes, put together, and their number.
fn pages(
    engine: &crate::engine::Engine<canopy_kernel::fake::FakeKernel>,
    request: &GetRequest,
    room: usize,
) -> (GetReply, usize) {
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
