//! Reads a spec from TOML, with errors that help: a typo in a key names the nearest key.

use serde::de::DeserializeOwned;

/// Why a TOML text is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidToml {
    /// What is wrong and where, with the nearest key where one was misspelt.
    pub message: String,
}

/// Longest TOML text that is read, in bytes.
pub const LIMIT_BYTES: usize = 256 * 1024;

/// Reads a `T` from TOML.
pub fn from_toml<T: DeserializeOwned>(text: &str) -> Result<T, InvalidToml> {
    if text.len() > LIMIT_BYTES {
        return Err(InvalidToml { message: format!("the text is longer than {LIMIT_BYTES} bytes") });
    }
    toml::from_str(text).map_err(|error| InvalidToml { message: explain(text, &error) })
}

/// The error with its line and, where serde names the keys that it knows, the nearest of them.
fn explain(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().trim_end();
    let place = match error.span() {
        Some(span) => {
            let line = text[..span.start.min(text.len())].matches('\n').count() + 1;
            format!("line {line}: ")
        }
        None => String::new(),
    };
    match nearest(message) {
        Some((wrong, right)) => format!("{place}there is no key `{wrong}` here; did you mean `{right}`?"),
        None => format!("{place}{message}"),
    }
}

/// From serde's ``unknown field `x`, expected one of `a`, `b` ``: the key that was written and the nearest known.
fn nearest(message: &str) -> Option<(&str, &str)> {
    let rest = message.strip_prefix("unknown field ")?;
    let mut words = rest.split('`').skip(1).step_by(2);
    let wrong = words.next()?;
    let right = words.max_by(|a, b| {
        let (a, b) = (strsim::jaro_winkler(wrong, a), strsim::jaro_winkler(wrong, b));
        a.total_cmp(&b)
    })?;
    (strsim::jaro_winkler(wrong, right) > 0.6).then_some((wrong, right))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::VmSpec;

    const GOOD: &str = r#"
        name = "web"
        cpus = 2
        memory = "1GiB"
        labels = { tier = "front" }
        [[disks]]
        name = "root"
        datastore = "fast"
        size = "10GiB"
        [[nics]]
        network = "lan"
        mac = "52:54:00:12:34:56"
    "#;

    #[test]
    fn a_spec_is_read_and_written_back_the_same() {
        let spec: VmSpec = from_toml(GOOD).unwrap();
        spec.validate().unwrap();
        let again: VmSpec = from_toml(&toml::to_string(&spec).unwrap()).unwrap();
        assert_eq!(spec, again);
    }

    #[test]
    fn a_typo_in_a_key_is_an_error_with_the_nearest_key() {
        let error = from_toml::<VmSpec>(&GOOD.replace("datastore", "datastor")).unwrap_err();
        assert_eq!(error.message, "line 8: there is no key `datastor` here; did you mean `datastore`?");
        let error = from_toml::<VmSpec>(&GOOD.replace("cpus", "cpu")).unwrap_err();
        assert!(error.message.ends_with("did you mean `cpus`?"), "{error}");
    }

    #[test]
    fn limits_that_span_keys_are_held() {
        let spec = |from: &str, to: &str| from_toml::<VmSpec>(&GOOD.replace(from, to)).unwrap();
        assert_eq!(spec("cpus = 2", "cpus = 0").validate().unwrap_err().field, "cpus");
        assert_eq!(spec("1GiB", "1025KiB").validate().unwrap_err().field, "memory");
        assert_eq!(spec("size = \"10GiB\"", "").validate().unwrap_err().field, "disks[0].size");
        let twice = "[[nics]]\nnetwork = \"b\"\nmac = \"52:54:00:12:34:56\"\n[[nics]]";
        assert_eq!(spec("[[nics]]", twice).validate().unwrap_err().field, "nics[1].mac");
    }

    #[test]
    fn rubbish_is_an_error_with_its_line() {
        assert!(from_toml::<VmSpec>("name = \"a\"\ncpus = [").unwrap_err().message.starts_with("line 2: "));
        assert!(from_toml::<VmSpec>(&"#".repeat(LIMIT_BYTES + 1)).is_err());
    }
}
