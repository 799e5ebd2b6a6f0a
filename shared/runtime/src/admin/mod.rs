//! The admin listener: `/metrics`, `/live`, `/ready`.

mod scrape;
mod server;
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
use canopy_api::text::shown;
use scrape::Scrapes;
use server::Bounds;
use std::{fmt::Write as _, net::SocketAddr, path::Path};
use tls::Files;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

/// What the answers are made from.
#[derive(Clone)]
struct Admin {
    cx: Context,
    scrapes: Scrapes,
}

/// Binds, says where, serves until `stop`. Returns the address.
pub(crate) async fn serve(
    cx: &Context,
    config: &AdminConfig,
    address_file: Option<&Path>,
    stop: CancellationToken,
) -> anyhow::Result<SocketAddr> {
    serve_within(cx, config, address_file, Bounds::default(), stop).await
}

async fn serve_within(
    cx: &Context,
    config: &AdminConfig,
    address_file: Option<&Path>,
    bounds: Bounds,
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
        .with_state(Admin { cx: cx.clone(), scrapes: Scrapes::default() });
    tokio::spawn(server::serve(listener, tls, router, bounds, stop));
    Ok(address)
}

async fn metrics(State(admin): State<Admin>) -> Response {
    match admin.scrapes.gather(&admin.cx).await {
        Ok(text) => {
            let headers = [
                (header::CONTENT_TYPE, prometheus::TEXT_FORMAT.to_owned()),
                (header::CONTENT_LENGTH, text.len().to_string()),
            ];
            (headers, scrape::body(text)).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "metrics could not be gathered");
            (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response()
        }
    }
}

async fn ready(State(Admin { cx, .. }): State<Admin>, RawQuery(query): RawQuery) -> Response {
    let health = cx.readiness.health();
    let status = if health.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut body = String::new();
    if query.is_some_and(|query| query.split('&').any(|part| part.starts_with("verbose"))) {
        for check in &health.checks {
            let mark = if check.ok { '+' } else { '-' };
            let detail = shown(&check.detail);
            let _ = writeln!(body, "[{mark}] {}: {detail}", check.name);
        }
    }
    body.push_str(if health.ready { "ready\n" } else { "not ready\n" });
    (status, body).into_response()
}
