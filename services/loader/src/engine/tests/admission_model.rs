//! Random requests with the host changing in between, against what an outsider sees: what goes and what
//! comes by a request, on every interface that there may be, is what the rules allow there.
//!
//! An interleaving is one request: planned, decided on, and done, with links and rounds of the check
//! before it, between its plan and its execution, and within the execution.

use super::world::*;
use crate::{
    engine::{Engine, Stage},
    error::LoaderError,
};
use canopy_admission::{Labels, RuleSet, Subject};
use canopy_api::{
    Hook, InterfaceName, InterfaceSelector, PackageName,
    document::Format,
    permission::Role,
    wire::{AdmissionItem, AdmissionVerb, DeleteRequest},
};
use canopy_kernel::{Away, Interface, Kernel as _, LinkState, fake::FakeKernel};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

const HOSTS: u64 = 100;
const REQUESTS: u64 = 101;
const NAMES: [&str; 6] = ["eth0", "eth1", "eth10", "wan0", "new1", "e"];
const SELECTORS: [&str; 9] = [
    "*",
    "e*",
    "eth*",
    "eth1*",
    "*1",
    "new?",
    "altname:up",
    "mac:02:00:00:00:00:77",
    "default-route",
];
const PATTERNS: [&str; 7] = ["*", "eth*", "e*", "*1", "new1", "eth0", "wan*"];
const STAGES: [Stage; 6] = Stage::ALL;
/// What happens while a change is made.
const WITHIN: [fn(&FakeKernel); 6] = [
    |kernel| rename(kernel, "eth0", "wan0"),
    |kernel| rename(kernel, "wan0", "eth0"),
    |kernel| rename(kernel, "eth1", "new1"),
    |kernel| rename(kernel, "eth10", "eth1"),
    |kernel| kernel.remove_interface(&name("eth0")),
    |kernel| come(kernel, "new1"),
];

/// Numbers that look random; the same every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        // Of Vigna's splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % below as u64).unwrap()
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.roll(many) == 0
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.roll(list.len())]
    }
}

fn name(text: &str) -> InterfaceName {
    text.parse().unwrap()
}

fn has(kernel: &FakeKernel, interface: &str) -> bool {
    kernel.interfaces(None).unwrap().iter().any(|one| one.name.as_str() == interface)
}

fn come(kernel: &FakeKernel, interface: &str) {
    if !has(kernel, interface) {
        kernel.add_interface(&name(interface));
    }
}

fn rename(kernel: &FakeKernel, from: &str, to: &str) {
    if !has(kernel, to) {
        kernel.rename_interface(&name(from), &name(to));
    }
}

/// An interface that there may be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Possible {
    name: &'static str,
    altname: bool,
    address: bool,
    routed: bool,
}

fn every() -> Vec<Possible> {
    let flags = |name| {
        (0..8).map(move |bits| Possible {
            name,
            altname: bits & 1 != 0,
            address: bits & 2 != 0,
            routed: bits & 4 != 0,
        })
    };
    NAMES.into_iter().flat_map(flags).collect()
}

/// The packages of a chain.
#[derive(Clone, Debug, Default, PartialEq)]
struct Programs {
    has: BTreeSet<PackageName>,
    /// Those that a packet comes to which every program passes.
    reached: BTreeSet<PackageName>,
}

impl Programs {
    /// Of programs in their order, each with what it goes on after.
    fn of<'a>(programs: impl IntoIterator<Item = (&'a PackageName, &'a [String])>) -> Self {
        let (mut all, mut goes_on) = (Self::default(), true);
        for (package, proceed_on) in programs {
            all.has.insert(package.clone());
            if goes_on {
                all.reached.insert(package.clone());
            }
            goes_on &= proceed_on.iter().any(|verdict| verdict == "pass");
        }
        all
    }

    fn extend(&mut self, other: Self) {
        self.has.extend(other.has);
        self.reached.extend(other.reached);
    }
}

/// What the host says that is described, by selector or name.
#[derive(Clone, Debug, Default, PartialEq)]
struct Described {
    drained: bool,
    by_name: BTreeMap<String, Programs>,
    selectors: BTreeMap<String, Programs>,
}

impl Described {
    fn of(engine: &Engine<FakeKernel>) -> Self {
        let told = get(engine);
        let own = told.chains.iter().filter(|c| c.selector.is_none() && c.changed.is_some());
        Self {
            drained: told.drained,
            by_name: own
                .map(|chain| {
                    let programs =
                        Programs::of(chain.programs.iter().map(|p| (&p.package, &*p.proceed_on)));
                    (chain.interface.to_string(), programs)
                })
                .collect(),
            selectors: told
                .selectors
                .iter()
                .map(|one| {
                    let programs =
                        Programs::of(one.programs.iter().map(|p| (&p.package, &*p.proceed_on)));
                    (one.interface.to_string(), programs)
                })
                .collect(),
        }
    }

    /// What an interface has by it.
    fn on(&self, possible: &Possible) -> Programs {
        if let Some(own) = self.by_name.get(possible.name) {
            return own.clone();
        }
        let fits = |text: &str| match text.parse().unwrap() {
            InterfaceSelector::Name(name) => name.as_str() == possible.name,
            InterfaceSelector::Glob(glob) => glob.matches(possible.name),
            InterfaceSelector::AltName(_) => possible.altname,
            InterfaceSelector::Mac(_) => possible.address,
            InterfaceSelector::DefaultRoute => possible.routed,
        };
        let mut best: Option<(usize, &str)> = None;
        for text in self.selectors.keys().filter(|text| fits(text)) {
            let letters = text.parse::<InterfaceSelector>().unwrap().specificity();
            // Of equal ones the first by its text.
            if best.is_none_or(|(most, _)| letters > most) {
                best = Some((letters, text));
            }
        }
        best.map(|(_, text)| self.selectors[text].clone()).unwrap_or_default()
    }
}

/// What each interface that is there runs, by its number, and its name.
fn running(world: &World, engine: &Engine<FakeKernel>) -> BTreeMap<u32, (String, Programs)> {
    let told = get(engine);
    let interfaces = world.kernel.interfaces(None).unwrap();
    let mut running = BTreeMap::new();
    for Interface { index, name, .. } in &interfaces {
        running.insert(*index, (name.to_string(), Programs::default()));
    }
    for seen in world.kernel.observe().unwrap() {
        let on = match (&seen.state, &seen.away) {
            (_, Some(Away::Renamed(to))) => to.clone(),
            (LinkState::Attached(_), None) => seen.key.interface.clone(),
            _ => continue,
        };
        let Some(chain) = told.chains.iter().find(|chain| chain.key() == seen.key) else {
            continue;
        };
        let there = interfaces.iter().find(|one| one.name == on);
        let Some(slot) = there.and_then(|one| running.get_mut(&one.index)) else { continue };
        slot.1.extend(Programs::of(chain.programs.iter().map(|p| (&p.package, &*p.proceed_on))));
    }
    running
}

struct Run {
    world: World,
    engine: Option<Engine<FakeKernel>>,
    dice: Dice,
    rules: RuleSet,
    planned: u64,
    done: u64,
    denied: u64,
    moved: u64,
    died: u64,
}

enum Plan {
    Change(Box<crate::engine::Proposal>),
    Drain(bool, Vec<AdmissionItem>),
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let rules = rules(&mut dice);
        let world = World::new();
        let engine = Some(world.start());
        Self { world, engine, dice, rules, planned: 0, done: 0, denied: 0, moved: 0, died: 0 }
    }

    fn engine(&self) -> &Engine<FakeKernel> {
        self.engine.as_ref().unwrap()
    }

    fn allows(&self, item: &AdmissionItem) -> bool {
        let (principal, host) = ("u-test".parse().unwrap(), "web1".parse().unwrap());
        let (role, labels) = (Some(Role::Operator), Labels::new());
        let subject = Subject { principal: &principal, role, host: &host, labels: &labels };
        self.rules.decide(subject, item).allowed
    }

    /// Whether one program may be treated so on an interface of this name.
    fn allows_on(&self, verb: AdmissionVerb, package: &PackageName, interface: &str) -> bool {
        self.allows(&AdmissionItem {
            interface: Some(InterfaceSelector::Name(name(interface))),
            hook: Some(Hook::Xdp),
            package: Some(package.clone()),
            version: Some(semver::Version::new(1, 0, 0)),
            ..AdmissionItem::new(verb)
        })
    }

    fn event(&mut self) {
        let (one, other) = (self.dice.of(&NAMES), self.dice.of(&NAMES));
        let kernel = &self.world.kernel;
        match self.dice.roll(8) {
            0 => come(kernel, one),
            1 => kernel.remove_interface(&name(one)),
            2 => rename(kernel, one, other),
            3 => kernel.set_default_route(&[&name(one)]),
            4 => {
                let free = kernel.interfaces(None).unwrap().iter().all(|i| i.altnames.is_empty());
                let change = |it: &mut Interface| {
                    if it.altnames.pop().is_none() && free {
                        it.altnames.push("up".to_owned());
                    }
                };
                kernel.change_interface(&name(one), change);
            }
            5 => kernel.change_interface(&name(one), |it| it.mac = Some([2, 0, 0, 0, 0, 0x77])),
            _ => self.tick(),
        }
    }

    /// A round of the check gives interfaces nothing but what is described.
    fn tick(&mut self) {
        let before = running(&self.world, self.engine());
        wait(60);
        self.engine().tick();
        let after = running(&self.world, self.engine());
        let described = Described::of(self.engine());
        let route = self.world.kernel.default_route(None).unwrap();
        for interface in self.world.kernel.interfaces(None).unwrap() {
            let known = NAMES.into_iter().find(|known| *known == interface.name.as_str()).unwrap();
            let possible = |routed| Possible {
                name: known,
                altname: !interface.altnames.is_empty(),
                address: interface.mac == Some([2, 0, 0, 0, 0, 0x77]),
                routed,
            };
            let mut may = described.on(&possible(route.contains(&interface.index)));
            // A route that is away leads where it led.
            if route.is_empty() {
                may.extend(described.on(&possible(true)));
            }
            may.extend(before[&interface.index].1.clone());
            let has = &after[&interface.index].1.has;
            assert!(has.is_subset(&may.has), "{known}: {has:?} is not in {may:?}");
        }
    }

    fn plan(&mut self) -> Result<Plan, LoaderError> {
        let all: Vec<&'static str> = NAMES.into_iter().chain(SELECTORS).collect();
        let drained = get(self.engine()).drained;
        if self.dice.one_in(if drained { 2 } else { 12 }) {
            let undo = drained || self.dice.one_in(3);
            return Ok(Plan::Drain(undo, self.engine().parts_of_drain(undo)));
        }
        if self.dice.one_in(4) {
            let interface = self.dice.of(&all).parse().unwrap();
            let program = self.dice.one_in(3).then(|| named("a"));
            let request = DeleteRequest { interface, program, ..deletion(&eth0(), None) };
            return Ok(Plan::Change(Box::new(self.engine().propose_delete(&request, &options())?)));
        }
        let mut chains = BTreeMap::new();
        for _ in 0..=self.dice.roll(2) {
            let programs: &[(&str, &str, &[u16])] = match self.dice.roll(6) {
                0 => &[],
                1 => &[("b", "limit", &[])],
                2 => &[("a", "block", &[]), ("b", "limit", &[])],
                3 => &[("a", "limit", &[])],
                _ => &[("a", "block", &[])],
            };
            let place = self.dice.of(&all);
            let mut chain = chain(place, programs);
            for program in chain["programs"].as_array_mut().unwrap() {
                if self.dice.one_in(3) {
                    program["priority"] = json!(self.dice.of(&[1, 2000]));
                }
                if self.dice.one_in(3) {
                    program["proceed_on"] =
                        self.dice.of(&[&[][..], &["drop"], &["pass", "tx"]]).into();
                }
            }
            chains.insert(place, chain);
        }
        let chains: Vec<_> = chains.into_values().collect();
        let atomic = self.dice.one_in(3);
        let wishes = self.world.wishes(json!({ "chains": chains }))?;
        let options = crate::engine::Options { atomic, ..options() };
        Ok(Plan::Change(Box::new(self.engine().propose_apply(wishes, &options)?)))
    }

    fn request(&mut self) {
        for _ in 0..self.dice.roll(3) {
            self.event();
        }
        if self.dice.one_in(20) {
            self.engine = None;
            self.engine = Some(self.world.start());
        }
        let Ok(plan) = self.plan() else { return };
        self.planned += 1;
        let parts = match &plan {
            Plan::Change(proposal) => proposal.parts(),
            Plan::Drain(_, parts) => parts,
        };
        assert!(!parts.is_empty(), "nobody is asked");
        let told: Vec<_> = parts.iter().map(ToString::to_string).collect();
        if !parts.iter().all(|item| self.allows(item)) {
            self.denied += 1;
            return;
        }
        for _ in 0..self.dice.roll(3) {
            self.event();
        }
        let described = Described::of(self.engine());
        let ran = running(&self.world, self.engine());
        if self.dice.one_in(4) {
            at_stage(self.dice.of(&STAGES), self.dice.of(&WITHIN));
        } else if self.dice.one_in(10) {
            die_at(self.dice.of(&STAGES));
        }
        let engine = self.engine.take().unwrap();
        let done = until_death(|| match &plan {
            Plan::Change(proposal) => engine.execute(proposal).map(drop),
            Plan::Drain(undo, parts) => engine.drain_as_asked(*undo, false, None, parts).map(drop),
        });
        live();
        let died = done.is_none();
        self.engine = Some(if let Some(done) = done {
            self.moved += u64::from(done.as_ref().is_err_and(LoaderError::is_moved));
            self.done += u64::from(done.is_ok());
            engine
        } else {
            self.died += 1;
            drop(engine);
            self.world.start()
        });
        self.judge(&plan, &described);
        // A loader that starts has had a round of its check, which follows what interfaces are now.
        if !died && matches!(plan, Plan::Change(_)) {
            self.judge_running(&ran, &told);
        }
    }

    /// What went and what came is what may.
    fn judge(&self, plan: &Plan, before: &Described) {
        let after = Described::of(self.engine());
        if let Plan::Drain(undo, _) = plan {
            let verb = if *undo { AdmissionVerb::Undrain } else { AdmissionVerb::Drain };
            let nothing = Described { drained: before.drained, ..after.clone() };
            assert_eq!(&nothing, before, "a drain describes nothing");
            if after.drained != before.drained {
                for possible in every() {
                    for package in before.on(&possible).has {
                        assert!(self.allows_on(verb, &package, possible.name), "{possible:?}");
                    }
                }
            }
            return;
        }
        assert_eq!(after.drained, before.drained);
        for possible in every() {
            let (old, new) = (before.on(&possible), after.on(&possible));
            // For all packets, or for those that all programs pass.
            let gone = old.has.difference(&new.has).chain(old.reached.difference(&new.reached));
            for package in gone {
                let may = self.allows_on(AdmissionVerb::Delete, package, possible.name);
                assert!(may, "{package} goes from {possible:?}: {before:?} {after:?}");
            }
            for package in new.has.difference(&old.has) {
                let may = self.allows_on(AdmissionVerb::Apply, package, possible.name);
                assert!(may, "{package} comes to {possible:?}: {before:?} {after:?}");
            }
        }
    }

    /// The same of what runs, also where its interface has another name meanwhile.
    fn judge_running(&self, ran: &BTreeMap<u32, (String, Programs)>, told: &[String]) {
        for (index, (now, has)) in running(&self.world, self.engine()) {
            let Some((then, had)) = ran.get(&index) else { continue };
            let may = |verb, package: &PackageName| {
                self.allows_on(verb, package, then) || self.allows_on(verb, package, &now)
            };
            let gone = had.has.difference(&has.has).chain(had.reached.difference(&has.reached));
            for package in gone {
                assert!(
                    may(AdmissionVerb::Delete, package),
                    "{package} is off {then}, {now} by {told:?}"
                );
            }
        }
    }
}

/// Rules of somebody who wants something kept.
fn rules(dice: &mut Dice) -> RuleSet {
    let mut text = "rules:\n".to_owned();
    let all = dice.of(&["", ", when: { interfaces: [\"e*\", new1] }"]);
    let all = if dice.one_in(4) { all } else { "" };
    let _ = writeln!(text, "  - {{ name: people, effect: allow{all} }}");
    for number in 0..=dice.roll(3) {
        let verb = dice.of(&["delete", "delete", "apply", "drain", "undrain"]);
        let package = dice.of(&["block", "limit"]);
        let places = format!(", interfaces: [\"{}\"]", dice.of(&PATTERNS));
        let places = if dice.one_in(3) { String::new() } else { places };
        let _ = writeln!(
            text,
            "  - {{ name: d{number}, effect: deny, reason: kept, \
             when: {{ verbs: [{verb}], packages: [{package}]{places} }} }}"
        );
    }
    canopy_admission::load(&text, Format::Yaml).unwrap()
}

#[test]
fn what_is_done_is_within_what_was_admitted() {
    let (mut done, mut denied, mut moved, mut died) = (0, 0, 0, 0);
    for seed in 0..HOSTS {
        let result = std::panic::catch_unwind(|| {
            let mut run = Run::new(seed);
            while run.planned < REQUESTS {
                run.request();
            }
            [run.done, run.denied, run.moved, run.died]
        });
        let Ok(counts) = result else { panic!("host {seed}") };
        done += counts[0];
        denied += counts[1];
        moved += counts[2];
        died += counts[3];
    }
    let told =
        format!("of {} done {done} denied {denied} moved {moved} died {died}", HOSTS * REQUESTS);
    const { assert!(HOSTS * REQUESTS >= 10_000) };
    assert!(done > 2_000 && denied > 1_000 && moved > 50 && died > 50, "{told}");
}
