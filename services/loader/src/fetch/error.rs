//! Why a package cannot be had.

use crate::error::LoaderError;
use canopy_api::{ApiError, Code, PackageName};
use canopy_package::PackageError;

/// Why a package cannot be had, or is not to be trusted.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No rule of the configuration names it.
    #[error("nobody is trusted to publish \"{package}\" for this host")]
    NoTrust {
        /// The package.
        package: PackageName,
    },
    /// The registry does not give it.
    #[error("{}", .0.message)]
    Registry(Box<ApiError>),
    /// The registry answered something else than what was asked.
    #[error("the registry answered {got} to the question for {asked}")]
    Answer {
        /// What was asked.
        asked: String,
        /// What came.
        got: String,
    },
    /// It is refused.
    #[error("{what}: {source}")]
    Refused {
        /// Which package.
        what: String,
        /// Why.
        source: Box<PackageError>,
    },
    /// It is older than what this host has and what would do.
    #[error(
        "the registry answered {what}, which is older than the {has} of this host, which will do"
    )]
    Downgrade {
        /// Which package.
        what: String,
        /// The version of this host.
        has: semver::Version,
    },
    /// It was withdrawn.
    #[error("{what} was withdrawn by its publisher")]
    Yanked {
        /// Which package.
        what: String,
    },
    /// The registry sends more or less than it announced.
    #[error("{what}: the registry announced {announced} bytes and sends {sent}")]
    Length {
        /// Which package.
        what: String,
        /// What the index says.
        announced: u64,
        /// What comes.
        sent: u64,
    },
    /// It cannot be kept.
    #[error("the package cache cannot be written")]
    Cache(#[source] std::io::Error),
    /// What was seen cannot be remembered.
    #[error("the version of the index cannot be remembered")]
    Remember(#[source] Box<LoaderError>),
    /// A defect of ours.
    #[error("the verification ended unexpectedly")]
    Defect,
}

impl FetchError {
    /// In one word, why something was not believed; `None` when nothing came that could be.
    pub fn disbelieved(&self) -> Option<&'static str> {
        match self {
            Self::NoTrust { .. } => Some("no_trust"),
            Self::Answer { .. } => Some("answer"),
            Self::Refused { source, .. } => Some(source.kind()),
            Self::Downgrade { .. } => Some("downgrade"),
            Self::Yanked { .. } => Some("withdrawn"),
            Self::Length { .. } => Some("length"),
            Self::Registry(_) | Self::Cache(_) | Self::Remember(_) | Self::Defect => None,
        }
    }

    /// What the caller is told.
    pub fn into_api(self) -> ApiError {
        let said = self.to_string();
        match self {
            Self::NoTrust { package } => ApiError::new(Code::Denied, said).remedy(format!(
                "add a rule for {package} with its publisher's key to `trust` in the loader's configuration"
            )),
            Self::Registry(error) => *error,
            Self::Answer { .. } => ApiError::new(Code::Denied, said)
                .remedy("do not trust this registry until it is looked at"),
            Self::Refused { source, .. } => {
                let mut error = ApiError::from(source.as_ref());
                error.message = said;
                error
            }
            Self::Downgrade { .. } => ApiError::new(Code::Denied, said)
                .remedy("to go back on purpose, ask for the exact version and allow it: name@=version, --allow-downgrade name"),
            Self::Yanked { .. } => {
                ApiError::new(Code::Denied, said).remedy("choose another version")
            }
            Self::Length { .. } => ApiError::new(Code::Denied, said)
                .remedy("fetch it again; if it stays so, publish it again"),
            Self::Cache(source) => ApiError::new(Code::Unavailable, format!("{said}: {source}"))
                .remedy("free space or mend the loader's `state_dir`"),
            Self::Remember(source) => source.into_api(),
            Self::Defect => {
                ApiError::new(Code::Internal, said).remedy("report this with the loader's log")
            }
        }
    }
}
