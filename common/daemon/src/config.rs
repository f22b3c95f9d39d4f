//! Configuration files: TOML, every key documented and defaulted, unknown keys refused.

use ember_types::config::Documented;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// A configuration that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("configuration {path}: {error}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It isn't TOML, has an unknown key, or a value of the wrong kind.
    #[error(
        "configuration {path}: {error}\n`ember config show --defaults` prints every key with its default"
    )]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What and where.
        error: String,
    },
}

/// Reads a configuration; a file that isn't there gives the defaults if `optional`.
pub fn load_config<T: serde::de::DeserializeOwned + Default>(
    path: &Path,
    optional: bool,
) -> Result<T, ConfigError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if optional && error.kind() == std::io::ErrorKind::NotFound => return Ok(T::default()),
        Err(error) => return Err(ConfigError::Io { path: path.to_owned(), error }),
    };
    toml::from_str(&text)
        .map_err(|error| ConfigError::Malformed { path: path.to_owned(), error: error.to_string() })
}

/// A group of settings as commented TOML under `[section]`, with their defaults.
pub fn show_defaults<T: Documented>(section: &str) -> String {
    let mut out = String::new();
    comment(T::ABOUT, &mut out);
    let _ = writeln!(out, "[{section}]");
    let defaults = toml::Table::try_from(T::default()).unwrap_or_default();
    for (field, doc) in T::FIELDS {
        comment(doc, &mut out);
        match defaults.get(*field) {
            Some(value) => {
                let _ = writeln!(out, "{field} = {value}");
            }
            None => {
                let _ = writeln!(out, "# {field} is unset");
            }
        }
    }
    out
}

fn comment(text: &str, out: &mut String) {
    for line in text.lines() {
        let _ = writeln!(out, "# {}", line.trim());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    ember_types::config! {
        /// Settings of a test.
        pub struct Example {
            /// How often, in milliseconds.
            pub period_ms: u64 = 500,
            /// Where.
            pub addresses: Vec<String> = vec!["127.0.0.1:1".into()],
            /// A limit, if any.
            pub limit: Option<u32> = None,
        }
    }

    #[test]
    fn shown_defaults_load_again() {
        let text = show_defaults::<Example>("example");
        assert!(text.contains("# How often, in milliseconds.\nperiod_ms = 500\n"), "{text}");
        assert!(text.contains("# limit is unset"));
        let mut table: toml::Table = toml::from_str(&text).unwrap();
        let section = table.remove("example").unwrap();
        assert_eq!(section.try_into::<Example>().unwrap(), Example::default());
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let dir = std::env::temp_dir().join(format!("ember-config-{}", std::process::id()));
        std::fs::write(&dir, "perod_ms = 5\n").unwrap();
        let error = load_config::<Example>(&dir, false).unwrap_err().to_string();
        std::fs::remove_file(&dir).unwrap();
        assert!(error.contains("perod_ms") && error.contains("line 1"), "{error}");
        assert_eq!(load_config::<Example>(&dir, true).unwrap(), Example::default());
        assert!(load_config::<Example>(&dir, false).is_err());
    }
}
