//! Contexts: which bus, as whom, and which host by default. A file like kubectl's, overridden by
//! flags and environment.

use crate::{
    cli::ConnectionArgs,
    failure::{Exit, Failure},
};
use canopy_api::{HostId, Principal, document, near, san::SanPatterns};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The context file: `~/.config/canopy/config.yaml`, YAML or JSON by extension.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContextFile {
    /// The context used when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// The contexts, each name once.
    #[serde(default)]
    pub contexts: Vec<Context>,
}

/// One context. Relative paths are relative to the file they stand in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// Its name.
    pub name: String,
    /// Address of the bus: `tls://bus.example.net:4222`.
    pub url: String,
    /// CA that signed the bus server's certificate, PEM.
    pub ca: PathBuf,
    /// The person's certificate, PEM.
    pub cert: PathBuf,
    /// The private key of that certificate, PEM.
    pub key: PathBuf,
    /// File with the person's token, as private as the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<PathBuf>,
    /// The person's name on the bus, as in the certificate: `u-alice`.
    pub principal: Principal,
    /// Names the bus server's certificate has to have beside the address, such as
    /// `[{"dns": {"glob": "*.bus.example.net"}}]`.
    #[serde(default, skip_serializing_if = "SanPatterns::is_empty")]
    pub server_names: SanPatterns,
    /// Host to act on when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
}

/// What is known about how to connect, before it is known to be enough.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The file contexts are kept in.
    pub file: PathBuf,
    /// The context that was chosen, if any, with overrides applied.
    pub name: Option<String>,
    /// Address of the bus.
    pub url: Option<String>,
    /// CA.
    pub ca: Option<PathBuf>,
    /// Certificate.
    pub cert: Option<PathBuf>,
    /// Private key.
    pub key: Option<PathBuf>,
    /// Token.
    pub token: Option<PathBuf>,
    /// Who.
    pub principal: Option<Principal>,
    /// Names of the bus server.
    pub server_names: SanPatterns,
    /// Default host.
    pub host: Option<HostId>,
}

/// Where the context file is, when no flag and no `CANOPY_CONFIG` says so.
pub fn default_path() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    set("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".config")))
        .unwrap_or_else(|| PathBuf::from("/etc"))
        .join("canopy/config.yaml")
}

impl ContextFile {
    /// Reads a file. One that is not there is empty, unless it was asked for by name.
    pub fn read(path: &Path, asked_for: bool) -> Result<Self, Failure> {
        // It names the bus, and the authority that vouches for it.
        let protected = if path.exists() { canopy_files::check_protected(path) } else { Ok(()) };
        protected.map_err(|open| {
            Failure::new(Exit::Denied, "others may write the context file, or replace it")
                .at(open.path.display().to_string())
                .fix(format!("{}; then {}", open.reason, open.remedy))
        })?;
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !asked_for => {
                Ok(Self::default())
            }
            Err(error) => Err(Failure::io("read the context file", path, &error)),
        }
    }

    /// Checks a file's text; relative paths become relative to the file's directory.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Failure> {
        let place = path.display().to_string();
        let format = document::Format::of(path).unwrap_or(document::Format::Yaml);
        let mut file: Self =
            document::load(text, format).map_err(|problems| Failure::in_file(&place, problems))?;
        let base = path.parent().unwrap_or(Path::new(""));
        for context in &mut file.contexts {
            let token = context.token.as_mut();
            let paths = [&mut context.ca, &mut context.cert, &mut context.key];
            for path in paths.into_iter().chain(token) {
                *path = base.join(&*path);
            }
        }
        for (i, context) in file.contexts.iter().enumerate() {
            if file.contexts.iter().take(i).any(|earlier| earlier.name == context.name) {
                return Err(Failure::new(
                    Exit::Invalid,
                    format!("there are two contexts named \"{}\"", context.name),
                )
                .at(format!("{place}: contexts[{i}].name"))
                .fix("give each its own name"));
            }
        }
        if let Some(current) = &file.current {
            file.find(current, &place)?;
        }
        Ok(file)
    }

    /// The context of that name.
    pub fn find(&self, name: &str, place: &str) -> Result<&Context, Failure> {
        self.contexts.iter().find(|context| context.name == name).ok_or_else(|| {
            let names = self.contexts.iter().map(|context| context.name.as_str());
            Failure::new(Exit::NotFound, format!("there is no context \"{name}\""))
                .at(place)
                .fix(near::hint(name, names, "canopy config get-contexts lists them"))
        })
    }
}

impl Settings {
    /// The context in force, with every override.
    pub fn gather(args: &ConnectionArgs) -> Result<Self, Failure> {
        let file = args.context_file.clone().unwrap_or_else(default_path);
        let contexts = ContextFile::read(&file, args.context_file.is_some())?;
        Self::choose(&contexts, file, args)
    }

    fn choose(
        contexts: &ContextFile,
        file: PathBuf,
        args: &ConnectionArgs,
    ) -> Result<Self, Failure> {
        let name = args.context.as_ref().or(contexts.current.as_ref());
        let context = match name {
            Some(name) => Some(contexts.find(name, &file.display().to_string())?.clone()),
            None => None,
        };
        let server_names =
            context.as_ref().map(|context| context.server_names.clone()).unwrap_or_default();
        let (name, of) = match context {
            Some(c) => (
                Some(c.name),
                (
                    (Some(c.url), Some(c.ca), Some(c.cert), Some(c.key)),
                    (c.token, Some(c.principal), c.host),
                ),
            ),
            None => (None, Default::default()),
        };
        let ((url, ca, cert, key), (token, principal, host)) = of;
        Ok(Self {
            file,
            name,
            url: args.url.clone().or(url),
            ca: args.tls_ca.clone().or(ca),
            cert: args.tls_cert.clone().or(cert),
            key: args.tls_key.clone().or(key),
            token: args.token_file.clone().or(token),
            principal: args.principal.clone().or(principal),
            server_names,
            host,
        })
    }

    /// What is to be corrected where these do not let anybody in.
    pub fn place(&self) -> String {
        let file = self.file.display();
        match &self.name {
            Some(name) => format!("context {name} of {file}"),
            None => format!("connection options, or {file}"),
        }
    }

    /// Everything needed to connect, or everything that is missing.
    pub fn complete(&self) -> Result<Context, Failure> {
        match (&self.url, &self.ca, &self.cert, &self.key, &self.principal) {
            (Some(url), Some(ca), Some(cert), Some(key), Some(principal)) => Ok(Context {
                name: self.name.clone().unwrap_or_else(|| "(flags)".to_owned()),
                url: url.clone(),
                ca: ca.clone(),
                cert: cert.clone(),
                key: key.clone(),
                token: self.token.clone(),
                principal: principal.clone(),
                server_names: self.server_names.clone(),
                host: self.host.clone(),
            }),
            _ => Err(self.incomplete()),
        }
    }

    fn incomplete(&self) -> Failure {
        let missing: Vec<&str> = [
            ("--url", self.url.is_none()),
            ("--tls-ca", self.ca.is_none()),
            ("--tls-cert", self.cert.is_none()),
            ("--tls-key", self.key.is_none()),
            ("--principal", self.principal.is_none()),
        ]
        .into_iter()
        .filter_map(|(flag, missing)| missing.then_some(flag))
        .collect();
        let failure = if missing.len() == 5 {
            Failure::new(
                Exit::Invalid,
                "no context: it is not known which bus to talk to, or as whom",
            )
        } else {
            Failure::new(
                Exit::Invalid,
                format!("not enough to connect: {} missing", missing.join(", ")),
            )
        };
        failure.at(self.file.display().to_string()).fix(
            "write the context file, or name one: --context-file FILE or CANOPY_CONFIG=FILE \
             (`cargo xtask up` makes .canopy/contexts.json)",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
current: dev
contexts:
  - name: dev
    url: tls://127.0.0.1:4222
    ca: ca.pem
    cert: admin.pem
    key: /secret/admin.key
    principal: u-admin
    host: web1
  - name: prod
    url: tls://bus.example.net:4222
    ca: ca.pem
    cert: alice.pem
    key: alice.key
    principal: u-alice
";

    fn parse(text: &str) -> Result<ContextFile, Failure> {
        ContextFile::parse(text, Path::new("/etc/canopy/config.yaml"))
    }

    fn settings(args: &ConnectionArgs) -> Result<Settings, Failure> {
        Settings::choose(&parse(FILE).unwrap(), "/etc/canopy/config.yaml".into(), args)
    }

    #[test]
    fn relative_paths_are_relative_to_the_file() {
        let dev = settings(&ConnectionArgs::default()).unwrap().complete().unwrap();
        assert_eq!(dev.ca, Path::new("/etc/canopy/ca.pem"));
        assert_eq!(dev.key, Path::new("/secret/admin.key"));
        assert_eq!(dev.host.unwrap().as_str(), "web1");
    }

    #[test]
    fn flags_win_over_the_context() {
        let args = ConnectionArgs {
            context: Some("prod".to_owned()),
            url: Some("tls://127.0.0.1:9".to_owned()),
            ..ConnectionArgs::default()
        };
        let prod = settings(&args).unwrap().complete().unwrap();
        assert_eq!((prod.url.as_str(), prod.principal.as_str()), ("tls://127.0.0.1:9", "u-alice"));
        assert_eq!(prod.host, None);
    }

    #[test]
    fn an_unknown_context_is_named_with_its_neighbour() {
        let args = ConnectionArgs { context: Some("prdo".to_owned()), ..Default::default() };
        let failure = settings(&args).unwrap_err();
        assert_eq!(failure.exit, Exit::NotFound);
        assert!(failure.render("error").contains("did you mean \"prod\"?"));
    }

    #[test]
    fn what_is_missing_is_listed() {
        let args =
            ConnectionArgs { url: Some("tls://127.0.0.1:9".to_owned()), ..Default::default() };
        let settings = Settings::choose(&ContextFile::default(), "/none".into(), &args).unwrap();
        let said = settings.complete().unwrap_err().render("error");
        assert!(said.contains("--tls-ca, --tls-cert, --tls-key, --principal missing"), "{said}");
    }

    #[test]
    fn mistakes_have_their_place() {
        let failure = parse("contexts: [{name: a, url: b, ca: c, cert: d, key: e, principal: x}]")
            .unwrap_err();
        assert_eq!(failure.exit, Exit::Invalid);
        assert!(failure.problems[0].path.contains("/etc/canopy/config.yaml: contexts[0]"));
        assert!(parse("current: nope\n").is_err());
        assert!(parse(&FILE.replace("prod", "dev")).is_err());
    }
}
