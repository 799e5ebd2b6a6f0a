//! Discovery and statistics of a service (`$SRV`, NATS ADR-32).
//!
//! Our own rather than the client library's: the library answers at whatever reply subject a
//! request carries (with our rights, so a stranger could make us publish our own events), puts
//! every endpoint in a queue group (a request to every host has to reach every host), and its
//! discovery task dies of a request without a reply subject.

use async_nats::{Client, Message, Subscriber};
use canopy_api::{name::Principal, subject};
use futures::{StreamExt as _, stream::SelectAll};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// One endpoint, with what it did.
#[derive(Debug)]
pub(crate) struct EndpointStatistics {
    pub(crate) name: &'static str,
    pub(crate) subject: String,
    pub(crate) queue: Option<String>,
    pub(crate) class: &'static str,
    requests: AtomicU64,
    errors: AtomicU64,
    nanoseconds: AtomicU64,
}

impl EndpointStatistics {
    pub(crate) fn new(
        name: &'static str,
        class: &'static str,
        subject: String,
        queue: Option<String>,
    ) -> Self {
        Self {
            name,
            subject,
            queue,
            class,
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            nanoseconds: AtomicU64::new(0),
        }
    }

    pub(crate) fn count(&self, failed: bool, took: Duration) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.errors.fetch_add(u64::from(failed), Ordering::Relaxed);
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(took, Ordering::Relaxed);
    }
}

/// A service as it shows itself.
#[derive(Debug)]
pub(crate) struct Inventory {
    pub(crate) name: &'static str,
    pub(crate) id: String,
    pub(crate) started: String,
    pub(crate) me: Principal,
    pub(crate) endpoints: Vec<Arc<EndpointStatistics>>,
}

impl Inventory {
    fn head(&self, kind: &str) -> serde_json::Map<String, Value> {
        let mut head = serde_json::Map::new();
        head.insert("type".into(), format!("io.nats.micro.v1.{kind}_response").into());
        head.insert("name".into(), self.name.into());
        head.insert("id".into(), self.id.as_str().into());
        head.insert("version".into(), env!("CARGO_PKG_VERSION").into());
        head.insert("metadata".into(), json!({ "principal": self.me.as_str() }));
        head
    }

    /// The answer to a verb; `None` for one that is not known.
    fn answer(&self, verb: &str) -> Option<Value> {
        let queue = |endpoint: &EndpointStatistics| endpoint.queue.clone().unwrap_or_default();
        match verb {
            "PING" => Some(self.head("ping").into()),
            "INFO" => {
                let mut info = self.head("info");
                info.insert("description".into(), format!("Canopy {}", self.name).into());
                let endpoints = self.endpoints.iter().map(|endpoint| {
                    json!({
                        "name": endpoint.name, "subject": endpoint.subject,
                        "queue_group": queue(endpoint), "metadata": { "class": endpoint.class },
                    })
                });
                info.insert("endpoints".into(), endpoints.collect());
                Some(info.into())
            }
            "STATS" => {
                let mut stats = self.head("stats");
                stats.insert("started".into(), self.started.as_str().into());
                let endpoints = self.endpoints.iter().map(|endpoint| {
                    let requests = endpoint.requests.load(Ordering::Relaxed);
                    let time = endpoint.nanoseconds.load(Ordering::Relaxed);
                    json!({
                        "name": endpoint.name, "subject": endpoint.subject,
                        "queue_group": queue(endpoint), "num_requests": requests,
                        "num_errors": endpoint.errors.load(Ordering::Relaxed),
                        "last_error": "", "processing_time": time,
                        "average_processing_time": time.checked_div(requests).unwrap_or(0),
                    })
                });
                stats.insert("endpoints".into(), endpoints.collect());
                Some(stats.into())
            }
            _ => None,
        }
    }

    /// What to subscribe to.
    pub(crate) fn subjects(&self) -> Vec<String> {
        ["PING", "INFO", "STATS"]
            .into_iter()
            .flat_map(|verb| {
                [
                    format!("$SRV.{verb}"),
                    format!("$SRV.{verb}.{}", self.name),
                    format!("$SRV.{verb}.{}.{}", self.name, self.id),
                ]
            })
            .collect()
    }

    /// Answers one request; one without a reply subject of the usual form is left alone.
    async fn respond(&self, client: &Client, message: Message) {
        let Some(reply) = message.reply else { return };
        let owner = reply.split('.').nth(1).and_then(|token| token.parse::<Principal>().ok());
        let reply = owner.and_then(|owner| subject::reply_subject(&reply, &owner, &self.me));
        let verb = message.subject.split('.').nth(1);
        if let (Some(reply), Some(answer)) = (reply, verb.and_then(|verb| self.answer(verb))) {
            // Fails only when the connection is closed.
            let _ = client.publish(reply, answer.to_string().into()).await;
        }
    }

    /// Answers until the subscriptions end.
    pub(crate) async fn serve(&self, client: &Client, mut requests: SelectAll<Subscriber>) {
        while let Some(message) = requests.next().await {
            self.respond(client, message).await;
        }
    }
}
