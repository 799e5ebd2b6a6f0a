//! The system account: who is connected, who failed to, and ending connections.

use crate::{config::BusError, connection::Bus, connection::random_token};
use async_nats::Subscriber;
use futures::{Stream, StreamExt as _};
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Connections asked for at once, of each server.
const PAGE: usize = 1024;

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
        let mut pages = ask(bus, (account, user), offset).await?;
        let mut more = false;
        // How many servers there are is not known: the answers end when nobody says anything more.
        let mut quiet = until.min(Instant::now() + Duration::from_millis(500));
        while let Ok(Some(message)) = timeout_at(quiet, pages.next()).await {
            quiet = until.min(Instant::now() + Duration::from_millis(100));
            let Ok(Page { server, data: Some(data) }) = serde_json::from_slice(&message.payload)
            else {
                continue;
            };
            more |= data.total > offset + data.connections.len();
            found.extend(data.connections.into_iter().map(|listed| Connection {
                server: server.id.clone(),
                id: listed.cid,
                user: listed.authorized_user,
                address: listed.ip,
            }));
        }
        if !more || Instant::now() >= until {
            return Ok(found);
        }
        offset += PAGE;
    }
}

/// Ends these connections. Ones that are gone already are as good.
///
/// # Errors
/// When the bus cannot be told.
pub async fn end(bus: &Bus, connections: &[Connection]) -> Result<(), BusError> {
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

async fn ask(
    bus: &Bus,
    (account, user): (&str, Option<&str>),
    offset: usize,
) -> Result<Subscriber, BusError> {
    let question = json!({
        "auth": true, "acc": account, "user": user, "limit": PAGE, "offset": offset, "state": 0
    });
    let inbox = format!("_INBOX.{}.{}", bus.principal(), random_token());
    let defect = |error: &dyn std::fmt::Display| BusError::Defect(error.to_string());
    let pages = bus.client.subscribe(inbox.clone()).await.map_err(|error| defect(&error))?;
    bus.client
        .publish_with_reply("$SYS.REQ.SERVER.PING.CONNZ", inbox, question.to_string().into())
        .await
        .map_err(|error| defect(&error))?;
    Ok(pages)
}
