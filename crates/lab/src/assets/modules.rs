//! Picks the guest's kernel modules and what they need, in the order of their loading.
//!
//! A module says itself what it needs, in its section `.modinfo`: strings such as `depends=virtio_ring,virtio`,
//! each ended by a zero. The package has no `modules.dep` (a machine makes that when it installs the package).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};

/// What the guest uses: PCI devices, NIC, disk, the power button.
const WANTED: [&str; 5] = ["virtio_pci", "virtio_net", "virtio_blk", "button", "evdev"];
/// No kernel's folders are deeper.
const DEPTH_LIMIT: usize = 16;

/// Writes the modules that are wanted, decompressed, into a folder; gives their file names in the order of their
/// loading. One that the kernel does not have as a module is taken to be built in.
pub(super) fn extract(modules_folder: &Path, into: &Path) -> Result<Vec<String>> {
    let mut files = BTreeMap::new();
    index(modules_folder, 0, &mut files)?;
    let mut loaded = Vec::new();
    for name in WANTED {
        add(name, &files, into, &mut loaded, 0)?;
    }
    Ok(loaded.iter().map(|name| file_name(name)).collect())
}

fn add(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    into: &Path,
    loaded: &mut Vec<String>,
    depth: usize,
) -> Result<()> {
    let Some(file) = files.get(name) else { return Ok(()) };
    if loaded.iter().any(|other| other == name) {
        return Ok(());
    }
    if depth > DEPTH_LIMIT {
        return Err(Error::Asset {
            what: format!("the kernel module {name} needs itself"),
            remedy: "the package is damaged: fetch it again",
        });
    }
    let content = decompressed(file)?;
    for needed in depends(&content) {
        add(&needed, files, into, loaded, depth + 1)?;
    }
    let path = into.join(file_name(name));
    fs::write(&path, content).map_err(Error::path("write", &path))?;
    loaded.push(name.to_owned());
    Ok(())
}

fn file_name(name: &str) -> String {
    format!("{name}.ko")
}

/// Every module's file by the module's name.
fn index(folder: &Path, depth: usize, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    if depth > DEPTH_LIMIT {
        return Ok(());
    }
    for entry in fs::read_dir(folder).map_err(Error::path("read", folder))?.flatten() {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder {
            index(&entry.path(), depth + 1, files)?;
        } else if let Some(name) = entry.file_name().to_str().and_then(module_name) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// `virtio-net.ko.xz` is the module `virtio_net`.
fn module_name(file: &str) -> Option<String> {
    let stem = file.strip_suffix(".ko").or_else(|| file.strip_suffix(".ko.xz"))?;
    Some(stem.replace('-', "_"))
}

fn decompressed(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(file).map_err(Error::path("read", file));
    }
    let output = Command::new("xz")
        .arg("-dc")
        .arg(file)
        .stdin(Stdio::null())
        .output()
        .map_err(Error::path("run xz for", file))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Error::Asset {
        what: format!("xz cannot read {}", file.display()),
        remedy: "the package is damaged: fetch it again",
    })
}

/// The names in a module's `depends=`.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    // The first string of a section has no zero of its own before it, but `license=` or `srcversion=` comes first.
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = value.split(|byte| *byte == b',').filter(|name| !name.is_empty());
    names.map(|name| String::from_utf8_lossy(name).replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_modules_needs_are_read_from_its_own_words() {
        let module = b"\x7fELF\0\0license=GPL\0depends=virtio_ring,net-failover\0retpoline=Y\0";
        assert_eq!(depends(module), ["virtio_ring", "net_failover"]);
        assert_eq!(depends(b"license=GPL\0depends=\0name=x\0"), Vec::<String>::new());
        assert_eq!(depends(b""), Vec::<String>::new());
    }

    #[test]
    fn a_modules_name_has_underscores_and_no_ending() {
        assert_eq!(module_name("virtio-net.ko.xz").as_deref(), Some("virtio_net"));
        assert_eq!(module_name("button.ko").as_deref(), Some("button"));
        assert_eq!(module_name("modules.order"), None);
    }

    #[test]
    fn what_a_module_needs_is_loaded_before_it_and_once() {
        let from = tempfile::tempdir().unwrap();
        let into = tempfile::tempdir().unwrap();
        let needs = [
            ("virtio", ""),
            ("virtio_ring", "virtio"),
            ("virtio-pci", "virtio_ring,virtio"),
            ("virtio_net", "virtio_ring,failover"),
            ("failover", ""),
            ("unwanted", ""),
        ];
        for (name, depends) in needs {
            fs::write(from.path().join(format!("{name}.ko")), format!("\0depends={depends}\0")).unwrap();
        }
        let order = extract(from.path(), into.path()).unwrap();
        assert_eq!(order, ["virtio.ko", "virtio_ring.ko", "virtio_pci.ko", "failover.ko", "virtio_net.ko"]);
        assert!(order.iter().all(|name| into.path().join(name).is_file()));
    }
}
