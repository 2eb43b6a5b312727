//! Results as a table for people. (JSON is `serde`'s.)

use crate::measure::Measured;

/// A table with one line for each result.
pub(crate) fn table(results: &[Measured]) -> String {
    let width = results.iter().map(|result| result.name.len()).max().unwrap_or(0);
    let mut text =
        format!("{:width$}  {:>10}  {:>10}  {:>23}  {:>5}\n", "", "floor", "work", "ratio (95 %)", "bound");
    for result in results {
        let ratio = match (result.ratio, result.ratio_low, result.ratio_high) {
            (Some(middle), Some(low), Some(high)) if result.unit != "bytes" => {
                format!("{middle:.2} ({low:.2} to {high:.2})")
            }
            (Some(middle), ..) => format!("{middle:.2}"),
            _ => String::new(),
        };
        let bound = result.bound.map_or(String::new(), |bound| format!("{bound:.2}"));
        let mark = if result.exceeds_bound() { "  too slow" } else { "" };
        text += &format!(
            "{:width$}  {:>10}  {:>10}  {ratio:>23}  {bound:>5}{mark}\n",
            result.name,
            quantity(result, result.floor_ns),
            result.value_ns.map_or(String::new(), |value| quantity(result, value)),
        );
    }
    text
}

fn quantity(result: &Measured, value: f64) -> String {
    match result.unit {
        "ns" => time(value),
        "times" => format!("{value:.2}"),
        unit => format!("{value:.0} {unit}"),
    }
}

/// A time with three digits or so.
fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        ns if ns < 1e4 => format!("{ns:.0} ns"),
        ns if ns < 1e7 => format!("{:.1} µs", ns / 1e3),
        ns => format!("{:.1} ms", ns / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_says_what_is_too_slow() {
        let result = |name: &str, bound| Measured {
            name: name.to_owned(),
            unit: "ns",
            value_ns: Some(25_000.0),
            floor_ns: 10_000.0,
            ratio: Some(2.5),
            ratio_low: Some(2.4),
            ratio_high: Some(2.6),
            bound: Some(bound),
        };
        let text = table(&[result("fault", 3.0), result("evict", 2.0)]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].contains("25.0 µs") && !lines[1].contains("too slow"), "{text}");
        assert!(lines[2].contains("2.50 (2.40 to 2.60)") && lines[2].ends_with("too slow"), "{text}");
    }
}
