//! Logs and traces.

use crate::{
    config::{LogFormat, RuntimeConfig},
    log_lines::{Form, LogLines},
};
use anyhow::Context as _;
use canopy_api::endpoint::Service;
use opentelemetry::{KeyValue, global, trace::TracerProvider as _};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use std::{io::IsTerminal as _, time::Duration};
use tracing_subscriber::{
    EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// Without a level, the bus library's own chatter is left out: our events say the same.
const DEFAULT_LEVEL: &str = "info,async_nats=warn,opentelemetry=warn,opentelemetry_sdk=warn";

/// What has to be shut down at the end.
pub(crate) struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Starts logs, and traces where configured. Once a process.
    pub(crate) fn start(service: Service, config: &RuntimeConfig) -> anyhow::Result<Self> {
        let level = config.log.level.as_deref().unwrap_or(DEFAULT_LEVEL);
        let filter: EnvFilter = level.parse().context("runtime.log.level")?;
        let colours = std::io::stderr().is_terminal();
        let form = match config.log.format {
            LogFormat::Human => Form::Text { colours },
            LogFormat::Json => Form::Json,
        };
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(LogLines::new(std::io::stderr, form))
            .with_ansi(colours);
        let lines = match config.log.format {
            LogFormat::Human => lines.with_target(false).boxed(),
            LogFormat::Json => lines
                .json()
                .flatten_event(true)
                .with_current_span(true)
                .with_span_list(false)
                .boxed(),
        };
        global::set_text_map_propagator(TraceContextPropagator::new());
        let traces = match &config.otlp {
            None => None,
            Some(otlp) => Some(exporter(service, &otlp.endpoint)?),
        };
        let spans = traces
            .as_ref()
            .map(|provider| tracing_opentelemetry::layer().with_tracer(provider.tracer("canopy")));
        tracing_subscriber::registry()
            .with(filter)
            .with(lines)
            .with(spans)
            .try_init()
            .context("logs are already set up")?;
        Ok(Self { traces })
    }

    /// Sends what is left. The exporter blocks, so it may not run on a thread of the runtime; and where all
    /// that may block are taken, nobody waits for it.
    pub(crate) async fn stop(self) {
        const LIMIT: Duration = Duration::from_secs(3);
        let Some(traces) = self.traces else { return };
        let stopping = tokio::task::spawn_blocking(move || traces.shutdown_with_timeout(LIMIT));
        match tokio::time::timeout(LIMIT, stopping).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the last traces were not exported"),
            Ok(Err(_)) | Err(_) => tracing::warn!("the last traces were not exported in time"),
        }
    }
}

fn exporter(service: Service, endpoint: &str) -> anyhow::Result<SdkTracerProvider> {
    // The exporter's client takes the process's TLS library. Fails when it is installed already,
    // which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(endpoint)
        .with_timeout(Duration::from_secs(5))
        .build()
        .with_context(|| format!("cannot export traces to {endpoint} (runtime.otlp.endpoint)"))?;
    let resource = Resource::builder()
        .with_service_name(format!("canopy-{service}"))
        .with_attribute(KeyValue::new("service.version", crate::VERSION))
        .build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}
