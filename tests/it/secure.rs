//! Everything with the credentials of its role, and nothing without.

use async_nats::ConnectOptions;
use virtbus_testbed::watch::soon;
use virtbus_tests::cli::virtbus;
use virtbus_tests::stack::{Options, Stack};

#[tokio::test]
async fn with_a_key_per_role_the_main_job_works_and_strangers_stay_out() {
    let options = Options {
        secure: true,
        domains: true,
        ..Options::default()
    };
    let stack = Stack::start_with(options).await;
    let stranger = ConnectOptions::new().connect(&stack.ready.nats);
    assert!(soon("an answer", stranger).await.is_err(), "a stranger");
    for words in [
        "submit create_disk -p disk=key1 -p size=8MiB --wait",
        "submit resize -p disk=key1 -p size=16MiB --wait",
        "submit convert -p disk=key1 -p to=key2 -p format=raw --wait",
        "submit start_domain -p domain=vm1 -p template.memory=32MiB -p template.vcpus=1 \
         -p template.disks=[\"key1\"] --wait",
        "submit create_snapshot --queue hypervisor.default.low -p domain=vm1 -p snapshot=s1 --wait",
        "submit stop_domain -p domain=vm1 -p mode=destroy --wait",
        "submit revert_snapshot --queue hypervisor.default.default -p domain=vm1 -p snapshot=s1 \
         --wait",
        "submit delete_snapshot --queue hypervisor.default.default -p domain=vm1 -p snapshot=s1 \
         --wait",
        "submit stop_domain -p domain=vm1 -p mode=destroy --wait",
        "submit delete_domain -p domain=vm1 --wait",
        "submit delete_disk -p disk=key1 --wait",
        "submit ping --queue hypervisor.default.low --wait",
        "submit ping --queue core --wait",
        "list",
    ] {
        let words: Vec<&str> = words.split_whitespace().collect();
        virtbus(&stack, &words).await.ok();
    }
    let denied = stack.logged("violation");
    assert!(
        denied.is_empty(),
        "each role may do what it does: {denied:#?}"
    );
}
