//! Causal attention over the KV cache.

use super::kv_cache::LayerCache;
use super::kv_cache::format::KvFormat;
use super::simd::{Level, contiguous, exp, fma};
use crate::memory::{self, Part};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Causal attention with grouped queries over a cache in whatever format.
///
/// `q` is `[batch, tokens, heads, head_dim]` F32, its first token at `position`; the cache holds
/// `[batch, capacity, kv_heads, head_dim]`; `scale` multiplies the scores, `1 / sqrt(head_dim)`.
/// The result has the shape of `q`. Softmax is online (arXiv 2205.14135), so scores take memory per
/// tile, not per context.
pub fn attend(
    q: &Tensor,
    cache: &LayerCache,
    position: usize,
    scale: f32,
) -> crate::Result<Tensor> {
    Ok(q.apply_op1_no_bwd(&Attention {
        cache,
        position,
        scale,
    })?)
}

struct Attention<'a> {
    cache: &'a LayerCache,
    position: usize,
    scale: f32,
}

/// Keys handled at a time.
const KEYS: usize = 64;
/// Query tokens of one task.
const QUERIES: usize = 16;
/// Scores or output channels accumulated in registers.
const CHANNELS: usize = 32;

/// Keys or values as they are stored, read row by row.
#[derive(Clone, Copy)]
struct Rows<'a> {
    format: &'static dyn KvFormat,
    stored: &'a CpuStorage,
}

/// Sizes and strides of one call.
#[derive(Clone, Copy)]
struct Dims {
    batch: usize,
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    position: usize,
    scale: f32,
}

/// The piece of work of one thread at a time: one sequence, one KV head, up to [`QUERIES`] tokens.
struct Tile<'a> {
    dims: Dims,
    sequence: usize,
    kv_head: usize,
    first_token: usize,
    tokens: usize,
    q: &'a [f32],
    k: Rows<'a>,
    v: Rows<'a>,
}

impl Tile<'_> {
    /// Rows `[tokens, group, head_dim]` of the result.
    #[inline(always)]
    fn compute<const FMA: bool>(&self) -> Vec<f32> {
        let d = self.dims;
        let hd = d.head_dim;
        let group = d.heads / d.kv_heads;
        let rows = self.tokens * group;
        let mut out = vec![0f32; rows * hd];
        let (mut keys_t, mut values, mut state) = memory::scope(Part::Workspace, || {
            (
                vec![0f32; hd * KEYS],
                vec![0f32; KEYS * hd],
                vec![(f32::NEG_INFINITY, 0f32); rows],
            )
        });
        let mut row_f32 = memory::scope(Part::Workspace, || vec![0f32; hd]);
        let end = d.position + self.first_token + self.tokens;
        for first_key in (0..end).step_by(KEYS) {
            let n = KEYS.min(end - first_key);
            for j in 0..n {
                let row = (self.sequence * d.capacity + first_key + j) * d.kv_heads + self.kv_head;
                self.k.format.load(self.k.stored, row, &mut row_f32);
                for (c, x) in row_f32.iter().enumerate() {
                    keys_t[c * KEYS + j] = *x;
                }
                let to = &mut values[j * hd..(j + 1) * hd];
                self.v.format.load(self.v.stored, row, to);
            }
            for r in 0..rows {
                let (token, member) = (self.first_token + r / group, r % group);
                // A query sees itself and what stands before it.
                let visible = (d.position + token + 1).saturating_sub(first_key).min(n);
                if visible == 0 {
                    continue;
                }
                let head = self.kv_head * group + member;
                let q = &self.q[((self.sequence * d.tokens + token) * d.heads + head) * hd..][..hd];
                let mut scores = [0f32; KEYS];
                for (b, scores) in scores.chunks_exact_mut(CHANNELS).enumerate() {
                    // A local sum stays in registers; `scores` itself would not.
                    let mut acc = [0f32; CHANNELS];
                    for (q, keys) in q.iter().zip(keys_t.chunks_exact(KEYS)) {
                        let q = q * d.scale;
                        let keys: &[f32; CHANNELS] = keys[b * CHANNELS..(b + 1) * CHANNELS]
                            .try_into()
                            .expect("CHANNELS");
                        for (s, k) in acc.iter_mut().zip(keys) {
                            *s = fma::<FMA>(q, *k, *s);
                        }
                    }
                    scores.copy_from_slice(&acc);
                }
                let (old_max, old_sum) = state[r];
                scores[visible..].fill(f32::NEG_INFINITY);
                let max = reduce(&scores, |a, b| if a > b { a } else { b });
                let max = if max > old_max { max } else { old_max };
                for s in &mut scores {
                    *s = exp::<FMA>(*s - max);
                }
                scores[visible..].fill(0.0);
                let keep = if old_sum == 0.0 {
                    0.0
                } else {
                    exp::<FMA>(old_max - max)
                };
                let sum = reduce(&scores, |a, b| a + b);
                state[r] = (max, old_sum * keep + sum);
                let out = &mut out[r * hd..(r + 1) * hd];
                let mut c = 0;
                while c + CHANNELS <= hd {
                    let mut acc = [0f32; CHANNELS];
                    for (a, o) in acc.iter_mut().zip(&out[c..c + CHANNELS]) {
                        *a = o * keep;
                    }
                    for (j, p) in scores[..visible].iter().enumerate() {
                        let v: &[f32; CHANNELS] = values[j * hd + c..j * hd + c + CHANNELS]
                            .try_into()
                            .expect("CHANNELS");
                        for (a, v) in acc.iter_mut().zip(v) {
                            *a = fma::<FMA>(*p, *v, *a);
                        }
                    }
                    out[c..c + CHANNELS].copy_from_slice(&acc);
                    c += CHANNELS;
                }
                for c in c..hd {
                    let mut acc = out[c] * keep;
                    for (j, p) in scores[..visible].iter().enumerate() {
                        acc = fma::<FMA>(*p, values[j * hd + c], acc);
                    }
                    out[c] = acc;
                }
            }
        }
        for (row, (_, sum)) in out.chunks_exact_mut(hd).zip(&state) {
            let inverse = 1.0 / sum;
            row.iter_mut().for_each(|x| *x *= inverse);
        }
        out
    }
}

impl Attention<'_> {
    fn run(&self, level: Level, dims: Dims, q: &[f32], k: Rows, v: Rows) -> Vec<f32> {
        let Dims {
            batch,
            tokens,
            heads,
            kv_heads,
            head_dim,
            ..
        } = dims;
        let group_width = heads / kv_heads * head_dim;
        let token_tiles = tokens.div_ceil(QUERIES);
        let tile_of = |task: usize| {
            let first_token = task % token_tiles * QUERIES;
            Tile {
                dims,
                sequence: task / token_tiles / kv_heads,
                kv_head: task / token_tiles % kv_heads,
                first_token,
                tokens: QUERIES.min(tokens - first_token),
                q,
                k,
                v,
            }
        };
        let tasks = batch * kv_heads * token_tiles;
        let results: Vec<Vec<f32>> = (0..tasks)
            .into_par_iter()
            .map(|task| memory::scope(Part::Activations, || level.attention_tile(&tile_of(task))))
            .collect();
        let mut out = vec![0f32; q.len()];
        for (task, rows) in results.iter().enumerate() {
            let tile = tile_of(task);
            for (t, row) in rows.chunks_exact(group_width).enumerate() {
                let at = (tile.sequence * tokens + tile.first_token + t) * heads * head_dim
                    + tile.kv_head * group_width;
                out[at..at + group_width].copy_from_slice(row);
            }
        }
        out
    }
}

impl CustomOp1 for Attention<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, q: &CpuStorage, q_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (k, v) = (&self.cache.k, &self.cache.v);
        let (batch, tokens, heads, head_dim) = q_layout.shape().dims4()?;
        let (k_batch, capacity, kv_heads, k_dim) = k.codes.dims4()?;
        if (k_batch, k_dim) != (batch, head_dim)
            || k.codes.dims() != v.codes.dims()
            || kv_heads == 0
            || heads % kv_heads != 0
            || self.position + tokens > capacity
        {
            bail!(
                "attention: q {:?} at {} does not fit k {:?}, v {:?}",
                q_layout.shape(),
                self.position,
                k.codes.shape(),
                v.codes.shape()
            );
        }
        let dims = Dims {
            batch,
            tokens,
            heads,
            kv_heads,
            head_dim,
            capacity,
            position: self.position,
            scale: self.scale,
        };
        let level = Level::current()?;
        let q = contiguous::<f32>(q, q_layout)?;
        let out = k.with_rows(|keys| {
            v.with_rows(|values| {
                let rows = |format, stored| Rows { format, stored };
                Ok(self.run(level, dims, q, rows(k.format, keys), rows(v.format, values)))
            })
        })?;
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }
}

/// Folds pairwise, in an order that vectorizes and does not depend on the instruction set.
#[inline(always)]
fn reduce(values: &[f32; KEYS], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut v = *values;
    let mut n = KEYS / 2;
    while n > 0 {
        for i in 0..n {
            v[i] = f(v[i], v[i + n]);
        }
        n /= 2;
    }
    v[0]
}

impl Level {
    fn attention_tile(self, tile: &Tile) -> Vec<f32> {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2(tile: &Tile) -> Vec<f32> {
                tile.compute::<true>()
            }
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            fn avx512(tile: &Tile) -> Vec<f32> {
                tile.compute::<true>()
            }
            match self {
                // SAFETY: `detect` found the features on this CPU.
                Level::Avx512 => return unsafe { avx512(tile) },
                // SAFETY: as above.
                Level::Avx2 => return unsafe { avx2(tile) },
                Level::Portable => {}
            }
        }
        tile.compute::<false>()
    }
}

#[cfg(test)]
mod tests {
    use super::super::kv_cache::format::Stored;
    use super::super::kv_cache::{KV_FORMATS, KvPrecision};
    use super::super::simd::tests::on_every_path;
    use super::*;
    use crate::packed::cpu;
    use candle_core::{DType, Device, Tensor};

    fn cache(format: &'static dyn KvFormat, k: &Tensor, v: &Tensor) -> LayerCache {
        LayerCache {
            k: Stored::new(format, k.clone()),
            v: Stored::new(format, v.clone()),
        }
    }

    /// Attention as its definition says, in f64.
    fn reference(q: &Tensor, k: &Tensor, v: &Tensor, position: usize, scale: f64) -> Vec<f64> {
        let (batch, tokens, heads, hd) = q.dims4().unwrap();
        let (_, capacity, kv_heads, _) = k.dims4().unwrap();
        let values = |t: &Tensor| -> Vec<f32> {
            t.to_dtype(DType::F32)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1()
                .unwrap()
        };
        let (q, k, v) = (values(q), values(k), values(v));
        let mut out = vec![];
        for b in 0..batch {
            for t in 0..tokens {
                for h in 0..heads {
                    let g = h / (heads / kv_heads);
                    let at_q = ((b * tokens + t) * heads + h) * hd;
                    let at_k = |j: usize| ((b * capacity + j) * kv_heads + g) * hd;
                    let n = position + t + 1;
                    let scores: Vec<f64> = (0..n)
                        .map(|j| {
                            (0..hd)
                                .map(|c| f64::from(q[at_q + c]) * f64::from(k[at_k(j) + c]))
                                .sum::<f64>()
                                * scale
                        })
                        .collect();
                    let max = scores.iter().copied().fold(f64::MIN, f64::max);
                    let p: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                    let sum: f64 = p.iter().sum();
                    out.extend((0..hd).map(|c| {
                        (0..n)
                            .map(|j| p[j] / sum * f64::from(v[at_k(j) + c]))
                            .sum::<f64>()
                    }));
                }
            }
        }
        out
    }

    #[test]
    fn attention_equals_its_definition() {
        let device = Device::Cpu;
        for (path, (batch, tokens, position, heads, kv_heads, hd)) in on_every_path([
            (1, 1, 0, 2, 1, 8),
            (1, 1, 130, 6, 3, 64),
            (2, 37, 0, 4, 2, 32),
            (2, 37, 91, 4, 4, 40),
            (1, 70, 64, 3, 1, 100),
        ]) {
            cpu::force(Some(path)).unwrap();
            for format in KV_FORMATS {
                let capacity = position + tokens + 5;
                let q = Tensor::randn(0f32, 1., (batch, tokens, heads, hd), &device).unwrap();
                let kv =
                    || Tensor::randn(0f32, 1., (batch, capacity, kv_heads, hd), &device).unwrap();
                let (k, v) = (kv(), kv());
                let scale = 1.0 / (hd as f32).sqrt();
                let [k, v] = [k, v].map(|rows| format.store(&rows).unwrap());
                let cache = cache(*format, &k, &v);
                let y: Vec<f32> = attend(&q, &cache, position, scale)
                    .unwrap()
                    .flatten_all()
                    .unwrap()
                    .to_vec1()
                    .unwrap();
                let exact = reference(&q, &k, &v, position, f64::from(scale));
                for (a, b) in y.iter().zip(&exact) {
                    assert!((f64::from(*a) - b).abs() < 2e-6, "{a} {b}");
                }
            }
        }
    }

    #[test]
    fn attention_refuses_what_does_not_fit() {
        let zeros = |dims: (usize, usize, usize, usize)| {
            Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap()
        };
        let format = KvPrecision::parse("fp32").unwrap().keys;
        let q = zeros((1, 2, 4, 8));
        for k in [(1, 8, 2, 8), (1, 20, 3, 8), (2, 20, 2, 8), (1, 20, 2, 16)] {
            assert!(attend(&q, &cache(format, &zeros(k), &zeros(k)), 7, 1.0).is_err());
        }
        // What is stored is read from its start, as its format says.
        let whole = zeros((1, 20, 2, 8));
        let attends = |k: &Tensor| attend(&q, &cache(format, k, &whole), 7, 1.0).is_ok();
        assert!(attends(&whole));
        let view = zeros((1, 40, 2, 8)).narrow(1, 20, 20).unwrap();
        assert!(!attends(&view));
        assert!(!attends(&whole.to_dtype(DType::F16).unwrap()));
    }
}
