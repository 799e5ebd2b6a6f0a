//! Decisions without effects: values in, values out. Nothing here reads a clock, a file, the bus
//! or the kernel.

pub mod admission;
pub mod attached;
pub mod build;
pub mod downgrade;
pub mod expand;
pub mod group;
pub mod handover;
pub mod map_settings;
pub mod plan;
pub mod reconcile;
pub mod resolve;
pub mod sharing;
pub mod state;
pub mod totals;
pub mod trust;
pub mod variant;
