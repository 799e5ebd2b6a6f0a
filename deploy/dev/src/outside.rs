//! What tools that know nothing of Canopy say about the kernel: `ip` and `bpftool`.
//!
//! Debian 12's bpftool names neither the interface of a link nor the type of newer ones, so a link
//! is found by the program that `ip` sees on the interface.

use crate::shell;
use anyhow::{Context as _, Result};
use serde::{Deserialize, de::DeserializeOwned};

/// A link.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Link {
    /// Its id.
    pub id: u64,
    /// The program it runs; links of other kinds have none.
    #[serde(default)]
    pub prog_id: u64,
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Program {
    /// Its id.
    pub id: u64,
    /// Its tag, 16 hexadecimal digits.
    pub tag: String,
    /// Its name.
    #[serde(default)]
    pub name: String,
}

/// The XDP program on an interface of this namespace, and the link that holds it there.
pub fn xdp_link(interface: &str) -> Result<Option<Link>> {
    #[derive(Deserialize)]
    struct Interface {
        xdp: Option<Xdp>,
    }
    #[derive(Deserialize)]
    struct Xdp {
        prog: Option<Id>,
    }
    #[derive(Deserialize)]
    struct Id {
        id: u64,
    }
    let text = shell::output(
        shell::command("ip").args(["-json", "-details", "link", "show", "dev", interface]),
    )?;
    let interfaces: Vec<Interface> = parse("ip", &text)?;
    let program = interfaces
        .into_iter()
        .next()
        .and_then(|interface| interface.xdp)
        .and_then(|xdp| xdp.prog)
        .map(|program| program.id);
    let Some(program) = program else { return Ok(None) };
    Ok(links()?.into_iter().find(|link| link.prog_id == program))
}

/// Every link.
pub fn links() -> Result<Vec<Link>> {
    parse("bpftool", &bpftool(&["link", "show"])?)
}

/// A program.
pub fn program(id: u64) -> Result<Program> {
    parse("bpftool", &bpftool(&["prog", "show", "id", &id.to_string()])?)
}

/// The members of a chain in the order in which the program has them, read from the program's own
/// source lines: one stands where each member begins, or is called.
pub fn members(id: u64) -> Result<Vec<String>> {
    // As text: versions of bpftool shape the JSON of a dump differently.
    let id = id.to_string();
    let text =
        shell::output(shell::root("bpftool").args(["prog", "dump", "xlated", "id", &id, "linum"]))?;
    let ours = text.lines().filter_map(|line| {
        let (source, place) = line.trim().strip_prefix("; ")?.split_once(" [file:")?;
        (place.starts_with("canopy ") && source != "the chain begins").then(|| source.to_owned())
    });
    Ok(ours.collect())
}

/// Ends a link as an intruder would.
pub fn detach_link(id: u64) -> Result<()> {
    bpftool(&["link", "detach", "id", &id.to_string()]).map(drop)
}

fn bpftool(arguments: &[&str]) -> Result<String> {
    shell::output(shell::root("bpftool").arg("--json").args(arguments))
}

fn parse<T: DeserializeOwned>(tool: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).with_context(|| format!("{tool} said {text:?}"))
}
