//! W3C trace context crosses the bus, whatever the case of the header's name.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use async_nats::HeaderMap;
use canopy_api::{endpoint::loader, subject::Target, wire::GetRequest};
use canopy_test_support::nats::NatsServer;
use common::{LIMIT, connect, loader, raw};
use opentelemetry::{TraceId, trace::TracerProvider as _};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tracing::Instrument as _;
use tracing_subscriber::layer::SubscriberExt as _;

#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

impl Kept {
    /// The spans of a trace, once one of this name is among them.
    async fn wait_for(&self, trace: TraceId, name: &str) -> Vec<SpanData> {
        let until = Instant::now() + LIMIT;
        loop {
            let spans: Vec<SpanData> = {
                let all = self.0.lock().unwrap();
                all.iter().filter(|s| s.span_context.trace_id() == trace).cloned().collect()
            };
            if spans.iter().any(|span| span.name == name) {
                return spans;
            }
            assert!(Instant::now() < until, "no span {name} in {trace}; there are {spans:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn a_request_is_part_of_its_callers_trace() {
    let kept = Kept::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(kept.clone()).build();
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer)).unwrap();

    let server = NatsServer::start(&["web1"]).unwrap();
    let web1 = loader(&server, "web1").await;

    // A foreign client, whose library writes the name in its own way.
    let foreign = raw(&server, "u-viewer").await;
    let mut headers = HeaderMap::new();
    headers.insert("TraceParent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    foreign
        .ask(
            "canopy.v1.rpc.loader.read.get.web1.u-viewer",
            "_INBOX.u-viewer.h-web1-loader.1",
            headers,
            "",
        )
        .await
        .expect("answered");
    let trace = TraceId::from_hex("0af7651916cd43dd8448eb211c80319c").unwrap();
    let spans = kept.wait_for(trace, "request").await;
    assert_eq!(spans[0].parent_span_id.to_string(), "b7ad6b7169203331");

    // Our own client, in a span.
    let viewer = connect(&server, "u-viewer").await;
    let span = tracing::info_span!("asking");
    let host = Target::Host("web1".parse().unwrap());
    viewer
        .call::<loader::Get>(&host, &GetRequest::default())
        .instrument(span.clone())
        .await
        .unwrap();
    let trace = {
        use opentelemetry::trace::TraceContextExt as _;
        use tracing_opentelemetry::OpenTelemetrySpanExt as _;
        span.context().span().span_context().trace_id()
    };
    drop(span);
    kept.wait_for(trace, "request").await;
    let spans = kept.wait_for(trace, "asking").await;
    let named = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    assert_eq!(named("request").parent_span_id, named("asking").span_context.span_id());
    web1.stop().await;
}
