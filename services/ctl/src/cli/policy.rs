//! The grammar of `canopy policy`.

use super::{HostArgs, OutputArgs, hook};
use canopy_admission::{cases::exact_package, is_label};
use canopy_api::{
    Hook, InterfaceSelector, PackageName, Principal, ProgramName, permission::Role,
    wire::AdmissionVerb,
};
use canopy_package::PublicKey;
use clap::{
    Args, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser},
};
use semver::Version;
use std::path::PathBuf;

/// `policy`
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Say everything that is wrong with a file of admission rules, and what is most likely not meant
    Check {
        /// The rules, YAML or JSON; `-` for standard input
        file: PathBuf,
        /// End with exit code 3 when there is anything to remark on
        #[arg(long)]
        strict: bool,
        /// The answer.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Decide a table of cases by a file of rules; exit code 3 if one comes out otherwise than expected
    Test {
        /// The rules, YAML or JSON
        rules: PathBuf,
        /// The cases, YAML or JSON; `-` for standard input
        cases: PathBuf,
        /// The answer.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Say which rule decides whether somebody may do something, and what each rule says
    Explain(Box<ExplainArgs>),
}

/// `policy explain`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  canopy policy explain u-alice apply firewall@0.1.0 --interface eth0 --hook xdp --host web1
  canopy policy explain u-alice drain --host web1 --rules rules.yaml --role operator --label env=prod

The policy service is asked, who knows roles and labels; with --rules a file decides, offline. Exit \
code 0 when it is allowed, 6 when it is denied.")]
pub struct ExplainArgs {
    /// Who would ask: a name on the bus, such as u-alice
    pub who: Principal,
    /// What would be done
    #[arg(value_parser = verb())]
    pub verb: AdmissionVerb,
    /// The package, as name@1.2.3
    #[arg(value_parser = exact_package)]
    pub package: Option<(PackageName, Version)>,
    /// The interface, as a document names it
    #[arg(short, long)]
    pub interface: Option<InterfaceSelector>,
    /// A second selector: only the interfaces that both stand for
    #[arg(long, value_name = "SELECTOR")]
    pub within: Option<InterfaceSelector>,
    /// The hook
    #[arg(long, value_parser = hook())]
    pub hook: Option<Hook>,
    /// With the verb delete: the program that would run before it and end the chain
    #[arg(long, value_name = "PROGRAM")]
    pub behind: Option<ProgramName>,
    /// The public key that signed the package
    #[arg(long, value_name = "KEY")]
    pub publisher: Option<PublicKey>,
    /// The map
    #[arg(long, value_name = "NAME")]
    pub map: Option<String>,
    /// The other package that has the map, of share-map
    #[arg(long, value_name = "PACKAGE")]
    pub shared_with: Option<PackageName>,
    /// The host.
    #[command(flatten)]
    pub host: HostArgs,
    /// Decide by this file instead of asking the policy service
    #[arg(long, value_name = "FILE")]
    pub rules: Option<PathBuf>,
    /// Their role, with --rules
    #[arg(long, value_parser = role(), requires = "rules")]
    pub role: Option<Role>,
    /// A label of the host, as name=value, with --rules; may be repeated
    #[arg(long, value_name = "LABEL", value_parser = label, requires = "rules")]
    pub label: Vec<(String, String)>,
    /// The answer.
    #[command(flatten)]
    pub output: OutputArgs,
}

fn verb() -> impl TypedValueParser<Value = AdmissionVerb> {
    PossibleValuesParser::new(AdmissionVerb::ALL.map(AdmissionVerb::as_str))
        .try_map(|name| name.parse::<AdmissionVerb>())
}

fn role() -> impl TypedValueParser<Value = Role> {
    PossibleValuesParser::new(Role::ALL.map(Role::as_str)).try_map(|name| name.parse::<Role>())
}

fn label(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .filter(|(name, value)| is_label(name, true) && is_label(value, false))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| format!("\"{text}\" is not a label: write name=value, such as env=prod"))
}
