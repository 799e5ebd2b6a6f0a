//! The shipped packages against a reference that was written from their READMEs: the verdict on each
//! of very many frames, and every counter, are the same.
#![allow(clippy::indexing_slicing, reason = "test code: a failure is a panic")]

use anyhow::{Context as _, Result, ensure};
use canopy_api::Hook;
use canopy_kernel_tests::{
    frames::{Frames, cut_everywhere},
    package::{Loaded, number},
    reference::{self, Firewall, FirewallCounter, Flow, Metered, Source},
};
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

const DROP: i32 = 1;
const PASS: i32 = 2;
/// `TC_ACT_UNSPEC`.
const NEXT: i32 = -1;

/// Random frames for each package; by `--full` so many that the rarest combinations come.
fn count() -> usize {
    if std::env::var_os("CANOPY_TEST_FULL").is_some_and(|full| full == "1") {
        2_000_000
    } else {
        34_000
    }
}

/// A seed of this run's own, told when something differs: the same frames come again with
/// `CANOPY_TEST_SEED`.
fn seed() -> Result<u64> {
    std::env::var("CANOPY_TEST_SEED")
        .map_or_else(|_| Ok(rand::random()), |text| text.parse().context("CANOPY_TEST_SEED"))
}

/// Every cut frame, and as many random ones, split among `parts`.
fn frames(seed: u64, parts: usize) -> Vec<Vec<Vec<u8>>> {
    let mut random = Frames::new(seed);
    (0..parts)
        .map(|part| {
            let mut frames = if part == 0 { cut_everywhere() } else { Vec::new() };
            frames.extend((0..count() / parts).map(|_| random.next_frame()));
            frames
        })
        .collect()
}

fn hex(frame: &[u8]) -> String {
    frame.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Runs a frame, which has to end like this.
fn check(loaded: &Loaded, frame: &[u8], expected: i32, seed: u64, why: &str) -> Result<()> {
    let verdict = loaded.run(frame);
    ensure!(verdict == expected, "seed {seed}: {verdict}, not {expected} ({why}): {}", hex(frame));
    Ok(())
}

/// Prefixes of every kind around the addresses that the frames have.
fn rules(random: &mut Frames, count: usize) -> Vec<(IpAddr, u8)> {
    let lengths4 = [0, 8, 16, 24, 29, 30, 31, 32, 32, 32];
    let lengths6 = [0, 16, 32, 48, 64, 96, 126, 127, 128, 128, 128];
    let mut rules = BTreeMap::new();
    for i in 0..count {
        let rule = if i % 2 == 0 {
            let length = lengths4[i / 2 % lengths4.len()];
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            (IpAddr::V4((random.ipv4().to_bits() & mask).into()), length)
        } else {
            let length = lengths6[i / 2 % lengths6.len()];
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            (IpAddr::V6((random.ipv6().to_bits() & mask).into()), length)
        };
        // Nothing is in a list twice; the order is not that of the addresses.
        rules.insert(rule, i);
    }
    let mut rules: Vec<_> = rules.into_iter().collect();
    rules.sort_by_key(|(_, order)| *order);
    rules.into_iter().map(|(rule, _)| rule).collect()
}

fn written(rules: &[(IpAddr, u8)]) -> Vec<String> {
    rules.iter().map(|(address, length)| format!("{address}/{length}")).collect()
}

#[test]
fn firewall_does_what_its_readme_says() -> Result<()> {
    let seed = seed()?;
    let mut random = Frames::new(seed ^ 1);
    let mut whole = rules(&mut random, 60);
    whole.retain(|(address, length)| *length == if address.is_ipv4() { 32 } else { 128 });
    let models = [
        Firewall {
            blocked: rules(&mut random, 40),
            allowed: rules(&mut random, 40),
            ..Firewall::default()
        },
        Firewall {
            // Without the rules that match everybody.
            blocked: rules(&mut random, 40).split_off(4),
            allowed: rules(&mut random, 30).split_off(4),
            drop_malformed: true,
            ..Firewall::default()
        },
        Firewall {
            allowed: rules(&mut random, 40).split_off(6),
            drop_unlisted: true,
            ..Firewall::default()
        },
        // Hash maps alone; and no rule at all.
        Firewall { blocked: whole, drop_malformed: true, ..Firewall::default() },
        Firewall { drop_unlisted: true, drop_malformed: true, ..Firewall::default() },
    ];
    for (model, frames) in models.iter().zip(frames(seed, models.len())) {
        let firewall = Loaded::new(
            "firewall",
            Hook::Xdp,
            &json!({
                "blocked": written(&model.blocked),
                "allowed": written(&model.allowed),
                "drop_unlisted": model.drop_unlisted,
                "drop_malformed": model.drop_malformed,
            }),
        )?;
        let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
        let mut hits = [vec![0; model.blocked.len()], vec![0; model.allowed.len()]];
        for frame in &frames {
            let (passes, counter) = model.judge(frame);
            let verdict = if passes { PASS } else { DROP };
            check(&firewall, frame, verdict, seed, &format!("{counter:?}"))?;
            let name = match counter {
                FirewallCounter::Blocked(item) => {
                    hits[0][item] += 1;
                    "blocked"
                }
                FirewallCounter::Allowed(item) => {
                    hits[1][item] += 1;
                    "allowed"
                }
                FirewallCounter::Unlisted => "unlisted",
                FirewallCounter::Malformed => "malformed",
                FirewallCounter::Other => "other",
            };
            *expected.entry(name).or_default() += 1;
        }
        for name in ["blocked", "allowed", "unlisted", "malformed", "other"] {
            let counted = firewall.metric(name);
            assert_eq!(counted, expected.get(name).copied().unwrap_or(0), "{name}, seed {seed}");
        }
        for (map, hits) in ["fw_blocked_hits", "fw_allowed_hits"].into_iter().zip(&hits) {
            for (slot, hits) in (0..).zip(hits) {
                assert_eq!(firewall.sum(map, slot, 0), *hits, "slot {slot} of {map}, seed {seed}");
            }
        }
    }
    Ok(())
}

fn monotonic() -> Result<u64> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    Ok(u64::try_from(now.as_nanos())?)
}

/// `struct source` of ratelimit.bpf.c.
fn source(key: &[u8]) -> Result<Source> {
    let address: [u8; 16] = key[..16].try_into()?;
    let address = Ipv6Addr::from(address);
    Ok(match u32::from_ne_bytes(key[16..20].try_into()?) {
        0 => Source::TooManyTags,
        1 => Source::Neighbour(address),
        4 => Source::V4(address.to_ipv4_mapped().context("an IPv4 source")?),
        6 => Source::V6(address),
        kind => anyhow::bail!("a source of kind {kind}"),
    })
}

#[test]
fn ratelimit_finds_the_sources_its_readme_names() -> Result<()> {
    let seed = seed()?;
    let prefixes = [128, 64, 1, 32, 33, 63, 65, 96, 127, 48];
    for (prefix, frames) in prefixes.into_iter().zip(frames(seed, prefixes.len())) {
        // One token a second: in a bucket is when it will be full, so how many were taken.
        let settings = json!({ "rate": 1, "burst": 1_000_000, "ipv6_prefix": prefix });
        let limit = Loaded::new("ratelimit", Hook::Xdp, &settings)?;
        let mut expected: BTreeMap<Source, u64> = BTreeMap::new();
        let mut exempt = 0;
        let start = monotonic()?;
        for frame in &frames {
            match reference::source(frame, prefix) {
                Some(source) => *expected.entry(source).or_default() += 1,
                None => exempt += 1,
            }
            check(&limit, frame, PASS, seed, "far within the burst")?;
        }
        let seconds = (monotonic()? - start) / 1_000_000_000;
        assert_eq!(limit.metric("exempt"), exempt, "seed {seed}");
        assert_eq!(limit.metric("passed"), frames.len() as u64 - exempt, "seed {seed}");
        assert_eq!(limit.metric("limited"), 0);
        let mut taken = BTreeMap::new();
        for (key, bucket) in limit.entries("rl_sources") {
            let (full_at, interval) = (number(&bucket[0], 0), number(&bucket[0], 8));
            taken.insert(source(&key)?, (full_at - (start << 4)) / interval);
        }
        assert!(taken.keys().eq(expected.keys()), "/{prefix}, seed {seed}");
        for (source, packets) in expected {
            // Each second that went by before the first packet shows as one more.
            let taken = taken[&source];
            assert!(
                (packets..=packets + seconds).contains(&taken),
                "{source:?}: {taken}, not {packets}; /{prefix}, seed {seed}"
            );
        }
    }
    Ok(())
}

#[test]
fn ratelimit_limits_each_source_on_its_own() -> Result<()> {
    const BURST: u64 = 3;
    let seed = seed()?;
    let settings = json!({ "rate": 1, "burst": BURST, "ipv6_prefix": 64 });
    for frames in frames(seed ^ 2, 4) {
        let limit = Loaded::new("ratelimit", Hook::Xdp, &settings)?;
        let mut taken: BTreeMap<Source, u64> = BTreeMap::new();
        let (mut limited, start) = (0, monotonic()?);
        for frame in &frames {
            let Some(source) = reference::source(frame, 64) else {
                check(&limit, frame, PASS, seed, "exempt")?;
                continue;
            };
            let passed = taken.entry(source).or_default();
            if *passed < BURST {
                check(&limit, frame, PASS, seed, "within the burst")?;
                *passed += 1;
                continue;
            }
            let verdict = limit.run(frame);
            // One more for each second, whose beginning is not known.
            let most = BURST + (monotonic()? - start) / 1_000_000_000 + 1;
            if verdict == PASS {
                *passed += 1;
                assert!(*passed <= most, "{passed} of {source:?}, seed {seed}: {}", hex(frame));
            } else {
                limited += 1;
            }
        }
        assert_eq!(limit.metric("passed"), taken.values().sum::<u64>(), "seed {seed}");
        assert_eq!(limit.metric("limited"), limited, "seed {seed}");
    }
    Ok(())
}

/// `struct canopy_tuple` of packet.h.
fn flow(key: &[u8]) -> Result<Flow> {
    let address = |at: usize| -> Result<IpAddr> {
        let bytes: [u8; 16] = key[at..at + 16].try_into()?;
        let address = Ipv6Addr::from(bytes);
        Ok(match key[39] {
            4 => address.to_ipv4_mapped().context("an IPv4 address")?.into(),
            6 => address.into(),
            family => anyhow::bail!("a flow of IP version {family}"),
        })
    };
    ensure!(key[37..39] == [0; 2], "what belongs to a packet is in the key of a flow");
    let port = |at: usize| u16::from_be_bytes([key[at], key[at + 1]]);
    Ok(Flow {
        source: address(0)?,
        destination: address(16)?,
        source_port: port(32),
        destination_port: port(34),
        protocol: key[36],
    })
}

/// A test run at TC refuses an untagged IP frame without a whole IP header; `packages_wire.rs` sends such.
fn is_taken_for_a_buffer(frame: &[u8]) -> bool {
    let least = match &frame[12..14] {
        [0x08, 0x00] => 34,
        [0x86, 0xdd] => 54,
        _ => 14,
    };
    frame.len() >= least
}

#[test]
fn flowmeter_counts_what_its_readme_says() -> Result<()> {
    let seed = seed()?;
    let parts = (count() / 10_000).max(1);
    for (part, frames) in frames(seed, parts).into_iter().enumerate() {
        let hook = if part % 2 == 0 { Hook::TcIngress } else { Hook::TcEgress };
        let meter = Loaded::new("flowmeter", hook, &Value::Object(serde_json::Map::new()))?;
        let mut expected: BTreeMap<Flow, (u64, u64)> = BTreeMap::new();
        let mut totals: BTreeMap<&str, u64> = BTreeMap::new();
        for frame in frames.iter().filter(|frame| is_taken_for_a_buffer(frame)) {
            let metered = reference::meter(frame);
            check(&meter, frame, NEXT, seed, &format!("{metered:?}"))?;
            let bytes = frame.len() as u64;
            let name = match metered {
                Metered::Malformed => "malformed",
                Metered::Other => "other",
                Metered::Flow(flow, fragment) => {
                    let count = expected.entry(flow).or_default();
                    *count = (count.0 + 1, count.1 + bytes);
                    *totals.entry("bytes").or_default() += bytes;
                    *totals.entry("fragments").or_default() += u64::from(fragment);
                    "packets"
                }
            };
            *totals.entry(name).or_default() += 1;
        }
        for name in ["packets", "bytes", "fragments", "malformed", "other", "untracked"] {
            let counted = meter.metric(name);
            assert_eq!(counted, totals.get(name).copied().unwrap_or(0), "{name}, seed {seed}");
        }
        let mut flows = BTreeMap::new();
        for (key, count) in meter.entries("fm_flows") {
            flows.insert(flow(&key)?, (number(&count[0], 0), number(&count[0], 8)));
        }
        for (flow, count) in &expected {
            assert_eq!(flows.get(flow), Some(count), "{flow:?}, seed {seed}");
        }
        assert_eq!(flows.len(), expected.len(), "seed {seed}");
    }
    Ok(())
}
