//! The vocabulary of Canopy and everything that crosses a process boundary.
//!
//! **Owns:** names and their rules, the documents a person writes, the endpoint table, subjects,
//! requests and replies, bus permissions, the error every service answers with.
//!
//! **Must not know:** sockets, files, clocks, the kernel, any service's insides. Everything here is
//! a value or a pure function of values.
//!
//! ```
//! use canopy_api::{endpoint::{self, Endpoint}, name::{HostId, Principal}, subject};
//!
//! let alice: Principal = "u-alice".parse()?;
//! let web1: HostId = "web1".parse()?;
//! let subject = subject::request(endpoint::loader::Apply::SPEC, &subject::Target::Host(web1), &alice);
//! assert_eq!(subject, "canopy.v1.rpc.loader.write.apply.web1.u-alice");
//! # Ok::<(), canopy_api::name::NameError>(())
//! ```

pub mod authority;
pub mod blob;
pub mod desired;
pub mod document;
pub mod endpoint;
pub mod error;
pub mod known;
mod map_kind;
pub mod name;
pub mod nats;
pub mod near;
pub mod netns;
pub mod pattern;
pub mod permission;
pub mod prefix;
pub mod problem;
pub mod program_section;
mod prose;
pub mod reference;
pub mod san;
pub mod scope;
pub mod selector;
pub mod subject;
pub mod text;
pub mod time;
pub mod verdict;
pub mod wire;

pub use blob::Blob;
pub use desired::{
    ChainKey, ChainSpec, DesiredState, Hook, PackageRef, ProgramSpec, TcMode, XdpMode,
};
pub use error::{ApiError, Code};
pub use map_kind::map_kind;
pub use name::{Digest, HostId, InterfaceName, PackageName, Principal, ProgramName};
pub use netns::Netns;
pub use problem::{Problem, Problems};
pub use selector::{InterfaceSelector, Target};
pub use verdict::{Verdict, VerdictSet};
