//! "Did you mean".

/// At most this many names are listed in a hint.
const FEW: usize = 12;

/// The known word most like `word`, if it is near enough to be a slip: at most a third of its letters
/// differ, or only its end does.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(slips, candidate)| {
            *slips <= 1.max(candidate.chars().count() / 3)
                || strsim::jaro_winkler(word, candidate) > 0.9
        })
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, candidate)| candidate)
}

/// A hint for a name that does not exist: the nearest of the known names, all of them where they are few,
/// or `otherwise`.
pub fn hint<'a>(word: &str, known: impl IntoIterator<Item = &'a str>, otherwise: &str) -> String {
    let mut known: Vec<&str> = known.into_iter().collect();
    known.sort_unstable();
    known.dedup();
    match nearest(word, known.iter().copied()) {
        Some(name) => format!("did you mean \"{name}\"?"),
        None if known.is_empty() => otherwise.to_owned(),
        None if known.len() <= FEW => format!("there is {}", known.join(", ")),
        None => otherwise.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_names_the_nearest_or_all_of_a_few() {
        let known = ["blocklist", "limit", "flows"];
        assert_eq!(hint("limt", known, "look"), "did you mean \"limit\"?");
        assert_eq!(hint("zzz", known, "look"), "there is blocklist, flows, limit");
        assert_eq!(hint("zzz", [], "look"), "look");
        let many: Vec<String> = (0..=FEW).map(|number| format!("host-{number}")).collect();
        assert_eq!(hint("zzz", many.iter().map(String::as_str), "look"), "look");
        assert_eq!(hint("dve", ["dev"], "look"), "did you mean \"dev\"?");
    }

    #[test]
    fn slips_are_recognised_and_other_words_are_not() {
        let known = ["firewall", "ratelimit", "flowmeter"];
        assert_eq!(nearest("firewal", known), Some("firewall"));
        assert_eq!(nearest("raetlimit", known), Some("ratelimit"));
        assert_eq!(nearest("nat", known), None);
        assert_eq!(nearest("dryRun", ["dry_run", "undo"]), Some("dry_run"));
    }
}
