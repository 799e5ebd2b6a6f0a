//! What the fleet remembers of repositories.

use crate::output::{Answer, Table, number, text};
use canopy_api::wire::ResetIndexReply;
use serde::Serialize;

/// Who accepts a repository's index again, from which version to which.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct ResetIndexes(pub Vec<ResetRow>);

/// One of them.
#[derive(Debug, Serialize)]
pub struct ResetRow {
    /// `registry`, or a host.
    pub place: String,
    /// What it answered.
    #[serde(flatten)]
    pub reply: ResetIndexReply,
}

impl ResetRow {
    /// An answer, and who gave it.
    pub fn new(place: &str, reply: ResetIndexReply) -> Self {
        Self { place: place.to_owned(), reply }
    }
}

impl Answer for ResetIndexes {
    fn table(&self) -> Option<Table> {
        let mut table =
            Table::new([text("PLACE"), text("REPOSITORY"), number("FROM"), number("TO")]);
        for ResetRow { place, reply } in &self.0 {
            table.row([
                place.clone().into(),
                reply.repository.clone().into(),
                reply.from.to_string().into(),
                reply.to.to_string().into(),
            ]);
        }
        Some(table)
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(|row| row.place.clone()).collect()
    }
}
