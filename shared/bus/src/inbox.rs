//! Where answers to requests arrive: one subscription for each responder that is called, and for each
//! request a subject that nobody can guess.
//!
//! Only a responder may publish to its own part of an inbox, so a subscription for each responder hears
//! nobody else; one to the whole inbox would let every host push messages at a caller until the server
//! cuts it. A subscription a request would be as safe, and costs the server a change of its routing
//! tables twice a request.
//!
//! The server's refusal of a request names the request's subject only, so everybody who waits for an answer
//! to a request with that subject is told.
//!
//! Subscriptions to central services stay: there are few. One to a host ends when nothing has been
//! waiting for it for a while, so that a host that was asked once cannot go on sending.

use crate::{config::BusError, connection::Bus, header};
use async_nats::{Message, StatusCode, Subject, Subscriber};
use canopy_api::subject;
use futures::StreamExt as _;
use std::{
    collections::HashMap,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{OnceCell, oneshot},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

/// How long the inbox of a host stays open after the last request to it.
const HOST_IDLE: Duration = Duration::from_secs(2);
/// Inboxes of hosts that stay open although nothing waits for them: the server bounds subscriptions.
const IDLE_HOSTS: usize = 64;

/// How long a responder's default timeouts are believed: it may be replaced by another release, and clocks are
/// compared where a request names its deadline.
const DEFAULTS_BELIEVED: Duration = Duration::from_mins(1);

/// Requests that wait for an answer, and the subscriptions it comes by.
#[derive(Default)]
pub(crate) struct Inbox {
    /// By the number in the subject the answer comes to.
    waiting: Mutex<HashMap<u128, Waiting>>,
    /// By responder.
    responders: Mutex<HashMap<String, Arc<Listening>>>,
    ended: CancellationToken,
}

impl Drop for Inbox {
    fn drop(&mut self) {
        // A subscription keeps its connection open.
        self.ended.cancel();
    }
}

/// What comes of a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// An answer.
    Answered(Message),
    /// The server did not take the request.
    Refused,
}

/// A request in flight.
struct Waiting {
    tell: oneshot::Sender<Outcome>,
    /// Where the answer comes to.
    inbox: Subject,
    /// Where the request goes to.
    request: Subject,
    /// Whether it was sent more than once.
    is_repeated: bool,
    /// The first error in answer to a request that was sent more than once, and when it came.
    error: Option<(Instant, Message)>,
}

/// The subscription to one responder's part of our inbox.
struct Listening {
    subscribed: OnceCell<()>,
    stop: CancellationToken,
    /// Requests in flight, and when the last of them ended.
    users: Mutex<(usize, Instant)>,
    /// By verb: how long the responder takes a caller to wait that does not say so, and when it said this.
    default_timeouts: Mutex<HashMap<&'static str, (Duration, Instant)>>,
    /// Whether the responder was there when it was last asked.
    is_reachable: AtomicBool,
}

impl Listening {
    fn new(parent: &CancellationToken) -> Self {
        Self {
            subscribed: OnceCell::new(),
            stop: parent.child_token(),
            users: Mutex::new((0, Instant::now())),
            default_timeouts: Mutex::default(),
            is_reachable: AtomicBool::new(false),
        }
    }

    fn users(&self) -> MutexGuard<'_, (usize, Instant)> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn default_timeouts(&self) -> MutexGuard<'_, HashMap<&'static str, (Duration, Instant)>> {
        self.default_timeouts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle_for(&self) -> Option<Duration> {
        let (count, since) = *self.users();
        (count == 0).then(|| since.elapsed())
    }
}

/// A request that waits. Whatever comes after it is dropped goes nowhere.
pub(crate) struct Expected<'a> {
    inbox: &'a Inbox,
    number: u128,
    responder: &'a str,
    listening: Arc<Listening>,
    /// Where the answer comes to.
    pub(crate) reply: Subject,
    pub(crate) outcome: oneshot::Receiver<Outcome>,
}

impl Expected<'_> {
    /// Whether the responder's part of the inbox is subscribed to.
    pub(crate) fn is_open(&self) -> bool {
        self.listening.subscribed.initialized()
    }

    /// Subscribes to the responder's part of the inbox, the first time.
    pub(crate) async fn open(&self, bus: &Bus) -> Result<(), BusError> {
        let Self { responder, listening, .. } = self;
        let opened = listening.subscribed.get_or_try_init(|| async {
            let pattern = subject::inbox(bus.principal().as_str(), responder);
            let messages = bus.client.subscribe(pattern).await.map_err(|_| BusError::Closed)?;
            // The connection's last user ends it, not this task.
            let shared = Arc::downgrade(&bus.shared);
            let (responder, listening) = ((*responder).to_owned(), Arc::clone(listening));
            tokio::spawn(async move {
                let deliver = |message: Message| {
                    let Some(shared) = shared.upgrade() else { return false };
                    shared.inbox.deliver(message);
                    true
                };
                let forget =
                    || shared.upgrade().is_none_or(|shared| shared.inbox.close_idle(&responder));
                listen(messages, &listening, is_host(&responder), deliver, forget).await;
            });
            Ok(())
        });
        opened.await.copied()
    }
}

impl Expected<'_> {
    /// Whether the responder said lately that it takes callers of `verb` to wait so long that do not say how
    /// long they wait.
    pub(crate) fn is_default_timeout(&self, verb: &'static str, timeout: Duration) -> bool {
        self.listening.default_timeouts().get(verb).is_some_and(|(default, said)| {
            *default == timeout && said.elapsed() < DEFAULTS_BELIEVED
        })
    }

    /// Whether the responder was there when it was last asked.
    pub(crate) fn is_reachable(&self) -> bool {
        self.listening.is_reachable.load(Ordering::Relaxed)
    }

    /// The responder is there, or is not.
    pub(crate) fn set_reachable(&self, is_reachable: bool) {
        self.listening.is_reachable.store(is_reachable, Ordering::Relaxed);
    }

    /// The error that came at least so long ago in answer to a request that was sent more than once.
    pub(crate) fn take_error(&self, age: Duration) -> Option<Message> {
        let mut all = self.inbox.waiting();
        let error = &mut all.get_mut(&self.number)?.error;
        error.take_if(|(came, _)| came.elapsed() >= age).map(|(_, message)| message)
    }

    /// The request is sent again. That nobody serves it just then does not mean that the first is not worked on,
    /// and an error may say no more than that another instance was quicker.
    pub(crate) fn set_repeated(&self) {
        if let Some(waiting) = self.inbox.waiting().get_mut(&self.number) {
            waiting.is_repeated = true;
        }
    }

    /// The responder said how long it takes callers of `verb` to wait.
    pub(crate) fn set_default_timeout(&self, verb: &'static str, timeout: Duration) {
        self.listening.default_timeouts().insert(verb, (timeout, Instant::now()));
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.inbox.waiting().remove(&self.number);
        self.inbox.release(self.responder, &self.listening);
    }
}

/// Delivers what comes, until told to stop, or `forget` agrees that nothing is waited for any more.
async fn listen(
    mut messages: Subscriber,
    listening: &Listening,
    ends_idle: bool,
    deliver: impl Fn(Message) -> bool,
    forget: impl Fn() -> bool,
) {
    let mut timer = interval(HOST_IDLE);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // One for all messages: each registers with the token.
    let mut stopped = pin!(listening.stop.cancelled());
    loop {
        tokio::select! {
            biased;
            () = &mut stopped => return,
            // Before messages: a host that goes on sending does not keep it open.
            _ = timer.tick(), if ends_idle => {
                if listening.idle_for().is_some_and(|idle| idle >= HOST_IDLE) && forget() {
                    return;
                }
            }
            message = messages.next() => match message {
                Some(message) => if !deliver(message) { return },
                None => return,
            },
        }
    }
}

fn is_host(responder: &str) -> bool {
    responder.starts_with("h-")
}

impl Inbox {
    /// Waits for what `responder` answers `me` to a request with subject `request`.
    pub(crate) fn expect<'a>(
        &'a self,
        me: &str,
        responder: &'a str,
        request: &Subject,
    ) -> Expected<'a> {
        let number = rand::random::<u128>();
        let reply = Subject::from(format!("_INBOX.{me}.{responder}.{number:032x}"));
        let (tell, outcome) = oneshot::channel();
        let waiting = Waiting {
            tell,
            inbox: reply.clone(),
            request: request.clone(),
            is_repeated: false,
            error: None,
        };
        self.waiting().insert(number, waiting);
        let listening = {
            let mut responders = self.responders();
            let listening = if let Some(listening) = responders.get(responder) {
                Arc::clone(listening)
            } else {
                let new = Arc::new(Listening::new(&self.ended));
                responders.insert(responder.to_owned(), Arc::clone(&new));
                new
            };
            // Still under the lock: who closes idle ones sees it.
            listening.users().0 += 1;
            listening
        };
        Expected { inbox: self, number, responder, listening, reply, outcome }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u128, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn responders(&self) -> MutexGuard<'_, HashMap<String, Arc<Listening>>> {
        self.responders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deliver(&self, message: Message) {
        let number = message.subject.rsplit('.').next();
        let Some(number) = number.and_then(|text| u128::from_str_radix(text, 16).ok()) else {
            return;
        };
        let waiting = {
            let mut all = self.waiting();
            // Others than the responder that was asked may know the number.
            let waiting = all.get_mut(&number).filter(|one| one.inbox == message.subject);
            let Some(waiting) = waiting else { return };
            if waiting.is_repeated && message.status == Some(StatusCode::NO_RESPONDERS) {
                return;
            }
            if waiting.is_repeated
                && header::get(message.headers.as_ref(), header::ERROR_CODE).is_some()
            {
                waiting.error.get_or_insert_with(|| (Instant::now(), message));
                return;
            }
            all.remove(&number)
        };
        if let Some(waiting) = waiting {
            // Who has given up meanwhile does not mind.
            let _ = waiting.tell.send(Outcome::Answered(message));
        }
    }

    /// The server did not take requests with this subject.
    pub(crate) fn refuse(&self, request: &str) {
        let mut all = self.waiting();
        let refused = all.extract_if(|_, waiting| waiting.request.as_str() == request);
        for (_, waiting) in refused {
            // Who has given up meanwhile does not mind.
            let _ = waiting.tell.send(Outcome::Refused);
        }
    }

    fn release(&self, responder: &str, listening: &Listening) {
        {
            let mut users = listening.users();
            users.0 = users.0.saturating_sub(1);
            if users.0 > 0 {
                return;
            }
            users.1 = Instant::now();
        }
        if is_host(responder) && self.responders().len() > IDLE_HOSTS {
            self.close_idle(responder);
        }
    }

    /// Ends the subscription to a responder, unless a request waits for it; whether it ended.
    fn close_idle(&self, responder: &str) -> bool {
        let mut responders = self.responders();
        match responders.get(responder) {
            Some(listening) if listening.idle_for().is_none() => false,
            Some(listening) => {
                listening.stop.cancel();
                responders.remove(responder);
                true
            }
            None => true,
        }
    }
}
