//! `package.yaml`: what a package is, what it runs, what can be set, what it counts.

use canopy_api::{Hook, PackageName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A package's manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The package.
    pub name: PackageName,
    /// Semantic version.
    pub version: semver::Version,
    /// One line.
    pub description: String,
    /// SPDX expression for the package.
    pub license: String,
    /// Words to be found by, at most 10: a-z, 0-9 and '-', at most 32 letters each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keywords: Vec<String>,
    /// Who wrote it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authors: Vec<String>,
    /// What the host must have.
    #[serde(default)]
    pub requires: Requires,
    /// The programs; at least one.
    #[schemars(length(min = 1))]
    pub programs: Vec<ManifestProgram>,
    /// What can be set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub config: Vec<Parameter>,
    /// What it counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<Metric>,
    /// How its maps are treated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub maps: Vec<ManifestMap>,
}

/// What the host must have.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Requires {
    /// Lowest kernel release: `5.15`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Machine architectures, as in `uname -m`; empty for any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arch: Vec<String>,
    /// Facts (`canopy doctor`) that must be there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
}

/// A program of the package. The manifest, not the ELF section name, decides its type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ManifestProgram {
    /// Its name in the package.
    pub name: String,
    /// The object file in the package; where there are variants, the one of a host that none of them
    /// fits.
    pub object: String,
    /// Other objects of the same program, the most preferred first: the first that a host can do is
    /// used there. At most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variants: Vec<Variant>,
    /// The function in each of the objects.
    pub function: String,
    /// Where it can be put; all of one program type (`xdp`, or the two of TC).
    #[schemars(length(min = 1))]
    pub hooks: Vec<Hook>,
    /// Default place in a chain. Default 100.
    #[serde(default = "default_priority")]
    pub priority: u16,
    /// Default verdicts after which a chain goes on; default the hook's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proceed_on: Option<Vec<String>>,
    /// Handles multi-buffer packets. A function in a section `xdp.frags` says so by itself. Default
    /// false.
    #[serde(default)]
    pub frags: bool,
    /// Tail calls a packet can take in it at most, 0 to 33 (the kernel's limit, for the whole chain
    /// together). Default: what the object itself fills its program arrays with decides, and 33 where
    /// an array is shared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 33))]
    pub tail_calls: Option<u32>,
}

impl Manifest {
    /// Time series that its metrics can be of one program, whatever the settings.
    pub fn most_series(&self) -> u64 {
        self.count_series(|config| {
            let list = self.config.iter().find(|parameter| parameter.name == config);
            list.and_then(|parameter| parameter.max).unwrap_or(crate::bind::LIST_LIMIT)
        })
    }

    /// Time series that its metrics are of one program with these settings.
    pub fn series(&self, settings: &Map<String, Value>) -> u64 {
        self.count_series(|config| {
            let default = || {
                let list = self.config.iter().find(|parameter| parameter.name == config);
                list.and_then(|parameter| parameter.default.as_ref())
            };
            let items = settings.get(config).or_else(default).and_then(Value::as_array);
            items.map_or(0, |items| items.len() as u64)
        })
    }

    fn count_series(&self, items: impl Fn(&str) -> u64) -> u64 {
        let each = self.metrics.iter().map(|metric| match &metric.select {
            Select::Slot(_) | Select::Count | Select::Total => 1,
            Select::Items { config, .. } => items(config),
            Select::Top { count, .. } => u64::from(*count),
        });
        each.fold(0, u64::saturating_add)
    }
}

fn default_priority() -> u16 {
    100
}

impl ManifestProgram {
    /// Its object files, the most preferred first, each with where the program names it:
    /// `variants[0].object`, `object`.
    pub fn objects(&self) -> impl Iterator<Item = (String, &str)> {
        let variants = self.variants.iter().enumerate();
        variants
            .map(|(i, variant)| (format!("variants[{i}].object"), variant.object.as_str()))
            .chain([("object".to_owned(), self.object.as_str())])
    }
}

/// Another object of a program, for hosts that can do more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// The object file in the package.
    pub object: String,
    /// What the host must have for it, besides what the package requires; not empty.
    pub requires: Requires,
}

/// A setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: ParameterType,
    /// One line.
    pub description: String,
    /// Unit, in words: `packets/s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Value when nothing is set. Without one the setting is required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// Lowest number, or fewest items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u64>,
    /// Highest number, or most items, or longest string in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// Where the value goes.
    pub bind: Bind,
}

/// Type of a setting, how it is written and how it is laid out in memory (host byte order unless
/// said otherwise).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ParameterType {
    /// 0..=2³²-1; 4 bytes.
    U32,
    /// 0..=2⁶⁴-1; 8 bytes.
    U64,
    /// true or false; 1 byte.
    Bool,
    /// `250ms`, `10s`, `5m`, `1h`, `1d`; 8 bytes, nanoseconds.
    Duration,
    /// 1..=65535; 2 bytes.
    Port,
    /// List of ports; each one map entry: key 2 bytes, value the position in the list, 4 bytes.
    Ports,
    /// List of IPv4 and IPv6 prefixes or addresses; each one LPM entry: key 4-byte prefix length
    /// and the address (network order), value the position in the list and the prefix length, 4
    /// bytes each (a lookup does not say how long the prefix that matched was).
    Prefixes,
    /// `02:00:5e:10:00:01`; 6 bytes.
    Mac,
    /// Text; its bytes and zeros up to `max` + 1.
    String,
}

/// Where a setting's value goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, deny_unknown_fields)]
pub enum Bind {
    /// A global variable (`.rodata` or `.data`).
    Global {
        /// Its symbol.
        global: String,
    },
    /// A slot of an array map whose value is this setting alone or starts at `offset`.
    Slot {
        /// The array map.
        map: String,
        /// The slot.
        slot: u32,
        /// Offset in the value, bytes. Default 0.
        #[serde(default)]
        offset: u32,
        /// Size of the whole value, bytes; settings bound to the same slot are put together.
        value_size: u32,
    },
    /// A hash map: `ports`.
    Keys {
        /// The map; each item is a key.
        keys: String,
    },
    /// Two LPM tries, and if wanted two hash maps for whole addresses: `prefixes`.
    Prefixes {
        /// IPv4 trie.
        lpm_v4: String,
        /// IPv6 trie.
        lpm_v6: String,
        /// Hash map of the whole IPv4 addresses (/32), which are then not in the trie: key the
        /// address, 4 bytes, value as in the trie.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hash_v4: Option<String>,
        /// Hash map of the whole IPv6 addresses (/128): key 16 bytes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hash_v6: Option<String>,
        /// Global variable of 1 byte that says which of these maps have entries: 1 `lpm_v4`,
        /// 2 `lpm_v6`, 4 `hash_v4`, 8 `hash_v6`. A program that asks it first pays nothing for an
        /// empty list.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        filled: Option<String>,
    },
}

impl Bind {
    /// The maps it fills.
    pub fn maps(&self) -> Vec<&str> {
        match self {
            Self::Global { .. } => Vec::new(),
            Self::Slot { map, .. } => vec![map],
            Self::Keys { keys } => vec![keys],
            Self::Prefixes { lpm_v4, lpm_v6, hash_v4, hash_v6, .. } => {
                let hashes = [hash_v4.as_deref(), hash_v6.as_deref()];
                [lpm_v4.as_str(), lpm_v6].into_iter().chain(hashes.into_iter().flatten()).collect()
            }
        }
    }

    /// The global variable it sets.
    pub fn global(&self) -> Option<&str> {
        match self {
            Self::Global { global } => Some(global),
            Self::Slot { .. } | Self::Keys { .. } => None,
            Self::Prefixes { filled, .. } => filled.as_deref(),
        }
    }
}

/// A metric read from a map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// `[a-z][a-z0-9_]*`, without prefix.
    pub name: String,
    /// What it counts.
    pub help: String,
    /// Counter or gauge.
    pub kind: MetricKind,
    /// The map.
    pub map: String,
    /// Which entries.
    pub select: Select,
    /// Offset of the value in the entry's value, bytes. Default 0.
    #[serde(default)]
    pub offset: u32,
    /// Width and sign of the value. Default u64.
    #[serde(default)]
    pub value: ValueType,
    /// How the CPUs' values become one, in per-CPU maps. Default sum.
    #[serde(default)]
    pub per_cpu: PerCpu,
}

/// Counter or gauge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MetricKind {
    /// Only goes up.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// Which entries of a map make a metric.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Select {
    /// One slot of an array.
    Slot(u32),
    /// The number of entries of a hash.
    Count,
    /// The sum over all entries.
    Total,
    /// Slot i of an array belongs to item i of a list setting; the label is the item's text.
    Items {
        /// The label's name.
        label: String,
        /// The list setting.
        config: String,
        /// Slots before the first item. Default 0.
        #[serde(default)]
        first: u32,
    },
    /// The entries with the highest values only.
    Top {
        /// How many, at most 100.
        count: u32,
        /// Labels read from the key.
        labels: Vec<KeyLabel>,
    },
}

/// A label read from a map's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyLabel {
    /// Its name.
    pub label: String,
    /// Offset in the key, bytes.
    pub offset: u32,
    /// How to read it.
    #[serde(rename = "type")]
    pub kind: KeyType,
}

/// How a piece of a key is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyType {
    /// 1 byte.
    U8,
    /// 2 bytes, host order.
    U16,
    /// 2 bytes, network order.
    Be16,
    /// 4 bytes, host order.
    U32,
    /// 4 bytes, network order.
    Be32,
    /// 16 bytes: an IPv6 address, IPv4 ones as `::ffff:a.b.c.d` and shown as IPv4.
    Ip,
    /// 1 byte: an IP protocol number, shown by name where it has one.
    Protocol,
}

/// Width and sign of a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ValueType {
    /// 4 bytes.
    U32,
    /// 8 bytes.
    #[default]
    U64,
}

/// How the CPUs' values become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PerCpu {
    /// Their sum.
    #[default]
    Sum,
    /// The highest.
    Max,
}

/// How a map is treated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ManifestMap {
    /// Its name in the object.
    pub name: String,
    /// Kept when the version changes, where its shape is the same. Default false.
    #[serde(default)]
    pub carry_over: bool,
    /// Shared with the same map of other programs. Default: not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<Shared>,
    /// Overrides the object's `max_entries`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_entries: Option<u32>,
}

/// Who shares a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shared {
    /// The chains of one interface.
    Interface,
    /// Every chain of the host.
    Host,
}
