//! A log: entries by subject, appended by compare and swap, never changed, removed by age and room only.

use super::{LIMIT, failed};
use crate::{config::BusError, connection::Bus, retry};
use async_nats::{
    HeaderMap,
    jetstream::{
        self, Context,
        consumer::{AckPolicy, DeliverPolicy, pull},
        context::PublishErrorKind,
        stream::{Config, DiscardPolicy, LastRawMessageErrorKind, StorageType, Stream},
    },
};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use std::{collections::BTreeMap, fmt, time::Duration};
use tokio::time::timeout;

/// What an entry says of itself beside its content.
const NOTE: &str = "Canopy-Note";
/// Bytes of all entries of its subject up to it, as whoever appends counts them.
const TOTAL: &str = "Canopy-Total";

/// Entries that are read at once.
const PART: usize = 500;

/// A log, as it is to be.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Its name.
    pub name: &'static str,
    /// Which subjects it has, with wildcards.
    pub subjects: String,
    /// Entries go when they are older.
    pub max_age: Duration,
    /// The oldest entries go when there are more bytes.
    pub max_bytes: u64,
    /// The oldest entries of a subject go when it has more.
    pub max_of_subject: u64,
    /// How many servers of a cluster keep it, where it is made; one that is there stays as it is
    /// ([`super::ensure_replicas`]).
    pub replicas: usize,
}

/// A log.
#[derive(Clone)]
pub struct Log {
    context: Context,
    stream: Stream,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("name", &self.stream.cached_info().config.name)
            .finish_non_exhaustive()
    }
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its subject.
    pub subject: String,
    /// Its number in the log.
    pub number: u64,
    /// Its content.
    pub content: Bytes,
    /// What was noted of it.
    pub note: String,
    /// Bytes of all entries of its subject up to it, as whoever appended counted them; 0 where nobody did.
    pub total: u64,
    /// When it was appended, seconds since 1970.
    pub at: u64,
}

/// What became of appending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Append {
    /// It has this number.
    Done(u64),
    /// Somebody else has appended to the subject meanwhile; nothing was done.
    Overtaken,
}

impl Log {
    /// Opens a log, makes it where there is none, and has it bounded as asked for.
    ///
    /// # Errors
    /// When the store does not.
    pub async fn open(bus: &Bus, config: &LogConfig) -> Result<Self, BusError> {
        let mut context = jetstream::new(bus.client.as_ref().clone());
        context.set_timeout(LIMIT);
        // More copies than the cluster has servers for would be refused, and the bounds with them.
        let replicas = match context.get_stream(config.name).await {
            Ok(stream) => stream.cached_info().config.num_replicas,
            Err(_) => config.replicas,
        };
        let number = |of: u64| i64::try_from(of).unwrap_or(i64::MAX);
        let wanted = Config {
            name: config.name.to_owned(),
            subjects: vec![config.subjects.clone()],
            max_age: config.max_age,
            max_bytes: number(config.max_bytes),
            max_messages_per_subject: number(config.max_of_subject),
            discard: DiscardPolicy::Old,
            storage: StorageType::File,
            num_replicas: replicas,
            // Nobody takes single entries out, this service included.
            deny_delete: true,
            deny_purge: true,
            ..Config::default()
        };
        let info = context.create_or_update_stream(wanted).await.map_err(|error| failed(&error))?;
        let stream = context.get_stream(&info.config.name).await.map_err(|error| failed(&error))?;
        Ok(Self { context, stream })
    }

    /// The last entry of a subject.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn last(&self, subject: &str) -> Result<Option<LogEntry>, BusError> {
        retry::repeated(|_| async {
            found(self.stream.get_last_raw_message_by_subject(subject).await)
        })
        .await
    }

    /// Appends, if the last entry of the subject has this number (0: there is none). `note` is kept
    /// beside it, and `total`, the bytes of all entries of the subject up to it.
    ///
    /// # Errors
    /// When the store does not take it. It may have all the same, where it is no answer that came.
    pub async fn append(
        &self,
        subject: String,
        content: Vec<u8>,
        (note, total): (&str, u64),
        after: u64,
    ) -> Result<Append, BusError> {
        let mut headers = HeaderMap::new();
        headers.insert(TOTAL, total.to_string().as_str());
        headers.insert(
            async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE,
            after.to_string().as_str(),
        );
        retry::repeated(|again| {
            let (subject, content, headers) = (subject.clone(), content.clone(), headers.clone());
            async move {
                let appended =
                    self.publish(subject.clone(), content.clone(), note, headers).await?;
                if appended != Append::Overtaken || !again {
                    return Ok(appended);
                }
                // After an attempt of which no answer came that may have been this one.
                let last = found(self.stream.get_last_raw_message_by_subject(&subject).await)?;
                let own = last.filter(|last| *last.content == *content && last.note == note);
                Ok(own.map_or(Append::Overtaken, |last| Append::Done(last.number)))
            }
        })
        .await
    }

    /// Appends, unless there was an entry with this id within two minutes.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub async fn append_once(
        &self,
        subject: String,
        content: Vec<u8>,
        note: &str,
        id: &str,
    ) -> Result<(), BusError> {
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_MESSAGE_ID, id);
        retry::repeated(|_| self.publish(subject.clone(), content.clone(), note, headers.clone()))
            .await
            .map(drop)
    }

    async fn publish(
        &self,
        subject: String,
        content: Vec<u8>,
        note: &str,
        mut headers: HeaderMap,
    ) -> Result<Append, BusError> {
        if !note.is_empty() {
            headers.insert(NOTE, note);
        }
        let sent = self.context.publish_with_headers(subject, headers, content.into());
        let sent = sent.await.map_err(|error| failed(&error))?;
        match sent.await {
            Ok(ack) => Ok(Append::Done(ack.sequence)),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => {
                Ok(Append::Overtaken)
            }
            Err(error) => Err(failed(&error)),
        }
    }

    /// Bytes of the entries of a subject that are there, as whoever appended them counted.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn total_of(&self, subject: &str) -> Result<u64, BusError> {
        let Some(last) = self.last(subject).await? else { return Ok(0) };
        let first = retry::repeated(|_| async {
            match self.stream.get_first_raw_message_by_subject(subject, 1).await {
                Ok(message) => Ok(total(&message.headers)),
                Err(error) => Err(failed(&error)),
            }
        });
        Ok(last.total.saturating_sub(first.await?))
    }

    /// Numbers of the oldest entry and the newest.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn bounds(&self) -> Result<(u64, u64), BusError> {
        let info = retry::repeated(|_| async {
            self.stream.get_info().await.map_err(|error| failed(&error))
        });
        let info = info.await?;
        Ok((info.state.first_sequence, info.state.last_sequence))
    }

    /// The subjects there are that fit, with how many entries each has.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn subjects(&self, pattern: &str) -> Result<BTreeMap<String, usize>, BusError> {
        retry::repeated(|_| async {
            let info = self.stream.info_with_subjects(pattern).await;
            info.map_err(|error| failed(&error))?
                .try_collect()
                .await
                .map_err(|error| failed(&error))
        })
        .await
    }

    /// Entries from one number to before another whose subjects fit one of these patterns, at most
    /// `most` of them.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn read(
        &self,
        patterns: Vec<String>,
        (from, before): (u64, u64),
        most: usize,
    ) -> Result<Vec<LogEntry>, BusError> {
        retry::repeated(|_| self.read_once(patterns.clone(), (from, before), most)).await
    }

    async fn read_once(
        &self,
        patterns: Vec<String>,
        (from, before): (u64, u64),
        most: usize,
    ) -> Result<Vec<LogEntry>, BusError> {
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from.max(1) },
            ack_policy: AckPolicy::None,
            filter_subjects: patterns,
            inactive_threshold: Duration::from_secs(10),
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let consumer = self.stream.create_consumer(config).await.map_err(|error| failed(&error))?;
        let name = consumer.cached_info().name.clone();
        let mut entries = Vec::new();
        // The server would send on beyond the end that is asked for: not more than a part too many.
        'parts: while entries.len() < most {
            let part = PART.min(most - entries.len());
            let messages = consumer.fetch().max_messages(part).messages();
            let mut messages = messages.await.map_err(|error| failed(&error))?;
            let mut came = 0;
            while let Some(message) =
                timeout(LIMIT, messages.next()).await.map_err(|error| failed(&error))?
            {
                let message = message.map_err(|error| failed(&error))?;
                let info = message.info().map_err(|error| failed(&error))?;
                let (number, at) = (info.stream_sequence, seconds(info.published.unix_timestamp()));
                if number >= before {
                    break 'parts;
                }
                came += 1;
                let (message, _) = message.split();
                let headers = message.headers.unwrap_or_default();
                entries.push(LogEntry {
                    subject: message.subject.to_string(),
                    number,
                    content: message.payload,
                    note: note(&headers),
                    total: total(&headers),
                    at,
                });
            }
            if came < part {
                break;
            }
        }
        // It would go by itself soon.
        let _ = self.stream.delete_consumer(&name).await;
        Ok(entries)
    }
}

fn seconds(unix: i64) -> u64 {
    u64::try_from(unix).unwrap_or(0)
}

fn note(headers: &HeaderMap) -> String {
    headers.get(NOTE).map(|note| note.as_str().to_owned()).unwrap_or_default()
}

fn total(headers: &HeaderMap) -> u64 {
    headers.get(TOTAL).and_then(|total| total.as_str().parse().ok()).unwrap_or(0)
}

fn found(
    asked: Result<
        jetstream::message::StreamMessage,
        async_nats::error::Error<LastRawMessageErrorKind>,
    >,
) -> Result<Option<LogEntry>, BusError> {
    match asked {
        Ok(message) => Ok(Some(LogEntry {
            subject: message.subject.to_string(),
            number: message.sequence,
            content: message.payload,
            note: note(&message.headers),
            total: total(&message.headers),
            at: seconds(message.time.unix_timestamp()),
        })),
        Err(error) if matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound) => Ok(None),
        Err(error) => Err(failed(&error)),
    }
}
