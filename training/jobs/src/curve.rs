//! The loss curve as a picture.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 30.0;

/// Points `(step, loss)`.
pub(crate) struct Curve {
    pub(crate) train: Vec<(u64, f64)>,
    pub(crate) held_out: Vec<(u64, f64)>,
    /// Loss of the bigram model on the held-out text.
    pub(crate) bigram: f64,
}

impl Curve {
    /// As SVG.
    pub(crate) fn svg(&self) -> String {
        let all = || self.train.iter().chain(&self.held_out);
        let last = all().map(|(step, _)| *step).max().unwrap_or(1).max(1) as f64;
        let losses = || all().map(|(_, loss)| *loss).chain([self.bigram]).filter(|loss| loss.is_finite());
        let (least, most) = (losses().fold(f64::MAX, f64::min), losses().fold(f64::MIN, f64::max));
        let (least, most) = ((least - 0.1).floor().max(0.0), (most + 0.1).ceil());
        let x = |step: f64| LEFT + (WIDTH - LEFT - 20.0) * step / last;
        let y = |loss: f64| TOP + (HEIGHT - TOP - 40.0) * (most - loss) / (most - least);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
        );
        let mut line = |from: (f64, f64), to: (f64, f64), colour: &str| {
            let _ = writeln!(
                svg,
                "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/>",
                from.0, from.1, to.0, to.1
            );
        };
        let mut labels = String::new();
        for i in 0..=4 {
            let (loss, step) = (least + (most - least) * f64::from(i) / 4.0, last * f64::from(i) / 4.0);
            line((LEFT, y(loss)), (WIDTH - 20.0, y(loss)), "#ddd");
            let _ = writeln!(
                labels,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{loss:.2}</text>\n\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{step:.0}</text>",
                LEFT - 8.0,
                y(loss) + 4.0,
                x(step),
                HEIGHT - 22.0
            );
        }
        line((LEFT, y(self.bigram)), (WIDTH - 20.0, y(self.bigram)), "#c33");
        svg += &labels;
        for (points, colour, width) in [(&self.train, "#9bc", 1.0), (&self.held_out, "#036", 2.0)] {
            let points: Vec<String> = points
                .iter()
                .filter(|(_, loss)| loss.is_finite())
                .map(|&(step, loss)| format!("{:.1},{:.1}", x(step as f64), y(loss)))
                .collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>",
                points.join(" ")
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"18\">loss in nats a byte, by step: training (light), held-out text (dark), \
             bigram model on it {:.3} (red)</text>\n</svg>",
            self.bigram
        );
        svg
    }
}
