//! What this QEMU is, can emulate, and has put where.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::open_enum::open_enum;
use crate::{Error, Qmp, Schema};

/// A machine type.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Machine {
    /// Its name, such as `pc-q35-10.0`.
    pub name: String,
    /// An unversioned name for it, such as `q35`.
    pub alias: Option<String>,
    /// The most virtual CPUs.
    #[serde(rename = "cpu-max")]
    pub max_vcpus: u32,
    /// Will a later QEMU drop it?
    #[serde(default, rename = "deprecated")]
    pub is_deprecated: bool,
}

/// A CPU model.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CpuDefinition {
    /// Its name, such as `Skylake-Server-v2`.
    pub name: String,
    /// Can a VM with it move between hosts that can run it?
    pub migration_safe: Option<bool>,
    /// What this host lacks for it. `None`: QEMU does not say. Empty: it runs here.
    pub unavailable_features: Option<Vec<String>>,
    /// Will a later QEMU drop it?
    #[serde(default, rename = "deprecated")]
    pub is_deprecated: bool,
}

/// A CPU model with settings of its features.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuModel {
    /// The name of the model that it is based on.
    pub name: String,
    /// Features and other properties.
    #[serde(default, skip_serializing_if = "Map::is_empty", rename = "props")]
    pub properties: Map<String, Value>,
}

open_enum! {
    /// How a CPU model is expanded.
    pub enum CpuExpansion {
        /// To a model that never changes, and all that differs from it.
        Static = "static",
        /// To everything that can be set.
        Full = "full",
    }
}

/// A virtual CPU.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Vcpu {
    /// Its number.
    #[serde(rename = "cpu-index")]
    pub index: u32,
    /// The host thread that runs it.
    pub thread_id: i32,
}

/// Whether the VM runs by KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct KvmInfo {
    /// It does.
    pub enabled: bool,
    /// QEMU was built with KVM; says nothing about the host.
    pub present: bool,
}

/// A piece of guest memory, or of a device's or a ROM's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamBlock {
    /// Its name in the migration stream.
    pub name: String,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Bytes set aside.
    pub total_bytes: u64,
    /// Where it is mapped in QEMU's address space; QEMU before 8.0 does not say.
    pub host_address: Option<u64>,
}

impl Qmp {
    /// `query-machines`.
    pub async fn query_machines(&self) -> Result<Vec<Machine>, Error> {
        self.query("query-machines").await
    }

    /// `query-cpu-definitions`, judged for the accelerator that this QEMU runs with.
    pub async fn query_cpu_definitions(&self) -> Result<Vec<CpuDefinition>, Error> {
        self.query("query-cpu-definitions").await
    }

    /// `query-cpu-model-expansion`.
    pub async fn query_cpu_model_expansion(
        &self,
        expansion: &CpuExpansion,
        model: &CpuModel,
    ) -> Result<CpuModel, Error> {
        #[derive(Serialize)]
        struct Arguments<'a> {
            #[serde(rename = "type")]
            expansion: &'a CpuExpansion,
            model: &'a CpuModel,
        }
        #[derive(Deserialize)]
        struct Answer {
            model: CpuModel,
        }
        let answer: Answer =
            self.execute("query-cpu-model-expansion", &Arguments { expansion, model }).await?;
        Ok(answer.model)
    }

    /// `query-cpus-fast`.
    pub async fn query_cpus_fast(&self) -> Result<Vec<Vcpu>, Error> {
        self.query("query-cpus-fast").await
    }

    /// `query-kvm`.
    pub async fn query_kvm(&self) -> Result<KvmInfo, Error> {
        self.query("query-kvm").await
    }

    /// `query-qmp-schema`: what this QEMU can do.
    pub async fn query_schema(&self) -> Result<Schema, Error> {
        self.query("query-qmp-schema").await
    }

    /// The memory of the VM. QMP has no command for it, so this is `info ramblock` of the human monitor.
    ///
    /// # Errors
    /// [`Error::Reply`] if its table is not as known: a silent miss would lose memory.
    pub async fn ram_blocks(&self) -> Result<Vec<RamBlock>, Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "kebab-case")]
        struct Arguments {
            command_line: &'static str,
        }
        const COMMAND: &str = "human-monitor-command";
        let table: String = self.execute(COMMAND, &Arguments { command_line: "info ramblock" }).await?;
        parse_ram_blocks(&table).map_err(|line| Error::Reply {
            command: COMMAND,
            source: serde::de::Error::custom(format!("info ramblock: {line:?}")),
        })
    }
}

/// Reads the table of `info ramblock`; the first line that is not understood is the error.
///
/// ```text
///               Block Name    PSize              Offset               Used              Total                HVA  RO
///                     ram0    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000 0x00007f1b5fe00000  rw
/// ```
fn parse_ram_blocks(table: &str) -> Result<Vec<RamBlock>, &str> {
    let mut lines = table.lines().filter(|line| !line.trim().is_empty());
    let header = lines.next().unwrap_or_default();
    if header.split_whitespace().take(6).ne(["Block", "Name", "PSize", "Offset", "Used", "Total"]) {
        return Err(header);
    }
    lines.map(|line| parse_ram_block(line).ok_or(line)).collect()
}

fn parse_ram_block(line: &str) -> Option<RamBlock> {
    let hex = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let mut words = line.split_whitespace();
    let name = words.next()?.to_owned();
    let _page_size = (words.next()?.parse::<u64>().ok()?, words.next()?);
    let _offset = hex(words.next()?)?;
    let (used_bytes, total_bytes) = (hex(words.next()?)?, hex(words.next()?)?);
    let host_address = words.next().map(hex);
    if host_address == Some(None) {
        return None;
    }
    Some(RamBlock { name, used_bytes, total_bytes, host_address: host_address.flatten() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_ram_blocks_is_read_in_the_form_of_7_2_and_of_10() {
        let old = "              Block Name    PSize              Offset               Used              Total\r\n\
                   ram0    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000\r\n";
        let block = RamBlock {
            name: "ram0".into(),
            used_bytes: 0x1000_0000,
            total_bytes: 0x1000_0000,
            host_address: None,
        };
        assert_eq!(parse_ram_blocks(old), Ok(vec![block.clone()]));

        let new = "  Block Name    PSize   Offset  Used  Total   HVA  RO\n\
                   ram0    4 KiB  0x0 0x10000000 0x10000000 0x7f1b5fe00000  rw\n\
                   0000:00:02.0/vga.vram    4 KiB  0x0 0x1 0x2 0x3 rw\n";
        let blocks = parse_ram_blocks(new).unwrap();
        assert_eq!(blocks[0], RamBlock { host_address: Some(0x7f1b_5fe0_0000), ..block });
        assert_eq!(blocks[1].name, "0000:00:02.0/vga.vram");
    }

    #[test]
    fn a_table_that_is_not_understood_is_refused() {
        assert_eq!(parse_ram_blocks(""), Err(""));
        assert_eq!(parse_ram_blocks("unknown command"), Err("unknown command"));
        let header = "Block Name PSize Offset Used Total";
        for row in ["ram0", "ram0 4 KiB 0x0 0x1", "ram0 4 KiB 0x0 0x1 zz", "ram0 4 KiB 0x0 0x1 0x2 rw"] {
            assert_eq!(
                parse_ram_blocks(&format!("{header}\n{row}")).map_err(str::to_owned),
                Err(row.to_owned())
            );
        }
    }
}
