//! Requests and replies. MessagePack with field names by default; JSON on request.
//!
//! Times are RFC 3339 text in UTC. Counters never go back while the host keeps its state.

mod admission;
mod audit;
mod change;
mod desired;
mod events;
pub mod hosts;
mod maps;
mod packages;
mod pages;
mod publish;
mod service;
mod state;
pub mod tokens;

pub use admission::*;
pub use audit::*;
pub use change::*;
pub use events::*;
pub use maps::*;
pub use packages::*;
pub use pages::*;
pub use publish::*;
pub use service::*;
pub use state::*;
