//! The test guest: process 1 of a machine that is nothing but a kernel and this program. The kernel's command line
//! says what it does (`test=...`, which the kernel hands on in the environment). Compiled by the tests, statically.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};

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
    fn umount2(target: *const u8, flags: i32) -> i32;
    fn posix_fadvise(fd: i32, offset: i64, length: i64, advice: i32) -> i32;
    fn reboot(command: i32) -> i32;
    fn fork() -> i32;
    fn _exit(code: i32) -> !;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn getpid() -> i32;
    fn ioctl(fd: i32, request: u64, argument: *const u8) -> i32;
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

fn system_files() {
    std::fs::create_dir_all("/sys").expect("mkdir");
    unsafe {
        mount(
            c"sys".as_ptr().cast(),
            c"/sys".as_ptr().cast(),
            c"sysfs".as_ptr().cast(),
            0,
            std::ptr::null(),
        )
    };
}

fn processes() {
    std::fs::create_dir_all("/proc").expect("mkdir");
    unsafe {
        mount(c"proc".as_ptr().cast(), c"/proc".as_ptr().cast(), c"proc".as_ptr().cast(), 0, std::ptr::null())
    };
}

/// A line of /proc/meminfo, in KiB.
fn memory(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").expect("meminfo");
    let line = text.lines().find(|line| line.starts_with(name)).expect("line");
    line.split_ascii_whitespace().nth(1).expect("number").parse().expect("number")
}

fn attribute(name: &str) -> String {
    std::fs::read_to_string(format!("/sys/class/net/eth0/{name}")).map_or_else(|e| e.to_string(), |text| text.trim().to_owned())
}

/// Gives eth0 an address in 10.9.0.0/24 and brings it up.
fn interface(host: u8) {
    const SIOCSIFADDR: u64 = 0x8916;
    const SIOCSIFNETMASK: u64 = 0x891c;
    const SIOCSIFFLAGS: u64 = 0x8914;
    let request = |kind: u64, value: &[u8]| {
        let mut request = [0u8; 40];
        request[..4].copy_from_slice(b"eth0");
        request[16..16 + value.len()].copy_from_slice(value);
        let fd = unsafe { socket(2, 2, 0) };
        assert_eq!(unsafe { ioctl(fd, kind, request.as_ptr()) }, 0, "{}", std::io::Error::last_os_error());
    };
    request(SIOCSIFADDR, &[2, 0, 0, 0, 10, 9, 0, host]);
    request(SIOCSIFNETMASK, &[2, 0, 0, 0, 255, 255, 255, 0]);
    // IFF_UP and IFF_RUNNING.
    request(SIOCSIFFLAGS, &[0x41, 0]);
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
        // Gives the host what it asks for.
        Ok("balloon") => {
            processes();
            let mut stream = dial(PORT).expect("dial");
            while memory("MemTotal:") > 48 << 10 {
                std::thread::yield_now();
            }
            writeln!(stream, "{}", memory("MemTotal:")).expect("write");
        }
        // Tells whenever the host has taken memory, and given it back.
        Ok("balloon-live") => {
            processes();
            let mut stream = dial(PORT).expect("dial");
            let all = memory("MemTotal:");
            writeln!(stream, "all").expect("write");
            while memory("MemTotal:") > all - (24 << 10) {
                std::thread::yield_now();
            }
            writeln!(stream, "less").expect("write");
            while memory("MemTotal:") < all {
                std::thread::yield_now();
            }
            writeln!(stream, "again").expect("write");
        }
        // Uses memory, and stops using it.
        Ok("report") => {
            processes();
            let mut stream = dial(PORT).expect("dial");
            let used = vec![7u8; 48 << 20];
            writeln!(stream, "used {}", used.iter().step_by(4096).map(|byte| usize::from(*byte)).sum::<usize>()).expect("write");
            stream.read_exact(&mut [0]).expect("go on");
            drop(used);
            writeln!(stream, "freed").expect("write");
            stream.read_exact(&mut [0]).expect("go on");
            // What comes back is zero, and works.
            let again = vec![1u8; 32 << 20];
            writeln!(stream, "again {}", again.iter().map(|byte| usize::from(*byte)).sum::<usize>()).expect("write");
        }
        // Prints on the virtio console.
        Ok("console") => {
            devices();
            let mut console = OpenOptions::new().write(true).open("/dev/hvc0").expect("open");
            for line in 0..100 {
                writeln!(console, "line {line} of the console").expect("write");
            }
            dial(PORT).expect("dial").write_all(b"printed").expect("write");
        }
        // Uses a shared folder as programs do.
        Ok("share") => {
            std::fs::create_dir_all("/mnt").expect("mkdir");
            let mount = |flags| unsafe {
                mount(c"data".as_ptr().cast(), c"/mnt".as_ptr().cast(), c"virtiofs".as_ptr().cast(), flags, std::ptr::null())
            };
            assert_eq!(mount(0), 0, "{}", std::io::Error::last_os_error());
            let mut stream = dial(PORT).expect("dial");
            let told = std::fs::read_to_string("/mnt/told").expect("read");
            let write = || -> std::io::Result<()> {
                std::fs::create_dir_all("/mnt/new/deep")?;
                // More than one request holds.
                let large: Vec<u8> = (0..3 << 20).map(|index: u32| (index * 7 + index / 4096) as u8).collect();
                std::fs::write("/mnt/new/deep/large", &large)?;
                assert!(std::fs::read("/mnt/new/deep/large")? == large);
                std::fs::rename("/mnt/new/deep/large", "/mnt/large")?;
                std::os::unix::fs::symlink("/etc/hostname", "/mnt/link")?;
                std::fs::hard_link("/mnt/large", "/mnt/second")?;
                for index in 0..100 {
                    std::fs::write(format!("/mnt/new/{index}"), format!("{index}"))?;
                }
                let names = std::fs::read_dir("/mnt/new")?.count();
                assert_eq!(names, 101);
                std::fs::remove_file("/mnt/told")
            };
            match write() {
                Ok(()) => writeln!(stream, "{told} written").expect("write"),
                Err(error) => writeln!(stream, "{told} {error}").expect("write"),
            }
            // The guest's own root leads nowhere but to itself.
            assert!(std::fs::metadata("/mnt/../init").is_ok());
            unsafe { umount2(c"/mnt".as_ptr().cast(), 0) };
            assert_eq!(mount(0), 0, "again: {}", std::io::Error::last_os_error());
            writeln!(stream, "{}", std::fs::read_dir("/mnt").expect("list").count()).expect("write");
        }
        // Keeps its devices as busy as it can, until it is ended.
        Ok("storm") => {
            devices();
            system_files();
            interface(1);
            let mut console = OpenOptions::new().write(true).open("/dev/hvc0").expect("open");
            let mut disk = File::open("/dev/vda").expect("open");
            let mut random = File::open("/dev/hwrng").ok();
            let frames = std::net::UdpSocket::bind("10.9.0.1:9").expect("bind");
            frames.set_broadcast(true).expect("broadcast");
            let mut stream = dial(PORT).expect("dial");
            stream.write_all(b"storming").expect("write");
            let mut bytes = [0u8; 512];
            loop {
                for _ in 0..50 {
                    let _ = frames.send_to(b"x", "10.9.0.255:9");
                    let _ = console.write_all(b"x");
                    let _ = random.as_mut().map(|random| random.read(&mut bytes[..16]));
                }
                unsafe { posix_fadvise(disk.as_raw_fd(), 0, 0, 4) };
                let _ = std::io::Seek::rewind(&mut disk);
                let _ = disk.read(&mut bytes);
            }
        }
        // What the interface looks like, before and after the host pulls the cable.
        Ok("net") => {
            system_files();
            interface(1);
            let mut stream = dial(PORT).expect("dial");
            let carrier = attribute("carrier");
            writeln!(stream, "{} {} {carrier}", attribute("address"), attribute("mtu")).expect("write");
            while attribute("carrier") == carrier {
                std::thread::yield_now();
            }
            writeln!(stream, "{}", attribute("carrier")).expect("write");
        }
        // Sums up what a neighbour sends.
        Ok("net-sum") => {
            system_files();
            interface(1);
            let listener = std::net::TcpListener::bind("10.9.0.1:9").expect("bind");
            let mut stream = dial(PORT).expect("dial");
            writeln!(stream, "listening").expect("write");
            let (mut peer, from) = listener.accept().expect("accept");
            let (mut sum, mut length) = (0u64, 0u64);
            let mut buffer = vec![0; 64 << 10];
            loop {
                let read = peer.read(&mut buffer).expect("read");
                if read == 0 {
                    break;
                }
                for byte in &buffer[..read] {
                    sum = sum.wrapping_mul(31).wrapping_add(u64::from(*byte));
                }
                length += read as u64;
            }
            write!(peer, "{sum}").expect("write");
            writeln!(stream, "{length} {sum} {} {}", from.ip(), attribute("statistics/rx_packets")).expect("write");
        }
        // Sends to the neighbour, once the host says that it is there.
        Ok("net-send") => {
            system_files();
            interface(2);
            let mut stream = dial(PORT).expect("dial");
            stream.read_exact(&mut [0]).expect("go");
            let mut peer = TcpStream::connect("10.9.0.1:9").expect("connect");
            let block: Vec<u8> = (0..64 << 10).map(|index: u32| (index * 7 + index / 4096) as u8).collect();
            for _ in 0..256 {
                peer.write_all(&block).expect("write");
            }
            peer.shutdown(Shutdown::Write).expect("shutdown");
            let mut sum = String::new();
            peer.read_to_string(&mut sum).expect("read");
            writeln!(stream, "{sum} {}", attribute("statistics/tx_packets")).expect("write");
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
