//! What `./dev demo` shows, with a smaller disk.

use std::path::Path;
use tokio::process::Command;
use virtbus_tests::cli;

#[tokio::test]
async fn the_demo_shows_a_disk_and_a_domain_from_beginning_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut command = Command::new("tests/demo.sh");
    command
        .arg(folder.path().join("demo"))
        .arg("--once")
        .env("VIRTBUS_DEMO_MIB", "16")
        .current_dir(checkout);
    let shown = cli::run(command).await.ok().out;
    let mut rest = shown.as_str();
    for expected in [
        "demo-create: succeeded",
        "resize",
        "convert",
        "delete_disk",
        "start_domain",
        r#"domain demo: {"state": "running""#,
        "disk.in_use",
        r#"domain demo: {"state": "shutoff", "desired": "shutoff", "snapshots": ["before"]"#,
        r#"domain demo: {"state": "running"}"#,
        r#"domain demo: {"state": "shutoff"}"#,
        "console    http://127.0.0.1:",
        "All stopped.",
    ] {
        let found = rest.find(expected);
        let at = found.unwrap_or_else(|| panic!("no {expected:?} in its place in:\n{shown}"));
        rest = &rest[at + expected.len()..];
    }
}
