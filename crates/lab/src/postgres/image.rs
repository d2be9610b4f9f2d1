//! The guest's disk, kernel and initial file system, made from Debian's packages.
//!
//! `debootstrap` makes the system, from where this machine already gets Debian's packages; PostgreSQL's own tools turn
//! data checksums on; `mkfs.ext4 -d` makes the disk without a mount. It takes some minutes and 1 GB, once: the result
//! stays in `target/lab-assets/postgres` until that is deleted. What is half made by a killed builder is made anew.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::command::run;
use crate::error::{Error, Result};

/// The size of the disk, as the guest sees it. What is not used takes no space.
pub(super) const SIZE_MIB: u64 = 2048;

const PACKAGES: &str = "postgresql,iproute2,linux-image-cloud-amd64";
const SUITE: &str = "bookworm";
const REMEDY: &str =
    "see what debootstrap has written above; it needs the packages debootstrap and e2fsprogs";

/// The guest's parts, ready to be copied to a datastore.
#[derive(Debug, Clone)]
pub struct Image {
    /// A raw image of an ext4 file system. Copy it: a guest writes to it.
    pub disk: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// Its initial file system.
    pub initrd: PathBuf,
}

impl Image {
    /// Makes it in the folder of the lab's assets if it is not there.
    ///
    /// # Errors
    /// Which program failed.
    pub fn prepare(assets: &Path) -> Result<Self> {
        fs::create_dir_all(assets).map_err(Error::path("create", assets))?;
        let lock = assets.join(".postgres-lock");
        let lock_file = File::create(&lock).map_err(Error::path("create", &lock))?;
        rustix::fs::flock(&lock_file, FlockOperation::LockExclusive).map_err(Error::path("lock", &lock))?;
        let kept = assets.join("postgres");
        if !kept.exists() {
            let half = assets.join("postgres.half");
            remove(&half)?;
            make(&half)?;
            fs::rename(&half, &kept).map_err(Error::path("write", &kept))?;
        }
        let [disk, kernel, initrd] = ["disk.raw", "vmlinuz", "initrd"].map(|name| kept.join(name));
        Ok(Self { disk, kernel, initrd })
    }
}

fn make(folder: &Path) -> Result<()> {
    let root = folder.join("root");
    fs::create_dir_all(&root).map_err(Error::path("create", &root))?;
    eprintln!(
        "limosa-lab: making a Debian {SUITE} with PostgreSQL with debootstrap (some 250 MB to download)"
    );
    let include = format!("--include={PACKAGES}");
    let mirror = mirror()?;
    let words = ["--variant=minbase", &include, SUITE, &root.to_string_lossy(), &mirror];
    run("debootstrap", &words)?;
    configure(&root)?;
    for (name, prefix) in [("vmlinuz", "vmlinuz-"), ("initrd", "initrd.img-")] {
        let from = only(&root.join("boot"), prefix)?;
        fs::copy(&from, folder.join(name)).map_err(Error::path("copy", &from))?;
    }
    // What a running system does not need.
    for left in
        ["var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"]
    {
        remove(&root.join(left))?;
    }
    eprintln!("limosa-lab: writing {}", folder.join("disk.raw").display());
    let disk = folder.join("disk.raw");
    let file = File::create(&disk).map_err(Error::path("create", &disk))?;
    file.set_len(SIZE_MIB << 20).map_err(Error::path("create", &disk))?;
    run("mkfs.ext4", &["-q", "-d", &root.to_string_lossy(), &disk.to_string_lossy()])?;
    remove(&root)
}

/// The init, the database's settings, and checksums on all its pages.
fn configure(root: &Path) -> Result<()> {
    let init = root.join("usr/sbin/limosa-init");
    fs::write(&init, include_str!("init.sh")).map_err(Error::path("write", &init))?;
    fs::set_permissions(&init, Permissions::from_mode(0o755)).map_err(Error::path("write", &init))?;
    let version = only(&root.join("usr/lib/postgresql"), "")?;
    let version = version.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let settings = root.join(format!("etc/postgresql/{version}/main"));
    let listening = settings.join("conf.d/limosa.conf");
    let text = "listen_addresses = '*'\nssl = off\nfsync = on\nsynchronous_commit = on\n";
    fs::write(&listening, text).map_err(Error::path("write", &listening))?;
    let access = settings.join("pg_hba.conf");
    let mut rules = fs::read_to_string(&access).map_err(Error::path("read", &access))?;
    rules.push_str("host all all 10.77.0.0/24 trust\n");
    fs::write(&access, rules).map_err(Error::path("write", &access))?;
    let checksums = format!("/usr/lib/postgresql/{version}/bin/pg_checksums");
    let data = format!("/var/lib/postgresql/{version}/main");
    let root = root.to_string_lossy();
    run("chroot", &[&root, "runuser", "-u", "postgres", "--", &checksums, "--enable", "-D", &data]).map(drop)
}

/// Where this machine gets Debian's packages.
fn mirror() -> Result<String> {
    let told = run("apt-get", &["indextargets", "--format", "$(SITE)", "Created-By: Packages"])?;
    let site =
        told.lines().map(str::trim).find(|line| line.ends_with("/debian") || line.ends_with("/debian/"));
    site.map(str::to_owned).ok_or_else(|| {
        Error::invalid("Debian mirror", "none", "name one in /etc/apt and run `apt-get update`")
    })
}

/// The one entry of a folder whose name begins so.
fn only(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).map_err(Error::path("read", folder))?.flatten();
    let mut found = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one.path()),
        _ => Err(Error::Asset {
            what: format!("there is not exactly one {prefix}* in {}", folder.display()),
            remedy: REMEDY,
        }),
    }
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() { fs::remove_dir_all(folder).map_err(Error::path("remove", folder)) } else { Ok(()) }
}
