//! Copies from pageable or mapped memory to the device through two pinned buffers: while one is on
//! its way, the other is filled. Copying from pageable memory directly would have the driver do the
//! same behind our back, one piece at a time and waiting for each.

use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaEvent, CudaStream, DriverError, PinnedHostSlice, result, sys,
};
use std::sync::Arc;

const BUFFER_BYTES: usize = 16 << 20;

struct Buffer {
    host: PinnedHostSlice<u8>,
    /// Reached when the device has read the buffer.
    sent: CudaEvent,
}

pub struct Staging {
    buffers: [Buffer; 2],
    next: usize,
}

impl Staging {
    pub fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        let buffer = || {
            Ok(Buffer {
                // SAFETY: each byte is written before it is read.
                host: unsafe { context.alloc_pinned(BUFFER_BYTES) }?,
                sent: context.new_event(None)?,
            })
        };
        Ok(Staging {
            buffers: [buffer()?, buffer()?],
            next: 0,
        })
    }

    /// Copies `bytes` to the address `to`; returns when they have been read, not when they arrived.
    ///
    /// # Safety
    /// `to` has room for them.
    pub unsafe fn copy(
        &mut self,
        stream: &CudaStream,
        bytes: &[u8],
        to: sys::CUdeviceptr,
    ) -> Result<(), DriverError> {
        for (i, piece) in bytes.chunks(BUFFER_BYTES).enumerate() {
            let buffer = &mut self.buffers[self.next];
            self.next = 1 - self.next;
            buffer.sent.synchronize()?;
            buffer.host.as_mut_slice()?[..piece.len()].copy_from_slice(piece);
            let staged = &buffer.host.as_slice()?[..piece.len()];
            let to = to + (i * BUFFER_BYTES) as u64;
            // SAFETY: the buffer is not written again before `sent`.
            unsafe { result::memcpy_htod_async(to, staged, stream.cu_stream()) }?;
            buffer.sent.record(stream)?;
        }
        Ok(())
    }
}
