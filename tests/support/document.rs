//! Tables in `docs/reference/comparison.md` that tests write and compare.

use std::path::Path;
use std::sync::Mutex;

/// Tests of a program run at the same time, and may write different parts.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Compares the text between the marks of that name, or replaces it if `UPDATE_REFERENCE` is set.
#[track_caller]
pub(crate) fn assert_documented(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/comparison.md");
    let _guard = ONE_AT_A_TIME.lock();
    let before = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
    let parts = before.split_once(&begin).and_then(|(head, rest)| Some((head, rest.split_once(&end)?)));
    let (head, (found, tail)) = parts.unwrap_or_else(|| panic!("{} lacks the marks of {name}", path.display()));
    if found == text {
        return;
    }
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(&path, format!("{head}{begin}{text}{end}{tail}")).expect("the document can be written");
        return;
    }
    panic!("{} says something else about {name} (UPDATE_REFERENCE=1 writes it anew):\n{text}", path.display());
}
