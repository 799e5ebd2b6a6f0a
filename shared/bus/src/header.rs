//! Headers of ours and reading them. Look-ups ignore case: the client library's do not, and other
//! languages' libraries rewrite the case of names.

use async_nats::HeaderMap;
use canopy_api::error::{ApiError, Code};

/// Idempotency key of a request: a repeat gets the first answer.
pub(crate) const REQUEST_ID: &str = "Canopy-Request-Id";
/// When the caller stops waiting, milliseconds since 1970 UTC.
pub(crate) const DEADLINE: &str = "Canopy-Deadline";
/// How long the caller waits from when it sent the request, milliseconds: what counts where its clock is
/// ahead of the service's.
pub(crate) const TIMEOUT: &str = "Canopy-Timeout";
/// The responder's clock when it answered, milliseconds since 1970 UTC.
pub(crate) const TIME: &str = "Canopy-Time";
/// How long the responder takes a caller of this verb to wait that names neither deadline nor timeout,
/// milliseconds: in the reply to a request that only reads and names its deadline.
pub(crate) const DEFAULT_TIMEOUT: &str = "Canopy-Default-Timeout";
/// Which attempt this is, from 2 on: a request that was sent again because no answer came.
pub(crate) const ATTEMPT: &str = "Canopy-Attempt";
/// Encoding of the payload.
pub(crate) const CONTENT_TYPE: &str = "Content-Type";
/// Message of an error reply (NATS ADR-32).
pub(crate) const ERROR: &str = "Nats-Service-Error";
/// Number of an error reply (NATS ADR-32).
pub(crate) const ERROR_CODE: &str = "Nats-Service-Error-Code";

/// The value of a header of which a request has at most one. Of two nobody could say which counts:
/// libraries differ, and ours keeps no order.
pub(crate) fn only<'a>(
    headers: Option<&'a HeaderMap>,
    name: &str,
) -> Result<Option<&'a str>, ApiError> {
    let values = headers
        .into_iter()
        .flat_map(HeaderMap::iter)
        .filter(|(found, _)| AsRef::<str>::as_ref(*found).eq_ignore_ascii_case(name))
        .flat_map(|(_, values)| values);
    let mut values = values.map(async_nats::HeaderValue::as_str);
    let first = values.next();
    if values.next().is_none() {
        return Ok(first);
    }
    Err(ApiError::new(Code::Invalid, format!("{name} is given more than once")).at(name))
}

/// The first value of a header, whatever the case of its name.
pub(crate) fn get<'a>(headers: Option<&'a HeaderMap>, name: &str) -> Option<&'a str> {
    let (_, values) = headers?
        .iter()
        .find(|(found, _)| AsRef::<str>::as_ref(*found).eq_ignore_ascii_case(name))?;
    values.first().map(async_nats::HeaderValue::as_str)
}
