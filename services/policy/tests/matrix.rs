//! The permission matrix: everybody × every verb × own and another's name × own and another host,
//! generated from the endpoint table and executed against a real server that asks a real policy
//! service. Expected is what the words of the table say, worked out here and not by the generator.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod stack;

use async_nats::Client;
use canopy_api::{
    endpoint::{self, Class, EndpointSpec, Service},
    permission::Role,
    scope::Scope,
    subject::{self, Target},
};
use futures::StreamExt as _;
use serde_json::json;
use stack::{Credentials, LIMIT, Stack};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

const HOSTS: [&str; 2] = ["web1", "web2"];

/// What the server said to one client.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<String>>>);

async fn client(stack: &Stack, with: &Credentials) -> (Client, Said) {
    let said = Said::default();
    let tell = said.clone();
    let client = stack
        .attempt_from(with, |options| {
            options.event_callback(move |event| {
                let tell = tell.clone();
                async move { tell.0.lock().unwrap().push(event.to_string()) }
            })
        })
        .await
        .unwrap();
    (client, said)
}

/// A daemon listening where its service does, and the subjects it hears.
struct Ear {
    client: Client,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Ear {
    async fn new(stack: &Stack, principal: &str, service: Service, place: &str) -> Self {
        let (client, _) = client(stack, &stack.credentials(principal)).await;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let mut places = vec![place];
        if service.is_host_local() {
            places.push("all");
        }
        for place in places {
            let subject = format!("canopy.v1.rpc.{service}.*.*.{place}.*");
            let mut messages = client.subscribe(subject).await.unwrap();
            let heard = heard.clone();
            tokio::spawn(async move {
                while let Some(message) = messages.next().await {
                    heard.lock().unwrap().push(message.subject.to_string());
                }
            });
        }
        client.flush().await.unwrap();
        Self { client, heard }
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
enum Who {
    Person(&'static str, Role, Reaches),
    Daemon(&'static str, Service, Option<&'static str>),
}

/// Where a person's role counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reaches {
    Everywhere,
    /// The loader of web1, and the registry.
    Narrow,
    /// All services, on web1.
    Web1,
}

const EVERYBODY: [Who; 13] = [
    Who::Person("u-viewer", Role::Viewer, Reaches::Everywhere),
    Who::Person("u-operator", Role::Operator, Reaches::Everywhere),
    Who::Person("u-publisher", Role::Publisher, Reaches::Everywhere),
    Who::Person("u-admin", Role::Admin, Reaches::Everywhere),
    Who::Person("u-narrow", Role::Operator, Reaches::Narrow),
    Who::Person("u-web1", Role::Admin, Reaches::Web1),
    Who::Daemon("h-web1-loader", Service::Loader, Some("web1")),
    Who::Daemon("h-web2-loader", Service::Loader, Some("web2")),
    Who::Daemon("h-web1-enforcer", Service::Enforcer, Some("web1")),
    Who::Daemon("h-web2-enforcer", Service::Enforcer, Some("web2")),
    Who::Daemon("s-registry", Service::Registry, None),
    Who::Daemon("s-cert-monitor", Service::CertMonitor, None),
    Who::Daemon("s-policy", Service::Policy, None),
];

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Person(name, ..) | Self::Daemon(name, ..) => name,
        }
    }

    /// What the words of the table say.
    fn may(self, spec: &EndpointSpec, target: &Target) -> bool {
        match self {
            Self::Person(_, role, reaches) => {
                let holds = match role {
                    Role::Viewer => spec.class == Class::Read,
                    Role::Operator => matches!(spec.class, Class::Read | Class::Write),
                    Role::Publisher => matches!(spec.class, Class::Read | Class::Publish),
                    Role::Admin => spec.class != Class::Internal,
                };
                let there = match (reaches, spec.service, target) {
                    (Reaches::Everywhere, ..) => true,
                    // What is changed there is changed for every host; of what administrators ask policy
                    // it sees itself whom it is about.
                    (Reaches::Narrow, Service::Registry, Target::Central) => {
                        spec.class == Class::Read
                    }
                    (Reaches::Web1, service, Target::Central) => {
                        spec.class == Class::Read
                            || (service == Service::Policy && spec.class == Class::Admin)
                    }
                    (Reaches::Narrow, Service::Loader, Target::Host(host))
                    | (Reaches::Web1, _, Target::Host(host)) => host.as_str() == "web1",
                    _ => false,
                };
                holds && there
            }
            Self::Daemon(_, service, place) => {
                let called = spec.callers.contains(&service);
                let reached = match (target, place) {
                    // Central services call the daemons of every host, one by one or all.
                    (Target::Central, _) | (_, None) => true,
                    (Target::Host(host), Some(place)) => host.as_str() == place,
                    (Target::AllHosts, Some(_)) => false,
                };
                called && reached
            }
        }
    }
}

fn targets(service: Service) -> Vec<Target> {
    if service.is_host_local() {
        let mut targets: Vec<Target> =
            HOSTS.iter().map(|host| Target::Host(host.parse().unwrap())).collect();
        targets.push(Target::AllHosts);
        targets
    } else {
        vec![Target::Central]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_cell_is_as_the_table_says() {
    let stack = Stack::start();
    let admin = stack.connect("u-admin").await;
    for (name, role) in [
        ("u-viewer", Role::Viewer),
        ("u-operator", Role::Operator),
        ("u-publisher", Role::Publisher),
    ] {
        stack.issue(&admin, name, role).await;
    }
    let mut narrowed = BTreeMap::new();
    for (name, role, scope) in [
        (
            "u-narrow",
            Role::Operator,
            json!({ "services": ["loader", "registry"], "hosts": ["web1"] }),
        ),
        ("u-web1", Role::Admin, json!({ "hosts": ["web1"] })),
    ] {
        let credentials = stack.certificate(name, vec![stack::uri(name)]);
        let scope: Scope = serde_json::from_value(scope).unwrap();
        let binding = stack::binding_of(&credentials.cert);
        let reply = stack.issue_for(&admin, name, role, Some(scope), Some(binding)).await;
        narrowed.insert(name, stack.with_token(&credentials, name, &reply.token.0));
    }

    let mut ears = Vec::new();
    for service in Service::ALL {
        if service.is_host_local() {
            for host in HOSTS {
                ears.push(Ear::new(&stack, &format!("h-{host}-{service}"), service, host).await);
            }
        } else if service != Service::Policy {
            // The policy service of the stack itself listens for its own.
            ears.push(Ear::new(&stack, &format!("s-{service}"), service, "_").await);
        }
    }
    let policy_ear = Ear::new(&stack, "s-policy", Service::Policy, "_").await;
    ears.push(policy_ear);

    let (mut cells, mut allowed) = (0, 0);
    for who in EVERYBODY {
        let credentials = narrowed.get(who.name()).cloned();
        let credentials = credentials.unwrap_or_else(|| stack.credentials(who.name()));
        let (client, said) = client(&stack, &credentials).await;
        for ear in &ears {
            ear.heard.lock().unwrap().clear();
        }
        let (mut may, mut may_not) = (BTreeSet::new(), BTreeSet::new());
        for spec in endpoint::all() {
            for target in targets(spec.service) {
                for principal in EVERYBODY.map(Who::name).into_iter().chain(["u-nobody"]) {
                    let text = subject::request(spec, &target, &principal.parse().unwrap());
                    let as_oneself = principal == who.name();
                    if as_oneself && who.may(spec, &target) {
                        may.insert(text);
                    } else {
                        may_not.insert(text);
                    }
                }
            }
        }
        cells += may.len() + may_not.len();
        allowed += may.len();
        let refused = |said: &Said| -> BTreeSet<String> {
            let said = said.0.lock().unwrap();
            let violations =
                said.iter().filter(|text| text.to_lowercase().contains("permissions violation"));
            violations.filter_map(|text| Some(text.split('"').nth(1)?.to_owned())).collect()
        };
        let heard = || -> BTreeSet<String> {
            ears.iter().flat_map(|ear| ear.heard.lock().unwrap().clone()).collect()
        };
        // The library keeps only so many of the server's words: a few at a time.
        let all: Vec<&String> = may.iter().chain(&may_not).collect();
        let mut sent = 0;
        for few in all.chunks(60) {
            for text in few {
                // Without a reply subject no service does anything.
                client.publish((*text).clone(), "".into()).await.unwrap();
            }
            client.flush().await.unwrap();
            sent += few.len();
            let until = Instant::now() + LIMIT;
            while refused(&said).len() + heard().len() < sent && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        for ear in &ears {
            ear.client.flush().await.unwrap();
        }
        let (refused, heard) = (refused(&said), heard());
        let wrongly: Vec<_> = refused.symmetric_difference(&may_not).collect();
        assert!(wrongly.is_empty(), "{who:?}: the server's refusals are others: {wrongly:?}");
        let wrongly: Vec<_> = heard.symmetric_difference(&may).collect();
        assert!(wrongly.is_empty(), "{who:?}: what arrives is other: {wrongly:?}");
    }
    println!("{cells} cells, {allowed} of them allowed");
    assert!(allowed > 100 && cells > 4000, "{cells} cells, {allowed} of them allowed");
}
