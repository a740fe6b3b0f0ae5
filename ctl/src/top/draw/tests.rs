//! Drawn screens, as files. Each is compared with the one that is kept, or written anew with `RUG_WRITE_REFERENCE=1`.

use std::path::Path;

use ratatui_core::backend::TestBackend;
use ratatui_core::buffer::Buffer;
use ratatui_core::style::{Color, Modifier};
use ratatui_core::terminal::Terminal;

use super::draw;
use crate::top::input::{Feed, Input, Key};
use crate::top::model::Model;
use crate::top::model::tests::{at, fleet, fleet_with_appliances, press};
use crate::top::screen::{Glyphs, Target};
use crate::top::view;

fn drawn(model: &Model, size: (u16, u16), glyphs: &Glyphs, colour: bool) -> Buffer {
    let screen = view::screen(model, size, glyphs);
    let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).expect("it cannot fail");
    terminal.draw(|frame| draw(&screen, colour, frame.buffer_mut())).expect("it cannot fail");
    terminal.backend().buffer().clone()
}

/// The characters of a screen, line by line, without spaces at the ends.
fn text(buffer: &Buffer) -> String {
    let mut text = String::new();
    for row in buffer.content().chunks(usize::from(buffer.area.width)) {
        let line: String = row.iter().map(|cell| cell.symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn compare(name: &str, model: &Model, size: (u16, u16), glyphs: &Glyphs) {
    let shown = text(&drawn(model, size, glyphs, true));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/top/golden/{name}.txt"));
    if std::env::var(runtime::reference::WRITE).is_ok_and(|value| value == "1") {
        std::fs::write(&file, &shown).expect("written");
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(shown, kept, "{} differs; {}=1 and this test write it anew", file.display(), runtime::reference::WRITE);
}

#[test]
fn workers_are_bars_against_their_bands_at_every_size() {
    for (width, height) in [(80, 24), (120, 40), (200, 60)] {
        compare(&format!("workers-{width}x{height}"), &fleet(), (width, height), &Glyphs::UNICODE);
    }
}

#[test]
fn appliances_are_listed_by_the_page_at_every_size() {
    for (width, height) in [(80, 24), (120, 40), (200, 60)] {
        compare(&format!("appliances-{width}x{height}"), &fleet_with_appliances(), (width, height), &Glyphs::UNICODE);
    }
}

#[test]
fn a_small_screen_has_each_pane_to_itself() {
    let mut model = fleet();
    for (key, name) in [('3', "rebalances"), ('4', "troubles"), ('5', "events")] {
        press(&mut model, Key::Char(key));
        compare(&format!("{name}-80x24"), &model, (80, 24), &Glyphs::UNICODE);
    }
    press(&mut model, Key::Char('?'));
    compare("help-80x24", &model, (80, 24), &Glyphs::UNICODE);
}

#[test]
fn without_unicode_everything_is_drawn_in_ascii() {
    let mut model = fleet();
    let status = model.cluster.clone().expect("known");
    let frozen = Some(proto::admin::v1::Frozen {
        reason: "caf\u{e9} is down: 30 of 50 vanished".into(),
        since: Some(at(crate::top::model::tests::NOW - 40).into()),
        ..proto::admin::v1::Frozen::default()
    });
    model.update(Input::Cluster(Box::new(proto::admin::v1::ClusterStatus { frozen, ..status })));
    model.update(Input::Interrupted(Feed::Workers, "the connection to the server broke".into()));
    press(&mut model, Key::Char('E'));
    compare("ascii-80x24", &model, (80, 24), &Glyphs::ASCII);
    assert!(text(&drawn(&model, (80, 24), &Glyphs::ASCII, true)).is_ascii());
}

#[test]
fn without_colour_bold_and_reverse_are_all_there_is() {
    let model = fleet();
    let cells = |colour| drawn(&model, (120, 40), &Glyphs::UNICODE, colour).content().to_vec();
    let plain = cells(false);
    assert!(plain.iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset));
    assert!(plain.iter().any(|cell| cell.modifier == Modifier::BOLD));
    assert!(plain.iter().any(|cell| cell.modifier == Modifier::REVERSED));
    let coloured = cells(true);
    assert!([Color::Green, Color::Yellow, Color::Red].iter().all(|c| coloured.iter().any(|cell| cell.fg == *c)));
    let symbols =
        |cells: &[ratatui_core::buffer::Cell]| cells.iter().map(|c| c.symbol().to_owned()).collect::<String>();
    assert_eq!(symbols(&plain), symbols(&coloured), "the text is the same");
}

#[test]
fn a_screen_that_is_too_small_says_so_and_no_size_is_too_odd() {
    let mut model = fleet();
    for key in [None, Some(Key::Char('2')), Some(Key::Char('?')), Some(Key::Escape), Some(Key::Char('/'))] {
        key.map(|key| press(&mut model, key));
        for (width, height) in [(1, 1), (39, 9), (40, 10), (109, 31), (110, 29), (110, 30), (400, 12), (41, 100)] {
            let shown = text(&drawn(&model, (width, height), &Glyphs::UNICODE, true));
            assert_eq!(shown.contains("too small"), width == 39, "{width}x{height}: {shown}");
        }
    }
}

#[test]
fn a_click_on_a_row_means_that_row() {
    let mut model = fleet();
    let find = |model: &Model, size, word: &str| {
        let screen = view::screen(model, size, &Glyphs::UNICODE);
        let shown = text(&drawn(model, size, &Glyphs::UNICODE, true));
        let line = shown.lines().position(|line| line.contains(word)).expect(word);
        screen.target(3, u16::try_from(line).expect("a small screen"))
    };
    let target = find(&model, (80, 24), "worker-5 ").expect("a row");
    model.update(Input::Click(target));
    assert_eq!(model.selected_row(model.pane), 4);
    assert!(matches!(find(&model, (80, 24), "1 Workers"), Some(Target::Pane(_))));
    model.update(Input::Tick(at(crate::top::model::tests::NOW + 1)));
}

#[test]
fn a_model_that_knows_nothing_waits() {
    let model = Model::new(at(0), None);
    let shown = text(&drawn(&model, (80, 24), &Glyphs::UNICODE, false));
    assert!(shown.contains("waiting for the cluster") && shown.contains("waiting for the server"), "{shown}");
}
