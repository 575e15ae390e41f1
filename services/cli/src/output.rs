//! What people and programs read: tables, JSON, colours on a terminal only.

use crate::exit::Failure;
use serde::Serialize;
use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write},
    time::Duration,
};
use virtbus_wire::{Size, StateName};

/// Spaces between two columns.
const GAP: usize = 2;

/// How to write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// One JSON value, or JSON lines, instead of text.
    pub(crate) json: bool,
    /// Whether a person looks at standard output.
    pub(crate) terminal: bool,
    colour: bool,
}

/// What a cell says by its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Tone {
    #[default]
    Plain,
    Good,
    Bad,
    Busy,
    Faint,
}

/// A text with a tone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(crate) fn new(text: impl Into<String>, tone: Tone) -> Self {
        Self {
            text: text.into(),
            tone,
        }
    }

    pub(crate) fn state(state: StateName) -> Self {
        Self::new(state.as_str(), tone_of(state))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Tone::Plain)
    }
}

impl Output {
    /// As the surroundings ask for.
    pub(crate) fn new(json: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        let colour =
            terminal && !json && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            json,
            terminal,
            colour,
        }
    }

    /// One JSON value, alone.
    pub(crate) fn value(self, value: &impl Serialize) -> Result<(), Failure> {
        let text = if self.terminal {
            serde_json::to_string_pretty(value)
        } else {
            serde_json::to_string(value)
        };
        self.text(&text.map_err(|error| Failure::failed(error.to_string()))?)
    }

    /// One of many JSON values: a line.
    pub(crate) fn json_line(self, value: &impl Serialize) -> Result<(), Failure> {
        let line =
            serde_json::to_string(value).map_err(|error| Failure::failed(error.to_string()))?;
        self.text(&line)
    }

    /// A line of text, flushed.
    pub(crate) fn text(self, line: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        writeln!(out, "{line}")?;
        out.flush()?;
        Ok(())
    }

    /// Rows under their heads; nothing is cut off.
    pub(crate) fn table(self, heads: &[&str], rows: &[Vec<Cell>]) -> Result<(), Failure> {
        if rows.is_empty() {
            return Ok(());
        }
        self.text(&table(heads, rows, self.colour))
    }

    /// One row without a head, as wide as each cell is.
    pub(crate) fn row(self, cells: &[Cell], widths: &[usize]) -> Result<(), Failure> {
        self.text(&row(cells, widths, self.colour))
    }

    /// Names and values, one per line.
    pub(crate) fn fields(self, fields: &[(&str, Cell)]) -> Result<(), Failure> {
        let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, cell) in fields {
            let value = paint(&cell.text, cell.tone, self.colour);
            self.text(&format!("{name:<width$}  {value}"))?;
        }
        Ok(())
    }
}

fn table(heads: &[&str], rows: &[Vec<Cell>], colour: bool) -> String {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .map(|row| row.get(column).map_or(0, |cell| cell.text.chars().count()));
        cells.max().unwrap_or(0).max(heads[column].len())
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let heads: Vec<Cell> = heads
        .iter()
        .map(|head| Cell::new(*head, Tone::Faint))
        .collect();
    let lines = std::iter::once(&heads)
        .chain(rows)
        .map(|cells| row(cells, &widths, colour));
    lines.collect::<Vec<_>>().join("\n")
}

fn row(cells: &[Cell], widths: &[usize], colour: bool) -> String {
    let mut line = String::new();
    let mut due = 0;
    for (column, cell) in cells.iter().enumerate() {
        line.extend(std::iter::repeat_n(' ', due));
        line.push_str(&paint(&cell.text, cell.tone, colour));
        let used = cell.text.chars().count();
        due = widths.get(column).map_or(0, |w| w.saturating_sub(used)) + GAP;
    }
    line.trim_end().to_owned()
}

fn paint(text: &str, tone: Tone, colour: bool) -> String {
    let code = match tone {
        Tone::Plain => return text.to_owned(),
        Tone::Good => 32,
        Tone::Bad => 31,
        Tone::Busy => 36,
        Tone::Faint => 2,
    };
    if colour && !text.is_empty() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

fn tone_of(state: StateName) -> Tone {
    match state {
        StateName::Succeeded => Tone::Good,
        StateName::Failed => Tone::Bad,
        StateName::Running | StateName::Cancelling => Tone::Busy,
        StateName::Cancelled | StateName::Waiting => Tone::Faint,
        StateName::Queued => Tone::Plain,
    }
}

/// A duration in at most two units: `2h 3m`, `1.5s`, `20ms`.
pub(crate) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{}ms", duration.as_millis()),
        1..10 => format!("{}.{}s", seconds, duration.subsec_millis() / 100),
        10..60 => format!("{seconds}s"),
        60..3_600 => two(seconds / 60, 'm', seconds % 60, 's'),
        3_600..86_400 => two(seconds / 3_600, 'h', seconds % 3_600 / 60, 'm'),
        _ => two(seconds / 86_400, 'd', seconds % 86_400 / 3_600, 'h'),
    }
}

fn two(large: u64, unit: char, small: u64, smaller: char) -> String {
    let mut text = format!("{large}{unit}");
    if small > 0 {
        // Writing to a string can't fail.
        let written = write!(text, " {small}{smaller}");
        debug_assert!(written.is_ok());
    }
    text
}

/// Bytes with an IEC unit and one decimal: `12.5MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    if let Ok(size) = Size::from_bytes(count)
        && count.is_power_of_two()
    {
        return size.to_string();
    }
    let step = usize::try_from(count.max(1).ilog2() / 10).unwrap_or(0);
    let step = step.min(UNITS.len() - 1);
    if step == 0 {
        return format!("{count}B");
    }
    let tenths = (u128::from(count) * 10) >> (10 * step);
    format!("{}.{}{}", tenths / 10, tenths % 10, UNITS[step])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["a".into(), Cell::state(StateName::Running), "x".into()],
            vec!["long-id".into(), Cell::state(StateName::Queued), "".into()],
        ];
        let plain = table(&["ID", "STATE", "NOTE"], &rows, false);
        assert_eq!(
            plain,
            "ID       STATE    NOTE\na        running  x\nlong-id  queued"
        );
        let coloured = table(&["ID", "STATE", "NOTE"], &rows, true);
        assert!(coloured.contains("\u{1b}[36mrunning\u{1b}[0m  x"));
    }

    #[test]
    fn durations_have_at_most_two_units() {
        for (millis, text) in [
            (0, "0ms"),
            (999, "999ms"),
            (1_550, "1.5s"),
            (59_000, "59s"),
            (60_000, "1m"),
            (7_380_000, "2h 3m"),
            (90_000_000, "1d 1h"),
        ] {
            assert_eq!(span(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn bytes_have_an_iec_unit() {
        for (count, text) in [
            (0, "0B"),
            (1_000, "1000B"),
            (1_536, "1.5KiB"),
            (10 << 30, "10.0GiB"),
            (1 << 30, "1GiB"),
            (u64::MAX, "16383.9PiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
