//! Admission over the bus: the process, its rules file, and loaders that ask.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use canopy_api::{
    ApiError, Code,
    endpoint::policy,
    subject::Target,
    wire::{
        ADMIT_ITEMS, AdmissionBasis, AdmissionDecision, AdmissionItem, AdmissionVerb, AdmitReply,
        AdmitRequest, Empty, ExplainRequest, RulesReply, RulesRequest,
    },
};
use canopy_bus::{Bus, BusConfig, CallError};
use canopy_test_support::{
    nats::{ClientFiles, NatsServer},
    service::ServiceProcess,
};
use serde_json::{Value, json};
use std::{fs, path::Path, time::Duration};

const PROGRAM: &str = env!("CARGO_BIN_EXE_canopy-policy");

const RULES: &str = "\
rules:
  - { name: operators, effect: allow, when: { roles: [operator] } }
  - { name: prod-stays, effect: deny, reason: ask the owners, when: { labels: { env: [prod] } } }
";

struct World {
    nats: NatsServer,
    dir: tempfile::TempDir,
    config: Value,
}

async fn connect(nats: &NatsServer, principal: &str) -> Bus {
    let ClientFiles { url, ca, cert, key } = nats.client(principal);
    let config = BusConfig::new(url, ca, cert, key);
    let bus = Bus::connect(&config, principal.parse().unwrap()).await.unwrap();
    bus.wait_ready(Duration::from_secs(10)).await.unwrap();
    bus
}

impl World {
    /// Two hosts, of which `web1` is in production, and an operator.
    fn new() -> Self {
        let nats = NatsServer::start(&["web1", "web2"]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let ClientFiles { url, ca, cert, key } = nats.client("s-policy");
        let config = json!({
            "bus": { "url": url, "ca": ca, "cert": cert, "key": key },
            "people": { "u-alice": { "role": "operator" } },
            "hosts": { "web1": { "labels": { "env": "prod" } } },
        });
        Self { nats, dir, config }
    }

    fn with_rules(text: &str) -> Self {
        let mut world = Self::new();
        world.write(text);
        world.config["rules"] = json!(world.dir.path().join("rules.yaml"));
        world
    }

    /// Replaces the file whole, as configuration management does.
    fn write(&self, text: &str) {
        let new = self.dir.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.dir.path().join("rules.yaml")).unwrap();
    }

    fn start(&self) -> ServiceProcess {
        ServiceProcess::start(Path::new(PROGRAM), self.config.clone()).unwrap()
    }
}

fn apply() -> AdmissionItem {
    AdmissionItem {
        package: "firewall".parse().ok(),
        version: "0.1.0".parse().ok(),
        ..AdmissionItem::new(AdmissionVerb::Apply)
    }
}

/// What a loader is answered; waits while nobody serves yet.
async fn ask(loader: &Bus, who: &str, items: Vec<AdmissionItem>) -> Result<AdmitReply, ApiError> {
    let request = AdmitRequest { principal: who.parse().unwrap(), items, dry_run: false };
    for _ in 0..400 {
        match loader.call::<policy::Admit>(&Target::Central, &request).await {
            Ok(reply) => return Ok(reply),
            Err(CallError::Api(error)) => return Err(error),
            Err(CallError::NoResponders { .. }) => {
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            Err(other) => panic!("{other}"),
        }
    }
    panic!("policy does not serve");
}

async fn decision(loader: &Bus, who: &str) -> AdmissionDecision {
    ask(loader, who, vec![apply()]).await.unwrap().decisions.remove(0)
}

/// Waits until the rules in force are as wanted.
async fn wait_for(viewer: &Bus, what: &str, wanted: impl Fn(&RulesReply) -> bool) -> RulesReply {
    let mut last = None;
    for _ in 0..400 {
        if let Ok(rules) =
            viewer.call::<policy::Rules>(&Target::Central, &RulesRequest::default()).await
        {
            if wanted(&rules) {
                return rules;
            }
            last = Some(rules);
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{what}: {last:?}");
}

/// A rule that keeps a program in its chain keeps packets coming to it, too.
#[tokio::test]
async fn a_program_kept_from_its_packets_is_a_delete() {
    let world = World::with_rules(
        "rules:
  - { name: operators, effect: allow, when: { roles: [operator] } }
  - { name: stays, effect: deny, reason: it stays, when: { verbs: [delete], packages: [firewall] } }
",
    );
    let _process = world.start();
    let web1 = connect(&world.nats, "h-web1-loader").await;
    let behind = |package: &str| AdmissionItem {
        verb: AdmissionVerb::Delete,
        package: package.parse().ok(),
        behind: "meter".parse().ok(),
        ..apply()
    };
    let items = vec![behind("firewall"), behind("ratelimit"), apply()];
    let decisions = ask(&web1, "u-alice", items).await.unwrap().decisions;
    let allowed: Vec<bool> = decisions.iter().map(|one| one.allowed).collect();
    assert_eq!(allowed, [false, true, true], "{decisions:?}");
    assert_eq!(decisions[0].rule.as_deref(), Some("stays"));
}

#[tokio::test]
async fn a_loader_is_answered_for_its_own_host_by_who_asks_and_what() {
    let world = World::with_rules(RULES);
    let process = world.start();
    let (web1, web2) =
        (connect(&world.nats, "h-web1-loader").await, connect(&world.nats, "h-web2-loader").await);
    let allowed = decision(&web2, "u-alice").await;
    assert!(allowed.allowed && allowed.rule.as_deref() == Some("operators"), "{allowed:?}");
    // The same question from the host in production; which host it is the bus says.
    let denied = decision(&web1, "u-alice").await;
    assert_eq!(
        (denied.allowed, denied.rule.as_deref(), denied.reason.as_str()),
        (false, Some("prod-stays"), "ask the owners")
    );
    // Somebody whom policy does not know has no role.
    let unknown = decision(&web2, "u-bob").await;
    assert_eq!((unknown.allowed, unknown.rule), (false, None));

    // Every part has its own answer, and there are only so many of them.
    let several = ask(&web2, "u-alice", vec![apply(), AdmissionItem::new(AdmissionVerb::Drain)]);
    assert_eq!(several.await.unwrap().decisions.len(), 2);
    let many = ask(&web2, "u-alice", vec![apply(); ADMIT_ITEMS + 1]).await.unwrap_err();
    assert_eq!((many.code, many.path.as_str()), (Code::Invalid, "items"));

    let viewer = connect(&world.nats, "u-viewer").await;
    let question = |host: &str| ExplainRequest {
        principal: "u-alice".parse().unwrap(),
        host: host.parse().unwrap(),
        item: apply(),
    };
    let explained =
        viewer.call::<policy::Explain>(&Target::Central, &question("web1")).await.unwrap();
    assert_eq!(explained.decision, denied);
    assert_eq!(explained.role, "operator".parse().ok());
    assert!(explained.rules.iter().all(|rule| rule.applies), "{explained:?}");
    let explained =
        viewer.call::<policy::Explain>(&Target::Central, &question("web2")).await.unwrap();
    assert_eq!(explained.rules[1].why, "labels.env: there is none");

    let rules =
        viewer.call::<policy::Rules>(&Target::Central, &RulesRequest::default()).await.unwrap();
    assert_eq!(rules.document["rules"][1]["name"], "prod-stays");
    let (_, metrics) = process.get("/metrics").unwrap();
    for expected in [
        "canopy_policy_admission_rules 2",
        "canopy_policy_admission_open 0",
        "canopy_policy_admission_rules_current 1",
        "canopy_policy_admissions_total{decision=\"allowed\"} 2",
        "canopy_policy_admissions_total{decision=\"denied\"} 2",
    ] {
        assert!(metrics.contains(expected), "{expected} is not in\n{metrics}");
    }
    assert!(process.end().unwrap().success());
}

#[tokio::test]
async fn changed_rules_are_in_force_and_bad_ones_change_nothing() {
    let world = World::with_rules(RULES);
    let process = world.start();
    let (loader, viewer) =
        (connect(&world.nats, "h-web2-loader").await, connect(&world.nats, "u-viewer").await);
    assert!(decision(&loader, "u-alice").await.allowed);
    process.wait_status(200).unwrap();

    let closed = RULES.replace("effect: allow", "effect: deny, reason: a freeze");
    world.write(&closed);
    wait_for(&viewer, "the freeze", |rules| rules.document["rules"][0]["effect"] == "deny").await;
    assert_eq!(decision(&loader, "u-alice").await.reason, "a freeze");

    // A mistake, no file at all: the freeze stays, and it is said so.
    world.write(&RULES.replace("operators", "Operators!"));
    let kept = wait_for(&viewer, "the mistake", |rules| rules.trouble.is_some()).await;
    let trouble = kept.trouble.unwrap();
    assert!(trouble.contains("rules[0].name"), "{trouble}");
    assert!(trouble.contains("the rules before stay in force"), "{trouble}");
    assert_eq!(decision(&loader, "u-alice").await.reason, "a freeze");
    process.wait_status(503).unwrap();
    assert!(process.get("/metrics").unwrap().1.contains("canopy_policy_admission_rules_current 0"));
    assert!(process.log().contains("the rules are not used, the rules before stay in force"));
    fs::remove_file(world.dir.path().join("rules.yaml")).unwrap();
    wait_for(&viewer, "no file", |rules| {
        rules.trouble.as_ref().is_some_and(|trouble| trouble.contains("cannot be read"))
    })
    .await;
    assert_eq!(decision(&loader, "u-alice").await.reason, "a freeze");

    world.write(RULES);
    wait_for(&viewer, "the rules again", |rules| rules.trouble.is_none()).await;
    assert!(decision(&loader, "u-alice").await.allowed);
    process.wait_status(200).unwrap();

    // Other people, and then no rules at all: both by the configuration file.
    let mut config = world.config.clone();
    config["people"] = json!({ "u-bob": { "role": "operator" } });
    process.configure(config.clone()).unwrap();
    for who in ["u-alice", "u-bob"] {
        let expected = who == "u-bob";
        for tries in 0.. {
            if decision(&loader, who).await.allowed == expected {
                break;
            }
            assert!(tries < 400, "{who} is still as before");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
    config.as_object_mut().unwrap().remove("rules");
    process.configure(config).unwrap();
    wait_for(&viewer, "open", |rules| rules.basis == AdmissionBasis::Open).await;
    let reply = ask(&loader, "u-mallory", vec![apply()]).await.unwrap();
    assert!(reply.basis == AdmissionBasis::Open && reply.decisions[0].allowed, "{reply:?}");
    assert!(process.log().contains("admission is open"));
}

#[tokio::test]
async fn rules_that_were_never_good_allow_nothing() {
    let world = World::with_rules("rules: [{ name: x }]");
    let process = world.start();
    let (loader, viewer) =
        (connect(&world.nats, "h-web2-loader").await, connect(&world.nats, "u-viewer").await);
    let error = ask(&loader, "u-alice", vec![apply()]).await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    assert!(error.message.contains("rules[0].effect"), "{error:?}");
    assert!(error.remedy.unwrap().contains("canopy policy check"));
    process.wait_status(503).unwrap();
    world.write(RULES);
    wait_for(&viewer, "mended", |rules| rules.trouble.is_none()).await;
    assert!(decision(&loader, "u-alice").await.allowed);
    process.wait_status(200).unwrap();
}

#[tokio::test]
async fn without_rules_whoever_the_bus_lets_through_may_and_it_is_said_so() {
    let world = World::new();
    let process = world.start();
    let (loader, viewer) =
        (connect(&world.nats, "h-web1-loader").await, connect(&world.nats, "u-viewer").await);
    let reply = ask(&loader, "u-mallory", vec![apply()]).await.unwrap();
    assert!(reply.basis == AdmissionBasis::Open && reply.decisions[0].allowed, "{reply:?}");
    // But what only a rule that names it allows.
    let share = AdmissionItem { verb: AdmissionVerb::ShareMap, ..apply() };
    let reply = ask(&loader, "u-mallory", vec![share]).await.unwrap();
    assert!(!reply.decisions[0].allowed, "{reply:?}");
    let health = viewer.call::<policy::Health>(&Target::Central, &Empty {}).await.unwrap();
    let check = health.checks.iter().find(|check| check.name == "admission").unwrap();
    assert!(check.ok && check.warning && check.detail.starts_with("open"), "{check:?}");
    assert!(process.get("/metrics").unwrap().1.contains("canopy_policy_admission_open 1"));
}
