//! Why the server does not let this process in, as far as that can be told from here.
//!
//! The server says no more to a stranger than that it refuses, so that nobody learns from it which names
//! and tokens there are. Who refused is told by the time it took: the server gives the policy service two
//! seconds to decide. What speaks against one's own token and certificate stands in them. If nothing does,
//! what is left is that somebody ended them.

use crate::config::BusConfig;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use canopy_api::{Code, Principal, time, wire::tokens::Binding};
use canopy_identity::Certificate;
use serde_json::Value;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A refusal that takes this long is not policy's: it was not asked, or did not answer. The server's own
/// limit (`authorization.timeout`) is 2 s.
const UNDECIDED: Duration = Duration::from_millis(1800);

/// Why the bus server refuses a connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nobody decided: the policy service is away or hangs.
    #[error("the policy service did not decide in time who may connect")]
    Undecided,
    /// The certificate has ended.
    #[error("its certificate expired at {0}")]
    CertificateExpired(String),
    /// The certificate is not valid yet.
    #[error("its certificate is not valid before {0}")]
    CertificateNotYetValid(String),
    /// The certificate names somebody else.
    #[error("its certificate is not spiffe://canopy/{0}'s")]
    OtherPrincipal(Principal),
    /// A person without a token.
    #[error("a person needs a token as well as a certificate, and none is given")]
    NoToken,
    /// What is given as a token is none.
    #[error("the token file holds no token")]
    NotAToken,
    /// Somebody else's token.
    #[error("the token is {0}'s")]
    OthersToken(String),
    /// The token goes with another certificate.
    #[error("the token goes with another certificate")]
    OtherCertificate,
    /// The token has ended by itself.
    #[error("its token expired at {0}")]
    TokenExpired(String),
    /// Nothing in token and certificate speaks against them.
    #[error("its token was revoked or regenerated")]
    TokenRevoked,
    /// A host's daemon whose certificate is valid.
    #[error("its host is not enrolled with this certificate, or was revoked")]
    HostRevoked,
    /// A central service whose certificate is valid.
    #[error("its certificate is not a service's of this installation")]
    NotAService,
    /// A connection of the policy service's own, which the server knows by an nkey.
    #[error("the bus server's configuration does not have the public key of its nkey")]
    UnknownKey,
}

impl Refusal {
    /// What it comes to: nobody decided, which may be over soon, or the server refuses.
    pub fn code(&self) -> Code {
        match self {
            Self::Undecided => Code::Unavailable,
            _ => Code::Denied,
        }
    }

    /// Whether token or certificate have ended by themselves.
    pub fn is_expired(&self) -> bool {
        matches!(self, Self::CertificateExpired(_) | Self::TokenExpired(_))
    }

    /// Whether somebody ended the token or the enrolment.
    pub fn is_revoked(&self) -> bool {
        matches!(self, Self::TokenRevoked | Self::HostRevoked)
    }

    /// What to do about it, in one line.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Undecided => {
                "see that canopy-policy runs and is connected to the bus; who is connected goes on meanwhile"
            }
            Self::CertificateExpired(_) => "have the certificate renewed",
            Self::CertificateNotYetValid(_) => "set the clock of this machine",
            Self::OtherPrincipal(_) => {
                "`principal` must be the name in the certificate: spiffe://canopy/<principal>"
            }
            Self::NoToken => "ask an administrator for a token, and name its file as `token`",
            Self::NotAToken => "`token` must name the file with the token as it was issued",
            Self::OthersToken(_) | Self::OtherCertificate => {
                "use the certificate that the token was issued for, or ask an administrator for another token"
            }
            Self::TokenExpired(_) => {
                "ask an administrator for a new token: canopy token regenerate"
            }
            Self::TokenRevoked => {
                "use the newest token, or ask an administrator: canopy token list says which is in force; a principal that exceeded a limit of the bus is refused for a while"
            }
            Self::HostRevoked => {
                "have an administrator enrol the host: canopy host list says its state; a daemon that exceeded a limit of the bus is refused for a while"
            }
            Self::NotAService => "use the service's own certificate",
            Self::UnknownKey => {
                "put the public keys of nkeys.json, beside the seeds that `auth.nkeys` names, into the bus \
                 server's configuration and restart it"
            }
        }
    }
}

/// Whether an error is the server's word that it refuses.
pub(crate) fn is_refusal(error: &str) -> bool {
    error.to_ascii_lowercase().contains("authorization violation")
}

/// Why a connection attempt failed that took so long; `None` where it was no refusal of the server's.
pub(crate) fn diagnose(
    config: &BusConfig,
    principal: &Principal,
    error: &str,
    took: Duration,
    now: SystemTime,
) -> Option<Refusal> {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let certificate = canopy_files::read(&config.cert, 1 << 20).ok();
    let certificate = certificate.and_then(|pem| Certificate::from_pem(&pem).ok());
    // The server ends the handshake then, with no more than an alert.
    if let Some(certificate) = &certificate
        && (is_refusal(error) || is_tls(error))
    {
        let seconds = |time| u64::try_from(time).unwrap_or_default();
        let (begin, end) = (seconds(certificate.not_before), seconds(certificate.not_after));
        if end < now {
            return Some(Refusal::CertificateExpired(text(end)));
        }
        if begin > now {
            return Some(Refusal::CertificateNotYetValid(text(begin)));
        }
    }
    if !is_refusal(error) {
        return None;
    }
    if took >= UNDECIDED {
        return Some(Refusal::Undecided);
    }
    let names_other = certificate
        .as_ref()
        .and_then(Certificate::our_name)
        .is_some_and(|name| name != principal.as_str());
    if names_other {
        return Some(Refusal::OtherPrincipal(principal.clone()));
    }
    Some(if principal.is_person() {
        of_token(config, principal, certificate.as_ref(), now)
    } else if principal.as_str().starts_with("h-") {
        Refusal::HostRevoked
    } else {
        Refusal::NotAService
    })
}

/// What speaks against a person's token.
fn of_token(
    config: &BusConfig,
    principal: &Principal,
    certificate: Option<&Certificate>,
    now: u64,
) -> Refusal {
    let Some(path) = &config.token else { return Refusal::NoToken };
    let claims = canopy_secrets::read_private(path).ok().and_then(|token| claims(token.trim()));
    let Some(claims) = claims else { return Refusal::NotAToken };
    let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default();
    if subject != principal.as_str() {
        return Refusal::OthersToken(subject.to_owned());
    }
    if let Some(end) = claims.get("exp").and_then(Value::as_u64)
        && end <= now
    {
        return Refusal::TokenExpired(text(end));
    }
    let binding = claims.get("cnf").cloned();
    let binding = binding.and_then(|cnf| serde_json::from_value::<Binding>(cnf).ok());
    match (binding, certificate) {
        (Some(binding), Some(certificate)) if !certificate.goes_with(&binding) => {
            Refusal::OtherCertificate
        }
        _ => Refusal::TokenRevoked,
    }
}

/// What a token says; its signature is for the policy service.
fn claims(token: &str) -> Option<Value> {
    let body = token.split('.').nth(1)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).ok()?).ok()
}

fn is_tls(error: &str) -> bool {
    let error = error.to_ascii_lowercase();
    ["tls", "certificate", "alert", "handshake"].iter().any(|word| error.contains(word))
}

fn text(seconds: u64) -> String {
    time::rfc3339(UNIX_EPOCH + Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt as _};

    const REFUSED: &str = "nats: authorization violation";

    fn token(claims: &Value) -> String {
        format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    /// Who asks with which certificate and token, after how long: what is told.
    #[test]
    fn each_reason_for_a_refusal_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = |name: &str, end: i32| {
            let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
            let uri = format!("spiffe://canopy/{name}");
            params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
            params.not_before = rcgen::date_time_ymd(if end > 2040 { 2040 } else { 2000 }, 1, 1);
            params.not_after = rcgen::date_time_ymd(end, 1, 1);
            let file = dir.path().join(format!("{name}-{end}.pem"));
            fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
            file
        };
        let now = UNIX_EPOCH + Duration::from_hours(500_000);
        let (quick, slow) = (Duration::from_millis(20), Duration::from_millis(2005));
        let alice = |extra: Value| {
            let mut claims = serde_json::json!({ "sub": "u-alice" });
            claims.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            Some(token(&claims))
        };
        let none = serde_json::json!({});
        let of = |who: &str, end, token: Option<String>, error: &str, took| {
            let cert = certificate(who, end);
            let key = dir.path().join("key");
            let mut config = BusConfig::new("tls://x".to_owned(), key.clone(), cert, key);
            if let Some(token) = token {
                let file = dir.path().join("token");
                fs::write(&file, token).unwrap();
                fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
                config.token = Some(file);
            }
            let me = if who == "u-bob" { "u-alice" } else { who };
            diagnose(&config, &me.parse().unwrap(), error, took, now)
        };
        let bound = serde_json::json!({ "cnf": { "x5t#S256": "other" } });
        for (who, end, token, error, took, expected) in [
            ("u-alice", 2040, alice(none.clone()), "connection refused", quick, None),
            ("u-alice", 2040, alice(none.clone()), REFUSED, quick, Some(Refusal::TokenRevoked)),
            ("u-alice", 2040, alice(none.clone()), REFUSED, slow, Some(Refusal::Undecided)),
            ("u-alice", 2040, None, REFUSED, quick, Some(Refusal::NoToken)),
            ("u-alice", 2040, Some("x".to_owned()), REFUSED, quick, Some(Refusal::NotAToken)),
            (
                "u-alice",
                2040,
                alice(serde_json::json!({ "exp": 1_799_999_999_u64 })),
                REFUSED,
                quick,
                Some(Refusal::TokenExpired("2027-01-15T07:59:59.000Z".to_owned())),
            ),
            (
                "u-alice",
                2040,
                alice(serde_json::json!({ "sub": "u-eve" })),
                REFUSED,
                quick,
                Some(Refusal::OthersToken("u-eve".to_owned())),
            ),
            ("u-alice", 2040, alice(bound), REFUSED, quick, Some(Refusal::OtherCertificate)),
            (
                "u-bob",
                2040,
                alice(none.clone()),
                REFUSED,
                quick,
                Some(Refusal::OtherPrincipal("u-alice".parse().unwrap())),
            ),
            (
                "u-alice",
                2020,
                alice(none),
                "io: received fatal alert: BadCertificate",
                quick,
                Some(Refusal::CertificateExpired("2020-01-01T00:00:00.000Z".to_owned())),
            ),
            (
                "u-alice",
                2041,
                None,
                "io: received fatal alert: BadCertificate",
                quick,
                Some(Refusal::CertificateNotYetValid("2040-01-01T00:00:00.000Z".to_owned())),
            ),
            ("h-web1-loader", 2040, None, REFUSED, quick, Some(Refusal::HostRevoked)),
            ("s-registry", 2040, None, REFUSED, quick, Some(Refusal::NotAService)),
        ] {
            let found = of(who, end, token, error, took);
            assert_eq!(found, expected, "{who} {error} {took:?}");
        }
    }
}
