//! Requests for several interfaces: each is changed whole or is as it was, and the reply says which.

use super::world::*;
use crate::{
    engine::{Engine, Options, Stage},
    error::LoaderError,
};
use canopy_api::{
    ChainKey, Code, Hook,
    wire::{Action, ApplyReply, ChainState},
};
use canopy_kernel::fake::{Call, FakeKernel, Fault};
use serde_json::{Value, json};

fn on(hook: Hook, mut chain: Value) -> Value {
    chain["hook"] = json!(hook);
    chain
}

fn tc(interface: &str) -> ChainKey {
    ChainKey { netns: None, interface: interface.parse().unwrap(), hook: Hook::TcIngress }
}

fn block(interface: &str, ports: &[u16]) -> Value {
    chain(interface, &[("a", "block", ports)])
}

/// Interface, hook, what was done, and the kind of failure.
fn told(reply: &ApplyReply) -> Vec<(String, Action, Option<Code>)> {
    let one = |chain: &canopy_api::wire::ChainOutcome| {
        let code = chain.error.as_ref().map(|error| error.code);
        (format!("{}/{}", chain.interface, chain.hook), chain.action, code)
    };
    reply.chains.iter().map(one).collect()
}

fn outcome(key: &ChainKey, action: Action, code: Option<Code>) -> (String, Action, Option<Code>) {
    (key.to_string(), action, code)
}

fn ports(engine: &Engine<FakeKernel>, key: &ChainKey) -> Value {
    status(engine, key).programs[0].config["ports"].clone()
}

#[test]
fn an_interface_that_fails_is_as_it_was_and_the_others_are_changed() {
    let world = World::new();
    let engine = world.start();
    let old = [block("eth1", &[1]), on(Hook::TcIngress, block("eth1", &[1]))];
    world.apply(&engine, document(&old)).unwrap();
    let before = (status(&engine, &eth1()), status(&engine, &tc("eth1")));
    world.kernel.refuse_function("limit_main");
    let request = document(&[
        on(Hook::TcIngress, block("eth1", &[2])),
        block("eth0", &[2]),
        chain("eth1", &[("a", "block", &[2]), ("b", "limit", &[])]),
        block("eth9", &[2]),
    ]);

    let rehearsed = world.apply_with(&engine, request.clone(), &rehearsal()).unwrap();
    let reply = world.apply(&engine, request).unwrap();
    let expected = [
        outcome(&tc("eth1"), Action::Failed, Some(Code::Invalid)),
        outcome(&eth1(), Action::Failed, Some(Code::Invalid)),
        outcome(&eth0(), Action::Created, None),
        ("eth9/xdp".to_owned(), Action::Failed, Some(Code::NotFound)),
    ];
    assert_eq!(told(&rehearsed), expected, "a rehearsal tells what would fail");
    assert_eq!(told(&reply), expected);

    // What, where, and what to do; the other hook of the interface points there.
    let errors: Vec<_> = reply.failed().map(|(_, error)| error).collect();
    assert_eq!(errors[0].path, "document.chains[0]");
    assert_eq!(errors[0].message, "left as it was, because eth1/xdp failed");
    assert_eq!(errors[1].path, "document.chains[2].programs[1]");
    assert!(errors[1].problems[0].message.contains("R0 !read_ok"), "{:?}", errors[1]);
    assert_eq!(errors[2].path, "document.chains[3].interface");
    assert_eq!(errors[2].remedy.as_deref(), Some("this host has eth0, eth1"));

    assert_eq!((status(&engine, &eth1()), status(&engine, &tc("eth1"))), before);
    assert_eq!(ports(&engine, &eth0()), json!([2]));
    for key in [eth0(), eth1(), tc("eth1")] {
        assert_eq!(world.kernel.pinned(&key).len(), 1, "{key}");
    }
    // It stays so: what failed was asked for once.
    world.changing_calls();
    wait(60);
    engine.tick();
    assert_eq!(world.changing_calls(), []);
}

#[test]
fn each_interface_that_changes_is_a_generation() {
    let world = World::new();
    let engine = world.start();
    let both = document(&[block("eth0", &[]), block("eth1", &[])]);
    assert_eq!(world.apply(&engine, both.clone()).unwrap().generation, 2);
    assert_eq!(world.apply(&engine, both).unwrap().generation, 2, "nothing changes");
    let both = document(&[block("eth0", &[1]), block("eth1", &[1])]);
    assert_eq!(world.apply_with(&engine, both, &atomic()).unwrap().generation, 3);
    // One who saw the host after the first interface is behind.
    let stale = Options { expected_generation: Some(2), ..options() };
    let error = world.apply_with(&engine, document(&[block("eth0", &[])]), &stale).unwrap_err();
    assert!(matches!(error, LoaderError::Generation { expected: 2, current: 3 }), "{error:?}");
}

#[test]
fn a_request_of_which_nothing_can_be_done_is_an_error_that_tells_all() {
    let world = World::new();
    let engine = world.start();
    world.kernel.refuse_function("limit_main");
    let limit = |interface| chain(interface, &[("b", "limit", &[])]);
    let all = document(&[limit("eth0"), limit("eth1"), limit("eth9")]);
    for options in [options(), rehearsal()] {
        let error = world.apply_with(&engine, all.clone(), &options).unwrap_err().into_api();
        assert_eq!(error.code, Code::Invalid);
        assert_eq!(error.message, "nothing was changed: each of 3 interfaces failed");
        let paths: Vec<_> = error.problems.iter().map(|one| one.path.as_str()).collect();
        let own: Vec<_> = paths.into_iter().filter(|path| !path.is_empty()).collect();
        assert_eq!(
            own,
            [
                "document.chains[0].programs[0]",
                "document.chains[1].programs[0]",
                "document.chains[2].interface"
            ]
        );
    }
    assert_eq!((get(&engine).generation, get(&engine).chains.len()), (0, 0));
}

/// Where the disk fills.
static PATH: std::sync::Mutex<Option<std::path::PathBuf>> = std::sync::Mutex::new(None);

#[test]
fn what_cannot_be_taken_back_keeps_the_rest_waiting() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, document(&[block("eth0", &[]), block("eth1", &[])])).unwrap();
    world.kernel.add_interface(&"eth2".parse().unwrap());
    // The second is changed, the commit fails, and it cannot be taken back.
    let blocker = world.dir.path().join("state.json.new");
    *PATH.lock().unwrap() = Some(blocker.clone());
    at_stage(Stage::Committed, |_| {
        at_stage(Stage::Switched, |kernel| {
            std::fs::create_dir(PATH.lock().unwrap().as_ref().unwrap()).unwrap();
            kernel.inject(Call::Switch, 0, Fault::Fail);
        });
    });
    let all = document(&[block("eth0", &[1]), block("eth1", &[1]), block("eth2", &[1])]);
    let reply = world.apply(&engine, all.clone()).unwrap();
    let eth2 = ChainKey { netns: None, interface: "eth2".parse().unwrap(), hook: Hook::Xdp };
    assert_eq!(
        told(&reply),
        [
            outcome(&eth0(), Action::Updated, None),
            outcome(&eth1(), Action::Failed, Some(Code::Unavailable)),
            outcome(&eth2, Action::Failed, Some(Code::Unavailable)),
        ]
    );
    std::fs::remove_dir(&blocker).unwrap();
    world.kernel.clear_faults();
    wait(60);
    engine.tick();
    assert_eq!((ports(&engine, &eth0()), ports(&engine, &eth1())), (json!([1]), json!([])));
    assert_eq!(world.kernel.running(&eth2), None, "what was told to have failed came true");
    let again = world.apply(&engine, all).unwrap();
    assert_eq!(again.failed().count(), 0);
}

#[test]
fn a_selectors_interface_that_fails_stays_wanted() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, document(&[block("eth*", &[])])).unwrap();
    for call in [Call::Prepare, Call::Switch] {
        let port = if call == Call::Prepare { 1 } else { 2 };
        world.kernel.inject(call, 1, Fault::Fail);
        let reply = world.apply(&engine, document(&[block("eth*", &[port])])).unwrap();
        assert_eq!(reply.selectors[0].action, Action::Updated);
        assert_eq!(
            told(&reply),
            [
                outcome(&eth0(), Action::Updated, None),
                outcome(&eth1(), Action::Failed, Some(Code::Unavailable)),
            ]
        );
        assert!(reply.chains[1].notes[0].contains("goes on trying"), "{reply:?}");
        // The old chain runs on, and whoever looks is told that it is not what is wanted.
        assert!(world.kernel.running(&eth1()).is_some());
        let seen = status(&engine, &eth1());
        assert_eq!(seen.state, ChainState::Diverged, "{seen:?}");
        assert!(seen.reason.unwrap().contains("eth* asks for another chain"));
        // Not at once again, and then it is so.
        world.changing_calls();
        engine.tick();
        assert_eq!(world.changing_calls(), []);
        wait(2);
        engine.tick();
        assert_eq!(ports(&engine, &eth1()), json!([port]));
        assert_eq!(status(&engine, &eth1()).state, ChainState::Active);
    }
}

#[test]
fn a_selector_that_no_interface_takes_is_as_it_was() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, document(&[block("eth*", &[])])).unwrap();
    let before = get(&engine);
    world.kernel.refuse_function("limit_main");
    world.kernel.add_interface(&"wan0".parse().unwrap());
    let limit = |interface| chain(interface, &[("b", "limit", &[])]);
    let request = document(&[limit("eth*"), block("wan0", &[])]);
    let reply = world.apply(&engine, request).unwrap();
    assert_eq!(reply.selectors[0].action, Action::Failed);
    assert_eq!(reply.failed().count(), 2);
    assert!(reply.chains.iter().all(|chain| chain.notes.is_empty()), "{reply:?}");
    wait(60);
    engine.tick();
    let after = get(&engine);
    assert_eq!(after.selectors, before.selectors);
    assert_eq!(after.chains[..2], before.chains);
    // Alone it is an error, as for a chain by name.
    let error = world.apply(&engine, document(&[limit("eth*")])).unwrap_err().into_api();
    assert_eq!(error.code, Code::Invalid);
}

#[test]
fn a_selector_is_taken_off_where_that_can_be_and_elsewhere_later() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, document(&[block("eth*", &[])])).unwrap();
    world.kernel.inject(Call::Detach, 1, Fault::Fail);
    let reply = world.apply(&engine, document(&[chain("eth*", &[])])).unwrap();
    assert_eq!(reply.selectors[0].action, Action::Removed);
    assert_eq!(
        told(&reply),
        [
            outcome(&eth0(), Action::Removed, None),
            outcome(&eth1(), Action::Failed, Some(Code::Unavailable)),
        ]
    );
    assert!(world.kernel.running(&eth1()).is_some());
    wait(60);
    engine.tick();
    assert_eq!(world.kernel.running(&eth1()), None);
    assert_eq!((get(&engine).chains.len(), get(&engine).selectors.len()), (0, 0));
}

#[test]
fn a_crash_between_two_interfaces_keeps_the_first_and_leaves_the_second() {
    let world = World::new();
    let engine = world.start();
    world.apply(&engine, document(&[block("eth0", &[]), block("eth1", &[])])).unwrap();
    at_stage(Stage::Swept, |_| die_at(Stage::Journalled));
    let both = document(&[block("eth0", &[1]), block("eth1", &[1])]);
    assert!(until_death(|| world.apply(&engine, both.clone())).is_none());
    drop(engine);
    let engine = world.start();
    assert_eq!((ports(&engine, &eth0()), ports(&engine, &eth1())), (json!([1]), json!([])));
    assert_eq!(get(&engine).generation, 3, "the caller can see how far it came");
    for key in [eth0(), eth1()] {
        assert_eq!(world.kernel.pinned(&key).len(), 1, "{key}");
    }
    let again = world.apply(&engine, both).unwrap();
    let actions: Vec<_> = again.chains.iter().map(|chain| chain.action).collect();
    assert_eq!(actions, [Action::Unchanged, Action::Updated]);
}
