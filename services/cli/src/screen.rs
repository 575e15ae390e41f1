//! Jobs that are followed, as a person or a program sees them: bars, lines or JSON.

use crate::{
    exit::Failure,
    output::{Output, bytes, span},
    watch::Update,
};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io::{IsTerminal as _, Write as _},
    time::Duration,
};
use virtbus_wire::{JobId, JobState, Record, StateName, row::RowWaiting, state::Progress};

/// Steps of a bar.
const STEPS: u64 = 1_000;
/// Percent between two lines about a job's progress.
const LINE_STEP: f64 = 10.0;
/// How often a bar without news is drawn.
const TICK: Duration = Duration::from_millis(200);
/// The most characters of a bar's text, so that it stays on one line of 120.
const BAR_TEXT_MAX: usize = 80;

/// Where following is shown.
#[derive(Debug)]
pub(crate) struct Screen {
    output: Output,
    mode: Mode,
    tasks: BTreeMap<JobId, String>,
}

#[derive(Debug)]
enum Mode {
    Silent,
    Json,
    /// The last state and percent told of each job.
    Lines(BTreeMap<JobId, (StateName, f64)>),
    Bars(MultiProgress, BTreeMap<JobId, ProgressBar>),
}

impl Screen {
    /// Nothing is shown.
    pub(crate) fn silent(output: Output) -> Self {
        Self::with(output, Mode::Silent)
    }

    /// JSON lines when asked for, bars on a terminal, else lines.
    pub(crate) fn new(output: Output) -> Self {
        let mode = if output.json {
            Mode::Json
        } else if output.terminal && std::io::stderr().is_terminal() {
            Mode::Bars(MultiProgress::new(), BTreeMap::new())
        } else {
            Mode::Lines(BTreeMap::new())
        };
        Self::with(output, mode)
    }

    fn with(output: Output, mode: Mode) -> Self {
        Self {
            output,
            mode,
            tasks: BTreeMap::new(),
        }
    }

    /// Shows what became known.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub(crate) fn show(&mut self, update: &Update) -> Result<(), Failure> {
        if let Update::Record(entry) = update {
            let record = &entry.value;
            self.tasks.insert(record.id.clone(), record.task.clone());
        }
        match &mut self.mode {
            Mode::Silent => Ok(()),
            Mode::Json => self.output.json_line(&to_json(update)),
            Mode::Lines(told) => match line(told, &self.tasks, update) {
                Some(line) => self.output.text(&line),
                None => Ok(()),
            },
            Mode::Bars(all, bars) => {
                draw(all, bars, update);
                Ok(())
            }
        }
    }

    /// Nothing more will be shown.
    pub(crate) fn close(&mut self) {
        if let Mode::Bars(_, bars) = &mut self.mode {
            for bar in bars.values().filter(|bar| !bar.is_finished()) {
                bar.abandon();
            }
        }
    }

    /// Says that the jobs go on without us.
    pub(crate) fn detach(&mut self, ids: &[JobId]) {
        self.close();
        let shown: Vec<&str> = ids.iter().map(JobId::as_str).collect();
        let goes = if ids.len() == 1 {
            "the job goes on"
        } else {
            "the jobs go on"
        };
        let ids = shown.join(" ");
        // Whoever pressed Ctrl-C may have closed everything.
        drop(writeln!(
            std::io::stderr(),
            "\ndetached: {goes}; `virtbus watch {ids}` follows again"
        ));
    }
}

fn to_json(update: &Update) -> Value {
    match update {
        Update::Record(entry) => {
            json!({"event": "job", "seq": entry.revision, "job": entry.value})
        }
        Update::Progress { id, progress } => json!({
            "event": "progress", "id": id,
            "attempt": progress.attempt, "progress": progress.progress,
        }),
        Update::Gone(id) => json!({"event": "gone", "id": id}),
    }
}

fn line(
    told: &mut BTreeMap<JobId, (StateName, f64)>,
    tasks: &BTreeMap<JobId, String>,
    update: &Update,
) -> Option<String> {
    let (id, state, progress, text) = match update {
        Update::Record(entry) => {
            let record = &entry.value;
            let text = describe(record);
            (
                &record.id,
                record.state.name(),
                record.progress.as_ref(),
                text,
            )
        }
        Update::Progress { id, progress } => {
            let text = format!("running{}", tail(&progress.progress));
            (id, StateName::Running, Some(&progress.progress), text)
        }
        Update::Gone(id) => return Some(format!("{id}  gone")),
    };
    let percent = progress.and_then(|progress| progress.percent);
    let percent = percent.unwrap_or(0.0);
    if let Some((last_state, last_percent)) = told.get(id)
        && *last_state == state
        && percent < last_percent + LINE_STEP
    {
        return None;
    }
    told.insert(id.clone(), (state, percent));
    let task = tasks.get(id).map_or("", String::as_str);
    Some(format!("{id}  {task}  {text}"))
}

fn draw(all: &MultiProgress, bars: &mut BTreeMap<JobId, ProgressBar>, update: &Update) {
    match update {
        Update::Record(entry) => {
            let record = &entry.value;
            let bar = bars
                .entry(record.id.clone())
                .or_insert_with(|| all.add(new_bar(record)));
            let done = matches!(record.state, JobState::Succeeded(..));
            let percent = record.progress.as_ref().and_then(|p| p.percent);
            bar.set_position(if done {
                STEPS
            } else {
                steps(percent.unwrap_or(0.0))
            });
            let text = cut(describe(record));
            if record.state.name().is_final() {
                bar.abandon_with_message(text);
            } else {
                bar.set_message(text);
            }
        }
        Update::Progress { id, progress } => {
            let Some(bar) = bars.get(id) else { return };
            let progress = &progress.progress;
            if let Some(percent) = progress.percent {
                // Records and progress come in two lanes: a bar never goes back.
                bar.set_position(bar.position().max(steps(percent)));
            }
            bar.set_message(cut(format!("running{}", tail(progress))));
        }
        Update::Gone(id) => {
            if let Some(bar) = bars.get(id) {
                bar.abandon_with_message("gone");
            }
        }
    }
}

fn new_bar(record: &Record) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix}  [{bar:24}] {msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(STEPS).with_style(style.progress_chars("=> "));
    bar.set_prefix(format!("{}  {}", short(&record.id), record.task));
    bar.enable_steady_tick(TICK);
    bar
}

/// The last characters: ids made in the same hour begin alike.
fn short(id: &JobId) -> &str {
    const SHORT: usize = 8;
    let text = id.as_str();
    if text.len() > 2 * SHORT {
        &text[text.len() - SHORT..]
    } else {
        text
    }
}

fn steps(percent: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to 0..=STEPS first"
    )]
    let steps = (percent.clamp(0.0, 100.0) * 10.0) as u64;
    steps
}

fn cut(text: String) -> String {
    if text.chars().count() <= BAR_TEXT_MAX {
        return text;
    }
    let kept: String = text.chars().take(BAR_TEXT_MAX - 1).collect();
    kept + "…"
}

/// A job's state in one line.
pub(crate) fn describe(record: &Record) -> String {
    let took = |end: virtbus_wire::Timestamp| {
        let start = record.started_at.unwrap_or(record.submitted_at);
        span(end.since(start))
    };
    match &record.state {
        JobState::Queued => format!("queued in {}", record.queue),
        JobState::Waiting(waiting) => wait_text(&waiting.into()),
        JobState::Running(_) => {
            format!(
                "running{}",
                record.progress.as_ref().map(tail).unwrap_or_default()
            )
        }
        JobState::Cancelling(_) => "cancelling".to_owned(),
        JobState::Succeeded(ended, result) => {
            let fields = result
                .iter()
                .map(|(name, value)| format!(", {name} {}", plain(value)));
            format!(
                "succeeded in {}{}",
                took(ended.at),
                fields.collect::<String>()
            )
        }
        JobState::Failed(_, error) => format!("failed: {error}"),
        JobState::Cancelled(_, None) => "cancelled".to_owned(),
        JobState::Cancelled(_, Some(error)) => format!("cancelled: {error}"),
    }
}

/// Why a job waits; a reason that isn't known is shown as it is.
pub(crate) fn wait_text(waiting: &RowWaiting) -> String {
    let detail = waiting.detail.iter().filter(|(_, value)| !value.is_null());
    let detail: Vec<String> = detail
        .map(|(name, value)| format!("{name} {}", plain(value)))
        .collect();
    format!("waiting on {} ({})", waiting.on, detail.join(", "))
}

/// What follows `running`: percent, step, rate, time to go.
fn tail(progress: &Progress) -> String {
    let mut text = String::new();
    let mut add = |part: String| {
        text.push_str("  ");
        text.push_str(&part);
    };
    if let Some(percent) = progress.percent {
        add(format!("{percent:.1}%"));
    }
    if let Some(phase) = &progress.phase {
        add(phase.clone());
    }
    if let Some(rate) = progress.bytes_per_s {
        add(format!("{}/s", bytes(rate)));
    }
    match progress.eta_s {
        Some(0) => add("less than 1s to go".to_owned()),
        Some(left) => add(format!("{} to go", span(Duration::from_secs(left)))),
        None => {}
    }
    text
}

/// A value as text: nothing for null, no quotes around text.
pub(crate) fn plain(value: &Value) -> String {
    if value.is_null() {
        return String::new();
    }
    let text = value.as_str();
    text.map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtbus_bus::Entry;
    use virtbus_wire::{Envelope, JobError, Timestamp, record::Address, state::Ended};

    fn record(state: JobState) -> Record {
        let job = Envelope::decode(br#"{"task":"convert"}"#).unwrap();
        let queue = Address::from("storage.default.low".to_owned());
        let at: Timestamp = "2026-11-21T16:30:00Z".parse().unwrap();
        let mut record = Record::new("j1".parse().unwrap(), job, queue, at);
        record.state = state;
        record
    }

    fn ended(seconds: u64) -> Ended {
        let at: Timestamp = "2026-11-21T16:30:00Z".parse().unwrap();
        Ended {
            at: at.after(Duration::from_secs(seconds)),
            by: None,
        }
    }

    #[test]
    fn the_end_of_a_job_fits_in_a_line() {
        let result = json!({"virtual_size": 1024}).as_object().unwrap().clone();
        let done = record(JobState::Succeeded(ended(12), result));
        assert_eq!(describe(&done), "succeeded in 12s, virtual_size 1024");
        let error = JobError::new(virtbus_wire::Code::DiskBusy, "d1 is being made");
        let failed = record(JobState::Failed(ended(1), error));
        assert_eq!(describe(&failed), "failed: disk.busy: d1 is being made");
    }

    #[test]
    fn what_runs_has_some_time_to_go() {
        let at = |seconds: u64| {
            let progress = json!({"percent": 90.0, "attempt": 1, "eta_s": seconds});
            tail(&serde_json::from_value(progress).unwrap())
        };
        assert_eq!(at(0), "  90.0%  less than 1s to go");
        assert_eq!(at(2), "  90.0%  2.0s to go");
    }

    #[test]
    fn a_line_is_said_per_state_and_per_ten_percent() {
        let mut told = BTreeMap::new();
        let tasks = BTreeMap::from([("j1".parse().unwrap(), "convert".to_owned())]);
        let mut say = |update: Update| line(&mut told, &tasks, &update);
        let at = |state| {
            Update::Record(Box::new(Entry {
                value: record(state),
                revision: 1,
                written_at: Timestamp::now(),
            }))
        };
        let percent = |percent: f64| Update::Progress {
            id: "j1".parse().unwrap(),
            progress: serde_json::from_value(json!({"percent": percent, "attempt": 1})).unwrap(),
        };
        let queued = say(at(JobState::Queued)).unwrap();
        assert_eq!(queued, "j1  convert  queued in storage.default.low");
        assert!(say(at(JobState::Queued)).is_none());
        assert!(say(percent(0.0)).unwrap().contains("running  0.0%"));
        assert!(say(percent(9.0)).is_none());
        assert!(say(percent(10.5)).is_some());
    }
}
