//! Metrics of packages as a scraper sees them.

use super::world::*;
use crate::{engine::Engine, metrics::LoaderCollector};
use canopy_api::ChainKey;
use canopy_kernel::{
    Kernel as _, MapPlace,
    fake::{Call, FakeKernel, Fault},
};
use canopy_package::manifest::{KeyLabel, KeyType, Metric, MetricKind, PerCpu, Select, ValueType};
use prometheus::{core::Collector as _, proto::MetricType};
use std::{sync::Arc, time::Duration};

const EVERY: Duration = Duration::from_secs(15);

/// A host whose `block` tells what each key of the map `kept` holds.
fn world() -> World {
    let mut world = World::new();
    publish(&mut world, "1.0.0");
    world
}

fn publish(world: &mut World, version: &str) {
    let object = format!("metrics {version}");
    world.publish_with("block", version, object.as_bytes(), |manifest| {
        let key = KeyLabel { label: "source".to_owned(), offset: 0, kind: KeyType::U32 };
        manifest.metrics = vec![Metric {
            name: "seen_total".to_owned(),
            help: "Packets by source".to_owned(),
            kind: MetricKind::Counter,
            map: "kept".to_owned(),
            select: Select::Top { count: 10, labels: vec![key] },
            offset: 0,
            value: ValueType::U64,
            per_cpu: PerCpu::Sum,
        }];
    });
}

fn write(world: &World, key: &ChainKey, source: u32, value: u64) {
    let (at, value) = (source.to_ne_bytes(), value.to_ne_bytes());
    world.kernel.write_map(key, &named("a"), "kept", &at, &value);
}

/// Each series of the package's metric, and the age of all of them.
fn scraped(engine: &Arc<Engine<FakeKernel>>) -> (Vec<(String, String, f64)>, Option<f64>) {
    let families = LoaderCollector::new(Arc::clone(engine)).unwrap().collect();
    let family = |name: &str| families.iter().find(|family| family.name() == name);
    let series = family("canopy_loader_package_block_seen_total").map_or_else(Vec::new, |family| {
        let label = |metric: &prometheus::proto::Metric, name: &str| {
            let found = metric.get_label().iter().find(|label| label.name() == name);
            found.unwrap().value().to_owned()
        };
        let metrics = family.get_metric().iter();
        metrics
            .map(|one| {
                (label(one, "interface"), label(one, "source"), one.get_counter().get_value())
            })
            .collect()
    });
    let age = family("canopy_loader_sample_age_seconds");
    (series, age.map(|family| family.get_metric()[0].get_gauge().get_value()))
}

fn of(interface: &str, source: &str, value: f64) -> (String, String, f64) {
    (interface.to_owned(), source.to_owned(), value)
}

#[test]
fn a_scrape_gets_what_was_read_last_and_its_age() {
    let world = world();
    let engine = Arc::new(world.start());
    world.apply(&engine, document(&[chain("eth0", &[("a", "block", &[])])])).unwrap();
    assert_eq!(scraped(&engine), (vec![], None));
    write(&world, &eth0(), 1, 5);
    assert!(engine.sample(EVERY).unwrap());
    assert_eq!(scraped(&engine), (vec![of("eth0", "1", 5.0)], Some(0.0)));

    // Neither a scrape nor the clock's next second reads a map.
    write(&world, &eth0(), 1, 6);
    wait(14);
    assert!(!engine.sample(EVERY).unwrap());
    assert_eq!(scraped(&engine), (vec![of("eth0", "1", 5.0)], Some(14.0)));
    wait(1);
    assert!(engine.sample(EVERY).unwrap());
    assert_eq!(scraped(&engine), (vec![of("eth0", "1", 6.0)], Some(0.0)));
    // A clock that is set back is no reason to wait.
    set_back(100);
    assert!(engine.sample(EVERY).unwrap());
    // The person who asks gets what is so now.
    write(&world, &eth0(), 1, 7);
    assert!((status(&engine, &eth0()).programs[0].metrics[0].value - 7.0).abs() < f64::EPSILON);
}

/// What the manifest calls a counter is one, whatever its name; and nothing else is.
#[test]
fn a_counter_of_a_package_is_exported_as_one() {
    let mut world = world();
    world.publish_with("block", "1.0.0", b"kinds", |manifest| {
        let metric = |name: &str, kind| Metric {
            name: name.to_owned(),
            help: "Packets".to_owned(),
            kind,
            map: "kept".to_owned(),
            select: Select::Top { count: 10, labels: Vec::new() },
            offset: 0,
            value: ValueType::U64,
            per_cpu: PerCpu::Sum,
        };
        manifest.metrics = vec![
            metric("seen", MetricKind::Counter),
            metric("lost_total", MetricKind::Counter),
            metric("rules_total", MetricKind::Gauge),
            metric("flows", MetricKind::Gauge),
        ];
    });
    let engine = Arc::new(world.start());
    world.apply(&engine, document(&[chain("eth0", &[("a", "block", &[])])])).unwrap();
    write(&world, &eth0(), 1, 5);
    engine.sample(EVERY).unwrap();
    let families = LoaderCollector::new(Arc::clone(&engine)).unwrap().collect();
    let told: Vec<_> = families
        .iter()
        .filter_map(|family| {
            let name = family.name().strip_prefix("canopy_loader_package_block_")?;
            let metric = &family.get_metric()[0];
            let value = match family.get_field_type() {
                MetricType::COUNTER => metric.get_counter().get_value(),
                _ => metric.get_gauge().get_value(),
            };
            Some((name, family.get_field_type(), value.to_string()))
        })
        .collect();
    let (counter, gauge) = (MetricType::COUNTER, MetricType::GAUGE);
    assert_eq!(
        told,
        [
            ("flows", gauge, "5".to_owned()),
            ("lost_total", counter, "5".to_owned()),
            ("rules_total", gauge, "5".to_owned()),
            ("seen_total", counter, "5".to_owned()),
        ]
    );
}

/// What is desired does not depend on what can be read: fewer chains are as desired when one is not.
#[test]
fn desired_chains_are_counted_whatever_the_kernel_says() {
    let world = world();
    let engine = Arc::new(world.start());
    let both =
        document(&[chain("eth0", &[("a", "block", &[])]), chain("eth1", &[("a", "block", &[])])]);
    world.apply(&engine, both).unwrap();
    let counts = || {
        let families = LoaderCollector::new(Arc::clone(&engine)).unwrap().collect();
        ["desired", "active"].map(|what| {
            let name = format!("canopy_loader_chains_{what}");
            let family = families.iter().find(|family| family.name() == name).unwrap();
            family.get_metric()[0].get_gauge().get_value().to_string()
        })
    };
    assert_eq!(counts(), ["2", "2"]);
    world.kernel.remove_interface(&eth1().interface);
    assert_eq!(counts(), ["2", "1"]);
    engine.drain(false, false).unwrap();
    assert_eq!(counts(), ["2", "0"]);
}

#[test]
fn series_of_what_is_gone_are_gone() {
    let mut world = world();
    let engine = Arc::new(world.start());
    let both =
        document(&[chain("eth0", &[("a", "block", &[])]), chain("eth1", &[("a", "block", &[])])]);
    world.apply(&engine, both).unwrap();
    for (key, source) in [(eth0(), 1), (eth0(), 2), (eth1(), 3)] {
        write(&world, &key, source, 9);
    }
    engine.sample(EVERY).unwrap();
    let (one, two, three) = (of("eth0", "1", 9.0), of("eth0", "2", 9.0), of("eth1", "3", 9.0));
    assert_eq!(scraped(&engine).0, [one.clone(), two.clone(), three]);

    // A chain: at once.
    engine.delete(&deletion(&eth1(), None), &options()).unwrap();
    assert_eq!(scraped(&engine).0, [one.clone(), two]);
    assert!(engine.sample(EVERY).unwrap(), "what runs has changed");

    // A key: when the map is read next.
    let (key, member) = (eth0(), named("a"));
    let generation = world.kernel.running(&key).unwrap();
    let place = MapPlace { key: &key, generation, member: &member, map: "kept" };
    assert!(world.kernel.map_delete(place, &2_u32.to_ne_bytes()).unwrap());
    wait(15);
    engine.sample(EVERY).unwrap();
    assert_eq!(scraped(&engine).0, [one]);

    // A version: its numbers are not those of the next one.
    publish(&mut world, "1.1.0");
    world.apply(&engine, document(&[chain("eth0", &[("a", "block", &[])])])).unwrap();
    assert_eq!(scraped(&engine).0, []);
    engine.sample(EVERY).unwrap();
    write(&world, &eth0(), 4, 1);
    wait(15);
    engine.sample(EVERY).unwrap();
    assert!(scraped(&engine).0.contains(&of("eth0", "4", 1.0)));
}

#[test]
fn a_kernel_that_cannot_be_read_keeps_the_last_sample_and_its_age_tells() {
    let world = world();
    let engine = Arc::new(world.start());
    world.apply(&engine, document(&[chain("eth0", &[("a", "block", &[])])])).unwrap();
    write(&world, &eth0(), 1, 5);
    engine.sample(EVERY).unwrap();
    wait(20);
    world.kernel.inject(Call::Observe, 0, Fault::Fail);
    engine.sample(EVERY).unwrap_err();
    assert_eq!(scraped(&engine), (vec![of("eth0", "1", 5.0)], Some(20.0)));
}
