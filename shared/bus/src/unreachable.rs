//! What kept a connection from being made, by the kind of the error, not by its text.

use async_nats::ConnectErrorKind;
use rustls::CertificateError;
use std::{error::Error, io};

/// Why the bus cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnreachableCause {
    /// Nothing listens at the address.
    ConnectionRefused,
    /// The server's name cannot be resolved.
    UnknownName,
    /// The server's certificate has expired.
    CertificateExpired,
    /// The server's certificate is not valid yet.
    CertificateNotYetValid,
    /// The server's certificate is for another name.
    CertificateName,
    /// The server's certificate is of another authority.
    UnknownAuthority,
    /// The TLS handshake failed otherwise.
    Tls,
    /// The connection is up, and messages do not come back.
    NoMessages,
    /// No answer in time.
    NoAnswer,
    /// Anything else.
    Other,
}

impl UnreachableCause {
    /// The cause of a failed attempt to connect.
    pub(crate) fn of(error: &async_nats::ConnectError) -> Self {
        let kind = error.kind();
        if kind == ConnectErrorKind::Dns {
            return Self::UnknownName;
        }
        let mut next = error.source();
        while let Some(source) = next {
            if let Some(tls) = source.downcast_ref::<rustls::Error>() {
                return Self::of_tls(tls);
            }
            if let Some(io) = source.downcast_ref::<io::Error>() {
                // An I/O error with an error inside has the source of the inner one, not the inner one.
                if let Some(inner) = io.get_ref() {
                    next = Some(inner);
                    continue;
                }
                match io.kind() {
                    io::ErrorKind::ConnectionRefused => return Self::ConnectionRefused,
                    io::ErrorKind::TimedOut => return Self::NoAnswer,
                    _ => {}
                }
            }
            next = source.source();
        }
        match kind {
            ConnectErrorKind::Tls => Self::Tls,
            ConnectErrorKind::TimedOut => Self::NoAnswer,
            _ => Self::Other,
        }
    }

    fn of_tls(error: &rustls::Error) -> Self {
        let rustls::Error::InvalidCertificate(error) = error else { return Self::Tls };
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                Self::CertificateExpired
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::CertificateNotYetValid
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Self::CertificateName
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                Self::UnknownAuthority
            }
            _ => Self::Tls,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_nats::ConnectError;

    #[test]
    fn the_cause_is_read_from_the_kind_of_the_error() {
        let certificate = |error| {
            let error = rustls::Error::InvalidCertificate(error);
            ConnectError::from(io::Error::new(io::ErrorKind::InvalidData, error))
        };
        // Text that says something else does not count.
        let text = |text: &str| ConnectError::from(io::Error::other(text.to_owned()));
        for (error, cause) in [
            (certificate(CertificateError::Expired), UnreachableCause::CertificateExpired),
            (certificate(CertificateError::NotValidYet), UnreachableCause::CertificateNotYetValid),
            (certificate(CertificateError::NotValidForName), UnreachableCause::CertificateName),
            (certificate(CertificateError::UnknownIssuer), UnreachableCause::UnknownAuthority),
            (certificate(CertificateError::BadSignature), UnreachableCause::UnknownAuthority),
            (certificate(CertificateError::Revoked), UnreachableCause::Tls),
            (
                ConnectError::from(io::Error::from(io::ErrorKind::ConnectionRefused)),
                UnreachableCause::ConnectionRefused,
            ),
            (ConnectError::new(ConnectErrorKind::Dns), UnreachableCause::UnknownName),
            (ConnectError::new(ConnectErrorKind::TimedOut), UnreachableCause::NoAnswer),
            (ConnectError::new(ConnectErrorKind::Tls), UnreachableCause::Tls),
            (text("connection refused by dns.tls.example"), UnreachableCause::Other),
        ] {
            assert_eq!(UnreachableCause::of(&error), cause, "{error}");
        }
    }
}
