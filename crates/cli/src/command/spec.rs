//! Specs of VMs from files, with keys set on the command line.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use limosa_model::VmSpec;
use limosa_model::toml_spec::{LIMIT_BYTES, from_toml};
use toml::{Table, Value};

use super::pair;
use crate::error::CliError;

/// Reads a spec from a file, or from the standard input for `-`, and sets keys in it.
pub(super) fn read(file: &Path, sets: &[String]) -> Result<VmSpec, CliError> {
    let read = || -> io::Result<String> {
        let mut text = String::new();
        let source: Box<dyn io::Read> =
            if file == Path::new("-") { Box::new(io::stdin()) } else { Box::new(fs::File::open(file)?) };
        source.take(LIMIT_BYTES as u64 + 1).read_to_string(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(|source| CliError::File { doing: "read", path: file.to_owned(), source })?;
    parse(&text, sets).map_err(|what| {
        CliError::invalid(format!("{}: {what}", file.display()), "compare it with `limosa schema vm`")
    })
}

fn parse(text: &str, sets: &[String]) -> Result<VmSpec, String> {
    let spec: VmSpec = if sets.is_empty() {
        from_toml(text).map_err(|error| error.message)?
    } else {
        let mut root = Value::Table(from_toml(text).map_err(|error| error.message)?);
        for set in sets {
            let (path, value) = pair(set).map_err(|error| error.to_string())?;
            put(&mut root, path, value)?;
        }
        let text = toml::to_string(&root).map_err(|error| error.to_string())?;
        // The lines are not the file's any more.
        from_toml(&text).map_err(|error| match error.message.split_once(": ") {
            Some((place, rest)) if place.starts_with("line ") => rest.to_owned(),
            _ => error.message,
        })?
    };
    spec.validate().map_err(|error| error.to_string())?;
    Ok(spec)
}

/// Sets the key at a path such as `disks.0.size`. Tables on the way are made; lists are not grown.
fn put(root: &mut Value, path: &str, value: &str) -> Result<(), String> {
    let missing = |step: &str| format!("{path}: there is no {step} to set it in");
    let (parents, key) = path.rsplit_once('.').map_or((None, path), |(parents, key)| (Some(parents), key));
    let mut place = root;
    for step in parents.into_iter().flat_map(|parents| parents.split('.')) {
        place = match place {
            Value::Table(inner) => inner.entry(step).or_insert_with(|| Value::Table(Table::new())),
            Value::Array(items) => {
                step.parse().ok().and_then(|n: usize| items.get_mut(n)).ok_or_else(|| missing(step))?
            }
            _ => return Err(missing(step)),
        };
    }
    match place {
        Value::Table(inner) => inner.insert(key.to_owned(), read_value(value)),
        _ => return Err(missing(key)),
    };
    Ok(())
}

/// A TOML value where it is one (`4`, `true`, `["a"]`), else a text.
fn read_value(text: &str) -> Value {
    let value = toml::from_str::<Table>(&format!("value = {text}")).ok();
    let value = value.filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    value.unwrap_or_else(|| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = "name = \"web\"\ncpus = 2\nmemory = \"1GiB\"\n\
                        [[disks]]\nname = \"root\"\ndatastore = \"fast\"\nsize = \"10GiB\"\n";

    fn set(sets: &[&str]) -> Result<VmSpec, String> {
        parse(SPEC, &sets.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn keys_of_a_spec_are_set_at_any_depth() {
        let spec =
            set(&["name=db", "cpus=4", "memory=2GiB", "disks.0.size=\"20GiB\"", "labels.tier=back"]).unwrap();
        assert_eq!((spec.name.as_str(), spec.cpus), ("db", 4));
        assert_eq!(spec.memory.to_string(), "2GiB");
        assert_eq!(spec.disks[0].size.unwrap().to_string(), "20GiB");
        assert_eq!(spec.labels["tier"], "back");
        assert_eq!(set(&[]).unwrap().cpus, 2);
    }

    #[test]
    fn a_key_that_cannot_be_set_is_named() {
        for (bad, why) in [
            ("disks.1.size=1GiB", "disks.1.size: there is no 1 to set it in"),
            ("cpus.x=1", "cpus.x: there is no x to set it in"),
            ("cpu=4", "there is no key `cpu` here; did you mean `cpus`?"),
            ("cpus=0", "cpus: 0 is outside 1 to 240"),
        ] {
            assert_eq!(set(&[bad]).unwrap_err(), why);
        }
        assert!(set(&["cpus"]).is_err());
    }

    #[test]
    fn a_typo_in_a_file_names_its_line_and_the_nearest_key() {
        let error = parse(&SPEC.replace("memory", "memroy"), &[]).unwrap_err();
        assert_eq!(error, "line 3: there is no key `memroy` here; did you mean `memory`?");
    }
}
