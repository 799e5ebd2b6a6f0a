//! The engine over a kernel in memory: no root, and every fault at will.

mod accounting;
mod admission;
mod admission_model;
mod changes;
mod crashes;
mod healing;
mod items;
mod maps;
mod model;
mod netns;
mod pages;
mod profile;
mod reached;
mod samples;
mod selector_model;
mod selectors;
mod series;
mod shared_maps;
mod variants;
mod world;
