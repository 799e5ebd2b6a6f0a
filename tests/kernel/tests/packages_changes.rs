//! Live changes of every setting of the shipped packages while packets come in: through the loader,
//! as a document that is applied again.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "test code: a failure is a panic"
)]

use anyhow::Result;
use canopy_api::{Hook, wire::ChainStatus};
use canopy_kernel_tests::{
    engine::{Host, Loader},
    packet::{ETH_IPV4, ETH_VLAN, Ipv4, Ipv6, ethernet, udp},
};
use canopy_test_support::{
    pair::{HOST_IP, HOST_LINK, HOST_MAC, PEER_LINK, udp_counter},
    traffic::Flood,
    wait_for,
};
use serde_json::{Value, json};
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

fn apply(host: &Host, loader: &Loader, package: &str, config: &Value) {
    let chains = json!([{ "interface": HOST_LINK, "hook": "xdp", "programs": [
        { "name": "it", "package": package, "config": config },
    ]}]);
    host.apply(loader, &chains).unwrap();
}

fn metric(status: &ChainStatus, name: &str) -> u64 {
    let metrics = &status.programs[0].metrics;
    metrics.iter().find(|m| m.name == name).unwrap_or_else(|| panic!("{status:?}")).value as u64
}

/// A UDP packet to the host, with its header's checksum.
fn to_host(source: &str) -> Vec<u8> {
    let ipv4 = Ipv4 { destination: HOST_IP, ..Ipv4::from(source) };
    let mut packet = ipv4.packet(&udp(9, 9, b"x"));
    let words =
        packet[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet(&[], ETH_IPV4, &packet);
    frame[..6].copy_from_slice(&HOST_MAC);
    frame
}

fn delivered(host: &Host) -> u64 {
    host.pair.host.run(|| udp_counter("NoPorts")).unwrap()
}

#[test]
fn no_change_of_firewall_lets_a_blocked_packet_through() -> Result<()> {
    let host = Host::new();
    let loader = host.start();
    let fixed = ["203.0.113.9", "198.51.100.0/24"];
    let config = |more: &Value| {
        let mut config = json!({ "blocked": fixed });
        for (name, value) in more.as_object().unwrap() {
            config[name] = value.clone();
        }
        config
    };
    apply(&host, &loader, "firewall", &config(&json!({})));
    let tagged = {
        let mut frame = to_host("203.0.113.9");
        let tail = frame.split_off(12);
        [frame, [ETH_VLAN.to_be_bytes(), [0, 0]].concat().repeat(5), tail].concat()
    };
    let frames = vec![to_host("203.0.113.9"), to_host("198.51.100.77"), tagged];
    let flood = Flood::paced(&host.pair.peer, PEER_LINK, frames, Duration::from_micros(200))?;
    let longer: Vec<_> = fixed.iter().copied().chain(["192.0.2.1", "2001:db8::/32"]).collect();
    let reordered: Vec<_> = longer.iter().rev().copied().collect();
    let changes = [
        json!({ "drop_unlisted": true }),
        json!({ "drop_malformed": true }),
        json!({ "allowed": ["192.0.2.0/24", "192.0.2.9"] }),
        json!({ "allowed": ["198.51.0.0/16", "203.0.113.0/24"] }),
        json!({ "blocked": longer }),
        json!({ "blocked": reordered }),
        // In a trie what was in a hash map, and the other way round.
        json!({ "blocked": ["203.0.113.8/31", "198.51.100.77", "198.51.100.0/24"] }),
        json!({}),
    ];
    let mut before = 0;
    for change in &changes {
        apply(&host, &loader, "firewall", &config(change));
        let status = host.status(&loader, Hook::Xdp);
        let blocked = metric(&status, "blocked");
        assert!(blocked >= before, "{change}: {blocked} after {before}");
        before = blocked;
    }
    let sent = flood.stop()?;
    wait_for(Duration::from_secs(10), "every packet to be counted", || {
        match metric(&host.status(&loader, Hook::Xdp), "blocked") {
            blocked if blocked == sent => Ok(()),
            blocked => Err((blocked, sent)),
        }
    })?;
    assert_eq!(delivered(&host), 0);
    Ok(())
}

/// What passes in a third of a second of flood, less what is due at `rate`; and that.
fn passed_beyond(host: &Host, loader: &Loader, rate: f64) -> (f64, f64) {
    let count = || metric(&host.status(loader, Hook::Xdp), "passed");
    let (start, before) = (Instant::now(), count());
    sleep(Duration::from_millis(300));
    let passed = count() - before;
    let due = start.elapsed().as_secs_f64() * rate;
    (passed as f64 - due, due)
}

#[test]
fn every_setting_of_ratelimit_changes_under_load() -> Result<()> {
    let host = Host::new();
    let loader = host.start();
    let set = |rate: u32, burst: u32, prefix: u32| {
        let config = json!({ "rate": rate, "burst": burst, "ipv6_prefix": prefix });
        apply(&host, &loader, "ratelimit", &config);
    };
    set(10, 100, 128);
    // Some 10,000 packets a second of one source.
    let busy = Ipv4::from("10.1.0.1").frame(&udp(1, 2, b""));
    let frames = vec![busy; 10];
    let flood = Flood::paced(&host.pair.peer, PEER_LINK, frames, Duration::from_micros(500))?;
    wait_for(Duration::from_secs(10), "the source to be limited", || {
        match metric(&host.status(&loader, Hook::Xdp), "limited") {
            0 => Err("not yet"),
            _ => Ok(()),
        }
    })?;
    // Rate and burst, up and down; how much more than is due at that rate may pass at once.
    let steps: [(u32, u32, f64); 10] = [
        (1000, 100, 0.0),
        (100, 100, 0.0),
        (1, 100, 0.0),
        (1, 300, 200.0),
        (1000, 300, 0.0),
        (1000, 10, 0.0),
        (1, 10, 0.0),
        (1000, 5000, 4990.0),
        (1, 5000, 0.0),
        (1000, 100, 0.0),
    ];
    for (rate, burst, once) in steps {
        set(rate, burst, 128);
        if once > 0.0 {
            // Until the new tokens are spent.
            wait_for(Duration::from_mins(1), "the source to be limited again", || {
                let limited = metric(&host.status(&loader, Hook::Xdp), "limited");
                sleep(Duration::from_millis(20));
                match metric(&host.status(&loader, Hook::Xdp), "limited") - limited {
                    0 => Err("not yet"),
                    _ => Ok(()),
                }
            })?;
        }
        let (beyond, due) = passed_beyond(&host, &loader, f64::from(rate));
        let name = format!("rate {rate}, burst {burst}: {beyond} beyond {due}");
        let tolerance = 5.0 + due * 0.15;
        assert!(beyond <= once + tolerance, "{name}");
        assert!(beyond >= -tolerance - due * 0.35, "{name}");
    }
    flood.stop()?;

    // Two addresses of a network: two sources, then one.
    set(1, 2, 128);
    let send = |source: &str| {
        let frame = Ipv6::from(source).frame(&udp(1, 2, b""));
        host.pair
            .peer
            .run(|| canopy_test_support::traffic::FrameSender::new(PEER_LINK)?.send(&[frame]))
    };
    let sources = || metric(&host.status(&loader, Hook::Xdp), "sources");
    let before = sources();
    for (prefix, more) in [(128, 2), (64, 1), (128, 0), (32, 1)] {
        set(1, 2, prefix);
        let were = sources();
        send("2001:db8:1:1::1")?;
        send("2001:db8:1:1::2")?;
        wait_for(Duration::from_secs(5), "the sources to be known", || match sources() - were {
            known if known == more => Ok(()),
            known => Err((prefix, known)),
        })?;
    }
    assert_eq!(sources() - before, 4);
    Ok(())
}
