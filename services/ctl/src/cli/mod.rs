//! The grammar of the command line. What the commands do is in [`crate::commands`].

mod audit;
pub mod expand;
mod host;
mod map;
pub mod name;
mod package;
mod policy;
mod token;
pub mod usage;

pub use audit::{AuditCommand, AuditFilterArgs, AuditShowArgs, AuditVerifyArgs};
pub use host::{HostCommand, HostEnrolArgs, HostInstallArgs, HostRenewArgs, HostRequestArgs};
pub use map::{MapArgs, MapChangeArgs, MapCommand, MapSetArgs};
pub use package::{
    PackageCommand, PublishArgs, RepositoryArgs, ResetIndexArgs, TrustCommand, YankArgs,
};
pub use policy::{ExplainArgs, PolicyCommand};
pub use token::{TokenArgs, TokenCommand, TokenIssueArgs, TokenRegenerateArgs};

use crate::{
    failure::{Exit, Failure},
    output::Format,
};
use canopy_api::{
    Hook, HostId, InterfaceName, Netns, PackageName, PackageRef, Principal, ProgramName,
    endpoint::Service,
};
use clap::{
    Args, Parser, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser},
};
use std::{path::PathBuf, time::Duration};

/// What every exit code means; printed by `--help` and in the reference.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done, or nothing to do
  1  failed (a defect, a local file, a required ability missing)
  2  the command line or a document is wrong
  3  diff: there are differences; policy test: a case came out otherwise; policy check --strict: a remark; audit verify: a finding
  4  not found
  5  conflict: the state is not what you thought
  6  denied
  7  unavailable or timed out; trying again may help
  8  unsupported by this host or version
  9  partial: some interfaces were updated and the failed ones are unchanged; or some hosts did not answer
  10 your token or certificate has expired
  11 your token was revoked or regenerated";

const CONNECTION: &str = "Connection";

/// Longest `--timeout`.
const LONGEST_TIMEOUT: Duration = Duration::from_hours(24);

/// Shortest time between two looks of `top`.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(200);

/// Longest time between two looks of `top`.
const LONGEST_INTERVAL: Duration = Duration::from_hours(1);

/// Says which eBPF programs run on which interfaces, in which order, and shows what they do.
#[derive(Debug, Parser)]
#[command(
    name = "canopy",
    version,
    propagate_version = false,
    disable_help_subcommand = false,
    max_term_width = 100,
    after_long_help = EXIT_CODES,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// How to reach the bus.
    #[command(flatten)]
    pub connection: ConnectionArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How to reach the bus: a context of the context file, and overrides of it.
#[derive(Clone, Debug, Default, Args)]
pub struct ConnectionArgs {
    /// Context file [default: ~/.config/canopy/config.yaml]
    #[arg(long, value_name = "FILE", env = "CANOPY_CONFIG", hide_env_values = true, global = true, help_heading = CONNECTION)]
    pub context_file: Option<PathBuf>,
    /// Context to use [default: the file's `current`]
    #[arg(long, value_name = "NAME", env = "CANOPY_CONTEXT", hide_env_values = true, global = true, help_heading = CONNECTION)]
    pub context: Option<String>,
    /// Bus address, such as `tls://127.0.0.1:4222`
    #[arg(long, env = "CANOPY_URL", hide_env_values = true, global = true, help_heading = CONNECTION, hide_short_help = true)]
    pub url: Option<String>,
    /// CA that signed the server's certificate, PEM
    #[arg(long, value_name = "FILE", env = "CANOPY_TLS_CA", hide_env_values = true, global = true, help_heading = CONNECTION, hide_short_help = true)]
    pub tls_ca: Option<PathBuf>,
    /// Your certificate, PEM
    #[arg(long, value_name = "FILE", env = "CANOPY_TLS_CERT", hide_env_values = true, global = true, help_heading = CONNECTION, hide_short_help = true)]
    pub tls_cert: Option<PathBuf>,
    /// Your private key, PEM
    #[arg(long, value_name = "FILE", env = "CANOPY_TLS_KEY", hide_env_values = true, global = true, help_heading = CONNECTION, hide_short_help = true)]
    pub tls_key: Option<PathBuf>,
    /// File with your token, mode 0600
    #[arg(long, value_name = "FILE", env = "CANOPY_TOKEN_FILE", hide_env_values = true, global = true, help_heading = CONNECTION, hide_short_help = true)]
    pub token_file: Option<PathBuf>,
    /// Who you are on the bus: the name in your certificate, such as u-alice
    #[arg(long, value_name = "NAME", env = "CANOPY_PRINCIPAL", hide_env_values = true, global = true, help_heading = CONNECTION, hide_short_help = true)]
    pub principal: Option<Principal>,
    /// How long the answer may take, connection included, such as 10s, at most 1d; with --watch, each
    /// answer [default: 5s for the connection, then the endpoint's own]
    #[arg(long, value_name = "DURATION", value_parser = duration_within(Duration::from_millis(1), LONGEST_TIMEOUT), global = true, help_heading = CONNECTION)]
    pub timeout: Option<Duration>,
}

/// How the answer is written.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct OutputArgs {
    /// How the answer is written
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT", global = true)]
    pub output: Format,
}

/// The one host a command is for.
#[derive(Clone, Debug, Default, Args)]
pub struct HostArgs {
    /// Host to act on [default: the context's]
    #[arg(long, value_name = "HOST", env = "CANOPY_HOST", hide_env_values = true, value_parser = name::host)]
    pub host: Option<HostId>,
}

/// The hosts a question is put to.
#[derive(Clone, Debug, Default, Args)]
pub struct HostsArgs {
    /// Only this host [default: the context's, else all]
    #[arg(long, value_name = "HOST", env = "CANOPY_HOST", hide_env_values = true, global = true, value_parser = name::host)]
    pub host: Option<HostId>,
    /// All hosts, whatever the context says
    #[arg(short = 'A', long, global = true, overrides_with = "host")]
    pub all_hosts: bool,
}

/// Rehearsal, optimistic locking, repetition.
#[derive(Clone, Debug, Default, Args)]
pub struct ChangeArgs {
    /// Say what would change, the kernel's verdict included, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Refuse unless the host is at this generation
    #[arg(long, value_name = "N", value_parser = whole)]
    pub expected_generation: Option<u64>,
    /// Names the request: a repeated one with the same id gets the first answer again
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
}

/// What becomes of a deletion of what does not exist.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct NotFoundArgs {
    /// Exit with 0 if what was named does not exist
    #[arg(long)]
    pub ignore_not_found: bool,
}

impl NotFoundArgs {
    /// The outcome; `None` where what was named does not exist, and that is no error.
    ///
    /// # Errors
    /// The failure, otherwise.
    pub fn accept<T>(self, outcome: Result<T, Failure>) -> Result<Option<T>, Failure> {
        match outcome {
            Err(failure) if self.ignore_not_found && failure.exit == Exit::NotFound => Ok(None),
            outcome => outcome.map(Some),
        }
    }
}

/// The id of a request.
#[derive(Clone, Debug, Default, Args)]
pub struct RequestIdArgs {
    /// Names the request: a repeated one with the same id gets the first answer again
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
}

impl RequestIdArgs {
    /// The id, where one was given.
    pub fn id(&self) -> Option<String> {
        self.request_id.clone()
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the chains of a document so
    Apply(ApplyArgs),
    /// Show what applying a document would change; exit code 3 if it would change anything
    Diff(DiffArgs),
    /// Show hosts, chains, programs or packages
    Get(GetArgs),
    /// Show what chains do now: packets and verdicts a second, and the time they take
    Top(TopArgs),
    /// Show one thing in full
    Describe(DescribeArgs),
    /// Remove a chain, one program of it, or everything a document names
    Delete(DeleteArgs),
    /// Detach everything on a host and keep the intent, or bring it back
    Drain(DrainArgs),
    /// Bring everything back that `drain` detached
    Undrain(UndrainArgs),
    /// Show and change what the maps of programs hold
    #[command(subcommand, visible_alias = "maps")]
    Map(MapCommand),
    /// Give people tokens, and take them back
    #[command(subcommand, visible_alias = "tokens")]
    Token(TokenCommand),
    /// Let hosts in, label them, and let them in no more
    #[command(subcommand, visible_alias = "hosts")]
    Host(HostCommand),
    /// Make, check, sign and publish packages
    #[command(subcommand, visible_alias = "pkg")]
    Package(PackageCommand),
    /// Verify audit trails, stored and on this machine, and show one on this machine
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Check, test and explain admission rules
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Say what this machine, a host and the connection can and cannot do, and how to mend it
    Doctor(DoctorArgs),
    /// Show and choose contexts
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Completion script for a shell
    #[command(after_help = "\
For bash: source <(canopy completion bash)
Completes commands, options, and the names of hosts, chains, programs and contexts.")]
    Completion {
        /// The shell
        #[arg(value_parser = PossibleValuesParser::new(["bash", "zsh", "fish"]))]
        shell: String,
    },
    /// Version of this program and of every service that answers
    Version(VersionArgs),
    /// Reference pages of this program.
    #[command(subcommand, hide = true)]
    Generate(GenerateCommand),
    /// What the last of these words may be; called by the completion scripts.
    #[command(name = "__complete", hide = true)]
    Complete {
        /// The words of the command line, the program's name first.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

/// `apply`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  canopy apply -f web.yaml --host web1
  canopy apply -f base.yaml -f extra.yaml --dry-run
  generate | canopy apply -f -

Several files are put together and applied in one request. Chains they do not name are left alone.
An interface that fails is as it was, and the others are changed; --atomic changes all or none.")]
pub struct ApplyArgs {
    /// Document, YAML or JSON; `-` for standard input; may be repeated
    #[arg(short, long = "file", value_name = "FILE", required = true, num_args = 1..)]
    pub files: Vec<PathBuf>,
    /// Let the programs of this package go back to an older version than the one that runs; may be
    /// repeated
    #[arg(long, value_name = "PACKAGE")]
    pub allow_downgrade: Vec<PackageName>,
    /// Change all interfaces or none: if one fails, every one is as it was
    #[arg(long)]
    pub atomic: bool,
    /// The host.
    #[command(flatten)]
    pub host: HostArgs,
    /// The change.
    #[command(flatten)]
    pub change: ChangeArgs,
    /// The answer.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `diff`
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Document, YAML or JSON; `-` for standard input; may be repeated
    #[arg(short, long = "file", value_name = "FILE", required = true, num_args = 1..)]
    pub files: Vec<PathBuf>,
    /// The host.
    #[command(flatten)]
    pub host: HostArgs,
    /// The answer.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `top`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  canopy top
  canopy top --host web1 --profile
  canopy top --once -o json

Refreshes until interrupted; once where the answer goes to no terminal or is no table.")]
pub struct TopArgs {
    /// Have the kernel take the time of each run while this looks; every run of every program on the
    /// host costs some nanoseconds more meanwhile
    #[arg(long)]
    pub profile: bool,
    /// Time between two looks, from 200ms to 1h; with --profile at most 290s
    #[arg(long, value_name = "DURATION", value_parser = duration_within(SHORTEST_INTERVAL, LONGEST_INTERVAL), default_value = "1s")]
    pub interval: Duration,
    /// Show one interval, then end
    #[arg(long)]
    pub once: bool,
    /// The hosts.
    #[command(flatten)]
    pub hosts: HostsArgs,
    /// The answer.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `get`
#[derive(Debug, Args)]
pub struct GetArgs {
    /// What to show.
    #[command(subcommand)]
    pub what: GetWhat,
    /// Go on, and show what changes, until interrupted
    #[arg(short, long, global = true)]
    pub watch: bool,
    /// The hosts.
    #[command(flatten)]
    pub hosts: HostsArgs,
    /// The answer.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What `get` shows.
#[derive(Debug, Subcommand)]
pub enum GetWhat {
    /// Hosts, chains and programs
    All,
    /// Enrolled hosts with their labels, and whether they answer
    #[command(visible_alias = "host")]
    Hosts {
        /// Only these
        #[arg(value_parser = name::host)]
        hosts: Vec<HostId>,
    },
    /// Chains: state, mode, kernel ids, generation, how often restored
    #[command(visible_alias = "chain", after_help = CHAINS)]
    Chains {
        /// Only these: INTERFACE [HOOK], or names as `-o name` prints them
        #[arg(value_name = "CHAIN")]
        chains: Vec<String>,
        /// Only in this network namespace: a name of ip-netns, an absolute path, or pid:N
        #[arg(long, value_name = "NETNS")]
        netns: Option<Netns>,
        /// Print a document that `apply` takes, as YAML or JSON: applied to the host, it changes nothing
        #[arg(long)]
        document: bool,
    },
    /// Programs: runs, verdicts, exits, metrics
    #[command(visible_alias = "program")]
    Programs {
        /// Only these, by name in the chain or as `-o name` prints them
        programs: Vec<String>,
        /// Only on this interface
        #[arg(short, long)]
        interface: Option<InterfaceName>,
        /// Only on this hook
        #[arg(long, value_parser = hook())]
        hook: Option<Hook>,
        /// Only in this network namespace: a name of ip-netns, an absolute path, or pid:N
        #[arg(long, value_name = "NETNS")]
        netns: Option<Netns>,
    },
    /// Packages in the repositories and their versions
    #[command(visible_alias = "package")]
    Packages {
        /// Only this one: name, or name@requirement
        #[arg(value_parser = name::package)]
        package: Option<PackageRef>,
        /// Instead, the programs of hosts of which a newer version is published, or whose version was
        /// withdrawn
        #[arg(long)]
        outdated: bool,
    },
    /// Admission rules in force
    #[command(visible_alias = "rule")]
    Rules,
    /// What was done, by whom: the audit records that policy has stored; JSON lines with -o json
    Audit {
        /// Which records.
        #[command(flatten)]
        filter: AuditFilterArgs,
        /// Only what this service recorded
        #[arg(long, value_parser = audit::service())]
        service: Option<Service>,
        /// The newest so many of them
        #[arg(long, default_value_t = 100, value_parser = above_zero::<u32>)]
        limit: u32,
    },
}

/// `describe`
#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// What to describe.
    #[command(subcommand)]
    pub what: DescribeWhat,
    /// The hosts.
    #[command(flatten)]
    pub hosts: HostsArgs,
    /// The answer.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What `describe` shows.
#[derive(Debug, Subcommand)]
pub enum DescribeWhat {
    /// A chain: what is desired, what the kernel has, what each program did
    #[command(visible_alias = "chains", after_help = CHAINS)]
    Chain {
        /// INTERFACE HOOK, or names as `-o name` prints them
        #[arg(value_name = "CHAIN", required = true)]
        chains: Vec<String>,
        /// The interface is in this network namespace: a name of ip-netns, an absolute path, or pid:N
        #[arg(long, value_name = "NETNS")]
        netns: Option<Netns>,
    },
    /// A program of a chain: settings, verdicts, every metric
    #[command(visible_alias = "programs")]
    Program {
        /// Its name in the chain, or as `-o name` prints it
        #[arg(value_name = "PROGRAM", required = true)]
        programs: Vec<String>,
    },
    /// A package: programs, settings, metrics, signature
    #[command(visible_alias = "packages")]
    Package {
        /// name, or name@requirement
        #[arg(value_parser = name::package)]
        package: PackageRef,
    },
    /// A host: kernel, abilities, chains
    #[command(visible_alias = "hosts")]
    Host {
        /// The host [default: the context's]
        #[arg(value_parser = name::host)]
        name: Option<HostId>,
    },
}

/// `delete`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub struct DeleteArgs {
    /// What to delete.
    #[command(subcommand)]
    pub what: Option<DeleteWhat>,
    /// Delete every chain this document names; `-` for standard input; may be repeated
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// With -f: all interfaces or none
    #[arg(long)]
    pub atomic: bool,
    /// How.
    #[command(flatten)]
    pub how: DeleteHow,
}

/// Where and how to delete.
#[derive(Debug, Args)]
pub struct DeleteHow {
    /// What does not exist.
    #[command(flatten)]
    pub absent: NotFoundArgs,
    /// The host.
    #[command(flatten)]
    pub host: HostArgs,
    /// The change.
    #[command(flatten)]
    pub change: ChangeArgs,
    /// The answer.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What `delete` deletes.
#[derive(Debug, Subcommand)]
pub enum DeleteWhat {
    /// A chain, or one program of it
    #[command(visible_alias = "chains", after_help = CHAINS)]
    Chain {
        /// INTERFACE HOOK, the interface as it was written (eth0, eth*, default-route, mac:…,
        /// altname:…), or names as `-o name` prints them
        #[arg(value_name = "CHAIN", required = true)]
        chains: Vec<String>,
        /// The interface is in this network namespace: a name of ip-netns, an absolute path, or pid:N
        #[arg(long, value_name = "NETNS")]
        netns: Option<Netns>,
        /// Only this program of the chain
        #[arg(long, value_name = "NAME")]
        program: Option<ProgramName>,
        /// How.
        #[command(flatten)]
        how: DeleteHow,
    },
    /// A program of a chain; the others stay
    #[command(
        visible_alias = "programs",
        after_help = "\
A program that is in one chain of the host only needs no more than its name. Otherwise name the chain,
too: canopy delete program eth0/xdp/limit"
    )]
    Program {
        /// Its name in the chain, or as `-o name` prints it
        #[arg(value_name = "PROGRAM", required = true)]
        programs: Vec<String>,
        /// How.
        #[command(flatten)]
        how: DeleteHow,
    },
}

/// How chains are named.
const CHAINS: &str = "\
A chain is named by interface and hook, or as `-o name` prints it:
  eth0 xdp
  eth0/xdp
  web1/eth0/xdp               (of a host)
  web1/netns:blue/eth0/xdp    (in a network namespace)";

/// `drain`
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// The host [default: the context's]
    #[arg(value_name = "HOST", value_parser = name::host)]
    pub name: Option<HostId>,
    /// Bring everything back, as `undrain` does
    #[arg(long)]
    pub undo: bool,
    /// Say what would change, and change nothing
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

/// `undrain`
#[derive(Debug, Args)]
pub struct UndrainArgs {
    /// The host [default: the context's]
    #[arg(value_name = "HOST", value_parser = name::host)]
    pub name: Option<HostId>,
    /// Say what would change, and change nothing
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

/// `doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Only look at this machine, not at the bus
    #[arg(long)]
    pub local: bool,
    /// The host.
    #[command(flatten)]
    pub host: HostArgs,
    /// The answer.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `config`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show the context in force, flags and environment included
    View {
        /// The answer.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Make a context the current one
    Use {
        /// The context
        context: String,
    },
    /// List the contexts
    GetContexts {
        /// The answer.
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// `version`
#[derive(Debug, Args)]
pub struct VersionArgs {
    /// Only this program
    #[arg(long)]
    pub client: bool,
    /// The answer.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `generate`
#[derive(Debug, Subcommand)]
pub enum GenerateCommand {
    /// The command line reference, Markdown
    CliReference,
    /// JSON Schema of the context file
    ContextSchema,
    /// JSON Schema of a package's manifest
    PackageSchema,
    /// JSON Schema of a repository's index
    IndexSchema,
    /// JSON Schema of a document for `apply`
    DesiredSchema,
    /// JSON Schema of a file of admission rules
    AdmissionRulesSchema,
    /// JSON Schema of a table of cases for `policy test`
    AdmissionCasesSchema,
}

/// Hooks with completion and "did you mean".
fn hook() -> impl TypedValueParser<Value = Hook> {
    PossibleValuesParser::new(Hook::ALL.map(Hook::as_str)).try_map(|name| name.parse::<Hook>())
}

/// A number above 0.
fn above_zero<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let number = text.parse::<u64>().ok().filter(|number| *number > 0);
    number
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| format!("\"{text}\" is not a number above 0"))
}

/// A whole number.
fn whole(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("\"{text}\" is not a whole number"))
}

/// `250ms`, `10s`, `5m`, `2h`, `90d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| rule(text))?;
    let millis = match text.get(digits.len()..) {
        Some("ms") => Some(number),
        Some("s") => number.checked_mul(1000),
        Some("m") => number.checked_mul(60_000),
        Some("h") => number.checked_mul(3_600_000),
        Some("d") => number.checked_mul(86_400_000),
        _ => None,
    };
    millis.filter(|millis| *millis > 0).map(Duration::from_millis).ok_or_else(|| rule(text))
}

/// A duration that is neither shorter nor longer than these.
pub(crate) fn duration_within(
    shortest: Duration,
    longest: Duration,
) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    move |text| {
        let given = duration(text)?;
        if (shortest..=longest).contains(&given) {
            return Ok(given);
        }
        let wrong = if given < shortest { "short" } else { "long" };
        let (shortest, longest) = (as_written(shortest), as_written(longest));
        Err(format!("\"{text}\" is too {wrong}: from {shortest} to {longest}"))
    }
}

/// A duration that is sent in seconds.
pub(crate) fn whole_seconds(text: &str) -> Result<Duration, String> {
    let given = duration(text)?;
    if given.subsec_nanos() == 0 {
        return Ok(given);
    }
    let next = as_written(Duration::from_secs(given.as_secs() + 1));
    Err(format!("\"{text}\" is not a number of whole seconds, such as {next}"))
}

/// In the largest unit that it is a number of.
pub(crate) fn as_written(duration: Duration) -> String {
    let millis = duration.as_millis();
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    let unit = units.into_iter().find(|(size, _)| millis >= *size && millis.is_multiple_of(*size));
    let (size, name) = unit.unwrap_or((1, "ms"));
    format!("{}{name}", millis / size)
}

fn rule(text: &str) -> String {
    format!("\"{text}\" is not a duration: a number and ms, s, m, h or d, such as 10s")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("90d"), Ok(Duration::from_hours(90 * 24)));
        for bad in ["", "s", "10", "10x", "-1s", "0s", "18446744073709551615d"] {
            assert!(duration(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn durations_out_of_range_are_refused_with_the_range() {
        for (line, range) in [
            ("canopy top --interval 50ms", "too short: from 200ms to 1h"),
            ("canopy top --interval 199ms", "too short: from 200ms to 1h"),
            ("canopy top --interval 61m", "too long: from 200ms to 1h"),
            ("canopy top --interval 213503982334d", "too long: from 200ms to 1h"),
            ("canopy get hosts --timeout 25h", "too long: from 1ms to 1d"),
            ("canopy token issue u-a --role viewer --expires 1500ms", "whole seconds, such as 2s"),
            ("canopy token regenerate u-a --expires 500ms", "whole seconds, such as 1s"),
            ("canopy host enrol a.request --expires 59999ms", "whole seconds, such as 1m"),
        ] {
            let error = parse(line).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(range), "{line}: {error}");
        }
        for line in ["canopy top --interval 200ms", "canopy top --interval 60m --timeout 24h"] {
            assert!(parse(line).is_ok(), "{line}");
        }
        assert_eq!(as_written(Duration::from_millis(1500)), "1500ms");
    }

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn delete_takes_a_chain_or_files_not_both() {
        assert!(
            parse("canopy delete chain eth0 xdp --program limit --host web1 --dry-run").is_ok()
        );
        assert!(parse("canopy delete -f a.yaml -f b.yaml --host web1").is_ok());
        assert!(parse("canopy delete -f a.yaml chain eth0 xdp").is_err());
        assert!(parse("canopy delete --host web1").is_err());
    }

    #[test]
    fn mistypes_are_answered_with_the_nearest_word() {
        for (line, hint) in [("canopy aply -f x", "apply"), ("canopy get chians", "chains")] {
            let said = parse(line).map(|_| ()).unwrap_err().to_string();
            assert!(said.contains(&format!("'{hint}'")), "{said}");
        }
    }

    #[test]
    fn output_and_host_go_before_or_after_what() {
        for line in ["canopy get -o wide chains --host web1", "canopy get chains -A -o json"] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }
}
