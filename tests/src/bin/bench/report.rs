//! Tables that read well on a terminal and in Markdown.

use crate::error::{Failure, failure};
use std::{fmt, fs, path::Path};

/// Of the lines of recorded paragraphs.
const WIDTH: usize = 100;

/// What one part found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    blocks: Vec<String>,
}

impl Report {
    pub(crate) fn text(&mut self, text: impl Into<String>) {
        self.blocks.push(text.into());
    }

    pub(crate) fn table(&mut self, table: &Table) {
        self.blocks.push(table.to_string());
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.blocks.join("\n\n"))
    }
}

/// Rows of cells under a head.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(head: &[&str]) -> Self {
        let head = head.iter().map(|cell| (*cell).to_owned()).collect();
        Self { rows: vec![head] }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows[0].len();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        (0..columns).map(width).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        for (number, row) in self.rows.iter().enumerate() {
            let line = |cells: Vec<String>| format!("| {} |", cells.join(" | "));
            let pad = |(cell, width): (&String, &usize)| format!("{cell:<width$}");
            if number > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", line(row.iter().zip(&widths).map(pad).collect()))?;
            if number == 0 {
                let rules = widths.iter().map(|width| "-".repeat(width + 2));
                write!(f, "\n|{}|", rules.collect::<Vec<_>>().join("|"))?;
            }
        }
        Ok(())
    }
}

/// Puts `text` between the marks of `name` in a file, its paragraphs folded.
///
/// # Errors
/// When the file can't be read or written, or lacks the marks.
pub(crate) fn record(path: &Path, name: &str, text: &str) -> Result<(), Failure> {
    let old = fs::read_to_string(path)?;
    let lines: Vec<String> = text.lines().map(folded).collect();
    let new = replace(&old, name, &lines.join("\n"))
        .ok_or_else(|| failure(format!("{} has no marks of {name}", path.display())))?;
    Ok(fs::write(path, new)?)
}

/// A line of a paragraph as several; one of a table as it is.
fn folded(line: &str) -> String {
    if line.starts_with('|') {
        return line.to_owned();
    }
    let (mut text, mut width) = (String::new(), 0);
    for word in line.split(' ') {
        let length = word.chars().count();
        if width > 0 && width + 1 + length > WIDTH {
            text.push('\n');
            width = 0;
        } else if width > 0 {
            text.push(' ');
            width += 1;
        }
        text.push_str(word);
        width += length;
    }
    text
}

fn replace(old: &str, name: &str, text: &str) -> Option<String> {
    let (begin, end) = (
        format!("<!-- begin {name} -->\n"),
        format!("<!-- end {name} -->"),
    );
    let (before, rest) = old.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}{text}\n{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["a", "b"]);
        table.row(vec!["1–2".to_owned(), "x".to_owned()]);
        assert_eq!(table.to_string(), "| a   | b |\n|-----|---|\n| 1–2 | x |");
    }

    #[test]
    fn paragraphs_are_folded_and_tables_are_not() {
        let (word, table) = ("x".repeat(48), format!("| {} |", "x ".repeat(80)));
        let line = format!("{word} {word} {word}–{word} y");
        let expected = format!("{word} {word}\n{word}–{word} y");
        assert_eq!(folded(&line), expected);
        assert_eq!((folded(&table), folded("")), (table, String::new()));
    }

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let old = "x\n<!-- begin a -->\nold\n<!-- end a -->\ny\n";
        let new = "x\n<!-- begin a -->\nnew\n<!-- end a -->\ny\n";
        assert_eq!(replace(old, "a", "new").as_deref(), Some(new));
        assert_eq!(replace(old, "b", "new"), None);
    }
}
