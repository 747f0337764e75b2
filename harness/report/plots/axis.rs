//! An axis with round ticks, or ticks at the values of a sweep, and the frame that two of them
//! make.

use super::scene::{Align, Point, Scene, text_width};
use super::style::{EDGE, GRID, QUIET, TEXT};
use crate::record::format;

/// A range of numbers with ticks at round values.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    pub min: f64,
    pub max: f64,
    pub ticks: Vec<f64>,
    decimals: usize,
    /// Whether places are logarithms to base 2 of what the labels say.
    log2: bool,
}

impl Axis {
    /// Covers `values` (all finite) with some room, in about `count` steps. Starts at zero where
    /// that costs little: lengths then show ratios.
    pub fn covering(values: impl IntoIterator<Item = f64>, count: usize) -> Self {
        let (low, high) = values
            .into_iter()
            .filter(|v| v.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
                (low.min(v), high.max(v))
            });
        let (low, high) = if low > high { (0.0, 1.0) } else { (low, high) };
        // One value, or values too close to tell apart in floating point.
        let tight = high - low <= 1e-9 * high.abs().max(low.abs());
        let room = if tight {
            (0.05 * high.abs()).max(1e-3)
        } else {
            0.08 * (high - low)
        };
        let from_zero = low >= 0.0 && low < 0.5 * high;
        let min = if from_zero { 0.0 } else { low - room };
        Axis::new(min, high + room, count)
    }

    /// Exactly `min..=max`.
    pub fn new(min: f64, max: f64, count: usize) -> Self {
        let raw = (max - min) / count.max(1) as f64;
        let magnitude = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0]
            .into_iter()
            .map(|m| m * magnitude)
            .find(|step| *step >= raw * 0.999)
            .unwrap_or(raw);
        let decimals = (0..12)
            .find(|d| {
                let scaled = step * 10f64.powi(*d);
                scaled.round() >= 1.0 && (scaled - scaled.round()).abs() < 1e-6 * scaled
            })
            .unwrap_or(12) as usize;
        let first = (min / step - 1e-9).ceil();
        let ticks = (0..=2 * count)
            .map(|i| (first + i as f64) * step)
            .take_while(|tick| *tick <= max + 1e-9 * step)
            .collect();
        Axis {
            min,
            max,
            ticks,
            decimals,
            log2: false,
        }
    }

    /// Covers `values` (all above zero) on a logarithmic scale, with ticks at as many of them as
    /// have room for a label.
    pub fn log2(values: impl IntoIterator<Item = u64>) -> Self {
        const ROOM: f64 = 0.11;
        let mut places: Vec<f64> = values.into_iter().map(|v| (v as f64).log2()).collect();
        places.sort_by(f64::total_cmp);
        let (low, high) = match (places.first(), places.last()) {
            (Some(low), Some(high)) => (*low, *high),
            _ => (0.0, 1.0),
        };
        let room = (0.06 * (high - low)).max(0.1);
        let (min, max) = (low - room, high + room);
        let mut ticks: Vec<f64> = vec![];
        for place in places {
            if ticks
                .last()
                .is_none_or(|last| place - last >= ROOM * (max - min))
            {
                ticks.push(place);
            }
        }
        Axis {
            min,
            max,
            ticks,
            decimals: 0,
            log2: true,
        }
    }

    pub fn label(&self, tick: f64) -> String {
        match self.log2 {
            true => format::number(tick.exp2().round(), 0),
            false => format::number(tick, self.decimals),
        }
    }

    /// Where a value lies, from 0 to 1.
    pub fn fraction(&self, value: f64) -> f64 {
        ((value - self.min) / (self.max - self.min)).clamp(-0.05, 1.05)
    }
}

/// The box between two axes, in logical pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    pub left: f64,
    pub top: f64,
    pub right: f64,
    pub bottom: f64,
    pub x: Axis,
    pub y: Axis,
}

impl Frame {
    /// Fits a box and its tick labels into `width × height`.
    pub fn new(width: f64, height: f64, x: Axis, y: Axis) -> Self {
        let widest = y
            .ticks
            .iter()
            .map(|t| text_width(&y.label(*t), TEXT))
            .fold(0.0, f64::max);
        Frame {
            left: EDGE + widest + 8.0,
            top: 36.0,
            right: width - EDGE - 14.0,
            bottom: height - 52.0,
            x,
            y,
        }
    }

    pub fn at(&self, x: f64, y: f64) -> Point {
        (
            self.left + self.x.fraction(x) * (self.right - self.left),
            self.bottom - self.y.fraction(y) * (self.bottom - self.top),
        )
    }

    /// Grid, tick labels, and the titles of both axes with their units. The title of the y axis
    /// lies flat above it: turned text is hard to read.
    pub fn draw(&self, scene: &mut Scene, x_title: &str, y_title: &str) {
        for tick in &self.y.ticks {
            let (_, y) = self.at(self.x.min, *tick);
            scene.line([(self.left, y), (self.right, y)], 1.0, GRID);
            scene.text(
                (self.left - 8.0, y + 0.36 * TEXT),
                &self.y.label(*tick),
                TEXT,
                Align::Right,
                QUIET,
            );
        }
        self.draw_x(scene, x_title);
        scene.text((EDGE, self.top - 17.0), y_title, TEXT, Align::Left, QUIET);
    }

    /// The x axis alone.
    pub fn draw_x(&self, scene: &mut Scene, title: &str) {
        for tick in &self.x.ticks {
            let (x, _) = self.at(*tick, self.y.min);
            scene.line([(x, self.top), (x, self.bottom)], 1.0, GRID);
            scene.text(
                (x, self.bottom + 19.0),
                &self.x.label(*tick),
                TEXT,
                Align::Centre,
                QUIET,
            );
        }
        scene.text(
            (self.right, self.bottom + 41.0),
            title,
            TEXT,
            Align::Right,
            QUIET,
        );
    }
}
