//! The grammar of `canopy map`.

use super::{HostArgs, HostsArgs, OutputArgs, hook};
use canopy_api::{Hook, InterfaceName, Netns, ProgramName, wire::MapName};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// How keys and values are written on the command line.
const JSON: &str = "\
Keys and values are JSON by the types of the program's object: numbers (network order as the host
reads it), names of enumerations, text, objects for structs, one member for a union. What is not
JSON is text, so names need no quotes. Without types: hexadecimal text, '\"0050\"'.
canopy map describe shows the types.";

/// `map`
#[derive(Debug, Subcommand)]
pub enum MapCommand {
    /// List the maps of the programs in chains
    List {
        /// Only on this interface
        interface: Option<InterfaceName>,
        /// Only on this hook
        #[arg(value_parser = hook())]
        hook: Option<Hook>,
        /// Only of this program
        program: Option<ProgramName>,
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
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        limit: Option<u64>,
        /// The host.
        #[command(flatten)]
        host: HostArgs,
        /// The answer.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show single entries of a map
    #[command(after_help = JSON)]
    Get {
        /// The map.
        #[command(flatten)]
        map: MapArgs,
        /// Keys
        #[arg(required = true, allow_negative_numbers = true)]
        keys: Vec<String>,
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
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
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
        /// Keys
        #[arg(required = true, allow_negative_numbers = true)]
        keys: Vec<String>,
        /// How.
        #[command(flatten)]
        how: MapChangeArgs,
    },
}

/// Which map.
#[derive(Clone, Debug, Args)]
pub struct MapArgs {
    /// The interface
    pub interface: InterfaceName,
    /// The hook
    #[arg(value_parser = hook())]
    pub hook: Hook,
    /// The program, by its name in the chain
    pub program: ProgramName,
    /// The map, by its name in the program's object; .data, .bss and .rodata for variables
    pub map: String,
    /// The interface is in this network namespace: a name of ip-netns, an absolute path, or pid:N
    #[arg(long, value_name = "NETNS")]
    pub netns: Option<Netns>,
}

impl MapArgs {
    /// As requests name it.
    pub fn name(&self) -> MapName {
        MapName {
            netns: self.netns.clone(),
            interface: self.interface.clone(),
            hook: self.hook,
            program: self.program.clone(),
            map: self.map.clone(),
        }
    }
}

/// `map set`
#[derive(Debug, Args)]
pub struct MapSetArgs {
    /// The map.
    #[command(flatten)]
    pub map: MapArgs,
    /// The entry's key
    #[arg(allow_negative_numbers = true, required_unless_present = "file", requires = "value")]
    pub key: Option<String>,
    /// Its value; in a per-CPU map the value on every CPU
    #[arg(allow_negative_numbers = true)]
    pub value: Option<String>,
    /// Entries from a file, YAML or JSON: a list of objects with key and value (or cpus, a list
    /// with a value for each CPU); `-` for standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "key")]
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
