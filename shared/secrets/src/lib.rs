//! Secrets, by reference: keys and tokens stand in files of their own, never in a configuration, an
//! environment or an argument.
//!
//! **Owns:** where a secret may come from, and who else may see it there.
//!
//! **Must not know:** what a secret is for.

mod account;
mod file;
mod reference;

pub use account::{Account, inherit, is_root};
pub use file::{SecretError, read_private};
pub use reference::SecretRef;

/// A secret's text; wiped when it is dropped.
pub type Secret = zeroize::Zeroizing<String>;
