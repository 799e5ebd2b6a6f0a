//! What others wrote, before people see it: authors of packages, hosts, callers. Such text could move the
//! cursor, turn the order of what is read around, or hide what it says.
//!
//! ```
//! use canopy_api::text::{is_hidden, shown};
//!
//! assert_eq!(shown("drop \u{202e}kcab"), "drop \u{fffd}kcab");
//! assert_eq!(shown("ü, 漢字, 🙂"), "ü, 漢字, 🙂");
//! assert!(is_hidden('\u{200b}'), "a space without width");
//! ```

use std::{borrow::Cow, fmt::Write as _};

/// Stands for what is not shown.
pub const REPLACEMENT: char = '\u{fffd}';

/// Whether a character has no sign of its own and changes how others look: marks and overrides of the
/// direction, what has no width, separators of lines that no file has, tags, fillers and annotations
/// (Unicode's `Bidi_Control` and `Default_Ignorable_Code_Point`). Selectors of variants that follow a sign
/// (U+FE0E, U+FE0F) are none: they make a sign of text or a picture, as many a README has.
pub const fn is_hidden(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{2800}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0d}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// Whether a character has no place in one line of text.
pub fn is_unprintable(c: char) -> bool {
    c.is_control() || is_hidden(c)
}

/// One line: without control characters, line breaks among them, and without what is hidden.
pub fn shown(text: &str) -> Cow<'_, str> {
    replaced(text, is_unprintable)
}

/// The same of text that has lines and tabs.
pub fn shown_lines(text: &str) -> Cow<'_, str> {
    replaced(text, |c| is_unprintable(c) && c != '\n' && c != '\t')
}

fn replaced(text: &str, bad: impl Fn(char) -> bool) -> Cow<'_, str> {
    if text.contains(&bad) {
        text.chars().map(|c| if bad(c) { REPLACEMENT } else { c }).collect::<String>().into()
    } else {
        Cow::Borrowed(text)
    }
}

/// JSON that says the same and shows everything: what is hidden in its strings is written as an escape.
/// Line breaks and tabs, which stand between its parts alone, stay.
pub fn escaped_json(json: &str) -> Cow<'_, str> {
    let bad = |c: char| is_unprintable(c) && c != '\n' && c != '\t';
    if !json.contains(bad) {
        return Cow::Borrowed(json);
    }
    let mut out = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if bad(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_and_control_characters_are_replaced() {
        for c in [
            '\u{0}',
            '\u{1b}',
            '\u{7f}',
            '\u{9b}',
            '\u{ad}',
            '\u{61c}',
            '\u{200b}',
            '\u{200d}',
            '\u{200e}',
            '\u{202a}',
            '\u{202e}',
            '\u{2028}',
            '\u{2066}',
            '\u{2069}',
            '\u{2060}',
            '\u{3164}',
            '\u{feff}',
            '\u{e0041}',
            '\u{e0100}',
            '\u{fff9}',
        ] {
            let text = format!("a{c}b");
            assert_eq!(shown(&text), "a\u{fffd}b", "{:x}", u32::from(c));
            assert_eq!(shown_lines(&text), "a\u{fffd}b", "{:x}", u32::from(c));
        }
        for text in ["", "plain", "naïve Ünïcode", "русский", "עברית", "العربية", "漢字", "⚠️ 🙂"]
        {
            assert_eq!(shown(text), text);
        }
        assert_eq!(shown("a\nb\tc"), "a\u{fffd}b\u{fffd}c");
        assert_eq!(shown_lines("a\nb\tc\r"), "a\nb\tc\u{fffd}");
    }

    #[test]
    fn escaped_json_has_the_same_value() {
        let value = serde_json::json!({ "a\u{202e}": ["\u{9b}31m", "\u{e0041}", "\n\u{200b}"] });
        for json in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let escaped = escaped_json(&json);
            assert!(!escaped.contains(|c| is_unprintable(c) && c != '\n'), "{escaped:?}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
        }
    }
}
