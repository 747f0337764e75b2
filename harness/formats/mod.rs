//! Files that hold packed models, one module per ecosystem format.

pub mod native;
