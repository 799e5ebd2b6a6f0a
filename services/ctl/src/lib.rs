//! The command line: what a person types, put to the same bus API as everyone else's.
//!
//! **Owns:** the grammar, contexts, how answers and errors look, exit codes, and the making of
//! packages and directory repositories. **Must not know:** how services do what they are asked.
//!
//! Answers go to standard output, everything else (progress, remarks, errors) to standard error.
//! Every error says what, where and what to do; every kind has its exit code
//! ([`failure::Exit`], [`cli::EXIT_CODES`]).
//!
//! ```
//! let page = canopy_ctl::reference::cli_markdown();
//! assert!(page.contains("## `canopy apply`"));
//! ```

pub mod cli;
pub mod commands;
pub mod complete;
pub mod context;
pub mod failure;
pub mod files;
pub mod grant;
pub mod input;
pub mod interrupt;
pub mod options;
pub mod output;
pub mod progress;
pub mod reference;
pub mod remote;
pub mod seen;
pub mod view;
pub mod watch;
pub mod written;
