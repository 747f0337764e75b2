//! Exit codes that commands share.

/// All cells fine.
pub const EXIT_OK: i32 = 0;
/// Wrong arguments or configuration.
pub const EXIT_USAGE: i32 = 2;
/// Some cell has no result; the report was written all the same.
pub const EXIT_CELL_FAILED: i32 = 3;
