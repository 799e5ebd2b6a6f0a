//! Admission on the whole stack: what the rules deny, and what happens without policy, leaves the
//! kernel as it is.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::float_cmp,
    reason = "tests: a failure is the message"
)]

use canopy_api::{
    Code, Hook,
    endpoint::{Endpoint, Service, loader},
    subject::Target,
    wire::{AdmissionBasis, ApplyReply, ApplyRequest, DeleteRequest, DrainRequest, RulesReply},
};
use canopy_bus::{Bus, BusConfig, CallError, CallOptions};
use canopy_e2e::{Answer, BLOCKED, HOST, INTERFACE, World};
use canopy_test_support::{pair::PEER_IP, wait_for};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};
use xtask::{outside, stack::Stack};

const LIMIT: Duration = Duration::from_secs(15);

const RULES: &str = "\
rules:
  - name: people
    effect: allow
    when: { roles: [operator, admin], packages: [firewall, ratelimit, flowmeter] }
  - name: firewall-stays
    effect: deny
    reason: the network team takes firewalls off
    when: { verbs: [delete, drain], packages: [firewall] }
    unless: { roles: [admin] }
  - name: prod-ingress
    effect: deny
    reason: no meters on ingress in production
    when: { labels: { env: [prod] }, hooks: [tc-ingress], packages: [\"flow*\"] }
  - name: maps
    effect: deny
    reason: maps of production are written by documents
    when: { verbs: [map-set, map-delete], hosts: [\"e?e\"] }
";

/// Changes a service's configuration file, whole at every moment.
fn configure(world: &World, service: Service, change: impl FnOnce(&mut Value)) {
    let file = world.stack().layout().service_config(service);
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    change(&mut config);
    replace(&file, &config.to_string());
}

fn replace(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, file).unwrap();
}

/// Waits until the rules in force are as wanted.
fn wait_for_rules(world: &World, what: &str, wanted: impl Fn(&RulesReply) -> bool) {
    wait_for(LIMIT, what, || {
        let rules = world.canopy_as("viewer", &["get", "rules", "-o", "json"]).unwrap();
        match rules.json::<RulesReply>() {
            Ok(rules) if wanted(&rules) => Ok(()),
            Ok(rules) => Err(format!("{rules:?}")),
            Err(error) => Err(format!("{error:#}")),
        }
    })
    .unwrap();
}

/// A world whose host is in production, with rules in force.
fn ruled() -> (World, PathBuf) {
    let world = World::start().unwrap();
    let rules = world.dir().join("rules.yaml");
    replace(&rules, RULES);
    configure(&world, Service::Policy, |config| {
        config["rules"] = json!(rules);
        config["hosts"] = json!({ HOST: { "labels": { "env": "prod" } } });
    });
    wait_for_rules(&world, "rules in force", |rules| rules.basis == AdmissionBasis::Rules);
    (world, rules)
}

/// What the kernel has on the interface, by its own tools: links, programs, the chain's maps.
fn kernel(world: &World) -> (Option<outside::Link>, String, String) {
    world
        .inside(|_| {
            let text = |arguments: &[&str]| -> anyhow::Result<String> {
                let output = Command::new("bpftool").args(arguments).output()?;
                anyhow::ensure!(output.status.success(), "bpftool {arguments:?}: {output:?}");
                Ok(String::from_utf8(output.stdout)?)
            };
            let link = outside::xdp_link(INTERFACE)?;
            let maps = match &link {
                Some(link) => text(&["-j", "prog", "show", "id", &link.prog_id.to_string()])?,
                None => String::new(),
            };
            Ok((link, text(&["net", "show", "dev", INTERFACE])?, maps))
        })
        .unwrap()
}

fn denied(answer: &Answer, parts: &[&str]) {
    assert_eq!(answer.code, 6, "{}{}", answer.out, answer.err);
    for part in parts {
        assert!(answer.err.contains(part), "{part} is not in\n{}", answer.err);
    }
}

fn document(chains: &[(&str, &[(&str, &str)])]) -> String {
    let chains: Vec<Value> = chains
        .iter()
        .map(|(hook, programs)| {
            let programs: Vec<Value> = programs
                .iter()
                .map(|(name, package)| json!({ "name": name, "package": package }))
                .collect();
            json!({ "interface": INTERFACE, "hook": hook, "programs": programs })
        })
        .collect();
    json!({ "chains": chains }).to_string()
}

#[test]
fn what_the_rules_deny_leaves_the_kernel_untouched() {
    let (world, rules) = ruled();
    let reply = world.apply(&World::firewall()).unwrap();
    let admitted = reply.admission.unwrap();
    assert_eq!(
        (admitted.basis, admitted.rules),
        (AdmissionBasis::Rules, vec!["people".to_owned()])
    );
    assert_eq!(world.send(BLOCKED, 10).unwrap(), 0);
    let before = kernel(&world);

    // Every way of taking the firewall off, and of writing maps; every part is told at once.
    let stays = "denied by rule \"firewall-stays\": the network team takes firewalls off";
    let meters = "denied by rule \"prod-ingress\": no meters on ingress in production";
    let both =
        document(&[("xdp", &[("limit", "ratelimit")]), ("tc-ingress", &[("m", "flowmeter")])]);
    let swapped = document(&[("xdp", &[("blocklist", "ratelimit"), ("limit", "ratelimit")])]);
    denied(
        &world.try_apply(&both).unwrap(),
        &["admission denies 2 parts", stays, meters, "chains[1].programs[0]", "fix: ask whoever"],
    );
    denied(&world.try_apply(&swapped).unwrap(), &[stays]);
    let run = |arguments: &[&str]| world.canopy_as("operator", arguments).unwrap();
    denied(&run(&["apply", "-f", "document.yaml", "--dry-run"]), &[stays]);
    denied(&run(&["delete", "chain", INTERFACE, "xdp"]), &[stays]);
    denied(&run(&["delete", "chain", INTERFACE, "xdp", "--program", "blocklist"]), &[stays]);
    denied(&run(&["drain"]), &[stays]);
    let set = ["map", "set", INTERFACE, "xdp", "limit", "rl_sources", "{\"bytes\": 0}", "1"];
    denied(&run(&set), &["map-set ratelimit 0.1.1 map rl_sources", "denied by rule \"maps\""]);
    let delete = ["map", "delete", INTERFACE, "xdp", "limit", "rl_sources", "{\"bytes\": 0}"];
    denied(&run(&delete), &["denied by rule \"maps\""]);
    // What no rule allows.
    world.repository().publish("unlisted", |_| Ok(())).unwrap();
    let unlisted = document(&[(
        "xdp",
        &[("blocklist", "firewall"), ("limit", "ratelimit"), ("u", "unlisted")],
    )]);
    denied(&world.try_apply(&unlisted).unwrap(), &["apply unlisted 0.1.1", "no rule allows it"]);
    assert_eq!(kernel(&world), before, "something was changed");
    assert_eq!(world.send(BLOCKED, 10).unwrap(), 0);
    assert_eq!(
        world
            .metric(Service::Loader, "canopy_loader_admissions_total", &[("result", "denied")])
            .unwrap(),
        9.0
    );

    // The same is explained, and allowed to whom it is allowed.
    let explain = run(&[
        "policy",
        "explain",
        "u-operator",
        "delete",
        "firewall@0.1.1",
        "--interface",
        INTERFACE,
        "--hook",
        "xdp",
    ]);
    assert_eq!(explain.code, 6, "{}", explain.err);
    assert!(explain.out.contains("denied by firewall-stays"), "{}", explain.out);
    assert!(explain.out.contains("env=prod"), "{}", explain.out);
    let rehearsed = world.canopy(&["delete", "chain", INTERFACE, "xdp", "--dry-run"]).unwrap();
    assert!(rehearsed.text().unwrap().contains("would be admitted by people"), "{}", rehearsed.out);
    assert_eq!(kernel(&world), before, "a rehearsal changed something");

    // Bad rules change nothing, and are told.
    replace(&rules, &RULES.replace("effect: deny", "effect: forbid"));
    wait_for_rules(&world, "the mistake", |rules| rules.trouble.is_some());
    denied(&run(&["drain"]), &[stays]);
    let doctor = world.canopy(&["doctor"]).unwrap();
    assert!(doctor.out.contains("policy: admission") && doctor.code == 1, "{}", doctor.out);
    replace(&rules, RULES);
    wait_for_rules(&world, "good rules", |rules| rules.trouble.is_none());

    world.canopy(&["delete", "chain", INTERFACE, "xdp"]).unwrap().text().unwrap();
    assert!(world.kernel_link().unwrap().is_none());
    world.end().unwrap();
}

/// Somebody who was connected before policy went away: whoever was not cannot connect meanwhile.
struct Connected {
    runtime: tokio::runtime::Runtime,
    bus: Bus,
}

#[derive(serde::Deserialize)]
struct Person {
    name: String,
    #[serde(flatten)]
    bus: BusConfig,
    principal: canopy_api::Principal,
}

#[derive(serde::Deserialize)]
struct Contexts {
    contexts: Vec<Person>,
}

impl Connected {
    fn operator(stack: &Stack) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let text = fs::read_to_string(stack.layout().contexts())?;
        let contexts: Contexts = serde_json::from_str(&text)?;
        let person = contexts.contexts.into_iter().find(|person| person.name == "operator");
        let person = person.unwrap();
        let bus = runtime.block_on(Bus::connect(&person.bus, person.principal))?;
        runtime.block_on(bus.wait_ready(LIMIT))?;
        Ok(Self { runtime, bus })
    }

    /// Asks, and is told that policy says nothing.
    fn refused<E: Endpoint>(&self, request: &E::Request) {
        let target = Target::Host(HOST.parse().unwrap());
        let options = CallOptions { timeout: Some(LIMIT), ..CallOptions::default() };
        let called = self.runtime.block_on(self.bus.call_with::<E>(&target, request, options));
        let Err(CallError::Api(error)) = called else { panic!("{:?}", called.err()) };
        assert_eq!(error.code, Code::Unavailable, "{error:?}");
        assert!(error.message.starts_with("policy cannot be asked whether this"), "{error:?}");
        assert!(error.remedy.unwrap().contains("what runs keeps running"));
    }
}

fn apply(text: &str, dry_run: bool) -> ApplyRequest {
    let document = serde_json::from_str::<Value>(text).unwrap();
    serde_json::from_value(json!({ "document": document, "dry_run": dry_run })).unwrap()
}

#[test]
fn without_policy_nothing_changes_and_everything_runs_on() {
    let world = World::start().unwrap();
    let reply = world.apply(&World::firewall()).unwrap();
    assert_eq!(reply.admission.unwrap().basis, AdmissionBasis::Open);
    let before = kernel(&world);
    let other = document(&[("xdp", &[("limit", "ratelimit")])]);
    let chain = DeleteRequest {
        netns: None,
        interface: INTERFACE.parse().unwrap(),
        hook: Hook::Xdp,
        program: None,
        expected_generation: None,
        dry_run: false,
    };
    world
        .inside(|stack| {
            let operator = Connected::operator(stack)?;
            // Hung, then gone.
            let policy = stack.process(Service::Policy);
            policy.signal(Signal::SIGSTOP)?;
            let begun = Instant::now();
            operator.refused::<loader::Drain>(&DrainRequest::default());
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
            policy.signal(Signal::SIGKILL)?;
            policy.stop()?;
            operator.refused::<loader::Apply>(&apply(&other, false));
            operator.refused::<loader::Apply>(&apply(&other, true));
            operator.refused::<loader::Delete>(&chain);
            operator.refused::<loader::Drain>(&DrainRequest::default());
            Ok(())
        })
        .unwrap();
    assert_eq!(kernel(&world), before);
    assert_eq!(world.send(BLOCKED, 10).unwrap(), 0, "the chain does not run any more");

    // What was admitted is restored, and taken over by the next loader, without asking.
    let link = world.kernel_link().unwrap().unwrap().id;
    let gap = world.gap(Duration::from_secs(2), |_| outside::detach_link(link)).unwrap();
    assert!(gap.leaked > 0 && gap.lasted <= Duration::from_millis(1500), "{gap:?}");
    let restored = world.kernel_link().unwrap();
    world
        .inside(|stack| {
            stack.process(Service::Loader).stop()?;
            stack.start_service(Service::Loader)
        })
        .unwrap();
    let labels = [("interface", INTERFACE), ("hook", "xdp")];
    wait_for(LIMIT, "the chain is taken over", || {
        match world.metric(Service::Loader, "canopy_loader_chain_active", &labels) {
            Ok(1.0) => Ok(()),
            Ok(active) => Err(active.to_string()),
            Err(error) => Err(format!("{error:#}")),
        }
    })
    .unwrap();
    assert_eq!(world.kernel_link().unwrap(), restored);
    assert_eq!(world.send(BLOCKED, 10).unwrap(), 0);

    world
        .inside(|stack| {
            stack.start_service(Service::Policy)?;
            stack.wait_ready(Service::Policy)?;
            stack.wait_ready(Service::Loader)
        })
        .unwrap();
    let reply: ApplyReply = world.apply(&other).unwrap();
    assert_eq!(reply.admission.unwrap().basis, AdmissionBasis::Open);
    assert_eq!(world.send(BLOCKED, 10).unwrap(), 10);
    assert_eq!(world.send(PEER_IP, 10).unwrap(), 10);
    world.end().unwrap();
}

#[test]
fn a_host_that_asks_nobody_says_so_everywhere() {
    let world = World::start().unwrap();
    let doctor = world.canopy(&["doctor"]).unwrap();
    assert!(doctor.out.contains("policy: admission") && doctor.out.contains("open: no rules"));
    assert!(!doctor.out.contains("loader: admission"), "{}", doctor.out);
    configure(&world, Service::Loader, |config| config["admission"] = json!("off"));
    world
        .inside(|stack| {
            stack.process(Service::Loader).stop()?;
            stack.start_service(Service::Loader)?;
            stack.wait_ready(Service::Loader)
        })
        .unwrap();
    let reply = world.apply(&World::firewall()).unwrap();
    assert_eq!(reply.admission.unwrap().basis, AdmissionBasis::Off);
    assert_eq!(world.send(BLOCKED, 10).unwrap(), 0);
    let doctor = world.canopy(&["doctor"]).unwrap();
    assert!(
        doctor.out.contains("loader: admission") && doctor.out.contains("off: nobody is asked")
    );
    assert_eq!(
        world
            .metric(Service::Loader, "canopy_loader_admissions_total", &[("result", "off")])
            .unwrap(),
        1.0
    );
    let log = world.stack().process(Service::Loader).log_tail(40);
    assert!(log.contains("admission is off"), "{log}");
    world.end().unwrap();
}
