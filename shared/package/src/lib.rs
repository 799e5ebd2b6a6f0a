//! Packages: bytes in, verdict out. Manifest, archive, signatures, signed index, the layout of a
//! repository, and the binding of settings to bytes.
//!
//! **Owns:** what a package is, on disk and in a signature; why one is refused.
//!
//! **Must not know:** clocks (the caller says what time it is), files, sockets, the kernel.
//!
//! ```
//! use canopy_package::{SecretKey, TrustedKey, sign::verify_package};
//! use canopy_api::Digest;
//!
//! let key = SecretKey::generate()?;
//! let (name, version) = ("firewall".parse().unwrap(), "0.1.0".parse().unwrap());
//! let signature = key.sign_package(b"bytes", &name, &version)?;
//! let trusted = [TrustedKey::from(key.public()?)];
//! let digest = Digest::of(b"bytes");
//! verify_package(b"bytes", &signature, &trusted, 0, &name, &version, &digest)?;
//! # Ok::<(), canopy_package::PackageError>(())
//! ```

pub mod archive;
pub mod bind;
mod btf;
pub mod check;
mod check_objects;
pub mod describe;
pub mod elf;
pub mod error;
pub mod index;
mod layout;
pub mod manifest;
pub mod metric;
pub mod near;
pub mod repository;
pub mod sign;
pub mod trusted_versions;

pub use archive::{Limits, Package};
pub use bind::{Bindings, bind};
pub use error::PackageError;
pub use index::{Index, IndexEntry};
pub use manifest::Manifest;
pub use sign::{PublicKey, SecretKey, TrustedKey};
pub use trusted_versions::{IndexSource, RepositoryId, TrustedVersions};
