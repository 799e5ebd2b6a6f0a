//! The program over a real bus, with a stand-in for a host's loader and for the registry that give
//! set answers: what is asked of them, and what becomes of the answers.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use canopy_api::{
    ApiError, Code,
    endpoint::{Service, loader, policy, registry},
    wire::{
        ApplyReply, ApplyRequest, DeleteRequest, FactsReply, GetReply, ListReply, MapChangeReply,
        MapDeleteRequest, ResetHostRequest, ResetIndexReply, ResetRepositoryRequest,
        hosts::{HostListReply, HostRecord},
    },
};
use canopy_bus::{Bus, BusConfig, Server};
use canopy_test_support::nats::NatsServer;
use serde_json::{Map, Value, json};
use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const DIGEST: &str = "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";

/// What `limit` on eth0/xdp is now; rehearsals say it would get priority 30.
fn program(priority: u16) -> Value {
    json!({ "name": "limit", "package": "ratelimit", "version": "0.1.0", "digest": DIGEST,
            "program": "ratelimit", "priority": priority, "proceed_on": ["pass"] })
}

fn state(host: &str) -> GetReply {
    let mut status = program(20);
    let extra = json!({ "position": 0, "function": "ratelimit", "runs": 12,
                        "verdicts": { "pass": 12 }, "exits": { "pass": 12 } });
    status.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    serde_json::from_value(json!({
        "host": host, "generation": 4, "drained": false, "kernel": "6.18.0", "version": "0.1.0",
        "started": "2026-01-01T00:00:00.000Z",
        "chains": [{ "interface": "eth0", "hook": "xdp", "state": "active", "restored": 0,
                     "programs": [status] }],
    }))
    .unwrap()
}

fn change(host: &str, request: &ApplyRequest) -> Result<ApplyReply, ApiError> {
    if request.expected_generation.is_some_and(|expected| expected != 4) {
        return Err(ApiError::new(Code::Conflict, "the host is at generation 4")
            .at("expected_generation")
            .remedy("read again"));
    }
    let chains = request.document["chains"].as_array().unwrap().clone();
    let mut outcomes = Vec::new();
    for (i, chain) in chains.iter().enumerate() {
        if chain["interface"] == "eth9" {
            let error = ApiError::new(Code::NotFound, "there is no interface \"eth9\"")
                .at(format!("document.chains[{i}].interface"))
                .remedy("ip link lists them");
            if request.atomic || chains.len() == 1 {
                return Err(error);
            }
            outcomes.push(json!({ "interface": chain["interface"], "hook": chain["hook"],
                                  "action": "failed", "error": error }));
            continue;
        }
        if chain["interface"] == "eth8" {
            outcomes
                .push(json!({ "interface": "eth8", "hook": chain["hook"], "action": "unchanged" }));
            continue;
        }
        let removed = chain["programs"].as_array().unwrap().is_empty();
        let programs = if removed { json!([]) } else { json!([program(30)]) };
        let action = if removed { "removed" } else { "updated" };
        outcomes.push(json!({ "interface": chain["interface"], "hook": chain["hook"],
                              "action": action, "programs": programs }));
    }
    let generation = if request.dry_run { 4 } else { 5 };
    Ok(serde_json::from_value(json!({
        "host": host, "generation": generation, "dry_run": request.dry_run, "chains": outcomes,
    }))
    .unwrap())
}

fn config(settings: &Value) -> Map<String, Value> {
    settings.as_object().unwrap().clone()
}

/// A server, its stand-ins, and a directory with a context file.
struct Fleet {
    server: NatsServer,
    dir: TempDir,
    stop: CancellationToken,
    /// Requests to apply that reached a host.
    asked: Arc<Mutex<Vec<(String, ApplyRequest)>>>,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn bus(server: &NatsServer, principal: &str) -> Bus {
    let files = server.client(principal);
    let config = BusConfig::new(files.url, files.ca, files.cert, files.key);
    let bus = Bus::connect(&config, principal.parse().unwrap()).await.unwrap();
    bus.wait_ready(Duration::from_secs(10)).await.unwrap();
    bus
}

async fn serve(server: Server, stop: &CancellationToken) {
    let (tell, mut ready) = tokio::sync::watch::channel(false);
    let server = server.on_ready(move |ok, _| {
        tell.send_replace(ok);
    });
    tokio::spawn(server.serve(stop.clone()));
    ready.wait_for(|ready| *ready).await.unwrap();
}

impl Fleet {
    async fn start(hosts: &[&'static str]) -> Self {
        let server = NatsServer::start(&["web1", "web2"]).unwrap();
        let (stop, asked) = (CancellationToken::new(), Arc::default());
        for host in hosts {
            Self::loader(&server, host, &stop, &asked).await;
        }
        let central = Server::new(bus(&server, "s-registry").await, Service::Registry, None)
            .handle::<registry::List, _, _>(|_, _| async { Ok(ListReply::default()) })
            .handle::<registry::ResetIndex, _, _>(
                |_, request: ResetRepositoryRequest| async move {
                    let ResetRepositoryRequest { repository } = request;
                    if repository != "starter" {
                        let unknown = format!("there is no repository \"{repository}\"");
                        return Err(ApiError::new(Code::NotFound, unknown).at("repository"));
                    }
                    let id = Some("5d41402abc4b2a76b9719d911017c592".to_owned());
                    Ok(ResetIndexReply { repository, id, from: u64::MAX, to: 41 })
                },
            );
        serve(central, &stop).await;
        let dir = TempDir::new().unwrap();
        let contexts: Vec<Value> = ["admin", "viewer"]
            .map(|role| {
                let principal = format!("u-{role}");
                let files = server.client(&principal);
                json!({ "name": role, "url": files.url, "ca": files.ca, "cert": files.cert,
                        "key": files.key, "principal": principal })
            })
            .to_vec();
        let file = json!({ "current": "admin", "contexts": contexts }).to_string();
        fs::write(dir.path().join("config.json"), file).unwrap();
        Self { server, dir, stop, asked }
    }

    /// A policy service that knows these hosts, two on a page.
    async fn policy(&self, hosts: &[(&str, &str)]) {
        let records: Vec<HostRecord> = hosts
            .iter()
            .map(|(host, state)| {
                let until = "2030-01-01T00:00:00Z";
                let certificate = json!({ "fingerprint": "x", "key": "y", "until": until });
                let mut record = json!({
                    "host": host, "state": state, "labels": { "rack": "7" }, "generation": 1,
                    "certificates": { "loader": certificate }, "enrolled": until,
                    "enrolled_by": "u-admin", "connect_before": until,
                });
                if *state == "revoked" {
                    record["revoked"] = json!({ "by": "u-admin", "at": until });
                }
                serde_json::from_value(record).unwrap()
            })
            .collect();
        let bus = bus(&self.server, "s-policy").await;
        let absent = |what: &str| ApiError::new(Code::NotFound, format!("there is no {what}"));
        let stand_in = Server::new(bus, Service::Policy, None)
            .handle::<policy::TokenRevoke, _, _>(move |_, _| async move { Err(absent("token")) })
            .handle::<policy::HostRevoke, _, _>(move |_, _| async move { Err(absent("host")) })
            .handle::<policy::HostForget, _, _>(move |_, _| async move { Err(absent("host")) })
            .handle::<policy::HostList, _, _>(move |_, request| {
                let behind = |record: &&HostRecord| {
                    request.after.as_ref().is_none_or(|after| record.host > *after)
                };
                let mut hosts: Vec<HostRecord> = records.iter().filter(behind).cloned().collect();
                let next = (hosts.len() > 2).then(|| hosts[1].host.clone());
                hosts.truncate(2);
                async move { Ok(HostListReply { hosts, next }) }
            });
        serve(stand_in, &self.stop).await;
    }

    /// A loader whose state takes two pages; the second begins in the middle of a chain. The first page of
    /// the first question is overtaken by a change.
    async fn paged(&self, host: &'static str) {
        let bus = bus(&self.server, &format!("h-{host}-loader")).await;
        let overtaken = Arc::new(AtomicBool::new(false));
        let stand_in = Server::new(bus, Service::Loader, Some(host.parse().unwrap()))
            .handle::<loader::Get, _, _>(move |_, request| {
                let overtaken = Arc::clone(&overtaken);
                async move {
                    let mut page = state(host);
                    let chain = &mut page.chains[0];
                    let program = &mut chain.programs[0];
                    match request.cursor.as_deref() {
                        None => {
                            program.config = config(&json!({ "list": [1, 2] }));
                            chain.continues = true;
                            page.next = Some("second".to_owned());
                        }
                        Some("second") if !overtaken.swap(true, Ordering::SeqCst) => {
                            return Err(ApiError::new(Code::Conflict, "changed").at("cursor"));
                        }
                        Some("second") => {
                            program.config = config(&json!({ "list": [3], "rate": 7 }));
                            let mut other = chain.clone();
                            other.interface = "eth1".parse().unwrap();
                            page.chains.push(other);
                        }
                        Some(other) => panic!("{other}"),
                    }
                    Ok(page)
                }
            });
        serve(stand_in, &self.stop).await;
    }

    /// A loader that takes every question and answers none.
    async fn mute(&self, host: &'static str) {
        let bus = bus(&self.server, &format!("h-{host}-loader")).await;
        let stand_in = Server::new(bus, Service::Loader, Some(host.parse().unwrap()))
            .handle::<loader::Get, _, _>(|_, _| async { std::future::pending().await })
            .handle::<loader::MapFollow, _, _>(|_, _| async { std::future::pending().await });
        serve(stand_in, &self.stop).await;
    }

    async fn loader(
        server: &NatsServer,
        host: &'static str,
        stop: &CancellationToken,
        asked: &Arc<Mutex<Vec<(String, ApplyRequest)>>>,
    ) {
        Self::loader_that(server, host, stop, asked, |server| server).await;
    }

    async fn loader_that(
        server: &NatsServer,
        host: &'static str,
        stop: &CancellationToken,
        asked: &Arc<Mutex<Vec<(String, ApplyRequest)>>>,
        more: impl FnOnce(Server) -> Server,
    ) {
        let asked = Arc::clone(asked);
        let bus = bus(server, &format!("h-{host}-loader")).await;
        let stand_in = Server::new(bus, Service::Loader, Some(host.parse().unwrap()))
            .handle::<loader::Get, _, _>(move |_, _| async move { Ok(state(host)) })
            .handle::<loader::Facts, _, _>(move |_, _| async move {
                Ok(FactsReply {
                    host: host.parse().unwrap(),
                    kernel: "6.18.0".to_owned(),
                    arch: "x86_64".to_owned(),
                    time: "2020-01-01T00:00:00.000Z".to_owned(),
                    facts: Vec::new(),
                })
            })
            .handle::<loader::Apply, _, _>(move |_, request: ApplyRequest| {
                asked.lock().unwrap().push((host.to_owned(), request.clone()));
                async move { change(host, &request) }
            })
            .handle::<loader::MapFollow, _, _>(|_, _| async {
                Err(ApiError::new(Code::Unavailable, "nothing is followed here"))
            })
            .handle::<loader::MapDelete, _, _>(move |_, request: MapDeleteRequest| async move {
                let MapDeleteRequest { map, mut keys, dry_run } = request;
                let changed = keys.iter().filter(|key| **key == 80).count() as u64;
                keys.retain(|key| *key != 80);
                let host = host.parse().unwrap();
                let notes = Vec::new();
                Ok(MapChangeReply {
                    host,
                    map,
                    generation: 4,
                    dry_run,
                    changed,
                    absent: keys,
                    notes,
                })
            })
            .handle::<loader::ResetIndex, _, _>(move |_, request: ResetHostRequest| async move {
                if host == "web2" {
                    return Err(ApiError::new(Code::Unavailable, "the disk is full"));
                }
                let ResetHostRequest { repository, id, to } = request;
                Ok(ResetIndexReply { repository, id, from: 1 << 60, to })
            })
            .handle::<loader::Delete, _, _>(move |_, request: DeleteRequest| async move {
                if request.interface.to_string() == "eth0" {
                    let program = request.program.map_or("all".to_owned(), |name| name.to_string());
                    return Ok(serde_json::from_value(json!({
                        "host": host, "generation": 5, "dry_run": false, "chains": [{
                            "interface": "eth0", "hook": request.hook, "action": "removed",
                            "notes": [program],
                        }],
                    }))
                    .unwrap());
                }
                Err(ApiError::new(
                    Code::NotFound,
                    format!("there is no chain {}", request.interface),
                ))
            });
        serve(more(stand_in), stop).await;
    }

    fn canopy(&self, line: &str) -> Output {
        canopy(line, self.dir.path())
    }

    #[track_caller]
    fn ok(&self, line: &str) -> String {
        let output = self.canopy(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn fails(&self, exit: i32, line: &str) -> String {
        let output = self.canopy(line);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(exit), "{line}: {said}");
        said
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).unwrap();
    }
}

fn canopy(line: &str, dir: &Path) -> Output {
    command(line, dir).output().unwrap()
}

fn command(line: &str, dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_canopy"));
    command
        .args(line.split(' '))
        .current_dir(dir)
        .env("HOME", dir)
        .env("CANOPY_CONFIG", "config.json")
        .env_remove("CANOPY_CONTEXT")
        .env_remove("CANOPY_HOST")
        .env_remove("XDG_STATE_HOME")
        .env_remove("COLUMNS")
        .stdin(Stdio::null());
    command
}

fn document(interface: &str) -> String {
    format!(
        "chains: [{{interface: {interface}, hook: xdp, programs: [{{name: limit, package: ratelimit}}]}}]\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_chains_and_programs_are_shown_in_every_format() {
    let fleet = Fleet::start(&["web1", "web2"]).await;
    let hosts = fleet.ok("get hosts");
    assert!(hosts.starts_with("HOST  STATE  CHAINS    KERNEL  LAST-SEEN\n"), "{hosts}");
    assert_eq!(fleet.ok("get hosts -o name"), "web1\nweb2\n");
    assert_eq!(
        fleet.ok("get chains"),
        "HOST  INTERFACE  HOOK  STATE   MODE  PROGRAMS  RESTORED\n\
         web1  eth0       xdp   active  -            1         0\n\
         web2  eth0       xdp   active  -            1         0\n"
    );
    let programs: Value =
        serde_json::from_str(&fleet.ok("get programs limit --host web2 -o json")).unwrap();
    assert_eq!((&programs[0]["host"], &programs[0]["runs"]), (&"web2".into(), &12.into()));
    assert!(fleet.ok("get programs -o yaml").contains("digest: "));
    assert!(fleet.ok("describe program limit --host web1").contains("verdicts:    pass=12\n"));
    assert!(fleet.fails(4, "get programs limti").contains("did you mean \"limit\"?"));
    let nothing = fleet.canopy("get packages");
    assert!(nothing.status.success() && nothing.stdout.is_empty());
    assert_eq!(fleet.ok("get packages -o json"), "{\n  \"packages\": []\n}\n");
}

/// The stand-ins and the server let everybody through: whom the program asks is what is looked at.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_some_hosts_asks_only_these() {
    let fleet = Fleet::start(&["web1", "web2"]).await;
    let narrowed = |scope: &Value| {
        let claims = json!({ "sub": "u-viewer", "role": "viewer", "scope": scope }).to_string();
        let token = format!("e30.{}.x", URL_SAFE_NO_PAD.encode(claims));
        let file = fleet.dir.path().join("narrowed.token");
        canopy_test_support::nats::private_file(&file, &token).unwrap();
    };
    let get = |line: &str| format!("{line} --context viewer --token-file narrowed.token");
    narrowed(&json!({ "hosts": ["web1"] }));
    assert_eq!(fleet.ok(&get("get chains -o name")), "web1/eth0/xdp\n");
    assert_eq!(fleet.ok(&get("get programs -A -o name")), "web1/eth0/xdp/limit\n");
    assert_eq!(fleet.ok(&get("get hosts -o name")), "web1\n");
    assert!(fleet.ok(&get("describe chain eth0 xdp -o json")).contains("\"web1\""));
    let top = fleet.ok(&get("top --interval 200ms -o json"));
    assert!(top.contains("\"web1\"") && !top.contains("\"web2\""), "{top}");
    for line in [
        "get chains web1/eth0/xdp web2/eth0/xdp",
        "describe chain web1/eth0/xdp web2/eth0/xdp",
        "get programs web1/eth0/xdp/limit web2/eth0/xdp/limit",
        "describe program web2/eth0/xdp/limit",
    ] {
        let error = fleet.fails(6, &get(line));
        assert!(error.contains("does not reach host web2: it is for the hosts web1"), "{error}");
        assert!(error.contains("fix: --host web1\n"), "{error}");
    }
    let error = fleet.fails(2, &get("describe host"));
    assert!(error.contains("there is web1)"), "{error}");
    // Policy is away: who is meant by a pattern is not known, and nobody is asked instead.
    narrowed(&json!({ "hosts": ["web*", "label:rack=7"] }));
    let error = fleet.fails(6, &get("get chains"));
    assert!(error.contains("for the hosts web*, label:rack=7"), "{error}");
    assert!(error.contains("--host HOST"), "{error}");
    assert_eq!(fleet.ok(&get("get chains -o name --host web2")), "web2/eth0/xdp\n");
    assert_eq!(fleet.ok(&get("get chains -o name web2/eth0/xdp")), "web2/eth0/xdp\n");
    fleet.policy(&[("web1", "revoked"), ("web2", "active"), ("web3", "active")]).await;
    let output = fleet.canopy(&get("get chains -o name"));
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "web2/eth0/xdp\n", "{error}");
    assert!(error.contains("1 of 2 enrolled hosts did not answer"), "{error}");
    assert_eq!(output.status.code(), Some(9));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_falls_silent_is_still_listed() {
    let mut fleet = Fleet::start(&["web1"]).await;
    assert!(fleet.ok("get hosts -o name") == "web1\n");
    let said = fleet.fails(4, "get chains --host wbe1");
    assert!(said.contains("there is no host \"wbe1\"") && said.contains("\"web1\""), "{said}");
    fleet.stop.cancel();
    // Until the stand-in has left, it may answer.
    let mut last = String::new();
    for _ in 0..50 {
        last = fleet.ok("get hosts");
        if last.contains("web1  silent") {
            break;
        }
    }
    assert!(last.contains("web1  silent"), "{last}");
    assert!(fleet.fails(7, "get chains").contains("no host answers"));
    fleet.server.kill();
    assert!(fleet.fails(7, "get hosts --timeout 500ms").contains("no bus at tls://"));
}

/// What does not fit into one message is the same to whoever looks.
#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_a_hosts_state_is_shown() {
    let fleet = Fleet::start(&["web1"]).await;
    fleet.paged("web2").await;
    assert_eq!(fleet.ok("get chains -A -o name"), "web1/eth0/xdp\nweb2/eth0/xdp\nweb2/eth1/xdp\n");
    for line in ["get programs -A", "get programs --host web2"] {
        let all: Vec<Value> = serde_json::from_str(&fleet.ok(&format!("{line} -o json"))).unwrap();
        let first = all.iter().find(|one| one["host"] == "web2" && one["interface"] == "eth0");
        assert_eq!(first.unwrap()["config"], json!({ "list": [1, 2, 3], "rate": 7 }), "{line}");
    }
    let described = fleet.ok("describe chain web2/eth0/xdp -o json");
    let described: Value = serde_json::from_str(&described).unwrap();
    assert!(described.to_string().contains("\"list\":[1,2,3]"), "{described}");
    let document = fleet.ok("get chains --host web2 --document -o json");
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["chains"].as_array().unwrap().len(), 2);
    assert_eq!(document["chains"][0]["programs"][0]["config"]["rate"], 7);
    let top: Value =
        serde_json::from_str(&fleet.ok("top --interval 200ms --host web2 -o json")).unwrap();
    assert_eq!(top["chains"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_do_not_answer_to_version_are_told_by_the_exit_code() {
    let fleet = Fleet::start(&["web1"]).await;
    let output = fleet.canopy("version");
    assert_eq!(output.status.code(), Some(9));
    let (told, said) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("registry") && told.contains("loader    web1"), "{told}");
    for service in ["policy", "cert-monitor", "enforcer"] {
        assert!(said.contains(&format!("the {service} ")), "{service}: {said}");
    }
    fleet.ok("version --client");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_out_is_that_of_the_whole_command() {
    let fleet = Fleet::start(&["web1"]).await;
    fleet.mute("web2").await;
    fleet.write("a.yaml", &document("eth0"));
    for line in ["get chains --host web2", "delete chain eth0 xdp --host web2", "version"] {
        let begun = Instant::now();
        fleet.canopy(&format!("{line} --timeout 2s"));
        assert!(begun.elapsed() < Duration::from_millis(2_900), "{line}: {:?}", begun.elapsed());
    }
    // A bus that takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("tls://{}", silent.local_addr().unwrap());
    let begun = Instant::now();
    let said = fleet.fails(7, &format!("get hosts --timeout 2s --url {url}"));
    assert!(begun.elapsed() < Duration::from_millis(2_900), "{:?}", begun.elapsed());
    assert!(said.contains("it does not answer"), "{said}");
}

/// Whoever floods a host with reads holds up its answers to reads, and so would every change.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_with_fields_of_old_asks_nothing_first() {
    let fleet = Fleet::start(&[]).await;
    let (verbs, seen) = (Arc::<Mutex<Vec<String>>>::default(), Arc::default());
    let answered = Arc::clone(&verbs);
    Fleet::loader_that(&fleet.server, "web1", &fleet.stop, &seen, move |server| {
        server.observe(move |verb, _, _| answered.lock().unwrap().push(verb.to_owned()))
    })
    .await;
    fleet.write("a.yaml", &document("eth0"));
    fleet.ok("apply -f a.yaml --host web1");
    fleet.ok("delete chain eth0 xdp --host web1");
    assert_eq!(*verbs.lock().unwrap(), ["apply", "delete"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_named_as_a_chain_is_pointed_out() {
    let fleet = Fleet::start(&["web1"]).await;
    for command in ["delete", "get", "describe"] {
        let said = fleet.fails(2, &format!("{command} chain eth0/xdp/limit --host web1"));
        assert!(said.contains("\"eth0/xdp/limit\" names a program, not a chain"), "{said}");
        assert!(said.contains("delete program eth0/xdp/limit"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn diff_shows_what_apply_would_do_and_changes_nothing() {
    let fleet = Fleet::start(&["web1"]).await;
    fleet.write("doc.yaml", &document("eth0"));
    let output = fleet.canopy("diff -f doc.yaml --host web1");
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "eth0/xdp would be updated\n~ limit\n-   priority: 20\n+   priority: 30\n"
    );
    let asked = fleet.asked.lock().unwrap();
    assert!(asked.iter().all(|(_, request)| request.dry_run));
    assert_eq!(asked[0].1.expected_generation, Some(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_to_apply_find_their_way_back_to_the_file() {
    let fleet = Fleet::start(&["web1", "web2"]).await;
    fleet.write("a.yaml", &document("eth0"));
    fleet.write("b.yaml", &document("eth9"));
    let said = fleet.fails(4, "apply -f a.yaml -f b.yaml --host web1 --atomic");
    assert_eq!(
        said,
        "error: there is no interface \"eth9\"\n  at: b.yaml: chains[0].interface\n  \
         fix: ip link lists them\n"
    );
    let said = fleet.fails(5, "apply -f a.yaml --host web1 --expected-generation 3");
    assert!(said.contains("at: --expected-generation"), "{said}");
    let said = fleet.fails(2, "apply -f a.yaml");
    assert!(said.contains("no host was named") && said.contains("web1, web2"), "{said}");
    let reply: Value =
        serde_json::from_str(&fleet.ok("apply -f a.yaml --host web2 -o json")).unwrap();
    assert_eq!((&reply["host"], &reply["generation"]), (&"web2".into(), &5.into()));
    fleet.fails(4, "delete chain eth7 xdp --host web1");
    fleet.ok("delete -f a.yaml --host web1");
    let (_, last) = fleet.asked.lock().unwrap().last().unwrap().clone();
    assert_eq!(last.document["chains"][0]["programs"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_fails_is_told_with_its_file_and_an_exit_code_of_its_own() {
    let fleet = Fleet::start(&["web1"]).await;
    fleet.write("a.yaml", &document("eth0"));
    fleet.write("b.yaml", &document("eth9"));
    let told = "error: eth9/xdp: there is no interface \"eth9\"\n  \
                at: b.yaml: chains[0].interface\n  fix: ip link lists them\n";
    let output = fleet.canopy("apply -f a.yaml -f b.yaml --host web1");
    assert_eq!(output.status.code(), Some(9));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "eth0/xdp updated: limit (ratelimit@0.1.0)\neth9/xdp failed: it is as it was\n\
         web1: generation 5\n"
    );
    assert_eq!(String::from_utf8(output.stderr).unwrap(), told);
    let output = fleet.canopy("apply -f a.yaml -f b.yaml --host web1 -o json");
    assert_eq!(output.status.code(), Some(9));
    let reply: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(reply["chains"][1]["action"], "failed");
    assert_eq!(reply["chains"][1]["error"]["code"], "not_found");
    for line in ["diff -f a.yaml -f b.yaml --host web1", "delete -f a.yaml -f b.yaml --host web1"] {
        assert_eq!(fleet.fails(9, line), told);
    }
    fleet.fails(4, "delete -f a.yaml -f b.yaml --host web1 --atomic");
}

#[tokio::test(flavor = "multi_thread")]
async fn top_looks_twice_and_ends_where_nobody_watches() {
    let fleet = Fleet::start(&["web1", "web2"]).await;
    let shown = fleet.ok("top --interval 200ms");
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].starts_with("HOST  CHAIN     PROGRAM  PACKETS/S  VERDICTS/S"), "{shown}");
    assert!(lines[1].starts_with("web1  eth0/xdp  (all)            0"), "{shown}");
    assert_eq!(lines.len(), 5, "{shown}");
    let one: Value =
        serde_json::from_str(&fleet.ok("top --interval 200ms --host web2 -o json")).unwrap();
    assert_eq!(one["chains"].as_array().unwrap().len(), 1);
    assert!(one["seconds"].as_f64().unwrap() >= 0.2);
    let said = fleet.fails(6, "top --profile --context viewer");
    assert!(said.contains("u-viewer may not call loader.profile"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_id_gets_the_first_answer() {
    let fleet = Fleet::start(&["web1"]).await;
    fleet.write("a.yaml", &document("eth0"));
    let line = "apply -f a.yaml --host web1 --request-id once -o json";
    assert_eq!(fleet.ok(line), fleet.ok(line));
    assert_eq!(fleet.asked.lock().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_is_denied_and_a_wrong_name_is_explained() {
    let fleet = Fleet::start(&["web1"]).await;
    fleet.write("a.yaml", &document("eth0"));
    let said = fleet.fails(6, "apply -f a.yaml --host web1 --context viewer");
    assert!(said.contains("u-viewer may not call loader.apply"), "{said}");
    assert!(fleet.asked.lock().unwrap().is_empty());
    let said = fleet.fails(6, "get hosts --principal u-operator");
    assert!(said.contains("`principal` must be the name in the certificate"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_of_an_index_says_from_which_version_to_which() {
    let fleet = Fleet::start(&["web1", "web2"]).await;
    let line = "package trust reset-index starter";
    let said = fleet.ok(line);
    assert!(said.contains("18446744073709551615") && said.contains("41"), "{said}");
    assert!(!said.contains("web1"), "{said}");
    // Hosts are told the repository's id, and the version that the registry goes by.
    let said = fleet.ok(&format!("{line} --host web1 -o json"));
    let rows: Value = serde_json::from_str(&said).unwrap();
    let id = "5d41402abc4b2a76b9719d911017c592";
    let row = |place: &str, from: u64| json!({ "place": place, "repository": "starter", "id": id, "from": from, "to": 41 });
    assert_eq!(rows, json!([row("registry", u64::MAX), row("web1", 1 << 60)]));
    // With all, a host that is enrolled and away is named as one that fails is.
    fleet.policy(&[("web1", "active"), ("web3", "active"), ("web4", "revoked")]).await;
    let said = fleet.fails(9, &format!("{line} --all-hosts"));
    assert!(said.contains("web2: the disk is full") && said.contains("web3: "), "{said}");
    assert!(!said.contains("web1") && !said.contains("web4"), "{said}");
    let said = fleet.fails(4, "package trust reset-index other");
    assert!(said.contains("there is no repository"), "{said}");
    let said = fleet.fails(6, &format!("{line} --context viewer"));
    assert!(said.contains("u-viewer may not call registry.reset-index"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_a_clock_that_is_off_and_services_that_are_away() {
    let fleet = Fleet::start(&["web1"]).await;
    let output = fleet.canopy("doctor -o json");
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let standing = |name: &str| {
        let findings =
            report.as_array().unwrap().iter().flat_map(|s| s["findings"].as_array().unwrap());
        let mut found = findings.filter(|finding| finding["name"] == name);
        found.next().unwrap_or_else(|| panic!("{name} not in {report}"))["standing"].clone()
    };
    for (name, expected) in [
        ("certificate", "ok"),
        ("connection", "ok"),
        ("registry", "ok"),
        ("policy", "failed"),
        ("loader", "ok"),
        ("enforcer", "warn"),
        ("clock offset", "failed"),
    ] {
        assert_eq!(standing(name), expected, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn enrolled_hosts_that_do_not_answer_are_named() {
    let fleet = Fleet::start(&["web1", "web2"]).await;
    fleet
        .policy(&[
            ("web1", "active"),
            ("web2", "active"),
            ("web3", "active"),
            ("web4", "revoked"),
            ("web5", "waiting"),
        ])
        .await;
    let output = fleet.canopy("get chains -A");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(9), "{said}");
    assert!(said.contains("1 of 3 enrolled hosts did not answer within"), "{said}");
    assert!(said.contains(" s: web3\n"), "{said}");
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 3);
    // Waited for as long as was said.
    let begun = Instant::now();
    fleet.fails(9, "get chains --timeout 2s");
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    for line in ["get programs -A -o json", "get all -o json", "top --once -o json"] {
        let said = fleet.fails(9, line);
        let error: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{line}: {said}"));
        assert_eq!(error["error"]["code"], "partial", "{line}: {error}");
        assert!(error["error"]["message"].as_str().unwrap().contains("web3"), "{line}: {error}");
    }
    let hosts: Value = serde_json::from_str(&fleet.ok("get hosts -o json")).unwrap();
    let states: Vec<&str> =
        hosts.as_array().unwrap().iter().map(|host| host["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["ready", "ready", "silent", "revoked", "waiting"]);
    assert_eq!(hosts[2]["labels"], json!({ "rack": "7" }));
    assert_eq!((&hosts[0]["enrolled"], &hosts[3]["enrolled"]), (&true.into(), &false.into()));
    assert_eq!(fleet.ok("host list -o name"), "web1\nweb2\nweb3\nweb4\nweb5\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wait_for_hosts_ends_with_the_last_answer() {
    let fleet = Fleet::start(&["web1", "web2"]).await;
    fleet.policy(&[("web1", "active"), ("web2", "active")]).await;
    let begun = Instant::now();
    fleet.ok("get chains -A --timeout 60s");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_reason_for_no_answer_has_its_own_exit_code() {
    let fleet = Fleet::start(&["web1"]).await;
    fleet
        .policy(&[
            ("web1", "active"),
            ("web2", "active"),
            ("web3", "expired"),
            ("web4", "revoked"),
            ("web5", "waiting"),
        ])
        .await;
    for (host, exit, told) in [
        ("web2", 7, "the loader of host web2 does not answer"),
        ("web3", 6, "the enrolment of host web3 has expired"),
        ("web4", 6, "the host web4 was revoked"),
        ("web5", 7, "the host web5 has not connected yet"),
        ("wbe1", 4, "there is no host \"wbe1\"\n  fix: did you mean \"web1\"?"),
        ("elsewhere", 4, "there is no host \"elsewhere\""),
    ] {
        let said = fleet.fails(exit, &format!("get chains --host {host}"));
        assert!(said.contains(told), "{said}");
        assert!(!said.contains("trying again"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_what_waits_for_answers_at_once() {
    let fleet = Fleet::start(&["web1"]).await;
    fleet.mute("web2").await;
    for line in [
        "top --host web2 --interval 200ms",
        "top --host web1 --interval 10s",
        "map follow eth0 xdp limit events --host web2",
        "get chains -w --host web2",
        "get chains -w --host web1",
        "get hosts -w",
    ] {
        // While it connects, while it waits for the first answer, and later.
        for after in [30, 150, 400, 900] {
            let mut child = command(line, fleet.dir.path())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_millis(after));
            let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT);
            let begun = Instant::now();
            let ended = loop {
                if child.try_wait().unwrap().is_some() {
                    break true;
                }
                if begun.elapsed() > Duration::from_secs(2) {
                    break false;
                }
                std::thread::sleep(Duration::from_millis(5));
            };
            let _ = child.kill();
            let _ = child.wait();
            assert!(ended, "{line}: goes on 2 s after an interrupt at {after} ms");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_takes_what_name_output_prints() {
    let fleet = Fleet::start(&["web1", "web2"]).await;
    let chain = fleet.ok("get chains --host web1 -o name").trim().to_owned();
    assert_eq!(chain, "web1/eth0/xdp");
    let program = fleet.ok("get programs --host web1 -o name").trim().to_owned();
    assert_eq!(program, "web1/eth0/xdp/limit");
    for line in [
        format!("get chains {chain}"),
        format!("get chain/{chain}"),
        format!("get chain {chain} web2/eth0/xdp"),
        format!("describe chain {chain}"),
        format!("describe chains/{chain}"),
        "describe chains eth0 xdp --host web1".to_owned(),
        "describe chain eth0/xdp --host host/web1".to_owned(),
        format!("get programs {program}"),
        format!("describe program {program}"),
        format!("describe programs/{program}"),
        "get host/web1".to_owned(),
        "describe hosts web1".to_owned(),
        format!("delete chain {chain}"),
        format!("delete chains/{chain}"),
        "delete chain eth0 xdp --host web1".to_owned(),
    ] {
        fleet.ok(&line);
    }
    for line in [
        format!("delete program {program}"),
        format!("delete program/{program}"),
        "delete programs limit --host web1".to_owned(),
        "delete chain eth0 xdp --program limit --host web1".to_owned(),
    ] {
        assert!(fleet.ok(&line).contains("limit"), "{line}");
    }
    let said = fleet.fails(4, "delete program limti --host web1");
    assert!(said.contains("did you mean \"limit\"?"), "{said}");
    fleet.ok("delete program limti --host web1 --ignore-not-found");
    fleet.fails(4, "delete chain eth7 xdp --host web1");
    fleet.ok("delete chain eth7 xdp --host web1 --ignore-not-found");
    let said = fleet.fails(2, &format!("delete chain {chain} --host web2"));
    assert!(said.contains("two hosts are named"), "{said}");
    let all = fleet.ok("get all --host web1 -o name");
    assert_eq!(all, "host/web1\nchain/web1/eth0/xdp\nprogram/web1/eth0/xdp/limit\n");
    assert!(fleet.ok("get all").contains("\n\nHOST  INTERFACE"), "{}", fleet.ok("get all"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_of_a_host_is_one_that_apply_takes() {
    let fleet = Fleet::start(&["web1", "web2"]).await;
    let document = fleet.ok("get chains --host web1 --document -o yaml");
    assert!(document.starts_with("chains:\n"), "{document}");
    fleet.write("doc.yaml", &document);
    fleet.ok("apply -f doc.yaml --host web1");
    let (_, sent) = fleet.asked.lock().unwrap().last().unwrap().clone();
    let program = &sent.document["chains"][0]["programs"][0];
    assert_eq!(program["package"], "ratelimit@=0.1.0");
    assert_eq!(program["priority"], 20);
    fleet.write("doc.json", &fleet.ok("get chains web1/eth0/xdp --document -o json"));
    fleet.ok("apply -f doc.json --host web1");
    let said = fleet.fails(2, "get chains --document");
    assert!(said.contains("--host HOST: one of web1, web2"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_deleted() {
    let fleet = Fleet::start(&["web1"]).await;
    fleet.write("a.yaml", &document("eth0"));
    fleet.write("b.yaml", &document("eth8"));
    let said = fleet.fails(4, "delete -f a.yaml -f b.yaml --host web1");
    assert!(said.contains("there is no chain eth8/xdp\n  at: b.yaml: chains[0]\n"), "{said}");
    fleet.ok("delete -f a.yaml -f b.yaml --host web1 --ignore-not-found");
    fleet.ok("delete -f a.yaml --host web1");
    // A name that is no host's is a mistake of another kind.
    for line in ["delete chain eth7 xdp", "delete program limti", "delete -f b.yaml"] {
        let error = fleet.fails(4, &format!("{line} --ignore-not-found --host wbe1"));
        assert!(error.contains("there is no host \"wbe1\""), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_of_what_does_not_exist_exit_with_not_found() {
    let fleet = Fleet::start(&["web1"]).await;
    fleet.policy(&[("web1", "active")]).await;
    let map = "map delete eth0 xdp limit ports --host web1";
    assert_eq!(fleet.ok(&format!("{map} 80")), "web1: 1 entry of eth0/xdp/limit/ports removed\n");
    let output = fleet.canopy(&format!("{map} 80 81 82"));
    assert_eq!(output.status.code(), Some(4));
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.starts_with("web1: 1 entry of"), "{shown}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("eth0/xdp/limit/ports has no entry for 81, nor for 1 more"), "{error}");
    fleet.fails(4, &format!("{map} 81 --dry-run"));
    assert!(fleet.ok(&format!("{map} 81 --ignore-not-found")).contains("not there: 81"));
    for line in ["token revoke u-bob", "host revoke web9", "host forget web9"] {
        assert!(fleet.fails(4, line).contains("there is no"), "{line}");
        assert_eq!(fleet.ok(&format!("{line} --ignore-not-found")), "", "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_one_json_object_where_answers_are_json() {
    let fleet = Fleet::start(&["web1"]).await;
    fleet.write("a.yaml", &document("eth9"));
    fleet.write("bad.yaml", "chains: [{interface: on, hook: xpd, programs: []}]\n");
    for (line, exit, code, path) in [
        ("apply -f a.yaml --host web1 -o json", 4, "not_found", "a.yaml: chains[0].interface"),
        ("apply -f bad.yaml --host web1 -o json", 2, "invalid", "bad.yaml: chains[0].hook"),
        ("get chains -o json --host nowhere", 7, "unavailable", ""),
        ("get chains eth5 xdp --host web1 --output=json", 4, "not_found", ""),
        ("get chians -o json", 2, "invalid", ""),
        ("apply -f a.yaml --host web1 -o json --context viewer", 6, "denied", ""),
    ] {
        let said = fleet.fails(exit, line);
        let error: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{line}: {said}"));
        assert_eq!(error["error"]["code"], code, "{line}: {said}");
        assert_eq!(error["error"]["exit"], exit, "{line}: {said}");
        assert!(!error["error"]["message"].as_str().unwrap().is_empty(), "{line}: {said}");
        assert_eq!(error["error"]["path"].as_str().unwrap_or_default(), path, "{line}: {said}");
    }
    let said: Value =
        serde_json::from_str(&fleet.fails(2, "apply -f bad.yaml --host web1 -o json")).unwrap();
    assert_eq!(said["error"]["problems"].as_array().unwrap().len(), 2, "{said}");
    assert_eq!(said["error"]["problems"][1]["hint"], "write it in quotes: \"on\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_fit_into_a_terminal() {
    let fleet = Fleet::start(&["web1", "web2"]).await;
    fleet
        .policy(&[
            ("web1", "active"),
            ("web2", "active"),
            ("a-host-with-a-rather-long-name-of-47-characters", "revoked"),
        ])
        .await;
    for line in
        ["get hosts", "get chains", "get programs", "get all", "host list", "config get-contexts"]
    {
        let output = command(line, fleet.dir.path()).env("COLUMNS", "80").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.is_empty(), "{line}");
        for row in text.lines() {
            assert!(row.chars().count() <= 80, "{line}: {row}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_completed_from_what_there_is() {
    let fleet = Fleet::start(&["web1", "web2"]).await;
    fleet.policy(&[("web1", "active"), ("web7", "waiting")]).await;
    let complete = |words: &str| fleet.ok(&format!("__complete -- {words}"));
    assert_eq!(complete("canopy drain web"), "web1\nweb7\n");
    assert_eq!(complete("canopy apply -f x --host="), "--host=web1\n--host=web7\n");
    assert_eq!(complete("canopy describe chain --host web1 e"), "eth0/xdp\n");
    assert_eq!(complete("canopy describe chain web2"), "web2/eth0/xdp\n");
    assert_eq!(complete("canopy config use "), "admin\nviewer\n");
    assert_eq!(complete("canopy get chai"), "chains\n");
    // Without a bus there is the grammar.
    assert_eq!(complete("canopy --context nowhere drain web"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolment_is_confirmed_before_anything_is_signed() {
    let fleet = Fleet::start(&[]).await;
    let keys: Value =
        serde_json::from_str(&fleet.ok("host request web9 --dir tls --save web9.request -o json"))
            .unwrap();
    let key = |service: &str| keys["keys"][service].as_str().unwrap().to_owned();
    // No policy service answers here: what is refused before it is asked ends otherwise.
    let enrol = "host enrol web9.request --save web9.enrolment";
    let said = fleet.fails(2, enrol);
    assert!(
        said.contains(&format!("  loader    {}\n  enforcer  {}\n", key("loader"), key("enforcer"))),
        "{said}"
    );
    assert!(said.contains("nothing was signed"), "{said}");
    let said = fleet.fails(6, &format!("{enrol} --expect-fingerprint {}", key("loader")));
    assert!(said.contains(&format!("the key of enforcer is {}", key("enforcer"))), "{said}");
    let both = format!(
        "{enrol} --expect-fingerprint loader={} --expect-fingerprint {}",
        key("loader"),
        key("enforcer")
    );
    assert!(fleet.fails(7, &both).contains("the policy service does not answer"));
    assert!(
        fleet.fails(7, &format!("{enrol} --yes")).contains("the policy service does not answer")
    );
}
