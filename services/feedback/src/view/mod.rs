//! The view of all jobs: one task owns it and tells everyone, so what a session loads and what
//! it's told afterwards fit together without a lock.
//!
//! It follows the bucket `jobs` by what the bucket publishes of itself. That comes at most once:
//! a gap in the revisions, or an end that lies behind the bucket's, is filled by reading on.

mod follow;
mod hub;
mod mailbox;
mod packed;
mod rows;

pub(crate) use hub::SessionId;
pub(crate) use mailbox::{Mailbox, Step, Waiting};
pub(crate) use rows::{Change, Entry, From, Load};
#[cfg(test)]
pub(crate) use {hub::Hub, rows::Rows};

use crate::{config, sight::Sight};
use axum::extract::ws::Utf8Bytes;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::sync::{mpsc, oneshot};
use virtbus_wire::{
    JobId,
    auth::Claims,
    frame::{Cursor, Filter},
    task::core::Audience,
};

pub(crate) use follow::spawn;

/// Questions that wait for the view.
const ASKS_MAX: usize = 1024;

/// Where a session begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The name of the sequence of changes.
    pub(crate) epoch: String,
    /// The newest place in it.
    pub(crate) seq: u64,
    /// The session's own former place, if it can go on from there.
    pub(crate) resumed: Option<u64>,
}

/// A user has too many sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooMany;

/// A question to the view.
#[derive(Debug)]
pub(super) enum Ask {
    Join {
        id: SessionId,
        claims: Claims,
        mailbox: Arc<Mailbox>,
        resume: Option<Cursor>,
        reply: oneshot::Sender<Result<Place, TooMany>>,
    },
    Leave(SessionId),
    Load {
        sight: Sight,
        filter: Filter,
        from: From,
        reply: oneshot::Sender<Load>,
    },
    Find {
        id: JobId,
        reply: oneshot::Sender<Option<Arc<Entry>>>,
    },
    Deliver {
        to: Audience,
        frame: Utf8Bytes,
        reply: oneshot::Sender<usize>,
    },
}

/// The view has ended: the service is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the view has ended")]
pub(crate) struct Ended;

/// How everyone else speaks to the view.
#[derive(Debug, Clone)]
pub(crate) struct View {
    asks: mpsc::Sender<Ask>,
    last: Arc<AtomicU64>,
    ids: Arc<AtomicU64>,
}

/// The view's own end of [`View`].
#[derive(Debug)]
pub(crate) struct Desk {
    asks: mpsc::Receiver<Ask>,
    last: Arc<AtomicU64>,
    limits: config::View,
    sessions_per_user_max: usize,
}

/// A session's membership, which ends with it.
#[derive(Debug)]
pub(crate) struct Membership {
    id: SessionId,
    asks: mpsc::Sender<Ask>,
}

impl View {
    /// The view's two ends.
    pub(crate) fn new(limits: config::View, sessions: config::Limits) -> (Self, Desk) {
        let (send, asks) = mpsc::channel(ASKS_MAX);
        let last = Arc::new(AtomicU64::new(0));
        let view = Self {
            asks: send,
            last: last.clone(),
            ids: Arc::default(),
        };
        let desk = Desk {
            asks,
            last,
            limits,
            sessions_per_user_max: sessions.sessions_per_user_max,
        };
        (view, desk)
    }

    /// The newest change that everyone concerned has in the mailbox.
    pub(crate) fn last(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }

    /// A membership for a session that is about to join.
    pub(crate) fn membership(&self) -> Membership {
        Membership {
            id: self.ids.fetch_add(1, Ordering::Relaxed),
            asks: self.asks.clone(),
        }
    }

    /// Joins; or, as a member, changes what the session sees.
    pub(crate) async fn join(
        &self,
        member: &Membership,
        claims: Claims,
        mailbox: &Arc<Mailbox>,
        resume: Option<Cursor>,
    ) -> Result<Result<Place, TooMany>, Ended> {
        let mailbox = mailbox.clone();
        let id = member.id;
        self.ask(|reply| Ask::Join {
            id,
            claims,
            mailbox,
            resume,
            reply,
        })
        .await
    }

    /// What somebody who sees this, and wants that, has to be told.
    pub(crate) async fn load(
        &self,
        sight: Sight,
        filter: Filter,
        from: From,
    ) -> Result<Load, Ended> {
        self.ask(|reply| Ask::Load {
            sight,
            filter,
            from,
            reply,
        })
        .await
    }

    /// A job, if the view has it.
    pub(crate) async fn find(&self, id: JobId) -> Result<Option<Arc<Entry>>, Ended> {
        self.ask(|reply| Ask::Find { id, reply }).await
    }

    /// Hands an application's message to whom it's for, and returns to how many sessions.
    pub(crate) async fn deliver(&self, to: Audience, frame: Utf8Bytes) -> Result<usize, Ended> {
        self.ask(|reply| Ask::Deliver { to, frame, reply }).await
    }

    async fn ask<A>(&self, ask: impl FnOnce(oneshot::Sender<A>) -> Ask) -> Result<A, Ended> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(ask(reply)).await.map_err(|_| Ended)?;
        answer.await.map_err(|_| Ended)
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let leave = Ask::Leave(self.id);
        if let Err(mpsc::error::TrySendError::Full(leave)) = self.asks.try_send(leave) {
            let asks = self.asks.clone();
            // One per session that ends; the view answers them all soon.
            tokio::spawn(async move { asks.send(leave).await.ok() });
        }
    }
}
