//! GGUF files: the container, and the model that one holds.

mod file;
mod source;

pub(crate) use file::Gguf;
pub(crate) use file::MAGIC;
pub(crate) use source::open;
