//! Log lines as they reach a terminal or a file: one event is one line, and shows all that is in it,
//! whatever a caller, a package or a host made us quote.

use crate::config::LogFormat;
use canopy_api::text::{escaped_json, is_unprintable};
use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, Write},
};
use tracing_subscriber::fmt::MakeWriter;

/// Further lines of an event are set in, so that none can be taken for an event of its own.
const SET_IN: &str = "    ";

/// Makes writers to standard error.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lines {
    pub(crate) format: LogFormat,
    /// Whether our own colours are in the lines.
    pub(crate) colours: bool,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }
}

impl Write for Lines {
    /// An event is written at once.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        io::stderr().write_all(self.visible(&text).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl Lines {
    fn visible(self, event: &str) -> Cow<'_, str> {
        match self.format {
            LogFormat::Json => escaped_json(event),
            LogFormat::Human => {
                let (text, end) = match event.strip_suffix('\n') {
                    Some(text) => (text, "\n"),
                    None => (event, ""),
                };
                if !text.contains(is_unprintable) {
                    return Cow::Borrowed(event);
                }
                (human(text, self.colours) + end).into()
            }
        }
    }
}

fn human(text: &str, colours: bool) -> String {
    let mut out = String::with_capacity(text.len() + 32);
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '\n' => {
                out.push('\n');
                out.push_str(SET_IN);
            }
            '\t' => out.push('\t'),
            '\u{1b}' if colours => match colour(rest.as_str()) {
                Some(code) => {
                    out.push(c);
                    out.push_str(code);
                    rest = rest.as_str().get(code.len()..).unwrap_or_default().chars();
                }
                None => out.push_str("\\u{1b}"),
            },
            c if is_unprintable(c) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// The rest of an escape sequence that sets colours and nothing else (ECMA-48 SGR).
fn colour(text: &str) -> Option<&str> {
    let code = text.strip_prefix('[')?;
    let end = code.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    code.get(end..)?.starts_with('m').then(|| text.get(..end + 2))?
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORGED: &str = "INFO refused name=x\n2026-01-01 INFO audit principal=u-admin\u{1b}[2J\
                          \u{1b}[31mred\u{202e}\u{200b}\r\u{9b}31m\n";

    #[test]
    fn a_log_event_shows_all_that_is_in_it() {
        for colours in [false, true] {
            let lines = Lines { format: LogFormat::Human, colours };
            let shown = lines.visible(FORGED);
            let (first, second) = shown.trim_end().split_once('\n').unwrap();
            assert_eq!(first, "INFO refused name=x");
            assert!(second.starts_with("    2026"), "{second:?}");
            assert!(second.contains("\\u{202e}\\u{200b}\\u{d}\\u{9b}31m"), "{second:?}");
            assert!(!shown.contains("\u{1b}[2J") && !shown.contains('\r'), "{shown:?}");
            assert_eq!(shown.contains("\u{1b}[31m"), colours, "{shown:?}");
        }
        let plain = "INFO started\n";
        assert_eq!(Lines { format: LogFormat::Human, colours: false }.visible(plain), plain);
    }

    #[test]
    fn a_json_log_event_stays_one_line_of_the_same_value() {
        let value = serde_json::json!({ "message": FORGED });
        let lines = Lines { format: LogFormat::Json, colours: false };
        let event = format!("{value}\n");
        let shown = lines.visible(&event);
        assert_eq!(shown.lines().count(), 1);
        assert!(!shown.trim_end().contains(is_unprintable), "{shown:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
