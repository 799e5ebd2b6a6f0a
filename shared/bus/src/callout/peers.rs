//! Several instances answer the server's questions, each its share. One that hangs (stopped, swapping) keeps
//! its share until the server drops it, which takes 15 s of silence. So the instances tell each other that
//! they are well, and end the connection of one that does not: the server asks the others from then on. One
//! that goes on again connects again.

use crate::{
    config::BusError,
    connection::{Bus, Link},
    system::{self, Connection, Usage},
};
use canopy_api::permission::{CALLOUT_ALIVE, Seat};
use futures::StreamExt as _;
use std::{collections::HashMap, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// Between two signs of life.
const BEAT: Duration = Duration::from_millis(500);
/// Who says nothing for so long hangs; the server waits about as long for an answer.
const SILENT: Duration = Duration::from_millis(2500);

const LIVES: &str = "lives";
const ENDS: &str = "ends";

/// Which connection of which server an instance answers over.
type Peer = (String, u64);

/// When each of the others was heard the last time.
#[derive(Debug)]
struct Heard {
    peers: HashMap<Peer, Instant>,
    /// When this instance looked the last time.
    looked: Instant,
}

impl Heard {
    /// Who is silent now. Whoever did not look for long, because it hung itself, knows nothing of others.
    fn silent(&mut self, now: Instant, connected: bool) -> Vec<Peer> {
        let late = now.duration_since(self.looked) > 2 * BEAT;
        self.looked = now;
        if late || !connected {
            self.peers.clear();
        }
        let silent = self.peers.iter().filter(|(_, heard)| now.duration_since(**heard) > SILENT);
        let silent: Vec<Peer> = silent.map(|(peer, _)| peer.clone()).collect();
        for peer in &silent {
            self.peers.remove(peer);
        }
        silent
    }
}

/// Tells the other instances that this one is well, and ends the connections of those that hang, until
/// `stop`. `own` is the connection in AUTH, `system` the one in SYS.
///
/// # Errors
/// When the server cannot be asked to tell of the others.
pub async fn watch_peers(own: &Bus, system: &Bus, stop: CancellationToken) -> Result<(), BusError> {
    let defect = |error: &dyn std::fmt::Display| BusError::Defect(error.to_string());
    let mut beats = own.client.subscribe(CALLOUT_ALIVE).await.map_err(|error| defect(&error))?;
    // One that hangs already says nothing.
    let there = system::connections_in(system, Seat::Callout.account(), None, SILENT).await?;
    let info = own.client.server_info();
    let others = there.into_iter().map(|one| (one.server, one.id));
    let others = others.filter(|peer| *peer != (info.server_id.clone(), info.client_id));
    let now = Instant::now();
    let peers = others.map(|peer| (peer, now)).collect();
    let mut timer = interval(BEAT);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Heard { peers, looked: now };
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                // One that ends is none that hangs. If this is lost the others only say so wrongly.
                let _ = own.client.publish(CALLOUT_ALIVE, beat(own, ENDS).into()).await;
                own.flush_at_end().await;
                return Ok(());
            }
            message = beats.next() => {
                let Some(message) = message else { return Ok(()) };
                let info = own.client.server_info();
                match read(&message.payload) {
                    Some((peer, _)) if peer == (info.server_id, info.client_id) => {}
                    Some((peer, false)) => drop(heard.peers.insert(peer, Instant::now())),
                    Some((peer, true)) => drop(heard.peers.remove(&peer)),
                    None => tracing::warn!("a sign of life of another version is left alone"),
                }
            }
            _ = timer.tick() => {
                let connected = own.link() == Link::Connected;
                let hung = heard.silent(Instant::now(), connected);
                if connected {
                    let beat = beat(own, LIVES);
                    own.client.publish(CALLOUT_ALIVE, beat.into()).await.map_err(|error| defect(&error))?;
                }
                let connections: Vec<Connection> = hung
                    .into_iter()
                    .map(|(server, id)| Connection {
                        server,
                        id,
                        user: String::new(),
                        address: String::new(),
                        usage: Usage::default(),
                    })
                    .collect();
                for one in &connections {
                    tracing::warn!(
                        server = %one.server, connection = one.id,
                        "an instance of the policy service hangs, or has ended: it is asked no more"
                    );
                }
                let end = stop.run_until_cancelled(system::end(system, &connections));
                if let Some(Err(error)) = end.await {
                    tracing::warn!(%error, "an instance that hangs could not be disconnected");
                }
            }
        }
    }
}

/// What an instance says of itself.
fn beat(own: &Bus, state: &str) -> String {
    let info = own.client.server_info();
    format!("{} {} {state}", info.server_id, info.client_id)
}

/// Who says it, and whether it ends.
fn read(beat: &[u8]) -> Option<(Peer, bool)> {
    let mut parts = std::str::from_utf8(beat).ok()?.split(' ');
    let peer = (parts.next()?.to_owned(), parts.next()?.parse().ok()?);
    match parts.next()? {
        LIVES => Some((peer, false)),
        ENDS => Some((peer, true)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_peers_are_found_once_and_never_by_one_that_hung() {
        let begin = Instant::now();
        let peer = ("S".to_owned(), 7);
        let at = |millis| begin + Duration::from_millis(millis);
        let mut heard = Heard { peers: HashMap::from([(peer.clone(), begin)]), looked: begin };
        for millis in [500, 1000, 1500, 2000, 2500] {
            assert!(heard.silent(at(millis), true).is_empty(), "{millis}");
        }
        assert_eq!(heard.silent(at(3000), true), std::slice::from_ref(&peer));
        assert!(heard.silent(at(3500), true).is_empty());
        // This instance hung, or had no connection: nobody else is to blame.
        heard.peers.insert(peer.clone(), at(3500));
        assert!(heard.silent(at(9000), true).is_empty());
        heard.peers.insert(peer, at(6000));
        assert!(heard.silent(at(9500), false).is_empty());
    }

    #[test]
    fn a_beat_names_server_and_connection() {
        assert_eq!(read(b"NABC 12 lives"), Some((("NABC".to_owned(), 12), false)));
        assert_eq!(read(b"NABC 12 ends"), Some((("NABC".to_owned(), 12), true)));
        for bad in [&b"NABC"[..], b"NABC 12", b"NABC x lives", b"\xff 1 lives", b""] {
            assert_eq!(read(bad), None);
        }
    }
}
