//! The workspace as its manifests and sources tell it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// The workspace.
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    /// What the crates may depend on from elsewhere, by its name in `[workspace.dependencies]`.
    pub(crate) dependencies: BTreeSet<String>,
    /// The crates under `crates/`, by folder.
    pub(crate) rooms: Vec<Room>,
}

/// One crate.
pub(crate) struct Room {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    /// Everything that it depends on, in its tests as well.
    pub(crate) dependencies: BTreeSet<String>,
    /// What it depends on outside of its tests.
    pub(crate) normal_dependencies: BTreeSet<String>,
}

impl Workspace {
    pub(crate) fn read() -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?;
        let manifest = manifest(root)?;
        let workspace =
            manifest.get("workspace").and_then(toml::Value::as_table).context("no [workspace]")?;
        let dependencies = keys(workspace, "dependencies").filter(|name| !name.starts_with("limosa-"));
        let mut rooms = Vec::new();
        for entry in fs::read_dir(root.join("crates")).context("read crates/")? {
            let folder = entry?.path();
            let name = folder.file_name().context("a folder has a name")?.to_string_lossy().into_owned();
            rooms.push(Room::read(name, folder)?);
        }
        rooms.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { root: root.to_owned(), dependencies: dependencies.collect(), rooms })
    }
}

impl Room {
    fn read(name: String, folder: PathBuf) -> anyhow::Result<Self> {
        let manifest = manifest(&folder)?;
        let normal_dependencies: BTreeSet<_> =
            ["dependencies", "build-dependencies"].iter().flat_map(|table| keys(&manifest, table)).collect();
        let dependencies = normal_dependencies.iter().cloned().chain(keys(&manifest, "dev-dependencies"));
        Ok(Self { name, folder, dependencies: dependencies.collect(), normal_dependencies })
    }
}

/// Every Rust file under a folder.
pub(crate) fn sources(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn manifest(folder: &Path) -> anyhow::Result<toml::Table> {
    let path = folder.join("Cargo.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    text.parse().with_context(|| format!("read {}", path.display()))
}

fn keys(table: &toml::Table, key: &str) -> impl Iterator<Item = String> + use<> {
    let found = table.get(key).and_then(toml::Value::as_table).cloned().unwrap_or_default();
    found.into_iter().map(|(name, _)| name)
}
