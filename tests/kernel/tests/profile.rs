//! Run times on request, by the kernel's own word.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code: a failure is a panic")]

use canopy_api::{Hook, wire::ProfileRequest};
use canopy_kernel_tests::engine::Host;
use canopy_test_support::pair::HOST_LINK;
use serde_json::{Value, json};

/// Runs and nanoseconds of a program, as `bpftool` tells them; nothing where none were timed.
fn timed(host: &Host, id: u32) -> Option<(u64, u64)> {
    let told = host.exec(&["bpftool", "-j", "prog", "show", "id", &id.to_string()]);
    let told: Value = serde_json::from_str(&told).unwrap();
    Some((told["run_cnt"].as_u64()?, told["run_time_ns"].as_u64()?))
}

#[test]
fn runs_are_timed_while_that_is_asked_for_and_no_longer() {
    let host = Host::new();
    let loader = host.start();
    let chains = json!([
        { "interface": HOST_LINK, "hook": "xdp", "programs": [
            { "name": "wall", "package": "firewall" },
        ]},
    ]);
    host.apply(&loader, &chains).unwrap();
    let seen = || host.status(&loader, Hook::Xdp).observed.unwrap();
    let id = seen().program_id;
    assert_eq!(host.pings(), 3);
    assert_eq!((seen().timed_runs, timed(&host, id)), (0, None));

    let ask = |seconds| loader.profile(&ProfileRequest { seconds }).unwrap();
    ask(60);
    assert_eq!(host.pings(), 3);
    let during = seen();
    assert!(during.timed_runs >= 3 && during.timed_ns > 0, "{during:?}");
    assert_eq!(timed(&host, id), Some((during.timed_runs, during.timed_ns)));

    assert_eq!(ask(0).until, None);
    let (runs, ns) = timed(&host, id).unwrap();
    assert_eq!(host.pings(), 3);
    assert_eq!(timed(&host, id), Some((runs, ns)));
    // A loader that is gone leaves nothing on.
    ask(60);
    drop(loader);
    let before = timed(&host, id);
    assert_eq!(host.pings(), 3);
    assert_eq!(timed(&host, id), before);
}
