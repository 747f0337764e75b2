//! Which points no other point beats.

/// Which direction is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    Lower,
    Higher,
}

/// Indices of the points on the Pareto front, by rising x. Lower x is better. A point is beaten
/// by another that is at least as good in both and better in one; equal points stay together.
pub fn front(points: &[(f64, f64)], y_better: Better) -> Vec<usize> {
    let cost = |i: usize| match y_better {
        Better::Lower => points[i].1,
        Better::Higher => -points[i].1,
    };
    let mut order: Vec<usize> = (0..points.len())
        .filter(|i| points[*i].0.is_finite() && points[*i].1.is_finite())
        .collect();
    order.sort_by(|a, b| {
        (points[*a].0.total_cmp(&points[*b].0)).then(cost(*a).total_cmp(&cost(*b)))
    });
    let mut front: Vec<usize> = Vec::new();
    for i in order {
        let keeps = front.last().is_none_or(|last| {
            cost(i) < cost(*last) || (points[i].0 == points[*last].0 && cost(i) == cost(*last))
        });
        if keeps {
            front.push(i);
        }
    }
    front
}
