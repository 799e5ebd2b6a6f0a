//! Time series of packages' metrics.

use super::world::{World, atomic, chain, document, named, options, rehearsal};
use canopy_api::{ChainKey, Code, Hook, wire::GetRequest};
use canopy_package::manifest::{self, Metric, PerCpu, Select, ValueType};
use serde_json::Value;

/// Metrics with a time series for each port.
const METRICS: u16 = 5;

fn host() -> World {
    let mut world = World::new();
    world.publish_with("count", "1.0.0", b"count", |manifest| {
        manifest.metrics = (0..METRICS)
            .map(|n| Metric {
                name: format!("packets_{n}"),
                help: "Packets to a port".to_owned(),
                kind: manifest::MetricKind::Counter,
                map: "kept".to_owned(),
                select: Select::Items {
                    label: "port".to_owned(),
                    config: "ports".to_owned(),
                    first: 0,
                },
                offset: 0,
                value: ValueType::U64,
                per_cpu: PerCpu::Sum,
            })
            .collect();
    });
    world
}

fn counting(interface: &str, ports: u16) -> Value {
    let ports: Vec<u16> = (1..=ports).collect();
    chain(interface, &[("a", "block", &[]), ("b", "count", &ports)])
}

#[test]
fn more_time_series_than_a_host_tells_are_refused() {
    let world = host();
    let engine = world.start();
    world.apply(&engine, document(&[counting("eth0", 6_000)])).unwrap();
    world.changing_calls();
    for options in [options(), atomic(), rehearsal()] {
        let error =
            world.apply_with(&engine, document(&[counting("eth1", 6_000)]), &options).unwrap_err();
        let error = error.into_api();
        assert_eq!(error.code, Code::Invalid);
        for said in
            ["60000 time series", "30000 of them on eth1/xdp", "\"b\" of count 1.0.0", "50000"]
        {
            assert!(error.message.contains(said), "{said}: {}", error.message);
        }
        assert_eq!(error.path, "document.chains[0].programs[1]");
        assert!(error.remedy.is_some());
    }
    assert_eq!(world.changing_calls(), [], "nothing was begun");
    // Both at once are no better; up to the bound is.
    let both = document(&[counting("eth0", 6_000), counting("eth1", 6_000)]);
    world.apply(&engine, both).unwrap_err();
    world.apply(&engine, document(&[counting("eth1", 4_000)])).unwrap();
    // Where there are many, what adds none is changed as ever.
    world.apply(&engine, document(&[counting("eth0", 6_000)])).unwrap();
    world.apply(&engine, document(&[counting("eth0", 5_999)])).unwrap();
    world.apply(&engine, document(&[counting("eth0", 6_001)])).unwrap_err();
}

/// Nobody is asked when an interface is plugged in: it has its chain, and metrics within the bound.
#[test]
fn what_comes_by_hot_plug_is_told_within_the_bound() {
    let world = host();
    let engine = world.start();
    world.apply(&engine, document(&[counting("eth*", 4_000)])).unwrap();
    world.kernel.add_interface(&"eth2".parse().unwrap());
    engine.tick();
    for interface in ["eth0", "eth1", "eth2"] {
        let key = ChainKey { netns: None, interface: interface.parse().unwrap(), hook: Hook::Xdp };
        assert!(world.kernel.running(&key).is_some(), "{interface}");
        for slot in 0..4_000_u32 {
            let (slot, value) = (slot.to_ne_bytes(), 1_u64.to_ne_bytes());
            world.kernel.write_map(&key, &named("b"), "kept", &slot, &value);
        }
    }
    let told = |engine: &crate::engine::Engine<_>| -> usize {
        let reports = engine.report(&GetRequest::default()).unwrap();
        let programs = reports.iter().flat_map(|report| &report.status.programs);
        programs.map(|program| program.metrics.len()).sum()
    };
    assert_eq!(told(&engine), 50_000);
}
