//! Messages over a connection that takes nothing for a moment: as when thousands of words about
//! other messages are on their way through it.

use crate::topology::set_up;
use async_nats::jetstream::Context;
use futures_util::FutureExt as _;
use std::time::Duration;
use tokio::{task::unconstrained, time::timeout};
use virtbus_bus::{Appetite, Bus, ConnectConfig, Deliveries};
use virtbus_testbed::{Server, watch::soon};

const QUEUE: &str = "storage.p.low";
/// Far less than any time after which something lost is noticed: a request 30 s, a message
/// `ack_wait`, 30 s too.
const SOON: Duration = Duration::from_secs(15);

const HUNGRY: Appetite = Appetite {
    high: 0,
    default: 0,
    low: 1,
    low_first: false,
    ahead: 0,
};

struct Setting {
    _server: Server,
    js: Context,
    bus: Bus,
    deliveries: Deliveries,
}

async fn setting() -> Setting {
    let (server, js) = set_up(&[QUEUE]).await;
    let config = ConnectConfig {
        url: server.url.clone(),
        ..ConnectConfig::default()
    };
    let bus = Bus::connect(&config, "test").await.unwrap();
    // A connection that's made anew forgets what was asked for on the one before.
    let mut health = bus.health();
    let connected = health.wait_for(|health| health.connections > 0);
    drop(soon("the connection", connected).await.unwrap());
    let queues = vec![QUEUE.parse().unwrap()];
    Setting {
        deliveries: Deliveries::open(&bus, queues).await.unwrap(),
        _server: server,
        js,
        bus,
    }
}

impl Setting {
    async fn publish(&self, job: &'static str) {
        let stored = self.js.publish(QUEUE, job.into()).await.unwrap();
        stored.await.unwrap();
    }

    /// Fills what waits to be sent, and asks for a message until that has to wait too. The test
    /// has one thread: nothing is sent meanwhile.
    fn ask_and_be_cut_off(&mut self, appetite: Appetite) {
        let client = self.bus.client();
        let word = || unconstrained(client.publish("no.body", "".into()));
        while word().now_or_never().is_some() {}
        let asked = unconstrained(self.deliveries.next(appetite));
        assert!(asked.now_or_never().is_none());
    }

    /// The next message, which must come soon.
    async fn next(&mut self) -> String {
        let next = timeout(SOON, self.deliveries.next(HUNGRY)).await;
        let delivery = next.expect("a message").unwrap();
        delivery.ack().await.unwrap();
        String::from_utf8(delivery.payload().to_vec()).unwrap()
    }
}

#[tokio::test]
async fn a_request_that_was_cut_off_is_sent_the_next_time() {
    let mut setting = setting().await;
    setting.ask_and_be_cut_off(HUNGRY);
    setting.publish("job").await;
    assert_eq!(setting.next().await, "job");
}

#[tokio::test]
async fn a_message_nobody_wants_is_handed_back_although_that_was_cut_off() {
    let mut setting = setting().await;
    // Asked for while it was wanted, and there when it isn't any more.
    let armed = timeout(Duration::from_secs(1), setting.deliveries.next(HUNGRY));
    assert!(armed.await.is_err());
    setting.publish("job").await;
    soon("the answer", setting.bus.flush()).await.unwrap();
    setting.ask_and_be_cut_off(Appetite::default());
    assert_eq!(setting.next().await, "job");
}
