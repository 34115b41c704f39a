//! Signals, and with them the only `unsafe` code of the program.
//!
//! While a child runs on our behalf, the signals that usually end a process are handed on to it
//! and its end decides ours.  A signal from the terminal (`si_code` is `SI_KERNEL`) reaches the
//! whole foreground process group, the child included, and is not sent twice to a child of the
//! same group.  Handlers are reset by `exec` (signal(7)), so the child starts with the
//! dispositions that we were given; a signal that was ignored stays ignored in both.

#![expect(unsafe_code, reason = "sigaction has no safe form")]

use std::sync::atomic::{AtomicI32, Ordering};

/// `kill`'s first argument: 0 nobody, `STARTING` a child without a number yet, negative a group.
static TARGET: AtomicI32 = AtomicI32::new(0);
static LAST: AtomicI32 = AtomicI32::new(0);
const STARTING: i32 = i32::MIN;

const FORWARDED: [i32; 6] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// Handing on, from before a child starts until this value is dropped.
pub struct Forwarding {
    previous: [libc::sigaction; FORWARDED.len()],
}

impl Forwarding {
    pub fn begin() -> Self {
        LAST.store(0, Ordering::SeqCst);
        TARGET.store(STARTING, Ordering::SeqCst);
        let previous = FORWARDED.map(|signal| {
            // SAFETY: all-zero is a valid sigaction (SIG_DFL, empty mask); both pointers are to
            // live values, and the handler only does what signal-safety(7) allows.
            unsafe {
                let mut previous: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, std::ptr::null(), &raw mut previous);
                if previous.sa_sigaction == libc::SIG_DFL {
                    let mut action: libc::sigaction = std::mem::zeroed();
                    action.sa_sigaction = handle as *const () as libc::sighandler_t;
                    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
                    libc::sigaction(signal, &raw const action, std::ptr::null_mut());
                }
                previous
            }
        });
        Self { previous }
    }

    /// The child runs: `target` is its process number, or minus that of its process group.
    pub fn to(&self, target: i32) {
        TARGET.store(target, Ordering::SeqCst);
        let early = LAST.load(Ordering::SeqCst);
        if early != 0 {
            send(target, early);
        }
    }

    /// The child ended and is about to be reaped, so its number may soon be another's.
    pub fn end(&self) {
        TARGET.store(0, Ordering::SeqCst);
    }

    /// The last signal that arrived while the child ran.
    pub fn received(&self) -> Option<i32> {
        Some(LAST.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        for (signal, previous) in FORWARDED.iter().zip(&self.previous) {
            // SAFETY: restores what sigaction itself returned.
            unsafe {
                libc::sigaction(*signal, &raw const *previous, std::ptr::null_mut());
            }
        }
        TARGET.store(0, Ordering::SeqCst);
    }
}

extern "C" fn handle(signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    LAST.store(signal, Ordering::SeqCst);
    // SAFETY: errno is thread-local and saved around the calls, which are async-signal-safe; the
    // kernel passes a valid siginfo because of SA_SIGINFO.
    unsafe {
        let errno = *libc::__errno_location();
        match TARGET.load(Ordering::SeqCst) {
            STARTING => {}
            0 => {
                libc::signal(signal, libc::SIG_DFL);
                libc::raise(signal);
            }
            target => {
                let reached_already = target > 0 && (*info).si_code == libc::SI_KERNEL;
                if !reached_already {
                    libc::kill(target, signal);
                }
            }
        }
        *libc::__errno_location() = errno;
    }
}

/// Gives a signal its default action.
pub fn reset(signal: i32) {
    // SAFETY: signal takes two integers; a number that is none is refused.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
    }
}

/// `kill(2)`; a target that is gone is no trouble.
pub fn send(target: i32, signal: i32) {
    // SAFETY: kill takes two integers and touches no memory of ours.
    unsafe {
        libc::kill(target, signal);
    }
}

/// Ends this process as the child ended, so that the caller sees the same wait status.
pub fn die_by(signal: i32) -> ! {
    // SAFETY: plain libc calls on integers and live local values.  The core limit keeps our dump
    // from replacing the child's.
    unsafe {
        let limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        libc::setrlimit(libc::RLIMIT_CORE, &raw const limit);
        libc::signal(signal, libc::SIG_DFL);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
        libc::raise(signal);
    }
    std::process::exit(128 + signal)
}
