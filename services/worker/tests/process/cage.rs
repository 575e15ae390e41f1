//! What a tool in its cage can't do: each is tried by a real process, beside the same one outside.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt as _, symlink},
        net::UnixListener,
    },
    path::Path,
};
use virtbus_worker::process::{Cage, Calls, CommandLine, RunOptions, Stdout, Stop, offer, run};

use super::{pids, sh, until, wide};

const SECRET: &str = "planted-secret";

/// A script's cage: the shell and what the scripts here call.
fn cage() -> Cage {
    let mut cage = Cage::new();
    let programs = ["/bin", "/usr/bin"];
    cage.run.extend(programs.map(Into::into));
    cage
}

/// What a script says, and what it complains about.
async fn said(line: CommandLine) -> String {
    let options = RunOptions {
        stdout: Stdout::Capture { bytes_max: 1 << 20 },
        ..RunOptions::default()
    };
    let exit = run(&line, options).await.unwrap();
    format!(
        "{:?} {} {}",
        exit.ended,
        String::from_utf8_lossy(&exit.stdout),
        exit.stderr
    )
}

/// A script that must do outside what it must not do inside.
async fn only_outside(script: &str, done: &str, refused: &str, cage: Cage) {
    let outside = said(sh(script)).await;
    assert!(outside.contains(done), "{script} outside: {outside}");
    let inside = said(sh(script).cage(cage)).await;
    assert!(!inside.contains(done), "{script} inside: {inside}");
    assert!(inside.contains(refused), "{script} inside: {inside}");
}

#[test]
fn this_kernel_offers_all_of_a_cage() {
    let offer = offer();
    assert!(offer.holds(), "{offer}");
    assert!(
        offer.landlock.is_some_and(|version| version >= 4),
        "{offer}"
    );
    // The probe locked only itself in.
    assert!(fs::read_dir("/").is_ok());
}

#[tokio::test]
async fn a_file_of_the_host_is_not_read_written_or_changed() {
    let dir = tempfile::tempdir().unwrap();
    let planted = dir.path().join("planted");
    fs::write(&planted, SECRET).unwrap();
    let path = planted.display();
    let denied = "Permission denied";
    only_outside(&format!("cat {path}"), SECRET, denied, cage()).await;
    let way_around = format!("cd /; cat ./proc/self/root{path}");
    only_outside(&way_around, SECRET, denied, cage()).await;
    let link = format!("ln {path} {path}.l && echo linked");
    only_outside(&link, "linked", "", cage()).await;
    let append = format!("echo more >> {path} && echo written");
    only_outside(&append, "written", "", cage()).await;
    let made = format!("echo > {path}.new && echo made");
    only_outside(&made, "made", "", cage()).await;
    let mode = fs::metadata(&planted).unwrap().mode();
    let chmod = format!(
        "chmod 777 {path} && chmod {:o} {path} && echo changed",
        mode & 0o777
    );
    only_outside(&chmod, "changed", "not permitted", cage()).await;
    let list = format!("ls {} && echo listed", dir.path().display());
    only_outside(&list, "listed", denied, cage()).await;
}

#[tokio::test]
async fn what_it_is_given_it_may_use_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("read"), "to be read").unwrap();
    fs::write(at("beside"), SECRET).unwrap();
    let mut cage = cage();
    cage.read.push(at("read"));
    cage.write.push(at("written"));
    let script = format!(
        "cd {0}; cat read; echo new > written; cat written; echo x > read; cat beside",
        dir.path().display()
    );
    let inside = said(sh(&script).cage(cage)).await;
    assert!(
        inside.contains("to be read") && inside.contains("new"),
        "{inside}"
    );
    assert!(!inside.contains(SECRET), "{inside}");
    assert_eq!(fs::read_to_string(at("read")).unwrap(), "to be read");
    assert_eq!(fs::read_to_string(at("written")).unwrap(), "new\n");
}

#[tokio::test]
async fn what_is_no_plain_file_keeps_the_tool_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("secret"), SECRET).unwrap();
    fs::write(at("plain"), "to be read").unwrap();
    symlink(at("secret"), at("link")).unwrap();
    symlink(at("nothing"), at("nowhere")).unwrap();
    drop(UnixListener::bind(at("socket")).unwrap());
    for (name, is_plain) in [
        ("plain", true),
        ("absent", true),
        ("link", false),
        ("nowhere", false),
        ("socket", false),
    ] {
        let mut cage = cage();
        cage.files.push(at(name));
        let line = sh(&format!("cat {}", at(name).display())).cage(cage);
        let ran = run(&line, RunOptions::default()).await;
        assert_eq!(ran.is_ok(), is_plain, "{name}: {ran:?}");
    }
}

#[tokio::test]
async fn no_socket_leads_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let _listens = UnixListener::bind(&path).unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port();
    let local = format!(
        r#"perl -e 'use Socket; socket(S, AF_UNIX, SOCK_STREAM, 0) && connect(S, sockaddr_un("{}")) ? print "there" : print $!'"#,
        path.display()
    );
    let net = format!(
        r#"perl -e 'use Socket; socket(S, AF_INET, SOCK_STREAM, 0) && connect(S, sockaddr_in({port}, inet_aton("127.0.0.1"))) ? print "there" : print $!'"#
    );
    let refused = "Operation not permitted";
    only_outside(&local, "there", refused, cage()).await;
    only_outside(&net, "there", refused, cage()).await;
    // What runs a virtual machine has local sockets, but none to the network.
    let machine = Cage {
        calls: Calls::Machine,
        ..cage()
    };
    only_outside(&net, "there", refused, machine).await;
}

#[tokio::test]
async fn no_process_outside_is_reached() {
    let me = std::process::id();
    only_outside(
        &format!("kill -0 {me} && echo reached"),
        "reached",
        "not permitted",
        cage(),
    )
    .await;
    let environ = format!("cat /proc/{me}/environ >/dev/null && echo reached");
    only_outside(&environ, "reached", "denied", cage()).await;
    let namespace = "unshare -U true && echo made";
    only_outside(namespace, "made", "not permitted", cage()).await;
}

#[tokio::test]
async fn a_program_it_was_not_given_does_not_run() {
    let mut line = CommandLine::new("/bin/sh")
        .args(["-c", "/usr/bin/id; echo after"])
        .limits(wide());
    line.cage = Some(Cage::new());
    let inside = said(line).await;
    assert!(inside.contains("Permission denied"), "{inside}");
    assert!(!inside.contains("uid="), "{inside}");
}

#[tokio::test]
async fn nothing_grows_beyond_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let mut cage = cage();
    cage.own.push(dir.path().to_owned());
    let mut line = sh(&format!(
        "cd {}; head -c 100000 /dev/zero > big; echo $?",
        dir.path().display()
    ));
    cage.devices.push("/dev/zero".into());
    line.limits.file_size_bytes = 4096;
    let inside = said(line.cage(cage)).await;
    let length = fs::metadata(dir.path().join("big")).unwrap().len();
    assert_eq!(length, 4096, "{inside}");
}

#[tokio::test]
async fn a_live_tool_shows_its_limits_and_its_locks() {
    let (mut tell, numbers) = pids();
    let stop = Stop::new();
    let mut line = sh("echo $$; exec sleep 600").priority(7, None).cage(cage());
    line.limits.open_files = 33;
    line.limits.file_size_bytes = 123_456;
    line.limits.cpu_seconds = 77;
    let options = RunOptions {
        stop: stop.clone(),
        stdout: Stdout::Records(&mut tell),
        ..RunOptions::default()
    };
    let look = async {
        let pid = numbers.take(1).await[0];
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
        until("the shell became the tool", || {
            read("comm").trim() == "sleep"
        })
        .await;
        let (status, limits, stat) = (read("status"), read("limits"), read("stat"));
        stop.kill();
        (status, limits, stat)
    };
    let (_, (status, limits, stat)) = tokio::join!(run(&line, options), look);
    let field = |text: &str, name: &str| -> Vec<String> {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let words = line.unwrap_or_else(|| panic!("{name} in {text}"));
        words.split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(field(&status, "NoNewPrivs:"), ["1"]);
    assert_eq!(field(&status, "Seccomp:"), ["2"]);
    let capabilities = u64::from_str_radix(&field(&status, "CapEff:")[0], 16).unwrap();
    // To read and write files of others (bits 1 and 2): root's tools keep no other right.
    assert_eq!(capabilities & !0b110, 0, "{status}");
    assert_eq!(field(&limits, "Max open files")[..2], ["33", "33"]);
    assert_eq!(field(&limits, "Max file size")[..2], ["123456", "123456"]);
    assert_eq!(field(&limits, "Max cpu time")[..2], ["77", "82"]);
    assert_eq!(field(&limits, "Max core file size")[..2], ["0", "0"]);
    let nice = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16);
    assert_eq!(nice, Some("7"), "{stat}");
}

#[tokio::test]
async fn the_worker_and_other_tools_stay_free() {
    let mut line = sh("true").priority(19, None);
    line.cage = Some(cage());
    said(line).await;
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    assert!(status.contains("Seccomp:\t0"), "{status}");
    let free = said(sh("cat /proc/self/status; nice")).await;
    assert!(
        free.contains("NoNewPrivs:\t0") && free.contains("Seccomp:\t0"),
        "{free}"
    );
    assert!(Path::new("/proc/self/status").exists());
}

#[tokio::test]
async fn a_folder_that_is_gone_keeps_the_tool_from_starting() {
    let mut cage = cage();
    cage.write.push("/nowhere/at/all".into());
    let error = run(&sh("true").cage(cage), RunOptions::default())
        .await
        .unwrap_err();
    assert!(!error.to_string().contains("nowhere"), "{error}");
}
