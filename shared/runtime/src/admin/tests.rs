//! The listener with TLS, asked by real clients.

use super::serve;
use crate::{AdminConfig, AdminTls, Context, OffLoopback, RuntimeConfig};
use canopy_api::endpoint::Service;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
};
use serde_json::json;
use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

struct Pair {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, sans: Vec<SanType>) -> Pair {
        let mut params = CertificateParams::default();
        params.subject_alt_names = sans;
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap().der().clone();
        Pair { certificate, key }
    }
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

/// A listener, and who signs for it and its clients.
struct Scene {
    authority: Authority,
    dir: TempDir,
    address: SocketAddr,
    stop: CancellationToken,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn write_pair(dir: &Path, pair: &Pair) {
    fs::write(dir.join("admin.crt"), pem(&pair.certificate)).unwrap();
    fs::write(dir.join("admin.key"), pair.key.serialize_pem()).unwrap();
    fs::set_permissions(dir.join("admin.key"), fs::Permissions::from_mode(0o600)).unwrap();
}

fn pem(der: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let body = STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
}

impl Scene {
    async fn new() -> Self {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        fs::write(dir.path().join("ca.crt"), authority.0.pem()).unwrap();
        write_pair(dir.path(), &authority.issue(vec![dns("localhost")]));
        let stop = CancellationToken::new();
        let cx = Context::new(Service::Registry).unwrap();
        let config = AdminConfig { tls: Some(tls(dir.path())), ..AdminConfig::default() };
        let address = serve(&cx, &config, None, stop.clone()).await.unwrap();
        Self { authority, dir, address, stop }
    }

    /// What `/live` answers who shows this certificate, if it is answered at all.
    async fn ask(&self, show: Option<&Pair>) -> Result<String, String> {
        let (connected, _) = self.connect(show).await?;
        Ok(connected)
    }

    async fn connect(
        &self,
        show: Option<&Pair>,
    ) -> Result<(String, CertificateDer<'static>), String> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.0.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let client = match show {
            None => client.with_no_client_auth(),
            Some(pair) => {
                let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.key.serialize_der()));
                client.with_client_auth_cert(vec![pair.certificate.clone()], key).unwrap()
            }
        };
        let text = |error: std::io::Error| error.to_string();
        let tcp = TcpStream::connect(self.address).await.map_err(text)?;
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream =
            TlsConnector::from(Arc::new(client)).connect(name, tcp).await.map_err(text)?;
        let server = stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
        let question = "GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(question.as_bytes()).await.map_err(text)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map_err(text)?;
        Ok((answer, server))
    }
}

fn tls(dir: &Path) -> AdminTls {
    serde_json::from_value(json!({
        "cert": dir.join("admin.crt"),
        "key": dir.join("admin.key"),
        "ca": dir.join("ca.crt"),
        "clients": [{ "dns": { "glob": "prometheus*.example" } }],
    }))
    .unwrap()
}

#[tokio::test]
async fn who_is_expected_is_answered_and_nobody_else() {
    let scene = Scene::new().await;
    let good = scene.authority.issue(vec![dns("prometheus1.example")]);
    let answer = scene.ask(Some(&good)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("live\n"), "{answer}");

    let wrong_name = scene.authority.issue(vec![dns("grafana.example")]);
    let no_name = scene.authority.issue(vec![]);
    let stranger = Authority::new().issue(vec![dns("prometheus1.example")]);
    for (who, show) in [
        ("no certificate", None),
        ("another name", Some(&wrong_name)),
        ("no name", Some(&no_name)),
        ("another authority", Some(&stranger)),
    ] {
        let said = scene.ask(show).await.unwrap_err();
        assert!(said.contains("alert"), "{who}: {said}");
    }
    // Who speaks no TLS gets no word.
    let mut plain = TcpStream::connect(scene.address).await.unwrap();
    plain.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    let _ = plain.read_to_end(&mut said).await;
    assert!(!String::from_utf8_lossy(&said).contains("HTTP/"), "{said:?}");
}

/// Connections that never say anything take no turn from others for longer than a handshake may take.
#[tokio::test]
async fn clients_that_say_nothing_keep_nobody_out() {
    let scene = Scene::new().await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(scene.address).await.unwrap());
    }
    let good = scene.authority.issue(vec![dns("prometheus1.example")]);
    let begun = Instant::now();
    scene.ask(Some(&good)).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_restart() {
    let scene = Scene::new().await;
    let good = scene.authority.issue(vec![dns("prometheus1.example")]);
    let before = scene.connect(Some(&good)).await.unwrap().1;
    // The certificate alone does not belong to the key: the pair before stays.
    let renewed = scene.authority.issue(vec![dns("localhost")]);
    fs::write(scene.dir.path().join("admin.crt"), pem(&renewed.certificate)).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(scene.connect(Some(&good)).await.unwrap().1, before);
    write_pair(scene.dir.path(), &renewed);
    let until = Instant::now() + Duration::from_secs(20);
    while scene.connect(Some(&good)).await.unwrap().1 != renewed.certificate {
        assert!(Instant::now() < until, "the renewed certificate is not used");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn files_that_cannot_be_used_are_told_at_the_start() {
    let scene = Scene::new().await;
    let start = async || {
        let cx = Context::new(Service::Registry).unwrap();
        let config = AdminConfig { tls: Some(tls(scene.dir.path())), ..AdminConfig::default() };
        let stop = CancellationToken::new();
        let outcome = serve(&cx, &config, None, stop.clone()).await.map(drop);
        stop.cancel();
        outcome.map_err(|error| format!("{error:#}"))
    };
    start().await.unwrap();
    let key = scene.dir.path().join("admin.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let said = start().await.unwrap_err();
    assert!(said.contains("tls.key") && said.contains("chmod 600"), "{said}");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(scene.dir.path().join("ca.crt"), "").unwrap();
    let said = start().await.unwrap_err();
    assert!(said.contains("tls.ca: there is no certificate"), "{said}");
}

#[test]
fn off_loopback_is_refused_without_tls_unless_it_is_said() {
    let check = |admin: serde_json::Value| {
        let config: RuntimeConfig = serde_json::from_value(json!({ "admin": admin })).unwrap();
        config.check("runtime").map_err(|problems| problems.to_string())
    };
    let files = json!({ "cert": "/c", "key": "/k", "ca": "/a",
                        "clients": [{ "dns": { "exact": "prometheus.example" } }] });
    let said = check(json!({ "listen": "0.0.0.0:9000" })).unwrap_err();
    assert!(said.contains("runtime.admin.listen") && said.contains("`tls`"), "{said}");
    check(json!({ "listen": "[2001:db8::1]:9000" })).unwrap_err();
    check(json!({ "listen": "0.0.0.0:9000", "tls": files })).unwrap();
    check(json!({ "listen": "127.0.0.1:9000" })).unwrap();
    check(json!({ "listen": "0.0.0.0:9000", "off_loopback": "plain_to_anybody" })).unwrap();
    let mut nobody = files.clone();
    nobody["clients"] = json!([]);
    check(json!({ "listen": "0.0.0.0:9000", "tls": nobody })).unwrap_err();
    assert_eq!(AdminConfig::default().off_loopback, OffLoopback::Refuse);
}
