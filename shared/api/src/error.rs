//! The error every service answers with.

use crate::{
    problem::{Problem, Problems},
    text,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What kind of failure it is: decides whether to retry and who has to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request is wrong; the caller corrects it.
    Invalid,
    /// What was named does not exist; the caller corrects the name.
    NotFound,
    /// The state is not what the caller thought; the caller reads again.
    Conflict,
    /// The caller may not; an administrator decides.
    Denied,
    /// This host or version cannot; an operator chooses another.
    Unsupported,
    /// Not now; retry later.
    Unavailable,
    /// A defect of ours; report it.
    Internal,
}

impl Code {
    /// Whether the same request may succeed later without anybody changing anything.
    pub fn retryable(self) -> bool {
        match self {
            Self::Unavailable => true,
            Self::Invalid
            | Self::NotFound
            | Self::Conflict
            | Self::Denied
            | Self::Unsupported
            | Self::Internal => false,
        }
    }

    /// The number in the `Nats-Service-Error-Code` header, after HTTP's habits.
    pub fn number(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Denied => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Unsupported => 501,
            Self::Unavailable => 503,
            Self::Internal => 500,
        }
    }

    /// As written on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Denied => "denied",
            Self::Unsupported => "unsupported",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}

/// The reason of a refusal for want of a slot: nothing was done, and there may be one in a moment.
pub const BUSY: &str = "busy";
/// The reason of a refusal for rules that cannot be used, which somebody has to correct first.
pub const RULES_UNUSABLE: &str = "rules_unusable";

/// An error reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind of failure it is.
    pub code: Code,
    /// What happened, in one line.
    pub message: String,
    /// Where in the request: a path such as `document.chains[0].interface`. Empty for the whole.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// What to do about it, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// The cause in one word, where programs decide by it: `index_expired`, `digest_revoked`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Box<str>>,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// Every mistake, where there is more than one to tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

impl ApiError {
    /// An error of that kind.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            path: String::new(),
            remedy: None,
            reason: None,
            retryable: code.retryable(),
            problems: Vec::new(),
        }
    }

    /// With the place of the mistake.
    #[must_use]
    pub fn at(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// With what to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// With the cause in one word.
    #[must_use]
    pub fn reason(mut self, reason: impl Into<Box<str>>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// The same without what could pass for a line of its own, in a log or on a terminal: an error
    /// quotes what somebody else wrote. A list of mistakes keeps its line breaks and tabs (a
    /// verifier's log has many).
    #[must_use]
    pub fn plain(mut self) -> Self {
        let line = text::is_unprintable;
        let lines = |c: char| text::is_unprintable(c) && c != '\n' && c != '\t';
        clean(&mut self.message, line);
        clean(&mut self.path, line);
        self.remedy.iter_mut().for_each(|remedy| clean(remedy, line));
        self.reason = self.reason.map(|reason| {
            let mut reason = reason.into_string();
            clean(&mut reason, line);
            reason.into()
        });
        for problem in &mut self.problems {
            clean(&mut problem.message, lines);
            clean(&mut problem.path, line);
            problem.remedy.iter_mut().for_each(|remedy| clean(remedy, line));
        }
        self
    }

    /// All mistakes of a request at once; the first gives message, path and remedy.
    pub fn invalid(problems: Problems) -> Self {
        let mut list = problems.0;
        let first = list.first().cloned().unwrap_or_else(|| Problem::new("", "invalid request"));
        if list.len() == 1 {
            list.clear();
        }
        Self {
            code: Code::Invalid,
            message: first.message,
            path: first.path,
            remedy: first.remedy,
            reason: None,
            retryable: false,
            problems: list,
        }
    }
}

impl From<Problems> for ApiError {
    fn from(problems: Problems) -> Self {
        Self::invalid(problems)
    }
}

fn clean(text: &mut String, bad: impl Fn(char) -> bool) {
    if text.contains(&bad) {
        *text = text.chars().map(|c| if bad(c) { '\u{fffd}' } else { c }).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_name_cannot_write_a_line_of_its_own() {
        let forged = "x\n2026-01-01 INFO audit principal=u-admin\u{1b}[2J\u{202e}\u{200b}";
        let mut error = ApiError::new(Code::Invalid, forged).at(forged).remedy(forged);
        error.problems = vec![Problem::new(forged, "verifier: 0: r0 = 0\n\t1: exit\u{1b}[2J")];
        let error = error.plain();
        for said in [&error.message, &error.path, error.remedy.as_ref().unwrap()] {
            assert!(!said.contains(text::is_unprintable), "{said:?}");
            assert!(said.contains("u-admin"), "{said:?}");
        }
        assert!(!error.problems[0].path.contains(char::is_control));
        assert_eq!(error.problems[0].message, "verifier: 0: r0 = 0\n\t1: exit\u{fffd}[2J");
    }
}
