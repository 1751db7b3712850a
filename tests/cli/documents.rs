//! Every command that the documents show is run, and has to print what they show.
//!
//! A block marked `console` holds commands after `$ ` and their output; a line `[...]` means omitted lines. A command
//! that names a YAML file gets the preceding YAML block under that name.
//!
//! The tables of counters and gauges list each of them with its help text, and the table of refusals lists every
//! reason.

use std::path::{Path, PathBuf};
use std::process::Command;

use pinhole::core::expectation::Refusal;
use pinhole::core::metrics::{EventCounters, Metric};
use pinhole::daemon::status::{DaemonCounters, Gauges};
use pinhole::replay::ReplayCounters;

const DOCUMENTS: [&str; 14] = [
    "README.md",
    "docs/howto/containers.md",
    "docs/howto/dmz.md",
    "docs/howto/firewalld.md",
    "docs/howto/gateway.md",
    "docs/howto/ids.md",
    "docs/howto/iptables.md",
    "docs/howto/nat.md",
    "docs/howto/nftables.md",
    "docs/howto/server.md",
    "docs/howto/ufw.md",
    "docs/reference/ftp.md",
    "docs/reference/policy.md",
    "docs/reference/replay.md",
];
const LEFT_OUT: &str = "[...]";

/// A folder for the commands of one document, with the captures in it.
struct Folder(PathBuf);

impl Folder {
    fn new(document: &str) -> Self {
        let name = format!("documents-{}-{}", std::process::id(), document.replace(['/', '.'], "-"));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&folder).expect("a folder can be made");
        let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("pcaps");
        std::os::unix::fs::symlink(captures, folder.join("pcaps")).expect("a link can be made");
        Self(folder)
    }

    /// The output of a shell command, standard error included, as on a terminal.
    fn run(&self, command: &str) -> String {
        let program = Path::new(env!("CARGO_BIN_EXE_pinhole")).parent().expect("a program lies in a folder");
        let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap_or_default());
        let output = Command::new("sh")
            .args(["-c", &format!("exec 2>&1\n{command}")])
            .current_dir(&self.0)
            .env("PATH", path)
            .output()
            .expect("there is a shell");
        String::from_utf8(output.stdout).expect("what is printed is UTF-8")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Fenced blocks: the word after the opening fence, and the lines.
fn blocks(text: &str) -> Vec<(&str, Vec<&str>)> {
    let mut blocks: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut is_inside = false;
    for line in text.lines() {
        match (line.strip_prefix("```"), is_inside) {
            (Some(language), false) => blocks.push((language, Vec::new())),
            (None, true) => {
                if let Some((_, lines)) = blocks.last_mut() {
                    lines.push(line);
                }
            }
            _ => {}
        }
        is_inside ^= line.starts_with("```");
    }
    blocks
}

/// Whether the output is the shown one, except for omitted lines.
fn is_as_shown(printed: &str, shown: &[&str]) -> bool {
    let printed: Vec<_> = printed.lines().collect();
    let parts: Vec<_> = shown.split(|line| *line == LEFT_OUT).collect();
    let mut at = 0;
    for (index, part) in parts.iter().enumerate() {
        let is_last = index + 1 == parts.len();
        let found = if index == 0 {
            printed.starts_with(part).then_some(0)
        } else if is_last {
            printed.ends_with(part).then(|| printed.len() - part.len()).filter(|&start| start >= at)
        } else {
            (at..=printed.len().saturating_sub(part.len())).find(|&start| printed[start..].starts_with(part))
        };
        let Some(start) = found else { return false };
        at = start + part.len();
    }
    parts.len() > 1 || at == printed.len()
}

fn wrong_in(document: &str) -> Vec<String> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(document))
        .unwrap_or_else(|error| panic!("{document}: {error}"));
    let folder = Folder::new(document);
    let mut yaml = String::new();
    let mut wrong = Vec::new();
    for (language, lines) in blocks(&text) {
        match language {
            "yaml" => yaml = lines.join("\n") + "\n",
            "console" => {
                for session in lines.chunk_by(|_, next| !next.starts_with("$ ")) {
                    let [command, shown @ ..] = session else { continue };
                    let Some(command) = command.strip_prefix("$ ") else {
                        wrong.push(format!("a block does not begin with a command but with {command:?}"));
                        continue;
                    };
                    for name in command.split_whitespace().filter(|word| word.ends_with(".yaml")) {
                        std::fs::write(folder.0.join(name), &yaml).expect("a file can be written");
                    }
                    let printed = folder.run(command);
                    if !is_as_shown(&printed, shown) {
                        wrong.push(format!("$ {command}\nprints\n{printed}"));
                    }
                }
            }
            _ => {}
        }
    }
    wrong
}

#[test]
fn documented_commands_print_the_documented_output() {
    let mut wrong = Vec::new();
    for document in DOCUMENTS {
        wrong.extend(wrong_in(document).into_iter().map(|wrong| format!("{document}: {wrong}")));
    }
    assert!(wrong.is_empty(), "{} are not as shown:\n\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn shown_output_may_omit_lines_but_not_add_any() {
    assert!(is_as_shown("a\nb\nc\n", &["a", "b", "c"]));
    assert!(is_as_shown("a\nb\nc\nd\n", &["a", LEFT_OUT, "c", LEFT_OUT, "d"]));
    assert!(is_as_shown("a\nb\n", &[LEFT_OUT, "b"]));
    assert!(!is_as_shown("a\nb\nc\n", &["a", "b"]));
    assert!(!is_as_shown("a\nb\nc\n", &["a", LEFT_OUT, "x", LEFT_OUT, "c"]));
}

/// The first two cells of each row of the first table after a heading.
fn table<'a>(document: &'a str, heading: &str) -> Vec<(&'a str, &'a str)> {
    let (_, section) = document.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let rows = section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    // After the header and the line below it.
    let cells = |line: &'a str| {
        let mut cells = line.split('|').skip(1).map(str::trim);
        (cells.next().unwrap_or_default(), cells.next().unwrap_or_default())
    };
    rows.skip(2).map(cells).collect()
}

#[test]
fn documented_counters_and_gauges_are_those_of_the_code() {
    let log = include_str!("../../docs/reference/log.md");
    let replay = include_str!("../../docs/reference/replay.md");
    for (document, heading, metrics) in [
        (log, "### Gauges", [Gauges::METRICS, &[]]),
        (log, "### Counters", [EventCounters::METRICS, DaemonCounters::METRICS]),
        (replay, "### `summary`", [EventCounters::METRICS, ReplayCounters::METRICS]),
    ] {
        let name = |metric: &Metric| match metric.label {
            None => format!("`{}`", metric.name),
            Some(label) => format!("`{}`, by {label}", metric.name),
        };
        let defined: Vec<_> = metrics.concat().iter().map(|metric| (name(metric), metric.help)).collect();
        let documented = table(document, heading);
        let as_rows = || defined.iter().map(|(name, help)| format!("| {name} | {help} |\n")).collect::<String>();
        let is_same = documented.iter().copied().eq(defined.iter().map(|(name, help)| (&**name, *help)));
        assert!(is_same, "{heading} has\n{documented:#?}\ninstead of\n{}", as_rows());
    }
}

#[test]
fn every_reason_of_a_refusal_is_documented() {
    let reference = include_str!("../../docs/reference/log.md");
    let documented: Vec<_> = table(reference, "## Reasons of a refusal").into_iter().map(|(name, _)| name).collect();
    for reason in Refusal::ALL {
        assert!(documented.contains(&&*format!("`{reason}`")), "{reason} is not in {documented:?}");
    }
}
