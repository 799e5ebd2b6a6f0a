//! Tokens: what is known about them, and a new one.

use crate::output::{Answer, Cell, Table, Tone, text};
use canopy_api::{
    scope::Scope,
    wire::tokens::{Bearer, TokenRecord, TokenState},
};
use serde::Serialize;

/// What is known about tokens.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Tokens(pub Vec<TokenRecord>);

impl Answer for Tokens {
    fn table(&self) -> Option<Table> {
        let mut table = Table::new([
            text("PERSON"),
            text("ROLE"),
            text("STATE"),
            text("GOES WITH").long(),
            text("ONLY").long(),
            text("EXPIRES"),
            text("ISSUED").wide(),
            text("BY").wide(),
            text("ID").wide(),
            text("KEY").wide(),
        ]);
        for one in &self.0 {
            let tone = match one.state {
                TokenState::Active => Tone::Good,
                TokenState::Expired | TokenState::Revoked => Tone::Dim,
            };
            table.row([
                (&one.principal).into(),
                (&one.role).into(),
                Cell::toned(one.state.as_str(), tone),
                one.binding.as_ref().map_or_else(String::new, ToString::to_string).into(),
                one.scope.as_ref().map_or_else(String::new, scope).into(),
                one.expires.clone().unwrap_or_else(|| "never".to_owned()).into(),
                (&one.issued).into(),
                (&one.issued_by).into(),
                format!("{}/{}", one.id, one.generation).into(),
                (&one.key).into(),
            ]);
        }
        Some(table)
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(|one| one.principal.to_string()).collect()
    }

    fn nothing(&self) -> String {
        "nobody has a token".to_owned()
    }
}

fn scope(scope: &Scope) -> String {
    let services = scope.services.iter().flatten().map(ToString::to_string);
    let hosts = scope.hosts.iter().flatten().map(ToString::to_string);
    services.chain(hosts).collect::<Vec<_>>().join(", ")
}

/// A token just made.
#[derive(Debug, Serialize)]
pub struct NewToken {
    /// The token, unless it was written to a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Bearer>,
    /// What is known about it.
    #[serde(flatten)]
    pub record: TokenRecord,
}

impl Answer for NewToken {
    fn table(&self) -> Option<Table> {
        // A token alone, so that it can be put into a file.
        match &self.token {
            Some(_) => None,
            None => Tokens(vec![self.record.clone()]).table(),
        }
    }

    fn text(&self, _colour: bool) -> String {
        self.token.as_ref().map(|token| format!("{}\n", token.0)).unwrap_or_default()
    }

    fn names(&self) -> Vec<String> {
        // What is shown once is shown.
        vec![self.token.as_ref().map_or_else(|| self.record.principal.to_string(), |t| t.0.clone())]
    }
}
