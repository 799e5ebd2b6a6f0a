//! Which settings of a package fill a map or a variable: those are the document's to say, and what
//! somebody else writes there would be gone with the next change.

use canopy_package::{Manifest, manifest::Bind};

/// The settings that fill a map.
pub fn of_map<'a>(manifest: &'a Manifest, map: &str) -> Vec<&'a str> {
    settings(manifest, |bind| bind.maps().contains(&map))
}

/// The settings that a variable holds.
pub fn of_variable<'a>(manifest: &'a Manifest, variable: &str) -> Vec<&'a str> {
    settings(manifest, |bind| bind.global() == Some(variable))
}

fn settings(manifest: &Manifest, fills: impl Fn(&Bind) -> bool) -> Vec<&str> {
    let bound = manifest.config.iter().filter(|parameter| fills(&parameter.bind));
    bound.map(|parameter| parameter.name.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use canopy_api::document::{self, Format};

    #[test]
    fn every_way_to_bind_is_seen() {
        let text = "
            name: p
            version: 1.0.0
            description: d
            license: GPL-2.0-only
            programs: [{ name: p, object: p.o, function: p, hooks: [xdp] }]
            config:
            - { name: rate, type: u32, description: d, bind: { map: s, slot: 0, value_size: 8 } }
            - { name: burst, type: u32, description: d, bind: { map: s, slot: 0, offset: 4, value_size: 8 } }
            - { name: ports, type: ports, description: d, bind: { keys: k } }
            - { name: nets, type: prefixes, description: d, bind: { lpm_v4: t4, lpm_v6: t6 } }
            - { name: peers, type: prefixes, description: d,
                bind: { lpm_v4: p4, lpm_v6: p6, hash_v4: h4, hash_v6: h6, filled: f } }
            - { name: active, type: bool, description: d, bind: { global: g } }
        ";
        let manifest: Manifest = document::load(text, Format::Yaml).unwrap();
        assert_eq!(of_map(&manifest, "s"), ["rate", "burst"]);
        assert_eq!(of_map(&manifest, "k"), ["ports"]);
        assert_eq!(of_map(&manifest, "t4"), ["nets"]);
        assert_eq!(of_map(&manifest, "t6"), ["nets"]);
        for map in ["p4", "p6", "h4", "h6"] {
            assert_eq!(of_map(&manifest, map), ["peers"]);
        }
        assert_eq!(of_variable(&manifest, "g"), ["active"]);
        assert_eq!(of_variable(&manifest, "f"), ["peers"]);
        // A map is not a variable of the same name.
        assert!(of_map(&manifest, "g").is_empty() && of_variable(&manifest, "s").is_empty());
    }
}
