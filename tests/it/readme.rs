//! The README's first jobs, run as they stand there.

use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::OnceCell;
use virtbus_testbed::watch::soon;
use virtbus_tests::chromium::Chromium;
use virtbus_tests::cli::{self, Ended};
use virtbus_tests::ready;
use virtbus_tests::stack::{Options, Shared, Stack};
use virtbus_tests::state_of;

/// What stands in the README for the folder of `virtbus up` and for the built programs.
const FOLDER: &str = "/tmp/virtbus/ready.json";
const PROGRAM: &str = "target/debug/virtbus";

/// A stack of their own: the README names disks and counts jobs as a newcomer would see them.
async fn newcomer() -> Shared {
    static STACK: OnceCell<Stack> = OnceCell::const_new();
    Stack::shared(&STACK, Options::default()).await
}

fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The one code block with this info string, told where this stack is.
fn block(info: &str, stack: &Stack) -> String {
    let text = std::fs::read_to_string(checkout().join("README.md")).unwrap();
    let fence = format!("```{info}\n");
    let blocks: Vec<&str> = text.split(&fence).skip(1).collect();
    assert_eq!(blocks.len(), 1, "README.md has one block {info:?}");
    let (code, _) = blocks[0].split_once("\n```").expect("it's closed");
    let ready = stack.ready_file();
    let code = code.replace(FOLDER, ready.to_str().unwrap());
    code.replace(PROGRAM, ready::virtbus().to_str().unwrap())
}

async fn run_shell(code: &str, path: Option<&Path>) -> Ended {
    cli::run(shell(code, path)).await
}

fn shell(code: &str, path: Option<&Path>) -> Command {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", code]);
    if let Some(folder) = path {
        let rest = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{rest}", folder.display()));
    }
    command
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap();
    let mut files = path
        .split(':')
        .map(|folder| Path::new(folder).join(program));
    files.find(|file| file.exists())
}

/// The folder of the nats CLI. Only where neither it nor Go is there can it be missing.
fn nats_cli() -> Option<PathBuf> {
    let local = checkout().join(".dev/bin");
    if local.join("nats").exists() {
        return Some(local);
    }
    if let Some(file) = on_path("nats") {
        return file.parent().map(Path::to_owned);
    }
    let go = on_path("go");
    assert!(
        go.is_none(),
        "Go is here but the nats CLI isn't built: run ./dev setup"
    );
    None
}

#[tokio::test]
async fn the_first_job_from_the_shell_works_as_it_stands_in_the_readme() {
    let Some(folder) = nats_cli() else {
        println!("neither the nats CLI nor Go is here, so these commands can't be run");
        return;
    };
    // One of its own: the first thing that happens there happens to its first job.
    let stack = Stack::start().await;
    let bus = stack.bus().await;
    let happening = async {
        // Whoever subscribes late, on a busy machine, still sees something happen.
        bus.end_of("first").await;
        loop {
            bus.ping("storage.default.high").await;
        }
    };
    let code = block("sh first-job", &stack);
    let ended = tokio::select! {
        ended = run_shell(&code, Some(&folder)) => ended.ok(),
        () = happening => unreachable!("something always happens"),
    };
    assert!(ended.out.contains(r#""stream":"STORAGE""#), "{ended:?}");
    assert!(
        ended.out.contains(r#""task":"create_disk""#),
        "the record was shown: {ended:?}"
    );
    let record = bus.end_of("first").await;
    assert_eq!(state_of(&record), "succeeded", "{record:#}");
    // The record names stream and sequence too, and its time.
    let answers = ended.out.split(r#"{"stream":"STORAGE","seq":"#).skip(1);
    let answers = answers.filter_map(|rest| rest.split_once('}'));
    let numbers: Vec<u64> = answers
        .filter_map(|(number, _)| number.parse().ok())
        .collect();
    assert_eq!(numbers.len(), 3, "{ended:?}");
    // A job without an id is named after its answer.
    for (number, task) in numbers.iter().skip(1).zip(["resize", "convert"]) {
        let record = bus.end_of(&format!("storage-{number}")).await;
        assert_eq!(record["task"], task);
        assert_eq!(state_of(&record), "succeeded", "{record:#}");
    }
}

/// The `nats` commands of a section, for the job `storage-812`.
fn commands(section: &str) -> Vec<String> {
    let text = std::fs::read_to_string(checkout().join("README.md")).unwrap();
    let (_, section) = text
        .split_once(&format!("\n## {section}\n"))
        .expect("the section");
    let section = section.split("\n## ").next().unwrap();
    let quoted = section.split('`').skip(1).step_by(2);
    let commands = quoted.filter(|command| command.starts_with("nats "));
    commands.map(str::to_owned).collect()
}

/// What a command shows, until it shows the text: some of them never end.
async fn shows(code: &str, path: &Path, wanted: &str) {
    let mut command = shell(code, Some(path));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    while let Some(line) = soon(code, lines.next_line()).await.unwrap() {
        seen.push(line);
        if seen.last().unwrap().contains(wanted) {
            return;
        }
    }
    panic!("{code}: no {wanted:?} in {seen:#?}");
}

#[tokio::test]
async fn the_commands_to_look_inside_work_as_they_stand_in_the_readme() {
    let Some(folder) = nats_cli() else {
        println!("neither the nats CLI nor Go is here, so these commands can't be run");
        return;
    };
    let stack = newcomer().await;
    let bus = stack.bus().await;
    let seq = bus
        .publish_bytes("storage.default.high", b"not json".to_vec())
        .await;
    let id = format!("storage-{seq}");
    bus.end_of(&id).await;
    let commands = commands("Looking inside");
    assert!(commands.len() >= 5, "{commands:?}");
    let happening = async {
        // Something always happens, or a subscriber would see nothing.
        loop {
            bus.ping("storage.default.high").await;
        }
    };
    let looking = async {
        for command in &commands {
            let command = command.replace("storage-812", &id);
            // Each shows the failed job, but for the one about queues.
            let wanted = match command.split(' ').nth(1) {
                Some("consumer") => "storage_default_high",
                Some("sub") => "events.jobs.",
                Some("stream") => "not json",
                Some("req") if command.contains("queues") => "storage.default.high",
                _ => id.as_str(),
            };
            let code = format!("export NATS_URL={}\nexec {command}", stack.ready.nats);
            // This one wants a terminal.
            let code = code.replace(
                "nats stream view DLQ",
                "script -qec 'nats stream view DLQ' /dev/null",
            );
            shows(&code, &folder, wanted).await;
        }
    };
    tokio::select! {
        () = looking => {}
        () = happening => {}
    }
}

#[tokio::test]
async fn the_first_job_from_python_works_as_it_stands_in_the_readme() {
    let stack = newcomer().await;
    let named = std::env::var_os("VIRTBUS_PYTHON").map(PathBuf::from);
    let python = named.unwrap_or_else(|| checkout().join(".dev/venv/bin/python"));
    assert!(
        python.exists(),
        "{} is missing: run ./dev setup",
        python.display()
    );
    let mut command = Command::new(python);
    command
        .arg("-c")
        .arg(block("python first-job", &stack))
        .env("NATS_URL", &stack.ready.nats);
    let ended = cli::run(command).await.ok();
    assert_eq!(ended.out.lines().last(), Some("succeeded"), "{ended:?}");
}

#[tokio::test]
async fn the_page_for_a_browser_shows_jobs_as_they_happen() {
    let stack = newcomer().await;
    let bus = stack.bus().await;
    let page = stack.folder().join("page.html");
    std::fs::write(&page, block("html first-job", &stack)).unwrap();
    let job = json!({"id": "page-before", "task": "ping"});
    bus.publish("storage.default.high", &job).await;
    let (http, token) = (&stack.ready.http, &stack.ready.token);
    let mut browser = Chromium::open(&format!("file://{}", page.display())).await;
    browser.shows("Watch").await;
    let fill = format!(
        "{{ const form = document.forms[0]; form.address.value = '{http}'; \
         form.token.value = '{token}'; form.requestSubmit(); }}"
    );
    browser.value(&fill).await;
    browser.shows("ping succeeded").await;
    let params = json!({"disk": "page1", "size": "1MiB"});
    bus.succeed("storage.default.high", "create_disk", params)
        .await;
    browser.shows("create_disk succeeded").await;
}

#[tokio::test]
async fn the_console_opens_in_a_browser() {
    let stack = newcomer().await;
    let mut browser = Chromium::open(&format!("{}/", stack.ready.http)).await;
    browser.shows("virtbus").await;
}

#[tokio::test]
async fn the_first_job_with_our_own_command_line_works_as_it_stands_in_the_readme() {
    // One of its own: a list shows the newest, and others have many jobs.
    let stack = Stack::start().await;
    let ended = run_shell(&block("sh cli", &stack), None).await.ok();
    assert!(
        ended.out.contains("create_disk") && ended.out.contains("delete_disk"),
        "{ended:?}"
    );
}
