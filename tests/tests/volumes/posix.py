"""What POSIX and Linux promise of files, tried one by one in the directory given. Prints `name pass` or `name fail: why` for each."""
import ctypes, errno, fcntl, mmap, os, socket, stat, struct, sys, time

libc = ctypes.CDLL(None, use_errno=True)
CASES = []


def case(function):
    CASES.append(function)
    return function


def fails(number, function, *arguments, **words):
    try:
        function(*arguments, **words)
    except OSError as error:
        assert error.errno == number, f"{errno.errorcode[error.errno]} instead of {errno.errorcode[number]}"
        return
    raise AssertionError(f"no {errno.errorcode[number]}")


def write(path, data=b"data", mode=0o644):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    os.write(fd, data)
    os.close(fd)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def same(have, want):
    assert have == want, f"{have!r} instead of {want!r}"


def child(function, uid=None, gid=None, groups=()):
    """Runs a function in another process, as another user if one is given; its failure is ours."""
    end, other = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = b""
        try:
            if uid is not None:
                os.setgroups(list(groups))
                os.setgid(gid if gid is not None else uid)
                os.setuid(uid)
            function()
        except BaseException as error:
            said = f"in the child: {type(error).__name__}: {error}".encode()
        os.write(other, said)
        os._exit(0)
    os.close(other)
    said = os.read(end, 4096)
    os.close(end)
    os.waitpid(pid, 0)
    assert not said, said.decode()


def checked(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def renameat2(old, new, flags):
    checked(libc.syscall(316, -100, os.fsencode(old), -100, os.fsencode(new), flags))


@case
def rename_replaces():
    write("a", b"a"), write("b", b"b")
    inode = os.stat("a").st_ino
    os.rename("a", "b")
    same((read("b"), os.stat("b").st_ino, os.path.exists("a")), (b"a", inode, False))

@case
def rename_of_directories():
    os.mkdir("a"), os.mkdir("b"), write("b/x")
    fails(errno.ENOTEMPTY, os.rename, "a", "b")
    fails(errno.EINVAL, os.rename, "b", "b/c")
    fails(errno.ENOTDIR, os.rename, "a", "b/x")
    fails(errno.EISDIR, os.rename, "b/x", "a")
    os.rename("b", "a")
    same(os.listdir("a"), ["x"])

@case
def rename_noreplace_and_exchange():
    write("a", b"a"), write("b", b"b")
    fails(errno.EEXIST, renameat2, "a", "b", 1)
    renameat2("a", "b", 2)
    same((read("a"), read("b")), (b"b", b"a"))

@case
def rename_of_an_open_file():
    write("a")
    fd = os.open("a", os.O_RDWR)
    os.rename("a", "b")
    os.pwrite(fd, b"more", 4)
    same(read("b"), b"datamore")

@case
def hard_links():
    write("a")
    os.link("a", "b")
    same((os.stat("a").st_nlink, os.stat("a").st_ino), (2, os.stat("b").st_ino))
    write("b", b"both")
    same(read("a"), b"both")
    os.unlink("a")
    same(os.stat("b").st_nlink, 1)
    os.mkdir("d")
    fails(errno.EPERM, os.link, "d", "e")
    fails(errno.EEXIST, os.link, "b", "d")

@case
def hard_link_to_a_symbolic_link():
    os.symlink("nowhere", "a")
    os.link("a", "b", follow_symlinks=False)
    same(os.readlink("b"), "nowhere")

@case
def unlinked_files_live_while_open():
    write("a")
    fd = os.open("a", os.O_RDWR)
    os.unlink("a")
    os.pwrite(fd, b"more", 4)
    same((os.pread(fd, 8, 0), os.fstat(fd).st_nlink, os.fstat(fd).st_size), (b"datamore", 0, 8))
    os.ftruncate(fd, 2)
    os.fchmod(fd, 0o600)
    same((os.fstat(fd).st_size, stat.S_IMODE(os.fstat(fd).st_mode)), (2, 0o600))

@case
def removed_directories():
    os.mkdir("d"), write("d/x")
    fails(errno.ENOTEMPTY, os.rmdir, "d")
    fails(errno.EISDIR, os.unlink, "d")
    fails(errno.ENOTDIR, os.rmdir, "d/x")
    os.unlink("d/x")
    fd = os.open("d", os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir("d")
    fails(errno.ENOENT, os.open, "x", os.O_WRONLY | os.O_CREAT, dir_fd=fd)

@case
def modes_and_umask():
    old = os.umask(0o027)
    try:
        write("a", mode=0o666), os.mkdir("d", 0o777)
    finally:
        os.umask(old)
    same([stat.S_IMODE(os.stat(n).st_mode) for n in "ad"], [0o640, 0o750])
    for mode in (0o7777, 0o000, 0o4755, 0o1777):
        os.chmod("d", mode)
        same(stat.S_IMODE(os.stat("d").st_mode), mode)

@case
def changes_of_owner():
    write("a", mode=0o755)
    os.chmod("a", 0o6755)
    os.chown("a", 1000, 2000)
    have = os.stat("a")
    same((have.st_uid, have.st_gid, stat.S_IMODE(have.st_mode)), (1000, 2000, 0o755))
    os.chown("a", -1, 3000)
    same((os.stat("a").st_uid, os.stat("a").st_gid), (1000, 3000))
    os.symlink("a", "l")
    os.lchown("l", 5, 6)
    same((os.lstat("l").st_uid, os.stat("a").st_uid), (5, 1000))
    child(lambda: fails(errno.EPERM, os.chown, "a", 1001, -1), 1000)
    child(lambda: os.chown("a", -1, 1000), 1000)
    child(lambda: fails(errno.EPERM, os.chmod, "a", 0o777), 1001)

@case
def a_write_takes_setuid_away():
    write("a", mode=0o777)
    os.chmod("a", 0o6777)
    child(lambda: write("a", b"x"), 1000)
    same(stat.S_IMODE(os.stat("a").st_mode), 0o777)
    os.chmod("a", 0o4777)
    child(lambda: os.truncate("a", 0), 1000)
    same(stat.S_IMODE(os.stat("a").st_mode), 0o777)

@case
def a_directory_passes_its_group_on():
    os.mkdir("d")
    os.chown("d", 0, 4000)
    os.chmod("d", 0o2775)
    write("d/x"), os.mkdir("d/y")
    same((os.stat("d/x").st_gid, os.stat("d/y").st_gid), (4000, 4000))
    assert os.stat("d/y").st_mode & stat.S_ISGID

@case
def a_sticky_directory():
    os.mkdir("d")
    os.chmod("d", 0o1777)
    child(lambda: write("d/x"), 1000)
    child(lambda: fails(errno.EPERM, os.unlink, "d/x"), 1001)
    child(lambda: fails(errno.EPERM, os.rename, "d/x", "d/y"), 1001)
    child(lambda: os.unlink("d/x"), 1000)

@case
def permissions_of_other_users():
    write("a"), os.mkdir("d"), write("d/x")
    os.chmod("a", 0o600), os.chmod("d", 0o700)
    def other():
        fails(errno.EACCES, os.open, "a", os.O_RDONLY)
        fails(errno.EACCES, os.stat, "d/x")
        fails(errno.EACCES, os.listdir, "d")
        assert not os.access("a", os.R_OK) and not os.access("d", os.X_OK)
    child(other, 1000)
    os.chown("a", 0, 1000), os.chmod("a", 0o640)
    child(lambda: same(read("a"), b"data"), 1000)
    child(lambda: fails(errno.EACCES, os.open, "a", os.O_WRONLY), 1000)
    os.chown("d", 0, 5000), os.chmod("d", 0o770)
    child(lambda: fails(errno.EACCES, write, "d/y"), 1000)

@case
def permissions_by_a_further_group():
    os.mkdir("d")
    os.chown("d", 0, 5000), os.chmod("d", 0o770)
    def member():
        write("d/y"), os.mkdir("d/z"), os.symlink("y", "d/l"), os.rename("d/y", "d/w"), os.unlink("d/w")
    child(member, 1000, 1000, [5000])
    same(os.stat("d/z").st_uid, 1000)

@case
def times():
    write("a")
    os.utime("a", ns=(1_000_000_001, 2_000_000_002))
    have = os.stat("a")
    same((have.st_atime_ns, have.st_mtime_ns), (1_000_000_001, 2_000_000_002))
    assert abs(have.st_ctime - time.time()) < 3600
    os.utime("a")
    assert os.stat("a").st_mtime > 1_000_000_000
    os.symlink("a", "l")
    os.utime("l", ns=(5, 6), follow_symlinks=False)
    same(os.lstat("l").st_mtime_ns, 6)
    child(lambda: fails(errno.EPERM, os.utime, "a", (1, 1)), 1000)
    child(lambda: fails(errno.EACCES, os.utime, "a"), 1000)
    before = os.stat("a").st_mtime_ns
    time.sleep(0.02)
    write("a", b"x")
    assert os.stat("a").st_mtime_ns > before, "a write does not change the time"

@case
def truncation():
    write("a", b"0123456789")
    os.truncate("a", 4)
    same(read("a"), b"0123")
    os.truncate("a", 8)
    same(read("a"), b"0123\0\0\0\0")
    fails(errno.EINVAL, os.truncate, "a", -1)
    os.mkdir("d")
    fails(errno.EISDIR, os.truncate, "d", 0)
    fd = os.open("a", os.O_RDONLY)
    fails(errno.EINVAL, os.ftruncate, fd, 0)
    os.close(os.open("a", os.O_WRONLY | os.O_TRUNC))
    same(read("a"), b"")

@case
def exclusive_creation():
    os.close(os.open("a", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    fails(errno.EEXIST, os.open, "a", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.symlink("nowhere", "l")
    fails(errno.EEXIST, os.open, "l", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.mkdir("d")
    fails(errno.EEXIST, os.mkdir, "d")
    fails(errno.EEXIST, os.mkdir, "l")

@case
def ways_of_opening():
    write("a"), os.symlink("a", "l"), os.mkdir("d")
    fails(errno.ELOOP, os.open, "l", os.O_RDONLY | os.O_NOFOLLOW)
    fails(errno.ENOTDIR, os.open, "a", os.O_RDONLY | os.O_DIRECTORY)
    fails(errno.EISDIR, os.open, "d", os.O_WRONLY)
    fails(errno.ENOENT, os.open, "missing/x", os.O_WRONLY | os.O_CREAT)
    fails(errno.ENOTDIR, os.open, "a/x", os.O_WRONLY | os.O_CREAT)
    fails(errno.EBADF, os.write, os.open("a", os.O_RDONLY), b"x")
    fails(errno.EBADF, os.read, os.open("a", os.O_WRONLY), 1)
    fd = os.open("a", os.O_RDONLY | os.O_SYNC | os.O_NOATIME)
    same(os.read(fd, 9), b"data")

@case
def appending():
    one, two = (os.open("a", os.O_WRONLY | os.O_CREAT | os.O_APPEND) for _ in "ab")
    for turn in range(20):
        os.write(one, b"1"), os.write(two, b"2")
    same(read("a"), b"12" * 20)

@case
def direct_io():
    fd = os.open("a", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    page = mmap.mmap(-1, 8192)
    page.write(b"d" * 8192)
    same(os.writev(fd, [page]), 8192)
    os.lseek(fd, 0, 0)
    same((os.readv(fd, [page]), os.stat("a").st_size), (8192, 8192))

@case
def long_names():
    write("n" * 255)
    fails(errno.ENAMETOOLONG, write, "n" * 256)
    fails(errno.ENAMETOOLONG, os.mkdir, "n" * 256)
    fails(errno.ENAMETOOLONG, os.stat, "d/" * 2048 + "x")
    odd = bytes(b for b in range(1, 256) if b != ord("/"))[:250]
    write(odd)
    assert odd in os.listdir(b".")

@case
def symbolic_links():
    os.symlink("t" * 4000, "a")
    same(os.readlink("a"), "t" * 4000)
    fails(errno.ENAMETOOLONG, os.symlink, "t" * 4096, "b")
    fails(errno.ENOENT, os.symlink, "", "b")
    os.symlink("loop", "loop")
    fails(errno.ELOOP, os.stat, "loop")
    os.symlink("../" * 20 + "etc/hostname", "out")
    same(read("out"), read("/etc/hostname"))
    same(os.lstat("out").st_size, len(os.readlink("out")))

@case
def sparse_files():
    fd = os.open("a", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"end", 5 << 30)
    have = os.fstat(fd)
    same(have.st_size, (5 << 30) + 3)
    assert have.st_blocks < 4096, f"{have.st_blocks} blocks"
    same(os.pread(fd, 4, 1 << 30), b"\0" * 4)
    hole, data = os.lseek(fd, 0, os.SEEK_HOLE), os.lseek(fd, 0, os.SEEK_DATA)
    same(hole, 0)
    assert 0 < data <= 5 << 30
    fails(errno.ENXIO, os.lseek, fd, 6 << 30, os.SEEK_DATA)

@case
def allocation():
    fd = os.open("a", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, 1 << 20)
    same(os.fstat(fd).st_size, 1 << 20)
    os.pwrite(fd, b"x" * 65536, 0)
    def fallocate(mode, offset, length):
        checked(libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)))
    fallocate(1, 1 << 20, 1 << 20)
    same(os.fstat(fd).st_size, 1 << 20)
    fallocate(3, 0, 32768)
    same((os.pread(fd, 1, 32767), os.pread(fd, 1, 32768)), (b"\0", b"x"))
    fallocate(16, 32768, 4096)
    same(os.pread(fd, 1, 32768), b"\0")

@case
def locks_of_whole_files():
    write("a")
    fd = os.open("a", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    def other():
        fails(errno.EAGAIN, fcntl.flock, os.open("a", os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
    child(other)
    fcntl.flock(fd, fcntl.LOCK_UN)
    child(lambda: fcntl.flock(os.open("a", os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB))

@case
def locks_of_ranges():
    write("a", b"x" * 100)
    fd = os.open("a", os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX, 10, 0)
    def other():
        mine = os.open("a", os.O_RDWR)
        fails(errno.EAGAIN, fcntl.lockf, mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
        fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 10)
        got = struct.unpack("hhqqi4x", fcntl.fcntl(mine, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 5, 0)))
        same((got[0], got[4]), (fcntl.F_WRLCK, os.getppid()))
    child(other)
    # Closing any descriptor of the file lets go of the process's locks.
    os.close(os.open("a", os.O_RDONLY))
    child(lambda: fcntl.lockf(os.open("a", os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0))

@case
def locks_of_open_files():
    write("a", b"x" * 100)
    one, two = os.open("a", os.O_RDWR), os.open("a", os.O_RDWR)
    request = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 10, 0)
    fcntl.fcntl(one, 37, request)
    fails(errno.EAGAIN, fcntl.fcntl, two, 37, request)
    os.close(one)
    fcntl.fcntl(two, 37, request)

@case
def extended_attributes():
    write("a"), os.mkdir("d")
    for path in "ad":
        os.setxattr(path, "user.one", b"1")
        os.setxattr(path, "user.two", b"\0" * 1000)
        same(sorted(os.listxattr(path)), ["user.one", "user.two"])
        same(os.getxattr(path, "user.two"), b"\0" * 1000)
        fails(errno.EEXIST, os.setxattr, path, "user.one", b"x", os.XATTR_CREATE)
        fails(errno.ENODATA, os.setxattr, path, "user.none", b"x", os.XATTR_REPLACE)
        os.removexattr(path, "user.one")
        fails(errno.ENODATA, os.getxattr, path, "user.one")
        fails(errno.ENODATA, os.removexattr, path, "user.one")
    child(lambda: fails(errno.EACCES, os.setxattr, "a", "user.x", b"x"), 1000)

@case
def attributes_of_the_system():
    write("a")
    os.setxattr("a", "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0))
    os.setxattr("a", "trusted.x", b"x")

@case
def access_control_lists():
    write("a")
    entries = [(1, 6, 0xFFFFFFFF), (2, 4, 1000), (4, 4, 0xFFFFFFFF), (16, 6, 0xFFFFFFFF), (32, 4, 0xFFFFFFFF)]
    os.setxattr("a", "system.posix_acl_access", struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries))

@case
def large_directories():
    os.mkdir("d")
    names = {f"file-{number:05}" for number in range(3000)}
    for name in names:
        os.close(os.open(f"d/{name}", os.O_CREAT | os.O_WRONLY))
    same(set(os.listdir("d")), names)
    # Removed while it is being read: what stays is still seen.
    seen = set()
    with os.scandir("d") as entries:
        for entry in entries:
            seen.add(entry.name)
            if int(entry.name[5:]) % 2:
                os.unlink(entry.path)
    same({n for n in names if not int(n[5:]) % 2} - seen, set())
    for name in os.listdir("d"):
        os.unlink(f"d/{name}")
    os.rmdir("d")

@case
def places_in_a_directory():
    os.mkdir("d")
    for number in range(500):
        write(f"d/{number:03}")
    class Entry(ctypes.Structure):
        _fields_ = [("inode", ctypes.c_ulong), ("next", ctypes.c_long), ("length", ctypes.c_ushort), ("kind", ctypes.c_ubyte), ("name", ctypes.c_char * 256)]
    libc.opendir.restype = ctypes.c_void_p
    libc.readdir.restype, libc.readdir.argtypes = ctypes.POINTER(Entry), [ctypes.c_void_p]
    libc.telldir.restype, libc.telldir.argtypes = ctypes.c_long, [ctypes.c_void_p]
    libc.seekdir.argtypes, libc.closedir.argtypes = [ctypes.c_void_p, ctypes.c_long], [ctypes.c_void_p]
    directory = libc.opendir(b"d")
    names, places = [], []
    while True:
        place = libc.telldir(directory)
        entry = libc.readdir(directory)
        if not entry:
            break
        places.append(place), names.append(entry.contents.name)
    for index in (400, 10, 250, 0, len(names) - 1):
        libc.seekdir(directory, places[index])
        same(libc.readdir(directory).contents.name, names[index])
    libc.closedir(directory)

@case
def dots_in_a_directory():
    os.mkdir("d")
    fd = os.open("d", os.O_RDONLY)
    buffer = ctypes.create_string_buffer(4096)
    length = checked(libc.syscall(217, fd, buffer, 4096))
    assert b"..\0" in buffer.raw[:length], "getdents64 shows neither . nor .."

@case
def links_of_directories():
    os.mkdir("d"), os.mkdir("d/e")
    assert os.stat("d").st_nlink in (1, 3)
    same(os.stat("d/e/..").st_ino, os.stat("d").st_ino)
    same(os.path.realpath("d/e/../e"), os.path.realpath("d/e"))

@case
def shared_mappings():
    write("a", b"\0" * 8192)
    fd = os.open("a", os.O_RDWR)
    area = mmap.mmap(fd, 8192)
    area[4096:4100] = b"mine"
    same(os.pread(fd, 4, 4096), b"mine")
    def other():
        theirs = mmap.mmap(os.open("a", os.O_RDWR), 8192)
        same(theirs[4096:4100], b"mine")
        theirs[0:6] = b"theirs"
    child(other)
    same(area[0:6], b"theirs")
    os.pwrite(fd, b"written", 100)
    same(area[100:107], b"written")
    area.flush()
    area.close()
    same(read("a")[4096:4100], b"mine")

@case
def private_mappings():
    write("a", b"data" * 1024)
    area = mmap.mmap(os.open("a", os.O_RDONLY), 4096, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    area[0:4] = b"mine"
    same((area[0:4], read("a")[:4]), (b"mine", b"data"))

@case
def pipes_and_sockets():
    os.mkfifo("p")
    pid = os.fork()
    if pid == 0:
        write_end = os.open("p", os.O_WRONLY)
        os.write(write_end, b"through")
        os._exit(0)
    same(read("p"), b"through")
    os.waitpid(pid, 0)
    server = socket.socket(socket.AF_UNIX)
    server.bind("s"), server.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect("s")
    client.send(b"hello")
    same(server.accept()[0].recv(9), b"hello")

@case
def device_nodes():
    os.mknod("n", stat.S_IFCHR | 0o666, os.makedev(1, 3))

@case
def nameless_files():
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR)
    os.write(fd, b"x")

@case
def syncing():
    fd = os.open("a", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x")
    os.fsync(fd), os.fdatasync(fd), os.sync()
    checked(libc.syncfs(fd))
    os.fsync(os.open(".", os.O_RDONLY | os.O_DIRECTORY))

@case
def copies_within_the_kernel():
    write("a", os.urandom(300_000))
    source, target = os.open("a", os.O_RDONLY), os.open("b", os.O_WRONLY | os.O_CREAT)
    left = 300_000
    while left:
        left -= os.copy_file_range(source, target, left)
    same(read("b"), read("a"))
    os.lseek(source, 0, 0)
    target = os.open("c", os.O_WRONLY | os.O_CREAT)
    left = 300_000
    while left:
        left -= os.sendfile(target, source, None, left)
    same(read("c"), read("a"))

@case
def large_writes():
    data = os.urandom(3 << 20)
    write("a", data)
    same(read("a") == data, True)
    fd = os.open("a", os.O_RDWR)
    os.pwritev(fd, [b"x" * 10, b"y" * 100_000], 1000)
    same(os.pread(fd, 20, 1000), b"x" * 10 + b"y" * 10)

@case
def room():
    have = os.statvfs(".")
    assert have.f_blocks > 0 and have.f_bavail > 0 and have.f_namemax == 255

@case
def running_programs():
    write("a", b"#!/bin/sh\nexit 7\n", 0o755)
    pid = os.fork()
    if pid == 0:
        os.execv("./a", ["a"])
    same(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 7)
    os.chmod("a", 0o644)
    fails(errno.EACCES, os.execv, "./a", ["a"])

@case
def watches():
    fd = checked(libc.inotify_init())
    checked(libc.inotify_add_watch(fd, b".", 0x100 | 0x200 | 0x2))
    write("a"), os.unlink("a")
    events = os.read(fd, 4096)
    masks = []
    while events:
        _, mask, _, length = struct.unpack("iIII", events[:16])
        masks.append(mask)
        events = events[16 + length:]
    same(masks, [0x100, 0x2, 0x200])


def main(root):
    for function in CASES:
        place = os.path.join(root, function.__name__)
        os.mkdir(place)
        os.chmod(place, 0o777)
        os.chdir(place)
        try:
            function()
            print(function.__name__, "pass")
        except Exception as error:
            print(function.__name__, f"fail: {error}")
        sys.stdout.flush()


main(sys.argv[1])
