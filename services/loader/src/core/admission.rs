//! What policy is asked about: what a request would have run where, before against after.

use super::{
    downgrade::{Downgrade, downgrades},
    handover::{Aliases, Described, Handover, Lost, described, handovers, lost, path_of},
    plan::Asked,
    resolve::Wish,
    sharing::{self, SharedOf},
    state::{State, WantedProgram},
};
use canopy_api::{
    ChainKey, InterfaceSelector, Target,
    wire::{AdmissionItem, AdmissionVerb},
};

/// A chain that would be taken off an interface which has another name now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Displaced {
    /// The chain.
    pub chain: ChainKey,
    /// The one that would have its interface, by the name that it has now.
    pub by: ChainKey,
}

/// What a request comes to, as far as policy has to know.
#[derive(Clone, Copy)]
pub struct Changes<'a> {
    /// The state it meets.
    pub state: &'a State,
    /// What it asks for.
    pub wishes: &'a [Wish],
    /// Whether it puts the programs there that it names; a delete only leaves them.
    pub puts: bool,
    /// The chains of the interfaces that are there.
    pub asked: &'a [Asked],
    /// The chains that would lose their interfaces to those.
    pub displaced: &'a [Displaced],
    /// Namespaces with two names.
    pub aliases: &'a Aliases,
    /// The maps that a program shares.
    pub shared_of: SharedOf<'a>,
}

impl Changes<'_> {
    /// The parts of it, and its programs that would go back to an older version.
    pub fn parts(&self) -> (Vec<AdmissionItem>, Vec<Downgrade>) {
        let Self { state, wishes, asked, aliases, shared_of, .. } = *self;
        let before: Described<'_> = described(state);
        let handovers = handovers(&before, wishes, aliases);
        let downgrades = downgrades(state, &handovers, asked);
        let mut items = Items::default();
        let put = if self.puts { wishes } else { &[] };
        for wish in put {
            for program in wish.wanted.iter().flat_map(|wanted| &wanted.programs) {
                items.add(applied(&wish.target, None, program, path_of(wish, &program.name)));
            }
        }
        for one in handovers.iter().filter(|one| one.uncovers) {
            for program in one.after.into_iter().flat_map(|after| &after.programs) {
                let path = one.wish.path.clone();
                items.add(applied(&one.place, one.within.as_ref(), program, path));
            }
        }
        items.extend(sharing::with_strangers(&before, put, aliases, shared_of));
        items.extend(downgrades.iter().map(going_back));
        let lost = self.lost(&handovers);
        // A chain that the kernel has and the loader knows nothing of is removed too.
        for wish in wishes.iter().filter(|wish| wish.wanted.is_none()) {
            let known = before.contains_key(&wish.target)
                || lost.iter().any(|item| item.path == wish.path && !item.path.is_empty());
            if !known {
                items.add(AdmissionItem { path: wish.path.clone(), ..bare(&wish.target) });
            }
        }
        items.extend(lost);
        (items.0, downgrades)
    }

    /// The programs that go, or that packets no longer reach, from where they are described and from chains that
    /// are there.
    fn lost(&self, handovers: &[Handover<'_>]) -> Vec<AdmissionItem> {
        let mut items = Vec::new();
        for one in handovers {
            items.extend(one.lost().map(|lost| AdmissionItem {
                within: one.within.clone(),
                path: lost.behind.map_or(one.wish.path.clone(), |it| path_of(one.wish, &it.name)),
                ..deleted(&one.place, lost)
            }));
        }
        for asked in self.asked {
            let Some(chain) = self.state.chains.get(&asked.key) else { continue };
            let target = Target::from(asked.key.clone());
            let gone = lost(target.hook, &chain.wanted, asked.wanted.as_ref());
            items.extend(
                gone.map(|lost| AdmissionItem {
                    path: asked.path.clone(),
                    ..deleted(&target, lost)
                }),
            );
        }
        for Displaced { chain, by } in self.displaced {
            let Some(record) = self.state.chains.get(chain) else { continue };
            let of = |key: &ChainKey| self.asked.iter().find(|asked| asked.key == *key);
            let asked = of(by).or_else(|| of(chain));
            // A chain that is changed itself leaves that interface with all it has.
            let wanted = of(by).and_then(|asked| asked.wanted.as_ref());
            // By the name that it has in the state, and by the one that its interface has now.
            for target in [Target::from(chain.clone()), by.clone().into()] {
                items.extend(lost(target.hook, &record.wanted, wanted).map(|lost| AdmissionItem {
                    path: asked.map(|asked| asked.path.clone()).unwrap_or_default(),
                    ..deleted(&target, lost)
                }));
            }
        }
        items
    }
}

/// Parts, each once.
#[derive(Default)]
struct Items(Vec<AdmissionItem>);

impl Items {
    fn add(&mut self, item: AdmissionItem) {
        let says = |known: &AdmissionItem| {
            let within = if known.within.is_none() { None } else { item.within.clone() };
            let path = known.path.clone();
            *known == AdmissionItem { within, path, ..item.clone() }
        };
        // Two programs of one package on one hook are two parts.
        if !self.0.iter().any(says) {
            self.0.push(item);
        }
    }

    fn extend(&mut self, items: impl IntoIterator<Item = AdmissionItem>) {
        for item in items {
            self.add(item);
        }
    }
}

fn applied(
    target: &Target,
    within: Option<&InterfaceSelector>,
    program: &WantedProgram,
    path: String,
) -> AdmissionItem {
    AdmissionItem {
        within: within.cloned(),
        publisher: program.publisher.clone(),
        path,
        ..part(AdmissionVerb::Apply, target, program)
    }
}

fn deleted(target: &Target, lost: Lost<'_>) -> AdmissionItem {
    AdmissionItem {
        behind: lost.behind.map(|it| it.name.clone()),
        ..part(AdmissionVerb::Delete, target, lost.program)
    }
}

fn going_back(back: &Downgrade) -> AdmissionItem {
    AdmissionItem {
        netns: back.target.netns.clone(),
        interface: Some(back.target.interface.clone()),
        within: back.within.clone(),
        hook: Some(back.target.hook),
        program: Some(back.program.clone()),
        package: Some(back.package.clone()),
        version: Some(back.to.clone()),
        publisher: back.publisher.clone(),
        path: back.path.clone(),
        ..AdmissionItem::new(AdmissionVerb::Downgrade)
    }
}

/// A chain of which only the place is known.
fn bare(target: &Target) -> AdmissionItem {
    AdmissionItem {
        netns: target.netns.clone(),
        interface: Some(target.interface.clone()),
        hook: Some(target.hook),
        ..AdmissionItem::new(AdmissionVerb::Delete)
    }
}

/// The parts of what is done to a host as a whole: every program that is in a chain, or will be on an
/// interface to come.
pub fn of_host(state: &State, verb: AdmissionVerb) -> Vec<AdmissionItem> {
    let chains = state.chains.iter().map(|(key, chain)| (Target::from(key.clone()), &chain.wanted));
    let rules = state.rules.iter().map(|(target, rule)| (target.clone(), &rule.wanted));
    let mut items = Items::default();
    for (target, wanted) in chains.chain(rules) {
        items.extend(wanted.programs.iter().map(|program| part(verb, &target, program)));
    }
    if items.0.is_empty() {
        items.add(AdmissionItem::new(verb));
    }
    items.0
}

/// The part that a program has in what is done to a map.
pub fn of_map(
    verb: AdmissionVerb,
    target: &Target,
    program: &WantedProgram,
    map: &str,
) -> AdmissionItem {
    AdmissionItem {
        map: Some(map.to_owned()),
        path: "map".to_owned(),
        ..part(verb, target, program)
    }
}

fn part(verb: AdmissionVerb, target: &Target, program: &WantedProgram) -> AdmissionItem {
    AdmissionItem {
        netns: target.netns.clone(),
        interface: Some(target.interface.clone()),
        hook: Some(target.hook),
        program: Some(program.name.clone()),
        package: Some(program.package.clone()),
        version: Some(program.version.clone()),
        ..AdmissionItem::new(verb)
    }
}
