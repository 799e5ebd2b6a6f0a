//! The admin listener: `/metrics`, `/live`, `/ready`.

mod tls;

#[cfg(test)]
mod tests;

use crate::{
    config::{AdminConfig, OffLoopback},
    context::Context,
};
use anyhow::Context as _;
use axum::{
    Router,
    extract::{RawQuery, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use std::{fmt::Write as _, net::SocketAddr, path::Path};
use tls::{Files, TlsListener};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

/// Binds, says where, serves until `stop`. Returns the address.
pub(crate) async fn serve(
    cx: &Context,
    config: &AdminConfig,
    address_file: Option<&Path>,
    stop: CancellationToken,
) -> anyhow::Result<SocketAddr> {
    let listen = config.listen;
    let tls = match &config.tls {
        None => None,
        Some(tls) => {
            let files = Files::read(tls)?;
            let (change, server) = watch::channel(files.server(&tls.clients)?);
            tokio::spawn(tls::follow(tls.clone(), files, change, stop.clone()));
            Some(server)
        }
    };
    if tls.is_none() && config.off_loopback == OffLoopback::PlainToAnybody {
        tracing::warn!(
            %listen, "the admin listener answers anybody who reaches it (runtime.admin.off_loopback)"
        );
    }
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen} (runtime.admin.listen)"))?;
    let address = listener.local_addr().context("no address for the admin listener")?;
    if let Some(file) = address_file {
        std::fs::write(file, format!("{address}\n"))
            .with_context(|| format!("cannot write {} (runtime.address_file)", file.display()))?;
    }
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .with_state(cx.clone());
    tokio::spawn(async move {
        let ended = stop.clone();
        let ended = async move { ended.cancelled().await };
        let served = match tls {
            None => axum::serve(listener, router).with_graceful_shutdown(ended).await,
            Some(server) => match TlsListener::new(listener, server, stop) {
                Ok(listener) => axum::serve(listener, router).with_graceful_shutdown(ended).await,
                Err(error) => Err(error),
            },
        };
        if let Err(error) = served {
            tracing::error!(%error, "admin listener ended");
        }
    });
    Ok(address)
}

async fn metrics(State(cx): State<Context>) -> Response {
    // Collectors may read kernel maps: not on a thread that others wait for.
    let text = tokio::task::spawn_blocking(move || {
        cx.common.set_uptime(cx.readiness.uptime());
        prometheus::TextEncoder::new().encode_to_string(&cx.metrics.gather())
    })
    .await;
    match text {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Ok(Err(error)) => failed(&error.to_string()),
        Err(error) => failed(&error.to_string()),
    }
}

fn failed(error: &str) -> Response {
    tracing::error!(%error, "metrics could not be gathered");
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
}

async fn ready(State(cx): State<Context>, RawQuery(query): RawQuery) -> Response {
    let health = cx.readiness.health();
    let status = if health.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut body = String::new();
    if query.is_some_and(|query| query.split('&').any(|part| part.starts_with("verbose"))) {
        for check in &health.checks {
            let mark = if check.ok { '+' } else { '-' };
            let _ = writeln!(body, "[{mark}] {}: {}", check.name, check.detail);
        }
    }
    body.push_str(if health.ready { "ready\n" } else { "not ready\n" });
    (status, body).into_response()
}
