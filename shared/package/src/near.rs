//! "Did you mean".

/// The known name closest to what was written, if it is close enough to be a slip: at most a
/// third of the letters differ.
pub fn nearest<'a>(text: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(text, name), name))
        .filter(|(distance, name)| *distance <= name.chars().count().max(3) / 3)
        .min()
        .map(|(_, name)| name)
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
    }
}
