//! Pictures of curves, from the record alone.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use plotters::coord::combinators::IntoLogRange;
use plotters::prelude::{
    BLACK, ChartBuilder, Circle, IntoDrawingArea, IntoFont, LineSeries, PathElement, RGBColor, SVGBackend,
    SeriesLabelPosition, WHITE,
};

const SIZE: (u32, u32) = (720, 420);
/// Colours that people tell apart who do not see all of them (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// What is written beside a picture's curves.
pub(super) struct Caption {
    pub(super) title: &'static str,
    pub(super) x: &'static str,
    pub(super) y: &'static str,
}

/// Draws one; both axes are logarithmic.
pub(super) fn svg(caption: &Caption, lines: &BTreeMap<String, Vec<(f64, f64)>>) -> Result<String> {
    let points = || lines.values().flatten().copied().filter(|(x, y)| *x > 0.0 && *y > 0.0);
    let span = |of: fn((f64, f64)) -> f64| {
        let least = points().map(of).fold(f64::INFINITY, f64::min);
        let most = points().map(of).fold(0.0, f64::max);
        (least * 0.8, most * 1.25)
    };
    let (left, right) = span(|(x, _)| x);
    let (low, high) = span(|(_, y)| y);
    // Only powers of ten are sure to be written at an axis, and curves may lie between two of them.
    let (low, high) = (10_f64.powf(low.log10().floor()), 10_f64.powf(high.log10().ceil()));
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        let fail = |error: &dyn std::fmt::Display| anyhow!("draw {}: {error}", caption.title);
        area.fill(&WHITE).map_err(|error| fail(&error))?;
        let mut chart = ChartBuilder::on(&area)
            .caption(caption.title, ("sans-serif", 18).into_font())
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(72)
            .build_cartesian_2d((left..right).log_scale(), (low..high).log_scale())
            .map_err(|error| fail(&error))?;
        chart
            .configure_mesh()
            .x_desc(caption.x)
            .y_desc(caption.y)
            .x_labels(7)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| format!("{y:.0}"))
            .draw()
            .map_err(|error| fail(&error))?;
        for ((name, line), colour) in lines.iter().zip(COLOURS.iter().cycle()) {
            let mut line = line.clone();
            line.sort_by(|one, other| one.0.total_cmp(&other.0));
            let drawn = chart.draw_series(LineSeries::new(line.iter().copied(), colour));
            drawn
                .map_err(|error| fail(&error))?
                .label(name.replace('_', " "))
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], *colour));
            let dots = line.iter().map(|point| Circle::new(*point, 3, *colour));
            chart.draw_series(dots).map_err(|error| fail(&error))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .border_style(BLACK)
            .background_style(WHITE)
            .draw()
            .map_err(|error| fail(&error))?;
        area.present().map_err(|error| fail(&error))?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::{Caption, svg};

    #[test]
    fn a_picture_names_its_axes_and_lines_and_is_the_same_each_time() {
        let caption = Caption {
            title: "time of a frame",
            x: "sub-interfaces",
            y: "ns",
        };
        let lines = [("no_program".to_owned(), vec![(100.0, 170.0), (10.0, 163.0)])].into();
        let picture = svg(&caption, &lines).unwrap();
        for word in [
            "time of a frame",
            "sub-interfaces",
            "no program",
            "\n100\n",
            "\n1000\n",
            "</svg>",
        ] {
            assert!(picture.contains(word), "{word} in {picture}");
        }
        assert_eq!(svg(&caption, &lines).unwrap(), picture);
    }
}
