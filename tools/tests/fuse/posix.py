"""POSIX calls on a directory, one line of result each: `group/case: result`.

Run as root on an empty directory of any filesystem that other users may use. The result is a value, or
the name of the errno. The test that runs it compares a mount of LavaFS with a kernel filesystem, line
by line; a line must therefore hold nothing that differs between two runs on one filesystem.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import stat
import struct
import sys
import time

os.chdir(sys.argv[1])
os.umask(0o022)
libc = ctypes.CDLL(None, use_errno=True)
USER = 54321
OTHER = 54322
group = ""


def section(name):
    """Each section works in a directory of its own, writable for all."""
    global group
    group = name
    os.chdir(sys.argv[1])
    os.mkdir(name)
    os.chmod(name, 0o777)
    os.chdir(name)


def outcome(call):
    try:
        result = call()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok" if result is None else str(result)


def case(name, call):
    print(f"{group}/{name}: {outcome(call)}", flush=True)


def as_user(name, call, uid=USER, gid=USER, groups=()):
    """The case in a process of another user."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups(list(groups))
        os.setgid(gid)
        os.setuid(uid)
        os.write(writer, outcome(call).encode())
        os._exit(0)
    os.close(writer)
    text = os.read(reader, 4096).decode()
    os.close(reader)
    os.waitpid(child, 0)
    print(f"{group}/{name}: {text}", flush=True)


def c(result):
    """The result of a call of libc."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def make(name, data=b"", mode=0o644):
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(fd, data)
    os.close(fd)
    os.chmod(name, mode)
    return name


def read(name):
    with open(name, "rb") as file:
        return file.read()


def mode(name):
    return oct(os.lstat(name).st_mode)


def opened(name, flags, mode=0o644):
    os.close(os.open(name, flags, mode))


def on(name, flags, work):
    fd = os.open(name, flags, 0o644)
    try:
        return work(fd)
    finally:
        os.close(fd)


def changed(name, call):
    """Which of the times of `name` move when `call` is done."""
    before = os.lstat(name)
    time.sleep(0.02)
    call()
    after = os.lstat(name)
    moved = [f for f in ("st_mtime_ns", "st_ctime_ns") if getattr(before, f) < getattr(after, f)]
    return " ".join(moved) or "none"


section("chmod")
make("f"), os.mkdir("d"), os.symlink("f", "s")
for bits in (0, 0o7777, 0o4755, 0o2755, 0o1755, 0o644):
    case(f"file {bits:o}", lambda: (os.chmod("f", bits), mode("f"))[1])
    case(f"dir {bits:o}", lambda: (os.chmod("d", bits), mode("d"))[1])
case("through a symlink", lambda: (os.chmod("s", 0o600), mode("f"), mode("s"))[1:])
case("missing", lambda: os.chmod("x", 0o600))
case("below a file", lambda: os.chmod("f/x", 0o600))
case("times", lambda: changed("f", lambda: os.chmod("f", 0o640)))
as_user("by another", lambda: os.chmod("f", 0o666))
os.chown("f", USER, 7)
as_user("set-group-id of a foreign group", lambda: (os.chmod("f", 0o2755), mode("f"))[1])
as_user("set-group-id of an own group", lambda: (os.chmod("f", 0o2755), mode("f"))[1], groups=[7])

section("chown")
make("f"), os.symlink("f", "s"), os.mkdir("d")
case("root", lambda: (os.chown("f", 5, 6), os.stat("f").st_uid, os.stat("f").st_gid)[1:])
case("nothing", lambda: (os.chown("f", -1, -1), os.stat("f").st_uid)[1])
case("symlink itself", lambda: (os.lchown("s", 8, 9), os.lstat("s").st_uid, os.stat("f").st_uid)[1:])
case("directory", lambda: (os.chown("d", 3, 4), os.stat("d").st_gid)[1])
case("times", lambda: changed("f", lambda: os.chown("f", 6, 6)))
as_user("by another", lambda: os.chown("f", USER, USER))
os.chmod("f", 0o6755)
case("takes set-id bits", lambda: (os.chown("f", 7, 7), mode("f"))[1])
os.chmod("f", 0o2644)
case("leaves a locking mark", lambda: (os.chown("f", 7, 7), mode("f"))[1])
os.chmod("d", 0o6755)
case("leaves a directory's bits", lambda: (os.chown("d", 7, 7), mode("d"))[1])
os.chown("f", USER, USER)
as_user("own file to own group", lambda: os.chown("f", -1, 77), groups=[77])
as_user("own file to a foreign group", lambda: os.chown("f", -1, 78))
os.chmod("f", 0o6755)
as_user("by its owner takes set-id bits", lambda: (os.chown("f", -1, 77), mode("f"))[1], groups=[77])

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

section("link")
make("f", b"1"), os.mkdir("d"), os.symlink("f", "s"), os.symlink("none", "dangling")
case("count", lambda: (os.link("f", "g"), os.stat("f").st_nlink, os.stat("g").st_ino == os.stat("f").st_ino)[1:])
case("existing", lambda: os.link("f", "g"))
case("directory", lambda: os.link("d", "d2"))
case("missing", lambda: os.link("x", "y"))
case("missing parent", lambda: os.link("f", "x/y"))
case("below a file", lambda: os.link("f", "g/y"))
case("symlink itself", lambda: (os.link("s", "s2", follow_symlinks=False), os.readlink("s2"))[1])
case("name too long", lambda: os.link("f", "n" * 256))
case("times of the file", lambda: changed("f", lambda: os.link("f", "h")))
case("times of the directory", lambda: changed("d", lambda: os.link("f", "d/h")))
os.chmod("d", 0o755)
as_user("directory without permission", lambda: os.link("f", "d/i"))
case("after unlink", lambda: (os.unlink("g"), os.stat("f").st_nlink)[1])

section("mkdir")
case("mode and umask", lambda: (os.mkdir("d", 0o777), mode("d"))[1])
case("existing", lambda: os.mkdir("d"))
case("existing file", lambda: os.mkdir(make("f")))
case("below a file", lambda: os.mkdir("f/x"))
case("missing parent", lambda: os.mkdir("x/y"))
case("times of the parent", lambda: changed("d", lambda: os.mkdir("d/e")))
case("links of an empty directory", lambda: os.stat("d/e").st_nlink)
case("links of a parent", lambda: os.stat("d").st_nlink)
case("name of 255", lambda: os.mkdir("n" * 255))
case("name of 256", lambda: os.mkdir("n" * 256))
os.mkdir("g"), os.chown("g", 0, 77), os.chmod("g", 0o2777)
as_user("in a set-group-id directory", lambda: (os.mkdir("g/d", 0o755), mode("g/d"), os.stat("g/d").st_gid)[1:])
as_user("file in a set-group-id directory", lambda: os.stat(make("g/f")).st_gid)
os.mkdir("p", 0o755)
as_user("without permission", lambda: os.mkdir("p/d"))
case("dot", lambda: os.mkdir("."))
case("dotdot is the parent", lambda: os.stat("d/..").st_ino == os.stat(".").st_ino)

section("rmdir")
os.mkdir("d"), os.mkdir("d/e"), make("f")
case("not empty", lambda: os.rmdir("d"))
case("file", lambda: os.rmdir("f"))
case("dot", lambda: os.rmdir("d/e/."))
case("dotdot", lambda: os.rmdir("d/e/.."))
case("missing", lambda: os.rmdir("x"))
case("times of the parent", lambda: changed("d", lambda: os.rmdir("d/e")))
case("while open", lambda: on("d", os.O_RDONLY, lambda fd: (os.rmdir("d"), os.listdir(fd))[1]))
os.mkdir("d")
case("create in what was removed", lambda: on("d", os.O_RDONLY, lambda fd: (os.rmdir("d"), os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd))))

section("unlink")
make("f", b"data"), os.mkdir("d")
case("directory", lambda: os.unlink("d"))
case("missing", lambda: os.unlink("x"))
case("below a file", lambda: os.unlink("f/x"))
case("links while open", lambda: on("f", os.O_RDONLY, lambda fd: (os.unlink("f"), os.fstat(fd).st_nlink, os.pread(fd, 9, 0))[1:]))
make("f"), os.link("f", "g")
case("times of the file", lambda: changed("f", lambda: os.unlink("g")))
case("times of the directory", lambda: (make("d/f"), changed("d", lambda: os.unlink("d/f")))[1])
os.chmod("d", 0o755), make("d/f", mode=0o666)
as_user("without permission", lambda: os.unlink("d/f"))
os.mkdir("t"), os.chmod("t", 0o1777), make("t/f", mode=0o666)
as_user("foreign file in a sticky directory", lambda: os.unlink("t/f"))
as_user("rename out of a sticky directory", lambda: os.rename("t/f", "t/g"))
os.chown("t/f", USER, USER)
as_user("own file in a sticky directory", lambda: os.unlink("t/f"))
case("written while unlinked", lambda: on("w", os.O_RDWR | os.O_CREAT, lambda fd: (os.unlink("w"), os.write(fd, b"abc"), os.pread(fd, 9, 0))[1:]))

section("symlink")
case("contents", lambda: (os.symlink("a/b", "s"), os.readlink("s"))[1])
case("size and mode", lambda: (os.lstat("s").st_size, mode("s")))
case("existing", lambda: os.symlink("x", "s"))
case("empty", lambda: os.symlink("", "e"))
case("long", lambda: (os.symlink("t" * 4000, "l"), len(os.readlink("l")))[1])
case("too long", lambda: os.symlink("t" * 4096, "m"))
case("readlink of a file", lambda: os.readlink(make("f")))
case("loop", lambda: (os.symlink("loop", "loop"), os.stat("loop"))[1])
case("dangling", lambda: os.stat("s"))
case("exclusive create through a dangling one", lambda: opened("s", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
case("not followed", lambda: opened("s", os.O_RDONLY | os.O_NOFOLLOW))
case("create through a dangling one", lambda: (os.symlink("made", "to"), make("to", b"1"), read("made"))[2])

section("open")
make("f", b"abc"), os.mkdir("d")
case("missing", lambda: opened("x", os.O_RDONLY))
case("exclusive", lambda: opened("f", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
case("exclusive new", lambda: opened("new", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
case("directory flag on a file", lambda: opened("f", os.O_RDONLY | os.O_DIRECTORY))
case("directory for writing", lambda: opened("d", os.O_WRONLY))
case("directory created over", lambda: opened("d", os.O_CREAT | os.O_RDONLY))
case("below a file", lambda: opened("f/x", os.O_RDONLY))
case("trailing slash on a file", lambda: opened("f/", os.O_RDONLY))
case("mode 0 is usable once", lambda: on("zero", os.O_CREAT | os.O_RDWR, lambda fd: (os.fchmod(fd, 0), os.write(fd, b"x"))[1]))
case("truncate", lambda: (opened("f", os.O_WRONLY | os.O_TRUNC), os.stat("f").st_size)[1])
case("truncate times", lambda: (make("f", b"abc"), changed("f", lambda: opened("f", os.O_WRONLY | os.O_TRUNC)))[1])
case("write to a descriptor for reading", lambda: on("f", os.O_RDONLY, lambda fd: os.write(fd, b"x")))
case("read from a descriptor for writing", lambda: on("f", os.O_WRONLY, lambda fd: os.read(fd, 1)))
os.chmod("f", 0o600), os.mkdir("p", 0o755)
as_user("read without permission", lambda: opened("f", os.O_RDONLY))
as_user("write without permission", lambda: opened("f", os.O_WRONLY))
as_user("create without permission", lambda: opened("p/x", os.O_CREAT | os.O_WRONLY))
make("p/f"), os.chmod("p", 0o700)
as_user("search without permission", lambda: os.stat("p/f"))
as_user("owner of what it makes", lambda: (os.stat(make("mine")).st_uid, os.stat("mine").st_gid))
case("path only", lambda: on("f", os.O_PATH, lambda fd: stat.S_ISREG(os.fstat(fd).st_mode)))
case("temporary file", lambda: opened(".", os.O_TMPFILE | os.O_RDWR))
case("name of 255", lambda: opened("n" * 255, os.O_CREAT | os.O_WRONLY))
case("name of 256", lambda: opened("n" * 256, os.O_CREAT | os.O_WRONLY))
case("path of 4096", lambda: os.stat("./" * 2047 + "ff"))
case("path of 4095", lambda: os.stat("./" * 2047 + "f").st_size)
case("any byte but slash and nul", lambda: (opened(b"a\x01\xff\n ", os.O_CREAT | os.O_WRONLY), b"a\x01\xff\n " in os.listdir(b"."))[1])

section("rename")


def tree():
    for i in range(99):
        if not os.path.lexists(f"r{i}"):
            os.mkdir(f"r{i}"), os.chdir(f"r{i}")
            break
    make("f", b"f"), make("g", b"g"), os.mkdir("d"), os.mkdir("e"), os.mkdir("full"), make("full/x")


def renamed(name, call):
    tree()
    case(name, call)
    os.chdir("..")


def rename2(a, b, flags):
    c(libc.renameat2(-100, a.encode(), -100, b.encode(), flags))


renamed("replace", lambda: (os.rename("f", "g"), read("g"), os.path.exists("f"))[1:])
renamed("file over directory", lambda: os.rename("f", "d"))
renamed("directory over file", lambda: os.rename("d", "f"))
renamed("over an empty directory", lambda: (os.rename("full", "d"), os.listdir("d"))[1])
renamed("over a full directory", lambda: os.rename("d", "full"))
renamed("into itself", lambda: os.rename("d", "d/x"))
renamed("below itself", lambda: (os.makedirs("d/1/2"), os.rename("d", "d/1/2/3"))[1])
renamed("onto its ancestor", lambda: (os.makedirs("d/1/2"), os.rename("d/1/2", "d"))[1])
renamed("missing", lambda: os.rename("x", "y"))
renamed("missing parent", lambda: os.rename("f", "x/y"))
renamed("dot", lambda: os.rename(".", "y"))
renamed("dotdot", lambda: os.rename("d/..", "y"))
renamed("to itself", lambda: os.rename("f", "f"))
renamed("two names of one file", lambda: (os.link("f", "h"), os.rename("f", "h"), sorted(os.listdir(".")))[2])
renamed("times of both directories", lambda: (changed("d", lambda: os.rename("f", "d/f")), changed("d", lambda: os.rename("d/f", "f"))))
renamed("links of what is replaced", lambda: (os.link("g", "h"), os.rename("f", "g"), os.stat("h").st_nlink)[2])
renamed("replaced while open", lambda: on("g", os.O_RDONLY, lambda fd: (os.rename("f", "g"), os.pread(fd, 9, 0), os.fstat(fd).st_nlink)[1:]))
renamed("no replace", lambda: rename2("f", "g", 1))
renamed("no replace of nothing", lambda: (rename2("f", "h", 1), read("h"))[1])
renamed("exchange", lambda: (rename2("f", "full", 2), os.path.isdir("f"), read("full"))[1:])
renamed("exchange with nothing", lambda: rename2("f", "h", 2))
renamed("exchange with an ancestor", lambda: rename2("full", "full/x", 2))
renamed("both flags", lambda: rename2("f", "g", 3))
renamed("name too long", lambda: os.rename("f", "n" * 256))
renamed("directory moves with its parent", lambda: (os.rename("full", "e/full"), os.stat("e/full/..").st_ino == os.stat("e").st_ino)[1])
renamed("trailing slash on a file", lambda: os.rename("f", "h/"))
renamed("trailing slash on a directory", lambda: os.rename("d", "h/"))
os.mkdir("t"), os.chmod("t", 0o1777), make("t/theirs", mode=0o666), os.mkdir("u"), os.chmod("u", 0o777)
as_user("over a foreign file in a sticky directory", lambda: os.rename(make("u/mine"), "t/theirs"))
os.mkdir("w", 0o755), os.chown("w", OTHER, OTHER)
as_user("directory of another, whose dotdot would change", lambda: os.rename("w", "u/w"))

section("times")
libc.utimensat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int]
NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2


def utimens(name, atime, mtime, flags=0):
    c(libc.utimensat(-100, name.encode(), struct.pack("qqqq", *atime, *mtime), flags))


make("f", mode=0o666), os.symlink("f", "s")
case("set", lambda: (utimens("f", (1, 2), (1000000003, 4)), os.stat("f").st_mtime_ns)[1])
case("set access", lambda: os.stat("f").st_atime_ns)
case("before 1970", lambda: (utimens("f", (1, 2), (-2, 800000000)), os.stat("f").st_mtime_ns)[1])
case("far future", lambda: (utimens("f", (1, 2), (5000000000, 0)), os.stat("f").st_mtime_ns)[1])
case("omit", lambda: (utimens("f", (1, 2), (1, OMIT)), os.stat("f").st_mtime_ns)[1])
case("omit both", lambda: changed("f", lambda: utimens("f", (1, OMIT), (1, OMIT))))
case("set moves ctime", lambda: changed("f", lambda: utimens("f", (1, 2), (3, 4))))
case("now", lambda: (utimens("f", (0, NOW), (0, NOW)), abs(os.stat("f").st_mtime - time.time()) < 5)[1])
case("nanoseconds out of range", lambda: utimens("f", (1, 2), (3, 10**9)))
case("symlink itself", lambda: (utimens("s", (1, 2), (3, 4), 0x100), os.lstat("s").st_mtime_ns, os.stat("f").st_mtime_ns > 9)[1:])
as_user("set by another", lambda: utimens("f", (1, 2), (3, 4)))
as_user("now by who may write", lambda: utimens("f", (0, NOW), (0, NOW)))
os.chmod("f", 0o644)
as_user("now by who may not", lambda: utimens("f", (0, NOW), (0, NOW)))
case("write", lambda: changed("f", lambda: on("f", os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"x"))))
case("read", lambda: changed("f", lambda: read("f")))
case("empty write", lambda: changed("f", lambda: on("f", os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b""))))
case("create", lambda: (os.mkdir("d"), changed("d", lambda: make("d/f")))[1])
case("write in a directory leaves it", lambda: changed("d", lambda: on("d/f", os.O_WRONLY, lambda fd: os.write(fd, b"x"))))
case("set after a write stays", lambda: on("f", os.O_WRONLY | os.O_APPEND, lambda fd: (os.write(fd, b"y" * 200000), os.utime(fd, ns=(5, 7)), os.fsync(fd), os.fstat(fd).st_mtime_ns)[3]) and os.stat("f").st_mtime_ns)
case("set-id bits after a write by another", lambda: (make("p", mode=0o6777), None)[1])
as_user("set-id write", lambda: on("p", os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"x")))
case("set-id bits afterwards", lambda: mode("p"))
make("q", mode=0o6777)
case("set-id bits after a write by root", lambda: (on("q", os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"x")), mode("q"))[1])

section("access")
make("f", mode=0o640), os.mkdir("d", 0o700)
case("root may read and write", lambda: (os.access("f", os.R_OK | os.W_OK), os.access("f", os.X_OK)))
as_user("another may not", lambda: (os.access("f", os.R_OK), os.access("f", os.F_OK), os.access("d/x", os.F_OK)))
as_user("the group may read", lambda: (os.access("f", os.R_OK), os.access("f", os.W_OK)), uid=USER, gid=0)
make("run", b"#!/bin/sh\nexit 3\n", 0o755)
case("execute", lambda: os.waitstatus_to_exitcode(os.system("./run")))
case("execute without the bit", lambda: os.waitstatus_to_exitcode(os.system("./f 2>/dev/null")))

section("special")
case("regular by mknod", lambda: (os.mknod("r", stat.S_IFREG | 0o600), mode("r"))[1])
case("pipe", lambda: os.mkfifo("p"))
case("device", lambda: os.mknod("n", stat.S_IFCHR | 0o600, os.makedev(1, 3)))
case("socket", lambda: socket.socket(socket.AF_UNIX).bind("sock"))

section("xattr")
make("f"), os.mkdir("d"), os.symlink("f", "s")
case("set and get", lambda: (os.setxattr("f", "user.a", b"1"), os.getxattr("f", "user.a"))[1])
case("empty value", lambda: (os.setxattr("f", "user.e", b""), os.getxattr("f", "user.e"))[1])
case("list", lambda: (os.setxattr("f", "user.b", b"2"), sorted(os.listxattr("f")))[1])
case("create existing", lambda: os.setxattr("f", "user.a", b"", os.XATTR_CREATE))
case("replace missing", lambda: os.setxattr("f", "user.x", b"", os.XATTR_REPLACE))
case("get missing", lambda: os.getxattr("f", "user.x"))
case("remove missing", lambda: os.removexattr("f", "user.x"))
case("remove", lambda: (os.removexattr("f", "user.b"), sorted(os.listxattr("f")))[1])
case("buffer too small", lambda: (os.setxattr("f", "user.l", b"12345"), c(libc.getxattr(b"f", b"user.l", ctypes.create_string_buffer(3), 3)))[1])
case("list buffer too small", lambda: c(libc.listxattr(b"f", ctypes.create_string_buffer(3), 3)))
case("length only", lambda: c(libc.getxattr(b"f", b"user.l", None, 0)))
case("name of 255", lambda: os.setxattr("f", "user." + "n" * 250, b""))
case("name of 256", lambda: os.setxattr("f", "user." + "n" * 251, b""))
case("value beyond the kernel's limit", lambda: os.setxattr("f", "user.big", bytes(65537)))
case("directory", lambda: (os.setxattr("d", "user.a", b"1"), os.getxattr("d", "user.a"))[1])
case("symlink itself", lambda: os.setxattr("s", "user.a", b"1", follow_symlinks=False))
case("no namespace", lambda: os.setxattr("f", "plain", b"1"))
case("trusted", lambda: os.setxattr("f", "trusted.a", b"1"))
case("times", lambda: changed("f", lambda: os.setxattr("f", "user.t", b"1")))
os.chmod("f", 0o644)
as_user("set without permission", lambda: os.setxattr("f", "user.a", b"2"))
as_user("get with permission", lambda: os.getxattr("f", "user.a"))

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

section("directories")


class Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_ulong), ("off", ctypes.c_long), ("reclen", ctypes.c_ushort), ("type", ctypes.c_ubyte), ("name", ctypes.c_char * 256)]


libc.opendir.restype = ctypes.c_void_p
libc.opendir.argtypes = [ctypes.c_char_p]
libc.readdir.restype = ctypes.POINTER(Dirent)
libc.readdir.argtypes = [ctypes.c_void_p]
libc.telldir.restype = ctypes.c_long
libc.telldir.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
libc.rewinddir.argtypes = [ctypes.c_void_p]
libc.closedir.argtypes = [ctypes.c_void_p]


def names(dir, most=10**9):
    found = []
    while len(found) < most and (entry := libc.readdir(dir)):
        found.append(entry.contents.name)
    return found


def telling():
    for i in range(3000):
        make(f"n{i}")
    dir = libc.opendir(b".")
    first = names(dir, 1000)
    place = libc.telldir(dir)
    second = names(dir, 500)
    for name in first[10:900]:
        if name not in (b".", b".."):
            os.unlink(name)
    libc.seekdir(dir, place)
    rest = names(dir)
    libc.rewinddir(dir)
    left = names(dir)
    libc.closedir(dir)
    whole = len(set(first) | set(rest)) == 3002 and not set(first) & set(rest)
    return whole, rest[:500] == second, len(left) == len(set(left)) == len(os.listdir(".")) + 2


case("telldir and seekdir while names go", telling)
case("removed while listed", lambda: ([os.unlink(e.path) for e in os.scandir(".")], os.listdir("."))[1])
make("f"), os.mkdir("d"), os.symlink("f", "s")
case("types", lambda: sorted((e.name, e.is_dir(follow_symlinks=False), e.is_symlink()) for e in os.scandir(".")))
case("inode numbers agree", lambda: all(e.inode() == os.lstat(e.name).st_ino for e in os.scandir(".")))
case("relative to a descriptor", lambda: on("d", os.O_RDONLY, lambda fd: (os.rename("d", "d2"), os.mkdir("sub", dir_fd=fd), os.rmdir("sub", dir_fd=fd), os.listdir(fd))[3]))
case("change to a file", lambda: os.chdir("f"))
