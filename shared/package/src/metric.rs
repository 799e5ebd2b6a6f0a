//! Metrics from maps: what the entries of a map mean, by the manifest.

use crate::manifest::{KeyLabel, KeyType, Metric, PerCpu, Select, ValueType};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, net::Ipv6Addr};

/// One value of a metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Label and text.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

/// What a metric says, from the entries of its map: key, and a value for each CPU (one for maps
/// that are not per-CPU). `effective` are the program's settings with defaults filled in. Entries
/// that do not have the layout the manifest speaks of are left out.
pub fn samples(
    metric: &Metric,
    effective: &Map<String, Value>,
    entries: &[(Vec<u8>, Vec<Vec<u8>>)],
) -> Vec<Sample> {
    let value = |values: &[Vec<u8>]| read(metric, values);
    let slot = |wanted: u32| {
        entries
            .iter()
            .find(|(key, _)| key.as_slice() == wanted.to_ne_bytes())
            .and_then(|(_, values)| value(values))
    };
    let total = |value: u64| vec![Sample { labels: BTreeMap::new(), value: float(value) }];
    match &metric.select {
        Select::Slot(wanted) => slot(*wanted).map(total).unwrap_or_default(),
        Select::Count => total(u64::try_from(entries.len()).unwrap_or(u64::MAX)),
        Select::Total => total(
            entries.iter().filter_map(|(_, values)| value(values)).fold(0, u64::saturating_add),
        ),
        Select::Items { label, config, first } => {
            let items = effective.get(config).and_then(Value::as_array);
            // Lists are long, and so are the arrays of their slots.
            let slots: BTreeMap<&[u8], &[Vec<u8>]> =
                entries.iter().map(|(key, values)| (key.as_slice(), values.as_slice())).collect();
            let slot = |at: u32| slots.get(at.to_ne_bytes().as_slice()).and_then(|all| value(all));
            let labelled = (*first..).zip(items.into_iter().flatten()).filter_map(|(at, item)| {
                let text = item.as_str().map_or_else(|| item.to_string(), str::to_owned);
                Some((BTreeMap::from([(label.clone(), text)]), slot(at)?))
            });
            merged(labelled)
                .into_iter()
                .map(|(l, v)| Sample { labels: l, value: float(v) })
                .collect()
        }
        Select::Top { count, labels } => {
            let labelled = entries.iter().filter_map(|(key, values)| {
                let labels: Option<BTreeMap<_, _>> = labels
                    .iter()
                    .map(|label| Some((label.label.clone(), text(label, key)?)))
                    .collect();
                Some((labels?, value(values)?))
            });
            let mut all: Vec<_> = merged(labelled).into_iter().collect();
            all.sort_by(|(a_labels, a), (b_labels, b)| b.cmp(a).then(a_labels.cmp(b_labels)));
            all.truncate(usize::try_from(*count).unwrap_or(usize::MAX));
            all.into_iter().map(|(l, v)| Sample { labels: l, value: float(v) }).collect()
        }
    }
}

/// Entries whose labels are the same are one: no label set is told twice.
fn merged(
    labelled: impl Iterator<Item = (BTreeMap<String, String>, u64)>,
) -> BTreeMap<BTreeMap<String, String>, u64> {
    let mut out = BTreeMap::new();
    for (labels, value) in labelled {
        let at: &mut u64 = out.entry(labels).or_default();
        *at = at.saturating_add(value);
    }
    out
}

fn read(metric: &Metric, values: &[Vec<u8>]) -> Option<u64> {
    let mut numbers = values.iter().map(|value| number(metric, value));
    let first = numbers.next()??;
    numbers.try_fold(first, |so_far, next| {
        let next = next?;
        Some(match metric.per_cpu {
            PerCpu::Sum => so_far.saturating_add(next),
            PerCpu::Max => so_far.max(next),
        })
    })
}

fn number(metric: &Metric, value: &[u8]) -> Option<u64> {
    let at = usize::try_from(metric.offset).ok()?;
    match metric.value {
        ValueType::U32 => bytes(value, at).map(u32::from_ne_bytes).map(u64::from),
        ValueType::U64 => bytes(value, at).map(u64::from_ne_bytes),
    }
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// A Prometheus value. Above 2⁵³ the lowest bits are lost, as everywhere in Prometheus.
#[allow(clippy::cast_precision_loss, reason = "the exposition format has no wider number")]
fn float(value: u64) -> f64 {
    value as f64
}

fn text(label: &KeyLabel, key: &[u8]) -> Option<String> {
    let at = usize::try_from(label.offset).ok()?;
    Some(match label.kind {
        KeyType::U8 => u8::from_ne_bytes(bytes(key, at)?).to_string(),
        KeyType::U16 => u16::from_ne_bytes(bytes(key, at)?).to_string(),
        KeyType::Be16 => u16::from_be_bytes(bytes(key, at)?).to_string(),
        KeyType::U32 => u32::from_ne_bytes(bytes(key, at)?).to_string(),
        KeyType::Be32 => u32::from_be_bytes(bytes(key, at)?).to_string(),
        KeyType::Ip => Ipv6Addr::from(bytes::<16>(key, at)?).to_canonical().to_string(),
        KeyType::Protocol => protocol(u8::from_ne_bytes(bytes(key, at)?)),
    })
}

/// IANA, Assigned Internet Protocol Numbers: those one meets.
fn protocol(number: u8) -> String {
    match number {
        1 => "icmp",
        2 => "igmp",
        6 => "tcp",
        17 => "udp",
        47 => "gre",
        50 => "esp",
        51 => "ah",
        58 => "icmpv6",
        132 => "sctp",
        other => return other.to_string(),
    }
    .to_owned()
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "sums of whole numbers are exact")]
mod tests {
    use super::*;
    use crate::manifest::MetricKind;
    use serde_json::json;

    fn metric(select: Select) -> Metric {
        Metric {
            name: "blocked".into(),
            help: "packets".into(),
            kind: MetricKind::Counter,
            map: "counters".into(),
            select,
            offset: 8,
            value: ValueType::U64,
            per_cpu: PerCpu::Sum,
        }
    }

    fn entry(key: &[u8], cpus: &[u64]) -> (Vec<u8>, Vec<Vec<u8>>) {
        let value = |count: &u64| [0_u64.to_ne_bytes(), count.to_ne_bytes()].concat();
        (key.to_vec(), cpus.iter().map(value).collect())
    }

    fn slot(slot: u32, cpus: &[u64]) -> (Vec<u8>, Vec<Vec<u8>>) {
        entry(&slot.to_ne_bytes(), cpus)
    }

    #[test]
    fn cpus_are_summed_or_the_highest_is_taken() {
        let entries = [slot(0, &[1, 2, 3]), slot(1, &[9])];
        let mut metric = metric(Select::Slot(0));
        let value = |metric: &Metric| samples(metric, &Map::new(), &entries)[0].value;
        assert_eq!(value(&metric), 6.0);
        metric.per_cpu = PerCpu::Max;
        assert_eq!(value(&metric), 3.0);
        metric.select = Select::Total;
        metric.per_cpu = PerCpu::Sum;
        assert_eq!(value(&metric), 15.0);
    }

    #[test]
    fn slots_belong_to_the_items_of_a_list() {
        let select = Select::Items { label: "prefix".into(), config: "blocked".into(), first: 1 };
        let effective = json!({ "blocked": ["198.51.100.0/24", "192.0.2.0/24"] });
        let entries = [slot(0, &[100]), slot(1, &[5]), slot(2, &[7])];
        let got = samples(&metric(select), effective.as_object().unwrap(), &entries);
        let got: Vec<_> = got.iter().map(|s| (s.labels["prefix"].as_str(), s.value)).collect();
        assert_eq!(got, [("192.0.2.0/24", 7.0), ("198.51.100.0/24", 5.0)]);
    }

    #[test]
    fn the_highest_are_told_and_their_keys_read() {
        let labels = vec![
            KeyLabel { label: "source".into(), offset: 0, kind: KeyType::Ip },
            KeyLabel { label: "port".into(), offset: 16, kind: KeyType::Be16 },
            KeyLabel { label: "protocol".into(), offset: 18, kind: KeyType::Protocol },
        ];
        let key = |last: u8| {
            let mut key = vec![0; 10];
            key.extend([0xff, 0xff, 192, 0, 2, last, 0, 53, 17]);
            key
        };
        let entries: Vec<_> = (1..=9).map(|i| entry(&key(i), &[u64::from(i)])).collect();
        let got = samples(&metric(Select::Top { count: 2, labels }), &Map::new(), &entries);
        assert_eq!(got.len(), 2);
        assert_eq!(got[0].value, 9.0);
        assert_eq!(
            got[0].labels,
            [("source", "192.0.2.9"), ("port", "53"), ("protocol", "udp")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into()
        );
    }

    #[test]
    fn short_entries_are_left_out() {
        let entries = [(0_u32.to_ne_bytes().to_vec(), vec![vec![1, 2, 3]])];
        assert_eq!(samples(&metric(Select::Slot(0)), &Map::new(), &entries), []);
        assert_eq!(samples(&metric(Select::Total), &Map::new(), &entries)[0].value, 0.0);
    }
}
