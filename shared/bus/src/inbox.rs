//! Where answers to requests arrive: one subscription to our own inboxes, and for each request a
//! subject that nobody can guess.
//!
//! A subscription a request would be as safe, and costs the server a change of its routing tables
//! twice a request.

use crate::{config::BusError, connection::Bus};
use async_nats::Message;
use futures::StreamExt as _;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::{OnceCell, oneshot};
use tokio_util::sync::CancellationToken;

/// Requests that wait for an answer, by the subject it comes to.
#[derive(Default)]
pub(crate) struct Inbox {
    subscribed: OnceCell<()>,
    waiting: Mutex<HashMap<String, oneshot::Sender<Message>>>,
    ended: CancellationToken,
}

impl Drop for Inbox {
    fn drop(&mut self) {
        // A subscription keeps its connection open.
        self.ended.cancel();
    }
}

/// A request that waits. Whatever comes after it is dropped goes nowhere.
pub(crate) struct Expected<'a> {
    inbox: &'a Inbox,
    subject: &'a str,
    pub(crate) answer: oneshot::Receiver<Message>,
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.inbox.take(self.subject);
    }
}

impl Inbox {
    /// Waits for what comes to `subject`.
    pub(crate) fn expect<'a>(&'a self, subject: &'a str) -> Expected<'a> {
        let (tell, answer) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert(subject.to_owned(), tell);
        Expected { inbox: self, subject, answer }
    }

    fn take(&self, subject: &str) -> Option<oneshot::Sender<Message>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(subject)
    }

    /// Subscribes, the first time.
    pub(crate) async fn open(&self, bus: &Bus) -> Result<(), BusError> {
        let opened = self.subscribed.get_or_try_init(|| async {
            let all = format!("_INBOX.{}.>", bus.principal());
            let mut messages = bus.client.subscribe(all).await.map_err(|_| BusError::Closed)?;
            // The connection's last user ends it, not this task.
            let (shared, ended) = (Arc::downgrade(&bus.shared), self.ended.clone());
            tokio::spawn(async move {
                while let Some(Some(message)) = ended.run_until_cancelled(messages.next()).await {
                    let Some(shared) = shared.upgrade() else { return };
                    if let Some(tell) = shared.inbox.take(&message.subject) {
                        // Who has given up meanwhile does not mind.
                        let _ = tell.send(message);
                    }
                }
            });
            Ok(())
        });
        opened.await.copied()
    }
}
