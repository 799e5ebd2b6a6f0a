//! What is signed for hosts, and what is not.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use canopy_api::Principal;
use canopy_identity::{
    Authority, AuthorityError, RequestError, SignError, SigningRequest, belong_together, request,
    request_again,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use x509_parser::pem::parse_x509_pem;

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 86_400;

fn ca(change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "test CA");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    change(&mut params);
    let made = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    (made.pem(), made.key().serialize_pem())
}

fn authority() -> Authority {
    let (certificate, key) = ca(|_| {});
    Authority::new(&certificate, &key).unwrap()
}

fn web1() -> Principal {
    "h-web1-loader".parse().unwrap()
}

fn uri(name: &str) -> SanType {
    SanType::URI(format!("spiffe://canopy/{name}").as_str().try_into().unwrap())
}

fn asking(change: impl FnOnce(&mut CertificateParams)) -> String {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri("h-web1-loader")];
    change(&mut params);
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

#[test]
fn what_is_signed_is_for_one_client_and_a_time() {
    let (key, asked) = request(&web1()).unwrap();
    let asked = SigningRequest::from_pem(asked.as_bytes()).unwrap();
    let signed = authority().sign(&asked, &web1(), NOW, 90 * DAY).unwrap();
    assert_eq!(signed.certificate.our_name(), Some("h-web1-loader"));
    assert_eq!(signed.certificate.key_fingerprint, asked.key_fingerprint());
    let ends = i64::try_from(NOW + 90 * DAY).unwrap();
    assert_eq!(signed.certificate.not_after, ends);
    assert!(belong_together(&signed.pem, &key));

    let (_, block) = parse_x509_pem(signed.pem.as_bytes()).unwrap();
    let parsed = block.parse_x509().unwrap();
    assert!(!parsed.is_ca());
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any);
    assert_eq!(parsed.raw_serial().len(), 16);

    // Another certificate of the same key is another certificate.
    let again = request_again(&web1(), &key).unwrap();
    let again = SigningRequest::from_pem(again.as_bytes()).unwrap();
    assert_eq!(again.key_fingerprint(), asked.key_fingerprint());
    let second = authority().sign(&again, &web1(), NOW, 90 * DAY).unwrap();
    assert_ne!(second.certificate.fingerprint, signed.certificate.fingerprint);
    let other = request(&web1()).unwrap().0;
    assert!(!belong_together(&signed.pem, &other));
}

#[test]
fn another_name_than_the_one_is_not_signed() {
    let two = |params: &mut CertificateParams| params.subject_alt_names.push(uri("u-admin"));
    let dns = |params: &mut CertificateParams| {
        params.subject_alt_names.push(SanType::DnsName("bus.example".try_into().unwrap()));
    };
    for asked in [
        asking(|params| params.subject_alt_names = vec![uri("h-web2-loader")]),
        asking(|params| params.subject_alt_names = vec![uri("u-admin")]),
        asking(|params| params.subject_alt_names = vec![]),
        asking(two),
        asking(dns),
    ] {
        let asked = SigningRequest::from_pem(asked.as_bytes()).unwrap();
        let refused = authority().sign(&asked, &web1(), NOW, DAY).unwrap_err();
        assert!(matches!(refused, SignError::Request(RequestError::Names { .. })), "{refused}");
        assert!(refused.to_string().contains("spiffe://canopy/h-web1-loader"), "{refused}");
    }
}

#[test]
fn more_than_a_name_is_not_signed() {
    for (asked, said) in [
        (asking(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), "authority"),
        (asking(|p| p.key_usages = vec![KeyUsagePurpose::KeyCertSign]), "usages"),
        (
            asking(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            "extended usages",
        ),
    ] {
        let refused = SigningRequest::from_pem(asked.as_bytes()).unwrap_err();
        assert!(matches!(refused, RequestError::More(_)), "{refused}");
        assert!(refused.to_string().contains(said), "{refused}");
    }
}

/// A request whose key somebody else has, or that was changed on its way.
#[test]
fn a_request_not_signed_by_its_key_is_refused() {
    let asked = asking(|_| {});
    let (_, block) = parse_x509_pem(asked.as_bytes()).unwrap();
    let der = block.contents;
    let (mut refused, mut changed) = (0, der.clone());
    let at = der.windows(4).position(|part| part == b"web1").unwrap();
    changed[at + 3] = b'2';
    let pem = |der: &[u8]| {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
            STANDARD.encode(der)
        )
    };
    assert_eq!(
        SigningRequest::from_pem(pem(&changed).as_bytes()).unwrap_err(),
        RequestError::Signature
    );
    // No changed byte makes another request that is believed.
    let whole = SigningRequest::from_pem(pem(&der).as_bytes()).unwrap();
    for at in 0..der.len() {
        let mut spoiled = der.clone();
        spoiled[at] ^= 0x01;
        match SigningRequest::from_pem(pem(&spoiled).as_bytes()) {
            Ok(read) => assert_eq!(read, whole, "byte {at}"),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > der.len() / 2, "{refused}");
    assert!(SigningRequest::from_pem(b"hello").is_err());
    let certificate = ca(|_| {}).0;
    let said = SigningRequest::from_pem(certificate.as_bytes()).unwrap_err().to_string();
    assert!(said.contains("it is a certificate"), "{said}");
}

#[test]
fn who_is_no_authority_signs_nothing() {
    let (certificate, key) = ca(|_| {});
    let (_, other) = ca(|_| {});
    assert_eq!(Authority::new(&certificate, &other).unwrap_err(), AuthorityError::OtherKey);
    assert_eq!(Authority::new(&certificate, "x").unwrap_err(), AuthorityError::Key);
    assert!(Authority::new("x", &key).is_err());
    for change in
        [(|p: &mut CertificateParams| p.is_ca = IsCa::NoCa) as fn(&mut CertificateParams), |p| {
            p.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        }]
    {
        let (certificate, key) = ca(change);
        assert_eq!(Authority::new(&certificate, &key).unwrap_err(), AuthorityError::NotAnAuthority);
    }
}

#[test]
fn nothing_outlives_the_authority() {
    let (certificate, key) = ca(|params| {
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2027, 1, 20);
    });
    let authority = Authority::new(&certificate, &key).unwrap();
    let asked = SigningRequest::from_pem(asking(|_| {}).as_bytes()).unwrap();
    let signed = authority.sign(&asked, &web1(), NOW, 90 * DAY).unwrap();
    assert!(signed.certificate.not_after < i64::try_from(NOW + 90 * DAY).unwrap());
    let late = authority.sign(&asked, &web1(), NOW + 90 * DAY, DAY).unwrap_err();
    assert_eq!(late, SignError::Authority(AuthorityError::Ended));
}
