//! The files that a configuration names, as `--check` looks at them: everything that cannot be used is found
//! at once. Files are only read, nothing is made, and nobody is called.

use crate::config::AdminTls;
use canopy_api::problem::{Problem, Problems};
use canopy_secrets::{Secret, SecretRef};
use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use std::{
    fs,
    io::{self, ErrorKind},
    path::Path,
};

/// Longest file of certificates, bytes.
const LONGEST: u64 = 1 << 20;

/// What was found so far. Each file is given with the field of the configuration that names it.
#[derive(Debug, Default)]
pub struct NamedFiles {
    problems: Problems,
    remarks: Vec<String>,
}

impl NamedFiles {
    /// What cannot be used.
    pub fn problems(&self) -> &Problems {
        &self.problems
    }

    /// What was not looked at, and why.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// Something else that cannot be used.
    pub fn push(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Something that is not looked at.
    pub fn remark(&mut self, text: impl Into<String>) {
        self.remarks.push(text.into());
    }

    /// How the bus is reached: the authority, a certificate and its key.
    pub fn bus(&mut self, ca: &Path, cert: &Path, key: &Path) {
        self.authorities("bus.ca", ca);
        self.certificate_and_key(("bus.cert", cert), ("bus.key", key));
    }

    /// Certificates of authorities, which nobody else may be able to write.
    pub fn authorities(&mut self, field: &str, path: &Path) {
        if self.is_protected(field, path) {
            self.certificates(field, path);
        }
    }

    /// A certificate and the key that belongs to it.
    pub fn certificate_and_key(
        &mut self,
        (cert_field, cert): (&str, &Path),
        (key_field, key): (&str, &Path),
    ) {
        let chain = self.certificates(cert_field, cert);
        let Some(text) = self.secret(key_field, &SecretRef::File(key.to_owned())) else { return };
        let Ok(private) = PrivateKeyDer::from_pem_slice(text.as_bytes()) else {
            let message = format!("{} is not a private key in PEM", key.display());
            self.push(
                Problem::new(key_field, message)
                    .remedy("name the file that begins with -----BEGIN PRIVATE KEY-----"),
            );
            return;
        };
        let Some(chain) = chain else { return };
        if let Err(error) = CertifiedKey::from_der(chain, private, &ring::default_provider()) {
            let message =
                format!("{} is not usable with {}: {error}", key.display(), cert.display());
            self.push(Problem::new(key_field, message).remedy(
                "name the key that the certificate was made for, or have one signed for this key",
            ));
        }
    }

    /// A secret. `None` where it cannot be used, or is not looked at: what the service manager hands over is
    /// there only when it has started this process.
    pub fn secret(&mut self, field: &str, secret: &SecretRef) -> Option<Secret> {
        if let SecretRef::Credential(name) = secret
            && std::env::var_os("CREDENTIALS_DIRECTORY").is_none()
        {
            self.remark(format!(
                "{field}: credential {name} is not looked at: the service manager hands it over at the start"
            ));
            return None;
        }
        match secret.read() {
            Ok(text) => Some(text),
            Err(error) => {
                self.push(Problem::new(field, error.to_string()).remedy(error.remedy));
                None
            }
        }
    }

    /// A directory that is written to, or is made where it is not there.
    pub fn directory(&mut self, field: &str, path: &Path) {
        if let Err(error) = canopy_files::check_writable_directory(path) {
            let message = format!("cannot write into {}: {}", path.display(), reason(&error));
            let remedy = match error.kind() {
                ErrorKind::NotADirectory => "name a directory".to_owned(),
                _ => format!(
                    "make it for the user that the service runs as: install -d -m 0700 -o USER {}",
                    path.display()
                ),
            };
            self.push(Problem::new(field, message).remedy(remedy));
        }
    }

    /// A directory that is written to where that is possible: `without` says what is missing where it is not.
    pub fn optional_directory(&mut self, field: &str, path: &Path, without: &str) {
        if let Err(error) = canopy_files::check_writable_directory(path) {
            let reason = reason(&error);
            self.remark(format!(
                "{field}: cannot write into {}: {reason}; {without}",
                path.display()
            ));
        }
    }

    /// A directory that is read.
    pub fn readable_directory(&mut self, field: &str, path: &Path) {
        if let Err(error) = fs::read_dir(path) {
            self.unreadable(field, path, &error);
        }
    }

    /// The admin listener's files.
    pub(crate) fn admin_tls(&mut self, tls: &AdminTls) {
        let field = |name: &str| format!("runtime.admin.tls.{name}");
        self.authorities(&field("ca"), &tls.ca);
        self.certificate_and_key((&field("cert"), &tls.cert), (&field("key"), &tls.key));
    }

    /// Whether nobody else may write what is trusted.
    pub fn is_protected(&mut self, field: &str, path: &Path) -> bool {
        match canopy_files::check_protected(path) {
            Ok(()) => true,
            Err(open) => {
                self.push(Problem::new(field, open.to_string()).remedy(open.remedy));
                false
            }
        }
    }

    /// Certificates in PEM, at least one.
    pub fn certificates(
        &mut self,
        field: &str,
        path: &Path,
    ) -> Option<Vec<CertificateDer<'static>>> {
        let pem = match canopy_files::read(path, LONGEST) {
            Ok(pem) => pem,
            Err(error) => {
                self.unreadable(field, path, &error);
                return None;
            }
        };
        let all = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
        let all = all.ok().filter(|all| !all.is_empty());
        if all.is_none() {
            let message = format!("{} has no certificate in PEM", path.display());
            self.push(
                Problem::new(field, message)
                    .remedy("name the file that begins with -----BEGIN CERTIFICATE-----"),
            );
        }
        all
    }

    /// A file that cannot be read.
    pub fn unreadable(&mut self, field: &str, path: &Path, error: &io::Error) {
        let message = format!("cannot read {}: {}", path.display(), reason(error));
        let remedy = match error.kind() {
            ErrorKind::NotFound => "correct the path, or put the file there",
            ErrorKind::PermissionDenied => {
                "let the user that the service runs as read it: chown, chmod"
            }
            _ => "name another file",
        };
        self.push(Problem::new(field, message).remedy(remedy));
    }
}

/// Without the number that the system has for it.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split_once(" (os error ").map_or(text.clone(), |(reason, _)| reason.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::fs::PermissionsExt as _, path::PathBuf};

    struct Fixture {
        dir: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let fixture = Self { dir: tempfile::tempdir().unwrap() };
            for name in ["a", "b"] {
                let key = rcgen::KeyPair::generate().unwrap();
                let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
                let certificate = params.self_signed(&key).unwrap();
                fixture.write(&format!("{name}.crt"), &certificate.pem(), 0o644);
                fixture.write(&format!("{name}.key"), &key.serialize_pem(), 0o600);
            }
            fixture
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn write(&self, name: &str, text: &str, mode: u32) {
            fs::write(self.path(name), text).unwrap();
            fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    #[test]
    fn files_that_can_be_used_are_no_problem() {
        let fixture = Fixture::new();
        let mut files = NamedFiles::default();
        files.bus(&fixture.path("a.crt"), &fixture.path("a.crt"), &fixture.path("a.key"));
        files.directory("state_dir", &fixture.path("state/loader"));
        files.readable_directory("repositories[0].url", fixture.dir.path());
        files.optional_directory("state_dir", Path::new("/proc/sys/x"), "states are forgotten");
        assert_eq!(files.problems().0, []);
        let remark = "state_dir: cannot write into /proc/sys/x: ";
        assert!(files.remarks()[0].starts_with(remark), "{:?}", files.remarks());
        assert!(!fixture.path("state").exists());
    }

    #[test]
    fn every_unusable_file_is_told_at_once() {
        let fixture = Fixture::new();
        fixture.write("open.key", "x", 0o644);
        fixture.write("not-pem", "x", 0o600);
        fixture.write("open.crt", &fs::read_to_string(fixture.path("a.crt")).unwrap(), 0o666);
        let mut files = NamedFiles::default();
        files.bus(&fixture.path("missing.crt"), &fixture.path("a.crt"), &fixture.path("b.key"));
        files.authorities("auth.ca.cert", &fixture.path("open.crt"));
        files.certificate_and_key(
            ("data.cert", &fixture.path("not-pem")),
            ("data.key", &fixture.path("not-pem")),
        );
        files.secret("seed", &SecretRef::File(fixture.path("open.key")));
        files.directory("state_dir", &fixture.path("a.crt/state"));
        files.readable_directory("repositories[0].url", &fixture.path("packages"));
        let expected = [
            ("bus.ca", "missing.crt: no such file", "put the file there"),
            ("bus.key", "b.key is not usable with", "the key that the certificate was made for"),
            ("auth.ca.cert", "open.crt", "chmod go-w"),
            ("data.cert", "has no certificate in PEM", "BEGIN CERTIFICATE"),
            ("data.key", "is not a private key", "BEGIN PRIVATE KEY"),
            ("seed", "open.key", "chmod"),
            ("state_dir", "a.crt is not a directory", "name a directory"),
            ("repositories[0].url", "packages: no such file", "correct the path"),
        ];
        let found = &files.problems().0;
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (problem, (path, message, remedy)) in found.iter().zip(expected) {
            assert_eq!(problem.path, path, "{problem}");
            assert!(problem.message.contains(message), "{problem}");
            assert!(problem.remedy.as_ref().unwrap().contains(remedy), "{problem}");
        }
    }
}
