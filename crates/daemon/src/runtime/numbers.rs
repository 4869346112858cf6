//! Numbers in Prometheus' text format, or as OpenMetrics has it for those who
//! ask for that; docs/reference/metrics.md lists them. Each duty has its own,
//! the runtime those of every node.

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
        let _ = writeln!(out, "{name}{{{label}=\"{}\"}} {value}", escaped(of));
    }
}

/// Numbers of several labels.
pub fn labelled_by<const N: usize, V: Display>(
    out: &mut String,
    (name, kind, help): (&str, &str, &str),
    rows: impl IntoIterator<Item = ([(&'static str, String); N], V)>,
) {
    head(out, name, kind, help);
    for (labels, value) in rows {
        let labels: Vec<String> = labels.iter().map(|(label, of)| format!("{label}=\"{}\"", escaped(of))).collect();
        let _ = writeln!(out, "{name}{{{}}} {value}", labels.join(","));
    }
}

/// A label's value, as it stands between quotes.
#[must_use]
pub fn escaped(value: &str) -> std::borrow::Cow<'_, str> {
    if value.contains(['\\', '"', '\n']) {
        value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into()
    } else {
        value.into()
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
            let _ = writeln!(out, "{name}_bucket{{{labels}le=\"{bound:?}\"}} {count}");
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
    cx.traces.numbers(&mut out);
    cx.parents.numbers(&mut out);
    cx.device.numbers(&mut out);
    out
}

/// The media type of [`text`].
pub const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The media type of [`open_metrics`].
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Units that a number's name may end in.
const UNITS: [&str; 3] = ["seconds", "bytes", "bytes_per_second"];

/// What [`text`] says, as OpenMetrics has it: a counter's family is named
/// without its ending, units stand beside names, and the end is told.
#[must_use]
pub fn open_metrics(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 1_024);
    let mut help = "";
    for line in text.lines() {
        if let Some(said) = line.strip_prefix("# HELP ") {
            // Said once it is known what kind it is of.
            help = said.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|said| said.split_once(' ')) {
            let family = if kind == "counter" { name.strip_suffix("_total").unwrap_or(name) } else { name };
            let _ = writeln!(out, "# HELP {family} {help}\n# TYPE {family} {kind}");
            let ends_in = |unit: &&&str| family.strip_suffix(**unit).is_some_and(|head| head.ends_with('_'));
            if let Some(unit) = UNITS.iter().filter(ends_in).max_by_key(|unit| unit.len()) {
                let _ = writeln!(out, "# UNIT {family} {unit}");
            }
        } else {
            out.push_str(line);
            out.push('\n');
        }
    }
    out + "# EOF\n"
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
        assert_eq!(format!("{:?}", 1.0), "1.0", "a bound has a point in it");
        let plain = "t_bucket{le=\"0.001\"} 0\nt_bucket{le=\"0.0025\"} 0\nt_bucket{le=\"0.005\"} 1\nt_bucket{le=\"+Inf\"} 1\nt_sum 0.003\nt_count 1\n";
        assert_eq!(text(""), plain);
        assert!(
            text("job=\"a\",")
                .ends_with("t_bucket{job=\"a\",le=\"+Inf\"} 1\nt_sum{job=\"a\"} 0.003\nt_count{job=\"a\"} 1\n")
        );
    }
    #[test]
    fn open_metrics_names_families_and_units() {
        let mut out = String::new();
        single(&mut out, "t_sent_bytes_total", "counter", "What was sent.", 3);
        labelled(&mut out, ("t_link_bytes_per_second", "gauge", "How fast."), "to", [("a\"b\\\n", 1.5)]);
        single(&mut out, "t_members", "gauge", "How many.", 2);
        let said = "# HELP t_sent_bytes What was sent.\n# TYPE t_sent_bytes counter\n# UNIT t_sent_bytes bytes\n\
            t_sent_bytes_total 3\n\
            # HELP t_link_bytes_per_second How fast.\n# TYPE t_link_bytes_per_second gauge\n\
            # UNIT t_link_bytes_per_second bytes_per_second\nt_link_bytes_per_second{to=\"a\\\"b\\\\\\n\"} 1.5\n\
            # HELP t_members How many.\n# TYPE t_members gauge\nt_members 2\n# EOF\n";
        assert_eq!(open_metrics(&out), said);
    }
}
