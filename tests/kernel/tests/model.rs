//! Random sequences of changes, tampering, restarts and interfaces that come and go, on the real
//! kernel, against a model of a dozen lines. After each step the packets say which programs run, and
//! the kernel which are attached; the loader's own word is asked last.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "test code: a failure is a panic"
)]

use canopy_api::{
    Hook,
    wire::{ChainState, ChainStatus, DeleteRequest, GetRequest},
};
use canopy_kernel_tests::{
    files,
    host::{Loader, Site, attached, options, wait},
};
use canopy_test_support::{
    bpffs::BpffsDir,
    packet::Udp4,
    pair::{HOST_LINK, Pair},
    traffic::send_frames,
    wait_for,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::UdpSocket,
    time::Duration,
};

/// Ports that programs of the model drop.
const PORTS: [u16; 4] = [4001, 4002, 4003, 4004];
/// One that none does.
const FREE: u16 = 4009;
/// Hooks that see packets on their way in.
const HOOKS: [Hook; 2] = [Hook::Xdp, Hook::TcIngress];
/// An interface that nobody sends to and that stays.
const SPARE: &str = "lo";
/// Packets to each port in a look.
const LOOK: usize = 2;

#[derive(Clone, Debug)]
enum Op {
    /// The chains of these hooks become these; an empty one goes. All or nothing, or each interface
    /// for itself; `None` leaves the spare one alone.
    Apply {
        atomic: bool,
        chains: BTreeMap<Hook, BTreeSet<u16>>,
        spare: Option<BTreeSet<u16>>,
    },
    Delete(Hook, Option<u16>),
    Drain,
    Undo,
    /// A foreign tool detaches the link.
    Detach(Hook),
    /// Somebody removes every pin.
    Unpin,
    Restart,
    Tick,
    InterfaceGone,
    InterfaceBack,
}

/// What a person expects of the host.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    chains: BTreeMap<Hook, BTreeSet<u16>>,
    /// The chain of the spare interface.
    spare: BTreeSet<u16>,
    drained: bool,
    /// Chains that somebody took away and the loader has not looked since.
    missing: BTreeSet<Hook>,
    gone: bool,
}

impl Model {
    /// Whether a chain runs.
    fn runs(&self, hook: Hook) -> bool {
        self.chains.contains_key(&hook)
            && !self.drained
            && !self.gone
            && !self.missing.contains(&hook)
    }

    /// The ports whose packets are dropped.
    fn dropped(&self) -> BTreeSet<u16> {
        let running = self.chains.iter().filter(|(hook, _)| self.runs(**hook));
        running.flat_map(|(_, ports)| ports).copied().collect()
    }

    /// Everything that can be attached is.
    fn heal(&mut self) {
        self.missing.clear();
    }

    /// Does it; which of the two interfaces the loader is to change too, the spare one last.
    fn step(&mut self, op: &Op) -> [bool; 2] {
        if let Op::Apply { atomic, chains, spare } = op {
            // A chain may be removed while its interface is away, not built.
            let cannot = self.gone && chains.values().any(|ports| !ports.is_empty());
            if self.drained || (cannot && (*atomic || spare.is_none())) {
                return [false; 2];
            }
            if let Some(ports) = spare {
                self.spare.clone_from(ports);
            }
            if !cannot {
                for (hook, ports) in chains {
                    self.missing.remove(hook);
                    if ports.is_empty() {
                        self.chains.remove(hook);
                    } else {
                        self.chains.insert(*hook, ports.clone());
                    }
                }
            }
            return [!cannot, true];
        }
        [self.step_one(op); 2]
    }

    fn step_one(&mut self, op: &Op) -> bool {
        match op {
            Op::Apply { .. } => {}
            Op::Delete(hook, port) => {
                let Some(ports) = self.chains.get(hook).filter(|_| !self.drained) else {
                    return false;
                };
                let mut rest = ports.clone();
                match port {
                    Some(port) if !rest.remove(port) => return false,
                    Some(_) => {}
                    None => rest.clear(),
                }
                if rest.is_empty() {
                    self.chains.remove(hook);
                } else if self.gone {
                    return false;
                } else {
                    self.chains.insert(*hook, rest);
                }
                self.missing.remove(hook);
            }
            Op::Drain => self.drained = true,
            // The loader's check follows.
            Op::Undo => {
                self.drained = false;
                self.heal();
            }
            Op::Detach(hook) => {
                if self.runs(*hook) {
                    self.missing.insert(*hook);
                }
            }
            Op::Unpin | Op::Restart | Op::Tick => self.heal(),
            Op::InterfaceGone => self.gone = true,
            Op::InterfaceBack => {
                self.gone = false;
                self.heal();
            }
        }
        true
    }
}

fn random(rng: &mut StdRng, model: &Model) -> Op {
    let hook = *HOOKS.choose(rng).unwrap();
    match rng.random_range(0..20) {
        0..8 => {
            let mut chains = BTreeMap::new();
            for hook in HOOKS {
                if rng.random_range(0..3) > 0 {
                    let count = rng.random_range(0..=PORTS.len());
                    chains.insert(hook, PORTS.choose_multiple(rng, count).copied().collect());
                }
            }
            let spare = rng.random::<bool>().then(|| {
                let count = rng.random_range(0..3);
                PORTS.choose_multiple(rng, count).copied().collect()
            });
            Op::Apply { atomic: rng.random(), chains, spare }
        }
        8 | 9 => Op::Delete(hook, rng.random::<bool>().then(|| *PORTS.choose(rng).unwrap())),
        10 => Op::Drain,
        11 | 12 => Op::Undo,
        13 => Op::Detach(hook),
        14 => Op::Unpin,
        15 | 16 => Op::Restart,
        17 => Op::Tick,
        _ if model.gone => Op::InterfaceBack,
        18 => Op::InterfaceGone,
        _ => Op::Tick,
    }
}

struct World {
    pair: Pair,
    bpffs: BpffsDir,
    dir: tempfile::TempDir,
    sockets: BTreeMap<u16, UdpSocket>,
    loader: Option<Loader>,
}

impl World {
    fn new() -> Self {
        let pair = Pair::new().unwrap();
        let bind = |port| {
            let socket = pair.host.run(|| Ok(UdpSocket::bind(("0.0.0.0", port))?)).unwrap();
            socket.set_nonblocking(true).unwrap();
            (port, socket)
        };
        let sockets = PORTS.into_iter().chain([FREE]).map(bind).collect();
        let mut world = Self {
            pair,
            bpffs: BpffsDir::new().unwrap(),
            dir: tempfile::tempdir().unwrap(),
            sockets,
            loader: None,
        };
        world.restart();
        world
    }

    fn restart(&mut self) {
        self.loader = None;
        let dir = self.dir.path();
        let dropper = files::write(dir, &files::port_dropper());
        let site = Site {
            state: dir.join("state"),
            bpffs: self.bpffs.path().to_owned(),
            packages: BTreeMap::from([("port-dropper@*".to_owned(), dropper)]),
        };
        self.loader = Some(self.here(|_| Loader::start(&site, |_| {})).unwrap());
    }

    fn here<T: Send>(&self, body: impl FnOnce(Option<&Loader>) -> T + Send) -> T {
        self.pair.host.run(|| Ok(body(self.loader.as_ref()))).unwrap()
    }

    /// Calls the loader in the host's namespace.
    fn loader<T: Send>(&self, body: impl FnOnce(&Loader) -> T + Send) -> T {
        self.here(|loader| body(loader.unwrap()))
    }

    fn tick(&self) {
        wait(60);
        self.loader(|loader| loader.engine.tick());
    }

    /// Does it; for which of the two interfaces the loader did what it was asked, the spare one last.
    fn perform(&mut self, op: &Op) -> [bool; 2] {
        if let Op::Apply { atomic, chains, spare } = op {
            let document = document(chains, spare.as_ref());
            let apply = if *atomic { Loader::apply_whole } else { Loader::apply };
            return match self.loader(|loader| apply(loader, &document)) {
                Err(_) => [false; 2],
                Ok(reply) => [HOST_LINK, SPARE].map(|interface| {
                    reply.failed().all(|(chain, _)| chain.interface.as_str() != interface)
                }),
            };
        }
        [self.perform_one(op); 2]
    }

    fn perform_one(&mut self, op: &Op) -> bool {
        let options = options();
        match op {
            Op::Apply { .. } => {}
            Op::Delete(hook, port) => {
                let request = DeleteRequest {
                    netns: None,
                    interface: HOST_LINK.parse().unwrap(),
                    hook: *hook,
                    program: port.map(|port| name(port).parse().unwrap()),
                    expected_generation: None,
                    dry_run: false,
                };
                return self.loader(|loader| loader.engine.delete(&request, &options)).is_ok();
            }
            Op::Drain => return self.loader(|loader| loader.engine.drain(false, false)).is_ok(),
            Op::Undo => {
                let done = self.loader(|loader| loader.engine.drain(true, false)).is_ok();
                self.tick();
                return done;
            }
            Op::Detach(hook) => {
                let reply = self.loader(|loader| loader.engine.get(&GetRequest::default()));
                let chain = reply
                    .unwrap()
                    .chains
                    .into_iter()
                    .find(|chain| chain.hook == *hook && chain.interface.as_str() == HOST_LINK);
                if let Some(observed) = chain.and_then(|chain| chain.observed) {
                    let id = observed.link_id.to_string();
                    self.pair.host.exec(&["bpftool", "link", "detach", "id", &id]).unwrap();
                }
            }
            Op::Unpin => {
                for entry in fs::read_dir(self.bpffs.path()).unwrap().flatten() {
                    fs::remove_dir_all(entry.path()).unwrap();
                }
                self.tick();
            }
            Op::Restart => self.restart(),
            Op::Tick => self.tick(),
            Op::InterfaceGone => {
                // Twice is as good.
                let _ = self.pair.host.exec(&["ip", "link", "delete", HOST_LINK]);
                self.tick();
            }
            Op::InterfaceBack => {
                self.pair.plug().unwrap();
                self.tick();
            }
        }
        true
    }

    /// The ports whose packets do not arrive.
    fn dropped(&self) -> BTreeSet<u16> {
        let frames: Vec<_> = PORTS
            .into_iter()
            .chain([FREE])
            .flat_map(|port| vec![Udp4::to_port(port).frame(); LOOK])
            .collect();
        send_frames(&self.pair, &frames).unwrap();
        let mut arrived: BTreeMap<u16, usize> = BTreeMap::new();
        // They are judged in the order in which they were sent.
        wait_for(Duration::from_secs(10), "packets that nobody drops", || {
            for (port, socket) in &self.sockets {
                while socket.recv(&mut [0; 64]).is_ok() {
                    *arrived.entry(*port).or_default() += 1;
                }
            }
            if arrived.get(&FREE) == Some(&LOOK) { Ok(()) } else { Err(arrived.clone()) }
        })
        .unwrap();
        PORTS.into_iter().filter(|port| !arrived.contains_key(port)).collect()
    }

    fn check(&self, model: &Model, what: &str) {
        let running: Vec<_> = HOOKS.into_iter().filter(|hook| model.runs(*hook)).collect();
        if !model.gone {
            assert_eq!(self.dropped(), model.dropped(), "{what}: by packets");
            let now: Vec<_> = self.here(|_| attached(&self.pair)).into_keys().collect();
            assert_eq!(now, running, "{what}: by the kernel");
        }
        let reply = self.loader(|loader| loader.engine.get(&GetRequest::default())).unwrap();
        assert_eq!(reply.drained, model.drained, "{what}");
        let ports = |chain: &ChainStatus| -> BTreeSet<u16> {
            let ports = chain.programs.iter().map(|p| p.config["port"].as_u64().unwrap());
            ports.map(|port| u16::try_from(port).unwrap()).collect()
        };
        let (spare, chains): (Vec<_>, Vec<_>) =
            reply.chains.iter().partition(|chain| chain.interface.as_str() == SPARE);
        let told = spare.iter().map(|chain| ports(chain)).next().unwrap_or_default();
        assert_eq!(told, model.spare, "{what}: the spare one, by the loader");
        let seen = self.pair.host.exec(&["ip", "-j", "link", "show", SPARE]).unwrap();
        let runs = seen.contains("\"prog\":");
        assert_eq!(
            runs,
            !model.spare.is_empty() && !model.drained,
            "{what}: the spare one: {seen}"
        );
        let told: BTreeMap<_, _> = chains.iter().map(|chain| (chain.hook, ports(chain))).collect();
        assert_eq!(told, model.chains, "{what}: by the loader");
        for chain in chains {
            let active = chain.state == ChainState::Active;
            assert_eq!(active, running.contains(&chain.hook), "{what}: {chain:?}");
        }
    }
}

fn name(port: u16) -> String {
    format!("drop-{port}")
}

fn document(chains: &BTreeMap<Hook, BTreeSet<u16>>, spare: Option<&BTreeSet<u16>>) -> Value {
    let link = chains.iter().map(|(hook, ports)| (HOST_LINK, *hook, ports));
    let chains: Vec<_> =
        link.chain(spare.map(|ports| (SPARE, Hook::Xdp, ports)))
            .map(|(interface, hook, ports)| {
                let programs: Vec<_> = ports
                .iter()
                .map(|port| json!({
                    "name": name(*port), "package": "port-dropper", "config": { "port": port },
                }))
                .collect();
                json!({ "interface": interface, "hook": hook, "programs": programs })
            })
            .collect();
    json!({ "chains": chains })
}

#[test]
fn any_sequence_of_events_ends_as_the_model_says() {
    let (sequences, length) =
        if std::env::var_os("CANOPY_TEST_FULL").is_some() { (200, 60) } else { (12, 30) };
    for seed in 0..sequences {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::new();
        let mut model = Model::default();
        let mut ops = Vec::new();
        for _ in 0..length {
            let op = random(&mut rng, &model);
            ops.push(op.clone());
            let what = format!("sequence {seed}: {ops:#?}");
            let expected = model.step(&op);
            let done = world.perform(&op);
            if matches!(op, Op::Apply { .. } | Op::Delete(..)) {
                assert_eq!(done, expected, "{what}: done or refused");
            }
            world.check(&model, &what);
        }
        println!("sequence {seed}: {length} steps");
    }
}
