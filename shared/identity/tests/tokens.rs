//! Tokens: what is believed, and every way not to be.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use canopy_api::{authority::Authority, permission::Role, scope::Scope, wire::tokens::Binding};
use canopy_identity::{
    AUDIENCE, Certificate, Claims, ISSUER, SigningKey, TokenError, VerifyingKeys, Wanted,
    unverified_authority,
};
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519, SanType};
use serde_json::{Value, json};
use std::time::Duration;

const NOW: u64 = 1_800_000_000;

fn key() -> SigningKey {
    SigningKey::from_pem(&KeyPair::generate_for(&PKCS_ED25519).unwrap().serialize_pem()).unwrap()
}

fn certificate(name: &str) -> Certificate {
    let mut params = CertificateParams::default();
    let uri = format!("spiffe://canopy/{name}");
    params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
    let signed = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    Certificate::from_der(signed.der()).unwrap()
}

fn claims(certificate: &Certificate) -> Claims {
    Claims {
        iss: ISSUER.into(),
        aud: AUDIENCE.into(),
        sub: "u-alice".parse().unwrap(),
        role: Role::Admin,
        jti: "t-1".into(),
        generation: 1,
        iat: NOW,
        exp: None,
        cnf: Some(Binding::Fingerprint(certificate.fingerprint.clone())),
        scope: None,
    }
}

fn wanted(certificate: &Certificate) -> Wanted<'_> {
    Wanted { now: NOW, skew: Duration::from_secs(30), certificate }
}

fn pieces(token: &str) -> Vec<String> {
    token.split('.').map(str::to_owned).collect()
}

fn encoded(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

#[test]
fn a_token_is_believed_with_its_certificate_and_no_other() {
    let (key, mine, other) = (key(), certificate("u-alice"), certificate("u-alice"));
    let keys = VerifyingKeys::of([&key]);
    let token = key.sign(&claims(&mine)).unwrap();
    assert_eq!(keys.verify(&token, wanted(&mine)).unwrap(), claims(&mine));
    assert_eq!(keys.verify(&token, wanted(&other)), Err(TokenError::OtherCertificate));

    // Bound to a name: with every certificate of that name.
    let named = Claims {
        cnf: serde_json::from_value(json!({"san": {"uri": {"exact": "spiffe://canopy/u-alice"}}}))
            .unwrap(),
        ..claims(&mine)
    };
    let token = key.sign(&named).unwrap();
    assert!(keys.verify(&token, wanted(&mine)).is_ok());
    assert!(keys.verify(&token, wanted(&other)).is_ok());
    let bob = certificate("u-bob");
    assert_eq!(keys.verify(&token, wanted(&bob)), Err(TokenError::OtherCertificate));
}

#[test]
fn an_owner_reads_role_and_scope_of_a_token() {
    let (key, mine) = (key(), certificate("u-alice"));
    let scope: Scope = serde_json::from_value(json!({ "hosts": ["web*"] })).unwrap();
    let narrowed = Claims { scope: Some(scope.clone()), ..claims(&mine) };
    let token = key.sign(&narrowed).unwrap();
    let authority = unverified_authority(&format!("{token}\n")).unwrap();
    assert_eq!(authority, Authority::new(Role::Admin, Some(&scope)));
    let token = key.sign(&claims(&mine)).unwrap();
    assert_eq!(unverified_authority(&token), Some(Authority::new(Role::Admin, None)));
    // A newer one that narrows by something else: not known, rather than not narrowed.
    let newer = encoded(&json!({ "role": "viewer", "scope": { "networks": ["a"] } }));
    for none in ["", "a", "a.b.c", &format!("e30.{newer}.x"), &"a.".repeat(8192)] {
        assert_eq!(unverified_authority(none), None, "{none}");
    }
}

#[test]
fn admins_and_publishers_are_bound() {
    let (key, mine) = (key(), certificate("u-alice"));
    for role in Role::ALL {
        let unbound = Claims { role, cnf: None, ..claims(&mine) };
        let signed = key.sign(&unbound);
        match role {
            Role::Admin | Role::Publisher => assert_eq!(signed, Err(TokenError::Unbound(role))),
            Role::Viewer | Role::Operator => {
                let keys = VerifyingKeys::of([&key]);
                assert!(keys.verify(&signed.unwrap(), wanted(&mine)).is_ok());
            }
        }
    }
}

#[test]
fn time_is_told_with_tolerance() {
    let (key, mine) = (key(), certificate("u-alice"));
    let keys = VerifyingKeys::of([&key]);
    let at = |iat, exp, now| {
        let token = key.sign(&Claims { iat, exp, ..claims(&mine) }).unwrap();
        keys.verify(&token, Wanted { now, ..wanted(&mine) })
    };
    assert!(at(NOW, Some(NOW + 60), NOW + 59).is_ok());
    assert!(at(NOW, Some(NOW + 60), NOW + 89).is_ok());
    assert_eq!(at(NOW, Some(NOW + 60), NOW + 90), Err(TokenError::Expired(30)));
    assert_eq!(at(NOW, Some(u64::MAX), NOW).map(|_| ()), Ok(()));
    assert!(at(NOW + 30, None, NOW).is_ok());
    assert_eq!(at(NOW + 31, None, NOW), Err(TokenError::Early(31)));
    // Without an end it is valid until it is taken back.
    assert!(at(NOW, None, NOW + 100 * 365 * 86_400).is_ok());
}

#[test]
fn keys_overlap_while_they_are_rotated() {
    let (old, new, mine) = (key(), key(), certificate("u-alice"));
    let token = old.sign(&claims(&mine)).unwrap();
    assert!(VerifyingKeys::of([&new, &old]).verify(&token, wanted(&mine)).is_ok());
    assert_eq!(
        VerifyingKeys::of([&new]).verify(&token, wanted(&mine)),
        Err(TokenError::UnknownKey(old.id().to_owned()))
    );
}

#[test]
fn a_changed_token_is_worth_nothing() {
    let (key, mine) = (key(), certificate("u-alice"));
    let keys = VerifyingKeys::of([&key]);
    let token = key.sign(&claims(&mine)).unwrap();
    let parts = pieces(&token);
    let raised = encoded(&json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": "u-mallory", "role": "admin", "jti": "t-1",
        "gen": 1, "iat": NOW, "cnf": {"x5t#S256": mine.fingerprint}
    }));
    let changed = format!("{}.{raised}.{}", parts[0], parts[2]);
    assert_eq!(keys.verify(&changed, wanted(&mine)), Err(TokenError::Signature));
    for at in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).unwrap();
        // The last character of a piece has bits nobody reads.
        if let Ok(read) = keys.verify(&changed, wanted(&mine)) {
            assert_eq!(read, claims(&mine));
        }
    }
    // Another's key under the name of ours.
    let forged = self::key().sign(&claims(&mine)).unwrap();
    let forged = format!("{}.{}.{}", parts[0], parts[1], pieces(&forged)[2]);
    assert_eq!(keys.verify(&forged, wanted(&mine)), Err(TokenError::Signature));
}

#[test]
fn no_other_algorithm_is_taken() {
    let (key, mine) = (key(), certificate("u-alice"));
    let keys = VerifyingKeys::of([&key]);
    let parts = pieces(&key.sign(&claims(&mine)).unwrap());
    for alg in ["none", "None", "NONE", "", "HS256", "RS256", "ES256", "EdDSA2"] {
        let header = encoded(&json!({"alg": alg, "typ": "JWT", "kid": key.id()}));
        for signature in ["", parts[2].as_str()] {
            let token = format!("{header}.{}.{signature}", parts[1]);
            assert_eq!(keys.verify(&token, wanted(&mine)), Err(TokenError::Algorithm), "{alg}");
        }
    }
    // The public key, which everybody knows, as the secret of an HMAC.
    let secret = URL_SAFE_NO_PAD.decode(key.public()).unwrap();
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
    header.kid = Some(key.id().to_owned());
    let confused = jsonwebtoken::encode(
        &header,
        &claims(&mine),
        &jsonwebtoken::EncodingKey::from_secret(&secret),
    )
    .unwrap();
    assert_eq!(keys.verify(&confused, wanted(&mine)), Err(TokenError::Algorithm));
}

#[test]
fn a_key_in_the_header_is_not_looked_at() {
    let (key, mallory, mine) = (key(), key(), certificate("u-alice"));
    let keys = VerifyingKeys::of([&key]);
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::EdDSA);
    header.kid = Some(mallory.id().to_owned());
    header.jwk = serde_json::from_value(
        json!({"kty": "OKP", "crv": "Ed25519", "x": mallory.public(), "alg": "EdDSA"}),
    )
    .unwrap();
    assert!(header.jwk.is_some());
    let parts = pieces(&mallory.sign(&claims(&mine)).unwrap());
    let token = format!("{}.{}.{}", encoded(&json!(header)), parts[1], parts[2]);
    assert_eq!(
        keys.verify(&token, wanted(&mine)),
        Err(TokenError::UnknownKey(mallory.id().to_owned()))
    );
}

/// Signed by us, and still not a token of a person.
#[test]
fn claims_are_exactly_those_of_a_token() {
    let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let (key, mine) = (SigningKey::from_pem(&pair.serialize_pem()).unwrap(), certificate("u-a"));
    let keys = VerifyingKeys::of([&key]);
    let good = json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": "u-a", "role": "viewer", "jti": "t-1", "gen": 1,
        "iat": NOW
    });
    let signed = |claims: &Value| {
        let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::EdDSA);
        header.kid = Some(key.id().to_owned());
        let secret = jsonwebtoken::EncodingKey::from_ed_der(&pair.serialize_der());
        keys.verify(&jsonwebtoken::encode(&header, claims, &secret).unwrap(), wanted(&mine))
    };
    assert!(signed(&good).is_ok());
    let cases: [(&str, Value, TokenError); 9] = [
        ("iss", json!("evil"), TokenError::Foreign),
        ("aud", json!("other"), TokenError::Foreign),
        ("sub", json!("s-registry"), TokenError::NotAPerson("s-registry".parse().unwrap())),
        ("sub", json!("h-web1-loader"), TokenError::NotAPerson("h-web1-loader".parse().unwrap())),
        ("sub", json!("u-*"), TokenError::Claims),
        ("sub", json!(">"), TokenError::Claims),
        ("role", json!("root"), TokenError::Claims),
        ("more", json!(1), TokenError::Claims),
        ("cnf", json!({}), TokenError::Claims),
    ];
    for (field, value, expected) in cases {
        let mut changed = good.clone();
        changed[field] = value.clone();
        assert_eq!(signed(&changed), Err(expected), "{field}: {value}");
    }
    for missing in ["iss", "aud", "sub"] {
        let mut changed = good.clone();
        changed.as_object_mut().unwrap().remove(missing);
        assert!(signed(&changed).is_err(), "without {missing}");
    }
}

#[test]
fn what_is_no_token_is_said_so() {
    let (key, mine) = (key(), certificate("u-alice"));
    let keys = VerifyingKeys::of([&key]);
    for text in ["", "a", "a.b", "a.b.c", "....", &"a".repeat(10_000)] {
        assert_eq!(keys.verify(text, wanted(&mine)), Err(TokenError::Malformed), "{text:.20}");
    }
}

#[test]
fn a_key_shows_itself_to_nobody() {
    let pem = KeyPair::generate_for(&PKCS_ED25519).unwrap().serialize_pem();
    let key = SigningKey::from_pem(&pem).unwrap();
    let shown = format!("{key:?} {:?}", VerifyingKeys::of([&key]));
    for line in pem.lines().filter(|line| !line.starts_with("--")) {
        assert!(!shown.contains(line));
    }
    let said =
        SigningKey::from_pem("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----")
            .unwrap_err()
            .to_string();
    assert!(!said.contains("c2VjcmV0"), "{said}");
    assert!(SigningKey::from_pem(&KeyPair::generate().unwrap().serialize_pem()).is_err());
}
