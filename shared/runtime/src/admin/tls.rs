//! TLS for the admin listener: clients show a certificate of a name they are expected to have.

use crate::config::AdminTls;
use anyhow::{Context as _, bail};
use canopy_api::san::SanPatterns;
use canopy_identity::Certificate;
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};
use std::{fmt, path::Path, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

/// Longest file of certificates, bytes.
const LONGEST: u64 = 1 << 20;
/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// The files, as they were read together.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Files {
    cert: Vec<u8>,
    key: canopy_secrets::Secret,
    ca: Vec<u8>,
}

impl Files {
    pub(crate) fn read(config: &AdminTls) -> anyhow::Result<Self> {
        let read = |at: &str, path: &Path| {
            canopy_files::read(path, LONGEST)
                .with_context(|| format!("runtime.admin.tls.{at}: cannot read {}", path.display()))
        };
        let key = canopy_secrets::read_private(&config.key)
            .map_err(|error| anyhow::anyhow!("runtime.admin.tls.key: {error}; {}", error.remedy))?;
        canopy_files::check_protected(&config.ca)
            .map_err(|error| anyhow::anyhow!("runtime.admin.tls.ca: {error}; {}", error.remedy))?;
        Ok(Self { cert: read("cert", &config.cert)?, key, ca: read("ca", &config.ca)? })
    }

    pub(crate) fn server(&self, clients: &SanPatterns) -> anyhow::Result<Arc<ServerConfig>> {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in certificates("ca", &self.ca)? {
            roots.add(certificate).context("runtime.admin.tls.ca: not an authority's")?;
        }
        let chain = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .context("runtime.admin.tls.ca")?;
        let verifier = Arc::new(Named { chain, clients: clients.clone() });
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes())
            .map_err(|error| anyhow::anyhow!("runtime.admin.tls.key: {error}"))?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates("cert", &self.cert)?, key)
            .context("runtime.admin.tls: certificate and key")?;
        Ok(Arc::new(config))
    }
}

fn certificates(at: &str, pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| anyhow::anyhow!("runtime.admin.tls.{at}: {error}"))?;
    if all.is_empty() {
        bail!("runtime.admin.tls.{at}: there is no certificate in the file");
    }
    Ok(all)
}

/// The chain is verified as always; beside that a name has to fit.
struct Named {
    chain: Arc<dyn ClientCertVerifier>,
    clients: SanPatterns,
}

impl fmt::Debug for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Named").field("clients", &self.clients).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for Named {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(certificate, intermediates, now)?;
        let names = Certificate::from_der(certificate)
            .map_err(|_| rustls::Error::from(rustls::CertificateError::BadEncoding))?;
        if names.fits(&self.clients) {
            return Ok(verified);
        }
        tracing::warn!(names = ?names.names, "a client of the admin listener is none of `clients`");
        Err(rustls::CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Takes what is new in the files over, until `stop`. With a mistake in them the ones before stay.
pub(crate) async fn follow(
    config: AdminTls,
    mut seen: Files,
    change: watch::Sender<Arc<ServerConfig>>,
    stop: CancellationToken,
) {
    let mut timer = interval(LOOK);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut trouble = String::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = timer.tick() => {}
        }
        let of = config.clone();
        let read = tokio::task::spawn_blocking(move || {
            let files = Files::read(&of)?;
            let server = files.server(&of.clients)?;
            anyhow::Ok((files, server))
        });
        let Ok(read) = read.await else { continue };
        match read {
            Ok((files, _)) if files == seen => trouble.clear(),
            Ok((files, server)) => {
                tracing::info!("the admin listener has another certificate");
                seen = files;
                trouble.clear();
                change.send_replace(server);
            }
            // Certificate and key are two files: between the two they do not belong together.
            Err(error) => {
                let said = format!("{error:#}");
                if said != trouble {
                    tracing::warn!("the admin listener keeps the certificate it has: {said}");
                }
                trouble = said;
            }
        }
    }
}
