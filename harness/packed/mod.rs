//! Stored forms of a weight matrix and the products that read them: one file per format.
//!
//! A format knows nothing of the method that chose its codes; many methods share few formats.
//! The layout in memory is the layout in the file: row-major codes, so that a matrix is loaded
//! by one copy and its oracle ([`PackedLinear::dequantize`]) is plain to read.
//!
//! | format | bits | `codes` | `scales` | `zeros` |
//! |---|---|---|---|---|
//! | `f32`, `f16`, `bf16` | 32, 16, 16 | `[N, K]` of that dtype | | |
//! | `fp8-e4m3`, `fp8-e5m2` | 8 | U8 `[N, K]` | F32 `[N]` | |
//! | `int8` | 8 | U8 `[N, K]` | F16 `[N]` or `[1]` | |
//! | `fp8-e4m3-a8`, `int8-a8` | 8 | as `fp8-e4m3`, as `int8` per output; [`activations`] of 8 bits | | |
//! | `uint-grouped` | 2, 3, 4, 8 | U8 `[N, ceil(K/8)·bits]` | F16 `[N, G]` | U8 `[ceil(N·G·bits/8)]` |
//!
//! A new format is its file, its `mod` and one line in [`FORMATS`]; `tests/it/kernels.rs` then asks
//! for it by name.

pub mod activations;
pub mod cpu;
pub mod dense;
pub mod fp8;
pub mod fp8_a8;
pub mod gpu;
pub mod grouped;
pub mod int8;
pub mod int8_a8;
pub mod random;

use crate::error::TensorFault;
use crate::{Error, Result};
use activations::Activations;
use candle_core::{DType, Device, Storage, Tensor, WithDType};
use random::Untrained;
use serde::{Deserialize, Serialize};

/// One stored tensor of a packed weight, under its name in the native file
/// (`codes`, `scales`, `zeros`).
#[derive(Debug, Clone)]
pub struct Stored {
    pub name: &'static str,
    pub tensor: Tensor,
}

/// What a packed file records about the format of one linear, enough to load it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormatSpec {
    /// Name in [`FORMATS`], for example `uint-grouped`.
    pub format: String,
    /// Bits of one code.
    pub bits: u32,
    /// Inputs that share a scale: a group size, -1 for a whole row, 0 where there is no scale
    /// or one for the whole matrix.
    pub group_size: i64,
}

/// A weight `W` of shape `[n_out, k_in]` in its stored form, and the product that reads it.
pub trait PackedLinear: Send + Sync {
    /// `(n_out, k_in)`.
    fn shape(&self) -> (usize, usize);

    fn spec(&self) -> FormatSpec;

    /// `y = x Wᵀ`: `x` is `[rows, k_in]` F32, contiguous; `y` is `[rows, n_out]` F32.
    ///
    /// Every element of `y` is computed by one thread in an order that depends on the shapes and
    /// the instruction set alone, so results do not change with the number of threads.
    fn forward(&self, x: &Tensor) -> Result<Tensor>;

    /// How [`PackedLinear::forward`] rounds the rows of `x` before it multiplies them; `None`
    /// where it takes them as they are. Its oracle then multiplies rounded rows.
    fn activations(&self) -> Option<Activations> {
        None
    }

    /// `W` as row-major F32 `[n_out, k_in]`: the oracle of [`PackedLinear::forward`].
    fn dequantize(&self) -> Result<Vec<f32>>;

    /// Every tensor that is kept: counted, saved and loaded.
    fn stored(&self) -> Vec<Stored>;

    /// Name of the kernel that [`PackedLinear::forward`] runs for this many rows.
    fn kernel(&self, rows: usize) -> String;

    /// How kernels of a GPU read this weight; nothing where they cannot.
    fn gpu(&self) -> Option<gpu::GpuWeight<'_>> {
        None
    }

    /// Bytes of all stored tensors.
    fn bytes(&self) -> usize {
        self.stored()
            .iter()
            .map(|s| s.tensor.elem_count() * s.tensor.dtype().size_in_bytes())
            .sum()
    }
}

/// Hands out the stored tensor of a name, or says why it cannot.
pub type Tensors<'a> = dyn FnMut(&str) -> Result<Tensor> + 'a;

/// A family of stored forms: what a file must hold to be one of them.
pub trait Format: Sync {
    /// Values of [`FormatSpec::format`] that this format answers to.
    fn names(&self) -> &'static [&'static str];

    /// The packed weight of `shape` `(n_out, k_in)` made of stored tensors, which are kept as
    /// they are: `load` of what [`PackedLinear::stored`] returned is the identity.
    ///
    /// # Errors
    /// A spec that the format does not have, a tensor that `tensors` cannot hand out, or one
    /// whose dtype, shape or content is not what the spec says.
    fn load(
        &self,
        spec: &FormatSpec,
        shape: (usize, usize),
        tensors: &mut Tensors,
    ) -> Result<Box<dyn PackedLinear>>;

    /// What a weight of `shape` `(n_out, k_in)` that nobody trained stores: codes uniform over
    /// those that are numbers (normal where a code is a number itself), scales such that the
    /// weights have a standard deviation of `1 / sqrt(k_in)` around zero.
    ///
    /// # Errors
    /// A spec that the format does not have.
    fn untrained(&self, spec: &FormatSpec, shape: (usize, usize)) -> Result<Vec<Untrained>>;

    /// Looks at the bytes of the stored tensor `name` before they go where [`Format::load`]
    /// cannot read them.
    ///
    /// # Errors
    /// Content that is not what the spec says.
    fn check(&self, _spec: &FormatSpec, _name: &str, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// Every format.
pub const FORMATS: &[&dyn Format] = &[
    &dense::Format,
    &fp8::Format,
    &fp8_a8::Format,
    &int8::Format,
    &int8_a8::Format,
    &grouped::Format,
];

/// Loads a packed weight of any format; see [`Format::load`].
///
/// # Errors
/// A format that is not in [`FORMATS`], besides those of [`Format::load`].
pub fn load(
    spec: &FormatSpec,
    shape: (usize, usize),
    tensors: &mut Tensors,
) -> Result<Box<dyn PackedLinear>> {
    format_of(spec)?.load(spec, shape, tensors)
}

/// Bytes on their way to a device; see [`Format::check`].
///
/// # Errors
/// A format that is not in [`FORMATS`], besides those of [`Format::check`].
pub fn check(spec: &FormatSpec, name: &str, bytes: &[u8]) -> Result<()> {
    format_of(spec)?.check(spec, name, bytes)
}

/// A random weight of any format, on the CPU; see [`Format::untrained`]. Equal seeds give equal
/// bytes, on every device.
///
/// # Errors
/// See [`random_by`].
pub fn random(
    spec: &FormatSpec,
    shape: (usize, usize),
    seed: u64,
) -> Result<Box<dyn PackedLinear>> {
    random_by(spec, shape, &mut |what| random::on_cpu(what, seed))
}

/// A random weight of tensors that `fill` makes where it wants them.
///
/// # Errors
/// A format that is not in [`FORMATS`], besides those of [`Format::untrained`] and `fill`.
pub fn random_by(
    spec: &FormatSpec,
    shape: (usize, usize),
    fill: &mut dyn FnMut(&Untrained) -> Result<Tensor>,
) -> Result<Box<dyn PackedLinear>> {
    let format = format_of(spec)?;
    let stored = format.untrained(spec, shape)?;
    let absent = |name: &str| mismatch(name, "a law for its content", "none");
    format.load(spec, shape, &mut |name| {
        let what = stored.iter().find(|what| what.name == name);
        fill(what.ok_or_else(|| absent(name))?)
    })
}

fn format_of(spec: &FormatSpec) -> Result<&'static dyn Format> {
    FORMATS
        .iter()
        .find(|f| f.names().contains(&spec.format.as_str()))
        .copied()
        .ok_or_else(|| {
            let names: Vec<_> = FORMATS.iter().flat_map(|f| f.names()).copied().collect();
            Error::unsupported(
                format!("weight format `{}`", spec.format),
                format!("known formats: {}", names.join(", ")),
            )
        })
}

/// A format whose bits or group size do not exist.
fn bad_spec(spec: &FormatSpec, expected: &str) -> Error {
    Error::unsupported(
        format!(
            "format `{}` with {} bits and group size {}",
            spec.format, spec.bits, spec.group_size
        ),
        format!("expected {expected}"),
    )
}

/// A part of a packed weight that is not what its shape and format ask for. Whoever knows the
/// file replaces the path.
fn mismatch(part: &str, expected: impl Into<String>, found: impl Into<String>) -> Error {
    Error::from(TensorFault {
        path: "packed weight".into(),
        tensor: part.into(),
        expected: expected.into(),
        found: found.into(),
        next: "the weight was packed for another shape or format, or is damaged; \
               quantize it again"
            .into(),
    })
}

/// Refuses a shape whose tensors could not be addressed.
fn check_shape((n_out, k_in): (usize, usize)) -> Result<()> {
    // Sizes in bits and bytes of anything stored stay far below overflow.
    if n_out.saturating_mul(k_in) > isize::MAX as usize / 64 {
        return Err(mismatch("shape", "a matrix", format!("[{n_out}, {k_in}]")));
    }
    Ok(())
}

/// Refuses a slice of another length.
fn check_len(part: &str, expected: usize, found: usize) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(mismatch(
        part,
        format!("{expected} elements"),
        format!("{found}"),
    ))
}

/// The stored tensor `name`, if it is contiguous and has this dtype and shape.
fn take(tensors: &mut Tensors, name: &str, dtype: DType, dims: &[usize]) -> Result<Tensor> {
    let tensor = tensors(name)?;
    if tensor.dtype() != dtype || tensor.dims() != dims || !tensor.is_contiguous() {
        let layout = if tensor.is_contiguous() {
            ""
        } else {
            ", not contiguous"
        };
        return Err(mismatch(
            name,
            format!("{} {dims:?}", dtype.as_str()),
            format!("{} {:?}{layout}", tensor.dtype().as_str(), tensor.dims()),
        ));
    }
    Ok(tensor)
}

/// Calls `f` with the elements of a contiguous CPU tensor.
pub(crate) fn with_slice<T: WithDType, R>(
    name: &str,
    tensor: &Tensor,
    f: impl FnOnce(&[T]) -> Result<R>,
) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(mismatch(
            name,
            "contiguous",
            format!("strides {:?}", layout.stride()),
        ));
    };
    match &*storage {
        Storage::Cpu(storage) => f(&T::cpu_storage_as_slice(storage)?[start..end]),
        _ => Err(not_on_cpu(tensor.device())),
    }
}

/// A device that a format has no kernel for.
fn not_on_cpu(device: &Device) -> Error {
    Error::unsupported(
        format!("packed weights on {:?}", device.location()),
        "use the CPU (--device cpu)",
    )
}
