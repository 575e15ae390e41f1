//! The table of who may change the state: each state, each event.

use crate::jobs::{after, at, cancel, claim, owner, queued};
use serde_json::Map;
use std::collections::BTreeSet;
use virtbus_wire::{
    Code, Event, JobError, Record, StateName,
    state::{Cancel, Phase, Progress, WaitReason},
};

/// The states: `q` queued, `w` waiting, `r` running before its work, `R` at its work, `C` from the
/// fence on, `x` cancelling; the final ones `S` succeeded, `F` failed, `X` cancelled.
///
/// In each field the state after the event, then what changes of the generation (`g`), the claims
/// (`c`), the attempts (`a`), the tries that are left (`t`), the rounds (`n`) and the claims lost
/// in a row before their work (`l`); `@` is another queue, `-` not allowed.
const TABLE: &str = "
                 | q       | w     | r       | R       | C       | x       | S       | F       | X
claim            | r c+1   | -     | r c+1 l+1 | r c+1   | r c+1   | x c+1   | -       | -       | -
claim here       | r c+1 @ | -     | r c+1 l+1 @ | r c+1 @ | r c+1 @ | x c+1 @ | -       | -       | -
enter clean      | -       | -     | -       | -       | -       | -       | -       | -       | -
enter locks      | -       | -     | r       | -       | -       | -       | -       | -       | -
enter work       | -       | -     | R a+1 t-1 l-1 | -     | -       | -       | -       | -       | -
enter commit     | -       | -     | C l-1   | C       | -       | -       | -       | -       | -
progress         | -       | -     | r       | R       | C       | -       | -       | -       | -
park             | -       | -     | w t-1 l-1 | w       | w       | -       | -       | -       | -
park, given back | -       | -     | w l-1   | w t+1   | w t+1   | -       | -       | -       | -
wait             | w       | w     | -       | -       | -       | -       | -       | -       | -
publish          | q g+1   | q g+1 | r g+1   | R g+1   | C g+1   | x g+1   | -       | -       | -
publish, a round | q g+1 n+1 | q g+1 | r g+1 | R g+1   | C g+1   | x g+1   | -       | -       | -
move             | q g+1 @ | w @   | -       | -       | -       | -       | -       | -       | -
cancel           | X       | X     | x       | x       | -       | -       | -       | -       | -
cancel by force  | X       | X     | x       | x       | -       | x       | -       | -       | -
succeed          | -       | -     | -       | S       | S       | -       | -       | -       | -
recover          | -       | -     | S       | S       | S       | S       | -       | -       | -
fail             | F       | F     | F       | F       | F       | F       | -       | -       | -
give up          | -       | -     | -       | -       | -       | X       | -       | -       | -
drop             | X       | X     | -       | -       | -       | -       | -       | -       | -
settle           | S       | S     | S       | S       | S       | -       | -       | -       | -
rehome           | q g+1 @ | q g+1 @ | q g+1 l-1 @ | q g+1 @ | q g+1 @ | -   | -       | -       | -
retry            | -       | -     | -       | -       | -       | -       | q g+1 t+2 | q g+1 t+2 | q g+1 t+2
";

fn error() -> JobError {
    JobError::new(Code::ToolFailed, "it broke")
}

fn time() -> WaitReason {
    WaitReason::Time {
        until: at(9),
        error: None,
    }
}

fn park(refund: bool) -> Event {
    Event::Park {
        on: time(),
        refund,
        ticket: None,
    }
}

/// A job in each state, that was tried and parked before.
fn jobs() -> Vec<Record> {
    let waiting = after(&queued(), [claim(1, true), park(false)]);
    let again = after(&waiting, [Event::Publish { round: false }]);
    // The worker before was lost before its work.
    let claimed = after(&again, [claim(4, false), claim(2, false)]);
    let working = after(&claimed, [Event::Enter(Phase::Work)]);
    let committing = after(&working, [Event::Enter(Phase::Commit)]);
    let cancelling = after(&working, [cancel()]);
    let succeeded = after(&working, [Event::Succeed(Map::new())]);
    let failed = after(&working, [Event::Fail(error())]);
    let cancelled = after(&cancelling, [Event::GiveUp]);
    vec![
        again, waiting, claimed, working, committing, cancelling, succeeded, failed, cancelled,
    ]
}

fn events() -> Vec<Event> {
    let Event::Cancel(gentle) = cancel() else {
        unreachable!("it is a cancel")
    };
    let here = Event::ClaimHere {
        owner: owner(3),
        seq: 9,
        queue: "hypervisor.hv-1.low".parse().unwrap(),
    };
    let phases = [Phase::Clean, Phase::Locks, Phase::Work, Phase::Commit];
    let mut events = vec![claim(3, false), here];
    events.extend(phases.map(Event::Enter));
    events.extend([
        Event::Progress(Progress::default()),
        park(false),
        park(true),
        Event::Wait(time()),
        Event::Publish { round: false },
        Event::Publish { round: true },
        Event::Move("storage.p.high".parse().unwrap()),
        cancel(),
        Event::Cancel(Cancel {
            force: true,
            ..gentle
        }),
        Event::Succeed(Map::new()),
        Event::Recover(Map::new()),
        Event::Fail(error()),
        Event::GiveUp,
        Event::Drop(error()),
        Event::Settle(Map::new()),
        Event::Rehome("hypervisor.p.low".parse().unwrap()),
        Event::Retry,
    ]);
    events
}

/// The row of an event: one that's new has none, and doesn't compile.
fn row(event: &Event) -> &'static str {
    match event {
        Event::Claim { .. } => "claim",
        Event::ClaimHere { .. } => "claim here",
        Event::Enter(Phase::Clean) => "enter clean",
        Event::Enter(Phase::Locks) => "enter locks",
        Event::Enter(Phase::Work) => "enter work",
        Event::Enter(Phase::Commit) => "enter commit",
        Event::Progress(_) => "progress",
        Event::Park { refund: false, .. } => "park",
        Event::Park { refund: true, .. } => "park, given back",
        Event::Wait(_) => "wait",
        Event::Publish { round: false } => "publish",
        Event::Publish { round: true } => "publish, a round",
        Event::Move(_) => "move",
        Event::Cancel(Cancel { force: false, .. }) => "cancel",
        Event::Cancel(Cancel { force: true, .. }) => "cancel by force",
        Event::Succeed(_) => "succeed",
        Event::Recover(_) => "recover",
        Event::Fail(_) => "fail",
        Event::GiveUp => "give up",
        Event::Drop(_) => "drop",
        Event::Settle(_) => "settle",
        Event::Rehome(_) => "rehome",
        Event::Retry => "retry",
    }
}

fn letter(job: &Record) -> &'static str {
    let phase = job.state.hold().map(|hold| hold.phase);
    match job.state.name() {
        StateName::Queued => "q",
        StateName::Waiting => "w",
        StateName::Running if phase == Some(Phase::Commit) => "C",
        StateName::Running if phase == Some(Phase::Work) => "R",
        StateName::Running => "r",
        StateName::Cancelling => "x",
        StateName::Succeeded => "S",
        StateName::Failed => "F",
        StateName::Cancelled => "X",
    }
}

/// What an event makes of a job, in the words of the table.
fn outcome(job: &Record, event: Event) -> String {
    let Ok(next) = job.apply(event, at(3)) else {
        return "-".to_owned();
    };
    let mut words = vec![letter(&next).to_owned()];
    for (name, before, now) in [
        ("g", job.generation, next.generation),
        ("c", job.claim, next.claim),
        ("a", job.attempt.into(), next.attempt.into()),
        ("t", job.tries_left.into(), next.tries_left.into()),
        ("n", job.rounds.into(), next.rounds.into()),
        ("l", job.lost.into(), next.lost.into()),
    ] {
        let change = now.cast_signed() - before.cast_signed();
        if change != 0 {
            words.push(format!("{name}{change:+}"));
        }
    }
    if next.queue != job.queue {
        words.push("@".to_owned());
    }
    words.join(" ")
}

#[test]
fn each_state_allows_the_events_of_the_table_and_changes_as_it_says() {
    let mut rows = TABLE.trim().lines().map(|line| {
        let fields: Vec<&str> = line.split('|').map(str::trim).collect();
        (fields[0], fields[1..].to_vec())
    });
    let jobs = jobs();
    let (_, columns) = rows.next().unwrap();
    assert_eq!(jobs.iter().map(letter).collect::<Vec<_>>(), columns);
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for (name, expected) in rows {
        let mut of_row = events().into_iter().filter(|event| row(event) == name);
        let event = of_row
            .next()
            .unwrap_or_else(|| panic!("no event is {name}"));
        let found: Vec<String> = jobs.iter().map(|job| outcome(job, event.clone())).collect();
        assert_eq!(found, expected, "{name}");
        seen.insert(name);
    }
    let all: BTreeSet<&str> = events().iter().map(row).collect();
    assert_eq!(seen, all, "rows and events");
}
