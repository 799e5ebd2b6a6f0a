//! The grammar of `canopy package`.

use super::{OutputArgs, hook, whole_seconds};
use canopy_api::{Hook, HostId, PackageName, PackageRef};
use clap::{Args, Subcommand};
use semver::Version;
use std::{path::PathBuf, time::Duration};

/// `package`
#[derive(Debug, Subcommand)]
pub enum PackageCommand {
    /// Start a package: C source, manifest, README, and how to compile it
    Init {
        /// Name of the package
        name: PackageName,
        /// Directory to make [default: the name]
        #[arg(long, value_name = "DIR")]
        directory: Option<PathBuf>,
        /// Where the program will be attached
        #[arg(long, value_parser = hook(), default_value = "xdp")]
        hook: Hook,
    },
    /// Make a package file from a directory with a package.yaml and its objects
    Build {
        /// The directory
        directory: PathBuf,
        /// The file to write [default: <name>-<version>.cpkg in the working directory]
        #[arg(short = 'o', long = "output", value_name = "FILE")]
        file: Option<PathBuf>,
        /// Compile every *.bpf.c of the directory first, with clang
        #[arg(long)]
        compile: bool,
        /// Directory with headers, for --compile; may be repeated
        #[arg(short = 'I', long = "include", value_name = "DIR", requires = "compile")]
        include: Vec<PathBuf>,
    },
    /// Say everything that is wrong with a package directory or file
    Check {
        /// The directory, or a .cpkg file
        path: PathBuf,
        /// Check the file's signature with this public key too; may be repeated
        #[arg(long, value_name = "FILE")]
        key: Vec<PathBuf>,
        /// Load each program into this machine's kernel too, alone, and remove it again; as root
        #[arg(long)]
        load: bool,
    },
    /// Make a key pair for signing, readable by any minisign tool
    Keygen {
        /// Directory to put canopy.key and canopy.pub in
        #[arg(short = 'o', long = "output", value_name = "DIR")]
        directory: PathBuf,
        /// Name of the two files, without extension
        #[arg(long, default_value = "canopy")]
        name: String,
    },
    /// Sign package files; writes <file>.minisig
    Sign {
        /// Package files
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Secret key file
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Print the trusted comment a package's signature must carry, for signing with minisign itself
    #[command(after_help = "minisign -S -s KEY -m FILE -t \"$(canopy package comment FILE)\"")]
    Comment {
        /// Package file
        file: PathBuf,
    },
    /// Add package files to a repository, a directory or a bucket, and sign its index
    Publish(PublishArgs),
    /// What this fleet remembers of repositories, so that older states of them are refused
    #[command(subcommand)]
    Trust(TrustCommand),
    /// Withdraw a published version: it is not chosen any more; hosts that run it keep it
    Yank(YankArgs),
    /// Look for packages by name, description, keyword and hook
    Search {
        /// Each has to stand somewhere in name, description, keywords or hooks
        words: Vec<String>,
        /// Only packages with a program for this hook
        #[arg(long, value_parser = hook())]
        hook: Option<Hook>,
        /// Only packages with this keyword
        #[arg(long)]
        keyword: Option<String>,
        /// The answer.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Have the registry read its repositories again now, and say how they stand
    Refresh {
        /// The answer.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show one package of the repositories (as `describe package`)
    Show {
        /// name, or name@requirement
        #[arg(value_parser = super::name::package)]
        package: PackageRef,
        /// The answer.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List the packages of the repositories (as `get packages`)
    List {
        /// Only this one
        #[arg(value_parser = super::name::package)]
        package: Option<PackageRef>,
        /// The answer.
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// `package trust`
#[derive(Debug, Subcommand)]
pub enum TrustCommand {
    /// Accept a repository's index as it is now, though one with a higher version was seen before
    #[command(after_help = "\
For when an index with a version that was a mistake was read, or a repository is begun anew. The
index that is in the repository has to be rightly signed, and is the oldest that is accepted from
then on; where there is none, any signed one is.

Examples:
  canopy package trust reset-index starter
  canopy package trust reset-index starter --all-hosts
  canopy package trust reset-index starter --host web1 --host web2

Registries remember for themselves: where several run, repeat it until each has answered.")]
    ResetIndex(ResetIndexArgs),
}

/// `package trust reset-index`
#[derive(Debug, Args)]
pub struct ResetIndexArgs {
    /// The repository, as the registry's configuration calls it
    pub repository: String,
    /// A host that is to accept it too; may be repeated
    #[arg(long = "host", value_name = "HOST", value_parser = super::name::host, conflicts_with = "all_hosts")]
    pub hosts: Vec<HostId>,
    /// All hosts are to accept it too
    #[arg(short = 'A', long)]
    pub all_hosts: bool,
    /// The answer.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `package publish`
#[derive(Debug, Args)]
#[command(after_help = "\
Publishing the same file again changes nothing. Another file under a version that is already there \
is refused: exit code 5.")]
pub struct PublishArgs {
    /// Package files; each is signed on the way unless its .minisig is beside it
    #[arg(required_unless_present_any = ["refresh_index", "rebuild_index"])]
    pub files: Vec<PathBuf>,
    /// The repository, and who signs; packages that are not signed are signed too.
    #[command(flatten)]
    pub repository: RepositoryArgs,
    /// Sign the index again, even if nothing is added
    #[arg(long, conflicts_with = "rebuild_index")]
    pub refresh_index: bool,
    /// Make the index anew from the packages that are there and rightly signed
    #[arg(long)]
    pub rebuild_index: bool,
}

/// A repository that is changed, and by whom.
#[derive(Debug, Args)]
pub struct RepositoryArgs {
    /// The repository.
    #[arg(
        long,
        value_name = "DIR|URL|registry:NAME",
        help = "The repository: a directory, which `publish` makes if it is not there, a bucket \
                (s3://bucket/folder, az://container/folder), or one of the registry's, by its name, \
                over the bus (registry:NAME)"
    )]
    pub repository: String,
    /// How the bucket is reached.
    #[arg(
        long,
        value_name = "FILE",
        help = "How the bucket is reached, in JSON, as `store` in the registry's configuration \
                [default: what the provider's own tools read, such as AWS_REGION]"
    )]
    pub store: Option<PathBuf>,
    /// Secret key file that signs
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// Public key of somebody else whose signatures readers of the repository trust; may be repeated
    #[arg(long, value_name = "FILE")]
    pub trusted_key: Vec<PathBuf>,
    /// How long the index counts, such as 90d; publish or refresh again before
    #[arg(long, value_name = "DURATION", value_parser = whole_seconds, default_value = "90d")]
    pub expires_in: Duration,
}

/// `package yank`
#[derive(Debug, Args)]
#[command(after_help = "\
The file stays, and a host that runs the version keeps it over restarts. Withdrawing twice changes \
nothing.")]
pub struct YankArgs {
    /// The version, as name@1.2.3
    #[arg(value_parser = exact_version)]
    pub version: (PackageName, Version),
    /// Bring it back
    #[arg(long)]
    pub undo: bool,
    /// The repository, and who signs.
    #[command(flatten)]
    pub repository: RepositoryArgs,
}

fn exact_version(text: &str) -> Result<(PackageName, Version), String> {
    let (name, version) =
        text.split_once('@').ok_or("write one exact version: name@1.2.3".to_owned())?;
    let name = name.parse().map_err(|error| format!("{error}"))?;
    let version = version
        .parse()
        .map_err(|_| format!("\"{version}\" is not an exact version: write name@1.2.3"))?;
    Ok((name, version))
}
