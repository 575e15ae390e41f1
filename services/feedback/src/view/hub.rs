//! Who has to be told what: sessions by whose jobs they see.

use super::{
    mailbox::{Mailbox, Step},
    rows::{Change, Entry},
};
use crate::sight::Sight;
use axum::extract::ws::Utf8Bytes;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};
use virtbus_wire::{
    Tenant, User,
    auth::{Claims, Scope},
    frame::ProgressItem,
    row::Outline,
    task::core::Audience,
};

/// The number of a session.
pub(crate) type SessionId = u64;

#[derive(Debug)]
struct Member {
    mailbox: Arc<Mailbox>,
    sight: Sight,
    claims: Claims,
}

/// The sessions that have said hello.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    members: HashMap<SessionId, Member>,
    by_user: HashMap<User, HashSet<SessionId>>,
    by_tenant: HashMap<Tenant, HashSet<SessionId>>,
    seeing_all: HashSet<SessionId>,
}

impl Hub {
    /// Whether this session has joined.
    pub(crate) fn has(&self, id: SessionId) -> bool {
        self.members.contains_key(&id)
    }

    /// How many sessions a user has.
    pub(crate) fn sessions_of(&self, user: &User) -> usize {
        self.by_user.get(user).map_or(0, HashSet::len)
    }

    /// Adds a session, or changes what it sees.
    pub(crate) fn join(&mut self, id: SessionId, claims: Claims, mailbox: Arc<Mailbox>) {
        self.leave(id);
        let sight = Sight::of(&claims);
        self.by_user
            .entry(claims.sub.clone())
            .or_default()
            .insert(id);
        match &sight {
            Sight::None | Sight::Own(..) => {}
            Sight::Tenant(_, tenant) => {
                self.by_tenant.entry(tenant.clone()).or_default().insert(id);
            }
            Sight::All => {
                self.seeing_all.insert(id);
            }
        }
        let member = Member {
            mailbox,
            sight,
            claims,
        };
        self.members.insert(id, member);
    }

    pub(crate) fn leave(&mut self, id: SessionId) {
        let Some(member) = self.members.remove(&id) else {
            return;
        };
        remove(&mut self.by_user, &member.claims.sub, id);
        if let Sight::Tenant(_, tenant) = &member.sight {
            remove(&mut self.by_tenant, tenant, id);
        }
        self.seeing_all.remove(&id);
    }

    /// Tells those who see the job, or saw it before.
    pub(crate) fn tell(&self, change: Change) {
        let change = Arc::new(change);
        let mut told = HashSet::new();
        let entries = [&change.before, &change.after].into_iter().flatten();
        for entry in entries {
            self.each(&entry.job, |id, member| {
                if told.insert(id) {
                    member.mailbox.change(&change);
                }
            });
        }
    }

    /// Tells those who see the job how far it came.
    pub(crate) fn progress(&self, entry: &Arc<Entry>, item: ProgressItem) {
        let entry = entry.clone();
        let step = Arc::new(Step { entry, item });
        self.each(&step.entry.job, |_, member| member.mailbox.progress(&step));
    }

    /// Hands an application's message to whom it's for, and returns to how many.
    pub(crate) fn deliver(&self, to: &Audience, frame: &Utf8Bytes) -> usize {
        let scope = |role: &str| role.parse::<Scope>().ok();
        let is_meant = |claims: &Claims| match to {
            Audience::User(user) => claims.sub == *user,
            Audience::Tenant(tenant) => claims.tenant.as_ref() == Some(tenant),
            Audience::Role(role) => {
                scope(role.as_str()).is_some_and(|scope| claims.scope.iter().any(|s| s == scope))
            }
            Audience::All(_) => true,
        };
        let members = self.members.values();
        members
            .filter(|member| is_meant(&member.claims) && member.mailbox.message(frame))
            .count()
    }

    /// Tells all that the sequence of changes is another one now.
    pub(crate) fn over(&self) {
        for member in self.members.values() {
            member.mailbox.over();
        }
    }

    fn each(&self, job: &Outline, mut tell: impl FnMut(SessionId, &Member)) {
        let own = job.user.as_ref().and_then(|user| self.by_user.get(user));
        let tenants = job.tenant.as_ref();
        let tenants = tenants.and_then(|tenant| self.by_tenant.get(tenant));
        let candidates = [own, tenants, Some(&self.seeing_all)];
        let mut told = HashSet::new();
        for id in candidates.into_iter().flatten().flatten() {
            let member = self.members.get(id);
            if let Some(member) = member.filter(|member| member.sight.sees_job(job))
                && told.insert(*id)
            {
                tell(*id, member);
            }
        }
    }
}

fn remove<K: std::hash::Hash + Eq>(
    index: &mut HashMap<K, HashSet<SessionId>>,
    key: &K,
    id: SessionId,
) {
    if let Some(ids) = index.get_mut(key) {
        ids.remove(&id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}
