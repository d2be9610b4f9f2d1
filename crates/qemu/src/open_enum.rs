//! Enums of another program's words: what is known has a name, what is not is kept as it came.

/// Declares an enum that reads and writes as a string and keeps unknown words in `Other`.
macro_rules! open_enum {
    ($(#[$doc:meta])* pub enum $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(from = "String", into = "String")]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
            /// A word that this crate does not know.
            Other(String),
        }

        impl $name {
            /// The word as QEMU writes it.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $text,)+
                    Self::Other(text) => text,
                }
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                match text.as_str() {
                    $($text => Self::$variant,)+
                    _ => Self::Other(text),
                }
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.as_str().to_owned()
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

pub(crate) use open_enum;

#[cfg(test)]
mod tests {
    open_enum! {
        /// Two known words.
        pub enum Word {
            /// One.
            One = "one",
            /// Two.
            Two = "two",
        }
    }

    #[test]
    fn an_unknown_word_is_kept_and_written_back() {
        let words: Vec<Word> = serde_json::from_str(r#"["two", "three"]"#).unwrap();
        assert_eq!(words, [Word::Two, Word::Other("three".into())]);
        assert_eq!(serde_json::to_string(&words).unwrap(), r#"["two","three"]"#);
        assert_eq!(Word::One.to_string(), "one");
    }
}
