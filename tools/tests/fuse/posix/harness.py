"""POSIX calls on a directory, one line of result each: `group/case: result`.

Cases are in the modules beside this one; `main.py DIR` runs them all, as root, on an empty directory of
any filesystem that other users may use. A result is a value, or the name of the errno. The test that
runs them compares a mount of LavaFS with a kernel filesystem, line by line; a line must therefore hold
nothing that differs between two runs on one filesystem.
"""

import ctypes
import errno
import os
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
