//! Asking the control API: a request, an answer, or an error with its code.

use crate::{
    exit::{Exit, Failure},
    output::Output,
};
use async_nats::client::RequestErrorKind;
use serde::Deserialize;
use serde_json::Value;
use virtbus_bus::Bus;
use virtbus_wire::{JobError, control::Operation};

/// No caller's name has more bytes.
const CALLER_BYTES_MAX: usize = 128;

/// Asks core, or whoever answers for it.
///
/// # Errors
/// When nobody answers, or the answer is an error.
pub(crate) async fn ask(
    bus: &Bus,
    operation: Operation,
    request: &Value,
) -> Result<Value, Failure> {
    let subject = operation.subject();
    let answer = bus.control(operation, request.to_string()).await;
    let answer = answer.map_err(|error| {
        let message = match error.kind() {
            RequestErrorKind::NoResponders => format!("nobody answers to {subject}"),
            RequestErrorKind::TimedOut => format!("no answer in time to {subject}"),
            RequestErrorKind::InvalidSubject
            | RequestErrorKind::MaxPayloadExceeded
            | RequestErrorKind::Other => format!("can't ask {subject}: {error}"),
        };
        Failure::unreachable(message)
            .hint("is the core service running? `virtbus workers` lists who is")
    })?;
    let headers = answer.headers.unwrap_or_default();
    match headers.get("Nats-Service-Error-Code") {
        None => serde_json::from_slice(&answer.payload).map_err(|error| {
            Failure::failed(format!("the answer to {subject} can't be read: {error}"))
        }),
        Some(code) => {
            let said = headers.get("Nats-Service-Error");
            let said = said.map_or("refused", |text| text.as_str());
            Err(refusal(&answer.payload, code.as_str(), said))
        }
    }
}

/// As [`ask`], for what is kept of who it was: the user this program runs as.
///
/// # Errors
/// As [`ask`].
pub(crate) async fn tell(
    bus: &Bus,
    operation: Operation,
    mut request: Value,
) -> Result<Value, Failure> {
    if let Some(by) = caller() {
        request["by"] = by.into();
    }
    ask(bus, operation, &request).await
}

/// As [`tell`], and shows what came of it: the answer itself as JSON, else what `words` make of it.
///
/// # Errors
/// As [`ask`]; when the answer can't be shown.
pub(crate) async fn change(
    bus: &Bus,
    output: Output,
    operation: Operation,
    request: Value,
    words: impl FnOnce(&Value) -> String,
) -> Result<Exit, Failure> {
    let answer = tell(bus, operation, request).await?;
    if output.json {
        output.value(&answer)?;
    } else {
        output.text(&words(&answer))?;
    }
    Ok(Exit::Done)
}

/// Who runs this program, as far as the environment says.
fn caller() -> Option<String> {
    let names = ["USER", "LOGNAME"].into_iter();
    let mut names = names.filter_map(|name| std::env::var(name).ok());
    names.find(|name| !name.is_empty() && name.len() <= CALLER_BYTES_MAX)
}

/// The error of an answer: its body says more than its headers.
fn refusal(body: &[u8], number: &str, said: &str) -> Failure {
    #[derive(Deserialize)]
    struct Body {
        error: JobError,
    }
    if let Ok(Body { error }) = serde_json::from_slice(body) {
        return error.into();
    }
    let exit = match number {
        "400" => Exit::Usage,
        "401" | "403" => Exit::Forbidden,
        "404" => Exit::NotFound,
        "409" => Exit::Conflict,
        "503" => Exit::Unreachable,
        _ => Exit::Failure,
    };
    Failure::new(exit, said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_by_its_body_else_by_its_number() {
        let body =
            br#"{"error":{"code":"pool.not_found","message":"no pool x","retryable":false}}"#;
        let failure = refusal(body, "404", "x");
        assert_eq!(
            (failure.exit, failure.code.as_str()),
            (Exit::NotFound, "pool.not_found")
        );
        assert_eq!(refusal(b"", "409", "taken").exit, Exit::Conflict);
    }
}
