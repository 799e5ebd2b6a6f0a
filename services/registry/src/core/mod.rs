//! Decisions, without files or clocks.

pub mod choose;
pub mod route;
pub mod search;
