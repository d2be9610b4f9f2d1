//! Disks.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

use crate::command_line::Properties;
use crate::open_enum::open_enum;
use crate::{Error, Qmp};

/// A node of the block graph.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BlockNode {
    /// Its name.
    #[serde(rename = "node-name")]
    pub node_name: String,
    /// The file behind it, as QEMU was told.
    pub file: PathBuf,
    /// The format or protocol, such as `qcow2` or `file`.
    #[serde(rename = "drv")]
    pub driver: String,
    /// Can it only be read?
    #[serde(rename = "ro")]
    pub is_read_only: bool,
    /// Does this QEMU own the image (QEMU 10 and later say so)? An inactive one holds no lock and is not written.
    #[serde(rename = "active")]
    pub is_active: Option<bool>,
}

open_enum! {
    /// How far a block job is.
    pub enum JobStatus {
        /// Created.
        Created = "created",
        /// Under way.
        Running = "running",
        /// Paused.
        Paused = "paused",
        /// In step; can be completed.
        Ready = "ready",
        /// Paused while in step.
        Standby = "standby",
        /// Waits for others of its transaction.
        Waiting = "waiting",
        /// Waits to be finalised.
        Pending = "pending",
        /// Being given up.
        Aborting = "aborting",
        /// Done; waits to be dismissed.
        Concluded = "concluded",
        /// Gone.
        Null = "null",
    }
}

/// A job on a disk.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BlockJob {
    /// Its id.
    pub device: String,
    /// Such as `mirror`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Bytes to do, by the present estimate.
    #[serde(rename = "len")]
    pub length_bytes: u64,
    /// Bytes done.
    #[serde(rename = "offset")]
    pub offset_bytes: u64,
    /// Bytes in a second; 0 is no limit.
    #[serde(rename = "speed")]
    pub limit_bytes_per_second: u64,
    /// How far it is.
    pub status: JobStatus,
    /// Can it be completed?
    #[serde(rename = "ready")]
    pub is_ready: bool,
    /// Why it failed.
    pub error: Option<String>,
}

impl Qmp {
    /// `query-named-block-nodes`, without backing chains.
    pub async fn query_named_block_nodes(&self) -> Result<Vec<BlockNode>, Error> {
        #[derive(Serialize)]
        struct Arguments {
            flat: bool,
        }
        self.execute("query-named-block-nodes", &Arguments { flat: true }).await
    }

    /// `query-block-jobs`.
    pub async fn query_block_jobs(&self) -> Result<Vec<BlockJob>, Error> {
        self.query("query-block-jobs").await
    }

    /// Takes (`true`) or lets go (`false`) the image locks of one node, or of all, while the VM is paused.
    ///
    /// # Errors
    /// [`Error::is_command_not_found`] before QEMU 10: there `cont` takes the locks.
    pub async fn blockdev_set_active(&self, active: bool, node_name: Option<&str>) -> Result<(), Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "kebab-case")]
        struct Arguments<'a> {
            active: bool,
            #[serde(skip_serializing_if = "Option::is_none")]
            node_name: Option<&'a str>,
        }
        self.order_with("blockdev-set-active", &Arguments { active, node_name }).await
    }

    /// `blockdev-add`: makes a node, for instance one of [`Disk::nodes`](crate::command_line::Disk::nodes).
    pub async fn blockdev_add(&self, node: &Properties) -> Result<(), Error> {
        self.order_with("blockdev-add", node).await
    }

    /// `blockdev-del`.
    pub async fn blockdev_del(&self, node_name: &str) -> Result<(), Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "kebab-case")]
        struct Arguments<'a> {
            node_name: &'a str,
        }
        self.order_with("blockdev-del", &Arguments { node_name }).await
    }
}
