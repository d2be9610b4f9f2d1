//! What a QEMU can do, by its own schema, and what it means for the user if something is missing.
//!
//! Versions decide nothing but the minimum: distributions backport and leave out. The schema is QEMU's
//! `query-qmp-schema`: a list of commands, events and types that refer to one another by name.

use std::collections::HashMap;

use serde::{Deserialize, Deserializer};

use crate::{Error, Version};

/// The oldest QEMU that is supported, major and minor: Debian 12's.
pub const MINIMUM_VERSION: (u32, u32) = (7, 2);

/// Refuses a QEMU below [`MINIMUM_VERSION`].
///
/// # Errors
/// [`Error::TooOld`].
pub fn check_version(found: Version) -> Result<(), Error> {
    if (found.major, found.minor) < MINIMUM_VERSION { Err(Error::TooOld { found }) } else { Ok(()) }
}

/// The answer to `query-qmp-schema`.
#[derive(Debug, Clone)]
pub struct Schema {
    entities: HashMap<String, Entity>,
}

/// Something that a QEMU may have or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A QMP command.
    Command(&'static str),
    /// A migration capability.
    Capability(&'static str),
    /// A compression of multifd.
    MultifdCompression(&'static str),
}

impl std::fmt::Display for Need {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Command(name) => write!(f, "command {name}"),
            Self::Capability(name) => write!(f, "migration capability {name}"),
            Self::MultifdCompression(name) => write!(f, "multifd compression {name}"),
        }
    }
}

/// How bad it is that something is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Limosa cannot use this QEMU.
    Required,
    /// Something is worse, or cannot be had.
    Wanted,
}

/// Something that a QEMU lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// What.
    pub need: Need,
    /// How bad that is.
    pub severity: Severity,
    /// What the user loses.
    pub consequence: &'static str,
}

impl Schema {
    /// Does this QEMU have the command?
    pub fn has_command(&self, name: &str) -> bool {
        matches!(self.entities.get(name), Some(Entity::Command { .. }))
    }

    /// Does its command take this argument?
    pub fn has_argument(&self, command: &str, argument: &str) -> bool {
        self.argument(command, argument).is_some()
    }

    /// The migration capabilities that it has.
    pub fn capabilities(&self) -> &[String] {
        self.argument("migrate-set-capabilities", "capabilities")
            .and_then(|list| self.member(list, "capability"))
            .map_or(&[], |capability| self.words(capability))
    }

    /// The compressions of multifd that it was built with.
    pub fn multifd_compressions(&self) -> &[String] {
        self.argument("migrate-set-parameters", "multifd-compression").map_or(&[], |kind| self.words(kind))
    }

    /// What Limosa uses and this QEMU lacks, the required first.
    pub fn missing(&self) -> Vec<Missing> {
        WISHES.iter().filter(|wish| !self.has(wish.need)).copied().collect()
    }

    fn has(&self, need: Need) -> bool {
        let in_words = |words: &[String], name: &str| words.iter().any(|word| word == name);
        match need {
            Need::Command(name) => self.has_command(name),
            Need::Capability(name) => in_words(self.capabilities(), name),
            Need::MultifdCompression(name) => in_words(self.multifd_compressions(), name),
        }
    }

    /// The type of a command's argument.
    fn argument(&self, command: &str, argument: &str) -> Option<&Entity> {
        let Entity::Command { arg_type } = self.entities.get(command)? else { return None };
        self.member(self.entities.get(arg_type)?, argument)
    }

    /// The type of a member of an object, or of the objects in an array.
    fn member(&self, entity: &Entity, name: &str) -> Option<&Entity> {
        let object = match entity {
            Entity::Array { element_type } => self.entities.get(element_type)?,
            other => other,
        };
        let Entity::Object { members } = object else { return None };
        self.entities.get(&members.iter().find(|member| member.name == name)?.kind)
    }

    /// The words of an enum, or of an enum that may be null.
    fn words<'a>(&'a self, entity: &'a Entity) -> &'a [String] {
        match entity {
            Entity::Enum { values } => values,
            Entity::Alternate { members } => {
                let enums = members.iter().filter_map(|member| self.entities.get(&member.kind));
                enums
                    .filter_map(|kind| match kind {
                        Entity::Enum { values } => Some(values.as_slice()),
                        _ => None,
                    })
                    .next()
                    .unwrap_or(&[])
            }
            _ => &[],
        }
    }
}

/// An entry of the schema, as far as we look into it.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "meta-type", rename_all = "lowercase")]
enum Entity {
    Command {
        #[serde(rename = "arg-type")]
        arg_type: String,
    },
    Object {
        members: Vec<Member>,
    },
    Array {
        #[serde(rename = "element-type")]
        element_type: String,
    },
    Enum {
        values: Vec<String>,
    },
    Alternate {
        members: Vec<Choice>,
    },
    #[serde(other)]
    Other,
}

#[derive(Debug, Clone, Deserialize)]
struct Member {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Choice {
    #[serde(rename = "type")]
    kind: String,
}

impl<'de> Deserialize<'de> for Schema {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Entry {
            name: String,
            #[serde(flatten)]
            entity: Entity,
        }
        let entries = Vec::<Entry>::deserialize(deserializer)?;
        Ok(Self { entities: entries.into_iter().map(|entry| (entry.name, entry.entity)).collect() })
    }
}

const fn required(need: Need, consequence: &'static str) -> Missing {
    Missing { need, severity: Severity::Required, consequence }
}

const fn wanted(need: Need, consequence: &'static str) -> Missing {
    Missing { need, severity: Severity::Wanted, consequence }
}

/// What Limosa uses, the required first.
const WISHES: &[Missing] = &[
    required(Need::Command("query-status"), "the state of a VM cannot be known"),
    required(Need::Command("query-chardev"), "an agent cannot recognise its VMs after a restart"),
    required(Need::Command("stop"), "VMs cannot be paused or moved"),
    required(Need::Command("cont"), "VMs cannot be resumed or moved"),
    required(Need::Command("quit"), "VMs cannot be ended cleanly"),
    required(Need::Command("system_powerdown"), "guests cannot be asked to shut down"),
    required(Need::Command("migrate"), "VMs cannot move"),
    required(Need::Command("migrate-incoming"), "VMs cannot move to this host"),
    required(Need::Command("migrate-continue"), "VMs cannot move: the handover needs a held switchover"),
    required(Need::Command("migrate_cancel"), "a migration cannot be cancelled"),
    required(Need::Command("migrate-set-capabilities"), "VMs cannot move"),
    required(Need::Command("migrate-set-parameters"), "the downtime of a move cannot be limited"),
    required(
        Need::Capability("pause-before-switchover"),
        "VMs cannot move: the handover needs a held switchover",
    ),
    required(
        Need::Capability("late-block-activate"),
        "VMs cannot move: the destination would take the image locks before the handover",
    ),
    required(Need::Capability("events"), "a migration cannot be followed"),
    required(Need::Capability("return-path"), "the source would not hear of a failed load"),
    wanted(
        Need::Command("blockdev-set-active"),
        "the image locks are taken only as the VM is continued, so a lock held by another is found late \
         (QEMU 10 has it)",
    ),
    wanted(
        Need::Capability("x-ignore-shared"),
        "Limosa's own memory engine cannot be used; QEMU's stream is used instead",
    ),
    wanted(Need::Capability("multifd"), "a move uses one connection and is slow on fast or long links"),
    wanted(
        Need::MultifdCompression("zstd"),
        "QEMU's stream is not compressed, so moves over slow links take several times as long",
    ),
    wanted(
        Need::Capability("auto-converge"),
        "a busy guest that outruns the link cannot be slowed down to move",
    ),
    wanted(Need::Capability("postcopy-ram"), "a busy guest that outruns the link cannot move by post-copy"),
    wanted(Need::Capability("xbzrle"), "pages that change a little are sent whole in QEMU's stream"),
    wanted(Need::Command("announce-self"), "switches may learn late where a moved VM is"),
    wanted(Need::Command("query-cpu-model-expansion"), "CPU models cannot be compared feature by feature"),
    wanted(Need::Command("device_add"), "devices can be changed only while the VM is off"),
    wanted(Need::Command("human-monitor-command"), "Limosa's own memory engine cannot be used"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Schema {
        serde_json::from_value(json!([
            {"name": "migrate-set-capabilities", "meta-type": "command", "arg-type": "1", "ret-type": "0"},
            {"name": "1", "meta-type": "object", "members": [{"name": "capabilities", "type": "[2]"}]},
            {"name": "[2]", "meta-type": "array", "element-type": "2"},
            {"name": "2", "meta-type": "object", "members": [{"name": "capability", "type": "3"}]},
            {"name": "3", "meta-type": "enum", "values": ["events", "multifd"]},
            {"name": "STOP", "meta-type": "event", "arg-type": "0"},
            {"name": "future", "meta-type": "monad"},
            {"name": "loop", "meta-type": "command", "arg-type": "loop"},
        ]))
        .unwrap()
    }

    #[test]
    fn capabilities_are_found_through_the_types() {
        assert_eq!(schema().capabilities(), ["events", "multifd"]);
        assert!(schema().has_argument("migrate-set-capabilities", "capabilities"));
        assert!(!schema().has_argument("loop", "x"));
        assert!(!schema().has_command("STOP"), "an event is not a command");
    }

    #[test]
    fn what_is_missing_comes_with_its_consequence_and_the_required_first() {
        let missing = schema().missing();
        assert!(missing.is_sorted_by_key(|missing| missing.severity == Severity::Wanted));
        assert!(!missing.iter().any(|missing| missing.need == Need::Capability("events")));
        let zstd = missing.iter().find(|missing| missing.need == Need::MultifdCompression("zstd")).unwrap();
        assert!(zstd.consequence.contains("slow links"));
    }

    #[test]
    fn versions_from_7_2_on_are_taken() {
        let version = |major, minor| Version { major, minor, micro: 0 };
        assert!(check_version(version(7, 2)).is_ok());
        assert!(check_version(version(10, 0)).is_ok());
        let error = check_version(version(7, 1)).unwrap_err();
        assert_eq!(error.to_string(), "QEMU 7.1.0 is too old: 7.2 or later is needed");
    }
}
