//! New disks and how much room pools have.

use super::*;

#[test]
fn a_new_disk_goes_where_there_is_room_for_it_if_there_is_such_a_pool() {
    let mut site = site();
    let free = json!({"b": 1 << 30, "c": 1_u64 << 40});
    site.workers[0].free = serde_json::from_value(free).unwrap();
    // Somebody who takes no more jobs knows of more, which is of no use.
    let mut drained = worker("storage", &["b"], &[]);
    drained.free = serde_json::from_value(json!({"b": 1_u64 << 50})).unwrap();
    drained.draining = true;
    site.workers.push(drained);
    let wish = Placement {
        flavour: Some("fast".parse().unwrap()),
        ..Placement::default()
    };
    site.pools[1] = pool(json!({"pool": "b", "flavours": ["fast"]}));
    site.pools[2] = pool(json!({"pool": "c", "flavours": ["fast"]}));
    let pools = |size: &str| -> std::collections::BTreeSet<String> {
        let params = json!({"disk": "n", "size": size});
        let task = Task::decode(Class::Storage, "create_disk", &params).unwrap();
        let placed = (0..64).map(|number| {
            let id = format!("j{number}").parse().unwrap();
            place(&id, &task, &wish, &Spots::new(), &site).map(|queue| queue.subject())
        });
        placed.map(Result::unwrap).collect()
    };
    let both = ["storage.b.high".to_owned(), "storage.c.high".to_owned()];
    assert_eq!(pools("1MiB"), both.clone().into());
    assert_eq!(pools("10GiB"), [both[1].clone()].into());
    // Nobody has room for all of it: it may still never be written whole.
    assert_eq!(pools("10TiB"), both.into());
}

#[test]
fn a_pool_that_nobody_serves_has_no_room() {
    let mut site = site();
    site.workers[0].free = serde_json::from_value(json!({"b": 1 << 30})).unwrap();
    site.pools[1] = pool(json!({"pool": "b", "flavours": ["slow"]}));
    let wish = Placement {
        flavour: Some("slow".parse().unwrap()),
        ..Placement::default()
    };
    let params = json!({"disk": "n", "size": "10GiB"});
    let task = Task::decode(Class::Storage, "create_disk", &params).unwrap();
    let placed = place(&"j".parse().unwrap(), &task, &wish, &Spots::new(), &site);
    // Nothing is known of pool `idle` but that it's registered.
    assert_eq!(placed.unwrap().subject(), "storage.b.high");
}
