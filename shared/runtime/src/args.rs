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
usage: PROGRAM --config FILE [--check]

  --config FILE  the configuration, JSON or YAML by extension
  --check        read and check the configuration, then end
  --schema       print the JSON Schema of the configuration
  --metrics      print the metrics the service can expose, as JSON
  --version      print the version
  --help         print this
";

/// Reads the arguments that follow the program's name.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    let mut arguments = arguments.into_iter();
    let (mut config, mut check) = (None, false);
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        match text.as_ref() {
            "--version" | "-V" => return Ok(Command::Version),
            "--help" | "-h" => return Ok(Command::Help),
            "--schema" => return Ok(Command::Schema),
            "--metrics" => return Ok(Command::Metrics),
            "--check" => check = true,
            "--config" | "-c" => {
                let file = arguments.next().ok_or("--config needs a file")?;
                config = Some(PathBuf::from(file));
            }
            other => match other.strip_prefix("--config=") {
                Some(file) => config = Some(PathBuf::from(file)),
                None => return Err(format!("unknown argument \"{other}\"")),
            },
        }
    }
    let config = config.ok_or("--config FILE is missing")?;
    Ok(if check { Command::Check(config) } else { Command::Run(config) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Command, String> {
        parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn arguments() {
        assert_eq!(parsed(&["--config", "a.json"]), Ok(Command::Run("a.json".into())));
        assert_eq!(parsed(&["--check", "--config=a.json"]), Ok(Command::Check("a.json".into())));
        assert_eq!(parsed(&["--version"]), Ok(Command::Version));
        assert!(parsed(&[]).unwrap_err().contains("--config FILE is missing"));
        assert!(parsed(&["--config"]).unwrap_err().contains("needs a file"));
        assert!(parsed(&["--conf"]).unwrap_err().contains("--conf"));
    }
}
