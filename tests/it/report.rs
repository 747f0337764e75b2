//! The report from golden files: columns, round trips, plots, and that all renderings agree.
//!
//! `run` is a whole run of six precisions; `failed` was stopped, has an `oom` and a `killed`
//! row, no reference and absent values.

use quantbench::record::rows::{ResultRow, Status};
use quantbench::record::run_info::{
    CellDetail, ConfidenceBucket, Divergence, GpuInfo, RunInfo, StopRule, TimingDetail,
};
use quantbench::record::{Tables, format};
use quantbench::report::content::{self, Cell};
use quantbench::report::plots::axis::Axis;
use quantbench::report::plots::labels::{self, Rect, Surroundings};
use quantbench::report::plots::pareto::{self, Better};
use quantbench::report::plots::scene::{self, Shape};
use quantbench::report::plots::{PLOTS, Plot, Scene, style};
use quantbench::report::{self, markdown, terminal};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The contract's columns, verbatim.
const HEADERS: [(&str, &str); 6] = [
    (
        "results.csv",
        "run_id,device,model,source_format,precision,method,format,weight_bits,group_size,activation_dtype,kv_cache,status,perplexity,perplexity_se,protocol,dataset,scored_tokens,delta_nll_nats,delta_nll_ci_low,delta_nll_ci_high,bits_per_byte,kl_mean_nats,kl_p99_nats,top1_agreement,batch,prompt_tokens,generated_tokens,prefill_tok_s,prefill_tok_s_sd,decode_tok_s,decode_tok_s_sd,ttft_s,prefill_kernel,decode_kernel,bits_per_weight,weight_bytes,embedding_bytes,kv_cache_bytes,activation_peak_bytes,workspace_bytes,other_bytes,peak_memory_bytes,peak_memory_method,peak_rss_bytes,quantize_s,load_s,threads,seed,metrics_version,warnings,error,mbu,mfu,pool_reserved_bytes,driver_delta_bytes,nvml_process_bytes,gpu_clock_mhz_median,throttled,joules_per_token,kl_tokens,kl_median_nats,kl_p90_nats,kl_max_nats,delta_p_mean,delta_p_rms,perplexity_ratio,perplexity_ratio_se,nonfinite_tokens,prefill_tok_s_ci_low,prefill_tok_s_ci_high,decode_tok_s_ci_low,decode_tok_s_ci_high",
    ),
    (
        "quality.csv",
        "run_id,device,model,precision,kv_cache,protocol,dataset,windows,scored_tokens,scored_bytes,nll_mean_nats,nll_se_nats,perplexity,perplexity_se,bits_per_byte,delta_nll_nats,delta_nll_ci_low,delta_nll_ci_high",
    ),
    (
        "pairs.csv",
        "run_id,protocol,dataset,precision_a,precision_b,delta_nll_nats,delta_nll_ci_low,delta_nll_ci_high",
    ),
    (
        "windows.csv",
        "run_id,precision,kv_cache,protocol,dataset,window,scored_tokens,nll_sum_nats,weighted_nll_nats,weight,kl_tokens,kl_sum_nats",
    ),
    (
        "samples.csv",
        "run_id,precision,kv_cache,phase,batch,context,rep,warmup,tokens,seconds,process,ended_at_s",
    ),
    (
        "speed_pairs.csv",
        "run_id,kv_cache,phase,batch,context,precision_a,precision_b,ratio,ratio_ci_low,ratio_ci_high",
    ),
];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/report")
        .join(name)
}

fn tables(name: &str) -> Tables {
    Tables::read(&golden(name)).expect("golden files are whole")
}

/// Plots that every run has, or a sentence in their place.
fn plots_of_one_workload() -> usize {
    PLOTS.iter().filter(|plot| !plot.whole_sweep).count()
}

fn plot(name: &str) -> &'static Plot {
    PLOTS.iter().find(|plot| plot.name == name).unwrap()
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn text(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).expect("a file that the report wrote")
}

/// A run of any size with plausible numbers.
fn made_up(count: usize) -> Tables {
    let mut tables = tables("run");
    let base = tables.results[3].clone();
    tables.results.truncate(1);
    for i in 1..count {
        let mut row = base.clone();
        row.precision = format!("gptq-int4-g{}-long-id-{i}", 16 << (i % 4));
        row.perplexity = Some(24.9 + 0.01 * (i % 5) as f64);
        row.peak_memory_bytes = base.peak_memory_bytes.map(|b| b + 3000 * (i as u64 % 3));
        tables.results.push(row);
    }
    tables
}

fn with_rows(rows: Vec<ResultRow>) -> Tables {
    Tables {
        results: rows,
        info: RunInfo {
            reference: "fp16".into(),
            complete: true,
            ..RunInfo::default()
        },
        ..Tables::default()
    }
}

// ---- files ------------------------------------------------------------------------------

#[test]
fn columns_are_the_contracts() {
    let dir = scratch();
    for run in ["run", "failed", "sweep"] {
        tables(run).write(dir.path()).unwrap();
        for (file, header) in HEADERS {
            assert_eq!(
                text(dir.path().join(file)).lines().next(),
                Some(header),
                "{file}"
            );
            // Columns that were appended later may be missing there.
            let golden = text(golden(run).join(file));
            let golden = golden.lines().next().unwrap();
            assert!(header.starts_with(golden), "{file}: {golden}");
        }
    }
}

#[test]
fn an_empty_table_still_has_its_header() {
    let dir = scratch();
    Tables::default().write(dir.path()).unwrap();
    for (file, header) in HEADERS {
        assert_eq!(text(dir.path().join(file)), format!("{header}\n"), "{file}");
    }
    assert_eq!(Tables::read(dir.path()).unwrap(), Tables::default());
}

#[test]
fn files_survive_a_round_trip() {
    let dir = scratch();
    for run in ["run", "failed"] {
        let before = tables(run);
        before.write(dir.path()).unwrap();
        assert_eq!(Tables::read(dir.path()).unwrap(), before);
    }
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().starts_with('.'))
        .collect();
    assert!(left.is_empty(), "temporary files stayed: {left:?}");
}

#[test]
fn absent_stays_empty() {
    let dir = scratch();
    tables("failed").write(dir.path()).unwrap();
    let file = text(dir.path().join("results.csv"));
    let mut lines = file.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let header = lines.next().unwrap();
    let oom = lines.next().unwrap();
    for column in [
        "perplexity",
        "scored_tokens",
        "peak_memory_bytes",
        "decode_tok_s",
    ] {
        let at = header.iter().position(|name| *name == column).unwrap();
        assert_eq!(oom[at], "", "{column}");
    }
    assert_eq!(tables("failed").results[0].status, Status::Oom);
    assert_eq!(tables("failed").results[0].scored_tokens, None);
}

#[test]
fn columns_of_other_versions_are_tolerated() {
    let dir = scratch();
    let before = tables("run");
    before.write(dir.path()).unwrap();
    let file = dir.path().join("results.csv");
    let newer: String = text(&file)
        .lines()
        .enumerate()
        .map(|(i, line)| format!("{line},{}\n", if i == 0 { "energy_j" } else { "1.5" }))
        .collect();
    std::fs::write(&file, newer).unwrap();
    assert_eq!(Tables::read(dir.path()).unwrap(), before);

    let pairs = dir.path().join("pairs.csv");
    let older: String = text(&pairs)
        .lines()
        .map(|line| format!("{}\n", line.rsplit_once(',').unwrap().0))
        .collect();
    std::fs::write(&pairs, older).unwrap();
    let read = Tables::read(dir.path()).unwrap();
    assert!(read.pairs.iter().all(|row| row.delta_nll_ci_high.is_none()));
    assert_eq!(read.pairs.len(), before.pairs.len());
}

#[test]
fn a_run_from_before_a_column_still_renders() {
    let dir = scratch();
    tables("run").write(dir.path()).unwrap();
    let file = dir.path().join("results.csv");
    let newer = text(&file);
    let header = newer.lines().next().unwrap();
    let appended = header.split(",error,").nth(1).unwrap().split(',').count();
    let older: String = newer
        .lines()
        .map(|line| format!("{}\n", line.rsplitn(appended + 1, ',').last().unwrap()))
        .collect();
    assert!(older.lines().next().unwrap().ends_with(",warnings,error"));
    std::fs::remove_file(dir.path().join("speed_pairs.csv")).unwrap();
    std::fs::write(&file, older).unwrap();
    let read = Tables::read(dir.path()).unwrap();
    assert_eq!(read.results.len(), 6);
    assert!(read.results.iter().all(|row| row.mbu.is_none()));
    assert!(read.results.iter().all(|row| row.throttled.is_none()));
    assert!(read.speed_pairs.is_empty());
    assert_eq!(read.results[0].error, tables("run").results[0].error);
    report::render(dir.path()).unwrap();
}

#[test]
fn damage_is_named_by_file_line_and_column() {
    let dir = scratch();
    let damage = |file: &str, change: &dyn Fn(String) -> String| {
        tables("run").write(dir.path()).unwrap();
        let path = dir.path().join(file);
        std::fs::write(&path, change(text(&path))).unwrap();
        let message = Tables::read(dir.path()).unwrap_err().to_string();
        assert!(message.contains(file), "{message}");
        message
    };
    let message = damage("results.csv", &|t| {
        t.replacen(",ok,24.7342,", ",ok,much,", 1)
    });
    assert!(
        message.contains("line 3") && message.contains("`perplexity`"),
        "{message}"
    );
    let message = damage("results.csv", &|t| t.replacen(",ok,", ",fine,", 1));
    assert!(
        message.contains("line 2") && message.contains("`status`"),
        "{message}"
    );
    let message = damage("quality.csv", &|t| format!("{t}a,b\n"));
    assert!(
        message.contains("line 44") && message.contains("2 columns"),
        "{message}"
    );
    let message = damage("windows.csv", &|t| t.replacen("nll_sum_nats", "other", 1));
    assert!(
        message.contains("line 1") && message.contains("nll_sum_nats"),
        "{message}"
    );
    let message = damage("run.json", &|t| t.replacen("\"complete\"", "\"comp", 1));
    assert!(message.contains("line "), "{message}");

    let empty = scratch();
    let message = Tables::read(empty.path()).unwrap_err().to_string();
    assert!(message.contains("results.csv"), "{message}");
}

// ---- plots ------------------------------------------------------------------------------

/// Tags balance, attributes hold no impossible number, nothing but text lies outside tags.
fn assert_xml(svg: &str) {
    let mut open = Vec::new();
    let mut rest = svg;
    while let Some(start) = rest.find('<') {
        let end = start + rest[start..].find('>').expect("a tag that ends");
        let tag = &rest[start + 1..end];
        assert!(!tag.contains('<'), "{tag}");
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        match (tag.strip_prefix('/'), tag.ends_with('/')) {
            (Some(name), _) => assert_eq!(open.pop(), Some(name.trim()), "{tag}"),
            (None, true) => {}
            (None, false) => open.push(tag.split_whitespace().next().unwrap()),
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty(), "{open:?}");
    for wrong in ["NaN", "inf", "-2147483648", "2147483647"] {
        let in_attribute = svg.split('"').skip(1).step_by(2).any(|value| {
            value
                .split(|c: char| c.is_whitespace() || c == ',')
                .any(|number| number == wrong)
        });
        assert!(!in_attribute, "{wrong}");
    }
}

#[test]
fn every_plot_draws_svg_and_png_with_text() {
    let dir = scratch();
    let (one, sweep) = (tables("run"), tables("sweep"));
    let names: BTreeSet<_> = PLOTS.iter().map(|plot| plot.name).collect();
    assert_eq!(names.len(), PLOTS.len());
    for plot in PLOTS {
        let tables = if plot.whole_sweep { &sweep } else { &one };
        let scene = (plot.draw)(tables).unwrap_or_else(|| panic!("{} draws nothing", plot.name));
        let svg = scene::svg(&scene, plot.title, &(plot.caption)(tables)).unwrap();
        assert_xml(&svg);
        assert!(
            svg.contains("role=\"img\"") && svg.contains("<title>"),
            "{}",
            plot.name
        );
        assert!(svg.contains(">\nawq-int4\n<"), "{}", plot.name);
        inside_with_room(&scene, plot.name);

        let file = dir.path().join(format!("{}.png", plot.name));
        scene::png(&scene, &file).unwrap();
        let bytes = std::fs::read(&file).unwrap();
        assert!(bytes.starts_with(b"\x89PNG\r\n\x1a\n"), "{}", plot.name);
        // Without its text the picture is a smaller file and has fewer inked pixels.
        let mut bare = scene.clone();
        bare.shapes.retain(|s| !matches!(s, Shape::Text { .. }));
        assert!(
            dark_pixels(&scene) > dark_pixels(&bare) + 500,
            "{}",
            plot.name
        );
    }
}

/// Pixels that carry ink, painted by the bitmap backend.
fn dark_pixels(scene: &Scene) -> usize {
    let (_, _, pixels) = scene::pixels(scene).unwrap();
    pixels
        .chunks(3)
        .filter(|rgb| rgb.iter().all(|channel| *channel < 0x78))
        .count()
}

/// No text leaves the picture.
fn inside_with_room(scene: &Scene, name: &str) {
    for shape in &scene.shapes {
        if let Shape::Text {
            at: (x, y),
            text,
            em,
            align,
            ..
        } = shape
        {
            let width = scene::text_width(text, *em);
            let left = match align {
                scene::Align::Left => *x,
                scene::Align::Centre => x - width / 2.0,
                scene::Align::Right => x - width,
            };
            assert!(
                left >= 0.0 && left + width <= scene.width && *y > 0.5 * em && *y < scene.height,
                "{name}: `{text}` is clipped"
            );
        }
    }
}

#[test]
fn many_rows_and_long_names_stay_inside() {
    for count in [1, 2, 3, 7, 12, 20, 40] {
        let tables = made_up(count);
        for plot in PLOTS {
            if let Some(scene) = (plot.draw)(&tables) {
                inside_with_room(&scene, plot.name);
                assert_xml(&scene::svg(&scene, plot.title, "").unwrap());
            }
        }
    }
    let mut tables = tables("run");
    tables.results[1].precision = "x".repeat(5000);
    for plot in PLOTS {
        if let Some(scene) = (plot.draw)(&tables) {
            inside_with_room(&scene, plot.name);
        }
    }
}

#[test]
fn impossible_numbers_are_left_out() {
    let mut tables = tables("run");
    for (row, value) in
        tables
            .results
            .iter_mut()
            .zip([f64::NAN, f64::INFINITY, 0.0, -3.0, 1e300, 25.0])
    {
        row.perplexity = Some(value);
        row.decode_tok_s = Some(value);
        row.delta_nll_ci_high = Some(value);
    }
    tables.quality[8].delta_nll_nats = Some(f64::NAN);
    tables.quality[9].delta_nll_ci_low = Some(f64::NEG_INFINITY);
    for plot in PLOTS {
        let caption = (plot.caption)(&tables);
        if let Some(scene) = (plot.draw)(&tables) {
            assert_xml(&scene::svg(&scene, plot.title, &caption).unwrap());
        }
    }
    assert!((PLOTS[0].caption)(&tables).contains("Not shown: fp16 (no value)"));
    let dir = scratch();
    tables.write(dir.path()).unwrap();
    report::render(dir.path()).unwrap();
}

#[test]
fn rows_that_are_missing_are_named() {
    let caption = (PLOTS[0].caption)(&tables("failed"));
    assert!(
        caption.contains("Not shown: fp16 (oom), int8 (killed)."),
        "{caption}"
    );
    // No reference, so the bars are of the other kind, and said to be.
    assert!(caption.contains("1.96 standard errors"), "{caption}");
    let caption = (PLOTS[0].caption)(&tables("run"));
    assert!(caption.contains("difference to fp16"), "{caption}");
    assert!(!caption.contains("1.96"), "{caption}");
}

#[test]
fn two_protocols_never_share_an_axis() {
    let mut tables = tables("run");
    tables.results[2].protocol = "llamacpp-v1@512".into();
    tables.results[2].perplexity = Some(17.0);
    let scene = (PLOTS[0].draw)(&tables).unwrap();
    let has = |name: &str| {
        scene
            .shapes
            .iter()
            .any(|s| matches!(s, Shape::Text { text, .. } if text == name))
    };
    assert!(has("fp8") && !has("int8"));
    assert!(
        content::notices(&tables)
            .iter()
            .any(|n| n.contains("2 protocols"))
    );
    let cells = &content::results(&tables).rows[2].cells;
    assert_eq!(cells[1].text, format::ABSENT);
}

/// Rows of a run's further protocols stand in its files and nowhere in its report.
#[test]
fn a_second_protocol_changes_no_figure_and_no_table() {
    let one = tables("run");
    let mut two = one.clone();
    let other = "llamacpp-v1@512".to_string();
    for row in &one.quality {
        let mut row = row.clone();
        row.protocol = other.clone();
        row.perplexity *= 100.0;
        row.delta_nll_nats = row.delta_nll_nats.map(|d| d + 5.0);
        row.delta_nll_ci_low = row.delta_nll_ci_low.map(|d| d + 5.0);
        row.delta_nll_ci_high = row.delta_nll_ci_high.map(|d| d + 5.0);
        two.quality.push(row);
    }
    for row in &one.pairs {
        let mut row = row.clone();
        row.protocol = other.clone();
        row.delta_nll_nats += 5.0;
        two.pairs.push(row);
    }
    for (p, plot) in PLOTS.iter().enumerate() {
        let svg = |tables: &Tables| (plot.draw)(tables).map(|s| format!("{:?}", s.shapes));
        assert_eq!(svg(&two), svg(&one), "plot {p}");
        assert_eq!((plot.caption)(&two), (plot.caption)(&one));
    }
    let cells = |table: content::Table| {
        format!(
            "{:?}",
            table.rows.iter().map(|r| &r.cells).collect::<Vec<_>>()
        )
    };
    for table in [content::results, content::domains, content::pairs] {
        assert_eq!(cells(table(&two)), cells(table(&one)));
    }
    let said = content::notices(&two);
    assert_eq!(said.len(), content::notices(&one).len() + 1);
    assert!(
        said.iter()
            .any(|n| n.contains(&other) && n.contains("quality.csv"))
    );
}

#[test]
fn the_front_holds_what_nothing_beats() {
    let points = [(1.0, 5.0), (2.0, 3.0), (3.0, 4.0), (4.0, 1.0), (2.0, 6.0)];
    assert_eq!(pareto::front(&points, Better::Lower), [0, 1, 3]);
    let points = [(1.0, 5.0), (2.0, 3.0), (3.0, 9.0), (4.0, 9.0)];
    assert_eq!(pareto::front(&points, Better::Higher), [0, 2]);
    // Equal points stay together; an equal y at more memory is beaten.
    let points = [(1.0, 2.0), (1.0, 2.0), (1.0, 3.0), (2.0, 2.0)];
    assert_eq!(pareto::front(&points, Better::Lower), [0, 1]);
    assert_eq!(pareto::front(&[], Better::Lower), Vec::<usize>::new());
    assert_eq!(
        pareto::front(&[(f64::NAN, 1.0), (1.0, 1.0)], Better::Lower),
        [1]
    );
}

#[test]
fn names_do_not_overlap() {
    let points: Vec<_> = (0..9)
        .map(|i| (100.0 + 9.0 * f64::from(i % 3), 200.0 + 8.0 * f64::from(i)))
        .collect();
    let sizes = vec![(70.0, 16.0); points.len()];
    let solid: Vec<_> = points.iter().map(|p| Rect::around(*p, 8.0)).collect();
    let around = Surroundings {
        bounds: Rect {
            left: 0.0,
            top: 0.0,
            right: 500.0,
            bottom: 400.0,
        },
        solid: &solid,
        lines: &[],
        most_covered: 0.0,
    };
    let places = labels::place(&points, &sizes, &around).expect("room for nine names");
    for (i, a) in places.iter().enumerate() {
        assert!(
            places[i + 1..].iter().all(|b| !a.rect.overlaps(&b.rect)),
            "{i}"
        );
        assert!(solid.iter().all(|s| !a.rect.overlaps(s)), "{i}");
    }
    // In a box without room there is no answer, rather than a bad one.
    let tight = Surroundings {
        bounds: Rect::around((110.0, 230.0), 60.0),
        ..around
    };
    assert_eq!(labels::place(&points, &sizes, &tight), None);
}

#[test]
fn ticks_are_round_and_inside() {
    for values in [
        vec![24.7, 25.1],
        vec![5.0],
        vec![],
        vec![0.0, 0.0],
        vec![1e-7, 2e-7],
        vec![1e14, 1.0],
        vec![-3.0, 4.0],
        vec![f64::NAN, 2.0],
    ] {
        let axis = Axis::covering(values.iter().copied(), 6);
        assert!(axis.min < axis.max, "{values:?}");
        assert!(
            (2..=12).contains(&axis.ticks.len()),
            "{values:?}: {:?}",
            axis.ticks
        );
        let slack = 1e-6 * (axis.max - axis.min);
        assert!(
            axis.ticks
                .iter()
                .all(|t| *t >= axis.min - slack && *t <= axis.max + slack)
        );
        let labels: BTreeSet<_> = axis.ticks.iter().map(|t| axis.label(*t)).collect();
        assert_eq!(labels.len(), axis.ticks.len(), "{values:?}");
    }
}

#[test]
fn a_precision_keeps_its_style() {
    let all = style::styles(["fp16", "fp8", "int8", "awq-int4", "gptq-int4", "rtn-int4"]);
    let some = style::styles(["gptq-int4", "fp16"]);
    assert_eq!(all["gptq-int4"], some["gptq-int4"]);
    for (i, (name, a)) in all.iter().enumerate() {
        assert!(
            all.values()
                .skip(i + 1)
                .all(|b| a.color != b.color && a.marker != b.marker),
            "{name}"
        );
    }
    let variants = style::styles(["gptq-int4", "gptq-int4-g64", "gptq-int3"]);
    assert_eq!(variants["gptq-int4"].color, variants["gptq-int3"].color);
    assert_ne!(variants["gptq-int4"].marker, variants["gptq-int3"].marker);
    let many: Vec<String> = (0..40).map(|i| format!("gptq-int4-g{i}")).collect();
    let many = style::styles(many.iter().map(String::as_str));
    let different: BTreeSet<_> = many
        .values()
        .map(|s| (style::hex(s.color), s.marker))
        .collect();
    assert_eq!(different.len(), 40);
}

// ---- renderings -------------------------------------------------------------------------

#[test]
fn all_renderings_show_the_same_numbers() {
    for run in ["run", "failed"] {
        let dir = scratch();
        let tables = tables(run);
        tables.write(dir.path()).unwrap();
        let rendered = report::render(dir.path()).unwrap();
        let html = text(rendered.html);
        let markdown = text(rendered.markdown);
        let terminal = terminal::summary(&tables);
        let results = content::results(&tables);
        for row in &results.rows {
            let name = &row.cells[0].text;
            let line = |text: &str, start: &str| {
                text.lines()
                    .find(|l| l.starts_with(start))
                    .unwrap_or_else(|| panic!("no line for {name}"))
                    .to_string()
            };
            let markdown_line = line(&markdown, &format!("| {name} |"));
            let terminal_line = line(&terminal, &format!("{name} "));
            let terminal_head = terminal.lines().next().unwrap();
            for (i, Cell { text, extra }) in row.cells.iter().enumerate() {
                assert!(html.contains(&format!(">{text}")), "{name}: {text}");
                assert!(extra.is_empty() || html.contains(extra), "{name}: {extra}");
                let plain = format!("{text} {extra}");
                let escaped = plain.trim().replace('[', "\\[").replace(']', "\\]");
                assert!(markdown_line.contains(&escaped), "{name}: {escaped}");
                let is_status = i + 1 == row.cells.len();
                // A line that is too long gives up columns.
                let shown = is_status || terminal_head.contains(&results.columns[i].short);
                if row.failed == is_status && shown {
                    assert!(
                        terminal_line.contains(&format::ascii(text)),
                        "{terminal_line}"
                    );
                }
            }
        }
        let headline = content::headline(&tables);
        assert!(
            html.contains(&headline) && markdown.contains(&headline),
            "{headline}"
        );
    }
}

#[test]
fn shares_stand_beside_the_rates_they_explain() {
    let results = content::results(&tables("run"));
    let heads: Vec<_> = results.columns.iter().map(|c| c.short.as_str()).collect();
    assert_eq!(
        heads[6..11],
        ["prefill/s", "MFU%", "decode/s", "MBU%", "quant s"]
    );
    let cells = &results.rows[0].cells;
    assert_eq!(cells[7].text, "13");
    assert_eq!(cells[9].text, "11");
    // All columns of an ordinary run but two fit the terminal.
    let terminal = terminal::summary(&tables("run"));
    let head = terminal.lines().next().unwrap();
    let mut shown = heads[..11]
        .iter()
        .filter(|h| !["MFU%", "quant s"].contains(h));
    assert!(shown.all(|h| head.contains(h)), "{head}");

    let notes = content::method_notes(&tables("run"));
    let note = |term: &str| &notes.iter().find(|(t, _)| *t == term).unwrap().1;
    assert!(!note("MBU and MFU").contains("as it does here"));
    for part in [
        "2 threads",
        "256 MiB (last-level caches 32 MiB) 20.0 GB/s",
        "copying it 17.5 GB/s",
        "F32 150 GFLOP/s (F32 multiply-adds in registers, avx2)",
        "Best of 10 passes",
    ] {
        assert!(note("Roofline").contains(part), "{}", note("Roofline"));
    }

    let mut cached = tables("run");
    cached.results[0].mbu = Some(1.24);
    cached.results[1].mbu = None;
    for row in &mut cached.results {
        row.mfu = Some(0.05);
    }
    let notes = content::method_notes(&cached);
    assert!(
        notes
            .iter()
            .any(|(_, text)| text.contains("as it does here"))
    );
    let rows = content::results(&cached).rows;
    assert_eq!(rows[0].cells[9].text, "124");
    assert_eq!(rows[1].cells[9].text, format::ABSENT);
    assert_eq!(rows[1].cells[7].text, "5.0");

    // A run that has neither shows no empty columns and explains nothing.
    let without = content::results(&tables("failed"));
    assert!(without.columns.iter().all(|c| !c.short.contains("MBU")));
    assert_eq!(without.rows[0].cells.len(), without.columns.len());
    let notes = content::method_notes(&tables("failed"));
    assert!(
        notes
            .iter()
            .all(|(t, _)| *t != "MBU and MFU" && *t != "Roofline")
    );
}

#[test]
fn memory_of_a_gpu_is_defined_where_it_was_measured() {
    let note = |tables: &Tables| {
        let notes = content::method_notes(tables);
        let memory = notes.into_iter().find(|(term, _)| *term == "Memory");
        memory.unwrap().1
    };
    let mut tables = tables("run");
    assert!(!note(&tables).contains("driver_delta_bytes"));
    tables.results[0].peak_memory_method = "cuda-pool".into();
    for words in [
        "memory pool keeps the mark",
        "driver_delta_bytes",
        "pool_reserved_bytes",
    ] {
        assert!(note(&tables).contains(words), "{words}");
    }
}

#[test]
fn a_gpu_is_described_where_there_was_one() {
    let note = |tables: &Tables, term: &str| {
        let notes = content::method_notes(tables);
        notes.into_iter().find(|(t, _)| *t == term).map(|(_, t)| t)
    };
    let mut tables = tables("run");
    assert_eq!(note(&tables, "GPU while timed"), None);
    assert!(!note(&tables, "Machine").unwrap().contains("GPU"));
    tables.info.host.gpus = vec![GpuInfo {
        name: "Example GPU".into(),
        memory_bytes: Some(80 << 30),
        power_limit_w: Some(700.0),
        ..GpuInfo::default()
    }];
    tables.info.host.gpu_driver = Some("580.1".into());
    tables.results[0].gpu_clock_mhz_median = Some(1980.0);
    tables.results[0].throttled = Some(true);
    tables.results[1].joules_per_token = Some(1.234);
    let machine = note(&tables, "Machine").unwrap();
    for part in ["Example GPU (80 GiB, 700 W at most)", "GPU driver 580.1"] {
        assert!(machine.contains(part), "{machine}");
    }
    let gpu = note(&tables, "GPU while timed").unwrap();
    assert!(
        gpu.contains("fp16: 1980 MHz, clock held down; fp8: 1.23 J per token."),
        "{gpu}"
    );
    // It survives the files, empty and filled.
    let dir = scratch();
    tables.write(dir.path()).unwrap();
    assert_eq!(Tables::read(dir.path()).unwrap(), tables);
}

#[test]
fn the_terminal_table_is_narrow_and_ascii() {
    for tables in [
        tables("run"),
        tables("failed"),
        made_up(20),
        Tables::default(),
    ] {
        let summary = terminal::summary(&tables);
        assert!(summary.is_ascii(), "{summary}");
        assert!(
            summary.lines().all(|l| l.len() <= terminal::WIDTH),
            "{summary}"
        );
        assert!(!summary.contains('?'), "{summary}");
    }
    let failed = terminal::summary(&tables("failed"));
    assert!(
        failed.contains("oom: the memory limit of 12 MiB"),
        "{failed}"
    );
    assert!(failed.contains("killed: the measuring process"), "{failed}");
    let mut hostile = tables("run");
    hostile.results[0].precision = "fp16\x1b[2J\x07".into();
    assert!(!terminal::summary(&hostile).contains('\x1b'));
}

#[test]
fn the_page_needs_nothing_else() {
    let dir = scratch();
    tables("run").write(dir.path()).unwrap();
    let rendered = report::render(dir.path()).unwrap();
    assert_eq!(rendered.plots.len(), 2 * plots_of_one_workload());
    assert!(rendered.plots.iter().all(|file| file.exists()));
    let html = text(rendered.html).replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
    for request in [
        "http://", "https://", "src=", "<script", "<link", "@import", "url(",
    ] {
        assert!(!html.contains(request), "{request}");
    }
    for link in html.split("href=\"").skip(1) {
        let file = link.split('"').next().unwrap();
        assert!(
            dir.path().join(file).exists(),
            "{file} is linked but not there"
        );
    }
    for part in [
        "24.700",
        "gptq-v1@512",
        "CC0-1.0",
        "i4g-avx2",
        "quantbench run",
        "24\u{202f}528",
    ] {
        assert!(html.contains(part), "{part}");
    }
}

#[test]
fn hostile_names_are_only_text() {
    let nasty = "<script>alert('1')</script>\"|`&\u{1}\n";
    let mut tables = tables("run");
    tables.info.model.name = nasty.into();
    tables.info.command = nasty.into();
    tables.info.warnings = vec![nasty.into()];
    tables.info.texts[0].licence = nasty.into();
    tables.info.options.insert(nasty.into(), nasty.into());
    tables.results[0].error = nasty.into();
    for row in &mut tables.results[2..4] {
        row.precision += nasty;
        row.prefill_kernel = nasty.into();
    }
    for row in &mut tables.quality {
        row.dataset += nasty;
    }
    let dir = scratch();
    tables.write(dir.path()).unwrap();
    let rendered = report::render(dir.path()).unwrap();
    for file in rendered
        .plots
        .iter()
        .filter(|f| f.extension().is_some_and(|e| e == "svg"))
    {
        let svg = text(file);
        assert!(!svg.contains("<script") && !svg.contains('\u{1}'));
        assert_xml(&svg);
    }
    assert!(!text(rendered.html).contains("<script"));
    let markdown = text(rendered.markdown);
    let outside_code: String = markdown
        .lines()
        .filter(|l| !l.starts_with("    "))
        .collect();
    assert!(!outside_code.contains("<script"));
    let widths: BTreeSet<usize> = markdown::table(&content::results(&tables))
        .lines()
        .map(|line| line.replace("\\|", "").matches('|').count())
        .collect();
    assert_eq!(widths.len(), 1, "a cell broke the table");
}

#[test]
fn partial_runs_render() {
    let failed_row = |precision: &str, status| ResultRow {
        precision: precision.into(),
        status,
        error: "it did not end well".into(),
        ..ResultRow::default()
    };
    let ok_row = tables("run").results[0].clone();
    let cases = [
        ("zero rows", with_rows(vec![]), 0),
        ("one row", with_rows(vec![ok_row.clone()]), 3),
        (
            "no numbers",
            with_rows(vec![ResultRow {
                status: Status::Ok,
                ..ResultRow::default()
            }]),
            0,
        ),
        (
            "all failed",
            with_rows(vec![
                failed_row("fp16", Status::Oom),
                failed_row("int8", Status::Timeout),
            ]),
            0,
        ),
        ("failed golden run", tables("failed"), 3),
    ];
    for (name, tables, drawn) in cases {
        let dir = scratch();
        tables.write(dir.path()).unwrap();
        // What a run wrote before it was stopped may be less than all files.
        for (file, _) in &HEADERS[1..] {
            if tables.quality.is_empty() {
                std::fs::remove_file(dir.path().join(file)).unwrap();
            }
        }
        let rendered = report::render(dir.path()).unwrap();
        assert_eq!(rendered.plots.len(), 2 * drawn, "{name}");
        // These runs compared nothing token by token: that plot says nothing.
        let not_drawn = plots_of_one_workload() - 1 - drawn;
        assert_eq!(rendered.not_drawn.len(), not_drawn, "{name}");
        let html = text(&rendered.html);
        for (plot, sentence) in &rendered.not_drawn {
            assert!(sentence.starts_with("Not drawn"), "{name}");
            assert!(html.contains(sentence.as_str()), "{name}");
            assert!(!dir.path().join(format!("{plot}.svg")).exists(), "{name}");
        }
        for row in tables.results.iter().filter(|r| r.status != Status::Ok) {
            assert!(
                html.contains(row.status.word()) && html.contains(&row.error),
                "{name}"
            );
        }
    }
}

#[test]
fn an_outdated_plot_is_removed() {
    let dir = scratch();
    tables("run").write(dir.path()).unwrap();
    report::render(dir.path()).unwrap();
    assert!(dir.path().join("domains.png").exists());
    with_rows(vec![]).write(dir.path()).unwrap();
    report::render(dir.path()).unwrap();
    assert!(!dir.path().join("domains.png").exists());
}

// ---- sweeps -----------------------------------------------------------------------------

fn rings(scene: &Scene) -> usize {
    let ring = |s: &&Shape| matches!(s, Shape::Disc { color, .. } if *color == style::INK);
    scene.shapes.iter().filter(ring).count()
}

#[test]
fn the_batch_plot_says_where_the_reference_overtakes() {
    let mut tables = tables("sweep");
    let batch = plot("decode_vs_batch");
    let caption = (batch.caption)(&tables);
    assert_eq!(
        caption,
        "Median decoding speed of all sequences together from a depth of 512 tokens, against the \
         batch. From batch 8 on fp16 decodes faster than awq-int4, gptq-int4 (ring). From batch \
         16 on fp16 decodes faster than fp8 (ring)."
    );
    assert_eq!(rings(&(batch.draw)(&tables).unwrap()), 3);

    // Up to batch 8 fp8 is not overtaken, at batch 8 alone nothing is to be drawn.
    tables.results.retain(|r| r.batch <= Some(8));
    let caption = (batch.caption)(&tables);
    assert!(
        caption.contains("Up to batch 8 fp16 does not overtake fp8."),
        "{caption}"
    );
    for row in &mut tables.results {
        if row.precision == "awq-int4" {
            row.decode_tok_s = row.decode_tok_s.map(|v| v / 10.0);
        }
    }
    let caption = (batch.caption)(&tables);
    assert!(
        caption.contains("fp16 is faster than awq-int4 at every batch."),
        "{caption}"
    );
    tables.results.retain(|r| r.batch == Some(8));
    assert_eq!((batch.caption)(&tables), "");
    assert!((batch.draw)(&tables).is_none());
}

#[test]
fn the_context_plot_names_what_ran_out_of_memory() {
    let mut tables = tables("sweep");
    let context = plot("decode_vs_context");
    let caption = (context.caption)(&tables);
    assert!(caption.contains("at batch 1 against"), "{caption}");
    assert!(!caption.contains("Not shown"), "{caption}");
    let scene = (context.draw)(&tables).unwrap();
    for label in ["512", "2048", "8192"] {
        let has = |s: &Shape| matches!(s, Shape::Text { text, .. } if text == label);
        assert!(scene.shapes.iter().any(has), "{label}");
    }
    tables.results.retain(|r| r.batch == Some(8));
    let caption = (context.caption)(&tables);
    assert!(
        caption.ends_with("Not shown: fp16 ctx=8192 (oom)."),
        "{caption}"
    );
}

#[test]
fn summaries_show_the_first_workload_and_one_table_all() {
    let tables = tables("sweep");
    let summary = content::first_workload(&tables);
    let results = content::results(&summary);
    let names: Vec<&str> = results
        .rows
        .iter()
        .map(|r| r.cells[0].text.as_str())
        .collect();
    assert_eq!(names, ["fp16", "fp8", "awq-int4", "gptq-int4"]);
    assert_eq!(summary.samples.len(), 4 * 2 * 2);
    let sweep = content::sweep(&tables);
    assert_eq!(sweep.rows.len(), 60);
    let shapes: BTreeSet<String> = sweep
        .rows
        .iter()
        .map(|r| format!("{}/{}", r.cells[1].text, r.cells[2].text))
        .collect();
    assert_eq!(shapes.len(), 15);
    let failed: Vec<String> = sweep
        .rows
        .iter()
        .filter(|r| r.failed)
        .map(|r| r.cells.last().unwrap().joined())
        .collect();
    assert!(failed[0].starts_with("oom memory limit"), "{failed:?}");
    assert_eq!(failed[1], "skipped oom at batch 8, context 8192");

    let dir = scratch();
    tables.write(dir.path()).unwrap();
    let rendered = report::render(dir.path()).unwrap();
    assert_eq!(rendered.plots.len(), 2 * (PLOTS.len() - 1));
    for page in [text(rendered.html), text(rendered.markdown)] {
        assert!(page.contains("Every batch and context"));
        assert!(page.contains("Summaries show batch 1, context 512, the first of 15"));
    }
    let terminal = terminal::summary(&tables);
    assert!(terminal.contains("skipped: oom at batch 8, context 8192"));
    assert!(terminal.is_ascii() && terminal.lines().all(|l| l.len() <= terminal::WIDTH));

    // One batch and one context: no table, no plots, and none of an earlier rendering.
    summary.write(dir.path()).unwrap();
    let rendered = report::render(dir.path()).unwrap();
    assert_eq!(rendered.plots.len(), 2 * (plots_of_one_workload() - 1));
    assert!(!dir.path().join("decode_vs_batch.svg").exists());
    assert!(!text(rendered.html).contains("Every batch and context"));
    assert!(content::sweep(&summary).rows.is_empty());
}

#[test]
fn a_second_kv_cache_is_compared_with_the_references_first() {
    let mut tables = tables("run");
    let mut other = tables.results[0].clone();
    other.kv_cache = "fp32".into();
    other.delta_nll_nats = Some(-0.0001);
    tables.results.insert(1, other);
    let results = content::results(&tables);
    assert_eq!(results.rows[0].cells[0].text, "fp16 kv=fp16");
    assert_eq!(results.rows[0].cells[2].text, "reference");
    assert_eq!(results.rows[1].cells[0].text, "fp16 kv=fp32");
    assert_eq!(results.rows[1].cells[2].text, "−0.01");
}

#[test]
fn without_quality_the_headline_is_about_memory_and_speed() {
    let mut tables = tables("run");
    for row in &mut tables.results {
        row.perplexity = None;
        row.delta_nll_nats = None;
    }
    let headline = content::headline(&tables);
    assert!(
        headline.contains("of fp16’s peak memory") && headline.contains("was not measured"),
        "{headline}"
    );
    tables.results.truncate(1);
    let headline = content::headline(&tables);
    assert_eq!(headline, "Memory and speed were measured; quality was not.");
}

#[test]
fn the_headline_says_only_what_the_rows_hold() {
    let headline = content::headline(&tables("run"));
    assert_eq!(
        headline,
        "awq-int4 needs 52 % of fp16’s peak memory and decodes at 2.1× its speed; its perplexity \
         is 1.08 % higher (95 % interval +0.80 to +1.37 %)."
    );
    assert!(content::headline(&tables("failed")).contains("fp16 has no result"));
    let mut far = tables("run");
    for row in &mut far.results {
        row.delta_nll_nats = row.delta_nll_nats.map(|d| d + 1.0);
    }
    assert!(content::headline(&far).contains("none is both smaller"));
    let notices = content::notices(&tables("failed"));
    assert!(notices[0].contains("gptq-int4, rtn-int4"), "{notices:?}");
}

// ---- pairs ------------------------------------------------------------------------------

#[test]
fn pairs_are_read_in_words() {
    let tables = tables("run");
    let table = content::pairs(&tables);
    assert_eq!(table.rows.len(), 15);
    let readings = |table: &content::Table| -> Vec<String> {
        let reading = |row: &content::Row| {
            let cells: Vec<&str> = row.cells.iter().map(|c| c.text.as_str()).collect();
            format!("{} {}: {}", cells[0], cells[1], cells[cells.len() - 1])
        };
        table.rows.iter().map(reading).collect()
    };
    let quality = readings(&table);
    let expected = [
        "fp16 fp8: fp8 costs 0.0014 ± 0.0007 nats more than fp16",
        "fp16 awq-int4: awq-int4 costs 0.0107 ± 0.0028 nats more than fp16",
    ];
    for reading in expected {
        assert!(quality.iter().any(|q| q == reading), "{quality:#?}");
    }
    // From a dear precision to a cheap one it is said the same way round.
    let mut turned = tables.clone();
    turned.pairs[0].delta_nll_nats = -0.5;
    turned.pairs[0].delta_nll_ci_low = Some(-0.52);
    turned.pairs[0].delta_nll_ci_high = Some(-0.48);
    assert_eq!(
        readings(&content::pairs(&turned))[0],
        "fp16 fp8: fp16 costs 0.500 ± 0.020 nats more than fp8"
    );
    turned.pairs[0].delta_nll_ci_high = Some(0.01);
    assert_eq!(
        readings(&content::pairs(&turned))[0],
        "fp16 fp8: no difference shown"
    );

    let table = content::speed_pairs(&tables);
    assert_eq!(table.rows.len(), 30);
    let speed = readings(&table);
    for reading in [
        "fp16 fp8: fp16 is 1.070 ± 0.024 × faster than fp8",
        "fp16 int8: int8 is 1.095 ± 0.024 × faster than fp16",
    ] {
        assert!(speed.iter().any(|s| s == reading), "{speed:#?}");
    }
    let mut few = tables.clone();
    few.speed_pairs[0].ratio_ci_low = None;
    few.speed_pairs[1].ratio_ci_low = Some(0.99);
    let speed = readings(&content::speed_pairs(&few));
    assert_eq!(speed[0], "fp16 fp8: too few repetitions for an interval");
    assert_eq!(speed[1], "fp16 int8: no difference shown");
    let cells = &content::speed_pairs(&few).rows[0].cells[3];
    assert_eq!((cells.text.as_str(), cells.extra.as_str()), ("0.93", ""));
}

#[test]
fn few_pairs_are_said_on_the_terminal() {
    let mut tables = tables("run");
    assert_eq!(content::pair_sentences(&tables), Vec::<String>::new());
    tables.pairs.truncate(1);
    tables.speed_pairs.truncate(2);
    tables.speed_pairs[1].ratio_ci_low = Some(0.9);
    let shown = terminal::summary(&tables);
    for line in [
        "prefill: fp16 is 1.070 +/- 0.024 x faster than fp8.",
        "prefill: no difference shown between fp16 and int8.",
        "quality: fp8 costs 0.0014 +/- 0.0007 nats more than fp16.",
    ] {
        assert!(shown.lines().any(|l| l == line), "{shown}");
    }
}

#[test]
fn a_sweep_compares_speeds_at_its_first_workload() {
    let tables = tables("sweep");
    assert_eq!(tables.speed_pairs.len(), 168);
    let first = content::first_workload(&tables);
    assert!(
        first
            .speed_pairs
            .iter()
            .all(|p| (p.batch, p.context) == (1, 512))
    );
    assert_eq!(first.speed_pairs.len(), 2 * 6);
    let dir = scratch();
    tables.write(dir.path()).unwrap();
    let rendered = report::render(dir.path()).unwrap();
    for page in [text(rendered.html), text(rendered.markdown)] {
        assert!(page.contains("Speed of one precision against another"));
        assert!(page.contains("too few repetitions for an interval"));
    }
}

#[test]
fn the_note_on_speed_says_why_repetitions_ended() {
    let note = |tables: &Tables| {
        let notes = content::method_notes(tables);
        notes.into_iter().find(|(t, _)| *t == "Speed").unwrap().1
    };
    // Runs from before intervals were recorded.
    let mut tables = tables("run");
    assert!(!note(&tables).contains("Medians have intervals"));
    let timing = |repetitions, stopped_by, interval_level| TimingDetail {
        repetitions,
        stopped_by,
        interval_level,
        ..TimingDetail::default()
    };
    let mut with = |details: [TimingDetail; 2]| {
        for (cell, detail) in tables.info.cells.iter_mut().zip(details) {
            cell.timing = Some(detail);
        }
        note(&tables)
    };
    let fixed = timing(5, StopRule::Fixed, Some(0.9375));
    let said = with([fixed.clone(), fixed]);
    assert!(
        said.contains("here 93.8 %") && !said.contains("ended after"),
        "{said}"
    );
    let few = timing(2, StopRule::Fixed, None);
    assert!(with([few.clone(), few]).contains("without intervals"));
    let steady = timing(9, StopRule::Noise, Some(0.96));
    let said = with([steady.clone(), steady.clone()]);
    assert!(said.contains("ended after 9, when every median"), "{said}");
    let said = with([steady, timing(30, StopRule::MaxReps, Some(0.957))]);
    assert!(
        said.contains("ended after 9 to 30, when the most allowed"),
        "{said}"
    );
    assert!(said.contains("here 95.7 %"), "{said}");
}

// ---- numbers ----------------------------------------------------------------------------

#[test]
fn digits_follow_from_the_uncertainty() {
    assert_eq!(format::decimals_for(0.012), Some(3));
    assert_eq!(format::decimals_for(0.05), Some(2));
    assert_eq!(format::decimals_for(14.0), Some(0));
    assert_eq!(format::decimals_for(0.0), None);
    assert_eq!(format::decimals_for(f64::NAN), None);
    assert_eq!(format::number(-0.0001, 2), "0.00");
    assert_eq!(format::number(-1.25, 1), "−1.2");
    assert_eq!(format::signed(0.001, 2), "0.00");
    assert_eq!(format::signed(1.5, 1), "+1.5");
    assert_eq!(format::number(f64::NAN, 1), "not a number");
    assert_eq!(format::number(f64::INFINITY, 1), "infinite");
    assert_eq!(format::count(1234567), "1\u{202f}234\u{202f}567");
    assert_eq!(format::count(12), "12");
    assert_eq!(format::shortened("gptq-int4-g64", 9), "gptq…-g64");
    let mib = format::ByteUnit::for_largest([20 << 20]);
    assert_eq!(mib.with_unit(10 << 20), "10.00 MiB");
    let gib = format::ByteUnit::for_largest([20 << 30, 1]);
    assert_eq!(gib.with_unit(5 << 29), "2.50 GiB");
    assert_eq!(format::ascii("Δ −1 ± 2 × 3 – é"), "d -1 +/- 2 x 3 - ?");
}

// ---- divergence -------------------------------------------------------------------------

/// The golden run with a noise floor that would win every comparison if it took part.
fn with_noise_floor() -> Tables {
    let mut tables = tables("run");
    let mut floor = tables.results[2].clone();
    floor.precision = "fp16+ulp".into();
    floor.kl_mean_nats = Some(6.4e-7);
    floor.delta_nll_nats = Some(-0.01);
    floor.delta_nll_ci_low = Some(-0.011);
    floor.delta_nll_ci_high = Some(-0.009);
    floor.peak_memory_bytes = floor.peak_memory_bytes.map(|b| b / 3);
    tables.info.noise_floors = vec![floor.precision.clone()];
    let mut pair = tables.pairs[0].clone();
    pair.dataset = "overall".into();
    pair.precision_b = floor.precision.clone();
    tables.pairs.push(pair);
    let mut quality = tables.quality[8].clone();
    quality.precision = floor.precision.clone();
    tables.quality.push(quality);
    tables.results.push(floor);
    tables
}

#[test]
fn a_noise_floor_is_explained_and_never_offered() {
    let tables = with_noise_floor();
    let before = self::tables("run");
    assert_eq!(content::headline(&tables), content::headline(&before));
    assert_eq!(content::pairs(&tables), content::pairs(&before));
    for plot in PLOTS {
        let Some(scene) = (plot.draw)(&tables) else {
            continue;
        };
        let named = |s: &Shape| matches!(s, Shape::Text { text, .. } if text.contains("ulp"));
        assert!(!scene.shapes.iter().any(named), "{}", plot.name);
        let caption = (plot.caption)(&tables);
        assert!(!caption.contains("fp16+ulp (no value)"), "{caption}");
        let mentioned = caption.contains("fp16+ulp");
        assert_eq!(mentioned, plot.name == "kl_vs_memory", "{caption}");
    }
    let page = markdown::page(&tables, &[]);
    assert!(page.contains("| fp16+ulp noise floor | 6.4e−7 |"), "{page}");
    assert!(page.contains("so 6.4e−7 nats is what “lossless” means here"));
    assert!(page.contains("it is no precision to choose"));
}

#[test]
fn distances_are_shown_in_every_rendering() {
    let mut tables = tables("run");
    let buckets = |kl| {
        let bucket = |from, to, tokens| ConfidenceBucket {
            from,
            to,
            tokens,
            kl_mean_nats: (tokens > 0).then_some(kl),
            top1_agreement: (tokens > 0).then_some(0.987),
        };
        vec![bucket(0.0, 0.25, 1200), bucket(0.25, 1.0, 0)]
    };
    let cell = |precision: &str, kl| CellDetail {
        precision: precision.into(),
        kv_cache: tables.results[0].kv_cache.clone(),
        divergence: Some(Divergence {
            resolution_nats: 2.5e-8,
            buckets: buckets(kl),
            ..Divergence::default()
        }),
        ..CellDetail::default()
    };
    tables.info.cells = vec![cell("int8", 8.1e-5), cell("awq-int4", 0.0121)];
    let dir = scratch();
    tables.write(dir.path()).unwrap();
    assert_eq!(Tables::read(dir.path()).unwrap(), tables);
    report::render(dir.path()).unwrap();
    let page = text(dir.path().join("report.md"));
    let row = "| int8 | 8.1e−5 | 4.9e−5 | 0.00018 | 0.00057 | 0.0032 | 99.55 |";
    assert!(page.contains(row), "{page}");
    assert!(page.contains("| 0–25 % (1\u{202f}200 tokens) |"), "{page}");
    assert!(page.contains("| int8 | 8.1e−5 98.7 % | – |"), "{page}");
    assert!(page.contains("shows as at most 2.5e−8 nats"), "{page}");
    let html = text(dir.path().join("index.html"));
    assert!(html.contains("Distance from the reference, token by token"));
    assert!(terminal::summary(&tables).contains("KL nats"));
    assert!(dir.path().join("kl_vs_memory.svg").exists());

    // A run that compared nothing says nothing of it.
    for row in &mut tables.results {
        row.kl_mean_nats = None;
        row.kl_tokens = None;
    }
    tables.info.cells.clear();
    let page = markdown::page(&tables, &[]);
    assert!(!page.contains("KL") && !page.contains("Distance"), "{page}");
    let plot = plot("kl_vs_memory");
    assert!((plot.draw)(&tables).is_none() && (plot.caption)(&tables).is_empty());
}

#[test]
fn divergences_have_two_digits() {
    for (value, shown) in [
        (0.0, "0.00"),
        (6.4e-7, "6.4e−7"),
        (0.000123, "0.00012"),
        (0.0121, "0.012"),
        (0.56, "0.56"),
        (3.21, "3.2"),
        (25.4, "25"),
    ] {
        assert_eq!(format::nats(value), shown);
    }
}
