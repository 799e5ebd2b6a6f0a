//! The grammar of `canopy token`.

use crate::cli::{NotFoundArgs, OutputArgs, RequestIdArgs, whole_seconds};
use canopy_api::{
    Principal, endpoint::Service, permission::Role, san::SanPattern, scope::HostPattern,
};
use clap::{
    Args, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser},
};
use std::{path::PathBuf, time::Duration};

/// `token`
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Give a person a token; they have none in force
    Issue(TokenIssueArgs),
    /// Give a person another token in place of theirs, which ends at once, with its connections
    Regenerate(TokenRegenerateArgs),
    /// End a person's token, with its connections
    Revoke {
        /// Whose
        person: Principal,
        /// What does not exist.
        #[command(flatten)]
        absent: NotFoundArgs,
        /// Names the request.
        #[command(flatten)]
        repeat: RequestIdArgs,
        /// The answer.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Who has a token, of which role, in which state
    List {
        /// The answer.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// What is known about a person's token
    Show {
        /// Whose
        person: Principal,
        /// The answer.
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// `token issue`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  canopy token issue u-alice --role operator --certificate alice.crt --save alice.token
  canopy token issue u-bob --role viewer --san uri=spiffe://canopy/u-bob --expires 90d
  canopy token issue u-ci --role operator --certificate ci.crt --only-host 'web*' --only-service loader

A token is shown once: in a file of mode 0600 with --save, else on standard output. Tokens of admins
and publishers go with a certificate, named by --certificate or --san.")]
pub struct TokenIssueArgs {
    /// For whom: u-alice
    pub person: Principal,
    /// What they may do
    #[arg(long, value_parser = role())]
    pub role: Role,
    /// Only on these hosts: an id, a pattern (web*) or a label (label:rack=7); may be repeated
    #[arg(long, value_name = "HOST")]
    pub only_host: Vec<HostPattern>,
    /// Only with these services; may be repeated
    #[arg(long, value_name = "SERVICE", value_parser = service())]
    pub only_service: Vec<Service>,
    /// Certificate and end.
    #[command(flatten)]
    pub with: TokenArgs,
}

/// `token regenerate`
#[derive(Debug, Args)]
pub struct TokenRegenerateArgs {
    /// Whose
    pub person: Principal,
    /// Certificate and end.
    #[command(flatten)]
    pub with: TokenArgs,
}

/// What a new token goes with, when it ends, and where it is put.
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// The certificate it goes with, PEM: no other then will do
    #[arg(long, value_name = "FILE", conflicts_with = "san")]
    pub certificate: Option<PathBuf>,
    /// The name in a certificate it goes with: uri=, dns=, email= or ip= and the name; with * or ?
    /// a pattern
    #[arg(long, value_name = "KIND=NAME", value_parser = san)]
    pub san: Option<SanPattern>,
    /// When it ends by itself, from now: 90d [default: when your own token ends, else valid until regenerated or revoked]
    #[arg(long, value_name = "DURATION", value_parser = whole_seconds)]
    pub expires: Option<Duration>,
    /// Write the token to this new file, mode 0600, instead of showing it
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Names the request.
    #[command(flatten)]
    pub repeat: RequestIdArgs,
    /// The answer.
    #[command(flatten)]
    pub output: OutputArgs,
}

fn role() -> impl TypedValueParser<Value = Role> {
    PossibleValuesParser::new(Role::ALL.map(Role::as_str)).try_map(|text| text.parse::<Role>())
}

fn service() -> impl TypedValueParser<Value = Service> {
    PossibleValuesParser::new(Service::ALL.map(Service::as_str)).try_map(|text| {
        let named = Service::ALL.into_iter().find(|service| service.as_str() == text);
        named.ok_or_else(|| format!("\"{text}\" is not a service"))
    })
}

fn san(text: &str) -> Result<SanPattern, String> {
    let (kind, name) = text.split_once('=').ok_or("write it as uri=NAME, dns=NAME, …")?;
    let how = if name.contains(['*', '?']) { "glob" } else { "exact" };
    serde_json::from_value(serde_json::json!({ kind: { how: name } }))
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_stars_are_patterns() {
        let shown = |text: &str| san(text).map(|pattern| pattern.to_string());
        assert_eq!(shown("uri=spiffe://canopy/u-a").unwrap(), "uri spiffe://canopy/u-a");
        assert_eq!(shown("email=*@example.org").unwrap(), "email like *@example.org");
        assert!(shown("uri=**").unwrap_err().contains("fits every name"));
        assert!(shown("cn=x").is_err());
        assert!(shown("x").is_err());
    }
}
