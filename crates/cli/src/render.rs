//! The API's objects as text. Everything here is a pure function: what it says depends on nothing but its arguments.

mod cluster;
mod error;
mod host;
mod migration;
mod progress;
mod task;
mod vm;

pub use cluster::{cluster, datastores, networks};
pub use error::{Account, error};
pub use host::{checks, host, hosts};
pub use migration::{plan, report};
pub use progress::{Progress, progress};
pub use task::{event, task, tasks};
pub use vm::{vm, vms};

use std::borrow::Cow;

use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use limosa_model::Millis;

/// Columns without lines, as wide as they need to be.
fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// The text without anything that a terminal would obey: it may hold words of guests and of other hosts.
pub fn plain(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| c.is_control() && c != '\n' && c != '\t';
    if text.contains(obeyed) { text.replace(obeyed, "\u{fffd}").into() } else { text.into() }
}

/// One thing's properties, a line each. A value of several lines goes on below its first.
fn facts(facts: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let facts: Vec<_> = facts.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    let width = facts.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (label, value) in facts {
        for (n, line) in value.lines().enumerate() {
            let label = if n == 0 { label } else { "" };
            text += format!("{label:width$}  {line}").trim_end();
            text.push('\n');
        }
    }
    text
}

/// Breaks a text into lines of at most `width` characters, at spaces.
fn wrap(text: &str, width: usize) -> String {
    let mut wrapped = String::new();
    let mut column = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > width {
            wrapped.push('\n');
            column = 0;
        } else if column > 0 {
            wrapped.push(' ');
            column += 1;
        }
        wrapped += word;
        column += length;
    }
    wrapped
}

/// How long ago, in its largest unit.
fn ago(now: Timestamp, then: Timestamp) -> String {
    let seconds = now.duration_since(then).as_secs().max(0);
    match seconds {
        s if s < 60 => format!("{s} s ago"),
        s if s < 3600 => format!("{} min ago", s / 60),
        s if s < 86_400 => format!("{} h ago", s / 3600),
        s => format!("{} days ago", s / 86_400),
    }
}

/// Microseconds for people: a tenth of a millisecond matters below ten of them.
fn micros(micros: u64) -> String {
    match micros {
        n if n < 10_000 => format!("{:.1} ms", n as f64 / 1e3),
        n => Millis::new((n + 500) / 1000).human(),
    }
}

/// The text of an optional value, or a dash.
fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// The first letter as a capital: a failure's text becomes a sentence.
fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// The text with a full stop, unless it ends a sentence already.
fn sentence(text: &str) -> String {
    let text = text.trim_end();
    if text.ends_with(['.', '!', '?', ':']) { text.to_owned() } else { format!("{text}.") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_cell_and_lines_have_no_tail() {
        let rows = [["web".into(), "running".into()], ["database".into(), String::new()]];
        assert_eq!(table(["NAME", "STATE"], rows), "NAME      STATE\nweb       running\ndatabase\n");
        assert_eq!(table(["NAME", "STATE"], []), "NAME  STATE\n");
    }

    #[test]
    fn facts_without_a_value_are_left_out() {
        let text = facts([("name", "web".into()), ("why", String::new()), ("hosts", "h1\nh2".into())]);
        assert_eq!(text, "name   web\nhosts  h1\n       h2\n");
    }

    #[test]
    fn long_texts_break_at_spaces() {
        assert_eq!(wrap("one  two\nthree", 7), "one two\nthree");
        assert_eq!(wrap("a-word-longer-than-a-line b", 5), "a-word-longer-than-a-line\nb");
        assert_eq!(wrap("", 5), "");
    }

    #[test]
    fn what_a_terminal_would_obey_is_taken_out() {
        assert_eq!(plain("a\u{1b}[2Jb\rc\u{9b}1m\td\n"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}1m\td\n");
        assert!(matches!(plain("über"), Cow::Borrowed("über")));
    }

    #[test]
    fn times_are_told_in_their_largest_unit() {
        let now: Timestamp = "2030-01-02T00:00:00Z".parse().unwrap();
        for (then, text) in [
            ("2030-01-01T23:59:59Z", "1 s ago"),
            ("2030-01-01T22:00:00Z", "2 h ago"),
            ("2029-12-30T00:00:00Z", "3 days ago"),
            ("2030-01-03T00:00:00Z", "0 s ago"),
        ] {
            assert_eq!(ago(now, then.parse().unwrap()), text);
        }
        assert_eq!([micros(87_400), micros(6_040), micros(1_400_000)], ["87 ms", "6.0 ms", "1.4 s"]);
    }
}
