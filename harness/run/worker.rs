//! The child's side: reads one [`Job`] from standard input, answers with [`Event`]s.

use super::altered;
use super::job::{
    DivergenceJob, Event, Job, MeasureJob, MemoryResult, Place, QuantizeJob, QuantizeResult,
    Subject, TimeJob, Turn,
};
use super::quantize::{Setting, quantize_in};
use crate::device::{DeviceChoice, Gpu};
use crate::formats;
use crate::formats::native;
use crate::hash::sha256_of_file;
use crate::measure::choices::{Item, log_likelihoods};
use crate::measure::divergence::Pass;
use crate::measure::meter::Meter;
use crate::measure::nvml;
use crate::measure::quality::{CachedDecoder, Observer, Plan};
use crate::measure::roofline::{self, Cost};
use crate::measure::speed::{Phase, Workload, run_once};
use crate::memory::{self, Bracket, Usage, peak_rss_bytes, reset_peak_rss};
use crate::model::decoder::Decoder;
use crate::model::generate::Generator;
use crate::model::gpu::GpuKernels;
use crate::model::kernels::{CpuKernels, Kernels};
use crate::model::kv_cache::KvPrecision;
use crate::model::layout::Slot;
use crate::model::synthetic;
use crate::quant::Calibration;
use crate::record::rows::Status;
use crate::{Error, Result, quant};
use candle_core::DType;
use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// The hidden subcommand; returns the exit code.
pub fn main() -> i32 {
    die_with_parent();
    keep_freed_memory();
    let mut line = String::new();
    let job = std::io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|e| e.to_string())
        .and_then(|_| serde_json::from_str(&line).map_err(|e| e.to_string()));
    drop(line);
    // On a thread of the pool: a caller from outside would be one thread more than there are
    // cores, and now and then share one with a thread that it waits for.
    let result = rayon::ThreadPoolBuilder::new()
        .build_global()
        .map_err(|e| Error::unsupported(e.to_string(), "use fewer --threads"))
        .and_then(|()| {
            rayon::scope(|_| match job {
                Ok(Job::Quantize(job)) => run_quantize(job),
                Ok(Job::Measure(job)) => run_measure(job),
                Ok(Job::Time(job)) => run_time(job),
                Ok(Job::Roofline {
                    place,
                    buffer_bytes,
                }) => run_roofline(&place, buffer_bytes),
                Err(e) => Err(Error::usage(
                    format!("the worker was given no job: {e}"),
                    "start it through quantbench run",
                )),
            })
        });
    match result {
        Ok(()) => 0,
        Err(error) => {
            let (status, message) = (status(&error), error.to_string());
            // If the parent is gone there is nobody left to tell.
            let _ = send(&Event::Failed { status, message });
            3
        }
    }
}

fn status(error: &Error) -> Status {
    match error {
        Error::Unsupported { .. } => Status::Unsupported,
        Error::OutOfMemory(_) => Status::Oom,
        _ => Status::Error,
    }
}

/// Ends this process when its parent ends, however that happened.
fn die_with_parent() {
    #[cfg(target_os = "linux")]
    // SAFETY: plain system call without pointers.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
}

/// Makes the C library keep large freed blocks for the next activation of that size. By default
/// it returns each to the system and pays page faults for it again, a tenth of the run's time.
fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets two tuning parameters of the allocator, before other threads exist.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

fn send(event: &Event) -> Result<()> {
    let gone = |e: std::io::Error| Error::io("standard output", e, "the parent process ended");
    let mut line = serde_json::to_vec(event).map_err(|e| gone(e.into()))?;
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&line)
        .and_then(|()| out.flush())
        .map_err(gone)
}

fn run_quantize(job: QuantizeJob) -> Result<()> {
    let bracket = Bracket::open();
    let start = Instant::now();
    let source = formats::open(job.model.as_deref())?;
    let method = quant::parse(&job.precision)?;
    let setting = Setting {
        // Where nothing is calibrated there is nothing for a GPU to do.
        kernels: match method.calibration() {
            Calibration::Inputs => kernels(&job.place)?,
            Calibration::None => Arc::new(CpuKernels),
        },
        // The same whatever caches are asked for: so are the weights.
        kv: KvPrecision::default(),
        spool: Some(match job.output.parent() {
            Some(folder) if folder != Path::new("") => folder.into(),
            _ => ".".into(),
        }),
    };
    memory::device::reset_peak();
    let quantized = quantize_in(
        &setting,
        source.as_ref(),
        method.as_ref(),
        &job.calibration,
        &mut |done, total| send(&Event::Progress { done, total }),
    )?;
    let on_gpu = setting.kernels.gpu().is_some();
    quantized.model.write(&job.output)?;
    let result = QuantizeResult {
        quantize_s: start.elapsed().as_secs_f64(),
        peak_bytes: bracket.peak().total_bytes,
        notes: quantized.notes,
        packed_sha256: sha256_of_file(&job.output)
            .map_err(|e| Error::io(&job.output, e, "it was just written; is the disk full?"))?,
        device_peak_bytes: on_gpu.then(|| memory::device::peak().total_bytes),
        peak_rss_bytes: peak_rss_bytes(),
    };
    send(&Event::Quantized(result))
}

/// Starts the thread pool, whose own memory then lies outside every bracket.
fn warm_thread_pool() {
    rayon::broadcast(|_| ());
}

/// The steps of a decoder where a job wants them.
fn kernels(place: &Place) -> Result<Arc<dyn Kernels>> {
    Ok(match place.device.parse::<DeviceChoice>()?.driver()? {
        None => Arc::new(CpuKernels),
        Some(driver) => Arc::new(GpuKernels::new(
            Gpu::new(driver),
            place.kernels,
            place.graphs,
        )?),
    })
}

/// Memory that is free on the GPU of a job, where it has one that tells.
fn free_bytes(place: &Place) -> Option<u64> {
    (!place.on_cpu()).then(|| nvml::free_bytes(&place.device))?
}

fn run_roofline(place: &Place, buffer_bytes: u64) -> Result<()> {
    let roofline = match place.device.parse::<DeviceChoice>()?.driver()? {
        None => roofline::measure(buffer_bytes)?,
        Some(driver) => roofline::measure_gpu(driver.as_ref())?,
    };
    send(&Event::Roofline(Box::new(roofline)))
}

/// The model in owned buffers, with RoPE tables for `positions`.
fn load(subject: &Subject, positions: usize, kernels: &Arc<dyn Kernels>) -> Result<Decoder> {
    match subject {
        Subject::Packed(path) => Ok(native::load(path, positions, kernels)?.decoder),
        Subject::Synthetic {
            config,
            precision,
            seed,
        } => {
            let spec = quant::parse(precision)?.spec();
            synthetic::decoder(config, &spec, *seed, positions, kernels)
        }
    }
}

fn run_measure(job: MeasureJob) -> Result<()> {
    let kv = KvPrecision::parse(&job.kv)?;
    // Before anything is counted: neither texts nor what is made of them are the model's.
    let plan = Plan::new(&job.streams, &job.texts)?;
    let positions = job.workloads.iter().map(Workload::positions);
    let longest_item = job.choices.iter().map(Item::longest).max().unwrap_or(0);
    let positions = positions.max().unwrap_or(0);
    let positions = positions.max(plan.longest()).max(longest_item);
    warm_thread_pool();

    // Before there is a context, whose own memory is to show in the difference.
    let free_bytes = free_bytes(&job.place);
    let kernels = kernels(&job.place)?;
    let meter = Meter::open(kernels.as_ref())?.since(free_bytes);
    if let Some(limit) = job.memory_limit_bytes {
        meter.set_limit(limit);
    }
    let start = Instant::now();
    let decoder = load(&job.subject, positions, &kernels)?;
    let load = Load {
        seconds: matches!(job.subject, Subject::Packed(_)).then(|| start.elapsed().as_secs_f64()),
        peak: meter.peak()?,
        peak_rss_bytes: peak_rss_bytes(),
    };
    send(&Event::Loaded)?;
    for (i, workload) in job.workloads.iter().enumerate() {
        // What the system saw of the workload before is not this one's.
        let rss_is_own = i == 0 || reset_peak_rss();
        let mut memory = measure_memory(&decoder, workload, kv, &meter, &load)?;
        memory.peak_rss_bytes = memory.peak_rss_bytes.filter(|_| rss_is_own);
        send(&Event::Memory(Box::new(memory)))?;
    }
    if plan.passes() == 0 {
        return Ok(());
    }
    meter.reset_peak()?;
    let mut model = CachedDecoder {
        cache: decoder.cache(1, plan.longest(), kv)?,
        decoder: &decoder,
    };
    let mut compared = |window| send(&Event::Divergence(window));
    let mut pass = match job.divergence.map(|job| *job) {
        None => None,
        Some(DivergenceJob {
            path,
            address,
            records,
        }) => Some(match records {
            true => Pass::record(&path, address)?,
            false => Pass::compare(&path, address, &mut compared)?,
        }),
    };
    let mut observers: Vec<&mut dyn Observer> = vec![];
    observers.extend(pass.as_mut().map(|pass| pass as &mut dyn Observer));
    plan.score(&mut model, &mut observers, &mut |text, score| {
        send(&Event::Window {
            text,
            score: *score,
        })
    })?;
    if let Some(pass) = pass {
        pass.finish()?;
    }
    drop(model);
    send(&Event::Scored {
        perplexity_peak_bytes: meter.peak()?.total_bytes,
    })?;
    score_choices(&decoder, kv, &job.choices, longest_item)
}

/// Scores multiple-choice items of at most `longest` tokens.
fn score_choices(decoder: &Decoder, kv: KvPrecision, items: &[Item], longest: usize) -> Result<()> {
    if items.is_empty() {
        return Ok(());
    }
    let mut model = CachedDecoder {
        cache: decoder.cache(1, longest, kv)?,
        decoder,
    };
    for item in items {
        send(&Event::Choice {
            log_likelihoods_nats: log_likelihoods(&mut model, item)?,
        })?;
    }
    Ok(())
}

/// What loading took.
struct Load {
    /// Absent where nothing was read.
    seconds: Option<f64>,
    peak: Usage,
    peak_rss_bytes: Option<u64>,
}

/// Runs the workload once and reads the counters at the end of each phase.
fn measure_memory(
    decoder: &Decoder,
    workload: &Workload,
    kv: KvPrecision,
    meter: &Meter,
    load: &Load,
) -> Result<MemoryResult> {
    let after_load = meter.live()?;
    let mut phases: Vec<(&str, Usage)> = vec![("load", load.peak)];

    meter.reset_peak()?;
    let cache = decoder.cache(workload.batch(), workload.positions(), kv)?;
    let mut generator = Generator::new(decoder, cache);
    run_once(&mut generator, workload, &mut |phase| {
        let name = match phase {
            Phase::Prefilled => "prefill",
            Phase::Decoded => "decode",
        };
        phases.push((name, meter.peak()?));
        meter.reset_peak()
    })?;
    let highest = |of: fn(&Usage) -> usize| phases.iter().map(|(_, u)| of(u)).max().unwrap_or(0);
    let other_bytes = highest(|u| u.other_bytes);
    let rope_bytes = decoder.rope.bytes();
    let first = &decoder.blocks[0].linear(Slot::Q).weight;
    let product = |rows| decoder.kernels.product_name(first.as_ref(), rows);
    Ok(MemoryResult {
        load_s: load.seconds,
        spec: first.spec(),
        bits_per_weight: decoder.bits_per_weight(),
        weight_bytes: decoder.body_bytes(),
        embedding_bytes: decoder.embedding_bytes(),
        kv_cache_bytes: generator.cache().bytes(),
        activation_peak_bytes: highest(|u| u.activations_bytes),
        workspace_peak_bytes: highest(|u| u.workspace_bytes),
        other_bytes,
        other_parts_bytes: BTreeMap::from([
            ("rope_tables".to_string(), rope_bytes as u64),
            (
                "token_ids".to_string(),
                other_bytes.saturating_sub(rope_bytes) as u64,
            ),
        ]),
        peak_bytes: highest(|u| u.total_bytes),
        peak_bytes_by_phase: phases
            .iter()
            .map(|(name, u)| (name.to_string(), u.total_bytes as u64))
            .collect(),
        loaded_bytes: after_load.total_bytes,
        // Of the phase that made the peak: what others left unnamed does not show in it.
        untagged_peak_bytes: phases
            .iter()
            .max_by_key(|(_, u)| u.total_bytes)
            .map_or(0, |(_, u)| u.untagged_bytes),
        peak_rss_bytes: peak_rss_bytes().max(load.peak_rss_bytes),
        activation_dtype: match (first.activations(), decoder.kernels.activation_dtype()) {
            (Some(rounded), _) => rounded.name().into(),
            (None, DType::F32) => "fp32".into(),
            (None, DType::F16) => "fp16".into(),
            (None, other) => other.as_str().into(),
        },
        peak_memory_method: meter.method().into(),
        device_memory: meter.device_memory()?,
        prefill_kernel: product(workload.batch() * workload.prompt_tokens()),
        decode_kernel: product(workload.batch()),
        cost: Cost::of(decoder, kv),
    })
}

fn run_time(job: TimeJob) -> Result<()> {
    let positions = job.turns.iter().map(|t| t.workload.positions()).max();
    let decoder = load(&job.subject, positions.unwrap_or(0), &kernels(&job.place)?)?;
    send(&Event::Ready)?;
    // One cache at a time: those of all turns together might not fit.
    let mut held: Option<(usize, Generator)> = None;
    let mut times_run = vec![0; job.turns.len()];
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| Error::io("standard input", e, "the parent process ended"))?;
        let asked = line.parse().ok();
        let Some((i, turn)) = asked.and_then(|i: usize| Some((i, job.turns.get(i)?))) else {
            break;
        };
        let mut generator = match held.take() {
            Some((same, generator)) if same == i => generator,
            other => {
                drop(other);
                fresh_generator(&decoder, turn)?
            }
        };
        let mut sample = run_once(&mut generator, &turn.workload, &mut |_| Ok(()))?;
        if let Some(factors) = &job.time_factors {
            sample.lengthen(altered::factor(factors, times_run[i]));
        }
        times_run[i] += 1;
        send(&Event::Timed(sample))?;
        held = Some((i, generator));
    }
    Ok(())
}

/// A generator for a turn that has taken its first steps, which a device may record: they are
/// none of the turn's.
fn fresh_generator<'a>(decoder: &'a Decoder, turn: &Turn) -> Result<Generator<'a>> {
    let workload = &turn.workload;
    let kv = KvPrecision::parse(&turn.kv)?;
    let cache = decoder.cache(workload.batch(), workload.positions(), kv)?;
    let mut generator = Generator::new(decoder, cache);
    let first_steps = Workload {
        prompts: workload.prompts.iter().map(|p| p[..1].to_vec()).collect(),
        generated_tokens: 1,
    };
    run_once(&mut generator, &first_steps, &mut |_| Ok(()))?;
    Ok(generator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_memory_is_a_status_of_its_own() {
        let of = |error: Error| status(&error);
        assert_eq!(of(Error::out_of_memory("loading a kernel")), Status::Oom);
        assert_eq!(of(Error::unsupported("this", "that")), Status::Unsupported);
        assert_eq!(of(Error::device("this", "that")), Status::Error);
    }

    #[test]
    fn a_defect_is_no_missing_support() {
        let defect = Error::defect("a step without a buffer");
        assert_eq!(status(&defect), Status::Error);
        let words = defect.to_string();
        assert!(words.starts_with("a defect of quantbench: a step without a buffer\n"));
        assert!(words.contains("report it"), "{words}");
    }
}
