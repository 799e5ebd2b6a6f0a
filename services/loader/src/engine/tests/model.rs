//! Random sequences of changes, faults, tampering, traffic and restarts, against a model that is
//! a dozen lines.

use super::world::*;
use crate::engine::{Engine, Options, Stage};
use canopy_api::{ChainKey, Netns, wire::ChainState};
use canopy_kernel::{
    Kernel,
    fake::{Call, FakeKernel, Fault},
};
use proptest::{prelude::*, sample::select};
use std::collections::{BTreeMap, BTreeSet};

/// Name, package, port.
type Programs = BTreeSet<(&'static str, &'static str, u16)>;

#[derive(Clone, Debug)]
enum Op {
    /// All or nothing, or each interface for itself.
    Apply(bool, BTreeMap<&'static str, Programs>),
    Delete(&'static str, Option<&'static str>),
    Drain(bool),
    Packets(&'static str, u8),
    TamperDetach(&'static str),
    TamperReplace(&'static str),
    InterfaceGone,
    InterfaceBack,
    NetnsGone,
    NetnsBack,
    Confined(bool),
    Tick,
    Restart,
    FailNext(Call),
    DieDuring(Stage, bool, BTreeMap<&'static str, Programs>),
}

/// In another network namespace, and called as one in the loader's own.
const THERE: &str = "blue:eth0";

fn interface() -> impl Strategy<Value = &'static str> {
    select(&["eth0", "eth1", THERE][..])
}

fn blue() -> Netns {
    "blue".parse().unwrap()
}

fn programs() -> impl Strategy<Value = Programs> {
    let one = (select(&["a", "b", "c"][..]), select(&["block", "limit"][..]), 1_u16..3);
    prop::collection::vec(one, 0..4).prop_map(|list| {
        let mut names = BTreeSet::new();
        list.into_iter().filter(|(name, _, _)| names.insert(*name)).collect()
    })
}

fn request() -> impl Strategy<Value = BTreeMap<&'static str, Programs>> {
    prop::collection::btree_map(interface(), programs(), 1..3)
}

fn op() -> impl Strategy<Value = Op> {
    let call = select(&[Call::Prepare, Call::Switch, Call::Detach, Call::Discard, Call::Cells][..]);
    prop_oneof![
        6 => (any::<bool>(), request()).prop_map(|(atomic, request)| Op::Apply(atomic, request)),
        2 => (interface(), prop::option::of(select(&["a", "b", "c"][..])))
            .prop_map(|(interface, program)| Op::Delete(interface, program)),
        1 => any::<bool>().prop_map(Op::Drain),
        6 => (interface(), 1_u8..5).prop_map(|(interface, count)| Op::Packets(interface, count)),
        1 => interface().prop_map(Op::TamperDetach),
        1 => interface().prop_map(Op::TamperReplace),
        1 => Just(Op::InterfaceGone),
        1 => Just(Op::InterfaceBack),
        1 => Just(Op::NetnsGone),
        1 => Just(Op::NetnsBack),
        1 => any::<bool>().prop_map(Op::Confined),
        2 => Just(Op::Tick),
        2 => Just(Op::Restart),
        1 => call.prop_map(Op::FailNext),
        2 => (select(&Stage::ALL[..]), any::<bool>(), request())
            .prop_map(|(stage, atomic, request)| Op::DieDuring(stage, atomic, request)),
    ]
}

/// What a person expects of the host.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    drained: bool,
    chains: BTreeMap<&'static str, Programs>,
}

impl Model {
    fn applied(&self, request: &BTreeMap<&'static str, Programs>) -> Self {
        let mut next = self.clone();
        for (interface, programs) in request {
            if programs.is_empty() {
                next.chains.remove(interface);
            } else {
                next.chains.insert(interface, programs.clone());
            }
        }
        next
    }
}

fn key(interface: &str) -> ChainKey {
    match interface {
        "eth0" => eth0(),
        "eth1" => eth1(),
        _ => ChainKey { netns: Some(blue()), ..eth0() },
    }
}

/// What a chain is called here.
fn called(of: &ChainKey) -> &'static str {
    ["eth0", "eth1", THERE].into_iter().find(|name| key(name) == *of).unwrap()
}

fn to_document(request: &BTreeMap<&'static str, Programs>) -> serde_json::Value {
    let chains: Vec<_> = request
        .iter()
        .map(|(interface, programs)| {
            let ports: Vec<_> = programs.iter().map(|(_, _, port)| [*port]).collect();
            let programs: Vec<_> = programs
                .iter()
                .zip(&ports)
                .map(|((name, package, _), port)| (*name, *package, &port[..]))
                .collect();
            let ChainKey { netns, interface, .. } = key(interface);
            let mut chain = chain(interface.as_str(), &programs);
            chain["netns"] = serde_json::json!(netns);
            chain
        })
        .collect();
    document(&chains)
}

/// What the loader says, in the model's words.
fn told(engine: &Engine<FakeKernel>) -> Model {
    let intern =
        |text: &str| ["a", "b", "c", "block", "limit"].into_iter().find(|t| *t == text).unwrap();
    let reply = get(engine);
    // What is attached and not desired is on its way out; nobody described it.
    let desired = reply.chains.iter().filter(|chain| chain.changed.is_some());
    let chains = desired.map(|chain| {
        let programs = chain.programs.iter().map(|p| {
            let port = p.config["ports"][0].as_u64().unwrap();
            (intern(p.name.as_str()), intern(p.package.as_str()), u16::try_from(port).unwrap())
        });
        (called(&chain.key()), programs.collect())
    });
    Model { drained: reply.drained, chains: chains.collect() }
}

struct Run {
    world: World,
    engine: Option<Engine<FakeKernel>>,
    model: Model,
    counts: BTreeMap<(&'static str, &'static str), u64>,
    there: bool,
    netns: bool,
}

impl Run {
    fn engine(&self) -> &Engine<FakeKernel> {
        self.engine.as_ref().unwrap()
    }

    fn restart(&mut self) {
        drop(self.engine.take());
        self.engine = Some(self.world.start());
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Apply(atomic, request) => {
                let done = self.apply(*atomic, request);
                self.model = self.model.applied(&done);
            }
            Op::Delete(interface, program) => {
                let deletion = deletion(&key(interface), *program);
                if self.engine().delete(&deletion, &options()).is_ok() {
                    let mut rest = self.model.chains[interface].clone();
                    rest.retain(|(name, _, _)| program.is_some_and(|program| program != *name));
                    self.model = self.model.applied(&[(*interface, rest)].into());
                }
            }
            Op::Drain(undo) => {
                if self.engine().drain(*undo, false).is_ok() {
                    self.model.drained = !undo;
                }
            }
            Op::Packets(interface, count) => {
                for _ in 0..*count {
                    if self.world.kernel.packet(&key(interface), &[PASS; 3]) {
                        for (name, _, _) in &self.model.chains[interface] {
                            *self.counts.entry((interface, name)).or_default() += 1;
                        }
                    }
                }
            }
            Op::TamperDetach(interface) => self.world.kernel.tamper_detach(&key(interface)),
            Op::TamperReplace(interface) => {
                self.world.kernel.tamper_replace(&key(interface));
            }
            Op::InterfaceGone => {
                self.world.kernel.remove_interface(&eth1().interface);
                self.there = false;
            }
            Op::InterfaceBack if !self.there => {
                self.world.kernel.add_interface(&eth1().interface);
                self.there = true;
            }
            Op::NetnsGone => {
                self.world.kernel.remove_netns(&blue());
                self.netns = false;
            }
            Op::NetnsBack if !self.netns => {
                self.world.kernel.add_netns(&blue());
                self.world.kernel.add_interface_in(Some(&blue()), &eth0().interface);
                self.netns = true;
            }
            Op::InterfaceBack | Op::NetnsBack => {}
            Op::Confined(confined) => self.world.kernel.confine(*confined),
            Op::Tick => {
                self.engine().tick();
            }
            Op::Restart => self.restart(),
            Op::FailNext(call) => self.world.kernel.inject(*call, 0, Fault::Fail),
            Op::DieDuring(stage, atomic, request) => {
                die_at(*stage);
                let done = until_death(|| self.apply(*atomic, request));
                live();
                self.restart();
                let now = told(self.engine());
                let old = std::mem::replace(&mut self.model, now);
                let now = &self.model;
                if let Some(done) = done {
                    assert_eq!(*now, old.applied(&done));
                    return;
                }
                // Each interface is old or new; all of them alike if asked for.
                let after = |done: &BTreeSet<&str>| {
                    let mut request = request.clone();
                    request.retain(|interface, _| done.contains(interface));
                    old.applied(&request)
                };
                let mut allowed = vec![old.clone(), old.applied(request)];
                if !atomic {
                    let one = |interface: &&'static str| after(&BTreeSet::from([*interface]));
                    allowed.extend(request.keys().map(one));
                }
                assert!(allowed.contains(now), "{now:?}");
            }
        }
    }

    /// Asks for it; what is told to be so.
    fn apply(
        &self,
        atomic: bool,
        request: &BTreeMap<&'static str, Programs>,
    ) -> BTreeMap<&'static str, Programs> {
        let options = Options { atomic, ..options() };
        let mut done = request.clone();
        match self.world.apply_with(self.engine(), to_document(request), &options) {
            Err(_) => done.clear(),
            Ok(reply) => {
                assert_eq!(reply.chains.len(), request.len());
                let failed: Vec<_> =
                    reply.failed().map(|(chain, _)| called(&chain.key())).collect();
                assert!(failed.is_empty() || !atomic, "{failed:?}");
                done.retain(|interface, _| !failed.contains(interface));
                assert!(!done.is_empty(), "an answer that is none");
            }
        }
        done
    }

    /// What holds once faults have ended and the loader has had time.
    fn check(&self) {
        self.world.kernel.clear_faults();
        self.world.kernel.confine(false);
        for _ in 0..2 {
            wait(60);
            self.engine().tick();
        }
        let engine = self.engine();
        assert_eq!(told(engine), self.model);
        for status in get(engine).chains {
            let missing = match called(&status.key()) {
                "eth1" => !self.there,
                THERE => !self.netns,
                _ => false,
            };
            let wanted = match (self.model.drained, missing) {
                (true, _) => ChainState::Drained,
                (false, true) => ChainState::Pending,
                (false, false) => ChainState::Active,
            };
            assert_eq!(status.state, wanted, "{status:?}");
            assert_eq!(
                self.world.kernel.running(&status.key()).is_some(),
                wanted == ChainState::Active
            );
            assert_eq!(self.world.kernel.pinned(&status.key()).len(), 1, "{status:?}");
            for program in &status.programs {
                let at = (called(&status.key()), program.name.as_str());
                let counted = self.counts.iter().find(|((i, n), _)| (*i, *n) == at);
                assert_eq!(program.runs, counted.map_or(0, |(_, count)| *count), "{at:?}");
            }
        }
        let known: Vec<_> = self.model.chains.keys().map(|interface| key(interface)).collect();
        for seen in self.world.kernel.observe().unwrap() {
            assert!(known.contains(&seen.key), "{seen:?} is left over");
        }
    }
}

/// `cargo xtask test --full` looks longer.
fn cases() -> u32 {
    if std::env::var_os("CANOPY_TEST_FULL").is_some() { 12_000 } else { 512 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_events_ends_as_the_model_says(ops in prop::collection::vec(op(), 1..40)) {
        let world = World::new();
        let engine = Some(world.start());
        let mut run = Run {
            world,
            engine,
            model: Model::default(),
            counts: BTreeMap::new(),
            there: true,
            netns: true,
        };
        run.step(&Op::NetnsGone);
        run.step(&Op::NetnsBack);
        for op in &ops {
            run.step(op);
        }
        run.check();
    }
}
