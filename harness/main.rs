//! The `quantbench` binary: the library's command line under the counting allocator.

use quantbench::memory::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() {
    std::process::exit(quantbench::cli::main());
}
