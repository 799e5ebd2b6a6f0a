//! "Did you mean".

/// The known name nearest to a mistyped one, if any is near.
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::jaro_winkler(wrong, name), name))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// A remedy for a name that is not there: the nearest one, or all there are.
pub fn remedy<'a>(
    wrong: &str,
    known: impl IntoIterator<Item = &'a str>,
    otherwise: &str,
) -> String {
    let mut known: Vec<&str> = known.into_iter().collect();
    known.sort_unstable();
    known.dedup();
    match nearest(wrong, known.iter().copied()) {
        Some(name) => format!("did you mean \"{name}\"?"),
        None if known.is_empty() => otherwise.to_owned(),
        None if known.len() <= 12 => format!("there is {}", known.join(", ")),
        None => otherwise.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_offered_far_ones_are_not() {
        let known = ["blocklist", "limit", "flows"];
        assert_eq!(nearest("blocklsit", known), Some("blocklist"));
        assert_eq!(nearest("zzz", known), None);
        assert_eq!(remedy("zzz", known, "look"), "there is blocklist, flows, limit");
        assert_eq!(remedy("limt", known, "look"), "did you mean \"limit\"?");
        assert_eq!(remedy("zzz", [], "look"), "look");
    }
}
