//! Why the loader did not do what was asked, and what the caller is told.

use crate::{
    core::{
        build::BuildError,
        downgrade::Downgrade,
        expand::{Ambiguous, Unreached},
    },
    fetch::FetchError,
    store::StoreError,
};
use canopy_api::{
    ApiError, ChainKey, Code, InterfaceName, InterfaceSelector, Netns, Problem, Problems,
    ProgramName, Target, wire::MapName,
};
use canopy_kernel::KernelError;

/// Why a request, or what it asked for one interface, was not done. Whatever it is, the chains run as
/// before.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// The document is wrong.
    #[error("the document is wrong")]
    Document(#[from] Problems),
    /// A package cannot be had, or is not to be trusted.
    #[error("{path}: the package cannot be used")]
    Fetch {
        /// Where the request names it.
        path: String,
        /// Why.
        #[source]
        source: Box<FetchError>,
    },
    /// A package cannot run on this host.
    #[error("{0}")]
    Host(Box<ApiError>),
    /// A program would go back to an older version, and nobody said that it may.
    #[error("{} {} is older than the {} that runs as \"{}\" on {}", .0.package, .0.to, .0.from, .0.program, .0.target)]
    Downgrade(Box<Downgrade>),
    /// The host is drained.
    #[error("this host is drained: nothing is attached until the drain is undone")]
    Drained,
    /// The caller thought the host was at another generation.
    #[error("the host is at generation {current}, not {expected}")]
    Generation {
        /// What the caller thought.
        expected: u64,
        /// What is.
        current: u64,
    },
    /// What a change was planned from is not so any more. Nothing was changed.
    #[error("the host's interfaces or chains changed while this was being decided")]
    Moved,
    /// No such interface.
    #[error("there is no interface \"{name}\"{}", netns.as_ref().map(|netns| format!(" in network namespace {netns}")).unwrap_or_default())]
    NoInterface {
        /// The network namespace; `None` for the loader's own.
        netns: Option<Netns>,
        /// Its name.
        name: InterfaceName,
        /// Where the request names it.
        path: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// A network namespace is not there, or cannot be entered.
    #[error("{}", why.what)]
    Netns {
        /// Where the request names it.
        path: String,
        /// What is the matter.
        why: Unreached,
    },
    /// Two selectors stand for the same interface with equal right.
    #[error(transparent)]
    Ambiguous(Box<Ambiguous>),
    /// A chain comes from a selector.
    #[error("the chain on {key} comes from {selector}")]
    OfSelector {
        /// The chain.
        key: ChainKey,
        /// The selector.
        selector: InterfaceSelector,
    },
    /// No such chain.
    #[error("there is no chain on {target}")]
    NoChain {
        /// Which.
        target: Target,
        /// Those there are.
        known: Vec<String>,
    },
    /// No such program in the chain.
    #[error("the chain on {target} has no program \"{program}\"")]
    NoProgram {
        /// The chain.
        target: Target,
        /// The program.
        program: ProgramName,
        /// Those there are.
        known: Vec<String>,
    },
    /// No such map of the program.
    #[error("program \"{}\" of the chain on {} has no map \"{}\"", name.program, name.key(), name.map)]
    NoMap {
        /// What was asked for.
        name: Box<MapName>,
        /// Those there are.
        known: Vec<String>,
    },
    /// A map is not read or written so.
    #[error("{0}")]
    Map(Box<ApiError>),
    /// The kernel, or the composer in front of it, refused.
    #[error("{path}: the kernel did not take it")]
    Kernel {
        /// Where the request asks for it; empty for the whole.
        path: String,
        /// Why.
        #[source]
        source: Box<KernelError>,
    },
    /// The kernel says something else than what was done.
    #[error("{key} was changed by somebody else in the same moment: {what}")]
    Disagrees {
        /// The chain.
        key: ChainKey,
        /// What it says.
        what: String,
    },
    /// The kernel does not have a setting of a chain that was prepared. Nothing was changed.
    #[error("{key}: the kernel does not have the settings: {what}")]
    Settings {
        /// The chain.
        key: ChainKey,
        /// Which is not as it is to be.
        what: String,
    },
    /// The state cannot be written.
    #[error("the state cannot be kept")]
    Store(#[from] StoreError),
    /// A chain cannot be laid out.
    #[error("the chain cannot be laid out")]
    Build(#[from] BuildError),
    /// Every interface of a request failed; each with the first of its chains, which rules of selectors have none of.
    #[error("nothing was changed: each of {} interfaces failed", .0.len())]
    Nothing(Vec<(Option<ChainKey>, Self)>),
    /// The caller does not wait any more, and nothing was changed yet.
    #[error("the caller's time ran out before anything was changed; nothing was done")]
    Late,
    /// An earlier change is neither done nor taken back.
    #[error("an earlier change is neither done nor taken back yet")]
    Unsettled,
}

impl LoaderError {
    /// A kernel error about the whole request.
    pub fn kernel(source: KernelError) -> Self {
        Self::Kernel { path: String::new(), source: Box::new(source) }
    }

    /// Whether all that failed did because the host is not as it was when the change was planned.
    pub fn is_moved(&self) -> bool {
        match self {
            Self::Moved => true,
            Self::Nothing(failed) => failed.iter().all(|(_, error)| error.is_moved()),
            _ => false,
        }
    }

    /// What the caller is told.
    pub fn into_api(self) -> ApiError {
        let said = self.to_string();
        match self {
            Self::Document(problems) => ApiError::invalid(problems),
            Self::Fetch { path, source } => (*source).into_api().at(path),
            Self::Host(error) | Self::Map(error) => *error,
            Self::Downgrade(back) => ApiError::new(Code::Denied, said)
                .at(format!("{}.package", back.path))
                .remedy(format!("to go back on purpose: --allow-downgrade {}", back.package)),
            Self::Drained => ApiError::new(Code::Conflict, said)
                .remedy("run `canopy drain --undo` on this host first"),
            Self::Generation { .. } => ApiError::new(Code::Conflict, said)
                .at("expected_generation")
                .remedy("read the state again and decide anew"),
            Self::Moved => {
                let mut error =
                    ApiError::new(Code::Conflict, said).remedy("nothing was changed; try again");
                error.retryable = true;
                error
            }
            Self::NoInterface { path, known, .. } => {
                ApiError::new(Code::NotFound, said).at(path).remedy(one_of("this host", &known))
            }
            Self::Netns { path, why } => {
                let code = if why.missing { Code::NotFound } else { Code::Unsupported };
                ApiError::new(code, said).at(path).remedy(why.remedy)
            }
            Self::Ambiguous(error) => {
                let other = match &error.other_path {
                    Some(path) => format!("{path} names the other"),
                    None => format!("the host has {} already", error.other),
                };
                ApiError::new(Code::Conflict, said).at(&error.path).remedy(format!(
                    "{other}; make one more specific, or describe {} by name",
                    error.key.interface
                ))
            }
            Self::OfSelector { key, selector } => {
                ApiError::new(Code::Conflict, said).at("interface").remedy(format!(
                    "change or delete {selector}/{}, or apply a chain of its own to {}",
                    key.hook, key.interface
                ))
            }
            Self::NoChain { known, .. } => ApiError::new(Code::NotFound, said)
                .at("interface")
                .remedy(one_of("this host", &known)),
            Self::NoProgram { known, .. } => ApiError::new(Code::NotFound, said)
                .at("program")
                .remedy(one_of("the chain", &known)),
            Self::NoMap { known, .. } => ApiError::new(Code::NotFound, said)
                .at("map.map")
                .remedy(one_of("the program", &known)),
            Self::Kernel { path, source } => kernel(*source).at(path),
            Self::Disagrees { .. } => {
                ApiError::new(Code::Conflict, said).remedy("look who else does, then try again")
            }
            Self::Settings { .. } => ApiError::new(Code::Conflict, said)
                .remedy("see whether something on the host writes these maps, then apply again"),
            Self::Store(error) => ApiError::new(Code::Unavailable, with_causes(&error))
                .remedy("free space or mend the loader's `state_dir`; the chains run as before"),
            Self::Build(error) => match &error {
                BuildError::NoPackage { .. } => ApiError::new(Code::Unavailable, error.to_string())
                    .remedy("apply the document again, so that it is fetched"),
                BuildError::NoObject { .. } => ApiError::new(Code::Invalid, error.to_string())
                    .remedy("build the package again with `canopy package build`"),
                BuildError::Settings { .. } => ApiError::new(Code::Invalid, with_causes(&error)),
            },
            Self::Nothing(failed) => nothing(said, failed),
            Self::Late => ApiError::new(Code::Unavailable, said)
                .remedy("repeat the request, with more time (--timeout)"),
            Self::Unsettled => ApiError::new(Code::Unavailable, said)
                .remedy("the loader keeps trying; its log says what is in the way"),
        }
    }
}

impl From<ApiError> for LoaderError {
    /// About a map: what else is told as it is says so itself.
    fn from(error: ApiError) -> Self {
        Self::Map(Box::new(error))
    }
}

/// The first failure says what kind it is; each is told.
fn nothing(said: String, failed: Vec<(Option<ChainKey>, LoaderError)>) -> ApiError {
    let mut whole = ApiError::new(Code::Internal, said);
    for (at, (key, error)) in failed.into_iter().enumerate() {
        let error = error.into_api();
        if at == 0 {
            whole = ApiError { code: error.code, ..whole };
        }
        whole.retryable |= error.retryable;
        let message = match key {
            Some(ChainKey { netns: Some(netns), interface, .. }) => {
                format!("{interface} in network namespace {netns}: {}", error.message)
            }
            Some(key) => format!("{}: {}", key.interface, error.message),
            None => error.message,
        };
        whole.problems.push(Problem { path: error.path, message, remedy: error.remedy });
        whole.problems.extend(error.problems);
    }
    whole
}

fn one_of(owner: &str, known: &[String]) -> String {
    const SHOWN: usize = 10;
    let mut list = known.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if known.len() > SHOWN {
        list.push_str(", …");
    }
    if list.is_empty() { format!("{owner} has none") } else { format!("{owner} has {list}") }
}

fn kernel(error: KernelError) -> ApiError {
    let said = error.to_string();
    match error {
        KernelError::InterfaceNotFound { .. } => {
            ApiError::new(Code::NotFound, said).remedy("create the interface, or correct the name")
        }
        KernelError::NetnsNotFound { .. } => ApiError::new(Code::NotFound, said)
            .remedy("create the namespace, or correct what names it"),
        KernelError::Refused { remedy, log, .. } => {
            let mut api = ApiError::new(Code::Invalid, said).remedy(remedy);
            if let Some(log) = log {
                api.problems.push(Problem::new("", format!("verifier: {}", log.trim_end())));
            }
            api
        }
        KernelError::SharedMap { remedy, .. } => ApiError::new(Code::Conflict, said).remedy(remedy),
        KernelError::Unsupported { remedy, .. } => {
            ApiError::new(Code::Unsupported, said).remedy(remedy)
        }
        KernelError::Conflict { remedy, .. } | KernelError::PinsHidden { remedy, .. } => {
            ApiError::new(Code::Conflict, said).remedy(remedy)
        }
        KernelError::Os { source, .. } => {
            let missing = canopy_kernel_aya::missing_capabilities().unwrap_or_default();
            ApiError::new(Code::Unavailable, format!("{said}: {source}"))
                .remedy(os_remedy(source.raw_os_error(), &missing))
        }
    }
}

/// What helps against an error of the operating system. A capability is named only where the kernel
/// refused for want of one (`EPERM`; a file's owner and mode are `EACCES`) and this process lacks it.
fn os_remedy(errno: Option<i32>, missing: &[&str]) -> String {
    const EPERM: i32 = 1;
    if errno == Some(EPERM) && !missing.is_empty() {
        let missing = missing.join(", ").to_uppercase();
        format!("run the loader with {missing}, which it lacks, or as root")
    } else {
        "see the loader's log and `canopy doctor`".to_owned()
    }
}

/// An error and what caused it, in one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text.replace('\n', "; ")
}

#[cfg(test)]
mod tests {
    use super::os_remedy;

    #[test]
    fn capabilities_are_blamed_only_where_one_is_missing() {
        let lacks = ["cap_perfmon"];
        for (errno, missing, said) in [
            (Some(1), &lacks[..], "with CAP_PERFMON, which it lacks"),
            (Some(1), &["cap_bpf", "cap_net_admin"], "with CAP_BPF, CAP_NET_ADMIN, which"),
            (Some(1), &[], "see the loader's log"),
            (Some(13), &lacks, "see the loader's log"),
            (Some(12), &lacks, "see the loader's log"),
            (None, &lacks, "see the loader's log"),
        ] {
            let remedy = os_remedy(errno, missing);
            assert!(remedy.contains(said), "{errno:?}, {missing:?}: {remedy}");
        }
    }
}
