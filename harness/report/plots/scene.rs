//! Shapes in logical pixels, and the one function that paints them with plotters.
//!
//! The backends place text differently (vertical origin, size of an em); `Lettering` evens
//! that out, so that a label sits at the same spot in SVG and PNG.

use crate::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::path::Path;
use std::sync::OnceLock;

/// What every picture is drawn on.
pub const PAPER: RGBColor = RGBColor(255, 255, 255);

/// A point in logical pixels, y downwards.
pub type Point = (f64, f64);

/// Device pixels per logical pixel: sharp on dense screens, and finer than plotters' whole
/// pixels in SVG.
const SCALE: f64 = 2.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Centre,
    Right,
}

/// One shape; later ones cover earlier ones.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    Line {
        points: Vec<Point>,
        width: f64,
        color: RGBColor,
    },
    Area {
        points: Vec<Point>,
        color: RGBColor,
    },
    Disc {
        centre: Point,
        radius: f64,
        color: RGBColor,
    },
    Text {
        /// On the baseline.
        at: Point,
        text: String,
        em: f64,
        bold: bool,
        align: Align,
        color: RGBColor,
    },
}

/// A picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    pub width: f64,
    pub height: f64,
    pub shapes: Vec<Shape>,
}

impl Scene {
    pub fn new(width: f64, height: f64) -> Self {
        Scene {
            width,
            height,
            shapes: Vec::new(),
        }
    }

    pub fn line(&mut self, points: impl Into<Vec<Point>>, width: f64, color: RGBColor) {
        self.shapes.push(Shape::Line {
            points: points.into(),
            width,
            color,
        });
    }

    pub fn area(&mut self, points: impl Into<Vec<Point>>, color: RGBColor) {
        self.shapes.push(Shape::Area {
            points: points.into(),
            color,
        });
    }

    pub fn rectangle(&mut self, (left, top): Point, (right, bottom): Point, color: RGBColor) {
        self.area(
            [(left, top), (right, top), (right, bottom), (left, bottom)],
            color,
        );
    }

    pub fn disc(&mut self, centre: Point, radius: f64, color: RGBColor) {
        self.shapes.push(Shape::Disc {
            centre,
            radius,
            color,
        });
    }

    /// Text on one line; characters that XML does not allow are replaced.
    pub fn text(&mut self, at: Point, text: &str, em: f64, align: Align, color: RGBColor) {
        self.push_text(at, text, em, false, align, color);
    }

    pub fn bold(&mut self, at: Point, text: &str, em: f64, align: Align, color: RGBColor) {
        self.push_text(at, text, em, true, align, color);
    }

    fn push_text(
        &mut self,
        at: Point,
        text: &str,
        em: f64,
        bold: bool,
        align: Align,
        color: RGBColor,
    ) {
        self.shapes.push(Shape::Text {
            at,
            text: printable(text),
            em,
            bold,
            align,
            color,
        });
    }
}

fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\u{202f}' => ' ',
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => '\u{fffd}',
            c => c,
        })
        .collect()
}

const FAMILY: &str = "sans-serif";

/// The fonts are part of the program: no machine's fonts decide how a report looks.
fn load_fonts() {
    static LOADED: OnceLock<()> = OnceLock::new();
    LOADED.get_or_init(|| {
        for (style, bytes) in [
            (FontStyle::Normal, dejavu::sans::regular()),
            (FontStyle::Bold, dejavu::sans::bold()),
        ] {
            // Fails for damaged font bytes only; painting text then reports it.
            let _ = register_font(FAMILY, style, bytes);
        }
    });
}

/// Size of an em in units of the font size that ab_glyph takes (line height of DejaVu Sans).
const LINE_PER_EM: f64 = 1.164;

/// Width of a text in logical pixels. Browsers' sans-serif fonts are narrower than DejaVu, so
/// what fits here fits there.
pub fn text_width(text: &str, em: f64) -> f64 {
    load_fonts();
    const PRECISE: f64 = 200.0;
    (FAMILY, PRECISE * LINE_PER_EM)
        .into_font()
        .box_size(&printable(text))
        .map_or(0.0, |(width, _)| f64::from(width) * em / PRECISE)
}

/// How a backend places text: font size per em, and baseline below the anchor in ems.
struct Lettering {
    size_per_em: f64,
    baseline: f64,
}

const SVG_LETTERING: Lettering = Lettering {
    size_per_em: 1.24,
    baseline: 0.76,
};
const BITMAP_LETTERING: Lettering = Lettering {
    size_per_em: LINE_PER_EM,
    baseline: LINE_PER_EM / 2.0,
};

fn size(scene: &Scene) -> (u32, u32) {
    (
        (scene.width * SCALE).ceil() as u32,
        (scene.height * SCALE).ceil() as u32,
    )
}

/// The picture as SVG text that reads well on white by itself. A page that embeds it can restyle
/// it by the colours in `style`, which are attribute values.
pub fn svg(scene: &Scene, title: &str, caption: &str) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size(scene)).into_drawing_area();
        paint(scene, &area, &SVG_LETTERING).map_err(|what| failed(Path::new("svg"), what))?;
    }
    // The drawing is known by its view box; plotters writes a fixed size in device pixels.
    let (width, height) = size(scene);
    let body = svg.find('>').map_or("", |end| &svg[end + 1..]);
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plot\" role=\"img\" \
         aria-label=\"{}\" width=\"{}\" height=\"{}\" viewBox=\"0 0 {width} {height}\">\n\
         <title>{}</title>{body}",
        escape(&format!("{title}. {caption}")),
        scene.width,
        scene.height,
        escape(title),
    ))
}

/// The picture as a PNG file, on white.
pub fn png(scene: &Scene, path: &Path) -> Result<()> {
    let area = BitMapBackend::new(path, size(scene)).into_drawing_area();
    paint(scene, &area, &BITMAP_LETTERING).map_err(|what| failed(path, what))
}

/// The picture as width, height and RGB bytes, as [`png`] encodes them.
pub fn pixels(scene: &Scene) -> Result<(u32, u32, Vec<u8>)> {
    let (width, height) = size(scene);
    let mut bytes = vec![0; 3 * width as usize * height as usize];
    {
        let area = BitMapBackend::with_buffer(&mut bytes, (width, height)).into_drawing_area();
        paint(scene, &area, &BITMAP_LETTERING).map_err(|what| failed(Path::new("pixels"), what))?;
    }
    Ok((width, height, bytes))
}

fn failed(path: &Path, what: String) -> Error {
    Error::file(
        path,
        format!("the plot could not be written: {what}"),
        "check that the folder is writable and has space",
    )
}

/// Text for XML.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}

fn paint<DB: DrawingBackend>(
    scene: &Scene,
    area: &DrawingArea<DB, Shift>,
    lettering: &Lettering,
) -> std::result::Result<(), String> {
    load_fonts();
    let device = |(x, y): Point| ((x * SCALE).round() as i32, (y * SCALE).round() as i32);
    let devices = |points: &[Point]| points.iter().map(|p| device(*p)).collect::<Vec<_>>();
    let stroke = |width: f64| (width * SCALE).round().max(1.0) as u32;
    area.fill(&PAPER).map_err(|e| e.to_string())?;
    for shape in &scene.shapes {
        match shape {
            Shape::Line {
                points,
                width,
                color,
            } => area.draw(&PathElement::new(
                devices(points),
                color.stroke_width(stroke(*width)),
            )),
            Shape::Area { points, color } => {
                area.draw(&Polygon::new(devices(points), color.filled()))
            }
            Shape::Disc {
                centre,
                radius,
                color,
            } => area.draw(&Circle::new(
                device(*centre),
                (radius * SCALE).round() as i32,
                color.filled(),
            )),
            Shape::Text {
                at: (x, y),
                text,
                em,
                bold,
                align,
                color,
            } => {
                let style = if *bold {
                    FontStyle::Bold
                } else {
                    FontStyle::Normal
                };
                let across = match align {
                    Align::Left => HPos::Left,
                    Align::Centre => HPos::Center,
                    Align::Right => HPos::Right,
                };
                let font = (FAMILY, em * SCALE * lettering.size_per_em, style).into_font();
                area.draw(&Text::new(
                    text.as_str(),
                    device((*x, y - lettering.baseline * em)),
                    font.color(color).pos(Pos::new(across, VPos::Top)),
                ))
            }
        }
        .map_err(|e| e.to_string())?;
    }
    area.present().map_err(|e| e.to_string())
}
