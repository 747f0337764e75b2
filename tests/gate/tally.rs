//! Counts over comparisons written by `quantbench compare --format json`.

use serde_json::Value;

fn read(file: &str) -> Value {
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{file}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{file}: {e}"))
}

fn changes(comparison: &Value) -> Vec<&Value> {
    let runs = comparison["runs"].as_array().unwrap().iter();
    runs.flat_map(|run| run["changes"].as_array().unwrap())
        .collect()
}

fn is_regression(change: &Value) -> bool {
    change["verdict"] == "regression"
}

fn is_speed(change: &Value) -> bool {
    change["metric"].as_str().unwrap().ends_with("_tok_s")
}

/// Prints every change of pairs of equal builds, then the counts; whether there are no alarms in
/// quality and memory, at most one pair with an alarm in speed, and nothing failed.
pub fn pairs(files: &[&str]) -> bool {
    println!("pair,precision,metric,change,interval_low,interval_high,verdict");
    let (mut exact_alarms, mut speed_alarms, mut broken) = (0, 0, 0);
    let mut logs: Vec<f64> = vec![];
    for (i, file) in files.iter().enumerate() {
        let comparison = read(file);
        broken += usize::from(comparison["exit_code"].as_i64().unwrap() > 1);
        let changes = changes(&comparison);
        for c in &changes {
            let number = |v: &Value| v.as_f64().map_or(String::new(), |n| format!("{n:.5}"));
            println!(
                "{},{},{},{},{},{},{}",
                i + 1,
                c["cell"]["precision"].as_str().unwrap(),
                c["metric"].as_str().unwrap(),
                number(&c["change"]),
                number(&c["interval"][0]),
                number(&c["interval"][1]),
                c["verdict"].as_str().unwrap()
            );
            if let (true, Some(change)) = (is_speed(c), c["change"].as_f64()) {
                logs.push((1.0 + change).ln());
            }
        }
        let alarm = |speed: bool| {
            let alarms = changes.iter().filter(|c| is_regression(c));
            alarms.filter(|c| is_speed(c) == speed).count()
        };
        exact_alarms += alarm(false);
        speed_alarms += usize::from(alarm(true) > 0);
    }
    let squares: f64 = logs.iter().map(|l| l * l).sum();
    let noise = (squares / logs.len().max(1) as f64).sqrt();
    println!(
        "# {} pairs: {exact_alarms} alarms in quality and memory, {speed_alarms} pairs with an \
         alarm in speed, {broken} failed or not comparable; speeds of the two sides differ by \
         {:.2} % (root mean square)",
        files.len(),
        100.0 * noise
    );
    exact_alarms == 0 && speed_alarms <= 1 && broken == 0
}

/// Prints in how many comparisons `metric` of `precision` is a regression; whether in all.
pub fn found(metric: &str, precision: &str, files: &[&str]) -> bool {
    let mut count = 0;
    for file in files {
        let comparison = read(file);
        let changes = changes(&comparison);
        let planted = |c: &&&Value| c["metric"] == metric && c["cell"]["precision"] == precision;
        let alarm = changes.iter().filter(planted).any(|c| is_regression(c));
        count += usize::from(alarm && comparison["exit_code"] == 1);
        for c in changes.iter().filter(planted) {
            println!(
                "{file},{metric},{precision},{},{},{}",
                c["change"], c["interval"], c["verdict"]
            );
        }
    }
    println!(
        "# {metric} of {precision}: found in {count} of {}",
        files.len()
    );
    count == files.len() && !files.is_empty()
}
