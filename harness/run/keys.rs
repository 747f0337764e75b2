//! Keys of finished work: hashes of everything that determines a result.
//!
//! A key is the SHA-256 of the job as JSON, in which paths are replaced by what they hold,
//! together with the program and the machine. The program is its version, commit, metrics version
//! and the hash of the executable: a build with uncommitted changes is another program.

use super::job::Job;
use crate::hash::{sha256, sha256_of_file};
use crate::quant::QuantMethod;
use crate::record::run_info::{Host, METRICS_VERSION};
use crate::{Error, Result};
use serde_json::{Value, json};

/// Makes the keys of one run.
pub struct Keys {
    program: Value,
    machine: Value,
    instruction_set: String,
    gpus: Value,
    /// Of the model's weights and configuration.
    model_sha256: String,
}

impl Keys {
    pub fn new(host: &Host, threads: usize, model_sha256: &str) -> Result<Self> {
        let next = "check that the quantbench binary can still be read";
        let executable = std::env::current_exe().map_err(|e| Error::io("quantbench", e, next))?;
        let executable =
            sha256_of_file(&executable).map_err(|e| Error::io(&executable, e, next))?;
        Ok(Keys {
            program: json!({
                "version": env!("CARGO_PKG_VERSION"),
                "commit": env!("QUANTBENCH_GIT_COMMIT"),
                "metrics_version": METRICS_VERSION,
                "executable": executable,
            }),
            machine: json!({ "host": host, "threads": threads }),
            gpus: json!([host.gpus, host.gpu_driver]),
            instruction_set: host.instruction_set.clone(),
            model_sha256: model_sha256.into(),
        })
    }

    /// Of quantized weights, on whatever machine and with how many threads they are made: the bytes
    /// depend on the instruction set alone, and on the GPU where one summed up inputs.
    pub fn weights(&self, job: &Job, method: &dyn QuantMethod) -> String {
        let gpus = match job {
            Job::Quantize(job) if job.place.device != "cpu" && !job.calibration.is_empty() => {
                &self.gpus
            }
            _ => &Value::Null,
        };
        hash(&[
            &self.program,
            &json!(self.instruction_set),
            gpus,
            &self.quantize_job(job, method),
        ])
    }

    /// Of what a quantizing child says.
    pub fn quantize(&self, job: &Job, method: &dyn QuantMethod) -> String {
        hash(&[
            &self.program,
            &self.machine,
            &self.quantize_job(job, method),
        ])
    }

    /// Of what a measuring or timing child says about the packed file with this hash (about a
    /// synthetic model, whose job says all, it is ignored).
    pub fn run(&self, job: &Job, packed_sha256: &str) -> String {
        let mut job = json!(job);
        for subject in ["/Measure/subject/Packed", "/Time/subject/Packed"] {
            replace(&mut job, subject, json!(packed_sha256));
        }
        // Its address says what it holds.
        replace(&mut job, "/Measure/divergence/path", Value::Null);
        hash(&[&self.program, &self.machine, &job])
    }

    /// Of a timed turn. Repetitions compare because they took turns with those of all others, so
    /// that these, as sorted keys of [`run`](Self::run), belong to it, and how turns were taken.
    pub fn turn(
        &self,
        own: &str,
        beside: &[String],
        processes: usize,
        with_other_runs: bool,
    ) -> String {
        hash(&[&json!({
            "own": own,
            "beside": beside,
            "processes": processes,
            "with_other_runs": with_other_runs,
        })])
    }

    /// Of the machine's rates. The buffer's size follows the free memory of the moment and is no
    /// part of what was asked for.
    pub fn roofline(&self, job: &Job) -> String {
        let mut job = json!(job);
        replace(&mut job, "/Roofline/buffer_bytes", Value::Null);
        hash(&[&self.program, &self.machine, &job])
    }

    /// Of a run with these options.
    pub fn configuration(&self, options: &Value) -> String {
        hash(&[
            &self.program,
            &self.machine,
            &json!(self.model_sha256),
            options,
        ])
    }

    fn quantize_job(&self, job: &Job, method: &dyn QuantMethod) -> Value {
        let mut job = json!(job);
        replace(&mut job, "/Quantize/model", json!(self.model_sha256));
        replace(&mut job, "/Quantize/output", Value::Null);
        // The id as typed may be a path; the parameters say what it holds.
        let precision = json!({ "id": method.id(), "parameters": method.parameters() });
        replace(&mut job, "/Quantize/precision", precision);
        job
    }
}

fn replace(job: &mut Value, pointer: &str, by: Value) {
    if let Some(value) = job.pointer_mut(pointer) {
        *value = by;
    }
}

fn hash(parts: &[&Value]) -> String {
    // Maps of serde_json are sorted, so equal values are equal text.
    let text = parts.iter().map(|p| format!("{p}\n")).collect::<String>();
    sha256([text.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::gpu::Choice;
    use crate::run::job::{Place, QuantizeJob};

    #[test]
    fn a_key_follows_content_and_not_paths() {
        let keys = |threads, model: &str| Keys::new(&Host::default(), threads, model).unwrap();
        let method = |id: &str| crate::quant::parse(id).unwrap();
        let job = |output: &str, calibration: u32| {
            Job::Quantize(QuantizeJob {
                model: Some(output.into()),
                precision: output.into(),
                calibration: vec![vec![1, calibration]],
                output: output.into(),
                place: Place {
                    device: "cpu".into(),
                    kernels: Choice::Auto,
                    graphs: true,
                },
            })
        };
        let int8 = method("int8");
        let key = keys(2, "a").weights(&job("x", 2), int8.as_ref());
        assert_eq!(key, keys(4, "a").weights(&job("y", 2), int8.as_ref()));
        for other in [
            keys(2, "b").weights(&job("x", 2), int8.as_ref()),
            keys(2, "a").weights(&job("x", 3), int8.as_ref()),
            keys(2, "a").weights(&job("x", 2), method("fp8").as_ref()),
            keys(2, "a").quantize(&job("x", 2), int8.as_ref()),
        ] {
            assert_ne!(key, other);
        }
        // What takes time depends on the threads.
        assert_ne!(
            keys(2, "a").quantize(&job("x", 2), int8.as_ref()),
            keys(4, "a").quantize(&job("x", 2), int8.as_ref())
        );
    }
}
