//! Debian's cloud kernel: fetched, unpacked, and reduced to its image and the modules that the guest loads.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{announce, modules};
use crate::command::{output, run};
use crate::error::{Error, Result};

/// The package that always depends on the newest cloud kernel.
const META_PACKAGE: &str = "linux-image-cloud-amd64";
const REMEDY: &str = "run `apt-get update`, or look at what the machine's package sources offer";

/// What is kept of a kernel package.
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    /// In the order of their loading.
    pub(super) modules: Vec<PathBuf>,
}

/// Gives the kernel in `folder/kernel`, fetched first if it is not there.
pub(super) fn prepare(folder: &Path) -> Result<Kernel> {
    let kept = folder.join("kernel");
    if !kept.join("modules.list").exists() {
        let half = folder.join("kernel.half");
        remove(&half)?;
        remove(&kept)?;
        fetch(&half)?;
        fs::rename(&half, &kept).map_err(Error::path("write", &kept))?;
    }
    let list_path = kept.join("modules.list");
    let list = fs::read_to_string(&list_path).map_err(Error::path("read", &list_path))?;
    Ok(Kernel { image: kept.join("vmlinuz"), modules: list.lines().map(|name| kept.join(name)).collect() })
}

fn fetch(into: &Path) -> Result<()> {
    let download = into.join("download");
    fs::create_dir_all(&download).map_err(Error::path("create", &download))?;

    let package = package_name(&run("apt-cache", &["depends", "--important", META_PACKAGE])?)?;
    announce(&format!("downloading {package} with apt-get (about 30 MB)"));
    let mut apt = Command::new("apt-get");
    output(
        apt.args(["-o", "APT::Sandbox::User=root", "download", &package])
            .current_dir(&download)
            .stdin(Stdio::null()),
    )?;
    let deb = find(&download, |name| name.ends_with(".deb"))?;

    announce(&format!("unpacking {}", deb.display()));
    let unpacked = download.join("unpacked");
    run("dpkg-deb", &[Path::new("-x"), &deb, &unpacked])?;
    let image = find(&unpacked.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    fs::rename(&image, into.join("vmlinuz")).map_err(Error::path("move", &image))?;

    let names = modules::extract(&modules_folder(&unpacked)?, into)?;
    fs::write(into.join("modules.list"), names.join("\n") + "\n").map_err(Error::path("write", into))?;
    remove(&download)
}

/// The kernel's own package, from what `apt-cache depends` says of the package that depends on it.
fn package_name(depends: &str) -> Result<String> {
    let mut names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let name = names.find(|name| {
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
        name.starts_with("linux-image-") && name.chars().all(valid)
    });
    let missing = || Error::Asset { what: format!("{META_PACKAGE} depends on no kernel"), remedy: REMEDY };
    name.map(str::to_owned).ok_or_else(missing)
}

/// Where the modules are: one version's folder, below `/lib` or `/usr/lib`.
fn modules_folder(unpacked: &Path) -> Result<PathBuf> {
    let folders = ["lib/modules", "usr/lib/modules"].map(|folder| unpacked.join(folder));
    let there = folders.into_iter().find(|folder| folder.is_dir());
    let missing = || Error::Asset { what: "the kernel's package has no modules".to_owned(), remedy: REMEDY };
    find(&there.ok_or_else(missing)?, |_| true)
}

fn find(folder: &Path, fits: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).map_err(Error::path("read", folder))?.flatten();
    let found = entries
        .map(|entry| entry.path())
        .find(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(&fits));
    found.ok_or_else(|| Error::Asset {
        what: format!("what was expected in {} is not there", folder.display()),
        remedy: REMEDY,
    })
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() { fs::remove_dir_all(folder).map_err(Error::path("remove", folder)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_package_is_found_among_the_dependencies() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(package_name(depends).unwrap(), "linux-image-6.1.0-56-cloud-amd64");
    }

    #[test]
    fn an_answer_without_a_kernel_is_an_error_and_no_argument() {
        for depends in [
            "",
            "Depends: libc6",
            "Depends: linux-image-;reboot",
            "Depends: --help",
            "Depends: <linux-image-x>",
        ] {
            assert!(package_name(depends).is_err(), "{depends}");
        }
    }
}
