//! Why a connection is refused, as far as the person's own files say it: the server tells strangers nothing.

use crate::failure::{Exit, Failure};
use canopy_api::{Principal, time};
use canopy_bus::BusConfig;
use canopy_identity::Certificate;
use canopy_runtime::clock;
use std::{
    fs,
    time::{Duration, UNIX_EPOCH},
};

/// What certificate or token say against themselves: they have ended, or are another's.
pub fn reason(config: &BusConfig, principal: &Principal) -> Option<Failure> {
    let now = i64::try_from(clock::unix_millis(clock::now()) / 1000).unwrap_or(i64::MAX);
    let shown = |seconds: i64| {
        time::rfc3339(UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    };
    let pem = fs::read(&config.cert).ok()?;
    let certificate = Certificate::from_pem(&pem).ok();
    if let Some(certificate) = &certificate {
        if certificate.not_after < now {
            let message = format!("your certificate expired at {}", shown(certificate.not_after));
            return Some(Failure::new(Exit::Denied, message).fix("have it renewed"));
        }
        if certificate.not_before > now {
            let message =
                format!("your certificate is not valid before {}", shown(certificate.not_before));
            return Some(Failure::new(Exit::Denied, message).fix("is this machine's clock right?"));
        }
    }
    let token = canopy_secrets::read_private(config.token.as_ref()?).ok()?;
    // Only looked at: policy alone says whether it is one.
    let claims = token.trim().split('.').nth(1).and_then(base64)?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    if let Some(ended) = claims.get("exp").and_then(serde_json::Value::as_i64)
        && ended < now
    {
        let message = format!("your token expired at {}", shown(ended));
        return Some(
            Failure::new(Exit::Denied, message).fix(format!(
                "an administrator makes another: canopy token regenerate {principal}"
            )),
        );
    }
    let whose = claims.get("sub").and_then(serde_json::Value::as_str)?;
    (whose != principal.as_str()).then(|| {
        Failure::new(
            Exit::Denied,
            format!("the token is {whose}'s, and you connect as {principal}"),
        )
        .fix("correct `token` or `principal` in the context")
    })
}

/// Base64 for URLs, without padding (RFC 4648, 5).
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut have) = (0_u32, 0_u32);
    for byte in text.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        have += 6;
        if have >= 8 {
            have -= 8;
            bytes.push(u8::try_from((bits >> have) & 0xff).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_read_from_a_token() {
        assert_eq!(base64("eyJzdWIiOiJ1LWEifQ").unwrap(), b"{\"sub\":\"u-a\"}");
        assert_eq!(base64("a+b"), None);
        assert_eq!(base64("").unwrap(), b"");
    }
}
