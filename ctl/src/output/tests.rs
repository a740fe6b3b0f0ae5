//! Format of tables, durations and values.

use super::*;

#[test]
fn of_what_is_not_plain_only_line_ends_and_colours_reach_a_terminal() {
    assert_eq!(lines_escaped("\x1b[31mred\x1b[0m\n\x1b[2Jx\u{202e}"), "\x1b[31mred\x1b[0m\n\\u{1b}[2Jx\\u{202e}");
    assert_eq!(lines_escaped("\x1b["), "\\u{1b}[");
    assert_eq!(foreign_escaped("a\n\x1b[31mred"), "a\n\\u{1b}[31mred", "nor colours of a server");
    let json = "{\n  \"a\": \"\u{9b}31m\u{202e}\u{e0041}\"\n}";
    let escaped = json_escaped(json);
    assert_eq!(escaped, "{\n  \"a\": \"\\u009b31m\\u202e\\udb40\\udc41\"\n}");
    let (read, same): (serde_json::Value, serde_json::Value) =
        (serde_json::from_str(json).expect("JSON"), serde_json::from_str(&escaped).expect("JSON"));
    assert_eq!(read, same);
}

#[test]
fn tables_are_aligned_and_one_line_per_row() {
    let mut table = TextTable::new(&["NAME", "WHAT"]);
    table.row([("a", Tone::Plain), ("two\nlines\x1b[31m", Tone::Bad)]);
    table.row([("longer", Tone::Good), ("", Tone::Plain)]);
    assert_eq!(table.render(false), "NAME    WHAT\na       two lines\\u{1b}[31m\nlonger  -");
}

#[test]
fn colour_appears_only_when_enabled() {
    let mut table = TextTable::new(&["PHASE"]);
    table.row([("Error", Tone::Bad)]);
    assert!(table.render(true).contains("\x1b["), "{:?}", table.render(true));
    assert!(!table.render(false).contains('\x1b'));
    let ui = |colour| Ui { colour, ..Ui::plain(OutputFormat::Table) };
    assert_eq!(ui(true).paint(Tone::Good, "ok"), "\x1b[32mok\x1b[0m");
    assert_eq!(ui(false).paint(Tone::Good, "ok"), "ok");
}

#[test]
fn wide_characters_and_long_cells_do_not_wrap() {
    let mut table = TextTable::new(&["A", "B"]);
    table.row([("x".repeat(300), Tone::Plain), ("y".to_owned(), Tone::Plain)]);
    assert_eq!(table.render(false).lines().count(), 2);
}

#[test]
fn ages_have_the_two_units_that_matter() {
    for (seconds, text) in [
        (0, "0s"),
        (59, "59s"),
        (60, "1m"),
        (220, "3m40s"),
        (3600, "1h"),
        (18_600, "5h10m"),
        (86_400, "1d"),
        (352_800, "4d2h"),
    ] {
        assert_eq!(short(Duration::from_secs(seconds)), text);
    }
    assert_eq!(age(None, SystemTime::UNIX_EPOCH), "");
    let future = prost_types::Timestamp { seconds: 10, nanos: 0 };
    assert_eq!(age(Some(&future), SystemTime::UNIX_EPOCH), "0s", "clocks differ");
}

#[test]
fn numbers_agree_with_their_nouns() {
    assert_eq!(count(1, "appliance"), "1 appliance");
    assert_eq!(count(0, "appliance"), "0 appliances");
}

#[test]
fn values_use_the_names_of_the_api() {
    let worker = proto::admin::v1::Worker {
        id: "worker-1".into(),
        health: proto::admin::v1::Health::Suspect.into(),
        phases: [("Configured".to_owned(), 2)].into(),
        last_seen: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
        ..proto::admin::v1::Worker::default()
    };
    let text = render(OutputFormat::Json, &view::Worker::from(&worker)).expect("plain data");
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(value["health"], "suspect");
    assert_eq!(value["phases"]["configured"], 2);
    assert_eq!(value["last_seen"], "1970-01-01T00:00:01Z");
    let text = render(OutputFormat::Yaml, &view::Worker::from(&worker)).expect("plain data");
    assert!(text.starts_with("id: worker-1\n"), "{text}");
}

#[test]
fn a_table_fits_the_terminal_or_is_shown_row_by_row() {
    let mut table = TextTable::new(&["NAME", "ID", "LAST ERROR"]).with_prose(&["LAST ERROR"]);
    let plain = |text: &str| (text.to_owned(), Tone::Plain);
    let id = "6f1c9a52-0f5e-4f0a-9a3e-0d2b6a1c7e11";
    table.row([plain("web-1"), plain(id), plain(&"port is in use ".repeat(9))]);
    table.row([plain("web-2"), plain(id), plain(&"\u{756a}".repeat(60))]);
    let fits = |text: &str, width| text.lines().all(|line| columns_of(line) <= width);
    let fitted = table.fitted(80).expect("prose can be cut").render(false);
    assert!(fits(&fitted, 80) && fitted.contains('…') && fitted.matches(id).count() == 2, "{fitted}");
    assert_eq!(table.fitted(400).expect("it fits").render(false), table.render(false));

    // Names and ids are never cut.
    assert!(table.fitted(60).is_some() && table.fitted(54).is_none());
    let name = |text: &str| text.to_owned();
    let records = table.records(50, name, |_, text| text.to_owned());
    let first = format!("NAME        web-1\nID          {id}\nLAST ERROR  port is in use port is in use port is\n");
    assert!(records.starts_with(&first), "{records}");
    assert!(records.contains("\n\nNAME        web-2\n") && !records.contains('…'), "{records}");
    assert_eq!(records.matches("use").count(), 9, "all of the text is there: {records}");
    assert!(fits(records.split_once("\n\n").expect("two rows").0, 50), "{records}");
}
