//! A host that boots, by the units that are shipped: systemd as the first process, on a copy of this
//! machine's files, in a network namespace with a flood at its interface.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code: a failure is a panic")]

use canopy_kernel_tests::{
    files,
    host::{Loader, Site},
};
use canopy_test_support::{
    bpffs::BpffsDir,
    packet::Udp4,
    pair::{HOST_LINK, PEER_LINK, Pair, udp_counter},
    repository,
    traffic::Flood,
    wait_for,
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Blocked by the chain.
const BLOCKED: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 66);
/// What is booted: the network, the loader, and nothing else of this machine's.
const TARGET: &str = "canopy-boot-test.target";
const NONE: Option<&str> = None;

/// This machine's files with others on top, which are gone when it is dropped.
struct Root {
    layers: PathBuf,
    merged: PathBuf,
    _dir: tempfile::TempDir,
}

impl Root {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (layers, merged) = (dir.path().join("layers"), dir.path().join("merged"));
        fs::create_dir(&layers).unwrap();
        fs::create_dir(&merged).unwrap();
        mount(Some("none"), &layers, Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
        let this = Self { layers, merged, _dir: dir };
        let (upper, work) = (this.layers.join("upper"), this.layers.join("work"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        let options = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
        let options = Some(options.as_str());
        mount(Some("none"), &this.merged, Some("overlay"), MsFlags::empty(), options).unwrap();
        this
    }

    fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.merged.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// What the loader said.
    fn journal(&self) -> String {
        let output = Command::new("journalctl")
            .args(["--quiet", "--no-pager", "--unit=canopy-loader", "--directory"])
            .arg(self.merged.join("var/log/journal"))
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn copy(&self, from: &Path, path: &str) {
        let to = self.merged.join(path);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let copied = Command::new("cp").arg("-a").arg(from).arg(&to).status().unwrap();
        assert!(copied.success(), "copy {}", from.display());
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        for mounted in [&self.merged, &self.layers] {
            let _ = umount2(mounted, MntFlags::MNT_DETACH);
        }
    }
}

/// A running host; ends when dropped.
struct Booted {
    process: Child,
    log: PathBuf,
}

impl Booted {
    fn new(root: &Root, network: &str, bpffs: &Path) -> Self {
        let log = root.layers.join("console");
        let out = fs::File::create(&log).unwrap();
        // It ends with this process, and its own processes with it.
        let process = Command::new("setpriv")
            .args(["--pdeathsig=TERM", "systemd-nspawn", "--kill-signal=SIGKILL"])
            .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network")
            .args(["--boot", "--register=no", "--keep-unit", "--capability=all"])
            .arg("--system-call-filter=bpf perf_event_open")
            .arg(format!("--machine=canopy-boot-{}", std::process::id()))
            .arg(format!("--network-namespace-path={network}"))
            .arg(format!("--bind={}:/sys/fs/bpf", bpffs.display()))
            .arg("--directory")
            .arg(&root.merged)
            .args([format!("systemd.unit={TARGET}"), "systemd.show_status=yes".to_owned()])
            .stdin(Stdio::null())
            .stderr(out.try_clone().unwrap())
            .stdout(out)
            .spawn()
            .unwrap();
        Self { process, log }
    }

    /// What it says, without colours.
    fn console(&self) -> String {
        let said = String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned();
        let coloured = said.replace('\r', "");
        let mut parts = coloured.split('\u{1b}');
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |said, part| said + part.split_once('m').map_or("", |(_, text)| text))
    }

    fn wait_for(&self, text: &str) {
        let look = || {
            let said = self.console();
            if said.contains(text) { Ok(()) } else { Err(said) }
        };
        wait_for(Duration::from_mins(1), text, look).unwrap();
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.process.id().cast_signed());
        let _ = kill(pid, Signal::SIGTERM);
        let _ = self.process.wait();
    }
}

/// What a host has of the loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum With {
    Nothing,
    Loader,
    /// A loader that cannot start, and a network that does not come up without it.
    BrokenLoaderAndNoNetworkWithout,
}

struct Host {
    pair: Pair,
    dir: tempfile::TempDir,
}

impl Host {
    /// A host whose loader has a chain in its state, and nothing attached.
    fn new() -> Self {
        let this = Self { pair: Pair::new().unwrap(), dir: tempfile::tempdir().unwrap() };
        let bpffs = BpffsDir::new().unwrap();
        let file = files::write(this.dir.path(), &files::starter("firewall"));
        let site = Site {
            state: this.dir.path().join("state"),
            bpffs: bpffs.path().to_owned(),
            packages: BTreeMap::from([("firewall@*".to_owned(), file)]),
        };
        let document = json!({ "chains": [{ "interface": HOST_LINK, "hook": "xdp", "programs": [
            { "name": "wall", "package": "firewall", "config": { "blocked": [BLOCKED] } },
        ]}]});
        let made = || Ok(Loader::start(&site, |_| {}).unwrap().apply(&document).unwrap());
        this.pair.host.run(made).unwrap();
        this
    }

    /// Without an address, and down.
    fn unplug(&self) {
        self.pair.host.exec(&["ip", "address", "flush", "dev", HOST_LINK]).unwrap();
        self.pair.host.exec(&["ip", "link", "set", HOST_LINK, "down"]).unwrap();
    }

    fn arrived(&self) -> u64 {
        self.pair.host.run(|| udp_counter("NoPorts")).unwrap()
    }

    fn root(&self, with: With) -> Root {
        let root = Root::new();
        let units = "etc/systemd/system";
        let target = "[Unit]\nRequires=sysinit.target\nAfter=sysinit.target\nWants=systemd-networkd.service\n\
             AllowIsolate=yes\nAfter=systemd-networkd.service\n";
        root.write(&format!("{units}/{TARGET}"), target);
        root.write(
            "etc/systemd/network/10-canopy.network",
            format!(
                "[Match]\nName={HOST_LINK}\n[Network]\nAddress=10.77.0.1/24\n\
                 LinkLocalAddressing=no\nIPv6AcceptRA=no\n"
            ),
        );
        if with == With::BrokenLoaderAndNoNetworkWithout {
            let readme = fs::read_to_string(repository().join("deploy/systemd/README.md")).unwrap();
            let told = readme.split("```ini\n").nth(1).unwrap().split("```").next().unwrap();
            root.write(&format!("{units}/systemd-networkd.service.d/canopy.conf"), told);
        }
        if with != With::Nothing {
            let shipped = repository().join("deploy/systemd/canopy-loader.service");
            root.copy(&shipped, &format!("{units}/canopy-loader.service"));
            let wants = root.merged.join(format!("{units}/{TARGET}.wants"));
            fs::create_dir(&wants).unwrap();
            symlink("../canopy-loader.service", wants.join("canopy-loader.service")).unwrap();
            root.copy(&program(), "usr/bin/canopy-loader");
            root.copy(&self.dir.path().join("state"), "var/lib/canopy/loader");
            for file in ["ca", "cert", "key"] {
                // Nobody is at the bus: what is in them is not read before somebody is.
                root.write(&format!("etc/canopy/{file}"), "");
            }
            let key = root.merged.join("etc/canopy/key");
            let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            fs::set_permissions(key, private).unwrap();
            let config = json!({
                "host": "web1",
                "state_dir": "/var/lib/canopy/loader",
                "bus": {
                    "url": "tls://10.77.0.2:4222",
                    "ca": "/etc/canopy/ca", "cert": "/etc/canopy/cert", "key": "/etc/canopy/key",
                },
            });
            if with == With::Loader {
                root.write("etc/canopy/loader.json", config.to_string());
            }
        }
        root
    }
}

fn program() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.ancestors().nth(2).unwrap().join("canopy-loader");
    assert!(path.exists(), "no {}: build it with `cargo build -p canopy-loader`", path.display());
    path
}

/// What came of a boot under a flood of blocked packets.
struct Boot {
    arrived: u64,
    address: String,
    link: String,
    /// Console and journal, for who wants to know why.
    said: String,
}

fn boot(host: &Host, with: With) -> Boot {
    host.unplug();
    let frame = Udp4 { source: BLOCKED, ..Udp4::to_port(4242) }.frame();
    let pause = Duration::from_micros(200);
    let (root, bpffs) = (host.root(with), BpffsDir::new().unwrap());
    let before = host.arrived();
    let flood = Flood::paced(&host.pair.peer, PEER_LINK, vec![frame], pause).unwrap();
    let begun = Instant::now();
    let booted = Booted::new(&root, &host.pair.host.path(), bpffs.path());
    booted.wait_for(&format!("Reached target {TARGET}"));
    let show = |what: &[&str]| host.pair.host.exec(&[&["ip"], what].concat()).unwrap();
    let address = || show(&["-4", "address", "show", "dev", HOST_LINK]);
    if with != With::BrokenLoaderAndNoNetworkWithout {
        let look = || Some(address()).filter(|shown| shown.contains("10.77.0.1")).ok_or(());
        wait_for(Duration::from_secs(20), "an address", look).unwrap();
    }
    std::thread::sleep(Duration::from_millis(500));
    let took = begun.elapsed();
    let sent = flood.stop().unwrap();
    let arrived = host.arrived() - before;
    println!("{with:?}: {sent} sent, {arrived} arrived, {took:?}");
    let said = booted.console() + &root.journal();
    Boot { arrived, address: address(), link: show(&["link", "show", "dev", HOST_LINK]), said }
}

/// The network comes up behind the chains: not one blocked packet arrives, where without the loader they
/// arrive as soon as there is an address.
#[test]
fn a_host_that_boots_has_its_chains_before_its_network() {
    let host = Host::new();
    let without = boot(&host, With::Nothing);
    assert!(without.arrived > 500, "the flood is not seen: {}", without.said);
    let with = boot(&host, With::Loader);
    assert!(with.link.contains("xdp"), "{}\n{}", with.link, with.said);
    assert_eq!(with.arrived, 0, "{}", with.said);
}

/// What the README says for hosts that shall rather have no network.
#[test]
fn a_host_can_be_told_to_have_no_network_without_its_loader() {
    let host = Host::new();
    let boot = boot(&host, With::BrokenLoaderAndNoNetworkWithout);
    assert!(boot.said.contains("canopy-loader"), "{}", boot.said);
    assert!(!boot.address.contains("10.77.0.1"), "{}\n{}", boot.address, boot.said);
    assert_eq!(boot.arrived, 0);
}
