//! What a certificate says.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use canopy_api::{
    nats::TRUST_DOMAIN,
    san::{SanPatterns, SubjectNames},
    wire::tokens::Binding,
};
use sha2::{Digest as _, Sha256};
use std::{fmt, net::IpAddr};
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    pem::Pem,
    prelude::{FromDer as _, X509Certificate},
};

/// A certificate cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a certificate: {0}")]
pub struct CertificateError(String);

/// The parts of a certificate that say who its holder is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// SHA-256 of the certificate (DER), base64url without padding: `x5t#S256` of RFC 8705.
    pub fingerprint: String,
    /// SHA-256 of its public key, base64url: the same for every certificate of the key.
    pub key_fingerprint: String,
    /// Its subject alternative names. The subject's common name is not among them and counts for
    /// nothing (RFC 6125).
    pub names: SubjectNames,
    /// A Canopy name where none belongs: as an e-mail address, as a DNS name or in the subject. Here it
    /// counts for nothing; elsewhere, as in nats-server's mapping of certificates to users, it may.
    pub misplaced_name: Option<String>,
    /// First second it is valid, since 1970.
    pub not_before: i64,
    /// Last second it is valid, since 1970.
    pub not_after: i64,
}

impl Certificate {
    /// Reads the first certificate of a PEM file.
    pub fn from_pem(pem: &[u8]) -> Result<Self, CertificateError> {
        let mut other = None;
        for block in Pem::iter_from_buffer(pem) {
            let block = block.map_err(|error| CertificateError(error.to_string()))?;
            if block.label == "CERTIFICATE" {
                return Self::from_der(&block.contents);
            }
            other.get_or_insert(block.label);
        }
        let other = other.map_or_else(
            || "without any PEM".to_owned(),
            |label| format!("a {}", label.to_lowercase()),
        );
        Err(CertificateError(format!("it is {other}")))
    }

    /// Reads a certificate in DER.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let bad = |error: &dyn fmt::Display| CertificateError(error.to_string());
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|error| bad(&error))?;
        if !rest.is_empty() {
            return Err(CertificateError("there are bytes behind it".to_owned()));
        }
        let mut names = SubjectNames::default();
        for extension in parsed.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(san) => {
                    for name in &san.general_names {
                        match name {
                            GeneralName::DNSName(name) => names.dns.push((*name).to_owned()),
                            GeneralName::URI(name) => names.uri.push((*name).to_owned()),
                            GeneralName::RFC822Name(name) => names.email.push((*name).to_owned()),
                            GeneralName::IPAddress(bytes) => names.ip.extend(address(bytes)),
                            _ => {}
                        }
                    }
                }
                // A name we cannot read might be the one that matters.
                ParsedExtension::ParseError { error } => return Err(bad(error)),
                _ => {}
            }
        }
        let misplaced_name = misplaced(&names, &parsed);
        Ok(Self {
            fingerprint: URL_SAFE_NO_PAD.encode(Sha256::digest(der)),
            key_fingerprint: URL_SAFE_NO_PAD.encode(Sha256::digest(parsed.public_key().raw)),
            names,
            misplaced_name,
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
        })
    }

    /// The one name of ours it carries: what follows `spiffe://canopy/`. `None` when it has none,
    /// or several: such a certificate says nothing.
    pub fn our_name(&self) -> Option<&str> {
        let mut ours = self.names.uri.iter().filter_map(|uri| uri.strip_prefix(TRUST_DOMAIN));
        let first = ours.next()?;
        ours.next().is_none().then_some(first)
    }

    /// Whether a name of ours is in it, however many.
    pub fn has_our_name(&self) -> bool {
        self.names.uri.iter().any(|uri| uri.starts_with(TRUST_DOMAIN))
    }

    /// Whether one of its names fits one of the patterns.
    pub fn fits(&self, patterns: &SanPatterns) -> bool {
        patterns.fit(&self.names)
    }

    /// Whether a token bound like this goes with it.
    pub fn goes_with(&self, binding: &Binding) -> bool {
        match binding {
            Binding::Fingerprint(fingerprint) => *fingerprint == self.fingerprint,
            Binding::Name(pattern) => pattern.fits(&self.names),
        }
    }
}

/// The first name that reads like one of Canopy's and is no URI. Without regard to case: a DNS name has
/// none.
fn misplaced(names: &SubjectNames, parsed: &X509Certificate<'_>) -> Option<String> {
    let is_ours = |text: &&str| text.to_ascii_lowercase().contains(TRUST_DOMAIN);
    let attributes =
        parsed.subject().iter_attributes().filter_map(|attribute| attribute.as_str().ok());
    let alternative = names.email.iter().chain(&names.dns).map(String::as_str);
    alternative.chain(attributes).find(is_ours).map(str::to_owned)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, SanType};

    fn certificate(sans: Vec<SanType>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = sans;
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    #[test]
    fn every_kind_of_name_is_read() {
        let der = certificate(vec![
            uri("spiffe://canopy/u-alice"),
            SanType::DnsName("a.example".try_into().unwrap()),
            SanType::Rfc822Name("alice@example.org".try_into().unwrap()),
            SanType::IpAddress("10.0.0.1".parse().unwrap()),
            SanType::IpAddress("fd00::1".parse().unwrap()),
        ]);
        let read = Certificate::from_der(&der).unwrap();
        assert_eq!(read.names.dns, ["a.example"]);
        assert_eq!(read.names.email, ["alice@example.org"]);
        assert_eq!(read.names.ip.len(), 2);
        assert_eq!(read.our_name(), Some("u-alice"));
        assert_eq!(read.fingerprint.len(), 43);
    }

    /// nats-server would take each of these for a user of that name.
    #[test]
    fn canopy_names_outside_of_uris_are_found() {
        let name = "spiffe://canopy/s-policy-data";
        let email = SanType::Rfc822Name(name.try_into().unwrap());
        let dns = SanType::DnsName(name.try_into().unwrap());
        for san in [email, dns] {
            let read = Certificate::from_der(&certificate(vec![san])).unwrap();
            assert_eq!(read.misplaced_name.as_deref(), Some(name));
            assert!(!read.has_our_name());
        }
        for attribute in [rcgen::DnType::CommonName, rcgen::DnType::OrganizationName] {
            let mut params = CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(attribute, format!("x,CN={}", name.to_uppercase()));
            let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
            assert!(Certificate::from_der(&der).unwrap().misplaced_name.is_some());
        }
        let good = certificate(vec![uri("spiffe://canopy/h-web1-loader")]);
        assert_eq!(Certificate::from_der(&good).unwrap().misplaced_name, None);
    }

    #[test]
    fn two_names_of_ours_are_none() {
        let der = certificate(vec![uri("spiffe://canopy/u-a"), uri("spiffe://canopy/u-b")]);
        let read = Certificate::from_der(&der).unwrap();
        assert_eq!(read.our_name(), None);
        assert!(read.has_our_name());
        let other = certificate(vec![uri("spiffe://canopyx/u-a")]);
        assert!(!Certificate::from_der(&other).unwrap().has_our_name());
    }

    #[test]
    fn what_is_no_certificate_is_said_so() {
        assert!(Certificate::from_pem(b"hello").is_err());
        let key = KeyPair::generate().unwrap().serialize_pem();
        let said = Certificate::from_pem(key.as_bytes()).unwrap_err().to_string();
        assert!(said.contains("private key"), "{said}");
        let mut long = certificate(vec![]);
        long.push(0);
        assert!(Certificate::from_der(&long).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, at: usize, with: u8) {
            let _ = Certificate::from_der(&bytes);
            let mut real = certificate(vec![uri("spiffe://canopy/u-a")]);
            let at = at % real.len();
            real[at] ^= with;
            let _ = Certificate::from_der(&real);
        }
    }
}
