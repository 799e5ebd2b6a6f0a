//! Hosts, chains and programs together.

use super::{chains::Chains, hosts::Hosts, programs::Programs};
use crate::output::{Answer, Table};
use serde::Serialize;

/// What `get all` shows.
#[derive(Debug, Serialize)]
pub struct Everything {
    /// The hosts that answer.
    pub hosts: Hosts,
    /// Their chains.
    pub chains: Chains,
    /// The programs of those.
    pub programs: Programs,
}

impl Answer for Everything {
    fn table(&self) -> Option<Table> {
        None
    }

    fn sections(&self) -> Vec<Table> {
        let tables = [self.hosts.table(), self.chains.table(), self.programs.table()];
        tables.into_iter().flatten().filter(|table| !table.is_empty()).collect()
    }

    fn names(&self) -> Vec<String> {
        let kinds = [
            ("host", self.hosts.names()),
            ("chain", self.chains.names()),
            ("program", self.programs.names()),
        ];
        let names = kinds
            .into_iter()
            .flat_map(|(kind, names)| names.into_iter().map(move |name| format!("{kind}/{name}")));
        names.collect()
    }
}
