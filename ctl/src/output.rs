//! Terminal output: results on stdout as table, JSON or YAML; notes and progress on stderr.
//!
//! Colour and progress bars appear on a terminal only, and not with `NO_COLOR` or `--no-color`. Whatever is written, of the
//! characters that are not plain in the sense of [`common::text`] only line ends and our own colours reach a terminal: text
//! of other origin (errors of appliances, names of hosts) is escaped where it enters a table or a sentence, and what is
//! left is escaped here.

use std::io::{IsTerminal, Write};
use std::time::{Duration, SystemTime};

use clap::ValueEnum;
use comfy_table::{Attribute, Cell, Color, ContentArrangement, presets};
use common::appliance::Name;
use common::text;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use proto::admin::v1;
use serde::Serialize;
use unicode_width::UnicodeWidthChar;

use crate::error::Failure;
use crate::output::columns::CustomColumns;
use crate::output::jsonpath::JsonPath;
use crate::text::one_line;

pub(crate) mod columns;
pub(crate) mod debug;
pub(crate) mod jsonpath;
#[cfg(test)]
mod tests;
pub(crate) mod view;

/// Output format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// A table
    #[default]
    Table,
    /// A table with more columns
    Wide,
    /// One JSON document
    Json,
    /// One YAML document
    Yaml,
    /// Spans as OTLP JSON, for import into a backend for traces; of `rebalance trace` alone
    Otlp,
    /// A table with these columns; of `list` and `get`
    #[value(skip)]
    Columns(&'static CustomColumns),
    /// Parts of what `json` prints, a line for each
    #[value(skip)]
    JsonPath(&'static JsonPath),
}

impl OutputFormat {
    /// Whether the format is read by programs.
    pub(crate) fn is_structured(self) -> bool {
        matches!(self, Self::Json | Self::Yaml | Self::Otlp | Self::JsonPath(_))
    }
}

/// Meaning of a colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    #[default]
    Plain,
    Good,
    Busy,
    Bad,
    Dim,
}

impl Tone {
    /// Tone of a phase, a health or another state, by its name.
    pub(crate) fn of(state: &str) -> Self {
        match state.to_ascii_lowercase().as_str() {
            "configured" | "healthy" | "completed" | "owned" | "done" | "created" => Self::Good,
            "error" | "dead" | "orphaned" | "interrupted" | "no" => Self::Bad,
            "unchanged" | "gone" | "left" | "superseded" | "dropped" => Self::Dim,
            "down" | "booting" | "up" | "degraded" | "replugging" | "restarting" | "deleting" | "suspect"
            | "running" | "changed" => Self::Busy,
            _ => Self::Plain,
        }
    }

    fn colour(self) -> Option<Color> {
        match self {
            Self::Plain => None,
            Self::Good => Some(Color::Green),
            Self::Busy => Some(Color::Yellow),
            Self::Bad => Some(Color::Red),
            Self::Dim => Some(Color::DarkGrey),
        }
    }

    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "\x1b[32m",
            Self::Busy => "\x1b[33m",
            Self::Bad => "\x1b[31m",
            Self::Dim => "\x1b[90m",
        }
    }
}

/// Terminal settings of one command.
#[derive(Clone, Debug)]
pub(crate) struct Ui {
    /// Output format.
    pub(crate) format: OutputFormat,
    /// Whether stdout gets colour.
    pub(crate) colour: bool,
    /// Whether stderr gets progress bars and colour.
    pub(crate) progress: bool,
    /// The tenant that a name without one means, unless that is the default one.
    pub(crate) tenant: Option<Name>,
}

impl Ui {
    /// From the flags and from what the streams are connected to.
    pub(crate) fn new(format: OutputFormat, no_colour: bool) -> Self {
        // https://no-color.org: present and not empty.
        let plain = no_colour || std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Self {
            format,
            colour: !plain && std::io::stdout().is_terminal(),
            progress: !plain && std::io::stderr().is_terminal(),
            tenant: None,
        }
    }

    /// No terminal.
    #[cfg(test)]
    pub(crate) fn plain(format: OutputFormat) -> Self {
        Self { format, colour: false, progress: false, tenant: None }
    }

    /// The same terminal with names of this tenant.
    pub(crate) fn within(self, tenant: Option<Name>) -> Self {
        Self { tenant, ..self }
    }

    /// An appliance by the name that is read as this one: with its tenant, unless that is the one that is meant anyway.
    pub(crate) fn label(&self, appliance: &v1::Appliance) -> String {
        crate::document::view::label(appliance, self.tenant.as_ref())
    }

    /// Writes a result.
    pub(crate) fn print(&self, text: &str) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        let text = &match self.format {
            OutputFormat::Json | OutputFormat::Otlp => json_escaped(text),
            // Programs read it as it is.
            OutputFormat::Yaml if !std::io::stdout().is_terminal() => text.to_owned(),
            _ => lines_escaped(text),
        };
        out.write_all(text.as_bytes())?;
        if !text.ends_with('\n') {
            out.write_all(b"\n")?;
        }
        Ok(out.flush()?)
    }

    /// Writes a note to stderr. A closed stderr is ignored.
    pub(crate) fn note(&self, text: &str) {
        let _ = writeln!(std::io::stderr().lock(), "{}", lines_escaped(text));
    }

    /// Text in the colour of its tone.
    pub(crate) fn paint(&self, tone: Tone, text: &str) -> String {
        if self.colour && tone != Tone::Plain { format!("{}{text}\x1b[0m", tone.code()) } else { text.to_owned() }
    }

    /// Writes a value as YAML or JSON; JSON also for table formats, whose tables are written by the callers.
    pub(crate) fn print_value(&self, value: &impl Serialize) -> Result<(), Failure> {
        if let OutputFormat::JsonPath(path) = self.format {
            return self.print_parts(path, value);
        }
        self.print(&render(self.format, value)?)
    }

    /// Writes one event of a stream: one line of JSON, or one YAML document.
    pub(crate) fn print_event(&self, value: &impl Serialize) -> Result<(), Failure> {
        match self.format {
            OutputFormat::Yaml => self.print(&format!("---\n{}", render(OutputFormat::Yaml, value)?)),
            OutputFormat::JsonPath(path) => self.print_parts(path, value),
            _ => self.print(&serde_json::to_string(value).map_err(|e| Failure::failed(format!("write JSON: {e}")))?),
        }
    }

    /// Writes parts of a value; nothing when there are none.
    fn print_parts(&self, path: &JsonPath, value: &impl Serialize) -> Result<(), Failure> {
        let lines = path.lines(value)?;
        if lines.is_empty() { Ok(()) } else { self.print(&lines) }
    }

    /// Writes a table.
    pub(crate) fn print_table(&self, table: &TextTable) -> Result<(), Failure> {
        self.print(&self.table_text(table, 0))
    }

    /// A table as it is shown: within the width of the terminal less `indent`. Programs and files get all of it.
    pub(crate) fn table_text(&self, table: &TextTable, indent: usize) -> String {
        let Some(width) = width() else { return table.render(self.colour) };
        let width = width.saturating_sub(indent);
        match table.fitted(width) {
            Some(fitted) => fitted.render(self.colour),
            None => table.records(width, |text| self.bold(text), |tone, text| self.paint(tone, text)),
        }
    }

    fn bold(&self, text: &str) -> String {
        if self.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A bar that fills up to `length`; hidden when stderr is not a terminal.
    pub(crate) fn bar(&self, length: u64) -> ProgressBar {
        let style = ProgressStyle::with_template("{bar:30.green} {pos}/{len} {elapsed:>4}  {wide_msg}");
        let bar = self.indicator(ProgressBar::new(length), style);
        if self.progress {
            // The time it shows goes on while nothing happens.
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        bar
    }

    /// A line with the current activity; hidden when stderr is not a terminal.
    pub(crate) fn spinner(&self) -> ProgressBar {
        let bar =
            self.indicator(ProgressBar::new_spinner(), ProgressStyle::with_template("{spinner:.green} {wide_msg}"));
        if self.progress {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        bar
    }

    fn indicator(
        &self,
        bar: ProgressBar,
        style: Result<ProgressStyle, indicatif::style::TemplateError>,
    ) -> ProgressBar {
        bar.set_draw_target(if self.progress { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() });
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar
    }
}

/// Text of another program with everything escaped but line ends; colours, too, which are ours alone to give.
pub(crate) fn foreign_escaped(text: &str) -> String {
    text.split('\n').map(text::escaped).collect::<Vec<_>>().join("\n")
}

/// Text with everything escaped but line ends and our colours.
pub(crate) fn lines_escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    loop {
        let plain = text::judged(rest).take_while(|(_, plain)| *plain).map(|(c, _)| c.len_utf8()).sum();
        out.push_str(&rest[..plain]);
        rest = &rest[plain..];
        if rest.is_empty() {
            return out;
        }
        // Ours end with `m`: they set colours and move nothing.
        let colour = rest.strip_prefix("\x1b[").and_then(|codes| {
            let end = codes.find(|c: char| !(c.is_ascii_digit() || c == ';'))?;
            codes[end..].starts_with('m').then_some("\x1b[".len() + end + 1)
        });
        let length = match (colour, rest.chars().next()) {
            (Some(length), _) => {
                out.push_str(&rest[..length]);
                length
            }
            (None, Some('\n')) => {
                out.push('\n');
                1
            }
            (None, first) => {
                let length = first.map_or(0, char::len_utf8);
                out.push_str(&text::escaped(&rest[..length]));
                length
            }
        };
        rest = &rest[length..];
    }
}

/// JSON of the same meaning with everything escaped that is not plain, but line ends and indentation. Such characters
/// stand in strings only.
fn json_escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for (c, plain) in text::judged(json) {
        if c == '\n' || plain {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

/// A value as text.
pub(crate) fn render(format: OutputFormat, value: &impl Serialize) -> Result<String, Failure> {
    match format {
        OutputFormat::Yaml => serde_saphyr::to_string(value).map_err(|e| Failure::failed(format!("write YAML: {e}"))),
        _ => serde_json::to_string_pretty(value).map_err(|e| Failure::failed(format!("write JSON: {e}"))),
    }
}

/// Narrowest column that is cut any further.
const NARROWEST: usize = 8;

/// A table: a header, cells, two spaces between columns, no frame.
#[derive(Debug)]
pub(crate) struct TextTable {
    header: Vec<&'static str>,
    /// Columns of prose, which may be cut. All others hold names, ids and numbers, of which a part is of no use.
    prose: &'static [&'static str],
    rows: Vec<Vec<(String, Tone)>>,
}

impl TextTable {
    /// A table without rows.
    pub(crate) fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), prose: &[], rows: Vec::new() }
    }

    /// The same table, of which these columns hold prose and may be cut.
    pub(crate) fn with_prose(self, prose: &'static [&'static str]) -> Self {
        Self { prose, ..self }
    }

    /// Adds a row. An empty cell shows as `-`, so that columns stay recognisable.
    pub(crate) fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = (T, Tone)>) {
        let cell = |(text, tone): (T, Tone)| {
            let text = one_line(&text.into());
            (if text.is_empty() { "-".to_owned() } else { text }, tone)
        };
        self.rows.push(cells.into_iter().map(cell).collect());
    }

    /// The same table in lines of at most `width` characters: the widest columns of prose are cut, down to [`NARROWEST`], and
    /// end with `…` where something is missing. `None` when that is not enough.
    fn fitted(&self, width: usize) -> Option<Self> {
        let columns = self.header.len();
        let cells = |column: usize| self.rows.iter().filter_map(move |row| row.get(column));
        let mut widths: Vec<usize> = (0..columns)
            .map(|c| cells(c).map(|(text, _)| columns_of(text)).chain([self.header[c].len()]).max().unwrap_or(0))
            .collect();
        let gaps = 2 * columns.saturating_sub(1);
        while widths.iter().sum::<usize>() + gaps > width {
            let may_be_cut =
                |c: &usize| self.prose.contains(&self.header[*c]) && widths[*c] > NARROWEST.max(self.header[*c].len());
            let widest = (0..columns).filter(may_be_cut).max_by_key(|c| widths[*c])?;
            widths[widest] -= 1;
        }
        let cut = |((text, tone), width): (&(String, Tone), &usize)| (clipped(text, *width), *tone);
        let rows = self.rows.iter().map(|row| row.iter().zip(&widths).map(cut).collect()).collect();
        Some(Self { header: self.header.clone(), prose: self.prose, rows })
    }

    /// Each row as a paragraph of its own with a line for each cell, for a terminal that is too narrow for the table. Nothing is
    /// cut: long texts go on in the next line.
    fn records(&self, width: usize, name: impl Fn(&str) -> String, cell: impl Fn(Tone, &str) -> String) -> String {
        let widest = self.header.iter().map(|text| text.len()).max().unwrap_or(0);
        let record = |row: &Vec<(String, Tone)>| {
            let mut lines = Vec::new();
            for (head, (text, tone)) in self.header.iter().zip(row) {
                for (at, part) in wrap(text, width.saturating_sub(widest + 2)).iter().enumerate() {
                    let head = if at == 0 { head } else { "" };
                    // Padded first: colours have no width.
                    lines.push(format!("{}  {}", name(&format!("{head:<widest$}")), cell(*tone, part)));
                }
            }
            lines.join("\n")
        };
        self.rows.iter().map(record).collect::<Vec<_>>().join("\n\n")
    }

    /// The table as text, without a final line break and without trailing spaces.
    pub(crate) fn render(&self, colour: bool) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if colour {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table.set_header(self.header.iter().map(|text| {
            let cell = Cell::new(text);
            if colour { cell.add_attribute(Attribute::Bold) } else { cell }
        }));
        for row in &self.rows {
            table.add_row(row.iter().map(|(text, tone)| match tone.colour() {
                Some(colour_of) if colour => Cell::new(text).fg(colour_of),
                _ => Cell::new(text),
            }));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let lines: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n")
    }
}

/// How many columns of a terminal a text takes: characters of East Asian scripts take two, combining marks none.
pub(crate) fn columns_of(text: &str) -> usize {
    text.chars().filter_map(UnicodeWidthChar::width).sum()
}

/// The start of a text that takes at most this many columns; where something is missing it ends with `…`.
pub(crate) fn clipped(text: &str, width: usize) -> String {
    if columns_of(text) <= width {
        return text.to_owned();
    }
    let mut used = 0;
    let fits = |c: &char| {
        used += c.width().unwrap_or(0);
        used < width
    };
    text.chars().take_while(fits).chain(['…']).collect()
}

/// Width of the terminal that stdout is connected to, in columns; `None` when it is none.
pub(crate) fn width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// Text in lines of at most `width` characters, broken at spaces; a longer word gets a line of its own.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut used = 0;
    for word in text.split_whitespace() {
        let length = columns_of(word);
        match lines.last_mut() {
            Some(line) if used + 1 + length <= width => {
                line.push(' ');
                line.push_str(word);
                used += 1 + length;
            }
            _ => {
                lines.push(word.to_owned());
                used = length;
            }
        }
    }
    lines
}

/// A time to the second; empty when there is none.
pub(crate) fn moment(time: Option<prost_types::Timestamp>) -> String {
    time.map(|t| prost_types::Timestamp { nanos: 0, ..t }.to_string()).unwrap_or_default()
}

/// Time since a moment, short: `12s`, `3m40s`, `5h10m`, `4d2h`.
pub(crate) fn age(since: Option<&prost_types::Timestamp>, now: SystemTime) -> String {
    let Some(since) = since.and_then(|t| SystemTime::try_from(*t).ok()) else { return String::new() };
    short(now.duration_since(since).unwrap_or_default())
}

/// A duration in its two largest units.
pub(crate) fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let pair = |big: u64, unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => pair(seconds / 60, "m", seconds % 60, "s"),
        3600..86_400 => pair(seconds / 3600, "h", seconds % 3600 / 60, "m"),
        _ => pair(seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
    }
}

/// The state of the hand-off of an appliance, and why.
pub(crate) fn placement(assignment: &v1::Assignment) -> String {
    match (assignment.state.as_str(), assignment.reason.as_str()) {
        (state, "") => state.to_owned(),
        (state, reason) => format!("{state} ({reason})"),
    }
}

/// `1 appliance`, `2 appliances`.
pub(crate) fn count(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}
