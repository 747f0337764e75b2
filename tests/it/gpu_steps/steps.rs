//! Embedding, norm, rotation and appending, gate, choice of the next token.

use super::*;

#[test]
fn embedding_rows_are_widened_and_unknown_ids_are_nan() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let vocab = 11;
    let ids = [3u32, 0, 10, 11, 3, u32::MAX, 1 << 31];
    for hidden in [1usize, 7, 8, 100, 2056] {
        let table = random_halves(vocab * hidden, 2.0, 1);
        let x = on_every_schedule(emulation, || {
            let (i, t) = (Guarded::from(&ids), Guarded::from(&table));
            let x = Guarded::<f32>::poisoned(ids.len() * hidden);
            let grid = [ids.len() as u32, 1, 1];
            emulation
                .launch(
                    "embed",
                    grid,
                    [128, 1, 1],
                    0,
                    arguments![
                        i.pointer(),
                        t.pointer(),
                        x.pointer(),
                        ids.len() as i32,
                        hidden as i32,
                        vocab as i32
                    ],
                )
                .unwrap();
            to_vec(&x)
        });
        for (row, id) in x.chunks(hidden).zip(ids) {
            match table.chunks(hidden).nth(id as usize) {
                Some(expected) => assert!(row.iter().zip(expected).all(|(x, e)| *x == e.to_f32())),
                None => assert!(row.iter().all(|x| x.is_nan()), "id {id}"),
            }
        }
    }
}

#[test]
fn the_last_row_of_each_sequence_is_taken_bit_by_bit() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    for (batch, tokens) in [(1usize, 1usize), (1, 5), (3, 1), (4, 7)] {
        for hidden in [1usize, 7, 8, 100, 576, 4104] {
            let mut h = random_halves(batch * tokens * hidden, 2.0, 1);
            h[tokens * hidden - 1] = f16::NAN;
            let found = on_every_schedule(emulation, || {
                let from = Guarded::from(&h);
                let last = Guarded::<f16>::poisoned(batch * hidden);
                emulation
                    .launch(
                        "last_rows",
                        [batch as u32, 1, 1],
                        [256, 1, 1],
                        0,
                        arguments![from.pointer(), last.pointer(), tokens as i32, hidden as i32],
                    )
                    .unwrap();
                to_vec(&last)
            });
            let last = h.chunks(hidden).skip(tokens - 1).step_by(tokens);
            let expected: Vec<f16> = last.flatten().copied().collect();
            assert!(same_bits(&found, &expected), "{batch} {tokens} {hidden}");
        }
    }
}

fn rms_norm(emulation: &Emulation, x: &[f32], gain: &[f16], eps: f32) -> Vec<f16> {
    let hidden = gain.len();
    let rows = x.len() / hidden;
    on_every_schedule(emulation, || {
        let (x, gain) = (Guarded::from(x), Guarded::from(gain));
        let h = Guarded::<f16>::poisoned(rows * hidden);
        let grid = [rows as u32, 1, 1];
        emulation
            .launch(
                "rms_norm",
                grid,
                [256, 1, 1],
                0,
                arguments![
                    x.pointer(),
                    gain.pointer(),
                    h.pointer(),
                    rows as i32,
                    hidden as i32,
                    eps
                ],
            )
            .unwrap();
        to_vec(&h)
    })
}

#[test]
fn rms_norm_equals_its_definition() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let eps = 1e-5f32;
    for (rows, hidden) in [
        (1, 1),
        (3, 7),
        (17, 8),
        (2, 100),
        (1, 576),
        (2, 2056),
        (1, 2057),
    ] {
        // Rows of very different size.
        let mut x = numbers(rows * hidden, 2);
        for (r, row) in x.chunks_mut(hidden).enumerate() {
            row.iter_mut().for_each(|v| *v *= 10f32.powi(r as i32 - 2));
        }
        let gain = random_halves(hidden, 2.0, 3);
        let h = rms_norm(emulation, &x, &gain, eps);
        for (x, h) in x.chunks(hidden).zip(h.chunks(hidden)) {
            let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
            let factor = 1.0 / (squares / hidden as f64 + f64::from(eps)).sqrt();
            for ((x, gain), h) in x.iter().zip(&gain).zip(h) {
                let exact = f64::from(*x) * factor * gain.to_f64();
                assert_rounded(*h, exact, 1e-6 * exact.abs());
            }
        }
    }
}

#[test]
fn rms_norm_keeps_nan_and_infinity_in_their_row() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let hidden = 40;
    let gain = halves(&vec![1.0; hidden]);
    let mut x = numbers(3 * hidden, 4);
    x[5] = f32::NAN;
    x[hidden + 9] = f32::INFINITY;
    let h = rms_norm(emulation, &x, &gain, 1e-5);
    assert!(h[..hidden].iter().all(|h| h.is_nan()));
    assert!(h[hidden + 9].is_nan());
    assert!(h[2 * hidden..].iter().all(|h| h.is_finite()));
}

/// Sizes of one call of `rotate_append`.
#[derive(Debug, Clone, Copy)]
struct Rotation {
    batch: usize,
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    position: usize,
}

/// Inputs of one call, the same for every run.
struct Rotated {
    q: Vec<f16>,
    k: Vec<f16>,
    v: Vec<f16>,
    angles: Vec<f64>,
}

impl Rotation {
    fn inputs(&self) -> Rotated {
        let of = |heads: usize, seed| {
            random_halves(self.batch * self.tokens * heads * self.head_dim, 3.0, seed)
        };
        let pairs = self.head_dim / 2;
        Rotated {
            q: of(self.heads, 1),
            k: of(self.kv_heads, 2),
            v: of(self.kv_heads, 3),
            angles: (0..self.capacity * pairs)
                .map(|i| (i / pairs) as f64 * 10f64.powf(-((i % pairs) as f64) / pairs as f64))
                .collect(),
        }
    }

    /// Bits of q, of the K cache and of the V cache after the call; caches start poisoned.
    fn run<KV: Bits>(&self, emulation: &Emulation, kernel: &str) -> (Vec<f16>, Vec<KV>, Vec<KV>) {
        let Rotated { q, k, v, angles } = self.inputs();
        let table =
            |f: fn(f64) -> f64| -> Vec<f32> { angles.iter().map(|a| f(*a) as f32).collect() };
        let (cos, sin) = (table(f64::cos), table(f64::sin));
        let len = self.batch * self.capacity * self.kv_heads * self.head_dim;
        let run = || {
            let q = Guarded::from(&q);
            let (k, v) = (Guarded::from(&k), Guarded::from(&v));
            let (cos, sin) = (Guarded::from(&cos), Guarded::from(&sin));
            let (kc, vc) = (Guarded::<KV>::poisoned(len), Guarded::<KV>::poisoned(len));
            let position = Guarded::from(&[self.position as u32]);
            let grid = [(self.batch * self.tokens) as u32, 1, 1];
            emulation
                .launch(
                    kernel,
                    grid,
                    [256, 1, 1],
                    0,
                    arguments![
                        q.pointer(),
                        k.pointer(),
                        v.pointer(),
                        cos.pointer(),
                        sin.pointer(),
                        kc.pointer(),
                        vc.pointer(),
                        position.pointer(),
                        self.batch as i32,
                        self.tokens as i32,
                        self.heads as i32,
                        self.kv_heads as i32,
                        self.head_dim as i32,
                        self.capacity as i32
                    ],
                )
                .unwrap();
            (to_vec(&q), to_vec(&kc), to_vec(&vc))
        };
        on_every_schedule(emulation, || {
            let (q, kc, vc) = run();
            let caches = kc.iter().chain(&vc).map(|x| x.bits());
            q.iter().map(|x| x.bits()).chain(caches).collect()
        });
        run()
    }

    /// Channel `c` of a head, rotated as at `at`.
    fn rotated(&self, head: &[f16], angles: &[f64], at: usize, c: usize) -> f64 {
        let pairs = self.head_dim / 2;
        let i = c % pairs;
        let angle = angles[at * pairs + i];
        let (x, y) = (head[i].to_f64(), head[i + pairs].to_f64());
        let (sin, cos) = angle.sin_cos();
        if c < pairs {
            x * cos - y * sin
        } else {
            y * cos + x * sin
        }
    }

    fn check<KV: Bits>(&self, emulation: &Emulation, kernel: &str, value: fn(KV) -> f64) {
        let Rotated { q, k, v, angles } = self.inputs();
        let (new_q, kc, vc) = self.run::<KV>(emulation, kernel);
        let hd = self.head_dim;
        let near = |found: f64, exact: f64| {
            assert!((found - exact).abs() <= 2e-3, "{found} is not {exact}");
        };
        for (row, (new, old)) in new_q
            .chunks(self.heads * hd)
            .zip(q.chunks(self.heads * hd))
            .enumerate()
        {
            let at = self.position + row % self.tokens;
            for (i, new) in new.iter().enumerate() {
                if at >= self.capacity {
                    assert!(new.is_nan());
                    continue;
                }
                let head = &old[i / hd * hd..][..hd];
                near(new.to_f64(), self.rotated(head, &angles, at, i % hd));
            }
        }
        let width = self.kv_heads * hd;
        for sequence in 0..self.batch {
            for at in 0..self.capacity {
                let cached = (sequence * self.capacity + at) * width;
                let token = at.checked_sub(self.position).filter(|t| *t < self.tokens);
                for i in 0..width {
                    let (k_found, v_found) = (kc[cached + i], vc[cached + i]);
                    let Some(token) = token else {
                        assert!(value(k_found).is_nan() && value(v_found).is_nan());
                        continue;
                    };
                    let from = (sequence * self.tokens + token) * width;
                    let head = &k[from + i / hd * hd..][..hd];
                    near(value(k_found), self.rotated(head, &angles, at, i % hd));
                    assert_eq!(value(v_found), v[from + i].to_f64());
                }
            }
        }
    }
}

#[test]
fn queries_are_rotated_and_keys_and_values_appended() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    for (batch, tokens, heads, kv_heads, head_dim, capacity, position) in [
        (1, 1, 3, 1, 16, 4, 0),
        (2, 1, 8, 2, 64, 70, 63),
        (3, 2, 4, 4, 80, 9, 1),
        (1, 17, 3, 3, 96, 30, 5),
        (2, 5, 2, 1, 256, 8, 3),
        (1, 3, 9, 3, 32, 7, 0),
        // The last two tokens have no place.
        (2, 5, 2, 2, 128, 10, 7),
        (1, 1, 2, 2, 64, 10, 10),
        (1, 1, 2, 2, 64, 10, u32::MAX as usize),
    ] {
        let rotation = Rotation {
            batch,
            tokens,
            heads,
            kv_heads,
            head_dim,
            capacity,
            position,
        };
        rotation.check(emulation, "rotate_append_kvf16", f16::to_f64);
        rotation.check::<f32>(emulation, "rotate_append_kvf32", f64::from);
    }
}

#[test]
fn swiglu_equals_its_definition() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    for n in [1usize, 7, 8, 4099] {
        let mut gate = random_halves(n, 12.0, 5);
        let up = random_halves(n, 3.0, 6);
        let special = [
            f16::NAN,
            f16::NEG_INFINITY,
            f16::INFINITY,
            f16::MIN,
            f16::MAX,
        ];
        if n > 64 {
            gate[50..55].copy_from_slice(&special);
        }
        for in_place in [false, true] {
            let y = on_every_schedule(emulation, || {
                let (g, u) = (Guarded::from(&gate), Guarded::from(&up));
                let apart = Guarded::<f16>::poisoned(n);
                let y = if in_place { &g } else { &apart };
                emulation
                    .launch(
                        "swiglu",
                        [3, 1, 1],
                        [64, 1, 1],
                        0,
                        arguments![g.pointer(), u.pointer(), y.pointer(), n as i64],
                    )
                    .unwrap();
                to_vec(y)
            });
            for ((y, g), u) in y.iter().zip(&gate).zip(&up) {
                let (g, u) = (g.to_f64(), u.to_f64());
                // As the CPU computes it: -inf / (1 + inf) is no number.
                let exact = g / (1.0 + (-g).exp()) * u;
                if exact.is_nan() {
                    assert!(y.is_nan());
                } else if exact.abs() > 65000.0 {
                    assert!(y.to_f64().abs() > 64000.0 && y.to_f64() * exact > 0.0);
                } else {
                    assert_rounded(*y, exact, 1e-5 * exact.abs());
                }
            }
        }
    }
}

fn argmax(emulation: &Emulation, logits: &[f32], batch: usize) -> Vec<u32> {
    on_every_schedule(emulation, || {
        let logits = Guarded::from(logits);
        let ids = Guarded::<u32>::poisoned(batch);
        let vocab = (logits.len() / batch) as i32;
        let grid = [batch as u32, 1, 1];
        emulation
            .launch(
                "argmax",
                grid,
                [1024, 1, 1],
                0,
                arguments![logits.pointer(), ids.pointer(), vocab],
            )
            .unwrap();
        to_vec(&ids)
    })
}

#[test]
fn argmax_takes_the_first_of_the_largest_and_nan_before_all() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    for (batch, vocab) in [(1, 1), (3, 5), (2, 1000), (3, 4099), (1, 9000)] {
        let mut logits = numbers(batch * vocab, 7);
        // Few distinct values, so that the largest comes many times.
        logits.iter_mut().for_each(|x| *x = (*x * 20.0).round());
        let expected: Vec<u32> = logits
            .chunks(vocab)
            .map(|row| {
                let largest = row.iter().copied().fold(f32::MIN, f32::max);
                row.iter().position(|x| *x == largest).unwrap() as u32
            })
            .collect();
        assert_eq!(argmax(emulation, &logits, batch), expected);

        let at = vocab - 1 - vocab / 3;
        let row = &mut logits[(batch - 1) * vocab..];
        row[at..].fill(f32::NAN);
        row[0] = if at == 0 { f32::NAN } else { f32::INFINITY };
        assert_eq!(argmax(emulation, &logits, batch)[batch - 1], at as u32);
    }
    let lowest = [f32::NEG_INFINITY; 70];
    assert_eq!(argmax(emulation, &lowest, 1), [0]);
    assert_eq!(argmax(emulation, &[0.0, -0.0, 0.0], 1), [0]);
}

#[test]
fn the_position_advances() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let position = Guarded::from(&[7u32]);
    for by in [1u32, 64] {
        emulation
            .launch(
                "advance",
                [1; 3],
                [1; 3],
                0,
                arguments![position.pointer(), by],
            )
            .unwrap();
    }
    assert_eq!(position.as_slice(), [72]);
}
