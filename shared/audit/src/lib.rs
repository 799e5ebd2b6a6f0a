//! The audit trail of one writer: records that follow from each other, and whether they still do.
//!
//! Each record is a line of JSON that holds the SHA-256 of the line before it. Changing, removing or
//! adding one breaks the next; what is cut off at the end is seen by whoever kept a [`Head`] from
//! before. A host's root can write a chain anew from any record on: that too is seen by comparing with
//! a head that is not on the host.
//!
//! Whoever stores copies judges each record by the last one stored ([`place`]), and signs how far the
//! copy goes ([`Checkpoint`]): verification of either, the writer's or the stored one, starts from there.
//!
//! **Owns:** what a record is, its one text, how records follow from each other, verification,
//! checkpoints.
//!
//! **Must not know:** files, clocks, the bus, what requests mean.
//!
//! ```
//! use canopy_audit::{Chain, Entry, Finding, Kind, Verifier};
//!
//! let chain = Chain::new("h-web1-loader".parse().unwrap(), "0123456789abcdef".to_owned());
//! let (first, chain) = chain.next(Entry::new(Kind::Opened, "2026-01-01T00:00:00Z"))?;
//! let (second, _) = chain.next(Entry::new(Kind::Begun, "2026-01-01T00:00:01Z"))?;
//!
//! let mut verifier = Verifier::default();
//! verifier.line(first.replace("00:00:00", "00:00:09").as_bytes());
//! verifier.line(second.as_bytes());
//! assert_eq!(verifier.end().findings, [Finding::Changed { seq: 2 }]);
//! # Ok::<(), serde_json::Error>(())
//! ```

mod chain;
mod checkpoint;
mod follow;
mod record;
mod verify;

pub use chain::{Chain, Entry};
pub use checkpoint::{Checkpoint, CheckpointError, CheckpointKey, CheckpointKeyError, PublicKey};
pub use follow::{Place, place};
pub use record::{Head, Kind, LINE_BYTES, Line, LineHash, Record};
pub use verify::{Finding, Report, Verifier};
