//! The bus: requests and replies, events, and the only place that knows the NATS client library.
//!
//! **Owns:** the connection and its recovery, encodings, deadlines, idempotency, trace context,
//! private reply subjects, the order of an orderly end.
//!
//! **Must not know:** what any request means, the kernel, configuration files, signals.
//!
//! A caller:
//!
//! ```no_run
//! use canopy_api::{endpoint::registry, subject::Target, wire::ListRequest};
//! use canopy_bus::{Bus, BusConfig};
//! use std::time::Duration;
//!
//! # async fn example(config: BusConfig) -> Result<(), Box<dyn std::error::Error>> {
//! let bus = Bus::connect(&config, "u-alice".parse()?).await?;
//! bus.wait_ready(Duration::from_secs(5)).await?;
//! let reply = bus.call::<registry::List>(&Target::Central, &ListRequest::default()).await?;
//! # drop(reply);
//! # Ok(())
//! # }
//! ```
//!
//! A service:
//!
//! ```no_run
//! use canopy_api::{endpoint::{Service, registry}, wire::ListReply};
//! use canopy_bus::{Bus, Server};
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn example(bus: Bus) -> Result<(), canopy_bus::BusError> {
//! Server::new(bus, Service::Registry, None)
//!     .handle::<registry::List, _, _>(|_caller, _request| async {
//!         Ok(ListReply::default())
//!     })
//!     .serve(CancellationToken::new())
//!     .await
//! # }
//! ```

mod blocking;
mod busy;
mod call;
pub mod callout;
mod codec;
mod config;
mod connection;
pub mod data;
mod event;
mod field_question;
mod for_log;
pub mod forward;
mod header;
mod idempotency;
mod in_flight;
mod inbox;
mod lanes;
mod limits;
mod micro;
mod peer;
mod refusal;
mod refused_requests;
mod repeat;
mod retry;
mod server;
mod slots;
mod spool;
pub mod system;
mod tls;
mod trace;
mod unreachable;
mod work;

pub use blocking::{Panic, blocking};
pub use busy::is_busy;
pub use call::{CallError, CallOptions, Gather};
pub use codec::Encoding;
pub use config::{BusConfig, BusError};
pub use connection::{Bus, Clock, Link, Statistics};
pub use event::{Event, Events};
pub use for_log::{LogGate, for_log};
pub use limits::Limits;
pub use refusal::Refusal;
pub use server::{Caller, Notes, Server};
pub use spool::Spool;
pub use unreachable::UnreachableCause;
