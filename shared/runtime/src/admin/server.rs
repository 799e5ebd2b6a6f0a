//! Serving whoever connects to the admin listener, within bounds that are the same with and without TLS:
//! how many, how long, how much.

use crate::clock;
use axum::Router;
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What a listener takes on, and how long for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Connections at once. When one more comes, the one that has kept its question back for longest goes;
    /// where all have asked, the oldest of those that take their answer for longer than `answer`.
    pub(crate) connections: usize,
    /// How long a client has for its question; and for the handshake before, where there is one.
    pub(crate) question: Duration,
    /// How long a client may take its answer while others wait for a place: so long that nobody who
    /// scrapes would wait for it.
    pub(crate) answer: Duration,
    /// How long a connection lasts at most: question and answer, as slowly as they may go.
    pub(crate) connection: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 64,
            question: Duration::from_secs(5),
            answer: Duration::from_secs(10),
            connection: Duration::from_secs(30),
        }
    }
}

/// Longest question, bytes.
const HEADERS: usize = 16 * 1024;
/// Most headers.
const HEADER_FIELDS: usize = 64;
/// How often a place is looked for while there is none.
const ROOM: Duration = Duration::from_millis(100);
/// What is tried again after an error of the operating system, such as too many open files.
const PAUSE: Duration = Duration::from_secs(1);
/// How long those being answered at the end have.
const ENDING: Duration = Duration::from_secs(2);

/// Answers each client one question, until `stop`; by TLS where there is a configuration of it.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    router: Router,
    bounds: Bounds,
    stop: CancellationToken,
) {
    let connections = Arc::new(Connections::new(bounds));
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the admin listener cannot take a client");
                sleep(PAUSE).await;
                continue;
            }
        };
        let place = tokio::select! {
            () = stop.cancelled() => break,
            place = connections.place() => place,
        };
        let tls = tls.as_ref().map(|config| TlsAcceptor::from(config.borrow().clone()));
        let client = Client { from, router: router.clone(), bounds, stop: stop.clone() };
        tasks.spawn(client.answer(stream, tls, place));
    }
    tasks.close();
    let _ = timeout(ENDING, tasks.wait()).await;
}

/// A client that is answered.
struct Client {
    from: SocketAddr,
    router: Router,
    bounds: Bounds,
    stop: CancellationToken,
}

impl Client {
    /// Answers it, as long as it may take and has its place.
    async fn answer(self, stream: TcpStream, tls: Option<TlsAcceptor>, place: Place) {
        let from = self.from;
        let talk = async {
            match tls {
                None => self.talk(stream, &place).await,
                Some(acceptor) => {
                    match timeout(self.bounds.question, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => self.talk(stream, &place).await,
                        Ok(Err(error)) => tracing::debug!(%from, %error, "no handshake"),
                        Err(_) => tracing::debug!(%from, "no handshake in time"),
                    }
                }
            }
        };
        tokio::select! {
            () = talk => {}
            () = place.gone.cancelled() => {
                tracing::debug!(%from, "a client of the admin listener made room for another");
            }
            () = sleep(self.bounds.connection) => {
                tracing::debug!(%from, "a client of the admin listener took too long");
            }
        }
    }

    async fn talk<I>(&self, io: I, place: &Place)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (asked, router) = (place.asked(), TowerToHyperService::new(self.router.clone()));
        let service = service_fn(move |request: Request<Incoming>| {
            asked();
            hyper::service::Service::call(&router, request)
        });
        let mut connection = std::pin::pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(self.bounds.question)
                .max_buf_size(HEADERS)
                .max_headers(HEADER_FIELDS)
                .keep_alive(false)
                .serve_connection(TokioIo::new(io), service)
        );
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            tracing::debug!(from = %self.from, %error, "a client of the admin listener was not answered");
        }
    }
}

/// Who is connected.
#[derive(Debug)]
struct Connections {
    bounds: Bounds,
    places: Mutex<Places>,
    left: Notify,
}

#[derive(Debug, Default)]
struct Places {
    next: u64,
    /// The oldest first.
    open: BTreeMap<u64, Open>,
}

/// A connection.
#[derive(Debug)]
struct Open {
    since: Instant,
    /// Whether its question is there.
    asked: bool,
    /// Cancelled when another one needs the place more.
    gone: CancellationToken,
}

/// A connection's place; given back when dropped.
struct Place {
    connections: Arc<Connections>,
    number: u64,
    gone: CancellationToken,
}

impl Place {
    /// To be called when the question is there.
    fn asked(&self) -> impl Fn() + Send + Sync + 'static {
        let (connections, number) = (Arc::clone(&self.connections), self.number);
        move || {
            if let Some(open) = connections.lock().open.get_mut(&number) {
                open.asked = true;
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.lock().open.remove(&self.number);
        self.connections.left.notify_one();
    }
}

impl Connections {
    fn new(bounds: Bounds) -> Self {
        Self { bounds, places: Mutex::default(), left: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place, which it makes if need be. For one caller at a time.
    async fn place(self: &Arc<Self>) -> Place {
        loop {
            if let Some(place) = self.take() {
                return place;
            }
            let _ = timeout(ROOM, self.left.notified()).await;
        }
    }

    /// A free place; or none, and whoever has kept one for too long is told to go.
    fn take(self: &Arc<Self>) -> Option<Place> {
        let mut places = self.lock();
        if places.open.len() < self.bounds.connections {
            let (number, gone) = (places.next, CancellationToken::new());
            places.next += 1;
            let since = clock::monotonic();
            places.open.insert(number, Open { since, asked: false, gone: gone.clone() });
            return Some(Place { connections: Arc::clone(self), number, gone });
        }
        let open = || places.open.values().filter(|open| !open.gone.is_cancelled());
        let silent = open().find(|open| !open.asked);
        let slow = || open().find(|open| open.since.elapsed() > self.bounds.answer);
        if let Some(open) = silent.or_else(slow) {
            open.gone.cancel();
        }
        None
    }
}
