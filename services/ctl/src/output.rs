//! How answers are written: tables for people, JSON and YAML for programs, names for loops.

use crate::failure::{Exit, Failure};
use canopy_api::text as foreign;
use serde::Serialize;
use std::io::{self, IsTerminal as _, Write};

/// How an answer is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// More columns.
    Wide,
    /// JSON, as on the bus.
    Json,
    /// The same as YAML.
    Yaml,
    /// One name a line.
    Name,
}

/// What a cell means, for a terminal's colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// Nothing special.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// Worth a look.
    Warn,
    /// Wrong.
    Bad,
    /// Of less interest.
    Dim,
}

impl Tone {
    /// The text with this tone, where colours are shown.
    pub fn paint(self, text: &str, colour: bool) -> String {
        let code = match self {
            _ if !colour => return text.to_owned(),
            Self::Plain => return text.to_owned(),
            Self::Good => 32,
            Self::Warn => 33,
            Self::Bad => 31,
            Self::Dim => 2,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// One cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell with a tone.
    pub fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }
}

impl<T: ToString + ?Sized> From<&T> for Cell {
    fn from(text: &T) -> Self {
        Self { text: text.to_string(), tone: Tone::Plain }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, tone: Tone::Plain }
    }
}

/// A column.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "properties that do not depend on each other")]
pub struct Column {
    title: &'static str,
    right: bool,
    wide: bool,
    where_given: bool,
    long: bool,
    name: bool,
}

/// A column of text.
pub const fn text(title: &'static str) -> Column {
    Column { title, right: false, wide: false, where_given: false, long: false, name: false }
}

/// A column of numbers, aligned at the right.
pub const fn number(title: &'static str) -> Column {
    Column { title, right: true, wide: false, where_given: false, long: false, name: false }
}

impl Column {
    /// Shown by `-o wide` only.
    #[must_use]
    pub const fn wide(self) -> Self {
        Self { wide: true, ..self }
    }

    /// Has what may be long; cut short first where a terminal is too narrow.
    #[must_use]
    pub const fn long(self) -> Self {
        Self { long: true, ..self }
    }

    /// Names the row together with others; cut short last.
    #[must_use]
    pub const fn name(self) -> Self {
        Self { name: true, ..self }
    }

    /// Shown only where some row has something in it.
    #[must_use]
    pub const fn where_given(self) -> Self {
        Self { where_given: true, ..self }
    }
}

/// A table: as wide as its cells, two spaces between columns, no lines.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty one.
    pub fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self { columns: columns.into(), rows: Vec::new() }
    }

    /// Adds a row; a missing cell is shown as `-`, as is an empty one.
    pub fn row(&mut self, cells: impl Into<Vec<Cell>>) {
        self.rows.push(cells.into());
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows whose place in the list says so.
    #[must_use]
    pub fn only(&self, these: &[bool]) -> Self {
        let rows = self.rows.iter().zip(these).filter(|(_, shown)| **shown);
        Self { columns: self.columns.clone(), rows: rows.map(|(row, _)| row.clone()).collect() }
    }

    /// The texts of each row's cells, but of the column of this title.
    pub fn cells(&self, without: &str) -> Vec<Vec<String>> {
        let cells = |row: &Vec<Cell>| {
            let shown = row.iter().zip(&self.columns).filter(|(_, column)| column.title != without);
            shown.map(|(cell, _)| cell.text.clone()).collect()
        };
        self.rows.iter().map(cells).collect()
    }

    /// The table as text, ending in a newline.
    pub fn render(&self, wide: bool, colour: bool) -> String {
        self.render_within(wide, colour, None)
    }

    /// The same in lines of at most so many characters: long texts are cut, which `…` shows.
    pub fn render_within(&self, wide: bool, colour: bool, within: Option<usize>) -> String {
        let given = |i: usize| {
            self.rows.iter().any(|row| row.get(i).is_some_and(|cell| !cell.text.is_empty()))
        };
        let shown: Vec<(usize, &Column)> = self
            .columns
            .iter()
            .enumerate()
            .filter(|(i, column)| (wide || !column.wide) && (!column.where_given || given(*i)))
            .collect();
        let cell = |row: &[Cell], i: usize| match row.get(i) {
            // A line break in what a host says must not look like another row.
            Some(cell) if !cell.text.is_empty() => {
                Cell { text: foreign::shown(&cell.text).into_owned(), tone: cell.tone }
            }
            _ => Cell::toned("-", Tone::Dim),
        };
        let mut widths: Vec<usize> = shown
            .iter()
            .map(|(i, column)| {
                let cells = self.rows.iter().map(|row| cell(row, *i).text.chars().count());
                cells.chain([column.title.len()]).max().unwrap_or(0)
            })
            .collect();
        if let Some(within) = within {
            let columns: Vec<&Column> = shown.iter().map(|(_, column)| *column).collect();
            narrow(&mut widths, &columns, within);
        }
        let titles: Vec<Cell> =
            self.columns.iter().map(|column| Cell::from(column.title)).collect();
        let mut out = String::new();
        for row in [&titles].into_iter().chain(&self.rows) {
            let mut line = String::new();
            let mut pending = 0;
            for ((i, column), width) in shown.iter().zip(&widths) {
                let cell = cut(cell(row, *i), *width);
                let padding = width - cell.text.chars().count().min(*width);
                if column.right {
                    pending += padding;
                }
                line.extend(std::iter::repeat_n(' ', pending));
                line.push_str(&cell.tone.paint(&cell.text, colour));
                pending = if column.right { 2 } else { padding + 2 };
            }
            out.push_str(&line);
            out.push('\n');
        }
        out
    }
}

/// Columns as narrow as they have to be for lines of `within` characters: long texts first, then other
/// texts, then names, and all of them, titles too, where a line is still too long. Numbers stay.
fn narrow(widths: &mut [usize], columns: &[&Column], within: usize) {
    const GAP: usize = 2;
    for step in [Narrowing::Long, Narrowing::Others, Narrowing::Names, Narrowing::Everything] {
        loop {
            let all = widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
            let Some(excess) = all.checked_sub(within).filter(|excess| *excess > 0) else { return };
            let widest = widths
                .iter_mut()
                .zip(columns)
                .enumerate()
                .filter_map(|(i, (width, column))| {
                    let least = step.least(i, column)?;
                    (*width > least).then_some((width, least))
                })
                .max_by_key(|(width, _)| **width);
            let Some((width, least)) = widest else { break };
            // A step at a time, so that two wide columns share what is missing.
            *width = width.saturating_sub(excess.min(4)).max(least);
        }
    }
}

/// What is made narrower, in this order.
#[derive(Clone, Copy, Debug)]
enum Narrowing {
    Long,
    Others,
    Names,
    Everything,
}

impl Narrowing {
    /// How narrow a column may become in this step; `None` where it stays as it is.
    fn least(self, index: usize, column: &Column) -> Option<usize> {
        let title = column.title.len();
        // The first column names the row.
        let name = column.name || index == 0;
        match self {
            _ if column.right => None,
            Self::Long => column.long.then_some(title.max(12)),
            Self::Others => (!name).then_some(title.max(8)),
            Self::Names => (index > 0).then_some(title.max(8)),
            Self::Everything => Some(4),
        }
    }
}

/// A cell in a column of this width.
fn cut(cell: Cell, width: usize) -> Cell {
    if cell.text.chars().count() <= width {
        return cell;
    }
    let text = cell.text.chars().take(width.saturating_sub(1)).chain(['…']).collect();
    Cell { text, tone: cell.tone }
}

/// An answer that can be written in every format.
pub trait Answer: Serialize {
    /// For people. `None` where [`Self::text`] says it better.
    fn table(&self) -> Option<Table>;

    /// For people, several tables one below the other.
    fn sections(&self) -> Vec<Table> {
        Vec::new()
    }

    /// For people, where a table does not fit; `colour` as the terminal has it.
    fn text(&self, colour: bool) -> String {
        let _ = colour;
        String::new()
    }

    /// One name for each thing.
    fn names(&self) -> Vec<String>;

    /// Said to people in place of an empty table.
    fn nothing(&self) -> String {
        "nothing found".to_owned()
    }
}

/// Any value as JSON, indented, ending in a newline.
pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| unwritable(&e))?;
    // Nothing is left out and nothing hidden: what has no sign of its own is written as an escape.
    Ok(foreign::escaped_json(&text).into_owned() + "\n")
}

/// Any value as YAML, ending in a newline.
pub fn yaml<T: Serialize + ?Sized>(value: &T) -> Result<String, Failure> {
    // Through a JSON value, so that both formats show the same fields in the same way.
    let value = serde_json::to_value(value).map_err(|e| unwritable(&e))?;
    let text = serde_saphyr::to_string(&value).map_err(|e| unwritable(&e))?;
    if foreign::shown_lines(&text) != text {
        // JSON is YAML too, and has an escape for what would not be seen.
        return json(&value);
    }
    Ok(if text.ends_with('\n') { text } else { text + "\n" })
}

/// The text without what moves the cursor, talks to the terminal or hides what it says: hosts and packages
/// may say anything. Lines, tabs and our own colours stay.
pub(crate) fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let bad = |c: char| foreign::is_unprintable(c) && c != '\n' && c != '\t';
    while let Some(at) = rest.find(bad) {
        let (before, found) = rest.split_at(at);
        out.push_str(before);
        let colour = found.strip_prefix("\x1b[").and_then(|code| {
            let end = code.find(|c: char| !c.is_ascii_digit())?;
            code.get(end..)?.starts_with('m').then_some("\x1b[".len() + end + 1)
        });
        let length = if let Some(length) = colour {
            out.push_str(found.get(..length).unwrap_or_default());
            length
        } else {
            out.push('\u{fffd}');
            found.chars().next().map_or(1, char::len_utf8)
        };
        rest = found.get(length..).unwrap_or_default();
    }
    out + rest
}

/// A remark: what it quotes must not look like another one, or like an error.
fn remark(text: &str) -> String {
    harmless(text).replace('\n', "\n  ")
}

fn unwritable(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, format!("the answer cannot be written: {error}"))
}

/// Standard output and standard error, and what each can show.
pub struct Screen {
    out: Box<dyn Write>,
    err: Box<dyn Write>,
    /// Whether standard output shows colours.
    pub colour: bool,
    /// Whether standard output is a terminal.
    pub terminal: bool,
    error_colour: bool,
    /// How long a line may be, where tables have to fit.
    width: Option<usize>,
    /// Errors are written as JSON, once, at the end; remarks with them.
    json: Option<Pending>,
}

/// What is to be written to standard error at the end.
#[derive(Debug, Default)]
struct Pending {
    failures: Vec<Failure>,
    notes: Vec<String>,
}

impl Screen {
    /// The process's own. Colours only on a terminal, and not with `NO_COLOR` set or `TERM=dumb`. Tables
    /// fit into the terminal's lines, or into `COLUMNS`.
    pub fn standard() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let terminal = io::stdout().is_terminal();
        let said = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        Self {
            out: Box::new(io::stdout().lock()),
            err: Box::new(io::stderr()),
            colour: wanted && terminal,
            terminal,
            error_colour: wanted && io::stderr().is_terminal(),
            width: said.or_else(|| terminal.then(terminal_width)).filter(|width| *width >= 20),
            json: None,
        }
    }

    /// From now on errors are written as one JSON object, and nothing else beside it.
    pub fn errors_as_json(&mut self) {
        crate::progress::silence();
        self.json.get_or_insert_default();
    }

    /// Writes text to standard output, without what could harm or mislead who reads it.
    pub fn print(&mut self, text: &str) -> Result<(), Failure> {
        self.write(&harmless(text))
    }

    /// Writes a line of JSON whose bytes are signed or chained, as it is; on a terminal with escapes for
    /// what would not be seen.
    pub fn print_json_line(&mut self, line: &str) -> Result<(), Failure> {
        let shown = if self.terminal { foreign::escaped_json(line) } else { line.into() };
        self.write(&format!("{shown}\n"))
    }

    /// Clears the terminal.
    pub fn clear(&mut self) -> Result<(), Failure> {
        // Cursor home, and erase from there (ECMA-48 CUP and ED).
        self.write("\x1b[H\x1b[2J")
    }

    /// A reader that has gone (`| head`) is not an error.
    fn write(&mut self, text: &str) -> Result<(), Failure> {
        match self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(unwritable(&error)),
            _ => Ok(()),
        }
    }

    /// Writes an answer in the format asked for.
    pub fn show(&mut self, answer: &impl Answer, format: Format) -> Result<(), Failure> {
        let text = match format {
            Format::Json => json(answer)?,
            Format::Yaml => yaml(answer)?,
            Format::Name => answer.names().into_iter().map(|name| name + "\n").collect(),
            Format::Table | Format::Wide => match answer.table() {
                Some(table) if table.is_empty() => {
                    self.note(&answer.nothing());
                    return Ok(());
                }
                Some(table) => self.table(&table, format),
                None => {
                    let tables = answer.sections();
                    let tables: Vec<String> =
                        tables.iter().map(|table| self.table(table, format)).collect();
                    if tables.is_empty() { answer.text(self.colour) } else { tables.join("\n") }
                }
            },
        };
        self.print(&text)
    }

    /// A table as this screen shows it; what is asked for with all columns is not cut.
    pub fn table(&self, table: &Table, format: Format) -> String {
        let wide = format == Format::Wide;
        table.render_within(wide, self.colour, self.width.filter(|_| !wide))
    }

    /// Writes one line of an answer that comes bit by bit.
    pub fn line(&mut self, text: &str) -> Result<(), Failure> {
        // What a host says must not look like another line.
        self.print(&(foreign::shown(text) + "\n"))
    }

    /// A remark to the person, on standard error.
    pub fn note(&mut self, text: &str) {
        match &mut self.json {
            Some(pending) => pending.notes.push(text.to_owned()),
            None => {
                let _ = writeln!(self.err, "{}", remark(text));
            }
        }
    }

    /// An error, on standard error.
    pub fn fail(&mut self, failure: &Failure) {
        if let Some(pending) = &mut self.json {
            pending.failures.push(failure.clone());
            return;
        }
        let word = Tone::Bad.paint("error", self.error_colour);
        let _ = self.err.write_all(harmless(&failure.render(&word)).as_bytes());
    }

    /// Writes what was kept for the end: errors as JSON, or remarks where nothing failed.
    pub fn finish(&mut self, exit: Exit) {
        let Some(Pending { failures, notes }) = self.json.take() else { return };
        if failures.is_empty() {
            for note in notes {
                let _ = writeln!(self.err, "{}", remark(&note));
            }
            return;
        }
        let object = crate::failure::as_json(&failures, &notes, exit).to_string();
        let _ = writeln!(self.err, "{}", foreign::escaped_json(&object));
    }
}

/// Characters in a line of the terminal; 80 where it does not say.
fn terminal_width() -> usize {
    terminal_size::terminal_size_of(io::stdout()).map_or(80, |(width, _)| width.0.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table =
            Table::new([text("NAME"), number("RUNS"), text("STATE"), text("TAG").wide()]);
        table.row([
            "blocklist".into(),
            (&12_u64).into(),
            Cell::toned("active", Tone::Good),
            "ab".into(),
        ]);
        table.row(["limit".into(), (&123_456_u64).into(), Cell::toned("", Tone::Plain)]);
        table
    }

    #[test]
    fn columns_line_up() {
        assert_eq!(
            table().render(false, false),
            "NAME         RUNS  STATE\n\
             blocklist      12  active\n\
             limit      123456  -\n"
        );
    }

    #[test]
    fn wide_has_more_columns() {
        assert_eq!(
            table().render(true, false),
            "NAME         RUNS  STATE   TAG\n\
             blocklist      12  active  ab\n\
             limit      123456  -       -\n"
        );
    }

    #[test]
    fn colours_do_not_move_columns() {
        let coloured = table().render(true, true);
        assert!(coloured.contains("\x1b[32mactive\x1b[0m  ab"));
        let mut plain = coloured;
        for code in ["\x1b[32m", "\x1b[2m", "\x1b[0m"] {
            plain = plain.replace(code, "");
        }
        assert_eq!(plain, table().render(true, false));
    }

    #[test]
    fn what_a_host_says_cannot_talk_to_the_terminal() {
        let mut table = Table::new([text("NAME"), text("STATE")]);
        table.row(["web1\nweb2".into(), Cell::toned("\x1b]52;c;eA==\x07", Tone::Good)]);
        let shown = table.render(false, true);
        assert_eq!(shown.lines().count(), 2, "{shown:?}");
        assert!(!shown.contains("\x1b]"), "{shown:?}");

        let ours = "\x1b[32mactive\x1b[0m\n\tü";
        assert_eq!(harmless(ours), ours);
        let theirs = "a\x1b[2Jb\u{9b}31mc\rd\x1b[1;1He\x1b[\u{202e}f\u{200b}";
        assert!(!harmless(theirs).contains(foreign::is_unprintable), "{:?}", harmless(theirs));
    }

    #[test]
    fn what_a_remark_quotes_is_no_line_of_its_own() {
        let said = remark("warning: web1 says x\nerror: all is lost\u{1b}[2J");
        assert_eq!(said, "warning: web1 says x\n  error: all is lost\u{fffd}[2J");
    }

    #[test]
    fn yaml_and_json_hold_the_same() {
        let value = serde_json::json!({"a": [1, "no", "1.0"], "b": {"c": null}});
        let back: serde_json::Value = serde_saphyr::from_str(&yaml(&value).unwrap()).unwrap();
        assert_eq!(back, value);
        assert!(json(&value).unwrap().ends_with("}\n"));
        // What is not seen is in neither, and both say it.
        let value = serde_json::json!({"a": "b\u{202e}c", "d\u{200b}": "\u{9b}2J"});
        for text in [yaml(&value).unwrap(), json(&value).unwrap()] {
            assert_eq!(text, harmless(&text));
            let back: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
            assert_eq!(back, value);
        }
    }
}
