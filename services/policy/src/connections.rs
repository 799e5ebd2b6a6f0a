//! Ends the connections of tokens that are no longer in force.
//!
//! Every instance does so when it hears of a change, and for all connections every half minute and
//! at its start: an instance that dies in the middle, or a connection that was decided about just
//! before the change, is made good by another look.

use crate::{
    metrics::Metrics,
    tokens::{Kept, Tokens, user},
};
use canopy_api::Principal;
use canopy_bus::{Bus, system};
use canopy_runtime::{Context, clock};
use futures::StreamExt as _;
use std::{
    collections::BTreeSet,
    pin::pin,
    time::{Duration, UNIX_EPOCH},
};
use tokio::time::{MissedTickBehavior, interval, sleep};

/// How often all connections are looked at.
const ALL: Duration = Duration::from_secs(30);
/// After a change: when a person's connections are looked at. The server waits 2 s for a decision,
/// so one made on the old state may come true until then.
const AFTER: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_millis(2500),
];
/// How long one look may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Ends what has to end, until the service does.
#[derive(Clone, Debug)]
pub(crate) struct Connections {
    system: Bus,
    tokens: Tokens,
    metrics: Metrics,
}

impl Connections {
    /// With a connection in SYS.
    pub(crate) fn new(system: Bus, tokens: Tokens, metrics: Metrics) -> Self {
        Self { system, tokens, metrics }
    }

    /// A person's token has changed: ends their connections of other tokens, now and again until no
    /// decision made before can come true.
    pub(crate) async fn token_changed(&self, principal: &Principal) {
        let mut waited = Duration::ZERO;
        for at in AFTER {
            sleep(at.saturating_sub(waited)).await;
            waited = at;
            let ended = self.end(principal).await;
            match ended {
                Ok(0) => {}
                Ok(ended) => tracing::info!(%principal, ended, "connections ended"),
                Err(reason) => {
                    tracing::error!(%principal, %reason, "connections could not be ended");
                }
            }
        }
    }

    async fn end(&self, principal: &Principal) -> Result<usize, String> {
        let stored = self.tokens.get(principal).await.map_err(text)?;
        let (generation, lives) = stored
            .map_or((0, false), |stored| (stored.value.generation(), !stored.value.is_revoked()));
        let mut count = 0;
        // Earlier ones were ended when they ended.
        for one in generation.saturating_sub(1).max(1)..=generation {
            if lives && one == generation {
                continue;
            }
            let of = user(principal, one);
            let found = system::connections(&self.system, Some(&of), LIMIT).await.map_err(text)?;
            system::end(&self.system, &found).await.map_err(text)?;
            count += self.count(found.len());
        }
        Ok(count)
    }

    /// Looks at all connections.
    async fn look(&self) -> Result<usize, String> {
        // In this order: a token made meanwhile is not taken for none.
        let mut found = system::connections(&self.system, None, LIMIT).await.map_err(text)?;
        let tokens = self.tokens.all().await.map_err(text)?;
        let live: BTreeSet<String> =
            tokens.iter().filter(|kept| !kept.is_revoked()).map(Kept::user).collect();
        // People's names have a generation; daemons are not a matter of tokens.
        found.retain(|one| one.user.starts_with("u-") && !live.contains(&one.user));
        system::end(&self.system, &found).await.map_err(text)?;
        Ok(self.count(found.len()))
    }

    fn count(&self, ended: usize) -> usize {
        let by = u64::try_from(ended).unwrap_or(u64::MAX);
        self.metrics.ended.with_label_values(&[] as &[&str]).inc_by(by);
        ended
    }

    /// Follows the changes of other instances, and looks at all connections again and again.
    pub(crate) async fn follow(self, cx: Context, changes: impl futures::Stream<Item = String>) {
        let mut changes = pin!(changes);
        let mut told = true;
        let mut timer = interval(ALL);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cx.shutdown.cancelled() => return,
                key = changes.next(), if told => match key.map(|key| key.parse::<Principal>()) {
                    Some(Ok(principal)) => {
                        let this = self.clone();
                        cx.tasks.spawn(async move { this.token_changed(&principal).await });
                    }
                    Some(Err(error)) => tracing::warn!(%error, "a key of the tokens is nobody's"),
                    None => {
                        tracing::warn!("changes of tokens are not told any more; looking instead");
                        told = false;
                    }
                },
                _ = timer.tick() => match self.look().await {
                    Ok(0) => {}
                    Ok(ended) => tracing::warn!(ended, "connections of tokens not in force ended"),
                    Err(reason) => tracing::warn!(%reason, "connections were not looked at"),
                },
            }
        }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

pub(crate) fn seconds() -> u64 {
    clock::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
