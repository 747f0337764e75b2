//! The model: one Llama-family decoder over packed linears, and where its weights come from.

pub mod angles;
pub mod assembly;
pub mod attention;
pub mod config;
pub mod decoder;
pub mod generate;
pub mod gpu;
pub(crate) mod hugging_face;
pub mod kernels;
pub mod kv_cache;
pub mod layout;
pub mod linear;
pub mod rope;
mod simd;
pub mod swiglu;
pub mod synthetic;
