//! Subjects, built here and nowhere else.
//!
//! ```text
//! canopy.v1.rpc.<service>.<class>.<verb>.<host | all | _>.<principal>   request
//! canopy.v1.event.<service>.<noun>.<what happened>.<host or "_">        event
//! canopy.v1.security.<service>.<noun>.<what happened>.<host or "_">     event for administrators
//! canopy.v1.audit.<service>.<host or "_">                               audit
//! canopy.v1.stored.audit.<writer>.<chain>.<main | beside>               stored audit, in DATA only
//! _INBOX.<principal>.<responder>.<random>                               reply
//! ```
//!
//! A request to every host (`all`) carries the reply subject `_INBOX.<principal>.all.<random>`;
//! each responder answers at `_INBOX.<principal>.<itself>.<random>`, the only place where the
//! server lets it publish, so that the subject of each answer proves who gave it.

use crate::{
    endpoint::{EndpointSpec, Service},
    name::{HostId, Principal},
};
use std::fmt;

/// First two tokens of every subject of ours.
pub const ROOT: &str = "canopy.v1";

/// Whom a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The service of one host.
    Host(HostId),
    /// The service of every host.
    AllHosts,
    /// A central service.
    Central,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Target {
    /// The place token of central services.
    pub const CENTRAL: &'static str = "_";

    /// The place token of a request.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Host(host) => host.as_str(),
            Self::AllHosts => "all",
            Self::Central => Self::CENTRAL,
        }
    }

    /// The responder token of a reply subject: the principal of whoever answers, or `all`.
    pub fn responder(&self, service: Service) -> String {
        match self {
            Self::Host(host) => ["h-", host.as_str(), "-", service.as_str()].concat(),
            Self::AllHosts => "all".to_owned(),
            Self::Central => ["s-", service.as_str()].concat(),
        }
    }
}

/// The subject of a request by `principal`.
pub fn request(endpoint: &EndpointSpec, target: &Target, principal: &Principal) -> String {
    // Made for each request: in one piece, without the formatter.
    [
        ROOT,
        ".rpc.",
        endpoint.service.as_str(),
        ".",
        endpoint.class.as_str(),
        ".",
        endpoint.verb,
        ".",
        target.as_str(),
        ".",
        principal.as_str(),
    ]
    .concat()
}

/// What a service subscribes to for an endpoint: any principal, its own target.
pub fn subscription(endpoint: &EndpointSpec, target: &Target) -> String {
    format!("{ROOT}.rpc.{}.{}.{}.{target}.*", endpoint.service, endpoint.class, endpoint.verb)
}

/// Where `responder` answers `me`: all of it, as a pattern to subscribe to.
pub fn inbox(me: &str, responder: &str) -> String {
    format!("_INBOX.{me}.{responder}.>")
}

/// The subject of an event; `noun` and `happened` are single tokens.
pub fn event(service: Service, noun: &str, happened: &str, host: Option<&HostId>) -> String {
    format!("{ROOT}.event.{service}.{noun}.{happened}.{}", host.map_or("_", HostId::as_str))
}

/// Security events: service, noun, what happened. They tell whence people connect, so only
/// administrators may subscribe to them, and only their service may publish them.
pub const SECURITY_EVENTS: [(Service, &str, &str); 2] =
    [(Service::Policy, "connect", "refused"), (Service::Policy, "connect", "cut")];

/// The subject of a security event, one of [`SECURITY_EVENTS`].
pub fn security_event(
    service: Service,
    noun: &str,
    happened: &str,
    host: Option<&HostId>,
) -> String {
    format!("{ROOT}.security.{service}.{noun}.{happened}.{}", host.map_or("_", HostId::as_str))
}

/// The subject of an audit record.
pub fn audit(service: Service, host: Option<&HostId>) -> String {
    format!("{ROOT}.audit.{service}.{}", host.map_or("_", HostId::as_str))
}

/// Where the records of a chain are stored, in DATA; `*` for any writer or chain. `beside` are those
/// that contradict it.
pub fn stored_audit(writer: &str, chain: &str, beside: bool) -> String {
    let part = if beside { "beside" } else { "main" };
    format!("{ROOT}.stored.audit.{writer}.{chain}.{part}")
}

/// Where all chains of a writer are stored, and what contradicts them.
pub fn stored_audit_of(writer: &str) -> String {
    format!("{ROOT}.stored.audit.{writer}.*.*")
}

/// Everything that is stored of the audit trail.
pub fn all_stored_audit() -> String {
    format!("{ROOT}.stored.audit.>")
}

/// Writer and chain of a subject of [`stored_audit`].
pub fn stored_chain(subject: &str) -> Option<(&str, &str)> {
    let rest = subject.strip_prefix(ROOT)?.strip_prefix(".stored.audit.")?;
    let (writer, rest) = rest.split_once('.')?;
    let (chain, _) = rest.split_once('.')?;
    Some((writer, chain))
}

/// Who asked: the last token of a request subject, granted by the server.
pub fn principal_of(request_subject: &str) -> Option<Principal> {
    request_subject.rsplit('.').next()?.parse().ok()
}

/// The reply subject a responder uses, if the one in the request is the caller's own and meant for
/// this responder; `None` if it must not be answered.
pub fn reply_subject(reply: &str, caller: &Principal, responder: &Principal) -> Option<String> {
    let mut tokens = reply.split('.');
    let (inbox, owner, to, random) =
        (tokens.next()?, tokens.next()?, tokens.next()?, tokens.next()?);
    let ours = inbox == "_INBOX"
        && owner == caller.as_str()
        && (to == responder.as_str() || to == "all")
        && !random.is_empty()
        && tokens.all(|token| !token.is_empty());
    if !ours {
        return None;
    }
    if to == responder.as_str() {
        return Some(reply.to_owned());
    }
    // What follows `_INBOX.<owner>.<to>.`, of as many tokens as it may be.
    let rest = reply.splitn(4, '.').last()?;
    Some(["_INBOX.", owner, ".", responder.as_str(), ".", rest].concat())
}

/// Whether `subject` (which may hold wildcards of its own) lies within `pattern`, by the server's
/// rules: `*` is any one token, a final `>` any one or more.
pub fn matches(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(expected), Some(token)) if expected == token => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_go_only_to_the_callers_own_inbox() {
        let alice: Principal = "u-alice".parse().unwrap();
        let me: Principal = "h-web1-loader".parse().unwrap();
        let ok = |reply: &str| reply_subject(reply, &alice, &me);
        assert_eq!(
            ok("_INBOX.u-alice.h-web1-loader.x1").unwrap(),
            "_INBOX.u-alice.h-web1-loader.x1"
        );
        assert_eq!(ok("_INBOX.u-alice.all.x1.y").unwrap(), "_INBOX.u-alice.h-web1-loader.x1.y");
        for foreign in [
            "",
            "_INBOX.u-bob.h-web1-loader.x1",
            "_INBOX.u-alice.h-web2-loader.x1",
            "_INBOX.u-alice.h-web1-loader",
            "_INBOX.u-alice.h-web1-loader.",
            "canopy.v1.rpc.loader.write.apply.web1.u-alice",
        ] {
            assert_eq!(ok(foreign), None, "{foreign:?}");
        }
    }

    #[test]
    fn wildcards_follow_the_server() {
        for (pattern, subject, expected) in [
            ("a.b", "a.b", true),
            ("a.*", "a.b", true),
            ("a.*", "a.*", true),
            ("a.*", "a.>", false),
            ("a.*", "a.b.c", false),
            ("a.>", "a", false),
            ("a.>", "a.b.c", true),
            ("a.>", "a.>", true),
            ("a.b", "a.*", false),
            ("a.b.c", "a.b", false),
        ] {
            assert_eq!(matches(pattern, subject), expected, "{pattern} {subject}");
        }
    }
}
