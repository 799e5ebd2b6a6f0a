//! Events and audit records.

use crate::{codec::Encoding, config::BusError, connection::Bus, header, trace};
use async_nats::{HeaderMap, Subscriber};
use bytes::Bytes;
use canopy_api::{endpoint::Service, name::HostId, subject};
use futures::StreamExt as _;
use serde::{Serialize, de::DeserializeOwned};

/// Something that happened, as it came.
#[derive(Clone, Debug)]
pub struct Event {
    /// `canopy.v1.event.<service>.<noun>.<what happened>.<host or "_">`.
    pub subject: String,
    payload: Bytes,
    encoding: Encoding,
}

impl Event {
    /// Its content.
    ///
    /// # Errors
    /// The reason why it is not a `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, String> {
        self.encoding.decode(&self.payload)
    }

    /// Its content as a generic value.
    ///
    /// # Errors
    /// The reason why it is none.
    pub fn value(&self) -> Result<serde_json::Value, String> {
        self.decode()
    }
}

/// Events as they come. Slow readers lose some; [`crate::Statistics::dropped`] counts them.
#[derive(Debug)]
pub struct Events(Subscriber);

impl Events {
    /// The next one; `None` when the connection is closed.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let message = self.0.next().await?;
            let content_type = header::get(message.headers.as_ref(), header::CONTENT_TYPE);
            match Encoding::of(content_type) {
                Ok(encoding) => {
                    return Some(Event {
                        subject: message.subject.to_string(),
                        payload: message.payload,
                        encoding,
                    });
                }
                Err(error) => {
                    tracing::warn!(subject = %message.subject, %error, "event ignored");
                }
            }
        }
    }
}

impl Bus {
    /// Says that something happened. `noun` and `happened` are single subject tokens. Nobody has to
    /// listen; while the connection is down the event is dropped.
    ///
    /// # Errors
    /// When the event cannot be encoded or sent.
    pub async fn publish_event<T: Serialize + Sync>(
        &self,
        service: Service,
        noun: &str,
        happened: &str,
        host: Option<&HostId>,
        event: &T,
    ) -> Result<(), BusError> {
        self.publish(subject::event(service, noun, happened, host), event).await
    }

    /// Says that something happened that only administrators may hear of: one of
    /// [`subject::SECURITY_EVENTS`].
    ///
    /// # Errors
    /// As [`Bus::publish_event`].
    pub async fn publish_security_event<T: Serialize + Sync>(
        &self,
        service: Service,
        noun: &str,
        happened: &str,
        host: Option<&HostId>,
        event: &T,
    ) -> Result<(), BusError> {
        self.publish(subject::security_event(service, noun, happened, host), event).await
    }

    /// Leaves an audit record.
    pub(crate) async fn publish_audit<T: Serialize + Sync>(
        &self,
        service: Service,
        host: Option<&HostId>,
        record: &T,
    ) -> Result<(), BusError> {
        self.publish(subject::audit(service, host), record).await
    }

    async fn publish<T: Serialize + Sync>(
        &self,
        subject: String,
        value: &T,
    ) -> Result<(), BusError> {
        if self.link() != crate::Link::Connected {
            return Err(BusError::Unreachable {
                url: self.url().to_owned(),
                waited: std::time::Duration::ZERO,
                cause: crate::UnreachableCause::NoAnswer,
                reason: "disconnected".to_owned(),
            });
        }
        let payload = Encoding::MessagePack
            .encode(value)
            .map_err(|error| BusError::Defect(format!("{subject}: {error}")))?;
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, Encoding::MessagePack.content_type());
        trace::inject(&mut headers);
        self.client
            .publish_with_headers(subject, headers, payload.into())
            .await
            .map_err(|_| BusError::Closed)
    }

    /// Follows the events whose subject matches `pattern`, such as `canopy.v1.event.>`.
    ///
    /// # Errors
    /// When the connection is closed or the pattern is none.
    pub async fn subscribe_events(&self, pattern: &str) -> Result<Events, BusError> {
        self.client
            .subscribe(pattern.to_owned())
            .await
            .map(Events)
            .map_err(|error| BusError::Defect(format!("{pattern}: {error}")))
    }
}
