//! Text for people: aligned tables, and numbers with the unit one would say.

use std::time::Duration;

/// A table with a head; columns are as wide as their widest cell.
#[derive(Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

#[derive(Debug)]
struct Column {
    title: &'static str,
    /// Numbers stand at the right.
    right: bool,
}

// === impl Table ===

impl Table {
    /// A title that starts with `>` makes a column of numbers.
    pub fn new(titles: &[&'static str]) -> Self {
        let column = |title: &&'static str| match title.strip_prefix('>') {
            Some(title) => Column { title, right: true },
            None => Column { title, right: false },
        };
        Self { columns: titles.iter().map(column).collect(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        // A name from outside must not move the cursor or break the line.
        let cells = cells.into_iter().map(|cell| cell.chars().map(|c| if c.is_control() { '?' } else { c }).collect());
        self.rows.push(cells.collect());
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Each line indented by `indent` spaces.
    pub fn render(&self, indent: usize) -> String {
        let width = |nth: usize, column: &Column| {
            let cells = self.rows.iter().filter_map(|row| row.get(nth)).map(|cell| cell.chars().count());
            cells.chain([column.title.chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = self.columns.iter().enumerate().map(|(nth, column)| width(nth, column)).collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut line = " ".repeat(indent);
            for ((cell, column), &width) in cells.zip(&self.columns).zip(&widths) {
                let padded = if column.right { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
                line.push_str(&padded);
            }
            format!("{}\n", line.trim_end())
        };
        let head = line(&mut self.columns.iter().map(|column| column.title));
        self.rows.iter().fold(head, |text, row| text + &line(&mut row.iter().map(String::as_str)))
    }
}

// === Numbers ===

/// `512 B`, `3.4 MB`; thousands, as PostgreSQL people and network people both read it.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let (mut value, mut unit) = (count as f64 / 1e3, 0);
    // 999.95 would be shown as 1000.0
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1e3;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `850ms`, `42s`, `3m07s`, `5h12m`, `9d04h`.
pub fn age(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{}ms", time.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// `1 session`, `2 sessions`.
pub fn count(number: usize, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

/// `-` for what is not there.
pub fn or_dash<T: ToString>(value: &Option<T>) -> String {
    value.as_ref().map_or("-".into(), T::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_numbers_stand_at_the_right() {
        let mut table = Table::new(&["NAME", ">BYTES", "WHY"]);
        table.row(["b1".into(), "7".into(), "".into()]);
        table.row(["backend\n2".into(), "12345".into(), "refused".into()]);
        assert_eq!(table.render(1), " NAME       BYTES  WHY\n b1             7\n backend?2  12345  refused\n");
    }

    #[test]
    fn numbers_have_the_unit_one_would_say() {
        let shown: Vec<_> = [0, 999, 1000, 999_949, 999_950, 3_400_000, u64::MAX].map(bytes).into();
        assert_eq!(shown, ["0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "3.4 MB", "18.4 EB"]);
        let shown: Vec<_> = [0, 59, 60, 187, 3600, 90_000].map(|s| age(Duration::from_secs(s))).into();
        assert_eq!(shown, ["0ms", "59s", "1m00s", "3m07s", "1h00m", "1d01h"]);
    }
}
