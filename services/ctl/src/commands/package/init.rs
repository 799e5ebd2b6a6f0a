//! `package init`: a package to start from, that compiles and passes `check`.

use crate::{
    failure::{Exit, Failure},
    files,
    output::Screen,
};
use canopy_api::{Hook, PackageName};
use std::path::{Path, PathBuf};

/// Writes the files; never over others.
pub fn run(
    name: &PackageName,
    directory: Option<&Path>,
    hook: Hook,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let directory = directory.map_or_else(|| PathBuf::from(name.as_str()), Path::to_owned);
    if directory.exists() && directory.read_dir().is_ok_and(|mut found| found.next().is_some()) {
        return Err(Failure::new(
            Exit::Conflict,
            format!("{} is there already, and not empty", directory.display()),
        )
        .fix("choose another: --directory DIR"));
    }
    files::make_directory(&directory)?;
    for (file, text) in template(name, hook) {
        let path = directory.join(file);
        files::write_new(&path, text.as_bytes(), files::PUBLIC)
            .map_err(|error| Failure::io("write", &path, &error))?;
        screen.print(&format!("{}\n", path.display()))?;
    }
    screen.note(&format!("next: canopy package build {} --compile", directory.display()));
    Ok(Exit::Done)
}

/// File names and contents.
fn template(name: &PackageName, hook: Hook) -> Vec<(String, String)> {
    let function = identifier(name.as_str());
    let (source, hooks, chain_hook) = match hook {
        Hook::Xdp => (include_str!("../../../template/xdp.bpf.c"), "[xdp]", "xdp"),
        Hook::TcIngress => {
            (include_str!("../../../template/tc.bpf.c"), "[tc-ingress, tc-egress]", "tc-ingress")
        }
        Hook::TcEgress => {
            (include_str!("../../../template/tc.bpf.c"), "[tc-ingress, tc-egress]", "tc-egress")
        }
    };
    let fill = |text: &str| {
        text.replace("@NAME@", name.as_str())
            .replace("@FUNCTION@", &function)
            .replace("@HOOKS@", hooks)
            .replace("@HOOK@", chain_hook)
    };
    vec![
        (format!("{name}.bpf.c"), fill(source)),
        ("package.yaml".to_owned(), fill(include_str!("../../../template/package.yaml"))),
        ("README.md".to_owned(), fill(include_str!("../../../template/README.md"))),
    ]
}

/// A C name for a package name.
fn identifier(name: &str) -> String {
    let name = name.replace('-', "_");
    if name.starts_with(|c: char| c.is_ascii_digit()) { format!("p_{name}") } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_identifiers() {
        assert_eq!(identifier("rate-limit"), "rate_limit");
        assert_eq!(identifier("4to6"), "p_4to6");
    }

    #[test]
    fn no_placeholder_is_left() {
        for hook in Hook::ALL {
            for (file, text) in template(&"my-filter".parse().unwrap(), hook) {
                assert!(!text.contains('@') || file == "package.yaml", "{file}:\n{text}");
                assert!(!text.contains("@NAME@") && !text.contains("@HOOK"), "{file}:\n{text}");
            }
        }
    }
}
