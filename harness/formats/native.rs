//! The native form of a quantized model: one safetensors file.
//!
//! Tensors are `<module>.codes`, `.scales`, `.zeros` of every packed linear, and `embedding`,
//! `head` (if untied), norm gains and biases in F16 under their Hugging Face names. The metadata
//! has one key, [`METADATA_KEY`], whose value is a [`Header`] as JSON: one key, because the order
//! of several would not be deterministic. Equal models give equal bytes.

use crate::error::TensorFault;
use crate::model::assembly::{self, Parts};
use crate::model::config::Config;
use crate::model::decoder::Decoder;
use crate::model::kernels::Kernels;
use crate::model::layout::{self, LinearRow};
use crate::packed::{self, FormatSpec, PackedLinear};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::{TensorView, View};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Raised when the layout changes.
pub const VERSION: u32 = 1;

pub const METADATA_KEY: &str = "quantbench";

/// What the file says about itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Header {
    pub version: u32,
    pub config: Config,
    /// Precision id.
    pub precision: String,
    pub method: String,
    pub parameters: BTreeMap<String, serde_json::Value>,
    /// Format of every packed linear, by module name.
    pub linears: BTreeMap<String, FormatSpec>,
}

/// A quantized model, block by block, before it is written.
pub struct PackedModel {
    pub header: Header,
    tensors: Vec<(String, Held)>,
    spool: Option<Spool>,
}

impl PackedModel {
    /// An empty model of this shape.
    pub fn new(
        config: Config,
        precision: String,
        method: String,
        parameters: BTreeMap<String, serde_json::Value>,
    ) -> Self {
        PackedModel {
            header: Header {
                version: VERSION,
                config,
                precision,
                method,
                parameters,
                linears: BTreeMap::new(),
            },
            tensors: vec![],
            spool: None,
        }
    }

    /// Keeps what is added from now on in a nameless file in `folder`, not in memory.
    pub fn spool_in(&mut self, folder: &Path) -> Result<()> {
        self.spool = Some(Spool::new(folder)?);
        Ok(())
    }

    pub fn add_linear(&mut self, module: &str, linear: &dyn PackedLinear) -> Result<()> {
        self.header.linears.insert(module.into(), linear.spec());
        for stored in linear.stored() {
            self.add_tensor(&format!("{module}.{}", stored.name), stored.tensor)?;
        }
        Ok(())
    }

    /// Adds one tensor: embedding, head, norm gain, bias, or part of a packed linear.
    pub fn add_tensor(&mut self, name: &str, tensor: Tensor) -> Result<()> {
        let held = match &mut self.spool {
            Some(spool) => spool.add(&tensor)?,
            None => Held::InMemory(tensor),
        };
        self.tensors.push((name.into(), held));
        Ok(())
    }

    /// Writes the file beside its final name, then renames it, so that no half file is ever
    /// found under that name.
    pub fn write(self, path: &Path) -> Result<()> {
        let next = "check that the folder exists and has room, or choose another with --out";
        let json = serde_json::to_string(&self.header)
            .map_err(|e| Error::file(path, format!("its header cannot be written: {e}"), next))?;
        let metadata = HashMap::from([(METADATA_KEY.to_string(), json)]);
        let partial = path.with_extension("partial");
        let spooled = self.spool.map(Spool::finish).transpose()?;
        let tensors = self.tensors.iter().map(|(name, held)| {
            let spooled = spooled.as_deref().unwrap_or_default();
            (name, Entry { held, spooled })
        });
        safetensors::serialize_to_file(tensors, Some(metadata), &partial)
            .map_err(|e| Error::file(&partial, e.to_string(), next))?;
        std::fs::rename(&partial, path).map_err(|e| Error::io(path, e, next))
    }
}

/// A tensor that waits to be written.
enum Held {
    InMemory(Tensor),
    Spooled {
        dtype: safetensors::Dtype,
        shape: Vec<usize>,
        /// Its bytes in the spool.
        range: Range<usize>,
    },
}

/// A nameless file that holds tensors until all of them, and so the order in the final file, are
/// known. Its bytes are the system's to cache, not ours to hold.
struct Spool {
    file: BufWriter<File>,
    folder: PathBuf,
    bytes: usize,
}

impl Spool {
    fn new(folder: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(folder).map_err(|e| Error::io(folder, e, NO_ROOM))?;
        Ok(Spool {
            file: BufWriter::new(file),
            folder: folder.into(),
            bytes: 0,
        })
    }

    fn add(&mut self, tensor: &Tensor) -> Result<Held> {
        let bytes = View::data(tensor);
        let written = self.file.write_all(&bytes);
        written.map_err(|e| Error::io(&self.folder, e, NO_ROOM))?;
        let start = self.bytes;
        self.bytes += bytes.len();
        Ok(Held::Spooled {
            dtype: View::dtype(tensor),
            shape: tensor.dims().to_vec(),
            range: start..self.bytes,
        })
    }

    /// The whole content, mapped.
    fn finish(self) -> Result<memmap2::Mmap> {
        let folder = self.folder;
        let file = self.file.into_inner().map_err(|e| e.into_error());
        // SAFETY: the file has no name, so nobody else can shorten it.
        file.and_then(|file| unsafe { memmap2::Mmap::map(&file) })
            .map_err(|e| Error::io(folder, e, NO_ROOM))
    }
}

const NO_ROOM: &str = "packed blocks wait there: see that it has room for twice the packed model";

/// A tensor and where its bytes are.
struct Entry<'a> {
    held: &'a Held,
    spooled: &'a [u8],
}

impl View for Entry<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        match self.held {
            Held::InMemory(tensor) => View::dtype(tensor),
            Held::Spooled { dtype, .. } => *dtype,
        }
    }

    fn shape(&self) -> &[usize] {
        match self.held {
            Held::InMemory(tensor) => tensor.dims(),
            Held::Spooled { shape, .. } => shape,
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.held {
            Held::InMemory(tensor) => View::data(tensor),
            Held::Spooled { range, .. } => Cow::Borrowed(&self.spooled[range.clone()]),
        }
    }

    fn data_len(&self) -> usize {
        match self.held {
            Held::InMemory(tensor) => View::data_len(tensor),
            Held::Spooled { range, .. } => range.len(),
        }
    }
}

/// A model file that was loaded, ready to run.
pub struct Loaded {
    pub decoder: Decoder,
    pub header: Header,
}

const DAMAGED: &str = "the file is damaged or from another version; quantize again";

/// Copies a packed model into owned buffers of a device, with RoPE tables for `positions`. The
/// file is mapped while it is read and unmapped before this returns.
pub fn load(path: &Path, positions: usize, kernels: &Arc<dyn Kernels>) -> Result<Loaded> {
    let file = std::fs::File::open(path).map_err(|e| {
        Error::io(
            path,
            e,
            "quantize first (quantbench run does it), or check the path",
        )
    })?;
    // SAFETY: the file was renamed into place complete and nothing writes to it afterwards; a
    // program that truncated it while it is mapped could still make reads fail.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, e, DAMAGED))?;
    let (_, metadata) =
        SafeTensors::read_metadata(&map).map_err(|e| Error::file(path, e.to_string(), DAMAGED))?;
    let json = metadata
        .metadata()
        .as_ref()
        .and_then(|m| m.get(METADATA_KEY))
        .ok_or_else(|| {
            Error::file(
                path,
                format!("no `{METADATA_KEY}` key in its metadata"),
                DAMAGED,
            )
        })?;
    let header: Header = serde_json::from_str(json)
        .map_err(|e| Error::file(path, format!("its header is not readable: {e}"), DAMAGED))?;
    if header.version != VERSION {
        return Err(Error::file(
            path,
            format!("layout version {}, expected {VERSION}", header.version),
            DAMAGED,
        ));
    }
    let views =
        SafeTensors::deserialize(&map).map_err(|e| Error::file(path, e.to_string(), DAMAGED))?;
    for name in views.names() {
        let promised = |row: &LinearRow| (row.has_bias)(&header.config);
        if name.ends_with(".bias") && !layout::linear(name).is_some_and(promised) {
            // Nobody would add it, and nobody would say so.
            return Err(Error::from(TensorFault {
                path: path.into(),
                tensor: name.into(),
                expected: "no bias, as the configuration has none here".into(),
                found: "a tensor".into(),
                next: DAMAGED.into(),
            }));
        }
    }
    let reader = Reader {
        path,
        views,
        header: &header,
        kernels,
    };
    let decoder = assembly::decoder(&header.config, positions, kernels, &reader)?;
    Ok(Loaded { decoder, header })
}

struct Reader<'a> {
    path: &'a Path,
    views: SafeTensors<'a>,
    header: &'a Header,
    kernels: &'a Arc<dyn Kernels>,
}

impl Reader<'_> {
    fn view(&self, name: &str) -> Result<TensorView<'_>> {
        self.views.tensor(name).map_err(|_| {
            Error::from(TensorFault {
                path: self.path.into(),
                tensor: name.into(),
                expected: "present".into(),
                found: "missing".into(),
                next: DAMAGED.into(),
            })
        })
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let view = self.view(name)?;
        let dtype = DType::try_from(view.dtype())?;
        self.kernels.upload(view.data(), dtype, view.shape())
    }
}

impl Parts for Reader<'_> {
    fn half(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.tensor(name)?;
        if tensor.dtype() != DType::F16 || tensor.dims() != shape {
            return Err(Error::from(TensorFault {
                path: self.path.into(),
                tensor: name.into(),
                expected: format!("F16 {shape:?}"),
                found: format!("{:?} {:?}", tensor.dtype(), tensor.dims()),
                next: DAMAGED.into(),
            }));
        }
        Ok(tensor)
    }

    fn weight(&self, module: &str, shape: (usize, usize)) -> Result<Box<dyn PackedLinear>> {
        let spec = self.header.linears.get(module).ok_or_else(|| {
            Error::from(TensorFault {
                path: self.path.into(),
                tensor: module.into(),
                expected: "a packed linear".into(),
                found: "none in the header".into(),
                next: DAMAGED.into(),
            })
        })?;
        packed::load(spec, shape, &mut |role| {
            let name = format!("{module}.{role}");
            // What the format will not be able to read where it goes.
            if self.kernels.gpu().is_some() {
                packed::check(spec, role, self.view(&name)?.data())?;
            }
            self.tensor(&name)
        })
        .map_err(|error| match error {
            // The format knows its tensors by their role only.
            Error::Tensor(mut fault) if fault.path != self.path => {
                fault.path = self.path.into();
                fault.tensor = format!("{module}.{}", fault.tensor);
                Error::Tensor(fault)
            }
            other => other,
        })
    }
}
