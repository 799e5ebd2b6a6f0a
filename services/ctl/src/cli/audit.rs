//! The grammar of `canopy audit`.

use super::OutputArgs;
use canopy_api::{Principal, endpoint::Service, wire::Decision};
use canopy_audit::Head;
use clap::{
    Args, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser},
};
use std::path::PathBuf;

/// `audit`
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Say whether an audit trail is as its writer wrote it; exit code 3 if it is not
    #[command(after_help = "\
Without a directory, what policy has stored of all writers is fetched and verified here, chain by chain, \
against the checkpoints that policy has signed.

What was cut off at the end of a directory, and a trail that was written anew from some record on, is seen by \
comparing with what is not on that host: --from-policy asks policy for its checkpoints, --checkpoints takes \
those that were kept in a file (canopy audit checkpoints), --head takes a single place of the chain, as this \
command prints it. Set-aside trails (damaged-*) are verified by their own directories.")]
    Verify(AuditVerifyArgs),
    /// Show the records of an audit trail on this machine; JSON lines with -o json
    Show(AuditShowArgs),
    /// Print the signed checkpoints that policy has, as JSON lines, to be kept elsewhere
    Checkpoints {
        /// Only of this writer, such as h-web1-loader
        #[arg(long, value_name = "NAME")]
        writer: Option<Principal>,
    },
}

/// `audit verify`
#[derive(Debug, Args)]
pub struct AuditVerifyArgs {
    /// A writer's audit directory, or a copy of it, or one file of it [default: what policy has stored]
    pub path: Option<PathBuf>,
    /// A place of the chain from before, as <seq>:<hash>
    #[arg(long, value_name = "PLACE", requires = "path")]
    pub head: Option<Head>,
    /// Checkpoints of a file that were printed by `canopy audit checkpoints`; for what is stored, beside
    /// those that policy has
    #[arg(long, value_name = "FILE", requires = "key")]
    pub checkpoints: Option<PathBuf>,
    /// Checkpoints that policy has now
    #[arg(long, conflicts_with = "checkpoints", requires = "path")]
    pub from_policy: bool,
    /// The public key that checkpoints have to be signed with, or a file with it (audit-signing.pub)
    /// [default: the one that policy names]
    #[arg(long)]
    pub key: Option<String>,
    /// Only what policy has stored of this writer, such as h-web1-loader
    #[arg(long, value_name = "NAME", conflicts_with = "path")]
    pub writer: Option<Principal>,
    /// The answer.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Which records are asked for.
#[derive(Clone, Debug, Default, Args)]
pub struct AuditFilterArgs {
    /// Only records from then on: 2h for two hours ago, or a time such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only records until then
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Only of what this person, or daemon, did
    #[arg(long, value_name = "NAME")]
    pub by: Option<Principal>,
    /// Only of this verb, such as apply
    #[arg(long)]
    pub verb: Option<String>,
    /// Only with this decision
    #[arg(long, value_parser = decision())]
    pub decision: Option<Decision>,
}

/// `audit show`
#[derive(Debug, Args)]
pub struct AuditShowArgs {
    /// A writer's audit directory, such as a loader's `<state_dir>/audit`, or a copy of it, or one file of it
    pub path: PathBuf,
    /// Which records.
    #[command(flatten)]
    pub filter: AuditFilterArgs,
    /// The answer.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// The service whose records are asked for.
pub(super) fn service() -> impl TypedValueParser<Value = Service> {
    PossibleValuesParser::new(Service::ALL.map(Service::as_str)).map(|name| {
        Service::ALL.into_iter().find(|service| service.as_str() == name).unwrap_or(Service::Loader)
    })
}

fn decision() -> impl TypedValueParser<Value = Decision> {
    PossibleValuesParser::new(["done", "failed", "denied"]).map(|name| match name.as_str() {
        "done" => Decision::Done,
        "denied" => Decision::Denied,
        _ => Decision::Failed,
    })
}
