//! The modules keep to the layout that docs/explanation/architecture.md describes: `core` is pure, no two modules use
//! each other, and the lab uses almost nothing of Pinhole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Functions and types that leave the process: sockets, files, clocks, threads, processes.
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
        // Unit tests are at the end of a file.
        let code: Vec<&str> = lines.take_while(|line| line.trim() != "#[cfg(test)]").collect();
        (path.strip_prefix(&root).expect("below the root").to_owned(), code.join("\n"))
    };
    paths.into_iter().map(read).collect()
}

/// The module of a path, if the path leads into it: its first names, as many as `depth`.
fn module(path: &[String], depth: usize) -> Option<String> {
    path.get(..depth).map(|names| names.join("::"))
}

/// The path of a file, as the language has it. `mod.rs` is a module of its own beside the ones that it declares.
fn path_of(file: &Path) -> Vec<String> {
    let names = file.with_extension("");
    names.iter().map(|name| name.to_string_lossy().into_owned()).collect()
}

/// The paths in a piece of code, with `{}` expanded, and the text after each.
fn named<'a>(code: &'a str, above: &[String], paths: &mut Vec<Vec<String>>) -> &'a str {
    if let Some(mut rest) = code.strip_prefix('{') {
        loop {
            rest = named(rest.trim_start(), above, paths).trim_start();
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => return rest.strip_prefix('}').unwrap_or(rest),
            }
        }
    }
    let end = code.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(code.len());
    let (name, rest) = code.split_at(end);
    let path = match name {
        "" => above.to_vec(),
        "super" => above[..above.len().saturating_sub(1)].to_vec(),
        _ => above.iter().cloned().chain([name.to_owned()]).collect(),
    };
    match rest.strip_prefix("::") {
        Some(below) => named(below, &path, paths),
        None => {
            paths.push(path);
            rest
        }
    }
}

/// The paths of other modules that a file names, from the root of the crate.
fn named_in(file: &Path, code: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    let is_whole = |before: &str| !before.ends_with(|letter: char| letter.is_alphanumeric() || "_:".contains(letter));
    for (begin, _) in code.match_indices("crate::").filter(|(begin, _)| is_whole(&code[..*begin])) {
        named(&code[begin + "crate::".len()..], &[], &mut paths);
    }
    let mut parent = path_of(file);
    if parent.last().is_some_and(|name| name == "mod") {
        parent.pop();
    }
    parent.pop();
    for (begin, _) in code.match_indices("super::").filter(|(begin, _)| is_whole(&code[..*begin])) {
        named(&code[begin + "super::".len()..], &parent, &mut paths);
    }
    paths
}

/// Which module below `prefix` uses which other one.
fn uses(prefix: &str) -> BTreeMap<String, BTreeSet<String>> {
    let depth = prefix.matches("::").count() + 1;
    let mut uses = BTreeMap::<String, BTreeSet<String>>::new();
    for (file, code) in code() {
        let Some(from) = module(&path_of(&file), depth).filter(|from| from.starts_with(prefix)) else { continue };
        for used in named_in(&file, &code) {
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
fn core_uses_no_socket_file_clock_thread_or_process() {
    for (path, code) in code().into_iter().filter(|(path, _)| path.starts_with("core")) {
        for word in IMPURE {
            assert!(!code.contains(word), "{} uses {word}", path.display());
        }
    }
}

#[test]
fn paths_are_resolved_as_the_compiler_does() {
    let code = "use super::{nft, rules::{self, Rule}}; use crate::core::net; pub(super) fn a() -> super::super::B {}";
    let named = named_in(Path::new("netfilter/table/install.rs"), code);
    let named: Vec<String> = named.iter().map(|path| path.join("::")).collect();
    let below = "netfilter::table";
    let expected = [
        "core::net".to_owned(),
        format!("{below}::nft"),
        format!("{below}::rules::self"),
        format!("{below}::rules::Rule"),
        "netfilter::B".to_owned(),
    ];
    assert_eq!(named, expected);
    let named = named_in(Path::new("netfilter/table/mod.rs"), "use super::errors::ErrorCounter;");
    assert_eq!(named[0].join("::"), "netfilter::errors::ErrorCounter");
}

#[test]
fn no_two_modules_use_each_other() {
    for (prefix, user, used) in [
        ("", "daemon", "netfilter"),
        ("core::", "tracker", "kernel"),
        ("netfilter::", "backend", "table"),
        ("netfilter::backend::", "probe", "native"),
    ] {
        let uses = uses(prefix);
        let used_by_it = uses.get(&format!("{prefix}{user}"));
        let is_seen = used_by_it.is_some_and(|all| all.contains(&format!("{prefix}{used}")));
        assert!(is_seen, "{user} uses {used}, which was not found: {uses:#?}");
        assert_eq!(circle(&uses), None, "of {uses:#?}");
    }
}

#[test]
fn lab_uses_only_mode_timestamp_and_capture_writer() {
    const TAKEN: [&str; 4] = ["core::ftp::Mode", "core::time::Timestamp", "replay::pcap::link", "replay::pcap::write"];
    let code = code_below("tests/lab/src");
    assert!(code.len() > 20, "the sources were not found");
    for (path, code) in code {
        for used in code.split("pinhole::").skip(1) {
            assert!(TAKEN.iter().any(|taken| used.starts_with(taken)), "{} uses pinhole::{:.40}", path.display(), used);
        }
    }
}

#[test]
fn every_file_of_a_test_program_is_a_module_of_it() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let is_program = |folder: &PathBuf| folder.join("main.rs").exists();
    let entries = |folder: &Path| fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let programs: Vec<PathBuf> = entries(&tests).filter(is_program).collect();
    assert!(programs.len() > 4, "the test programs were not found");
    for program in programs {
        let main = fs::read_to_string(program.join("main.rs")).expect("a test program");
        let is_module =
            |path: &PathBuf| path.join("mod.rs").exists() || path.extension().is_some_and(|end| end == "rs");
        for path in entries(&program).filter(is_module).filter(|path| !path.ends_with("main.rs")) {
            let name = path.file_stem().expect("a name").to_string_lossy();
            assert!(main.contains(&format!("mod {name};\n")), "{} is no module, so it never runs", path.display());
        }
    }
}
