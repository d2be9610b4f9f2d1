//! The pure crates name no runtime, socket, file, clock, thread or process: neither as a dependency nor in their
//! source. That is what makes crash recovery, simulation and model checking of them cheap.

use std::fs;

use anyhow::Context;

use crate::workspace::{Workspace, sources};

/// The crates that are pure.
const PURE: [&str; 3] = ["migration", "model", "placement"];

/// All that a pure crate may depend on outside of its tests.
const ALLOWED: [&str; 8] =
    ["limosa-model", "limosa-migration", "schemars", "serde", "serde_json", "strsim", "thiserror", "toml"];

/// The ids that the model makes are random, and carry the time of their making: the one thing in it that is.
const ALLOWED_IN_MODEL: [&str; 1] = ["uuid"];

/// What reaches out of a process.
const FORBIDDEN: [&str; 14] = [
    "libc",
    "rustix",
    "tokio",
    "std::env",
    "std::fs",
    "std::io",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
];

/// What is not pure in the pure crates.
pub(crate) fn faults(workspace: &Workspace) -> anyhow::Result<Vec<String>> {
    let mut faults = Vec::new();
    for room in workspace.rooms.iter().filter(|room| PURE.contains(&room.name.as_str())) {
        for dependency in &room.normal_dependencies {
            let name = dependency.as_str();
            let allowed = ALLOWED.contains(&name) || room.name == "model" && ALLOWED_IN_MODEL.contains(&name);
            if !allowed {
                faults.push(format!("crates/{} is pure and depends on {dependency}", room.name));
            }
        }
        for path in sources(&room.folder.join("src"))? {
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let shown = path.strip_prefix(&workspace.root).unwrap_or(&path).display();
            for forbidden in forbidden(&text) {
                faults.push(format!("{shown} is pure and names {forbidden}"));
            }
        }
    }
    for missing in PURE.iter().filter(|pure| !workspace.rooms.iter().any(|room| room.name == **pure)) {
        faults.push(format!("crates/{missing} is said to be pure and does not exist"));
    }
    Ok(faults)
}

/// Which forbidden paths a source names.
fn forbidden(source: &str) -> Vec<&'static str> {
    let paths = paths(source);
    let names = |path: &str, forbidden: &str| {
        path == forbidden || path.strip_prefix(forbidden).is_some_and(|rest| rest.starts_with("::"))
    };
    let found = |forbidden: &str| paths.iter().any(|path| names(path, forbidden));
    FORBIDDEN.into_iter().filter(|forbidden| found(forbidden)).collect()
}

/// Every path in a source, with groups such as `std::{fs, net::{TcpStream}}` written out.
fn paths(source: &str) -> Vec<String> {
    let mut paths = Vec::new();
    // The prefixes of the groups that are open; a brace that opens no group has the prefix of its surroundings.
    let mut groups: Vec<String> = vec![String::new()];
    let mut path = String::new();
    for token in tokens(source) {
        let prefix = groups.last().cloned().unwrap_or_default();
        match token {
            Token::Name(name) if path.ends_with("::") => path.push_str(name),
            Token::Name(name) => {
                paths.push(std::mem::replace(&mut path, format!("{prefix}{name}")));
            }
            // One that begins a path says only that a crate follows.
            Token::Separator if path.is_empty() => {}
            Token::Separator => path.push_str("::"),
            Token::Open => groups.push(if path.ends_with("::") { std::mem::take(&mut path) } else { prefix }),
            Token::Close => {
                paths.push(std::mem::take(&mut path));
                groups.pop();
            }
            Token::Other => paths.push(std::mem::take(&mut path)),
        }
    }
    paths.push(path);
    paths.retain(|path| !path.is_empty());
    paths
}

#[derive(Debug, PartialEq)]
enum Token<'a> {
    Name(&'a str),
    Separator,
    Open,
    Close,
    Other,
}

/// The source as tokens, without comments and what stands in quotes.
fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let (length, token) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), None)
        } else if first == '"' {
            (quoted(rest), Some(Token::Other))
        } else if rest.starts_with("::") {
            (2, Some(Token::Separator))
        } else if first.is_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            (end, Some(Token::Name(&rest[..end])))
        } else {
            let token = match first {
                '{' => Some(Token::Open),
                '}' => Some(Token::Close),
                _ if first.is_whitespace() => None,
                _ => Some(Token::Other),
            };
            (first.len_utf8(), token)
        };
        tokens.extend(token);
        rest = &rest[length..];
    }
    tokens
}

/// The length of the quoted text that this begins with.
fn quoted(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_reaches_out_is_found_however_it_is_written() {
        for (source, found) in [
            ("use std::fs;", "std::fs"),
            ("use std::{fmt, fs::File};", "std::fs"),
            ("use std::{fmt, net::{IpAddr, TcpStream}};", "std::net::TcpStream"),
            ("fn f() { let now = std::time::Instant::now(); }", "std::time::Instant"),
            ("fn f() { ::std::process::abort() }", "std::process"),
            ("#[tokio::main]\nfn main() {}", "tokio"),
        ] {
            assert_eq!(forbidden(source), [found], "{source}");
        }
    }

    #[test]
    fn what_does_not_reach_out_is_let_be() {
        for source in [
            "use std::net::IpAddr;",
            "use std::time::Duration;",
            "// std::fs is for others",
            "const WHY: &str = \"std::fs \\\" tokio\";",
            "fn f() { let tokio_like = 1; }",
            "use crate::std_like::fs;",
        ] {
            assert_eq!(forbidden(source), Vec::<&str>::new(), "{source}");
        }
    }
}
