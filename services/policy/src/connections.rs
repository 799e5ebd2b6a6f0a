//! Ends the connections of tokens and enrolments that are no longer in force.
//!
//! Every instance does so when it hears of a change, and for all connections every half minute and
//! at its start: an instance that dies in the middle, or a connection that was decided about just
//! before the change, is made good by another look.

use crate::{
    config::HostsRule,
    ended_sessions::EndedSessions,
    hosts::{self, Hosts},
    metrics::Metrics,
    rules::Admission,
    tokens::{Kept, Tokens, user},
    trust::Trust,
};
use canopy_api::{
    HostId, Principal,
    endpoint::Service,
    permission::{daemon_of, daemon_principal},
};
use canopy_bus::{
    Bus,
    system::{self, Connection},
};
use canopy_runtime::{Context, clock};
use futures::StreamExt as _;
use std::{
    collections::BTreeSet,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant, UNIX_EPOCH},
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};

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
/// How long after a host's enrolment ended anything is looked for that has to end with it; who is
/// left then is found by the look at all connections.
const LATELY: u64 = 60;
/// How long one look may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Ends what has to end, until the service does.
#[derive(Clone)]
pub(crate) struct Connections {
    /// In SYS.
    pub(crate) system: Bus,
    pub(crate) tokens: Tokens,
    pub(crate) hosts: Hosts,
    pub(crate) trust: watch::Receiver<Arc<Trust>>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) metrics: Metrics,
    /// Those that were counted.
    pub(crate) ended: Arc<EndedSessions>,
}

impl Connections {
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
            count += self.end_all(&found).await?;
        }
        Ok(count)
    }

    /// A host's enrolment may have ended: the same for its daemons.
    pub(crate) async fn host_changed(&self, host: &HostId) {
        let mut waited = Duration::ZERO;
        for at in AFTER {
            sleep(at.saturating_sub(waited)).await;
            waited = at;
            match self.end_host(host).await {
                Ok(None) => return,
                Ok(Some(0)) => {}
                Ok(Some(ended)) => tracing::info!(%host, ended, "connections ended"),
                Err(reason) => tracing::error!(%host, %reason, "connections could not be ended"),
            }
        }
    }

    /// How many were ended; `None` when there is nothing to end.
    async fn end_host(&self, host: &HostId) -> Result<Option<usize>, String> {
        let Some(kept) = self.hosts.get(host).await.map_err(text)? else { return Ok(None) };
        let kept = kept.value;
        let enrolled = self.trust.borrow().hosts == HostsRule::Enrolled;
        let first = kept.generation() <= 1 && !kept.is_revoked();
        // A first connect or a renewal changes what is kept, and ends nothing.
        if first || seconds().saturating_sub(kept.turned()) > LATELY {
            return Ok(None);
        }
        let mut ending = Vec::new();
        for service in Service::ALL.into_iter().filter(|service| service.is_host_local()) {
            let Ok(principal) = daemon_principal(service, Some(host)) else { continue };
            // Earlier ones were ended when they ended.
            let numbered = (kept.generation().saturating_sub(1).max(1)..=kept.generation())
                .map(|generation| hosts::user(&principal, generation));
            ending.extend(numbered);
            if enrolled || kept.is_revoked() {
                ending.push(principal.to_string());
            }
        }
        let live = kept.users();
        ending.retain(|user| !live.contains(user));
        let looks = ending.iter().map(|user| system::connections(&self.system, Some(user), LIMIT));
        let mut count = 0;
        for found in futures::future::join_all(looks).await {
            let found = found.map_err(text)?;
            count += self.end_all(&found).await?;
        }
        Ok(Some(count))
    }

    /// Looks at all connections.
    async fn look(&self) -> Result<usize, String> {
        // In this order: a token made meanwhile is not taken for none.
        let mut found = system::connections(&self.system, None, LIMIT).await.map_err(text)?;
        let tokens = self.tokens.all().await.map_err(text)?;
        let live: BTreeSet<String> =
            tokens.iter().filter(|kept| !kept.is_revoked()).map(Kept::user).collect();
        let before = self.admission.enrolments();
        let hosts = self.hosts.all().await.map_err(text)?;
        self.admission.all_enrolled(&hosts, before);
        let enrolled = self.trust.borrow().hosts == HostsRule::Enrolled;
        let live_hosts: BTreeSet<String> = hosts.iter().flat_map(hosts::Kept::users).collect();
        let revoked: BTreeSet<&HostId> =
            hosts.iter().filter(|kept| kept.is_revoked()).map(hosts::Kept::host).collect();
        found.retain(|one| match one.user.get(..2) {
            // People's names have a generation, and those of enrolled hosts.
            Some("u-") => !live.contains(&one.user),
            Some("h-") if enrolled => !live_hosts.contains(&one.user),
            Some("h-") => host_of(&one.user).is_some_and(|host| revoked.contains(&host)),
            _ => false,
        });
        self.end_all(&found).await
    }

    /// Ends these. How many of them were not ended before: several looks at once find the same.
    async fn end_all(&self, found: &[Connection]) -> Result<usize, String> {
        system::end(&self.system, found).await.map_err(text)?;
        let ended = self.ended.count_new(found.iter().map(Connection::session), Instant::now());
        let by = u64::try_from(ended).unwrap_or(u64::MAX);
        self.metrics.ended.with_label_values(&[] as &[&str]).inc_by(by);
        Ok(ended)
    }

    async fn told_of_host(&self, key: &str) {
        let Ok(host) = key.parse::<HostId>() else {
            tracing::warn!(key, "a key of the hosts is no host's");
            return;
        };
        match self.hosts.get(&host).await {
            Ok(kept) => {
                let labels = kept.and_then(|kept| kept.value.labels().cloned());
                self.admission.enrolled(&host, labels);
            }
            Err(error) => tracing::warn!(%host, %error, "its labels were not read; looking again"),
        }
        self.host_changed(&host).await;
    }

    /// Follows the changes of other instances, and looks at all connections again and again. What it is
    /// at when the service ends is left to the other instances, and to the first look after a start.
    pub(crate) async fn follow(
        self,
        cx: Context,
        (changes, of_hosts): (
            impl futures::Stream<Item = String>,
            impl futures::Stream<Item = String>,
        ),
    ) {
        let (mut changes, mut of_hosts) = (pin!(changes), pin!(of_hosts));
        let (mut told, mut told_of_hosts) = (true, true);
        let mut timer = interval(ALL);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cx.shutdown.cancelled() => return,
                key = changes.next(), if told => match key.map(|key| key.parse::<Principal>()) {
                    Some(Ok(principal)) => {
                        let this = self.clone();
                        let stop = cx.shutdown.clone();
                        cx.tasks.spawn(async move {
                            stop.run_until_cancelled(this.token_changed(&principal)).await
                        });
                    }
                    Some(Err(error)) => tracing::warn!(%error, "a key of the tokens is nobody's"),
                    None => {
                        tracing::warn!("changes of tokens are not told any more; looking instead");
                        told = false;
                    }
                },
                key = of_hosts.next(), if told_of_hosts => {
                    if let Some(key) = key {
                        let this = self.clone();
                        let stop = cx.shutdown.clone();
                        cx.tasks.spawn(async move {
                            stop.run_until_cancelled(this.told_of_host(&key)).await
                        });
                    } else {
                        tracing::warn!("changes of hosts are not told any more; looking instead");
                        told_of_hosts = false;
                    }
                },
                _ = timer.tick() => match cx.shutdown.run_until_cancelled(self.look()).await {
                    None => return,
                    Some(Ok(0)) => {}
                    Some(Ok(ended)) => tracing::warn!(ended, "connections of tokens or enrolments not in force ended"),
                    Some(Err(reason)) => tracing::warn!(%reason, "connections were not looked at"),
                },
            }
        }
    }
}

/// `h-web1-loader/3` is web1's.
fn host_of(user: &str) -> Option<HostId> {
    let principal: Principal = user.split('/').next()?.parse().ok()?;
    daemon_of(&principal)?.1
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

pub(crate) fn seconds() -> u64 {
    clock::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
