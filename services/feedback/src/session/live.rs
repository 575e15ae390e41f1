//! A session that has said hello: its subscriptions, its rights, and how often it was too slow.

use super::{Act, Now, SUBS_MAX, close, frames, subscription::Subscription};
use crate::{sight::Sight, view::From};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};
use virtbus_daemon::auth::TokenError;
use virtbus_wire::{
    Code, JobError,
    auth::{Claims, Scope},
    frame::{Close, Cmd, Command, Reply, Sub},
};

/// As many resets within [`RESETS_WITHIN`] are too many.
const RESETS_MAX: usize = 3;
const RESETS_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Live {
    pub(super) claims: Claims,
    pub(super) sight: Sight,
    pub(super) is_told_of_end: bool,
    resumed: Option<u64>,
    pub(super) subs: BTreeMap<u32, Subscription>,
    /// Whether a load was sent since the mailbox was last emptied.
    pub(super) was_filling: bool,
    resets: VecDeque<Duration>,
}

impl Live {
    pub(super) fn new(claims: Claims, resumed: Option<u64>) -> Self {
        Self {
            sight: Sight::of(&claims),
            claims,
            is_told_of_end: false,
            resumed,
            subs: BTreeMap::new(),
            was_filling: false,
            resets: VecDeque::new(),
        }
    }

    pub(super) fn sub(&mut self, sub: Sub) -> Vec<Act> {
        if self.sight == Sight::None {
            return close(Close::Forbidden, "the token doesn't allow to see jobs");
        }
        if !self.subs.contains_key(&sub.id) && self.subs.len() >= SUBS_MAX {
            return close(Close::TooMany, format!("at most {SUBS_MAX} subscriptions"));
        }
        let from = match (sub.snapshot, self.resumed) {
            (true, _) => From::Start,
            (false, Some(cursor)) => From::After(cursor),
            (false, None) => From::Now,
        };
        let id = sub.id;
        self.subs.insert(id, Subscription::new(&sub));
        self.load(id, from).into_iter().collect()
    }

    fn load(&self, id: u32, from: From) -> Option<Act> {
        let filter = self.subs.get(&id)?.filter().clone();
        Some(Act::Load(id, self.sight.clone(), filter, from))
    }

    pub(super) fn cmd(&self, cmd: &Cmd) -> Act {
        let refused =
            |error| Act::Send(frames::reply(Reply::new(cmd.reference.clone(), Err(error))));
        let command = match cmd.command() {
            Ok(command) => command,
            Err(error) => return refused(error),
        };
        let needed = match &command {
            Command::Cancel(_) | Command::Priority(_) | Command::Retry(_) | Command::Submit(_) => {
                Scope::JobsWrite
            }
            Command::Pause(_) | Command::Resume(_) => Scope::QueuesWrite,
        };
        if !self.claims.scope.allows(needed) {
            let error = JobError::new(Code::AuthForbidden, format!("this needs {needed}"));
            return refused(error.with("scope", needed.as_str()));
        }
        Act::Command(
            cmd.reference.clone(),
            Box::new(command),
            self.claims.clone(),
        )
    }

    pub(super) fn auth(&mut self, answer: Result<Claims, TokenError>) -> Vec<Act> {
        let claims = match answer {
            Ok(claims) => claims,
            Err(error) => return close(Close::Token, error),
        };
        if (&claims.sub, &claims.tenant) != (&self.claims.sub, &self.claims.tenant) {
            return close(Close::Forbidden, "the new token names somebody else");
        }
        self.is_told_of_end = false;
        let is_as_before = claims.scope == self.claims.scope;
        self.claims = claims;
        if is_as_before {
            Vec::new()
        } else {
            vec![Act::Join(self.claims.clone(), None)]
        }
    }

    /// The token's rights may have changed: what is seen begins anew.
    pub(super) fn see_anew(&mut self) -> Vec<Act> {
        let sight = Sight::of(&self.claims);
        if sight == self.sight {
            return Vec::new();
        }
        self.sight = sight;
        if self.sight == Sight::None {
            return close(Close::Forbidden, "the token doesn't allow to see jobs");
        }
        self.all_anew("rights")
    }

    fn all_anew(&self, reason: &str) -> Vec<Act> {
        let anew = |id: &u32| {
            let reset = Act::Send(frames::reset(*id, reason));
            [Some(reset), self.load(*id, From::Start)]
        };
        self.subs.keys().flat_map(anew).flatten().collect()
    }

    /// Changes were given up. A client that was being sent a load isn't to blame, and is told
    /// what changed since; another one was too slow, and begins anew.
    pub(super) fn overflowed(&mut self, now: Now) -> Vec<Act> {
        if self.was_filling {
            let since = |(id, sub): (&u32, &Subscription)| self.load(*id, From::After(sub.seq()));
            return self.subs.iter().filter_map(since).collect();
        }
        while self
            .resets
            .front()
            .is_some_and(|at| now.at.saturating_sub(*at) > RESETS_WITHIN)
        {
            self.resets.pop_front();
        }
        self.resets.push_back(now.at);
        if self.resets.len() >= RESETS_MAX {
            return close(Close::TooMany, "too slow");
        }
        self.all_anew("overflow")
    }
}
