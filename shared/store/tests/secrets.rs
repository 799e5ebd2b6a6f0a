//! Secrets of AWS Secrets Manager, against moto, which verifies signatures.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use canopy_secrets::SecretError;
use canopy_store::SecretSource;
use canopy_test_support::stores::Secrets;
use serde_json::{Value, json};
use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt as _};

fn read(source: &Value) -> Result<String, SecretError> {
    let source: SecretSource = serde_json::from_value(source.clone()).unwrap();
    source.read().map(|secret| secret.as_str().to_owned())
}

fn with(source: &Value, field: &str, value: Value) -> Value {
    let mut source = source.clone();
    source["aws_secrets_manager"][field] = value;
    source
}

#[test]
fn a_secret_is_read_as_it_is_now_and_as_it_was_before() {
    let secrets = Secrets::start().unwrap();
    secrets.put("canopy/signing", Some("one")).unwrap();
    let current = secrets.source("canopy/signing");
    let previous = with(&current, "version_stage", json!("AWSPREVIOUS"));
    assert_eq!(read(&current).unwrap(), "one");
    read(&previous).unwrap_err();
    secrets.put("canopy/signing", Some("two")).unwrap();
    assert_eq!((read(&current).unwrap(), read(&previous).unwrap()), ("two".into(), "one".into()));

    secrets.put("canopy/fields", Some(r#"{"seed": "hush", "other": "x"}"#)).unwrap();
    let fields = secrets.source("canopy/fields");
    assert_eq!(read(&with(&fields, "field", json!("seed"))).unwrap(), "hush");
}

/// From a thread that works for others as well: the policy service starts there.
#[tokio::test]
async fn a_secret_is_read_inside_a_runtime() {
    let secrets = Secrets::start().unwrap();
    secrets.put("x", Some("one")).unwrap();
    assert_eq!(read(&secrets.source("x")).unwrap(), "one");
}

#[test]
fn what_cannot_be_had_is_told_without_what_it_is() {
    let secrets = Secrets::start().unwrap();
    secrets.put("text", Some("hush-hush")).unwrap();
    secrets.put("binary", None).unwrap();
    let text = secrets.source("text");

    let stranger = secrets.source("text");
    let keys = tempfile::NamedTempFile::new().unwrap();
    fs::write(keys.path(), r#"{"access_key_id": "AKIAX", "secret_access_key": "wrong"}"#).unwrap();
    fs::set_permissions(keys.path(), fs::Permissions::from_mode(0o600)).unwrap();
    let good_key: Value = {
        let file = stranger["aws_secrets_manager"]["credentials"]["file"].as_str().unwrap();
        serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
    };
    // The right user's id, signed with another key.
    let forged = tempfile::NamedTempFile::new().unwrap();
    let half = json!({ "access_key_id": good_key["access_key_id"], "secret_access_key": "wrong" });
    fs::write(forged.path(), half.to_string()).unwrap();
    fs::set_permissions(forged.path(), fs::Permissions::from_mode(0o600)).unwrap();

    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (source, said) in [
        (secrets.source("absent"), "ResourceNotFoundException"),
        (secrets.source("binary"), "it is binary"),
        (with(&text, "field", json!("seed")), "no JSON object"),
        (with(&text, "credentials", json!({ "file": keys.path() })), "HTTP 4"),
        (with(&text, "credentials", json!({ "file": forged.path() })), "HTTP 4"),
        (with(&text, "endpoint", json!(format!("http://{nobody}"))), "refused"),
    ] {
        let error = read(&source).unwrap_err();
        let told = format!("{error}; {}", error.remedy);
        assert!(told.contains(said), "{told}");
        assert!(told.contains("AWS secret ") && !error.remedy.is_empty(), "{told}");
        assert!(!told.contains("hush") && !told.contains("wrong"), "{told}");
    }
    let loose = with(&text, "credentials", json!({ "file": keys.path() }));
    fs::set_permissions(keys.path(), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(read(&loose).unwrap_err().to_string().contains("0644"));
}

#[test]
fn a_way_without_protection_is_named() {
    let check = |source: Value| {
        let source: SecretSource = serde_json::from_value(source).unwrap();
        let mut problems = canopy_api::Problems::default();
        source.check("auth.issuer_seed", &mut problems);
        problems.into_result().map_err(|problems| problems.to_string())
    };
    let aws = |more: Value| {
        let mut fields = json!({ "secret_id": "x", "region": "us-east-1" });
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "aws_secrets_manager": fields })
    };
    check(aws(json!({}))).unwrap();
    check(aws(json!({ "endpoint": "https://secrets.internal" }))).unwrap();
    let said = check(aws(json!({ "endpoint": "http://secrets.internal" }))).unwrap_err();
    assert!(said.contains("aws_secrets_manager.endpoint") && said.contains("plaintext"), "{said}");
    check(aws(json!({ "endpoint": "x" }))).unwrap_err();
    check(aws(json!({ "credentials": "anonymous" }))).unwrap_err();
}
