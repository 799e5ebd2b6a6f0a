//! What somebody tries who was let in: to hear others, to speak as others, to have the server or a
//! service speak for them. By a client that is not ours.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod stack;

use async_nats::{Client, HeaderMap, Message, Subscriber};
use canopy_api::permission::Role;
use futures::StreamExt as _;
use serde_json::Value;
use stack::{LIMIT, Stack};
use std::time::Duration;
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::timeout,
};

const PEOPLE: [(&str, Role); 4] = [
    ("u-viewer", Role::Viewer),
    ("u-operator", Role::Operator),
    ("u-publisher", Role::Publisher),
    ("u-admin", Role::Admin),
];

/// Everybody has a token.
async fn scene() -> Stack {
    let stack = Stack::start();
    let admin = stack.connect("u-admin").await;
    for (name, role) in PEOPLE {
        if name != "u-admin" {
            stack.issue(&admin, name, role).await;
        }
    }
    stack
}

struct Intruder {
    client: Client,
    said: UnboundedReceiver<String>,
}

impl Intruder {
    async fn new(stack: &Stack, name: &str) -> Self {
        let (tell, said) = unbounded_channel();
        let change = |options: async_nats::ConnectOptions| {
            options.event_callback(move |event| {
                let tell = tell.clone();
                async move {
                    let _ = tell.send(event.to_string());
                }
            })
        };
        let client = stack.attempt_from(&stack.credentials(name), change).await.unwrap();
        Self { client, said }
    }

    /// The server refuses it, by this name.
    async fn refused(&mut self, what: &str, subject: &str) {
        self.client.flush().await.unwrap();
        let wanted = format!("permissions violation for {what} to \"{}\"", subject.to_lowercase());
        loop {
            let said = timeout(LIMIT, self.said.recv()).await;
            let said = said.unwrap_or_else(|_| panic!("not refused: {what} {subject}")).unwrap();
            if said.to_lowercase().contains(&wanted) {
                return;
            }
        }
    }

    async fn may_not_publish(&mut self, subject: &str, body: &str) {
        self.client.publish(subject.to_owned(), body.to_owned().into()).await.unwrap();
        self.refused("publish", subject).await;
    }

    async fn may_not_hear(&mut self, subject: &str) {
        let _heard = self.client.subscribe(subject.to_owned()).await.unwrap();
        self.refused("subscription", subject).await;
    }

    /// Asks with a reply subject of its choice.
    async fn ask(&self, subject: &str, reply: &str, body: &str) {
        let mut headers = HeaderMap::new();
        headers.insert("Content-Type", "application/json");
        let body = body.to_owned().into();
        let (subject, reply) = (subject.to_owned(), reply.to_owned());
        self.client.publish_with_reply_and_headers(subject, reply, headers, body).await.unwrap();
        self.client.flush().await.unwrap();
    }
}

async fn first(messages: &mut Subscriber) -> Message {
    timeout(LIMIT, messages.next()).await.expect("nothing is heard").unwrap()
}

/// The store of tokens, the server's own interfaces, others' inboxes and others' names.
#[tokio::test]
async fn nobody_reaches_past_what_is_theirs() {
    let stack = scene().await;
    // Whose bytes the server would deliver to a subject of the caller's choice.
    let push = r#"{"stream_name": "KV_canopy_tokens", "config": {
        "deliver_subject": "canopy.v1.rpc.policy.read.token-list._.u-admin", "ack_policy": "none"}}"#;
    let people = PEOPLE.map(|(name, _)| name);
    for name in people.into_iter().chain(["h-web1-loader", "s-registry"]) {
        let mut intruder = Intruder::new(&stack, name).await;
        for (subject, body) in [
            ("$JS.API.INFO", ""),
            ("$JS.API.STREAM.LIST", ""),
            ("$JS.API.DIRECT.GET.KV_canopy_tokens.$KV.canopy_tokens.u-admin", ""),
            ("$JS.API.STREAM.MSG.GET.KV_canopy_tokens", r#"{"seq": 1}"#),
            ("$JS.API.CONSUMER.CREATE.KV_canopy_tokens", push),
            ("$JS.API.CONSUMER.DURABLE.CREATE.KV_canopy_tokens.mine", push),
            ("$KV.canopy_tokens.u-viewer", "{}"),
            ("$SYS.REQ.USER.AUTH", ""),
            ("$SYS.REQ.SERVER.PING.CONNZ", ""),
            ("$SYS.REQ.ACCOUNT.APP.CONNZ", ""),
            ("canopy.v1.event.policy.token.issued._", "{}"),
            ("canopy.v1.audit.policy._", "{}"),
            ("canopy.v1.rpc.policy.read.token-list._.u-somebody", "{}"),
            ("_INBOX.u-somebody.s-policy.0123456789abcdef0123456789abcdef", "{}"),
        ] {
            intruder.may_not_publish(subject, body).await;
        }
        for subject in [
            ">",
            "*",
            "*.>",
            "_INBOX.>",
            "_INBOX.*.>",
            "_INBOX.u-somebody.>",
            "_INBOX.u-somebody.s-policy.*",
            "canopy.>",
            "canopy.v1.rpc.>",
            "canopy.v1.rpc.policy.*.*._.*",
            "canopy.v1.audit.>",
            "$SYS.>",
            "$SYS.REQ.USER.AUTH",
            "$JS.>",
            "$KV.>",
        ] {
            intruder.may_not_hear(subject).await;
        }
    }
}

/// A refused connect is told with its address: to administrators, and to nobody else.
#[tokio::test]
async fn only_admins_hear_whence_people_connect() {
    let stack = scene().await;
    let mut others = Vec::new();
    for name in ["u-viewer", "u-operator", "u-publisher"] {
        let mut intruder = Intruder::new(&stack, name).await;
        let refused = "canopy.v1.security.policy.connect.refused._";
        for subject in ["canopy.v1.security.>", refused, "canopy.v1.*.policy.connect.*._"] {
            intruder.may_not_hear(subject).await;
        }
        let heard = intruder.client.subscribe("canopy.v1.event.>").await.unwrap();
        intruder.client.flush().await.unwrap();
        others.push((name, intruder, heard));
    }
    let admin = stack.connect("u-admin").await;
    let mut events = admin.subscribe_events("canopy.v1.security.>").await.unwrap();
    admin.flush().await;
    let stranger = stack.certificate("stranger", vec![]);
    assert!(stack.attempt(&stranger).await.is_err());
    let event = timeout(LIMIT, events.next()).await.expect("an administrator hears").unwrap();
    assert_eq!(event.value().unwrap()["address"], "127.0.0.1");
    for (name, _intruder, heard) in &mut others {
        while let Ok(Some(message)) = timeout(Duration::from_millis(100), heard.next()).await {
            let text = String::from_utf8_lossy(&message.payload);
            assert!(!text.contains("127.0.0.1"), "{name} hears {}: {text}", message.subject);
        }
    }
}

/// A service that answers publishes with its own rights, so never where a caller points.
#[tokio::test]
async fn an_answer_goes_to_who_asked_and_nowhere_else() {
    let stack = scene().await;
    let data = stack.connect("s-policy-data").await;
    let mut trail = data.subscribe_events("canopy.v1.audit.>").await.unwrap();
    data.flush().await;
    let viewer = stack.attempt(&stack.credentials("u-viewer")).await.unwrap();
    let mut stolen = viewer.subscribe("_INBOX.u-viewer.>").await.unwrap();
    viewer.flush().await.unwrap();
    let admin = Intruder::new(&stack, "u-admin").await;
    for reply in [
        "_INBOX.u-viewer.s-policy.x",
        "_INBOX.u-admin.s-registry.x",
        "_INBOX.u-admin.s-policy",
        "canopy.v1.event.policy.token.issued._",
        "canopy.v1.rpc.policy.internal.admit._.s-policy",
        "$JS.API.STREAM.DELETE.KV_canopy_tokens",
    ] {
        admin.ask("canopy.v1.rpc.policy.read.token-list._.u-admin", reply, "{}").await;
        loop {
            let record = timeout(LIMIT, trail.next()).await.expect("audited").unwrap();
            let record = record.value().unwrap();
            // Of what came before, the tokens of this scene.
            if record["verb"] == "token-list" {
                assert_eq!(record["principal"], "u-admin", "{record}");
                assert_eq!(record["decision"], "denied", "{record}");
                assert!(record["reason"].as_str().unwrap().contains(reply), "{record}");
                break;
            }
        }
    }
    // It goes on to answer who asks in order, and the viewer has heard nothing.
    let mut answers = admin.client.subscribe("_INBOX.u-admin.>").await.unwrap();
    let subject = "canopy.v1.rpc.policy.read.token-list._.u-admin";
    admin.ask(subject, "_INBOX.u-admin.s-policy.x", "{}").await;
    let answer: Value = serde_json::from_slice(&first(&mut answers).await.payload).unwrap();
    assert_eq!(answer["tokens"].as_array().unwrap().len(), PEOPLE.len(), "{answer}");
    assert!(timeout(Duration::from_millis(200), stolen.next()).await.is_err());
}

/// Discovery is for operators and administrators, and nobody takes a service out of it.
#[tokio::test]
async fn a_service_stays_discoverable() {
    let stack = scene().await;
    for name in ["u-viewer", "u-publisher", "h-web1-loader", "s-registry"] {
        let mut intruder = Intruder::new(&stack, name).await;
        for subject in ["$SRV.PING", "$SRV.INFO.policy", "$SRV.STATS"] {
            intruder.may_not_publish(subject, "").await;
        }
    }
    let operator = Intruder::new(&stack, "u-operator").await;
    for subject in ["$SRV.PING", "$SRV.PING.policy", "$SRV.INFO", "$SRV.STATS.policy"] {
        operator.client.publish(subject, "".into()).await.unwrap();
        operator.ask(subject, "canopy.v1.event.policy.token.issued._", "").await;
        operator.ask(subject, "_INBOX.u-viewer.s-policy.x", "").await;
    }
    let mut answers = operator.client.subscribe("_INBOX.u-operator.>").await.unwrap();
    for subject in ["$SRV.PING", "$SRV.INFO.policy", "$SRV.STATS.policy"] {
        operator.ask(subject, "_INBOX.u-operator.s-policy.x", "").await;
        let answer: Value = serde_json::from_slice(&first(&mut answers).await.payload).unwrap();
        assert_eq!(answer["name"], "policy", "{subject}: {answer}");
    }
}
