//! The device's stream-ordered memory pool, and the memory of graphs beside it.
//!
//! CUDA driver API, "Stream Ordered Memory Allocator": `CUmemPool_attribute`; "Graph Management":
//! `CUgraphMem_attribute`. The latter counts what nodes of graphs allocate, and ours may have no
//! such node: it shows that they have none. What the driver itself takes for a recorded graph is in
//! neither, only in what the device has less of. A high-water mark falls back to what is in use when
//! zero is written.

use crate::device::driver::PoolUsage;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError, result, sys};
use sys::CUgraphMem_attribute_enum::CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH as GRAPH_HIGH;
use sys::CUmemPool_attribute_enum::*;

/// The pool returns nothing to the device on its own: a later phase finds what it needs, and no
/// measurement pays for getting it again. [`give_back`] does, where memory runs out.
pub fn keep_memory(context: &CudaContext) -> Result<(), DriverError> {
    write(pool(context)?, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)
}

pub fn usage(context: &CudaContext, workspace_bytes: u64) -> Result<PoolUsage, DriverError> {
    let pool = pool(context)?;
    let (free, _) = context.mem_get_info()?;
    Ok(PoolUsage {
        used_bytes: read(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?,
        used_peak_bytes: read(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH)?,
        reserved_peak_bytes: read(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH)?,
        graph_peak_bytes: graph_peak_bytes(context)?,
        library_workspace_bytes: workspace_bytes,
        device_free_bytes: Some(free as u64),
    })
}

pub fn reset_peak(context: &CudaContext) -> Result<(), DriverError> {
    let pool = pool(context)?;
    write(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0)?;
    write(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH, 0)?;
    let (device, mut zero) = (context.cu_device(), 0u64);
    // SAFETY: the attribute is of 64 bits.
    unsafe { sys::cuDeviceSetGraphMemAttribute(device, GRAPH_HIGH, (&raw mut zero).cast()) }
        .result()
}

/// Returns to the device all that is not in use.
pub fn give_back(context: &CudaContext) -> Result<(), DriverError> {
    // SAFETY: the pool is the device's own.
    unsafe { result::mem_pool::trim_to(pool(context)?, 0) }
}

/// Free on the device, or held by the pool and not in use.
pub fn free_bytes(context: &CudaContext) -> Result<u64, DriverError> {
    let pool = pool(context)?;
    let (free, _) = context.mem_get_info()?;
    let reserved = read(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
    let used = read(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
    Ok(free as u64 + reserved.saturating_sub(used))
}

/// The pool that allocations of the device come from.
fn pool(context: &CudaContext) -> Result<sys::CUmemoryPool, DriverError> {
    context.bind_to_thread()?;
    // SAFETY: the device exists.
    unsafe { result::device::get_mem_pool(context.cu_device()) }
}

fn graph_peak_bytes(context: &CudaContext) -> Result<u64, DriverError> {
    let (device, mut bytes) = (context.cu_device(), 0u64);
    // SAFETY: the attribute is of 64 bits.
    unsafe { sys::cuDeviceGetGraphMemAttribute(device, GRAPH_HIGH, (&raw mut bytes).cast()) }
        .result()?;
    Ok(bytes)
}

fn read(pool: sys::CUmemoryPool, attribute: sys::CUmemPool_attribute) -> Result<u64, DriverError> {
    let mut bytes = 0u64;
    // SAFETY: the attributes that are read here are of 64 bits.
    unsafe { result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()) }?;
    Ok(bytes)
}

fn write(
    pool: sys::CUmemoryPool,
    attribute: sys::CUmemPool_attribute,
    mut bytes: u64,
) -> Result<(), DriverError> {
    // SAFETY: as for reading.
    unsafe { result::mem_pool::set_attribute(pool, attribute, (&raw mut bytes).cast()) }
}
