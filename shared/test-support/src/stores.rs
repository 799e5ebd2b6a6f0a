//! Stores of somebody else's making, each its own process on a free port.

use crate::{node, python};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;

/// A Python program that prints its port first; ended when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    port: u16,
}

impl Server {
    /// Starts the program; `path` is where its packages are.
    pub fn python(program: &str, arguments: &[&Path], path: Option<&Path>) -> Result<Self> {
        let mut command = Command::new("python3");
        if let Some(path) = path {
            command.env("PYTHONPATH", path);
        }
        command.env("PYTHONDONTWRITEBYTECODE", "1").args(["-c", program]).args(arguments);
        Self::start(&mut command).context("python3 is needed: apt-get install python3")
    }

    /// Runs a server until it is dropped.
    fn start(command: &mut Command) -> Result<Self> {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let out = BufReader::new(child.stdout.take().context("its output")?);
        // The first line that ends in a port is where it listens.
        for line in out.lines() {
            let line = line?;
            let port = line.trim().rsplit(':').next().and_then(|port| port.parse().ok());
            if let Some(port) = port.filter(|port| *port != 0) {
                return Ok(Self { child, port });
            }
        }
        bail!("the server did not say where it listens")
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A store of buckets, and how it is reached: what stands under `store` in a configuration.
#[derive(Debug)]
pub struct Buckets {
    scheme: &'static str,
    server: Server,
    store: Value,
    dir: TempDir,
}

const MOTO: &str = r#"
import threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
# One request after the other: what a real store does at once, moto does in steps.
server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app))
print(server.server_port, flush=True)
server.serve_forever()
"#;

/// What every Azurite has.
const AZURE_ACCOUNT: &str = "devstoreaccount1";
const AZURE_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Makes a container: a request signed as Microsoft's documentation says ("Authorize with Shared
/// Key").
const AZURE_CONTAINER: &str = r#"
import base64, email.utils, hashlib, hmac, http.client, sys
address, account, key, name = sys.argv[1:]
date = email.utils.formatdate(usegmt=True)
path = f"/{account}/{name}"
text = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:2021-08-06\n/{account}{path}\nrestype:container"
signature = base64.b64encode(hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()).decode()
connection = http.client.HTTPConnection(address)
connection.request("PUT", path + "?restype=container", headers={
    "x-ms-date": date, "x-ms-version": "2021-08-06", "Content-Length": "0",
    "Authorization": f"SharedKey {account}:{signature}"})
answer = connection.getresponse()
print("HTTP", answer.status, answer.read().decode())
"#;

impl Buckets {
    /// moto's S3.
    pub fn s3() -> Result<Self> {
        let path = python::packages(&["moto[server,s3]==5.2.5"])?;
        let server = Server::python(MOTO, &[], Some(&path))?;
        let dir = tempfile::tempdir()?;
        let keys = json!({ "access_key_id": "tester", "secret_access_key": "of packages" });
        let store = json!({
            "endpoint": format!("http://{}", server.address()),
            "region": "us-east-1",
            "credentials": { "file": secret(dir.path(), &keys)? },
            "transport": "plaintext",
        });
        Ok(Self { scheme: "s3", server, store, dir })
    }

    /// Azurite, Microsoft's own emulator of Azure.
    pub fn azure() -> Result<Self> {
        let package = node::package("azurite@3.37.0")?;
        let mut command = Command::new("node");
        command
            .arg(package.join("node_modules/azurite/dist/src/blob/main.js"))
            .args(["--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence"])
            .args(["--skipApiVersionCheck", "--disableTelemetry", "--silent"]);
        let server =
            Server::start(&mut command).context("node is needed: apt-get install nodejs")?;
        let dir = tempfile::tempdir()?;
        let store = json!({
            "endpoint": format!("http://{}/{AZURE_ACCOUNT}", server.address()),
            "account": AZURE_ACCOUNT,
            "credentials": {
                "file": secret(dir.path(), &json!({ "account_key": AZURE_KEY }))?,
            },
            "transport": "plaintext",
        });
        Ok(Self { scheme: "az", server, store, dir })
    }

    /// How the store is reached.
    pub fn store(&self) -> &Value {
        &self.store
    }

    /// The same, in a file.
    pub fn store_file(&self) -> Result<std::path::PathBuf> {
        let path = self.dir.path().join("store.json");
        fs::write(&path, self.store.to_string())?;
        Ok(path)
    }

    /// The URL of a folder in a bucket.
    pub fn url(&self, bucket: &str, folder: &str) -> String {
        format!("{}://{bucket}/{folder}", self.scheme)
    }

    /// Makes a bucket.
    pub fn make(&self, bucket: &str) -> Result<()> {
        let answer = if self.scheme == "az" {
            let output = Command::new("python3")
                .args(["-c", AZURE_CONTAINER, &self.server.address().to_string()])
                .args([AZURE_ACCOUNT, AZURE_KEY, bucket])
                .output()?;
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
        } else {
            http(self.server.address(), &format!("PUT /{bucket} HTTP/1.1"))?
        };
        ensure!(matches!(answer.split(' ').nth(1), Some("200" | "201")), "{answer}");
        Ok(())
    }
}

/// moto's Secrets Manager, which looks at every request's signature and at what its user may do.
#[derive(Debug)]
pub struct Secrets {
    server: Server,
    path: std::path::PathBuf,
    dir: TempDir,
}

/// A user who may read secrets, and from now on nobody without a signature.
const SECRETS_USER: &str = r#"
import boto3, json, sys, urllib.request
url = "http://" + sys.argv[1]
iam = boto3.client("iam", endpoint_url=url, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
iam.create_user(UserName="canopy")
allow = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "secretsmanager:*", "Resource": "*"}]}
iam.put_user_policy(UserName="canopy", PolicyName="secrets", PolicyDocument=json.dumps(allow))
key = iam.create_access_key(UserName="canopy")["AccessKey"]
request = urllib.request.Request(url + "/moto-api/reset-auth", data=b"0", method="POST", headers={"Content-Type": "text/plain"})
urllib.request.urlopen(request)
print(json.dumps({"access_key_id": key["AccessKeyId"], "secret_access_key": key["SecretAccessKey"]}))
"#;

const SECRETS_PUT: &str = r#"
import boto3, json, sys
keys = json.load(open(sys.argv[2]))
client = boto3.client("secretsmanager", endpoint_url="http://" + sys.argv[1], region_name="us-east-1",
    aws_access_key_id=keys["access_key_id"], aws_secret_access_key=keys["secret_access_key"])
value = json.load(sys.stdin)
value = {"SecretBinary": b"x"} if value is None else {"SecretString": value}
try:
    client.put_secret_value(SecretId=sys.argv[3], **value)
except client.exceptions.ResourceNotFoundException:
    client.create_secret(Name=sys.argv[3], **value)
"#;

impl Secrets {
    /// Starts it.
    pub fn start() -> Result<Self> {
        let path = python::packages(&["moto[server,s3]==5.2.5"])?;
        let server = Server::python(MOTO, &[], Some(&path))?;
        let dir = tempfile::tempdir()?;
        let this = Self { server, path, dir };
        let keys = this.run(SECRETS_USER, &[&this.server.address().to_string()], "")?;
        secret(this.dir.path(), &serde_json::from_str(&keys).context("the user's keys")?)?;
        Ok(this)
    }

    fn keys(&self) -> std::path::PathBuf {
        self.dir.path().join("keys.json")
    }

    fn run(&self, program: &str, arguments: &[&str], input: &str) -> Result<String> {
        let mut child = Command::new("python3")
            .env("PYTHONPATH", &self.path)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .args(["-c", program])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("its input")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Gives a secret another value; `None` for one that is no text.
    pub fn put(&self, name: &str, value: Option<&str>) -> Result<()> {
        let keys = self.keys();
        let arguments = [&self.server.address().to_string(), &*keys.to_string_lossy(), name];
        self.run(SECRETS_PUT, &arguments, &json!(value).to_string()).map(drop)
    }

    /// Where a secret is, as a configuration says it.
    pub fn source(&self, name: &str) -> Value {
        json!({ "aws_secrets_manager": {
            "secret_id": name,
            "region": "us-east-1",
            "endpoint": format!("http://{}", self.server.address()),
            "credentials": { "file": self.keys() },
            "transport": "plaintext",
        } })
    }
}

/// Writes a file that only its owner may read.
fn secret(dir: &Path, content: &Value) -> Result<std::path::PathBuf> {
    let path = dir.join("keys.json");
    fs::write(&path, content.to_string())?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(path)
}

/// One request, and the whole answer.
fn http(to: SocketAddr, request: &str) -> Result<String> {
    let mut stream = TcpStream::connect(to)?;
    write!(stream, "{request}\r\nHost: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
