//! The configuration file of a running service, looked at again and again.

use crate::config::{ServiceConfig, parse, read_text};
use canopy_api::problem::{Problem, Problems};
use std::path::{Path, PathBuf};

/// The file a service was started with, and its text as it was read last.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    path: PathBuf,
    seen: Result<String, Problem>,
}

impl ConfigFile {
    pub(crate) fn new(path: &Path, text: String) -> Self {
        Self { path: path.to_owned(), seen: Ok(text) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration, or everything that is wrong with it, if the text is another one than the
    /// last time. By text and not by time: files are replaced through links, and restored with
    /// their old times. Reads a file; not for a thread that others wait for.
    pub fn changed<C: ServiceConfig>(&mut self) -> Option<Result<C, Problems>> {
        let now = read_text(&self.path);
        if now == self.seen {
            return None;
        }
        let loaded = match &now {
            Ok(text) => parse(&self.path, text),
            Err(problem) => Err(problem.clone().into()),
        };
        self.seen = now;
        Some(loaded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RuntimeConfig;
    use std::fs;

    #[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Config {
        word: String,
        #[serde(default)]
        runtime: RuntimeConfig,
    }

    impl ServiceConfig for Config {
        fn runtime(&self) -> &RuntimeConfig {
            &self.runtime
        }
    }

    #[test]
    fn each_text_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let first = r#"{ "word": "one" }"#;
        fs::write(&path, first).unwrap();
        let mut file = ConfigFile::new(&path, first.to_owned());
        assert!(file.changed::<Config>().is_none());

        fs::write(&path, r#"{ "wort": "two" }"#).unwrap();
        let problems = file.changed::<Config>().unwrap().unwrap_err();
        assert!(problems.to_string().contains("wort"), "{problems}");
        assert!(file.changed::<Config>().is_none());

        fs::remove_file(&path).unwrap();
        assert!(file.changed::<Config>().unwrap().is_err());
        assert!(file.changed::<Config>().is_none());

        fs::write(&path, r#"{ "word": "three" }"#).unwrap();
        assert_eq!(file.changed::<Config>().unwrap().unwrap().word, "three");
        assert!(file.changed::<Config>().is_none());
    }

    #[test]
    fn a_configuration_that_others_may_write_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, r#"{ "word": "one" }"#).unwrap();
        crate::load::<Config>(&path).unwrap();
        let mut file = ConfigFile::new(&path, r#"{ "word": "one" }"#.to_owned());
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        for (place, open, closed) in [(path.as_path(), 0o646, 0o644), (dir.path(), 0o777, 0o700)] {
            mode(place, open);
            let problem = crate::load::<Config>(&path).unwrap_err().0.remove(0);
            assert!(problem.message.contains("everybody may write it"), "{problem}");
            let remedy = format!("chmod go-w {}", place.display());
            assert_eq!(problem.remedy.as_ref(), Some(&remedy));
            // A running service keeps what it has, and says so once.
            assert!(file.changed::<Config>().unwrap().is_err());
            assert!(file.changed::<Config>().is_none());
            mode(place, closed);
            assert!(file.changed::<Config>().unwrap().is_ok());
        }
    }

    #[test]
    fn what_is_no_file_is_no_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let error = crate::load::<Config>(&path).unwrap_err().to_string();
        assert!(error.contains("it is a socket"), "{error}");
    }
}
