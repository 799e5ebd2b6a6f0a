//! Packages: the list, and one in full.

use super::{Fields, indent, value};
use crate::output::{Answer, Cell, Table, Tone, number, text};
use canopy_api::wire::{
    DescribeReply, ListReply, MapSummary, RefreshReply, RepositoryTrouble, SearchReply,
};
use canopy_package::{
    Manifest,
    manifest::{Parameter, ParameterType, Requires},
};
use serde::Serialize;
use std::fmt::Write as _;

/// Packages of the repositories.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Packages(pub ListReply);

impl Packages {
    /// Repositories that could not be read, for the person's eyes.
    pub fn remarks(&self) -> Vec<String> {
        unavailable(&self.0.unavailable)
    }
}

impl Answer for Packages {
    fn table(&self) -> Option<Table> {
        let mut table = Table::new([
            text("NAME"),
            text("VERSION"),
            text("OLDER").long(),
            text("REPOSITORY"),
            number("SIZE").wide(),
            text("DIGEST").wide(),
            text("DESCRIPTION").long(),
        ]);
        for package in &self.0.packages {
            let newest = package
                .versions
                .iter()
                .find(|version| !version.yanked)
                .or_else(|| package.versions.first());
            let older: Vec<String> =
                package
                    .versions
                    .iter()
                    .filter(|version| Some(*version) != newest)
                    .map(|v| {
                        if v.yanked { format!("{} (yanked)", v.version) } else { v.version.clone() }
                    })
                    .collect();
            let mut older = older.join(", ");
            if package.older > 0 {
                let _ = write!(older, ", and {} more", package.older);
            }
            let version = match newest {
                Some(v) if v.yanked => Cell::toned(format!("{} (yanked)", v.version), Tone::Warn),
                Some(v) => v.version.clone().into(),
                None => String::new().into(),
            };
            table.row([
                (&package.name).into(),
                version,
                older.into(),
                package.repository.clone().into(),
                newest.map(|v| v.length.to_string()).unwrap_or_default().into(),
                newest.map(|v| v.digest.to_string()).unwrap_or_default().into(),
                package.description.clone().into(),
            ]);
        }
        Some(table)
    }

    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for package in &self.0.packages {
            for version in &package.versions {
                names.push(format!("{}@{}", package.name, version.version));
            }
        }
        names
    }

    fn nothing(&self) -> String {
        "no packages; canopy package publish adds one to a repository".to_owned()
    }
}

/// Packages that a search found.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Found(pub SearchReply);

impl Found {
    /// What the table does not show.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = unavailable(&self.0.unavailable);
        if self.0.more > 0 {
            remarks.push(format!("note: and {} more; say more of what you look for", self.0.more));
        }
        remarks
    }
}

impl Answer for Found {
    fn table(&self) -> Option<Table> {
        let mut table = Table::new([
            text("NAME"),
            text("VERSION"),
            text("HOOKS").long(),
            text("KEYWORDS").wide(),
            text("REPOSITORY").wide(),
            text("DESCRIPTION").long(),
        ]);
        for package in &self.0.packages {
            let newest = package.versions.iter().find(|version| !version.yanked);
            let hooks: Vec<&str> = package.hooks.iter().map(|hook| hook.as_str()).collect();
            table.row([
                (&package.name).into(),
                newest.map(|version| version.version.clone()).unwrap_or_default().into(),
                hooks.join(",").into(),
                package.keywords.join(",").into(),
                package.repository.clone().into(),
                package.description.clone().into(),
            ]);
        }
        Some(table)
    }

    fn names(&self) -> Vec<String> {
        self.0.packages.iter().map(|package| package.name.to_string()).collect()
    }

    fn nothing(&self) -> String {
        "no package is like that; canopy get packages lists them all".to_owned()
    }
}

/// How the repositories stand.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Repositories(pub RefreshReply);

impl Answer for Repositories {
    fn table(&self) -> Option<Table> {
        let mut table = Table::new([text("REPOSITORY"), text("STATE"), text("DETAIL").long()]);
        for one in &self.0.repositories {
            let state = match (one.usable, one.stale) {
                (true, false) => Cell::from("usable".to_owned()),
                (true, true) => Cell::toned("stale".to_owned(), Tone::Warn),
                (false, _) => Cell::toned("unusable".to_owned(), Tone::Warn),
            };
            table.row([one.repository.clone().into(), state, one.detail.clone().into()]);
        }
        Some(table)
    }

    fn names(&self) -> Vec<String> {
        self.0.repositories.iter().map(|one| one.repository.clone()).collect()
    }

    fn nothing(&self) -> String {
        "the registry has no repository".to_owned()
    }
}

fn unavailable(troubles: &[RepositoryTrouble]) -> Vec<String> {
    troubles
        .iter()
        .map(|trouble| {
            format!("note: repository {} cannot be read: {}", trouble.repository, trouble.reason)
        })
        .collect()
}

/// One package version in full.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct PackageInFull(pub DescribeReply);

impl Answer for PackageInFull {
    fn table(&self) -> Option<Table> {
        None
    }

    fn text(&self, colour: bool) -> String {
        let reply = &self.0;
        let mut fields = Fields::default();
        let manifest: Option<Manifest> = serde_json::from_value(reply.manifest.clone()).ok();
        if let Some(manifest) = &manifest {
            fields
                .add("package", format!("{}@{}", manifest.name, manifest.version))
                .add("description", &manifest.description)
                .add("license", &manifest.license)
                .add("authors", manifest.authors.join(", "))
                .add("keywords", manifest.keywords.join(", "));
        }
        let yanked = if reply.version.yanked { " (yanked)" } else { "" };
        fields
            .add("repository", format!("{}{yanked}", reply.repository))
            .add("digest", &reply.version.digest)
            .add("size", format!("{} bytes", reply.version.length))
            .add("signed by", reply.signed_by.as_deref().unwrap_or("nobody"));
        if let Some(requires) = manifest.as_ref().map(|manifest| &manifest.requires) {
            if let Some(kernel) = &requires.kernel {
                fields.add("needs kernel", format!("{kernel} or newer"));
            }
            fields.add("needs", requires.features.join(", ")).add("for", requires.arch.join(", "));
        }
        let mut out = fields.render(0);
        match &manifest {
            Some(manifest) => {
                out.push_str(&contents(manifest, colour));
                let maps = maps(&reply.maps);
                if !maps.is_empty() {
                    let _ = write!(out, "maps:\n{}", indent(&maps.render(true, colour), 2));
                }
            }
            // A newer registry may know manifests this program does not.
            None => {
                let _ = writeln!(out, "manifest: {}", value(&reply.manifest));
            }
        }
        if !reply.omitted.is_empty() {
            let _ = writeln!(out, "too long to show: {}", reply.omitted.join(", "));
        }
        if !reply.readme.is_empty() {
            out.push_str("readme:\n");
            out.push_str(&indent(&reply.readme, 2));
        }
        out
    }

    fn names(&self) -> Vec<String> {
        let name = self.0.manifest.get("name").map(value).unwrap_or_default();
        vec![format!("{name}@{}", self.0.version.version)]
    }
}

fn contents(manifest: &Manifest, colour: bool) -> String {
    let mut out = String::new();
    let mut section = |title: &str, table: &Table| {
        if !table.is_empty() {
            let _ = write!(out, "{title}:\n{}", indent(&table.render(true, colour), 2));
        }
    };
    let mut programs =
        Table::new([text("PROGRAM"), text("HOOKS").long(), number("PRIORITY"), text("PROCEED-ON")]);
    for program in &manifest.programs {
        let hooks: Vec<&str> = program.hooks.iter().map(|hook| hook.as_str()).collect();
        programs.row([
            program.name.clone().into(),
            hooks.join(",").into(),
            (&program.priority).into(),
            program.proceed_on.clone().unwrap_or_default().join(",").into(),
        ]);
    }
    section("programs", &programs);
    let mut variants = Table::new([text("PROGRAM"), text("OBJECT"), text("WHERE THE HOST HAS")]);
    for program in manifest.programs.iter().filter(|program| !program.variants.is_empty()) {
        let preferred = program.variants.iter().map(|v| (v.object.clone(), needs(&v.requires)));
        let last = (program.object.clone(), "none of these".to_owned());
        for (object, host) in preferred.chain([last]) {
            variants.row([program.name.clone().into(), object.into(), host.into()]);
        }
    }
    section("variants", &variants);
    let mut config = Table::new([
        text("SETTING"),
        text("TYPE"),
        text("DEFAULT"),
        text("RANGE"),
        text("DESCRIPTION").long(),
    ]);
    for parameter in &manifest.config {
        config.row([
            parameter.name.clone().into(),
            type_name(parameter.kind).into(),
            parameter.default.as_ref().map_or_else(|| "(required)".to_owned(), value).into(),
            range(parameter).into(),
            parameter.description.clone().into(),
        ]);
    }
    section("config", &config);
    let mut metrics = Table::new([text("METRIC"), text("HELP")]);
    for metric in &manifest.metrics {
        metrics.row([metric.name.clone().into(), metric.help.clone().into()]);
    }
    section("metrics", &metrics);
    out
}

/// `kernel 6.1, tcx, x86_64 or aarch64`
fn needs(requires: &Requires) -> String {
    let mut needs = Vec::new();
    needs.extend(requires.kernel.as_ref().map(|kernel| format!("kernel {kernel}")));
    needs.extend(requires.features.iter().cloned());
    if !requires.arch.is_empty() {
        needs.push(requires.arch.join(" or "));
    }
    needs.join(", ")
}

fn maps(maps: &[MapSummary]) -> Table {
    let mut table = Table::new([
        text("MAP"),
        text("KIND"),
        number("KEY"),
        number("VALUE"),
        number("ENTRIES"),
        text("OBJECT"),
    ]);
    let size = |size: Option<u32>| size.map(|size| size.to_string()).unwrap_or_default();
    for map in maps {
        table.row([
            map.name.clone().into(),
            map.kind.clone().into(),
            size(map.key_size).into(),
            size(map.value_size).into(),
            size(map.max_entries).into(),
            map.object.clone().into(),
        ]);
    }
    table
}

fn type_name(kind: ParameterType) -> String {
    serde_json::to_value(kind).ok().as_ref().map(value).unwrap_or_default()
}

fn range(parameter: &Parameter) -> String {
    let unit = parameter.unit.as_ref().map(|unit| format!(" {unit}")).unwrap_or_default();
    match (parameter.min, parameter.max) {
        (None, None) => unit.trim().to_owned(),
        (Some(min), None) => format!("from {min}{unit}"),
        (None, Some(max)) => format!("to {max}{unit}"),
        (Some(min), Some(max)) => format!("{min} to {max}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use canopy_api::{
        Digest,
        wire::{PackageSummary, RepositoryState, RepositoryTrouble, VersionSummary},
    };

    fn version(text: &str, yanked: bool) -> VersionSummary {
        VersionSummary { version: text.to_owned(), digest: Digest::of(b"x"), length: 1234, yanked }
    }

    #[test]
    fn packages_as_a_table() {
        let packages = Packages(ListReply {
            packages: vec![PackageSummary {
                name: "firewall".parse().unwrap(),
                description: "Blocks prefixes".to_owned(),
                hooks: Vec::new(),
                keywords: Vec::new(),
                repository: "local".to_owned(),
                versions: vec![
                    version("0.3.0", true),
                    version("0.2.0", false),
                    version("0.1.0", false),
                ],
                older: 0,
            }],
            unavailable: vec![RepositoryTrouble {
                repository: "far".to_owned(),
                reason: "the index has expired".to_owned(),
            }],
            next: None,
        });
        assert_eq!(
            packages.table().unwrap().render(false, false),
            "\
NAME      VERSION  OLDER                  REPOSITORY  DESCRIPTION
firewall  0.2.0    0.3.0 (yanked), 0.1.0  local       Blocks prefixes
"
        );
        assert_eq!(packages.names(), ["firewall@0.3.0", "firewall@0.2.0", "firewall@0.1.0"]);
        assert_eq!(
            packages.remarks(),
            ["note: repository far cannot be read: the index has expired"]
        );
    }

    #[test]
    fn a_repository_that_is_refused_now_is_stale() {
        let one = |repository: &str, usable, stale| RepositoryState {
            repository: repository.to_owned(),
            usable,
            stale,
            detail: "-".to_owned(),
        };
        let repositories =
            vec![one("a", true, false), one("b", true, true), one("c", false, false)];
        let table = Repositories(RefreshReply { repositories }).table().unwrap();
        assert_eq!(
            table.render(false, false),
            "\
REPOSITORY  STATE     DETAIL
a           usable    -
b           stale     -
c           unusable  -
"
        );
    }

    #[test]
    fn a_package_in_full() {
        let manifest = serde_json::json!({
            "name": "ratelimit", "version": "0.1.0", "description": "Limits", "license": "GPL-2.0-only",
            "programs": [{"name": "ratelimit", "object": "r.o", "function": "r", "hooks": ["xdp"], "priority": 20,
                          "variants": [{"object": "n.o", "requires": {"kernel": "6.1", "features": ["tcx"]}}]}],
            "config": [{"name": "rate", "type": "u64", "description": "Tokens a second", "unit": "packets/s",
                        "default": 1000, "min": 1, "bind": {"global": "rate"}}],
        });
        let text = PackageInFull(DescribeReply {
            repository: "local".to_owned(),
            version: version("0.1.0", false),
            signed_by: Some("0123456789ABCDEF".to_owned()),
            manifest,
            config_schema: serde_json::Value::Null,
            maps: vec![MapSummary {
                name: "buckets".to_owned(),
                object: "r.o".to_owned(),
                kind: "lru_hash".to_owned(),
                key_size: Some(16),
                value_size: Some(24),
                max_entries: None,
            }],
            readme: "# ratelimit\n\nText.".to_owned(),
            omitted: Vec::new(),
        })
        .text(false);
        assert!(
            text.starts_with("package:      ratelimit@0.1.0\ndescription:  Limits\n"),
            "{text}"
        );
        assert!(text.contains("signed by:    0123456789ABCDEF\n"), "{text}");
        assert!(
            text.contains(
                "variants:\n  PROGRAM    OBJECT  WHERE THE HOST HAS\n  ratelimit  n.o     kernel 6.1, tcx\n  \
                 ratelimit  r.o     none of these\n"
            ),
            "{text}"
        );
        assert!(
            text.contains("  rate     u64   1000     from 1 packets/s  Tokens a second\n"),
            "{text}"
        );
        assert!(text.contains("  buckets  lru_hash   16     24        -  r.o\n"), "{text}");
        assert!(text.ends_with("readme:\n  # ratelimit\n\n  Text.\n"), "{text}");
    }
}
