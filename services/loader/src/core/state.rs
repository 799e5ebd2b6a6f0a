//! What the loader remembers: the resolved intent, what it attached for it, totals, and the one
//! change that may be under way.

use super::totals::Totals;
use canopy_api::{
    ChainKey, Digest, HostId, InterfaceSelector, PackageName, Principal, ProgramName, Target,
    TcMode, VerdictSet, XdpMode,
    wire::{ChosenVariant, PassedOver},
};
use canopy_package::TrustedVersions;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Everything a restart needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The host whose state this is.
    pub host: HostId,
    /// One up for each change of what is desired.
    pub generation: u64,
    /// Whether everything is detached on purpose.
    pub drained: bool,
    /// The highest number given to a generation of any chain.
    pub last_build: u64,
    /// Every desired chain.
    #[serde(with = "pairs")]
    pub chains: BTreeMap<ChainKey, Chain>,
    /// What is described for the interfaces of selectors that are not plain names. Each interface
    /// that fits has a chain of its own in `chains`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", with = "pairs")]
    pub rules: BTreeMap<Target, Rule>,
    /// What generations that are gone have counted.
    pub totals: Totals,
    /// Generations that run no longer and whose counts are not in `totals` yet.
    pub retired: Vec<(ChainKey, u64)>,
    /// The highest index version seen, by the package the index was read for.
    pub index_versions: BTreeMap<PackageName, u64>,
    /// The same by the repository that the index is of, for packages that this host never had.
    #[serde(default, skip_serializing_if = "TrustedVersions::is_empty")]
    pub trusted_versions: TrustedVersions,
    /// The change that was begun and not committed.
    pub journal: Option<Journal>,
}

impl State {
    /// A host with nothing on it.
    pub fn new(host: HostId) -> Self {
        Self {
            host,
            generation: 0,
            drained: false,
            last_build: 0,
            chains: BTreeMap::new(),
            rules: BTreeMap::new(),
            totals: Totals::default(),
            retired: Vec::new(),
            index_versions: BTreeMap::new(),
            trusted_versions: TrustedVersions::default(),
            journal: None,
        }
    }

    /// The state once a journal's change is made.
    #[must_use]
    pub fn after(&self, journal: &Journal) -> Self {
        let mut next = self.clone();
        next.generation = journal.generation;
        next.drained = journal.drained;
        for change in &journal.changes {
            match &change.record {
                Some(record) => next.chains.insert(change.key.clone(), record.clone()),
                None => next.chains.remove(&change.key),
            };
        }
        for change in &journal.rules {
            match &change.rule {
                Some(rule) => next.rules.insert(change.target.clone(), rule.clone()),
                None => next.rules.remove(&change.target),
            };
        }
        next.journal = None;
        next
    }

    /// Every program that is desired, here or where a selector leads later.
    pub fn programs(&self) -> impl Iterator<Item = &WantedProgram> {
        let chains = self.chains.values().map(|chain| &chain.wanted);
        let rules = self.rules.values().map(|rule| &rule.wanted);
        chains.chain(rules).flat_map(|wanted| &wanted.programs)
    }

    /// Whether everything in it is in the loader's own network namespace.
    pub fn is_own_netns(&self) -> bool {
        let own = |key: &ChainKey| key.netns.is_none();
        let journal = |journal: &Journal| {
            journal.changes.iter().all(|change| own(&change.key))
                && journal.rules.iter().all(|change| change.target.netns.is_none())
        };
        self.chains.keys().all(own)
            && self.rules.keys().all(|target| target.netns.is_none())
            && self.totals.chains().all(own)
            && self.retired.iter().all(|(key, _)| own(key))
            && self.journal.as_ref().is_none_or(journal)
    }

    /// Whether a pinned generation is of use: attached, kept for later, or still to be counted.
    pub fn needs(&self, key: &ChainKey, generation: u64) -> bool {
        self.chains.get(key).is_some_and(|chain| chain.running == generation)
            || self.retired.iter().any(|(of, retired)| of == key && *retired == generation)
            || self.journal.iter().flat_map(|journal| &journal.changes).any(|change| {
                change.key == *key
                    && (change.from == Some(generation) || change.to == Some(generation))
            })
    }
}

/// A desired chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chain {
    /// What is wanted, everything resolved.
    pub wanted: Wanted,
    /// The generation that was built for it.
    pub running: u64,
    /// When `wanted` last changed, seconds since the epoch.
    pub changed: u64,
    /// Who changed it.
    pub changed_by: Principal,
    /// How often it was restored after somebody removed or replaced it.
    pub restored: u64,
    /// Since when each program is in the chain with these bytes, seconds since the epoch.
    pub since: BTreeMap<ProgramName, u64>,
    /// The selector it comes from; `None` for a chain that was applied to the interface by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<InterfaceSelector>,
}

/// What is described for the interfaces of a selector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What the chain of each is to be.
    pub wanted: Wanted,
    /// When `wanted` last changed, seconds since the epoch.
    pub changed: u64,
    /// Who changed it.
    pub changed_by: Principal,
}

/// What a chain is to be: versions, programs and priorities resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// How XDP is attached.
    pub xdp_mode: XdpMode,
    /// How TC is attached.
    #[serde(default, skip_serializing_if = "TcMode::is_best")]
    pub tc_mode: TcMode,
    /// The programs, in the order in which they run; at least one.
    pub programs: Vec<WantedProgram>,
}

/// One program of a chain, resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WantedProgram {
    /// Its name in the chain.
    pub name: ProgramName,
    /// Its package.
    pub package: PackageName,
    /// The exact version.
    pub version: semver::Version,
    /// The exact bytes.
    pub digest: Digest,
    /// The public key whose signature on them was verified; absent where signatures do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publisher: Option<String>,
    /// The program of the package.
    pub program: String,
    /// The object file in the package.
    pub object: String,
    /// Why that one, where the program has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<Choice>,
    /// The function in the object.
    pub function: String,
    /// Its priority.
    pub priority: u16,
    /// Verdicts after which the chain goes on.
    #[serde(with = "verdict_bits")]
    pub proceed_on: VerdictSet,
    /// Whether it handles multi-buffer packets.
    pub frags: bool,
    /// Settings as given.
    pub config: Map<String, Value>,
}

/// Why a program's object is what it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// The kernel release it was made for; empty for one that is to be made.
    pub kernel: String,
    /// The objects that go before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passed_over: Vec<PassedOver>,
}

impl WantedProgram {
    /// Which of several objects it has, and why.
    pub fn variant(&self) -> Option<ChosenVariant> {
        let Choice { kernel, passed_over } = self.choice.clone()?;
        Some(ChosenVariant { object: self.object.clone(), kernel, passed_over })
    }
}

impl Wanted {
    /// Whether the same is built from both: who signed the bytes is not in them.
    pub fn builds_like(&self, other: &Self) -> bool {
        let alike = |(a, b): (&WantedProgram, &WantedProgram)| {
            let publisher = b.publisher.clone();
            *b == WantedProgram { publisher, ..a.clone() }
        };
        (self.xdp_mode, self.tc_mode, self.programs.len())
            == (other.xdp_mode, other.tc_mode, other.programs.len())
            && self.programs.iter().zip(&other.programs).all(alike)
    }

    /// The choices of its programs that have several objects.
    pub fn choices(&self) -> impl Iterator<Item = &Choice> {
        self.programs.iter().filter_map(|program| program.choice.as_ref())
    }

    /// Has every choice made again.
    pub fn forget_choices(&mut self) {
        for choice in self.programs.iter_mut().filter_map(|program| program.choice.as_mut()) {
            *choice = Choice::default();
        }
    }
}

/// A change between intent and commit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    /// The host's generation once it is made.
    pub generation: u64,
    /// Whether the host is drained once it is made.
    pub drained: bool,
    /// Each chain that it changes.
    pub changes: Vec<Change>,
    /// Each rule that it changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleChange>,
    /// Whether it failed and whoever asked was told so: it may only be taken back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failed: bool,
}

/// What a journal does to one rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleChange {
    /// Whose.
    pub target: Target,
    /// The rule once it is made; `None` forgets it.
    pub rule: Option<Rule>,
}

/// What a journal does to one chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// The chain.
    pub key: ChainKey,
    /// The generation attached before, if any.
    pub from: Option<u64>,
    /// The generation to be attached; `None` detaches.
    pub to: Option<u64>,
    /// How XDP is attached when `from` has to come back.
    pub from_mode: XdpMode,
    /// The chain's record once it is made; `None` forgets the chain.
    pub record: Option<Chain>,
}

/// Maps whose keys are not text, as lists of pairs.
pub(super) mod pairs {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::collections::BTreeMap;

    pub(crate) fn serialize<K, V, S>(map: &BTreeMap<K, V>, serializer: S) -> Result<S::Ok, S::Error>
    where
        K: Serialize,
        V: Serialize,
        S: Serializer,
    {
        serializer.collect_seq(map)
    }

    pub(crate) fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(deserializer)?.into_iter().collect())
    }
}

mod verdict_bits {
    use canopy_api::VerdictSet;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
    pub(super) fn serialize<S: Serializer>(set: &VerdictSet, to: S) -> Result<S::Ok, S::Error> {
        set.bits().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<VerdictSet, D::Error> {
        u32::deserialize(from).map(VerdictSet::from_bits)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Programs of packages that are called as they are.
    pub(crate) fn wanted(programs: &[&str]) -> Wanted {
        let programs = programs.iter().map(|name| WantedProgram {
            name: name.parse().unwrap(),
            package: name.parse().unwrap(),
            version: semver::Version::new(1, 0, 0),
            digest: Digest::of(name.as_bytes()),
            publisher: None,
            program: "main".to_owned(),
            object: "main.o".to_owned(),
            choice: None,
            function: "main".to_owned(),
            priority: 1,
            // XDP's `pass`.
            proceed_on: VerdictSet::from_bits(4),
            frags: false,
            config: Map::new(),
        });
        Wanted { xdp_mode: XdpMode::Best, tc_mode: TcMode::Best, programs: programs.collect() }
    }

    /// As a loader wrote it that knew neither selectors nor clsact.
    const BEFORE: &str = r#"{
        "host": "web1", "generation": 3, "drained": false, "last_build": 4,
        "chains": [[{"interface": "eth0", "hook": "xdp"}, {
            "wanted": {"xdp_mode": "best", "programs": [{
                "name": "a", "package": "wall", "version": "0.1.0",
                "digest": "sha256:0000000000000000000000000000000000000000000000000000000000000000",
                "program": "main", "object": "main.o", "function": "main", "priority": 10,
                "proceed_on": 4, "frags": false, "config": {}}]},
            "running": 4, "changed": 1, "changed_by": "u-alice", "restored": 0, "since": {"a": 1}}]],
        "totals": [], "retired": [], "index_versions": {},
        "journal": {"generation": 4, "drained": false, "changes": [{
            "key": {"interface": "eth0", "hook": "xdp"},
            "from": 4, "to": null, "from_mode": "best", "record": null}]}}"#;

    #[test]
    fn a_state_from_before_selectors_is_read_and_written_alike() {
        let before: Value = serde_json::from_str(BEFORE).unwrap();
        let state: State = serde_json::from_str(BEFORE).unwrap();
        assert_eq!(serde_json::to_value(&state).unwrap(), before);
        assert!(state.is_own_netns());
    }

    #[test]
    fn a_chain_of_another_namespace_is_known_wherever_it_stands() {
        let at = |text: &str| -> bool {
            let text = BEFORE.replace(text, &format!(r#"{{"netns": "blue", {}"#, &text[1..]));
            serde_json::from_str::<State>(&text).unwrap().is_own_netns()
        };
        assert!(!at(r#"{"interface": "eth0", "hook": "xdp"}, {"#));
        assert!(!at(r#"{"interface": "eth0", "hook": "xdp"},
            "from""#));
        let departed = r#"[[[{"netns": "blue", "interface": "eth0", "hook": "xdp"}, "a"],
            {"exits": [[1, 2]], "proceeds": []}]]"#;
        let text = BEFORE.replace(r#""totals": []"#, &format!(r#""totals": {departed}"#));
        assert!(!serde_json::from_str::<State>(&text).unwrap().is_own_netns());
    }
}
