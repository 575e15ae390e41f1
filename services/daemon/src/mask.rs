//! What of the settings must not be seen when they are printed.

/// What is printed in place of a secret.
const MASK: &str = "********";

/// Hides values named like secrets, and passwords within addresses. Paths to files with secrets
/// stay: they say where to look.
pub(crate) fn mask(tree: &mut serde_json::Value) {
    use serde_json::Value as Json;
    match tree {
        Json::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            for (key, value) in fields {
                if is_secret(key) {
                    *value = Json::from(MASK);
                } else {
                    mask(value);
                }
            }
        }
        Json::Array(items) => items.iter_mut().for_each(mask),
        Json::String(text) => *text = mask_addresses(text),
        Json::Null | Json::Bool(_) | Json::Number(_) => {}
    }
}

fn is_secret(key: &str) -> bool {
    let words = ["password", "secret", "token", "key"];
    words
        .iter()
        .any(|word| key == *word || key.ends_with(&format!("_{word}")))
}

fn mask_addresses(text: &str) -> String {
    let masked = text.split(',').map(|address| {
        let Some((scheme, rest)) = address.split_once("://") else {
            return address.to_owned();
        };
        let end = rest.find('/').unwrap_or(rest.len());
        match rest[..end].rfind('@') {
            Some(at) => format!("{scheme}://{MASK}{}", &rest[at..]),
            None => address.to_owned(),
        }
    });
    masked.collect::<Vec<_>>().join(",")
}
