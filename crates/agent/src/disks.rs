//! Making and removing the disks of a VM, with `qemu-img`.
//!
//! A disk is made under another name and renamed when it is whole, so that one that is there is a whole one, and a
//! repeated order makes nothing twice. Images are never probed: their format is given, and a backing file in an
//! image's header is refused.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use limosa_api::agent::VmOnHost;
use limosa_model::spec::DiskSpec;
use limosa_model::{DiskFormat, Failure, FailureKind, Name};
use serde::Deserialize;
use tokio::process::Command;

use crate::agent::Agent;
use crate::resolve::{datastore, disk_path, disks_dir, templates_dir};

fn storage(what: impl Into<String>, remedy: &str) -> Failure {
    Failure::new(FailureKind::Storage, what, remedy)
}

/// Makes the disks that are not there. Says which.
pub(crate) async fn make(agent: &Agent, target: &VmOnHost) -> Result<Vec<Name>, Failure> {
    let mut made = Vec::new();
    for disk in &target.spec.disks {
        let path = disk_path(target, disk)?;
        if path.exists() {
            continue;
        }
        let store = datastore(target, &disk.datastore)?;
        if !store.path.is_dir() {
            return Err(storage(
                format!("the folder {} of datastore {} is not there", store.path.display(), store.name),
                "mount it on this host, or correct its path",
            ));
        }
        let folder = disks_dir(store, target.vm);
        tokio::fs::create_dir_all(&folder).await.map_err(|e| {
            storage(format!("cannot make {}: {e}", folder.display()), "is the datastore writable?")
        })?;
        let template =
            disk.from.as_ref().map(|from| (templates_dir(store).join(from.template.as_str()), from.format));
        let beside = path.with_extension("making");
        let result = make_one(agent, disk, &beside, template).await;
        if let Err(failure) = result {
            let _ = tokio::fs::remove_file(&beside).await;
            return Err(failure);
        }
        tokio::fs::rename(&beside, &path)
            .await
            .map_err(|e| storage(format!("cannot put disk {} in its place: {e}", disk.name), "try again"))?;
        made.push(disk.name.clone());
    }
    Ok(made)
}

async fn make_one(
    agent: &Agent,
    disk: &DiskSpec,
    path: &Path,
    template: Option<(PathBuf, DiskFormat)>,
) -> Result<(), Failure> {
    match template {
        None => {
            let size = disk.size.map_or(0, |size| size.as_bytes());
            qemu_img(
                agent,
                &[
                    "create".into(),
                    "-q".into(),
                    "-f".into(),
                    disk.format.name().into(),
                    path.into(),
                    size.to_string().into(),
                ],
            )
            .await?;
        }
        Some((template, format)) => {
            let found = inspect(agent, &template, format).await?;
            if let Some(size) = disk.size.filter(|size| size.as_bytes() < found) {
                return Err(Failure::new(
                    FailureKind::Invalid,
                    format!(
                        "disk {} is to have {size}, its template {} has {found} bytes",
                        disk.name,
                        template.display()
                    ),
                    "give the disk at least the template's size, or none",
                ));
            }
            let arguments: [OsString; 8] = [
                "convert".into(),
                "-q".into(),
                "-f".into(),
                format.name().into(),
                "-O".into(),
                disk.format.name().into(),
                template.into(),
                path.into(),
            ];
            qemu_img(agent, &arguments).await?;
            if let Some(size) = disk.size {
                let arguments: [OsString; 6] = [
                    "resize".into(),
                    "-q".into(),
                    "-f".into(),
                    disk.format.name().into(),
                    path.into(),
                    size.as_bytes().to_string().into(),
                ];
                qemu_img(agent, &arguments).await?;
            }
        }
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ImageInfo {
    virtual_size: u64,
    backing_filename: Option<String>,
    #[serde(default)]
    format_specific: serde_json::Value,
}

/// The virtual size of an image, which must stand for itself.
async fn inspect(agent: &Agent, image: &Path, format: DiskFormat) -> Result<u64, Failure> {
    if !image.is_file() {
        return Err(Failure::new(
            FailureKind::NotFound,
            format!("the template {} is not there", image.display()),
            "put it into the datastore's `templates` folder",
        ));
    }
    let arguments: [OsString; 5] =
        ["info".into(), "--output=json".into(), "-f".into(), format.name().into(), image.into()];
    let output = qemu_img(agent, &arguments).await?;
    let info: ImageInfo = serde_json::from_slice(&output).map_err(|e| {
        storage(format!("qemu-img's words on {} are not understood: {e}", image.display()), "see its version")
    })?;
    let outside = info.backing_filename.or_else(|| {
        let file = info.format_specific.pointer("/data/data-file")?;
        file.as_str().map(str::to_owned)
    });
    if let Some(outside) = outside {
        return Err(Failure::new(
            FailureKind::Invalid,
            format!("the image {} refers to another file, {outside:?}", image.display()),
            "flatten it first with `qemu-img convert`",
        ));
    }
    Ok(info.virtual_size)
}

async fn qemu_img(agent: &Agent, arguments: &[OsString]) -> Result<Vec<u8>, Failure> {
    let program = agent.config.qemu.with_file_name("qemu-img");
    let output = Command::new(&program)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|e| storage(format!("cannot run {}: {e}", program.display()), "install qemu-utils"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(storage(
        format!("qemu-img failed: {}", why.trim().chars().take(500).collect::<String>()),
        "free space, or correct the image",
    ))
}

/// Removes the disks of a VM, and their folder. What is gone is removed.
pub(crate) async fn delete(target: &VmOnHost) -> Result<(), Failure> {
    for disk in &target.spec.disks {
        let path = disk_path(target, disk)?;
        remove(tokio::fs::remove_file(&path).await, &path)?;
        let folder = disks_dir(datastore(target, &disk.datastore)?, target.vm);
        // Other disks of the VM may still be in it.
        let _ = tokio::fs::remove_dir(&folder).await;
    }
    Ok(())
}

fn remove(result: std::io::Result<()>, path: &Path) -> Result<(), Failure> {
    match result {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(storage(format!("cannot remove {}: {e}", path.display()), "is the datastore writable?"))
        }
        _ => Ok(()),
    }
}
