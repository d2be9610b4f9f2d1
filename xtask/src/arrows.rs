//! Dependencies between the workspace's crates point downwards.

use crate::workspace::Workspace;

/// The rooms from top to bottom. A crate depends on crates of lower rows only, so nothing depends on the lab: what
/// injects faults is not in production.
const ROWS: &[(&str, &[&str])] = &[
    ("beside", &["lab"]),
    ("bin", &["cli"]),
    ("daemons", &["server", "agent"]),
    ("data plane", &["worker"]),
    ("one VM", &["vm"]),
    ("adapters", &["api", "net", "qemu", "store", "transport"]),
    ("cores", &["journal", "migration", "placement"]),
    ("base", &["model"]),
];

/// Which row, from the top.
fn row_of(room: &str) -> Option<usize> {
    ROWS.iter().position(|(_, rooms)| rooms.contains(&room))
}

/// What points elsewhere than down.
pub(crate) fn faults(workspace: &Workspace) -> Vec<String> {
    let mut faults = Vec::new();
    for room in &workspace.rooms {
        let Some(row) = row_of(&room.name) else {
            faults.push(format!(
                "crates/{} is in no row: give it one in xtask/src/arrows.rs and in ARCHITECTURE.md",
                room.name
            ));
            continue;
        };
        // A crate may name itself, to have its own test features in its tests.
        let ours = room.dependencies.iter().filter_map(|name| name.strip_prefix("limosa-"));
        for other in ours.filter(|other| *other != room.name) {
            if row_of(other).is_none_or(|below| below <= row) {
                let (name, other_name) = (ROWS[row].0, row_of(other).map_or("no row", |row| ROWS[row].0));
                faults.push(format!(
                    "crates/{} ({name}) depends on crates/{other} ({other_name}): arrows point downwards only",
                    room.name
                ));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::workspace::Room;

    fn faults_of(room: &str, dependency: &str) -> Vec<String> {
        let dependencies = [dependency.to_owned()].into();
        let room = Room {
            name: room.into(),
            folder: PathBuf::new(),
            dependencies,
            normal_dependencies: Default::default(),
        };
        faults(&Workspace { root: PathBuf::new(), dependencies: Default::default(), rooms: vec![room] })
    }

    #[test]
    fn an_arrow_may_point_down_and_nowhere_else() {
        assert!(faults_of("agent", "limosa-model").is_empty());
        assert!(faults_of("agent", "tokio").is_empty());
        for (room, other) in [
            ("model", "limosa-agent"),
            ("agent", "limosa-server"),
            ("cli", "limosa-lab"),
            ("cli", "limosa-none"),
        ] {
            assert_eq!(faults_of(room, other).len(), 1, "{room} on {other}");
        }
    }

    #[test]
    fn a_crate_that_nobody_placed_is_a_fault() {
        assert!(faults_of("surprise", "serde")[0].contains("crates/surprise is in no row"));
    }
}
