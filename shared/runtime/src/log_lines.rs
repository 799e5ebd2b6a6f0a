//! Log lines as they leave the process: one event is one line, of bounded length.
//!
//! Callers' text reaches the log inside errors. A line break in it would begin a line that this process
//! never wrote, and a long one would fill the disk.

use canopy_api::text::{escaped_json, is_unprintable};
use std::{
    fmt::Write as _,
    io::{self, Write},
};
use tracing_subscriber::fmt::MakeWriter;

/// Bytes of a line; the rest is cut.
const LINE: usize = 8 * 1024;
/// Bytes of a text in a line of JSON that is too long.
const TEXT: usize = 1024;

/// Which form the lines have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Text. `colours` are escape sequences of the formatter itself, which escapes those of others.
    Text {
        /// Whether it writes any.
        colours: bool,
    },
    /// One JSON object a line.
    Json,
}

/// Writes whole events to another writer.
#[derive(Clone, Debug)]
pub(crate) struct LogLines<M> {
    inner: M,
    form: Form,
}

impl<M> LogLines<M> {
    pub(crate) fn new(inner: M, form: Form) -> Self {
        Self { inner, form }
    }
}

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for LogLines<M> {
    type Writer = LineWriter<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter { inner: self.inner.make_writer(), form: self.form }
    }

    fn make_writer_for(&'a self, meta: &tracing::Metadata<'_>) -> Self::Writer {
        LineWriter { inner: self.inner.make_writer_for(meta), form: self.form }
    }
}

/// Takes one event at a time, as the formatter writes it: whole.
pub(crate) struct LineWriter<W> {
    inner: W,
    form: Form,
}

impl<W: Write> Write for LineWriter<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let mut line = match self.form {
            Form::Text { colours } => plain(text, colours),
            Form::Json => escaped_json(&short_json(text)).into_owned(),
        };
        line.push('\n');
        self.inner.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A line of text without what would leave the line or hide a part of it.
fn plain(text: &str, colours: bool) -> String {
    let mut line = String::with_capacity(text.len().min(LINE));
    for (at, c) in text.char_indices() {
        if at >= LINE {
            // Formatting into a string does not fail.
            let _ = write!(line, "… ({} bytes more)", text.len() - at);
            break;
        }
        let is_colour =
            c == '\u{1b}' && colours && sets_colour(text.get(at + 1..).unwrap_or_default());
        if is_unprintable(c) && c != '\t' && !is_colour {
            let _ = write!(line, "{}", c.escape_unicode());
        } else {
            line.push(c);
        }
    }
    line
}

/// Whether what follows an escape character sets colours and nothing else (ECMA-48 SGR).
fn sets_colour(sequence: &str) -> bool {
    sequence.strip_prefix('[').is_some_and(|codes| {
        codes.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m')
    })
}

/// A line of JSON, its long texts cut where it is too long; JSON itself escapes what would leave the line.
fn short_json(text: &str) -> String {
    if text.len() <= LINE {
        return text.to_owned();
    }
    let Ok(mut value) = serde_json::from_str(text) else { return plain(text, false) };
    shorten(&mut value);
    value.to_string()
}

fn shorten(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(text) if text.len() > TEXT => {
            let mut end = TEXT;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            let more = text.len() - end;
            text.truncate(end);
            // Formatting into a string does not fail.
            let _ = write!(text, "… ({more} bytes more)");
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(shorten),
        serde_json::Value::Object(fields) => fields.values_mut().for_each(shorten),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::layer::SubscriberExt as _;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What a caller's text becomes, as a field and as a message.
    fn logged(form: Form, text: &str) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let writer = LogLines::new(move || writer.clone(), form);
        let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false);
        let log = |reason: &str| {
            tracing::info!(field = reason, shown = %reason, "refused: {reason}");
        };
        match form {
            Form::Text { .. } => {
                let subscriber = tracing_subscriber::registry().with(layer);
                tracing::subscriber::with_default(subscriber, || log(text));
            }
            Form::Json => {
                let subscriber = tracing_subscriber::registry().with(layer.json());
                tracing::subscriber::with_default(subscriber, || log(text));
            }
        }
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    const FORGED: &str = "x\n2026-12-01T00:00:00Z  INFO forged\r\u{1b}[2J\u{202e}\u{200b}\u{9b}0m";

    #[test]
    fn one_event_is_one_line_whatever_a_caller_sent() {
        let text = logged(Form::Text { colours: false }, FORGED);
        assert_eq!(text.matches('\n').count(), 1, "{text:?}");
        let body = text.trim_end_matches('\n');
        assert!(!body.chars().any(is_unprintable), "{text:?}");
        assert!(body.contains("\\u{a}2026"), "{text:?}");
        let coloured = plain("\u{1b}[31mred\u{1b}[2J", true);
        assert_eq!(coloured, "\u{1b}[31mred\\u{1b}[2J", "colours pass, other sequences do not");
        let json = logged(Form::Json, FORGED);
        assert_eq!(json.matches('\n').count(), 1, "{json:?}");
        assert!(!json.trim_end().contains(is_unprintable), "{json:?}");
        let event: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(event["fields"]["shown"], FORGED, "JSON is exact");
    }

    #[test]
    fn a_line_is_bounded_in_both_forms() {
        let long = "x\n".repeat(400_000);
        let text = logged(Form::Text { colours: false }, &long);
        assert!(text.len() < 10 * LINE && text.contains("bytes more"), "{} bytes", text.len());
        let json = logged(Form::Json, &long);
        assert!(json.len() < LINE, "{} bytes", json.len());
        let event: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert!(event["fields"]["message"].as_str().unwrap().contains("bytes more"));
    }
}
