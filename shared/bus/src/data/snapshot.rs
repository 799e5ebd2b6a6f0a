//! A whole stream as a file: taken out of one store, put into another. A server that ran alone keeps nothing
//! of its own when it becomes part of a cluster, so this is the way there; and a backup.
//!
//! The protocol is NATS' own (`$JS.API.STREAM.SNAPSHOT` and `.RESTORE`): what any NATS tool wrote is read,
//! and the other way round.

use super::failed;
use crate::{
    config::BusError,
    connection::{Bus, random_token},
    retry,
};
use async_nats::{RequestErrorKind, StatusCode};
use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};

/// Bytes of a message: well below the server's `max_payload`.
const CHUNK: usize = 128 * 1024;
/// How long the server may say nothing: it packs, or unpacks, everything at once.
const LIMIT: Duration = Duration::from_mins(1);
/// How long a stream may be without a leader. Nobody answers meanwhile, nor later what was asked then.
const LEADERLESS: Duration = Duration::from_secs(20);
/// How long it may take until all servers of a cluster know who listens.
const UNKNOWN: Duration = Duration::from_secs(5);

/// Writes all of a stream to `to`. The answer describes it: [`restore`] needs it.
///
/// # Errors
/// When there is no such stream, the server does not give it whole, or it cannot be written.
pub async fn snapshot(
    bus: &Bus,
    stream: &str,
    to: &mut (dyn Write + Send),
) -> Result<Value, BusError> {
    let me = bus.principal();
    let inbox = format!("_INBOX.{me}.{me}.{}", random_token());
    let mut chunks = bus.client.subscribe(inbox.clone()).await.map_err(|error| failed(&error))?;
    let wanted = json!({ "deliver_subject": inbox, "no_consumers": true, "chunk_size": CHUNK });
    let subject = format!("$JS.API.STREAM.SNAPSHOT.{stream}");
    let described = answer(bus, subject, wanted.to_string().into()).await?;
    loop {
        let chunk = timeout(LIMIT, chunks.next()).await.map_err(|error| failed(&error))?;
        let Some(chunk) = chunk else { return Err(BusError::Closed) };
        if chunk.payload.is_empty() {
            // The end, or why it ends here.
            return match chunk.status {
                None | Some(StatusCode::OK) => Ok(described),
                Some(status) if status.as_u16() == 204 => Ok(described),
                Some(status) => {
                    let why = chunk.description.unwrap_or_default();
                    Err(BusError::Unavailable(format!("{stream}: {status} {why}")))
                }
            };
        }
        to.write_all(&chunk.payload).map_err(|error| BusError::Store(error.to_string()))?;
        if let Some(more) = chunk.reply {
            bus.client.publish(more, Bytes::new()).await.map_err(|error| failed(&error))?;
        }
    }
}

/// Makes a stream from what [`snapshot`] wrote and how it described it. It is kept by one server at first.
///
/// # Errors
/// When there is such a stream already, or the server does not take it.
pub async fn restore(
    bus: &Bus,
    stream: &str,
    described: &Value,
    from: &mut (dyn Read + Send),
) -> Result<(), BusError> {
    let part = |name: &str| described.get(name).cloned().unwrap_or_default();
    let mut config = part("config");
    if let Some(config) = config.as_object_mut() {
        config.insert("num_replicas".to_owned(), json!(1));
    }
    let wanted = json!({ "config": config, "state": part("state") });
    let subject = format!("$JS.API.STREAM.RESTORE.{stream}");
    let begun = answer(bus, subject, wanted.to_string().into()).await?;
    let to = begun.get("deliver_subject").and_then(Value::as_str);
    let to = to.ok_or_else(|| BusError::Store(format!("{stream}: unexpected answer {begun}")))?;
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        let read = from.take(CHUNK as u64).read_to_end(&mut chunk);
        read.map_err(|error| BusError::Store(error.to_string()))?;
        let is_end = chunk.is_empty();
        let answered = answer(bus, to.to_owned(), chunk.into()).await?;
        if is_end {
            return match answered.get("config") {
                Some(_) => Ok(()),
                None => Err(BusError::Store(format!("{stream}: unexpected answer {answered}"))),
            };
        }
    }
}

/// Removes a stream with all that is in it.
///
/// # Errors
/// When there is none, or the store does not answer.
pub async fn remove_stream(bus: &Bus, stream: &str) -> Result<(), BusError> {
    answer(bus, format!("$JS.API.STREAM.DELETE.{stream}"), Bytes::new()).await.map(drop)
}

/// Whether there is such a stream. Asked again while its leader changes.
///
/// # Errors
/// When the store does not answer.
pub async fn has_stream(bus: &Bus, stream: &str) -> Result<bool, BusError> {
    let subject = format!("$JS.API.STREAM.INFO.{stream}");
    let look = retry::repeated(|_| async {
        let info = raw(bus, subject.clone(), Bytes::new(), super::LIMIT).await?;
        match info.pointer("/error/code").and_then(Value::as_u64) {
            Some(404) => Ok(false),
            None => Ok(true),
            Some(_) => Err(error_of(&info)),
        }
    });
    retry::within(Some(std::time::Instant::now() + LEADERLESS), look).await
}

/// The server's answer within `limit`, JSON; null where it says nothing.
async fn raw(bus: &Bus, subject: String, body: Bytes, limit: Duration) -> Result<Value, BusError> {
    let until = Instant::now() + UNKNOWN;
    let reply = loop {
        let request = async_nats::Request::new().payload(body.clone()).timeout(Some(limit));
        match bus.client.send_request(subject.clone(), request).await {
            Ok(reply) => break reply,
            // Nobody has got it: whoever listens does so at another server, of which this one has not heard.
            Err(error)
                if error.kind() == RequestErrorKind::NoResponders && Instant::now() < until =>
            {
                sleep(Duration::from_millis(50)).await;
            }
            Err(error) => return Err(failed(&error)),
        }
    };
    if reply.payload.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&reply.payload).map_err(|error| BusError::Store(error.to_string()))
}

/// The same where an error is none of the answers.
async fn answer(bus: &Bus, subject: String, body: Bytes) -> Result<Value, BusError> {
    let value = raw(bus, subject, body, LIMIT).await?;
    if value.get("error").is_some() { Err(error_of(&value)) } else { Ok(value) }
}

fn error_of(answer: &Value) -> BusError {
    let text = answer.pointer("/error/description").and_then(Value::as_str);
    BusError::Unavailable(text.unwrap_or("the server gives no reason").to_owned())
}
