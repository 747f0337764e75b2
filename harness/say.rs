//! Words for people, on standard output and standard error.
//!
//! Whether anyone still reads them must not decide about a run: `println!` ends the program where
//! a pipe was closed or a disk is full, with finished work behind it.

use std::fmt::Arguments;
use std::io::Write;

/// Prints to standard output.
pub fn out(words: Arguments) {
    let _ = std::io::stdout().write_fmt(words);
}

/// Prints to standard error.
pub fn aside(words: Arguments) {
    let _ = std::io::stderr().write_fmt(words);
}
