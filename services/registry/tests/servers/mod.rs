//! Servers of packages: Python's own file server with TLS, moto's S3, and one that misbehaves.

use canopy_test_support::python;
use object_store::{
    ObjectStoreExt as _, PutPayload, aws::AmazonS3Builder, path::Path as ObjectPath,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;

const WEB: &str = r#"
import functools, http.server, ssl, sys
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
"#;

const S3: &str = r#"
import threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"#;

/// An S3 server of somebody else's making.
const MOTO: [&str; 1] = ["moto[server,s3]==5.2.5"];

/// A Python program that prints its port first; ended when dropped.
struct Python {
    child: Child,
    port: u16,
}

impl Python {
    fn start(program: &str, arguments: &[&Path], path: Option<&Path>) -> Self {
        let mut command = Command::new("python3");
        if let Some(path) = path {
            command.env("PYTHONPATH", path);
        }
        let mut child = command
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .args(["-c", program])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is needed: apt-get install python3");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse().expect("the server prints its port");
        Self { child, port }
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A static file server with a certificate of its own authority.
pub(crate) struct WebServer {
    python: Python,
    dir: TempDir,
}

impl WebServer {
    pub(crate) fn start(root: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST))];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let file = |name: &str, text: String| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        file("ca.crt", ca.pem());
        let certificate = file("web.crt", params.signed_by(&key, &ca).unwrap().pem());
        let key = file("web.key", key.serialize_pem());
        Self { python: Python::start(WEB, &[root, &certificate, &key], None), dir }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.python.port)
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }
}

/// A server that speaks S3's protocol.
pub(crate) struct S3Server {
    python: Python,
    dir: TempDir,
}

impl S3Server {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys.json");
        fs::write(&keys, r#"{ "access_key_id": "tester", "secret_access_key": "of packages" }"#)
            .unwrap();
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o600)).unwrap();
        let path = python::packages(&MOTO).unwrap();
        Self { python: Python::start(S3, &[], Some(&path)), dir }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.python.port)
    }

    pub(crate) fn credentials(&self) -> PathBuf {
        self.dir.path().join("keys.json")
    }

    pub(crate) async fn make_bucket(&self, name: &str) {
        let (host, path) =
            (SocketAddr::from((Ipv4Addr::LOCALHOST, self.python.port)), name.to_owned());
        let answer = tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(host).unwrap();
            write!(stream, "PUT /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        let answer = answer.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// Copies a directory as it stands, index and its signature last, as a publisher would.
    pub(crate) async fn mirror(&self, from: &Path, bucket: &str, folder: &str) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let store = AmazonS3Builder::new()
            .with_endpoint(self.endpoint())
            .with_allow_http(true)
            .with_region("us-east-1")
            .with_bucket_name(bucket)
            .with_access_key_id("tester")
            .with_secret_access_key("of packages")
            .build()
            .unwrap();
        let mut files = Vec::new();
        list(from, &mut files);
        files.sort_by_key(|file| file.parent() == Some(from));
        for file in files {
            let name = file.strip_prefix(from).unwrap().to_str().unwrap();
            let to = ObjectPath::from(format!("{folder}/{name}"));
            store.put(&to, PutPayload::from(fs::read(&file).unwrap())).await.unwrap();
        }
    }
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { list(&path, files) } else { files.push(path) }
    }
}

/// What a server answers instead of the file.
pub(crate) enum Answer {
    /// Nothing, ever.
    Silence,
    /// This status, and no file.
    Status(u16),
    /// Half of the file, then the end of the connection.
    CutShort,
    /// This many bytes, it says.
    Claims(u64),
    /// Another file: the one with this added to its name.
    File(&'static str),
}

/// Decides by the number of the request, from 0, and its path.
type Fault = dyn Fn(u64, &str) -> Option<Answer> + Send + Sync;

/// A file server over plain HTTP that misbehaves as told.
pub(crate) struct FaultyServer {
    address: SocketAddr,
    requests: Arc<AtomicU64>,
}

impl FaultyServer {
    pub(crate) fn start(
        root: &Path,
        fault: impl Fn(u64, &str) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicU64::new(0));
        let (root, fault, count) =
            (root.to_owned(), Arc::new(fault) as Arc<Fault>, requests.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (root, fault, count) = (root.clone(), fault.clone(), count.clone());
                std::thread::spawn(move || {
                    // A client that gave up is no concern of the server's.
                    let _ = serve(&stream.unwrap(), &root, &*fault, &count);
                });
            }
        });
        Self { address, requests }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }
}

/// One request a connection.
fn serve(stream: &TcpStream, root: &Path, fault: &Fault, count: &AtomicU64) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let answer = fault(count.fetch_add(1, Ordering::SeqCst), path);
    let added = if let Some(Answer::File(added)) = answer { added } else { "" };
    let found = fs::read(root.join(format!("{}{added}", path.trim_start_matches('/')))).ok();
    let (status, body) = match (&answer, found) {
        (Some(Answer::Silence), _) => {
            std::thread::sleep(Duration::from_secs(30));
            return Ok(());
        }
        (Some(Answer::Status(status)), _) => (*status, Vec::new()),
        (_, None) => (404, Vec::new()),
        (_, Some(body)) => (200, body),
    };
    let length = match answer {
        Some(Answer::Claims(length)) => length,
        _ => body.len() as u64,
    };
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nLast-Modified: Mon, 02 Nov 2026 08:00:00 GMT\r\nETag: \"{length}\"\r\nConnection: close\r\n\r\n"
    )?;
    if method == "HEAD" {
        return Ok(());
    }
    let sent = if matches!(answer, Some(Answer::CutShort)) { body.len() / 2 } else { body.len() };
    stream.write_all(&body[..sent])
}
