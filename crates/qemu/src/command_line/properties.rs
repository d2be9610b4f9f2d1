//! JSON objects whose keys keep their order, for QEMU's `-object`, `-blockdev`, `-device` and `-netdev`, and for
//! the QMP commands that take the same.

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;

/// The properties of one object, node, device or netdev.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Properties(Vec<(&'static str, Property)>);

#[derive(Debug, Clone, PartialEq)]
enum Property {
    Value(Value),
    Properties(Properties),
}

impl Properties {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// These and one more.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.0.push((name, Property::Value(value.into())));
        self
    }

    /// These and one more, if it has a value.
    #[must_use]
    pub fn with_some(self, name: &'static str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// These and one more that has properties of its own.
    #[must_use]
    pub fn with_properties(mut self, name: &'static str, properties: Properties) -> Self {
        self.0.push((name, Property::Properties(properties)));
        self
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings, numbers and booleans under string keys are JSON")
    }
}

impl Serialize for Properties {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, property) in &self.0 {
            match property {
                Property::Value(value) => map.serialize_entry(name, value)?,
                Property::Properties(properties) => map.serialize_entry(name, properties)?,
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_their_order_and_values_are_escaped() {
        let properties = Properties::new()
            .with("z", "a,b\"c")
            .with_some("none", None::<bool>)
            .with_properties("inner", Properties::new().with("y", 1).with("a", true));
        assert_eq!(properties.to_json(), r#"{"z":"a,b\"c","inner":{"y":1,"a":true}}"#);
    }
}
