//! The loader's engine over the real kernel: its promises, judged by packets, by the kernel's ids
//! and by foreign tools. No bus here.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::expect_used,
    clippy::float_cmp,
    reason = "test code: a failure is a panic"
)]

use canopy_api::{
    ChainKey, Digest, Hook,
    wire::{Action, ChainState, ChainStatus, DeleteRequest},
};
use canopy_kernel_tests::engine::{Host, Loader, options};
use canopy_loader::engine::Event;
use canopy_test_support::{
    nats::NatsServer,
    pair::{HOST_LINK, PEER_IP, PEER_LINK},
    service::ServiceProcess,
    wait_for,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

/// Firewall with this block list, then the rate limit.
fn chain(blocked: &[&str]) -> Value {
    json!([{ "interface": HOST_LINK, "hook": "xdp", "programs": [
        { "name": "blocklist", "package": "firewall", "config": { "blocked": blocked } },
        { "name": "limit", "package": "ratelimit" },
    ]}])
}

fn kernel_ids(status: &ChainStatus) -> (u32, u32, u64) {
    let observed = status.observed.as_ref().unwrap();
    (observed.program_id, observed.link_id, observed.generation)
}

fn metric(status: &ChainStatus, program: &str, name: &str) -> f64 {
    let program = status.programs.iter().find(|p| p.name.as_str() == program).unwrap();
    program.metrics.iter().find(|m| m.name == name).unwrap_or_else(|| panic!("{program:?}")).value
}

#[test]
fn packages_filter_real_packets_and_everything_is_counted() {
    let host = Host::new();
    let loader = host.start();
    assert_eq!(host.pings(), 3);
    let peer = PEER_IP.to_string();
    let reply = host.apply(&loader, &chain(&[&peer])).unwrap();
    assert_eq!(reply.chains[0].action, Action::Created);
    assert_eq!(host.pings(), 0);

    let status = host.status(&loader, Hook::Xdp);
    assert_eq!(status.state, ChainState::Active);
    let [blocklist, limit] = status.programs.as_slice() else { panic!("{status:?}") };
    assert_eq!((blocklist.runs, blocklist.exits["drop"]), (3, 3));
    assert_eq!(limit.runs, 0);
    assert_eq!(metric(&status, "blocklist", "blocked"), 3.0);

    // The same once more: not a single id changes.
    let again = host.apply(&loader, &chain(&[&peer])).unwrap();
    assert_eq!(again.chains[0].action, Action::Unchanged);
    assert_eq!(kernel_ids(&host.status(&loader, Hook::Xdp)), kernel_ids(&status));

    // Other settings: another program in the same link, counts go on.
    host.apply(&loader, &chain(&[])).unwrap();
    assert_eq!(host.pings(), 3);
    let open = host.status(&loader, Hook::Xdp);
    assert_eq!(kernel_ids(&open).1, kernel_ids(&status).1, "the link stays");
    assert_ne!(kernel_ids(&open).0, kernel_ids(&status).0);
    assert_eq!((open.programs[0].runs, open.programs[1].runs), (6, 3));
    assert_eq!(metric(&open, "limit", "passed"), 3.0);

    let key = ChainKey { netns: None, interface: HOST_LINK.parse().unwrap(), hook: Hook::Xdp };
    let request = DeleteRequest {
        netns: None,
        interface: key.interface.into(),
        hook: key.hook,
        program: None,
        expected_generation: None,
        dry_run: false,
    };
    host.here(|| loader.delete(&request, &options())).unwrap();
    assert!(!host.exec(&["ip", "link", "show", "dev", HOST_LINK]).contains("xdp"));
    assert_eq!(host.pins(), 0, "nothing stays pinned");
    assert_eq!(host.pings(), 3);
}

#[test]
fn three_hooks_of_an_interface_are_one_request() {
    let host = Host::new();
    let loader = host.start();
    let chains = json!([
        { "interface": HOST_LINK, "hook": "xdp", "programs": [
            { "name": "limit", "package": "ratelimit" } ]},
        { "interface": HOST_LINK, "hook": "tc-ingress", "programs": [
            { "name": "meter", "package": "flowmeter" } ]},
        { "interface": HOST_LINK, "hook": "tc-egress", "programs": [
            { "name": "meter", "package": "flowmeter" } ]},
    ]);
    host.apply(&loader, &chains).unwrap();
    assert_eq!(host.pings(), 3);
    for hook in Hook::ALL {
        let status = host.status(&loader, hook);
        assert_eq!((status.state, status.programs[0].runs), (ChainState::Active, 3), "{hook}");
    }
    let reply = host.here(|| loader.drain(false, false)).unwrap();
    assert_eq!(reply.chains.len(), 3);
    assert!(!host.exec(&["bpftool", "net", "show", "dev", HOST_LINK]).contains("id "));
    host.here(|| loader.drain(true, false)).unwrap();
    assert_eq!(host.pings(), 3);
    assert_eq!(host.status(&loader, Hook::TcEgress).programs[0].runs, 6);
}

#[test]
fn a_chain_by_clsact_lives_like_any_other() {
    let host = Host::new();
    let loader = host.start();
    let chain = |mode: &str| {
        json!([{ "interface": HOST_LINK, "hook": "tc-ingress", "tc_mode": mode, "programs": [
            { "name": "meter", "package": "flowmeter" } ]}])
    };
    let mode = |loader: &Loader| host.status(loader, Hook::TcIngress).observed.unwrap().mode;
    let runs = |loader: &Loader| host.status(loader, Hook::TcIngress).programs[0].runs;
    let reply = host.apply(&loader, &chain("clsact")).unwrap();
    assert_eq!(reply.chains[0].observed.as_ref().unwrap().mode, "clsact");
    assert_eq!((host.pings(), runs(&loader)), (3, 3));
    let again = host.apply(&loader, &chain("clsact")).unwrap();
    assert_eq!(again.chains[0].action, Action::Unchanged);

    // Removed by whoever administers traffic control, the qdisc as well.
    for removal in [
        &["tc", "filter", "del", "dev", HOST_LINK, "ingress"][..],
        &["tc", "qdisc", "del", "dev", HOST_LINK, "clsact"],
    ] {
        host.exec(removal);
        let events = host.here(|| loader.tick());
        let [Event::Restored(event)] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!(event.found, "detached");
    }
    assert_eq!((host.pings(), runs(&loader)), (3, 6));

    // A new loader finds it, and moves it to TCX and back; the counts go on.
    drop(loader);
    assert_eq!(host.pings(), 3, "the filter needs no loader");
    let loader = host.start();
    assert_eq!(host.here(|| loader.tick()), []);
    assert_eq!((mode(&loader).as_str(), runs(&loader)), ("clsact", 9));
    for other in ["tcx", "clsact", "best"] {
        let reply = host.apply(&loader, &chain(other)).unwrap();
        assert!(reply.chains[0].steps.contains(&"TC mode changes".to_owned()), "{reply:?}");
        assert_eq!(mode(&loader), if other == "clsact" { "clsact" } else { "tcx" });
        host.pings();
    }
    assert_eq!(runs(&loader), 18);
    host.apply(&loader, &chain("clsact")).unwrap();
    let request = DeleteRequest {
        netns: None,
        interface: HOST_LINK.parse().unwrap(),
        hook: Hook::TcIngress,
        program: None,
        expected_generation: None,
        dry_run: false,
    };
    host.here(|| loader.delete(&request, &options())).unwrap();
    assert!(!host.exec(&["tc", "qdisc", "show", "dev", HOST_LINK]).contains("clsact"));
    assert_eq!((host.pins(), host.pings()), (0, 3));
}

#[test]
fn a_refused_chain_leaves_the_running_one_untouched() {
    let host = Host::new();
    let loader = host.start();
    host.apply(&loader, &chain(&[&PEER_IP.to_string()])).unwrap();
    let before = kernel_ids(&host.status(&loader, Hook::Xdp));
    let mut broken = host.located["firewall@*"].clone();
    let package = Arc::make_mut(&mut broken.package);
    for object in package.objects.values_mut() {
        object.truncate(object.len() / 2);
    }
    broken.digest = Digest::of(b"broken");
    host.shelf.put(broken.digest.clone(), Arc::clone(&broken.package));
    let mut host = host;
    drop(loader);
    host.located.insert("firewall@*".to_owned(), broken);
    let loader = host.start();
    let pins = host.pins();
    let error = host.apply(&loader, &chain(&[])).unwrap_err().into_api();
    assert_eq!(error.path, "document.chains[0].programs[0]", "{error:?}");
    assert!(error.remedy.is_some(), "{error:?}");
    assert_eq!(kernel_ids(&host.status(&loader, Hook::Xdp)), before);
    assert_eq!(host.pins(), pins);
    assert_eq!(host.pings(), 0);
}

#[test]
fn a_restart_takes_over_what_runs() {
    let host = Host::new();
    let loader = host.start();
    host.apply(&loader, &chain(&[&PEER_IP.to_string()])).unwrap();
    assert_eq!(host.pings(), 0);
    let before = host.status(&loader, Hook::Xdp);
    drop(loader);
    assert_eq!(host.pings(), 0, "nobody watches, the chain works");
    let loader = host.start();
    assert_eq!(host.here(|| loader.tick()), []);
    let after = host.status(&loader, Hook::Xdp);
    assert_eq!(kernel_ids(&after), kernel_ids(&before));
    assert_eq!(after.programs[0].runs, 6);
}

#[test]
fn a_foreign_detach_is_undone_by_the_next_check() {
    let host = Host::new();
    let loader = host.start();
    host.apply(&loader, &chain(&[&PEER_IP.to_string()])).unwrap();
    assert_eq!(host.pings(), 0);
    let status = host.status(&loader, Hook::Xdp);
    let (program, link, _) = kernel_ids(&status);
    host.exec(&["bpftool", "link", "detach", "id", &link.to_string()]);
    assert_eq!(host.pings(), 3, "detached");
    let events = host.here(|| loader.tick());
    let [Event::Restored(event)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(event.found, "detached");
    assert_eq!(host.pings(), 0, "restored");
    let restored = host.status(&loader, Hook::Xdp);
    assert_eq!(kernel_ids(&restored).0, program, "the same program, not another one");
    assert_eq!((restored.restored, restored.programs[0].runs), (1, 6));
}

#[test]
fn pins_removed_by_somebody_are_made_again() {
    let host = Host::new();
    let loader = host.start();
    host.apply(&loader, &chain(&[&PEER_IP.to_string()])).unwrap();
    let before = kernel_ids(&host.status(&loader, Hook::Xdp));
    assert_eq!(host.pings(), 0);
    host.here(|| loader.tick());
    for entry in fs::read_dir(host.bpffs.path()).unwrap().flatten() {
        let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
    }
    assert_eq!(host.pings(), 0, "the kernel goes on");
    host.here(|| loader.tick());
    let status = host.status(&loader, Hook::Xdp);
    assert_eq!((status.state, status.programs[0].runs), (ChainState::Active, 6));
    assert_eq!(metric(&status, "blocklist", "blocked"), 6.0, "its maps can be read");
    assert_eq!(kernel_ids(&status), before, "nothing was loaded again");
    // A loader that starts now finds everything.
    drop(loader);
    let loader = host.start();
    assert_eq!(kernel_ids(&host.status(&loader, Hook::Xdp)), before);
    assert_eq!(host.pings(), 0);
    assert_eq!(host.status(&loader, Hook::Xdp).programs[0].runs, 9);
}

#[test]
fn an_interface_made_anew_gets_its_chain() {
    let host = Host::new();
    let loader = host.start();
    host.apply(&loader, &chain(&[&PEER_IP.to_string()])).unwrap();
    host.exec(&["ip", "link", "delete", HOST_LINK]);
    assert_eq!(host.here(|| loader.tick()), []);
    let gone = host.status(&loader, Hook::Xdp);
    assert_eq!(gone.state, ChainState::Pending, "{gone:?}");
    assert!(gone.reason.unwrap().contains(HOST_LINK));
    host.exec(&["ip", "link", "add", HOST_LINK, "type", "veth", "peer", "name", PEER_LINK]);
    host.exec(&["ip", "link", "set", HOST_LINK, "up"]);
    host.here(|| loader.tick());
    let back = host.status(&loader, Hook::Xdp);
    assert_eq!((back.state, back.restored), (ChainState::Active, 0));
}

#[test]
fn a_reboot_is_recovered_without_bus_and_registry() {
    let host = Host::new();
    let loader = host.start();
    host.apply(&loader, &chain(&[&PEER_IP.to_string()])).unwrap();
    drop(loader);
    // What a reboot leaves: the state, and an empty bpffs.
    for entry in fs::read_dir(host.bpffs.path()).unwrap().flatten() {
        let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
    }
    // The kernel frees a link some time after its last reference went.
    wait_for(Duration::from_secs(10), "the chain to be gone", || match host.pings() {
        3 => Ok(()),
        fewer => Err(fewer),
    })
    .unwrap();
    let loader = host.start();
    assert_eq!(host.pings(), 0);
    assert_eq!(host.status(&loader, Hook::Xdp).state, ChainState::Active);
}

/// The program, built beside the tests.
fn program() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.ancestors().nth(2).unwrap().join("canopy-loader");
    assert!(path.exists(), "no {}: build it with `cargo build -p canopy-loader`", path.display());
    path
}

#[test]
fn the_process_heals_within_a_second_and_a_half_with_no_bus_from_the_start() {
    let host = Host::new();
    let loader = host.start();
    host.apply(&loader, &chain(&[&PEER_IP.to_string()])).unwrap();
    let link = kernel_ids(&host.status(&loader, Hook::Xdp)).1;
    drop(loader);
    // Certificates, and nobody at the address.
    let mut nats = NatsServer::start(&["web1"]).unwrap();
    nats.kill();
    let files = nats.client("h-web1-loader");
    let config = json!({
        "host": "web1",
        "bus": { "url": files.url, "ca": files.ca, "cert": files.cert, "key": files.key },
        "state_dir": host.dir.path(),
        "bpffs": host.bpffs.path(),
    });
    let process = host.here(|| ServiceProcess::start(&program(), config.clone())).unwrap();
    // A second one ends by itself, before or after its admin listener is there.
    let refusal = "one loader a host";
    match host.here(|| ServiceProcess::start(&program(), config)) {
        Err(error) => assert!(format!("{error:#}").contains(refusal), "{error:#}"),
        Ok(second) => {
            wait_for(Duration::from_secs(10), "the second loader to refuse", || {
                let log = second.log();
                if log.contains(refusal) { Ok(()) } else { Err(log) }
            })
            .unwrap();
        }
    }
    let metrics = || host.here(|| process.get("/metrics")).unwrap().1;
    let restored = "canopy_loader_chain_restored_total{hook=\"xdp\",interface=\"v0\"} ";
    wait_for(Duration::from_secs(10), "the chain in the metrics", || {
        let seen = metrics();
        if seen.contains(&format!("{restored}0")) { Ok(()) } else { Err(seen) }
    })
    .unwrap();
    host.exec(&["bpftool", "link", "detach", "id", &link.to_string()]);
    let since = Instant::now();
    wait_for(Duration::from_secs(10), "the chain to be restored", || {
        let seen = host.exec(&["ip", "link", "show", "dev", HOST_LINK]);
        if seen.contains("prog/xdp") { Ok(()) } else { Err(seen) }
    })
    .unwrap();
    let took = since.elapsed();
    assert!(took < Duration::from_millis(1500), "restored after {took:?}");
    assert_eq!(host.pings(), 0);
    assert!(metrics().contains(&format!("{restored}1")), "{}", metrics());
    assert!(metrics().contains("canopy_loader_program_packets_total"), "{}", metrics());
    assert!(process.end().unwrap().success());
    assert_eq!(host.pings(), 0, "the end of the process changes nothing");
}

/// The process, over its chains: a bus that is gone keeps it for no time, one that hangs for a short one.
#[test]
fn the_loader_ends_at_once_without_its_bus() {
    for (sent, most) in
        [(Signal::SIGKILL, Duration::from_secs(1)), (Signal::SIGSTOP, Duration::from_secs(3))]
    {
        let host = Host::new();
        let loader = host.start();
        host.apply(&loader, &chain(&[&PEER_IP.to_string()])).unwrap();
        drop(loader);
        let server = host.here(|| NatsServer::start(&["web1"])).unwrap();
        let files = server.client("h-web1-loader");
        let config = json!({
            "host": "web1",
            "bus": { "url": files.url, "ca": files.ca, "cert": files.cert, "key": files.key },
            "state_dir": host.dir.path(),
            "bpffs": host.bpffs.path(),
        });
        let process = host.here(|| ServiceProcess::start(&program(), config)).unwrap();
        host.here(|| process.wait_status(200)).unwrap();
        kill(Pid::from_raw(server.pid().unwrap().cast_signed()), sent).unwrap();
        let begun = Instant::now();
        assert!(process.end().unwrap().success());
        assert!(begun.elapsed() < most, "{sent}: {:?}", begun.elapsed());
        assert_eq!(host.pings(), 0, "the end of the process changes nothing");
    }
}
