//! The house: arrows between the files of `src` run down the table in CONTRIBUTING.md.

use std::fs;
use std::path::{Path, PathBuf};

/// Files that name each other, as CONTRIBUTING.md says.
const CIRCLE: [&str; 2] = ["client.rs", "builder.rs"];

/// Stands in tests and fuzzers only, or above everything.
const OUTSIDE: [&str; 3] = ["lib.rs", "fuzzing/", "simulation/"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The first cells of the table under "Code structure" that name files, from top to bottom.
fn rooms() -> Vec<String> {
    let text = fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    let (_, chapter) = text.split_once("## Code structure").unwrap();
    let chapter = chapter.split("\n## ").next().unwrap();
    let cells = chapter.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    cells.flat_map(|(cell, _)| cell.split("`, `").map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// All files below `src`, by their path from there.
fn files(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root().join("src")).unwrap().to_str().unwrap().replace('\\', "/");
            found.push(name);
        }
    }
}

/// The text without comments, without tests, and without what is compiled for tests and fuzzers
/// alone.
fn code(text: &str) -> String {
    let mut lines = text.lines();
    let mut code = String::new();
    while let Some(line) = lines.next() {
        let trimmed = line.trim_start();
        if trimmed.starts_with("//") {
            continue;
        }
        if ["#[cfg(test)]", "#[cfg(all(test, ", "#[cfg(any(test, fuzzing))]", "#[cfg(loom)]"]
            .iter()
            .any(|cfg| trimmed.starts_with(cfg))
        {
            // The item that follows: one line, or a block that ends at the same indentation.
            let indentation = line.len() - trimmed.len();
            let item = lines.by_ref().find(|line| !line.trim_start().starts_with('#')).unwrap_or_default();
            if item.ends_with('{') {
                lines.by_ref().find(|line| line.starts_with(&format!("{}}}", " ".repeat(indentation))));
            }
            continue;
        }
        code.push_str(line);
        code.push('\n');
    }
    code
}

/// Whether a statement only re-exports what a module beneath declares.
fn is_reexport(statement: &str) -> bool {
    let statement = statement.trim_start();
    let Some((visibility, used)) = statement.split_once(" use ") else { return false };
    let is_public = visibility == "pub" || (visibility.starts_with("pub(") && visibility.ends_with(')'));
    is_public && !["crate::", "super::", "self::"].iter().any(|start| used.trim_start().starts_with(start))
}

/// All paths of a use tree, such as `a::{b, c::{D as E}}`, from its beginning to where its braces
/// close.
fn expand(tree: &str) -> Vec<String> {
    let length = tree.find(|letter: char| !(letter.is_alphanumeric() || "_:*".contains(letter))).unwrap_or(tree.len());
    let (path, rest) = tree.split_at(length);
    let Some(inner) = rest.strip_prefix('{').filter(|_| path.ends_with("::")) else { return vec![path.to_owned()] };
    let (mut depth, mut from, mut found) = (0, 0, Vec::new());
    for (at, letter) in inner.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                let name = inner[from..at].trim();
                let names = if name.is_empty() { Vec::new() } else { expand(name) };
                found.extend(names.into_iter().map(|name| format!("{path}{name}")));
                from = at + 1;
                if letter == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

/// Each path that begins with `crate::`, `super::` or the name of a module that is declared here.
fn paths(code: &str) -> Vec<String> {
    let declared: Vec<String> = code
        .lines()
        .filter_map(|line| Some(line.trim().strip_suffix(';')?.rsplit_once("mod ")?.1.to_owned()))
        .collect();
    let starts = ["crate", "super", "self"].iter().map(|start| (*start).to_owned()).chain(declared.iter().cloned());
    let starts: Vec<String> = starts.map(|start| start + "::").collect();
    let (mut found, mut reexported) = (Vec::new(), Vec::new());
    let mut used = String::new();
    for statement in code.split_inclusive(';') {
        if is_reexport(statement) {
            let tree = statement.split_once(" use ").unwrap().1.trim_end_matches(';');
            reexported.extend(expand(tree));
            continue;
        }
        used.push_str(statement);
        for start in &starts {
            for (at, _) in statement.match_indices(start.as_str()) {
                let before = statement[..at].chars().next_back();
                if before.is_none_or(|before| before != ':' && before != '_' && !before.is_alphanumeric()) {
                    found.extend(expand(&statement[at..]));
                }
            }
        }
    }
    // What is re-exported may be used here as well.
    let is_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    let uses = |name: &str| used.split(|letter| !is_word(letter)).any(|word| word == name);
    found.extend(reexported.into_iter().filter(|path| path.rsplit("::").next().is_some_and(&uses)));
    found
}

/// The file of a path such as `net::tls::TlsError`, as far as the path leads to one. What a
/// `mod.rs` only re-exports stands in another file.
fn file_of(path: &[&str], files: &[String]) -> Option<String> {
    let (length, file) = (0..=path.len()).rev().find_map(|length| {
        let joined = path[..length].join("/");
        let names = if length == 0 {
            ["lib.rs".to_owned(), String::new()]
        } else {
            [format!("{joined}.rs"), format!("{joined}/mod.rs")]
        };
        Some((length, names.into_iter().find(|name| files.contains(name))?))
    })?;
    let is_top = file == "lib.rs" || file.ends_with("/mod.rs");
    let Some(name) = path.get(length).filter(|_| is_top) else { return Some(file) };
    let text = fs::read_to_string(root().join("src").join(&file)).unwrap();
    for statement in text.split(';').filter(|statement| statement.trim_start().starts_with("pub")) {
        let Some((_, used)) = statement.split_once(" use ") else { continue };
        let Some((module, names)) = used.rsplit_once("::") else { continue };
        let names =
            names.trim_matches(['{', '}']).split(',').map(|name| name.split(" as ").next().unwrap_or_default().trim());
        if names.into_iter().any(|exported| exported == *name) {
            let full: Vec<&str> = path[..length].iter().copied().chain(module.trim().split("::")).collect();
            return file_of(&full, files);
        }
    }
    Some(file)
}

#[test]
fn paths_are_found_in_whatever_form() {
    for (code, expected) in [
        ("use crate::error::Error;", &["crate::error::Error"][..]),
        ("use crate::{a::{B as _B, self as _a}, c::D,};", &["crate::a::B", "crate::a::self", "crate::c::D"]),
        ("use crate::{\n    a::{B, C},\n    D as E,\n};", &["crate::a::B", "crate::a::C", "crate::D"]),
        ("pub(crate) use crate::error::Error as A;", &["crate::error::Error"]),
        ("pub(crate) use stream::Stream;", &[]),
        ("mod stream;\npub(crate) use stream::Stream;\nfn f(_: Stream) {}", &["stream::Stream"]),
        ("mod ack;\nfn f(_: &ack::Ack) {}", &["ack::Ack"]),
        ("mod ack;\nuse ack::Ack as B;", &["ack::Ack"]),
        ("pub fn f(_: &crate::error::Error) {\n    use std::fmt;\n}", &["crate::error::Error"]),
        ("fn f() { super::super::g(); }", &["super::super::g"]),
        ("use self::stream::Stream;", &["self::stream::Stream"]),
        ("let a = xcrate::b;", &[]),
    ] {
        assert_eq!(paths(code), expected, "{code}");
    }
}

#[test]
fn arrows_run_down() {
    let rooms = rooms();
    let floor = |file: &str| rooms.iter().position(|room| room == file);
    let mut all = Vec::new();
    files(&root().join("src"), &mut all);
    let inside = |file: &&String| !OUTSIDE.iter().any(|outside| file.starts_with(outside));

    let unlisted: Vec<_> = all.iter().filter(inside).filter(|file| floor(file).is_none()).collect();
    assert!(unlisted.is_empty(), "not in CONTRIBUTING.md: {unlisted:?}");
    let gone: Vec<_> = rooms.iter().filter(|room| !room.ends_with('/')).filter(|room| !all.contains(room)).collect();
    assert!(gone.is_empty(), "in CONTRIBUTING.md and not there: {gone:?}");

    let (mut arrows, mut upward) = (0, Vec::new());
    for from in all.iter().filter(inside) {
        let text = fs::read_to_string(root().join("src").join(from)).unwrap();
        let folder: Vec<&str> = from.rsplit_once('/').map_or(Vec::new(), |(folder, _)| folder.split('/').collect());
        for path in paths(&code(&text)) {
            let parts: Vec<&str> = path.split("::").filter(|part| !part.is_empty()).collect();
            let ups = parts.iter().take_while(|part| **part == "super").count();
            let base = if from.ends_with("mod.rs") { ups } else { ups.saturating_sub(1) };
            assert!(path != "crate::*", "{from} names everything");
            let full: Vec<&str> = match parts[0] {
                "crate" => parts[1..].to_vec(),
                "self" => folder.iter().chain(&parts[1..]).copied().collect(),
                start if start != "super" => folder.iter().chain(&parts).copied().collect(),
                _ => folder[..folder.len().saturating_sub(base)].iter().chain(&parts[ups..]).copied().collect(),
            };
            let Some(to) = file_of(&full, &all).filter(|to| to != from && inside(&to)) else { continue };
            arrows += 1;
            let in_circle = [from, &to].iter().all(|file| CIRCLE.contains(&file.as_str()));
            if floor(from) > floor(&to) && !in_circle {
                upward.push(format!("{from} names {to} ({path})"));
            }
        }
    }
    assert!(arrows > 100, "only {arrows} arrows were found");
    assert!(upward.is_empty(), "arrows that go up:\n{}", upward.join("\n"));
}
