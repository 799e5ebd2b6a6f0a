//! Patterns of the names in certificates (subject alternative names).

use regex::{Regex, RegexBuilder};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{borrow::Cow, fmt, net::IpAddr};

/// The names in a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubjectNames {
    /// DNS names.
    pub dns: Vec<String>,
    /// URIs.
    pub uri: Vec<String>,
    /// Email addresses.
    pub email: Vec<String>,
    /// IP addresses.
    pub ip: Vec<IpAddr>,
}

/// A pattern of one kind of name, such as `{"uri": {"glob": "spiffe://canopy/u-*"}}`.
///
/// DNS names and the domains of email addresses are compared without regard to case, IP addresses
/// in their shortest form (`fd00::1`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SanPattern {
    /// A DNS name. In a glob, `*` stays within one label.
    Dns(NamePattern),
    /// A URI. In a glob, `*` stays within one part of the path.
    Uri(NamePattern),
    /// An email address. In a glob, `*` stays on its side of the `@`.
    Email(NamePattern),
    /// An IP address. In a glob, `*` stays within one number.
    Ip(NamePattern),
    /// Any certificate of the authority, also one without names: write `{"any": true}`.
    Any(True),
}

/// The word `true`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct True;

impl Serialize for True {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bool(true)
    }
}

impl<'de> Deserialize<'de> for True {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if bool::deserialize(deserializer)? {
            Ok(Self)
        } else {
            Err(de::Error::custom("write true, or leave the pattern out"))
        }
    }
}

impl JsonSchema for True {
    fn schema_name() -> Cow<'static, str> {
        "True".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "boolean", "enum": [true] })
    }
}

/// How a name is compared. What fits every name is refused: that is written `any`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NamePattern {
    /// The name itself.
    Exact(String),
    /// `*` is any text without `.` `/` `:` `@`, `**` any text, `?` one character that is none of these.
    Glob(Expression<GlobSyntax>),
    /// A regular expression (syntax of the crate `regex`) for the whole name.
    Regex(Expression<RegexSyntax>),
}

/// A pattern's text, and what it means.
#[derive(Clone)]
pub struct Expression<S> {
    text: String,
    compiled: Regex,
    syntax: std::marker::PhantomData<S>,
}

/// How a text is understood as a pattern.
pub trait Syntax {
    /// Its name in schemas.
    const NAME: &'static str;
    /// As a regular expression for the whole of a name.
    fn to_regex(text: &str) -> String;
}

/// A glob.
#[derive(Clone, Copy, Debug)]
pub struct GlobSyntax;

/// A regular expression.
#[derive(Clone, Copy, Debug)]
pub struct RegexSyntax;

impl Syntax for GlobSyntax {
    const NAME: &'static str = "NameGlob";

    fn to_regex(text: &str) -> String {
        let mut out = String::new();
        let mut rest = text.chars().peekable();
        while let Some(c) = rest.next() {
            match c {
                '*' if rest.next_if_eq(&'*').is_some() => out.push_str(".*"),
                '*' => out.push_str("[^./:@]*"),
                '?' => out.push_str("[^./:@]"),
                other => out.push_str(&regex::escape(other.encode_utf8(&mut [0; 4]))),
            }
        }
        out
    }
}

impl Syntax for RegexSyntax {
    const NAME: &'static str = "NameRegex";

    fn to_regex(text: &str) -> String {
        text.to_owned()
    }
}

/// Names nobody means: what fits all of them fits everything.
const NOBODY: &[&str] = &[
    "x",
    "q7.invalid",
    "Zz9-0@w5.invalid",
    "urn:uuid:3f0c7a52-5d0e-4a7e-9b36-1f0f7a3f1d2c",
    "https://w5.invalid/q/7?z=9#y",
    "spiffe://w5.invalid/q/7",
    "192.0.2.77",
    "2001:db8::77",
];

impl<S: Syntax> Expression<S> {
    /// Understands a pattern.
    ///
    /// # Errors
    /// What is wrong with it, in words; also that it fits everything.
    pub fn new(text: &str) -> Result<Self, String> {
        // Anchored here, so that no alternative of the text escapes it.
        let whole = format!(r"\A(?:{})\z", S::to_regex(text));
        let compiled = RegexBuilder::new(&whole)
            .size_limit(1 << 20)
            .build()
            .map_err(|error| format!("\"{text}\" is not a pattern: {error}"))?;
        if NOBODY.iter().all(|name| compiled.is_match(name)) {
            return Err(format!(
                "\"{text}\" fits every name; if every certificate of the authority is meant, write \
                 {{\"any\": true}}"
            ));
        }
        // A whole that is only well formed with our brackets around it would not be anchored.
        if let Err(error) = Regex::new(&S::to_regex(text)) {
            return Err(format!("\"{text}\" is not a pattern: {error}"));
        }
        Ok(Self { text: text.to_owned(), compiled, syntax: std::marker::PhantomData })
    }
}

impl<S> fmt::Debug for Expression<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

impl<S> PartialEq for Expression<S> {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl<S> Eq for Expression<S> {}

impl<S> Serialize for Expression<S> {
    fn serialize<T: Serializer>(&self, serializer: T) -> Result<T::Ok, T::Error> {
        self.text.serialize(serializer)
    }
}

impl<'de, S: Syntax> Deserialize<'de> for Expression<S> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&Cow::<'de, str>::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl<S: Syntax> JsonSchema for Expression<S> {
    fn schema_name() -> Cow<'static, str> {
        S::NAME.into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1 })
    }
}

impl NamePattern {
    fn fits(&self, name: &str, same: impl Fn(&str) -> String) -> bool {
        let name = same(name);
        let compiled = match self {
            Self::Exact(text) => return same(text) == name,
            Self::Glob(glob) => &glob.compiled,
            Self::Regex(regex) => &regex.compiled,
        };
        compiled.is_match(&name)
    }
}

impl SanPattern {
    /// Whether one of these names fits.
    pub fn fits(&self, names: &SubjectNames) -> bool {
        let as_is = |text: &str| text.to_owned();
        match self {
            Self::Any(True) => true,
            Self::Dns(pattern) => {
                names.dns.iter().any(|name| pattern.fits(name, str::to_ascii_lowercase))
            }
            Self::Uri(pattern) => names.uri.iter().any(|name| pattern.fits(name, as_is)),
            Self::Email(pattern) => names.email.iter().any(|name| pattern.fits(name, same_email)),
            Self::Ip(pattern) => {
                names.ip.iter().any(|address| pattern.fits(&address.to_string(), same_address))
            }
        }
    }
}

impl fmt::Display for SanPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, pattern) = match self {
            Self::Any(True) => return f.write_str("any"),
            Self::Dns(pattern) => ("dns", pattern),
            Self::Uri(pattern) => ("uri", pattern),
            Self::Email(pattern) => ("email", pattern),
            Self::Ip(pattern) => ("ip", pattern),
        };
        match pattern {
            NamePattern::Exact(text) => write!(f, "{kind} {text}"),
            NamePattern::Glob(glob) => write!(f, "{kind} like {}", glob.text),
            NamePattern::Regex(regex) => write!(f, "{kind} matching {}", regex.text),
        }
    }
}

fn same_email(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((local, domain)) => format!("{local}@{}", domain.to_ascii_lowercase()),
        None => text.to_owned(),
    }
}

fn same_address(text: &str) -> String {
    text.parse::<IpAddr>().map_or_else(|_| text.to_owned(), |address| address.to_string())
}

/// Several patterns; a certificate fits when one of its names fits one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct SanPatterns(pub Vec<SanPattern>);

impl SanPatterns {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of these names fits one of the patterns.
    pub fn fit(&self, names: &SubjectNames) -> bool {
        self.0.iter().any(|pattern| pattern.fits(names))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Result<SanPattern, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    fn names() -> SubjectNames {
        SubjectNames {
            dns: vec!["Bus.Example.net".into()],
            uri: vec!["spiffe://canopy/u-alice".into()],
            email: vec!["Alice@Example.org".into()],
            ip: vec!["fd00::1".parse().unwrap(), "10.0.0.7".parse().unwrap()],
        }
    }

    #[test]
    fn each_kind_fits_its_own_names_only() {
        for (text, fits) in [
            (r#"{"dns": {"exact": "bus.example.NET"}}"#, true),
            (r#"{"dns": {"glob": "*.example.net"}}"#, true),
            (r#"{"dns": {"glob": "*.net"}}"#, false),
            (r#"{"dns": {"glob": "**.net"}}"#, true),
            (r#"{"dns": {"exact": "spiffe://canopy/u-alice"}}"#, false),
            (r#"{"uri": {"exact": "spiffe://canopy/u-alice"}}"#, true),
            (r#"{"uri": {"exact": "spiffe://canopy/u-Alice"}}"#, false),
            (r#"{"uri": {"glob": "spiffe://canopy/u-*"}}"#, true),
            (r#"{"uri": {"glob": "spiffe://canopy/*"}}"#, true),
            (r#"{"uri": {"glob": "spiffe://*"}}"#, false),
            (r#"{"uri": {"regex": "spiffe://canopy/u-(alice|bob)"}}"#, true),
            (r#"{"uri": {"regex": "canopy/u-alice"}}"#, false),
            (r#"{"uri": {"regex": "spiffe://canopy/u-ali"}}"#, false),
            (r#"{"uri": {"regex": "x|spiffe://canopy/"}}"#, false),
            (r#"{"email": {"exact": "Alice@example.ORG"}}"#, true),
            (r#"{"email": {"exact": "alice@example.org"}}"#, false),
            (r#"{"email": {"glob": "*@example.org"}}"#, true),
            (r#"{"ip": {"exact": "fd00:0::1"}}"#, true),
            (r#"{"ip": {"glob": "10.0.0.*"}}"#, true),
            (r#"{"ip": {"glob": "10.0.*"}}"#, false),
            (r#"{"any": true}"#, true),
        ] {
            assert_eq!(pattern(text).unwrap().fits(&names()), fits, "{text}");
        }
        let without = SubjectNames::default();
        assert!(!pattern(r#"{"uri": {"glob": "spiffe://canopy/**"}}"#).unwrap().fits(&without));
        assert!(pattern(r#"{"any": true}"#).unwrap().fits(&without));
    }

    #[test]
    fn a_pattern_for_everything_has_to_say_so() {
        for text in [
            r#"{"uri": {"glob": "**"}}"#,
            r#"{"uri": {"glob": "?**"}}"#,
            r#"{"uri": {"regex": ".*"}}"#,
            r#"{"uri": {"regex": ".+"}}"#,
            r#"{"dns": {"regex": "[^ ]+"}}"#,
            r#"{"dns": {"regex": "a|.*"}}"#,
        ] {
            let said = pattern(text).unwrap_err();
            assert!(said.contains("{\"any\": true}"), "{text}: {said}");
        }
        assert!(pattern(r#"{"any": false}"#).is_err());
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in [
            r#"{"uri": {"regex": "("}}"#,
            // Well formed only within the brackets of an anchored expression.
            r#"{"uri": {"regex": "a)|(?:.*"}}"#,
            r#"{"uri": {"exact": "a", "glob": "b"}}"#,
            r#"{"common_name": {"exact": "a"}}"#,
            r#"{"uri": "a"}"#,
        ] {
            assert!(pattern(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_pattern_survives_json() {
        let written = r#"{"uri":{"glob":"spiffe://canopy/u-*"}}"#;
        assert_eq!(serde_json::to_string(&pattern(written).unwrap()).unwrap(), written);
        assert_eq!(pattern(written).unwrap().to_string(), "uri like spiffe://canopy/u-*");
    }
}
