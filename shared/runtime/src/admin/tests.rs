//! The listener with TLS, asked by real clients.

use super::{serve, serve_within, server::Bounds};
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
        Self::within(Bounds::default()).await
    }

    async fn within(bounds: Bounds) -> Self {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        fs::write(dir.path().join("ca.crt"), authority.0.pem()).unwrap();
        write_pair(dir.path(), &authority.issue(vec![dns("localhost")]));
        let stop = CancellationToken::new();
        let cx = Context::new(Service::Registry).unwrap();
        let config = AdminConfig { tls: Some(tls(dir.path())), ..AdminConfig::default() };
        let address = serve_within(&cx, &config, None, bounds, stop.clone()).await.unwrap();
        Self { authority, dir, address, stop }
    }

    /// What `/live` answers who shows this certificate, if it is answered at all.
    async fn ask(&self, show: Option<&Pair>) -> Result<String, String> {
        let (connected, _) = self.connect(show).await?;
        Ok(connected)
    }

    async fn stream(
        &self,
        show: Option<&Pair>,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
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
        TlsConnector::from(Arc::new(client)).connect(name, tcp).await.map_err(text)
    }

    async fn connect(
        &self,
        show: Option<&Pair>,
    ) -> Result<(String, CertificateDer<'static>), String> {
        let text = |error: std::io::Error| error.to_string();
        let mut stream = self.stream(show).await?;
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
    for _ in 0..300 {
        silent.push(TcpStream::connect(scene.address).await.unwrap());
    }
    let good = scene.authority.issue(vec![dns("prometheus1.example")]);
    let begun = Instant::now();
    scene.ask(Some(&good)).await.unwrap();
    // Long before those have had the time they may take.
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
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

/// Metrics of some megabytes: more than what lies in between takes when nobody reads.
const THINGS: i64 = 2_000;

/// A listener without TLS, within these bounds; many metrics behind it.
async fn plain(bounds: Bounds) -> (SocketAddr, CancellationToken) {
    let cx = Context::new(Service::Registry).unwrap();
    let options = prometheus::Opts::new("canopy_test_things", "Things");
    let things = prometheus::IntGaugeVec::new(options, &["thing"]).unwrap();
    for thing in 0..THINGS {
        things.with_label_values(&[format!("{thing:04000}")]).set(thing);
    }
    cx.metrics.register(Box::new(things)).unwrap();
    let stop = CancellationToken::new();
    let config = AdminConfig::default();
    (serve_within(&cx, &config, None, bounds, stop.clone()).await.unwrap(), stop)
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let question = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(question.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

/// How long it takes until the other side has closed, and what it said before.
async fn closed(mut stream: impl tokio::io::AsyncRead + Unpin) -> (Duration, String) {
    let begun = Instant::now();
    let mut said = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut said)).await;
    // Closed with a reset is closed.
    let _ = read.expect("it is not closed");
    (begun.elapsed(), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_ask_slowly_are_closed_with_and_without_tls() {
    let bounds = Bounds { question: Duration::from_secs(1), ..Bounds::default() };
    let (address, _stop) = plain(bounds).await;
    let scene = Scene::within(bounds).await;
    let good = scene.authority.issue(vec![dns("prometheus1.example")]);
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /live HTTP/1.1\r\nHost: x\r\n").await.unwrap();
    let mut secured = scene.stream(Some(&good)).await.unwrap();
    secured.write_all(b"GET /live HTTP/1.1\r\n").await.unwrap();
    // A header now and then does not keep it.
    let (mut dribble, dribbled) = TcpStream::connect(address).await.unwrap().into_split();
    let dribbling = tokio::spawn(async move {
        dribbled.writable().await.unwrap();
        let mut dribbled = dribbled;
        while dribbled.write_all(b"X").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let (a, b, c, d) = tokio::join!(
        closed(&mut silent),
        closed(&mut slow),
        closed(&mut secured),
        closed(&mut dribble)
    );
    for (which, (took, _)) in [("silent", a), ("slow", b), ("TLS", c), ("dribble", d)] {
        let expected = Duration::from_millis(500)..Duration::from_secs(10);
        assert!(expected.contains(&took), "{which}: {took:?}");
    }
    dribbling.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_silent_clients_keep_nobody_out() {
    let (address, _stop) = plain(Bounds::default()).await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let begun = Instant::now();
    for _ in 0..5 {
        assert!(get(address, "/live").await.ends_with("live\n"));
    }
    // Long before those have had the time they may take.
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_read_their_answer_keep_nobody_out() {
    let bounds = Bounds {
        connections: 8,
        answer: Duration::from_millis(500),
        connection: Duration::from_secs(2),
        ..Bounds::default()
    };
    let (address, _stop) = plain(bounds).await;
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        slow.push(stream);
    }
    for stream in &slow {
        // It is being answered.
        stream.readable().await.unwrap();
    }
    let begun = Instant::now();
    assert!(get(address, "/live").await.ends_with("live\n"));
    assert!(begun.elapsed() < Duration::from_millis(1_900), "{:?}", begun.elapsed());
    // And without anybody waiting: when their time is over.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    for stream in slow {
        let (took, answer) = closed(stream).await;
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert!(
            !answer.ends_with(&format!("{last:04000}\"}} {last}\n", last = THINGS - 1)),
            "it had it all"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_beyond_bounds_are_refused() {
    let (address, _stop) = plain(Bounds::default()).await;
    for headers in [
        format!("A: {}\r\n", "x".repeat(1 << 20)),
        "A: x\r\n".repeat(1_000),
        format!("{}: x\r\n", "A".repeat(1 << 20)),
    ] {
        let (read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
        let question = format!("GET /live HTTP/1.1\r\n{headers}\r\n");
        let (_, (_, answer)) =
            tokio::join!(async { write.write_all(question.as_bytes()).await }, closed(read));
        assert!(!answer.contains(" 200 "), "{answer}");
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    let long = format!("/live?{}", "x".repeat(1 << 20));
    let (read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
    let question = format!("GET {long} HTTP/1.1\r\nHost: x\r\n\r\n");
    let (_, (_, answer)) =
        tokio::join!(async { write.write_all(question.as_bytes()).await }, closed(read));
    assert!(!answer.contains(" 200 "), "{answer}");
    assert!(get(address, "/live").await.ends_with("live\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn scrapes_at_once_share_one_gathering() {
    #[derive(Clone)]
    struct Slow(Arc<std::sync::atomic::AtomicUsize>, prometheus::IntGauge);
    impl prometheus::core::Collector for Slow {
        fn desc(&self) -> Vec<&prometheus::core::Desc> {
            self.1.desc()
        }
        fn collect(&self) -> Vec<prometheus::proto::MetricFamily> {
            self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(300));
            self.1.collect()
        }
    }
    let cx = Context::new(Service::Registry).unwrap();
    let gauge = prometheus::IntGauge::new("canopy_test_slow", "Slow").unwrap();
    let slow = Slow(Arc::default(), gauge);
    cx.metrics.register(Box::new(slow.clone())).unwrap();
    let stop = CancellationToken::new();
    let address = serve(&cx, &AdminConfig::default(), None, stop.clone()).await.unwrap();
    let begun = Instant::now();
    let all = (0..40).map(|_| tokio::spawn(get(address, "/metrics")));
    for one in all.collect::<Vec<_>>() {
        let answer = one.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("canopy_test_slow 0\n"), "{answer}");
    }
    let gathered = slow.0.load(std::sync::atomic::Ordering::SeqCst);
    assert!((1..=5).contains(&gathered), "{gathered} in {:?}", begun.elapsed());
    // Nobody is given what was gathered before he asked.
    slow.1.set(7);
    assert!(get(address, "/metrics").await.contains("canopy_test_slow 7\n"));
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_answer_arrives_whole() {
    let (address, _stop) = plain(Bounds::default()).await;
    let answer = get(address, "/metrics").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(body.len() > 4 << 20, "{}", body.len());
    let length = format!("content-length: {}", body.len());
    assert!(head.to_ascii_lowercase().contains(&length), "{head}");
    assert!(body.contains(&format!("thing=\"{last:04000}\"}} {last}\n", last = THINGS - 1)));
}
