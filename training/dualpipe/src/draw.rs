//! Pictures of a step: for a terminal, and as SVG.

use crate::schedule::{Compute, Part};
use crate::simulate::Simulation;
use std::fmt::Write;

/// Pixels of a rank's row, and of what stands around the rows.
const ROW: f64 = 26.0;
const MARGIN: f64 = 8.0;
const NAMES: f64 = 64.0;
/// Pixels of a character of a label.
const CHARACTER: f64 = 6.2;

/// Colour and name of a kind of block.
fn look(compute: Compute) -> (&'static str, &'static str) {
    match compute {
        Compute::Forward(_) => ("#f2c14e", "forward"),
        Compute::Backward(_) => ("#5b9279", "backward"),
        Compute::BackwardInput(_) => ("#8fcb9b", "backward for input"),
        Compute::Weight(_) => ("#8c9bd4", "weights"),
        Compute::Overlapped { .. } => ("#e8998d", "forward and backward together"),
    }
}

/// As in `F0.3&B1.1`: forward of micro-batch 3 of module 0 beside backward of micro-batch 1 of module 1.
fn label(compute: Compute) -> String {
    let name = |kind: &str, part: Part| format!("{kind}{}.{}", part.module, part.chunk);
    match compute {
        Compute::Forward(part) => name("F", part),
        Compute::Backward(part) => name("B", part),
        Compute::BackwardInput(part) => name("Bi", part),
        Compute::Weight(part) => name("W", part),
        Compute::Overlapped { forward, backward } => {
            format!("{}&{}", name("F", forward), name("B", backward))
        }
    }
}

impl Simulation {
    /// Units of a picture, characters or pixels, for a unit of time: so many that every label fits.
    fn scale(&self, character: f64, least: f64) -> f64 {
        let blocks = self.ranks.iter().flat_map(|rank| &rank.blocks);
        let shown = blocks.filter(|block| block.end > block.begin);
        let needs = shown.map(|b| (label(b.compute).len() as f64 * character + least) / (b.end - b.begin));
        needs.fold(0.0, f64::max)
    }

    /// A line a rank, time from left to right; dots where it waits. Blocks that take no time aren't shown.
    pub fn text(&self) -> String {
        let scale = self.scale(1.0, 1.0);
        let column = |time: f64| (time * scale).round() as usize;
        let mut text = String::new();
        for (number, rank) in self.ranks.iter().enumerate() {
            let mut row = String::new();
            for block in rank.blocks.iter().filter(|block| column(block.end) > column(block.begin)) {
                let name = label(block.compute);
                let width = column(block.end) - column(block.begin);
                let _ = write!(row, "{:.<1$}", "", column(block.begin) - row.len());
                let _ = write!(row, "{name:<width$.width$}");
            }
            let _ = write!(row, "{:.<1$}", "", column(self.makespan).saturating_sub(row.len()));
            let _ = writeln!(text, "{number:>3}  {}", row.trim_end());
        }
        text
    }

    /// A picture in SVG 1.1: a row a rank, time from left to right, the colours explained below.
    pub fn svg(&self) -> String {
        let scale = self.scale(CHARACTER, 8.0);
        let legend: [(&str, &str); 5] = [
            Compute::Forward(NO_PART),
            Compute::Backward(NO_PART),
            Compute::BackwardInput(NO_PART),
            Compute::Weight(NO_PART),
            Compute::Overlapped { forward: NO_PART, backward: NO_PART },
        ]
        .map(look);
        let rows = self.ranks.len() as f64;
        let width = (NAMES + self.makespan * scale + MARGIN).max(NAMES + 5.0 * 190.0).ceil();
        let height = (2.0 * MARGIN + (rows + 1.5) * ROW).ceil();
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             font-family=\"monospace\" font-size=\"10\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        let mut place = |x: f64, y: f64, width: f64, color: &str, text: &str| {
            let text = text.replace('&', "&amp;");
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{color}\" \
                 stroke=\"white\"/><text x=\"{:.1}\" y=\"{:.1}\">{text}</text>",
                ROW - 2.0,
                x + 4.0,
                y + 15.0
            );
        };
        for (number, rank) in self.ranks.iter().enumerate() {
            let y = MARGIN + number as f64 * ROW;
            place(0.0, y, NAMES, "white", &format!("rank {number}"));
            for block in rank.blocks.iter().filter(|block| block.end > block.begin) {
                let (x, width) = (NAMES + block.begin * scale, (block.end - block.begin) * scale);
                place(x, y, width, look(block.compute).0, &label(block.compute));
            }
        }
        for (i, (color, name)) in legend.into_iter().enumerate() {
            place(NAMES + i as f64 * 190.0, MARGIN + (rows + 0.5) * ROW, 186.0, color, name);
        }
        svg.push_str("</svg>\n");
        svg
    }
}

const NO_PART: Part = Part { module: 0, chunk: 0 };
