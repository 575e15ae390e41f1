//! Which signal the group gets next: pure, the only place that decides it.

use std::time::Duration;

use tokio::time::Instant;

/// How long a killed group may take to vanish. SIGKILL works at once unless a process hangs in
/// the kernel (storage that doesn't answer).
pub(super) const KILL_WAIT: Duration = Duration::from_secs(30);

/// What ended the work before its own end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Stopped,
    Deadline,
    TooMuchOutput,
}

/// Where the group is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Working,
    Asked { why: Why, kill_at: Instant },
    Killed { why: Why, gone_by: Instant },
}

/// What can push the group on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Stop,
    Kill,
    Deadline,
    GraceOver,
    TooMuchOutput,
}

/// The signal to send to the whole group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Send {
    Term,
    Kill,
}

impl Phase {
    /// The next phase, and the signal that goes with it. The first reason stays; no phase goes
    /// back, and each signal is sent once.
    pub(super) fn next(self, event: Event, now: Instant, grace: Duration) -> (Self, Option<Send>) {
        let ask = |why| {
            (
                Self::Asked {
                    why,
                    kill_at: later(now, grace),
                },
                Some(Send::Term),
            )
        };
        let kill = |why| {
            (
                Self::Killed {
                    why,
                    gone_by: later(now, KILL_WAIT),
                },
                Some(Send::Kill),
            )
        };
        match (self, event) {
            (Self::Working, Event::Stop) => ask(Why::Stopped),
            (Self::Working, Event::Deadline) => ask(Why::Deadline),
            (Self::Working, Event::Kill) => kill(Why::Stopped),
            (Self::Working, Event::TooMuchOutput) => kill(Why::TooMuchOutput),
            (Self::Asked { why, .. }, Event::Kill | Event::GraceOver) => kill(why),
            (Self::Working, Event::GraceOver)
            | (Self::Asked { .. }, Event::Stop | Event::Deadline | Event::TooMuchOutput)
            | (
                Self::Killed { .. },
                Event::Stop
                | Event::Kill
                | Event::Deadline
                | Event::GraceOver
                | Event::TooMuchOutput,
            ) => (self, None),
        }
    }

    /// Why the group was asked to go, if it was.
    pub(super) fn why(self) -> Option<Why> {
        match self {
            Self::Working => None,
            Self::Asked { why, .. } | Self::Killed { why, .. } => Some(why),
        }
    }

    /// When this phase runs out.
    pub(super) fn until(self, deadline: Instant) -> Instant {
        match self {
            Self::Working => deadline,
            Self::Asked { kill_at, .. } => kill_at,
            Self::Killed { gone_by, .. } => gone_by,
        }
    }
}

/// `now + by`, or the far future where the clock can't count that far.
pub(super) fn later(now: Instant, by: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 24 * 3600);
    now + by.min(FAR)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Stop),
            Just(Event::Kill),
            Just(Event::Deadline),
            Just(Event::GraceOver),
            Just(Event::TooMuchOutput),
        ]
    }

    fn rank(phase: Phase) -> u8 {
        match phase {
            Phase::Working => 0,
            Phase::Asked { .. } => 1,
            Phase::Killed { .. } => 2,
        }
    }

    proptest! {
        #[test]
        fn no_phase_goes_back_and_each_signal_is_sent_once(
            events in prop::collection::vec(event(), 0..12),
        ) {
            let now = Instant::now();
            let mut phase = Phase::Working;
            let mut sent = Vec::new();
            for event in events {
                let (next, send) = phase.next(event, now, Duration::from_secs(1));
                prop_assert!(rank(next) >= rank(phase));
                prop_assert!(phase.why().is_none() || next.why() == phase.why());
                prop_assert_eq!(send.is_some(), rank(next) > rank(phase));
                sent.extend(send);
                phase = next;
            }
            let terms = sent.iter().filter(|send| **send == Send::Term).count();
            prop_assert!(terms <= 1 && sent.len() - terms <= 1);
            prop_assert!(sent.last() != Some(&Send::Term) || rank(phase) == 1);
        }
    }

    #[test]
    fn kill_needs_no_term_before_it() {
        let now = Instant::now();
        let (phase, send) = Phase::Working.next(Event::Kill, now, Duration::from_secs(9));
        assert_eq!((phase.why(), send), (Some(Why::Stopped), Some(Send::Kill)));
    }

    #[test]
    fn a_wait_without_end_still_has_an_end() {
        let now = Instant::now();
        assert!(later(now, Duration::MAX) > now);
    }
}
