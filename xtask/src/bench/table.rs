//! Tables for people: a column as wide as its widest cell.

/// The first columns to the left, as many as `left`, the others to the right. A line that is shorter than the head ends in a
/// note, which may be wider than its column.
pub fn align(head: &[String], lines: &[Vec<String>], left: usize) -> String {
    let width = |column: usize| {
        let figures = lines.iter().filter(|line| column < left || line.len() == head.len());
        figures.map(Vec::as_slice).chain([head]).map(|line| line[column].chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    for line in std::iter::once(head).chain(lines.iter().map(Vec::as_slice)) {
        let mut row = String::new();
        for (column, cell) in line.iter().enumerate() {
            let width = widths[column];
            row += &if column < left { format!("  {cell:<width$}") } else { format!("  {cell:>width$}") };
        }
        out += row.trim_end();
        out.push('\n');
    }
    out
}

/// A number, or a dash where there is none.
pub fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_note_does_not_widen_the_columns() {
        let line = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        let table = super::align(
            &line(&["who", "µs", "share"]),
            &[line(&["me", "1", "0.5"]), line(&["you", "not installed"])],
            1,
        );
        assert_eq!(table, "  who  µs  share\n  me    1    0.5\n  you  not installed\n");
    }
}
