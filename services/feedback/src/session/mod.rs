//! One websocket, as a state machine: what comes in, and what is to be done about it. Pure: the
//! time is given, nothing is awaited; [`crate::socket`] does the acting.
//!
//! ```text
//!  (connected) --hello, token good--> joining --place--> live --close--> (closed)
//!       |                                                 |  ^
//!       +-- 5 s, bad frame, bad token --> (closed)        +--+ sub, unsub, cmd, auth, ping
//! ```
//! A client holds exactly the rows that match: it puts each row in the place of an older one and
//! drops what is in `left`. So a subscription is first filled from the view and then told what
//! changed since that point; while one is being filled, changes wait in the mailbox.

pub(crate) mod frames;
mod live;
mod subscription;

use crate::{
    sight::Sight,
    view::{From, Load, Place, TooMany, Waiting},
};
use axum::extract::ws::Utf8Bytes;
use live::Live;
use std::time::Duration;
use subscription::Subscription;
use virtbus_daemon::auth::{TokenError, ends_at};
use virtbus_wire::{
    Timestamp,
    auth::Claims,
    frame::{
        ClientFrame, Close, Command, Cursor, Filter, Hello, Limits, Reply, ServerFrame, VERSION,
        Welcome, Who, decode_client,
    },
};

/// The most bytes of a client's frame.
pub(crate) const MESSAGE_BYTES_MAX: usize = 65_536;
/// Subscriptions of one session.
const SUBS_MAX: usize = 16;
/// How long a client may take to say hello.
const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// How often a session says that it lives.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(20);
/// How long before its end a token is said to expire.
const EXPIRING_BEFORE: Duration = Duration::from_secs(60);
/// Frames per second that a client may send in the long run.
const FRAMES_PER_S: f64 = 20.0;
/// Frames that it may send at once.
const FRAMES_BURST: f64 = 40.0;

/// The time, by both clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// Since the connection was made.
    pub(crate) at: Duration,
    /// Of the day.
    pub(crate) time: Timestamp,
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Act {
    /// Send this frame.
    Send(Utf8Bytes),
    /// Ask the view for membership, or to change it; then call [`Session::joined`].
    Join(Claims, Option<Cursor>),
    /// Ask the view what this subscription lacks; then call [`Session::loaded`].
    Load(u32, Sight, Filter, From),
    /// Carry this out on behalf of these claims, and send the reply.
    Command(String, Box<Command>, Claims),
    /// Close the websocket.
    Close(Close, String),
}

/// What may be done with the mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fill {
    /// All subscriptions are up to date but for what is in the mailbox.
    Done,
    /// Frames of a load wait to be sent.
    Going,
}

/// One websocket.
#[derive(Debug)]
pub(crate) struct Session {
    phase: Phase,
    /// What the client may still send at once, and when that was.
    allowance: (f64, Duration),
    /// When the client is told again that the session lives.
    heartbeat_at: Duration,
    /// Everything up to here has been sent.
    cursor: u64,
}

#[derive(Debug)]
enum Phase {
    Greeting,
    Joining(Claims),
    Live(Box<Live>),
}

impl Session {
    /// A websocket that was just opened.
    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Greeting,
            allowance: (FRAMES_BURST, Duration::ZERO),
            heartbeat_at: HEARTBEAT_EVERY,
            cursor: 0,
        }
    }

    /// A text frame came.
    pub(crate) fn text(
        &mut self,
        now: Now,
        text: &str,
        verify: impl Fn(&str) -> Result<Claims, TokenError>,
    ) -> Vec<Act> {
        if !self.may_send(now) {
            return close(Close::TooMany, "too many frames");
        }
        let frame = match decode_client(text) {
            Ok(frame) => frame,
            Err(bad) => return close(bad.close, bad.reason),
        };
        match (&mut self.phase, frame) {
            (Phase::Greeting, ClientFrame::Hello(hello)) => self.hello(hello, verify),
            (Phase::Greeting | Phase::Joining(_), _) => {
                close(Close::BadMessage, "the first frame must be hello")
            }
            (Phase::Live(_), ClientFrame::Hello(_)) => close(Close::BadMessage, "a second hello"),
            (Phase::Live(live), ClientFrame::Sub(sub)) => live.sub(sub),
            (Phase::Live(live), ClientFrame::Unsub(unsub)) => {
                live.subs.remove(&unsub.id);
                Vec::new()
            }
            (Phase::Live(live), ClientFrame::Cmd(cmd)) => vec![live.cmd(&cmd)],
            (Phase::Live(live), ClientFrame::Auth(auth)) => live.auth(verify(&auth.token)),
            (Phase::Live(_), ClientFrame::Ping(ping)) => {
                let answer = Ok(serde_json::json!({}));
                vec![Act::Send(frames::reply(Reply::new(ping.reference, answer)))]
            }
        }
    }

    fn hello(
        &mut self,
        hello: Hello,
        verify: impl Fn(&str) -> Result<Claims, TokenError>,
    ) -> Vec<Act> {
        if hello.v != VERSION {
            return close(
                Close::Version,
                format!("this is version {VERSION} of the protocol"),
            );
        }
        match verify(&hello.token) {
            Ok(claims) => {
                self.phase = Phase::Joining(claims.clone());
                vec![Act::Join(claims, hello.resume)]
            }
            Err(error) => close(Close::Token, error),
        }
    }

    /// The view answered to [`Act::Join`].
    pub(crate) fn joined(&mut self, now: Now, answer: Result<Place, TooMany>) -> Vec<Act> {
        let Ok(place) = answer else {
            return close(Close::TooMany, "too many connections of this user");
        };
        match &mut self.phase {
            Phase::Greeting => Vec::new(),
            Phase::Joining(claims) => {
                let claims = claims.clone();
                self.cursor = place.resumed.unwrap_or(place.seq);
                let welcome = welcome(now, &claims, &place);
                self.phase = Phase::Live(Box::new(Live::new(claims, place.resumed)));
                vec![Act::Send(welcome)]
            }
            Phase::Live(live) => live.see_anew(),
        }
    }

    /// The view answered to [`Act::Load`].
    pub(crate) fn loaded(&mut self, sub: u32, load: Load) -> Vec<Act> {
        let Phase::Live(live) = &mut self.phase else {
            return Vec::new();
        };
        let Some(subscription) = live.subs.get_mut(&sub) else {
            return Vec::new();
        };
        live.was_filling = true;
        let is_anew = load.is_anew;
        subscription.fill(load);
        if is_anew {
            vec![Act::Send(frames::reset(sub, "cursor"))]
        } else {
            Vec::new()
        }
    }

    /// The next frame of a load, if there is one.
    pub(crate) fn next_of_load(&mut self) -> Option<Utf8Bytes> {
        let Phase::Live(live) = &mut self.phase else {
            return None;
        };
        live.subs
            .iter_mut()
            .find_map(|(id, sub)| sub.next_of_load(*id))
    }

    /// Whether the mailbox may be emptied. Before membership there is nothing in it.
    pub(crate) fn fill(&self) -> Fill {
        match &self.phase {
            Phase::Greeting | Phase::Joining(_) => Fill::Going,
            Phase::Live(live) if live.subs.values().any(Subscription::is_filling) => Fill::Going,
            Phase::Live(_) => Fill::Done,
        }
    }

    /// The mailbox was emptied; everything up to `last` had been put there before.
    pub(crate) fn waiting(&mut self, now: Now, waiting: Waiting, last: u64) -> Vec<Act> {
        let Phase::Live(live) = &mut self.phase else {
            return Vec::new();
        };
        let mut acts: Vec<Act> = waiting.messages.into_iter().map(Act::Send).collect();
        if waiting.overflowed {
            let again = live.overflowed(now);
            acts.extend(again);
            return acts;
        }
        live.was_filling = false;
        for (id, sub) in &mut live.subs {
            for change in &waiting.changes {
                let frame = sub.change(*id, &live.sight, change);
                acts.extend(frame.map(Act::Send));
            }
            sub.note(&live.sight, &waiting.progress);
            let due = sub.progress_due(*id, now.at);
            acts.extend(due.map(Act::Send));
        }
        self.cursor = self.cursor.max(last);
        acts
    }

    /// Time has passed, perhaps up to [`Session::deadline`].
    pub(crate) fn tick(&mut self, now: Now) -> Vec<Act> {
        let live = match &mut self.phase {
            Phase::Greeting if now.at >= HELLO_WITHIN => {
                return close(Close::NoHello, "no hello in time");
            }
            Phase::Greeting | Phase::Joining(_) => return Vec::new(),
            Phase::Live(live) => live,
        };
        let ends_at = ends_at(&live.claims);
        if now.time >= ends_at {
            return close(Close::Token, TokenError::Expired);
        }
        let mut acts = Vec::new();
        if !live.is_told_of_end && ends_at.since(now.time) <= EXPIRING_BEFORE {
            live.is_told_of_end = true;
            acts.push(Act::Send(frames::expiring(ends_at)));
        }
        for (id, sub) in &mut live.subs {
            acts.extend(sub.progress_due(*id, now.at).map(Act::Send));
        }
        if now.at >= self.heartbeat_at {
            self.heartbeat_at = now.at + HEARTBEAT_EVERY;
            acts.push(Act::Send(frames::heartbeat(self.cursor, now.time)));
        }
        acts
    }

    /// When [`Session::tick`] has something to do at the latest.
    pub(crate) fn deadline(&self, now: Now) -> Duration {
        let live = match &self.phase {
            Phase::Greeting => return HELLO_WITHIN,
            Phase::Joining(_) => return self.heartbeat_at,
            Phase::Live(live) => live,
        };
        let left = ends_at(&live.claims).since(now.time);
        let notice = if live.is_told_of_end {
            left
        } else {
            left.saturating_sub(EXPIRING_BEFORE)
        };
        let progress = live.subs.values().filter_map(Subscription::due_at).min();
        let ends = now.at.saturating_add(notice);
        let earliest = self.heartbeat_at.min(ends);
        progress.map_or(earliest, |due| due.min(earliest))
    }

    fn may_send(&mut self, now: Now) -> bool {
        let (left, since) = self.allowance;
        let earned = now.at.saturating_sub(since).as_secs_f64() * FRAMES_PER_S;
        let left = (left + earned).min(FRAMES_BURST) - 1.0;
        self.allowance = (left, now.at);
        left >= 0.0
    }
}

fn welcome(now: Now, claims: &Claims, place: &Place) -> Utf8Bytes {
    frames::frame(&ServerFrame::Welcome(Welcome {
        v: VERSION,
        epoch: place.epoch.clone(),
        seq: place.seq,
        resumed: place.resumed.is_some(),
        now: now.time,
        user: Who {
            sub: claims.sub.clone(),
            tenant: claims.tenant.clone(),
            scopes: claims.scope.iter().collect(),
        },
        limits: Limits {
            subs: u32::try_from(SUBS_MAX).unwrap_or(u32::MAX),
            msg_bytes: u32::try_from(MESSAGE_BYTES_MAX).unwrap_or(u32::MAX),
        },
    }))
}

fn close(code: Close, reason: impl ToString) -> Vec<Act> {
    vec![Act::Close(code, reason.to_string())]
}

#[cfg(test)]
mod tests;
