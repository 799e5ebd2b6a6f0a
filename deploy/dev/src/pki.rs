//! The development stack's certificates: a CA of its own, one server certificate for the bus, one
//! client certificate a principal with the URI SAN `spiffe://canopy/<principal>`. The routes between bus
//! servers have an authority apart: whoever is taken for a server is everybody.

use anyhow::{Context as _, Result};
use canopy_api::nats::TlsPaths;
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
        lasts(&self.stamp())
            && self.key("ca").is_file()
            && names
                .iter()
                .map(String::as_str)
                .chain(["server"])
                .all(|name| self.cert(name).is_file() && self.key(name).is_file())
    }

    fn make(&self, names: &[String]) -> Result<()> {
        let expires = SystemTime::now() + VALID;

        let ca = authority("Canopy development CA", expires)?;
        // The policy service signs with it for hosts that are enrolled.
        private_file(&self.key("ca"), &ca.key().serialize_pem())?;
        public_file(&self.ca(), &ca.pem())?;

        let mut server = leaf("nats-server", ExtendedKeyUsagePurpose::ServerAuth, expires);
        server.subject_alt_names = loopback()?;
        sign(&server, &ca, &self.cert("server"), &self.key("server"))?;
        for name in names {
            let mut params = leaf(name, ExtendedKeyUsagePurpose::ClientAuth, expires);
            let uri = format!("spiffe://canopy/{name}");
            params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into()?)];
            sign(&params, &ca, &self.cert(name), &self.key(name))?;
        }
        stamp(&self.stamp(), expires)
    }
}

/// The directory of the routes: an authority that signs bus servers alone, and a certificate of it for the
/// servers of this machine.
#[derive(Clone, Debug)]
pub struct RoutesPki {
    dir: PathBuf,
}

impl RoutesPki {
    /// Makes what is missing or about to expire.
    pub fn ensure(dir: &Path) -> Result<Self> {
        let pki = Self { dir: dir.to_owned() };
        let tls = pki.tls();
        let is_good = lasts(&pki.stamp())
            && [&tls.ca, &tls.cert, &tls.key].into_iter().all(|path| path.is_file());
        if is_good {
            return Ok(pki);
        }
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
        private_dir(dir)?;
        let expires = SystemTime::now() + VALID;
        let ca = authority("Canopy development routes CA", expires)?;
        private_file(&dir.join("ca.key"), &ca.key().serialize_pem())?;
        public_file(&tls.ca, &ca.pem())?;
        // A server is the server of one route and the client of another.
        let mut params = leaf("nats-server route", ExtendedKeyUsagePurpose::ServerAuth, expires);
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        params.subject_alt_names = loopback()?;
        sign(&params, &ca, &tls.cert, &tls.key)?;
        stamp(&pki.stamp(), expires)?;
        Ok(pki)
    }

    /// The authority, the certificate and its key.
    pub fn tls(&self) -> TlsPaths {
        TlsPaths {
            ca: self.dir.join("ca.crt"),
            cert: self.dir.join("route.crt"),
            key: self.dir.join("route.key"),
        }
    }

    fn stamp(&self) -> PathBuf {
        self.dir.join("expires")
    }
}

/// The names of a server of this machine.
fn loopback() -> Result<Vec<SanType>> {
    Ok(vec![
        SanType::DnsName("localhost".try_into()?),
        SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)),
    ])
}

/// A new authority that signs leaves.
fn authority(name: &str, expires: SystemTime) -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, expires);
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

/// Writes a certificate and its new key.
fn sign(
    params: &CertificateParams,
    ca: &CertifiedIssuer<'_, KeyPair>,
    cert_file: &Path,
    key_file: &Path,
) -> Result<()> {
    let key = KeyPair::generate()?;
    let cert = params.signed_by(&key, ca)?;
    public_file(cert_file, &cert.pem())?;
    private_file(key_file, &key.serialize_pem())
}

/// Whether what the stamp was written for is valid for long enough.
fn lasts(stamp: &Path) -> bool {
    let expires = fs::read_to_string(stamp)
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
        .map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
    expires.is_some_and(|expires| expires > SystemTime::now() + RENEW_BEFORE)
}

fn stamp(file: &Path, expires: SystemTime) -> Result<()> {
    let seconds = expires.duration_since(UNIX_EPOCH)?.as_secs();
    public_file(file, &format!("{seconds}\n"))
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

    #[test]
    fn routes_have_an_authority_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::ensure(&dir.path().join("pki"), &[]).unwrap();
        let routes = RoutesPki::ensure(&dir.path().join("routes")).unwrap();
        let of_bus = fs::read(pki.ca()).unwrap();
        let of_routes = fs::read(routes.tls().ca).unwrap();
        assert_ne!(of_bus, of_routes);
        let mode = routes.tls().key.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        // Neither is made again because the other is.
        Pki::ensure(&dir.path().join("pki"), &["u-admin".to_owned()]).unwrap();
        RoutesPki::ensure(&dir.path().join("routes")).unwrap();
        assert_eq!(fs::read(routes.tls().ca).unwrap(), of_routes);
        assert_ne!(fs::read(pki.ca()).unwrap(), of_bus);
    }
}
