//! W3C trace context in message headers.

use crate::header;
use async_nats::HeaderMap;
use opentelemetry::{
    Context, global,
    propagation::{Extractor, Injector},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

struct Writer<'a>(&'a mut HeaderMap);

impl Injector for Writer<'_> {
    fn set(&mut self, key: &str, value: String) {
        self.0.insert(key, value);
    }
}

struct Reader<'a>(Option<&'a HeaderMap>);

impl Extractor for Reader<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        header::get(self.0, key)
    }

    fn keys(&self) -> Vec<&str> {
        self.0
            .into_iter()
            .flat_map(|headers| headers.iter().map(|(name, _)| name.as_ref()))
            .collect()
    }
}

/// Adds `traceparent` of the current span, where traces are made.
pub(crate) fn inject(headers: &mut HeaderMap) {
    let context = Span::current().context();
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut Writer(headers));
    });
}

/// The context a message came with.
pub(crate) fn extract(headers: Option<&HeaderMap>) -> Context {
    global::get_text_map_propagator(|propagator| propagator.extract(&Reader(headers)))
}

/// Makes `span` a child of the context a message came with.
pub(crate) fn adopt(span: &Span, headers: Option<&HeaderMap>) {
    // Fails when the span is not recorded: then there is nothing to adopt.
    let _ = span.set_parent(extract(headers));
}
