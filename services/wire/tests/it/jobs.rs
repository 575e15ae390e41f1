//! Jobs and events to test with.

use proptest::prelude::*;
use serde_json::{Map, Value};
use std::time::Duration;
use virtbus_wire::{
    Code, Envelope, Event, JobError, JobId, Record, Timestamp,
    protocol::lock::Mode,
    state::{Cancel, Owner, Phase, Progress, WaitReason},
};

pub(crate) fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(1_795_000_000_000).after(Duration::from_secs(seconds))
}

pub(crate) fn owner(number: u128) -> Owner {
    let worker = format!("st-{number}").parse().unwrap();
    Owner {
        worker,
        boot: uuid_of(number),
    }
}

fn uuid_of(number: u128) -> virtbus_wire::BootId {
    virtbus_wire::BootId::from_u128(number)
}

pub(crate) fn queued() -> Record {
    let job = Envelope::decode(br#"{"id":"j1","task":"ping"}"#).unwrap();
    let queue: virtbus_wire::Queue = "storage.p.low".parse().unwrap();
    Record::new("j1".parse().unwrap(), job, queue.into(), at(0))
}

pub(crate) fn claim(number: u128, begin: bool) -> Event {
    Event::Claim {
        owner: owner(number),
        seq: 7,
        begin,
    }
}

pub(crate) fn cancel() -> Event {
    Event::Cancel(Cancel {
        by: Some("alice".to_owned()),
        at: at(1),
        force: false,
        reason: Some("wrong lesson".to_owned()),
    })
}

pub(crate) fn after(record: &Record, events: impl IntoIterator<Item = Event>) -> Record {
    events.into_iter().fold(record.clone(), |record, event| {
        let name = format!("{event:?}");
        record
            .apply(event, at(2))
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    })
}

pub(crate) fn job(name: &str) -> JobId {
    name.parse().unwrap()
}

pub(crate) fn any_mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Exclusive), Just(Mode::Shared)]
}

pub(crate) fn any_event() -> impl Strategy<Value = Event> {
    let error = || {
        prop::sample::select(Code::ALL.to_vec()).prop_map(|code| JobError::new(code, "it broke"))
    };
    let phase = prop::sample::select(vec![Phase::Clean, Phase::Locks, Phase::Work, Phase::Commit]);
    let wait = || {
        let time =
            (0..1000u64, prop::option::of(error())).prop_map(|(until, error)| WaitReason::Time {
                until: at(until),
                error,
            });
        let lock = Just(WaitReason::Lock {
            resource: "disk.d1".to_owned(),
            holder: Some("job.j2".to_owned()),
            since: Some(at(0)),
        });
        prop_oneof![time, lock]
    };
    let result = || {
        Just(Map::from_iter([(
            "virtual_size".to_owned(),
            Value::from(1),
        )]))
    };
    prop_oneof![
        (0..3u128, any::<bool>()).prop_map(|(number, begin)| claim(number, begin)),
        phase.prop_map(Event::Enter),
        (0.0..=100.0f64).prop_map(|p| Event::Progress(Progress {
            percent: Some(p),
            ..Progress::default()
        })),
        (wait(), any::<bool>(), prop::option::of(0..9u64))
            .prop_map(|(on, refund, ticket)| Event::Park { on, refund, ticket }),
        wait().prop_map(Event::Wait),
        any::<bool>().prop_map(|round| Event::Publish { round }),
        Just(Event::Move("storage.p.high".parse().unwrap())),
        Just(cancel()),
        result().prop_map(Event::Succeed),
        result().prop_map(Event::Recover),
        error().prop_map(Event::Fail),
        Just(Event::GiveUp),
        error().prop_map(Event::Drop),
        Just(Event::Retry),
    ]
}
