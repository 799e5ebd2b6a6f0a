//! The policy service: who may connect, and what they may do.
//!
//! **Promises:**
//!
//! 1. Nobody is let in whom certificate and token together do not make somebody; in doubt, refused.
//! 2. A token that was regenerated or revoked opens no connection from that moment on, and its live
//!    connections are ended.
//! 3. Several instances agree: what is in force is one value a person, changed by compare and swap.
//! 4. A host's daemon is let in with the certificate its host was enrolled with, and no other; an
//!    enrolment is used in time or void. A revoked host is treated as a revoked token.
//! 5. While it is away nobody new connects and no host is changed, and whoever is connected goes on.
//! 6. No principal has more of the bus than `auth.limits` says: connections above it are refused, others
//!    that exceed it are ended, and only those.
//! 7. With admission rules, what none allows is denied ([`canopy_admission`]). Which host asks is what
//!    the bus says, not what the request says.
//! 8. Changed rules are in force within seconds; rules with a mistake change nothing and are told by log,
//!    metric and readiness; rules that were never good allow nothing.
//!
//! 9. Audit records that a writer was told are stored are stored once, whatever instances there are. What
//!    does not follow from what is stored is stored as well, and told.
//! 9. Nobody gives more than they have: a token, an enrolment or a label reaches no further than the token of
//!    who asks, and nobody changes or ends what reaches further.
//!
//! **Owns:** tokens, enrolments, the answers to the bus server, the rules in force, the stored audit trail, roles
//! of people and labels of hosts (a [`directory::Directory`]). **Must not know:** packages' contents, kernels,
//! hosts' insides.

mod audit;
mod auth;
mod back_off;
mod backup;
pub mod commands;
mod config;
mod connect;
mod connections;
pub mod directory;
mod ended_sessions;
mod enrol;
mod follow;
mod grants;
mod handlers;
mod hosts;
mod limit_enforcer;
mod limits;
mod metrics;
mod page;
mod rate_limit;
mod replicas;
pub mod rules;
mod sessions;
mod teller;
mod tokens;
mod trust;
mod usage;

pub use audit::AuditConfig;
pub use config::{AuthConfig, CaConfig, Config, HostsRule, NkeySeeds};
pub use limits::{LimitsConfig, PrincipalLimits};
pub use metrics::{METRICS, Metrics};

use audit::{Noter, Trails};
use auth::{Auth, SeatNkeys};
use canopy_api::{endpoint::Service, permission::daemon_principal};
use canopy_bus::{Bus, Server};
use canopy_runtime::{Context, clock};
use directory::{Roles, Table};
use rules::{Admission, RulesFile};
use std::sync::Arc;
use tokio::sync::watch;
use trust::Trust;

/// Serves until told to end.
pub async fn start(config: Config, cx: Context) -> anyhow::Result<()> {
    let metrics = Metrics::register(&cx.metrics)?;
    let latch = cx.readiness.latch("admission");
    let table = Arc::new(Table::from(&config));
    let admission = Arc::new(Admission::new(table, metrics.clone(), latch, clock::now()));
    // Before anybody is answered: without them everything would be allowed.
    let (at_start, path) = (Arc::clone(&admission), config.rules.clone());
    let file = tokio::task::spawn_blocking(move || {
        let mut file = path.map(RulesFile::new);
        follow::read(&at_start, file.as_mut());
        file
    })
    .await?;
    let (change, trust) = match &config.auth {
        Some(auth) => {
            let of = auth.clone();
            let trust = tokio::task::spawn_blocking(move || Trust::read(&of)).await??;
            trust.say();
            let (change, trust) = watch::channel(Arc::new(trust));
            (Some(change), Some(trust))
        }
        None => (None, None),
    };
    let followed = follow::follow(
        follow::Followers {
            admission: Arc::clone(&admission),
            trust: change,
            metrics: metrics.clone(),
        },
        config.clone(),
        file,
        cx.clone(),
    );
    cx.tasks.spawn(followed);

    let me = daemon_principal(Service::Policy, None)?;
    // Before anything that is to be recorded.
    let trails = match &config.audit {
        Some(audit) => Some(Trails::open(audit, &me, &cx).await?),
        None => None,
    };
    let noter = trails.as_ref().map_or_else(Noter::none, Trails::noter);
    let nkeys = match config.auth.as_ref().map(|auth| auth.nkeys.clone()) {
        Some(seeds) => Some(tokio::task::spawn_blocking(move || SeatNkeys::read(&seeds)).await??),
        None => None,
    };
    let bus = match &nkeys {
        Some(nkeys) => Bus::connect_with_nkey(&config.bus, me, &nkeys.app).await?,
        None => Bus::connect(&config.bus, me).await?,
    };
    let mut server = Server::new(bus.clone(), Service::Policy, None)
        .health(cx.health())
        .observe(cx.observe())
        .bus_events(cx.bus_events())
        .on_ready(cx.bus.reporter());
    let mut roles = Roles::Configured;
    if let (Some(auth), Some(nkeys), Some(trust)) = (&config.auth, &nkeys, trust) {
        let around = (Arc::clone(&admission), metrics.clone(), noter.clone());
        let start = Auth::start(&config, (auth, nkeys), &bus, &cx, trust, around);
        let Some(auth) = Box::pin(start).await? else { return Ok(()) };
        roles = Roles::Tokens(Box::new(auth.tokens()));
        server = auth.serve_hosts(auth.serve(server));
        server = match config.audit.as_ref().zip(trails) {
            Some((audit, trails)) => {
                let stored = audit::store(audit, (&auth, &bus), &trails, (&cx, &metrics), server);
                let Some(server) = Box::pin(stored).await? else { return Ok(()) };
                server
            }
            None => audit::without(server),
        };
        let mut streams = auth::streams().to_vec();
        if config.audit.is_some() {
            streams.extend(audit::streams());
        }
        let told = (cx.readiness.latch("copies"), metrics.clone());
        let (data, stop) = (auth.data().clone(), cx.shutdown.clone());
        cx.tasks.spawn(replicas::follow(data, streams, auth.replicas(), told, stop));
    } else {
        tracing::warn!(
            "no `auth` in the configuration: the bus server's own says who may connect, and there are no tokens"
        );
        server = audit::without(enrol::without(auth::without(server)));
    }
    handlers::register((server, &bus), &admission, &roles, (&metrics, &noter))
        .serve(cx.shutdown.clone())
        .await?;
    bus.close().await;
    Ok(())
}
