//! Decisions, without files or clocks.

pub mod choose;
pub mod publication;
pub mod route;
pub mod search;
