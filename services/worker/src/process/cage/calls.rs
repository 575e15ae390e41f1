//! The part of a cage that a filter of system calls holds: ways out that no path leads to.

use super::Calls;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};
use std::{collections::BTreeMap, io, sync::LazyLock};

/// What no tool asks for: parts of the kernel that attacks on it go through, and ways around the
/// paths that Landlock looks at.
const NEVER: [i64; 50] = [
    // Another view of the files.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_quotactl,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_fanotify_init,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // The kernel itself.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_mq_open,
    libc::SYS_shmget,
    libc::SYS_semget,
    libc::SYS_msgget,
];

/// What doesn't go by an open file, so that Landlock doesn't see it: who owns a file, and who may
/// read it.
const ATTRIBUTES: [i64; 11] = [
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
];
/// The same, and rights to ports, by the calls that only this architecture has.
#[cfg(target_arch = "x86_64")]
const OLD_ATTRIBUTES: [i64; 3] = [libc::SYS_chmod, libc::SYS_chown, libc::SYS_lchown];
#[cfg(target_arch = "x86_64")]
const OLD_NEVER: [i64; 2] = [libc::SYS_iopl, libc::SYS_ioperm];
#[cfg(not(target_arch = "x86_64"))]
const OLD_ATTRIBUTES: [i64; 0] = [];
#[cfg(not(target_arch = "x86_64"))]
const OLD_NEVER: [i64; 0] = [];

/// What programs do without where the kernel is said not to have it: rings, which make sockets
/// that no filter sees, and a way to start threads whose arguments a filter can't see.
const UNKNOWN: [i64; 4] = [
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_clone3,
];

/// Namespaces that a new process could be in.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// Set in the number of a call by the second set of calls that this architecture has.
#[cfg(target_arch = "x86_64")]
const SECOND_SET: Option<i64> = Some(0x4000_0000);
#[cfg(not(target_arch = "x86_64"))]
const SECOND_SET: Option<i64> = None;

type Compiled = Result<[BpfProgram; 2], String>;

static FILES: LazyLock<Compiled> = LazyLock::new(|| filters(Calls::Files));
static MACHINE: LazyLock<Compiled> = LazyLock::new(|| filters(Calls::Machine));

/// Takes the calls from this thread and all that it starts. To be called last.
pub(super) fn forbid(calls: Calls) -> io::Result<()> {
    let compiled = match calls {
        Calls::Files => &FILES,
        Calls::Machine => &MACHINE,
    };
    let unsupported = |said: &String| io::Error::new(io::ErrorKind::Unsupported, said.clone());
    let programs = compiled.as_ref().map_err(unsupported)?;
    programs
        .iter()
        .try_for_each(|program| apply_filter(program))
        .map_err(io::Error::other)
}

fn filters(calls: Calls) -> Compiled {
    let compile = || -> Result<[BpfProgram; 2], seccompiler::BackendError> {
        let unknown = UNKNOWN.map(|call| (call, Vec::new())).into();
        Ok([
            filter(refused(calls)?, libc::EPERM)?,
            filter(unknown, libc::ENOSYS)?,
        ])
    };
    compile().map_err(|error| error.to_string())
}

fn filter(
    mut rules: BTreeMap<i64, Vec<SeccompRule>>,
    errno: i32,
) -> Result<BpfProgram, seccompiler::BackendError> {
    if let Some(bit) = SECOND_SET {
        let again: Vec<_> = rules
            .iter()
            .map(|(call, rule)| (call | bit, rule.clone()))
            .collect();
        rules.extend(again);
    }
    let errno = SeccompAction::Errno(errno.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, errno, arch)?.try_into()
}

/// Calls that are refused: always, or with these arguments.
fn refused(calls: Calls) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let only = |number, op, value| {
        let condition = SeccompCondition::new(number, SeccompCmpArgLen::Dword, op, value);
        SeccompRule::new(vec![condition?])
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = NEVER
        .into_iter()
        .chain(OLD_NEVER)
        .map(|call| (call, Vec::new()))
        .collect();
    let spaces = NAMESPACES.map(|space| {
        let bit = u64::from(space.unsigned_abs());
        only(0, SeccompCmpOp::MaskedEq(bit), bit)
    });
    rules.insert(
        libc::SYS_clone,
        spaces.into_iter().collect::<Result<_, _>>()?,
    );
    match calls {
        Calls::Files => {
            let attributes = ATTRIBUTES.into_iter().chain(OLD_ATTRIBUTES);
            rules.extend(attributes.map(|call| (call, Vec::new())));
            rules.insert(libc::SYS_socket, Vec::new());
        }
        Calls::Machine => {
            let local = u64::from(libc::AF_UNIX.unsigned_abs());
            let other = only(0, SeccompCmpOp::Ne, local)?;
            rules.insert(libc::SYS_socket, vec![other]);
        }
    }
    Ok(rules)
}
