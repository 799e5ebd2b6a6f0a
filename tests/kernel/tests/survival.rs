//! What happens to the loader's process, and what the loader does to a chain, is not noticed by
//! packets: not by those that tail-calling and timer-using programs of the chain see either.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "test code: a failure is a panic"
)]

use canopy_api::wire::{ChainState, ChainStatus, GetRequest};
use canopy_kernel_aya::{pins::Pins, sys};
use canopy_kernel_tests::{
    files,
    host::{Loader, Site, attached},
};
use canopy_test_support::{
    bpffs::BpffsDir,
    nats::NatsServer,
    packet::Udp4,
    pair::{HOST_LINK, PEER_LINK, Pair, udp_counter},
    service::ServiceProcess,
    traffic::{Flood, send_frames},
    wait_for,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    time::Duration,
};

/// Blocked by every chain here.
const BLOCKED: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 66);

struct World {
    pair: Pair,
    bpffs: BpffsDir,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self {
            pair: Pair::new().unwrap(),
            bpffs: BpffsDir::new().unwrap(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn site(&self, newer: bool) -> Site {
        let dir = self.dir.path();
        let firewall = if newer { files::newer_firewall() } else { files::starter("firewall") };
        let file = |name: &str, package| (format!("{name}@*"), files::write(dir, package));
        Site {
            state: dir.join("state"),
            bpffs: self.bpffs.path().to_owned(),
            packages: BTreeMap::from([
                file("firewall", &firewall),
                file("tail-calls", &files::corpus("tail_calls", &[".bss", "jumps", "inner_jumps"])),
                file("lock-timer", &files::corpus("lock_timer", &[".bss", "locks", "timers"])),
            ]),
        }
    }

    fn here<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        self.pair.host.run(|| Ok(body())).unwrap()
    }

    /// Applies a chain: a member that tail-calls, one with a timer, and the wall.
    fn apply(&self, loader: &Loader, also: &[Ipv4Addr]) {
        let blocked: Vec<_> = [BLOCKED].iter().chain(also).map(ToString::to_string).collect();
        let document = json!({ "chains": [{ "interface": HOST_LINK, "hook": "xdp", "programs": [
            { "name": "jumps", "package": "tail-calls", "priority": 1 },
            { "name": "timer", "package": "lock-timer", "priority": 2 },
            { "name": "wall", "package": "firewall", "priority": 3,
              "config": { "blocked": blocked } },
        ]}]});
        self.here(|| loader.apply(&document)).unwrap();
    }

    fn start(&self, newer: bool) -> Loader {
        let site = self.site(newer);
        self.here(|| Loader::start(&site, |_| {})).unwrap()
    }

    fn status(&self, loader: &Loader) -> ChainStatus {
        let reply = self.here(|| loader.engine.get(&GetRequest::default())).unwrap();
        reply.chains.into_iter().next().unwrap()
    }

    fn arrived(&self) -> u64 {
        self.pair.host.run(|| udp_counter("NoPorts")).unwrap()
    }

    /// What the members count in their own maps: packets that came out of either tail call, and
    /// times that the timer went off.
    fn own_counts(&self, status: &ChainStatus) -> Counts {
        let pins = Pins::new(self.bpffs.path());
        let generation = status.observed.as_ref().unwrap().generation;
        let read = |member: &str| {
            let path = pins.map(&status.key(), generation, &member.parse().unwrap(), ".bss");
            let map = sys::Map::new(sys::obj_get(&path).unwrap()).unwrap();
            map.lookup(&0_u32.to_ne_bytes()).unwrap().unwrap()
        };
        let number = |bytes: &[u8]| u64::from_ne_bytes(bytes[..8].try_into().unwrap());
        let jumps = read("jumps");
        Counts { first: number(&jumps), second: number(&jumps[8..]), fired: number(&read("timer")) }
    }

    fn config(&self, bus: &Value) -> Value {
        json!({
            "host": "web1",
            "bus": bus,
            "state_dir": self.dir.path().join("state"),
            "bpffs": self.bpffs.path(),
        })
    }

    /// A loader as a process, with nobody at the bus's address.
    fn process(&self, program: &Path, bus: &Value) -> ServiceProcess {
        let config = self.config(bus);
        let process = self.here(|| ServiceProcess::start(program, config)).unwrap();
        wait_for(Duration::from_secs(10), "the chain in the metrics", || {
            let seen = self.here(|| process.get("/metrics")).map_err(|error| error.to_string())?.1;
            let active = "canopy_loader_chain_active{hook=\"xdp\",interface=\"v0\"} 1";
            if seen.contains(active) { Ok(()) } else { Err(seen) }
        })
        .unwrap();
        process
    }
}

#[derive(Clone, Copy, Debug)]
struct Counts {
    first: u64,
    second: u64,
    fired: u64,
}

impl Counts {
    /// Whether every count went on from where it was.
    fn went_on(self, before: Self) -> bool {
        self.first > before.first && self.second > before.second && self.fired > before.fired
    }
}

fn program() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.ancestors().nth(2).unwrap().join("canopy-loader");
    assert!(path.exists(), "no {}: build it with `cargo build -p canopy-loader`", path.display());
    path
}

fn frame(source: Ipv4Addr) -> Vec<u8> {
    Udp4 { source, ..Udp4::to_port(4242) }.frame()
}

/// The loader's settings for a bus that is not there.
fn nobody_at_the_bus() -> (NatsServer, Value) {
    let mut nats = NatsServer::start(&["web1"]).unwrap();
    nats.kill();
    let files = nats.client("h-web1-loader");
    let bus = json!({ "url": files.url, "ca": files.ca, "cert": files.cert, "key": files.key });
    (nats, bus)
}

/// A boot: nothing is attached, and the network waits for the loader's word.
#[test]
fn the_service_manager_is_told_of_a_start_once_the_chains_are_attached() {
    let world = World::new();
    let loader = world.start(false);
    world.apply(&loader, &[]);
    drop(loader);
    for entry in fs::read_dir(world.bpffs.path()).unwrap() {
        fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
    // The kernel frees a link some time after its last reference went; a packet is sent once only.
    wait_for(Duration::from_secs(10), "the chain to be gone", || {
        match world.here(|| attached(&world.pair)) {
            left if left.is_empty() => Ok(()),
            left => Err(left),
        }
    })
    .unwrap();
    let blocked = vec![frame(BLOCKED); 5];
    let arrive = |count| {
        let look = || match world.arrived() {
            seen if seen == count => Ok(()),
            other => Err(other),
        };
        wait_for(Duration::from_secs(5), "packets", look).unwrap();
    };
    send_frames(&world.pair, &blocked).unwrap();
    arrive(5);

    let (_nats, bus) = nobody_at_the_bus();
    let address = world.dir.path().join("notify");
    let manager = UnixDatagram::bind(&address).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    std::thread::scope(|scope| {
        let process = scope.spawn(|| {
            let environment = [("NOTIFY_SOCKET", address.as_path())];
            let start = || ServiceProcess::start_with(&program(), world.config(&bus), &environment);
            world.here(start)
        });
        let mut told = [0; 256];
        let length = manager.recv(&mut told).unwrap();
        // At this very moment, and not a little later.
        send_frames(&world.pair, &blocked).unwrap();
        send_frames(&world.pair, &[frame(Ipv4Addr::new(10, 77, 0, 67))]).unwrap();
        arrive(6);
        assert_eq!(std::str::from_utf8(&told[..length]).unwrap().trim(), "READY=1");
        process.join().unwrap().unwrap();
    });
}

#[test]
fn packets_notice_no_restart_kill_upgrade_or_change() {
    let world = World::new();
    let loader = world.start(false);
    world.apply(&loader, &[]);
    // The detector detects: what is not blocked arrives.
    send_frames(&world.pair, &vec![frame(Ipv4Addr::new(10, 77, 0, 67)); 5]).unwrap();
    wait_for(Duration::from_secs(5), "packets that nobody blocks", || match world.arrived() {
        5 => Ok(()),
        other => Err(other),
    })
    .unwrap();
    let first = world.status(&loader);
    let link = first.observed.as_ref().unwrap().link_id;
    drop(loader);

    let (_nats, bus) = nobody_at_the_bus();
    let flood = Flood::start(&world.pair.peer, PEER_LINK, vec![frame(BLOCKED); 8]).unwrap();
    let mut counts = world.own_counts(&first);
    let mut look = |what: &str, status: &ChainStatus| {
        assert_eq!(status.state, ChainState::Active, "{what}: {status:?}");
        assert_eq!(status.observed.as_ref().unwrap().link_id, link, "{what}: another link");
        counts = wait_for(Duration::from_secs(5), "the members to go on counting", || {
            let now = world.own_counts(status);
            if now.went_on(counts) { Ok(now) } else { Err((what, counts, now)) }
        })
        .unwrap();
        assert_eq!(world.arrived(), 5, "{what}: packets got through");
    };

    // The process: stopped, killed, and another binary in its place.
    let newer = world.dir.path().join("canopy-loader-newer");
    fs::copy(program(), &newer).unwrap();
    for (program, signal) in
        [(program(), Signal::SIGTERM), (program(), Signal::SIGKILL), (newer, Signal::SIGTERM)]
    {
        let what = format!("{} until {signal}", program.display());
        let process = world.process(&program, &bus);
        process.end_by(signal).unwrap();
        look(&what, &first);
    }

    // The chain: other settings, another version, many times.
    let mut changes = 0;
    for newer in [false, true] {
        let loader = world.start(newer);
        for round in 0..10_u8 {
            world.apply(&loader, &[Ipv4Addr::new(10, 77, 1, round)]);
            changes += 1;
            look(&format!("change {changes}"), &world.status(&loader));
        }
    }
    let sent = flood.stop().unwrap();
    let loader = world.start(true);
    let status = world.status(&loader);
    let wall = status.programs.iter().find(|program| program.name.as_str() == "wall").unwrap();
    println!("{sent} sent, {} dropped, {changes} changes, {counts:?}", wall.exits["drop"]);
    assert_eq!(wall.exits["drop"], sent, "packets that were not counted, or twice");
    assert_eq!(world.arrived(), 5);
}
