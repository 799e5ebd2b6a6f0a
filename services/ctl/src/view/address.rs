//! Addresses in keys and values of maps, where the type says that they are some.
//!
//! What counts: the kernel's `in_addr` and `in6_addr`, the packages' `canopy_address`, and fields that are
//! named as addresses are and have a type that an address has: `__be32`, or 4, 6 or 16 bytes. Anything else
//! stays what it is.

use serde_json::{Map, Value};
use std::net::{Ipv4Addr, Ipv6Addr};

/// A type as C declares it, as far as it matters here.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// `__be32`, `struct in6_addr`.
    head: String,
    /// Of an array.
    count: Option<usize>,
    name: String,
    fields: Vec<Declared>,
}

impl Declared {
    /// Of a declaration in one line; what is not understood has no address in it.
    pub fn parse(text: &str) -> Self {
        let mut rest = text;
        declaration(&mut rest, 8).unwrap_or_default()
    }

    /// The value with every address in it as one writes it.
    pub fn shown(&self, value: &Value) -> Value {
        if let Some(address) = self.address(value) {
            return Value::String(address);
        }
        match value {
            Value::Object(fields) => {
                let shown = fields.iter().map(|(name, value)| {
                    let shown =
                        self.field(name).map_or_else(|| value.clone(), |of| of.shown(value));
                    (name.clone(), shown)
                });
                Value::Object(shown.collect::<Map<_, _>>())
            }
            // Structs one after the other.
            Value::Array(items) if self.count.is_some() && !self.fields.is_empty() => {
                Value::Array(items.iter().map(|item| self.shown(item)).collect())
            }
            other => other.clone(),
        }
    }

    /// The type without name and count: `__be32`, `struct in6_addr`.
    pub(crate) fn head(&self) -> &str {
        &self.head
    }

    /// Items, where it is an array.
    pub(crate) fn count(&self) -> Option<usize> {
        self.count
    }

    /// The name of the member.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The members of a struct or union.
    pub(crate) fn fields(&self) -> &[Self] {
        &self.fields
    }

    /// Whether it is of bytes.
    pub(crate) fn is_byte(&self) -> bool {
        matches!(self.head.as_str(), "__u8" | "u8" | "uint8_t" | "unsigned char")
    }

    /// A member, also of a struct or union without a name, whose members belong to the outer one.
    pub(crate) fn field(&self, name: &str) -> Option<&Self> {
        self.fields.iter().find_map(|field| {
            if field.name.is_empty() {
                field.field(name)
            } else {
                (field.name == name).then_some(field)
            }
        })
    }

    fn address(&self, value: &Value) -> Option<String> {
        let known = matches!(
            self.head.as_str(),
            "struct in6_addr" | "union canopy_address" | "struct canopy_address"
        );
        if known && self.count.is_none() {
            return Some(ipv6(&bytes_within(value)?));
        }
        if self.head == "struct in_addr" && self.count.is_none() {
            return ipv4(value.get("s_addr")?);
        }
        let byte = self.is_byte();
        match (self.head.as_str(), self.count) {
            ("__be32" | "be32", None) if is_address(&self.name) => ipv4(value),
            (_, Some(6)) if byte && is_mac(&self.name) => {
                let bytes: [u8; 6] = bytes(value)?.try_into().ok()?;
                Some(bytes.map(|byte| format!("{byte:02x}")).join(":"))
            }
            (_, Some(4)) if byte && is_address(&self.name) => {
                let bytes: [u8; 4] = bytes(value)?.try_into().ok()?;
                Some(Ipv4Addr::from(bytes).to_string())
            }
            (_, Some(16)) if byte && is_address(&self.name) => {
                Some(ipv6(&bytes(value)?.try_into().ok()?))
            }
            _ => None,
        }
    }
}

/// Whether a field is named as one that holds an IP address.
fn is_address(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let words = ["addr", "address", "ip", "ip4", "ip6", "ipv4", "ipv6", "saddr", "daddr"];
    !is_mac(name) && (lower.ends_with("addr") || lower.split('_').any(|word| words.contains(&word)))
}

/// Whether a field is named as one that holds a hardware address.
fn is_mac(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    matches!(lower.as_str(), "h_dest" | "h_source" | "hwaddr" | "lladdr")
        || lower.split('_').any(|word| matches!(word, "mac" | "smac" | "dmac" | "macaddr"))
}

/// A number in the order of the network, as the host reads it.
fn ipv4(value: &Value) -> Option<String> {
    let number = u32::try_from(value.as_u64()?).ok()?;
    Some(Ipv4Addr::from(number).to_string())
}

/// IPv4 in IPv6's form as IPv4.
fn ipv6(bytes: &[u8; 16]) -> String {
    let address = Ipv6Addr::from(*bytes);
    address.to_ipv4_mapped().map_or_else(|| address.to_string(), |ipv4| ipv4.to_string())
}

fn bytes(value: &Value) -> Option<Vec<u8>> {
    let items = value.as_array()?;
    items.iter().map(|item| u8::try_from(item.as_u64()?).ok()).collect()
}

/// The first 16 bytes that a view of a union shows.
fn bytes_within(value: &Value) -> Option<[u8; 16]> {
    match value {
        Value::Array(_) => bytes(value)?.try_into().ok(),
        Value::Object(fields) => fields.values().find_map(bytes_within),
        _ => None,
    }
}

/// Takes one declaration off the text.
fn declaration(rest: &mut &str, depth: usize) -> Option<Declared> {
    let depth = depth.checked_sub(1)?;
    let end = rest.find(['{', ';', '}']).unwrap_or(rest.len());
    let (head, behind) = rest.split_at(end);
    let mut of = Declared::default();
    if let Some(mut inner) = behind.strip_prefix('{') {
        head.trim().clone_into(&mut of.head);
        loop {
            inner = inner.trim_start();
            if let Some(behind) = inner.strip_prefix('}') {
                inner = behind;
                break;
            }
            of.fields.push(declaration(&mut inner, depth)?);
            inner = inner.trim_start().strip_prefix(';')?;
        }
        let end = inner.find([';', '}']).unwrap_or(inner.len());
        let (name, behind) = inner.split_at(end);
        (of.name, of.count) = named(name.trim());
        *rest = behind;
    } else {
        // A bare type has no name; a member's is its last word.
        let (head, name) = match head.trim().rsplit_once(' ') {
            Some((head, name))
                if !matches!(
                    head,
                    "struct" | "union" | "enum" | "unsigned" | "signed" | "long"
                ) =>
            {
                (head, name)
            }
            _ => (head.trim(), ""),
        };
        head.trim().clone_into(&mut of.head);
        (of.name, of.count) = named(name);
        *rest = behind;
    }
    Some(of)
}

/// `bytes[16]`: name and count.
fn named(text: &str) -> (String, Option<usize>) {
    match text.split_once('[') {
        Some((name, count)) => (name.to_owned(), count.trim_end_matches(']').parse().ok()),
        None => (text.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn addresses_are_shown_where_the_type_says_so() {
        let mapped = json!([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 192, 0, 2, 1]);
        let v6 = json!([32, 1, 13, 184, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        let ours = "union canopy_address { __u8 bytes[16]; __be32 words[4]; }";
        for (ty, value, expected) in [
            (
                ours,
                json!({ "bytes": mapped, "words": [0, 0, 65535, 3_221_225_985_u32] }),
                json!("192.0.2.1"),
            ),
            (ours, json!({ "bytes": v6 }), json!("2001:db8::1")),
            (
                "struct in6_addr { union { __u8 u6_addr8[16]; __be32 u6_addr32[4]; } in6_u; }",
                json!({ "in6_u": { "u6_addr8": v6 } }),
                json!("2001:db8::1"),
            ),
            (
                "struct in_addr { __be32 s_addr; }",
                json!({ "s_addr": 3_221_225_985_u32 }),
                json!("192.0.2.1"),
            ),
            (
                "struct flow { __be32 saddr; __be32 daddr; __be16 port; __u32 ip_packets; }",
                json!({ "saddr": 167_772_161, "daddr": 1, "port": 80, "ip_packets": 7 }),
                json!({ "saddr": "10.0.0.1", "daddr": "0.0.0.1", "port": 80, "ip_packets": 7 }),
            ),
            (
                "struct key { union canopy_address { __u8 bytes[16]; } src; struct { __u8 mac[6]; }; }",
                json!({ "src": { "bytes": mapped }, "mac": [82, 84, 0, 18, 52, 86] }),
                json!({ "src": "192.0.2.1", "mac": "52:54:00:12:34:56" }),
            ),
            (
                "struct peers { struct peer { __u8 src_ip[4]; } peer[2]; }",
                json!({ "peer": [{ "src_ip": [10, 0, 0, 1] }, { "src_ip": [10, 0, 0, 2] }] }),
                json!({ "peer": [{ "src_ip": "10.0.0.1" }, { "src_ip": "10.0.0.2" }] }),
            ),
            // Not certain: a number, bytes of another name or number, a type that is none.
            ("__be32", json!(167_772_161), json!(167_772_161)),
            ("struct a { __u32 saddr; }", json!({ "saddr": 1 }), json!({ "saddr": 1 })),
            ("struct a { __u8 bytes[16]; }", json!({ "bytes": v6 }), json!({ "bytes": v6 })),
            (
                "struct a { __u8 zip[4]; }",
                json!({ "zip": [1, 2, 3, 4] }),
                json!({ "zip": [1, 2, 3, 4] }),
            ),
            ("struct {{ …", json!({ "saddr": 1 }), json!({ "saddr": 1 })),
            ("", json!("0050"), json!("0050")),
        ] {
            assert_eq!(Declared::parse(ty).shown(&value), expected, "{ty}");
        }
    }
}
