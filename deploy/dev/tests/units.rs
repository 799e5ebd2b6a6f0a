//! The systemd units, as systemd itself reads them.
#![allow(clippy::unwrap_used, reason = "tests: a failure is the message")]

use std::process::Command;
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

#[test]
fn no_unit_exposes_more_than_is_recorded() {
    let dir = paths::workspace().join("deploy/systemd");
    let page = std::fs::read_to_string(dir.join("README.md")).unwrap();
    for (service, exposure) in EXPOSURE {
        let unit = dir.join(format!("canopy-{service}.service"));
        let output = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .arg(format!("--threshold={exposure}"))
            .arg(&unit)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let last = said.lines().last().unwrap_or_default();
        assert!(output.status.success(), "{}: {last}", unit.display());
        let told = format!("{}.{}", exposure / 10, exposure % 10);
        let row = page.lines().find(|line| line.starts_with('|') && line.contains(service));
        assert!(row.is_some_and(|row| row.contains(&told)), "{service} {told} is not in the page");
    }
}
