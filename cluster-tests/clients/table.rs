//! The table of `docs/clients.md`: a row per client, a column per operation.

use std::path::Path;

/// What a client was put through, in the order of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    Image,
    Index,
    Large,
    Layers,
    Again,
    Move,
    Delete,
    CutPush,
    CutPull,
    Also,
}

const COLUMNS: usize = Column::Also as usize + 1;
const BEGIN: &str = "<!-- written by `just long clients` -->\n";
const END: &str = "<!-- end -->";

/// One client. Dropped without `finish`, it leaves the table as it was.
pub struct Row {
    client: String,
    cells: [String; COLUMNS],
    failures: Vec<String>,
}

impl Row {
    pub fn new(name: &str, version: &str) -> Row {
        Row {
            client: format!("{name} {}", version.trim_start_matches('v')),
            cells: [const { String::new() }; COLUMNS],
            failures: Vec::new(),
        }
    }

    pub fn note(&mut self, column: Column, result: Result<String, String>) {
        match result {
            Ok(how) => self.cells[column as usize] = how,
            Err(why) => self.failures.push(format!("{column:?}: {why}")),
        }
    }

    /// Fails when an operation did. Writes the row into the table when `ROADSTEAD_TABLE` asks.
    pub fn finish(self) {
        assert!(
            self.failures.is_empty(),
            "{}:\n{}",
            self.client,
            self.failures.join("\n")
        );
        let cells = self.cells.iter().map(|cell| match cell.as_str() {
            "" => "–",
            done => done,
        });
        let row = format!(
            "| {} | {} |",
            self.client,
            cells.collect::<Vec<_>>().join(" | ")
        );
        println!("{row}");
        if std::env::var_os("ROADSTEAD_TABLE").is_none() {
            return;
        }
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/clients.md");
        let text = std::fs::read_to_string(&page).expect("read docs/clients.md");
        let (before, rest) = text.split_once(BEGIN).expect("the begin of the table");
        let (table, after) = rest.split_once(END).expect("the end of the table");
        let (head, rows) = table.split_at(table.match_indices('\n').nth(1).expect("a head").0 + 1);
        let name = |row: &str| row.split_whitespace().nth(1).map(str::to_owned);
        let mut rows: Vec<&str> = rows.lines().filter(|old| name(old) != name(&row)).collect();
        rows.push(&row);
        rows.sort_unstable();
        let rows = rows.join("\n");
        std::fs::write(page, format!("{before}{BEGIN}{head}{rows}\n{END}{after}"))
            .expect("write docs/clients.md");
    }
}
