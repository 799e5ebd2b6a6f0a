//! The files of a context: there, readable, of the right person, in time, and nobody else's to
//! read.

use crate::{
    context::Context,
    files,
    view::doctor::{Finding, Standing},
};
use canopy_api::{Principal, nats::spiffe_id, time};
use canopy_identity::Certificate;
use std::{
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

/// Days left under which a certificate is worth a warning.
const SOON: i64 = 30;
const DAY: i64 = 86_400;

/// Looks at the three files. `now` in seconds since the epoch.
pub(super) fn look(context: &Context, now: u64) -> Vec<Finding> {
    vec![ca(&context.ca, now), person(&context.cert, &context.principal, now), key(&context.key)]
}

fn bad(name: &str, path: &Path, why: &str, remedy: &str) -> Finding {
    let detail = format!("{}: {why}", path.display());
    Finding::new(name, Standing::Failed, detail).remedy(remedy)
}

/// What a look at the first certificate of a PEM file says.
fn with_certificate(name: &str, path: &Path, say: impl FnOnce(&Certificate) -> Finding) -> Finding {
    let bytes = match files::read_bounded(path, 1 << 20) {
        Ok(bytes) => bytes,
        Err(failure) => {
            let why = failure.problems.first().map(|p| p.message.clone()).unwrap_or_default();
            return Finding::new(name, Standing::Failed, why)
                .remedy("correct the path in the context, or the file's permissions");
        }
    };
    match Certificate::from_pem(&bytes) {
        Ok(certificate) => say(&certificate),
        Err(error) => bad(name, path, &error.to_string(), "give the certificate's PEM file"),
    }
}

/// Whether it is in time; if so, in words, how long yet.
fn time_left(certificate: &Certificate, now: u64) -> Result<(Standing, String), String> {
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let Certificate { not_before, not_after, .. } = *certificate;
    if now < not_before {
        return Err(format!("not valid before {}", date(not_before)));
    }
    if now > not_after {
        return Err(format!("expired on {}", date(not_after)));
    }
    let days = (not_after - now) / DAY;
    let standing = if days < SOON { Standing::Warn } else { Standing::Ok };
    Ok((standing, format!("{days} days left")))
}

fn date(seconds: i64) -> String {
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    time::rfc3339(UNIX_EPOCH + since)
}

fn ca(path: &Path, now: u64) -> Finding {
    with_certificate("authority", path, |certificate| match time_left(certificate, now) {
        Ok((standing, left)) => {
            Finding::new("authority", standing, format!("{}, {left}", path.display()))
        }
        Err(why) => bad("authority", path, &why, "get the new authority from whoever runs the bus"),
    })
}

fn person(path: &Path, principal: &Principal, now: u64) -> Finding {
    with_certificate("certificate", path, |certificate| {
        let wanted = spiffe_id(principal.as_str());
        if certificate.our_name() != Some(principal.as_str()) {
            let names = &certificate.names.uri;
            let why = if names.is_empty() {
                "it carries no URI name".to_owned()
            } else {
                format!("it is of {}, not of {wanted} alone", names.join(", "))
            };
            return bad("certificate", path, &why, "correct `principal` or `cert` in the context");
        }
        match time_left(certificate, now) {
            Ok((standing, left)) => {
                let finding = Finding::new("certificate", standing, format!("{principal}, {left}"));
                if standing == Standing::Warn { finding.remedy("have it renewed") } else { finding }
            }
            Err(why) => bad("certificate", path, &why, "have it renewed"),
        }
    })
}

fn key(path: &Path) -> Finding {
    // As the connection reads it.
    match canopy_secrets::read_private(path) {
        Ok(_) => Finding::new("key", Standing::Ok, path.display().to_string()),
        Err(error) => bad("key", path, &error.reason, &error.remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, SanType, date_time_ymd};
    use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

    /// Valid from 2026-01-01 to 2027-01-01.
    fn certificate(dir: &Path, principal: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2027, 1, 1);
        let uri = format!("spiffe://canopy/{principal}");
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
        let paths = (dir.join("cert.pem"), dir.join("key.pem"));
        fs::write(&paths.0, params.self_signed(&key).unwrap().pem()).unwrap();
        files::write_new(&paths.1, key.serialize_pem().as_bytes(), files::SECRET).unwrap();
        paths
    }

    const MIDDLE: u64 = 1_780_000_000;

    fn standings(context: &Context, now: u64) -> Vec<Standing> {
        look(context, now).iter().map(|finding| finding.standing).collect()
    }

    #[test]
    fn every_way_a_context_can_be_wrong_is_seen() {
        use Standing::{Failed, Ok, Warn};
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = certificate(dir.path(), "u-alice");
        let good = Context {
            name: "test".to_owned(),
            url: "tls://127.0.0.1:1".to_owned(),
            ca: cert.clone(),
            cert: cert.clone(),
            key: key.clone(),
            token: None,
            principal: "u-alice".parse().unwrap(),
            server_names: canopy_api::san::SanPatterns::default(),
            host: None,
        };
        assert_eq!(standings(&good, MIDDLE), [Ok, Ok, Ok]);
        let year_end = 1_798_761_600;
        assert_eq!(standings(&good, year_end - 86_400), [Warn, Warn, Ok]);
        assert_eq!(standings(&good, year_end + 1), [Failed, Failed, Ok]);
        assert_eq!(standings(&good, 1_700_000_000), [Failed, Failed, Ok]);
        let other = Context { principal: "u-bob".parse().unwrap(), ..good.clone() };
        assert_eq!(standings(&other, MIDDLE), [Ok, Failed, Ok]);
        assert!(look(&other, MIDDLE)[1].detail.contains("spiffe://canopy/u-alice"));
        let swapped = Context { cert: key.clone(), ca: "/nowhere".into(), ..good.clone() };
        assert_eq!(standings(&swapped, MIDDLE), [Failed, Failed, Ok]);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(standings(&good, MIDDLE), [Ok, Ok, Failed]);
    }
}
