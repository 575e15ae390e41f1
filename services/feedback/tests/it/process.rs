//! How the program starts and ends.

use crate::{
    bus::TestBus,
    service::{Service, program},
};

fn run(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = program()
        .args(arguments)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn each_reason_to_end_has_its_exit_code() {
    let nowhere = [("VIRTBUS__NATS__URL", "nats://127.0.0.1:1")];
    let wrong = [
        ("VIRTBUS__HTTP__LISTEN", "here"),
        ("VIRTBUS__AUTH__ALGORITHM", "none"),
    ];
    let key = [("VIRTBUS__AUTH__KEY_FILE", "/nowhere/key")];
    for (arguments, variables, code, expected) in [
        (&["--version"][..], &[][..], 0, "virtbus-feedback "),
        (&["config", "check"], &[], 0, "good"),
        (&["config", "show"], &[], 0, "[auth]"),
        (&["config", "check"], &wrong, 64, "auth.algorithm: "),
        (&["config", "check"], &wrong, 64, "http.listen: "),
        (&["--nonsense"], &[], 64, "--nonsense"),
        (&["--config", "/nowhere"], &[], 64, "No such file"),
        (&[], &nowhere, 69, "127.0.0.1:1"),
        (&[], &key, 64, "auth.key_file"),
    ] {
        let (ended, text) = run(arguments, variables);
        assert_eq!(ended, Some(code), "{arguments:?}: {text}");
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
}

#[tokio::test]
async fn it_stops_on_request_and_takes_its_pid_file_along() {
    let bus = TestBus::start().await;
    for signal in ["TERM", "INT"] {
        let mut service = Service::start(&bus, "").await;
        let pid = format!("{}\n", service.pid());
        assert_eq!(service.pid_file(), Some(pid));
        service.signal(signal);
        assert_eq!(service.ended().await.code(), Some(0));
        assert_eq!(service.pid_file(), None);
    }
}
