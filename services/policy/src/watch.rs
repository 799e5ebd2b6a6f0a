//! Following the configuration file and the rules.

use crate::{
    config::Config,
    directory::Table,
    metrics::Metrics,
    rules::{Admission, RulesFile},
};
use canopy_runtime::{ConfigFile, Context, clock};
use std::{sync::Arc, time::Duration};
use tokio::time::{MissedTickBehavior, interval};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Takes over what is new in the files, until the service ends.
pub(crate) async fn follow(
    admission: Arc<Admission>,
    metrics: Metrics,
    config: Config,
    rules: Option<RulesFile>,
    cx: Context,
) {
    let started_with = (config.bus.clone(), config.runtime.clone());
    let mut files = (cx.config_file.clone(), rules);
    let mut timer = interval(LOOK);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cx.shutdown.cancelled() => return,
            _ = timer.tick() => {}
        }
        let (admission, metrics, started) =
            (Arc::clone(&admission), metrics.clone(), started_with.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let (mut file, mut rules) = files;
            match file.as_mut().and_then(ConfigFile::changed::<Config>) {
                Some(Ok(config)) => {
                    admission.know(Arc::new(Table::from(&config)));
                    if config.rules.as_deref() != rules.as_ref().map(RulesFile::path) {
                        rules = config.rules.clone().map(RulesFile::new);
                        if rules.is_none() {
                            admission.open(clock::now());
                        }
                    }
                    tracing::info!("the changed configuration is in use");
                    // With `auth`, whoever follows that says whether the whole is in use.
                    if config.auth.is_none() {
                        let whole = started == (config.bus, config.runtime);
                        if !whole {
                            tracing::warn!("`bus` or `runtime` changed too: restart to use that");
                        }
                        metrics.configured(whole);
                    }
                }
                Some(Err(problems)) => {
                    metrics.configured(false);
                    for problem in &problems.0 {
                        tracing::error!(
                            "the changed configuration is not used, the one before stays: {problem}"
                        );
                    }
                }
                None => {}
            }
            read(&admission, rules.as_mut());
            (file, rules)
        });
        files = match looked.await {
            Ok(files) => files,
            Err(error) => {
                tracing::error!(%error, "the files are not followed any more; restart policy");
                return;
            }
        };
    }
}

/// Reads the rules, if they are others than before.
pub(crate) fn read(admission: &Admission, rules: Option<&mut RulesFile>) {
    if let Some(rules) = rules
        && let Some(text) = rules.changed()
    {
        admission.read(rules.path(), text, clock::now());
    }
}
