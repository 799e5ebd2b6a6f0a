//! "Did you mean".

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_other_words_are_not() {
        let known = ["firewall", "ratelimit", "flowmeter"];
        assert_eq!(nearest("firewal", known), Some("firewall"));
        assert_eq!(nearest("raetlimit", known), Some("ratelimit"));
        assert_eq!(nearest("nat", known), None);
        assert_eq!(nearest("dryRun", ["dry_run", "undo"]), Some("dry_run"));
    }
}
