//! Why a question has no answer, and how that is told over the bus.

use crate::core::{choose::Absent, publication::Unasked};
use crate::index_state::StateError;
use canopy_api::{ApiError, Code, Digest, PackageName};
use canopy_package::PackageError;
use canopy_store::StoreError;
use semver::Version;
use std::sync::Arc;

/// Why a repository or a file of one cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Trouble {
    /// It cannot be read.
    #[error("{0}")]
    Store(Arc<StoreError>),
    /// It was read and refused.
    #[error("{0}")]
    Refused(Arc<PackageError>),
    /// The index was there before and is not any more.
    #[error("its index.signed is gone; version {0} was seen before")]
    IndexGone(u64),
    /// Its version could not be written down.
    #[error("the version of its index cannot be remembered: {}", .0.in_full())]
    NotRemembered(Arc<StateError>),
    /// A task of ours ended early.
    #[error("its verification ended unexpectedly")]
    Defect,
}

impl From<StateError> for Trouble {
    fn from(error: StateError) -> Self {
        Self::NotRemembered(Arc::new(error))
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl From<PackageError> for Trouble {
    fn from(error: PackageError) -> Self {
        Self::Refused(Arc::new(error))
    }
}

impl Trouble {
    /// In one word, for a metric's label.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Store(_) => "store",
            Self::Refused(error) => error.kind(),
            Self::IndexGone(_) => "index_gone",
            Self::NotRemembered(_) => "not_remembered",
            Self::Defect => "defect",
        }
    }

    /// Whether something was read and not believed, rather than not to be had.
    pub fn disbelieved(&self) -> bool {
        self.code() == Code::Denied
    }

    fn code(&self) -> Code {
        match self {
            Self::Store(error) => match &**error {
                StoreError::TooLarge { .. } => Code::Denied,
                StoreError::NotFound { .. }
                | StoreError::TimedOut { .. }
                | StoreError::Hung { .. }
                | StoreError::Credentials { .. }
                | StoreError::Failed { .. }
                | StoreError::Unwritten { .. } => Code::Unavailable,
            },
            // A package that is refused is refused whoever asks, and not the caller's mistake.
            Self::Refused(_) | Self::IndexGone(_) => Code::Denied,
            Self::NotRemembered(_) => Code::Unavailable,
            Self::Defect => Code::Internal,
        }
    }

    /// What to do about it, in one line.
    pub fn remedy(&self) -> String {
        match self {
            Self::Store(error) => match &**error {
                StoreError::NotFound { .. } => {
                    "publish the version again; its file is missing from the repository".to_owned()
                }
                StoreError::TooLarge { .. } => {
                    "look at the repository: the file is not what the index names".to_owned()
                }
                StoreError::TimedOut { .. }
                | StoreError::Failed { .. }
                | StoreError::Unwritten { .. } => {
                    "see whether the registry's user can reach and read the repository".to_owned()
                }
                StoreError::Hung { .. } => {
                    "see whether the file system or network of the repository hangs".to_owned()
                }
                StoreError::Credentials { remedy, .. } => remedy.clone(),
            },
            Self::Refused(error) => error.remedy(),
            Self::IndexGone(_) => {
                "restore index.signed, or rebuild it with `canopy package publish --rebuild-index`; if \
                 the repository is begun anew: canopy package trust reset-index"
                    .to_owned()
            }
            Self::NotRemembered(_) => {
                "see that the registry's user can write to `state_dir` and that there is room".to_owned()
            }
            Self::Defect => "report this with the registry's log".to_owned(),
        }
    }
}

/// Why a publisher's change was not made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PublishError {
    /// No such repository.
    #[error("there is no repository \"{name}\"")]
    NoRepository {
        /// As asked.
        name: String,
        /// Those that can be published to.
        known: Vec<String>,
    },
    /// It is not published to over the bus.
    #[error("nothing is published to this repository over the bus")]
    NotWritable,
    /// A piece that is none.
    #[error("this is not a piece of a file: {0}")]
    Piece(String),
    /// Pieces are missing.
    #[error("the file {0} was not sent, or not whole")]
    NotThere(Digest),
    /// Too many files wait.
    #[error("{0} files are on their way to the repository already")]
    Busy(usize),
    /// More than is published at once.
    #[error("more than {0} at once")]
    TooMuch(String),
    /// Somebody else wrote the index meanwhile.
    #[error("another publisher was quicker: the index is another one by now")]
    Overtaken,
    /// The new index says what was not asked for.
    #[error("{0}")]
    Unasked(#[from] Unasked),
    /// The package comes from another repository.
    #[error("\"{0}\" does not come from this repository")]
    Elsewhere(PackageName),
    /// Other bytes are there under that version.
    #[error("another file of {name} {version} is there, and no index names it yet")]
    Taken {
        /// The package.
        name: PackageName,
        /// Its version.
        version: Version,
    },
    /// A version that is none.
    #[error("\"{text}\" is not a version: {reason}")]
    Version {
        /// As given.
        text: String,
        /// What the parser met.
        reason: String,
    },
    /// It cannot be read or written, or what was sent is not believed.
    #[error("{0}")]
    Trouble(Trouble),
}

impl From<StoreError> for PublishError {
    fn from(error: StoreError) -> Self {
        Self::Trouble(error.into())
    }
}

impl From<PackageError> for PublishError {
    fn from(error: PackageError) -> Self {
        Self::Trouble(error.into())
    }
}

impl PublishError {
    /// In one word, for a metric's label.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoRepository { .. } => "no_repository",
            Self::NotWritable => "not_writable",
            Self::Piece(_) => "piece",
            Self::NotThere(_) => "not_there",
            Self::Busy(_) => "busy",
            Self::TooMuch(_) => "too_much",
            Self::Overtaken => "overtaken",
            Self::Unasked(_) => "unasked",
            Self::Elsewhere(_) => "elsewhere",
            Self::Taken { .. } => "taken",
            Self::Version { .. } => "version",
            Self::Trouble(trouble) => trouble.kind(),
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::NoRepository { .. } | Self::NotThere(_) => Code::NotFound,
            Self::NotWritable => Code::Denied,
            Self::Piece(_) | Self::TooMuch(_) | Self::Elsewhere(_) | Self::Version { .. } => {
                Code::Invalid
            }
            Self::Busy(_) => Code::Unavailable,
            Self::Overtaken | Self::Taken { .. } => Code::Conflict,
            Self::Unasked(unasked) => match unasked {
                Unasked::OtherBytes { .. } => Code::Conflict,
                Unasked::Version { .. }
                | Unasked::Repository
                | Unasked::LeftOut { .. }
                | Unasked::Changed { .. }
                | Unasked::Missing { .. } => Code::Denied,
            },
            // What a publisher sends is the publisher's mistake.
            Self::Trouble(Trouble::Refused(error)) => error.code(),
            Self::Trouble(trouble) => trouble.code(),
        }
    }

    fn remedy(&self) -> String {
        match self {
            Self::NoRepository { known, .. } if known.is_empty() => {
                "no repository of this registry can be published to over the bus: `writable` in its \
                 configuration"
                    .to_owned()
            }
            Self::NoRepository { known, .. } => format!("there is {}", known.join(", ")),
            Self::NotWritable => "publish to its directory or bucket, or have `writable: true` \
                 written in the registry's configuration"
                .to_owned(),
            Self::Piece(_) => "send the file again from its beginning, in order".to_owned(),
            Self::NotThere(_) => "send it, then ask again".to_owned(),
            Self::Busy(_) => "try again in a while".to_owned(),
            Self::TooMuch(_) => "publish the files in several steps".to_owned(),
            Self::Overtaken => "read the index again and extend that".to_owned(),
            Self::Unasked(Unasked::OtherBytes { .. }) => "raise the version in package.yaml".to_owned(),
            Self::Unasked(Unasked::Repository) => "sign it with a canopy that is not older than the one \
                 which signed the index before, and keep the repository's id"
                .to_owned(),
            Self::Unasked(_) => {
                "extend the index as it is, by what is published and nothing else".to_owned()
            }
            Self::Elsewhere(_) => {
                "publish it to the repository whose pattern fits its name best".to_owned()
            }
            Self::Taken { .. } => "somebody is publishing the version, or was broken off: raise \
                 yours, or remove the file if nobody is at it"
                .to_owned(),
            Self::Version { .. } => "write it as 1.2.3".to_owned(),
            Self::Trouble(Trouble::Store(_)) => {
                "see whether the registry's user can write to the repository".to_owned()
            }
            Self::Trouble(trouble) => trouble.remedy(),
        }
    }
}

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> Self {
        let mut api = Self::new(error.code(), error.to_string()).remedy(error.remedy());
        match &error {
            PublishError::NoRepository { .. } | PublishError::NotWritable => {
                api = api.at("repository");
            }
            PublishError::Overtaken => api = api.at("replaces"),
            PublishError::Trouble(Trouble::Refused(refused)) => {
                if let PackageError::Manifest(problems) = &**refused {
                    problems.0.clone_into(&mut api.problems);
                }
            }
            _ => {}
        }
        api
    }
}

/// Why a question has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    /// A page begins where no page ends.
    #[error("the cursor is not the \"next\" of a reply")]
    Cursor,
    /// The text is not a semver requirement.
    #[error("\"{text}\" is not a version requirement: {reason}")]
    Requirement {
        /// As given.
        text: String,
        /// What the parser met.
        reason: String,
    },
    /// No repository has it.
    #[error("there is no package \"{name}\"")]
    UnknownPackage {
        /// As asked.
        name: PackageName,
        /// A name like it that exists.
        near: Option<String>,
        /// The repository it would come from, and what is wrong with that.
        trouble: Option<(String, String)>,
    },
    /// No version matches.
    #[error("no version of \"{name}\" matches {requirement}")]
    NoVersion {
        /// The package.
        name: PackageName,
        /// As asked.
        requirement: String,
        /// What there is.
        absent: Box<Absent>,
        /// What is wrong with the repository, if something is.
        trouble: Option<(String, String)>,
    },
    /// Every version that matches needs another host.
    #[error("{name} {version} needs {lacking}")]
    Unfit {
        /// The package.
        name: PackageName,
        /// The newest that matches.
        version: String,
        /// What the host lacks.
        lacking: String,
    },
    /// The repository cannot be used.
    #[error("repository \"{repository}\" cannot be used: {trouble}")]
    Repository {
        /// Its name.
        repository: String,
        /// Why.
        trouble: Trouble,
    },
    /// The version is there and its file cannot be used.
    #[error("{name} {version} from repository \"{repository}\" is refused: {trouble}")]
    Artifact {
        /// The package.
        name: PackageName,
        /// The version.
        version: String,
        /// Where it comes from.
        repository: String,
        /// Why.
        trouble: Trouble,
    },
    /// No index names a file with that digest.
    #[error("no repository has a file {digest}")]
    UnknownDigest {
        /// As asked.
        digest: Digest,
    },
    /// Beyond the end.
    #[error("offset {offset} is beyond the file's {total} bytes")]
    Offset {
        /// As asked.
        offset: u64,
        /// Length of the file.
        total: u64,
    },
    /// A manifest that was read cannot be written.
    #[error("the manifest cannot be written")]
    Defect,
}

impl RegistryError {
    /// Whether a store did not answer in time, so that the next question to it would not be either.
    pub(crate) fn store_hangs(&self) -> bool {
        match self {
            Self::Repository { trouble, .. } | Self::Artifact { trouble, .. } => match trouble {
                Trouble::Store(error) => {
                    matches!(**error, StoreError::TimedOut { .. } | StoreError::Hung { .. })
                }
                Trouble::Refused(_)
                | Trouble::IndexGone(_)
                | Trouble::NotRemembered(_)
                | Trouble::Defect => false,
            },
            Self::Cursor
            | Self::Requirement { .. }
            | Self::UnknownPackage { .. }
            | Self::NoVersion { .. }
            | Self::Unfit { .. }
            | Self::UnknownDigest { .. }
            | Self::Offset { .. }
            | Self::Defect => false,
        }
    }
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        let said = error.to_string();
        match error {
            RegistryError::Cursor => Self::new(Code::Invalid, said)
                .at("cursor")
                .remedy("leave it out for the first page"),
            RegistryError::Requirement { .. } => Self::new(Code::Invalid, said)
                .at("requirement")
                .remedy("write it as in Cargo: ^0.1, =0.1.2, >=0.1, <0.3, *"),
            RegistryError::UnknownPackage { trouble: Some((repository, reason)), .. } => {
                Self::new(Code::Unavailable, said).at("package").remedy(format!(
                    "it would come from repository \"{repository}\", which cannot be used: {reason}"
                ))
            }
            RegistryError::UnknownPackage { near, trouble: None, .. } => {
                Self::new(Code::NotFound, said).at("package").remedy(match near {
                    Some(near) => format!("did you mean \"{near}\"?"),
                    None => "see `canopy get packages` for what there is".to_owned(),
                })
            }
            RegistryError::NoVersion { absent, trouble, .. } => Self::new(Code::NotFound, said)
                .at("requirement")
                .remedy(no_version(&absent, trouble.as_ref())),
            RegistryError::Unfit { .. } => {
                Self::new(Code::Unsupported, said).remedy("choose another version, or another host")
            }
            RegistryError::Repository { trouble, .. } | RegistryError::Artifact { trouble, .. } => {
                let mut api =
                    Self::new(trouble.code(), said).remedy(trouble.remedy()).reason(trouble.kind());
                if let Trouble::Refused(error) = &trouble
                    && let PackageError::Manifest(problems) = &**error
                {
                    problems.0.clone_into(&mut api.problems);
                }
                api
            }
            RegistryError::UnknownDigest { .. } => Self::new(Code::NotFound, said)
                .at("digest")
                .remedy("resolve the package again: the version may be gone from its repository"),
            RegistryError::Offset { .. } => Self::new(Code::Invalid, said)
                .at("offset")
                .remedy("ask for offsets below the total of the first chunk"),
            RegistryError::Defect => {
                Self::new(Code::Internal, said).remedy("report this with the registry's log")
            }
        }
    }
}

fn no_version(absent: &Absent, trouble: Option<&(String, String)>) -> String {
    let mut said = vec![match absent.exist.as_slice() {
        [] => "none is published that may be used".to_owned(),
        exist if absent.more == 0 => format!("there are {}", exist.join(", ")),
        exist => format!("there are {} and {} older ones", exist.join(", "), absent.more),
    }];
    if let Some(version) = &absent.prerelease {
        said.push(format!("to have the pre-release, ask for ={version}"));
    }
    if let Some(version) = &absent.yanked {
        said.push(format!("{version} was withdrawn"));
    }
    if let Some((repository, reason)) = trouble {
        said.push(format!(
            "repository \"{repository}\" has a newer state that is refused: {reason}"
        ));
    }
    said.join("; ")
}
