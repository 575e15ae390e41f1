use super::site::{MIB, Site, code};
use serde_json::json;
use virtbus_wire::{
    Code,
    catalog::{DiskState, InUseBy},
};

#[tokio::test]
async fn a_deleted_medium_is_in_the_trash_by_default() {
    let site = Site::start().await;
    site.filled_medium("m1").await;
    let params = json!({ "media": "m1" });
    for job in ["j1", "again"] {
        assert_eq!(
            site.done(job, "delete_media", params.clone()).await["freed"],
            0
        );
    }
    assert_eq!(site.files("media"), Vec::<String>::new());
    assert_eq!(site.files("trash"), ["media.m1.j1.1"]);
    let state = site.medium("m1").await.unwrap().record.state;
    assert_eq!(state, DiskState::Trashed);
}

#[tokio::test]
async fn a_medium_that_is_gone_stays_gone() {
    let site = Site::start().await;
    for (medium, mode) in [("m1", "unlink"), ("m2", "wipe")] {
        site.filled_medium(medium).await;
        let params = json!({ "media": medium, "mode": mode });
        let freed = site.done(medium, "delete_media", params.clone()).await["freed"].as_u64();
        assert!(freed.unwrap() >= MIB, "{mode}: {freed:?}");
        let record = site.medium(medium).await.unwrap().record;
        assert_eq!(record.state, DiskState::Deleted);
        let again = format!("again-{medium}");
        assert_eq!(site.done(&again, "delete_media", params).await["freed"], 0);
    }
    for folder in ["media", "trash", "locks"] {
        assert_eq!(site.files(folder), Vec::<String>::new(), "{folder}");
    }
}

#[tokio::test]
async fn a_medium_that_is_used_or_unknown_is_refused() {
    let site = Site::start().await;
    let params = json!({ "media": "m1" });
    let unknown = site.refused("j1", "delete_media", params.clone()).await;
    assert_eq!(code(&unknown), Code::MediaNotFound);
    site.filled_medium("m1").await;
    let medium = site.medium("m1").await.unwrap();
    let mut record = medium.record.clone();
    record.in_use_by = vec![InUseBy::Job {
        job: "j9".parse().unwrap(),
        expires_at: "2999-01-01T00:00:00.000Z".parse().unwrap(),
    }];
    site.store.media.update(&medium, record).await.unwrap();
    let used = site.refused("j2", "delete_media", params).await;
    assert_eq!(code(&used), Code::MediaInUse);
    assert_eq!(used.detail["job"], "j9");
    assert_eq!(site.files("media"), ["m1.iso"]);
}
