//! Statistics that measuring, comparing and rendering share: quantiles, medians, proportions and
//! the bootstrap over windows.

pub mod bootstrap;
pub mod medians;
pub mod proportion;
pub mod quantiles;
