//! Patterns of names: `*` is any text, also none; `?` is one character.

use canopy_api::pattern;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt};

/// Longest pattern, bytes: no name is longer.
pub(crate) const LONGEST: usize = 128;

/// A pattern. A text without `*` and `?` means exactly itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Glob(String);

impl Glob {
    /// A pattern of this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is for every text.
    pub fn is_everything(&self) -> bool {
        !self.0.is_empty() && self.0.bytes().all(|b| b == b'*')
    }

    /// Whether a text is as the pattern says.
    pub fn matches(&self, text: &str) -> bool {
        pattern::matches(&self.0, text)
    }

    /// Whether every text that `other` is for is one that this is for. May miss some patterns of
    /// equal meaning (`*?` and `?*`), never says yes wrongly.
    pub fn covers(&self, other: &Self) -> bool {
        pattern::covers(&self.0, &other.0)
    }

    /// Whether there is a text that both are for.
    pub fn overlaps(&self, other: &Self) -> bool {
        pattern::overlap(&self.0, &other.0)
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl JsonSchema for Glob {
    fn schema_name() -> Cow<'static, str> {
        "Pattern".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": format!("^[!-~]{{1,{LONGEST}}}$"),
            "description": "a name, with * for any text and ? for one character"
        })
    }
}
