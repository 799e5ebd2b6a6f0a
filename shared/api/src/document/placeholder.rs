//! Placeholders of shells and templates, which nobody expands here.

use crate::problem::Problem;

/// What is said of one.
pub(crate) const NOT_EXPANDED: &str = "is a placeholder, and placeholders are not expanded";

/// A placeholder where a value belongs.
pub(crate) fn not_expanded(path: impl Into<String>, text: &str) -> Problem {
    if is_bracketed(text) {
        return Problem::new(path, format!("\"{text}\" is a placeholder"))
            .remedy("write the value in its place, without the brackets");
    }
    Problem::new(path, format!("\"{text}\" {NOT_EXPANDED}"))
        .remedy("expand it before, such as with envsubst, or write the value")
}

/// Whether a name has a placeholder of a shell or a template in it: `${IFACE}`, `eth${N}`, `$(cmd)`,
/// `$IFACE`, `{{ iface }}`.
pub(crate) fn is_placeholder(name: &str) -> bool {
    is_whole_placeholder(name)
        || [("${", "}"), ("$(", ")"), ("{{", "}}")].iter().any(|(open, close)| {
            name.split_once(open).is_some_and(|(_, behind)| behind.contains(close))
        })
}

/// Whether a text stands for a value as in documentation: `<interface>`, `<your host>`.
fn is_bracketed(text: &str) -> bool {
    let inner = text.strip_prefix('<').and_then(|rest| rest.strip_suffix('>'));
    inner.is_some_and(|inner| {
        inner.starts_with(|c: char| c.is_ascii_alphabetic())
            && inner.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b' '))
    })
}

/// Whether a text is a placeholder and nothing else.
pub(crate) fn is_whole_placeholder(text: &str) -> bool {
    let between = |open, close| text.strip_prefix(open).and_then(|rest| rest.strip_suffix(close));
    let variable = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    let braced = between("${", "}").is_some_and(|inner| {
        // `${NAME}`, `${NAME:-default}` and their like.
        variable(inner.split([':', '-', '?', '+', '=', '#', '%']).next().unwrap_or_default())
    });
    is_bracketed(text)
        || braced
        || between("{{", "}}").is_some()
        || text.strip_prefix('$').is_some_and(variable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_told_from_names() {
        for text in ["${A}", "$A", "${A:-x}", "{{ a }}", "{{a}}", "<interface>", "<your host>"] {
            assert!(is_whole_placeholder(text) && is_placeholder(text), "{text}");
        }
        for text in ["eth${N}", "$(cmd)", "a{{ b }}c", "p@${V}"] {
            assert!(!is_whole_placeholder(text) && is_placeholder(text), "{text}");
        }
        for text in
            ["a$b", "$5", "$", "${", "{}", "eth0", "{a}", "${}", "$-", "<", "<>", "a<b>", "<5>"]
        {
            assert!(!is_whole_placeholder(text), "{text}");
        }
        for text in ["a$b", "$5", "$", "${", "{}", "eth0", "{a}"] {
            assert!(!is_placeholder(text), "{text}");
        }
    }
}
