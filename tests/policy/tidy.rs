//! How sources look: what rustfmt and clippy don't judge.

use std::fs;
use std::path::{Path, PathBuf};

/// Longer files hide a second subject: split them.
const MAX_RUST_LINES: usize = 400;

/// Not ours: folders of tools, and files written by tools or taken word for word.
const SKIPPED: &[&str] = &[
    ".dev",
    ".git",
    "Cargo.lock",
    "LICENSE",
    "go.sum",
    "node_modules",
    "package-lock.json",
    "target",
];

/// Marks of unfinished work. Each is put together here, so that this file passes its own test.
const UNFINISHED: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("to", "do!("),
    concat!("unimpl", "emented!("),
];

/// Folders of one machine, which no other has.
const MACHINE_PATHS: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/tm", "p/vb"),
];

/// A test waits for a state with a bound, never for time to pass.
const FIXED_SLEEPS: &[&str] = &[concat!("thread::", "sleep"), concat!("sleep(", "Duration")];

struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    fn is_rust(&self) -> bool {
        self.path
            .extension()
            .is_some_and(|extension| extension == "rs")
    }

    fn is_test(&self) -> bool {
        self.path
            .components()
            .any(|part| part.as_os_str() == "tests")
            || self.path.file_name().is_some_and(|name| name == "tests.rs")
    }

    /// `path:line` of every line that contains one of `words`.
    fn lines_with(&self, words: &[&str]) -> Vec<String> {
        let found = |line: &str| words.iter().any(|word| line.contains(word));
        self.text
            .lines()
            .enumerate()
            .filter(|(_, line)| found(line))
            .map(|(index, line)| format!("{}:{}: {}", self.path.display(), index + 1, line.trim()))
            .collect()
    }
}

/// Every text file of the checkout that is ours, with its path below the root.
fn sources() -> Vec<Source> {
    let root = super::root();
    let mut found = Vec::new();
    collect(&root, &root, &mut found);
    assert!(found.iter().any(Source::is_rust), "the sources are found");
    found
}

fn collect(root: &Path, dir: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(dir).expect("a folder of the checkout is readable") {
        let entry = entry.expect("a folder of the checkout is readable");
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let path = entry.path();
        let kind = entry.file_type().expect("an entry has a type");
        if SKIPPED.contains(&name.as_ref()) {
            continue;
        }
        if kind.is_dir() {
            collect(root, &path, found);
        } else if kind.is_file() {
            // What isn't UTF-8 is an image or the like.
            if let Ok(text) = fs::read_to_string(&path) {
                let path = path.strip_prefix(root).expect("below the root").to_owned();
                found.push(Source { path, text });
            }
        }
    }
}

fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

#[test]
fn no_rust_file_is_longer_than_the_limit() {
    let long: Vec<String> = sources()
        .iter()
        .filter(|source| source.is_rust() && source.text.lines().count() > MAX_RUST_LINES)
        .map(|source| {
            format!(
                "{}: {} lines",
                source.path.display(),
                source.text.lines().count()
            )
        })
        .collect();
    assert_none("split these", &long);
}

#[test]
fn no_line_ends_in_a_blank_and_every_file_in_a_newline() {
    let mut found = Vec::new();
    for source in sources() {
        let path = source.path.display();
        for (index, line) in source.text.lines().enumerate() {
            if line.ends_with([' ', '\t', '\r']) {
                found.push(format!("{path}:{}: ends in a blank", index + 1));
            }
        }
        if !source.text.is_empty() && !source.text.ends_with('\n') {
            found.push(format!("{path}: no newline at the end"));
        }
    }
    assert_none("untidy", &found);
}

#[test]
fn nothing_is_left_unfinished() {
    let found: Vec<String> = sources()
        .iter()
        .flat_map(|s| s.lines_with(UNFINISHED))
        .collect();
    assert_none("unfinished", &found);
}

#[test]
fn no_path_of_one_machine_is_named() {
    let found: Vec<String> = sources()
        .iter()
        .flat_map(|s| s.lines_with(MACHINE_PATHS))
        .collect();
    assert_none("paths that exist on one machine only", &found);
}

#[test]
fn no_test_waits_for_time_to_pass() {
    let found: Vec<String> = sources()
        .iter()
        .filter(|source| source.is_rust() && source.is_test())
        .flat_map(|source| source.lines_with(FIXED_SLEEPS))
        .collect();
    assert_none("fixed sleeps in tests", &found);
}

#[test]
fn decisions_are_numbered_once_and_in_order() {
    let text = fs::read_to_string(super::root().join("ARCHITECTURE.md")).expect("it's there");
    let (_, decisions) = text.split_once("## Decisions").expect("a list");
    let numbered = |line: &str| line.split_once(". ")?.0.parse::<usize>().ok();
    let numbers: Vec<usize> = decisions.lines().filter_map(numbered).collect();
    let expected: Vec<usize> = (1..=numbers.len()).collect();
    assert!(!numbers.is_empty());
    assert_eq!(numbers, expected);
}
