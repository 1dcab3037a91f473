//! The test guest: process 1 of a machine that is nothing but a kernel and this program. The kernel's command line
//! says what it does (`test=...`, which the kernel hands on in the environment). Compiled by the tests, statically.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::FromRawFd;

const AF_VSOCK: i32 = 40;
const SOCK_STREAM: i32 = 1;
const HOST: u32 = 2;
const PORT: u32 = 1024;
const POWER_OFF: i32 = 0x4321_fedc;
const RESTART: i32 = 0x0123_4567;

#[repr(C)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    zero: [u8; 4],
}

unsafe extern "C" {
    fn socket(domain: i32, kind: i32, protocol: i32) -> i32;
    fn connect(fd: i32, address: *const Address, length: u32) -> i32;
    fn bind(fd: i32, address: *const Address, length: u32) -> i32;
    fn listen(fd: i32, backlog: i32) -> i32;
    fn accept(fd: i32, address: *const u8, length: *const u32) -> i32;
    fn mount(source: *const u8, target: *const u8, kind: *const u8, flags: u64, data: *const u8) -> i32;
    fn reboot(command: i32) -> i32;
    fn fork() -> i32;
    fn _exit(code: i32) -> !;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn getpid() -> i32;
}

fn address(cid: u32, port: u32) -> Address {
    Address { family: AF_VSOCK as u16, reserved: 0, port, cid, zero: [0; 4] }
}

/// A stream socket of any family works as a `TcpStream`, as long as nobody asks for its address.
fn dial(port: u32) -> std::io::Result<TcpStream> {
    unsafe {
        let fd = socket(AF_VSOCK, SOCK_STREAM, 0);
        if fd < 0 || connect(fd, &address(HOST, port), 16) < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(TcpStream::from_raw_fd(fd))
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = stream.read(&mut buffer).expect("read");
        if length == 0 {
            break;
        }
        stream.write_all(&buffer[..length]).expect("write");
    }
    stream.shutdown(Shutdown::Write).expect("shutdown");
}

fn devices() {
    unsafe {
        mount(
            c"dev".as_ptr().cast(),
            c"/dev".as_ptr().cast(),
            c"devtmpfs".as_ptr().cast(),
            0,
            std::ptr::null(),
        )
    };
}

fn end(command: i32) -> ! {
    unsafe { reboot(command) };
    loop {
        std::thread::park();
    }
}

fn main() {
    match std::env::var("test").as_deref() {
        // The host's clock shows how long it took to get here.
        Ok("hello") => dial(PORT).expect("dial").write_all(b"hello").expect("write"),
        // All that the host sends comes back; then the host ends its direction, then we ours.
        Ok("echo") => echo(dial(PORT).expect("dial")),
        // The host reads slowly, we write all at once and go.
        Ok("burst") => {
            let mut stream = dial(PORT).expect("dial");
            let block: Vec<u8> = (0..64 << 10).map(|index: u32| (index * 7) as u8).collect();
            for _ in 0..160 {
                stream.write_all(&block).expect("write");
            }
        }
        // Says hello, then serves a client of the host.
        Ok("listen") => {
            let fd = unsafe { socket(AF_VSOCK, SOCK_STREAM, 0) };
            assert_eq!(unsafe { bind(fd, &address(u32::MAX, 77), 16) }, 0);
            assert_eq!(unsafe { listen(fd, 4) }, 0);
            dial(PORT).expect("dial").write_all(b"listening").expect("write");
            let client = unsafe { accept(fd, std::ptr::null(), std::ptr::null()) };
            echo(unsafe { TcpStream::from_raw_fd(client) });
        }
        // A port that the host does not have.
        Ok("refused") => {
            let error = dial(99).expect_err("there is no such port");
            write!(dial(PORT).expect("dial"), "{error}").expect("write");
        }
        // What the disk holds, then what becomes of a write to it.
        Ok("disk") => {
            devices();
            let mut stream = dial(PORT).expect("dial");
            let mut disk = File::open("/dev/vda").expect("open");
            std::io::copy(&mut disk, &mut stream).expect("copy");
            let outcome = OpenOptions::new()
                .write(true)
                .open("/dev/vda")
                .and_then(|mut disk| disk.write_all(&[b'w'; 4096]).and_then(|()| disk.sync_all()));
            match outcome {
                Ok(()) => stream.write_all(b"written").expect("write"),
                Err(error) => write!(stream, "refused: {error}").expect("write"),
            }
        }
        // Round trips of one byte, for the latency.
        Ok("ping") => {
            let mut stream = dial(PORT).expect("dial");
            let mut byte = [0];
            while stream.read(&mut byte).expect("read") == 1 {
                stream.write_all(&byte).expect("write");
            }
        }
        // Processes, many of them one after another.
        Ok("fork") => {
            for _ in 0..200 {
                unsafe {
                    let pid = fork();
                    if pid == 0 {
                        _exit(i32::from(getpid() < 2));
                    }
                    let mut status = -1;
                    assert_eq!(waitpid(pid, &mut status, 0), pid);
                    assert_eq!(status, 0);
                }
            }
            dial(PORT).expect("dial").write_all(b"forked").expect("write");
        }
        Ok("hang") => {
            dial(PORT).expect("dial").write_all(b"hanging").expect("write");
            loop {
                std::thread::park();
            }
        }
        Ok("spin") => {
            dial(PORT).expect("dial").write_all(b"spinning").expect("write");
            loop {
                std::hint::spin_loop();
            }
        }
        Ok("reboot") => end(RESTART),
        // Process 1 must not end: the kernel panics.
        Ok("panic") => return,
        _ => {}
    }
    end(POWER_OFF)
}
