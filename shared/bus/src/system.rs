//! The system account: who is connected, who failed to, and ending connections.

use crate::{config::BusError, connection::Bus, connection::random_token};
use futures::{Stream, StreamExt as _, stream};
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Connections asked for at once, of each server.
const PAGE: usize = 1024;

/// Which connection: no other has or had the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId {
    /// Its server's id, new at each start.
    pub server: String,
    /// Its number there.
    pub id: u64,
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its server.
    pub server: String,
    /// Its number there.
    pub id: u64,
    /// Its user, as granted.
    pub user: String,
    /// From where.
    pub address: String,
    /// What it uses.
    pub usage: Usage,
}

impl Connection {
    /// Which it is.
    pub fn session(&self) -> SessionId {
        SessionId { server: self.server.clone(), id: self.id }
    }
}

/// What a connection uses. `in` is from the client to the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Subscriptions.
    pub subscriptions: u64,
    /// Bytes that wait to be read by the client.
    pub pending_bytes: u64,
    /// Messages from the client so far.
    pub in_messages: u64,
    /// Bytes of these.
    pub in_bytes: u64,
    /// Messages to the client so far.
    pub out_messages: u64,
}

/// By what the connections of [`busiest`] are the busiest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// By their number of subscriptions.
    Subscriptions,
    /// By the bytes that wait to be read.
    PendingBytes,
}

impl Busy {
    /// The server's word.
    fn as_str(self) -> &'static str {
        match self {
            Self::Subscriptions => "subs",
            Self::PendingBytes => "pending",
        }
    }
}

#[derive(Deserialize)]
struct Page {
    server: Server,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Server {
    id: String,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    total: usize,
    #[serde(default)]
    connections: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    cid: u64,
    #[serde(default)]
    ip: String,
    #[serde(default)]
    authorized_user: String,
    #[serde(default)]
    subscriptions: u64,
    #[serde(default)]
    pending_bytes: u64,
    #[serde(default)]
    in_msgs: u64,
    #[serde(default)]
    in_bytes: u64,
    #[serde(default)]
    out_msgs: u64,
}

impl Listed {
    fn of(self, server: &str) -> Connection {
        Connection {
            server: server.to_owned(),
            id: self.cid,
            user: self.authorized_user,
            address: self.ip,
            usage: Usage {
                subscriptions: self.subscriptions,
                pending_bytes: self.pending_bytes,
                in_messages: self.in_msgs,
                in_bytes: self.in_bytes,
                out_messages: self.out_msgs,
            },
        }
    }
}

/// The connections in APP, of one user or of all.
///
/// # Errors
/// When the bus cannot be asked.
pub async fn connections(
    bus: &Bus,
    user: Option<&str>,
    limit: Duration,
) -> Result<Vec<Connection>, BusError> {
    connections_in(bus, "APP", user, limit).await
}

/// The same in another account.
pub(crate) async fn connections_in(
    bus: &Bus,
    account: &str,
    user: Option<&str>,
    limit: Duration,
) -> Result<Vec<Connection>, BusError> {
    let until = Instant::now() + limit;
    let mut found = Vec::new();
    let mut offset = 0;
    loop {
        let question = json!({
            "auth": true, "acc": account, "user": user, "limit": PAGE, "offset": offset, "state": 0
        });
        let mut more = false;
        for Page { server, data } in ask(bus, &question, until).await? {
            let Some(data) = data else { continue };
            more |= data.total > offset + data.connections.len();
            found.extend(data.connections.into_iter().map(|listed| listed.of(&server.id)));
        }
        if !more || Instant::now() >= until {
            return Ok(found);
        }
        offset += PAGE;
    }
}

/// The busiest connections in APP, at most `count` of each server.
///
/// # Errors
/// When the bus cannot be asked.
pub async fn busiest(
    bus: &Bus,
    by: Busy,
    count: usize,
    limit: Duration,
) -> Result<Vec<Connection>, BusError> {
    let question =
        json!({ "auth": true, "acc": "APP", "sort": by.as_str(), "limit": count, "state": 0 });
    let pages = ask(bus, &question, Instant::now() + limit).await?;
    let of_server = |Page { server, data }: Page| {
        let listed = data.map(|data| data.connections).unwrap_or_default();
        listed.into_iter().map(move |listed| listed.of(&server.id))
    };
    Ok(pages.into_iter().flat_map(of_server).collect())
}

/// Somebody in APP has connected or gone, as a server says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// Connected.
    Connected {
        /// Which connection.
        session: SessionId,
        /// Its user, as granted.
        user: String,
    },
    /// Gone.
    Disconnected {
        /// Which connection.
        session: SessionId,
        /// Its user, as granted.
        user: String,
        /// What it used in its life.
        usage: Usage,
    },
}

#[derive(Deserialize)]
struct Told {
    server: Server,
    client: Client,
    /// By the client: the server tells it from the client's side.
    sent: Option<Traffic>,
    /// To the client.
    received: Option<Traffic>,
}

#[derive(Deserialize)]
struct Client {
    id: u64,
    #[serde(default)]
    user: String,
}

#[derive(Default, Deserialize)]
struct Traffic {
    #[serde(default)]
    msgs: u64,
    #[serde(default)]
    bytes: u64,
}

/// Who connects and who goes from now on; every instance of a service hears all of it.
///
/// # Errors
/// When the bus cannot be asked.
pub async fn sessions(bus: &Bus) -> Result<impl Stream<Item = SessionEvent> + use<>, BusError> {
    let follow = async |what: &str| {
        let subject = format!("$SYS.ACCOUNT.APP.{what}");
        bus.client.subscribe(subject).await.map_err(|error| BusError::Defect(error.to_string()))
    };
    let told = stream::select(follow("CONNECT").await?, follow("DISCONNECT").await?);
    Ok(told.filter_map(|message| async move {
        let Told { server, client, sent, received } =
            serde_json::from_slice(&message.payload).ok()?;
        let session = SessionId { server: server.id, id: client.id };
        let user = client.user;
        Some(if message.subject.ends_with(".CONNECT") {
            SessionEvent::Connected { session, user }
        } else {
            let (sent, received) = (sent.unwrap_or_default(), received.unwrap_or_default());
            let usage = Usage {
                in_messages: sent.msgs,
                in_bytes: sent.bytes,
                out_messages: received.msgs,
                ..Usage::default()
            };
            SessionEvent::Disconnected { session, user, usage }
        })
    }))
}

/// Ends these connections. Ones that are gone already are as good.
///
/// # Errors
/// When the bus cannot be told.
pub async fn end(bus: &Bus, connections: &[Connection]) -> Result<(), BusError> {
    if connections.is_empty() {
        // Nor is anything waited for: a connection that is gone would take its time.
        return Ok(());
    }
    for connection in connections {
        let subject = format!("$SYS.REQ.SERVER.{}.KICK", connection.server);
        let body = json!({ "cid": connection.id }).to_string();
        // Without somewhere to answer to, the server does nothing.
        let inbox = format!("_INBOX.{}.{}", bus.principal(), random_token());
        bus.client
            .publish_with_reply(subject, inbox, body.into())
            .await
            .map_err(|error| BusError::Defect(error.to_string()))?;
    }
    bus.flush().await;
    Ok(())
}

/// Somebody could not connect, as a server says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedConnect {
    /// The server's name.
    pub server: String,
    /// From where.
    pub address: String,
    /// Why, in the server's words.
    pub reason: String,
}

#[derive(Deserialize)]
struct AuthError {
    #[serde(default)]
    server: ServerName,
    #[serde(default)]
    client: ClientAddress,
    #[serde(default)]
    reason: String,
}

#[derive(Default, Deserialize)]
struct ServerName {
    #[serde(default)]
    name: String,
}

#[derive(Default, Deserialize)]
struct ClientAddress {
    #[serde(default)]
    host: String,
}

/// Who fails to connect from now on. The instances of a service share what the servers say.
///
/// # Errors
/// When the bus cannot be asked.
pub async fn failed_connects(
    bus: &Bus,
    queue: &str,
) -> Result<impl Stream<Item = FailedConnect> + use<>, BusError> {
    let subject = "$SYS.SERVER.*.CLIENT.AUTH.ERR".to_owned();
    let told = bus.client.queue_subscribe(subject, queue.to_owned()).await;
    let told = told.map_err(|error| BusError::Defect(error.to_string()))?;
    Ok(told.filter_map(|message| async move {
        let said: AuthError = serde_json::from_slice(&message.payload).ok()?;
        let (server, address) = (said.server.name, said.client.host);
        Some(FailedConnect { server, address, reason: said.reason })
    }))
}

/// Asks every server. How many there are is not known: the answers end when nobody says anything more.
async fn ask(
    bus: &Bus,
    question: &serde_json::Value,
    until: Instant,
) -> Result<Vec<Page>, BusError> {
    let inbox = format!("_INBOX.{}.{}", bus.principal(), random_token());
    let defect = |error: &dyn std::fmt::Display| BusError::Defect(error.to_string());
    let mut answers = bus.client.subscribe(inbox.clone()).await.map_err(|error| defect(&error))?;
    bus.client
        .publish_with_reply("$SYS.REQ.SERVER.PING.CONNZ", inbox, question.to_string().into())
        .await
        .map_err(|error| defect(&error))?;
    let mut pages = Vec::new();
    let mut quiet = until.min(Instant::now() + Duration::from_millis(500));
    while let Ok(Some(message)) = timeout_at(quiet, answers.next()).await {
        quiet = until.min(Instant::now() + Duration::from_millis(100));
        pages.extend(serde_json::from_slice::<Page>(&message.payload).ok());
    }
    Ok(pages)
}
