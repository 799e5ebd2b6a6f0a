//! Where a repository is, as its URL says it.

use std::path::PathBuf;
use url::{Host, Url};

/// A repository's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A directory of this machine.
    Directory(PathBuf),
    /// A web server that serves the files; nothing is written there.
    Web(Url),
    /// A bucket of S3 or of a store that speaks its protocol.
    S3 {
        /// Its name.
        bucket: String,
        /// The folder in it; empty for the whole bucket.
        prefix: String,
    },
    /// A container of Azure's blob storage.
    Azure {
        /// Its name.
        container: String,
        /// The folder in it; empty for the whole container.
        prefix: String,
    },
}

/// What is wrong with a URL, and how to write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLocation {
    /// What is wrong.
    pub message: String,
    /// What to write.
    pub remedy: &'static str,
}

const EXAMPLES: &str = "write file:///srv/canopy/packages, https://packages.example.org/canopy, \
                        s3://bucket/folder or az://container/folder";

impl Location {
    /// Whether it is a directory of this machine.
    pub fn is_directory(&self) -> bool {
        matches!(self, Self::Directory(_))
    }

    /// Reads a URL. The path of a `file:` URL is taken as it stands; no other URL may carry a user,
    /// a password, a query or a fragment: credentials never stand in a configuration.
    pub fn parse(text: &str) -> Result<Self, BadLocation> {
        let bad = |message: String, remedy| Err(BadLocation { message, remedy });
        if let Some(path) = text.strip_prefix("file://") {
            return if path.starts_with('/') {
                Ok(Self::Directory(PathBuf::from(path)))
            } else {
                bad(
                    format!("\"{text}\" is not absolute"),
                    "write file:// and the path from /: file:///srv/canopy/packages",
                )
            };
        }
        let Ok(url) = Url::parse(text) else {
            return bad(format!("\"{text}\" is not a URL"), EXAMPLES);
        };
        if !url.username().is_empty() || url.password().is_some() {
            // The text is not repeated: it holds a secret.
            return bad(
                "a URL with a user or a password in it".to_owned(),
                "take them out; credentials are named by `store.credentials`",
            );
        }
        if url.query().is_some() || url.fragment().is_some() {
            return bad(format!("\"{text}\" has a query or a fragment"), EXAMPLES);
        }
        match (url.scheme(), url.host()) {
            ("http" | "https", Some(_)) => Ok(Self::Web(url)),
            (scheme @ ("s3" | "az"), Some(Host::Domain(name))) if url.port().is_none() => {
                let (name, prefix) = (name.to_owned(), url.path().trim_matches('/').to_owned());
                Ok(if scheme == "s3" {
                    Self::S3 { bucket: name, prefix }
                } else {
                    Self::Azure { container: name, prefix }
                })
            }
            ("http" | "https" | "s3" | "az" | "file", _) => {
                bad(format!("\"{text}\" does not say where"), EXAMPLES)
            }
            _ => {
                bad(format!("\"{text}\" is not a kind of repository that is served yet"), EXAMPLES)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let directory = Location::Directory("/srv/a b".into());
        assert_eq!(Location::parse("file:///srv/a b"), Ok(directory));
        let s3 = |prefix: &str| Location::S3 { bucket: "b".into(), prefix: prefix.into() };
        assert_eq!(Location::parse("s3://b"), Ok(s3("")));
        assert_eq!(Location::parse("s3://b/x/y/"), Ok(s3("x/y")));
        let azure = Location::Azure { container: "c".into(), prefix: "x".into() };
        assert_eq!(Location::parse("az://c/x"), Ok(azure));
        assert!(matches!(Location::parse("https://h:8443/x"), Ok(Location::Web(_))));
        for (text, said) in [
            ("file://srv", "not absolute"),
            ("/srv", "not a URL"),
            ("s3:///x", "does not say where"),
            ("s3://b:1/x", "does not say where"),
            ("az:///x", "does not say where"),
            ("ftp://h/x", "not a kind"),
            ("gs://b/x", "not a kind"),
            ("https://h/x?y", "query"),
        ] {
            let error = Location::parse(text).unwrap_err();
            assert!(error.message.contains(said), "{text}: {}", error.message);
        }
        let secret = Location::parse("https://u:hunter2@h/x").unwrap_err();
        assert!(!secret.message.contains("hunter2"), "{}", secret.message);
    }
}
