//! What a package says of itself agrees with what becomes of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests"
)]

mod common;

use canopy_package::bind;
use common::everything;
use serde_json::{Value, json};

/// What the schema takes, the binder takes, and the other way round.
#[test]
fn the_schema_of_the_settings_is_the_binders() {
    let package = everything();
    let schema = jsonschema::validator_for(&package.manifest.config_schema()).unwrap();
    for (config, good) in [
        (json!({}), true),
        (json!({ "rate": 10, "loud": true, "idle": "250ms" }), true),
        (json!({ "rate": 11 }), false),
        (json!({ "rate": "10" }), false),
        (json!({ "idle": "250" }), false),
        (json!({ "loud": 1 }), false),
        (json!({ "peer": "02:00:5E:10:00:0a" }), true),
        (json!({ "peer": "02-00-5e-10-00-01" }), true),
        (json!({ "peer": "02:00:5e:10:00" }), false),
        (json!({ "label": "sixteen letters!" }), false),
        (json!({ "ports": [1, 65535] }), true),
        (json!({ "ports": [0] }), false),
        (json!({ "blocked": ["198.51.100.0/24"] }), true),
        (json!({ "blocked": "198.51.100.0/24" }), false),
        (json!({ "unknown": 1 }), false),
    ] {
        let Value::Object(settings) = config.clone() else { panic!("{config}") };
        let bound = bind(&package.manifest, &settings, "config");
        assert_eq!(bound.is_ok(), good, "the binder: {config}: {bound:?}");
        assert_eq!(schema.is_valid(&config), good, "the schema: {config}");
    }
}

#[test]
fn the_maps_of_the_objects_are_told() {
    let maps = everything().maps();
    let flows = maps.iter().find(|map| map.name == "flows").unwrap();
    assert_eq!(flows.object, "main.o");
    assert_eq!(flows.max_entries, Some(100), "as the manifest says");
    let settings = maps.iter().find(|map| map.name == "settings").unwrap();
    assert_eq!((settings.kind.as_str(), settings.value_size), ("array", Some(16)));
}
