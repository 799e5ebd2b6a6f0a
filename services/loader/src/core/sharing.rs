//! Maps that programs of different publishers would use together.
//!
//! A map is shared by its name: whoever names it so gets it. Between programs that one key signed that is
//! their publisher's affair; else a rule has to allow it.

use super::{
    handover::{Aliases, Described, path_of},
    resolve::Wish,
    state::WantedProgram,
};
use canopy_api::{
    Target,
    wire::{AdmissionItem, AdmissionVerb},
};
use canopy_kernel::{ShareScope, SharedMap};

/// The maps that a program shares by name.
pub type SharedOf<'a> = &'a dyn Fn(&WantedProgram) -> Vec<SharedMap>;

/// What a request would have programs share with those of another publisher, here or on interfaces to
/// come, also where only a part of it can be done.
pub fn with_strangers(
    before: &Described<'_>,
    wishes: &[Wish],
    aliases: &Aliases,
    shared_of: SharedOf<'_>,
) -> Vec<AdmissionItem> {
    let asked = wishes.iter().filter_map(|wish| Some((&wish.target, wish.wanted.as_ref()?)));
    let all: Vec<(&Target, &WantedProgram, Vec<SharedMap>)> = before
        .iter()
        .map(|(target, wanted)| (target, *wanted))
        .chain(asked)
        .flat_map(|(target, wanted)| wanted.programs.iter().map(move |one| (target, one)))
        .map(|(target, program)| (target, program, shared_of(program)))
        .filter(|(_, _, shared)| !shared.is_empty())
        .collect();
    let mut items: Vec<AdmissionItem> = Vec::new();
    for wish in wishes {
        for program in wish.wanted.iter().flat_map(|wanted| &wanted.programs) {
            for shared in shared_of(program) {
                let strangers = all.iter().filter(|(target, other, theirs)| {
                    let meets =
                        shared.scope == ShareScope::Host || aliases.may_meet(target, &wish.target);
                    // The same bytes are no other program, whoever signed them.
                    let stranger =
                        other.publisher != program.publisher && other.digest != program.digest;
                    meets && stranger && theirs.contains(&shared)
                });
                for (_, other, _) in strangers {
                    let item = item(wish, program, other, &shared.map);
                    if !items.contains(&item) {
                        items.push(item);
                    }
                }
            }
        }
    }
    items
}

fn item(wish: &Wish, program: &WantedProgram, other: &WantedProgram, map: &str) -> AdmissionItem {
    AdmissionItem {
        netns: wish.target.netns.clone(),
        interface: Some(wish.target.interface.clone()),
        hook: Some(wish.target.hook),
        program: Some(program.name.clone()),
        package: Some(program.package.clone()),
        version: Some(program.version.clone()),
        publisher: program.publisher.clone(),
        map: Some(map.to_owned()),
        shared_with: Some(other.package.clone()),
        path: path_of(wish, &program.name),
        ..AdmissionItem::new(AdmissionVerb::ShareMap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::state::{Wanted, tests::wanted};
    use std::collections::BTreeMap;

    fn target(text: &str) -> Target {
        Target { netns: None, interface: text.parse().unwrap(), hook: canopy_api::Hook::Xdp }
    }

    /// One program, signed by a key.
    fn signed(name: &str, key: Option<&str>) -> Wanted {
        let mut wanted = wanted(&[name]);
        wanted.programs[0].publisher = key.map(str::to_owned);
        wanted
    }

    fn shares(scope: ShareScope, own: Option<&str>, on: &str, theirs: Option<&str>) -> Vec<String> {
        let host = signed("theirs", theirs);
        let before = Described::from([(target("eth0"), &host)]);
        let wishes = [Wish {
            target: target(on),
            wanted: Some(signed("own", own)),
            path: String::new(),
            program_paths: BTreeMap::new(),
            notes: Vec::new(),
        }];
        let shared = |_: &WantedProgram| vec![SharedMap { map: "seen".to_owned(), scope }];
        let items = with_strangers(&before, &wishes, &Aliases::default(), &shared);
        items.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_map_of_another_publisher_is_shared_only_if_it_is_asked() {
        let asked =
            |on: &str| vec![format!("share-map own 1.0.0 map seen with theirs on {on}/xdp")];
        let host = ShareScope::Host;
        assert_eq!(shares(host, Some("a"), "wan0", Some("b")), asked("wan0"));
        assert_eq!(shares(host, None, "wan0", Some("b")), asked("wan0"), "nobody is another");
        assert_eq!(shares(host, Some("a"), "wan0", Some("a")), [""; 0]);
        assert_eq!(shares(host, None, "wan0", None), [""; 0], "signatures do not count here");
        let interface = ShareScope::Interface;
        assert_eq!(shares(interface, Some("a"), "wan0", Some("b")), [""; 0]);
        for on in ["eth0", "e*", "altname:up"] {
            assert_eq!(shares(interface, Some("a"), on, Some("b")), asked(on));
        }
    }
}
