//! Whose jobs somebody sees.

use virtbus_wire::{
    Tenant, User,
    auth::{Claims, Scope},
    row::Outline,
};

/// Whose jobs somebody sees, by the scopes of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sight {
    /// Nobody's.
    None,
    /// One's own.
    Own(User, Option<Tenant>),
    /// One's own and those of one's tenant.
    Tenant(User, Tenant),
    /// All.
    All,
}

impl Sight {
    /// The widest that the scopes allow.
    pub(crate) fn of(claims: &Claims) -> Self {
        let may = |scope| claims.scope.allows(scope);
        let tenant = claims.tenant.clone();
        match tenant {
            _ if may(Scope::JobsReadAll) => Self::All,
            Some(tenant) if may(Scope::JobsReadTenant) => Self::Tenant(claims.sub.clone(), tenant),
            tenant if may(Scope::JobsReadOwn) || may(Scope::JobsReadTenant) => {
                Self::Own(claims.sub.clone(), tenant)
            }
            Some(_) | None => Self::None,
        }
    }

    /// Whether a job of this user and tenant is seen.
    pub(crate) fn sees(&self, user: Option<&User>, tenant: Option<&Tenant>) -> bool {
        match self {
            Self::None => false,
            Self::Own(own, of) => is_own(own, of.as_ref(), user, tenant),
            Self::Tenant(own, of) => tenant == Some(of) || is_own(own, Some(of), user, tenant),
            Self::All => true,
        }
    }

    /// Whether this job is seen.
    pub(crate) fn sees_job(&self, job: &Outline) -> bool {
        self.sees(job.user.as_ref(), job.tenant.as_ref())
    }
}

/// A namesake of another tenant is somebody else; where one of both has no tenant, names decide.
fn is_own(own: &User, of: Option<&Tenant>, user: Option<&User>, tenant: Option<&Tenant>) -> bool {
    let same_tenant = match (of, tenant) {
        (Some(of), Some(tenant)) => of == tenant,
        (None, _) | (_, None) => true,
    };
    user == Some(own) && same_tenant
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(tenant: &str, scope: &str) -> Sight {
        let mut claims = serde_json::json!({"sub": "alice", "scope": scope, "exp": 1, "aud": "x"});
        if !tenant.is_empty() {
            claims["tenant"] = tenant.into();
        }
        Sight::of(&serde_json::from_value(claims).unwrap())
    }

    #[test]
    fn each_scope_shows_just_what_it_says() {
        let jobs = [
            ("alice", "acme"),
            ("bob", "acme"),
            ("bob", "other"),
            ("alice", "other"),
            ("alice", ""),
            ("", ""),
        ];
        for (tenant, scope, expected) in [
            ("acme", "", [false; 6]),
            ("acme", "jobs:write queues:write", [false; 6]),
            (
                "acme",
                "jobs:read:own",
                [true, false, false, false, true, false],
            ),
            ("", "jobs:read:own", [true, false, false, true, true, false]),
            (
                "acme",
                "jobs:read:tenant",
                [true, true, false, false, true, false],
            ),
            (
                "",
                "jobs:read:tenant",
                [true, false, false, true, true, false],
            ),
            ("acme", "jobs:read:all", [true; 6]),
            ("", "admin", [true; 6]),
        ] {
            let sight = sight(tenant, scope);
            let seen = jobs.map(|(user, tenant)| {
                let (user, tenant) = (user.parse().ok(), tenant.parse().ok());
                sight.sees(user.as_ref(), tenant.as_ref())
            });
            assert_eq!(seen, expected, "{tenant:?} {scope:?}");
        }
    }
}
