//! What `/metrics` answers: gathered once for all who wait, and sent piece by piece.

use crate::context::Context;
use axum::body::{Body, Bytes};
use std::{
    convert::Infallible,
    io::{self, Write},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::Mutex, time::timeout};

/// Longest answer, bytes. Every service's metrics are bounded far below it.
const LONGEST: usize = 32 << 20;
/// How long gathering may take: a scrape that is answered later is answered to nobody.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes that are handed to the connection at a time.
const PIECE: usize = 64 * 1024;

/// Gathers one at a time. Whoever comes while that goes on shares the next answer with all others who do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scrapes(Arc<Mutex<Option<Scrape>>>);

#[derive(Debug)]
struct Scrape {
    begun: Instant,
    text: Bytes,
}

impl Scrapes {
    /// The metrics as text, gathered after this was called; or why not.
    pub(crate) async fn gather(&self, cx: &Context) -> Result<Bytes, String> {
        let came = crate::clock::monotonic();
        let late = || format!("the metrics could not be read within {} s", PATIENCE.as_secs());
        let mut last =
            timeout(PATIENCE, Arc::clone(&self.0).lock_owned()).await.map_err(|_| late())?;
        if let Some(scrape) = last.as_ref().filter(|scrape| scrape.begun >= came) {
            return Ok(scrape.text.clone());
        }
        let cx = cx.clone();
        // Collectors may read kernel maps: not on a thread that others wait for. The turn is given back
        // when this has really ended, whoever still waits for it.
        let gathering = tokio::task::spawn_blocking(move || {
            let begun = crate::clock::monotonic();
            *last = None;
            cx.common.set_uptime(cx.readiness.uptime());
            let text = text(&cx.metrics)?;
            // Kept while others wait for it; the next one takes its place.
            *last = Some(Scrape { begun, text: text.clone() });
            Ok(text)
        });
        match timeout(PATIENCE, gathering).await {
            Ok(Ok(gathered)) => gathered,
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(late()),
        }
    }
}

fn text(metrics: &prometheus::Registry) -> Result<Bytes, String> {
    let mut text = Limited(Vec::new());
    prometheus::Encoder::encode(&prometheus::TextEncoder::new(), &metrics.gather(), &mut text)
        .map_err(|error| error.to_string())?;
    Ok(Bytes::from(text.0))
}

/// As a body in pieces, so that a slow client keeps no copy of its own.
pub(crate) fn body(mut text: Bytes) -> Body {
    let pieces = std::iter::from_fn(move || {
        let piece = text.split_to(PIECE.min(text.len()));
        (!piece.is_empty()).then_some(Ok::<_, Infallible>(piece))
    });
    Body::from_stream(futures::stream::iter(pieces))
}

/// Text that does not grow beyond [`LONGEST`].
struct Limited(Vec<u8>);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > LONGEST {
            let said = format!("the metrics are longer than {LONGEST} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, said));
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
