//! Compares what a page shows with what was printed.

/// As OpenSSL writes them.
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A line with everything that is different on each run replaced: numbers, durations, ids, and how columns are spaced.
#[must_use]
pub fn shape(line: &str) -> String {
    line.split_whitespace().map(shape_of_word).collect::<Vec<_>>().join(" ")
}

fn shape_of_word(word: &str) -> String {
    let mut out = String::new();
    let mut rest = word;
    while let Some(first) = rest.chars().next() {
        if let Some(id) = rest.get(..36).filter(|text| is_uuid(text)) {
            out.push_str("<id>");
            rest = &rest[id.len()..];
            continue;
        }
        if !first.is_ascii_alphanumeric() {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let bytes = rest.as_bytes();
        let is_in = |at: usize| match bytes.get(at) {
            Some(b'.') => at > 0 && bytes[at - 1].is_ascii_digit() && bytes.get(at + 1).is_some_and(u8::is_ascii_digit),
            Some(byte) => byte.is_ascii_alphanumeric(),
            None => false,
        };
        let end = (0..=bytes.len()).find(|at| !is_in(*at)).unwrap_or(bytes.len());
        out.push_str(&shape_of_run(&rest[..end]));
        rest = &rest[end..];
    }
    out
}

fn shape_of_run(run: &str) -> String {
    const SHORTEST_ID: usize = 8;
    let has_digit = run.bytes().any(|byte| byte.is_ascii_digit());
    if has_digit && run.len() >= SHORTEST_ID && run.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return "<id>".to_owned();
    }
    if MONTHS.contains(&run) {
        return "<month>".to_owned();
    }
    if is_duration(run) {
        return "<duration>".to_owned();
    }
    let mut out = String::new();
    for c in run.chars() {
        match c {
            '0'..='9' if out.ends_with('#') => {}
            '0'..='9' => out.push('#'),
            // Inside a number.
            '.' if out.ends_with('#') => {}
            c => out.push(c),
        }
    }
    out
}

/// Such as `4s`, `1.5ms` or `2m10s`.
fn is_duration(run: &str) -> bool {
    let mut rest = run;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let Some(unit_at) = unit_at.filter(|at| *at > 0) else { return false };
        rest = &rest[unit_at..];
        let Some(unit) = ["ms", "us", "ns", "s", "m", "h", "d"].iter().find(|unit| rest.starts_with(**unit)) else {
            return false;
        };
        rest = &rest[unit.len()..];
    }
    !run.is_empty()
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// What is wrong with `printed`, of which the page says `shown`; empty when it is as shown.
#[must_use]
pub fn differences(shown: &[String], printed: &[String], varies: bool) -> Vec<String> {
    let is_cut = shown.iter().any(|line| line.trim() == "...");
    let mut left: Vec<(String, &String)> =
        printed.iter().filter(|line| !line.trim().is_empty()).map(|line| (shape(line), line)).collect();
    let mut wrong = Vec::new();
    for line in shown.iter().filter(|line| line.trim() != "...") {
        let expected = shape(line);
        if let Some(at) = left.iter().position(|(shape, _)| *shape == expected) {
            left.remove(at);
        } else if !varies || !line.bytes().any(|byte| byte.is_ascii_digit()) {
            wrong.push(format!("not printed: {line}"));
        }
    }
    if !is_cut && !varies {
        wrong.extend(left.iter().map(|(_, line)| format!("not shown:   {line}")));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_run_to_run_does_not_count_and_everything_else_does() {
        let same = [
            ("default  web  Configured  1/1    worker-3  4s", "default web Configured 1/1 worker-12   1m4s"),
            (
                "cluster da3cc209-6c0e-4f6b-9a57-0d6b1f2c7e18, ready",
                "cluster 00000000-aaaa-bbbb-cccc-dddddddddddd, ready",
            ),
            ("rollout 6f1c9a52 is started", "rollout abcdef01 is started"),
            ("2026-11-22T16:03:20Z 1.05 0..2", "2027-01-02T06:13:21Z 1 2..13"),
            ("after 228ms", "after 1.5s"),
        ];
        for (one, other) in same {
            assert_eq!(shape(one), shape(other));
        }
        for (one, other) in
            [("web-1 created", "web-1 changed"), ("READY 1/1", "READY 1"), ("worker-1 yes", "yes worker-1")]
        {
            assert_ne!(shape(one), shape(other));
        }
    }

    #[test]
    fn lines_that_are_missing_and_lines_too_many_are_told() {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let shown = lines("NAME  AGE\nweb-1 4s");
        assert_eq!(differences(&shown, &lines("NAME   AGE\n\nweb-2  5s"), false), Vec::<String>::new());
        assert_eq!(differences(&shown, &lines("NAME AGE"), false), ["not printed: web-1 4s"]);
        assert_eq!(differences(&shown, &lines("NAME AGE\nweb-2 5s\nweb-3 5s"), false), ["not shown:   web-3 5s"]);
        assert_eq!(differences(&lines("NAME AGE\n..."), &lines("NAME AGE\nweb-3 5s"), false), Vec::<String>::new());
        assert_eq!(differences(&shown, &lines("NAME AGE\nfront 5s"), true), Vec::<String>::new());
        assert_eq!(differences(&shown, &lines("AGE\nfront 5s"), true), ["not printed: NAME  AGE"]);
    }
}
