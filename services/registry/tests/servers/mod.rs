//! Servers of packages: Python's own file server with TLS, and one that misbehaves.

use canopy_test_support::stores::Server;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
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

/// A static file server with a certificate of its own authority.
pub(crate) struct WebServer {
    server: Server,
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
        Self { server: Server::python(WEB, &[root, &certificate, &key], None).unwrap(), dir }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.server.address())
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
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
