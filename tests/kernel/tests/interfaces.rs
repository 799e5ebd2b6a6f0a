//! Interfaces that come, go, are renamed and moved, and those that lie on others: who has which chain,
//! judged by packets, by the kernel's ids and by foreign tools.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "test code: a failure is a panic"
)]

use canopy_api::{
    ChainKey, Hook, XdpMode,
    wire::{ChainState, ChainStatus, DeleteRequest, GetRequest},
};
use canopy_kernel::{Expect, Kernel as _, Member};
use canopy_kernel_aya::AyaKernel;
use canopy_kernel_tests::{
    chain::{member, object},
    engine::{Host, Loader, options},
    live::Live,
};
use canopy_test_support::{
    netns::Netns,
    packet::Udp4,
    pair::{HOST_LINK, HOST_MAC, PEER_IP, PEER_LINK},
    traffic::{FrameSender, send_frames},
    wait_for,
};
use nix::net::if_::if_nametoindex;
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs, time::Duration};

/// What is on an interface now, `None` for no chain.
fn chain_on(host: &Host, loader: &Loader, interface: &str, hook: Hook) -> Option<ChainStatus> {
    let reply = host.here(|| loader.get(&GetRequest::default())).unwrap();
    let mut chains = reply.chains.into_iter();
    chains.find(|chain| chain.interface.as_str() == interface && chain.hook == hook)
}

fn ids(status: &ChainStatus) -> (u32, u32, u64) {
    let observed = status.observed.as_ref().unwrap_or_else(|| panic!("{status:?}"));
    (observed.program_id, observed.link_id, observed.generation)
}

/// A firewall that drops everything from the peer.
fn firewall(selector: &str) -> Value {
    let programs = json!([{ "name": "one", "package": "firewall",
                            "config": { "blocked": [PEER_IP.to_string()] } }]);
    json!({ "interface": selector, "hook": "xdp", "programs": programs })
}

/// A meter that lets everything pass.
fn meter(selector: &str, hook: Hook) -> Value {
    let programs = json!([{ "name": "one", "package": "flowmeter" }]);
    json!({ "interface": selector, "hook": hook, "programs": programs })
}

fn ip(host: &Host, words: &str) -> String {
    host.exec(&["ip"].into_iter().chain(words.split(' ')).collect::<Vec<_>>())
}

fn tick(host: &Host, loader: &Loader) {
    assert_eq!(host.here(|| loader.tick()), [], "nobody tampered");
}

/// Which interfaces have an XDP program, by `ip`.
fn with_xdp(host: &Host) -> BTreeSet<String> {
    let listed = ip(host, "-oneline link show");
    let with = listed.lines().filter(|line| line.contains("xdp"));
    with.filter_map(|line| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned())).collect()
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

#[test]
fn a_pattern_catches_what_is_plugged_in() {
    let host = Host::new();
    let loader = host.start();
    let reply = host.apply(&loader, &json!([firewall("v*")])).unwrap();
    assert_eq!(reply.chains.len(), 1);
    assert_eq!(host.pings(), 0);
    ip(&host, "link add v7 type veth peer name w7");
    tick(&host, &loader);
    assert_eq!(with_xdp(&host), names([HOST_LINK, "v7"]));
    let status = chain_on(&host, &loader, "v7", Hook::Xdp).unwrap();
    assert_eq!((status.state, status.restored), (ChainState::Active, 0));
    assert_eq!(status.programs[0].runs, 0, "the packets were the other interface's");
    assert_eq!(chain_on(&host, &loader, HOST_LINK, Hook::Xdp).unwrap().programs[0].runs, 3);

    // A loader that was away finds both as they are.
    let before = ids(&status);
    drop(loader);
    let loader = host.start();
    tick(&host, &loader);
    assert_eq!(ids(&chain_on(&host, &loader, "v7", Hook::Xdp).unwrap()), before);
    ip(&host, "link delete v7");
    tick(&host, &loader);
    assert_eq!(chain_on(&host, &loader, "v7", Hook::Xdp), None);
    let request = DeleteRequest {
        netns: None,
        interface: "v*".parse().unwrap(),
        hook: Hook::Xdp,
        program: None,
        expected_generation: None,
        dry_run: false,
    };
    host.here(|| loader.delete(&request, &options())).unwrap();
    assert_eq!((with_xdp(&host), host.pins(), host.pings()), (names([]), 0, 3));
}

#[test]
fn an_interface_is_found_by_address_altname_and_default_route() {
    let host = Host::new();
    let loader = host.start();
    let mac = HOST_MAC.map(|byte| format!("{byte:02x}")).join(":");
    let chains = json!([
        meter(&format!("mac:{mac}"), Hook::TcIngress),
        meter("altname:uplink-of-the-rack", Hook::TcEgress),
        firewall("default-route"),
    ]);
    let reply = host.apply(&loader, &chains).unwrap();
    let found: Vec<_> = reply.selectors.iter().map(|s| s.interfaces.len()).collect();
    assert_eq!(found, [1, 0, 0], "{reply:?}");
    assert_eq!(host.pings(), 3);
    assert_eq!(host.status(&loader, Hook::TcIngress).programs[0].runs, 3);

    ip(&host, &format!("link property add dev {HOST_LINK} altname uplink-of-the-rack"));
    ip(&host, &format!("route add default via {PEER_IP} dev {HOST_LINK} metric 100"));
    ip(&host, "link add w0 type veth peer name w1");
    ip(&host, "link set w0 up");
    ip(&host, "address add 10.99.0.1/24 dev w0");
    ip(&host, "route add default via 10.99.0.2 dev w0 metric 200");
    tick(&host, &loader);
    for hook in Hook::ALL {
        let status = chain_on(&host, &loader, HOST_LINK, hook).unwrap();
        assert_eq!(status.state, ChainState::Active, "{status:?}");
    }
    assert_eq!(with_xdp(&host), names([HOST_LINK]));
    // The better route goes, the other one takes its place; with none at all it stays there.
    ip(&host, &format!("route delete default dev {HOST_LINK}"));
    tick(&host, &loader);
    assert_eq!(with_xdp(&host), names(["w0"]));
    ip(&host, "route delete default dev w0");
    tick(&host, &loader);
    assert_eq!(with_xdp(&host), names(["w0"]));
    // IPv6's counts where IPv4 has none.
    host.here(|| fs::write("/proc/sys/net/ipv6/conf/w1/disable_ipv6", "0")).unwrap();
    ip(&host, "link set w1 up");
    ip(&host, "-6 route add default dev w1 metric 5");
    tick(&host, &loader);
    assert_eq!(with_xdp(&host), names(["w1"]));
    ip(&host, "route add default via 10.99.0.2 dev w0 metric 200");
    tick(&host, &loader);
    assert_eq!(with_xdp(&host), names(["w0"]));
    ip(&host, &format!("link property del dev {HOST_LINK} altname uplink-of-the-rack"));
    tick(&host, &loader);
    assert_eq!(chain_on(&host, &loader, HOST_LINK, Hook::TcEgress), None);
    assert_eq!(host.pings(), 3);
    assert_eq!(host.status(&loader, Hook::TcIngress).programs[0].runs, 6, "the same address");
}

#[test]
fn routes_are_listed_when_something_changed_and_never_missed() {
    let host = Host::new();
    let kernel = AyaKernel::new(host.bpffs.path()).unwrap();
    let led = || host.here(|| kernel.default_route(None)).unwrap();
    let lists = || kernel.route_lists();
    let index = |name: &'static str| host.here(|| if_nametoindex(name).unwrap());
    ip(&host, "link add w0 type veth peer name w1");
    ip(&host, "link set w0 up");
    ip(&host, "link set w1 up");
    ip(&host, "address add 10.99.0.1/24 dev w0");
    assert_eq!(led(), [0_u32; 0]);
    let default = "route add default via 10.99.0.2 dev w0";
    ip(&host, default);
    assert_eq!(led(), [index("w0")]);
    // Links may come up late: until their word is in, there is something to look at.
    wait_for(Duration::from_secs(10), "the host to be at rest", || {
        let before = lists();
        led();
        if lists() == before { Ok(()) } else { Err(before) }
    })
    .unwrap();
    let before = lists();
    for _ in 0..100 {
        assert_eq!(led(), [index("w0")]);
    }
    assert_eq!(lists(), before, "nothing changed");
    // The kernel drops routes with a link or an address, and does not say so.
    for (gone, back) in [
        ("link set w0 down", "link set w0 up"),
        ("address del 10.99.0.1/24 dev w0", "address add 10.99.0.1/24 dev w0"),
        ("route delete default", "link set w0 up"),
    ] {
        ip(&host, gone);
        assert_eq!(led(), [0_u32; 0], "{gone}");
        ip(&host, back);
        ip(&host, default);
        assert_eq!(led(), [index("w0")], "{back}");
    }
    // Another namespace has other routes.
    assert_eq!(host.pair.peer.run(|| Ok(kernel.default_route(None)?)).unwrap(), [0_u32; 0]);
    assert_eq!(led(), [index("w0")]);
}

#[test]
fn a_renamed_interface_keeps_link_programs_and_counts() {
    for mode in ["xdp", "tcx", "clsact"] {
        let host = Host::new();
        let loader = host.start();
        let mac = HOST_MAC.map(|byte| format!("{byte:02x}")).join(":");
        let hook = if mode == "xdp" { Hook::Xdp } else { Hook::TcIngress };
        let mut chain = if hook == Hook::Xdp {
            firewall(&format!("mac:{mac}"))
        } else {
            let mut chain = meter(&format!("mac:{mac}"), hook);
            chain["tc_mode"] = mode.into();
            chain
        };
        let pings = if hook == Hook::Xdp { 0 } else { 3 };
        host.apply(&loader, &json!([chain])).unwrap();
        assert_eq!(host.pings(), pings);
        let before = ids(&chain_on(&host, &loader, HOST_LINK, hook).unwrap());

        ip(&host, &format!("link set {HOST_LINK} name wan0"));
        assert_eq!(host.pings(), pings, "attached all the time");
        tick(&host, &loader);
        assert_eq!(chain_on(&host, &loader, HOST_LINK, hook), None);
        let after = chain_on(&host, &loader, "wan0", hook).unwrap();
        assert_eq!(ids(&after), before, "{mode}: nothing was attached anew");
        assert_eq!((after.state, after.restored), (ChainState::Active, 0));
        assert_eq!(after.programs[0].runs, 6);
        // It can be changed under its new name, by a new loader as well.
        drop(loader);
        let loader = host.start();
        tick(&host, &loader);
        assert_eq!(ids(&chain_on(&host, &loader, "wan0", hook).unwrap()), before);
        chain["programs"][0]["priority"] = 7.into();
        host.apply(&loader, &json!([chain])).unwrap();
        assert_eq!(host.pings(), pings);
        let changed = chain_on(&host, &loader, "wan0", hook).unwrap();
        assert_eq!((changed.programs[0].runs, changed.programs[0].priority), (9, 7));
        chain["programs"] = json!([]);
        host.apply(&loader, &json!([chain])).unwrap();
        assert_eq!((host.pins(), host.pings()), (0, 3));
        let qdiscs = host.exec(&["tc", "qdisc", "show", "dev", "wan0"]);
        assert!(!qdiscs.contains("clsact"), "{qdiscs}");
    }
}

#[test]
fn a_chain_by_name_stays_with_its_name() {
    let host = Host::new();
    let loader = host.start();
    host.apply(&loader, &json!([firewall(HOST_LINK)])).unwrap();
    let before = ids(&host.status(&loader, Hook::Xdp));
    ip(&host, &format!("link set {HOST_LINK} name wan0"));
    tick(&host, &loader);
    let status = host.status(&loader, Hook::Xdp);
    assert_eq!(status.state, ChainState::Pending);
    assert!(status.reason.as_ref().unwrap().contains("\"wan0\" now"), "{status:?}");
    assert_eq!(host.pings(), 0, "attached still: nothing is let through by a rename");
    ip(&host, &format!("link set wan0 name {HOST_LINK}"));
    tick(&host, &loader);
    let status = host.status(&loader, Hook::Xdp);
    assert_eq!((status.state, ids(&status)), (ChainState::Active, before));

    // Applied to the new name it takes the link over: one exchange, no gap.
    ip(&host, &format!("link set {HOST_LINK} name wan0"));
    host.apply(&loader, &json!([firewall("wan0")])).unwrap();
    let taken = chain_on(&host, &loader, "wan0", Hook::Xdp).unwrap();
    assert_eq!((taken.state, ids(&taken).1), (ChainState::Active, before.1));
    let left = chain_on(&host, &loader, HOST_LINK, Hook::Xdp).unwrap();
    assert!(!left.reason.as_ref().unwrap().contains("wan0"), "{left:?}");
    let request = DeleteRequest {
        netns: None,
        interface: HOST_LINK.parse().unwrap(),
        hook: Hook::Xdp,
        program: None,
        expected_generation: None,
        dry_run: false,
    };
    host.here(|| loader.delete(&request, &options())).unwrap();
    tick(&host, &loader);
    assert_eq!((with_xdp(&host), host.pings()), (names(["wan0"]), 0));
}

#[test]
fn two_interfaces_that_change_names_get_each_others_chain() {
    let host = Host::new();
    let loader = host.start();
    ip(&host, "link add w0 type veth peer name w1");
    let open = json!({ "interface": "w0", "hook": "xdp", "programs": [
        { "name": "limit", "package": "ratelimit" } ]});
    host.apply(&loader, &json!([firewall(HOST_LINK), open])).unwrap();
    for (from, to) in [(HOST_LINK, "tmp"), ("w0", HOST_LINK), ("tmp", "w0")] {
        ip(&host, &format!("link set {from} name {to}"));
    }
    assert_eq!(host.pings(), 0, "names changed, chains did not yet");
    // Each hangs where the other has to go.
    wait_for(Duration::from_secs(10), "both chains to be where their names are", || {
        host.here(|| loader.tick());
        let state = |interface| chain_on(&host, &loader, interface, Hook::Xdp).unwrap().state;
        match (state(HOST_LINK), state("w0")) {
            (ChainState::Active, ChainState::Active) => Ok(()),
            other => Err(other),
        }
    })
    .unwrap();
    assert_eq!(host.pings(), 3, "the pair's end is called w0 now, and has that chain");
    assert_eq!(chain_on(&host, &loader, "w0", Hook::Xdp).unwrap().programs[0].runs, 3);
}

#[test]
fn an_interface_in_another_namespace_is_told_and_taken_back() {
    for hook in [Hook::Xdp, Hook::TcIngress] {
        let host = Host::new();
        let loader = host.start();
        ip(&host, "link add w0 type veth peer name w1");
        let chain = if hook == Hook::Xdp { firewall("w0") } else { meter("w0", hook) };
        host.apply(&loader, &json!([chain])).unwrap();
        let other = Netns::new().unwrap();
        ip(&host, &format!("link set w0 netns {}", other.path()));
        tick(&host, &loader);
        let status = chain_on(&host, &loader, "w0", hook).unwrap();
        assert_eq!(status.state, ChainState::Pending);
        let reason = status.reason.unwrap();
        assert!(reason.contains("no interface \"w0\""), "{reason}");
        assert!(reason.contains("in another network namespace"), "{hook}: {reason}");
        // Back again it is the same, and has its chain.
        let here = host.pair.host.path();
        other.exec(&["ip", "link", "set", "w0", "netns", &here]).unwrap();
        host.here(|| loader.tick());
        let status = chain_on(&host, &loader, "w0", hook).unwrap();
        assert_eq!(status.state, ChainState::Active, "{status:?}");
    }
}

/// Counts what it sees and lets it pass.
fn counter(hook: Hook) -> Member {
    let function = if hook == Hook::Xdp { "xdp_drop_port" } else { "tc_drop_port" };
    // Port 0 is no port.
    member("count", hook, &object("drop_port"), function)
}

/// Attaches a counter.
fn count_on(live: &Live, interface: &str, hook: Hook) -> ChainKey {
    let key = Live::key_on(interface, hook);
    live.prepare(&key, 1, vec![counter(hook)]);
    live.switch(&key, 1, Expect::Nothing).unwrap();
    key
}

fn counted(live: &Live, key: &ChainKey) -> u64 {
    live.kernel.settle().unwrap();
    live.cells(key, 1)[0].runs()
}

/// A kind of interface that lies on another one.
struct Upper {
    kind: &'static str,
    /// Words for `ip`, one command a line; the interface is called `up0`.
    setup: &'static [&'static str],
    /// A frame that arrives at `v0` and is `up0`'s.
    frame: fn(Vec<u8>) -> Vec<u8>,
}

/// A chain on the upper interface counts what is the upper's, beside one on the lower.
fn beside_the_lower_one(upper: &Upper) {
    const SENT: u64 = 20;
    let live = Live::new();
    let ip = |words: &str| {
        let command = ["ip"].into_iter().chain(words.split(' ')).collect::<Vec<_>>();
        live.pair.host.exec(&command).map(drop).map_err(|error| format!("{error:#}"))
    };
    match ip(upper.setup[0]) {
        Ok(()) => {}
        Err(error) if error.contains("Unknown device type") => {
            println!("SKIPPED a {}: this kernel has no such interfaces", upper.kind);
            return;
        }
        Err(error) => panic!("{error}"),
    }
    for words in &upper.setup[1..] {
        ip(words).unwrap();
    }
    for hook in [Hook::Xdp, Hook::TcIngress] {
        let on_upper = count_on(&live, "up0", hook);
        let on_lower = count_on(&live, HOST_LINK, Hook::TcIngress);
        let frame = (upper.frame)(Udp4::to_port(9).frame());
        wait_for(Duration::from_secs(10), "the first frame to arrive", || {
            send_frames(&live.pair, std::slice::from_ref(&frame)).unwrap();
            match counted(&live, &on_upper) {
                0 => Err(0),
                arrived => Ok(arrived),
            }
        })
        .unwrap();
        let before = counted(&live, &on_upper);
        send_frames(&live.pair, &vec![frame; usize::try_from(SENT).unwrap()]).unwrap();
        wait_for(Duration::from_secs(10), "every frame to be counted above", || {
            match counted(&live, &on_upper) - before {
                SENT => Ok(()),
                other => Err(other),
            }
        })
        .unwrap();
        // Each frame is the lower one's as well.
        let both = (counted(&live, &on_upper), counted(&live, &on_lower));
        assert!(both.1 >= both.0, "{}: {both:?}", upper.kind);
        for key in [on_upper, on_lower] {
            live.kernel(|kernel| kernel.detach(&key)).unwrap();
            live.kernel(|kernel| kernel.discard(&key, 1)).unwrap();
        }
    }
}

#[test]
fn a_macvlan_has_a_chain_of_its_own_beside_the_lower_one() {
    beside_the_lower_one(&Upper {
        kind: "macvlan",
        setup: &[
            "link add up0 link v0 address 02:00:00:00:07:01 type macvlan mode private",
            "link set up0 up",
        ],
        frame: |frame| [&[2, 0, 0, 0, 7, 1], &frame[6..]].concat(),
    });
}

#[test]
fn a_bridge_has_a_chain_of_its_own_beside_the_lower_one() {
    beside_the_lower_one(&Upper {
        kind: "bridge",
        setup: &["link add up0 type bridge", "link set v0 master up0", "link set up0 up"],
        // To nobody the bridge knows: it takes a copy up.
        frame: |frame| [&[0xff; 6], &frame[6..]].concat(),
    });
}

#[test]
fn a_vlan_has_a_chain_of_its_own_beside_the_lower_one() {
    beside_the_lower_one(&Upper {
        kind: "vlan",
        setup: &["link add up0 link v0 type vlan id 100", "link set up0 up"],
        frame: |frame| [&frame[..12], &[0x81, 0, 0, 100], &frame[12..]].concat(),
    });
}

#[test]
fn a_bond_has_a_chain_of_its_own_beside_the_lower_one() {
    beside_the_lower_one(&Upper {
        kind: "bond",
        setup: &[
            "link add up0 type bond mode active-backup miimon 10",
            "link set v0 down",
            "link set v0 master up0",
            "link set up0 up",
        ],
        frame: |frame| [&[0xff; 6], &frame[6..]].concat(),
    });
}

#[test]
fn large_packets_of_a_jumbo_interface_are_counted_in_the_driver() {
    let live = Live::new();
    for (netns, link) in [(&live.pair.host, HOST_LINK), (&live.pair.peer, PEER_LINK)] {
        netns.exec(&["ip", "link", "set", link, "mtu", "9000"]).unwrap();
    }
    let key = Live::key(Hook::Xdp);
    let measure = member("measure", Hook::Xdp, &object("xdp_frags"), "measure");
    live.prepare(&key, 1, vec![Member { frags: true, ..measure }]);
    let native =
        live.kernel(|kernel| kernel.switch(&key, 1, XdpMode::Native, Expect::Nothing)).unwrap();
    assert_eq!(native.mode, "native");
    let mut frame = Udp4::to_port(9).frame();
    frame.resize(8_000, 0);
    let sender = live.pair.peer.run(|| FrameSender::new(PEER_LINK)).unwrap();
    assert_eq!(sender.send(&vec![frame; 10]).unwrap(), 10);
    wait_for(Duration::from_secs(10), "every frame to be counted", || match counted(&live, &key) {
        10 => Ok(()),
        other => Err(other),
    })
    .unwrap();
}
