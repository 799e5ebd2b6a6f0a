//! The systemd units, as systemd itself reads them.
#![allow(clippy::unwrap_used, reason = "tests: a failure is the message")]

use std::{fs, path::Path, process::Command};
use xtask::paths;

/// Exposure levels by `systemd-analyze security` times ten, as `deploy/systemd/README.md` tells them.
const EXPOSURE: [(&str, u32); 6] = [
    ("loader", 27),
    ("enforcer", 49),
    ("registry", 19),
    ("policy", 19),
    ("cert-monitor", 19),
    ("host-renew", 20),
];

/// The loader with `netns.conf`.
const WITH_NETNS: u32 = 31;

fn exposed(unit: &Path, most: u32) -> (bool, String) {
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager"])
        .arg(format!("--threshold={most}"))
        .arg(unit)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    (output.status.success(), said.lines().last().unwrap_or_default().to_owned())
}

#[test]
fn the_loader_that_enters_namespaces_exposes_no_more_than_is_recorded() {
    let from = paths::workspace().join("deploy/systemd");
    let dir = tempfile::tempdir().unwrap();
    let drop_in = dir.path().join("canopy-loader.service.d");
    fs::create_dir(&drop_in).unwrap();
    let unit = dir.path().join("canopy-loader.service");
    fs::copy(from.join("canopy-loader.service"), &unit).unwrap();
    fs::copy(from.join("netns.conf"), drop_in.join("netns.conf")).unwrap();
    let (held, last) = exposed(&unit, WITH_NETNS);
    assert!(held, "{last}");
    // It is read at all: without it there is less.
    assert!(!exposed(&unit, WITH_NETNS - 1).0, "{last}");
    let page = fs::read_to_string(from.join("README.md")).unwrap();
    let told = format!("{}.{}", WITH_NETNS / 10, WITH_NETNS % 10);
    let row = page.lines().find(|line| line.contains("netns.conf") && line.starts_with('|'));
    assert!(row.is_some_and(|row| row.contains(&told)), "{told} is not in the page");
}

#[test]
fn no_unit_exposes_more_than_is_recorded() {
    let dir = paths::workspace().join("deploy/systemd");
    let page = fs::read_to_string(dir.join("README.md")).unwrap();
    for (service, exposure) in EXPOSURE {
        let unit = dir.join(format!("canopy-{service}.service"));
        let (held, last) = exposed(&unit, exposure);
        assert!(held, "{}: {last}", unit.display());
        let told = format!("{}.{}", exposure / 10, exposure % 10);
        let row = page.lines().find(|line| line.starts_with('|') && line.contains(service));
        assert!(row.is_some_and(|row| row.contains(&told)), "{service} {told} is not in the page");
    }
}
