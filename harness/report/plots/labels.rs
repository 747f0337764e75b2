//! Places names beside points so that nothing overlaps.
//!
//! Every name has candidate places around its point, near ones first. A greedy pass takes the
//! cheapest for each, then a few rounds let each name move while the others stay.

use super::scene::Point;

/// A box in logical pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rect {
    pub left: f64,
    pub top: f64,
    pub right: f64,
    pub bottom: f64,
}

impl Rect {
    pub fn around((x, y): Point, half: f64) -> Self {
        Rect {
            left: x - half,
            top: y - half,
            right: x + half,
            bottom: y + half,
        }
    }

    pub fn overlaps(&self, other: &Rect) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }

    fn within(&self, outer: &Rect) -> bool {
        self.left >= outer.left
            && self.right <= outer.right
            && self.top >= outer.top
            && self.bottom <= outer.bottom
    }

    fn grown(&self, by: f64) -> Rect {
        Rect {
            left: self.left - by,
            top: self.top - by,
            right: self.right + by,
            bottom: self.bottom + by,
        }
    }

    /// The point of the box that is nearest to `p`.
    pub fn nearest(&self, (x, y): Point) -> Point {
        (
            x.clamp(self.left, self.right),
            y.clamp(self.top, self.bottom),
        )
    }

    /// Whether a straight line from `a` to `b` touches the box.
    pub fn meets(&self, a: Point, b: Point) -> bool {
        // Clip the line's parameter range against the four sides.
        let (mut from, mut to) = (0.0f64, 1.0f64);
        for (start, delta, low, high) in [
            (a.0, b.0 - a.0, self.left, self.right),
            (a.1, b.1 - a.1, self.top, self.bottom),
        ] {
            if delta.abs() < 1e-12 {
                if start < low || start > high {
                    return false;
                }
                continue;
            }
            let (t0, t1) = ((low - start) / delta, (high - start) / delta);
            from = from.max(t0.min(t1));
            to = to.min(t0.max(t1));
        }
        from <= to
    }
}

/// A name's place; `leader` is the line that ties a distant name to its point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    pub rect: Rect,
    pub leader: Option<(Point, Point)>,
}

/// What names should keep off.
pub struct Surroundings<'a> {
    pub bounds: Rect,
    /// Never covered: markers.
    pub solid: &'a [Rect],
    /// Covered at a cost: error bars, the front.
    pub lines: &'a [(Point, Point, f64)],
    /// A name that would cover more than this has no place.
    pub most_covered: f64,
}

const FORBIDDEN: f64 = 1e6;

/// A place for a name of each size beside its point, or nothing where they do not all fit.
pub fn place(points: &[Point], sizes: &[(f64, f64)], around: &Surroundings) -> Option<Vec<Place>> {
    let candidates: Vec<Vec<(Place, f64)>> = points
        .iter()
        .zip(sizes)
        .map(|(point, size)| candidates(*point, *size, points, around))
        .collect();
    let mut chosen: Vec<Option<Place>> = vec![None; points.len()];
    let mut total = f64::INFINITY;
    for _ in 0..6 {
        let mut sum = 0.0;
        for i in 0..points.len() {
            let best = candidates[i]
                .iter()
                .map(|(place, own)| (place, own + conflicts(place, i, &chosen)))
                .min_by(|a, b| a.1.total_cmp(&b.1))?;
            chosen[i] = Some(*best.0);
            sum += best.1;
        }
        if sum >= total {
            break;
        }
        total = sum;
    }
    let places: Vec<Place> = chosen.iter().copied().collect::<Option<_>>()?;
    let clash = (0..places.len()).any(|i| conflicts(&places[i], i, &chosen) >= FORBIDDEN);
    (!clash).then_some(places)
}

/// Places around one point that cover no marker, with their costs.
fn candidates(
    point: Point,
    (width, height): (f64, f64),
    points: &[Point],
    around: &Surroundings,
) -> Vec<(Place, f64)> {
    let mut candidates = Vec::new();
    for (ring, gap) in [11.0, 20.0, 34.0, 50.0, 68.0, 90.0].into_iter().enumerate() {
        for turn in 0..16 {
            let angle = std::f64::consts::TAU * f64::from(turn) / 16.0;
            let (dx, dy) = (angle.cos(), angle.sin());
            // The box touches a ring around the point in the direction of the angle.
            let centre = (
                point.0 + dx * (gap + width / 2.0),
                point.1 + dy * (gap + height / 2.0),
            );
            let rect = Rect {
                left: centre.0 - width / 2.0,
                top: centre.1 - height / 2.0,
                right: centre.0 + width / 2.0,
                bottom: centre.1 + height / 2.0,
            };
            if !rect.within(&around.bounds) || around.solid.iter().any(|s| s.overlaps(&rect)) {
                continue;
            }
            let end = rect.nearest(point);
            let distance = (end.0 - point.0).hypot(end.1 - point.1);
            let leader = (distance > 16.0).then(|| {
                let start = 8.0 / distance;
                let towards = |t: f64| {
                    (
                        point.0 + t * (end.0 - point.0),
                        point.1 + t * (end.1 - point.1),
                    )
                };
                (towards(start), towards(1.0 - 2.0 / distance))
            });
            let crossed: f64 = around
                .lines
                .iter()
                .filter(|(a, b, _)| rect.grown(1.0).meets(*a, *b))
                .map(|(.., cost)| cost)
                .sum();
            if crossed > around.most_covered {
                continue;
            }
            // The point's own marker lies at the start of every leader.
            let struck = leader.map_or(0, |(a, b)| {
                let others = around.solid.iter().filter(|s| s.nearest(point) != point);
                others.filter(|s| s.meets(a, b)).count()
            });
            // A name nearer to another point would be read as that point's.
            let astray = points.iter().filter(|other| **other != point).any(|other| {
                let near = rect.nearest(*other);
                (near.0 - other.0).hypot(near.1 - other.1) < distance + 5.0
            });
            // Beside is easiest to read, then above and below, then slanted.
            let direction = match turn {
                0 => 0.0,
                8 => 1.0,
                12 => 1.5,
                4 => 2.0,
                _ => 3.0,
            };
            let cost = direction
                + 8.0 * ring as f64
                + 0.3 * distance
                + crossed
                + 200.0 * struck as f64
                + if astray { 70.0 } else { 0.0 };
            candidates.push((Place { rect, leader }, cost));
        }
    }
    candidates
}

/// The cost of a place among the places that other names hold.
fn conflicts(place: &Place, own: usize, chosen: &[Option<Place>]) -> f64 {
    let mut cost = 0.0;
    for other in chosen
        .iter()
        .enumerate()
        .filter(|(i, _)| *i != own)
        .filter_map(|(_, other)| other.as_ref())
    {
        if place.rect.grown(1.0).overlaps(&other.rect) {
            cost += FORBIDDEN;
        }
        if let Some((a, b)) = place.leader
            && other.rect.meets(a, b)
        {
            cost += FORBIDDEN;
        }
        if let Some((a, b)) = other.leader
            && place.rect.meets(a, b)
        {
            cost += FORBIDDEN;
        }
        if let (Some((a, b)), Some((c, d))) = (place.leader, other.leader)
            && cross(a, b, c, d)
        {
            cost += 60.0;
        }
    }
    cost
}

/// Whether two line segments cross.
fn cross(a: Point, b: Point, c: Point, d: Point) -> bool {
    let side =
        |p: Point, q: Point, r: Point| (q.0 - p.0) * (r.1 - p.1) - (q.1 - p.1) * (r.0 - p.0) > 0.0;
    side(a, b, c) != side(a, b, d) && side(c, d, a) != side(c, d, b)
}
