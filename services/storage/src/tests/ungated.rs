//! Files that attack, given to the tool by somebody who forgot to look at them: what they aim at is
//! out of the tool's reach all the same.

use super::site::{MIB, Site, program};
use crate::{
    config::Cache,
    gate::{Passed, PassedChain},
    qemu_img::{Commit, Copy, Image, Resize, ToolError, chain::Act, chain::Snapshot},
};
use std::{
    fs,
    net::TcpListener,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, MetadataExt, symlink},
    },
    path::PathBuf,
};
use virtbus_wire::{
    Code,
    task::image::{Compress, ImageFormat, Qcow2Options},
};
use virtbus_worker::process;

const SECRET: &[u8] = b"the host's own secret ";

/// A file of the host beside the pool, a disk that was tampered with, and whoever may be called.
struct Trap {
    site: Site,
    host: PathBuf,
    content: Vec<u8>,
    disk: PathBuf,
    listener: TcpListener,
}

impl Trap {
    async fn set() -> Self {
        let site = Site::start().await;
        let host = site.dir.path().join("host-file");
        let content = SECRET.repeat(MIB as usize / SECRET.len());
        fs::write(&host, &content).unwrap();
        site.filled_disk("d1").await;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self {
            disk: site.path("disks/d1.qcow2"),
            host,
            content,
            listener,
            site,
        }
    }

    fn patch(&self, at: u64, bytes: &[u8]) {
        let file = fs::OpenOptions::new().write(true).open(&self.disk);
        file.unwrap().write_all_at(bytes, at).unwrap();
    }

    /// Names a backing, and no format: the tool finds out by itself.
    fn lies_on(&self, name: &str) {
        self.patch(2048, name.as_bytes());
        self.patch(8, &2048_u64.to_be_bytes());
        self.patch(16, &u32::try_from(name.len()).unwrap().to_be_bytes());
    }

    /// Has its data in another file.
    fn keeps_data_in(&self, name: &str) {
        self.patch(79, &[4]);
        let mut extension = 0x4441_5441_u32.to_be_bytes().to_vec();
        extension.extend(u32::try_from(name.len()).unwrap().to_be_bytes());
        extension.extend(name.as_bytes());
        extension.resize(extension.len().next_multiple_of(8) + 8, 0);
        self.patch(112, &extension);
    }

    fn passed(&self, format: ImageFormat) -> PassedChain {
        PassedChain::unseen(self.disk.to_str().unwrap(), format)
    }

    /// Copies the disk without a look at it.
    async fn copied(&self, format: ImageFormat, bytes_max: u64) -> Result<Vec<u8>, ToolError> {
        let target = self.site.path("disks/out.raw");
        let copy = Copy {
            source: self.passed(format),
            target: Image {
                path: target.to_str().unwrap().into(),
                format: ImageFormat::Raw,
            },
            compress: Compress::None,
            subformat: None,
            qcow2: Qcow2Options::default(),
            cache: Cache::Writeback,
            bandwidth: None,
            bytes_max,
        };
        let tool = &self.site.store.tool;
        let copied = tool.convert(copy, &process::Stop::new(), |_| {}).await;
        copied.map(|()| fs::read(target).unwrap())
    }

    fn lock(&self) -> OwnedFd {
        fs::File::create(self.site.path("lock")).unwrap().into()
    }

    /// Nobody got at what the disk aims at.
    fn holds(&self, what: &str) {
        assert!(fs::read(&self.host).unwrap() == self.content, "{what}");
        assert!(self.listener.accept().is_err(), "{what}: somebody called");
        let out = fs::read(self.site.path("disks/out.raw")).unwrap_or_default();
        let is_in = out.windows(SECRET.len()).any(|window| window == SECRET);
        assert!(!is_in, "{what}: the secret is in the copy");
    }
}

#[tokio::test]
async fn a_copy_reaches_no_file_of_the_host_and_nobody_else() {
    let trap = Trap::set().await;
    let good = fs::read(&trap.disk).unwrap();
    let host = trap.host.to_str().unwrap();
    let port = trap.listener.local_addr().unwrap().port();
    let copied = trap.copied(ImageFormat::Qcow2, 64 * MIB).await.unwrap();
    assert_eq!(copied.len() as u64, 4 * MIB);
    for name in [
        host.to_owned(),
        "../../host-file".to_owned(),
        format!(
            "json:{{\"driver\":\"raw\",\"file\":{{\"driver\":\"file\",\"filename\":\"{host}\"}}}}"
        ),
        format!("nbd://127.0.0.1:{port}/x"),
        "d1.qcow2".to_owned(),
    ] {
        fs::write(&trap.disk, &good).unwrap();
        trap.lies_on(&name);
        let copied = trap.copied(ImageFormat::Qcow2, 64 * MIB).await;
        assert!(copied.is_err(), "{name}");
        trap.holds(&name);
    }
    fs::write(&trap.disk, &good).unwrap();
    trap.keeps_data_in(host);
    assert!(trap.copied(ImageFormat::Qcow2, 64 * MIB).await.is_err());
    trap.holds("data");
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n\
         createType=\"monolithicFlat\"\nRW 2048 FLAT \"{host}\" 0\n"
    );
    fs::write(&trap.disk, text).unwrap();
    assert!(trap.copied(ImageFormat::Vmdk, 64 * MIB).await.is_err());
    trap.holds("a list of other files");
}

/// A look follows no link that came after the gate: not to a sound image of the host's either.
#[tokio::test]
async fn a_link_in_a_disks_place_is_not_followed() {
    let trap = Trap::set().await;
    let (tool, never) = (&trap.site.store.tool, process::Stop::new());
    let look = async || {
        let image = trap.passed(ImageFormat::Qcow2).alone();
        tool.info(image, &never).await
    };
    assert_eq!(look().await.unwrap().virtual_size, 4 * MIB);
    let image = trap.site.dir.path().join("host-image");
    fs::rename(&trap.disk, &image).unwrap();
    symlink(&image, &trap.disk).unwrap();
    let refused = look().await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::Internal), "{refused:?}");
    trap.holds("a link");
}

#[tokio::test]
async fn what_changes_a_disk_changes_no_file_of_the_host() {
    let trap = Trap::set().await;
    let good = fs::read(&trap.disk).unwrap();
    let (tool, never) = (&trap.site.store.tool, process::Stop::new());
    let host = trap.host.to_str().unwrap();
    trap.keeps_data_in(host);
    let resize = Resize {
        image: trap.passed(ImageFormat::Qcow2),
        size: 9 * MIB,
        shrink: false,
    };
    assert!(tool.resize(resize, trap.lock(), &never).await.is_err());
    trap.holds("resize");
    let snapshot = Snapshot {
        image: trap.passed(ImageFormat::Qcow2),
        act: Act::Create,
        name: "s1".to_owned(),
    };
    assert!(tool.snapshot(snapshot, trap.lock(), &never).await.is_err());
    trap.holds("snapshot");
    fs::write(&trap.disk, &good).unwrap();
    trap.lies_on(host);
    let commit = Commit {
        image: trap.passed(ImageFormat::Qcow2),
        into: Passed::unseen(trap.disk.to_str().unwrap(), ImageFormat::Qcow2),
        empties: true,
        cache: Cache::Writeback,
        bandwidth: None,
        bytes_max: 64 * MIB,
    };
    let locks = vec![trap.lock()];
    assert!(tool.commit(commit, locks, &never, |_| {}).await.is_err());
    trap.holds("commit");
}

#[tokio::test]
async fn a_copy_that_grows_beyond_what_was_measured_ends() {
    let trap = Trap::set().await;
    let path = trap.disk.to_str().unwrap();
    program("qemu-img", &["resize", "-q", "-f", "qcow2", path, "1G"]);
    program("qemu-io", &["-f", "qcow2", "-c", "write -P 7 0 64M", path]);
    let grown = trap.copied(ImageFormat::Qcow2, 8 * MIB).await.unwrap_err();
    assert_eq!(grown.code(), Some(Code::ImageTooLarge), "{grown:?}");
    let out = fs::metadata(trap.site.path("disks/out.raw")).unwrap();
    assert!(
        out.blocks() * 512 <= 8 * MIB,
        "{} bytes",
        out.blocks() * 512
    );
}
