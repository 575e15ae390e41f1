//! What tools can do under real jobs: what their jobs need, and nothing else.

use super::{
    halted::stopped,
    site::{MIB, Site, program},
};
use rustix::process::{Signal, kill_process};
use serde_json::json;
use std::{fs, os::unix::net::UnixListener, path::Path};

/// A qemu-img that an image has taken over: it tries what it shouldn't, and only if nothing of
/// that works it does what it's asked to.
fn taken_over(folder: &Path, tries: &[String]) {
    let tries = tries.join("\n");
    let script = format!(
        "#!/bin/sh\n\
         if [ \"$1\" = create ]; then\n\
         for word; do target=$last; last=$word; done\n\
         (\n{tries}\n) 2>/dev/null && exit 9\n\
         fi\n\
         exec /usr/bin/qemu-img \"$@\"\n"
    );
    install(folder, &script);
}

/// Puts a script in the tool's place.
fn install(folder: &Path, script: &str) {
    let (text, tool) = (folder.join("script"), folder.join("qemu-img"));
    fs::write(&text, script).unwrap();
    // By a process that is over then: what this one has open to write, programs that tests beside
    // this one start have too for a moment, and nobody can run it meanwhile.
    let paths = [&text, &tool].map(|path| path.to_str().unwrap());
    program("install", &["-m", "755", paths[0], paths[1]]);
}

/// A site whose tools are those of this folder.
async fn site_with(tools: &Path) -> Site {
    Site::configured(|config| {
        config.tools_dir = camino::Utf8PathBuf::from_path_buf(tools.to_owned()).ok();
        config.cage.also_run = vec!["/bin".into(), "/usr/bin".into()];
    })
    .await
}

/// A qemu-img that says in its target what it was able to, and stops before it converts.
const TELLING: &str = r#"#!/bin/sh
if [ "$1" = convert ]; then
    for target; do source=$before; before=$target; done
    able() { if sh -c "$2" 2>/dev/null >/dev/null; then echo "$1" >>"$target"; fi; }
    able "reads its source" "cat '$source'"
    able "reads the host" "cat '{planted}'"
    able "changes the host" "echo changed >>'{planted}'"
    able "reads the pool" "cat '{pool}/.virtbus-pool'"
    able "makes files" "echo new >'{pool}/disks/new'"
    able "lists the host" "ls '{host}'"
    kill -STOP $$
fi
exec /usr/bin/qemu-img "$@"
"#;

#[tokio::test]
async fn a_live_tool_of_a_job_is_locked_in_within_its_limits() {
    let (tools, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let site = site_with(tools.path()).await;
    let planted = host.path().join("planted");
    fs::write(&planted, "a secret").unwrap();
    let script = TELLING
        .replace("{planted}", planted.to_str().unwrap())
        .replace("{host}", host.path().to_str().unwrap())
        .replace("{pool}", site.path("").to_str().unwrap());
    install(tools.path(), &script);
    site.filled_disk("d1").await;
    let params = json!({ "disk": "d1", "to": "d2", "format": "raw" });
    let job = site.job("j", "convert", params);
    let look = async {
        let pid = stopped(&site).await;
        let number = pid.as_raw_nonzero();
        let files = ["status", "limits", "stat"];
        let proc = files.map(|name| fs::read_to_string(format!("/proc/{number}/{name}")).unwrap());
        let told = fs::read_to_string(site.path("disks/.j.1.d2.part")).unwrap();
        kill_process(pid, Signal::CONT).unwrap();
        (proc, told)
    };
    let (done, ([status, limits, stat], told)) = tokio::join!(site.run(&job), look);
    done.unwrap();
    // Of what it tried, as it was in there: Landlock shows nowhere else.
    assert_eq!(told, "reads its source\n");
    assert_eq!(fs::read_to_string(&planted).unwrap(), "a secret");
    assert_eq!(site.files("disks"), ["d1.qcow2", "d2.raw"]);
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let line = line.unwrap_or_else(|| panic!("{name} in {text}"));
        line.split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(field(&status, "NoNewPrivs:"), "1");
    assert_eq!(field(&status, "Seccomp:"), "2");
    assert_eq!(field(&limits, "Max core file size"), "0");
    assert_eq!(field(&limits, "Max open files"), "256");
    let size: u64 = field(&limits, "Max file size").parse().unwrap();
    assert!((4 * MIB..128 * MIB).contains(&size), "{size}");
    assert!(field(&limits, "Max cpu time").parse::<u64>().is_ok());
    let nice = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16);
    assert_eq!(nice, Some("10"), "{stat}");
}

#[tokio::test]
async fn a_tool_that_was_taken_over_reaches_nothing_but_its_jobs_files() {
    let (tools, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let site = site_with(tools.path()).await;
    taken_over(tools.path(), &["false".to_owned()]);
    site.filled_disk("d1").await;
    let before = fs::read(site.path("disks/d1.qcow2")).unwrap();
    let planted = host.path().join("planted");
    fs::write(&planted, "a secret").unwrap();
    let listens = UnixListener::bind(host.path().join("socket")).unwrap();
    listens.set_nonblocking(true).unwrap();
    let (host, pool) = (host.path().display(), site.path("disks"));
    let pool = pool.display();
    let connects = format!(
        "perl -e 'use Socket; socket(S, AF_UNIX, SOCK_STREAM, 0) && \
         connect(S, sockaddr_un(\"{host}/socket\")) or exit 1'"
    );
    let tries = [
        format!("cat {host}/planted >> \"$target\""),
        format!("cat {pool}/d1.qcow2 >> \"$target\""),
        format!("cat {pool}/../.virtbus-pool >> \"$target\""),
        format!("echo changed >> {host}/planted"),
        format!("echo changed >> {pool}/d1.qcow2"),
        format!("echo new > {pool}/new"),
        format!("rm {pool}/d1.qcow2"),
        format!("mv \"$target\" {pool}/moved"),
        format!("chmod 777 {host}/planted"),
        "truncate -s 10G \"$target\"".to_owned(),
        connects,
        "unshare -U true".to_owned(),
        format!("kill -0 {}", std::process::id()),
    ];
    for (at, what) in tries.iter().enumerate() {
        taken_over(tools.path(), std::slice::from_ref(what));
        let job = site.job(
            &format!("j{at}"),
            "create_disk",
            json!({ "disk": format!("n{at}"), "size": "4MiB" }),
        );
        let done = site.run(&job).await;
        assert!(done.is_ok(), "{what}: {done:?}");
    }
    assert_eq!(fs::read(site.path("disks/d1.qcow2")).unwrap(), before);
    assert_eq!(fs::read_to_string(&planted).unwrap(), "a secret");
    assert!(listens.accept().is_err());
    // What it may do it's able to: then the job ends as one whose tool failed.
    taken_over(tools.path(), &["echo mine >> \"$target\"".to_owned()]);
    let params = json!({ "disk": "last", "size": "4MiB" });
    let error = site.refused("last", "create_disk", params).await;
    assert_eq!(error.code, virtbus_wire::Code::ToolFailed);
}
