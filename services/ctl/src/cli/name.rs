//! How things are named on the command line: as people type them, and as `-o name` prints them.
//!
//! | thing | forms |
//! |---|---|
//! | host | `web1`, `host/web1` |
//! | chain | `eth0 xdp`, `eth0/xdp`, `web1/eth0/xdp`, `web1/netns:blue/eth0/xdp`, each with `chain/` before it |
//! | program | `limit`, `eth0/xdp/limit`, `web1/eth0/xdp/limit`, each with `program/` before it |
//! | map | `eth0 xdp limit rl_sources`, `eth0/xdp/limit/rl_sources`, `web1/eth0/xdp/limit/rl_sources` |

use crate::failure::{Exit, Failure};
use canopy_api::{
    ChainKey, Hook, HostId, InterfaceSelector, Netns, PackageRef, ProgramName, Target,
    wire::MapName,
};
use std::fmt::Display;

/// What marks a network namespace in a name.
const NETNS: &str = "netns:";

/// A chain, or every chain of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainName {
    /// On this host; absent where that is said elsewhere.
    pub host: Option<HostId>,
    /// In this network namespace.
    pub netns: Option<Netns>,
    /// Of this interface, by name or as it was described.
    pub interface: InterfaceSelector,
    /// Of this hook; absent for all of them.
    pub hook: Option<Hook>,
}

/// A program, by its name in a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramPath {
    /// In this chain; absent for any.
    pub chain: Option<ChainName>,
    /// Its name.
    pub program: ProgramName,
}

/// A map of a program of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapPath {
    /// On this host; absent where that is said elsewhere.
    pub host: Option<HostId>,
    /// Which map.
    pub name: MapName,
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(Exit::Invalid, message)
}

fn parsed<T: std::str::FromStr<Err: Display>>(text: &str) -> Result<T, Failure> {
    text.parse().map_err(|error: T::Err| invalid(error.to_string()))
}

fn hook(text: &str) -> Result<Hook, Failure> {
    text.parse().map_err(|error: String| {
        let known = Hook::ALL.map(Hook::as_str);
        let failure = invalid(error);
        match canopy_api::near::nearest(text, known) {
            Some(near) => failure.fix(format!("did you mean '{near}'?")),
            None => failure,
        }
    })
}

/// The name without the word for its kind.
fn without_kind<'a>(text: &'a str, kinds: &[&str]) -> &'a str {
    match text.split_once('/') {
        Some((kind, rest)) if kinds.contains(&kind) => rest,
        _ => text,
    }
}

/// Host and network namespace: what stands before an interface.
fn place(text: &str) -> Result<(Option<HostId>, Option<Netns>), Failure> {
    let (host, netns) = match text.strip_prefix(NETNS) {
        Some(netns) => (None, Some(netns)),
        None => match text.split_once('/') {
            Some((host, rest)) => {
                let netns = rest.strip_prefix(NETNS).ok_or_else(|| {
                    invalid(format!("\"{text}\" is not a host, or a host and netns:NAME"))
                })?;
                (Some(host), Some(netns))
            }
            None => (Some(text), None),
        },
    };
    Ok((host.map(parsed).transpose()?, netns.map(parsed).transpose()?))
}

impl ChainName {
    /// Of `HOST/INTERFACE/HOOK`, `INTERFACE/HOOK` or `INTERFACE`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let text = without_kind(text, &["chain", "chains"]);
        let Some((before, last)) = text.rsplit_once('/') else {
            return Ok(Self { host: None, netns: None, interface: parsed(text)?, hook: None });
        };
        let hook = match hook(last) {
            Ok(hook) => Some(hook),
            // Behind a hook stands the name of a program.
            Err(_)
                if before.rsplit('/').next().is_some_and(|word| word.parse::<Hook>().is_ok()) =>
            {
                return Err(invalid(format!("\"{text}\" names a program, not a chain")).fix(
                    format!("canopy get program, describe program or delete program {text}"),
                ));
            }
            Err(failure) => return Err(failure),
        };
        let (place_text, interface) = match before.rsplit_once('/') {
            Some((place, interface)) => (Some(place), interface),
            None => (None, before),
        };
        let (host, netns) = place_text.map(place).transpose()?.unwrap_or_default();
        Ok(Self { host, netns, interface: parsed(interface)?, hook })
    }

    /// Of the words of a command line: `INTERFACE HOOK`, or names.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn list(words: &[String], netns: Option<&Netns>) -> Result<Vec<Self>, Failure> {
        let mut names = match words {
            [interface, word] if !interface.contains('/') && !word.contains('/') => {
                vec![Self { hook: Some(hook(word)?), ..Self::parse(interface)? }]
            }
            words => words.iter().map(|word| Self::parse(word)).collect::<Result<Vec<_>, _>>()?,
        };
        for name in &mut names {
            name.netns = name.netns.take().or_else(|| netns.cloned());
        }
        Ok(names)
    }

    /// The whole: interface and hook.
    ///
    /// # Errors
    /// Where the hook is missing.
    pub fn target(&self) -> Result<Target, Failure> {
        let hook = self.hook.ok_or_else(|| {
            invalid(format!("{}: the hook is missing", self.interface))
                .fix("write INTERFACE HOOK, INTERFACE/HOOK or HOST/INTERFACE/HOOK")
        })?;
        Ok(Target { netns: self.netns.clone(), interface: self.interface.clone(), hook })
    }

    /// Whether a chain is meant, which comes from this selector, if from one.
    pub fn fits(
        &self,
        host: &HostId,
        key: &ChainKey,
        selector: Option<&InterfaceSelector>,
    ) -> bool {
        let interface = self.interface.name() == Some(&key.interface)
            || selector.is_some_and(|selector| *selector == self.interface);
        interface
            && self.host.as_ref().is_none_or(|named| named == host)
            && self.hook.is_none_or(|hook| hook == key.hook)
            && (self.netns.is_none() || self.netns == key.netns)
    }
}

impl std::fmt::Display for ChainName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(host) = &self.host {
            write!(f, "{host}/")?;
        }
        if let Some(netns) = &self.netns {
            write!(f, "{NETNS}{netns}/")?;
        }
        write!(f, "{}", self.interface)?;
        match self.hook {
            Some(hook) => write!(f, "/{hook}"),
            None => Ok(()),
        }
    }
}

impl ProgramPath {
    /// Of `NAME`, or of a chain's name and `/NAME`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let text = without_kind(text, &["program", "programs"]);
        let Some((chain, program)) = text.rsplit_once('/') else {
            return Ok(Self { chain: None, program: parsed(text)? });
        };
        let chain = ChainName::parse(chain)?;
        chain.target()?;
        Ok(Self { chain: Some(chain), program: parsed(program)? })
    }

    /// Whether a program is meant.
    pub fn fits(
        &self,
        host: &HostId,
        key: &ChainKey,
        selector: Option<&InterfaceSelector>,
        program: &ProgramName,
    ) -> bool {
        self.program == *program
            && self.chain.as_ref().is_none_or(|chain| chain.fits(host, key, selector))
    }

    /// On which host, where the name says it.
    pub fn host(&self) -> Option<&HostId> {
        self.chain.as_ref()?.host.as_ref()
    }
}

impl std::fmt::Display for ProgramPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.chain {
            Some(chain) => write!(f, "{chain}/{}", self.program),
            None => write!(f, "{}", self.program),
        }
    }
}

impl MapPath {
    /// Of the first words of a command line, and the words behind them.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn split<'a>(
        words: &'a [String],
        netns: Option<&Netns>,
    ) -> Result<(Self, &'a [String]), Failure> {
        let (chain, program, map, rest) = match words {
            [path, rest @ ..] if path.contains('/') => {
                let path = without_kind(path, &["map", "maps"]);
                let parts = path.rsplit_once('/').and_then(|(before, map)| {
                    let (chain, program) = before.rsplit_once('/')?;
                    Some((chain, program, map))
                });
                let Some((chain, program, map)) = parts else { return Err(incomplete(path)) };
                (ChainName::parse(chain)?, program, map, rest)
            }
            [interface, hook, program, map, rest @ ..] => {
                let words = [interface.clone(), hook.clone()];
                let chain = ChainName::list(&words, None)?.into_iter().next();
                (chain.ok_or_else(|| incomplete(interface))?, program.as_str(), map.as_str(), rest)
            }
            words => return Err(incomplete(&words.join(" "))),
        };
        let Target { netns: named, interface, hook } = chain.target()?;
        let name = MapName {
            netns: named.or_else(|| netns.cloned()),
            interface: interface.name().cloned().ok_or_else(|| {
                invalid(format!("{interface} stands for interfaces; a map is one interface's"))
            })?,
            hook,
            program: parsed(program)?,
            map: map.to_owned(),
        };
        Ok((Self { host: chain.host, name }, rest))
    }
}

fn incomplete(text: &str) -> Failure {
    invalid(format!("\"{text}\" does not name a map"))
        .fix("write INTERFACE HOOK PROGRAM MAP, or HOST/INTERFACE/HOOK/PROGRAM/MAP")
}

/// A host: `web1` or `host/web1`.
///
/// # Errors
/// Where it is no id of a host.
pub fn host(text: &str) -> Result<HostId, String> {
    let text = without_kind(text, &["host", "hosts"]);
    text.parse().map_err(|error: canopy_api::name::NameError| error.to_string())
}

/// A package: `firewall`, `firewall@^0.1` or `package/firewall@0.1.0`.
///
/// # Errors
/// Where it is none.
pub fn package(text: &str) -> Result<PackageRef, String> {
    without_kind(text, &["package", "packages", "pkg"]).parse()
}

/// The one host that names and options speak of, if any does.
///
/// # Errors
/// Where they do not agree.
pub fn one_host<'a>(
    names: impl IntoIterator<Item = Option<&'a HostId>>,
    option: Option<&'a HostId>,
) -> Result<Option<HostId>, Failure> {
    let mut host = option;
    for name in names.into_iter().flatten() {
        match host {
            Some(other) if other != name => {
                return Err(invalid(format!("two hosts are named: {other} and {name}"))
                    .fix("name one host at a time"));
            }
            _ => host = Some(name),
        }
    }
    Ok(host.cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_named_in_every_form() {
        for (text, shown) in [
            ("eth0", "eth0"),
            ("eth0/xdp", "eth0/xdp"),
            ("chain/eth0/xdp", "eth0/xdp"),
            ("web1/eth0/tc-ingress", "web1/eth0/tc-ingress"),
            ("chains/web1/eth0/xdp", "web1/eth0/xdp"),
            ("web1/xdp/xdp", "web1/xdp/xdp"),
            ("netns:blue/eth0/xdp", "netns:blue/eth0/xdp"),
            (
                "web1/netns:/run/docker/netns/1f0c/eth0/xdp",
                "web1/netns:/run/docker/netns/1f0c/eth0/xdp",
            ),
            ("web1/netns:pid:4711/eth0/xdp", "web1/netns:pid:4711/eth0/xdp"),
            ("mac:52:54:00:12:34:56/xdp", "mac:52:54:00:12:34:56/xdp"),
            ("web1/default-route/xdp", "web1/default-route/xdp"),
        ] {
            let name = ChainName::parse(text).unwrap();
            assert_eq!(name.to_string(), shown);
            assert_eq!(ChainName::parse(shown).unwrap(), name);
        }
        for bad in ["eth0/xpd", "a/b/c/xdp", "/xdp", "web1//xdp", "Web1/eth0/xdp"] {
            assert_eq!(ChainName::parse(bad).unwrap_err().exit, Exit::Invalid, "{bad}");
        }
        for program in ["eth0/xdp/limit", "chain/web1/eth0/tc-ingress/limit"] {
            let said = ChainName::parse(program).unwrap_err().render("error");
            assert!(said.contains("names a program, not a chain"), "{said}");
            assert!(said.contains("or delete program "), "{said}");
        }
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let two = ChainName::list(&words("eth0/xdp web1/eth1/xdp"), None).unwrap();
        assert_eq!(two.len(), 2);
        assert_eq!(
            ChainName::list(&words("eth0 xdp"), None).unwrap(),
            [ChainName::parse("eth0/xdp").unwrap()]
        );
        let said = ChainName::list(&words("eth0 tc-ingres"), None).unwrap_err().render("error");
        assert!(said.contains("did you mean 'tc-ingress'?"), "{said}");
    }

    #[test]
    fn programs_and_maps_are_named_in_every_form() {
        for text in ["limit", "program/limit", "eth0/xdp/limit", "web1/eth0/xdp/limit"] {
            assert_eq!(ProgramPath::parse(text).unwrap().program.as_str(), "limit", "{text}");
        }
        assert!(ProgramPath::parse("eth0/limit").is_err());
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for text in [
            "eth0 xdp limit m 1 2",
            "eth0/xdp/limit/m 1 2",
            "web1/eth0/xdp/limit/m 1 2",
            "map/web1/eth0/xdp/limit/m 1 2",
        ] {
            let words = words(text);
            let (map, rest) = MapPath::split(&words, None).unwrap();
            assert_eq!(map.name.to_string(), "eth0/xdp/limit/m", "{text}");
            assert_eq!(rest, ["1", "2"]);
            assert_eq!(map.host.is_some(), text.contains("web1"));
        }
        for bad in ["eth0", "eth0 xdp limit", "xdp/limit/m", "eth*/xdp/limit/m"] {
            assert!(MapPath::split(&words(bad), None).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_agree_about_the_host() {
        let (a, b): (HostId, HostId) = ("a".parse().unwrap(), "b".parse().unwrap());
        assert_eq!(one_host([Some(&a), None], None).unwrap(), Some(a.clone()));
        assert_eq!(one_host([None], Some(&b)).unwrap(), Some(b.clone()));
        assert!(one_host([Some(&a)], Some(&b)).is_err());
    }
}
