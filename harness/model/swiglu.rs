//! The gate of the feed-forward layer.

use super::simd::{Level, contiguous, exp};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, bail};
use rayon::prelude::*;

/// `silu(gate) · up`, elementwise over two contiguous F32 tensors of one shape.
pub struct SwiGlu;

/// Elements of one task.
const SWIGLU_CHUNK: usize = 16 * 1024;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if gate_layout.shape() != up_layout.shape() {
            bail!(
                "swiglu: gate {:?} and up {:?} differ in shape",
                gate_layout.shape(),
                up_layout.shape()
            );
        }
        let gate = contiguous::<f32>(gate, gate_layout)?;
        let up = contiguous::<f32>(up, up_layout)?;
        let mut out = vec![0f32; gate.len()];
        let level = Level::current()?;
        let chunk = |((out, gate), up): ((&mut [f32], &[f32]), &[f32])| {
            level.swiglu(gate, up, out);
        };
        if out.len() <= SWIGLU_CHUNK {
            chunk(((&mut out, gate), up));
        } else {
            out.par_chunks_mut(SWIGLU_CHUNK)
                .zip(gate.par_chunks(SWIGLU_CHUNK))
                .zip(up.par_chunks(SWIGLU_CHUNK))
                .for_each(chunk);
        }
        Ok((CpuStorage::F32(out), gate_layout.shape().clone()))
    }
}

#[inline(always)]
fn swiglu<const FMA: bool>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((o, g), u) in out.iter_mut().zip(gate).zip(up) {
        *o = g / (1.0 + exp::<FMA>(-g)) * u;
    }
}

impl Level {
    fn swiglu(self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2,fma")]
            fn avx2(gate: &[f32], up: &[f32], out: &mut [f32]) {
                swiglu::<true>(gate, up, out);
            }
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512(gate: &[f32], up: &[f32], out: &mut [f32]) {
                swiglu::<true>(gate, up, out);
            }
            match self {
                // SAFETY: `detect` found the features on this CPU.
                Level::Avx512 => return unsafe { avx512(gate, up, out) },
                // SAFETY: as above.
                Level::Avx2 => return unsafe { avx2(gate, up, out) },
                Level::Portable => {}
            }
        }
        swiglu::<false>(gate, up, out);
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::tests::on_every_path;
    use super::*;
    use crate::packed::cpu;
    use candle_core::{Device, Tensor};

    #[test]
    fn swiglu_equals_its_definition() {
        for (path, ()) in on_every_path([()]) {
            cpu::force(Some(path)).unwrap();
            check_swiglu();
        }
    }

    fn check_swiglu() {
        let gate = Tensor::randn(0f32, 4., (3, 7001), &Device::Cpu).unwrap();
        let up = Tensor::randn(0f32, 1., (3, 7001), &Device::Cpu).unwrap();
        let y = gate.apply_op2_no_bwd(&up, &SwiGlu).unwrap();
        let exact = (gate.silu().unwrap() * up).unwrap();
        let error = (y - exact).unwrap().abs().unwrap().flatten_all().unwrap();
        assert!(error.max(0).unwrap().to_scalar::<f32>().unwrap() < 1e-5);
    }
}
