//! No crate in Cargo.lock has a version that `advisories.txt` names. Needs no network.

type Version = [u64; 3];

/// An advisory: the crate, its id, and the versions that it is about.
struct Advisory<'a> {
    name: &'a str,
    id: &'a str,
    ranges: Vec<(Version, Version)>,
}

fn version(text: &str) -> Option<Version> {
    let numbers = text.split(['+', '-']).next()?.split('.').map(|number| number.parse().ok());
    numbers.collect::<Option<Vec<u64>>>()?.try_into().ok()
}

fn advisory(line: &str) -> Option<Advisory<'_>> {
    let mut parts = line.splitn(3, ": ");
    let (name, id, ranges) = (parts.next()?, parts.next()?, parts.next()?);
    let range = |text: &str| text.split_once(" to ").and_then(|(from, to)| Some((version(from)?, version(to)?)));
    let ranges = ranges.split(", ").map(range).collect::<Option<Vec<_>>>()?;
    let is_sound = id.starts_with("RUSTSEC-") && ranges.iter().all(|(from, to)| from < to);
    is_sound.then_some(Advisory { name, id, ranges })
}

/// Reads the list; panics where a line of it cannot be understood.
fn advisories(text: &str) -> Vec<Advisory<'_>> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| advisory(line).unwrap_or_else(|| panic!("not understood: {line}"))).collect()
}

/// The crates of a Cargo.lock, each with its version.
fn locked(text: &str) -> Vec<(String, Version)> {
    let value = |line: &str, key: &str| {
        let quoted = line.strip_prefix(key)?.strip_prefix(" = \"")?;
        Some(quoted.strip_suffix('"')?.to_owned())
    };
    let package = |block: &str| {
        let name = block.lines().find_map(|line| value(line, "name"))?;
        let number = block.lines().find_map(|line| value(line, "version"))?;
        Some((name, version(&number)?))
    };
    text.split("[[package]]").skip(1).map(|block| package(block).expect("a name and a version")).collect()
}

/// The crates that an advisory names, a line each.
fn named(lock: &str, list: &str) -> Vec<String> {
    let advisories = advisories(list);
    let mut found = Vec::new();
    for (name, version) in locked(lock) {
        for advisory in advisories.iter().filter(|advisory| advisory.name == name) {
            if advisory.ranges.iter().any(|(from, to)| *from <= version && version < *to) {
                found.push(format!("{name} {version:?}: {}", advisory.id));
            }
        }
    }
    found
}

const LIST: &str = include_str!("../../advisories.txt");

#[test]
fn no_locked_version_is_named_by_an_advisory() {
    for lock in [include_str!("../../Cargo.lock"), include_str!("../../fuzz/Cargo.lock")] {
        assert!(locked(lock).len() > 20, "the file was not understood");
        assert_eq!(named(lock, LIST), [""; 0], "see advisories.txt");
    }
}

#[test]
fn version_that_an_advisory_names_is_found() {
    let lock = |version| format!("[[package]]\nname = \"tokio\"\nversion = \"{version}\"\n");
    for (version, id) in
        [("1.44.1", "RUSTSEC-2025-0023"), ("0.2.5", "RUSTSEC-2025-0023"), ("1.42.0", "RUSTSEC-2025-0023")]
    {
        assert!(named(&lock(version), LIST).iter().any(|line| line.ends_with(id)), "{version}");
    }
    assert_eq!(named(&lock("1.44.2"), LIST), [""; 0]);
    assert_eq!(named(&lock("1.42.1"), LIST), [""; 0]);
}

#[test]
fn every_advisory_is_about_a_locked_crate() {
    let lock = locked(include_str!("../../Cargo.lock"));
    for advisory in advisories(LIST) {
        assert!(
            lock.iter().any(|(name, _)| name == advisory.name),
            "{} has gone: take {} out",
            advisory.name,
            advisory.id
        );
    }
}
