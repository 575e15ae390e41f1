//! `virtbus doctor`: looks at the server, the topology, the services and the clock.

use super::{setup::registered_queues, workers};
use crate::{
    args::Common,
    context::Context,
    exit::{Exit, Failure},
    output::{Cell, Output, Tone, span},
};
use serde::Serialize;
use serde_json::json;
use std::time::Duration;
use virtbus_bus::{
    Bus,
    topology::{self, Mode, Wanted},
};
use virtbus_wire::Timestamp;

/// The oldest server that does all that is asked of it: batched direct get, TTL per message,
/// `max_consumers` per stream.
pub(crate) const SERVER_MIN: (u64, u64) = (2, 12);
/// How far a clock may be off.
const CLOCK_MAX: Duration = Duration::from_secs(1);

/// Look for what is wrong with server, streams, services and clock
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    ok: bool,
    text: String,
    /// What to do about it.
    hint: Option<String>,
}

impl Finding {
    fn good(check: &'static str, text: impl Into<String>) -> Self {
        Self {
            check,
            ok: true,
            text: text.into(),
            hint: None,
        }
    }

    fn bad(check: &'static str, text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            check,
            ok: false,
            text: text.into(),
            hint: Some(hint.into()),
        }
    }
}

pub(crate) async fn run(_: &Args, common: &Common, output: Output) -> Result<Exit, Failure> {
    let bus = Context::new(common)?.connect().await?;
    let findings = vec![
        server(&bus),
        streams(&bus).await,
        clock(&bus).await,
        core(&bus).await,
        services(&bus).await,
    ];
    let ok = findings.iter().all(|finding| finding.ok);
    if output.json {
        output.value(&json!({"ok": ok, "findings": findings}))?;
    } else {
        for finding in &findings {
            let (mark, tone) = if finding.ok {
                ("ok", Tone::Good)
            } else {
                ("WRONG", Tone::Bad)
            };
            let cells = [
                Cell::new(mark, tone),
                finding.check.into(),
                finding.text.as_str().into(),
            ];
            output.row(&cells, &[5, 8, 0])?;
            if let Some(hint) = &finding.hint {
                output.text(&format!("       {hint}"))?;
            }
        }
    }
    Ok(if ok { Exit::Done } else { Exit::Failure })
}

fn server(bus: &Bus) -> Finding {
    let version = bus.client().server_info().version;
    let text = format!("nats-server {version}");
    match parse_version(&version) {
        Some(found) if found >= SERVER_MIN => Finding::good("server", text),
        _ => {
            let (major, minor) = SERVER_MIN;
            Finding::bad(
                "server",
                text,
                format!("it must be {major}.{minor} or later"),
            )
        }
    }
}

/// The first two numbers of a version.
pub(crate) fn parse_version(text: &str) -> Option<(u64, u64)> {
    let text = text.trim().trim_start_matches('v');
    let mut numbers = text.split('.').map(|part| {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        part[..digits].parse().ok()
    });
    Some((numbers.next()??, numbers.next()??))
}

async fn streams(bus: &Bus) -> Finding {
    let compared = async {
        let queues = registered_queues(bus).await?;
        let wanted = Wanted {
            replicas: None,
            queues,
        };
        Ok::<_, Failure>(topology::apply(bus.jetstream(), &wanted, Mode::DryRun).await?)
    };
    let report = match compared.await {
        Ok(report) => report,
        Err(failure) => return Finding::bad("streams", failure.message, "nats stream report"),
    };
    let drifted: Vec<String> = report
        .drifted()
        .map(|item| item.asset.to_string())
        .collect();
    if drifted.is_empty() {
        return Finding::good("streams", format!("all {} as wanted", report.items.len()));
    }
    Finding::bad(
        "streams",
        format!("not as wanted: {}", drifted.join(", ")),
        "virtbus setup --dry-run says why, virtbus setup mends it",
    )
}

/// This host's clock against the server's: `not_before` and `expires_at` go by it.
async fn clock(bus: &Bus) -> Finding {
    let before = Timestamp::now();
    let answer = bus.request("$JS.API.STREAM.INFO.KV_jobs", "").await;
    let took = Timestamp::now().since(before);
    let there = answer.ok().and_then(|answer| {
        let info: serde_json::Value = serde_json::from_slice(&answer.payload).ok()?;
        info.get("ts")?.as_str()?.parse::<Timestamp>().ok()
    });
    let Some(there) = there else {
        return Finding::bad("clock", "the server doesn't say its time", "virtbus setup");
    };
    let here = before.after(took / 2);
    let off = here
        .since(there)
        .max(there.since(here))
        .saturating_sub(took / 2);
    let text = format!("{} from the server's", span(off));
    if off <= CLOCK_MAX {
        Finding::good("clock", text)
    } else {
        Finding::bad("clock", text, "this host or the server's needs NTP")
    }
}

async fn core(bus: &Bus) -> Finding {
    match bus.request("$SRV.PING.virtbus", "").await {
        Ok(_) => Finding::good("core", "answers"),
        Err(error) => Finding::bad(
            "core",
            error.to_string(),
            "is virtbus-core running? nats micro ls",
        ),
    }
}

async fn services(bus: &Bus) -> Finding {
    match workers::alive(bus).await {
        Ok(workers) if workers.is_empty() => Finding::bad(
            "workers",
            "none is alive",
            "nothing will run: start a storage service",
        ),
        Ok(workers) => {
            let names: Vec<&str> = workers.keys().map(String::as_str).collect();
            Finding::good("workers", names.join(", "))
        }
        Err(failure) => Finding::bad("workers", failure.message, "virtbus setup"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_compared_by_numbers() {
        assert_eq!(parse_version("v2.15.1"), Some((2, 15)));
        assert_eq!(parse_version("2.9.0-beta.1"), Some((2, 9)));
        assert!(parse_version("2.9.1") < Some(SERVER_MIN));
        assert_eq!(parse_version("latest"), None);
    }
}
