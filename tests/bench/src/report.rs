//! What a bench found: a table for people, JSON for machines.

use anyhow::{Context, Result};
use serde::Serialize;
use std::{collections::BTreeMap, path::Path};

/// The result of a bench. Its JSON is `{"bench": …, "rows": […], "ratios": {…}}` and the machine it
/// was measured on.
#[derive(Debug, Serialize)]
pub struct Report<R> {
    /// Its name.
    pub bench: &'static str,
    /// Kernel release it ran on.
    pub kernel: String,
    /// What was measured.
    pub rows: Vec<R>,
    /// What follows from it.
    pub ratios: BTreeMap<String, f64>,
    /// The table, line by line.
    #[serde(skip)]
    pub table: Vec<String>,
}

impl<R: Serialize> Report<R> {
    /// Prints the table and the ratios.
    pub fn print(&self) {
        for line in &self.table {
            println!("{line}");
        }
        for (name, ratio) in &self.ratios {
            println!("{name:<40} {ratio:.2}");
        }
    }

    /// Writes the JSON.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }
}

/// Release of the running kernel.
pub fn kernel() -> Result<String> {
    Ok(nix::sys::utsname::uname()?.release().to_string_lossy().into_owned())
}

/// Lowest and middle of some measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The lowest: what it costs when nothing disturbs it.
    pub min: u32,
    /// The middle one; of an even number, the higher of the two.
    pub median: u32,
}

impl Summary {
    /// Of at least one measurement.
    pub fn of(measured: &[u32]) -> Option<Self> {
        let mut sorted = measured.to_vec();
        sorted.sort_unstable();
        Some(Self { min: *sorted.first()?, median: *sorted.get(sorted.len() / 2)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_the_lowest_and_the_middle() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[7]), Some(Summary { min: 7, median: 7 }));
        assert_eq!(Summary::of(&[9, 1, 5]), Some(Summary { min: 1, median: 5 }));
        assert_eq!(Summary::of(&[9, 1, 5, 7]), Some(Summary { min: 1, median: 7 }));
    }
}
