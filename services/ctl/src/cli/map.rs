//! The grammar of `canopy map`.

use super::{HostArgs, HostsArgs, NotFoundArgs, OutputArgs, above_zero, name::MapPath};
use crate::failure::{Exit, Failure};
use canopy_api::Netns;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// How keys and values are written on the command line.
const JSON: &str = "\
Keys and values are JSON by the types of the program's object: numbers (network order as the host
reads it), names of enumerations, text, objects for structs, one member for a union. What is not
JSON is text, so names need no quotes. Without types: hexadecimal text, '\"0050\"'.
Addresses are written as usual where the type has one, hardware addresses, too; keys of an LPM trie are
prefixes: 192.0.2.0/24, 2001:db8::/32. canopy map describe shows the types.";

/// What a key of a trie finds.
const LONGEST: &str = "\
In an LPM trie a key finds the entry with the longest prefix that it is in, as a packet does; map dump shows
the entries themselves.";

/// `map`
#[derive(Debug, Subcommand)]
pub enum MapCommand {
    /// List the maps of the programs in chains
    List {
        /// Only of INTERFACE [HOOK [PROGRAM]], or of what HOST/INTERFACE/HOOK[/PROGRAM] names
        #[arg(value_name = "PROGRAM", num_args = 0..=3)]
        program: Vec<String>,
        /// Only in this network namespace: a name of ip-netns, an absolute path, or pid:N
        #[arg(long, value_name = "NETNS")]
        netns: Option<Netns>,
        /// The hosts.
        #[command(flatten)]
        hosts: HostsArgs,
        /// The answer.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show a map in full: types, variables, settings that fill it, who shares it
    Describe {
        /// The map.
        #[command(flatten)]
        map: MapArgs,
        /// The host.
        #[command(flatten)]
        host: HostArgs,
        /// The answer.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show every entry of a map; per-CPU values with their sum
    #[command(after_help = "\
A map that changes meanwhile may show an entry twice or not at all. Nothing is taken from a queue or
a stack: the entry that comes next is shown.")]
    Dump {
        /// The map.
        #[command(flatten)]
        map: MapArgs,
        /// Show at most so many entries
        #[arg(long, value_name = "N", value_parser = above_zero::<u64>)]
        limit: Option<u64>,
        /// The host.
        #[command(flatten)]
        host: HostArgs,
        /// The answer.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show single entries of a map
    #[command(after_help = format!("{JSON}\n{LONGEST}"))]
    Get {
        /// The map.
        #[command(flatten)]
        map: MapArgs,
        /// The host.
        #[command(flatten)]
        host: HostArgs,
        /// The answer.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Write entries of a map
    #[command(after_help = JSON)]
    Set(MapSetArgs),
    /// Show what a program puts into a ring buffer, as it comes
    #[command(after_help = "\
What is shown is taken from the buffer: another reader of it on the host misses it. Several may follow
one buffer at once; each sees everything. It ends soon after the last of them. Ends with Ctrl-C.")]
    Follow {
        /// The map.
        #[command(flatten)]
        map: MapArgs,
        /// Type of a record in the program's object, such as 'struct event'
        #[arg(long = "type", value_name = "TYPE")]
        record_type: Option<String>,
        /// End after so many records
        #[arg(long, value_name = "N", value_parser = above_zero::<u64>)]
        count: Option<u64>,
        /// The host.
        #[command(flatten)]
        host: HostArgs,
        /// The answer.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Remove entries of a map
    #[command(after_help = JSON)]
    Delete {
        /// The map.
        #[command(flatten)]
        map: MapArgs,
        /// What does not exist.
        #[command(flatten)]
        absent: NotFoundArgs,
        /// How.
        #[command(flatten)]
        how: MapChangeArgs,
    },
}

/// Which map; for some commands keys and values behind it.
#[derive(Clone, Debug, Args)]
pub struct MapArgs {
    /// INTERFACE HOOK PROGRAM MAP, or HOST/INTERFACE/HOOK/PROGRAM/MAP as `map list -o name` prints it.
    /// The map by its name in the program's object, .data, .bss and .rodata for variables. Behind it the
    /// keys, where a command takes some
    #[arg(value_name = "MAP", required = true, allow_negative_numbers = true)]
    pub words: Vec<String>,
    /// The interface is in this network namespace: a name of ip-netns, an absolute path, or pid:N
    #[arg(long, value_name = "NETNS")]
    pub netns: Option<Netns>,
}

impl MapArgs {
    /// The map, and the words behind it.
    ///
    /// # Errors
    /// What is wrong with the words.
    pub fn split(&self) -> Result<(MapPath, &[String]), Failure> {
        MapPath::split(&self.words, self.netns.as_ref())
    }

    /// The map alone.
    ///
    /// # Errors
    /// What is wrong with the words, and any behind it.
    pub fn alone(&self) -> Result<MapPath, Failure> {
        match self.split()? {
            (map, []) => Ok(map),
            (_, [word, ..]) => {
                Err(Failure::new(Exit::Invalid, format!("\"{word}\" is not expected here")))
            }
        }
    }
}

/// `map set`
#[derive(Debug, Args)]
pub struct MapSetArgs {
    /// The map, then the entry's key and its value; in a per-CPU map the value on every CPU.
    #[command(flatten)]
    pub map: MapArgs,
    /// Entries from a file, YAML or JSON: a list of objects with key and value (or cpus, a list
    /// with a value for each CPU), or what `map dump -o json` prints; `-` for standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Refuse entries that are there
    #[arg(long, conflicts_with = "if_present")]
    pub if_absent: bool,
    /// Refuse entries that are not there
    #[arg(long)]
    pub if_present: bool,
    /// How.
    #[command(flatten)]
    pub how: MapChangeArgs,
}

/// Rehearsal, repetition, host.
#[derive(Debug, Args)]
pub struct MapChangeArgs {
    /// Check everything, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Names the request: a repeated one with the same id gets the first answer again
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
    /// The host.
    #[command(flatten)]
    pub host: HostArgs,
    /// The answer.
    #[command(flatten)]
    pub output: OutputArgs,
}
