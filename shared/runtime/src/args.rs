//! The command line of a service: few options, the same for all.

use std::{ffi::OsString, path::PathBuf};

/// What the process was asked to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Run with this configuration.
    Run(PathBuf),
    /// Read and check this configuration.
    Check(PathBuf),
    /// Print the version.
    Version,
    /// Print the JSON Schema of the configuration.
    Schema,
    /// Print the metrics the service can expose, as JSON.
    Metrics,
    /// Print the usage.
    Help,
}

/// How to call the program.
pub(crate) const USAGE: &str = "\
usage: PROGRAM --config FILE [--check] [--config-owner USER]

  --config FILE        the configuration, JSON or YAML by extension: nobody but root and the user
                       this program runs as may be able to write it
  --config-owner USER  a user (name or number) besides these to whom the configuration may belong
  --check              check the configuration and look at the files it names, then end;
                       nothing is changed
  --schema             print the JSON Schema of the configuration
  --metrics            print the metrics the service can expose, as JSON
  --version            print the version
  --help               print this
";

/// Reads the arguments that follow the program's name: what to do, and who else may own the configuration.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<(Command, Option<String>), String> {
    let mut arguments = arguments.into_iter();
    let (mut config, mut check, mut owner) = (None, false, None);
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        match text.as_ref() {
            "--version" | "-V" => return Ok((Command::Version, None)),
            "--help" | "-h" => return Ok((Command::Help, None)),
            "--schema" => return Ok((Command::Schema, None)),
            "--metrics" => return Ok((Command::Metrics, None)),
            "--check" => check = true,
            "--config" | "-c" => {
                let file = arguments.next().ok_or("--config needs a file")?;
                config = Some(PathBuf::from(file));
            }
            "--config-owner" => {
                let user = arguments.next().ok_or("--config-owner needs a user")?;
                owner = Some(user.to_string_lossy().into_owned());
            }
            other => {
                if let Some(file) = other.strip_prefix("--config=") {
                    config = Some(PathBuf::from(file));
                } else if let Some(user) = other.strip_prefix("--config-owner=") {
                    owner = Some(user.to_owned());
                } else {
                    return Err(format!("unknown argument \"{other}\""));
                }
            }
        }
    }
    let config = config.ok_or("--config FILE is missing")?;
    Ok((if check { Command::Check(config) } else { Command::Run(config) }, owner))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<(Command, Option<String>), String> {
        parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn arguments() {
        assert_eq!(parsed(&["--config", "a.json"]), Ok((Command::Run("a.json".into()), None)));
        let check = Command::Check("a.json".into());
        assert_eq!(parsed(&["--check", "--config=a.json"]), Ok((check, None)));
        assert_eq!(parsed(&["--version"]), Ok((Command::Version, None)));
        let run = || Command::Run("a.json".into());
        for owner in [&["--config-owner", "alice"][..], &["--config-owner=alice"]] {
            let all = [&["-c", "a.json"], owner].concat();
            assert_eq!(parsed(&all), Ok((run(), Some("alice".to_owned()))));
        }
        assert!(parsed(&["-c", "a.json", "--config-owner"]).unwrap_err().contains("needs a user"));
        assert!(parsed(&[]).unwrap_err().contains("--config FILE is missing"));
        assert!(parsed(&["--config"]).unwrap_err().contains("needs a file"));
        assert!(parsed(&["--conf"]).unwrap_err().contains("--conf"));
    }
}
