//! TLS where it is said which names the bus server has.
//!
//! Files are read at each handshake, as the client's library does without us.

use crate::config::BusConfig;
use canopy_identity::Certificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{self, CryptoProvider},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    sign::CertifiedKey,
    version::TLS13,
};
use std::sync::Arc;

/// Longest file of certificates, bytes.
const LONGEST: u64 = 1 << 20;

/// A configuration that lets no server in but those of `server_names`.
pub(crate) fn client(config: &BusConfig) -> Result<ClientConfig, Error> {
    let provider = Arc::new(crypto::ring::default_provider());
    let files = Arc::new(Files { config: config.clone(), provider: provider.clone() });
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(files.clone())
        .with_client_cert_resolver(files);
    // A session that is taken up again shows no certificate, neither side's.
    client.resumption = Resumption::disabled();
    Ok(client)
}

#[derive(Debug)]
struct Files {
    config: BusConfig,
    provider: Arc<CryptoProvider>,
}

impl Files {
    /// Verifies chain, time, usage and the address, as always.
    fn chain(&self) -> Result<Arc<WebPkiServerVerifier>, Error> {
        let general = |error: &dyn std::fmt::Display| {
            Error::General(format!("{} (bus.ca): {error}", self.config.ca.display()))
        };
        let mut roots = RootCertStore::empty();
        canopy_files::check_protected(&self.config.ca).map_err(|open| general(&open))?;
        let pem = canopy_files::read(&self.config.ca, LONGEST).map_err(|error| general(&error))?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            roots.add(certificate.map_err(|error| general(&error))?)?;
        }
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| general(&error))
    }

    fn key(&self) -> Result<CertifiedKey, String> {
        let at = |error: &dyn std::fmt::Display| error.to_string();
        let pem = canopy_files::read(&self.config.cert, LONGEST).map_err(|error| at(&error))?;
        let chain = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| at(&error))?;
        let key = canopy_secrets::read_private(&self.config.key).map_err(|error| at(&error))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| at(&error))?;
        CertifiedKey::from_der(chain, key, &self.provider).map_err(|error| at(&error))
    }
}

impl ServerCertVerifier for Files {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        address: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.chain()?.verify_server_cert(certificate, intermediates, address, ocsp, now)?;
        let read = Certificate::from_der(certificate)
            .map_err(|_| Error::from(CertificateError::BadEncoding))?;
        // Of the same authority, and somebody else's: whoever answers is to be a server.
        if read.has_our_name() {
            return Err(refused(format!(
                "the bus server shows the certificate of a client: {:?}",
                read.names.uri
            )));
        }
        if !read.fits(&self.config.server_names) {
            return Err(refused(format!(
                "no name in the bus server's certificate is one of server_names: {:?}",
                read.names
            )));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn refused(said: String) -> Error {
    tracing::error!("{said}");
    Error::General(said)
}

impl ResolvesClientCert for Files {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        match self.key() {
            Ok(key) => Some(Arc::new(key)),
            Err(error) => {
                tracing::error!(%error, "the bus is shown no certificate of ours");
                None
            }
        }
    }

    fn has_certs(&self) -> bool {
        true
    }
}
