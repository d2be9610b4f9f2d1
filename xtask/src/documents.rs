//! The documents speak of what is there: tests, files and dependencies that they name exist, and every dependency
//! is told of.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::workspace::{Workspace, sources};

/// With what a sentence begins that a test holds.
const INVARIANT: &str = "**Architecture Invariant:**";

/// What the documents say that is not so.
pub(crate) fn faults(workspace: &Workspace) -> anyhow::Result<Vec<String>> {
    let mut faults = invariants_without_tests(workspace)?;
    faults.extend(dependencies_untold(workspace)?);
    faults.extend(exit_codes_untold(workspace)?);
    for document in documents(workspace)? {
        faults.extend(broken_links(&workspace.root, &document)?);
    }
    Ok(faults)
}

/// Each invariant names, in backquotes, the tests that hold it, and every test that is named exists.
fn invariants_without_tests(workspace: &Workspace) -> anyhow::Result<Vec<String>> {
    let architecture = read(&workspace.root.join("ARCHITECTURE.md"))?;
    let mut code = String::new();
    for folder in ["crates", "xtask"] {
        for path in sources(&workspace.root.join(folder))? {
            code.push_str(&read(&path)?);
        }
    }
    let mut faults = Vec::new();
    for invariant in architecture.split("\n\n").filter(|paragraph| paragraph.contains(INVARIANT)) {
        let start: String = invariant.chars().take(100).collect();
        let mut tests = quoted(invariant).filter(|name| is_test_name(name)).peekable();
        if tests.peek().is_none() {
            faults.push(format!("ARCHITECTURE.md: no test is named in `{start}…`"));
        }
        for test in tests.filter(|name| !code.contains(&format!("fn {name}()"))) {
            faults.push(format!("ARCHITECTURE.md: there is no test {test}"));
        }
    }
    Ok(faults)
}

/// Tests are named by sentences.
fn is_test_name(text: &str) -> bool {
    text.matches('_').count() >= 3 && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Each dependency of the workspace has its line in docs/dependencies.md.
fn dependencies_untold(workspace: &Workspace) -> anyhow::Result<Vec<String>> {
    let told = read(&workspace.root.join("docs/dependencies.md"))?;
    let is_told =
        |name: &&String| told.lines().any(|line| line.starts_with("| ") && quoted(line).any(|n| n == **name));
    let untold = workspace.dependencies.iter().filter(|name| !is_told(name));
    Ok(untold.map(|name| format!("docs/dependencies.md: no line for `{name}`")).collect())
}

/// Each meaning of an exit code is told as the program tells it.
fn exit_codes_untold(workspace: &Workspace) -> anyhow::Result<Vec<String>> {
    let code = read(&workspace.root.join("crates/cli/src/exit.rs"))?;
    let told = read(&workspace.root.join("docs/src/exit-codes.md"))?;
    let (_, table) = code.split_once("const MEANINGS").context("exit.rs has no MEANINGS")?;
    let (table, _) = table.split_once("];").context("MEANINGS has no end")?;
    let untold = table.split('"').skip(1).step_by(2).filter(|meaning| !told.contains(meaning));
    Ok(untold.map(|meaning| format!("docs/src/exit-codes.md does not say `{meaning}`")).collect())
}

fn documents(workspace: &Workspace) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![workspace.root.join("docs")];
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        found.push(workspace.root.join(name));
    }
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// Links to files that do not exist.
fn broken_links(root: &Path, document: &Path) -> anyhow::Result<Vec<String>> {
    let text = read(document)?;
    let folder = document.parent().unwrap_or(root);
    let shown = document.strip_prefix(root).unwrap_or(document).display();
    let is_broken = |link: &&str| !link.contains("://") && !link.is_empty() && !folder.join(link).exists();
    let broken = links(&text).filter(is_broken);
    Ok(broken.map(|link| format!("{shown}: there is no {link}")).collect())
}

/// The files that links of a Markdown text point to, without the places in them.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let ends = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    ends.map(|(link, _)| link.split('#').next().unwrap_or_default())
}

/// What stands in backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_found_without_their_places() {
        let text = "See [a](a.md#there), [b](https://example.org/) and [c](#here).";
        assert_eq!(links(text).collect::<Vec<_>>(), ["a.md", "https://example.org/", ""]);
    }

    #[test]
    fn what_is_quoted_is_found() {
        assert_eq!(quoted("a `b` c `d e`.").collect::<Vec<_>>(), ["b", "d e"]);
    }
}
