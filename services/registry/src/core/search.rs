//! Which packages a search finds, and which of them first.

use canopy_api::wire::{PackageSummary, SearchRequest};

/// How well a package answers a search, the lowest best; `None` when it does not.
pub fn rank(request: &SearchRequest, package: &PackageSummary) -> Option<u32> {
    if request.hook.is_some_and(|hook| !package.hooks.contains(&hook)) {
        return None;
    }
    if request.keyword.as_ref().is_some_and(|keyword| !package.keywords.contains(keyword)) {
        return None;
    }
    let description = package.description.to_lowercase();
    request.words.iter().map(|word| place(&word.to_lowercase(), package, &description)).sum()
}

/// Where a word stands: the name counts for more than a keyword, and that for more than the text.
fn place(word: &str, package: &PackageSummary, description: &str) -> Option<u32> {
    let name = package.name.as_str();
    if name == word {
        Some(0)
    } else if name.starts_with(word) {
        Some(1)
    } else if package.keywords.iter().any(|keyword| keyword == word) {
        Some(2)
    } else if name.contains(word) {
        Some(3)
    } else if package.keywords.iter().any(|keyword| keyword.contains(word)) {
        Some(4)
    } else if description.contains(word) {
        Some(5)
    } else if package.hooks.iter().any(|hook| hook.as_str() == word) {
        Some(6)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use canopy_api::Hook;

    fn package(name: &str, description: &str, keywords: &[&str], hooks: &[Hook]) -> PackageSummary {
        PackageSummary {
            name: name.parse().unwrap(),
            description: description.to_owned(),
            hooks: hooks.to_vec(),
            keywords: keywords.iter().map(|word| (*word).to_owned()).collect(),
            repository: "r".to_owned(),
            versions: Vec::new(),
            older: 0,
        }
    }

    fn found(request: &SearchRequest) -> Vec<String> {
        let packages = [
            package("limiter", "Drops what is too much", &["rate"], &[Hook::Xdp]),
            package("firewall", "Blocks prefixes", &["acl"], &[Hook::Xdp]),
            package("rate", "Counts", &[], &[Hook::TcIngress, Hook::TcEgress]),
            package("meter", "Measures the RATE of flows", &[], &[Hook::TcIngress]),
            package("corporate", "Theirs", &[], &[Hook::Xdp]),
        ];
        let mut ranked: Vec<_> = packages
            .iter()
            .filter_map(|package| Some((rank(request, package)?, package.name.to_string())))
            .collect();
        ranked.sort();
        ranked.into_iter().map(|(_, name)| name).collect()
    }

    fn words(words: &[&str]) -> SearchRequest {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        SearchRequest { words, ..SearchRequest::default() }
    }

    #[test]
    fn names_come_before_keywords_and_those_before_the_text() {
        assert_eq!(found(&words(&["Rate"])), ["rate", "limiter", "corporate", "meter"]);
        assert_eq!(found(&words(&["rate", "flows"])), ["meter"]);
        assert_eq!(found(&words(&["nothing"])), [] as [&str; 0]);
        assert_eq!(found(&words(&["tc-egress"])), ["rate"]);
    }

    #[test]
    fn a_hook_and_a_keyword_narrow_what_is_found() {
        let on = |hook| SearchRequest { hook: Some(hook), ..words(&["rate"]) };
        assert_eq!(found(&on(Hook::TcIngress)), ["rate", "meter"]);
        let acl = SearchRequest { keyword: Some("acl".to_owned()), ..words(&[]) };
        assert_eq!(found(&acl), ["firewall"]);
        assert_eq!(found(&words(&[])).len(), 5, "without a wish everything is found");
    }
}
