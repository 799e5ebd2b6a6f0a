//! Who somebody who connects is, from what they show. Pure: whether a token is still in force is
//! asked of the store afterwards.

use crate::trust::Trust;
use canopy_api::{
    HostId, Principal,
    endpoint::Service,
    permission::{daemon_of, daemon_principal},
};
use canopy_bus::callout::ConnectRequest;
use canopy_identity::{Certificate, Claims, TokenError, Wanted};

/// Who connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// A service's daemon: its certificate says so.
    Daemon {
        /// Which service.
        service: Service,
        /// On which host, where it is host-local.
        host: Option<HostId>,
        /// SHA-256 of its certificate.
        certificate: String,
        /// Last second of its certificate, since 1970.
        until: u64,
    },
    /// A person: token and certificate say so.
    Person {
        /// What the token says.
        claims: Box<Claims>,
        /// Last second of the certificate, since 1970.
        until: u64,
    },
}

/// Why somebody is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// No certificate, or none whose chain the server has verified.
    #[error("there is no certificate")]
    NoCertificate,
    /// It cannot be read.
    #[error("the certificate cannot be read: {0}")]
    BadCertificate(String),
    /// Past its end, or before its beginning.
    #[error("the certificate is not valid now")]
    CertificateTime,
    /// Names of ours, but not exactly one.
    #[error("the certificate has several names of ours")]
    SeveralNames,
    /// A name of ours as an e-mail address, as a DNS name or in the subject.
    #[error("the certificate has the Canopy name \"{0}\" in another place than a URI name")]
    MisplacedName(String),
    /// A name of ours that is nobody's.
    #[error("\"{0}\" in the certificate is nobody's name")]
    Nobody(String),
    /// A certificate that is neither a daemon's nor fits a pattern of people's.
    #[error("no name in the certificate is one of people's")]
    NotPeoples,
    /// The policy service's own names are users of the server's configuration.
    #[error("{0} does not connect this way")]
    OurOwn(String),
    /// A daemon with a token.
    #[error("{0} is a service and carries a token, which is for people")]
    DaemonWithToken(Principal),
    /// A password, user name, key or JWT of NATS.
    #[error("credentials other than certificate and token were given")]
    OtherCredentials,
    /// A person without a token.
    #[error("there is no token")]
    NoToken,
    /// A token that is not believed.
    #[error("the token: {0}")]
    Token(#[from] TokenError),
    /// A token of somebody else than the certificate's.
    #[error("the token is {token}'s, the certificate {certificate}'s")]
    OthersToken {
        /// Whose the token is.
        token: Principal,
        /// Whose the certificate is.
        certificate: String,
    },
    /// No such token was issued.
    #[error("no such token was issued to {0}")]
    Unknown(Principal),
    /// An older one than the one in force.
    #[error("{0}'s token was regenerated")]
    Regenerated(Principal),
    /// Ended by an administrator.
    #[error("{0}'s token was revoked")]
    Revoked(Principal),
    /// A daemon of a host nobody enrolled.
    #[error("the host {0} is not enrolled")]
    NotEnrolled(HostId),
    /// Another certificate than the enrolled one.
    #[error("the certificate is not the one {1} of {0} is enrolled with")]
    NotTheEnrolled(HostId, Service),
    /// It did not connect in time.
    #[error("the enrolment of {0} has expired: it was not used in time")]
    EnrolmentExpired(HostId),
    /// Taken back by an administrator.
    #[error("the host {0} was revoked")]
    HostRevoked(HostId),
    /// As many connections as it may have.
    #[error("{0} has {1} connections, as many as it may have")]
    TooManyConnections(Principal, u64),
    /// It connects too often.
    #[error("{0} connects too often: {1} a second are allowed")]
    TooManyConnects(Principal, u64),
    /// Its connections were ended for exceeding a limit, not long ago.
    #[error("{0} exceeded a limit of the bus and is refused for another {1:?}")]
    BackOff(Principal, std::time::Duration),
    /// Whether it is in force cannot be found out.
    #[error("whether the token or the enrolment is in force cannot be found out: {0}")]
    StoreAway(String),
}

impl Refusal {
    /// A word for it, for metrics and events.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::BadCertificate(_) => "bad_certificate",
            Self::CertificateTime => "certificate_time",
            Self::SeveralNames => "several_names",
            Self::MisplacedName(_) => "misplaced_name",
            Self::Nobody(_) => "nobody",
            Self::NotPeoples => "not_peoples",
            Self::OurOwn(_) => "our_own",
            Self::DaemonWithToken(_) => "daemon_with_token",
            Self::OtherCredentials => "other_credentials",
            Self::NoToken => "no_token",
            Self::Token(error) => match error {
                TokenError::Expired(_) => "token_expired",
                TokenError::OtherCertificate => "token_other_certificate",
                TokenError::Signature => "token_signature",
                TokenError::Algorithm => "token_algorithm",
                TokenError::UnknownKey(_) => "token_unknown_key",
                _ => "token_bad",
            },
            Self::OthersToken { .. } => "others_token",
            Self::Unknown(_) => "token_unknown",
            Self::Regenerated(_) => "token_regenerated",
            Self::Revoked(_) => "token_revoked",
            Self::NotEnrolled(_) => "host_not_enrolled",
            Self::NotTheEnrolled(..) => "host_other_certificate",
            Self::EnrolmentExpired(_) => "host_enrolment_expired",
            Self::HostRevoked(_) => "host_revoked",
            Self::TooManyConnections(..) => "too_many_connections",
            Self::TooManyConnects(..) => "too_many_connects",
            Self::BackOff(..) => "back_off",
            Self::StoreAway(_) => "store_away",
        }
    }
}

impl Identity {
    /// The principal.
    ///
    /// # Errors
    /// When host and service together make too long a name.
    pub(crate) fn principal(&self) -> Result<Principal, Refusal> {
        match self {
            Self::Daemon { service, host, .. } => daemon_principal(*service, host.as_ref())
                .map_err(|error| Refusal::Nobody(error.to_string())),
            Self::Person { claims, .. } => Ok(claims.sub.clone()),
        }
    }
}

/// Who this is, by certificate and token.
pub(crate) fn identify(
    trust: &Trust,
    request: &ConnectRequest,
    now: u64,
) -> Result<Identity, (Refusal, Vec<String>)> {
    let Some(pem) = &request.certificate else { return Err((Refusal::NoCertificate, Vec::new())) };
    let certificate = Certificate::from_pem(pem.as_bytes())
        .map_err(|error| (Refusal::BadCertificate(error.to_string()), Vec::new()))?;
    by_certificate(trust, request, &certificate, now).map_err(|refusal| {
        let names = &certificate.names;
        let shown = [&names.uri, &names.dns, &names.email].into_iter().flatten().take(8);
        (refusal, shown.map(|name| name.chars().take(128).collect()).collect())
    })
}

fn by_certificate(
    trust: &Trust,
    request: &ConnectRequest,
    certificate: &Certificate,
    now: u64,
) -> Result<Identity, Refusal> {
    let seconds = i64::try_from(now).unwrap_or(i64::MAX);
    if seconds > certificate.not_after || seconds < certificate.not_before {
        return Err(Refusal::CertificateTime);
    }
    let until = u64::try_from(certificate.not_after).unwrap_or(0);
    if request.other_credentials {
        return Err(Refusal::OtherCredentials);
    }
    if let Some(name) = &certificate.misplaced_name {
        return Err(Refusal::MisplacedName(name.chars().take(64).collect()));
    }
    let owner = match certificate.our_name() {
        Some(name) => Some(
            name.parse::<Principal>()
                .map_err(|_| Refusal::Nobody(name.chars().take(64).collect()))?,
        ),
        None if certificate.has_our_name() => return Err(Refusal::SeveralNames),
        None => None,
    };
    if let Some(owner) = owner.as_ref().filter(|owner| !owner.is_person()) {
        return daemon(owner, request, certificate, until);
    }
    if !certificate.fits(&trust.people) {
        return Err(Refusal::NotPeoples);
    }
    let token = request.token.as_ref().ok_or(Refusal::NoToken)?;
    let claims = trust.keys.verify(token, Wanted { now, skew: trust.skew, certificate })?;
    match owner {
        Some(owner) if owner != claims.sub => {
            Err(Refusal::OthersToken { token: claims.sub, certificate: owner.to_string() })
        }
        _ => Ok(Identity::Person { claims: Box::new(claims), until }),
    }
}

fn daemon(
    owner: &Principal,
    request: &ConnectRequest,
    certificate: &Certificate,
    until: u64,
) -> Result<Identity, Refusal> {
    let policy = daemon_principal(Service::Policy, None);
    if policy.is_ok_and(|policy| owner.as_str().starts_with(policy.as_str())) {
        return Err(Refusal::OurOwn(owner.to_string()));
    }
    let Some((service, host)) = daemon_of(owner) else {
        return Err(Refusal::Nobody(owner.to_string()));
    };
    if request.token.is_some() {
        return Err(Refusal::DaemonWithToken(owner.clone()));
    }
    let certificate = certificate.fingerprint.clone();
    Ok(Identity::Daemon { service, host, certificate, until })
}
