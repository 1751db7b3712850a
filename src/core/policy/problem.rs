//! What is wrong with a policy, in words that help to correct it.
//!
//! Knows nothing of what may be wrong: the parser says that.

use std::fmt;

use super::source::{Quoted, Source, Span};
use super::word::words;

words! {
    /// How bad a [`Problem`] is.
    Severity {
        /// The policy holds, but perhaps not as it was meant.
        Warning = "warning",
        /// There is no policy.
        Error = "error",
    }
}

/// One thing that is wrong with a policy.
///
/// It prints as compilers print theirs: file, line and column, what is wrong and what was expected, then the line
/// itself with the place underlined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The name of the file.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// The character of the line, counted from 1.
    pub column: usize,
    /// The key whose value is wrong; empty if it is no key's.
    pub key: String,
    /// The text that is wrong, shortened if it is long.
    pub text: String,
    /// What is wrong.
    pub message: String,
    /// What was expected there; empty if the message says it all.
    pub expected: String,
    excerpt: String,
}

impl Problem {
    /// The problem in the text of `span`. `key` is empty if it is no key's, `expected` if the message says it all.
    pub(super) fn new(
        severity: Severity,
        source: &Source<'_>,
        span: Span,
        key: &str,
        message: impl Into<String>,
        expected: &str,
    ) -> Self {
        let (line, column) = source.line_and_column(span.start);
        Self {
            severity,
            file: Quoted(source.name).to_string(),
            line,
            column,
            key: key.into(),
            text: Quoted(source.slice(span)).to_string(),
            message: message.into(),
            // The documents show words as code.
            expected: expected.replace('`', ""),
            excerpt: source.excerpt(span),
        }
    }

    /// All of it but the line of the file, in one line.
    pub fn headline(&self) -> String {
        let Self { file, line, column, severity, key, message, expected, .. } = self;
        let key = if key.is_empty() { String::new() } else { format!("{key}: ") };
        let expected = if expected.is_empty() { String::new() } else { format!(" (expected {expected})") };
        format!("{file}:{line}:{column}: {severity}: {key}{message}{expected}")
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.headline(), self.excerpt)
    }
}

/// All that is wrong with a policy, in the order of the text.
///
/// Prints every problem and how many there are. A file that is wrong throughout is not listed to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    listed: Vec<Problem>,
    errors: usize,
    warnings: usize,
}

impl Problems {
    /// How many of each severity are listed.
    pub const MAX_LISTED: usize = 100;

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.errors + self.warnings == 0
    }

    /// How many errors there are, listed or not.
    pub const fn errors(&self) -> usize {
        self.errors
    }

    /// How many warnings there are, listed or not.
    pub const fn warnings(&self) -> usize {
        self.warnings
    }

    /// The problems that are listed.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.listed.iter()
    }

    /// Takes one more problem; `make` is called only if it is to be listed.
    pub(super) fn add(&mut self, severity: Severity, make: impl FnOnce() -> Problem) {
        let count = match severity {
            Severity::Error => &mut self.errors,
            Severity::Warning => &mut self.warnings,
        };
        *count += 1;
        if *count <= Self::MAX_LISTED {
            self.listed.push(make());
        }
    }

    /// Puts them into the order of the text.
    pub(super) fn sorted(mut self) -> Self {
        self.listed.sort_by_key(|problem| (problem.line, problem.column));
        self
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        let mut problems = Self::default();
        problems.add(problem.severity, || problem);
        problems
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in self {
            write!(f, "{problem}\n\n")?;
        }
        let plural = |count, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
        let mut counts = Vec::new();
        if self.errors > 0 {
            counts.push(plural(self.errors, "error"));
        }
        if self.warnings > 0 {
            counts.push(plural(self.warnings, "warning"));
        }
        f.write_str(&counts.join(", "))?;
        let unlisted = self.errors + self.warnings - self.listed.len();
        if unlisted > 0 { write!(f, "; {unlisted} of them not shown") } else { Ok(()) }
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_a_compiler_would() {
        let source = Source::new("policy.yaml", "defaults:\n  data_ports: 5000-400\n");
        let problem = Problem::new(
            Severity::Error,
            &source,
            Span { start: 24, end: 32 },
            "data_ports",
            "the range is empty: 5000-400",
            "`LOW-HIGH`",
        );
        assert_eq!(
            problem.to_string(),
            "policy.yaml:2:15: error: data_ports: the range is empty: 5000-400 (expected LOW-HIGH)\n    \
             2 |   data_ports: 5000-400\n      |               ^^^^^^^^"
        );
        assert_eq!(problem.text, "5000-400");
    }

    #[test]
    fn listed_problems_are_bounded_and_all_counted() {
        let source = Source::new("p", "x");
        let mut problems = Problems::default();
        for severity in [Severity::Warning, Severity::Error].repeat(1000) {
            problems.add(severity, || Problem::new(severity, &source, Span { start: 0, end: 1 }, "", "", ""));
        }
        assert_eq!((problems.errors(), problems.warnings(), problems.iter().count()), (1000, 1000, 200));
        assert!(problems.to_string().ends_with("\n\n1000 errors, 1000 warnings; 1800 of them not shown"));
    }
}
