//! Attaching, replacing, detaching, and being tampered with, on real interfaces. What is claimed is
//! judged by packets and by foreign tools.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use canopy_api::{ChainKey, Hook, TcMode, XdpMode, wire::FACTS};
use canopy_kernel::{ChainBuild, Expect, Kernel as _, KernelError, LinkState};
use canopy_kernel_aya::{AyaKernel, sys};
use canopy_kernel_tests::{
    chain::{member, object},
    live::{Live, PORT, dropper},
};
use canopy_test_support::{
    netns::Netns,
    packet::Udp4,
    pair::{HOST_IP, HOST_LINK, PEER_IP, PEER_LINK},
    traffic::{Echo, ping, send_frames, udp_replies},
    wait_for,
};
use std::{collections::BTreeSet, fs, net::Ipv4Addr, os::fd::OwnedFd, time::Duration};

/// What a foreign tool lists on the host end: the ids of programs, by kind.
fn bpftool_net(live: &Live) -> String {
    live.exec(&["bpftool", "net", "show", "dev", HOST_LINK])
}

fn foreign_xdp() -> OwnedFd {
    // r0 = XDP_PASS; exit
    let pass = [0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    let prog = sys::ProgLoad {
        // BPF_XDP: an update takes only a program of the same kind.
        expected_attach_type: 37,
        ..sys::ProgLoad::new(6, &pass, "GPL", "somebody_else")
    };
    sys::prog_load(&prog).unwrap()
}

fn conflict(error: KernelError) -> (String, String) {
    match error {
        KernelError::Conflict { what, remedy } => (what, remedy),
        other => panic!("{other:?}"),
    }
}

#[test]
fn xdp_is_attached_in_the_driver_and_drops() {
    let live = Live::new();
    assert_eq!(ping(&live.pair, 3).unwrap(), 3);
    let chain = live.attach(Hook::Xdp, vec![dropper("drop", Hook::Xdp, PORT)]);
    assert_eq!(ping(&live.pair, 3).unwrap(), 0);

    assert_eq!(chain.mode, "native");
    assert_eq!(chain.generation, 1);
    assert!(chain.verified_instructions > 10 && chain.jited_bytes > 0, "{chain:?}");
    // Small enough to lie inside `main`.
    assert_eq!(chain.functions, [""; 0], "{chain:?}");
    let seen = bpftool_net(&live);
    assert!(seen.contains(&format!("driver id {}", chain.program_id)), "{seen}");
    assert_eq!(live.state(), LinkState::Attached(chain));
}

/// What the kernel says to native XDP on an interface whose driver has none.
const NO_NATIVE: &str = "Operation not supported (os error 95): Underlying driver does not support \
                         XDP in native mode";

#[test]
fn xdp_falls_back_to_generic_and_says_so() {
    let live = Live::new();
    // Loopback's driver has no XDP.
    let key = Live::key_on("lo", Hook::Xdp);
    live.prepare(&key, 1, vec![dropper("drop", Hook::Xdp, PORT)]);
    let lo = Ipv4Addr::LOCALHOST;
    let _echo = Echo::start(&live.pair.host, lo, PORT).unwrap();
    assert_eq!(udp_replies(&live.pair.host, lo, PORT, 3).unwrap(), 3);

    let native =
        live.kernel(|kernel| kernel.switch(&key, 1, XdpMode::Native, Expect::Nothing)).unwrap_err();
    // What the kernel says to it, and no cause besides.
    let KernelError::Unsupported { what, remedy } = native else { panic!("{native:?}") };
    assert!(what.contains(NO_NATIVE), "{what}");
    assert_eq!(remedy, "set `xdp_mode: best` or `generic`");
    assert_eq!(live.state(), LinkState::Detached);

    let chain = live.switch(&key, 1, Expect::Nothing).unwrap();
    assert_eq!(chain.mode, "generic");
    assert_eq!(chain.native_refused.as_deref(), Some(NO_NATIVE));
    assert_eq!(live.state(), LinkState::Attached(chain.clone()));
    assert_eq!(udp_replies(&live.pair.host, lo, PORT, 3).unwrap(), 0);
    let seen = live.exec(&["ip", "-details", "link", "show", "lo"]);
    assert!(seen.contains("xdpgeneric"), "{seen}");
}

#[test]
fn a_refusal_of_native_xdp_is_told_as_the_driver_gave_it() {
    let live = Live::new();
    let key = Live::key(Hook::Xdp);
    let mtu = |netns: &Netns, link, mtu| {
        netns.exec(&["ip", "link", "set", link, "mtu", mtu]).unwrap();
    };
    // It is the other end's that counts.
    mtu(&live.pair.peer, PEER_LINK, "9000");
    live.prepare(&key, 1, vec![dropper("drop", Hook::Xdp, PORT)]);
    let native = |live: &Live| {
        live.kernel(|kernel| kernel.switch(&key, 1, XdpMode::Native, Expect::Nothing))
    };
    let KernelError::Unsupported { what, remedy } = native(&live).unwrap_err() else { panic!() };
    assert!(what.contains("Peer MTU is too large to set XDP"), "{what}");
    assert!(remedy.contains("lower the MTU") && remedy.contains("multi-buffer"), "{remedy}");
    assert_eq!(bpftool_net(&live).matches("somebody").count(), 0);
    assert!(!bpftool_net(&live).contains("driver"), "the question attached a program");

    let chain = live.switch(&key, 1, Expect::Nothing).unwrap();
    assert_eq!(chain.mode, "generic");
    let told = chain.native_refused.unwrap();
    assert!(told.contains("(os error 34): veth: Peer MTU is too large to set XDP"), "{told}");
    live.kernel(|kernel| kernel.detach(&key)).unwrap();

    // Its own is nobody's business: a driver that takes the program is not refused for it.
    mtu(&live.pair.peer, PEER_LINK, "1500");
    mtu(&live.pair.host, HOST_LINK, "9000");
    let members = vec![dropper("drop", Hook::Xdp, PORT)];
    let build = ChainBuild {
        key: key.clone(),
        generation: 2,
        xdp_mode: XdpMode::Native,
        tc_mode: TcMode::Best,
        members,
        together: Vec::new(),
        left_entries: Vec::new(),
    };
    live.kernel(|kernel| kernel.prepare(&build)).unwrap();
    let chain = native(&live).unwrap();
    assert_eq!((chain.mode.as_str(), chain.native_refused), ("native", None));
}

#[test]
fn a_chain_moves_between_driver_and_generic_xdp() {
    let live = Live::new();
    let key = Live::key(Hook::Xdp);
    live.attach(Hook::Xdp, vec![dropper("drop", Hook::Xdp, PORT)]);
    live.prepare(&key, 2, vec![dropper("drop", Hook::Xdp, PORT)]);
    for (generation, old, mode, name) in
        [(2, 1, XdpMode::Generic, "generic"), (1, 2, XdpMode::Native, "native")]
    {
        let chain = live
            .kernel(|kernel| kernel.switch(&key, generation, mode, Expect::Generation(old)))
            .unwrap();
        assert_eq!((chain.mode.as_str(), chain.generation), (name, generation));
        assert_eq!(ping(&live.pair, 2).unwrap(), 0);
    }
}

#[test]
fn tcx_drops_on_the_way_in() {
    let live = Live::new();
    assert_eq!(ping(&live.pair, 3).unwrap(), 3);
    let chain = live.attach(Hook::TcIngress, vec![dropper("drop", Hook::TcIngress, PORT)]);
    assert_eq!(ping(&live.pair, 3).unwrap(), 0);
    assert_eq!(chain.mode, "tcx");
    assert_eq!(live.state(), LinkState::Attached(chain.clone()));
    let listed = live.kernel(|_| Ok(sys::tcx_query(chain.ifindex, false).unwrap())).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].prog_id, listed[0].link_id), (chain.program_id, chain.link_id));
}

#[test]
fn tcx_drops_on_the_way_out() {
    let live = Live::new();
    let _echo = Echo::start(&live.pair.peer, PEER_IP, PORT).unwrap();
    let replies = || udp_replies(&live.pair.host, PEER_IP, PORT, 3).unwrap();
    assert_eq!(replies(), 3);
    live.attach(Hook::TcEgress, vec![dropper("drop", Hook::TcEgress, PORT)]);
    assert_eq!(replies(), 0);
    // The other way is another hook.
    assert_eq!(ping(&live.pair, 3).unwrap(), 3);
}

/// A foreign TC program that returns one code.
fn foreign_tc(code: u8) -> OwnedFd {
    // r0 = code; exit
    let insns = [0xb7, 0, 0, 0, code, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    sys::prog_load(&sys::ProgLoad::new(3, &insns, "GPL", "somebody_else")).unwrap()
}

#[test]
fn tcx_programs_of_others_neither_bypass_nor_are_bypassed() {
    const OK: u8 = 0;
    const SHOT: u8 = 2;
    let live = Live::new();
    let attach = |code| {
        let index = live.kernel(|kernel| kernel.interfaces(None)).unwrap();
        let index = index.iter().find(|one| one.name.as_str() == HOST_LINK).unwrap().index;
        let target = sys::LinkTarget::TcxIngress(sys::LinkOrder::Last);
        live.kernel(|_| Ok(sys::link_create(&foreign_tc(code), index, target).unwrap())).unwrap()
    };
    // It lets everything pass, ends the hook's row, and was there first.
    let early = attach(OK);
    live.attach(Hook::TcIngress, vec![dropper("drop", Hook::TcIngress, PORT)]);
    assert_eq!(ping(&live.pair, 2).unwrap(), 0, "bypassed by a program that was there first");
    drop(early);

    // What our chain lets pass, the ones behind it still get.
    let passes = || {
        let _echo = Echo::start(&live.pair.host, HOST_IP, 9).unwrap();
        udp_replies(&live.pair.peer, HOST_IP, 9, 2).unwrap()
    };
    assert_eq!(passes(), 2);
    let _late = attach(SHOT);
    assert_eq!(passes(), 0, "a program behind ours did not run");
}

#[test]
fn all_hooks_of_an_interface_carry_chains_side_by_side() {
    let live = Live::new();
    for hook in Hook::ALL {
        live.attach(hook, vec![dropper("drop", hook, 9)]);
    }
    let seen = live.observe();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|seen| matches!(seen.state, LinkState::Attached(_))), "{seen:?}");
    assert_eq!(ping(&live.pair, 3).unwrap(), 3);
    // Some of them are seen as they are among all; what has no pins is not there.
    let absent = ChainKey::new("elsewhere".parse().unwrap(), Hook::Xdp);
    let keys = [Live::key(Hook::Xdp), Live::key(Hook::TcEgress), absent].into();
    let some = live.kernel(|kernel| kernel.observe_chains(&keys)).unwrap();
    assert_eq!(some.len(), 2);
    assert!(some.iter().all(|one| seen.contains(one)), "{some:?}");
}

#[test]
fn a_foreign_detach_is_seen_and_undone() {
    for hook in [Hook::Xdp, Hook::TcIngress] {
        let live = Live::new();
        let key = Live::key(hook);
        let chain = live.attach(hook, vec![dropper("drop", hook, PORT)]);
        assert_eq!(ping(&live.pair, 2).unwrap(), 0);

        live.exec(&["bpftool", "link", "detach", "id", &chain.link_id.to_string()]);
        assert_eq!(ping(&live.pair, 3).unwrap(), 3, "{hook}: detached");
        assert_eq!(live.state(), LinkState::Detached);
        // A dead link is no link to compare with.
        let (what, _) = conflict(live.switch(&key, 1, Expect::Generation(1)).unwrap_err());
        assert!(what.contains("nothing of ours is attached"), "{what}");

        let again = live.switch(&key, 1, Expect::Nothing).unwrap();
        assert_eq!(ping(&live.pair, 2).unwrap(), 0, "{hook}: restored");
        assert_eq!(again.program_id, chain.program_id);
        assert_ne!(again.link_id, chain.link_id, "a link that was detached cannot be revived");
    }
}

#[test]
fn a_swap_against_the_wrong_generation_changes_nothing() {
    for hook in [Hook::Xdp, Hook::TcIngress] {
        let live = Live::new();
        let key = Live::key(hook);
        let chain = live.attach(hook, vec![dropper("drop", hook, PORT)]);
        for generation in [2, 3] {
            live.prepare(&key, generation, vec![dropper("drop", hook, 9)]);
        }
        let (what, remedy) = conflict(live.switch(&key, 3, Expect::Generation(2)).unwrap_err());
        assert!(what.contains("another program"), "{what}");
        assert!(!remedy.is_empty());
        let (what, _) = conflict(live.switch(&key, 3, Expect::Nothing).unwrap_err());
        assert!(what.contains("is attached there already"), "{what}");
        assert_eq!(live.state(), LinkState::Attached(chain));
        assert_eq!(ping(&live.pair, 2).unwrap(), 0);

        let chain = live.switch(&key, 3, Expect::Generation(1)).unwrap();
        assert_eq!(chain.generation, 3);
        assert_eq!(ping(&live.pair, 2).unwrap(), 2);
    }
}

#[test]
fn a_foreign_update_of_our_link_is_seen_and_undone() {
    let live = Live::new();
    let key = Live::key(Hook::Xdp);
    let chain = live.attach(Hook::Xdp, vec![dropper("drop", Hook::Xdp, PORT)]);
    live.prepare(&key, 2, vec![dropper("drop", Hook::Xdp, PORT)]);
    let link = sys::obj_get(&live.kernel.pins().link(&key)).unwrap();
    let foreign = foreign_xdp();
    sys::link_update::<OwnedFd>(&link, &foreign, None).unwrap();
    let foreign = sys::prog_info(&foreign).unwrap().id;

    assert_eq!(live.state(), LinkState::Replaced { program_id: foreign });
    conflict(live.switch(&key, 2, Expect::Generation(1)).unwrap_err());
    assert_eq!(live.state(), LinkState::Replaced { program_id: foreign });
    let back = live.switch(&key, 1, Expect::Anything).unwrap();
    assert_eq!(back, chain, "the same link, the same program");
    assert_eq!(ping(&live.pair, 2).unwrap(), 0);
}

#[test]
fn a_taken_hook_is_refused_and_says_by_whom() {
    let live = Live::new();
    let key = Live::key(Hook::Xdp);
    live.prepare(&key, 1, vec![dropper("drop", Hook::Xdp, PORT)]);
    let index = live.kernel(|kernel| kernel.interfaces(None)).unwrap();
    let index = index.iter().find(|one| one.name.as_str() == HOST_LINK).unwrap().index;
    let foreign = foreign_xdp();
    let id = sys::prog_info(&foreign).unwrap().id;

    // By a link.
    let link = live
        .kernel(|_| Ok(sys::link_create(&foreign, index, sys::LinkTarget::XdpNative).unwrap()))
        .unwrap();
    let link_id = sys::link_info(&link).unwrap().id;
    for mode in [XdpMode::Best, XdpMode::Native, XdpMode::Generic] {
        let error = live.kernel(|kernel| kernel.switch(&key, 1, mode, Expect::Nothing));
        let (what, remedy) = conflict(error.unwrap_err());
        assert!(what.contains(&format!("program {id} \"somebody_else\"")), "{what}");
        assert!(what.contains(&format!("pid {}", std::process::id())), "{what}");
        assert!(remedy.contains(&format!("bpftool link detach id {link_id}")), "{remedy}");
    }
    drop(link);

    // Through netlink.
    live.exec(&["bpftool", "net", "attach", "xdp", "id", &id.to_string(), "dev", HOST_LINK]);
    let (what, remedy) = conflict(live.switch(&key, 1, Expect::Nothing).unwrap_err());
    assert!(what.contains("through netlink"), "{what}");
    assert!(remedy.contains("xdp off"), "{remedy}");
    // The remedy works.
    live.exec(&["ip", "link", "set", "dev", HOST_LINK, "xdp", "off"]);
    live.switch(&key, 1, Expect::Nothing).unwrap();
}

#[test]
fn foreign_tools_cannot_take_the_hook_from_our_link() {
    let live = Live::new();
    let chain = live.attach(Hook::Xdp, vec![dropper("drop", Hook::Xdp, PORT)]);
    for command in [
        vec!["ip", "link", "set", "dev", HOST_LINK, "xdp", "off"],
        vec!["bpftool", "net", "detach", "xdp", "dev", HOST_LINK],
    ] {
        assert!(live.pair.host.exec(&command).is_err(), "{command:?} was not refused");
    }
    assert_eq!(live.state(), LinkState::Attached(chain));
}

#[test]
fn a_detached_chain_leaves_nothing_in_the_kernel() {
    for hook in Hook::ALL {
        let live = Live::new();
        let key = Live::key(hook);
        let chain = live.attach(hook, vec![dropper("drop", hook, PORT)]);
        live.kernel(|kernel| kernel.detach(&key)).unwrap();
        assert_eq!(ping(&live.pair, 2).unwrap(), 2);
        assert_eq!(live.state(), LinkState::Detached, "its generation is still pinned");
        assert!(sys::fd_by_id(sys::Kind::Link, chain.link_id).is_err(), "the link lives");
        live.kernel(|kernel| kernel.detach(&key)).unwrap();

        live.kernel(|kernel| kernel.discard(&key, 1)).unwrap();
        assert_eq!(live.observe(), []);
        assert_eq!(fs::read_dir(live.bpffs.path()).unwrap().count(), 0, "pins are left");
        // A program is freed after a grace period.
        canopy_test_support::wait_for(
            std::time::Duration::from_secs(5),
            "the program to be freed",
            || match sys::fd_by_id(sys::Kind::Prog, chain.program_id) {
                Ok(_) => Err(chain.program_id),
                Err(_) => Ok(()),
            },
        )
        .unwrap();
    }
}

#[test]
fn a_new_process_finds_the_chain_as_it_was() {
    let live = Live::new();
    let key = Live::key(Hook::Xdp);
    let chain = live.attach(Hook::Xdp, vec![dropper("drop", Hook::Xdp, PORT)]);
    let Live { kernel, bpffs, pair } = live;
    drop(kernel);
    assert_eq!(ping(&pair, 2).unwrap(), 0, "the datapath does not notice");

    let live = Live { kernel: AyaKernel::new(bpffs.path()).unwrap(), bpffs, pair };
    assert_eq!(live.state(), LinkState::Attached(chain.clone()));
    live.prepare(&key, 2, vec![dropper("drop", Hook::Xdp, PORT)]);
    let next = live.switch(&key, 2, Expect::Generation(1)).unwrap();
    assert_eq!(next.link_id, chain.link_id);
}

#[test]
fn removed_pins_detach_nothing_and_come_back() {
    let live = Live::new();
    let key = Live::key(Hook::Xdp);
    let chain = live.attach(Hook::Xdp, vec![dropper("drop", Hook::Xdp, PORT)]);
    let pins = live.kernel.pins();
    for pin in [pins.link(&key), pins.prog(&key, 1)] {
        fs::remove_file(&pin).unwrap();
        assert_eq!(ping(&live.pair, 2).unwrap(), 0, "still attached");
        assert_eq!(live.state(), LinkState::Attached(chain.clone()));
        assert!(pin.exists(), "{} is not back", pin.display());
    }
    let all = || {
        let text = live.exec(&["find", live.bpffs.path().to_str().unwrap(), "-type", "f"]);
        text.lines().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let (pinned, counted) = (all(), live.cells(&key, 1));
    fs::remove_dir_all(pins.chain(&key)).unwrap();
    assert_eq!(all(), BTreeSet::new());
    assert_eq!(ping(&live.pair, 2).unwrap(), 0, "still attached");
    assert_eq!(live.state(), LinkState::Attached(chain));
    assert_eq!(all(), pinned);
    live.kernel.settle().unwrap();
    assert_eq!(live.cells(&key, 1)[0].runs(), counted[0].runs() + 2, "a counter was lost");
}

#[test]
fn an_interface_that_goes_and_comes_back_is_told_apart() {
    let live = Live::new();
    let ip = |arguments: &[&str]| live.exec(&[&["ip", "link"], arguments].concat());
    ip(&["add", "one", "type", "veth", "peer", "name", "other"]);
    let key = Live::key_on("one", Hook::Xdp);
    let members = || vec![dropper("drop", Hook::Xdp, PORT)];
    live.prepare(&key, 1, members());
    let first = live.switch(&key, 1, Expect::Nothing).unwrap();

    ip(&["delete", "one"]);
    assert_eq!(live.state(), LinkState::InterfaceMissing);
    let error = live.switch(&key, 1, Expect::Nothing).unwrap_err();
    assert!(matches!(error, KernelError::InterfaceNotFound { .. }), "{error:?}");

    ip(&["add", "one", "type", "veth", "peer", "name", "other"]);
    assert_eq!(live.state(), LinkState::Detached);
    let again = live.switch(&key, 1, Expect::Nothing).unwrap();
    assert_ne!(again.ifindex, first.ifindex);
    assert_eq!(live.state(), LinkState::Attached(again.clone()));

    // Renamed: the link lives, on an interface that is not this chain's any more.
    ip(&["set", "one", "name", "two"]);
    assert_eq!(live.state(), LinkState::InterfaceMissing);
    ip(&["set", "two", "name", "one"]);
    assert_eq!(live.state(), LinkState::Attached(again));

    // Renamed for good, and another takes its name: the chain follows the name.
    ip(&["set", "one", "name", "two"]);
    ip(&["add", "one", "type", "veth", "peer", "name", "third"]);
    assert_eq!(live.state(), LinkState::Detached);
    let last = live.switch(&key, 1, Expect::Nothing).unwrap();
    assert_eq!(live.state(), LinkState::Attached(last));
    let seen = live.exec(&["ip", "-details", "link", "show", "two"]);
    assert!(!seen.contains("xdp"), "a program stayed on the renamed interface: {seen}");
}

#[test]
fn interfaces_are_those_of_the_namespace() {
    let live = Live::new();
    let seen = live.kernel(|kernel| kernel.interfaces(None)).unwrap();
    let names: Vec<_> = seen.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["lo", HOST_LINK]);
    assert_eq!(seen[1].mtu, 1500);
    assert_eq!(ping(&live.pair, 1).unwrap(), 1, "{HOST_IP} answers");
}

#[test]
fn this_machine_has_what_the_tests_need() {
    let live = Live::new();
    let facts = live.kernel.facts();
    for fact in &facts {
        println!("{:5} {:14} {}", fact.ok, fact.name, fact.detail);
        assert!(fact.ok || fact.remedy.is_some(), "{fact:?}");
    }
    let names: Vec<_> = facts.iter().map(|fact| fact.name.as_str()).collect();
    assert_eq!(names, FACTS, "what packages may ask for is what is probed");
    let missing: Vec<_> = facts.iter().filter(|fact| fact.required && !fact.ok).collect();
    assert!(missing.is_empty(), "{missing:#?}");
    assert_eq!(fs::read_dir(live.bpffs.path()).unwrap().count(), 0, "a probe left a pin");
}

#[test]
fn a_root_that_is_not_on_bpffs_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = AyaKernel::new(dir.path().join("pins")).unwrap_err();
    assert!(matches!(error, KernelError::Unsupported { .. }), "{error:?}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// What `get` tells of a program is what `bpftool` tells, times included while the kernel takes them.
#[test]
fn what_is_told_of_a_chain_is_what_bpftool_tells() {
    const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";
    let live = Live::new();
    let many = member("many", Hook::Xdp, &object("functions"), "functions");
    live.attach(Hook::Xdp, vec![many]);
    let before = fs::read(STATISTICS).unwrap();
    fs::write(STATISTICS, "1").unwrap();
    send_frames(&live.pair, &vec![Udp4::to_port(PORT).frame(); 50]).unwrap();
    let seen = wait_for(Duration::from_secs(5), "50 timed runs", || match live.state() {
        LinkState::Attached(chain) if chain.timed_runs == 50 => Ok(chain),
        other => Err(format!("{other:?}")),
    });
    fs::write(STATISTICS, before).unwrap();
    let seen = seen.unwrap();
    let id = seen.program_id.to_string();
    let told = live.exec(&["bpftool", "-j", "prog", "show", "id", &id]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let number = |field: &str| told[field].as_u64().unwrap_or_else(|| panic!("{field} in {told}"));
    assert_eq!(number("bytes_memlock"), seen.memory_bytes);
    assert_eq!(number("run_cnt"), seen.timed_runs);
    assert_eq!(number("run_time_ns"), seen.timed_ns);
    assert!(number("loaded_at").abs_diff(seen.loaded) <= 2, "{} {told}", seen.loaded);
    // The chain's main and four functions; padding lies between them.
    assert_eq!(seen.functions, ["p0_many", "step", "global_sum", "squares"]);
    assert_eq!(seen.function_bytes.len(), 5);
    let sum: u32 = seen.function_bytes.iter().sum();
    assert!(sum > 0 && u64::from(sum) <= number("bytes_jited"), "{sum} {told}");
}
