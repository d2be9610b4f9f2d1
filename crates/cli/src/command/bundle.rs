//! `limosa report`: what a bug report needs, in one file. The server leaves secrets out; nothing of this machine's
//! settings goes in.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;
use tar::{Builder, Header};

use crate::cluster::Cluster;
use crate::error::CliError;
use crate::output::Output;

pub(super) async fn write(cluster: &Cluster, path: &Path, output: Output) -> Result<(), CliError> {
    let state = cluster.support_bundle().await?;
    let tasks = cluster.tasks().await?;
    let events = cluster.events(0).await?;
    let about = format!(
        "A report of a Limosa cluster, made at {} by limosa {}.\n\n\
         state.json   the whole state of the cluster, without secrets\n\
         tasks.json   the tasks that are kept\n\
         events.json  the events that are kept\n",
        Timestamp::now(),
        env!("CARGO_PKG_VERSION"),
    );
    let files = [
        ("README", about.into_bytes()),
        ("state.json", json(&state)),
        ("tasks.json", json(&tasks)),
        ("events.json", json(&events)),
    ];
    let write = || {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        archive(file, &files, Timestamp::now())?.sync_all()
    };
    write().map_err(|source| CliError::File { doing: "write", path: path.to_owned(), source })?;
    output.say(&format!("{} is written; look through it before you pass it on", path.display()))
}

fn archive<W: Write>(to: W, files: &[(&str, Vec<u8>)], now: Timestamp) -> io::Result<W> {
    let mut archive = Builder::new(to);
    for (name, content) in files {
        let mut header = Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(now.as_second()).unwrap_or(0));
        archive.append_data(&mut header, format!("limosa-report/{name}"), content.as_slice())?;
    }
    archive.into_inner()
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("the API's objects have nothing that JSON has not")
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn what_goes_into_a_report_comes_out_of_it() {
        let files = [("README", b"hello".to_vec()), ("state.json", vec![b'x'; 2000])];
        let packed = archive(Vec::new(), &files, Timestamp::UNIX_EPOCH).unwrap();
        let mut archive = tar::Archive::new(packed.as_slice());
        for (entry, (name, content)) in archive.entries().unwrap().zip(&files) {
            let mut entry = entry.unwrap();
            assert_eq!(entry.path().unwrap().to_str(), Some(format!("limosa-report/{name}").as_str()));
            let mut read = Vec::new();
            entry.read_to_end(&mut read).unwrap();
            assert_eq!(&read, content);
        }
    }
}
