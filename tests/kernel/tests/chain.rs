//! The fused chain against a model of it: verdicts, accounting, order, maps over versions.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a failure is a panic"
)]

use canopy_api::{Hook, Verdict, VerdictSet, verdict::CELLS};
use canopy_kernel::{Member, MemberCells};
use canopy_kernel_tests::chain::{Chains, member, object, packet};

/// A small generator of repeatable noise (Numerical Recipes' LCG).
struct Noise(u64);

impl Noise {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as u32 % limit
    }
}

/// A program that returns the packet's byte at its place.
fn asker(hook: Hook, place: u32, proceed_on: VerdictSet) -> Member {
    let function = if hook == Hook::Xdp { "xdp_verdict_byte" } else { "tc_verdict_byte" };
    Member {
        proceed_on,
        globals: vec![("place".to_owned(), place.to_ne_bytes().to_vec())],
        ..member(&format!("ask-{place}"), hook, &object("verdict_byte"), function)
    }
}

/// What a chain does with a packet, by the words of the design.
fn model(sets: &[VerdictSet], verdicts: &[u8], counts: &mut [[[u64; CELLS]; 2]]) -> u8 {
    for (i, (set, verdict)) in sets.iter().zip(verdicts).enumerate() {
        let slot = (*verdict).min(32);
        let goes_on = slot < 32 && set.bits() & (1 << slot) != 0 && i + 1 < sets.len();
        counts[i][usize::from(goes_on)][usize::from(slot)] += 1;
        if !goes_on {
            return *verdict;
        }
    }
    unreachable!("the last member ends the chain");
}

/// What TCX is told for a verdict slot.
fn on_tcx(slot: u8) -> i32 {
    match i32::from(slot) - 1 {
        -1 | 0 | 3 => -1,
        4 | 5 | 8 => 2,
        other => other,
    }
}

fn check(chains: &Chains, hook: Hook, generation: u64, sets: &[VerdictSet], order: &[u32]) {
    let members = order.iter().zip(sets).map(|(place, set)| asker(hook, *place, *set)).collect();
    chains.load(hook, generation, members);

    let mut noise = Noise(generation);
    let mut counts = vec![[[0; CELLS]; 2]; sets.len()];
    let sent = 300;
    for _ in 0..sent {
        let asked: Vec<u8> = sets
            .iter()
            .map(|set| {
                let any = u8::try_from(noise.below(48)).unwrap();
                let on = (0..32).find(|slot| set.bits() & (1 << slot) != 0).unwrap_or(2);
                // Mostly onwards, or no packet would see the end of a long chain.
                match noise.below(12) {
                    0 => any,
                    1 if set.bits().count_ones() > 1 => {
                        31 - u8::try_from(set.bits().leading_zeros()).unwrap()
                    }
                    _ => on,
                }
            })
            .collect();
        let mut payload = vec![0; 64];
        for (place, verdict) in order.iter().zip(&asked) {
            payload[*place as usize] = *verdict;
        }
        let expected = model(sets, &asked, &mut counts);
        let expected = if hook == Hook::Xdp { i32::from(expected) } else { on_tcx(expected) };
        let got = chains.run(hook, generation, &packet(&payload)).retval.cast_signed();
        assert_eq!(got, expected, "asked {asked:?}");
    }

    let cells = chains.cells(hook, generation);
    let names: Vec<String> = order.iter().map(|place| format!("ask-{place}")).collect();
    assert_eq!(cells.iter().map(|cell| cell.name.to_string()).collect::<Vec<_>>(), names);
    let exits: u64 = cells.iter().flat_map(|cell| cell.exits).sum();
    assert_eq!(exits, sent, "every packet ended somewhere, once");
    for (i, (cell, [exits, proceeds])) in cells.iter().zip(&counts).enumerate() {
        assert_eq!(cell.exits, *exits, "exits of {}", cell.name);
        assert_eq!(cell.proceeds, *proceeds, "proceeds of {}", cell.name);
        let runs = chains.global(hook, generation, &names[i], ".bss", 0);
        assert_eq!(cell.runs(), runs, "runs of {} as it counted them itself", cell.name);
        let later: u64 = cells[i..].iter().flat_map(|cell: &MemberCells| cell.exits).sum();
        assert_eq!(cell.runs(), later);
    }
}

fn set(bits: u32) -> VerdictSet {
    VerdictSet::from_bits(bits)
}

#[test]
fn chains_of_any_length_count_every_packet_over_reorders() {
    for hook in [Hook::Xdp, Hook::TcIngress, Hook::TcEgress] {
        let chains = Chains::new();
        for (round, length) in [1u32, 2, 5, 10, 32].into_iter().enumerate() {
            let sets = vec![VerdictSet::default_for(hook); length as usize];
            let mut order: Vec<u32> = (0..length).collect();
            let generation = round as u64 * 2 + 1;
            check(&chains, hook, generation, &sets, &order);
            order.reverse();
            check(&chains, hook, generation + 1, &sets, &order);
        }
    }
}

#[test]
fn any_proceed_on_sets_count_every_packet() {
    let mut noise = Noise(7);
    for hook in [Hook::Xdp, Hook::TcIngress] {
        let chains = Chains::new();
        for generation in 1..=6 {
            let sets: Vec<VerdictSet> = (0..6)
                .map(|_| match noise.below(4) {
                    0 => set(1 << noise.below(32)),
                    1 => set(u32::MAX),
                    _ => set(1 << noise.below(32) | 1 << noise.below(32) | 1 << noise.below(6)),
                })
                .collect();
            check(&chains, hook, generation, &sets, &[5, 3, 1, 0, 2, 4]);
        }
    }
}

#[test]
fn a_verdict_without_a_slot_ends_the_chain_and_is_returned() {
    let chains = Chains::new();
    let everything = set(u32::MAX);
    chains.load(
        Hook::Xdp,
        1,
        vec![asker(Hook::Xdp, 0, everything), asker(Hook::Xdp, 1, everything)],
    );
    assert_eq!(chains.run(Hook::Xdp, 1, &packet(&[200, 2])).retval, 200);
    let cells = chains.cells(Hook::Xdp, 1);
    assert_eq!(cells[0].exits[32], 1);
    assert_eq!(cells[1].runs(), 0);
}

#[test]
fn verdicts_proceed_by_name() {
    let drop = Verdict::parse(Hook::Xdp, "drop").unwrap();
    let chains = Chains::new();
    let on_drop: VerdictSet = [drop].into_iter().collect();
    chains.load(Hook::Xdp, 1, vec![asker(Hook::Xdp, 0, on_drop), asker(Hook::Xdp, 1, on_drop)]);
    assert_eq!(chains.run(Hook::Xdp, 1, &packet(&[1, 3])).retval, 3, "drop went on");
    assert_eq!(chains.run(Hook::Xdp, 1, &packet(&[2, 3])).retval, 2, "pass ended it");
}

mod versions {
    //! Maps over versions of a program.

    use super::*;
    use canopy_kernel::{Carry, MapContents};
    use canopy_kernel_tests::chain::object_with;

    const HOOK: Hook = Hook::Xdp;

    /// The program that counts in a map and in `.bss`, with one Ethernet type it lets through.
    fn version(options: &[&str], carry: Carry) -> Member {
        Member {
            carry,
            max_entries: vec![("allowed".into(), 4)],
            map_entries: vec![MapContents {
                map: "allowed".into(),
                entries: vec![(0x88b5u16.to_ne_bytes().to_vec(), vec![1, 0, 0, 0])],
            }],
            ..member("entries", HOOK, &object_with("entries", options), "entries")
        }
    }

    /// (what the map counted, what `.bss` counted)
    fn counted(chains: &Chains, generation: u64) -> (u64, u64) {
        let kept = chains.map(HOOK, generation, "entries", "kept");
        let value = kept.lookup(&[0; 4]).unwrap().unwrap();
        let seen = u64::from_ne_bytes(value[..8].try_into().unwrap());
        (seen, chains.global(HOOK, generation, "entries", ".bss", 0))
    }

    fn everything() -> Carry {
        Carry::AllBut(Vec::new())
    }

    #[test]
    fn maps_are_kept_where_they_should_be_and_can_be() {
        let chains = Chains::new();
        let run = |generation| {
            assert_eq!(chains.run_many(HOOK, generation, &packet(&[]), 3).retval, 2);
        };
        let notes = chains.load(HOOK, 1, vec![version(&[], everything())]).notes;
        assert!(notes.is_empty(), "nothing was there before: {notes:?}");
        run(1);
        assert_eq!(counted(&chains, 1), (3, 3));

        let notes = chains.load(HOOK, 2, vec![version(&[], everything())]).notes;
        assert!(notes.iter().any(|n| n.contains("keeps") && n.contains("kept")), "{notes:?}");
        run(2);
        assert_eq!(counted(&chains, 2), (6, 6));
        assert_eq!(counted(&chains, 1), (6, 6), "the same maps, not copies");

        // All but one; `.bss` counts as a map.
        chains.load(HOOK, 3, vec![version(&[], Carry::AllBut(vec![".bss".into()]))]);
        run(3);
        assert_eq!(counted(&chains, 3), (9, 3));
        chains.load(HOOK, 4, vec![version(&[], Carry::Only(vec![".bss".into()]))]);
        run(4);
        assert_eq!(counted(&chains, 4), (3, 6));
        chains.load(HOOK, 5, vec![version(&[], Carry::Nothing)]);
        run(5);
        assert_eq!(counted(&chains, 5), (3, 3));
    }

    #[test]
    fn a_map_of_another_shape_starts_empty_and_it_is_said() {
        for (options, reason) in [(["-DWIDER"], "value size"), (["-DRENAMED"], "layout")] {
            let chains = Chains::new();
            chains.load(HOOK, 1, vec![version(&[], everything())]);
            chains.run_many(HOOK, 1, &packet(&[]), 3);
            let notes = chains.load(HOOK, 2, vec![version(&options, everything())]).notes;
            assert!(
                notes.iter().any(|note| note.contains("\"kept\"") && note.contains(reason)),
                "{notes:?}"
            );
            assert_eq!(counted(&chains, 2), (0, 3), "only the map that changed");
        }
    }

    #[test]
    fn a_map_has_its_settings_whether_it_is_kept_or_new() {
        let chains = Chains::new();
        chains.load(HOOK, 1, vec![version(&[], everything())]);
        let allowed = chains.map(HOOK, 1, "entries", "allowed");
        allowed.update(&7u16.to_ne_bytes(), &[7, 0, 0, 0], 0).unwrap();
        chains.load(HOOK, 2, vec![version(&[], everything())]);
        let kept = chains.map(HOOK, 2, "entries", "allowed");
        assert_eq!(kept.info().id, allowed.info().id, "it has them: the same map");
        allowed.delete(&0x88b5u16.to_ne_bytes()).unwrap();
        assert_eq!(chains.run(HOOK, 2, &packet(&[])).retval, 1, "deleted");
        chains.load(HOOK, 2, vec![version(&[], everything())]);
        assert_eq!(chains.run(HOOK, 2, &packet(&[])).retval, 2, "as configured");
        let copy = chains.map(HOOK, 2, "entries", "allowed");
        assert!(copy.lookup(&7u16.to_ne_bytes()).unwrap().is_some(), "what is no setting stays");
        chains.load(HOOK, 3, vec![version(&[], Carry::AllBut(vec!["allowed".into()]))]);
        assert_eq!(chains.run(HOOK, 3, &packet(&[])).retval, 2, "as configured");
    }

    #[test]
    fn a_failed_generation_leaves_the_kept_maps_alone() {
        let chains = Chains::new();
        chains.load(HOOK, 1, vec![version(&[], everything())]);
        chains.run_many(HOOK, 1, &packet(&[]), 3);
        let bad = member("rejected", HOOK, &object("rejected"), "rejected");
        assert!(chains.prepare(HOOK, 2, vec![version(&[], everything()), bad]).is_err());
        chains.load(HOOK, 3, vec![version(&[], everything())]);
        assert_eq!(counted(&chains, 3), (3, 3));
    }

    #[test]
    fn kept_maps_follow_their_program_over_a_reorder() {
        let chains = Chains::new();
        let pass = || member("pass", HOOK, &object("void_context"), "wide");
        chains.load(HOOK, 1, vec![version(&[], everything()), pass()]);
        chains.run_many(HOOK, 1, &packet(&[]), 3);
        chains.load(HOOK, 2, vec![pass(), version(&[], everything())]);
        assert_eq!(counted(&chains, 2), (3, 3));
        chains.run(HOOK, 2, &packet(&[]));
        assert_eq!(counted(&chains, 2), (4, 4));
    }
}
