//! Auth callout: the server asks who may connect, and what they may do.
//!
//! The server sends a signed, encrypted question for each connection that is none of its own users;
//! the answer is a signed user, with permissions, or a refusal. Form of both:
//! <https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-26.md>.

mod jwt;
mod peers;

pub use peers::watch_peers;

use crate::{
    config::BusError,
    connection::{Bus, Link},
};
use async_nats::Message;
use canopy_api::permission::Permissions;
use canopy_secrets::Secret;
use futures::StreamExt as _;
use jwt::Question;
use nkeys::{KeyPair, KeyPairType, XKey};
use std::{fmt, sync::Arc, time::Duration};
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Where the server asks.
const SUBJECT: &str = "$SYS.REQ.USER.AUTH";
/// The instances of the policy service share the questions.
const QUEUE: &str = "policy";
/// Questions worked on at once; more wait their turn in the subscription.
const AT_ONCE: usize = 64;
/// The server gives up after 2 s (`authorization.timeout`).
const LIMIT: Duration = Duration::from_secs(2);

/// The keys the server knows the policy service by.
pub struct CalloutKeys {
    issuer: KeyPair,
    xkey: XKey,
}

impl fmt::Debug for CalloutKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CalloutKeys")
            .field("issuer", &self.issuer())
            .field("xkey", &self.xkey())
            .finish()
    }
}

impl CalloutKeys {
    /// New ones.
    pub fn generate() -> Self {
        Self { issuer: KeyPair::new_account(), xkey: XKey::new() }
    }

    /// From their seeds: `SA…` and `SX…`, as `nk -gen account` and `nk -gen x25519` write them.
    ///
    /// # Errors
    /// Which of them is none, without repeating it.
    pub fn from_seeds(issuer: &str, xkey: &str) -> Result<Self, BusError> {
        let bad = |what| BusError::Defect(format!("the {what} is not such a seed"));
        let issuer = KeyPair::from_seed(issuer.trim())
            .ok()
            .filter(|key| key.key_pair_type() == KeyPairType::Account)
            .ok_or_else(|| bad("issuer's seed (SA…)"))?;
        let xkey = XKey::from_seed(xkey.trim()).map_err(|_| bad("encryption seed (SX…)"))?;
        Ok(Self { issuer, xkey })
    }

    /// Public key of who signs answers: `authorization.auth_callout.issuer`.
    pub fn issuer(&self) -> String {
        self.issuer.public_key()
    }

    /// Public key questions are encrypted for: `authorization.auth_callout.xkey`.
    pub fn xkey(&self) -> String {
        self.xkey.public_key()
    }

    /// Both seeds, to be kept: issuer's and encryption's.
    ///
    /// # Errors
    /// When a key is only the public half, which none of ours is.
    pub fn seeds(&self) -> Result<(Secret, Secret), BusError> {
        let defect = |error: nkeys::error::Error| BusError::Defect(error.to_string());
        Ok((self.issuer.seed().map_err(defect)?.into(), self.xkey.seed().map_err(defect)?.into()))
    }
}

/// A new key by which a server knows a user: its public half (`U…`) and its seed (`SU…`).
///
/// # Errors
/// When the key has no seed, which none of ours is without.
pub fn generate_nkey() -> Result<(String, Secret), BusError> {
    let key = KeyPair::new_user();
    let seed = key.seed().map_err(|error| BusError::Defect(error.to_string()))?;
    Ok((key.public_key(), seed.into()))
}

/// Somebody wants to connect.
#[derive(Clone)]
pub struct ConnectRequest {
    /// Id of the server that asks.
    pub server: String,
    /// From where, without port.
    pub address: String,
    /// Number of the connection at its server.
    pub connection: u64,
    /// What the client calls itself; anybody can say anything.
    pub name: String,
    /// The client's certificate, PEM, whose chain the server has verified. `None` without one.
    pub certificate: Option<String>,
    /// The bearer token it gives.
    pub token: Option<Secret>,
    /// Whether it gives a user name, a password, a key or a JWT: ways that are none of ours.
    pub other_credentials: bool,
}

impl fmt::Debug for ConnectRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectRequest")
            .field("address", &self.address)
            .field("connection", &self.connection)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What a connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Its name, by which it is found among the connections.
    pub user: String,
    /// What it may do, in APP.
    pub permissions: Permissions,
    /// When the server ends it, seconds since 1970.
    pub until: Option<u64>,
}

/// Answers the server about everybody who connects, until `stop`. A question that `decide` refuses,
/// or that makes it panic, is a refusal.
///
/// # Errors
/// When the server does not let this connection answer.
pub async fn answer<F, Fut>(
    bus: &Bus,
    keys: CalloutKeys,
    decide: F,
    stop: CancellationToken,
) -> Result<(), BusError>
where
    F: Fn(ConnectRequest) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Grant, String>> + Send + 'static,
{
    let mut questions = bus
        .client
        .queue_subscribe(SUBJECT, QUEUE.to_owned())
        .await
        .map_err(|error| BusError::Defect(error.to_string()))?;
    let (keys, decide) = (Arc::new(keys), Arc::new(decide));
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let tasks = TaskTracker::new();
    loop {
        let message = tokio::select! {
            message = questions.next() => message,
            () = stop.cancelled() => break,
        };
        let Some(message) = message else { break };
        let Ok(slot) = slots.clone().acquire_owned().await else { break };
        let (bus, keys, decide) = (bus.clone(), keys.clone(), decide.clone());
        tasks.spawn(async move {
            let work = reply(&bus, &keys, decide.as_ref(), message);
            if timeout(LIMIT, work).await.is_err() {
                tracing::warn!("a connection was not decided about in time, and is refused");
            }
            drop(slot);
        });
    }
    // Who asked already is answered, where there is still a server to answer.
    tasks.close();
    let mut link = bus.watch_link();
    tokio::select! {
        _ = timeout(LIMIT, tasks.wait()) => {}
        _ = link.wait_for(|link| *link != Link::Connected) => {}
    }
    bus.flush_at_end().await;
    Ok(())
}

async fn reply<F, Fut>(bus: &Bus, keys: &CalloutKeys, decide: &F, message: Message)
where
    F: Fn(ConnectRequest) -> Fut,
    Fut: Future<Output = Result<Grant, String>>,
{
    let Some(subject) = message.reply.clone() else { return };
    let question = match Question::read(keys, &message) {
        Ok(question) => question,
        Err(reason) => {
            tracing::error!(%reason, "a question of the bus server cannot be read");
            return;
        }
    };
    let decided = decide(question.request()).await;
    match question.answer(keys, decided) {
        Ok(sealed) => {
            if let Err(error) = bus.client.publish(subject, sealed.into()).await {
                tracing::warn!(%error, "an answer to the bus server could not be sent");
            }
        }
        Err(error) => tracing::error!(%error, "an answer to the bus server cannot be made"),
    }
}
