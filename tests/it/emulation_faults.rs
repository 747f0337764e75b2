//! What the emulation of the GPU notices, shown on kernels with planted faults, and what it gets
//! right: exchanges in a warp, the matrix instruction, half precision.

use crate::emulation::{Emulation, Guarded, Schedule};
use half::f16;

const ONE_WARP: [u32; 3] = [32, 1, 1];

/// Asserts that a launch failed, for this reason.
#[track_caller]
fn caught(result: Result<(), String>, reason: &str) {
    let error = result.expect_err("the fault was not noticed");
    assert!(error.contains(reason), "{error}");
}

fn ramp(count: usize) -> Vec<f32> {
    (0..count).map(|i| i as f32).collect()
}

#[test]
fn a_removed_barrier_changes_results_between_schedules() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let x = Guarded::from(&ramp(512));
    let run = |kernel, schedule| {
        let y = Guarded::<f32>::poisoned(512);
        emulation.schedule(schedule);
        emulation
            .launch(
                kernel,
                [2, 1, 1],
                [256, 1, 1],
                0,
                arguments![x.pointer(), y.pointer()],
            )
            .unwrap();
        y.as_slice().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    let reversed = |i: usize| (i / 256 * 256 + 255 - i % 256) as f32;
    let expected: Vec<u32> = (0..512).map(|i| reversed(i).to_bits()).collect();
    let mut wrong = 0;
    for schedule in Schedule::ALL {
        assert_eq!(run("fine_reverse", schedule), expected, "{schedule:?}");
        wrong += (run("fault_race", schedule) != expected) as u32;
    }
    assert_eq!(wrong, 3);
    assert_ne!(
        run("fault_race", Schedule::Forward),
        run("fault_race", Schedule::Reverse)
    );
}

#[test]
fn access_outside_a_buffer_is_an_error() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let x = Guarded::from(&ramp(32));
    let run = |kernel, offset: i32, count| {
        let y = Guarded::<f32>::poisoned(count);
        emulation.launch(
            kernel,
            [1; 3],
            ONE_WARP,
            0,
            arguments![x.pointer(), y.pointer(), offset],
        )
    };
    run("fault_read", 0, 32).unwrap();
    run("fault_write", 0, 32).unwrap();
    caught(
        run("fault_read", 1, 32),
        "out of bounds: read at byte 128 of a buffer of 128 bytes, thread (31, 0, 0)",
    );
    caught(
        run("fault_write", 1, 32),
        "out of bounds: write at byte 128",
    );
    // Up to the next 16 bytes, and before the first: noticed after the launch.
    caught(
        run("fault_write", 0, 31),
        "a write just outside a buffer of 124 bytes",
    );
    caught(run("fault_write", -1, 32), "a write just outside");
    // Reads there give NaN.
    let y = Guarded::<f32>::poisoned(32);
    emulation
        .launch(
            "fault_read",
            [1; 3],
            ONE_WARP,
            0,
            arguments![x.pointer(), y.pointer(), -1i32],
        )
        .unwrap();
    assert!(y.as_slice()[0].is_nan() && y.as_slice()[1] == 0.0);
}

#[test]
fn threads_that_wait_for_ever_are_an_error() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let y = Guarded::<f32>::poisoned(64);
    for schedule in Schedule::ALL {
        emulation.schedule(schedule);
        let run = |kernel, threads| {
            emulation.launch(kernel, [1; 3], [threads, 1, 1], 0, arguments![y.pointer()])
        };
        caught(run("fault_two_barriers", 64), "divergence");
        caught(run("fault_deadlock", 32), "divergence");
        caught(run("fault_absent_lane", 32), "has ended");
        caught(run("fault_absent_lane", 4), "absent lane");
        caught(run("fault_shuffle_source", 32), "takes no part");
    }
}

#[test]
fn misaligned_vectors_and_indices_outside_arrays_are_errors() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let x = Guarded::from(&ramp(16));
    let y = Guarded::<f32>::poisoned(1);
    let one = [1; 3];
    let load = |offset: i32| {
        emulation.launch(
            "fault_misaligned",
            one,
            one,
            0,
            arguments![x.pointer(), y.pointer(), offset],
        )
    };
    load(4).unwrap();
    assert_eq!(y.as_slice(), [4.0 + 5.0 + 6.0 + 7.0]);
    for offset in 1..4 {
        caught(load(offset), "misaligned");
    }
    let index =
        |kernel, i: i32| emulation.launch(kernel, one, one, 128, arguments![y.pointer(), i]);
    index("fault_shared_index", 31).unwrap();
    caught(index("fault_shared_index", 32), "index outside");
    index("fault_dynamic_index", 31).unwrap();
    caught(
        index("fault_dynamic_index", 32),
        "out of bounds: write behind the dynamic shared memory",
    );
    index("fault_stack", 5).unwrap();
    caught(index("fault_stack", 100), "the stack is full");
    index("fault_shared_index", 0).unwrap();
}

#[test]
fn shared_memory_is_new_in_every_block_and_copies_arrive_when_waited_for() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let y = Guarded::from(&[0f32; 4]);
    emulation
        .launch(
            "fault_stale_shared",
            [4, 1, 1],
            [1; 3],
            0,
            arguments![y.pointer()],
        )
        .unwrap();
    assert!(y.as_slice().iter().all(|v| v.is_nan()));
    let x = Guarded::from(&ramp(4));
    let copy = |wait: i32| {
        emulation.launch(
            "fault_copy_async",
            [1; 3],
            [1; 3],
            0,
            arguments![x.pointer(), y.pointer(), wait],
        )
    };
    copy(1).unwrap();
    assert_eq!(y.as_slice()[0], 3.0);
    copy(0).unwrap();
    assert!(y.as_slice()[0].is_nan());
}

#[test]
fn launches_that_a_gpu_refuses_are_errors() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let y = Guarded::<f32>::poisoned(1);
    let run = |kernel, grid, block, shared| {
        emulation.launch(kernel, grid, block, shared, arguments![y.pointer(), 0i32])
    };
    caught(run("fault_none", [1; 3], [1; 3], 0), "no kernel is named");
    caught(run("fault_stack", [0, 1, 1], [1; 3], 0), "a grid of");
    caught(run("fault_stack", [1; 3], [1025, 1, 1], 0), "a block of");
    caught(
        run("fault_stack", [1; 3], [1; 3], 232_449),
        "dynamic shared memory",
    );
    caught(
        run("fine_exchange", [1; 3], [1; 3], 0),
        "has 1 parameters, not 2",
    );
}

#[test]
fn lanes_exchange_what_the_manual_says() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    for schedule in Schedule::ALL {
        emulation.schedule(schedule);
        let y = Guarded::<u32>::poisoned(256);
        emulation
            .launch(
                "fine_exchange",
                [1; 3],
                ONE_WARP,
                0,
                arguments![y.pointer()],
            )
            .unwrap();
        for lane in 0..32u32 {
            let found: Vec<u32> = (0..8)
                .map(|i| y.as_slice()[(i * 32 + lane) as usize])
                .collect();
            let votes = (0..32).step_by(3).fold(0, |set, l| set | 1u32 << l);
            let expected = [
                lane ^ 5,
                if lane + 3 < 32 { lane + 3 } else { lane },
                lane.checked_sub(3).unwrap_or(lane),
                lane / 8 * 8 + 2,
                votes,
                1,
                0,
                lane ^ if lane < 16 { 1 } else { 2 },
            ];
            assert_eq!(found, expected, "lane {lane}");
        }
    }
}

#[test]
fn the_matrix_instruction_multiplies() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let halves = |count: usize, step: usize| -> Vec<f16> {
        (0..count)
            .map(|i| f16::from_f32(((i * step) % 37) as f32 - 18.0))
            .collect()
    };
    let (a, b, c) = (halves(256, 5), halves(128, 11), ramp(128));
    let (ga, gb) = (Guarded::from(&a), Guarded::from(&b));
    for schedule in Schedule::ALL {
        emulation.schedule(schedule);
        let d = Guarded::from(&c);
        emulation
            .launch(
                "fine_mma",
                [1; 3],
                ONE_WARP,
                0,
                arguments![ga.pointer(), gb.pointer(), d.pointer()],
            )
            .unwrap();
        for row in 0..16 {
            for column in 0..8 {
                let product = |k: usize| a[row * 16 + k].to_f32() * b[k * 8 + column].to_f32();
                let expected = c[row * 8 + column] + (0..16).map(product).sum::<f32>();
                assert_eq!(d.as_slice()[row * 8 + column], expected);
            }
        }
    }
}

#[test]
fn halves_round_to_nearest_even() {
    let Some(emulation) = Emulation::get() else {
        return;
    };
    let mut values: Vec<f32> = (0..u32::MAX - 4000)
        .step_by(4001)
        .map(f32::from_bits)
        .collect();
    // Every half, the middle to the next one, and both neighbours of the middle.
    for bits in 0..0x7c00u16 {
        let (low, high) = (
            f16::from_bits(bits).to_f32(),
            f16::from_bits(bits + 1).to_f32(),
        );
        let middle = if high.is_finite() {
            (low + high) / 2.0
        } else {
            65520.0
        };
        values.extend([low, middle, -middle, middle.next_up(), middle.next_down()]);
    }
    let from = Guarded::from(&values);
    let to = Guarded::<u16>::poisoned(values.len());
    let back = Guarded::<f32>::poisoned(65536);
    emulation
        .launch(
            "fine_halves",
            [1; 3],
            ONE_WARP,
            0,
            arguments![
                from.pointer(),
                to.pointer(),
                values.len() as i32,
                back.pointer()
            ],
        )
        .unwrap();
    for (&value, &bits) in values.iter().zip(to.as_slice()) {
        let (found, expected) = (f16::from_bits(bits), f16::from_f32(value));
        assert!(
            found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()),
            "{value}"
        );
    }
    for (bits, &found) in (0..=u16::MAX).zip(back.as_slice()) {
        let expected = f16::from_bits(bits).to_f32();
        assert!(
            found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()),
            "{bits:#x}"
        );
    }
    // 1.0009765625 squared is 1.001954078674316, and 2^-12 less is just below the middle between
    // two halves: rounding the product first would give the upper one.
    let a = f16::from_bits(0x3c01);
    let c = f16::from_f32(-(2f32.powi(-12)));
    let (a, c) = (Guarded::from(&[a; 32]), Guarded::from(&[c; 32]));
    let y = Guarded::<f16>::poisoned(32);
    emulation
        .launch(
            "fine_half_fma",
            [1; 3],
            ONE_WARP,
            0,
            arguments![a.pointer(), a.pointer(), c.pointer(), y.pointer()],
        )
        .unwrap();
    let exact = a.as_slice()[0].to_f64().powi(2) + c.as_slice()[0].to_f64();
    assert_eq!(y.as_slice()[0], f16::from_f64(exact));
}
