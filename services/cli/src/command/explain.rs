//! `virtbus explain`: asks core why a job is where it is.

use super::control;
use crate::{
    exit::{Exit, Failure},
    jobs,
    output::{Cell, Output},
    screen,
};
use serde_json::{Value, json};
use virtbus_bus::Bus;
use virtbus_wire::control::Operation;

/// Say why a job doesn't run
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The job: its id, at least 8 characters of its beginning or end, or `last`
    id: String,
}

pub(crate) async fn run(args: &Args, bus: &Bus, output: Output) -> Result<Exit, Failure> {
    let id = jobs::find_id(bus, &args.id).await?;
    let request = json!({"id": id});
    let answer = control::ask(bus, Operation::JobsExplain, &request).await?;
    if output.json {
        output.value(&answer)?;
    } else {
        output.fields(&fields(id.as_str(), &answer))?;
    }
    Ok(Exit::Done)
}

fn fields(id: &str, answer: &Value) -> Vec<(&'static str, Cell)> {
    let text = |name: &str| screen::plain(answer.get(name).unwrap_or(&Value::Null));
    let detail = answer.get("detail").and_then(Value::as_object);
    let detail = detail.into_iter().flatten();
    let detail: Vec<String> = detail
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| format!("{name} {}", screen::plain(value)))
        .collect();
    let fields = [
        ("job", id.to_owned()),
        ("state", text("state")),
        ("why", text("why").replace('_', " ")),
        ("detail", detail.join(", ")),
        ("queue", text("queue")),
        ("ahead", text("ahead")),
        ("workers", text("workers")),
        ("eta s", text("eta_s")),
    ];
    let said = fields.into_iter().filter(|(_, text)| !text.is_empty());
    said.map(|(name, text)| (name, text.into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_is_said() {
        let answer = json!({"state": "waiting", "why": "lock", "queue": "storage.p.low",
            "detail": {"resource": "disk.d7", "holder": "job.a", "since": null},
            "ahead": null, "workers": 2, "eta_s": null});
        let fields = fields("j", &answer);
        let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["job", "state", "why", "detail", "queue", "workers"]);
    }
}
