//! The grammar of `canopy audit`.

use super::OutputArgs;
use canopy_api::{Principal, wire::Decision};
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
What was cut off at the end, and a trail that was written anew from some record on, is seen by comparing \
with a place of the chain that was kept elsewhere: --head, as this command prints it, or the `place` of an \
audit record on the bus without the chain's name. Set-aside trails (damaged-*) are verified by their own \
directories.")]
    Verify {
        /// A loader's `<state_dir>/audit`, or a copy of it, or one file of it
        path: PathBuf,
        /// A place of the chain from before, as <seq>:<hash>
        #[arg(long, value_name = "PLACE")]
        head: Option<Head>,
        /// The answer.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show the records of an audit trail; JSON lines with -o json
    Show(AuditShowArgs),
}

/// `audit show`
#[derive(Debug, Args)]
pub struct AuditShowArgs {
    /// A loader's `<state_dir>/audit`, or a copy of it, or one file of it
    pub path: PathBuf,
    /// Only records from then on: 2h ago, or a time such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only records until then
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Only of this person
    #[arg(long, value_name = "NAME")]
    pub by: Option<Principal>,
    /// Only of this verb, such as apply
    #[arg(long)]
    pub verb: Option<String>,
    /// Only with this decision
    #[arg(long, value_parser = decision())]
    pub decision: Option<Decision>,
    /// The answer.
    #[command(flatten)]
    pub output: OutputArgs,
}

fn decision() -> impl TypedValueParser<Value = Decision> {
    PossibleValuesParser::new(["done", "failed", "denied"]).map(|name| match name.as_str() {
        "done" => Decision::Done,
        "denied" => Decision::Denied,
        _ => Decision::Failed,
    })
}
