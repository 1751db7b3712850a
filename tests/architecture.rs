//! The modules keep to the layout that docs/explanation/architecture.md describes: `core` is pure, no two modules use each
//! other, and the lab, with which tests find Pinhole's mistakes, takes next to nothing from Pinhole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What reaches the world outside the process: sockets, files, clocks, threads, processes.
const IMPURE: [&str; 14] = [
    "std::fs",
    "std::process",
    "std::thread",
    "std::env",
    "std::os",
    "Instant",
    "SystemTime",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "rustix::",
    "nfq::",
    "tokio::",
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The code of each file below `src`, by its path from there.
fn code() -> BTreeMap<PathBuf, String> {
    code_below("src")
}

/// The code of each file below a folder, without comments and without tests, by its path from there.
fn code_below(folder: &str) -> BTreeMap<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut paths = Vec::new();
    sources(&root, &mut paths);
    let is_test = |path: &PathBuf| path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("tests"));
    paths.retain(|path| !is_test(path));
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a file of the sources");
        let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
        // Unit tests stand at the end of a file.
        let code: Vec<&str> = lines.take_while(|line| line.trim() != "#[cfg(test)]").collect();
        (path.strip_prefix(&root).expect("below the root").to_owned(), code.join("\n"))
    };
    paths.into_iter().map(read).collect()
}

/// The module of a file or of a path of the language: its first `depth` names.
fn module(names: &[&str], depth: usize) -> Option<String> {
    let names: Vec<&str> = names.iter().take(depth).map(|name| name.trim_end_matches(".rs")).collect();
    (names.len() == depth).then(|| names.join("::"))
}

/// Which module below `prefix` uses which other one.
fn uses(prefix: &str) -> BTreeMap<String, BTreeSet<String>> {
    let depth = if prefix.is_empty() { 1 } else { 2 };
    let mut uses = BTreeMap::<String, BTreeSet<String>>::new();
    for (path, code) in code() {
        let path = path.to_string_lossy();
        let from: Vec<&str> = path.split('/').collect();
        let Some(from) = module(&from, depth).filter(|from| from.starts_with(prefix)) else { continue };
        for used in code.split("crate::").skip(1) {
            let used: Vec<&str> = used.split(|letter: char| !letter.is_alphanumeric() && letter != '_').collect();
            let used: Vec<&str> = used.into_iter().filter(|name| !name.is_empty()).collect();
            let Some(to) = module(&used, depth).filter(|to| to.starts_with(prefix)) else { continue };
            if to != from {
                uses.entry(from.clone()).or_default().insert(to);
            }
        }
    }
    uses
}

/// A way from a module back to itself, if there is one.
fn circle(uses: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn follow(
        uses: &BTreeMap<String, BTreeSet<String>>,
        way: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Option<Vec<String>> {
        let here = way.last().cloned()?;
        for next in uses.get(&here).into_iter().flatten() {
            if let Some(begin) = way.iter().position(|module| module == next) {
                return Some(way[begin..].iter().chain([next]).cloned().collect());
            }
            if !done.contains(next) {
                way.push(next.clone());
                if let Some(circle) = follow(uses, way, done) {
                    return Some(circle);
                }
                way.pop();
            }
        }
        done.insert(here);
        None
    }
    let mut done = BTreeSet::new();
    uses.keys().find_map(|module| follow(uses, &mut vec![module.clone()], &mut done))
}

#[test]
fn core_uses_no_module_outside_core() {
    for (path, code) in code().into_iter().filter(|(path, _)| path.starts_with("core")) {
        for used in code.split("crate::").skip(1) {
            assert!(used.starts_with("core"), "{} uses crate::{:.40}", path.display(), used);
        }
    }
}

#[test]
fn core_touches_no_socket_file_clock_thread_or_process() {
    for (path, code) in code().into_iter().filter(|(path, _)| path.starts_with("core")) {
        for word in IMPURE {
            assert!(!code.contains(word), "{} uses {word}", path.display());
        }
    }
}

#[test]
fn no_two_modules_use_each_other() {
    for prefix in ["", "core::"] {
        let uses = uses(prefix);
        assert!(uses.len() > 4, "the sources were not found: {uses:?}");
        assert_eq!(circle(&uses), None, "of {uses:#?}");
    }
}

#[test]
fn lab_takes_only_modes_times_and_the_capture_writer_from_pinhole() {
    const TAKEN: [&str; 4] = ["core::ftp::Mode", "core::time::Timestamp", "replay::pcap::link", "replay::pcap::write"];
    let code = code_below("tests/lab/src");
    assert!(code.len() > 20, "the sources were not found");
    for (path, code) in code {
        for used in code.split("pinhole::").skip(1) {
            assert!(TAKEN.iter().any(|taken| used.starts_with(taken)), "{} uses pinhole::{:.40}", path.display(), used);
        }
    }
}
