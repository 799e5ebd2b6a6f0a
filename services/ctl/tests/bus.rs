//! The program over a real bus, with a stand-in for a host's loader and for the registry that give
//! set answers: what is asked of them, and what becomes of the answers.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use canopy_api::{
    ApiError, Code,
    endpoint::{Service, loader, registry},
    wire::{ApplyReply, ApplyRequest, DeleteRequest, FactsReply, GetReply, ListReply},
};
use canopy_bus::{Bus, BusConfig, Server};
use canopy_test_support::nats::NatsServer;
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    process::{Command, Output},
    sync::{Arc, Mutex},
    time::Duration,
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
            .handle::<registry::List, _, _>(|_, _| async {
            Ok(ListReply { packages: Vec::new(), unavailable: Vec::new() })
        });
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

    async fn loader(
        server: &NatsServer,
        host: &'static str,
        stop: &CancellationToken,
        asked: &Arc<Mutex<Vec<(String, ApplyRequest)>>>,
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
            .handle::<loader::Delete, _, _>(move |_, request: DeleteRequest| async move {
                Err(ApiError::new(
                    Code::NotFound,
                    format!("there is no chain {}", request.interface),
                ))
            });
        serve(stand_in, stop).await;
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
    Command::new(env!("CARGO_BIN_EXE_canopy"))
        .args(line.split(' '))
        .current_dir(dir)
        .env("HOME", dir)
        .env("CANOPY_CONFIG", "config.json")
        .env_remove("CANOPY_CONTEXT")
        .env_remove("CANOPY_HOST")
        .env_remove("XDG_STATE_HOME")
        .output()
        .unwrap()
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
    assert!(hosts.starts_with("HOST  STATE  CHAINS    GENERATION  KERNEL  LAST-SEEN\n"), "{hosts}");
    assert_eq!(fleet.ok("get hosts -o name"), "web1\nweb2\n");
    assert_eq!(
        fleet.ok("get chains"),
        "HOST  INTERFACE  HOOK  STATE   MODE  PROGRAMS  GENERATION  PROGRAM-ID  RESTORED\n\
         web1  eth0       xdp   active  -            1           -           -         0\n\
         web2  eth0       xdp   active  -            1           -           -         0\n"
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

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_falls_silent_is_still_listed() {
    let mut fleet = Fleet::start(&["web1"]).await;
    assert!(fleet.ok("get hosts -o name") == "web1\n");
    let said = fleet.fails(7, "get chains --host wbe1");
    assert!(said.contains("host wbe1 does not answer") && said.contains("\"web1\""), "{said}");
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
    assert!(said.contains("at: expected_generation"), "{said}");
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
