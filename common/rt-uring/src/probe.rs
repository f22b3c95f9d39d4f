//! Whether this kernel lets us use io_uring.

use io_uring::IoUring;

/// Says in one line, with the remedy, why io_uring can't be used here.
pub fn probe() -> Result<(), String> {
    let built = IoUring::<io_uring::squeue::Entry, io_uring::cqueue::Entry>::builder()
        .setup_coop_taskrun()
        .setup_single_issuer()
        .build(8);
    let Err(err) = built else {
        return Ok(());
    };
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    Err(explain(err.raw_os_error().unwrap_or(0), &err.to_string(), disabled.trim()))
}

fn explain(errno: i32, text: &str, disabled: &str) -> String {
    match errno {
        libc::EPERM if matches!(disabled, "1" | "2") => format!(
            "io_uring is switched off (kernel.io_uring_disabled = {disabled}): run \
             `sysctl -w kernel.io_uring_disabled=0`"
        ),
        libc::EPERM | libc::ENOSYS => format!(
            "io_uring is forbidden here ({text}), probably by a container's seccomp profile: allow \
             io_uring_setup, io_uring_enter and io_uring_register in it \
             (docker: --security-opt seccomp=unconfined)"
        ),
        libc::EINVAL => format!("io_uring of this kernel is too old ({text}): Linux 6.1 or later is needed"),
        libc::ENOMEM => {
            format!("no memory for io_uring ({text}): raise the limit of locked memory (`ulimit -l`)")
        }
        libc::EMFILE | libc::ENFILE => {
            format!("no file descriptor for io_uring ({text}): raise the limit (`ulimit -n`)")
        }
        _ => format!("cannot use io_uring: {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_names_its_remedy() {
        assert!(explain(libc::EPERM, "x", "2").contains("sysctl -w kernel.io_uring_disabled=0"));
        assert!(explain(libc::EPERM, "x", "0").contains("seccomp"));
        assert!(explain(libc::ENOSYS, "x", "").contains("seccomp"));
        assert!(explain(libc::EINVAL, "x", "").contains("Linux 6.1"));
        assert!(explain(libc::ENOMEM, "x", "").contains("ulimit -l"));
    }
}
