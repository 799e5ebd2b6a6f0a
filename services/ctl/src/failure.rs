//! What went wrong, as a person reads it, and the exit code a script reads.

use canopy_api::{ApiError, Code, Problem, Problems};
use canopy_bus::Refusal;
use std::{fmt::Write as _, path::Path};

/// Exit code of the process; documented in `--help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// A defect, a local file, a required ability missing.
    Failed = 1,
    /// The command line or a document is wrong. The same number as clap's.
    Invalid = 2,
    /// `diff` found differences.
    Differs = 3,
    /// What was named does not exist.
    NotFound = 4,
    /// The state is not what the caller thought.
    Conflict = 5,
    /// The caller may not.
    Denied = 6,
    /// Nobody there, or no answer in time.
    Unavailable = 7,
    /// This host or version cannot.
    Unsupported = 8,
    /// Some interfaces were changed, others failed.
    Partly = 9,
    /// The caller's token or certificate has expired.
    Expired = 10,
    /// The caller's token was revoked or regenerated.
    Revoked = 11,
}

impl Exit {
    /// The bus does not let the caller in.
    pub fn of_refusal(refusal: &Refusal) -> Self {
        if refusal.is_expired() {
            Self::Expired
        } else if refusal.is_revoked() {
            Self::Revoked
        } else {
            refusal.code().into()
        }
    }
}

impl From<Code> for Exit {
    fn from(code: Code) -> Self {
        match code {
            Code::Invalid => Self::Invalid,
            Code::NotFound => Self::NotFound,
            Code::Conflict => Self::Conflict,
            Code::Denied => Self::Denied,
            Code::Unsupported => Self::Unsupported,
            Code::Unavailable => Self::Unavailable,
            Code::Internal => Self::Failed,
        }
    }
}

/// One or more errors and the exit code they end with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// How the process ends.
    pub exit: Exit,
    /// Each error: message, where, what to do.
    pub problems: Vec<Problem>,
}

impl Failure {
    /// One error.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, problems: vec![Problem::new("", message)] }
    }

    /// With the place of the (last) error.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Self {
        if let Some(last) = self.problems.last_mut() {
            last.path = place.into();
        }
        self
    }

    /// With what to do about the (last) error.
    #[must_use]
    pub fn fix(mut self, remedy: impl Into<String>) -> Self {
        if let Some(last) = self.problems.last_mut() {
            last.remedy = Some(remedy.into());
        }
        self
    }

    /// Mistakes in a file: each place starts with the file's name.
    pub fn in_file(file: &str, problems: Problems) -> Self {
        let problems = problems
            .0
            .into_iter()
            .map(|mut problem| {
                problem.path = if problem.path.is_empty() {
                    file.to_owned()
                } else {
                    format!("{file}: {}", problem.path)
                };
                problem
            })
            .collect();
        Self { exit: Exit::Invalid, problems }
    }

    /// A file could not be read or written.
    pub fn io(doing: &str, path: &Path, error: &std::io::Error) -> Self {
        let failure =
            Self::new(Exit::Failed, format!("cannot {doing} {}: {error}", path.display()));
        match error.kind() {
            std::io::ErrorKind::NotFound => Self { exit: Exit::NotFound, ..failure },
            std::io::ErrorKind::PermissionDenied => Self { exit: Exit::Denied, ..failure }
                .fix("use an account that may, or change the file's permissions"),
            _ => failure,
        }
    }

    /// The text for standard error, ending in a newline. `error` is the word to start with, so that
    /// a terminal can have it in colour.
    pub fn render(&self, error: &str) -> String {
        let mut text = String::new();
        for problem in &self.problems {
            let mut lines = problem.message.trim_end().lines();
            let _ = writeln!(text, "{error}: {}", lines.next().unwrap_or_default());
            for line in lines {
                let _ = writeln!(text, "  {line}");
            }
            if !problem.path.is_empty() {
                let _ = writeln!(text, "  at: {}", problem.path);
            }
            if let Some(remedy) = &problem.remedy {
                let _ = writeln!(text, "  fix: {remedy}");
            }
        }
        text
    }
}

impl From<ApiError> for Failure {
    /// The error's own words, then every further mistake it tells (the first is often the same).
    fn from(error: ApiError) -> Self {
        let own = Problem { path: error.path, message: error.message, remedy: error.remedy };
        let mut problems = error.problems;
        if !problems.contains(&own) {
            problems.insert(0, own);
        }
        Self { exit: error.code.into(), problems }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_own_exit_code() {
        let exits: Vec<u8> = [
            Code::Internal,
            Code::Invalid,
            Code::NotFound,
            Code::Conflict,
            Code::Denied,
            Code::Unavailable,
            Code::Unsupported,
        ]
        .map(|code| Exit::from(code) as u8)
        .to_vec();
        assert_eq!(exits, [1, 2, 4, 5, 6, 7, 8]);
        let refused = [
            (Refusal::NoToken, 6),
            (Refusal::Undecided, 7),
            (Refusal::TokenExpired(String::new()), 10),
            (Refusal::TokenRevoked, 11),
        ];
        for (refusal, code) in &refused {
            assert_eq!(Exit::of_refusal(refusal) as u8, *code);
        }
        for code in exits.into_iter().chain([9, 10, 11]) {
            assert!(
                crate::cli::EXIT_CODES.contains(&format!("\n  {code:<2} ")),
                "{code} not in help"
            );
        }
    }

    #[test]
    fn an_error_says_what_where_and_what_to_do() {
        let error = ApiError::new(Code::NotFound, "there is no interface \"eth9\"")
            .at("chains[0].interface")
            .remedy("ip link lists them");
        assert_eq!(
            Failure::from(error).render("error"),
            "error: there is no interface \"eth9\"\n  at: chains[0].interface\n  fix: ip link lists them\n"
        );
    }

    #[test]
    fn all_mistakes_are_told() {
        let problems = Problems(vec![
            Problem::new("chains[0].hook", "\"xpd\" is not a hook").remedy("xdp"),
            Problem::new("", "line two\nof a log"),
        ]);
        let failure = Failure::in_file("web.yaml", problems);
        assert_eq!(failure.exit, Exit::Invalid);
        assert_eq!(
            failure.render("error"),
            "error: \"xpd\" is not a hook\n  at: web.yaml: chains[0].hook\n  fix: xdp\n\
             error: line two\n  of a log\n  at: web.yaml\n"
        );
        let many =
            ApiError::invalid(Problems(vec![Problem::new("a", "1"), Problem::new("b", "2")]));
        assert_eq!(Failure::from(many).problems.len(), 2);
        let mut with_log = ApiError::new(Code::Invalid, "the verifier refuses it").at("chains[0]");
        with_log.problems = vec![Problem::new("", "log")];
        let told: Vec<String> =
            Failure::from(with_log).problems.into_iter().map(|problem| problem.message).collect();
        assert_eq!(told, ["the verifier refuses it", "log"]);
    }
}
