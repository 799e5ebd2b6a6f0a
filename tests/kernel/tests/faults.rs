//! The fault matrix: a change of the real kernel, made by a process of its own that meets one fault
//! at one step. Afterwards the old chains run or the new ones, nothing between them; the caller was
//! told which; packets that both block were blocked all the time and counted once; the next change
//! succeeds.
//!
//! Steps are the system calls that change something. A first run of each operation records them;
//! [`cases`] pairs them with faults. `CANOPY_TEST_FULL` runs every pair of a call and its death or
//! failure, and more of the others; otherwise a part is taken that has every operation with every
//! kind of fault.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "test code: a failure is a panic"
)]

use canopy_api::{
    ChainKey, Hook,
    wire::{ChainState, ChainStatus, GetReply, GetRequest},
};
use canopy_kernel_tests::{
    files,
    host::{Loader, Site, Task, attached, cached, wait},
};
use canopy_test_support::{
    packet::Udp4,
    pair::{HOST_LINK, PEER_LINK, Pair, udp_counter},
    tracee::{self, Act, End, Step},
    traffic::{Flood, send_frames},
    wait_for,
};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fmt, fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// Blocked before and after every change but the first and the last of a chain.
const ALWAYS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 66);
/// Blocked by the old chain only.
const OLD: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 70);
/// Blocked by the new chain only.
const NEW: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 71);
/// Blocked by the change after that.
const NEXT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 72);
/// Never blocked.
const FREE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 73);
/// Packets in a look.
const LOOK: u64 = 3;
/// A second interface; its driver has no native XDP.
const SPARE: &str = "lo";

/// What is being done when the fault comes. Each changes two chains of an interface in one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Operation {
    Apply,
    Delete,
    Upgrade,
    Configure,
    /// Beside them, one of a second interface.
    TwoInterfaces,
    /// Beside them, one of a second interface that cannot be.
    OneOfTwo,
}

const OPERATIONS: [Operation; 6] = [
    Operation::Apply,
    Operation::Delete,
    Operation::Upgrade,
    Operation::Configure,
    Operation::TwoInterfaces,
    Operation::OneOfTwo,
];

/// What happens at the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// `kill -9`, the call not made.
    KilledBefore,
    /// `kill -9`, the call made.
    KilledAfter,
    /// The call fails.
    CallFails,
    /// The disk of the state is full from here on.
    DiskFull,
    /// The interface is deleted.
    InterfaceGone,
    /// Pins and all are unmounted.
    BpffsGone,
    /// `kill -9`, and the state file is torn.
    StateTorn,
    /// `kill -9`, and the packages of the cache are damaged.
    PackagesDamaged,
    /// `kill -9`, and the pins and the packages are gone: only the intent is left.
    PinsAndPackagesGone,
}

const FAULTS: [Fault; 9] = [
    Fault::KilledBefore,
    Fault::KilledAfter,
    Fault::CallFails,
    Fault::DiskFull,
    Fault::InterfaceGone,
    Fault::BpffsGone,
    Fault::StateTorn,
    Fault::PackagesDamaged,
    Fault::PinsAndPackagesGone,
];

impl Fault {
    /// Whether the chains themselves survive it, so that no packet may get through and no count may
    /// be lost.
    fn spares_the_chains(self) -> bool {
        !matches!(self, Self::InterfaceGone | Self::BpffsGone | Self::PinsAndPackagesGone)
    }
}

/// One cell of the matrix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Case {
    operation: Operation,
    fault: Fault,
    /// The step, counted from the start of the change.
    step: usize,
    /// How many marks (stages) came before.
    stage: usize,
    call: &'static str,
    /// How many of these calls came before in the stage. Steps are found by this: how many entries are
    /// copied depends on what packets counted meanwhile.
    nth: usize,
    /// For what a fault leaves to chance.
    seed: u64,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stages = ["the start", "planned", "prepared", "journalled", "switched", "committed"];
        let stage = stages.get(self.stage).copied().unwrap_or("swept");
        let Self { operation, fault, step, call, seed, .. } = self;
        write!(f, "{operation:?}, {fault:?} at step {step} ({call}) after {stage}, seed {seed}")
    }
}

/// A host: two namespaces, file systems of its own, packages.
struct World {
    pair: Pair,
    dir: tempfile::TempDir,
    packages: Packages,
}

/// Files of packages.
struct Packages {
    firewall: PathBuf,
    newer: PathBuf,
    flowmeter: PathBuf,
}

impl Packages {
    fn build(dir: &Path) -> Self {
        Self {
            firewall: files::write(dir, &files::starter("firewall")),
            newer: files::write(dir, &files::newer_firewall()),
            flowmeter: files::write(dir, &files::starter("flowmeter")),
        }
    }
}

impl World {
    /// One, for the thread that calls and those it starts: nobody else sees its file systems.
    fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for name in ["state", "bpf"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let packages = Packages::build(dir.path());
        let pair = Pair::new().unwrap();
        Self { pair, dir, packages }
    }

    fn site(&self, newer: bool) -> Site {
        let Packages { firewall, newer: next, flowmeter } = &self.packages;
        Site {
            state: self.dir.path().join("state"),
            bpffs: self.dir.path().join("bpf/canopy"),
            packages: BTreeMap::from([
                ("firewall@*".to_owned(), if newer { next } else { firewall }.clone()),
                ("flowmeter@*".to_owned(), flowmeter.clone()),
            ]),
        }
    }

    fn here<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        self.pair.host.run(|| Ok(body())).unwrap()
    }

    fn mount(&self, name: &str, kind: &str, options: Option<&str>) {
        let at = self.dir.path().join(name);
        mount(Some(kind), &at, Some(kind), MsFlags::empty(), options).unwrap();
    }

    fn unmount(&self, name: &str) {
        umount2(&self.dir.path().join(name), MntFlags::MNT_DETACH).unwrap();
    }

    /// Packets that arrived in all.
    fn arrived(&self) -> u64 {
        self.pair.host.run(|| udp_counter("NoPorts")).unwrap()
    }

    /// Whether packets from here arrive.
    fn arrives(&self, source: Ipv4Addr) -> bool {
        let before = self.arrived();
        let many = |source, count: u64| {
            let count = usize::try_from(count).unwrap();
            vec![frame(source); count]
        };
        // They come in the order in which they were sent: with the last the first were judged.
        send_frames(&self.pair, &[many(source, LOOK), many(FREE, LOOK)].concat()).unwrap();
        let all = wait_for(Duration::from_secs(10), "packets that nobody blocks", || {
            match self.arrived() - before {
                fewer if fewer < LOOK => Err(fewer),
                all => Ok(all),
            }
        })
        .unwrap();
        if all == LOOK {
            return false;
        }
        wait_for(Duration::from_secs(5), "the rest of the packets", || {
            match self.arrived() - before {
                all if all == 2 * LOOK => Ok(()),
                other => Err(other),
            }
        })
        .unwrap();
        true
    }
}

fn frame(source: Ipv4Addr) -> Vec<u8> {
    Udp4 { source, ..Udp4::to_port(4242) }.frame()
}

/// Two chains, the first of which blocks [`ALWAYS`] and this.
fn blocking(source: Ipv4Addr) -> Value {
    json!({ "chains": [
        { "interface": HOST_LINK, "hook": "xdp", "programs": [
            { "name": "wall", "package": "firewall",
              "config": { "blocked": [ALWAYS.to_string(), source.to_string()] } },
        ]},
        { "interface": HOST_LINK, "hook": "tc-ingress", "programs": [
            { "name": "meter", "package": "flowmeter" },
        ]},
    ]})
}

fn nothing() -> Value {
    json!({ "chains": [
        { "interface": HOST_LINK, "hook": "xdp", "programs": [] },
        { "interface": HOST_LINK, "hook": "tc-ingress", "programs": [] },
    ]})
}

/// The same, and nothing on the second interface.
fn and_nothing(mut document: Value) -> Value {
    let none = json!({ "interface": SPARE, "hook": "tc-ingress", "programs": [] });
    document["chains"].as_array_mut().unwrap().push(none);
    document
}

/// The same, and on the second interface a meter of this name.
fn and_a_meter(mut document: Value, name: &str) -> Value {
    let chains = document["chains"].as_array_mut().unwrap();
    chains.push(json!({ "interface": SPARE, "hook": "tc-ingress", "programs": [
        { "name": name, "package": "flowmeter" },
    ]}));
    document
}

/// The same, and on the second interface what it cannot have.
fn and_what_cannot_be(mut document: Value) -> Value {
    let chains = document["chains"].as_array_mut().unwrap();
    chains.push(json!({ "interface": SPARE, "hook": "xdp", "xdp_mode": "native", "programs": [
        { "name": "wall", "package": "firewall" },
    ]}));
    document
}

/// The same with another source in the meter's place, so that both chains change.
fn with_another_meter(mut document: Value) -> Value {
    document["chains"][1]["programs"][0]["name"] = json!("another");
    document
}

impl Operation {
    /// What is there before.
    fn before(self) -> Option<Value> {
        match self {
            Self::Apply => None,
            Self::Delete | Self::Upgrade | Self::Configure | Self::OneOfTwo => Some(blocking(OLD)),
            Self::TwoInterfaces => Some(and_a_meter(blocking(OLD), "meter")),
        }
    }

    /// What is asked for.
    fn document(self) -> Value {
        match self {
            Self::Apply | Self::Upgrade => blocking(NEW),
            Self::Configure => with_another_meter(blocking(NEW)),
            Self::Delete => nothing(),
            Self::TwoInterfaces => and_a_meter(with_another_meter(blocking(NEW)), "another"),
            Self::OneOfTwo => and_what_cannot_be(blocking(NEW)),
        }
    }

    /// How the process ends without a fault, and at how many marks: one at the start, two while nothing
    /// is changed, four for each interface, one where it goes no further than its journal.
    fn end(self) -> (u8, usize) {
        match self {
            Self::Apply | Self::Delete | Self::Upgrade | Self::Configure => (0, 7),
            Self::TwoInterfaces => (0, 11),
            Self::OneOfTwo => (4, 8),
        }
    }

    fn is_new_version(self) -> bool {
        self == Self::Upgrade
    }

    /// Whether the change takes the wall away or brings it: packets get through before or after.
    fn opens(self) -> bool {
        matches!(self, Self::Apply | Self::Delete)
    }
}

/// What a person would call the state of the host.
fn intent(reply: &GetReply) -> Vec<String> {
    let programs = |chain: &ChainStatus| {
        let told = chain.programs.iter();
        told.map(|p| format!("{} {} {} {:?}", p.name, p.package, p.version, p.config)).collect()
    };
    let mut intent: Vec<_> = reply
        .chains
        .iter()
        .map(|chain| {
            let programs: Vec<_> = programs(chain);
            format!("{}: {}", chain.key(), programs.join(", "))
        })
        .collect();
    intent.sort();
    intent
}

/// The steps of an operation that meets no fault.
struct Recorded {
    /// Each call, with the number of marks before it.
    steps: Vec<(usize, &'static str)>,
    old: Vec<String>,
    new: Vec<String>,
}

/// The chains of one interface.
fn of<'a>(intent: &'a [String], interface: &str) -> Vec<&'a String> {
    intent.iter().filter(|chain| chain.starts_with(&format!("{interface}/"))).collect()
}

impl Recorded {
    /// What was before, but for the interfaces that are as asked for.
    fn with(&self, is_new: impl Fn(&str) -> bool) -> Vec<String> {
        let side = |name| of(if is_new(name) { &self.new } else { &self.old }, name);
        let mut chains: Vec<_> = [HOST_LINK, SPARE].into_iter().flat_map(side).cloned().collect();
        chains.sort();
        chains
    }
}

/// How the process was run.
struct Ran {
    end: End,
    said: String,
}

impl World {
    /// Makes the host as it is before the operation.
    fn set_up(&self, operation: Operation) -> Vec<String> {
        self.mount("state", "tmpfs", Some("size=4m,mode=700"));
        self.mount("bpf", "bpf", None);
        self.here(|| {
            let loader = Loader::start(&self.site(false), |_| {}).unwrap();
            if let Some(document) = operation.before() {
                loader.apply(&document).unwrap();
            }
            intent(&loader.engine.get(&GetRequest::default()).unwrap())
        })
    }

    /// Ends it: whatever is attached goes with its pins.
    fn clear(&self) {
        self.unmount("bpf");
        self.unmount("state");
        wait_for(Duration::from_secs(10), "the chains to be gone", || {
            let attached = self.here(|| attached(&self.pair));
            if attached.is_empty() { Ok(()) } else { Err(attached) }
        })
        .unwrap();
    }

    /// Runs the operation in a process of its own.
    fn perform(&self, operation: Operation, at: impl FnMut(Step) -> Act + Send) -> Ran {
        let task = Task {
            site: self.site(operation.is_new_version()),
            document: operation.document(),
            more: false,
            profile: false,
        };
        let said = self.dir.path().join("said");
        let end = self.here(|| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_canopy-test-change"));
            command
                .arg(serde_json::to_string(&task).unwrap())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(fs::File::create(&said).unwrap());
            tracee::run(&mut command, at).unwrap()
        });
        Ran { end, said: fs::read_to_string(&said).unwrap() }
    }

    fn record(&self, operation: Operation) -> Recorded {
        let old = self.set_up(operation);
        let mut marks = 0;
        let mut steps = Vec::new();
        let ran = self.perform(operation, |step| {
            match step {
                Step::Mark => marks += 1,
                Step::Call(call) if marks > 0 => steps.push((marks - 1, call)),
                Step::Call(_) => {}
            }
            Act::Go
        });
        let (code, stages) = operation.end();
        assert_eq!(ran.end, End::Exited(i32::from(code)), "{operation:?}: {}", ran.said);
        let new = self.here(|| {
            let loader = Loader::start(&self.site(false), |_| {}).unwrap();
            intent(&loader.engine.get(&GetRequest::default()).unwrap())
        });
        assert_ne!(old, new);
        assert_eq!(marks, stages, "{operation:?}");
        self.clear();
        Recorded { steps, old, new }
    }

    fn bring_about(&self, fault: Fault) -> Act {
        match fault {
            Fault::KilledAfter => return Act::KillAfter,
            Fault::CallFails => return Act::Fail(Errno::ENOSPC),
            Fault::DiskFull => {
                let full = fs::write(self.dir.path().join("state/filler"), vec![0; 8 << 20]);
                assert_eq!(full.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
            }
            Fault::InterfaceGone => {
                self.pair.host.exec(&["ip", "link", "delete", HOST_LINK]).unwrap();
            }
            Fault::BpffsGone => self.unmount("bpf"),
            Fault::KilledBefore
            | Fault::StateTorn
            | Fault::PackagesDamaged
            | Fault::PinsAndPackagesGone => return Act::KillBefore,
        }
        Act::Go
    }

    /// What happened beside the death of the process.
    fn aftermath(&self, case: Case) {
        let mut rng = StdRng::seed_from_u64(case.seed);
        match case.fault {
            Fault::StateTorn => {
                let path = self.dir.path().join("state/state.json");
                let Ok(bytes) = fs::read(&path) else { return };
                let at = rng.random_range(0..bytes.len());
                let torn = if rng.random() {
                    bytes[..at].to_vec()
                } else {
                    let mut other = bytes;
                    other[at] ^= 1 << rng.random_range(0..8_u8);
                    other
                };
                fs::write(&path, torn).unwrap();
            }
            Fault::PackagesDamaged => self.damage_packages(),
            Fault::PinsAndPackagesGone => {
                self.unmount("bpf");
                self.mount("bpf", "bpf", None);
                self.damage_packages();
            }
            _ => {}
        }
    }

    fn damage_packages(&self) {
        let Packages { firewall, newer, flowmeter } = &self.packages;
        for package in [firewall, newer, flowmeter] {
            let path = cached(&self.site(false), package).unwrap();
            if let Ok(mut bytes) = fs::read(&path) {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                fs::write(&path, bytes).unwrap();
            }
        }
    }

    /// The fault is over.
    fn mend(&self, fault: Fault) {
        match fault {
            Fault::DiskFull => fs::remove_file(self.dir.path().join("state/filler")).unwrap(),
            Fault::InterfaceGone => self.pair.plug().unwrap(),
            Fault::BpffsGone => self.mount("bpf", "bpf", None),
            _ => {}
        }
    }

    fn run(&self, case: Case, recorded: &Recorded) {
        let what = case.to_string();
        let old = self.set_up(case.operation);
        assert_eq!(old, recorded.old, "{what}");
        // From a source that is blocked before and after, all the time.
        let watched = !case.operation.opens() && case.fault.spares_the_chains();
        let arrived = self.arrived();
        let pause = Duration::from_micros(200);
        let frames = vec![frame(ALWAYS); 2];
        let flood = Flood::paced(&self.pair.peer, PEER_LINK, frames, pause).unwrap();
        wait_for(Duration::from_secs(10), "the flood", || match flood.sent() {
            0 => Err(()),
            _ => Ok(()),
        })
        .unwrap();

        let (mut marks, mut calls, mut met) = (0, BTreeMap::new(), false);
        let ran = self.perform(case.operation, |now| match now {
            Step::Mark => {
                marks += 1;
                Act::Go
            }
            Step::Call(call) => {
                let before = calls.entry((marks, call)).or_insert(0);
                *before += 1;
                if met || (marks, call, *before) != (case.stage + 1, case.call, case.nth + 1) {
                    return Act::Go;
                }
                met = true;
                self.bring_about(case.fault)
            }
        });
        assert!(met, "{what}: the fault did not come; {}", ran.said);
        let sent = (case.fault != Fault::InterfaceGone).then(|| flood.stop().unwrap());
        self.aftermath(case);
        self.mend(case.fault);
        let told = match ran.end {
            End::Exited(0) => Some(recorded.new.clone()),
            // Some interfaces are as asked for; of the others each is told.
            End::Exited(4) => {
                let failed = |name: &str| ran.said.lines().any(|line| line.starts_with(name));
                Some(recorded.with(|name| !failed(name)))
            }
            End::Exited(3) => {
                assert!(!ran.said.trim().is_empty(), "{what}: an error without a word");
                Some(recorded.old.clone())
            }
            End::Killed => None,
            End::Exited(code) => panic!("{what}: exit code {code}: {}", ran.said),
        };
        self.here(|| {
            let mut loader = Loader::start(&self.site(false), |_| {}).unwrap();
            let now = self.settled(&loader, case, &what);
            let Some(now) = now else {
                // An apply takes over; a loader that lost its state removes nothing until it was
                // started again.
                loader.apply(&blocking(NEXT)).unwrap();
                drop(loader);
                loader = Loader::start(&self.site(false), |_| {}).unwrap();
                self.finish(&loader, &what);
                return;
            };
            // Each interface is the old one or the new one.
            let is_new = |name: &str| of(&now, name) == of(&recorded.new, name);
            assert_eq!(now, recorded.with(is_new), "{what}: neither old nor new");
            let is_old = of(&now, HOST_LINK) == of(&recorded.old, HOST_LINK);
            if let Some(told) = told {
                assert_eq!(now, told, "{what}: not what was said: {}", ran.said);
            }
            if watched {
                assert_eq!(self.arrived() - arrived, 0, "{what}: packets got through");
                let dropped = drops(&loader);
                assert_eq!(Some(dropped), sent, "{what}: packets counted twice or not at all");
            }
            // With pins and packages gone nothing can run; the intent is kept and says why.
            let walled = !now.is_empty() && case.fault != Fault::PinsAndPackagesGone;
            assert_eq!(self.arrives(OLD), !(walled && is_old), "{what}: {now:#?}");
            assert_eq!(self.arrives(NEW), !walled || is_old, "{what}: {now:#?}");
            self.finish(&loader, &what);
        });
        self.clear();
    }

    /// The next change succeeds, and after the last nothing is left.
    fn finish(&self, loader: &Loader, what: &str) {
        loader.apply(&blocking(NEXT)).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert!(!self.arrives(NEXT) && !self.arrives(ALWAYS), "{what}");
        assert!(self.arrives(OLD) && self.arrives(NEW), "{what}");
        let all = and_nothing(nothing());
        loader.apply(&all).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        let left = pins(&self.site(false).bpffs);
        assert_eq!(left, Vec::<PathBuf>::new(), "{what}: left over");
    }

    /// What is desired once the loader has done all it can; every chain of it is attached, and no
    /// other is. `None` if the state is lost, which only the very first can be: the loader keeps what
    /// is attached and says so, as it cannot know what was meant.
    fn settled(&self, loader: &Loader, case: Case, what: &str) -> Option<Vec<String>> {
        let mut reply = loader.engine.get(&GetRequest::default()).unwrap();
        for _ in 0..5 {
            wait(60);
            loader.engine.tick();
            reply = loader.engine.get(&GetRequest::default()).unwrap();
        }
        let attached = attached(&self.pair);
        if loader.engine.lost().is_some() {
            let first = case.operation == Operation::Apply && case.fault == Fault::StateTorn;
            assert!(first, "{what}: there was a state before, and it is not used");
            return None;
        }
        for chain in &reply.chains {
            if case.fault == Fault::PinsAndPackagesGone {
                let reason = chain.reason.as_deref().unwrap_or_default();
                assert!(reason.contains("is not in the cache of this host"), "{what}: {reason}");
                continue;
            }
            assert_eq!(chain.state, ChainState::Active, "{what}: {chain:?}");
            let observed = chain.observed.as_ref().unwrap();
            if chain.interface.as_str() == HOST_LINK {
                assert_eq!(attached.get(&chain.hook), Some(&observed.program_id), "{what}");
            }
        }
        if reply.chains.is_empty() {
            assert_eq!(attached, BTreeMap::new(), "{what}");
        }
        Some(intent(&reply))
    }
}

/// Packets that the wall has dropped.
fn drops(loader: &Loader) -> u64 {
    let key = ChainKey { netns: None, interface: HOST_LINK.parse().unwrap(), hook: Hook::Xdp };
    let reply = loader.engine.get(&GetRequest::default()).unwrap();
    let chain = reply.chains.into_iter().find(|chain| chain.key() == key).unwrap();
    chain.programs[0].exits["drop"]
}

fn pins(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .unwrap()
        .flatten()
        .flat_map(|entry| match entry.path() {
            path if path.is_dir() => pins(&path),
            path => vec![path],
        })
        .collect()
}

/// The steps at which a new link is pinned where it does not stay: what follows is its move to its place.
/// A directory may be made and an unfinished pin be removed between the link and its pin.
fn half_attached(steps: &[(usize, &'static str)]) -> Vec<usize> {
    let created = steps.iter().enumerate().filter(|(_, (_, call))| *call == "bpf link create");
    created
        .filter_map(|(created, _)| {
            let mut behind = (created + 1..steps.len())
                .skip_while(|step| ["mkdir", "unlink"].contains(&steps[*step].1));
            let pin = behind.next().filter(|step| steps[*step].1 == "bpf pin")?;
            Some(pin + 1).filter(|step| *step < steps.len())
        })
        .collect()
}

/// The steps without the middle of long rows of one call: thousands of entries are copied one by one.
fn without_repeats(steps: &[(usize, &'static str)]) -> Vec<usize> {
    let same = |step: usize, other: Option<usize>| {
        other.and_then(|other| steps.get(other)).is_some_and(|other| *other == steps[step])
    };
    let inside = |step: usize| same(step, step.checked_sub(1)) && same(step, step.checked_add(1));
    (0..steps.len()).filter(|step| !inside(*step)).collect()
}

/// The cells that are run.
fn cases(recorded: &BTreeMap<Operation, Recorded>, full: bool) -> Vec<Case> {
    let seed = 0x00c0_ffee;
    println!("cases are drawn with seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cases = Vec::new();
    let (mut half_attached_cases, mut unwritten_cases) = (0, 0);
    for operation in OPERATIONS {
        let steps = &recorded[&operation].steps;
        let case = |fault, step: usize, seed| {
            let (stage, call) = steps[step];
            let nth = steps[..step].iter().filter(|before| **before == steps[step]).count();
            Case { operation, fault, step, stage, call, nth, seed }
        };
        let all = without_repeats(steps);
        let half = half_attached(steps);
        // As many as there are links, but for those that the kernel refuses.
        let refused = usize::from(operation == Operation::OneOfTwo);
        let links = steps.iter().filter(|(_, call)| *call == "bpf link create").count() - refused;
        assert_eq!(half.len(), links, "{operation:?}: links and their pins");
        half_attached_cases += half.len();
        cases.extend(half.into_iter().map(|step| case(Fault::KilledBefore, step, 0)));
        // The new chains run and have counted, and the state cannot be written.
        let commit = steps.iter().position(|step| *step == (4, "write"));
        unwritten_cases += usize::from(commit.is_some());
        cases.extend(commit.map(|step| case(Fault::DiskFull, step, 0)));
        // What ran before is gone, and with it what it counted; then the state is damaged.
        cases.extend(all.last().map(|step| case(Fault::StateTorn, *step, 0)));
        for fault in FAULTS {
            let exhaustive =
                matches!(fault, Fault::KilledBefore | Fault::KilledAfter | Fault::CallFails);
            let drawn: Vec<usize> = match (full, exhaustive) {
                (true, true) => all.clone(),
                (true, false) => all.choose_multiple(&mut rng, 12).copied().collect(),
                (false, _) => all.choose_multiple(&mut rng, 1).copied().collect(),
            };
            assert!(!drawn.is_empty(), "{operation:?}, {fault:?}: no step to meet it at");
            cases.extend(drawn.into_iter().map(|step| case(fault, step, rng.random())));
        }
    }
    // An apply where nothing is attached makes two links.
    assert!(half_attached_cases >= 2, "{half_attached_cases} deaths half-way through attaching");
    assert!(unwritten_cases >= 4, "{unwritten_cases} states that cannot be written");
    cases
}

#[test]
fn a_change_that_meets_a_fault_is_made_whole_or_not_at_all() {
    std::thread::spawn(|| {
        let world = World::new();
        let recorded: BTreeMap<_, _> =
            OPERATIONS.iter().map(|operation| (*operation, world.record(*operation))).collect();
        let full = std::env::var_os("CANOPY_TEST_FULL").is_some();
        let cases = cases(&recorded, full);
        let steps: usize = recorded.values().map(|recorded| recorded.steps.len()).sum();
        println!("{} cases of {} at {steps} steps", cases.len(), steps * FAULTS.len());
        for case in cases {
            println!("{case}");
            world.run(case, &recorded[&case.operation]);
        }
    })
    .join()
    .unwrap();
}
