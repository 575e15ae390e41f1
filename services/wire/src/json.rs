//! Reading an object from outside: what is wrong with it is told in words of JSON, with the field.

use serde::de::DeserializeOwned;
use serde_json::{Deserializer, error::Category};

/// What is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// The field at fault; none of an object as a whole.
    pub(crate) field: Option<String>,
    /// Why, for people; without the field.
    pub(crate) message: String,
}

impl Wrong {
    fn whole(message: impl ToString) -> Self {
        Self {
            field: None,
            message: message.to_string(),
        }
    }
}

/// Reads an object. Nothing else will do: a list is no shorter way of writing one.
///
/// # Errors
/// The first thing that is wrong.
pub(crate) fn read<T: DeserializeOwned>(text: &[u8]) -> Result<T, Wrong> {
    if !text.trim_ascii_start().starts_with(b"{") {
        return Err(Wrong::whole("must be a JSON object"));
    }
    let mut json = Deserializer::from_slice(text);
    let object = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        told(&path, error.inner())
    })?;
    json.end().map_err(Wrong::whole)?;
    Ok(object)
}

fn told(path: &str, error: &serde_json::Error) -> Wrong {
    let mut message = error.to_string();
    if error.classify() == Category::Data {
        // The field says it better than where it stands.
        let place = format!(" at line {} column {}", error.line(), error.column());
        let end = message.strip_suffix(&place).map_or(message.len(), str::len);
        message.truncate(end);
    }
    Wrong {
        field: field(path, &message),
        message,
    }
}

/// The field at fault, by the path to it and what was said. The path to one that is missing ends
/// one level above it.
pub(crate) fn field(path: &str, message: &str) -> Option<String> {
    let missing = message.strip_prefix("missing field `");
    let missing = missing.and_then(|rest| rest.strip_suffix('`'));
    match (path, missing) {
        (".", None) => None,
        (".", Some(name)) => Some(name.to_owned()),
        (path, None) => Some(path.to_owned()),
        (path, Some(name)) => Some(format!("{path}.{name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only read")]
    struct Outer {
        name: String,
        inner: Option<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only read")]
    struct Inner {
        size: u8,
    }

    #[test]
    fn what_is_wrong_is_told_with_its_field_and_in_words_of_json() {
        for (text, field, message) in [
            ("", None, "must be a JSON object"),
            ("null", None, "must be a JSON object"),
            (r#" ["x", null]"#, None, "must be a JSON object"),
            ("{}", Some("name"), "missing field `name`"),
            (
                r#"{"name":1}"#,
                Some("name"),
                "invalid type: integer `1`, expected a string",
            ),
            (
                r#"{"name":"x","inner":{}}"#,
                Some("inner.size"),
                "missing field `size`",
            ),
            (
                r#"{"name":"x"} x"#,
                None,
                "trailing characters at line 1 column 14",
            ),
        ] {
            let wrong = read::<Outer>(text.as_bytes()).unwrap_err();
            assert_eq!(
                (wrong.field.as_deref(), wrong.message.as_str()),
                (field, message),
                "{text}"
            );
        }
        read::<Outer>(b"\n {\"name\":\"x\"} ").unwrap();
    }
}
