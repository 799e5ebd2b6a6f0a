//! `packages`: what a packet pays for each shipped package, beside what else does the same work.
//!
//! A package is loaded by the loader's own path, as a chain of one with its accounting. Its peer is
//! loaded alone, by aya:
//!
//! - **firewall** beside `xdp-filter` of xdp-tools (Debian's package, its object that allows all but listed IP addresses),
//!   with the same addresses. xdp-filter matches whole addresses only; a row with networks is there
//!   for what a trie costs.
//! - **ratelimit** beside a plain token bucket by spin lock (`programs/peer_ratelimit.bpf.c`), because no
//!   package of Debian has one.
//! - **flowmeter** beside a plain flow table (`programs/peer_flows.bpf.c`), for the same reason.
//!
//! Time is the kernel's own mean over many runs of `BPF_PROG_TEST_RUN` on the same packets. Packages and
//! peers take turns, and everything is loaded several times: where the JIT puts a program moves its time by a tenth.

use crate::{
    chain::stay_on_one_cpu,
    report::{Report, Summary},
};
use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, PerCpuHashMap, PerCpuValues},
    programs::{SchedClassifier, Xdp},
    util::nr_cpus,
};
use canopy_api::Hook;
use canopy_kernel_aya::sys::{self, TestRun};
use canopy_kernel_tests::{
    package::Loaded,
    packet::{Ipv4, Ipv6, udp},
};
use canopy_test_support::bpffs::BpffsDir;
use serde::Serialize;
use serde_json::json;
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

/// Rules of the firewall.
const SIZES: [u32; 3] = [10, 256, 4096];
/// xdp-tools' object that allows all but listed IP addresses, in `/usr/lib/<architecture>`.
const XDP_FILTER: &str = "bpf/xdpfilt_alw_ip.o";
/// `MAP_FLAG_SRC` of xdp-filter's common header.
const FILTER_SOURCE: u64 = 1;
/// Nanoseconds a measurement takes, about.
const MEASUREMENT: u32 = 2_000_000;
const DROP: i32 = 1;
const PASS: i32 = 2;

/// How much to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Measurements of each row in each of the loads.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// How often everything is loaded afresh.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub loads: u32,
}

/// A row of the result.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The package.
    pub package: &'static str,
    /// The settings and the packet.
    pub case: String,
    /// What it is beside.
    pub peer: &'static str,
    /// The package, lowest, nanoseconds a packet.
    pub min_ns: u32,
    /// The package, middle.
    pub median_ns: u32,
    /// The peer, lowest; none where it cannot do this.
    pub peer_min_ns: Option<u32>,
    /// The peer, middle.
    pub peer_median_ns: Option<u32>,
    /// Measurements of each.
    pub runs: usize,
}

/// What a row is about, in the order of the table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Case {
    package: &'static str,
    peer: &'static str,
    size: u32,
    name: String,
}

/// A package or its peer on one packet.
struct Subject {
    case: Case,
    of_peer: bool,
    packet: Vec<u8>,
    repeat: u32,
    program: Program,
}

#[derive(Clone)]
enum Program {
    Package(std::rc::Rc<Loaded>),
    Peer(std::rc::Rc<Peer>),
}

/// Another's program, with what keeps its maps.
struct Peer {
    _object: Ebpf,
    program: OwnedFd,
    _pins: BpffsDir,
}

impl Program {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Package(loaded) => loaded.program(),
            Self::Peer(peer) => peer.program.as_fd(),
        }
    }
}

impl Subject {
    /// One that returns this verdict; finds how often to repeat it.
    fn new(case: &Case, program: &Program, packet: &[u8], verdict: i32) -> Result<Self> {
        let mut subject = Self {
            case: case.clone(),
            of_peer: matches!(program, Program::Peer(_)),
            packet: packet.to_vec(),
            repeat: 10_000,
            program: program.clone(),
        };
        let (found, duration) = subject.run(subject.repeat)?;
        let who = if subject.of_peer { subject.case.peer } else { subject.case.package };
        ensure!(found == verdict, "{who} returned {found}, not {verdict}: {}", subject.case.name);
        subject.repeat = (MEASUREMENT / duration.max(1)).max(1000);
        Ok(subject)
    }

    /// Runs the packet `repeat` times; the verdict and the mean time, nanoseconds.
    fn run(&self, repeat: u32) -> Result<(i32, u32)> {
        let run = TestRun { data: &self.packet, repeat, ..TestRun::default() };
        loop {
            match sys::prog_test_run(&self.program.fd(), &run) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                result => {
                    let output = result.context("run a program on a packet")?;
                    return Ok((output.retval.cast_signed(), output.duration));
                }
            }
        }
    }
}

/// Measures.
pub fn run(options: &Options) -> Result<Report<Row>> {
    let filter = std::fs::read_dir("/usr/lib")?
        .flatten()
        .map(|entry| entry.path().join(XDP_FILTER))
        .find(|path| path.is_file())
        .with_context(|| format!("there is no {XDP_FILTER} below /usr/lib: install xdp-tools"))?;
    stay_on_one_cpu()?;
    let mut measured: BTreeMap<(Case, bool), Vec<u32>> = BTreeMap::new();
    for load in 1..=options.loads {
        eprintln!("load {load} of {}: building", options.loads);
        let subjects = build(&filter)?;
        for run in 1..=options.runs {
            if run == 1 || run % 4 == 0 {
                eprintln!("load {load} of {}: run {run} of {}", options.loads, options.runs);
            }
            for subject in &subjects {
                let key = (subject.case.clone(), subject.of_peer);
                measured.entry(key).or_default().push(subject.run(subject.repeat)?.1);
            }
        }
    }
    let mut rows = Vec::new();
    for ((case, of_peer), runs) in &measured {
        if *of_peer {
            continue;
        }
        let summary = Summary::of(runs).context("a row has measurements")?;
        let peer = measured.get(&(case.clone(), true)).and_then(|runs| Summary::of(runs));
        rows.push(Row {
            package: case.package,
            case: case.name.clone(),
            peer: case.peer,
            min_ns: summary.min,
            median_ns: summary.median,
            peer_min_ns: peer.map(|peer| peer.min),
            peer_median_ns: peer.map(|peer| peer.median),
            runs: runs.len(),
        });
    }
    Ok(Report {
        bench: "packages",
        kernel: crate::report::kernel()?,
        ratios: ratios(&rows),
        table: table(&rows),
        rows,
    })
}

fn build(filter: &Path) -> Result<Vec<Subject>> {
    let mut subjects = Vec::new();
    for size in SIZES {
        firewall(filter, size, &mut subjects)?;
    }
    ratelimit(&mut subjects)?;
    flowmeter(&mut subjects)?;
    Ok(subjects)
}

/// Address number `i` of those that are blocked, spread over a network.
fn blocked4(i: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0000 | i.wrapping_mul(2_654_435_761) >> 8)
}

fn blocked6(i: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(0x2001_0db8_u128 << 96 | u128::from(i.wrapping_mul(2_654_435_761)))
}

/// Half of the rules for each family, and packets of a blocked source and of another.
fn firewall(filter: &Path, size: u32, subjects: &mut Vec<Subject>) -> Result<()> {
    let case = |name: String, peer| Case { package: "firewall", peer, size, name };
    let body = udp(1000, 53, b"query");
    let packets = [
        ("IPv4, blocked", Ipv4::from(&blocked4(size / 4).to_string()).frame(&body), DROP),
        ("IPv4, not listed", Ipv4::from("192.0.2.77").frame(&body), PASS),
        ("IPv6, blocked", Ipv6::from(&blocked6(size / 4).to_string()).frame(&body), DROP),
        ("IPv6, not listed", Ipv6::from("2001:db9::77").frame(&body), PASS),
    ];
    let half = size / 2;
    let addresses: Vec<String> = (0..half)
        .map(|i| blocked4(i).to_string())
        .chain((0..half).map(|i| blocked6(i).to_string()))
        .collect();
    let package = Loaded::new("firewall", Hook::Xdp, &json!({ "blocked": addresses }))?;
    let package = Program::Package(package.into());
    let peer = Program::Peer(xdp_filter(filter, half)?.into());
    for (name, packet, verdict) in &packets {
        let case = case(format!("{size} addresses, {name}"), "xdp-filter");
        for program in [&package, &peer] {
            subjects.push(Subject::new(&case, program, packet, *verdict)?);
        }
    }

    // What xdp-filter cannot: networks, in tries.
    let networks: Vec<String> = (0..half)
        .map(|i| format!("10.{}.{}.0/24", i / 256, i % 256))
        .chain((0..half).map(|i| format!("2001:db8:{i:x}::/48")))
        .collect();
    let package = Loaded::new("firewall", Hook::Xdp, &json!({ "blocked": networks }))?;
    let package = Program::Package(package.into());
    let packets = [
        ("IPv4, blocked", Ipv4::from(&format!("10.0.{}.1", half / 2 % 256)).frame(&body), DROP),
        ("IPv4, not listed", Ipv4::from("192.0.2.77").frame(&body), PASS),
    ];
    for (name, packet, verdict) in &packets {
        let case = case(format!("{size} networks, {name}"), "");
        subjects.push(Subject::new(&case, &package, packet, *verdict)?);
    }
    Ok(())
}

/// xdp-filter that denies the first `count` addresses of each family as sources.
fn xdp_filter(file: &Path, count: u32) -> Result<Peer> {
    let pins = BpffsDir::new()?;
    let mut object = EbpfLoader::new()
        .default_map_pin_directory(pins.path())
        .load_file(file)
        .with_context(|| format!("load {}", file.display()))?;
    let cpus = nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?;
    let values = || PerCpuValues::try_from(vec![FILTER_SOURCE; cpus]);
    let map = object.map_mut("filter_ipv4").context("xdp-filter has no filter_ipv4")?;
    let mut ipv4: PerCpuHashMap<_, [u8; 4], u64> = PerCpuHashMap::try_from(map)?;
    for i in 0..count {
        ipv4.insert(blocked4(i).octets(), values()?, 0)?;
    }
    let map = object.map_mut("filter_ipv6").context("xdp-filter has no filter_ipv6")?;
    let mut ipv6: PerCpuHashMap<_, [u8; 16], u64> = PerCpuHashMap::try_from(map)?;
    for i in 0..count {
        ipv6.insert(blocked6(i).octets(), values()?, 0)?;
    }
    peer(object, "xdpfilt_alw_ip", pins)
}

/// Loads the program of a peer's object.
fn peer(mut object: Ebpf, name: &str, pins: BpffsDir) -> Result<Peer> {
    let program = object.program_mut(name).with_context(|| format!("there is no {name}"))?;
    let fd = if let Ok(xdp) = <&mut Xdp>::try_from(&mut *program) {
        xdp.load()?;
        xdp.fd()?.as_fd().try_clone_to_owned()?
    } else {
        let classifier: &mut SchedClassifier = program.try_into()?;
        classifier.load()?;
        classifier.fd()?.as_fd().try_clone_to_owned()?
    };
    Ok(Peer { _object: object, program: fd, _pins: pins })
}

/// A peer of our own making.
fn own_peer(file: &str) -> Result<(Ebpf, BpffsDir)> {
    let source = canopy_test_support::repository().join("tests/bench/programs").join(file);
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("peer.o");
    canopy_test_support::compile(&source, &out)?;
    let pins = BpffsDir::new()?;
    Ok((Ebpf::load_file(&out).with_context(|| format!("load {file}"))?, pins))
}

/// A source within its rate and one above it.
fn ratelimit(subjects: &mut Vec<Subject>) -> Result<()> {
    let body = udp(1000, 53, b"query");
    let packets = [
        ("IPv4", Ipv4::from("192.0.2.77").frame(&body)),
        ("IPv6", Ipv6::from("2001:db8::77").frame(&body)),
    ];
    // More than a test run sends, and next to nothing.
    for (name, rate, burst, verdict) in
        [("passed", 10_000_000, 1_000_000, PASS), ("limited", 1, 1, DROP)]
    {
        let settings = json!({ "rate": rate, "burst": burst });
        let package = Loaded::new("ratelimit", Hook::Xdp, &settings)?;
        let package = Program::Package(package.into());
        let (mut object, pins) = own_peer("peer_ratelimit.bpf.c")?;
        let map = object.map_mut("config").context("the peer has no config")?;
        let mut config: Array<_, [u32; 2]> = Array::try_from(map)?;
        config.set(0, [rate, burst], 0)?;
        let peer = Program::Peer(peer(object, "peer", pins)?.into());
        for (family, packet) in &packets {
            let case = Case {
                package: "ratelimit",
                peer: "token bucket by spin lock",
                size: 0,
                name: format!("{family}, {name}"),
            };
            for program in [&package, &peer] {
                subjects.push(Subject::new(&case, program, packet, verdict)?);
            }
        }
    }
    Ok(())
}

fn flowmeter(subjects: &mut Vec<Subject>) -> Result<()> {
    let body = udp(1000, 53, b"query");
    let package = Loaded::new("flowmeter", Hook::TcIngress, &json!({}))?;
    let package = Program::Package(package.into());
    let (object, pins) = own_peer("peer_flows.bpf.c")?;
    let peer = Program::Peer(peer(object, "peer", pins)?.into());
    for (name, packet) in [
        ("IPv4", Ipv4::from("192.0.2.77").frame(&body)),
        ("IPv6", Ipv6::from("2001:db8::77").frame(&body)),
    ] {
        let case =
            Case { package: "flowmeter", peer: "flow table", size: 0, name: name.to_owned() };
        subjects.push(Subject::new(&case, &package, &packet, -1)?);
        subjects.push(Subject::new(&case, &peer, &packet, 0)?);
    }
    Ok(())
}

/// The package against its peer, by the lowest of each; of several packets the worst.
fn ratios(rows: &[Row]) -> BTreeMap<String, f64> {
    let mut ratios: BTreeMap<String, f64> = BTreeMap::new();
    for row in rows {
        let Some(peer) = row.peer_min_ns else { continue };
        let name = match row.package {
            "firewall" => {
                let size = row.case.split(' ').next().unwrap_or_default();
                format!("firewall_{size}_vs_xdp_filter")
            }
            package => format!("{package}_vs_peer"),
        };
        let ratio = (f64::from(row.min_ns) / f64::from(peer) * 1000.0).round() / 1000.0;
        let worst = ratios.entry(name).or_insert(ratio);
        *worst = worst.max(ratio);
    }
    ratios
}

/// Nanoseconds a packet, lowest / middle.
fn table(rows: &[Row]) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<10} {:<34} {:>11} {:>11} {:>6}  {}",
        "package", "ns a packet, min / median", "package", "peer", "ratio", "peer"
    )];
    for row in rows {
        let cell = |min: u32, median: u32| format!("{min} / {median}");
        let peer = match (row.peer_min_ns, row.peer_median_ns) {
            (Some(min), Some(median)) => cell(min, median),
            _ => "-".to_owned(),
        };
        let ratio = row.peer_min_ns.map_or_else(String::new, |peer| {
            format!("{:.2}", f64::from(row.min_ns) / f64::from(peer))
        });
        lines.push(format!(
            "{:<10} {:<34} {:>11} {peer:>11} {ratio:>6}  {}",
            row.package,
            row.case,
            cell(row.min_ns, row.median_ns),
            row.peer
        ));
    }
    lines
}
