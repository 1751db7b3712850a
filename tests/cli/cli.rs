//! The command line, and the policy that it names.
//!
//! Exit status: 0 success; 1 an input cannot be read or is damaged; 2 the command line or the policy is wrong.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;

use crate::program::*;
use serde_json::Value;

// The policy.

#[test]
fn policy_decides_what_opens() {
    let folder = Folder::new("policy");
    let capture = folder.file("session.pcap", session_at(1000));
    let policy = folder.file("strict.yaml", "defaults: { data_ports: 50000-50100 }");
    let ran = run([OsStr::new("replay"), OsStr::new("--policy"), policy.as_os_str(), capture.as_os_str()]).success();
    assert!(ran.out.contains("refused 227 10.0.0.2:1025: port-not-allowed, "), "{}", ran.out);
    assert!(ran.out.contains("blocked 10.0.0.1:5000 -> 10.0.0.2:1025"), "{}", ran.out);
}

#[test]
fn policy_is_read_from_stdin() {
    let folder = Folder::new("policy-stdin");
    let capture = folder.file("session.pcap", session_at(1000));
    let arguments = [OsStr::new("replay"), OsStr::new("--policy"), OsStr::new("-"), capture.as_os_str()];
    let ran = run_with_input(arguments, b"defaults: { modes: [EPSV] }").success();
    assert!(ran.out.contains(": mode-denied, "), "{}", ran.out);
}

#[test]
fn invalid_policy_is_refused() {
    let folder = Folder::new("policy-bad");
    let capture = folder.file("session.pcap", session_at(1000));
    let bad = folder.file("bad.yaml", "control_ports: [21, 99999]\nlimitz: {}\n");
    let ran = run([OsStr::new("replay"), OsStr::new("--policy"), bad.as_os_str(), capture.as_os_str()]);
    assert_eq!((ran.status, ran.out.as_str()), (Some(2), ""));
    for expected in ["bad.yaml:1:21: error: ", "bad.yaml:2:1: error: unknown key limitz", "2 errors"] {
        assert!(ran.err.contains(expected), "{}", ran.err);
    }
    let missing = folder.0.join("missing.yaml");
    let ran = run([OsStr::new("replay"), OsStr::new("--policy"), missing.as_os_str(), capture.as_os_str()]);
    assert_eq!((ran.status, ran.out.as_str()), (Some(2), ""));
    let complaint = ran.only_error();
    assert!(complaint.starts_with("cannot read the policy /") && complaint.contains("No such file"), "{complaint}");
}

/// Two rules, the second of which is never reached.
const DOUBTFUL: &str = "rules:\n  - name: all\n  - name: never\n    clients: [10.0.0.1]\n";

#[test]
fn policy_with_warnings_is_used_and_warnings_are_printed() {
    let folder = Folder::new("policy-warnings");
    let capture = folder.file("session.pcap", session_at(1000));
    let policy = folder.file("doubtful.yaml", DOUBTFUL);
    let ran = run([OsStr::new("replay"), OsStr::new("--policy"), policy.as_os_str(), capture.as_os_str()]);
    assert_eq!(ran.status, Some(0), "{}", ran.err);
    assert!(ran.err.contains("doubtful.yaml:3:") && ran.err.contains("warning: "), "{}", ran.err);
    assert!(ran.out.contains("12 packets, 1 session; 1 pinhole opened"), "{}", ran.out);
}

#[test]
fn check_prints_the_effective_policy() {
    let folder = Folder::new("check-good");
    let policy = folder.file("my policy.yaml", "control_ports: [21, 2121]\ndefaults: { timeout: 2m }\n");
    let ran = run([OsStr::new("check"), policy.as_os_str()]).success();
    assert!(ran.out.contains("my policy.yaml is valid. As understood:\n"), "{}", ran.out);
    assert!(ran.out.contains("control_ports: [21, 2121]\n"), "{}", ran.out);
    // The printed policy is a policy, equal to the first one.
    let again = run_with_input(["check", "-"], ran.out.as_bytes()).success();
    let without_title = |text: &str| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(without_title(&again.out), without_title(&ran.out));
    assert!(again.out.starts_with("# standard input is valid. As understood:\n"), "{}", again.out);
}

#[test]
fn check_prints_warnings_with_the_policy() {
    let folder = Folder::new("check-warnings");
    let policy = folder.file("doubtful.yaml", DOUBTFUL);
    let ran = run([OsStr::new("check"), policy.as_os_str()]);
    assert_eq!(ran.status, Some(0), "{}", ran.err);
    assert!(
        ran.err.contains("warning: ") && ran.out.contains("is valid, with 1 warning. As understood:"),
        "{}",
        ran.out
    );
}

#[test]
fn check_warns_of_a_policy_writable_by_others() {
    let folder = Folder::new("check-writable");
    let policy = folder.file("policy.yaml", "{}");
    assert_eq!(run([OsStr::new("check"), policy.as_os_str()]).success().err, "");
    std::fs::set_permissions(&policy, std::fs::Permissions::from_mode(0o666)).expect("root may");
    let ran = run([OsStr::new("check"), policy.as_os_str()]);
    assert_eq!((ran.status, ran.err.lines().count()), (Some(0), 1), "{}", ran.err);
    for expected in ["warning", "policy file", "(mode 0666)", "chmod go-w"] {
        assert!(ran.err.contains(expected), "{expected} is not in {}", ran.err);
    }
    assert!(ran.out.contains("is valid, with 1 warning."), "{}", ran.out);
}

#[test]
fn check_prints_one_warning_per_risk() {
    let text =
        "limits: { sessions: 10 }\ndefaults: { tls: range 1024-65535, third_party: allow, commands: { deny: [SITE] } }";
    let ran = run_with_input(["check", "-"], text.as_bytes());
    assert_eq!((ran.status, ran.err.lines().count()), (Some(0), 4), "{}", ran.err);
    for expected in
        ["tls: range: defaults", "commands: deny: defaults", "third_party: allow: ", "limits: sessions_per_client"]
    {
        assert!(ran.err.contains(expected), "{expected} is not in {}", ran.err);
    }
}

#[test]
fn check_explains_each_error_of_a_bad_policy() {
    let folder = Folder::new("check-bad");
    let policy = folder.file("bad.yaml", "defaults:\n  data_ports: 5000-400\n  modes: [pasv]\n");
    let ran = run([OsStr::new("check"), policy.as_os_str()]);
    assert_eq!((ran.status, ran.out.as_str()), (Some(2), ""));
    for expected in ["bad.yaml:2:15: error: ", "5000-400", "expected", "bad.yaml:3:11: error: ", "did you mean PASV?"] {
        assert!(ran.err.contains(expected), "{expected} is not in {}", ran.err);
    }
}

#[test]
fn check_of_an_unreadable_policy_is_an_error() {
    let folder = Folder::new("check-foreign");
    let missing = run([OsStr::new("check"), folder.0.join("none.yaml").as_os_str()]);
    assert_eq!(missing.status, Some(2));
    assert!(missing.only_error().contains("No such file"), "{}", missing.err);
    let folder_itself = run([OsStr::new("check"), folder.0.as_os_str()]);
    assert_eq!(folder_itself.status, Some(2));
    assert!(folder_itself.only_error().contains("directory"), "{}", folder_itself.err);
    for content in [&b""[..], b"\xd4\xc3\xb2\xa1\x02\0\x04\0", b"[1, 2", &[b'#'; (1 << 20) + 1]] {
        let path = folder.file("foreign.yaml", content);
        let ran = run([OsStr::new("check"), path.as_os_str()]);
        assert_eq!((ran.status, ran.out.as_str()), (Some(2), ""));
        assert!(ran.err.contains("foreign.yaml:") && ran.err.contains("error: "), "{}", ran.err);
    }
}

#[test]
fn schema_is_json() {
    let ran = run(["schema"]).success();
    let schema: Value = serde_json::from_str(&ran.out).expect("the schema is JSON");
    assert!(schema["$schema"].is_string() && schema["properties"]["control_ports"].is_object(), "{}", ran.out);
}

// The command line.

#[test]
fn wrong_arguments_exit_with_2_and_show_the_usage() {
    for arguments in [&["replay", "--jason", "a.pcap"][..], &["replay"], &["frobnicate"], &[], &["schema", "x"]] {
        let ran = run(arguments);
        assert_eq!((ran.status, ran.out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(ran.err.contains("Usage: pinhole"), "{}", ran.err);
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for arguments in [&["--help"][..], &["replay", "--help"], &["help", "check"]] {
        assert!(run(arguments).success().out.contains("Usage: pinhole"), "{arguments:?}");
    }
    assert_eq!(run(["--version"]).success().out, format!("pinhole {}\n", env!("CARGO_PKG_VERSION")));
}
