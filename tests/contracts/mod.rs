//! What every quantization method promises, as functions that take an id. A method that is added
//! from outside is tested by calling [`all`] with its ids.

// A test binary may use a part of this; errors need not be small here.
#![allow(dead_code)]

use candle_core::{Device, Tensor};
use quantbench::Error;
use quantbench::packed::{self, FormatSpec, PackedLinear};
use quantbench::quant::{self, Calibration, Group, LayerStats, Matrix, Member, Notes, Role};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Every promise, for one canonical id.
pub fn all(id: &str) {
    id_round_trips(id);
    parameters_are_stated(id);
    for (n, k) in [(24, 256), (9, 576), (7, 200), (1, 8), (16, 128)] {
        let case = Case::plain(n, k);
        bytes_are_reproducible(id, &case);
        bits_per_weight_are_exact(id, &case);
        spec_is_what_is_stored(id, &case);
        forward_multiplies_by_the_dequantized_weight(id, &case);
        stored_tensors_load_equal(id, &case);
    }
    error_is_bounded(id);
    odd_weights_are_packed(id);
    damaged_weights_are_refused(id);
    statistics_are_required(id);
    nothing_is_packed_from_nothing(id);
}

/// A group of linears and the inputs they are calibrated on.
#[derive(Clone)]
pub struct Case {
    pub group: Group,
    /// Row-major `[tokens, k]`.
    pub inputs: Vec<f32>,
}

impl Case {
    /// Gaussian weights (query, key, value of `n`, `n` and `n + 3` rows) and inputs with some
    /// correlation and some spread between channels.
    pub fn plain(n: usize, k: usize) -> Case {
        let mut rng = ChaCha8Rng::seed_from_u64((n * 10_000 + k) as u64);
        let tokens = 2 * k + 16;
        let mut inputs = vec![0f32; tokens * k];
        for row in inputs.chunks_mut(k) {
            let common = normal(&mut rng);
            for (channel, x) in row.iter_mut().enumerate() {
                *x = (normal(&mut rng) + 0.7 * common) * (1.0 + (channel % 7) as f32 / 2.0);
            }
        }
        let members = [(Role::Query, n), (Role::Key, n), (Role::Value, n + 3)];
        let members = members.map(|(role, n)| member(role, gaussian(&mut rng, n, k, 0.05)));
        let members = members.into();
        let group = Group {
            members,
            foldable: true,
        };
        Case { group, inputs }
    }

    pub fn k(&self) -> usize {
        self.group.inputs()
    }

    pub fn stats(&self) -> LayerStats {
        let mut builder = LayerStats::builder(self.k());
        for chunk in self.inputs.chunks((64 * self.k()).max(1)) {
            builder.accumulate(chunk).unwrap();
        }
        builder.finish()
    }

    /// Does what a caller of methods does: calibrates if asked to, folds, packs.
    pub fn quantize(&self, id: &str) -> Result<Done, Error> {
        let method = quant::parse(id)?;
        let mut notes = Notes::new();
        let mut group = self.group.clone();
        let mut stats = match method.calibration() {
            Calibration::None => None,
            Calibration::Inputs => Some(self.stats()),
        };
        let fold = method.fold(&group, stats.as_ref(), &mut notes)?;
        if let Some(s) = &fold {
            group.scale_inputs(s);
            stats = stats.map(|stats| stats.scaled(s));
        }
        let packed = method.quantize(&group, stats.as_ref(), &mut notes)?;
        Ok(Done {
            group,
            fold,
            packed,
            notes,
        })
    }

    /// `Σ ‖(Ŵ - W) x‖²` over members and tokens, by definition, in F64.
    pub fn output_error(&self, done: &Done) -> f64 {
        let k = self.k();
        let mut total = 0.0;
        for (member, packed) in self.group.members.iter().zip(&done.packed) {
            let restored = packed.dequantize().unwrap();
            for (restored, row) in restored.chunks(k).zip(member.weight.data.chunks(k)) {
                let error: Vec<f64> = (0..k)
                    .map(|c| {
                        let s = done.fold.as_ref().map_or(1.0, |s| f64::from(s[c]));
                        f64::from(restored[c]) / s - f64::from(row[c])
                    })
                    .collect();
                for x in self.inputs.chunks(k) {
                    let y: f64 = error.iter().zip(x).map(|(e, x)| e * f64::from(*x)).sum();
                    total += y * y;
                }
            }
        }
        total
    }
}

/// A quantized group.
pub struct Done {
    /// As it was packed, after folding.
    pub group: Group,
    pub fold: Option<Vec<f32>>,
    pub packed: Vec<Box<dyn PackedLinear>>,
    pub notes: Notes,
}

impl Done {
    fn pairs(&self) -> impl Iterator<Item = (&Matrix, &dyn PackedLinear)> {
        assert_eq!(self.group.members.len(), self.packed.len());
        let weights = self.group.members.iter().map(|m| &m.weight);
        weights.zip(self.packed.iter().map(|p| p.as_ref()))
    }

    /// Everything that is stored, and the fold.
    pub fn bytes(&self) -> Vec<u8> {
        let fold = self.fold.iter().flatten().flat_map(|s| s.to_le_bytes());
        let stored = self.packed.iter().flat_map(|p| p.stored());
        fold.chain(stored.flat_map(|s| raw(&s.tensor))).collect()
    }

    /// `‖Ŵ - W‖ / ‖W‖` over all members, `W` as it was packed.
    pub fn relative_error(&self) -> f64 {
        let (mut error, mut size) = (0.0, 0.0);
        for (weight, packed) in self.pairs() {
            let restored = packed.dequantize().unwrap();
            assert_eq!(restored.len(), weight.data.len());
            for (r, w) in restored.iter().zip(&weight.data) {
                error += f64::from(r - w).powi(2);
                size += f64::from(*w).powi(2);
            }
        }
        (error / size).sqrt()
    }
}

pub fn id_round_trips(id: &str) {
    let method = quant::parse(id).unwrap_or_else(|e| panic!("{id}: {e}"));
    assert_eq!(method.id(), id);
    assert!(
        id.contains(method.method().trim_end_matches("-int")),
        "{id}"
    );
}

pub fn parameters_are_stated(id: &str) {
    let parameters = quant::parse(id).unwrap().parameters();
    assert!(!parameters.is_empty(), "{id} has no parameters");
    assert!(
        parameters.values().all(|v| !v.is_null()),
        "{id}: {parameters:?}"
    );
}

pub fn bytes_are_reproducible(id: &str, case: &Case) {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            case.quantize(id)
                .unwrap_or_else(|e| panic!("{id}: {e}"))
                .bytes()
        })
    };
    let first = run(1);
    assert!(first == run(1), "{id}: two runs differ");
    assert!(first == run(3), "{id}: 1 and 3 threads differ");
}

/// Codes, scales and zeros, counted by formula.
pub fn bits_per_weight_are_exact(id: &str, case: &Case) {
    for (weight, packed) in case.quantize(id).unwrap().pairs() {
        let (n, k) = (weight.rows, weight.cols);
        assert_eq!(packed.shape(), (n, k), "{id}");
        assert_eq!(
            packed.bytes(),
            stored_bytes(&packed.spec(), n, k),
            "{id} [{n}, {k}]"
        );
    }
}

/// A method says beforehand what it stores, so that a model can be filled without quantizing.
pub fn spec_is_what_is_stored(id: &str, case: &Case) {
    let spec = quant::parse(id).unwrap().spec();
    for (weight, packed) in case.quantize(id).unwrap().pairs() {
        assert_eq!(packed.spec(), spec, "{id}");
        let shape = (weight.rows, weight.cols);
        let random = packed::random(&spec, shape, 1).unwrap();
        assert_eq!(random.bytes(), packed.bytes(), "{id} {shape:?}");
    }
}

pub fn forward_multiplies_by_the_dequantized_weight(id: &str, case: &Case) {
    for (weight, packed) in case.quantize(id).unwrap().pairs() {
        let (n, k) = (weight.rows, weight.cols);
        let restored = packed.dequantize().unwrap();
        for rows in [1, 5, 33] {
            let x: Vec<f32> = case.inputs.iter().copied().cycle().take(rows * k).collect();
            let tensor = Tensor::from_vec(x.clone(), (rows, k), &Device::Cpu).unwrap();
            let y = packed.forward(&tensor).unwrap();
            let y: Vec<Vec<f32>> = y.to_vec2().unwrap();
            for (x, y) in x.chunks(k).zip(&y) {
                let mut x = x.to_vec();
                if let Some(activations) = packed.activations() {
                    activations.round(&mut x);
                }
                let expected: Vec<f64> = restored
                    .chunks(k)
                    .map(|w| {
                        w.iter()
                            .zip(&x)
                            .map(|(w, x)| f64::from(*w) * f64::from(*x))
                            .sum()
                    })
                    .collect();
                // Short rows of outputs may all cancel: measured against what is summed up.
                let scale = expected.iter().fold(0f64, |m, v| m.max(v.abs())).max(
                    1e-1 * restored[..k]
                        .iter()
                        .zip(&x)
                        .map(|(w, x)| f64::from((w * x).abs()))
                        .sum::<f64>(),
                );
                for (y, e) in y.iter().zip(&expected) {
                    let difference = (f64::from(*y) - e).abs();
                    assert!(difference <= 1e-5 * scale, "{id} [{n}, {k}]: {y} for {e}");
                }
            }
        }
    }
}

pub fn stored_tensors_load_equal(id: &str, case: &Case) {
    for (_, packed) in case.quantize(id).unwrap().pairs() {
        let loaded = load(packed);
        assert_eq!(loaded.shape(), packed.shape(), "{id}");
        assert_eq!(loaded.spec(), packed.spec(), "{id}");
        assert_eq!(
            loaded.dequantize().unwrap(),
            packed.dequantize().unwrap(),
            "{id}"
        );
        let bytes = |p: &dyn PackedLinear| -> Vec<_> {
            p.stored()
                .iter()
                .map(|s| (s.name, raw(&s.tensor)))
                .collect()
        };
        assert!(bytes(loaded.as_ref()) == bytes(packed), "{id}");
    }
}

/// On Gaussian weights: above zero where bits are lost, below what the width allows. Methods that
/// weigh errors by inputs are further from the weight than round-to-nearest.
pub fn error_is_bounded(id: &str) {
    for case in [
        Case::plain(24, 256),
        Case::plain(9, 576),
        Case::plain(7, 200),
    ] {
        let done = case.quantize(id).unwrap();
        let error = done.relative_error();
        let bits = done.packed[0].spec().bits;
        let bound = match bits {
            32 => 0.0,
            16 => 4e-3,
            8 => 8e-2,
            4 => 0.25,
            3 => 0.5,
            2 => 1.2,
            other => panic!("{id}: no bound for {other} bits"),
        };
        assert!(error <= bound, "{id}: relative error {error}");
        assert_eq!(error > 0.0, bits < 32, "{id}: relative error {error}");
    }
}

/// Constant rows, zero rows, a dead input, a huge outlier, a single weight per row: finite
/// results, zeros that stay zero, and rows that do not spoil each other.
pub fn odd_weights_are_packed(id: &str) {
    let mut case = Case::plain(6, 200);
    let k = case.k();
    for member in &mut case.group.members {
        let rows: Vec<&mut [f32]> = member.weight.data.chunks_mut(k).collect();
        let [zero, constant, negative, outlier, ..] = &mut rows.into_iter().collect::<Vec<_>>()[..]
        else {
            panic!("six rows")
        };
        zero.fill(0.0);
        constant.fill(0.25);
        negative.fill(-0.25);
        outlier[77] = 1000.0;
    }
    for row in case.inputs.chunks_mut(k) {
        row[3] = 0.0;
        row[150] = 0.0;
    }
    let done = case.quantize(id).unwrap_or_else(|e| panic!("{id}: {e}"));
    for (weight, packed) in done.pairs() {
        let restored = packed.dequantize().unwrap();
        assert!(restored.iter().all(|w| w.is_finite()), "{id}");
        assert!(restored[..k].iter().all(|w| *w == 0.0), "{id}: a zero row");
        let outlier = restored[3 * k + 77] / weight.data[3 * k + 77];
        assert!(
            (0.4..1.3).contains(&outlier),
            "{id}: an outlier times {outlier}"
        );
        // One scale per matrix is the one form in which a row may spoil all others.
        if packed.spec().group_size != 0 || packed.spec().bits > 8 {
            let (restored, row) = (&restored[4 * k..], &weight.data[4 * k..]);
            let error = restored.iter().zip(row).map(|(r, w)| (r - w).abs());
            let size: f32 = row.iter().map(|w| w.abs()).sum();
            assert!(error.sum::<f32>() < 1.3 * size, "{id}: ordinary rows");
        }
    }
}

pub fn damaged_weights_are_refused(id: &str) {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut case = Case::plain(8, 64);
        case.group.members[1].weight.data[70] = value;
        let error = case
            .quantize(id)
            .err()
            .unwrap_or_else(|| panic!("{id} took {value}"));
        let message = error.to_string();
        assert!(matches!(error, Error::Quantize { .. }), "{id}: {message}");
        assert!(
            message.contains(&case.group.members[1].name),
            "{id}: {message}"
        );
    }
    let mut case = Case::plain(8, 64);
    case.group.members[2].weight.data.pop();
    assert!(
        case.quantize(id).is_err(),
        "{id} took a weight that is too short"
    );
}

/// Missing, mismatched or damaged statistics are an error for a method that asked for them.
pub fn statistics_are_required(id: &str) {
    let method = quant::parse(id).unwrap();
    if method.calibration() == Calibration::None {
        return;
    }
    let group = Case::plain(8, 64).group;
    let mut damaged = Case::plain(8, 64).stats();
    damaged.xtx.data[65] = f32::NAN;
    let other = Case::plain(8, 72).stats();
    for stats in [None, Some(&other), Some(&damaged)] {
        let error = method.quantize(&group, stats, &mut Notes::new()).err();
        let message = error
            .unwrap_or_else(|| panic!("{id} took {stats:?}"))
            .to_string();
        assert!(message.contains(&group.members[0].name), "{id}: {message}");
    }
}

pub fn nothing_is_packed_from_nothing(id: &str) {
    let group = Group {
        members: vec![],
        foldable: true,
    };
    let inputs = vec![];
    assert!(
        Case { group, inputs }
            .quantize(id)
            .unwrap()
            .packed
            .is_empty()
    );
}

pub fn member(role: Role, weight: Matrix) -> Member {
    let name = format!("model.layers.0.{role:?}").to_lowercase();
    Member { name, role, weight }
}

pub fn gaussian(rng: &mut ChaCha8Rng, rows: usize, cols: usize, deviation: f32) -> Matrix {
    let data = (0..rows * cols).map(|_| deviation * normal(rng)).collect();
    Matrix { rows, cols, data }
}

/// A standard normal value (Box-Muller).
pub fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    ((-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}

/// The bytes of a tensor.
pub fn raw(tensor: &Tensor) -> Vec<u8> {
    use safetensors::tensor::View;
    View::data(tensor).into_owned()
}

/// The bytes that a format's definition asks for.
fn stored_bytes(spec: &FormatSpec, n: usize, k: usize) -> usize {
    let groups = match spec.group_size {
        -1 => 1,
        size => k.div_ceil(size.max(1) as usize),
    };
    let bits = spec.bits as usize;
    let stored = match spec.format.as_str() {
        "f32" | "f16" | "bf16" => bits * n * k,
        "fp8-e4m3" | "fp8-e5m2" | "fp8-e4m3-a8" => 8 * n * k + 32 * n,
        "int8" if spec.group_size == 0 => 8 * n * k + 16,
        "int8" | "int8-a8" => 8 * n * k + 16 * n,
        // Codes end on whole bytes per row (K is a multiple of 8 here), zeros per tensor.
        "uint-grouped" => {
            (bits * n * k + 16 * n * groups) + (bits * n * groups).next_multiple_of(8)
        }
        other => panic!("no formula for format {other}"),
    };
    stored / 8
}

fn load(packed: &dyn PackedLinear) -> Box<dyn PackedLinear> {
    let stored = packed.stored();
    let mut tensors = |name: &str| {
        let found = stored.iter().find(|s| s.name == name);
        Ok(found
            .unwrap_or_else(|| panic!("no `{name}` is stored"))
            .tensor
            .clone())
    };
    packed::load(&packed.spec(), packed.shape(), &mut tensors).unwrap()
}
