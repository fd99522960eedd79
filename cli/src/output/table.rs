//! Tables as Docker prints them: columns parted by three blanks, at least ten wide, the last one not padded.

use serde_json::Value;

use super::format::Format;

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

    /// Prints it, or each row by a format whose fields are the columns in Docker's names (`{{.Name}}`).
    ///
    /// # Errors
    /// A field that there is not.
    pub fn print_as(&self, format: Option<&Format>) -> anyhow::Result<()> {
        let Some(format) = format else {
            self.print();
            return Ok(());
        };
        let Some((headings, rows)) = self.rows.split_first() else { return Ok(()) };
        for row in rows {
            let cells = headings.iter().zip(row).map(|(heading, cell)| (field(heading), Value::from(cell.as_str())));
            println!("{}", format.render(&Value::Object(cells.collect()))?);
        }
        Ok(())
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

/// The name of a column in formats (docker/cli `cli/command/formatter`): `DESIRED STATE` is `DesiredState`.
fn field(heading: &str) -> String {
    match heading {
        "NETWORK ID" => "ID".to_owned(),
        "VOLUME NAME" => "Name".to_owned(),
        "CREATED" => "CreatedAt".to_owned(),
        "UPDATED" => "UpdatedAt".to_owned(),
        "ID" => heading.to_owned(),
        words => words.split(' ').map(capitalized).collect(),
    }
}

fn capitalized(word: &str) -> String {
    let (first, rest) = word.split_at(word.len().min(1));
    first.to_owned() + &rest.to_ascii_lowercase()
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
