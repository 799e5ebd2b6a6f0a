//! Counts never go back.

use super::world::*;
use canopy_kernel::fake::{Call, Fault};

#[test]
fn totals_go_on_over_swaps_reorders_and_restarts() {
    let world = World::new();
    let mut engine = world.start();
    let orders: [&[(&str, &str, &[u16])]; 3] = [
        &[("a", "block", &[]), ("b", "limit", &[])],
        &[("b", "limit", &[]), ("c", "block", &[]), ("a", "block", &[7])],
        &[("b", "limit", &[9])],
    ];
    let mut b = 0;
    for round in 0..12 {
        let order = orders[round % orders.len()];
        world.apply(&engine, document(&[chain("eth0", order)])).unwrap();
        for _ in 0..10 {
            world.kernel.packet(&eth0(), &[PASS, PASS, DROP]);
            b += 1;
        }
        // These have entered and are counted when the next swap has long returned.
        world.kernel.packet_in_flight(&eth0(), &[PASS, PASS, PASS]);
        if round % 4 == 3 {
            drop(engine);
            engine = world.start();
        }
        let counted = runs(&engine, &eth0(), "b");
        assert!(counted >= b, "round {round}: {counted} < {b}");
        b += 1;
    }
    engine.delete(&deletion(&eth0(), None), &options()).unwrap();
    world.apply(&engine, document(&[chain("eth0", &[("b", "limit", &[])])])).unwrap();
    assert_eq!(runs(&engine, &eth0(), "b"), b, "every packet counted once");
}

#[test]
fn verdicts_and_exits_are_told_by_name() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    for _ in 0..3 {
        world.kernel.packet(&eth0(), &[DROP]);
    }
    world.kernel.packet(&eth0(), &[PASS, DROP]);
    world.kernel.packet(&eth0(), &[PASS, PASS]);
    let told = |engine: &_| {
        let a = status(engine, &eth0()).programs[0].clone();
        let count = |of: &[(&str, u64)]| of.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
        assert_eq!(a.runs, 5);
        assert_eq!(a.verdicts, count(&[("drop", 3), ("pass", 2)]));
        assert_eq!(a.exits, count(&[("drop", 3)]));
    };
    told(&engine);
    world.apply(&engine, document(&[chain("eth0", &[("a", "block", &[1])])])).unwrap();
    told(&engine);
}

#[test]
fn counts_that_cannot_be_read_at_the_swap_are_read_later() {
    for call in [Call::Settle, Call::Cells] {
        let world = World::new();
        let engine = world.start();
        world.apply(&engine, two_programs()).unwrap();
        world.kernel.packet(&eth0(), &[PASS, PASS]);
        world.kernel.inject(call, 0, Fault::Fail);
        world.apply(&engine, document(&[chain("eth0", &[("b", "limit", &[])])])).unwrap();
        assert_eq!(runs(&engine, &eth0(), "b"), 1, "{call:?}");
        engine.tick();
        assert_eq!(runs(&engine, &eth0(), "b"), 1, "{call:?}");
        assert_eq!(world.kernel.pinned(&eth0()).len(), 1, "{call:?}");
    }
}

#[test]
fn a_change_taken_back_keeps_what_it_counted() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    world.kernel.packet(&eth0(), &[PASS, PASS]);
    world.kernel.inject(Call::Switch, 1, Fault::Fail);
    at_stage(crate::engine::Stage::Journalled, |kernel| {
        kernel.packet(&eth0(), &[PASS, PASS]);
    });
    let both =
        document(&[chain("eth0", &[("b", "limit", &[])]), chain("eth1", &[("b", "limit", &[])])]);
    world.apply_with(&engine, both, &atomic()).unwrap_err();
    assert_eq!(runs(&engine, &eth0(), "b"), 2);
}
