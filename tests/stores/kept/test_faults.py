"""Kept runs on systems that refuse, and processes that end: a typed error, nothing lost, and a way on."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers import mortal
from helpers.limits import MIB, memory_group, threads
from helpers.mortal import MISSING, NOTHING, N, batches, check, check_complete, complete, push, start
from helpers.processes import ENVIRONMENT
from helpers.soak import soaked

from accumulator._stores.files import system as _system
from accumulator.exceptions import (
    AccumulatorError,
    ClosedError,
    LockedError,
    NothingPushedError,
    StorageError,
)

TIMEOUT = 300  # seconds; only what hangs takes them
KINDS = [  # each part of a name is in one that every run has
    "sparse, shards, zstd, filled",
    "shuffled, repeats",
    *soaked("shuffled", "sparse, repeats, zstd"),
]
REPEATS = ["shuffled, repeats", *soaked("sparse, repeats, zstd")]
ZERO = np.zeros(N, dtype=int)

# What scripts begin with. Their arguments: the store, its kind, and the digests of a whole run.
BEGIN = """
import errno, gc, io, json, os, random, resource, shutil, signal, subprocess, sys, threading, time, warnings
from pathlib import Path
import numpy as np
from helpers import mortal
from helpers.processes import ENVIRONMENT
from helpers.mortal import LOCS, MISSING, N, NOTHING, batches, check, check_complete, complete, push, say
from helpers.mortal import start
from accumulator.exceptions import *
warnings.simplefilter("ignore", StorageWarning)  # the disk may not hold all rows: it does not
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell puts in the background ignores it
store, name, wanted = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
versions, chance = np.full(N, MISSING), random.Random(3)
def take(accumulator, n=None, is_flushed=True):
    '''Push so many batches, or as many as there are.'''
    for number, (rows, new) in enumerate(batches(name, versions, chance)):
        if number == n:
            break
        push(accumulator, rows, new)
        versions[:] = new
    if is_flushed:
        accumulator.flush()
        say(json.dumps(versions.tolist()))
def refused(call, *codes):
    '''Have a call be refused with one of these codes; nothing of it was taken.'''
    try:
        call()
    except StorageError as error:
        assert error.errno in codes, repr(error)
        return True
    return False
def settle(accumulator, *codes):
    '''Check all that was taken, now that the cause is gone: what was not told yet may be told first.'''
    refused(accumulator.flush, *codes)
    check(accumulator, name, versions)
def end(accumulator):
    '''Go on to the end in this process, where the cause is gone.'''
    check(accumulator, name, versions)
    with accumulator:
        take(accumulator)
    check_complete(store, name, wanted)
    say("right")
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return what makes the digests of a whole run of a kind."""
    known = {}

    def make(name):
        if name not in known:
            store = tmp_path_factory.mktemp("whole") / "run.zarr"
            complete(store, name)
            known[name] = check_complete(store, name)
        return known[name]

    return make


def command(script, store, name, wanted):
    """Return the command that runs a script after what all begin with."""
    return [sys.executable, "-W", "error", "-c", BEGIN + script, str(store), name, json.dumps(wanted)]


def run(script, store, name, wanted, *, status=0, prefix=(), **process):
    """Run a script in a process of its own, and return the lines it wrote."""
    ended = subprocess.run(
        [*prefix, *command(script, store, name, wanted)],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
        env=ENVIRONMENT,
        **process,
    )
    if prefix and ended.returncode == 99:
        pytest.skip("needs root, to mount a small file system")
    assert ended.returncode == status, f"exit {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout.splitlines()


def on_small_disk(disk, size):
    """Return the beginning of a command that runs it where a small file system is mounted on a folder."""
    disk.mkdir()
    mount = f'mount -t tmpfs -o size={size} tmpfs {disk} || exit 99; exec "$@"'
    return ["sh", "-c", f"unshare -m true || exit 99; exec unshare -m sh -c '{mount}' - \"$@\"", "-"]


FULL = """
disk = Path(store).parent
def fill():
    with open(disk / "ballast", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
def room():
    os.remove(disk / "ballast")
"""

FULL_ON = """
accumulator = start(store, name)
take(accumulator, 2)
for _ in range(2):
    fill()
    with open(disk / "ballast", "r+") as file:  # room for some rows, and not for all
        file.truncate(os.path.getsize(file.name) - 8 * 4096)
    n = 0
    while not refused(lambda: take(accumulator, 1), errno.ENOSPC):
        n += 1
        assert n < 100
    before = accumulator.written.copy()
    for call in (accumulator.flush, accumulator.finalize, lambda: accumulator.canvas):
        assert refused(call, errno.ENOSPC)
    assert (accumulator.written == before).all()
    room()
    accumulator.flush()
    check(accumulator, name, versions)
end(accumulator)
"""

FULL_ANEW = """
accumulator = start(store, name)
fill()
assert refused(lambda: take(accumulator, 1), errno.ENOSPC), "no store can be made"
assert not accumulator.written.any()
room()
versions[:] = MISSING
take(accumulator, 2)
safe = versions.copy()
fill()
while not refused(lambda: take(accumulator, 1), errno.ENOSPC):
    safe = versions.copy()
assert refused(accumulator.close, errno.ENOSPC), "what is not recorded is told"
del accumulator
resume = '''
try:
    accumulator = start(store, name)
except StorageError as error:
    assert error.errno == errno.ENOSPC, error
else:
    versions[:] = check(accumulator, name, safe)
    refused(lambda: take(accumulator), errno.ENOSPC)
    refused(accumulator.close, errno.ENOSPC)
'''
def again(script):
    begin = sys.orig_argv[sys.orig_argv.index("-c") + 1].split("disk =")[0]
    script = begin + f"safe = {safe.tolist()}" + script
    subprocess.run([sys.executable, "-W", "error", "-c", script, *sys.argv[1:]], check=True)
again(resume)
room()
again('''
accumulator = start(store, name)
versions[:] = check(accumulator, name, safe)
end(accumulator)
''')
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("script", [FULL_ON, FULL_ANEW], ids=["same process", "another process"])
def test_disk_that_is_really_full(tmp_path, whole, script, name):
    """A full disk is a typed error, and once there is room the run goes on, here or after a restart."""
    disk = tmp_path / "disk"
    lines = run(FULL + script, disk / "run.zarr", name, whole(name), prefix=on_small_disk(disk, "2m"))
    assert lines[-1] == "right"


QUOTA = """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
accumulator = start(store, name)
take(accumulator, 1)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
for limit in (0, 100, 5000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    assert refused(lambda: take(accumulator, 2), errno.EFBIG)
    refused(accumulator.flush, errno.EFBIG)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    settle(accumulator, errno.EFBIG)
end(accumulator)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_files_that_may_not_grow(tmp_path, whole, name):
    """RLIMIT_FSIZE refuses as a quota does: a typed error, and the run goes on once it is lifted."""
    assert run(QUOTA, tmp_path / "run.zarr", name, whole(name))[-1] == "right"


NO_FILES = """
accumulator = start(store, name)
take(accumulator, 3)
def starve(call):
    held = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    try:
        return refused(call, errno.EMFILE)
    finally:
        for each in held:
            os.close(each)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
assert starve(lambda: take(accumulator, 2))
settle(accumulator, errno.EMFILE)
take(accumulator, 2)
safe = versions.copy()
starve(lambda: take(accumulator, 2, False))
starve(accumulator.close)
warnings.simplefilter("error", StorageWarning)
assert starve(lambda: start(store, name)), "resumed without a file to be had"
# At every moment of a resume: one that cannot be opened, and afterwards there are files again.
left, real = 0, {os: os.open, io: io.open}
def make(module):
    def opened(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real[module](*arguments, **options)
    return opened
for number in range(1, 10000):
    left, os.open, io.open = number, make(os), make(io)
    try:
        accumulator = start(store, name)
    except StorageError as error:
        assert error.errno == errno.EMFILE, repr(error)
        continue
    finally:
        os.open, io.open = real[os], real[io]
    check(accumulator, name, safe)
    if left > 0:
        break
    accumulator.close()
assert number > 20
versions[:] = check(accumulator, name, safe)
end(accumulator)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_no_files_to_be_opened(tmp_path, whole, name):
    """A process that may open no more files has a typed error, and a resume takes no row for damaged."""
    assert run(NO_FILES, tmp_path / "run.zarr", name, whole(name))[-1] == "right"


NO_MEMORY = """
mortal.SIZES["map"] = (512, 512), "f4"  # 1 MiB a row
accumulator = start(store, name, chunks=5)
take(accumulator, 2)
_, most = resource.getrlimit(resource.RLIMIT_AS)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
rows = np.flatnonzero(versions < mortal.last_versions(name))
new = versions.copy()
new[rows] += 1
batch = {head: mortal.values(head, new)[rows] for head in mortal.SIZES}
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
n_refused = 0
for spare in range(0, 40, 3):
    resource.setrlimit(resource.RLIMIT_AS, (used + spare * 2**20, most))
    try:
        accumulator.push(batch, LOCS[rows])
        accumulator.flush()
    except (MemoryError, StorageError):
        n_refused += 1
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if accumulator.written[rows].all():
        versions[:] = new
        break
    check(accumulator, name, versions)
assert n_refused
check(accumulator, name, versions)
with accumulator:
    take(accumulator)
check_complete(store, name)
say("right")
"""


@pytest.mark.slow
def test_address_space_that_ends_in_the_middle(tmp_path):
    """Under RLIMIT_AS a push that finds no memory leaves no trace, and is taken once there is some."""
    assert run(NO_MEMORY, tmp_path / "run.zarr", "shuffled", None)[-1] == "right"


OUT_OF_MEMORY = """
accumulator = start(store, name)
take(accumulator, 3)
take(accumulator, 1, is_flushed=False)
held = []
while True:
    held.append(b"x" * 2**24)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_killed_by_the_kernel_for_memory(tmp_path, whole, name):
    """A process that a full memory cgroup kills has lost nothing that was recorded."""
    store = tmp_path / "run.zarr"
    with memory_group(300 * MIB) as join:
        lines = run(join + OUT_OF_MEMORY, store, name, None, status=-signal.SIGKILL)
    complete(store, name, json.loads(lines[-1]))
    check_complete(store, name, whole(name))


READ_ONLY = """
disk = str(Path(store).parent)
def mount(how):
    subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)
accumulator = start(store, name)
take(accumulator, 3)
mount("ro")
for _ in range(2):
    assert refused(lambda: take(accumulator, 1), errno.EROFS)
assert refused(accumulator.finalize, errno.EROFS)
mount("rw")
settle(accumulator, errno.EROFS)
take(accumulator, 1)
safe = versions.copy()
mount("ro")
refused(lambda: take(accumulator, 1, is_flushed=False), errno.EROFS)
refused(accumulator.close, errno.EROFS)
mount("rw")
accumulator = start(store, name)
safe = versions[:] = check(accumulator, name, safe)
accumulator.close()
mount("ro")
try:
    accumulator = start(store, name)
except StorageError as error:
    assert error.errno == errno.EROFS, error
else:
    check(accumulator, name, safe)
    refused(lambda: take(accumulator, 2), errno.EROFS)
    refused(accumulator.close, errno.EROFS)
mount("rw")
accumulator = start(store, name)
versions[:] = check(accumulator, name, safe)
end(accumulator)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_file_system_that_turns_read_only(tmp_path, whole, name):
    """A file system that turns read-only is a typed error, and the run goes on once it is not."""
    disk = tmp_path / "disk"
    lines = run(READ_ONLY, disk / "run.zarr", name, whole(name), prefix=on_small_disk(disk, "8m"))
    assert lines[-1] == "right"


NO_PERMISSION = """
complete("warm.zarr", name)  # imports what somebody else may not be able to
check_complete("warm.zarr", name)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
accumulator = start(store, name)
take(accumulator, 2)
folders = [path for path in (Path(store), *Path(store).rglob("*")) if path.is_dir()]
for folder in folders:
    folder.chmod(0o500)
for _ in range(2):
    assert refused(lambda: take(accumulator), errno.EACCES)
assert refused(accumulator.finalize, errno.EACCES)
for folder in folders:
    folder.chmod(0o700)
accumulator.flush()
check(accumulator, name, versions)
accumulator.close()
for path in Path(store).rglob("c.*"):
    path.chmod(0)
try:
    start(store, name)
except (StorageError, ResultFormatError) as error:
    print(repr(error))
else:
    raise AssertionError("resumed what it may not read")
for path in Path(store).rglob("c.*"):
    path.chmod(0o600)
accumulator = start(store, name)
check(accumulator, name, versions)
end(accumulator)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
@pytest.mark.parametrize("name", KINDS)
def test_permission_that_is_lost(whole, name):
    """Folders that may not be written and files that may not be read are typed errors, and cost no row."""
    folder = Path(tempfile.mkdtemp())  # that others may enter
    try:
        folder.chmod(0o777)
        assert run(NO_PERMISSION, folder / "run.zarr", name, whole(name), cwd=folder)[-1] == "right"
    finally:
        shutil.rmtree(folder)


class Faults:
    """Stands for `os` where files are changed: some calls fail, counted over all functions."""

    def __init__(self, first, last, reading=errno.EIO):
        self.first, self.last, self.n_calls, self._lock = first, last, 0, threading.Lock()
        self._codes = {"open": reading, "readv": reading}

    def __getattr__(self, name):
        real = getattr(os, name)
        if not callable(real) or name in {"close", "lseek", "rmdir"}:  # of those nothing depends
            return real

        def call(*arguments):
            with self._lock:
                self.n_calls += 1
                fails = self.first <= self.n_calls <= self.last
            if fails:
                code = self._codes.get(name, errno.EIO)
                raise OSError(code, os.strerror(code))
            return None if name == "fsync" else real(*arguments)  # nothing crashes here, and it takes long

        return call


def again(call):
    """Call until it is not refused any more; every refusal is typed."""
    for _ in range(5):
        try:
            return call()
        except StorageError as error:
            refusal = error
    raise AssertionError("it is refused for ever") from refusal


def few(name, versions):
    """Return the same pushes each time."""
    return enumerate(batches(name, versions, random.Random(5)))  # noqa: S311  no secret


EVERY = range(1, 100_000, int(os.environ.get("ACCUMULATOR_FAULT_STEP", "61")))  # calls; 1 takes ten minutes


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_one_call_that_fails(quick_path, monkeypatch, whole, name):
    """Whichever call of the system fails once, calling again goes on, and the bytes are the same."""
    wanted = whole(name)
    for number in EVERY:
        store, faults = quick_path / f"{number}.zarr", Faults(number, number)
        monkeypatch.setattr(_system, "os", faults)
        accumulator, versions = (
            again(lambda at=store: start(at, name, memory_limit="200 KiB")),
            ZERO + MISSING,
        )
        for count, (rows, new) in few(name, versions):
            again(lambda: push(accumulator, rows, new))  # noqa: B023  called at once
            versions[:] = new
            assert accumulator.written.tolist() == (versions != MISSING).tolist()
            if count % 4 == 1:
                again(accumulator.flush)
        again(accumulator.finalize)
        monkeypatch.setattr(_system, "os", os)
        check_complete(store, name, wanted)
        shutil.rmtree(store)
        if faults.n_calls < number:
            break
    assert number > 100


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_disk_that_fails_for_good(quick_path, monkeypatch, whole, name):
    """From whichever call on all of them fail, what was recorded is there when the disk is."""
    wanted = whole(name)
    for number in EVERY:
        store, faults = quick_path / f"{number}.zarr", Faults(number, 10**9)
        monkeypatch.setattr(_system, "os", faults)
        versions, safe, accumulator = ZERO + MISSING, NOTHING, None
        with contextlib.suppress(StorageError):
            accumulator = start(store, name, memory_limit="200 KiB")
            for count, (rows, new) in few(name, versions):
                push(accumulator, rows, new)
                versions[:] = new
                if count % 4 == 1:
                    accumulator.flush()
                    safe = versions.copy()
            accumulator.finalize()
        for call in ("flush", "finalize", "close") if accumulator is not None else ():
            with contextlib.suppress(StorageError, ClosedError, NothingPushedError):
                getattr(accumulator, call)()
        del accumulator
        assert threads() == []
        monkeypatch.setattr(_system, "os", os)
        monkeypatch.setattr(os, "fsync", lambda _: None)
        complete(store, name, safe)
        check_complete(store, name, wanted)
        shutil.rmtree(store)
        if faults.n_calls < number:
            break
    assert number > 100


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_resume_in_which_one_call_fails(quick_path, monkeypatch, whole, name):
    """Whichever call of a resume fails, no recorded row is lost by it, and the next try succeeds."""
    wanted, crashed, store = whole(name), quick_path / "crashed.zarr", quick_path / "run.zarr"
    accumulator, versions = start(store, name), ZERO + MISSING
    for count, (rows, new) in few(name, versions):
        push(accumulator, rows, new)
        versions[:] = new
        if count == 4:
            accumulator.flush()
            safe = versions.copy()
        if count == 6:
            break
    accumulator._canvas._batches.show()  # in their files, and not recorded
    shutil.copytree(store, crashed)
    accumulator.close()
    for number in EVERY:
        shutil.rmtree(store)
        shutil.copytree(crashed, store)
        faults = Faults(number, number, reading=errno.ENOMEM)
        monkeypatch.setattr(_system, "os", faults)
        accumulator = again(lambda: start(store, name))
        found = again(lambda: check(accumulator, name, safe))  # noqa: B023  called at once
        assert found.tolist() == safe.tolist()
        accumulator.close()
        monkeypatch.setattr(_system, "os", os)
        if number % 5 == 1:
            complete(store, name, safe)
            check_complete(store, name, wanted)
        if faults.n_calls < number:
            break
    assert number > 10


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("interval", [0, 1e9])
@pytest.mark.parametrize("is_flushed", [False, True])
def test_folder_that_is_removed(tmp_path, name, interval, is_flushed):
    """A run whose folder is removed under it has typed errors, leaves no thread, and can be begun anew."""
    store, versions = tmp_path / "run.zarr", ZERO + MISSING
    accumulator = start(store, name, checkpoint_interval=interval)
    for count, (rows, new) in few(name, versions):
        if count == 3:
            if is_flushed:
                accumulator.flush()
            accumulator._canvas.store._writer.drain()  # else it writes into what is being removed
            shutil.rmtree(store)
        try:
            push(accumulator, rows, new)
        except AccumulatorError:
            break
        versions[:] = new
        assert accumulator.written.tolist() == (versions != MISSING).tolist()
    assert accumulator.written.tolist() == (versions != MISSING).tolist(), "a refused push was taken"
    is_pending = (accumulator.written & ~accumulator._canvas.run.recorded).any()
    for call in ("flush", "finalize"):
        if is_pending or call == "finalize":
            with pytest.raises((StorageError, ClosedError)):
                getattr(accumulator, call)()
    with contextlib.suppress(StorageError, ClosedError):
        accumulator.close()
    assert threads() == []
    assert not store.exists()
    complete(store, name)
    check_complete(store, name)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("interval", [0, 1e9])
def test_folder_that_is_away_for_a_while(tmp_path, whole, name, interval):
    """While the folder above is renamed nothing is lost, and once it is back the run goes on."""
    here, away, versions = tmp_path / "here", tmp_path / "away", ZERO + MISSING
    accumulator = start(here / "run.zarr", name, checkpoint_interval=interval, memory_limit="200 KiB")
    for count, (rows, new) in few(name, versions):
        if count == 3:
            here.rename(away)
        elif count == 6:
            break
        try:
            push(accumulator, rows, new)
        except AccumulatorError:
            continue
        versions[:] = new
        assert accumulator.written.tolist() == (versions != MISSING).tolist()
    for _ in range(2):
        with pytest.raises((StorageError, ClosedError)):
            accumulator.flush()
    away.rename(here)
    with contextlib.suppress(StorageError):  # what was not told yet is told first
        accumulator.flush()
    check(accumulator, name, versions)
    with accumulator:
        for _, (rows, new) in few(name, versions):
            push(accumulator, rows, new)
            versions[:] = new
    check_complete(here / "run.zarr", name, whole(name))


SIGNALLED = """
accumulator = start(store, name)
with accumulator:
    for number, (rows, new) in enumerate(batches(name, versions, chance)):
        push(accumulator, rows, new)
        versions[:] = new
        if number == 1:
            accumulator.flush()
        say(json.dumps([number > 0, versions.tolist()]))
        if number == 3:
            time.sleep(300)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", REPEATS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signal_in_the_middle(tmp_path, whole, name, number):
    """Ctrl-C leaves all that was pushed recorded, SIGTERM and SIGKILL what was flushed."""
    store, said = tmp_path / "run.zarr", []
    process = subprocess.Popen(
        command(SIGNALLED, store, name, None),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    said = [json.loads(process.stdout.readline()) for _ in range(4)]
    process.send_signal(number)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == -number, errors.decode()
    assert (b"KeyboardInterrupt" in errors) == (number == signal.SIGINT), errors.decode()
    pushed, flushed = said[3][1], said[1][1]
    accumulator = start(store, name)
    versions = check(accumulator, name, pushed if number == signal.SIGINT else flushed)
    accumulator.close()
    complete(store, name, versions)
    check_complete(store, name, whole(name))


ENDS = {  # how a script ends: its status, and whether all that was pushed is recorded
    "with accumulator: sys.exit(3)": (3, True),
    "with accumulator: raise ValueError": (1, True),
    "accumulator.close()": (0, True),
    "sys.exit(3)": (3, False),
    "raise ValueError": (1, False),
    "os._exit(4)": (4, False),
    "os.abort()": (-signal.SIGABRT, False),
    "pass": (0, False),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REPEATS)
@pytest.mark.parametrize("end", ENDS)
def test_end_of_the_interpreter(tmp_path, whole, name, end):
    """However a script ends with rows queued, what was flushed is recorded, and inside a block all."""
    store, (status, is_all) = tmp_path / "run.zarr", ENDS[end]
    script = (
        "accumulator = start(store, name)\ntake(accumulator, 2)\ntake(accumulator, 2, is_flushed=False)\n"
    )
    lines = run(script + f"say(json.dumps(versions.tolist()))\n{end}", store, name, None, status=status)
    accumulator = start(store, name)
    versions = check(accumulator, name, json.loads(lines[-1 if is_all else 0]))
    accumulator.close()
    complete(store, name, versions)
    check_complete(store, name, whole(name))


@pytest.mark.parametrize("name", KINDS)
def test_accumulator_that_is_dropped(tmp_path, whole, name):
    """An accumulator that is dropped warns, ends its threads, frees the lock, and loses nothing recorded."""
    store, versions = tmp_path / "run.zarr", ZERO + MISSING
    accumulator = start(store, name)
    for count, (rows, new) in few(name, versions):
        push(accumulator, rows, new)
        versions[:] = new
        if count == 1:
            accumulator.flush()
            safe = versions.copy()
        if count == 3:
            break
    with pytest.warns(ResourceWarning, match="was dropped"):  # noqa: PT031
        del accumulator
        gc.collect()
    assert threads() == []
    complete(store, name, safe)
    check_complete(store, name, whole(name))


FORKED = """
warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads at the fork: so there are
accumulator = start(store, name)
take(accumulator, 2)
child = os.fork()
if child == 0:
    def calls():
        yield lambda: push(accumulator, np.arange(3), np.zeros(N, dtype=int))
        yield accumulator.flush
        yield accumulator.finalize
        yield lambda: accumulator.canvas
    for call in calls():
        try:
            call()
        except ProcessError:
            continue
        say("not refused")
    accumulator.close()
    say(f"child {os.getpid()}")
    time.sleep(300)
    os._exit(0)
take(accumulator, 1)
say("parent")
time.sleep(300)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_lock_does_not_outlive_its_process_in_a_forked_child(tmp_path, whole, name):
    """A forked child is refused; when its parent is killed, the run can be resumed while the child lives."""
    store = tmp_path / "run.zarr"
    process = subprocess.Popen(
        command(FORKED, store, name, None),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = [process.stdout.readline().strip() for _ in range(4)]  # of both, in any order
    child = int(next(line for line in lines if line.startswith("child ")).split()[1])
    try:
        assert "not refused" not in lines
        assert "parent" in lines
        with pytest.raises(LockedError):
            start(store, name)
        process.kill()
        process.wait()
        safe = np.max([json.loads(line) for line in lines if line.startswith("[")], axis=0)
        complete(store, name, safe)
        os.kill(child, 0)  # it is there
        check_complete(store, name, whole(name))
    finally:
        os.kill(child, signal.SIGKILL)
        process.kill()
        process.wait()
        process.stdout.close()


SECOND = """
try:
    start(store, name)
except LockedError as error:
    assert isinstance(error, BlockingIOError)
    say("refused")
else:
    say("resumed")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_second_writer_is_refused(tmp_path, whole, name):
    """While one writes a store, a second one is refused in this and in another process."""
    store, versions = tmp_path / "run.zarr", ZERO + MISSING
    with start(store, name) as accumulator:
        for count, (rows, new) in few(name, versions):
            if count % 3 == 0:
                with pytest.raises(BlockingIOError) as refusal:
                    start(store, name)
                assert isinstance(refusal.value, LockedError)
            if count == 4:
                assert run(SECOND, store, name, None) == ["refused"]
            push(accumulator, rows, new)
            versions[:] = new
    check_complete(store, name, whole(name))
    complete(store, name, versions)
    check_complete(store, name, whole(name))


@pytest.mark.parametrize("name", KINDS)
def test_threads_that_push_at_once(tmp_path, whole, name):
    """Eight threads push and flush at once, each push is a checkpoint, and nothing is mixed up or lost."""
    goal, store, errors = mortal.last_versions(name), tmp_path / "run.zarr", []
    gate = threading.Barrier(8)

    def work(number):
        try:
            gate.wait(TIMEOUT)
            mine = np.flatnonzero((goal != MISSING) & (np.arange(N) % 8 == number))
            for version in range(3):
                for row in mine[goal[mine] >= version]:
                    push(accumulator, [row], np.full(N, version))
                accumulator.flush()
        except BaseException as error:  # noqa: BLE001  it is looked at below
            errors.append(error)

    with start(store, name, checkpoint_interval=0) as accumulator:
        workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(TIMEOUT)
        assert errors == []
        assert check(accumulator, name, goal).tolist() == goal.tolist()
    check_complete(store, name, whole(name))


@pytest.mark.parametrize("name", KINDS)
def test_checkpoint_of_a_push_that_fails(tmp_path, monkeypatch, whole, name):
    """The push whose checkpoint fails was taken; the next call raises before it takes anything.

    A thread that fails to write its first rows while the push still makes room for others may tell earlier:
    then that push takes nothing.
    """
    store, versions = tmp_path / "run.zarr", ZERO + MISSING
    accumulator = start(store, name, checkpoint_interval=0)
    accumulator._canvas._next_checkpoint = 0  # it is due
    pushes = few(name, versions)
    _, (rows, new) = next(pushes)
    push(accumulator, rows, new)
    versions[:] = safe = new
    assert accumulator._canvas.run.recorded.tolist() == (versions != MISSING).tolist()
    with monkeypatch.context() as patched:
        patched.setattr(_system, "os", Faults(1, 10**9))
        accumulator._canvas._next_checkpoint = 0
        _, (rows, new) = next(pushes)
        try:
            push(accumulator, rows, new)
        except StorageError:
            new = versions.copy()
        versions[:] = new
        assert accumulator.written.tolist() == (versions != MISSING).tolist()
        _, (rows, new) = next(pushes)
        for call in (lambda: push(accumulator, rows, new), accumulator.flush, accumulator.finalize):
            with pytest.raises(StorageError):
                call()
            assert accumulator.written.tolist() == (versions != MISSING).tolist()
        assert accumulator._canvas.run.recorded.tolist() == (safe != MISSING).tolist()
    accumulator.flush()
    check(accumulator, name, versions)
    with accumulator:
        for _, (rows, new) in few(name, versions):
            push(accumulator, rows, new)
            versions[:] = new
    check_complete(store, name, whole(name))


def test_nothing_lies_behind_the_last_row(tmp_path):
    """A last chunk that has fewer rows ends in zeros, not in what the memory was used for before."""
    with start(tmp_path / "run.zarr", "shuffled") as accumulator:
        for rows in (range(7), range(56, N)):
            push(accumulator, list(rows), ZERO)
            accumulator._canvas.store._writer.drain()
    content = (tmp_path / "run.zarr" / "outputs" / "score" / "c.8.0.0").read_bytes()
    assert len(content) == 7 * 60
    assert not any(content[4 * 60 :])
