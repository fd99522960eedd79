//! Tables as Docker prints them: columns parted by three blanks, at least ten wide, the last one not padded.

const GAP: usize = 3;
const NARROWEST: usize = 10;

/// A table: headings, then rows.
#[derive(Debug, Clone)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|h| (*h).to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Prints it.
    pub fn print(&self) {
        print!("{}", self.render());
    }

    fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let widest = self.rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max();
            (widest.unwrap_or(0) + GAP).max(NARROWEST)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            for (i, cell) in row.iter().enumerate() {
                out.push_str(cell);
                if i + 1 < row.len() {
                    out.extend(std::iter::repeat_n(' ', widths[i] - cell.chars().count()));
                }
            }
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_laid_out_as_dockers() {
        let mut table = Table::new(&["ID", "NAME", "PORTS"]);
        table.row(["abcdefghijkl".to_owned(), "web".to_owned(), String::new()]);
        assert_eq!(table.render(), "ID             NAME      PORTS\nabcdefghijkl   web       \n");
    }
}
