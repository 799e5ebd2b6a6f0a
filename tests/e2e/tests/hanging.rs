//! A file system that hangs: a mount whose server never answers.
#![allow(clippy::unwrap_used, reason = "tests: a failure is the message")]

use canopy_api::{
    endpoint::registry::{Health, List},
    subject::Target,
    wire::{Empty, ListRequest},
};
use canopy_bus::{Bus, BusConfig};
use canopy_test_support::{
    nats::{ClientFiles, NatsServer},
    service::ServiceProcess,
    wait_for,
};
use serde_json::json;
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use xtask::compile;

/// A program that mounts such a file system where nobody else sees it, and becomes the registry.
fn registry_that_hangs_at(place: &Path, dir: &Path) -> PathBuf {
    let registry = compile::binary("canopy-registry").unwrap();
    let text = format!(
        r#"#!/usr/bin/env python3
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def done(code):
    if code != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
NEWNS, REC, PRIVATE = 0x20000, 0x4000, 0x40000
done(libc.unshare(NEWNS))
done(libc.mount(None, b"/", None, REC | PRIVATE, None))
# Whoever has this is the file system's server, and says nothing.
server = os.open("/dev/fuse", os.O_RDWR)
os.set_inheritable(server, True)
options = f"fd={{server}},rootmode=40000,user_id=0,group_id=0".encode()
done(libc.mount(b"hang", b"{place}", b"fuse", 0, options))
os.execv("{registry}", ["canopy-registry"] + sys.argv[1:])
"#,
        place = place.display(),
        registry = registry.display(),
    );
    let script = dir.join("registry");
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().count()
}

/// Who asks, and how much at once: as much of one caller as is worked on at once.
const PEOPLE: [&str; 4] = ["u-viewer", "u-operator", "u-publisher", "u-admin"];
const AT_ONCE: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_whose_file_system_hangs_says_so_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("hangs")).unwrap();
    fs::create_dir(at("works")).unwrap();
    let server = NatsServer::start(&[]).unwrap();
    let ClientFiles { url, ca, cert, key } = server.client("s-registry");
    let repository = |name: &str| {
        json!({
            "name": name,
            "url": format!("file://{}", at(name).display()),
            "packages": [format!("{name}-*")],
            "trust": "unsigned-development",
            "timeout_seconds": 1,
        })
    };
    let config = json!({
        "bus": { "url": url, "ca": ca, "cert": cert, "key": key },
        "refresh_seconds": 1,
        "repositories": [repository("hangs"), repository("works")],
    });
    let script = registry_that_hangs_at(&at("hangs"), dir.path());
    let process = ServiceProcess::start(&script, config).unwrap();
    // One that is lost does not take the other with it.
    process.wait_status(200).unwrap();
    let mut viewers = Vec::new();
    for name in PEOPLE {
        let ClientFiles { url, ca, cert, key } = server.client(name);
        let config = BusConfig::new(url, ca, cert, key);
        let viewer = Bus::connect(&config, name.parse().unwrap()).await.unwrap();
        viewer.wait_ready(Duration::from_secs(10)).await.unwrap();
        viewers.push(viewer);
    }
    let viewer = &viewers[0];
    let list = async |viewer: &Bus| {
        let asked = Instant::now();
        let all = viewer.call::<List>(&Target::Central, &ListRequest::default()).await.unwrap();
        let lost: Vec<_> = all.unavailable.iter().map(|one| one.repository.as_str()).collect();
        assert_eq!(lost, ["hangs"], "{all:?}");
        asked.elapsed()
    };
    // However many ask: each waits for one time limit, and none for those before.
    let many = viewers.iter().flat_map(|viewer| (0..AT_ONCE).map(|_| list(viewer)));
    let many: Vec<Duration> = futures::future::join_all(many).await;
    assert!(many.iter().all(|took| *took < Duration::from_secs(5)), "{many:?}");
    wait_for(Duration::from_secs(30), "every operation to hang", || {
        let (_, said) = process.get("/ready?verbose").map_err(|error| error.to_string())?;
        let told = said.contains("hangs: 8 operations on the store hang");
        if told { Ok(()) } else { Err(said) }
    })
    .unwrap();
    // Nobody waits for what hangs any more, no thread is added, and it is told over the bus too.
    let before = threads(process.pid());
    assert!(before < 40, "{before} threads");
    for _ in 0..20 {
        let took = list(viewer).await;
        assert!(took < Duration::from_millis(900), "{took:?}");
    }
    // But for one that some other work may need meanwhile.
    let after = threads(process.pid());
    assert!(after <= before + 3, "{before} threads, then {after}");
    let health = viewer.call::<Health>(&Target::Central, &Empty {}).await.unwrap();
    let told = |check: &canopy_api::wire::Check| check.detail.contains("on the store hang");
    assert!(health.checks.iter().any(told), "{health:?}");
    let asked = Instant::now();
    let status = process.end().unwrap();
    assert!(status.success(), "{status}");
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
}

/// A trail that cannot be opened keeps the service from being ready, and not from ending.
#[test]
fn a_registry_whose_audit_trail_hangs_is_not_ready_and_ends() {
    if std::env::var_os("CANOPY_TEST_FULL").is_none() {
        // It takes the whole time that a service has for its end.
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("hangs")).unwrap();
    fs::create_dir(at("works")).unwrap();
    let server = NatsServer::start(&[]).unwrap();
    let ClientFiles { url, ca, cert, key } = server.client("s-registry");
    let config = json!({
        "bus": { "url": url, "ca": ca, "cert": cert, "key": key },
        "audit": { "dir": at("hangs").join("audit") },
        "repositories": [{
            "name": "works",
            "url": format!("file://{}", at("works").display()),
            "packages": ["*"],
            "trust": "unsigned-development",
        }],
    });
    let script = registry_that_hangs_at(&at("hangs"), dir.path());
    let process = ServiceProcess::start(&script, config).unwrap();
    wait_for(Duration::from_secs(20), "the repository to be read", || {
        let (status, said) = process.get("/ready?verbose").map_err(|error| error.to_string())?;
        let ready =
            status == 503 && said.contains("[+] repositories") && said.contains("[-] audit");
        if ready { Ok(()) } else { Err(said) }
    })
    .unwrap();
    let asked = Instant::now();
    let status = process.end().unwrap();
    assert_eq!(status.code(), Some(1), "{status}");
    assert!(asked.elapsed() < Duration::from_secs(19), "{:?}", asked.elapsed());
}
