"""Modes, owners, times, permissions and extended attributes."""

import ctypes
import os
import stat
import struct
import time

from harness import *

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
case("now", lambda: (utimens("f", (0, NOW), (0, NOW)), abs(os.stat("f").st_mtime - time.time()) < 60)[1])
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
