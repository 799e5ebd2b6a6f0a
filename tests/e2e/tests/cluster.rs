//! Three bus servers and two policy services: who may be a server, and what the loss of one costs.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests: a failure is the message"
)]

use canopy_api::{
    endpoint::policy,
    nats::{Cluster as Routes, ServerConfig, TlsPaths},
    permission::Role,
    subject::Target,
    wire::tokens::TokenIssueRequest,
};
use canopy_bus::{Bus, BusConfig, CallError, CallOptions};
use canopy_e2e::{Cluster, StreamState};
use canopy_test_support::wait_for;
use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

const LIMIT: Duration = Duration::from_mins(1);

/// What each request is given: more than it takes to choose a leader.
const DEADLINE: Duration = Duration::from_secs(12);

/// Longer variants run by `cargo xtask test --full`.
fn is_full() -> bool {
    std::env::var_os("CANOPY_TEST_FULL").is_some()
}

// ---- who may be a server -----------------------------------------------------------------------

/// The ports a process listens on, as the kernel has them.
fn listening(pid: u32) -> BTreeSet<String> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let sockets: BTreeSet<String> = links
        .filter_map(|link| fs::read_link(link.ok()?.path()).ok())
        .filter_map(|link| {
            let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            Some(inode.to_owned())
        })
        .collect();
    let mut found = BTreeSet::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/net/{table}")) else { continue };
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // LISTEN is 0A (include/net/tcp_states.h); a UDP socket that is bound is 07.
            let listens = if table.starts_with("tcp") { "0A" } else { "07" };
            if fields[3] == listens && sockets.contains(fields[9]) {
                let (address, port) = fields[1].split_once(':').unwrap();
                let port = u16::from_str_radix(port, 16).unwrap();
                found.insert(format!("{table} {address} {port}"));
            }
        }
    }
    found
}

/// A server of somebody else's, which would join the cluster with this certificate.
fn rogue(cluster: &Cluster, name: &str, tls: TlsPaths) -> ServerConfig {
    let routes = cluster.servers()[0].cluster.clone().unwrap();
    // Whoever attacks trusts whom he likes: the cluster's real authority, so that only the cluster refuses.
    let tls = TlsPaths { ca: routes.tls.ca.clone(), ..tls };
    let routes = Routes { listen: SocketAddr::from(([127, 0, 0, 1], 6300)), tls, ..routes };
    ServerConfig {
        name: name.to_owned(),
        listen: SocketAddr::from(([127, 0, 0, 1], 4300)),
        jetstream_dir: cluster.path(name),
        cluster: Some(routes),
        ..cluster.single().unwrap()
    }
}

/// A certificate for server and client use with this DNS name, of the authority in `dir`.
fn signed_by(cluster: &Cluster, dir: &Path, name: &str) -> TlsPaths {
    let key = KeyPair::from_pem(&fs::read_to_string(dir.join("ca.key")).unwrap()).unwrap();
    let ca = fs::read_to_string(dir.join("ca.crt")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&ca, key).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let paths = (cluster.path(&format!("{name}.crt")), cluster.path(&format!("{name}.key")));
    fs::write(&paths.0, certificate.pem()).unwrap();
    fs::write(&paths.1, key.serialize_pem()).unwrap();
    TlsPaths { ca: dir.join("ca.crt"), cert: paths.0, key: paths.1 }
}

/// An enrolled host's certificate, a person's, the bus server's own, one of the bus's authority with the name
/// of a route, and one of the routes' authority with another name: none of them makes a server. The routes' own
/// does, which shows that nothing else kept them out.
#[test]
fn only_the_routes_authority_makes_a_server() {
    let mut cluster = Cluster::new().unwrap();
    for number in 1..=3 {
        cluster.start_bus(&format!("bus{number}")).unwrap();
    }
    let expected = |number: u16| -> BTreeSet<String> {
        (0..3).filter(|other| *other != number).map(|other| format!("bus{}", other + 1)).collect()
    };
    for number in 0..3 {
        wait_for(LIMIT, "the servers are a cluster", || {
            let routes = cluster.routes_of(number).map_err(|error| format!("{error:#}"))?;
            if routes == expected(number) { Ok(()) } else { Err(format!("{routes:?}")) }
        })
        .unwrap();
    }

    // Nothing listens but for clients, for routes, and on loopback for monitoring.
    for (number, server) in cluster.servers().iter().enumerate() {
        let ports: BTreeSet<String> =
            [server.listen, server.cluster.as_ref().unwrap().listen, server.monitor.unwrap()]
                .iter()
                .map(|address| format!("tcp 0100007F {}", address.port()))
                .collect();
        assert_eq!(listening(cluster.pid(&server.name).unwrap()), ports, "{}", server.name);
        let own = cluster.monitored(u16::try_from(number).unwrap(), "/varz").unwrap();
        for absent in ["gateway", "leaf", "mqtt", "websocket"] {
            assert_eq!(own[absent]["port"], serde_json::Value::Null, "{absent}: {}", own[absent]);
        }
        assert_eq!(own["cluster"]["tls_required"], true, "{}", own["cluster"]);
        assert_eq!(own["cluster"]["tls_verify"], true, "{}", own["cluster"]);
    }

    let pki = cluster.layout().pki_dir();
    let of = |name: &str| TlsPaths {
        ca: pki.join("ca.crt"),
        cert: pki.join(format!("{name}.crt")),
        key: pki.join(format!("{name}.key")),
    };
    for (name, tls) in [
        ("host", of("h-e2e-loader")),
        ("person", of("u-admin")),
        ("server", of("server")),
        ("named", signed_by(&cluster, &pki, "localhost")),
        ("other", signed_by(&cluster, &cluster.layout().routes_pki_dir(), "other.example.net")),
    ] {
        let said = |cluster: &Cluster| -> usize {
            let logs = (1..=3).map(|number| cluster.log(&format!("bus{number}")).unwrap());
            let refused = ["TLS route handshake error", "authentication error"];
            logs.map(|log| refused.map(|text| log.matches(text).count()).iter().sum::<usize>())
                .sum()
        };
        let before = said(&cluster);
        cluster.write_server(&rogue(&cluster, name, tls)).unwrap();
        cluster.start_bus(name).unwrap();
        // It tries each of the three, and again.
        wait_for(LIMIT, "the rogue server has tried", || {
            let now = said(&cluster) - before;
            if now >= 4 { Ok(()) } else { Err(cluster.log(name).unwrap()) }
        })
        .unwrap();
        for number in 0..3 {
            // A connection that TLS lets in is listed until the server has read its first lines.
            wait_for(LIMIT, "the rogue server is none of the cluster's", || {
                let routes = cluster.routes_of(number).map_err(|error| format!("{error:#}"))?;
                if routes == expected(number) { Ok(()) } else { Err(format!("{name}: {routes:?}")) }
            })
            .unwrap();
        }
        cluster.kill(name).unwrap();
    }

    let tls = cluster.routes().unwrap();
    cluster.write_server(&rogue(&cluster, "bus4", tls)).unwrap();
    cluster.start_bus("bus4").unwrap();
    wait_for(LIMIT, "a server with the routes' certificate joins", || {
        let routes = cluster.routes_of(0).unwrap();
        if routes.contains("bus4") { Ok(()) } else { Err(format!("{routes:?}")) }
    })
    .unwrap();
}

// ---- what the loss of a server costs -----------------------------------------------------------

/// Tokens that are issued one after the other, each with its own deadline.
struct Issuing {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<String>>>,
    thread: JoinHandle<anyhow::Result<Issued>>,
}

/// What came of them.
#[derive(Debug, Default)]
struct Issued {
    longest: Duration,
    /// When it was begun, and what was said.
    failed: BTreeMap<String, (Instant, String)>,
}

impl Issuing {
    /// Begins, over this server alone.
    fn start(cluster: &Cluster, server: u16, round: usize) -> Self {
        let layout = cluster.layout();
        let file = |ending: &str| layout.pki_dir().join(format!("u-admin.{ending}"));
        let url = format!("tls://{}", cluster.servers()[usize::from(server)].listen);
        let mut config =
            BusConfig::new(url, layout.pki_dir().join("ca.crt"), file("crt"), file("key"));
        config.token = Some(layout.token("u-admin"));
        let (stop, acknowledged) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<_>>>::default());
        let (stopped, done) = (Arc::clone(&stop), Arc::clone(&acknowledged));
        let issue = async move {
            let bus = Bus::connect(&config, "u-admin".parse()?).await?;
            bus.wait_ready(LIMIT).await?;
            let mut issued = Issued::default();
            for number in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let person = format!("u-r{round}n{number}");
                let begun = Instant::now();
                match issue(&bus, &person).await {
                    Ok(()) => done.lock().unwrap().push(person),
                    Err(error) => drop(issued.failed.insert(person, (begun, error.to_string()))),
                }
                issued.longest = issued.longest.max(begun.elapsed());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            bus.close().await;
            anyhow::Ok(issued)
        };
        let run = move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(issue)
        };
        Self { stop, acknowledged, thread: cluster.netns().spawn(run).unwrap() }
    }

    fn acknowledged(&self) -> Vec<String> {
        self.acknowledged.lock().unwrap().clone()
    }

    /// Waits until so many more were acknowledged.
    fn wait_for_more(&self, more: usize) {
        let before = self.acknowledged().len();
        wait_for(LIMIT, "more tokens are issued", || {
            let now = self.acknowledged().len();
            if now >= before + more { Ok(()) } else { Err(format!("{now} of {}", before + more)) }
        })
        .unwrap();
    }

    fn end(self) -> (Vec<String>, Issued) {
        self.stop.store(true, Ordering::Relaxed);
        let issued = self.thread.join().unwrap().unwrap();
        let acknowledged = self.acknowledged.lock().unwrap().clone();
        (acknowledged, issued)
    }
}

/// One request, which its service has to carry out within its deadline.
async fn issue(bus: &Bus, person: &str) -> Result<(), CallError> {
    let request = TokenIssueRequest {
        principal: person.parse().unwrap(),
        role: Role::Viewer,
        scope: None,
        binding: None,
        expires_in: None,
    };
    let options = CallOptions { timeout: Some(DEADLINE), ..CallOptions::default() };
    bus.call_with::<policy::TokenIssue>(&Target::Central, &request, options).await.map(drop)
}

/// Waits until every stream has a leader and so many servers that are up to date.
fn wait_for_streams(cluster: &Cluster, replicas: usize) -> Vec<StreamState> {
    wait_for(LIMIT, "every stream is kept by as many servers as wanted", || {
        let streams = cluster.streams().map_err(|error| format!("{error:#}"))?;
        let good = |stream: &StreamState| {
            !stream.leader.is_empty()
                && stream.replicas == replicas as u64
                && stream.current == replicas - 1
        };
        let good = streams.len() >= 4 && streams.iter().all(good);
        if good { Ok(streams) } else { Err(format!("{streams:?}")) }
    })
    .unwrap()
}

fn leader(streams: &[StreamState], name: &str) -> String {
    streams.iter().find(|stream| stream.name == name).unwrap().leader.clone()
}

/// The server that leads what is written is killed while tokens are issued: each request is carried out
/// within its deadline, and of what was acknowledged neither a token nor its audit record is lost. Those that the
/// killed server had in its hands, or that come before the services have another, are sent again.
#[test]
fn requests_outlast_the_loss_of_a_leader() {
    let mut cluster = Cluster::new().unwrap();
    cluster.start_all().unwrap();
    let mut all = vec!["u-admin".to_owned()];
    let rounds: &[&str] = if is_full() {
        &["KV_canopy_tokens", "CANOPY_AUDIT", "KV_canopy_tokens", "CANOPY_AUDIT"]
    } else {
        &["KV_canopy_tokens"]
    };
    for (round, stream) in rounds.iter().enumerate() {
        let before = leader(&wait_for_streams(&cluster, 3), stream);
        let observer = (0..3).find(|number| format!("bus{}", number + 1) != before).unwrap();
        let issuing = Issuing::start(&cluster, observer, round);
        issuing.wait_for_more(3);
        let killed = Instant::now();
        cluster.kill(&before).unwrap();
        // A backup waits for the next leader, too; so does a bootstrap.
        let kept = cluster.path(&format!("kept{round}")).display().to_string();
        let token = cluster.path(&format!("u-operator{round}.token")).display().to_string();
        let certificate = cluster.layout().pki_dir().join("u-operator.crt").display().to_string();
        let rest = ["--principal", "u-operator", "--certificate", &certificate, "--output", &token];
        let (saved, issued) = std::thread::scope(|scope| {
            let issued = scope.spawn(|| cluster.policy_command("bootstrap", &rest));
            (cluster.policy_command("backup", &["--output", &kept]), issued.join())
        });
        let saved = saved.unwrap();
        assert!(saved.contains(stream), "{saved}");
        assert!(issued.unwrap().unwrap().contains("of u-operator, role admin"));
        wait_for(LIMIT, "another server leads", || {
            let streams = cluster.streams().map_err(|error| format!("{error:#}"))?;
            let now = leader(&streams, stream);
            if now.is_empty() || now == before { Err(now) } else { Ok(()) }
        })
        .unwrap();
        let without = killed.elapsed();
        issuing.wait_for_more(3);
        let (acknowledged, issued) = issuing.end();
        println!("{stream}: no leader for {without:?}; longest request {:?}", issued.longest);
        // The answer to a request that was done just then may be lost, and another instance gets the repeat.
        let answer_lost = |begun: Instant, error: &str| {
            begun <= killed && begun + DEADLINE > killed && error.contains("has a token in force")
        };
        let failed = &issued.failed;
        assert!(failed.values().all(|(begun, error)| answer_lost(*begun, error)), "{failed:?}");
        all.extend(acknowledged);
        if round + 1 < rounds.len() {
            cluster.start_bus(&before).unwrap();
        }
    }
    let listed = cluster.canopy(&["token", "list", "-o", "json"]).unwrap();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let people: BTreeSet<&str> =
        listed.as_array().unwrap().iter().map(|one| one["principal"].as_str().unwrap()).collect();
    let lost: Vec<_> = all.iter().filter(|person| !people.contains(person.as_str())).collect();
    assert!(lost.is_empty(), "{lost:?} of {all:?}");
    // The trail of each policy service is stored, whole.
    wait_for(LIMIT, "every token's record is stored", || {
        let stored = cluster.canopy(&["get", "audit", "-A", "--limit", "10000", "-o", "json"])?;
        let missing = all.iter().skip(1).filter(|person| {
            let of = format!(" of {person},");
            let is_record = |line: &&str| line.contains("issued: token ") && line.contains(&of);
            stored.lines().filter(is_record).count() != 1
        });
        let missing: Vec<_> = missing.collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
    })
    .unwrap();
    let verified = cluster.canopy(&["audit", "verify"]).unwrap();
    assert!(verified.contains("as it was written"), "{verified}");
}

/// What a server that is alone keeps is carried over to a cluster, and kept by three once the cluster has them:
/// the service starts before that, says what is missing, and does it by itself.
#[test]
fn one_server_becomes_three() {
    let mut cluster = Cluster::new().unwrap();
    let alone = cluster.single().unwrap();
    cluster.write_server(&alone).unwrap();
    cluster.start_bus(&alone.name).unwrap();
    cluster.write_policies(1).unwrap();
    cluster.start_policy(0).unwrap();
    cluster.wait_policy(0).unwrap();
    cluster.bootstrap().unwrap();
    let certificate = cluster.layout().pki_dir().join("u-viewer.crt").display().to_string();
    let issue = ["token", "issue", "u-viewer", "--role", "viewer", "--certificate", &certificate];
    cluster.canopy(&issue).unwrap();
    cluster.stop("policy0").unwrap();
    let kept = cluster.path("kept").display().to_string();
    let saved = cluster.policy_command("backup", &["--output", &kept]).unwrap();
    assert!(saved.contains("KV_canopy_tokens") && saved.contains("CANOPY_AUDIT"), "{saved}");
    cluster.stop(&alone.name).unwrap();

    // A cluster is begun by all of them; two are enough to go on, and too few for three copies.
    for number in 1..=3 {
        cluster.start_bus(&format!("bus{number}")).unwrap();
    }
    wait_for(LIMIT, "the cluster has begun", || {
        let answer = cluster.monitored(0, "/jsz").map_err(|error| format!("{error:#}"))?;
        let meta = &answer["meta_cluster"];
        let others = meta["replicas"].as_array().map_or(0, Vec::len);
        if meta["leader"].is_string() && others == 2 { Ok(()) } else { Err(meta.to_string()) }
    })
    .unwrap();
    if is_full() {
        // One that is killed would be given streams to keep until it is missed.
        cluster.stop("bus3").unwrap();
    }
    let restored = cluster.policy_command("restore", &["--input", &kept]).unwrap();
    assert_eq!(restored, saved);
    cluster.write_policies(3).unwrap();
    cluster.start_policy(0).unwrap();
    cluster.wait_policy(0).unwrap();
    let says = |cluster: &Cluster, part: &str| {
        wait_for(LIMIT, "the service says how many copies there are", || {
            let (status, text) = cluster.policy_health(0).map_err(|error| format!("{error:#}"))?;
            if status == 200 && text.contains(part) { Ok(()) } else { Err(text) }
        })
        .unwrap();
    };
    if is_full() {
        says(&cluster, "KV_canopy_tokens has 2 of 3");
        cluster.start_bus("bus3").unwrap();
    }
    wait_for_streams(&cluster, 3);
    says(&cluster, "3 up-to-date copies");
    let people =
        wait_for(LIMIT, "tokens are listed", || cluster.canopy(&["token", "list", "-o", "json"]))
            .unwrap();
    assert!(people.contains("u-admin") && people.contains("u-viewer"), "{people}");
    let trail = cluster.canopy(&["get", "audit", "-A", "-o", "json"]).unwrap();
    assert!(trail.contains(" of u-viewer,"), "{trail}");
    if is_full() {
        cluster.kill("bus3").unwrap();
        says(&cluster, " has 2 of 3");
    }
}
