//! Pages about what is measured and traced, made from the code. A page is written by hand but for parts between two marks, each of
//! which belongs to a test: it fails while the part is out of date, and renews it with [`WRITE`] set to 1.

#[cfg(feature = "schema")]
pub mod schema;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The variable that renews parts instead of comparing them.
pub const WRITE: &str = "RUG_WRITE_REFERENCE";

/// Compares the part `name` of a page with what it should be, or renews it.
///
/// # Errors
/// What is wrong, and what to do about it.
pub fn check(page: &Path, name: &str, part: &str) -> Result<(), String> {
    /// Tests run at the same time, and renew parts of one page.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let shown = page.display();
    let text = std::fs::read_to_string(page).map_err(|e| format!("{shown}: {e}"))?;
    let renewed = renew(&text, name, part).ok_or_else(|| {
        format!("{shown} has no part `{name}`: it is between <!-- begin: {name} --> and <!-- end: {name} -->")
    })?;
    if renewed == text {
        return Ok(());
    }
    if std::env::var(WRITE).is_ok_and(|value| value == "1") {
        return std::fs::write(page, renewed).map_err(|e| format!("{shown}: {e}"));
    }
    Err(format!("part `{name}` of {shown} is out of date; run this test with {WRITE}=1 to renew it"))
}

/// The page with another part of this name; `None` when it has none.
fn renew(text: &str, name: &str, part: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- begin: {name} -->\n"), format!("<!-- end: {name} -->"));
    let from = text.find(&begin)? + begin.len();
    let to = from + text[from..].find(&end)?;
    Some(format!("{}\n{}\n{}", &text[..from], part.trim(), &text[to..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_replaced_and_the_rest_of_the_page_stays() {
        let page = "# Page\n<!-- begin: a -->\nold\n<!-- end: a -->\nby hand\n";
        let renewed = renew(page, "a", "new\n").expect("it has the part");
        assert_eq!(renewed, "# Page\n<!-- begin: a -->\n\nnew\n<!-- end: a -->\nby hand\n");
        assert_eq!(renew(&renewed, "a", "new").as_ref(), Some(&renewed));
        assert_eq!(renew(page, "b", "new"), None);
    }
}
