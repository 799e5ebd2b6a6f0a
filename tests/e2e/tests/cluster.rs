//! Three bus servers, two policy services: what was acknowledged is kept whichever server dies.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests: a failure is the message"
)]

use canopy_api::{
    endpoint::Service,
    nats::{Callout, ServerConfig, TlsPaths, User},
};
use canopy_test_support::{nats::Authority, netns::Netns, wait_for};
use rcgen::{ExtendedKeyUsagePurpose, SanType};
use serde_json::{Value, json};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use xtask::{compile, config::Layout, paths, stack, stack::Stack, tools};

const LIMIT: Duration = Duration::from_secs(40);

/// Everything in a network namespace of its own, where every port is free.
struct Site {
    netns: Netns,
    dir: tempfile::TempDir,
    stack: Stack,
    running: Vec<(String, Child)>,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout {
            dir: dir.path().join("stack"),
            bpffs: "/sys/fs/bpf/canopy-no-pins".into(),
            host: "e2e".parse().unwrap(),
            bus: SocketAddr::from(([127, 0, 0, 1], 4222)),
            admin_port: 0,
        };
        let stack = Stack::new(layout, tools::nats_server().unwrap());
        stack.prepare().unwrap();
        let site = Self { netns: Netns::new().unwrap(), dir, stack, running: Vec::new() };
        site.certificates_for_routes();
        for number in 0..3 {
            fs::write(site.path(&format!("bus{number}.conf")), site.server(number)).unwrap();
        }
        // Clients know every server.
        let url = "tls://127.0.0.1:4222,tls://127.0.0.1:4223,tls://127.0.0.1:4224";
        let contexts = site.stack.layout().contexts();
        let text = fs::read_to_string(&contexts).unwrap();
        fs::write(&contexts, text.replace("tls://127.0.0.1:4222", url)).unwrap();
        for instance in 0..2 {
            let of = site.stack.layout().service_config(Service::Policy);
            let mut config: Value = serde_json::from_str(&fs::read_to_string(of).unwrap()).unwrap();
            config["bus"]["url"] = json!(url);
            config["auth"]["replicas"] = json!(3);
            config["audit"]["dir"] = json!(site.path(&format!("audit{instance}")));
            config["runtime"]["address_file"] =
                json!(site.path(&format!("policy{instance}.address")));
            let file = site.path(&format!("policy{instance}.json"));
            fs::write(file, config.to_string()).unwrap();
        }
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An authority that signs servers alone.
    fn certificates_for_routes(&self) {
        let authority = Authority::new().unwrap();
        fs::write(self.path("routes-ca.crt"), authority.pem()).unwrap();
        let localhost = || vec![SanType::DnsName("localhost".try_into().unwrap())];
        authority
            .issue(self.dir.path(), "route", localhost(), |params| {
                params.extended_key_usages =
                    vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            })
            .unwrap();
    }

    /// The configuration of a server.
    fn server(&self, number: u16) -> String {
        let pki = self.stack.layout().pki_dir();
        let public = fs::read_to_string(self.stack.layout().policy_keys().join("callout.json"));
        let public: Value = serde_json::from_str(&public.unwrap()).unwrap();
        let key = |name: &str| public[name].as_str().unwrap().to_owned();
        let config = ServerConfig {
            name: format!("bus{number}"),
            listen: ([127, 0, 0, 1], 4222 + number).into(),
            monitor: None,
            tls: TlsPaths {
                ca: pki.join("ca.crt"),
                cert: pki.join("server.crt"),
                key: pki.join("server.key"),
            },
            jetstream_dir: self.path(&format!("jetstream{number}")),
            ports_file_dir: None,
            pid_file: None,
            users: User::policy(),
            callout: Some(Callout { issuer: key("issuer"), xkey: key("xkey") }),
        };
        // The block that is shipped, for this machine's ports and files.
        let shipped = paths::workspace().join("deploy/nats/cluster.conf");
        let mut block = fs::read_to_string(shipped).unwrap();
        for (from, to) in [
            ("0.0.0.0:6222".to_owned(), format!("127.0.0.1:{}", 6222 + number)),
            ("bus1.example.net:6222".to_owned(), "localhost:6222".to_owned()),
            ("bus2.example.net:6222".to_owned(), "localhost:6223".to_owned()),
            ("bus3.example.net:6222".to_owned(), "localhost:6224".to_owned()),
            ("/etc/canopy/tls".to_owned(), self.dir.path().display().to_string()),
        ] {
            assert!(block.contains(&from), "{from}");
            block = block.replace(&from, &to);
        }
        format!("{}\n{block}", config.to_text().unwrap())
    }

    fn start(&mut self, name: &str, program: &Path, config: &str) {
        let log =
            fs::File::options().create(true).append(true).open(self.path(&format!("{name}.log")));
        let log = log.unwrap();
        let mut command = Command::new(program);
        command.arg("--config").arg(self.path(config)).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let child = self.netns.run(|| Ok(command.spawn()?)).unwrap();
        self.running.push((name.to_owned(), child));
    }

    fn start_bus(&mut self, number: u16) {
        let program = tools::nats_server().unwrap();
        self.start(&format!("bus{number}"), &program, &format!("bus{number}.conf"));
    }

    /// Kills one, as a machine that loses its power.
    fn kill(&mut self, name: &str) {
        let at = self.running.iter().position(|(one, _)| one == name).unwrap();
        let (_, mut child) = self.running.remove(at);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn canopy(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = self.stack.canopy("admin").unwrap();
        command.args(arguments).current_dir(self.dir.path());
        let output = self.netns.run(|| Ok(command.output()?)).unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
    }

    /// Issues a token, as often as it takes until that is acknowledged.
    fn issue(&self, person: &str) {
        let certificate = self.stack.layout().pki_dir().join("u-viewer.crt").display().to_string();
        let issue = ["token", "issue", person, "--role", "viewer", "--certificate", &certificate];
        wait_for(LIMIT, &format!("{person} has a token"), || self.canopy(&issue)).unwrap();
    }

    /// Everybody who has a token.
    fn people(&self) -> Vec<String> {
        let list = || self.canopy(&["token", "list", "-o", "json"]);
        let listed: Value =
            serde_json::from_str(&wait_for(LIMIT, "tokens are listed", list).unwrap()).unwrap();
        let name = |token: &Value| token["principal"].as_str().unwrap().to_owned();
        listed.as_array().unwrap().iter().map(name).collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for (name, child) in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
            if std::thread::panicking() {
                let log = fs::read_to_string(self.dir.path().join(format!("{name}.log")));
                let log = log.unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                println!("---- {name}\n{}", lines[lines.len().saturating_sub(15)..].join("\n"));
            }
        }
    }
}

#[test]
fn acknowledged_tokens_survive_the_loss_of_any_server() {
    let mut site = Site::new();
    for number in 0..3 {
        site.start_bus(number);
    }
    let policy = compile::binary("canopy-policy").unwrap();
    for instance in 0..2 {
        site.start(&format!("policy{instance}"), &policy, &format!("policy{instance}.json"));
    }
    for instance in 0..2 {
        wait_for(LIMIT, "a policy service is ready", || {
            let address = fs::read_to_string(site.path(&format!("policy{instance}.address")))
                .map_err(|error| error.to_string())?;
            let address = address.trim().parse().map_err(|_| "half an address".to_owned())?;
            match site.netns.run(|| stack::http_get(address, "/ready?verbose")) {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .unwrap();
    }
    let token = site.stack.layout().token("u-admin");
    fs::create_dir_all(token.parent().unwrap()).unwrap();
    let mut bootstrap = Command::new(&policy);
    bootstrap.args(["bootstrap", "--principal", "u-admin", "--config"]);
    bootstrap.arg(site.path("policy0.json")).arg("--certificate");
    bootstrap.arg(site.stack.layout().pki_dir().join("u-admin.crt")).arg("--output").arg(token);
    let done = site.netns.run(|| Ok(bootstrap.output()?)).unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));

    let mut wanted = vec!["u-admin".to_owned()];
    let mut issue = |site: &Site, person: String| {
        site.issue(&person);
        wanted.push(person);
        wanted.clone()
    };
    // One server in short, each in turn in full.
    let full = std::env::var_os("CANOPY_TEST_FULL").is_some();
    let rounds = if full { 3 } else { 1 };
    for number in 0..rounds {
        issue(&site, format!("u-before{number}"));
        site.kill(&format!("bus{number}"));
        let wanted = issue(&site, format!("u-without{number}"));
        let found = site.people();
        assert!(wanted.iter().all(|person| found.contains(person)), "{wanted:?} {found:?}");
        if number + 1 == rounds {
            break;
        }
        site.start_bus(number);
        // Only when it has caught up may the next one die: two of three are needed.
        let file = site.path(&format!("bus{number}.log"));
        wait_for(LIMIT, "the server is back", || {
            let log = fs::read_to_string(&file).unwrap();
            let last = log.rsplit("Starting nats-server").next().unwrap_or_default();
            let joined = last.matches("Route connection created").count();
            if joined >= 2 { Ok(()) } else { Err(last.to_owned()) }
        })
        .unwrap();
    }
}
