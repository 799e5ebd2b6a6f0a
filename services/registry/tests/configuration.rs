//! What a configuration may not say.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests"
)]

use canopy_api::document::{self, Format};
use canopy_registry::Config;
use canopy_runtime::ServiceConfig as _;
use serde_json::{Value, json};

const KEY: &str = "RWSWm74B8DHYJAAyv769Vu/CdB1YkGA2bSkOhWWlsUDghIrsGUI+FFLQ";

fn paths(repositories: &Value) -> Vec<String> {
    let config = json!({
        "bus": { "url": "tls://127.0.0.1:4222", "ca": "ca", "cert": "cert", "key": "key" },
        "repositories": repositories,
    });
    let checked = document::load::<Config>(&config.to_string(), Format::Json)
        .and_then(|config| config.check());
    checked.err().map_or_else(Vec::new, |bad| bad.0.into_iter().map(|p| p.path).collect())
}

fn repository(name: &str, packages: &[&str]) -> Value {
    json!({ "name": name, "url": "file:///srv/x", "packages": packages, "keys": [{ "key": KEY }] })
}

#[test]
fn a_good_configuration_is_accepted() {
    let more = [repository("all", &["*"]), repository("own", &["firewall", "net-*"])];
    assert_eq!(paths(&json!(more)), [""; 0]);
}

#[test]
fn mistakes_are_told_with_their_place() {
    let with = |field: &str, value: Value| {
        let mut one = repository("one", &["*"]);
        one[field] = value;
        paths(&json!([one]))
    };
    assert_eq!(with("url", json!("ftp://host/x")), ["repositories[0].url"]);
    assert_eq!(with("url", json!("https://me:secret@host/x")), ["repositories[0].url"]);
    assert_eq!(with("url", json!("http://host/x")), ["repositories[0].url"]);
    assert_eq!(with("url", json!("s3://bucket")), ["repositories[0].store.region"]);
    assert_eq!(with("url", json!("file://relative")), ["repositories[0].url"]);
    assert_eq!(with("name", json!("Not A Name")), ["repositories[0].name"]);
    assert_eq!(with("packages", json!(["a", "B"])), ["repositories[0].packages[1]"]);
    assert_eq!(with("keys", json!([])), ["repositories[0].keys"]);
    assert_eq!(with("keys", json!([{ "key": KEY, "revoked": true }])), ["repositories[0].keys"]);
    assert_eq!(with("trust", json!("unsigned-development")), ["repositories[0].keys"]);
    let bad = with("keys", json!([{ "key": "RWQ" }]));
    assert!(bad.iter().all(|path| path.starts_with("repositories[0].keys")), "{bad:?}");
    assert!(!paths(&json!([])).is_empty(), "a registry without repositories");
}

#[test]
fn the_way_to_a_store_has_to_fit_it() {
    let with = |url: &str, store: Value| {
        let mut one = repository("one", &["*"]);
        one["url"] = json!(url);
        one["store"] = store;
        let said = paths(&json!([one]));
        said.into_iter().map(|path| path.replace("repositories[0].", "")).collect::<Vec<_>>()
    };
    let minio = "https://minio.internal:9000";
    for (url, store) in [
        ("https://host/x", json!({ "ca": "/etc/canopy/ca.crt" })),
        ("http://host/x", json!({ "transport": "plaintext" })),
        ("s3://bucket/x", json!({ "region": "eu-north-1" })),
        ("s3://bucket/x", json!({ "credentials": "environment" })),
        ("s3://bucket/x", json!({ "endpoint": minio, "credentials": { "file": "/etc/keys" } })),
        ("s3://bucket/x", json!({ "endpoint": minio, "credentials": "anonymous" })),
    ] {
        assert_eq!(with(url, store), [""; 0], "{url}");
    }
    let all = json!({ "endpoint": minio, "region": "x", "ca": "y", "transport": "plaintext" });
    assert_eq!(
        with("file:///srv/x", all),
        ["store.endpoint", "store.region", "store.ca", "store.transport"]
    );
    assert_eq!(with("https://h/x", json!({ "credentials": "anonymous" })), ["store.credentials"]);
    assert_eq!(with("s3://bucket", json!({ "endpoint": "minio:9000" })), ["store.endpoint"]);
    assert_eq!(with("s3://bucket", json!({ "endpoint": "http://m" })), ["store.endpoint"]);
    // A secret has no place in a configuration, by any name.
    assert!(!with("s3://bucket", json!({ "region": "x", "secret_access_key": "y" })).is_empty());

    let mut unsigned = repository("one", &["*"]);
    unsigned["keys"] = json!([]);
    unsigned["trust"] = json!("unsigned-development");
    unsigned["url"] = json!("https://host/x");
    assert_eq!(paths(&json!([unsigned])), ["repositories[0].trust"]);
}

#[test]
fn only_what_is_signed_and_can_be_written_is_published_to() {
    let mut one = repository("one", &["*"]);
    one["writable"] = json!(true);
    assert_eq!(paths(&json!([one])), [""; 0]);
    let mut web = one.clone();
    web["url"] = json!("https://host/x");
    assert_eq!(paths(&json!([web])), ["repositories[0].writable"]);
    one["keys"] = json!([]);
    one["trust"] = json!("unsigned-development");
    assert_eq!(paths(&json!([one])), ["repositories[0].writable"]);
}

#[test]
fn two_repositories_for_one_name_are_ambiguous() {
    let clash = |a: &[&str], b: &[&str]| paths(&json!([repository("a", a), repository("b", b)]));
    assert_eq!(clash(&["firewall"], &["firewall"]), ["repositories[1].packages[0]"]);
    assert_eq!(clash(&["a*"], &["x", "*b"]), ["repositories[1].packages[1]"]);
    assert_eq!(clash(&["a*"], &["b*"]), [""; 0]);
    assert_eq!(clash(&["*"], &["b*"]), [""; 0]);
}
