//! The observer: preloaded into rustc by the shim, it notes what a compile asks the system for.
//!
//! A procedural macro may read files and variables that rustc does not report.  This library stands
//! in front of the C library's functions for that, calls the real one, and puts the name into a
//! buffer that it shares with the shim (`src/shim/hidden.rs`, which also says what counts).  It
//! judges nothing, allocates nothing, makes no system call of its own once it is attached, and
//! leaves `errno` as the real function left it.
//!
//! Variables are not noted before rustc opens its first shared library (a macro's): until then it
//! asks for its own.  Files are, because the assembler's `.incbin` needs no macro.  A program that
//! becomes another (a rustup proxy, a script) leaves its notes behind when the other begins.
//!
//! Compiled by `build.rs` without the standard library and embedded in the program.
#![no_std]
#![allow(clippy::missing_safety_doc)]

use core::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

// The precompiled `core` names this function of the standard library's, which exists in rustc and
// in no other program that a preloaded library meets.  Nothing unwinds through this library, so it
// is never called; hidden, because rustc must go on finding its own.
core::arch::global_asm!(
    ".globl rust_eh_personality",
    ".hidden rust_eh_personality",
    "rust_eh_personality:",
    ".long 0",
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: abort never returns.
    unsafe { abort() }
}

unsafe extern "C" {
    fn abort() -> !;
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn mmap(
        at: *mut c_void,
        length: usize,
        protection: c_int,
        flags: c_int,
        fd: c_int,
        offset: c_long,
    ) -> *mut c_void;
    fn strtol(text: *const c_char, end: *mut *mut c_char, base: c_int) -> c_long;
    fn __errno_location() -> *mut c_int;
    static mut environ: *const *const c_char;
}

const RTLD_NEXT: *mut c_void = -1_isize as *mut c_void;
const ENOENT: c_int = 2;
const ENOTDIR: c_int = 20;
const O_ACCMODE: c_int = 3;
const O_CREAT: c_int = 0o100;
const O_DIRECTORY: c_int = 0o200_000;
const AT_FDCWD: c_int = -100;

/// The buffer's name in the environment: the number of an open file, as the shim left it.
const FILE: &CStr = c"CARGO_COW_OBSERVER";

// --- the buffer, as `src/shim/hidden.rs` reads it -------------------------------------------------

const LENGTH: usize = 4 << 20;
/// Bytes before the first note: magic, end of the notes, notes that did not fit.
const HEADER: usize = 32;
const MAGIC: u64 = 0x0031_7765_6976_776f;

static BUFFER: AtomicPtr<u8> = AtomicPtr::new(null_mut());
/// Whether a macro's library was opened.
static MACROS: AtomicBool = AtomicBool::new(false);
/// Hashes of notes that are there already.  Two that collide would lose one: 64 bits make that
/// less likely than a fault of the memory.
static SEEN: [AtomicU64; 1 << 16] = [const { AtomicU64::new(0) }; 1 << 16];

fn word(buffer: *mut u8, index: usize) -> &'static AtomicU64 {
    // SAFETY: the mapping is LENGTH bytes, page aligned, and stays for the life of the process;
    // every access to its header is atomic.
    unsafe { &*buffer.add(index * 8).cast::<AtomicU64>() }
}

/// One note: kind, what came of it, length of the name (two bytes), name.
fn note(kind: u8, outcome: u8, name: &[u8]) {
    let buffer = BUFFER.load(Ordering::Acquire);
    if buffer.is_null() || (kind == b'E' && !MACROS.load(Ordering::Relaxed)) {
        return;
    }
    if !is_new(kind, outcome, name) {
        return;
    }
    let Ok(length) = u16::try_from(name.len()) else {
        word(buffer, 2).fetch_add(1, Ordering::Relaxed);
        return;
    };
    let size = 4 + name.len() as u64;
    let at = word(buffer, 1).fetch_add(size, Ordering::Relaxed);
    if at + size > (LENGTH - HEADER) as u64 {
        word(buffer, 2).fetch_add(1, Ordering::Relaxed);
        return;
    }
    let [low, high] = length.to_le_bytes();
    // SAFETY: `fetch_add` gave these bytes to us alone, and they lie inside of the mapping.
    unsafe {
        let start = buffer.add(HEADER + at as usize);
        for (offset, byte) in [kind, outcome, low, high].into_iter().enumerate() {
            start.add(offset).write(byte);
        }
        core::ptr::copy_nonoverlapping(name.as_ptr(), start.add(4), name.len());
    }
}

fn is_new(kind: u8, outcome: u8, name: &[u8]) -> bool {
    // FNV-1a
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in [kind, outcome].iter().chain(name) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let hash = hash.max(1);
    let mut slot = (hash ^ (hash >> 32)) as usize;
    for _ in 0..64 {
        let place = &SEEN[slot & 0xffff];
        match place.compare_exchange(0, hash, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return true,
            Err(there) if there == hash => return false,
            Err(_) => slot += 1,
        }
    }
    true // crowded: noted twice, at worst
}

unsafe fn text<'a>(name: *const c_char) -> &'a [u8] {
    if name.is_null() {
        return b"";
    }
    // SAFETY: the caller of a C function passes a string that ends, or the real one fails, too.
    unsafe { CStr::from_ptr(name) }.to_bytes()
}

const DONE: u8 = 0;
const MISSING: u8 = 1;
const FAILED: u8 = 2;

fn outcome(good: bool) -> u8 {
    if good {
        return DONE;
    }
    // SAFETY: the thread's own errno.
    match unsafe { *__errno_location() } {
        ENOENT | ENOTDIR => MISSING,
        _ => FAILED,
    }
}

#[used]
#[unsafe(link_section = ".init_array")]
static ATTACH: extern "C" fn() = attach;

extern "C" fn attach() {
    // SAFETY: the environment is read before any thread but this one runs; the file number is the
    // shim's promise, and a mapping that fails leaves everything switched off.
    unsafe {
        let value = lookup(FILE.to_bytes());
        if value.is_null() {
            return;
        }
        let file = strtol(value, null_mut(), 10);
        // PROT_READ | PROT_WRITE, MAP_SHARED
        let buffer = mmap(null_mut(), LENGTH, 3, 1, file as c_int, 0);
        if buffer as isize == -1 {
            return;
        }
        let buffer = buffer.cast::<u8>();
        for index in [1, 2] {
            word(buffer, index).store(0, Ordering::Relaxed);
        }
        word(buffer, 0).store(MAGIC, Ordering::Relaxed);
        BUFFER.store(buffer, Ordering::Release);
    }
}

/// `getenv` without noting it.
unsafe fn lookup(name: &[u8]) -> *const c_char {
    // SAFETY: `environ` ends with a null pointer, its entries are strings.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            if let Some(value) = value_of(*entry, name) {
                return value;
            }
            entry = entry.add(1);
        }
    }
    null()
}

unsafe fn value_of(entry: *const c_char, name: &[u8]) -> Option<*const c_char> {
    // SAFETY: as in `lookup`; never past the end of the entry, as a differing byte ends it.
    unsafe {
        for (offset, byte) in name.iter().enumerate() {
            if *entry.add(offset) as u8 != *byte {
                return None;
            }
        }
        (*entry.add(name.len()) as u8 == b'=').then(|| entry.add(name.len() + 1))
    }
}

// --- the functions ------------------------------------------------------------------------------

/// The next definition of a function, found once.
macro_rules! real {
    ($name:ident, $kind:ty) => {{
        static FOUND: AtomicUsize = AtomicUsize::new(0);
        let mut found = FOUND.load(Ordering::Relaxed);
        if found == 0 {
            // SAFETY: a constant string that ends with a zero.
            found = unsafe {
                dlsym(RTLD_NEXT, concat!(stringify!($name), "\0").as_ptr().cast()) as usize
            };
            if found == 0 {
                // SAFETY: abort never returns.  Who calls a function that nobody has was linked
                // against another C library.
                unsafe { abort() }
            }
            FOUND.store(found, Ordering::Relaxed);
        }
        // SAFETY: the C library's function of this name has this type.
        unsafe { core::mem::transmute::<usize, $kind>(found) }
    }};
}

unsafe fn noted_open(directory: c_int, path: *const c_char, flags: c_int, result: c_int) {
    // SAFETY: the caller's own string.
    let path = unsafe { text(path) };
    let listed = flags & O_DIRECTORY != 0;
    let kind = if directory != AT_FDCWD && path.first() != Some(&b'/') {
        if listed {
            return; // so the standard library removes a tree that it made
        }
        b'?'
    } else if flags & (O_ACCMODE | O_CREAT) != 0 {
        b'W'
    } else if listed {
        b'D'
    } else {
        b'F'
    };
    note(kind, outcome(result >= 0), path);
}

// A variadic function's integers come in the same registers as anybody's on the systems this is
// built for (x86-64 and AArch64 Linux), so that the mode can be an ordinary argument.
macro_rules! open {
    ($($name:ident)*) => { $(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
            let real = real!($name, unsafe extern "C" fn(*const c_char, c_int, c_uint) -> c_int);
            // SAFETY: the caller's own arguments.
            unsafe {
                let result = real(path, flags, mode);
                noted_open(AT_FDCWD, path, flags, result);
                result
            }
        }
    )* };
}
open!(open open64);

macro_rules! openat {
    ($($name:ident)*) => { $(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            directory: c_int, path: *const c_char, flags: c_int, mode: c_uint,
        ) -> c_int {
            let real = real!(
                $name, unsafe extern "C" fn(c_int, *const c_char, c_int, c_uint) -> c_int
            );
            // SAFETY: the caller's own arguments.
            unsafe {
                let result = real(directory, path, flags, mode);
                noted_open(directory, path, flags, result);
                result
            }
        }
    )* };
}
openat!(openat openat64);

// What a library of C that checks its buffers calls where the flags are no constant.
macro_rules! open_2 {
    ($($name:ident)*) => { $(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(path: *const c_char, flags: c_int) -> c_int {
            let real = real!($name, unsafe extern "C" fn(*const c_char, c_int) -> c_int);
            // SAFETY: the caller's own arguments.
            unsafe {
                let result = real(path, flags);
                noted_open(AT_FDCWD, path, flags, result);
                result
            }
        }
    )* };
}
open_2!(__open_2 __open64_2);

macro_rules! fopen {
    ($($name:ident)*) => { $(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(path: *const c_char, mode: *const c_char) -> *mut c_void {
            let real = real!(
                $name, unsafe extern "C" fn(*const c_char, *const c_char) -> *mut c_void
            );
            // SAFETY: the caller's own arguments.
            unsafe {
                let result = real(path, mode);
                let kind = if text(mode).first() == Some(&b'r') { b'F' } else { b'W' };
                note(kind, outcome(!result.is_null()), text(path));
                result
            }
        }
    )* };
}
fopen!(fopen fopen64);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn opendir(path: *const c_char) -> *mut c_void {
    let real = real!(opendir, unsafe extern "C" fn(*const c_char) -> *mut c_void);
    // SAFETY: the caller's own arguments.
    unsafe {
        let result = real(path);
        note(b'D', outcome(!result.is_null()), text(path));
        result
    }
}

macro_rules! by_path {
    ($kind:literal: $($name:ident($($argument:ident: $type:ty),*);)*) => { $(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(path: *const c_char $(, $argument: $type)*) -> c_int {
            let real = real!($name, unsafe extern "C" fn(*const c_char $(, $type)*) -> c_int);
            // SAFETY: the caller's own arguments.
            unsafe {
                let result = real(path $(, $argument)*);
                note($kind, outcome(result == 0), text(path));
                result
            }
        }
    )* };
}
by_path! { b'S':
    stat(to: *mut c_void);
    stat64(to: *mut c_void);
    lstat(to: *mut c_void);
    lstat64(to: *mut c_void);
    access(mode: c_int);
}
by_path! { b'C': chdir(); }

unsafe fn noted_at(directory: c_int, path: *const c_char, good: bool) {
    // SAFETY: the caller's own string.
    let path = unsafe { text(path) };
    // Of an open file, or of an entry of a directory that was listed.
    if directory == AT_FDCWD || path.first() == Some(&b'/') {
        note(b'S', outcome(good), path);
    }
}

macro_rules! stat_at {
    ($($name:ident)*) => { $(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            directory: c_int, path: *const c_char, to: *mut c_void, flags: c_int,
        ) -> c_int {
            let real = real!(
                $name, unsafe extern "C" fn(c_int, *const c_char, *mut c_void, c_int) -> c_int
            );
            // SAFETY: the caller's own arguments.
            unsafe {
                let result = real(directory, path, to, flags);
                noted_at(directory, path, result == 0);
                result
            }
        }
    )* };
}
stat_at!(fstatat fstatat64);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn statx(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
    mask: c_uint,
    to: *mut c_void,
) -> c_int {
    let real = real!(
        statx,
        unsafe extern "C" fn(c_int, *const c_char, c_int, c_uint, *mut c_void) -> c_int
    );
    // SAFETY: the caller's own arguments.
    unsafe {
        let result = real(directory, path, flags, mask, to);
        noted_at(directory, path, result == 0);
        result
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn faccessat(
    directory: c_int,
    path: *const c_char,
    mode: c_int,
    flags: c_int,
) -> c_int {
    let real = real!(
        faccessat,
        unsafe extern "C" fn(c_int, *const c_char, c_int, c_int) -> c_int
    );
    // SAFETY: the caller's own arguments.
    unsafe {
        let result = real(directory, path, mode, flags);
        noted_at(directory, path, result == 0);
        result
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn readlink(path: *const c_char, to: *mut c_char, size: usize) -> isize {
    let real = real!(
        readlink,
        unsafe extern "C" fn(*const c_char, *mut c_char, usize) -> isize
    );
    // SAFETY: the caller's own arguments.
    unsafe {
        let result = real(path, to, size);
        note(b'S', outcome(result >= 0), text(path));
        result
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn realpath(path: *const c_char, to: *mut c_char) -> *mut c_char {
    let real = real!(
        realpath,
        unsafe extern "C" fn(*const c_char, *mut c_char) -> *mut c_char
    );
    // SAFETY: the caller's own arguments.
    unsafe {
        let result = real(path, to);
        note(b'S', outcome(!result.is_null()), text(path));
        result
    }
}

macro_rules! variable {
    ($($name:ident)*) => { $(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(variable: *const c_char) -> *mut c_char {
            let real = real!($name, unsafe extern "C" fn(*const c_char) -> *mut c_char);
            // SAFETY: the caller's own arguments.
            unsafe {
                let result = real(variable);
                note(b'E', if result.is_null() { MISSING } else { DONE }, text(variable));
                result
            }
        }
    )* };
}
variable!(getenv secure_getenv);

/// rustc opens a macro's library: from here on what is asked for may be asked by it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void {
    let real = real!(
        dlopen,
        unsafe extern "C" fn(*const c_char, c_int) -> *mut c_void
    );
    MACROS.store(true, Ordering::Relaxed);
    // SAFETY: the caller's own arguments.
    unsafe {
        note(b'M', DONE, text(path));
        real(path, flags)
    }
}

/// A program by its path and, after a zero, its first argument.
unsafe fn note_program(path: *const c_char, arguments: *const *const c_char) {
    // SAFETY: the caller's own strings, and a list of them that ends with a null pointer.
    unsafe {
        let path = text(path);
        let has_first =
            !arguments.is_null() && !(*arguments).is_null() && !(*arguments.add(1)).is_null();
        let first = if has_first {
            text(*arguments.add(1))
        } else {
            b""
        };
        let mut whole = [0_u8; 4096];
        let size = path.len() + 1 + first.len();
        if first.is_empty() || size > whole.len() {
            note(b'P', DONE, path);
            return;
        }
        whole[..path.len()].copy_from_slice(path);
        whole[path.len() + 1..size].copy_from_slice(first);
        note(b'P', DONE, &whole[..size]);
    }
}

/// The C library starts a shell itself.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn system(command: *const c_char) -> c_int {
    let real = real!(system, unsafe extern "C" fn(*const c_char) -> c_int);
    note(b'P', DONE, b"sh");
    // SAFETY: the caller's own argument.
    unsafe { real(command) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn popen(command: *const c_char, mode: *const c_char) -> *mut c_void {
    let real = real!(
        popen,
        unsafe extern "C" fn(*const c_char, *const c_char) -> *mut c_void
    );
    note(b'P', DONE, b"sh");
    // SAFETY: the caller's own arguments.
    unsafe { real(command, mode) }
}

/// What a started program reads nobody sees.  It is no compiler, either, and gets its environment
/// as it would be without us.
macro_rules! spawn {
    ($($name:ident)*) => { $(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            pid: *mut c_int,
            path: *const c_char,
            actions: *const c_void,
            attributes: *const c_void,
            arguments: *const *const c_char,
            variables: *const *const c_char,
        ) -> c_int {
            let real = real!(
                $name,
                unsafe extern "C" fn(
                    *mut c_int, *const c_char, *const c_void, *const c_void,
                    *const *const c_char, *const *const c_char,
                ) -> c_int
            );
            // SAFETY: the caller's own arguments.
            unsafe {
                note_program(path, arguments);
                without_us(variables, |variables| {
                    real(pid, path, actions, attributes, arguments, variables)
                })
            }
        }
    )* };
}
spawn!(posix_spawn posix_spawnp);

/// Whether this process was forked from the one that is observed: what it executes is another
/// program.  Where it is not, `exec` replaces a rustup proxy by the compiler, which stays observed.
static FORKED: AtomicBool = AtomicBool::new(false);

macro_rules! fork {
    ($($name:ident)*) => { $(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name() -> c_int {
            // vfork's child would return through a frame that is gone: fork serves as well.
            // SAFETY: no arguments.
            let real = real!(fork, unsafe extern "C" fn() -> c_int);
            // SAFETY: no arguments.
            let child = unsafe { real() };
            if child == 0 {
                FORKED.store(true, Ordering::Relaxed);
            }
            child
        }
    )* };
}
fork!(fork vfork);

macro_rules! execute {
    ($($name:ident)*) => { $(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            path: *const c_char, arguments: *const *const c_char,
        ) -> c_int {
            type Real = unsafe extern "C" fn(*const c_char, *const *const c_char) -> c_int;
            let real = real!($name, Real);
            // SAFETY: the caller's own arguments; a forked child has one thread.
            unsafe {
                if !FORKED.load(Ordering::Relaxed) {
                    return real(path, arguments);
                }
                note_program(path, arguments);
                let before = environ;
                without_us(before, |variables| {
                    environ = variables;
                    let result = real(path, arguments);
                    environ = before;
                    result
                })
            }
        }
    )* };
}
execute!(execv execvp);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn execve(
    path: *const c_char,
    arguments: *const *const c_char,
    variables: *const *const c_char,
) -> c_int {
    type Real =
        unsafe extern "C" fn(*const c_char, *const *const c_char, *const *const c_char) -> c_int;
    let real = real!(execve, Real);
    // SAFETY: the caller's own arguments.
    unsafe {
        if !FORKED.load(Ordering::Relaxed) {
            return real(path, arguments, variables);
        }
        note_program(path, arguments);
        without_us(variables, |variables| real(path, arguments, variables))
    }
}

const AF_INET: c_int = 2;
const AF_INET6: c_int = 10;
const AF_UNIX: c_int = 1;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    let real = real!(socket, unsafe extern "C" fn(c_int, c_int, c_int) -> c_int);
    if matches!(domain, AF_INET | AF_INET6 | AF_UNIX) {
        note(b'N', DONE, b"");
    }
    // SAFETY: the caller's own arguments.
    unsafe { real(domain, kind, protocol) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn getaddrinfo(
    node: *const c_char,
    service: *const c_char,
    hints: *const c_void,
    to: *mut *mut c_void,
) -> c_int {
    let real = real!(
        getaddrinfo,
        unsafe extern "C" fn(
            *const c_char,
            *const c_char,
            *const c_void,
            *mut *mut c_void,
        ) -> c_int
    );
    note(b'N', DONE, b"");
    // SAFETY: the caller's own arguments.
    unsafe { real(node, service, hints, to) }
}

// --- the time -----------------------------------------------------------------------------------

#[repr(C)]
struct Symbol {
    library: *const c_char,
    base: *mut c_void,
    name: *const c_char,
    address: *mut c_void,
}

unsafe extern "C" {
    fn dladdr(address: *const c_void, to: *mut Symbol) -> c_int;
}

/// rustc's own libraries, which ask for the time as well (for the names of incremental state).
const COMPILERS: [&[u8]; 8] = [
    b"librustc_driver",
    b"librustc_codegen",
    b"libstd-",
    b"libLLVM",
    b"libstdc++",
    b"libgcc_s",
    b"libc.so",
    b"ld-linux",
];

/// Whether the code at an address was brought by a macro: its own, or a library's that it loaded.
fn is_of_macro(address: *const c_void) -> bool {
    if !MACROS.load(Ordering::Relaxed) {
        return false;
    }
    let mut symbol = Symbol {
        library: null(),
        base: null_mut(),
        name: null(),
        address: null_mut(),
    };
    // SAFETY: `symbol` is what `dladdr` fills, with strings that live as long as the library.
    let path = unsafe {
        if dladdr(address, &raw mut symbol) == 0 {
            return true; // made at run time
        }
        text(symbol.library)
    };
    let from = path.iter().rposition(|byte| *byte == b'/');
    let name = &path[from.map_or(0, |at| at + 1)..];
    name.windows(3).any(|part| part == b".so")
        && !COMPILERS.iter().any(|known| name.starts_with(known))
}

fn note_time(caller: *const c_void) {
    if !BUFFER.load(Ordering::Relaxed).is_null() && is_of_macro(caller) {
        note(b'T', DONE, b"");
    }
}

/// Hands the address of the caller on as the last argument.
macro_rules! told_by_whom {
    ($name:ident($($argument:ident: $type:ty),*) via $inner:ident, $register:literal, $arm:literal) => {
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> c_long {
            #[cfg(target_arch = "x86_64")]
            core::arch::naked_asm!(
                concat!("mov ", $register, ", qword ptr [rsp]"), "jmp {}", sym $inner
            );
            #[cfg(target_arch = "aarch64")]
            core::arch::naked_asm!(concat!("mov ", $arm, ", x30"), "b {}", sym $inner);
        }
    };
}
told_by_whom!(clock_gettime(_clock: c_int, _to: *mut c_void) via clock_asked, "rdx", "x2");
told_by_whom!(gettimeofday(_to: *mut c_void, _zone: *mut c_void) via day_asked, "rdx", "x2");
told_by_whom!(time(_to: *mut c_long) via time_asked, "rsi", "x1");

unsafe extern "C" fn clock_asked(clock: c_int, to: *mut c_void, caller: *const c_void) -> c_long {
    let real = real!(
        clock_gettime,
        unsafe extern "C" fn(c_int, *mut c_void) -> c_int
    );
    // CLOCK_REALTIME, CLOCK_REALTIME_COARSE, CLOCK_TAI
    if matches!(clock, 0 | 5 | 11) {
        note_time(caller);
    }
    // SAFETY: the caller's own arguments.
    unsafe { real(clock, to) }.into()
}

unsafe extern "C" fn day_asked(
    to: *mut c_void,
    zone: *mut c_void,
    caller: *const c_void,
) -> c_long {
    let real = real!(
        gettimeofday,
        unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int
    );
    note_time(caller);
    // SAFETY: the caller's own arguments.
    unsafe { real(to, zone) }.into()
}

unsafe extern "C" fn time_asked(to: *mut c_long, caller: *const c_void) -> c_long {
    let real = real!(time, unsafe extern "C" fn(*mut c_long) -> c_long);
    note_time(caller);
    // SAFETY: the caller's own argument.
    unsafe { real(to) }
}

// --- who comes after us -------------------------------------------------------------------------

/// Calls with an environment that names neither this library nor its buffer.
///
/// What stood in `LD_PRELOAD` before follows our own name there.  An environment of more than
/// 2,048 variables goes through as it is: the program is then observed, which does no harm.
unsafe fn without_us(
    variables: *const *const c_char,
    call: impl FnOnce(*const *const c_char) -> c_int,
) -> c_int {
    let mut kept = [null::<c_char>(); 2048];
    let mut before = [0_u8; 4096];
    let mut count = 0;
    // SAFETY: an environment ends with a null pointer, its entries are strings.
    unsafe {
        let mut entry = variables;
        while !entry.is_null() && !(*entry).is_null() {
            if count + 1 == kept.len() {
                return call(variables);
            }
            let mut keep = *entry;
            if value_of(*entry, FILE.to_bytes()).is_some() {
                keep = null();
            } else if let Some(value) = value_of(*entry, b"LD_PRELOAD")
                && text(value).starts_with(b"/proc/self/fd/")
            {
                keep = null();
                let rest = text(value).iter().position(|byte| *byte == b':');
                if let Some(colon) = rest {
                    let name = b"LD_PRELOAD=";
                    let theirs = &text(value)[colon + 1..];
                    if name.len() + theirs.len() >= before.len() {
                        return call(variables);
                    }
                    before[..name.len()].copy_from_slice(name);
                    before[name.len()..name.len() + theirs.len()].copy_from_slice(theirs);
                    keep = before.as_ptr().cast();
                }
            }
            if !keep.is_null() {
                kept[count] = keep;
                count += 1;
            }
            entry = entry.add(1);
        }
    }
    call(kept.as_ptr())
}
