//! What a service tells of its connection: the check `nats`, and a count of what was dropped.

use crate::health::{Metrics, Readiness};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use virtbus_bus::Health;

/// The check of the connection to the messaging server.
pub(crate) const NATS: &str = "nats";

/// Tells how the connection is until `stop`. A subscription that is read too slowly is counted and
/// fails no check: what was dropped is only a hint, and is read again from where it's stored.
pub(crate) async fn follow(
    mut health: watch::Receiver<Health>,
    ready: Readiness,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let slow = Counter::<u64>::default();
    metrics.register(|registry| {
        let help = "Times that messages were dropped since a subscription was read too slowly";
        registry.register("virtbus_nats_slow_consumers", help, slow.clone());
    });
    loop {
        let now = health.borrow_and_update().clone();
        ready.set(NATS, state(&now));
        slow.inc_by(now.slow_consumers.saturating_sub(slow.get()));
        tokio::select! {
            changed = health.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}

fn state(health: &Health) -> Result<(), String> {
    match (&health.refused, health.connected) {
        (_, false) => Err("not connected".to_owned()),
        (Some(refused), true) => Err(format!("refused: {refused}")),
        (None, true) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_that_is_known_of_the_connection_is_told() {
        let (told, health) = watch::channel(Health {
            connected: true,
            slow_consumers: 2,
            ..Health::default()
        });
        let (ready, metrics) = (Readiness::default(), Metrics::new("1", "c"));
        let stop = CancellationToken::new();
        let following = follow(health, ready.clone(), metrics.clone(), stop);
        let following = tokio::spawn(following);
        told.send_modify(|health| health.slow_consumers += 1);
        told.send_modify(|health| health.refused = Some("a subject".to_owned()));
        drop(told);
        following.await.unwrap();
        let report = ready.report();
        let reason = report.checks[0].reason.as_deref();
        assert_eq!(reason, Some("refused: a subject"));
        let text = metrics.encode().unwrap();
        assert!(
            text.contains("virtbus_nats_slow_consumers_total 3\n"),
            "{text}"
        );
    }
}
