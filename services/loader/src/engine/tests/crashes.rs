//! The process dies: at every stage, before and after every call to the kernel. Afterwards every
//! interface of the request is old or new, all of them alike if it was to be atomic, nothing is left
//! over, every packet is counted once, and the next change succeeds.

use super::world::*;
use crate::{
    engine::{Engine, Options, Stage},
    error::LoaderError,
};
use canopy_api::wire::{ApplyReply, ChainState, ChainStatus};
use canopy_kernel::{
    Kernel,
    fake::{Call, FakeKernel, Fault},
};
use std::collections::{BTreeMap, BTreeSet};

/// What is being done when the process dies.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Create,
    Update,
    UpdateTwo,
    UpdateEach,
    Remove,
    UpdateAndRemove,
    UpdateOneRemoveOther,
    Drain,
    Undo,
}

const OPERATIONS: [Operation; 9] = [
    Operation::Create,
    Operation::Update,
    Operation::UpdateTwo,
    Operation::UpdateEach,
    Operation::Remove,
    Operation::UpdateAndRemove,
    Operation::UpdateOneRemoveOther,
    Operation::Drain,
    Operation::Undo,
];

impl Operation {
    fn before(self, world: &World, engine: &Engine<FakeKernel>) {
        match self {
            Self::Create => {}
            Self::Update | Self::Remove | Self::Drain | Self::Undo => {
                world.apply(engine, two_programs()).unwrap();
            }
            Self::UpdateTwo
            | Self::UpdateEach
            | Self::UpdateAndRemove
            | Self::UpdateOneRemoveOther => {
                world.apply(engine, two_programs()).unwrap();
                world.apply(engine, document(&[chain("eth1", &[("b", "block", &[])])])).unwrap();
            }
        }
        for _ in 0..5 {
            world.kernel.packet(&eth0(), &[PASS, PASS]);
        }
        if matches!(self, Self::Undo) {
            engine.drain(false, false).unwrap();
        }
    }

    /// Whether each interface is an item of its own.
    fn is_itemised(self) -> bool {
        matches!(self, Self::UpdateEach | Self::UpdateOneRemoveOther)
    }

    fn options(self) -> Options {
        if self.is_itemised() { options() } else { atomic() }
    }

    fn perform(
        self,
        world: &World,
        engine: &Engine<FakeKernel>,
    ) -> Result<ApplyReply, LoaderError> {
        let changed =
            [chain("eth0", &[("b", "limit", &[80])]), chain("eth1", &[("b", "limit", &[80])])];
        let apply = |wanted| world.apply_with(engine, wanted, &self.options());
        match self {
            Self::Create => apply(two_programs()),
            Self::Update => apply(document(&changed[..1])),
            Self::UpdateTwo | Self::UpdateEach => apply(document(&changed)),
            Self::Remove => engine.delete(&deletion(&eth0(), None), &options()),
            Self::UpdateAndRemove | Self::UpdateOneRemoveOther => {
                apply(document(&[changed[0].clone(), chain("eth1", &[])]))
            }
            Self::Drain => engine.drain(false, false),
            Self::Undo => engine.drain(true, false),
        }
    }
}

/// What a person would call the state of the host: drained or not, and each chain's programs with
/// their settings.
type Intent = (bool, BTreeMap<String, Vec<String>>);

fn intent(engine: &Engine<FakeKernel>) -> Intent {
    let reply = get(engine);
    let programs = |chain: &ChainStatus| {
        let told = chain.programs.iter();
        told.map(|p| format!("{} {} {:?}", p.name, p.package, p.config)).collect()
    };
    (reply.drained, reply.chains.iter().map(|c| (c.key().to_string(), programs(c))).collect())
}

/// The old one, but for these chains, which are as in the new one.
fn between(old: &Intent, new: &Intent, done: impl Fn(&str) -> bool) -> Intent {
    let side = |key: &String| if done(key) { new } else { old };
    let keys: BTreeSet<_> = old.1.keys().chain(new.1.keys()).collect();
    let chains =
        keys.into_iter().filter_map(|key| Some((key.clone(), side(key).1.get(key)?.clone())));
    (old.0, chains.collect())
}

/// What holds whenever a loader has started.
fn check(world: &World, engine: &Engine<FakeKernel>, what: &str) {
    let reply = get(engine);
    for status in &reply.chains {
        let wanted = if reply.drained { ChainState::Drained } else { ChainState::Active };
        assert_eq!(status.state, wanted, "{what}: {status:?}");
        let running = world.kernel.running(&status.key());
        assert_eq!(running.is_some(), !reply.drained, "{what}: {}", status.key());
        assert_eq!(world.kernel.pinned(&status.key()).len(), 1, "{what}: pins left over");
    }
    for seen in world.kernel.observe().unwrap() {
        let known = reply.chains.iter().any(|status| status.key() == seen.key);
        assert!(known, "{what}: {} is in the kernel and not desired", seen.key);
    }
}

/// Makes one host, lets a fault meet one operation, starts again and looks.
fn survives(operation: Operation, what: &str, plan: impl FnOnce(&World)) {
    survives_with(operation, what, plan, |_| {});
}

/// The same, with more trouble before the loader starts again.
fn survives_with(
    operation: Operation,
    what: &str,
    plan: impl FnOnce(&World),
    trouble: impl FnOnce(&World),
) {
    let what = format!("{operation:?}, {what}");
    let world = World::new();
    let engine = world.start();
    operation.before(&world, &engine);
    let old = intent(&engine);
    plan(&world);
    let mut engine = Some(engine);
    let done = until_death(|| operation.perform(&world, engine.as_ref().unwrap()));
    if done.is_none() {
        drop(engine.take());
        trouble(&world);
    }
    live();
    world.kernel.clear_faults();
    let new = {
        let other = World::new();
        let engine = other.start();
        operation.before(&other, &engine);
        operation.perform(&other, &engine).unwrap();
        intent(&engine)
    };
    world.attend();
    let engine = engine.unwrap_or_else(|| world.start());
    // What whoever asked was told.
    let told = done.as_ref().map(|done| match done {
        Err(_) => old.clone(),
        Ok(reply) if operation.is_itemised() => between(&old, &new, |key| {
            reply.failed().all(|(chain, _)| format!("{}/{}", chain.interface, chain.hook) != key)
        }),
        Ok(reply) => {
            assert_eq!(reply.failed().count(), 0, "{what}: all or nothing");
            new.clone()
        }
    });
    if let Some(told) = &told {
        assert_eq!(intent(&engine), *told, "{what}: not what was told");
        // What could not be swept or counted at once is so a second later.
        wait(60);
        engine.tick();
        check(&world, &engine, &what);
    }
    drop(engine);
    let engine = world.start();
    check(&world, &engine, &what);
    let now = intent(&engine);
    match told {
        Some(told) => assert_eq!(now, told, "{what}: not what was told"),
        None if operation.is_itemised() => {
            let is_new = |key: &str| now.1.get(key) == new.1.get(key);
            assert_eq!(now, between(&old, &new, is_new), "{what}: neither the old nor the new");
        }
        None => assert!(now == old || now == new, "{what}: neither the old nor the new: {now:?}"),
    }
    // The next change succeeds, and no packet was lost or counted twice.
    if get(&engine).drained {
        engine.drain(true, false).unwrap();
    }
    world.apply(&engine, document(&[chain("eth0", &[("b", "limit", &[443])])])).unwrap();
    let counted = if matches!(operation, Operation::Create) { 0 } else { 5 };
    assert_eq!(runs(&engine, &eth0(), "b"), counted, "{what}");
    check(&world, &engine, &what);
}

#[test]
fn death_at_every_stage() {
    for operation in OPERATIONS {
        for stage in Stage::ALL {
            survives(operation, &format!("death at {stage:?}"), |_| die_at(stage));
        }
    }
}

#[test]
fn death_and_failure_at_every_kernel_call() {
    const CALLS: [Call; 7] = [
        Call::Observe,
        Call::Prepare,
        Call::Switch,
        Call::Detach,
        Call::Discard,
        Call::Settle,
        Call::Cells,
    ];
    for operation in OPERATIONS {
        for call in CALLS {
            for nth in 0..5 {
                for fault in [Fault::Fail, Fault::CrashBefore, Fault::CrashAfter] {
                    survives(operation, &format!("{fault:?} at {call:?} {nth}"), |world| {
                        world.kernel.inject(call, nth, fault);
                    });
                }
            }
        }
    }
}

#[test]
fn death_while_recovering_from_death() {
    const CALLS: [Call; 5] = [Call::Switch, Call::Detach, Call::Settle, Call::Cells, Call::Discard];
    for operation in OPERATIONS {
        for stage in [Stage::Prepared, Stage::Journalled, Stage::Switched, Stage::Committed] {
            for call in CALLS {
                for fault in [Fault::CrashBefore, Fault::CrashAfter] {
                    let what = format!("death at {stage:?}, then {fault:?} at {call:?}");
                    survives_with(
                        operation,
                        &what,
                        |_| die_at(stage),
                        |world| {
                            live();
                            world.kernel.clear_faults();
                            world.kernel.inject(call, 0, fault);
                            // The second death, if the recovery comes that far.
                            drop(until_death(|| world.try_start().map(drop)));
                        },
                    );
                }
            }
        }
    }
}

#[test]
fn a_change_that_began_to_go_back_does_not_come_true_later() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, two_programs()).unwrap();
    // The link dies with its interface, and looks like a chain that was removed.
    world.kernel.remove_interface(&eth0().interface);
    world.kernel.add_interface(&eth0().interface);
    die_at(Stage::Journalled);
    assert!(until_death(|| engine.delete(&deletion(&eth0(), None), &options())).is_none());
    live();
    drop(engine);
    // Neither the removal can be completed at start, nor the chain attached again.
    world.kernel.inject(Call::Detach, 0, Fault::Fail);
    world.kernel.inject(Call::Switch, 0, Fault::Fail);
    let engine = world.start();
    assert_eq!(get(&engine).chains.len(), 1, "the chain is still desired");
    world.kernel.clear_faults();
    for _ in 0..2 {
        wait(60);
        engine.tick();
    }
    check(&world, &engine, "later");
    assert_eq!(get(&engine).chains.len(), 1, "what was told is still so");
}
