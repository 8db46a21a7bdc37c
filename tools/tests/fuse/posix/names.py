"""Names: links, directories, symbolic links, renames, opening and listing."""

import ctypes
import os
import socket
import stat

from harness import *

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
case("links after rmdir", lambda: (os.mkdir("d/x"), os.rmdir("d/x"), os.stat("d").st_nlink)[2])
case("links after a move", lambda: (os.mkdir("from"), os.mkdir("from/x"), os.rename("from/x", "d/x"), os.stat("d").st_nlink, os.stat("from").st_nlink)[3:])
case("links after a replacement", lambda: (os.mkdir("from/x"), os.rename("from/x", "d/x"), os.stat("d").st_nlink, os.stat("from").st_nlink)[2:])
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

section("special")
case("regular by mknod", lambda: (os.mknod("r", stat.S_IFREG | 0o600), mode("r"))[1])
case("pipe", lambda: os.mkfifo("p"))
case("device", lambda: os.mknod("n", stat.S_IFCHR | 0o600, os.makedev(1, 3)))
case("socket", lambda: socket.socket(socket.AF_UNIX).bind("sock"))

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
