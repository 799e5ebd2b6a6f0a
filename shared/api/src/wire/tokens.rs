//! `policy.*.token-*`: people's tokens.

use crate::{name::Principal, permission::Role, san::SanPattern, scope::Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Which certificate a token goes with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Binding {
    /// Exactly this one: SHA-256 of its DER, base64url without padding (`x5t#S256`, RFC 8705).
    #[serde(rename = "x5t#S256")]
    Fingerprint(String),
    /// Any that a name of fits, so that it may be renewed.
    #[serde(rename = "san")]
    Name(SanPattern),
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fingerprint(fingerprint) => write!(f, "certificate {fingerprint}"),
            Self::Name(pattern) => pattern.fmt(f),
        }
    }
}

/// A token itself. It shows itself only where it is written out on purpose.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Bearer(pub String);

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bearer(…)")
    }
}

/// `policy.admin.token-issue`: a token for a person who has none in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenIssueRequest {
    /// For whom: `u-…`.
    pub principal: Principal,
    /// What they may do.
    pub role: Role,
    /// Where, if not everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// Which certificate it goes with. Needed for `admin` and `publisher`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<Binding>,
    /// Seconds until it ends by itself, no later than the token of who asks. Without it, it ends when that
    /// one does, or is valid until regenerated or revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u64>,
}

/// `policy.admin.token-regenerate`: another token in place of the one in force, which ends at once.
/// What is left out stays as it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRegenerateRequest {
    /// Whose.
    pub principal: Principal,
    /// Another certificate to go with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<Binding>,
    /// Seconds until it ends by itself, no later than the token of who asks. Without it, it ends when that
    /// one does, or is valid until regenerated or revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u64>,
}

/// `policy.admin.token-revoke`: ends a person's token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRevokeRequest {
    /// Whose.
    pub principal: Principal,
}

/// A token just made. It is in this answer and nowhere else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TokenReply {
    /// The token.
    pub token: Bearer,
    /// What is known about it.
    pub record: TokenRecord,
}

/// `policy.read.token-list`: what is known about tokens, page by page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenListRequest {
    /// This person's only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<Principal>,
    /// Only people behind this one, by name: `next` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Principal>,
    /// At most so many tokens; a page may have fewer. Default: as many as one answer holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub limit: Option<u32>,
}

/// What is known about tokens; never the tokens themselves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TokenListReply {
    /// By person.
    pub tokens: Vec<TokenRecord>,
    /// The last person of this page, where there are more behind: `after` of the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Principal>,
}

/// What is known about a person's token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TokenRecord {
    /// Whose it is.
    pub principal: Principal,
    /// What they may do.
    pub role: Role,
    /// Where, if not everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "Scope::told")]
    pub scope: Option<Scope>,
    /// Which certificate it goes with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<Binding>,
    /// Its id.
    pub id: String,
    /// How many tokens this person has had.
    pub generation: u64,
    /// Whether it is in force.
    pub state: TokenState,
    /// When it was issued.
    pub issued: String,
    /// By whom; `bootstrap` for the first one.
    pub issued_by: String,
    /// When it ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// Id of the key that signed it.
    pub key: String,
    /// Who ended it, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Revoked>,
}

/// Who ended a token, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Revoked {
    /// Who.
    pub by: String,
    /// When.
    pub at: String,
}

/// Whether a token is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenState {
    /// In force.
    Active,
    /// Past its end.
    Expired,
    /// Ended by somebody.
    Revoked,
}

impl TokenState {
    /// As shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}
