//! Random histories of selectors and interfaces against what an outsider would expect: afterwards each
//! interface runs what the most specific selector that fits it says, and nothing else runs.

use super::world::*;
use canopy_api::{
    ChainKey, Hook, InterfaceName, InterfaceSelector,
    wire::{Action, ApplyReply, ChainState, DeleteRequest},
};
use canopy_kernel::fake::{Call, Fault};
use proptest::{prelude::*, sample::select};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

const INTERFACES: [&str; 4] = ["eth0", "eth1", "eth10", "wan0"];
/// None two of the same rank: those are refused, which is another test's.
const SELECTORS: [&str; 6] = ["*", "e*", "eth*", "eth1*", "altname:up", "mac:02:00:00:00:00:77"];
const CALLS: [Call; 7] = [
    Call::Observe,
    Call::Prepare,
    Call::Switch,
    Call::Rename,
    Call::Detach,
    Call::Discard,
    Call::Cells,
];

#[derive(Clone, Debug)]
enum Event {
    Apply(&'static str, u16),
    Delete(&'static str),
    Comes(&'static str),
    Goes(&'static str),
    IsRenamed(&'static str, &'static str),
    GetsAltname(&'static str),
    GetsAddress(&'static str),
    Tick,
    Restart,
    Fails(Call, usize),
    Dies(Call, usize, bool),
}

fn event() -> impl Strategy<Value = Event> {
    let named: Vec<&str> = INTERFACES.into_iter().chain(SELECTORS).collect();
    let interface = || select(&INTERFACES[..]);
    prop_oneof![
        4 => (select(named.clone()), 1_u16..4).prop_map(|(what, port)| Event::Apply(what, port)),
        2 => select(named).prop_map(Event::Delete),
        3 => interface().prop_map(Event::Comes),
        2 => interface().prop_map(Event::Goes),
        3 => (interface(), interface()).prop_map(|(from, to)| Event::IsRenamed(from, to)),
        1 => interface().prop_map(Event::GetsAltname),
        1 => interface().prop_map(Event::GetsAddress),
        4 => Just(Event::Tick),
        1 => Just(Event::Restart),
        1 => (select(&CALLS[..]), 0_usize..3).prop_map(|(call, skip)| Event::Fails(call, skip)),
        1 => (select(&CALLS[..]), 0_usize..3, any::<bool>())
            .prop_map(|(call, skip, after)| Event::Dies(call, skip, after)),
    ]
}

/// What is there, as an outsider sees it.
#[derive(Clone, Debug, Default)]
struct Model {
    interfaces: BTreeMap<&'static str, (bool, bool)>,
    described: BTreeMap<&'static str, u16>,
}

impl Model {
    fn fits(&self, selector: &str, interface: &str) -> bool {
        let (altname, address) = self.interfaces.get(interface).copied().unwrap_or_default();
        match selector.parse().unwrap() {
            InterfaceSelector::Name(name) => name.as_str() == interface,
            InterfaceSelector::Glob(glob) => glob.matches(interface),
            InterfaceSelector::AltName(_) => altname,
            InterfaceSelector::Mac(_) => address,
            InterfaceSelector::DefaultRoute => false,
        }
    }

    /// What an interface is to run.
    fn wanted(&self, interface: &str) -> Option<u16> {
        let rank = |selector: &str| selector.parse::<InterfaceSelector>().unwrap().specificity();
        let fitting = self.described.iter().filter(|(selector, _)| self.fits(selector, interface));
        fitting.max_by_key(|(selector, _)| rank(selector)).map(|(_, port)| *port)
    }
}

fn key(interface: &str) -> ChainKey {
    ChainKey { netns: None, interface: interface.parse().unwrap(), hook: Hook::Xdp }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_each_interface_runs_what_is_most_specific(
        events in prop::collection::vec(event(), 1..40),
    ) {
        let world = World::new();
        let mut model = Model::default();
        for interface in ["eth0", "eth1"] {
            model.interfaces.insert(interface, (false, false));
        }
        let mut engine = Some(world.start());
        let name = |text: &str| -> InterfaceName { text.parse().unwrap() };
        for event in events {
            let loader = engine.take().unwrap_or_else(|| {
                world.kernel.clear_faults();
                world.start()
            });
            let alive = match event {
                Event::Apply(what, port) => until_death(|| {
                    let asked = document(&[chain(what, &[("a", "block", &[port])])]);
                    // A selector whose every interface failed is unchanged, whatever else was done.
                    let changed = |reply: ApplyReply| {
                        reply.selectors.iter().all(|one| one.action != Action::Failed)
                    };
                    if world.apply(&loader, asked).is_ok_and(changed) {
                        model.described.insert(what, port);
                    }
                })
                .is_some(),
                Event::Delete(what) => until_death(|| {
                    let interface = what.parse().unwrap();
                    let request = DeleteRequest { interface, ..deletion(&eth0(), None) };
                    if loader.delete(&request, &options()).is_ok() {
                        model.described.remove(what);
                    }
                })
                .is_some(),
                Event::Comes(interface) => {
                    world.kernel.add_interface(&name(interface));
                    model.interfaces.insert(interface, (false, false));
                    true
                }
                Event::Goes(interface) => {
                    world.kernel.remove_interface(&name(interface));
                    model.interfaces.remove(interface);
                    true
                }
                Event::IsRenamed(from, to) => {
                    if !model.interfaces.contains_key(to)
                        && let Some(what) = model.interfaces.remove(from)
                    {
                        world.kernel.rename_interface(&name(from), &name(to));
                        model.interfaces.insert(to, what);
                    }
                    true
                }
                Event::GetsAltname(interface) => {
                    let unique = model.interfaces.values().all(|(altname, _)| !altname);
                    if let Some(what) = model.interfaces.get_mut(interface).filter(|_| unique) {
                        what.0 = true;
                        let add = |one: &mut canopy_kernel::Interface| one.altnames.push("up".into());
                        world.kernel.change_interface(&name(interface), add);
                    }
                    true
                }
                Event::GetsAddress(interface) => {
                    if let Some(what) = model.interfaces.get_mut(interface) {
                        what.1 = true;
                        let set = |one: &mut canopy_kernel::Interface| {
                            one.mac = Some([2, 0, 0, 0, 0, 0x77]);
                        };
                        world.kernel.change_interface(&name(interface), set);
                    }
                    true
                }
                Event::Tick => until_death(|| loader.tick()).is_some(),
                Event::Restart => false,
                Event::Fails(call, skip) => {
                    world.kernel.inject(call, skip, Fault::Fail);
                    true
                }
                Event::Dies(call, skip, after) => {
                    let fault = if after { Fault::CrashAfter } else { Fault::CrashBefore };
                    world.kernel.inject(call, skip, fault);
                    true
                }
            };
            if alive {
                engine = Some(loader);
            } else {
                drop(loader);
                // What was under way may have come true: ask, as whoever got no answer would.
                world.kernel.clear_faults();
                let restarted = world.start();
                let told = get(&restarted);
                model.described.clear();
                for selector in told.selectors {
                    let text = selector.interface.to_string();
                    let known = SELECTORS.iter().find(|known| **known == text).unwrap();
                    let port = selector.programs[0].config["ports"][0].as_u64().unwrap();
                    model.described.insert(known, u16::try_from(port).unwrap());
                }
                for chain in told.chains.iter().filter(|chain| chain.selector.is_none()) {
                    let text = chain.interface.as_str();
                    let known = INTERFACES.iter().find(|known| **known == text).unwrap();
                    let port = chain.programs[0].config["ports"][0].as_u64().unwrap();
                    model.described.insert(known, u16::try_from(port).unwrap());
                }
                engine = Some(restarted);
            }
        }

        world.kernel.clear_faults();
        let engine = engine.unwrap_or_else(|| world.start());
        for _ in 0..4 {
            wait(60);
            engine.tick();
        }
        let told = get(&engine);
        for interface in INTERFACES {
            let wanted = model.wanted(interface).filter(|_| model.interfaces.contains_key(interface));
            let chain = told.chains.iter().find(|chain| chain.interface.as_str() == interface);
            let ports = chain
                .filter(|chain| chain.state == ChainState::Active)
                .map(|chain| chain.programs[0].config["ports"].clone());
            prop_assert_eq!(ports, wanted.map(|port| json!([port])), "{} {:?}", interface, model);
            let runs = world.kernel.running(&key(interface)).is_some();
            let away = chain.is_some_and(|chain| chain.state == ChainState::Pending);
            prop_assert!(runs == wanted.is_some() || away, "{} {:?}", interface, model);
        }
        // At rest nothing is touched, and nothing is kept that nobody needs.
        world.changing_calls();
        engine.tick();
        prop_assert_eq!(world.changing_calls(), []);
        let needed: BTreeSet<_> =
            told.chains.iter().map(|chain| chain.interface.to_string()).collect();
        for interface in INTERFACES {
            let most = usize::from(needed.contains(interface));
            prop_assert!(world.kernel.pinned(&key(interface)).len() <= most, "{}", interface);
        }
    }
}
