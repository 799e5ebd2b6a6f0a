//! The development stack's certificates: a CA of its own, one server certificate for the bus, one
//! client certificate a principal with the URI SAN `spiffe://canopy/<principal>`.

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use std::{
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How long the certificates are valid.
const VALID: Duration = Duration::from_secs(365 * DAY);
/// They are made anew when less than this is left.
const RENEW_BEFORE: Duration = Duration::from_secs(60 * DAY);
const DAY: u64 = 24 * 3600;

/// The directory with the stack's certificates and keys.
#[derive(Clone, Debug)]
pub struct Pki {
    dir: PathBuf,
}

impl Pki {
    /// Makes what is missing or about to expire, for these names (the last part of the SAN).
    pub fn ensure(dir: &Path, names: &[String]) -> Result<Self> {
        let pki = Self { dir: dir.to_owned() };
        if pki.is_good(names) {
            return Ok(pki);
        }
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
        private_dir(dir)?;
        pki.make(names)?;
        Ok(pki)
    }

    /// The CA's certificate.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// Certificate of a name; `server` for the bus.
    pub fn cert(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.crt"))
    }

    /// Key of a name.
    pub fn key(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.key"))
    }

    fn stamp(&self) -> PathBuf {
        self.dir.join("expires")
    }

    fn is_good(&self, names: &[String]) -> bool {
        let expires = fs::read_to_string(self.stamp())
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
            .map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
        expires.is_some_and(|expires| expires > SystemTime::now() + RENEW_BEFORE)
            && self.key("ca").is_file()
            && names
                .iter()
                .map(String::as_str)
                .chain(["server"])
                .all(|name| self.cert(name).is_file() && self.key(name).is_file())
    }

    fn make(&self, names: &[String]) -> Result<()> {
        let expires = SystemTime::now() + VALID;

        let mut params = CertificateParams::default();
        params.distinguished_name = common_name("Canopy development CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params, expires);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        // The policy service signs with it for hosts that are enrolled.
        private_file(&self.key("ca"), &ca.key().serialize_pem())?;
        public_file(&self.ca(), &ca.pem())?;

        let mut server = leaf("nats-server", ExtendedKeyUsagePurpose::ServerAuth, expires);
        server.subject_alt_names = vec![
            SanType::DnsName("localhost".try_into()?),
            SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        ];
        self.sign("server", &server, &ca)?;
        for name in names {
            let mut params = leaf(name, ExtendedKeyUsagePurpose::ClientAuth, expires);
            let uri = format!("spiffe://canopy/{name}");
            params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into()?)];
            self.sign(name, &params, &ca)?;
        }
        let seconds = expires.duration_since(UNIX_EPOCH)?.as_secs();
        public_file(&self.stamp(), &format!("{seconds}\n"))
    }

    fn sign(
        &self,
        name: &str,
        params: &CertificateParams,
        ca: &CertifiedIssuer<'_, KeyPair>,
    ) -> Result<()> {
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, ca)?;
        public_file(&self.cert(name), &cert.pem())?;
        private_file(&self.key(name), &key.serialize_pem())
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    dn.push(DnType::CommonName, name);
    dn
}

fn leaf(name: &str, usage: ExtendedKeyUsagePurpose, expires: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, expires);
    params
}

fn validity(params: &mut CertificateParams, expires: SystemTime) {
    let day = |time: SystemTime| {
        let days = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / DAY;
        let (year, month, day) = civil(days);
        rcgen::date_time_ymd(year, month, day)
    };
    params.not_before = day(SystemTime::now() - Duration::from_secs(DAY));
    params.not_after = day(expires);
}

/// Days since 1970-01-01 to year, month, day (Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", `civil_from_days`).
fn civil(days: u64) -> (i32, u8, u8) {
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    (
        i32::try_from(year).unwrap_or(i32::MAX),
        u8::try_from(month).unwrap_or(1),
        u8::try_from(day).unwrap_or(1),
    )
}

/// Makes a directory that only its owner can enter.
pub fn private_dir(dir: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make {}", dir.display()))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("cannot protect {}", dir.display()))
}

/// Writes a file that only its owner can read.
pub fn private_file(file: &Path, content: &str) -> Result<()> {
    write(file, content, 0o600)
}

fn public_file(file: &Path, content: &str) -> Result<()> {
    write(file, content, 0o644)
}

fn write(file: &Path, content: &str, mode: u32) -> Result<()> {
    let write = || {
        let mut out =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(file)?;
        out.set_permissions(fs::Permissions::from_mode(mode))?;
        out.write_all(content.as_bytes())
    };
    write().with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_780), (2026, 11, 23));
    }

    #[test]
    fn keys_are_private_and_made_once() {
        let dir = std::env::temp_dir().join(format!("canopy-pki-{}", std::process::id()));
        let names = ["u-admin".to_owned()];
        let pki = Pki::ensure(&dir, &names).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&pki.key("u-admin")), 0o600);
        assert_eq!(mode(&pki.key("server")), 0o600);
        let first = fs::read(pki.cert("u-admin")).unwrap();
        Pki::ensure(&dir, &names).unwrap();
        assert_eq!(fs::read(pki.cert("u-admin")).unwrap(), first);
        // A new name makes a new CA: the old one's key is gone.
        Pki::ensure(&dir, &["u-admin".to_owned(), "u-viewer".to_owned()]).unwrap();
        assert_ne!(fs::read(pki.cert("u-admin")).unwrap(), first);
        fs::remove_dir_all(&dir).unwrap();
    }
}
