//! Quantization methods: the contracts of every registered id and of variants, and golden cases
//! in which the better method has to win.

use crate::contracts::{self, Case, gaussian, member, normal};
use quantbench::Error;
use quantbench::packed::activations::Activations;
use quantbench::quant::{self, Group, LayerStats, Matrix, Notes, Role};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

#[test]
fn every_advertised_id_keeps_the_contracts() {
    let mut seen = 0;
    for family in quant::families() {
        for listed in family.ids {
            assert!(!listed.about.is_empty(), "{}", listed.id);
            contracts::all(listed.id);
            seen += 1;
        }
    }
    assert!(seen >= 10, "only {seen} ids");
}

#[test]
fn other_widths_and_groups_keep_the_contracts() {
    for method in ["rtn", "awq", "gptq"] {
        for suffix in [
            "int2", "int3-g64", "int8-g32", "int4-gch", "int3-gch", "int4-g48",
        ] {
            contracts::all(&format!("{method}-{suffix}"));
        }
    }
    for id in ["gptq-int3-g64-noao", "gptq-int4-gch-noao"] {
        contracts::all(id);
    }
}

#[test]
fn ids_have_one_canonical_form() {
    for (typed, canonical) in [
        ("gptq-int4-g128", "gptq-int4"),
        ("gptq-int4-ao", "gptq-int4"),
        ("gptq-int3-g64-ao", "gptq-int3-g64"),
        ("gptq-int4-g128-noao", "gptq-int4-noao"),
        ("gptq-int3-g64-noao", "gptq-int3-g64-noao"),
        ("awq-int3-g128", "awq-int3"),
        ("rtn-int8-gch", "rtn-int8-gch"),
        ("rtn-int2-g4096", "rtn-int2-g4096"),
    ] {
        assert_eq!(quant::parse(typed).unwrap().id(), canonical);
    }
    for wrong in [
        "",
        "fp",
        "FP16",
        "fp16 ",
        "int4",
        "int8-g64",
        "fp8-g64",
        "gptq",
        "gptq-int",
        "gptq-int5",
        "gptq-int4-",
        "gptq-int4-g",
        "gptq-int4-g0",
        "gptq-int4-g12",
        "gptq-int4-g-8",
        "gptq-int4-g064",
        "gptq-int4-g64-g64",
        "rtn-int4-ao",
        "awq-int4-noao",
        "awq-int4-gchx",
        "rtn-int16",
        "rtn-int44",
        "awq-int4-g99999999999999999999",
    ] {
        let error = quant::parse(wrong)
            .err()
            .unwrap_or_else(|| panic!("`{wrong}` is an id"));
        assert!(matches!(error, Error::Usage { .. }), "`{wrong}`: {error}");
        assert!(error.to_string().contains(&format!("`{wrong}`")), "{error}");
    }
    for wrong in ["-ao-ao", "-ao-noao", "-noao-ao", "-noao-noao", "-noao-g64"] {
        let refused = quant::parse(&format!("gptq-int4{wrong}")).err();
        assert!(matches!(refused, Some(Error::Usage { .. })), "`{wrong}`");
    }
}

#[test]
fn defaults_are_stated() {
    let stated = |id: &str| serde_json::to_value(quant::parse(id).unwrap().parameters()).unwrap();
    let gptq = stated("gptq-int4");
    assert_eq!(gptq["group_size"], 128);
    assert_eq!(gptq["damping"], 0.01);
    assert_eq!(gptq["block"], 128);
    assert_eq!(gptq["act_order"], true);
    assert_eq!(gptq["static_groups"], true);
    assert_eq!(stated("gptq-int4-noao")["act_order"], false);
    assert_eq!(stated("gptq-int4-noao")["static_groups"], false);
    assert_eq!(gptq["symmetric"], false);
    assert_eq!(stated("awq-int3-gch")["group_size"], -1);
    assert_eq!(stated("awq-int3-gch")["exponents"], 20);
}

/// The figure that the contract of precisions states.
#[test]
fn bits_per_weight_of_int4() {
    for (k, bits) in [(512, 4.15625), (576, 4.0 + 20.0 * 5.0 / 576.0)] {
        for id in ["rtn-int4", "awq-int4", "gptq-int4"] {
            let done = Case::plain(8, k).quantize(id).unwrap();
            let stored = 8.0 * done.packed[0].bytes() as f64 / (8 * k) as f64;
            assert!((stored - bits).abs() < 1e-9, "{id} {k}: {stored}");
        }
    }
}

#[test]
fn fp16_refuses_what_it_cannot_hold() {
    let mut case = Case::plain(8, 64);
    case.group.members[1].weight.data[9] = 65504.0;
    assert!(case.quantize("fp16").is_ok());
    case.group.members[1].weight.data[9] = -65505.0;
    let message = case.quantize("fp16").err().unwrap().to_string();
    assert!(message.contains(&case.group.members[1].name), "{message}");
    assert!(case.quantize("bf16").is_ok());
    for id in ["int8", "rtn-int4", "awq-int4", "gptq-int4"] {
        case.group.members[1].weight.data[9] = 3e38;
        let message = case.quantize(id).err().unwrap().to_string();
        assert!(
            message.contains(&case.group.members[1].name),
            "{id}: {message}"
        );
    }
}

/// Weights are those of the method that quantizes weights only, byte for byte.
#[test]
fn quantized_inputs_leave_the_weights_alone() {
    let case = Case::plain(8, 200);
    for (weights, both) in [("int8", "int8-w8a8"), ("fp8", "fp8-w8a8")] {
        let (a, b) = (
            case.quantize(weights).unwrap(),
            case.quantize(both).unwrap(),
        );
        assert_eq!(a.bytes(), b.bytes());
        assert_ne!(a.packed[0].spec(), b.packed[0].spec());
        assert!(a.packed[0].activations().is_none());
        let parameters = quant::parse(both).unwrap().parameters();
        let named = b.packed[0].activations().unwrap().name();
        assert_eq!(parameters["activations"], named);
    }
}

/// By hand: scales that are powers of two, so that every quotient is exact.
#[test]
fn inputs_are_rounded_as_documented() {
    let rounded = |activations: Activations, row: &[f32]| {
        let mut row = row.to_vec();
        activations.round(&mut row);
        row
    };
    // Scale 1: halves go to the even neighbour.
    let row = [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 0.49, -3.51, 64.0];
    let codes = [127.0, 0.0, 2.0, 2.0, 0.0, -2.0, 126.0, 0.0, -4.0, 64.0];
    assert_eq!(rounded(Activations::Int8, &row), codes);
    // Scale 4, set by a negative input.
    let row = [-508.0, 2.0, 6.0, 507.0];
    assert_eq!(rounded(Activations::Int8, &row), [-508.0, 0.0, 8.0, 508.0]);
    // Scale 7: these quotients are halves, which a product with 1 / 7 would miss.
    let row = [889.0, 87.5, -45.5];
    assert_eq!(rounded(Activations::Int8, &row), [889.0, 84.0, -42.0]);
    // One outlier leaves nothing of the others: 100 / 127 is more than twice 0.39.
    let row = [100.0, 0.39, -0.39, 0.0];
    let scale = 100.0 / 127.0;
    assert_eq!(
        rounded(Activations::Int8, &row),
        [127.0 * scale, 0.0, 0.0, 0.0]
    );

    // Scale 1: steps of 2 from 16, of 32 from 256, of 2⁻⁹ below 2⁻⁶; halfway to the even code.
    let tiny = 1.0 / 1024.0;
    let row = [
        448.0,
        17.0,
        19.0,
        -19.0,
        17.01,
        432.0,
        400.0,
        tiny,
        3.0 * tiny,
        5.0 * tiny,
    ];
    let numbers = [
        448.0,
        16.0,
        20.0,
        -20.0,
        18.0,
        448.0,
        384.0,
        0.0,
        4.0 * tiny,
        4.0 * tiny,
    ];
    assert_eq!(rounded(Activations::E4m3, &row), numbers);
    // Scale 2: the outlier leaves 3 digits of the others, a thousand times smaller.
    let row = [896.0, 0.9, -0.9, 0.0];
    assert_eq!(
        rounded(Activations::E4m3, &row),
        [896.0, 0.875, -0.875, 0.0]
    );

    for activations in [Activations::Int8, Activations::E4m3] {
        assert_eq!(rounded(activations, &[0.0, -0.0, 0.0]), [0.0; 3]);
        assert!(rounded(activations, &[]).is_empty());
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(rounded(activations, &[1.0, bad]).iter().all(|x| x.is_nan()));
        }
    }
}

/// Inputs of rank 24 and a little noise: most directions carry almost nothing, and an error may
/// hide there.
fn correlated(n: usize, k: usize) -> Case {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mixing = gaussian(&mut rng, 24, k, 1.0);
    let mut inputs = vec![0f32; 3 * k * k];
    for row in inputs.chunks_mut(k) {
        for factor in mixing.data.chunks(k) {
            let amount = normal(&mut rng);
            row.iter_mut()
                .zip(factor)
                .for_each(|(x, f)| *x += amount * f);
        }
        row.iter_mut().for_each(|x| *x += 0.1 * normal(&mut rng));
    }
    let members = vec![
        member(Role::Gate, gaussian(&mut rng, n, k, 0.05)),
        member(Role::Up, gaussian(&mut rng, n, k, 0.05)),
    ];
    let foldable = true;
    Case {
        group: Group { members, foldable },
        inputs,
    }
}

/// Four channels in a hundred with thirtyfold activations.
fn outlying(n: usize, k: usize) -> Case {
    let mut case = correlated(n, k);
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    for row in case.inputs.chunks_mut(k) {
        for (channel, x) in row.iter_mut().enumerate() {
            *x = normal(&mut rng) * if channel % 25 == 11 { 30.0 } else { 1.0 };
        }
    }
    case
}

fn error_of(case: &Case, id: &str) -> f64 {
    case.output_error(&case.quantize(id).unwrap())
}

#[test]
fn gptq_hides_errors_where_inputs_are_small() {
    let case = correlated(32, 256);
    for (id, factor) in [
        ("int2", 5.0),
        ("int3", 5.0),
        ("int4", 5.0),
        ("int4-g48", 5.0),
        ("int4-gch", 5.0),
    ] {
        let rtn = error_of(&case, &format!("rtn-{id}"));
        for order in ["", "-noao"] {
            let gptq = error_of(&case, &format!("gptq-{id}{order}"));
            println!("{id}{order}: rtn / gptq = {:.2}", rtn / gptq);
            assert!(rtn > factor * gptq, "{id}{order}: {rtn} {gptq}");
        }
    }
}

#[test]
fn awq_protects_channels_with_large_inputs() {
    let case = outlying(32, 256);
    for (id, factor) in [
        ("int2", 2.0),
        ("int3", 2.0),
        ("int4", 2.0),
        ("int4-g64", 2.0),
    ] {
        let rtn = error_of(&case, &format!("rtn-{id}"));
        let done = case.quantize(&format!("awq-{id}")).unwrap();
        let awq = case.output_error(&done);
        println!("{id}: rtn / awq = {:.2} {:?}", rtn / awq, done.notes);
        assert!(rtn > factor * awq, "{id}: {rtn} {awq}");
        let s = done.fold.expect("outliers call for scales");
        assert!(s[11] > 2.0 * s[12], "{} {}", s[11], s[12]);
        assert_eq!(done.notes["awq_identity_groups"], 0.0);
    }
}

#[test]
fn one_large_row_coarsens_all_others_only_with_one_scale_per_matrix() {
    let mut case = Case::plain(16, 128);
    for member in &mut case.group.members {
        member.weight.data[..128]
            .iter_mut()
            .for_each(|w| *w *= 50.0);
    }
    let ordinary_rows = |id: &str| -> f64 {
        let done = case.quantize(id).unwrap();
        let mut total = 0.0;
        for (member, packed) in case.group.members.iter().zip(&done.packed) {
            let restored = packed.dequantize().unwrap();
            let pairs = restored.iter().zip(&member.weight.data).skip(128);
            total += pairs.map(|(r, w)| f64::from(r - w).powi(2)).sum::<f64>();
        }
        total
    };
    let (row, matrix) = (ordinary_rows("int8"), ordinary_rows("int8-tensor"));
    println!("int8-tensor / int8 = {:.0}", matrix / row);
    assert!(matrix > 500.0 * row, "{matrix} {row}");
}

/// GPTQ as its papers tell it, with none of the shortcuts: explicit inverse, one column at a time,
/// each eliminated from the inverse when it is done (Optimal Brain Quantization in fixed order).
/// With `act_order` that order is by falling energy, on grids fitted to the weights as they were.
fn textbook_gptq(
    weight: &Matrix,
    xtx: &Matrix,
    bits: u32,
    group: usize,
    act_order: bool,
) -> Vec<f32> {
    let (n, k) = (weight.rows, weight.cols);
    let top = f64::from((1u32 << bits) - 1);
    let mut order: Vec<usize> = (0..k).collect();
    if act_order {
        let energy = |i: usize| xtx.data[i * (k + 1)];
        order.sort_by(|a, b| energy(*b).total_cmp(&energy(*a)));
        assert!(!order.is_sorted(), "the case must need sorting");
    }
    let sorted = |row: &[f32]| -> Vec<f64> { order.iter().map(|c| f64::from(row[*c])).collect() };
    let mut h: Vec<Vec<f64>> = order.iter().map(|r| sorted(xtx.row(*r))).collect();
    let mean = (0..k).map(|i| h[i][i]).sum::<f64>() / k as f64;
    for (i, row) in h.iter_mut().enumerate() {
        row[i] += 0.01 * mean;
    }
    let mut inverse = gauss_jordan(h);
    let fit = |part: &[f64]| {
        let low = part.iter().fold(0f64, |m, v| m.min(*v));
        let high = part.iter().fold(0f64, |m, v| m.max(*v));
        let scale = half::f16::from_f64((high - low) / top).to_f64();
        (scale, (-low / scale).round().clamp(0.0, top))
    };
    let mut w: Vec<Vec<f64>> = weight.data.chunks(k).map(sorted).collect();
    let mut grids: Vec<Vec<(f64, f64)>> = weight
        .data
        .chunks(k)
        .map(|row| row.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>())
        .map(|row| row.chunks(group).map(fit).collect())
        .collect();
    let mut restored = vec![0f32; n * k];
    for (i, column) in order.iter().enumerate() {
        let g = column / group;
        for (r, w) in w.iter_mut().enumerate() {
            if !act_order && i % group == 0 {
                grids[r][g] = fit(&w[i..(i + group).min(k)]);
            }
            let (scale, zero) = grids[r][g];
            let code = ((w[i] / scale).round() + zero).clamp(0.0, top);
            let level = scale * (code - zero);
            restored[r * k + column] = level as f32;
            let error = (w[i] - level) / inverse[i][i];
            for j in i + 1..k {
                w[j] -= error * inverse[i][j];
            }
        }
        let pivot = inverse[i].clone();
        for row in &mut inverse[i + 1..] {
            let factor = row[i] / pivot[i];
            row.iter_mut()
                .zip(&pivot)
                .for_each(|(v, p)| *v -= factor * p);
        }
    }
    restored
}

fn gauss_jordan(mut a: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let n = a.len();
    for (i, row) in a.iter_mut().enumerate() {
        row.extend((0..n).map(|j| if i == j { 1.0 } else { 0.0 }));
    }
    for i in 0..n {
        let pivot = a[i][i];
        a[i].iter_mut().for_each(|v| *v /= pivot);
        let row = a[i].clone();
        for (j, other) in a.iter_mut().enumerate().filter(|(j, _)| *j != i) {
            let factor = other[i];
            assert_ne!(i, j);
            other
                .iter_mut()
                .zip(&row)
                .for_each(|(v, p)| *v -= factor * p);
        }
    }
    a.into_iter().map(|row| row[n..].to_vec()).collect()
}

/// Across block ends, short groups, groups that do not divide blocks, and whole rows, in both
/// orders. Not with 8 bits: among 256 levels the rounding of F32 decides one code in some
/// thousands, and a row that differs once goes on differently.
#[test]
fn gptq_gives_the_codes_of_the_textbook() {
    for (k, suffix, bits, group) in [
        (64, "int4-g32", 4, 32),
        (200, "int4", 4, 128),
        (200, "int3-g64", 3, 64),
        (300, "int4-g48", 4, 48),
        (300, "int4-g256", 4, 256),
        (300, "int2-gch", 2, 300),
        (136, "int4-g8", 4, 8),
    ] {
        for (order, act_order) in [("", true), ("-noao", false)] {
            for case in [Case::plain(8, k), correlated(8, k)] {
                let stats = case.stats();
                let done = case.quantize(&format!("gptq-{suffix}{order}")).unwrap();
                for (member, packed) in case.group.members.iter().zip(&done.packed) {
                    let expected =
                        textbook_gptq(&member.weight, &stats.xtx, bits, group, act_order);
                    let restored = packed.dequantize().unwrap();
                    let differing = restored
                        .iter()
                        .zip(&expected)
                        .filter(|(a, b)| a != b)
                        .count();
                    assert_eq!(
                        differing,
                        0,
                        "{suffix}{order} {k} {} of {}",
                        member.name,
                        expected.len()
                    );
                }
            }
        }
    }
}

/// With static groups the grids are those of round-to-nearest: only codes differ.
#[test]
fn act_order_keeps_the_grids_of_rounding() {
    let case = correlated(8, 200);
    let parts = |id: &str| -> Vec<(String, Vec<u8>)> {
        let done = case.quantize(id).unwrap();
        let stored = done.packed.iter().flat_map(|p| p.stored());
        stored
            .map(|s| (s.name.to_string(), contracts::raw(&s.tensor)))
            .collect()
    };
    for ((name, rounding), (_, gptq)) in parts("rtn-int4").into_iter().zip(parts("gptq-int4")) {
        assert_eq!(rounding == gptq, name != "codes", "{name}");
    }
}

/// Values that NumPy computed from the definitions (`scripts/gptq_golden.py`).
#[test]
fn rtn_and_gptq_agree_with_numpy() {
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("../golden/gptq.json")).unwrap();
    assert_eq!(golden["version"], 2);
    let flat = |value: &serde_json::Value| -> Vec<f32> {
        let rows = value.as_array().unwrap().iter();
        rows.flat_map(|row| row.as_array().unwrap())
            .map(|v| v.as_f64().unwrap() as f32)
            .collect()
    };
    let (rows, cols, group) = (16, 64, 32);
    let data = flat(&golden["weight"]);
    let weight = Matrix { rows, cols, data };
    let case = Case {
        group: Group {
            members: vec![member(Role::Down, weight)],
            foldable: false,
        },
        inputs: flat(&golden["inputs"]),
    };
    for (method, order) in [("rtn", ""), ("gptq", ""), ("gptq", "-noao")] {
        let golden = &golden[format!("{method}{order}")];
        let (codes, scales, zeros) = (
            flat(&golden["codes"]),
            flat(&golden["scales"]),
            flat(&golden["zeros"]),
        );
        let id = format!("{method}-int4-g{group}{order}");
        let done = case.quantize(&id).unwrap();
        let restored = done.packed[0].dequantize().unwrap();
        assert_eq!(restored.len(), codes.len());
        for (i, restored) in restored.into_iter().enumerate() {
            let g = i / group;
            let expected = scales[g] * (codes[i] - zeros[g]);
            assert_eq!(restored, expected, "{id} [{}, {}]", i / cols, i % cols);
        }
        if method == "gptq" {
            assert_eq!(done.notes["gptq_dead_inputs"], 1.0);
            assert_eq!(done.notes["gptq_damping_retries"], 0.0);
        }
    }
}

/// `Σ x xᵀ` with ones on the diagonal and `off` elsewhere.
fn coupled(k: usize, off: f32) -> LayerStats {
    let mut xtx = Matrix::zeros(k, k);
    for i in 0..k {
        for j in 0..k {
            xtx.data[i * k + j] = if i == j { 1.0 } else { off };
        }
    }
    LayerStats::new(1, xtx, vec![1.0; k])
}

#[test]
fn gptq_damps_more_and_then_gives_up_but_never_rounds_silently() {
    let mut group = Case::plain(4, 8).group;
    group.members.truncate(1);
    let method = quant::parse("gptq-int4").unwrap();
    // Negative eigenvalues 1 - off: lifted by 0.01, 0.1, 1 or 10.
    for (off, retries) in [
        (0.5, 0.0),
        (1.005, 0.0),
        (1.05, 1.0),
        (1.5, 2.0),
        (5.0, 3.0),
    ] {
        let mut notes = Notes::new();
        method
            .quantize(&group, Some(&coupled(8, off)), &mut notes)
            .unwrap();
        assert_eq!(notes["gptq_damping_retries"], retries, "{off}");
    }
    let failed = method.quantize(&group, Some(&coupled(8, 20.0)), &mut Notes::new());
    let error = failed.err().unwrap();
    assert!(matches!(error, Error::Quantize { .. }));
    let message = error.to_string();
    assert!(
        message.contains("gptq-int4") && message.contains(&group.members[0].name),
        "{message}"
    );
    assert!(message.contains("positive definite"), "{message}");
}

/// A channel that calibration never saw keeps its weight, rounded to nearest, and disturbs no
/// other; when it saw none at all every weight is rounded to nearest, and the note says so.
#[test]
fn gptq_keeps_weights_of_dead_inputs() {
    let mut case = Case::plain(4, 64);
    case.inputs.chunks_mut(64).for_each(|row| row[5] = 0.0);
    let done = case.quantize("gptq-int8").unwrap();
    let restored = done.packed[0].dequantize().unwrap();
    let weight = &case.group.members[0].weight;
    for r in 0..4 {
        assert!((restored[r * 64 + 5] - weight.row(r)[5]).abs() < 2e-3);
    }
    assert_eq!(done.notes["gptq_dead_inputs"], 1.0);

    case.inputs.fill(0.0);
    let done = case.quantize("gptq-int4").unwrap();
    assert_eq!(done.notes["gptq_dead_inputs"], 64.0);
    let rtn = case.quantize("rtn-int4").unwrap();
    assert_eq!(done.bytes(), rtn.bytes());
}

#[test]
fn awq_leaves_alone_what_it_must() {
    // Nothing can be folded: no scales, but clipping for all but query and key.
    let mut case = outlying(16, 128);
    case.group.foldable = false;
    let done = case.quantize("awq-int3").unwrap();
    assert!(done.fold.is_none());
    assert_eq!(done.notes["awq_unfoldable_groups"], 1.0);
    assert!(done.notes["awq_clipped_grids"] > 0.0);
    assert!(case.output_error(&done) < error_of(&case, "rtn-int3"));

    for member in &mut case.group.members {
        member.role = Role::Key;
    }
    let done = case.quantize("awq-int3").unwrap();
    assert!(!done.notes.contains_key("awq_clipped_grids"));
    assert_eq!(done.bytes(), case.quantize("rtn-int3").unwrap().bytes());

    // Inputs that are zero throughout: nothing to choose by.
    case.group.foldable = true;
    case.inputs.fill(0.0);
    let done = case.quantize("awq-int3").unwrap();
    assert!(done.fold.is_none());
    assert_eq!(done.notes["awq_identity_groups"], 1.0);
}

/// The error that AWQ minimizes, from `XᵀX`, is the one that is defined over tokens: its choice
/// is at least as good as every other exponent's, measured on the inputs themselves.
#[test]
fn awq_scales_are_the_best_of_the_grid() {
    let mut case = outlying(8, 64);
    // Query and key are not clipped, so that the fold alone is measured.
    for member in &mut case.group.members {
        member.role = Role::Query;
    }
    let method = quant::parse("awq-int3").unwrap();
    let stats = case.stats();
    let best = error_of(&case, "awq-int3");
    let mut least = f64::INFINITY;
    for i in 0..20 {
        let s: Vec<f32> = stats
            .abs_mean
            .iter()
            .map(|a| a.powf(i as f32 / 20.0))
            .collect();
        let (low, high) = s
            .iter()
            .fold((f32::MAX, 0f32), |(l, h), s| (l.min(*s), h.max(*s)));
        let s: Vec<f32> = s.iter().map(|v| v / (low * high).sqrt()).collect();
        let mut group = case.group.clone();
        group.scale_inputs(&s);
        let scaled = stats.scaled(&s);
        let packed = method
            .quantize(&group, Some(&scaled), &mut Notes::new())
            .unwrap();
        let fold = Some(s);
        let notes = Notes::new();
        let done = contracts::Done {
            group,
            fold,
            packed,
            notes,
        };
        least = least.min(case.output_error(&done));
    }
    assert!((best / least - 1.0).abs() < 1e-2, "{best} {least}");
}

#[test]
fn families_cannot_be_registered_once_the_registry_is_read() {
    assert!(quant::families().count() >= 6);
    assert!(quant::register(&[]).is_err());
}
