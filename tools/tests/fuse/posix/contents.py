"""Bytes: lengths, space, reads and writes, mappings and locks."""

import ctypes
import fcntl
import mmap
import os
import time

from harness import *

section("truncate")
make("f", b"0123456789"), os.mkdir("d")
case("shorter", lambda: (os.truncate("f", 4), read("f"))[1])
case("longer by zeros", lambda: (os.truncate("f", 6), read("f"))[1])
case("to nothing", lambda: (os.truncate("f", 0), read("f"))[1])
case("same size", lambda: os.truncate("f", 0))
case("many zeros", lambda: (os.truncate("f", 300000), read("f") == bytes(300000))[1])
case("negative", lambda: os.truncate("f", -1))
case("directory", lambda: os.truncate("d", 0))
case("missing", lambda: os.truncate("x", 0))
case("descriptor for reading", lambda: on("f", os.O_RDONLY, lambda fd: os.ftruncate(fd, 1)))
case("times", lambda: changed("f", lambda: os.truncate("f", 3)))
case("times of the same size", lambda: changed("f", lambda: os.truncate("f", 3)))
as_user("without permission", lambda: os.truncate("f", 1))
make("g", b"abc", 0o4777)
as_user("takes set-id bits", lambda: (os.truncate("g", 1), mode("g"))[1])
case("then append", lambda: on("f", os.O_WRONLY | os.O_APPEND, lambda fd: (os.ftruncate(fd, 2), os.write(fd, b"x"))) and read("f"))

section("space")
make("f", b"x" * 10000)


def allocate(flags, offset, length, how=os.O_WRONLY):
    call = libc.fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    return on("f", how, lambda fd: c(call(fd, flags, offset, length)))


case("fallocate keep size", lambda: (allocate(1, 0, 1 << 20), os.stat("f").st_size)[1])
case("fallocate within the size", lambda: (allocate(0, 0, 5000), os.stat("f").st_size)[1])
case("fallocate of nothing", lambda: allocate(0, 0, 0))
case("fallocate negative", lambda: allocate(0, -1, 10))
case("fallocate for reading", lambda: allocate(1, 0, 10, os.O_RDONLY))
case("fallocate longer", lambda: (allocate(0, 0, 20000), os.stat("f").st_size)[1])
os.truncate("f", 10000)
case("seek data", lambda: on("f", os.O_RDONLY, lambda fd: os.lseek(fd, 100, os.SEEK_DATA)))
case("seek hole", lambda: on("f", os.O_RDONLY, lambda fd: os.lseek(fd, 100, os.SEEK_HOLE)))
case("seek data beyond", lambda: on("f", os.O_RDONLY, lambda fd: os.lseek(fd, 20000, os.SEEK_DATA)))
case("seek end", lambda: on("f", os.O_RDONLY, lambda fd: os.lseek(fd, 0, os.SEEK_END)))
case("statfs", lambda: (lambda s: (s.f_namemax, s.f_bsize, 0 < s.f_bavail <= s.f_bfree < s.f_blocks))(os.statvfs(".")))
case("blocks", lambda: os.stat("f").st_blocks)
case("block size", lambda: os.stat("f").st_blksize)
case("punch a hole", lambda: allocate(3, 0, 4096))
case("zero a range", lambda: allocate(16, 0, 4096))
case("collapse a range", lambda: allocate(8, 0, 4096))

section("io")
make("f", b"0123456789")
case("append", lambda: (on("f", os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"ab")), read("f"))[1])
case("append goes to the end wherever the position is", lambda: (on("f", os.O_RDWR | os.O_APPEND, lambda fd: (os.lseek(fd, 0, 0), os.write(fd, b"c"))), read("f"))[1])
case("write at the end", lambda: (on("f", os.O_RDWR, lambda fd: (os.lseek(fd, 0, 2), os.write(fd, b"d"))), read("f"))[1])
case("positioned write at the end", lambda: on("f", os.O_WRONLY, lambda fd: os.pwrite(fd, b"e", 14)))
case("vector", lambda: (on("f", os.O_WRONLY | os.O_APPEND, lambda fd: os.writev(fd, [b"f", b"g"])), read("f"))[1])
case("read beyond the end", lambda: on("f", os.O_RDONLY, lambda fd: os.pread(fd, 10, 1000)))
case("read across the end", lambda: on("f", os.O_RDONLY, lambda fd: os.pread(fd, 100, 15)))
case("read of a directory", lambda: on(".", os.O_RDONLY, lambda fd: os.read(fd, 1)))
case("two descriptors", lambda: on("t", os.O_RDWR | os.O_CREAT, lambda a: on("t", os.O_RDONLY, lambda b: (os.write(a, b"x" * 70000), len(os.read(b, 100000)), os.write(a, b"y"), os.read(b, 9))[1:])))
case("large writes in pieces", lambda: on("l", os.O_RDWR | os.O_CREAT, lambda fd: ([os.write(fd, bytes([i]) * 100001) for i in range(30)], os.pread(fd, 3, 100001 * 7 - 1), os.fstat(fd).st_size)[1:]))
case("fsync of a reader", lambda: on("f", os.O_RDONLY, os.fsync))
case("fdatasync", lambda: on("f", os.O_WRONLY, os.fdatasync))
case("fsync of a directory", lambda: on(".", os.O_RDONLY, os.fsync))
case("syncfs", lambda: on(".", os.O_RDONLY, lambda fd: c(libc.syncfs(fd))))
case("synchronous", lambda: on("s", os.O_WRONLY | os.O_CREAT | os.O_SYNC, lambda fd: os.write(fd, b"x" * 5000)))
case("copy_file_range", lambda: on("f", os.O_RDONLY, lambda a: on("copy", os.O_WRONLY | os.O_CREAT, lambda b: os.copy_file_range(a, b, 100))))
case("sendfile", lambda: on("f", os.O_RDONLY, lambda a: on("sent", os.O_WRONLY | os.O_CREAT, lambda b: os.sendfile(b, a, 0, 100))))
case("overwrite", lambda: on("f", os.O_WRONLY, lambda fd: os.pwrite(fd, b"zz", 3)))
case("write beyond the end", lambda: on("f", os.O_WRONLY, lambda fd: os.pwrite(fd, b"zz", 3000)))
case("the gap before it", lambda: read("f")[-1002:] == bytes(1000) + b"zz")
case("append after it", lambda: (on("f", os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"q")), os.stat("f").st_size)[1])
case("times of a write beyond the end", lambda: changed("f", lambda: on("f", os.O_WRONLY, lambda fd: os.pwrite(fd, b"zz", 5000))))


def appenders():
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            fd = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            for _ in range(200):
                os.write(fd, b"%d" % number * 100)
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    data = read("log")
    records = [data[i : i + 100] for i in range(0, len(data), 100)]
    whole = all(len(r) == 100 and len(set(r)) == 1 for r in records)
    return len(data), whole, [records.count(b"%d" % n * 100) for n in range(4)]


case("several processes append", appenders)

section("mmap")
make("f", b"m" * 9000)
case("shared for reading", lambda: on("f", os.O_RDONLY, lambda fd: mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)[8999]))
case("private", lambda: on("f", os.O_RDONLY, lambda fd: mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ)[0]))
case("private of a writer", lambda: on("f", os.O_RDWR, lambda fd: mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)[1]))
case("shared for writing", lambda: on("f", os.O_RDWR, lambda fd: mmap.mmap(fd, 0)[0]))

section("locks")
make("f", b"x" * 100)


def in_child(call):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, outcome(call).encode())
        os._exit(0)
    os.close(writer)
    text = os.read(reader, 100).decode()
    os.close(reader)
    os.waitpid(child, 0)
    return text


def locked(how, start=0, length=0):
    return lambda fd: fcntl.lockf(fd, how, length, start)


def try_lock(start, length):
    return on("f", os.O_RDWR, locked(fcntl.LOCK_EX | fcntl.LOCK_NB, start, length))


case("flock twice", lambda: on("f", os.O_RDONLY, lambda a: (fcntl.flock(a, fcntl.LOCK_EX), on("f", os.O_RDONLY, lambda b: fcntl.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB)))))
case("flock shared", lambda: on("f", os.O_RDONLY, lambda a: (fcntl.flock(a, fcntl.LOCK_SH), on("f", os.O_RDONLY, lambda b: fcntl.flock(b, fcntl.LOCK_SH | fcntl.LOCK_NB)))[1]))
case("range in use", lambda: on("f", os.O_RDWR, lambda fd: (locked(fcntl.LOCK_EX, 10, 10)(fd), in_child(lambda: try_lock(15, 1)), in_child(lambda: try_lock(20, 1)))[1:]))
case("released by close", lambda: in_child(lambda: try_lock(15, 1)))
case("write lock of a reader", lambda: on("f", os.O_RDONLY, locked(fcntl.LOCK_EX | fcntl.LOCK_NB)))


def waiting():
    fd = os.open("f", os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        other = os.open("f", os.O_RDWR)
        fcntl.lockf(other, fcntl.LOCK_EX)
        os.write(writer, b"has it")
        os._exit(0)
    time.sleep(0.1)
    os.set_blocking(reader, False)
    try:
        early = os.read(reader, 10)
    except BlockingIOError:
        early = b"waits"
    os.close(fd)
    os.waitpid(child, 0)
    return early, os.read(reader, 10)


case("wait for a lock", waiting)
