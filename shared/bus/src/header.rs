//! Headers of ours and reading them. Look-ups ignore case: the client library's do not, and other
//! languages' libraries rewrite the case of names.

use async_nats::HeaderMap;

/// Idempotency key of a request: a repeat gets the first answer.
pub(crate) const REQUEST_ID: &str = "Canopy-Request-Id";
/// When the caller stops waiting, milliseconds since 1970 UTC.
pub(crate) const DEADLINE: &str = "Canopy-Deadline";
/// The responder's clock when it answered, milliseconds since 1970 UTC.
pub(crate) const TIME: &str = "Canopy-Time";
/// Encoding of the payload.
pub(crate) const CONTENT_TYPE: &str = "Content-Type";
/// Message of an error reply (NATS ADR-32).
pub(crate) const ERROR: &str = "Nats-Service-Error";
/// Number of an error reply (NATS ADR-32).
pub(crate) const ERROR_CODE: &str = "Nats-Service-Error-Code";

/// The first value of a header, whatever the case of its name.
pub(crate) fn get<'a>(headers: Option<&'a HeaderMap>, name: &str) -> Option<&'a str> {
    let (_, values) = headers?
        .iter()
        .find(|(found, _)| AsRef::<str>::as_ref(*found).eq_ignore_ascii_case(name))?;
    values.first().map(async_nats::HeaderValue::as_str)
}
