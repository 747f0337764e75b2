//! The one error type. Every message says what happened, where, and what to do next; only
//! `cli` prints it.

use std::path::PathBuf;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in words for the person who typed the command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A wrong argument or an impossible configuration (exit code 2).
    #[error("{what}\n  {next}")]
    Usage { what: String, next: String },
    /// A file that cannot be read or written.
    #[error("{}: {source}\n  {next}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
        next: String,
    },
    /// A file whose content is damaged, hostile or not what its name says.
    #[error("{}: {what}\n  {next}", path.display())]
    File {
        path: PathBuf,
        what: String,
        next: String,
    },
    /// A tensor that is missing, or has another shape or dtype than the model needs.
    #[error("{0}")]
    Tensor(Box<TensorFault>),
    /// Something real that quantbench does not do (status `unsupported`).
    #[error("unsupported: {what}\n  {next}")]
    Unsupported { what: String, next: String },
    /// A quantization method that could not finish.
    #[error("quantizing with {method}: {what}\n  {next}")]
    Quantize {
        method: String,
        what: String,
        next: String,
    },
    /// A device that has too little memory left (status `oom`).
    #[error("{0}\n  use a smaller model, batch or context, or a device with more memory")]
    OutOfMemory(Shortage),
    /// A device that failed at its work, or was asked for what it never does.
    #[error("{what}\n  {next}")]
    Device { what: String, next: String },
    /// A mistake of quantbench itself, whatever it was given (status `error`).
    #[error("a defect of quantbench: {what}\n  please report it, with the command that shows it")]
    Defect { what: String },
    /// A tensor operation that failed: a defect of ours, not of the input.
    #[error("tensor operation: {0}")]
    Candle(#[from] candle_core::Error),
}

/// What there was no memory for.
#[derive(Debug, thiserror::Error)]
pub enum Shortage {
    /// A buffer of ours.
    #[error(
        "out of device memory: {missing_bytes} bytes are missing for a request of {requested_bytes} bytes, {free_bytes} are free"
    )]
    Buffer {
        requested_bytes: u64,
        free_bytes: u64,
        missing_bytes: u64,
    },
    /// Something that the driver or a library takes by itself, on the device or pinned on the
    /// host, without saying how much.
    #[error("out of memory: {0}")]
    Unstated(String),
}

/// What a tensor should have been. Boxed in [`Error`], which travels through every `Result`.
#[derive(Debug, thiserror::Error)]
#[error("{}: tensor `{tensor}`: expected {expected}, found {found}\n  {next}", path.display())]
pub struct TensorFault {
    pub path: PathBuf,
    pub tensor: String,
    pub expected: String,
    pub found: String,
    pub next: String,
}

impl From<TensorFault> for Error {
    fn from(fault: TensorFault) -> Self {
        Error::Tensor(Box::new(fault))
    }
}

impl Error {
    pub fn usage(what: impl Into<String>, next: impl Into<String>) -> Self {
        Error::Usage {
            what: what.into(),
            next: next.into(),
        }
    }

    pub fn io(path: impl Into<PathBuf>, source: std::io::Error, next: impl Into<String>) -> Self {
        Error::Io {
            path: path.into(),
            source,
            next: next.into(),
        }
    }

    pub fn file(
        path: impl Into<PathBuf>,
        what: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Error::File {
            path: path.into(),
            what: what.into(),
            next: next.into(),
        }
    }

    pub fn unsupported(what: impl Into<String>, next: impl Into<String>) -> Self {
        Error::Unsupported {
            what: what.into(),
            next: next.into(),
        }
    }

    pub fn device(what: impl Into<String>, next: impl Into<String>) -> Self {
        Error::Device {
            what: what.into(),
            next: next.into(),
        }
    }

    pub fn defect(what: impl Into<String>) -> Self {
        Error::Defect { what: what.into() }
    }

    /// Memory of unknown size that could not be had; `what` says for what.
    pub fn out_of_memory(what: impl Into<String>) -> Self {
        Error::OutOfMemory(Shortage::Unstated(what.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_memory_is_a_number_only_where_it_is_known() {
        let buffer = Error::OutOfMemory(Shortage::Buffer {
            requested_bytes: 30,
            free_bytes: 20,
            missing_bytes: 10,
        });
        assert!(buffer.to_string().contains("10 bytes are missing"));
        let unstated = Error::out_of_memory("the device: recording a graph").to_string();
        assert_eq!(
            unstated.lines().next(),
            Some("out of memory: the device: recording a graph")
        );
        assert!(!unstated.contains(|c: char| c.is_ascii_digit()));
    }
}
