//! CUDA graphs: what a body launches, recorded once.

use super::fault::fault;
use super::kernels::Kernels;
use crate::device::driver::Graph;
use crate::{Error, Result};
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, CudaStream, DriverError, sys};
use std::sync::Arc;

/// A recorded graph. It holds on to the kernels' code; the memory that it works on is the caller's.
struct Recorded {
    graph: CudaGraph,
    device: String,
    _kernels: Arc<Kernels>,
}

impl Graph for Recorded {
    fn replay(&self) -> Result<()> {
        let started = self.graph.launch();
        started.map_err(|e| fault(&self.device, "starting a graph", e))
    }
}

/// Records what `body` does on `stream`.
///
/// The mode is the relaxed one: in the others the driver refuses calls that the library makes when
/// it uses an algorithm for the first time. What must not be in a graph is looked for in the graph.
pub fn record(
    device: &str,
    stream: &Arc<CudaStream>,
    kernels: &Arc<Kernels>,
    body: &mut dyn FnMut() -> Result<()>,
) -> Result<impl Graph + use<>> {
    let failed = |e| fault(device, "recording a graph", e);
    stream
        .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)
        .map_err(failed)?;
    let done = body();
    // In any case: a stream that is left recording is of no use.
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
    done?;
    let graph = graph
        .map_err(failed)?
        .ok_or_else(|| Error::defect(format!("{device}: recording a graph made none")))?;
    if let Some(kind) = forbidden(graph.cu_graph()).map_err(failed)? {
        return Err(Error::defect(format!(
            "{device}: a graph was recorded with {kind} in it"
        )));
    }
    graph.upload().map_err(failed)?;
    Ok(Recorded {
        graph,
        device: device.into(),
        _kernels: kernels.clone(),
    })
}

/// An allocation, a copy or a call of the host in a graph: decoding must need none.
fn forbidden(graph: sys::CUgraph) -> Result<Option<&'static str>, DriverError> {
    use sys::CUgraphNodeType_enum::*;
    for node in nodes(graph)? {
        let mut kind = CU_GRAPH_NODE_TYPE_EMPTY;
        // SAFETY: a node of this graph.
        unsafe { sys::cuGraphNodeGetType(node, &mut kind) }.result()?;
        match kind {
            CU_GRAPH_NODE_TYPE_MEM_ALLOC => return Ok(Some("an allocation")),
            CU_GRAPH_NODE_TYPE_MEM_FREE => return Ok(Some("the end of an allocation")),
            CU_GRAPH_NODE_TYPE_MEMCPY => return Ok(Some("a copy")),
            CU_GRAPH_NODE_TYPE_HOST => return Ok(Some("a call of the host")),
            _ => {}
        }
    }
    Ok(None)
}

fn nodes(graph: sys::CUgraph) -> Result<Vec<sys::CUgraphNode>, DriverError> {
    let mut count = 0;
    // SAFETY: the graph is alive; without a list the driver only counts.
    unsafe { sys::cuGraphGetNodes(graph, std::ptr::null_mut(), &mut count) }.result()?;
    let mut nodes = vec![std::ptr::null_mut(); count];
    // SAFETY: the list has room for all.
    unsafe { sys::cuGraphGetNodes(graph, nodes.as_mut_ptr(), &mut count) }.result()?;
    nodes.truncate(count);
    Ok(nodes)
}
