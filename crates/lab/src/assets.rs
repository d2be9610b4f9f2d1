//! What guests are made of: Debian's cloud kernel, and an initramfs with the page-stamping guest as its init.
//!
//! Both are made when they are first needed, into a folder of the build (`target/lab-assets`, or
//! `LIMOSA_LAB_ASSETS`): the kernel is downloaded with `apt-get` from where this machine already gets Debian's
//! packages and unpacked with `dpkg-deb`, the guest is built with `cargo`. Everything is named on standard error
//! before it is done. Two builders at once take turns; one that is killed leaves nothing half made.
//! `LIMOSA_LAB_GUEST` names a guest that is built already. Deleting the folder fetches the newest kernel again.

pub mod cpio;
mod kernel;
mod modules;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::FlockOperation;

use crate::command::output;
use crate::error::{Error, Result};

/// The target for which the guest is built: statically, so that it needs nothing in the initramfs.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// A kernel and an initramfs that boot into the page-stamping guest.
#[derive(Debug, Clone)]
pub struct Assets {
    /// The kernel's image.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
}

impl Assets {
    /// Makes what is not there yet, in the usual folder.
    ///
    /// # Errors
    /// Which program failed, or what is missing.
    pub fn prepare() -> Result<Self> {
        Self::prepare_in(&default_folder())
    }

    /// Makes what is not there yet, in this folder.
    ///
    /// # Errors
    /// Which program failed, or what is missing.
    pub fn prepare_in(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::path("create", folder))?;
        let _lock = lock(folder)?;
        let kernel = kernel::prepare(folder)?;
        let guest = match std::env::var_os("LIMOSA_LAB_GUEST") {
            Some(told) => PathBuf::from(told),
            None => build_guest(folder)?,
        };
        let archive = initramfs(&guest, &kernel.modules)?;
        let initramfs = folder.join("initramfs.cpio");
        if fs::read(&initramfs).ok().as_ref() != Some(&archive) {
            announce(&format!("writing {}", initramfs.display()));
            let half = folder.join("initramfs.half");
            fs::write(&half, &archive).map_err(Error::path("write", &half))?;
            fs::rename(&half, &initramfs).map_err(Error::path("write", &initramfs))?;
        }
        Ok(Self { kernel: kernel.image, initramfs })
    }
}

/// `LIMOSA_LAB_ASSETS`, or `target/lab-assets` of the workspace that this was built in.
fn default_folder() -> PathBuf {
    match (std::env::var_os("LIMOSA_LAB_ASSETS"), std::env::var_os("CARGO_TARGET_DIR")) {
        (Some(told), _) => told.into(),
        (None, Some(target)) => Path::new(&target).join("lab-assets"),
        (None, None) => workspace().join("target/lab-assets"),
    }
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("this crate lies two folders below the workspace")
}

/// Builds the guest in a target folder of its own: cargo then neither waits for a build that started this one,
/// nor throws away what that built.
fn build_guest(folder: &Path) -> Result<PathBuf> {
    announce("building limosa-lab-guest with cargo");
    let target = folder.join("guest-build");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args([
        "build",
        "--quiet",
        "--locked",
        "-p",
        "limosa-lab-guest",
        "--profile",
        "guest",
        "--target",
        TARGET,
    ]);
    cargo.arg("--target-dir").arg(&target).current_dir(workspace()).stdin(Stdio::null());
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static").env_remove("CARGO_ENCODED_RUSTFLAGS");
    output(&mut cargo)?;
    Ok(target.join(TARGET).join("guest/limosa-lab-guest"))
}

/// The archive: the guest as `/init`, a console for it to speak on, and the modules in the order of their loading.
fn initramfs(guest: &Path, modules: &[PathBuf]) -> Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).map_err(Error::path("read", path));
    let mut archive = cpio::Archive::default();
    let too_large = |path: &Path| Error::Asset {
        what: format!("{} is too large for an initramfs", path.display()),
        remedy: "4 GiB are the limit of its format",
    };
    archive.folder("dev");
    archive.character_device("dev/console", 5, 1);
    archive.file("init", 0o755, &read(guest)?).ok_or_else(|| too_large(guest))?;
    archive.folder("modules");
    let mut list = String::new();
    for module in modules {
        let name = module.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        archive.file(&format!("modules/{name}"), 0o644, &read(module)?).ok_or_else(|| too_large(module))?;
        list.push_str(name);
        list.push('\n');
    }
    archive
        .file("modules/list", 0o644, list.as_bytes())
        .ok_or_else(|| too_large(Path::new("modules/list")))?;
    Ok(archive.finish())
}

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(".lock");
    let file = File::create(&path).map_err(Error::path("create", &path))?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive).map_err(Error::path("lock", &path))?;
    Ok(file)
}

fn announce(what: &str) {
    eprintln!("limosa-lab: {what}");
}
