//! The grammar of `canopy host`.

use crate::cli::{NotFoundArgs, OutputArgs, RequestIdArgs, name, whole_seconds};
use canopy_api::HostId;
use clap::{Args, Subcommand};
use std::{path::PathBuf, time::Duration};

/// `host`
#[derive(Debug, Subcommand)]
#[command(after_help = "\
A new host, in three steps; no key leaves it and nothing that is carried is secret:
  web9$   canopy host request web9 --dir /etc/canopy/tls --save web9.request
  admin$  canopy host enrol web9.request --label rack=7 --save web9.enrolment
  web9$   canopy host install web9.enrolment --dir /etc/canopy/tls")]
pub enum HostCommand {
    /// On a new host: make the keys of its daemons, and the request to be enrolled
    Request(HostRequestArgs),
    /// As an administrator: let a host in, once; signs the certificates it asks for
    Enrol(HostEnrolArgs),
    /// On a new host: put what was signed beside the keys, and say how its daemons are configured
    Install(HostInstallArgs),
    /// On a host: have the certificates of its daemons renewed, when a third of their time is left
    Renew(HostRenewArgs),
    /// Which hosts are enrolled
    List {
        /// The answer.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// What is known about an enrolled host
    Show {
        /// Which
        #[arg(value_parser = name::host)]
        host: HostId,
        /// The answer.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Put labels on a host, or take them away
    #[command(after_help = "Example: canopy host label web9 rack=7 env-  (takes away env)")]
    Label {
        /// Which
        #[arg(value_parser = name::host)]
        host: HostId,
        /// name=value, or name- to take it away
        #[arg(required = true, value_name = "LABEL", value_parser = label)]
        labels: Vec<(String, Option<String>)>,
        /// Names the request.
        #[command(flatten)]
        repeat: RequestIdArgs,
        /// The answer.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Remove what is kept of a revoked host
    #[command(after_help = "\
A host that was revoked stays in the list until it is forgotten. It may be enrolled again; the audit trail
keeps what was done.")]
    Forget {
        /// Which
        #[arg(value_parser = name::host)]
        host: HostId,
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
    /// Let a host in no more; its connections end
    Revoke {
        /// Which
        #[arg(value_parser = name::host)]
        host: HostId,
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
}

/// `host request`
#[derive(Debug, Args)]
pub struct HostRequestArgs {
    /// The id the host is to have
    pub host: HostId,
    /// Directory for the keys
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Write the request to this new file
    #[arg(long, value_name = "FILE")]
    pub save: PathBuf,
    /// The answer.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `host enrol`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  canopy host enrol web9.request --label rack=7 --label env=prod --save web9.enrolment
  canopy host enrol --certificate h-web9-loader.crt --certificate h-web9-enforcer.crt

The first shows the keys of the request and asks before the policy service signs their certificates:
compare them with those that the host showed. Without a terminal, --expect-fingerprint takes what the host
showed, and --yes asks nothing. The second lets in certificates that the bus's authority has signed
elsewhere.")]
pub struct HostEnrolArgs {
    /// The request that the host made
    #[arg(value_name = "REQUEST", required_unless_present = "certificate")]
    pub request: Option<PathBuf>,
    /// A certificate of one of the host's daemons, signed already, PEM; may be repeated
    #[arg(long, value_name = "FILE", conflicts_with_all = ["request", "save", "bus_url"])]
    pub certificate: Vec<PathBuf>,
    /// A label, name=value; may be repeated [default when enrolled anew: those of before]
    #[arg(long, value_name = "LABEL", value_parser = new_label)]
    pub label: Vec<(String, String)>,
    /// Within what time the host has to connect for the first time [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = whole_seconds)]
    pub expires: Option<Duration>,
    /// The fingerprint that the host showed of a key, as DAEMON=FINGERPRINT or the fingerprint alone; may be
    /// repeated. A request with another key is refused
    #[arg(long, value_name = "FINGERPRINT", conflicts_with = "certificate")]
    pub expect_fingerprint: Vec<String>,
    /// Do not ask whether the keys are the host's
    #[arg(short, long)]
    pub yes: bool,
    /// In place of an enrolment there is: its certificates and connections end
    #[arg(long)]
    pub replace: bool,
    /// Address of the bus as the host reaches it [default: the context's]
    #[arg(long, value_name = "URL")]
    pub bus_url: Option<String>,
    /// Write what the host needs to this new file
    #[arg(long, value_name = "FILE", required_unless_present = "certificate")]
    pub save: Option<PathBuf>,
    /// Names the request.
    #[command(flatten)]
    pub repeat: RequestIdArgs,
    /// The answer.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `host install`
#[derive(Debug, Args)]
pub struct HostInstallArgs {
    /// What the administrator saved
    pub enrolment: PathBuf,
    /// Directory with the keys that `canopy host request` made
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// The answer.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `host renew`
#[derive(Debug, Args)]
pub struct HostRenewArgs {
    /// Directory with the keys and certificates, as `canopy host install` leaves it
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// However much time is left
    #[arg(long)]
    pub now: bool,
    /// The answer.
    #[command(flatten)]
    pub output: OutputArgs,
}

fn new_label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as name=value")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn label(text: &str) -> Result<(String, Option<String>), String> {
    match (text.split_once('='), text.strip_suffix('-')) {
        (Some((name, value)), _) => Ok((name.to_owned(), Some(value.to_owned()))),
        (None, Some(name)) => Ok((name.to_owned(), None)),
        (None, None) => Err("write it as name=value, or name- to take it away".to_owned()),
    }
}
