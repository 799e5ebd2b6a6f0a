//! Certificates for hosts' daemons: what is asked for, checked, and signed.
//!
//! A certificate is made anew from the name it is for; nothing but the key is taken from who asks.
//! Requests that ask for more than the name are refused and not trimmed: who asks for more has been
//! misunderstood, or tries something.

use crate::Certificate;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use canopy_api::{Principal, nats::spiffe_id};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use sha2::{Digest as _, Sha256};
use std::{
    fmt,
    time::{Duration, UNIX_EPOCH},
};
use x509_parser::{
    certification_request::X509CertificationRequest,
    cri_attributes::ParsedCriAttribute,
    extensions::{GeneralName, ParsedExtension},
    pem::parse_x509_pem,
    prelude::{FromDer as _, X509Certificate},
    public_key::PublicKey,
};

/// How far before now a certificate begins: clocks differ.
const BACKWARD: u64 = 300;
/// Shortest RSA key, bytes.
const SHORTEST_RSA: usize = 256;

/// A request for a certificate is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not one.
    #[error("not a certificate signing request: {0}")]
    Form(String),
    /// Not signed by the key in it: whoever made it need not have the key.
    #[error("the request is not signed by its own key")]
    Signature,
    /// Another key than we sign.
    #[error(
        "the key is {0}; ECDSA (P-256, P-384), Ed25519 and RSA of 2048 bits or more are signed"
    )]
    Key(String),
    /// Not exactly the one name.
    #[error("it asks for the names {found:?}; it has to ask for {expected} and no other")]
    Names {
        /// What it asks for.
        found: Vec<String>,
        /// What it may ask for.
        expected: String,
    },
    /// More than a name.
    #[error("it asks for more than a name: {0}")]
    More(String),
}

/// A request, well formed and signed by its own key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningRequest {
    key: SubjectPublicKeyInfo,
    names: Vec<String>,
}

impl SigningRequest {
    /// Reads a request (PKCS #10, PEM).
    ///
    /// # Errors
    /// Why it is refused, whatever name it is for.
    pub fn from_pem(pem: &[u8]) -> Result<Self, RequestError> {
        let form = |error: &dyn fmt::Display| RequestError::Form(error.to_string());
        let (_, block) = parse_x509_pem(pem).map_err(|error| form(&error))?;
        if !matches!(block.label.as_str(), "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") {
            return Err(RequestError::Form(format!("it is a {}", block.label.to_lowercase())));
        }
        let (rest, request) =
            X509CertificationRequest::from_der(&block.contents).map_err(|error| form(&error))?;
        if !rest.is_empty() {
            return Err(RequestError::Form("there are bytes behind it".to_owned()));
        }
        let info = &request.certification_request_info;
        let key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw)
            .map_err(|_| RequestError::Key(info.subject_pki.algorithm.algorithm.to_id_string()))?;
        match info.subject_pki.parsed() {
            Ok(PublicKey::RSA(rsa)) => {
                let length = rsa.modulus.iter().skip_while(|byte| **byte == 0).count();
                if length < SHORTEST_RSA {
                    return Err(RequestError::Key(format!("RSA of {} bits", length * 8)));
                }
            }
            // Others that are no such key were not understood just above.
            Ok(PublicKey::EC(_) | PublicKey::Unknown(_)) => {}
            Ok(_) | Err(_) => {
                let algorithm = info.subject_pki.algorithm.algorithm.to_id_string();
                return Err(RequestError::Key(algorithm));
            }
        }
        request.verify_signature().map_err(|_| RequestError::Signature)?;
        let mut names = Vec::new();
        for attribute in info.iter_attributes() {
            let ParsedCriAttribute::ExtensionRequest(asked) = attribute.parsed_attribute() else {
                return Err(RequestError::More(format!("attribute {}", attribute.oid)));
            };
            for extension in &asked.extensions {
                match extension.parsed_extension() {
                    ParsedExtension::SubjectAlternativeName(san) => {
                        names.extend(san.general_names.iter().map(spelled));
                    }
                    ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
                        return Err(RequestError::More("to be an authority".to_owned()));
                    }
                    ParsedExtension::KeyUsage(_) => {
                        return Err(RequestError::More("usages of the key".to_owned()));
                    }
                    ParsedExtension::ExtendedKeyUsage(_) => {
                        return Err(RequestError::More("extended usages of the key".to_owned()));
                    }
                    _ => return Err(RequestError::More(format!("extension {}", extension.oid))),
                }
            }
        }
        Ok(Self { key, names })
    }

    /// SHA-256 of its public key, base64url: the same for every request and certificate of the key.
    pub fn key_fingerprint(&self) -> String {
        URL_SAFE_NO_PAD.encode(Sha256::digest(self.key.subject_public_key_info()))
    }
}

fn spelled(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::URI(uri) => (*uri).to_owned(),
        GeneralName::DNSName(dns) => format!("DNS:{dns}"),
        GeneralName::RFC822Name(email) => format!("email:{email}"),
        GeneralName::IPAddress(_) => "an IP address".to_owned(),
        _ => "a name of another kind".to_owned(),
    }
}

/// The authority's certificate and key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// The certificate is none.
    #[error("the certificate: {0}")]
    Certificate(String),
    /// It may not sign.
    #[error("the certificate is no authority's (basicConstraints CA:TRUE, keyUsage keyCertSign)")]
    NotAnAuthority,
    /// The key is none.
    #[error("the key cannot be read; PKCS #8 in PEM is")]
    Key,
    /// They do not belong together.
    #[error("the key is not the certificate's")]
    OtherKey,
    /// The authority ends before the certificates it is to sign could be used.
    #[error("the authority's own certificate has ended")]
    Ended,
    /// The library failed.
    #[error("a certificate cannot be signed: {0}")]
    Signing(String),
}

/// Who signs certificates of hosts' daemons.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// What stands between it and the authority that servers trust; empty for that one itself.
    chain: String,
    not_after: u64,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

/// A certificate just signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// As a file: the certificate, then those between it and the authority that servers trust.
    pub pem: String,
    /// What it says.
    pub certificate: Certificate,
}

impl Authority {
    /// From certificate and key, both PEM.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn new(certificate: &str, key: &str) -> Result<Self, AuthorityError> {
        let bad = |error: &dyn fmt::Display| AuthorityError::Certificate(error.to_string());
        let (_, block) = parse_x509_pem(certificate.as_bytes()).map_err(|error| bad(&error))?;
        let (_, parsed) =
            X509Certificate::from_der(&block.contents).map_err(|error| bad(&error))?;
        let may_sign = parsed.key_usage().map_err(|error| bad(&error))?;
        if !parsed.is_ca() || may_sign.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err(AuthorityError::NotAnAuthority);
        }
        let key = KeyPair::from_pem(key).map_err(|_| AuthorityError::Key)?;
        if key.der_bytes() != parsed.public_key().subject_public_key.data.as_ref() {
            return Err(AuthorityError::OtherKey);
        }
        let not_after = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let issuer = Issuer::from_ca_cert_der(&block.contents.as_slice().into(), key)
            .map_err(|error| bad(&error))?;
        let is_root = parsed.subject() == parsed.issuer();
        let chain = if is_root { String::new() } else { certificate.trim_end().to_owned() + "\n" };
        Ok(Self { issuer, chain, not_after })
    }

    /// Signs a certificate for this principal, for clients alone, valid for `life` seconds from
    /// `now` and no longer than the authority's own.
    ///
    /// # Errors
    /// When the request is for another name, or nothing can be signed any more.
    pub fn sign(
        &self,
        request: &SigningRequest,
        principal: &Principal,
        now: u64,
        life: u64,
    ) -> Result<Signed, SignError> {
        let expected = spiffe_id(principal);
        if request.names != [expected.as_str()] {
            return Err(RequestError::Names { found: request.names.clone(), expected }.into());
        }
        if self.not_after <= now {
            return Err(AuthorityError::Ended.into());
        }
        let failed = |error: &dyn fmt::Display| AuthorityError::Signing(error.to_string());
        let mut serial = [0; 16];
        SystemRandom::new().fill(&mut serial).map_err(|error| failed(&error))?;
        // Positive, and of one length (RFC 5280, 4.1.2.2).
        serial[0] = serial[0] & 0x7f | 0x40;
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from(serial.to_vec()));
        let time = |seconds: u64| (UNIX_EPOCH + Duration::from_secs(seconds)).into();
        params.not_before = time(now.saturating_sub(BACKWARD));
        params.not_after = time(now.saturating_add(life).min(self.not_after));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, principal.as_str());
        let uri = expected.as_str().try_into().map_err(|error: rcgen::Error| failed(&error))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.is_ca = rcgen::IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let made = params.signed_by(&request.key, &self.issuer).map_err(|error| failed(&error))?;
        let certificate = Certificate::from_der(made.der()).map_err(|error| failed(&error))?;
        Ok(Signed { pem: made.pem() + &self.chain, certificate })
    }
}

/// A certificate is not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// Because of what is asked.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Because of who is to sign.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// Makes a key, and a request for a certificate of this principal: key and request, PEM.
///
/// # Errors
/// When there is no randomness.
pub fn request(
    principal: &Principal,
) -> Result<(zeroize::Zeroizing<String>, String), AuthorityError> {
    let failed = |error: rcgen::Error| AuthorityError::Signing(error.to_string());
    let key = KeyPair::generate().map_err(failed)?;
    let request = request_with(principal, &key)?;
    Ok((key.serialize_pem().into(), request))
}

/// A request for a certificate of this principal, with the key it has (PEM).
///
/// # Errors
/// When the key cannot be read.
pub fn request_again(principal: &Principal, key: &str) -> Result<String, AuthorityError> {
    request_with(principal, &KeyPair::from_pem(key).map_err(|_| AuthorityError::Key)?)
}

fn request_with(principal: &Principal, key: &KeyPair) -> Result<String, AuthorityError> {
    let failed = |error: rcgen::Error| AuthorityError::Signing(error.to_string());
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, principal.as_str());
    let uri = spiffe_id(principal).as_str().try_into().map_err(failed)?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.serialize_request(key).and_then(|request| request.pem()).map_err(failed)
}

/// Whether this certificate is of this key (both PEM).
pub fn belong_together(certificate: &str, key: &str) -> bool {
    let Ok((_, block)) = parse_x509_pem(certificate.as_bytes()) else { return false };
    let Ok((_, parsed)) = X509Certificate::from_der(&block.contents) else { return false };
    KeyPair::from_pem(key)
        .is_ok_and(|key| key.der_bytes() == parsed.public_key().subject_public_key.data.as_ref())
}
