//! Chains in other network namespaces, judged by packets, by the kernel's ids and by foreign tools.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a failure is a panic"
)]

use canopy_api::{
    Code, Hook, Netns as Named,
    wire::{Action, ApplyReply, ChainState, ChainStatus, DeleteRequest, GetRequest},
};
use canopy_kernel::Kernel as _;
use canopy_kernel_aya::sys;
use canopy_kernel_tests::engine::{Host, Loader, options};
use canopy_test_support::{
    netns::{NamedNetns, Netns},
    pair::{HOST_LINK, PEER_IP, Pair},
    traffic::ping,
    wait_for,
};
use nix::net::if_::if_nametoindex;
use serde_json::{Value, json};
use std::time::Duration;

/// A host, and a namespace with a name, which has an interface of the same name as the host has.
struct World {
    host: Host,
    named: NamedNetns,
    other: Pair,
}

impl World {
    fn new() -> Self {
        let (named, netns) = NamedNetns::new().unwrap();
        let other = Pair { host: netns, peer: Netns::new().unwrap() };
        other.plug().unwrap();
        Self { host: Host::new(), named, other }
    }

    fn name(&self) -> &str {
        self.named.name()
    }

    /// Answers to three pings, of the host's interface and of the other one.
    fn pings(&self) -> (u32, u32) {
        (self.host.pings(), ping(&self.other, 3).unwrap())
    }

    fn tick(&self, loader: &Loader) {
        assert_eq!(self.host.here(|| loader.tick()), [], "nobody tampered");
    }

    fn chains(&self, loader: &Loader) -> Vec<ChainStatus> {
        self.host.here(|| loader.get(&GetRequest::default())).unwrap().chains
    }

    /// The chain on an interface's XDP hook, in the named namespace or the loader's own.
    fn chain(&self, loader: &Loader, named: bool, interface: &str) -> ChainStatus {
        self.find(loader, named, interface, Hook::Xdp).unwrap()
    }

    fn find(
        &self,
        loader: &Loader,
        named: bool,
        interface: &str,
        hook: Hook,
    ) -> Result<ChainStatus, Vec<ChainStatus>> {
        let netns = named.then(|| self.name().to_owned());
        let chains = self.chains(loader);
        let found = chains.iter().find(|chain| {
            chain.netns.as_ref().map(ToString::to_string) == netns
                && chain.interface.as_str() == interface
                && chain.hook == hook
        });
        found.cloned().ok_or(chains)
    }

    /// Removes a chain of the named namespace.
    fn delete(&self, loader: &Loader, interface: &str, hook: Hook) -> ApplyReply {
        let request = DeleteRequest {
            netns: Some(self.name().parse().unwrap()),
            interface: interface.parse().unwrap(),
            hook,
            program: None,
            expected_generation: None,
            dry_run: false,
        };
        self.host.here(|| loader.delete(&request, &options())).unwrap()
    }
}

/// A firewall that drops everything from the peer.
fn firewall(netns: Option<&str>, interface: &str) -> Value {
    let programs = json!([{ "name": "one", "package": "firewall",
                            "config": { "blocked": [PEER_IP.to_string()] } }]);
    json!({ "netns": netns, "interface": interface, "hook": "xdp", "programs": programs })
}

/// A meter that lets everything pass.
fn meter(netns: Option<&str>, hook: Hook, tc_mode: Option<&str>) -> Value {
    let programs = json!([{ "name": "meter", "package": "flowmeter" }]);
    json!({ "netns": netns, "interface": HOST_LINK, "hook": hook, "tc_mode": tc_mode,
            "programs": programs })
}

/// Something that lets packets pass.
fn on(interface: &str, netns: Option<&str>, hook: Hook) -> Value {
    let package = if hook == Hook::Xdp { "ratelimit" } else { "flowmeter" };
    let programs = json!([{ "name": "one", "package": package }]);
    json!({ "netns": netns, "interface": interface, "hook": hook, "programs": programs })
}

/// The program on an interface's hook, by the interface.
fn runs_on(netns: &Netns, interface: &str, hook: Hook) -> Option<u32> {
    if hook == Hook::Xdp {
        let seen = netns.exec(&["ip", "-j", "link", "show", "dev", interface]).unwrap();
        let links: Value = serde_json::from_str(&seen).unwrap();
        return links[0]["xdp"]["prog"]["id"].as_u64().map(|id| u32::try_from(id).unwrap());
    }
    let listed = netns.run(|| Ok(sys::tcx_query(if_nametoindex(interface)?, false)?)).unwrap();
    listed.first().map(|program| program.prog_id)
}

fn ids(status: &ChainStatus) -> (u32, u32, u64) {
    let observed = status.observed.as_ref().unwrap_or_else(|| panic!("{status:?}"));
    (observed.program_id, observed.link_id, observed.generation)
}

/// Whether an interface has an XDP program, by `ip`.
fn has_xdp(netns: &Netns, interface: &str) -> bool {
    netns.exec(&["ip", "link", "show", "dev", interface]).unwrap().contains("prog/xdp")
}

#[test]
fn a_chain_in_a_namespace_is_there_and_nowhere_else() {
    let world = World::new();
    let loader = world.host.start();
    let name = world.name();
    let document = json!([
        firewall(Some(name), HOST_LINK),
        meter(Some(name), Hook::TcEgress, None),
        meter(Some(name), Hook::TcIngress, Some("clsact")),
    ]);
    let reply = world.host.apply(&loader, &document).unwrap();
    assert!(reply.chains.iter().all(|chain| chain.action == Action::Created), "{reply:#?}");
    assert_eq!(world.pings(), (3, 0));
    assert!(has_xdp(&world.other.host, HOST_LINK));
    assert!(!has_xdp(&world.host.pair.host, HOST_LINK));
    let there = world.chain(&loader, true, HOST_LINK);
    assert_eq!((there.state, there.programs[0].exits["drop"]), (ChainState::Active, 3));

    // The same interface, by its name, in the loader's own namespace: another chain.
    let own = json!([meter(None, Hook::TcIngress, None)]);
    assert_eq!(world.host.apply(&loader, &own).unwrap().chains[0].action, Action::Created);
    assert_eq!(world.chains(&loader).len(), 4);
    let again = world.host.apply(&loader, &document).unwrap();
    assert!(again.chains.iter().all(|chain| chain.action == Action::Unchanged), "{again:#?}");

    // A loader that was away finds all as they are, and so do packets.
    let before: Vec<_> = world.chains(&loader).iter().map(ids).collect();
    drop(loader);
    assert_eq!(world.pings(), (3, 0));
    let loader = world.host.start();
    world.tick(&loader);
    assert_eq!(world.chains(&loader).iter().map(ids).collect::<Vec<_>>(), before);
    let there = world.chain(&loader, true, HOST_LINK);
    assert_eq!(there.programs[0].exits["drop"], 6);

    // What somebody detaches there is restored.
    let link = ids(&there).1.to_string();
    world.host.exec(&["bpftool", "link", "detach", "id", &link]);
    assert_eq!(world.pings(), (3, 3));
    assert_eq!(world.host.here(|| loader.tick()).len(), 1);
    assert_eq!(world.pings(), (3, 0));

    for hook in Hook::ALL {
        assert_eq!(world.delete(&loader, HOST_LINK, hook).chains[0].action, Action::Removed);
    }
    assert_eq!(world.pings(), (3, 3));
    let listed = world.other.host.exec(&["tc", "qdisc", "show", "dev", HOST_LINK]).unwrap();
    assert!(!listed.contains("clsact"), "{listed}");
    assert_eq!(world.chains(&loader).len(), 1, "the own one is left");
    assert!(!world.host.bpffs.path().join("@netns").exists(), "nothing of it stays pinned");
}

#[test]
fn what_an_interface_is_is_asked_in_its_own_namespace() {
    let world = World::new();
    let loader = world.host.start();
    let name = world.name();
    let (own, other) = (&world.host.pair.host, &world.other.host);
    let link = |netns: &Netns| -> Value {
        let seen = netns.exec(&["ip", "-j", "link", "show", "dev", HOST_LINK]).unwrap();
        serde_json::from_str(&seen).unwrap()
    };
    let name_also = |netns: &Netns, altname: &str| {
        let add = ["ip", "link", "property", "add", "dev", HOST_LINK, "altname", altname];
        netns.exec(&add).unwrap();
    };
    name_also(own, "uplink0");
    name_also(other, "uplink0");
    name_also(own, "here0");
    let address = link(other)[0]["address"].as_str().unwrap().to_owned();
    assert_eq!(link(own)[0]["address"], address, "the case at hand: both have it");
    for (selector, found) in [
        (format!("mac:{address}"), 1),
        ("altname:uplink0".to_owned(), 1),
        // That is the host's own interface.
        ("altname:here0".to_owned(), 0),
    ] {
        let reply = world.host.apply(&loader, &json!([firewall(Some(name), &selector)])).unwrap();
        assert_eq!(reply.selectors[0].interfaces.len(), found, "{selector}: {reply:#?}");
        assert_eq!(world.pings(), (3, if found == 1 { 0 } else { 3 }), "{selector}");
        assert!(!has_xdp(own, HOST_LINK), "{selector}");
        world.tick(&loader);
        let removed = world.delete(&loader, &selector, Hook::Xdp);
        assert_eq!(removed.selectors[0].action, Action::Removed);
        assert_eq!((world.pings(), has_xdp(other, HOST_LINK)), ((3, 3), false), "{selector}");
    }
}

#[test]
fn a_namespace_made_anew_under_its_name_is_another_one() {
    let mut world = World::new();
    let name = world.name().to_owned();
    let loader = world.host.start();
    let document = json!([firewall(Some(&name), HOST_LINK)]);
    world.host.apply(&loader, &document).unwrap();
    let index = |netns: &Netns| netns.run(|| Ok(if_nametoindex(HOST_LINK)?)).unwrap();
    let (old, link) = (index(&world.other.host), ids(&world.chain(&loader, true, HOST_LINK)).1);

    // The old one lives on without the name, with its interface and our link on it.
    world.named.delete().unwrap();
    world.tick(&loader);
    let status = world.chain(&loader, true, HOST_LINK);
    assert_eq!(status.state, ChainState::Pending);
    assert_eq!(
        status.reason.unwrap(),
        format!("there is no network namespace {name}: the chain waits for it")
    );
    let netns = world.named.add().unwrap();
    let anew = Pair { host: netns, peer: Netns::new().unwrap() };
    anew.plug().unwrap();
    assert_eq!(index(&anew.host), old, "the case at hand: the number of the interface is the same");
    world.tick(&loader);
    assert_eq!((ping(&anew, 3).unwrap(), has_xdp(&anew.host, HOST_LINK)), (0, true));
    let status = world.chain(&loader, true, HOST_LINK);
    assert_eq!((status.state, status.restored), (ChainState::Active, 0));
    assert_ne!(ids(&status).1, link);
    // The chain is where its name leads; what it left is as before it.
    assert_eq!(world.pings(), (3, 3));

    // And gone for good, with the links in it: nothing of ours keeps it.
    world.named.delete().unwrap();
    drop(anew);
    world.tick(&loader);
    let link = sys::fd_by_id(sys::Kind::Link, ids(&status).1).unwrap();
    wait_for(Duration::from_secs(20), "the namespace to be gone", || {
        match sys::link_info(&link).unwrap().ifindex {
            Some(0) => Ok(()),
            index => Err(index),
        }
    })
    .unwrap();
    world.tick(&loader);
    assert_eq!(world.chain(&loader, true, HOST_LINK).state, ChainState::Pending);
    assert_eq!(world.delete(&loader, HOST_LINK, Hook::Xdp).chains[0].action, Action::Removed);
    assert_eq!((world.chains(&loader).len(), world.host.pins()), (0, 0));
}

#[test]
fn a_namespace_that_is_not_there_keeps_nobody_waiting() {
    let mut world = World::new();
    let name = world.name().to_owned();
    let loader = world.host.start();
    world.named.delete().unwrap();
    let document = json!([firewall(Some(&name), HOST_LINK), firewall(None, HOST_LINK)]);
    let reply = world.host.apply(&loader, &document).unwrap();
    let [own, missing] = reply.chains.as_slice() else { panic!("{reply:#?}") };
    assert_eq!(own.action, Action::Created);
    let error = missing.error.as_ref().unwrap();
    assert_eq!((error.code, error.path.as_str()), (Code::NotFound, "document.chains[0].netns"));
    assert!(error.message.contains(&name), "{error:?}");
    assert_eq!(world.pings(), (0, 3));

    // What stands for whatever comes is kept, and has its chain as soon as it comes.
    let document = json!([firewall(Some(&name), "v*")]);
    let reply = world.host.apply(&loader, &document).unwrap();
    assert_eq!((reply.selectors[0].action, reply.chains.len()), (Action::Created, 0));
    let netns = world.named.add().unwrap();
    world.other = Pair { host: netns, peer: Netns::new().unwrap() };
    world.other.plug().unwrap();
    world.tick(&loader);
    assert_eq!(world.pings(), (0, 0));
    assert_eq!(world.chain(&loader, true, HOST_LINK).state, ChainState::Active);
}

#[test]
fn a_chain_goes_along_with_an_interface_that_is_moved_to_where_it_is_wanted() {
    for hook in [Hook::Xdp, Hook::TcIngress] {
        let world = World::new();
        let name = world.name();
        let loader = world.host.start();
        let (here, there) = (&world.host.pair.host, &world.other.host);
        here.exec(&["ip", "link", "add", "w0", "type", "veth", "peer", "name", "w1"]).unwrap();
        let document = json!([on("w0", None, hook), on("w*", Some(name), hook)]);
        world.host.apply(&loader, &document).unwrap();
        let own = || world.find(&loader, false, "w0", hook).unwrap();
        let moved = |interface: &str| world.find(&loader, true, interface, hook).unwrap();
        let (link, program) = (ids(&own()).1, ids(&own()).0);

        here.exec(&["ip", "link", "set", "w0", "netns", name]).unwrap();
        assert_eq!(
            runs_on(there, "w0", hook),
            Some(program),
            "the kernel leaves it on what is moved"
        );
        world.tick(&loader);
        // In the same link, so that no packet passed it.
        assert_eq!((moved("w0").state, ids(&moved("w0")).1), (ChainState::Active, link));
        assert_eq!(runs_on(there, "w0", hook), Some(ids(&moved("w0")).0));
        assert_eq!(own().state, ChainState::Pending);

        // Renamed there, as anywhere.
        for (from, to) in [("w0", "w5"), ("w5", "w0")] {
            there.exec(&["ip", "link", "set", from, "name", to]).unwrap();
            world.tick(&loader);
            assert_eq!((moved(to).state, ids(&moved(to)).1), (ChainState::Active, link), "{to}");
        }

        there.exec(&["ip", "link", "set", "w0", "netns", &here.path()]).unwrap();
        world.tick(&loader);
        world.tick(&loader);
        assert_eq!((own().state, own().restored, ids(&own()).1), (ChainState::Active, 0, link));
        assert_eq!(runs_on(here, "w0", hook), Some(ids(&own()).0));
        assert_eq!(world.chains(&loader).len(), 1, "nothing fits the pattern any more");
    }
}

#[test]
fn one_place_under_two_names_has_one_chain() {
    let world = World::new();
    let loader = world.host.start();
    let own = world.host.pair.host.path();
    let path = format!("/run/netns/{}", world.name());
    let tc = |netns: Option<&str>, mode: &str| meter(netns, Hook::TcIngress, Some(mode));
    let mut cases = vec![
        (firewall(Some(world.name()), HOST_LINK), firewall(Some(&path), HOST_LINK)),
        (firewall(None, HOST_LINK), firewall(Some(&own), HOST_LINK)),
    ];
    for (one, other) in [("tcx", "tcx"), ("clsact", "clsact"), ("tcx", "clsact"), ("clsact", "tcx")]
    {
        cases.push((tc(Some(world.name()), one), tc(Some(&path), other)));
    }
    for (first, second) in cases {
        let same = |chain: &ChainStatus| {
            let observed = chain.observed.as_ref().unwrap();
            (chain.key(), observed.program_id, observed.generation, observed.mode.clone())
        };
        world.host.apply(&loader, &json!([first])).unwrap();
        let before: Vec<_> = world.chains(&loader).iter().map(same).collect();
        let error = world.host.apply(&loader, &json!([second])).unwrap_err().into_api();
        assert_eq!(error.code, Code::Conflict, "{error:?}");
        assert!(error.message.contains("the same place"), "{error:?}");
        world.tick(&loader);
        assert_eq!(world.chains(&loader).iter().map(same).collect::<Vec<_>>(), before);
        let mut gone = first;
        gone["programs"] = json!([]);
        world.host.apply(&loader, &json!([gone])).unwrap();
    }
    // Both at once: one of them has it.
    let both = json!([firewall(Some(&path), HOST_LINK), firewall(Some(world.name()), HOST_LINK)]);
    let reply = world.host.apply(&loader, &both).unwrap();
    let actions: Vec<_> = reply.chains.iter().map(|chain| chain.action).collect();
    assert_eq!(actions, [Action::Created, Action::Failed]);
    assert_eq!(world.pings(), (3, 0));
}

#[test]
fn a_namespace_is_found_by_path_and_by_process() {
    let world = World::new();
    let loader = world.host.start();
    let path = format!("/run/netns/{}", world.name());
    let mut sleeper = world
        .other
        .host
        .run(|| Ok(std::process::Command::new("sleep").arg("60").spawn()?))
        .unwrap();
    for netns in [path, format!("pid:{}", sleeper.id())] {
        world.host.apply(&loader, &json!([firewall(Some(&netns), HOST_LINK)])).unwrap();
        assert_eq!(world.pings(), (3, 0), "{netns}");
        // Another name of the same namespace, and not of the loader's own.
        let (one, named) = (netns.parse().ok(), world.name().parse().ok());
        let same =
            |a: Option<&Named>| world.host.here(|| loader.kernel().same_netns(a, named.as_ref()));
        assert!(same(one.as_ref()) && !same(None), "{netns}");
        let empty =
            json!([{ "netns": netns, "interface": HOST_LINK, "hook": "xdp", "programs": [] }]);
        world.host.apply(&loader, &empty).unwrap();
        assert_eq!(world.pings(), (3, 3), "{netns}");
    }
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    // What is no namespace is told as such, and not opened.
    for (path, told) in [("/dev/null", "is no namespace"), ("/proc/self/ns/mnt", "another kind")] {
        let document = json!([firewall(Some(path), HOST_LINK)]);
        let error = world.host.apply(&loader, &document).unwrap_err().into_api();
        assert_eq!(error.code, Code::NotFound, "{error:?}");
        assert!(error.message.contains(told), "{error:?}");
    }
}
