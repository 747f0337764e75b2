//! What precisions cost, measured by the real binary: the orderings that published results and
//! the methods' definitions lead one to expect, with paired intervals.

use crate::common::{quantbench, smollm2, stderr};
use quantbench::record::Tables;
use std::path::Path;

const PRECISIONS: &str = "fp32,fp16,fp8,fp8-w8a8,int8,int8-w8a8,int8-tensor,rtn-int4,awq-int4,\
                          gptq-int4,rtn-int3,awq-int3,gptq-int3";

/// The pairwise differences of a run over all texts.
struct Costs(Tables);

impl Costs {
    fn measure(model: Option<&Path>, limits: &[&str]) -> Self {
        let out = tempfile::tempdir().unwrap();
        let mut command = quantbench();
        command
            .args(["run", "--precisions", PRECISIONS, "--reps", "1"])
            .args(["--no-kl", "--choices", "none"])
            .args(["--prompt-tokens", "32", "--gen-tokens", "8", "--out"])
            .arg(out.path())
            .args(limits);
        if let Some(model) = model {
            command.arg("--model").arg(model);
        }
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        println!("{}", crate::common::stdout(&output));
        Costs(Tables::read(out.path()).unwrap())
    }

    /// Mean NLL of `b` minus that of `a`, and its 95 % interval.
    fn difference(&self, a: &str, b: &str) -> (f64, f64, f64) {
        let rows = self.0.pairs.iter().filter(|p| p.dataset == "overall");
        for p in rows {
            let (low, high) = (p.delta_nll_ci_low.unwrap(), p.delta_nll_ci_high.unwrap());
            if (p.precision_a.as_str(), p.precision_b.as_str()) == (a, b) {
                return (p.delta_nll_nats, low, high);
            }
            if (p.precision_a.as_str(), p.precision_b.as_str()) == (b, a) {
                return (-p.delta_nll_nats, -high, -low);
            }
        }
        panic!("no pair {a}, {b}");
    }

    /// What must hold on every model. Returns the interval of `int8-tensor` against `int8`.
    fn check(&self) -> (f64, f64) {
        let show = |a: &str, b: &str| {
            let (mean, low, high) = self.difference(a, b);
            println!("{b} - {a}: {mean:+.5} [{low:+.5}, {high:+.5}] nats");
            (mean, low, high)
        };
        let (rounding, _, _) = show("fp32", "fp16");
        assert!(rounding.abs() < 1e-3, "fp16 against fp32: {rounding}");
        for method in ["awq-int3", "gptq-int3"] {
            let (_, _, high) = show("rtn-int3", method);
            assert!(high < 0.0, "{method} does not beat rtn-int3");
        }
        let (_, low, _) = show("rtn-int4", "awq-int4");
        assert!(low <= 0.0, "awq-int4 is worse than rtn-int4");
        let (mean, _, _) = show("rtn-int4", "gptq-int4");
        assert!(mean < 0.0, "gptq-int4 does not beat rtn-int4");
        let (floor, floor_low, _) = show("fp16", "rtn-int4");
        assert!(floor_low > 0.0);
        for (gentle, fraction) in [("int8", 0.1), ("fp8", 0.35)] {
            let (cost, _, _) = show("fp16", gentle);
            assert!(cost < fraction * floor, "{gentle} costs {cost} of {floor}");
        }
        for (weights, both) in [("fp8", "fp8-w8a8"), ("int8", "int8-w8a8")] {
            let (activations, _, _) = show(weights, both);
            assert!(activations > 0.0, "{both} costs less than {weights}");
            let (cost, _, _) = show("fp16", both);
            assert!(cost < 0.5 * floor, "{both} costs {cost} of {floor}");
        }
        let (mean, low, high) = show("int8", "int8-tensor");
        assert!(
            mean > 0.0,
            "one scale per matrix costs less than one per channel"
        );
        (low, high)
    }
}

#[test]
fn methods_order_as_they_should_on_the_embedded_model() {
    // Its weights have few outliers: int8-tensor costs some 0.0002 nats more than int8, about
    // what 147 windows can tell from zero, so that its interval is shown and not required here.
    let costs = Costs::measure(None, &[]);
    costs.check();
    let (_, _, high) = costs.difference("rtn-int4", "gptq-int4");
    assert!(high < 0.0, "gptq-int4 may not beat rtn-int4");
}

#[test]
fn methods_order_as_they_should_on_smollm2() {
    if let Some(model) = smollm2("methods_order_as_they_should_on_smollm2") {
        // Enough text for the intervals to decide, little enough for a test.
        let limits = ["--limit", "12", "--calibration-limit", "12"];
        // GPTQ's lead at 4 bits is the closest: -0.06 to -0.05 nats on each instruction set, but the
        // interval ends at -0.010 to -0.003, so that the mean is required and the interval shown.
        let costs = Costs::measure(Some(&model), &limits);
        let (low, _) = costs.check();
        assert!(
            low > 0.0,
            "one scale per matrix does not cost more than one per channel"
        );
    }
}
