//! What went wrong, as a person reads it, and the exit code a script reads.

use canopy_api::{ApiError, Code, Problem, Problems, text::shown};
use canopy_bus::Refusal;
use serde_json::{Map, Value};
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
    /// A part was done, or has answered, and the rest not.
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

impl Exit {
    /// The word for it in errors that are written as JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Invalid => "invalid",
            Self::Differs => "differs",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Denied => "denied",
            Self::Unavailable => "unavailable",
            Self::Unsupported => "unsupported",
            Self::Partly => "partial",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
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
        let failure = Self::new(
            Exit::Failed,
            format!("cannot {doing} {}: {}", path.display(), io_reason(error)),
        );
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
                let _ = writeln!(text, "  at: {}", shown(&problem.path));
            }
            if let Some(remedy) = &problem.remedy {
                let _ = writeln!(text, "  fix: {}", shown(remedy));
            }
        }
        text
    }
}

/// Errors as the one JSON object that `-o json` writes to standard error: the first in full, all of them in
/// `problems` where there are several, remarks in `notes`.
pub fn as_json(failures: &[Failure], notes: &[String], exit: Exit) -> Value {
    let one = |problem: &Problem| {
        let mut fields = Map::new();
        fields.insert("message".to_owned(), problem.message.trim_end().into());
        if !problem.path.is_empty() {
            fields.insert("path".to_owned(), problem.path.clone().into());
        }
        if let Some(hint) = &problem.remedy {
            fields.insert("hint".to_owned(), hint.clone().into());
        }
        fields
    };
    let problems: Vec<&Problem> = failures.iter().flat_map(|failure| &failure.problems).collect();
    let mut error = problems.first().map(|problem| one(problem)).unwrap_or_default();
    error.insert("code".to_owned(), exit.as_str().into());
    error.insert("exit".to_owned(), (exit as u8).into());
    error.insert("retryable".to_owned(), (exit == Exit::Unavailable).into());
    if problems.len() > 1 {
        let all = problems.iter().map(|problem| Value::Object(one(problem))).collect();
        error.insert("problems".to_owned(), Value::Array(all));
    }
    if !notes.is_empty() {
        error.insert("notes".to_owned(), notes.into());
    }
    serde_json::json!({ "error": error })
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

/// Why a file could not be read or written, without the number that the system has for it.
pub(crate) fn io_reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error ") {
        Some((reason, _)) => reason.to_lowercase(),
        None => text,
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
