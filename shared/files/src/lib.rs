//! Files of this machine that other people may have put there.
//!
//! **Owns:** reading without being kept waiting or filled up by what lies under a name, and finding out
//! who else may replace a file.
//!
//! **Must not know:** what a file means.
//!
//! ```
//! let dir = tempfile::tempdir().unwrap();
//! let path = dir.path().join("index");
//! std::fs::write(&path, "text").unwrap();
//! assert_eq!(canopy_files::read_text(&path, 1024).unwrap(), "text");
//! assert!(canopy_files::read(&path, 3).is_err(), "it is longer than that");
//! assert!(canopy_files::read(dir.path(), 1024).is_err(), "a directory is no file");
//! ```

mod protected;
mod regular;
mod writable;

pub use protected::{Unprotected, accept_any_owner, accept_owner, check_protected};
pub use regular::{create, open, open_lock, read, read_text, read_to_limit};
pub use writable::check_writable_directory;
