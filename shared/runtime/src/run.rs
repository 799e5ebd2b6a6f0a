//! How a service starts and ends.

use crate::{
    VERSION, admin,
    args::{self, Command},
    clock,
    config::{self, ServiceConfig},
    config_file::ConfigFile,
    context::Context,
    health::Latch,
    metrics::{self, MetricSpec},
    named_files::NamedFiles,
    telemetry::Telemetry,
};
use anyhow::Context as _;
use canopy_api::{endpoint::Service, problem::Problems, text::shown_lines};
use canopy_secrets::{Account, is_root};
use schemars::schema_for;
use serde_json::json;
use std::{io::Write as _, path::Path, process::ExitCode, time::Duration};
use tokio::signal::unix::{SignalKind, signal};

/// How long the work in flight may take to end after a signal; and background work with it.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(15);

/// How long background work has at least.
const BACKGROUND_LIMIT: Duration = Duration::from_secs(1);

/// When a process ends after a signal, whatever hangs in it: before the 20 s of the systemd units are over.
const END_LIMIT: Duration = Duration::from_secs(18);

/// How often it is looked whether work that blocks gets a thread, and how long it may wait for one.
const THREADS_INTERVAL: Duration = Duration::from_secs(5);
const THREADS_LIMIT: Duration = Duration::from_secs(2);

/// The command line did not make sense, or the configuration is wrong.
const EXIT_USAGE: u8 = 2;

/// Runs a service: reads its arguments and configuration, starts logs, traces and the admin
/// listener, runs `start` until it ends or SIGTERM or SIGINT arrives, then waits for the work in
/// flight (at most 15 s, and 18 s in all even where a thread hangs). Exit codes: 0 ended as asked, 1 failed, 2 wrong arguments or
/// configuration.
pub fn run<C, F, Fut>(service: Service, metrics: &'static [MetricSpec], start: F) -> ExitCode
where
    C: ServiceConfig,
    F: FnOnce(C, Context) -> Fut + Send + 'static,
    Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let parsed = args::parse(std::env::args_os().skip(1)).and_then(|(command, owner)| {
        if let Some(owner) = owner {
            canopy_files::accept_owner(&owner)
                .map_err(|error| format!("--config-owner: {error}"))?;
        }
        Ok(command)
    });
    let command = match parsed {
        Ok(command) => command,
        Err(error) => {
            say_error(&format!("canopy-{service}: {error}\n\n{}", usage(service)));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match command {
        Command::Help => say(&usage(service)),
        Command::Version => say(&format!("canopy-{service} {VERSION}\n")),
        Command::Schema => say(&format!("{:#}\n", schema_for!(C).to_value())),
        Command::Metrics => say(&format!("{:#}\n", declared(service, metrics))),
        Command::Check(path) => match read::<C>(service, &path) {
            Ok((config, _)) => check_files(service, &config, &path),
            Err(code) => code,
        },
        Command::Run(path) => match read::<C>(service, &path) {
            Ok((config, file)) => supervise(service, config, file, start),
            Err(code) => code,
        },
    }
}

/// How the program of a service is called.
pub fn usage(service: Service) -> String {
    args::USAGE.replace("PROGRAM", &format!("canopy-{service}"))
}

fn say(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn say_error(text: &str) {
    // Nobody is left to tell when standard error is closed. An error quotes what others wrote.
    let _ = std::io::stderr().write_all(shown_lines(text).as_bytes());
}

fn read<C: ServiceConfig>(service: Service, path: &Path) -> Result<(C, ConfigFile), ExitCode> {
    let loaded = config::read_text(path).map_err(Problems::from).and_then(|text| {
        let config = config::parse(path, &text)?;
        Ok((config, ConfigFile::new(path, text)))
    });
    loaded.map_err(|problems| {
        for problem in &problems.0 {
            say_error(&format!("canopy-{service}: {}: {problem}\n", path.display()));
        }
        ExitCode::from(EXIT_USAGE)
    })
}

/// Looks at the files that a configuration names, and says what cannot be used.
fn check_files<C: ServiceConfig>(service: Service, config: &C, path: &Path) -> ExitCode {
    let look = || {
        let mut files = NamedFiles::default();
        if let Some(tls) = &config.runtime().admin.tls {
            files.admin_tls(tls);
        }
        config.check_files(&mut files);
        files
    };
    // Root can read everything, which says nothing about the service.
    let user = config.own_key().filter(|_| is_root()).map(Account::owner_of);
    let files = match user {
        Some(Ok(user)) => user.act(look),
        Some(Err(_)) | None => Ok(look()),
    };
    let files = match files {
        Ok(files) => files,
        Err(error) => {
            say_error(&format!(
                "canopy-{service}: cannot look with the service's rights: {error}\n"
            ));
            return ExitCode::FAILURE;
        }
    };
    for remark in files.remarks() {
        say_error(&format!("canopy-{service}: {}: note: {remark}\n", path.display()));
    }
    for problem in &files.problems().0 {
        say_error(&format!("canopy-{service}: {}: {problem}\n", path.display()));
    }
    if files.problems().0.is_empty() {
        say(&format!("{} is a good configuration\n", path.display()))
    } else {
        ExitCode::from(EXIT_USAGE)
    }
}

/// Every metric of the service, the runtime's own first.
fn declared(service: Service, own: &[MetricSpec]) -> serde_json::Value {
    let common = metrics::common().into_iter().map(|(name, kind, labels, help)| {
        json!({ "name": metrics::name(service, name), "kind": kind, "labels": labels, "help": help })
    });
    common.chain(own.iter().map(|spec| json!(spec))).collect()
}

/// Ends the process some time after a signal, if nothing else has by then. On a thread of its own, which
/// waits for none of the service's: work that blocks and hangs keeps threads for good.
fn end_in_time(service: Service) -> std::io::Result<()> {
    let waiting = move || -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tokio::time::sleep(END_LIMIT).await;
            say_error(&format!(
                "canopy-{service}: it did not end within {} s of the signal; ended without what hangs\n",
                END_LIMIT.as_secs()
            ));
            std::process::exit(1)
        })
    };
    let thread = move || {
        if let Err(error) = waiting() {
            say_error(&format!("canopy-{service}: nobody sees to it that it ends: {error}\n"));
        }
    };
    std::thread::Builder::new().name("end".to_owned()).spawn(thread).map(drop)
}

/// Says that the service is not ready while work that blocks gets no thread.
async fn watch_threads(cx: Context) {
    let mut told = None;
    loop {
        tokio::select! {
            () = cx.shutdown.cancelled() => return,
            () = tokio::time::sleep(THREADS_INTERVAL) => {}
        }
        let idle = tokio::task::spawn_blocking(|| {});
        if tokio::time::timeout(THREADS_LIMIT, idle).await.is_ok() {
            if let Some(latch) = &told {
                Latch::set(latch, true, "free");
            }
            continue;
        }
        let latch = told.get_or_insert_with(|| cx.readiness.latch("threads"));
        let seconds = THREADS_LIMIT.as_secs();
        latch.set(false, format!("none became free within {seconds} s: what they read hangs"));
    }
}

fn supervise<C, F, Fut>(service: Service, config: C, file: ConfigFile, start: F) -> ExitCode
where
    C: ServiceConfig,
    F: FnOnce(C, Context) -> Fut + Send + 'static,
    Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say_error(&format!("canopy-{service}: cannot start: {error}\n"));
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = end_in_time(service) {
        say_error(&format!("canopy-{service}: cannot start: {error}\n"));
        return ExitCode::FAILURE;
    }
    let outcome = runtime.block_on(async {
        let telemetry = Telemetry::start(service, config.runtime())?;
        let outcome = live(service, config, file, start).await;
        if let Err(error) = &outcome {
            tracing::error!("{error:#}");
        }
        telemetry.stop().await;
        outcome
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say_error(&format!("canopy-{service}: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

async fn live<C, F, Fut>(
    service: Service,
    config: C,
    file: ConfigFile,
    start: F,
) -> anyhow::Result<()>
where
    C: ServiceConfig,
    F: FnOnce(C, Context) -> Fut + Send + 'static,
    Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let mut cx = Context::new(service).context("cannot register metrics")?;
    cx.config_file = Some(file);
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    // The admin listener outlives the work, so that /ready says 503 while the work ends.
    let admin = tokio_util::sync::CancellationToken::new();
    let runtime = config.runtime().clone();
    let address =
        admin::serve(&cx, &runtime.admin, runtime.address_file.as_deref(), admin.clone()).await?;
    tracing::info!(version = VERSION, pid = std::process::id(), admin = %address, "started");

    tokio::spawn(watch_threads(cx.clone()));
    let mut work = tokio::spawn(start(config, cx.clone()));
    let ended = tokio::select! {
        ended = &mut work => Some(ended),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
    };
    cx.shutdown.cancel();
    let asked = clock::monotonic();
    let outcome = if let Some(ended) = ended {
        ended.context("the service panicked")?
    } else {
        tracing::info!("asked to end");
        match tokio::time::timeout(SHUTDOWN_LIMIT, &mut work).await {
            Ok(ended) => ended.context("the service panicked")?,
            Err(_) => Err(anyhow::anyhow!(
                "work in flight did not end within {} s; ended without it",
                SHUTDOWN_LIMIT.as_secs()
            )),
        }
    };
    cx.tasks.close();
    let left = SHUTDOWN_LIMIT.saturating_sub(asked.elapsed()).max(BACKGROUND_LIMIT);
    if tokio::time::timeout(left, cx.tasks.wait()).await.is_err() {
        tracing::warn!(tasks = cx.tasks.len(), "background work did not end in time");
    }
    admin.cancel();
    if let Some(file) = &runtime.address_file {
        // A stale address would send whoever reads it to somebody else's port.
        let _ = std::fs::remove_file(file);
    }
    if outcome.is_ok() {
        tracing::info!("ended");
    }
    outcome
}
