//! "Did you mean".

pub use canopy_api::near::nearest;
