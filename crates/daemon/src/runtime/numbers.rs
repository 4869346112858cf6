//! Numbers in Prometheus' text format; docs/reference/metrics.md lists them.
//! Each duty has its own, the runtime those of every node.

use std::fmt::{Display, Write};

use super::Context;

/// What stands before a number's values.
pub fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// A number of one value.
pub fn single(out: &mut String, name: &str, kind: &str, help: &str, value: impl Display) {
    head(out, name, kind, help);
    let _ = writeln!(out, "{name} {value}");
}

/// A number by the values of one label.
pub fn labelled<'v, V: Display>(
    out: &mut String,
    (name, kind, help): (&str, &str, &str),
    label: &str,
    values: impl IntoIterator<Item = (&'v str, V)>,
) {
    head(out, name, kind, help);
    for (of, value) in values {
        let _ = writeln!(out, "{name}{{{label}=\"{of}\"}} {value}");
    }
}

/// Counts by upper bounds, as a histogram has them.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    bounds: [f64; N],
    counts: [u64; N],
    sum: f64,
    all: u64,
}

impl<const N: usize> Histogram<N> {
    /// Nothing counted yet; bounds rise.
    #[must_use]
    pub fn new(bounds: [f64; N]) -> Self {
        Self { bounds, counts: [0; N], sum: 0.0, all: 0 }
    }

    /// Counts one value.
    pub fn count(&mut self, value: f64) {
        for (count, bound) in self.counts.iter_mut().zip(self.bounds) {
            *count += u64::from(value <= bound);
        }
        self.sum += value;
        self.all += 1;
    }

    /// Its lines; `labels` are put before the bound's (`job="a",`), or empty.
    pub fn text(&self, out: &mut String, name: &str, labels: &str) {
        for (bound, count) in self.bounds.iter().zip(self.counts) {
            let _ = writeln!(out, "{name}_bucket{{{labels}le=\"{bound}\"}} {count}");
        }
        let (all, sum) = (self.all, self.sum);
        let _ = writeln!(out, "{name}_bucket{{{labels}le=\"+Inf\"}} {all}");
        let labels = labels.strip_suffix(',').map_or_else(String::new, |labels| format!("{{{labels}}}"));
        let _ = writeln!(out, "{name}_sum{labels} {sum}\n{name}_count{labels} {all}");
    }
}

/// Everything, as Prometheus reads it.
#[must_use]
pub fn text(cx: &Context) -> String {
    let mut out = String::new();
    cx.duties.each(|duty| duty.numbers(&mut out));
    cx.tasks.numbers(&mut out);
    cx.parents.numbers(&mut out);
    cx.device.numbers(&mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let mut histogram = Histogram::new([0.001, 0.0025, 0.005]);
        histogram.count(0.003);
        let text = |labels| {
            let mut out = String::new();
            histogram.text(&mut out, "t", labels);
            out
        };
        let plain = "t_bucket{le=\"0.001\"} 0\nt_bucket{le=\"0.0025\"} 0\nt_bucket{le=\"0.005\"} 1\nt_bucket{le=\"+Inf\"} 1\nt_sum 0.003\nt_count 1\n";
        assert_eq!(text(""), plain);
        assert!(
            text("job=\"a\",")
                .ends_with("t_bucket{job=\"a\",le=\"+Inf\"} 1\nt_sum{job=\"a\"} 0.003\nt_count{job=\"a\"} 1\n")
        );
    }
}
