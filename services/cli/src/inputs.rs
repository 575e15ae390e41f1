//! What people type: parameters, times, labels, dependencies.

use crate::exit::Failure;
use serde_json::{Map, Value, json};
use std::{io::Read as _, path::Path, time::Duration};
use virtbus_wire::{JobId, StateName, Timestamp, span::Span};

/// The largest job that is read from a file, in bytes.
const JOB_BYTES_MAX: u64 = 1 << 20;

/// A parameter `name=value`. The value is JSON where it reads as JSON, else text; quotes make a
/// number text (`disk="12"`). Dots lead into objects (`qcow2.cluster_size=64KiB`).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Param {
    path: Vec<String>,
    value: Value,
}

/// Reads `name=value`.
///
/// # Errors
/// What is wrong with it, for people.
pub(crate) fn param(text: &str) -> Result<Param, String> {
    let (name, value) = pair(text)?;
    let path: Vec<String> = name.split('.').map(str::to_owned).collect();
    if path.iter().any(String::is_empty) {
        return Err(format!("{name:?} is no parameter's name"));
    }
    let value = serde_json::from_str(&value).unwrap_or(Value::String(value));
    Ok(Param { path, value })
}

/// Puts parameters into an object; a later one replaces an earlier one.
///
/// # Errors
/// When a dotted name leads into something that is no object.
pub(crate) fn insert_params(into: &mut Map<String, Value>, params: &[Param]) -> Result<(), String> {
    for Param { path, value } in params {
        let mut place = &mut *into;
        let (last, parents) = path.split_last().ok_or("a parameter without a name")?;
        for name in parents {
            let inner = place
                .entry(name)
                .or_insert_with(|| Value::Object(Map::new()));
            place = inner
                .as_object_mut()
                .ok_or_else(|| format!("{name} is no object: nothing can be put into it"))?;
        }
        place.insert(last.clone(), value.clone());
    }
    Ok(())
}

/// Reads `name=text`.
///
/// # Errors
/// When there is no `=`, or nothing before it.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("must be NAME=VALUE".to_owned()),
    }
}

/// A job to come after, as it stands in a job: `ID`, or `ID:failed,cancelled`.
///
/// # Errors
/// What is wrong with it, for people.
pub(crate) fn dependency(text: &str) -> Result<Value, String> {
    let (id, on) = text.split_once(':').unwrap_or((text, "succeeded"));
    let job: JobId = id.parse().map_err(|error| format!("{error}"))?;
    let states: Result<Vec<StateName>, String> = on.split(',').map(state).collect();
    let states = states?;
    if let Some(state) = states.iter().find(|state| !state.is_final()) {
        return Err(format!("{state} is no final state"));
    }
    Ok(json!({"job": job, "on": states}))
}

/// A state's name.
///
/// # Errors
/// When it's none.
pub(crate) fn state(text: &str) -> Result<StateName, String> {
    serde_json::from_value(Value::from(text)).map_err(|_| format!("{text:?} is no state"))
}

/// A length of time such as `90s`; a bare number counts seconds.
///
/// # Errors
/// When it's none.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let span: Result<Span, _> = text.parse();
    span.map(Span::duration).map_err(|error| error.to_string())
}

/// A moment to come: RFC 3339, or from now (`10m`).
///
/// # Errors
/// When it's neither.
pub(crate) fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(from_now) = duration(text) {
        return Ok(Timestamp::now().after(from_now));
    }
    text.parse().map_err(|_| {
        "is neither a length of time (10m) nor a time (2026-11-21T16:30:00Z)".to_owned()
    })
}

/// A moment that was: RFC 3339, or ago (`2h`).
///
/// # Errors
/// When it's neither.
pub(crate) fn past(text: &str) -> Result<Timestamp, String> {
    if let Ok(ago) = duration(text) {
        let millis = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
        let now = Timestamp::now().as_millis();
        return Ok(Timestamp::from_millis(now.saturating_sub(millis)));
    }
    moment(text)
}

/// The job of a file, `-` for standard input.
///
/// # Errors
/// When it can't be read, or holds no JSON object.
pub(crate) fn job(path: &Path) -> Result<Map<String, Value>, Failure> {
    let shown = path.display();
    let unreadable =
        |error: std::io::Error| Failure::failed(format!("can't read {shown}: {error}"));
    let mut text = Vec::new();
    let limit = JOB_BYTES_MAX + 1;
    let read = if path.as_os_str() == "-" {
        std::io::stdin().lock().take(limit).read_to_end(&mut text)
    } else {
        let file = std::fs::File::open(path).map_err(unreadable)?;
        file.take(limit).read_to_end(&mut text)
    };
    read.map_err(unreadable)?;
    if text.len() as u64 > JOB_BYTES_MAX {
        return Err(Failure::usage(format!("{shown} is more than a job can be")));
    }
    serde_json::from_slice(&text)
        .map_err(|error| Failure::usage(format!("{shown} is no job: {error}")))
}

/// Puts fields into an object of the job that may be there already.
///
/// # Errors
/// When something else is there.
pub(crate) fn merge(
    job: &mut Map<String, Value>,
    name: &str,
    fields: Map<String, Value>,
) -> Result<(), Failure> {
    let place = job.entry(name).or_insert_with(|| json!({}));
    let place = place
        .as_object_mut()
        .ok_or_else(|| Failure::usage(format!("{name}: is no object in the file")))?;
    place.extend(fields);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(texts: &[&str]) -> Value {
        let read: Vec<Param> = texts.iter().map(|text| param(text).expect(text)).collect();
        let mut map = Map::new();
        insert_params(&mut map, &read).unwrap();
        Value::Object(map)
    }

    #[test]
    fn a_value_is_json_where_it_reads_as_json_else_text() {
        let read = params(&[
            "disk=web1",
            "size=10GiB",
            "bytes=1024",
            "shrink=true",
            "backing=null",
            "twelve=\"12\"",
            "list=[1,2]",
            "url=a=b",
            "broken={x",
            "empty=",
        ]);
        assert_eq!(
            read,
            json!({"disk": "web1", "size": "10GiB", "bytes": 1024, "shrink": true,
                   "backing": null, "twelve": "12", "list": [1, 2], "url": "a=b",
                   "broken": "{x", "empty": ""})
        );
    }

    #[test]
    fn dots_lead_into_objects() {
        let read = params(&["qcow2.cluster_size=64KiB", "qcow2.compat=1.1"]);
        assert_eq!(
            read,
            json!({"qcow2": {"cluster_size": "64KiB", "compat": 1.1}})
        );
        let mut map = Map::new();
        let into_text = [param("a=x").unwrap(), param("a.b=1").unwrap()];
        assert!(insert_params(&mut map, &into_text).is_err());
        for wrong in ["", "x", "=1", "a..b=1"] {
            assert!(param(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_dependency_names_final_states_only() {
        assert_eq!(
            dependency("a:failed,cancelled").unwrap(),
            json!({"job": "a", "on": ["failed", "cancelled"]})
        );
        assert_eq!(dependency("a").unwrap()["on"], json!(["succeeded"]));
        for wrong in ["a:running", "a:", "../x", "a:gone"] {
            assert!(dependency(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn times_are_absolute_or_relative() {
        assert_eq!(duration("90").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("2h").unwrap(), Duration::from_secs(7_200));
        assert!(moment("10m").unwrap() > Timestamp::now());
        assert!(past("10m").unwrap() < Timestamp::now());
        assert_eq!(
            moment("2026-11-21T16:30:00Z").unwrap().to_string(),
            "2026-11-21T16:30:00.000Z"
        );
        assert!(moment("soon").is_err());
    }
}
