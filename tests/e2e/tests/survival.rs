//! What the datapath does not notice, and what comes back by itself.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::float_cmp,
    reason = "tests: a failure is the message"
)]

use canopy_api::{
    Hook,
    endpoint::Service,
    wire::{ChainState, ChainStatus},
};
use canopy_e2e::{BLOCKED, INTERFACE, World};
use canopy_test_support::{memory::kill_for_memory, pair::PEER_IP};
use nix::sys::signal::Signal;
use std::{process::Stdio, time::Duration};
use xtask::{outside, process::Process, stack::Stack};

/// Longest time an attached chain may be gone after somebody detached it.
const RESTORE_LIMIT: Duration = Duration::from_millis(1500);

#[test]
fn a_detached_chain_is_restored_without_bus_and_enforcer() {
    let world = World::start().unwrap();
    world.apply(&World::firewall()).unwrap();
    let link = world.kernel_link().unwrap().unwrap().id;
    world
        .inside(|stack| {
            stack.process(Service::Enforcer).stop()?;
            stack.bus().stop()
        })
        .unwrap();

    let gap = world.gap(Duration::from_secs(2), |_| outside::detach_link(link)).unwrap();
    assert!(gap.leaked > 0, "the tampering did not work: {gap:?}");
    assert!(gap.lasted <= RESTORE_LIMIT, "{gap:?}");
    let after = world.kernel_link().unwrap().unwrap();
    assert_ne!(after.id, link, "a detached link never comes back");

    world
        .inside(|stack| {
            stack.start_bus()?;
            stack.wait_for_bus()?;
            stack.start_service(Service::Enforcer)?;
            stack.wait_ready(Service::Loader)
        })
        .unwrap();
    let chain = world
        .wait_for_chain("the loader says that it restored", |chain| chain.restored == 1)
        .unwrap();
    assert_eq!(chain.state, ChainState::Active);
    world.end().unwrap();
}

/// Ends the loader while the blocked source floods, starts it again, and compares.
fn loader_is_restarted(end: impl FnOnce(&Process)) {
    let world = World::start().unwrap();
    world.apply(&World::firewall()).unwrap();
    assert_eq!(world.send(PEER_IP, 50).unwrap(), 50);
    let links = world.kernel_link().unwrap();
    let runs = world.program("limit").unwrap().runs;
    assert_eq!(runs, 50);

    let arrived = world.arrived().unwrap();
    let flood = world.flood(BLOCKED).unwrap();
    let loader = world.stack().process(Service::Loader);
    end(&loader);
    canopy_test_support::wait_for(Duration::from_secs(15), "the loader ends", || {
        loader.pid().map_or(Ok(()), Err)
    })
    .unwrap();
    // Nobody is there to count, and the packets are dropped and counted all the same.
    assert_eq!(world.kernel_link().unwrap(), links);
    world
        .inside(|stack| {
            stack.start_service(Service::Loader)?;
            stack.wait_ready(Service::Loader)
        })
        .unwrap();
    let sent = flood.stop().unwrap();
    assert!(sent > 0);
    assert_eq!(world.arrived().unwrap(), arrived, "blocked packets came through");
    assert_eq!(world.kernel_link().unwrap(), links, "adopted, not attached anew");

    assert_eq!(world.send(PEER_IP, 50).unwrap(), 50);
    let limit = world
        .wait_for_chain("totals go on", |chain| {
            chain.programs.iter().any(|p| p.name.as_str() == "limit" && p.runs == 100)
        })
        .unwrap();
    assert_eq!(limit.state, ChainState::Active);
    let blocklist = world.program("blocklist").unwrap();
    assert_eq!(blocklist.exits.get("drop"), Some(&sent), "packets nobody counted");
    world.end().unwrap();
}

#[test]
fn a_killed_loader_is_not_noticed_by_packets() {
    loader_is_restarted(|loader| loader.signal(Signal::SIGKILL).unwrap());
}

#[test]
fn a_loader_that_the_kernel_kills_for_memory_is_not_noticed_by_packets() {
    loader_is_restarted(|loader| kill_for_memory(loader.pid().unwrap()).unwrap());
}

#[test]
fn a_stopped_loader_is_not_noticed_by_packets() {
    loader_is_restarted(|loader| loader.signal(Signal::SIGTERM).unwrap());
}

#[test]
fn everything_killed_at_once_comes_back_as_it_was() {
    let world = World::start().unwrap();
    world.apply(&World::firewall()).unwrap();
    let links = world.kernel_link().unwrap();
    for process in world.stack().processes() {
        process.signal(Signal::SIGKILL).unwrap();
    }
    for process in world.stack().processes() {
        process.stop().unwrap();
    }
    assert_eq!(world.send(BLOCKED, 20).unwrap(), 0, "the chain needs none of them");
    world.inside(Stack::start).unwrap();
    let chain = world
        .wait_for_chain("the chain is adopted", |chain| chain.state == ChainState::Active)
        .unwrap();
    assert_eq!(chain.hook, Hook::Xdp);
    assert_eq!(world.kernel_link().unwrap(), links);
    world.end().unwrap();
}

#[test]
fn a_chain_is_changed_while_the_registry_is_away() {
    let world = World::start().unwrap();
    world.apply(&World::firewall()).unwrap();
    world.inside(|stack| stack.process(Service::Registry).stop()).unwrap();
    // The packages are in the host's cache, and the lock says which they are.
    assert_eq!(world.send(BLOCKED, 10).unwrap(), 0);
    let answer = world.canopy_as("operator", &["delete", "chain", "v0", "xdp"]).unwrap();
    answer.text().unwrap();
    assert!(world.kernel_link().unwrap().is_none());
    world.end().unwrap();
}

/// One wall, or with another prefix, or with a limiter, or none.
fn walls() -> [String; 4] {
    let one = |blocked: &str, rest: &str| {
        format!(
            "chains:\n- interface: {INTERFACE}\n  hook: xdp\n  programs:\n  \
             - {{ name: blocklist, package: firewall@^0.1, config: {{ blocked: [{blocked}] }} }}\n{rest}"
        )
    };
    [
        one("198.51.100.0/24", ""),
        one("198.51.100.0/25", ""),
        one("198.51.100.0/24", "  - { name: limit, package: ratelimit@^0.1 }\n"),
        format!("chains:\n- {{ interface: {INTERFACE}, hook: xdp, programs: [] }}\n"),
    ]
}

/// The bus dies at some moment of a change. The change is made or it is not; whoever was told that
/// it is finds it so; and when the bus is back, the next one is made.
#[test]
fn a_bus_that_dies_during_a_change_leaves_the_old_chain_or_the_new() {
    let world = World::start().unwrap();
    let intent = || {
        let told = |chain: &ChainStatus| {
            let programs = chain.programs.iter();
            programs.map(|p| format!("{} {:?}", p.name, p.config)).collect::<Vec<_>>()
        };
        world.chains().unwrap().iter().map(told).collect::<Vec<_>>()
    };
    let [wall, ..] = walls();
    world.apply(&wall).unwrap();
    let mut moments = [0, 3, 9, 15, 25, 40, 70].into_iter().cycle();
    let rounds = if std::env::var_os("CANOPY_TEST_FULL").is_some() { 14 } else { 2 };
    for _ in 0..rounds {
        for document in walls() {
            let old = intent();
            let file = world.dir().join("during.yaml");
            std::fs::write(&file, &document).unwrap();
            let mut change = world.stack().canopy("operator").unwrap();
            change.args(["apply", "--timeout", "1s", "-f"]).arg(&file);
            change.stdout(Stdio::null()).stderr(Stdio::null());
            let moment = Duration::from_millis(moments.next().unwrap());
            let done = world
                .inside(|stack| {
                    let mut change = change.spawn()?;
                    // Not a wait for anything: it picks where in the change the bus dies.
                    std::thread::sleep(moment);
                    stack.bus().signal(Signal::SIGKILL)?;
                    let done = change.wait()?.success();
                    stack.bus().stop()?;
                    stack.start_bus()?;
                    stack.wait_for_bus()?;
                    stack.wait_ready(Service::Loader)?;
                    stack.wait_ready(Service::Registry)?;
                    stack.wait_ready(Service::Policy)?;
                    Ok(done)
                })
                .unwrap();
            let now = intent();
            let blocked = world.send(BLOCKED, 5).unwrap() == 0;
            assert_eq!(blocked, !now.is_empty(), "{document}: {now:?}");
            world.apply(&document).unwrap();
            let new = intent();
            assert!(now == old || now == new, "{document}: {now:?} is neither {old:?} nor {new:?}");
            assert!(
                !done || now == new,
                "{document}: said to be done after {moment:?}, and {now:?}"
            );
        }
    }
    world.end().unwrap();
}
