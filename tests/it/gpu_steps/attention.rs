//! Attention over the cache, for one new token and for many, against softmax in F64.

use super::*;

/// What a cache holds.
trait Cached: Bits {
    const NAME: &'static str;
    /// Largest error of a result, in units of the largest value: results are halves, and over
    /// a cache of halves weights are halves too.
    const TOLERANCE: f64;
    fn of(value: f32) -> Self;
    fn exact(self) -> f64;
}

impl Cached for f16 {
    const NAME: &'static str = "kvf16";
    const TOLERANCE: f64 = 1e-3;
    fn of(value: f32) -> Self {
        f16::from_f32(value)
    }
    fn exact(self) -> f64 {
        self.to_f64()
    }
}

impl Cached for f32 {
    const NAME: &'static str = "kvf32";
    const TOLERANCE: f64 = 5.1e-4;
    fn of(value: f32) -> Self {
        value
    }
    fn exact(self) -> f64 {
        self.into()
    }
}

/// Sizes of one call.
#[derive(Debug, Clone, Copy)]
struct Shape {
    batch: usize,
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    position: usize,
}

impl Shape {
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Queries large enough that some keys get most of the weight.
    fn queries(&self) -> Vec<f16> {
        random_halves(
            self.batch * self.tokens * self.heads * self.head_dim,
            4.0,
            11,
        )
    }

    /// A cache whose positions behind the context hold `tail`.
    fn cache<KV: Cached>(&self, seed: u64, tail: f32) -> Vec<KV> {
        let width = self.kv_heads * self.head_dim;
        let len = self.batch * self.capacity * width;
        let context = self.position + self.tokens;
        numbers(len, seed)
            .iter()
            .enumerate()
            .map(|(i, x)| {
                KV::of(if i / width % self.capacity < context {
                    *x
                } else {
                    tail
                })
            })
            .collect()
    }

    /// The definition; `[batch, tokens, heads, head_dim]`.
    fn exact<KV: Cached>(&self, q: &[f16], k: &[KV], v: &[KV]) -> Vec<f64> {
        let hd = self.head_dim;
        let mut out = Vec::with_capacity(q.len());
        for (row, q) in q.chunks(hd).enumerate() {
            let head = row % self.heads / (self.heads / self.kv_heads);
            let token = row / self.heads % self.tokens;
            let sequence = row / self.heads / self.tokens;
            let at = |key: usize| ((sequence * self.capacity + key) * self.kv_heads + head) * hd;
            let scores: Vec<f64> = (0..=self.position + token)
                .map(|key| {
                    let products = q.iter().zip(&k[at(key)..]);
                    products.map(|(q, k)| q.to_f64() * k.exact()).sum::<f64>()
                        * f64::from(self.scale())
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let mut result = vec![0f64; hd];
            for (key, weight) in weights.iter().enumerate() {
                for (r, v) in result.iter_mut().zip(&v[at(key)..]) {
                    *r += weight / sum * v.exact();
                }
            }
            out.extend(result);
        }
        out
    }

    fn decode<KV: Cached>(
        &self,
        emulation: &Emulation,
        input: &Input<KV>,
        splits: usize,
    ) -> Vec<f16> {
        assert_eq!(self.tokens, 1);
        let (q, k, v) = (
            Guarded::from(&input.q),
            Guarded::from(&input.k),
            Guarded::from(&input.v),
        );
        let position = Guarded::from(&[self.position as u32]);
        let rows = self.batch * self.heads * splits;
        let partial = Guarded::<f32>::poisoned(rows * (self.head_dim + 2));
        let out = Guarded::<f16>::poisoned(input.q.len());
        let kernel = format!("attend_decode_{}_d{}", KV::NAME, self.head_dim);
        let grid = [splits as u32, self.kv_heads as u32, self.batch as u32];
        emulation
            .launch(
                &kernel,
                grid,
                [128, 1, 1],
                0,
                arguments![
                    q.pointer(),
                    k.pointer(),
                    v.pointer(),
                    partial.pointer(),
                    position.pointer(),
                    self.batch as i32,
                    self.heads as i32,
                    self.kv_heads as i32,
                    self.head_dim as i32,
                    self.capacity as i32,
                    splits as i32,
                    self.scale()
                ],
            )
            .unwrap();
        let grid = [self.heads as u32, self.batch as u32, 1];
        emulation
            .launch(
                "attend_combine",
                grid,
                [128, 1, 1],
                0,
                arguments![
                    partial.pointer(),
                    out.pointer(),
                    self.batch as i32,
                    self.heads as i32,
                    self.head_dim as i32,
                    splits as i32
                ],
            )
            .unwrap();
        to_vec(&out)
    }

    fn prefill<KV: Cached>(&self, emulation: &Emulation, input: &Input<KV>) -> Vec<f16> {
        let (q, k, v) = (
            Guarded::from(&input.q),
            Guarded::from(&input.k),
            Guarded::from(&input.v),
        );
        let position = Guarded::from(&[self.position as u32]);
        let out = Guarded::<f16>::poisoned(input.q.len());
        let kernel = format!("attend_prefill_{}_d{}", KV::NAME, self.head_dim);
        let tiles = self.tokens.div_ceil(64) as u32;
        let grid = [tiles, self.heads as u32, self.batch as u32];
        emulation
            .launch(
                &kernel,
                grid,
                [128, 1, 1],
                0,
                arguments![
                    q.pointer(),
                    k.pointer(),
                    v.pointer(),
                    out.pointer(),
                    position.pointer(),
                    self.batch as i32,
                    self.tokens as i32,
                    self.heads as i32,
                    self.kv_heads as i32,
                    self.head_dim as i32,
                    self.capacity as i32,
                    self.scale()
                ],
            )
            .unwrap();
        to_vec(&out)
    }

    fn check<KV: Cached>(&self, found: &[f16], input: &Input<KV>) {
        let exact = self.exact(&input.q, &input.k, &input.v);
        for (i, (found, exact)) in found.iter().zip(&exact).enumerate() {
            let error = (found.to_f64() - exact).abs();
            assert!(
                error <= KV::TOLERANCE,
                "{} {self:?} at {i}: {found}, not {exact}",
                KV::NAME
            );
        }
    }
}

struct Input<KV> {
    q: Vec<f16>,
    k: Vec<KV>,
    v: Vec<KV>,
}

impl<KV: Cached> Input<KV> {
    fn new(shape: &Shape, tail: f32) -> Self {
        Input {
            q: shape.queries(),
            k: shape.cache(12, tail),
            v: shape.cache(13, tail),
        }
    }
}

/// Head sizes that there are kernels for.
const HEAD_DIMS: [usize; 7] = [16, 32, 64, 80, 96, 128, 256];
/// `(query heads of a KV head, KV heads)`; decoding takes eight at a time.
const DECODE_GROUPS: [(usize, usize); 5] = [(1, 3), (3, 1), (4, 2), (8, 1), (11, 1)];
const PREFILL_GROUPS: [(usize, usize); 4] = [(1, 2), (3, 1), (2, 2), (1, 1)];
const TOKENS: [usize; 5] = [1, 2, 17, 64, 100];
const POSITIONS: [usize; 6] = [0, 1, 63, 64, 100, 210];

/// Shapes of every pair of position and number of tokens; the other sizes take turns.
fn shapes(tokens: &[usize], groups: &[(usize, usize)]) -> impl Iterator<Item = Shape> {
    let pairs = POSITIONS
        .iter()
        .flat_map(|position| tokens.iter().map(move |tokens| (*position, *tokens)));
    pairs.enumerate().map(|(i, (position, tokens))| {
        let (group, kv_heads) = groups[i % groups.len()];
        Shape {
            batch: 1 + i % 3 / 2 + i % 5 / 4,
            tokens,
            heads: group * kv_heads,
            kv_heads,
            head_dim: HEAD_DIMS[i % HEAD_DIMS.len()],
            // At times the context ends where the cache ends.
            capacity: position + tokens + [0, 1, 70][i % 3],
            position,
        }
    })
}

fn decodes<KV: Cached>(emulation: &Emulation) {
    // Three times each position, with other sizes and splits; seven are more than some have keys.
    for (i, shape) in shapes(&[1; 3], &DECODE_GROUPS).enumerate() {
        for splits in [1, [2, 7][i % 2]] {
            let input = Input::<KV>::new(&shape, f32::NAN);
            let found = on_every_schedule(emulation, || shape.decode(emulation, &input, splits));
            shape.check(&found, &input);
            let other = Input::<KV>::new(&shape, 6e4);
            assert!(same_bits(&shape.decode(emulation, &other, splits), &found));
        }
    }
}

#[test]
fn one_token_attends_over_halves() {
    if let Some(emulation) = Emulation::get() {
        decodes::<f16>(emulation);
    }
}

#[test]
fn one_token_attends_over_floats() {
    if let Some(emulation) = Emulation::get() {
        decodes::<f32>(emulation);
    }
}

/// More slices than fit the shared memory of a block at once, some of them without keys.
#[test]
fn slices_join_however_many_there_are() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let (batch, heads) = (2, 3);
    for head_dim in [16usize, 80, 256] {
        for splits in [1usize, 5, 127, 128, 129, 300] {
            let rows = batch * heads * splits;
            let mut partial = numbers(rows * (head_dim + 2), 21);
            for (i, slice) in partial.chunks_mut(head_dim + 2).enumerate() {
                // Largest scores that differ by more than a weight can show, and positive sums.
                slice[head_dim] *= 20.0;
                slice[head_dim + 1] += 1.5;
                if i % splits % 4 == 3 {
                    slice.fill(0.0);
                    slice[head_dim] = f32::NEG_INFINITY;
                }
            }
            let found = on_every_schedule(emulation, || {
                let from = Guarded::from(&partial);
                let out = Guarded::<f16>::poisoned(batch * heads * head_dim);
                emulation
                    .launch(
                        "attend_combine",
                        [heads as u32, batch as u32, 1],
                        [128, 1, 1],
                        0,
                        arguments![
                            from.pointer(),
                            out.pointer(),
                            batch as i32,
                            heads as i32,
                            head_dim as i32,
                            splits as i32
                        ],
                    )
                    .unwrap();
                to_vec(&out)
            });
            for (i, found) in found.iter().enumerate() {
                let (row, channel) = (i / head_dim, i % head_dim);
                let slices = partial.chunks(head_dim + 2);
                let slices = || slices.clone().skip(row * splits).take(splits);
                let at = |slice: &[f32], i: usize| f64::from(slice[i]);
                let largest = slices().map(|s| at(s, head_dim)).fold(f64::MIN, f64::max);
                let (mut x, mut sum) = (0.0, 0.0);
                for slice in slices() {
                    let factor = (at(slice, head_dim) - largest).exp2();
                    x += factor * at(slice, channel);
                    sum += factor * at(slice, head_dim + 1);
                }
                assert_rounded(*found, x / sum, 2e-6);
            }
        }
    }
}

fn prefills<KV: Cached>(emulation: &Emulation) {
    for (i, shape) in shapes(&TOKENS, &PREFILL_GROUPS).enumerate() {
        let input = Input::<KV>::new(&shape, f32::NAN);
        let found = on_every_schedule(emulation, || shape.prefill(emulation, &input));
        shape.check(&found, &input);
        if i % 3 == 0 {
            let other = Input::<KV>::new(&shape, 6e4);
            assert!(
                same_bits(&shape.prefill(emulation, &other), &found),
                "{shape:?}"
            );
        }
    }
}

#[test]
fn the_turns_of_sizes_meet() {
    let decode: Vec<Shape> = shapes(&[1; 3], &DECODE_GROUPS).collect();
    let prefill: Vec<Shape> = shapes(&TOKENS, &PREFILL_GROUPS).collect();
    for shapes in [decode, prefill] {
        for head_dim in HEAD_DIMS {
            let grouped = |s: &Shape| s.head_dim == head_dim && s.heads > s.kv_heads;
            assert!(shapes.iter().any(grouped), "{head_dim}");
        }
        assert!((1..=3).all(|batch| shapes.iter().any(|s| s.batch == batch)));
    }
}

#[test]
fn many_tokens_attend_over_halves() {
    if let Some(emulation) = Emulation::get() {
        prefills::<f16>(emulation);
    }
}

#[test]
fn many_tokens_attend_over_floats() {
    if let Some(emulation) = Emulation::get() {
        prefills::<f32>(emulation);
    }
}

/// A query that is NaN spoils its own result; a key that is NaN spoils the queries that see it.
fn keeps_nan_where_it_belongs<KV: Cached>(emulation: &Emulation) {
    let shape = Shape {
        batch: 2,
        tokens: 20,
        heads: 2,
        kv_heads: 2,
        head_dim: 32,
        capacity: 64,
        position: 10,
    };
    let width = shape.heads * shape.head_dim;
    let mut input = Input::<KV>::new(&shape, f32::NAN);
    // Sequence 0: query of token 3, head 1. Sequence 1: key of token 7, head 0.
    input.q[3 * width + shape.head_dim + 5] = f16::NAN;
    input.k[(shape.capacity + shape.position + 7) * width] = KV::of(f32::NAN);
    let found = shape.prefill(emulation, &input);
    for (i, x) in found.iter().enumerate() {
        let (sequence, token) = (i / width / shape.tokens, i / width % shape.tokens);
        let head = i / shape.head_dim % shape.heads;
        let expected = match sequence {
            0 => token == 3 && head == 1,
            _ => token >= 7 && head == 0,
        };
        assert_eq!(x.is_nan(), expected, "{sequence} {token} {head}");
    }

    let shape = Shape { tokens: 1, ..shape };
    let mut input = Input::<KV>::new(&shape, f32::NAN);
    input.q[0] = f16::NAN;
    input.k[shape.capacity * width + width - 1] = KV::of(f32::NAN);
    let found = shape.decode(emulation, &input, 3);
    for (head, x) in found.chunks(shape.head_dim).enumerate() {
        // Rows are (sequence, head).
        let expected = [0, 3].contains(&head);
        assert!(x.iter().all(|x| x.is_nan() == expected), "{head}");
    }
}

#[test]
fn nan_reaches_what_depends_on_it_and_nothing_else() {
    if let Some(emulation) = Emulation::get() {
        keeps_nan_where_it_belongs::<f16>(emulation);
        keeps_nan_where_it_belongs::<f32>(emulation);
    }
}
