//! Documentation comments as text for people who do not have the source.
//!
//! Schemas take their descriptions from documentation comments. Those refer to constants and types by their
//! names in the source, which mean nothing in an error or on a page.

use crate::wire::{
    ADMIT_ITEMS, ARTIFACT_CHUNK, AUDIT_LINES, AUDIT_PAGE, FACTS, INDEX_INLINE, PROFILE_SECONDS,
    PUBLISH_PACKAGES, SEARCH_LIMIT,
};

/// The value of a constant that descriptions name.
fn constant(name: &str) -> Option<String> {
    let number = match name {
        "ADMIT_ITEMS" => ADMIT_ITEMS,
        "ARTIFACT_CHUNK" => ARTIFACT_CHUNK,
        "AUDIT_LINES" => AUDIT_LINES,
        "AUDIT_PAGE" => AUDIT_PAGE,
        "INDEX_INLINE" => INDEX_INLINE,
        "PUBLISH_PACKAGES" => PUBLISH_PACKAGES,
        "SEARCH_LIMIT" => SEARCH_LIMIT,
        "PROFILE_SECONDS" => return Some(PROFILE_SECONDS.to_string()),
        "FACTS" => return Some(FACTS.map(|fact| format!("`{fact}`")).join(", ")),
        _ => return None,
    };
    Some(number.to_string())
}

/// A description on one line: constants by value, types by name, no links.
pub(crate) fn plain(description: &str) -> String {
    let mut out = description.split_whitespace().collect::<Vec<_>>().join(" ");
    while let Some(start) = out.find("[`") {
        let Some(length) = out.get(start..).and_then(|rest| rest.find("`]")) else { break };
        let Some(inner) = out.get(start + 2..start + length) else { break };
        let name = inner.rsplit("::").next().unwrap_or(inner);
        let text = constant(name).unwrap_or_else(|| format!("`{name}`"));
        out.replace_range(start..start + length + 2, &text);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_told_by_value_and_types_by_name() {
        let text = "At most [`super::ARTIFACT_CHUNK`] bytes\nof a [`crate::DesiredState`].";
        assert_eq!(plain(text), "At most 524288 bytes of a `DesiredState`.");
        assert!(plain("one of [`FACTS`]").contains("`kernel`, `capabilities`"));
    }
}
