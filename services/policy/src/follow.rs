//! Following the configuration file and the rules.

use crate::{
    config::{AuthConfig, Config},
    directory::Table,
    metrics::Metrics,
    rules::{Admission, RulesFile},
    trust::Trust,
};
use canopy_runtime::{ConfigFile, Context, clock};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Who is told of what is new.
#[derive(Clone)]
pub(crate) struct Followers {
    pub(crate) admission: Arc<Admission>,
    /// Where the service decides who connects.
    pub(crate) trust: Option<watch::Sender<Arc<Trust>>>,
    pub(crate) metrics: Metrics,
}

/// Takes over what is new in the files, until the service ends.
pub(crate) async fn follow(
    followers: Followers,
    started_with: Config,
    rules: Option<RulesFile>,
    cx: Context,
) {
    followers.metrics.configured(true);
    let mut keys = Keys::of(&started_with);
    let started_with = Arc::new(started_with);
    let mut files = (cx.config_file.clone(), rules);
    let mut timer = interval(LOOK);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cx.shutdown.cancelled() => return,
            _ = timer.tick() => {}
        }
        let (followers, started_with) = (followers.clone(), Arc::clone(&started_with));
        let looked = tokio::task::spawn_blocking(move || {
            let (mut file, mut rules) = files;
            let mut keys = keys;
            if let Some(loaded) = file.as_mut().and_then(ConfigFile::changed::<Config>) {
                let used = loaded
                    .map_err(|problems| problems.to_string())
                    .and_then(|config| followers.take_over(&config, &mut rules).map(|()| config));
                match used {
                    Ok(config) => {
                        keys = Keys::of(&config);
                        followers.metrics.configured(is_whole(&started_with, config));
                    }
                    Err(problem) => {
                        followers.metrics.configured(false);
                        tracing::error!(
                            "the changed configuration is not used, the one before stays: {problem}"
                        );
                    }
                }
            }
            keys.read_again(followers.trust.as_ref());
            read(&followers.admission, rules.as_mut());
            (file, rules, keys)
        });
        (files, keys) = match looked.await {
            Ok((file, rules, keys)) => ((file, rules), keys),
            Err(error) => {
                tracing::error!(%error, "the files are not followed any more; restart policy");
                return;
            }
        };
    }
}

/// The keys of the configuration in use, which may change where they are kept.
struct Keys {
    auth: Option<AuthConfig>,
    read: Instant,
}

impl Keys {
    fn of(config: &Config) -> Self {
        Self { auth: config.auth.clone(), read: Instant::now() }
    }

    /// Uses other keys, if there are others and all can be read.
    fn read_again(&mut self, trust: Option<&watch::Sender<Arc<Trust>>>) {
        let (Some(auth), Some(trust)) = (&self.auth, trust) else { return };
        if self.read.elapsed() < Duration::from_secs(auth.secrets_seconds) {
            return;
        }
        match Trust::read(auth) {
            Ok(new) if new.is_same(&trust.borrow()) => {}
            Ok(new) => {
                new.say();
                trust.send_replace(Arc::new(new));
            }
            Err(error) => tracing::error!("the keys of before stay in use: {error:#}"),
        }
        self.read = Instant::now();
    }
}

impl Followers {
    /// Uses a configuration, as far as that goes without a restart; whole or not at all.
    fn take_over(&self, config: &Config, rules: &mut Option<RulesFile>) -> Result<(), String> {
        if let Some(trust) = &self.trust {
            let auth = config.auth.as_ref().ok_or("`auth` is gone; restart without it")?;
            let new = Trust::read(auth).map_err(|error| format!("{error:#}"))?;
            new.say();
            trust.send_replace(Arc::new(new));
        }
        self.admission.know(Arc::new(Table::from(config)));
        if config.rules.as_deref() != rules.as_ref().map(RulesFile::path) {
            *rules = config.rules.clone().map(RulesFile::new);
            if rules.is_none() {
                self.admission.open(clock::now());
            }
        }
        tracing::info!("the changed configuration is in use");
        Ok(())
    }
}

/// Whether nothing changed that only a restart can use.
fn is_whole(running: &Config, mut new: Config) -> bool {
    new.rules.clone_from(&running.rules);
    new.people.clone_from(&running.people);
    new.hosts.clone_from(&running.hosts);
    if let (Some(running), Some(new)) = (&running.auth, &mut new.auth) {
        new.signing_keys.clone_from(&running.signing_keys);
        new.people.clone_from(&running.people);
        new.ca.clone_from(&running.ca);
        new.hosts = running.hosts;
        new.secrets_seconds = running.secrets_seconds;
        new.clock_skew_seconds = running.clock_skew_seconds;
        new.limits.clone_from(&running.limits);
    }
    let same = new == *running;
    if !same {
        tracing::warn!("the configuration has changes that need a restart");
    }
    same
}

/// Reads the rules, if they are others than before.
pub(crate) fn read(admission: &Admission, rules: Option<&mut RulesFile>) {
    if let Some(rules) = rules
        && let Some(text) = rules.changed()
    {
        admission.read(rules.path(), text, clock::now());
    }
}
