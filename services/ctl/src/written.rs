//! Addresses in keys and values of maps, as people write them: `192.0.2.0/24`, `2001:db8::1`,
//! `52:54:00:12:34:56`. They are made into what the map's type takes, before anything is sent; what is not
//! understood stays as it is, and the host says what it takes.

use crate::{
    failure::{Exit, Failure},
    view::address::Declared,
};
use canopy_api::{prefix::network_of, wire::MapInfo};
use serde_json::{Map, Value, json};
use std::{fmt::Write as _, net::IpAddr};

/// Whether there is an address anywhere in a value: only then the type of the map has to be known.
pub fn has_address(value: &Value) -> bool {
    match value {
        Value::String(text) => {
            let address = text.split_once('/').map_or(text.as_str(), |(address, _)| address);
            address.parse::<IpAddr>().is_ok() || mac(text).is_some()
        }
        Value::Array(items) => items.iter().any(has_address),
        Value::Object(fields) => fields.values().any(has_address),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// A key as the host takes it.
///
/// # Errors
/// Where a prefix is none.
pub fn key(info: &MapInfo, key: &Value) -> Result<Value, Failure> {
    let declared = Declared::parse(info.key_type.as_deref().unwrap_or_default());
    let Value::String(text) = key else { return Ok(declared.taken(key)) };
    if info.kind == "lpm_trie" {
        let Some((address, length)) = prefix(text)? else { return Ok(key.clone()) };
        let made = match &info.key_type {
            Some(_) => declared.prefix(address, length),
            None => untyped_prefix(info.key_size, address, length),
        };
        return made.ok_or_else(|| {
            let of = info.key_type.as_deref().unwrap_or("no type");
            let message = format!("{text} is not a key of {}: its keys have {of}", info.name);
            Failure::new(Exit::Invalid, message).fix("canopy map dump shows how its keys look")
        });
    }
    if info.key_type.is_none()
        && let Ok(address) = text.parse::<IpAddr>()
    {
        let octets = octets(address, info.key_size as usize);
        return Ok(octets.map_or_else(|| key.clone(), |octets| hexadecimal(&octets)));
    }
    Ok(declared.taken(key))
}

/// A value as the host takes it.
pub fn value(info: &MapInfo, value: &Value) -> Value {
    Declared::parse(info.value_type.as_deref().unwrap_or_default()).taken(value)
}

/// `192.0.2.0/24`; an address alone is the prefix of its full length.
fn prefix(text: &str) -> Result<Option<(IpAddr, u8)>, Failure> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else { return Ok(None) };
    let full = if address.is_ipv4() { 32 } else { 128 };
    let Some(length) = length else { return Ok(Some((address, full))) };
    let length = length.parse::<u8>().ok().filter(|length| *length <= full).ok_or_else(|| {
        Failure::new(Exit::Invalid, format!("\"{text}\": the prefix has no length of 0 to {full}"))
            .fix(format!("write {address}/{full} for the one address"))
    })?;
    let network = network_of(address, length);
    if network != address {
        return Err(Failure::new(
            Exit::Invalid,
            format!("\"{text}\" has bits set beyond its prefix"),
        )
        .fix(format!("write {network}/{length}, or {address} for the one address")));
    }
    Ok(Some((address, length)))
}

/// Six bytes as one writes them.
fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

/// An address in so many bytes, IPv4 in IPv6's form where they are 16.
fn octets(address: IpAddr, size: usize) -> Option<Vec<u8>> {
    match (address, size) {
        (IpAddr::V4(address), 4) => Some(address.octets().to_vec()),
        (IpAddr::V4(address), 16) => Some(address.to_ipv6_mapped().octets().to_vec()),
        (IpAddr::V6(address), 16) => Some(address.octets().to_vec()),
        _ => None,
    }
}

/// The length of a prefix in so many bytes.
fn length_in(address: IpAddr, length: u8, size: usize) -> u8 {
    if address.is_ipv4() && size == 16 { length.saturating_add(96) } else { length }
}

fn hexadecimal(bytes: &[u8]) -> Value {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text.into()
}

fn untyped_prefix(key_size: u32, address: IpAddr, length: u8) -> Option<Value> {
    let size = (key_size as usize).checked_sub(4)?;
    let octets = octets(address, size)?;
    let length = u32::from(length_in(address, length, size));
    Some(hexadecimal(&[length.to_ne_bytes().to_vec(), octets].concat()))
}

impl Declared {
    /// The value with every address in it as people write it; as it is where this program could not read
    /// it back.
    pub(crate) fn shown_reversibly(&self, value: &Value) -> Value {
        let shown = self.shown(value);
        if shown == *value || self.shown(&self.taken(&shown)) == shown {
            shown
        } else {
            value.clone()
        }
    }

    /// The value with every address in it as the type takes it.
    fn taken(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => self.of_text(text).unwrap_or_else(|| value.clone()),
            Value::Object(fields) => {
                let taken = fields.iter().map(|(name, value)| {
                    let taken =
                        self.field(name).map_or_else(|| value.clone(), |of| of.taken(value));
                    (name.clone(), taken)
                });
                Value::Object(taken.collect())
            }
            // Structs one after the other.
            Value::Array(items) if self.count().is_some() && !self.fields().is_empty() => {
                Value::Array(items.iter().map(|item| self.taken(item)).collect())
            }
            other => other.clone(),
        }
    }

    fn of_text(&self, text: &str) -> Option<Value> {
        match text.parse::<IpAddr>() {
            Ok(address) => self.of_address(address).map(|(value, _)| value),
            Err(_) => self.of_mac(mac(text)?),
        }
    }

    /// The address, and how many bytes the type has for it.
    fn of_address(&self, address: IpAddr) -> Option<(Value, usize)> {
        match (self.count(), address) {
            (None, IpAddr::V4(v4)) if matches!(self.head(), "__be32" | "be32") => {
                Some((u32::from(v4).into(), 4))
            }
            (Some(size), _) if self.is_byte() => Some((octets(address, size)?.into(), size)),
            _ => self.within(|field| field.of_address(address)),
        }
    }

    fn of_mac(&self, bytes: [u8; 6]) -> Option<Value> {
        if self.is_byte() && self.count() == Some(6) {
            return Some(json!(bytes));
        }
        self.within(|field| Some((field.of_mac(bytes)?, 6))).map(|(value, _)| value)
    }

    /// A struct around the one thing that is meant, or the first view of a union that is one.
    fn within(&self, find: impl Fn(&Self) -> Option<(Value, usize)>) -> Option<(Value, usize)> {
        if self.count().is_some() {
            return None;
        }
        let fields = match self.fields() {
            [only] => std::slice::from_ref(only),
            several if self.head().starts_with("union") => several,
            _ => return None,
        };
        fields.iter().find_map(|field| {
            let (value, size) = find(field)?;
            // What is in a member without a name belongs to the outer one.
            let value = if field.name().is_empty() {
                value
            } else {
                Value::Object(Map::from_iter([(field.name().to_owned(), value)]))
            };
            Some((value, size))
        })
    }

    /// The key of an LPM trie: the length first, then the address.
    fn prefix(&self, address: IpAddr, length: u8) -> Option<Value> {
        let [first, second] = self.fields() else { return None };
        let (value, size) = second.of_address(address).or_else(|| match address {
            // The trie compares bits in the order of the network, whatever the type says.
            IpAddr::V4(v4) if second.count().is_none() && second.fields().is_empty() => {
                Some((u32::from_ne_bytes(v4.octets()).into(), 4))
            }
            _ => None,
        })?;
        let mut fields = Map::new();
        fields.insert(first.name().to_owned(), length_in(address, length, size).into());
        match value {
            Value::Object(inner) if second.name().is_empty() => fields.extend(inner),
            value => {
                fields.insert(second.name().to_owned(), value);
            }
        }
        Some(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(kind: &str, key_size: u32, key_type: Option<&str>) -> MapInfo {
        serde_json::from_value(json!({
            "interface": "eth0", "hook": "xdp", "program": "p", "map": "m", "generation": 1, "id": 1,
            "type": kind, "key_size": key_size, "value_size": 8, "max_entries": 1, "values": 1,
            "access": "read_write", "key_type": key_type, "value_type": "struct v { __u8 mac[6]; }",
        }))
        .unwrap()
    }

    #[test]
    fn keys_of_tries_are_written_as_prefixes() {
        let length = |number: u32| hexadecimal(&number.to_ne_bytes()).as_str().unwrap().to_owned();
        let bytes = "struct key { __u32 prefixlen; __u8 addr[4]; }";
        let be32 = "struct key { __u32 prefixlen; __be32 addr; }";
        let host = "struct key { __u32 len; __u32 ip; }";
        let union = "struct key { __u32 prefixlen; union { __be32 v4; __u8 bytes[4]; }; }";
        let v6 = "struct key { __u32 prefixlen; struct in6_addr { union { __u8 u6_addr8[16]; } in6_u; } addr; }";
        let sixteen = "struct key { __u32 prefixlen; __u8 addr[16]; }";
        let mapped = |last: [u8; 4]| {
            let mut all = vec![0; 10];
            all.extend([255, 255]);
            all.extend(last);
            json!(all)
        };
        for (size, ty, text, expected) in [
            (8, Some(bytes), "192.0.2.0/24", json!({ "prefixlen": 24, "addr": [192, 0, 2, 0] })),
            (8, Some(bytes), "192.0.2.1", json!({ "prefixlen": 32, "addr": [192, 0, 2, 1] })),
            (8, Some(be32), "10.0.0.0/8", json!({ "prefixlen": 8, "addr": 0x0a00_0000 })),
            (
                8,
                Some(host),
                "10.0.0.0/8",
                json!({ "len": 8, "ip": u32::from_ne_bytes([10, 0, 0, 0]) }),
            ),
            (8, Some(union), "10.0.0.0/8", json!({ "prefixlen": 8, "v4": 0x0a00_0000 })),
            (
                20,
                Some(sixteen),
                "10.0.0.0/8",
                json!({ "prefixlen": 104, "addr": mapped([10, 0, 0, 0]) }),
            ),
            (8, None, "192.0.2.0/24", json!(format!("{}c0000200", length(24)))),
            (20, None, "2001:db8::/32", json!(format!("{}20010db8{}", length(32), "0".repeat(24)))),
            (8, None, "nothing", json!("nothing")),
        ] {
            let made = key(&map("lpm_trie", size, ty), &json!(text)).unwrap();
            assert_eq!(made, expected, "{text} of {ty:?}");
        }
        let made = key(&map("lpm_trie", 20, Some(v6)), &json!("2001:db8::/32")).unwrap();
        assert_eq!(made["prefixlen"], 32, "{made}");
        for (size, ty, text, said) in [
            (
                8,
                Some(bytes),
                "192.0.2.1/24",
                "write 192.0.2.0/24, or 192.0.2.1 for the one address",
            ),
            (20, Some(sixteen), "::1/64", "write ::/64, or ::1 for the one address"),
            (8, Some(bytes), "192.0.2.0/33", "no length of 0 to 32"),
            (8, Some(bytes), "192.0.2.0/", "no length of 0 to 32"),
            (8, Some(bytes), "2001:db8::/32", "is not a key of eth0/xdp/p/m"),
            (8, None, "2001:db8::/32", "is not a key of"),
        ] {
            let failure = key(&map("lpm_trie", size, ty), &json!(text)).unwrap_err();
            let told = failure.render("error");
            assert!(failure.exit == Exit::Invalid && told.contains(said), "{text}: {told}");
        }
    }

    #[test]
    fn addresses_are_taken_wherever_the_type_has_some() {
        let flow = "struct flow { union canopy_address { __u8 bytes[16]; __be32 words[4]; } source; __be16 port; }";
        for (size, ty, text, expected) in [
            (4, Some("__be32"), json!("10.0.0.1"), json!(0x0a00_0001)),
            (
                4,
                Some("struct in_addr { __be32 s_addr; }"),
                json!("10.0.0.1"),
                json!({ "s_addr": 0x0a00_0001 }),
            ),
            (
                6,
                Some("struct k { __u8 mac[6]; }"),
                json!("52:54:00:12:34:56"),
                json!({ "mac": [82, 84, 0, 18, 52, 86] }),
            ),
            (4, None, json!("10.0.0.1"), json!("0a000001")),
            // The host's order or the network's: only the program knows.
            (4, Some("__u32"), json!("10.0.0.1"), json!("10.0.0.1")),
            (2, Some("__be16"), json!(80), json!(80)),
            (16, Some("struct a { __u8 x[16]; __u8 y[16]; }"), json!("::1"), json!("::1")),
            (
                18,
                Some(flow),
                json!({ "source": "::1", "port": 80 }),
                json!({
                    "source": { "bytes": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1] }, "port": 80,
                }),
            ),
        ] {
            assert_eq!(key(&map("hash", size, ty), &text).unwrap(), expected, "{ty:?}");
        }
        let made = value(&map("hash", 4, None), &json!("52:54:00:12:34:56"));
        assert_eq!(made, json!({ "mac": [82, 84, 0, 18, 52, 86] }));
        // What is shown can be written.
        let declared = Declared::parse(flow);
        let shown = declared.shown(&json!({
            "source": { "bytes": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 0, 0, 1], "words": [] },
            "port": 80,
        }));
        assert_eq!(shown["source"], "10.0.0.1");
        assert_eq!(declared.shown(&declared.taken(&shown)), shown);
        for (kind, ty, entry) in [
            ("hash", "struct in_addr { __be32 s_addr; }", json!({ "s_addr": 0x0a00_0001 })),
            (
                "hash",
                "struct a { __u8 ip[4]; __u8 mac[6]; }",
                json!({ "ip": [10, 0, 0, 1], "mac": [2, 0, 0, 0, 0, 1] }),
            ),
            (
                "hash",
                "struct p { struct q { __u8 ip[4]; } q[2]; }",
                json!({ "q": [{ "ip": [10, 0, 0, 1] }, { "ip": [10, 0, 0, 2] }] }),
            ),
            (
                "lpm_trie",
                "struct k { __u32 prefixlen; __u8 addr[16]; }",
                json!({ "prefixlen": 104,
                     "addr": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 0, 0, 0] }),
            ),
        ] {
            let shown = Declared::parse(ty).shown_reversibly(&entry);
            assert!(has_address(&shown), "{ty}: {shown}");
            assert_eq!(key(&map(kind, 20, Some(ty)), &shown).unwrap(), entry, "{ty}");
        }
        assert!(
            has_address(&json!([{ "a": "10.0.0.0/8" }]))
                && has_address(&json!("aa-bb-cc-dd-ee-ff"))
        );
        assert!(!has_address(&json!([80, "de:ad", "0050", { "a": "eth0/xdp" }])));
    }
}
