"""State files and locks: what a reader sees, what a full or forbidden disk answers, who holds what."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kawai_tools.errors import HomeNotWritable, KawaiError, NoSpace
from kawai_tools.files import (
    Lock,
    existing_parent,
    free_space,
    make_directory,
    move_into_place,
    read_if_there,
    reserve,
    storage_errors,
    write_atomically,
)

if TYPE_CHECKING:
    from collections.abc import Callable

WRITE_FOR_EVER = """
import itertools, pathlib, sys
from kawai_tools.files import write_atomically
print("begun", flush=True)
for number in itertools.count():
    write_atomically(pathlib.Path(sys.argv[1]), b"%09d " % number * 20_000, durable=number % 2 == 0)
"""
HOLD = """
import pathlib, sys
from kawai_tools.files import Lock
lock = Lock(pathlib.Path(sys.argv[1]))
print(lock.acquire(shared=sys.argv[2] == "shared"), flush=True)
sys.stdin.read()
"""
COUNT = """
import pathlib, sys, time
from kawai_tools.files import Lock
path, counter = map(pathlib.Path, sys.argv[1:3])
done = 0
while done < 100:
    lock = Lock(path)
    if not lock.acquire():
        time.sleep(0)
        continue
    number = int(counter.read_text())
    time.sleep(0)
    counter.write_text(str(number + 1))
    done += 1
    lock.remove() if done % 2 else lock.release()
"""
FULL_DISK = """
set -e
mount -t tmpfs -o size=64k tmpfs "$1"
exec "$2" -c "$3" "$1"
"""
WRITE_TOO_MUCH = """
import pathlib, sys
from kawai_tools.errors import NoSpace
from kawai_tools.files import write_atomically
path = pathlib.Path(sys.argv[1]) / "state"
write_atomically(path, b"old")
try:
    write_atomically(path, bytes(1 << 20))
except NoSpace as error:
    print(error.message)
assert path.read_bytes() == b"old"
assert [each.name for each in path.parent.iterdir()] == ["state"]
write_atomically(path, b"new")
"""


def open_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


class Holder:
    """Another process that takes a lock and keeps it until it is told to end, or killed."""

    def __init__(self, path: Path, how: str = "exclusive") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout
        self.got = self.process.stdout.readline() == b"True\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


class TestWriting:
    def test_content_is_replaced_with_its_mode(self, tmp_path: Path) -> None:
        path = tmp_path / "state.json"
        write_atomically(path, b"old")
        write_atomically(path, b"new", mode=0o600)
        assert path.read_bytes() == b"new"
        assert path.stat().st_mode & 0o777 == 0o600
        assert list(tmp_path.iterdir()) == [path]

    def test_a_name_of_full_length_can_be_written(self, tmp_path: Path) -> None:
        path = tmp_path / ("n" * 255)
        write_atomically(path, b"x")
        assert path.read_bytes() == b"x"

    def test_a_link_is_replaced_and_not_followed(self, tmp_path: Path) -> None:
        canary = tmp_path / "canary"
        canary.write_bytes(b"alive")
        (tmp_path / "state").symlink_to(canary)
        write_atomically(tmp_path / "state", b"new")
        assert canary.read_bytes() == b"alive"
        assert not (tmp_path / "state").is_symlink()

    def test_a_reader_and_a_crash_see_the_old_or_the_new(self, tmp_path: Path) -> None:
        path = tmp_path / "state"
        seen = -1
        for delay in range(6):
            with subprocess.Popen(
                [sys.executable, "-c", WRITE_FOR_EVER, str(path)], stdout=subprocess.PIPE
            ) as writer:
                assert writer.stdout
                assert writer.stdout.readline() == b"begun\n"
                reads, newest = 0, 0
                while reads < 40 * delay + 1 or (delay == 5 and newest < 2):
                    data = read_if_there(path)
                    if data is not None:
                        assert data == data[:10] * 20_000
                        reads, newest = reads + 1, int(data[:9])
                writer.kill()
            data = path.read_bytes()
            assert data == data[:10] * 20_000
            seen = max(seen, int(data[:9]))
        assert seen > 1, "it was written again and again meanwhile"
        assert all(each == path or each.name.endswith(".partial") for each in tmp_path.iterdir())

    def test_writers_at_once_leave_one_whole_file(self, tmp_path: Path) -> None:
        path = tmp_path / "state"
        contents = [bytes([number]) * 50_000 for number in range(8)]

        def write(data: bytes) -> None:
            for _ in range(10):
                write_atomically(path, data, durable=False)

        threads = [threading.Thread(target=write, args=(data,)) for data in contents]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert path.read_bytes() in contents
        assert list(tmp_path.iterdir()) == [path]

    def test_parents_are_made_and_a_rename_replaces(self, tmp_path: Path) -> None:
        source, target = tmp_path / "a.partial", tmp_path / "deep" / "er" / "a"
        for content in (b"one", b"two"):
            source.write_bytes(content)
            move_into_place(source, target)
            assert (target.read_bytes(), source.exists()) == (content, False)

    def test_a_full_disk_keeps_the_old(self, tmp_path: Path) -> None:
        command = ["unshare", "-rm", "sh", "-c", FULL_DISK, "sh", str(tmp_path), sys.executable]
        try:
            done = subprocess.run([*command, WRITE_TOO_MUCH], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("no unshare here, so no small disk can be mounted")
        if "mount:" in done.stderr or "unshare:" in done.stderr:
            pytest.skip(f"no small disk can be mounted here: {done.stderr}")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"the disk that holds {tmp_path}/state is full (")


class TestStorageErrors:
    @pytest.mark.parametrize("act", ["write", "directory", "move", "lock"])
    @pytest.mark.parametrize("obstacle", ["a file as parent", "a directory", "a loop of links"])
    def test_what_stands_in_the_way_is_named(self, tmp_path: Path, act: str, obstacle: str) -> None:
        path = tmp_path / "there" / "name"
        if obstacle == "a file as parent":
            path.parent.write_bytes(b"")
        elif obstacle == "a directory":
            (path / "full").mkdir(parents=True)
        else:
            path.parent.symlink_to(path.parent)
        source = tmp_path / "source"
        source.write_bytes(b"new")
        acts: dict[str, Callable[[], object]] = {
            "write": lambda: write_atomically(path, b"new"),
            "directory": lambda: make_directory(path),
            "move": lambda: move_into_place(source, path),
            "lock": lambda: Lock(path).acquire(),
        }
        before = sorted(tmp_path.rglob("*"))
        if (act, obstacle) == ("directory", "a directory"):
            acts[act]()
        else:
            with pytest.raises(HomeNotWritable) as caught:
                acts[act]()
            assert str(path.parent) in caught.value.message
            assert caught.value.hint
        assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"

    @pytest.mark.parametrize(
        ("number", "expected"),
        [
            (errno.ENOSPC, NoSpace),
            (errno.EDQUOT, NoSpace),
            (errno.EACCES, HomeNotWritable),
            (errno.EROFS, HomeNotWritable),
            (errno.EIO, HomeNotWritable),
        ],
    )
    def test_what_a_disk_answers_has_an_exit_code(
        self, tmp_path: Path, number: int, expected: type[KawaiError]
    ) -> None:
        with pytest.raises(expected) as caught, storage_errors(tmp_path / "no" / "such" / "file"):
            raise OSError(number, os.strerror(number))
        assert str(tmp_path) in caught.value.message
        assert caught.value.hint

    def test_what_is_not_of_the_disk_is_left_as_it_is(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError), storage_errors(tmp_path):
            raise FileNotFoundError(errno.ENOENT, "gone")


class TestSpace:
    def test_free_space_of_what_is_not_there_yet_is_that_of_its_disk(self, tmp_path: Path) -> None:
        deep = tmp_path / "not" / "made" / "yet"
        assert existing_parent(deep) == tmp_path
        stats = os.statvfs(tmp_path)
        assert abs(free_space(deep) - stats.f_bavail * stats.f_frsize) < 1 << 30

    @pytest.mark.parametrize("size", [0, 1, 5_000_000])
    def test_reserving_makes_the_length_and_keeps_what_is_there(self, tmp_path: Path, size: int) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"k" if size else b"")
        with path.open("r+b") as file:
            reserve(file.fileno(), size)
        assert path.stat().st_size == size
        assert path.read_bytes()[:1] == (b"k" if size else b"")
        if hasattr(os, "posix_fallocate"):
            assert path.stat().st_blocks * 512 >= size, "the blocks are claimed"


class TestLock:
    @pytest.mark.parametrize(
        ("theirs", "ours", "expected"),
        [
            ("exclusive", "exclusive", False),
            ("exclusive", "shared", False),
            ("shared", "exclusive", False),
            ("shared", "shared", True),
        ],
    )
    def test_between_processes_until_one_is_killed(
        self, tmp_path: Path, theirs: str, ours: str, *, expected: bool
    ) -> None:
        path = tmp_path / "deep" / "x.lock"
        holder = Holder(path, theirs)
        assert holder.got
        lock = Lock(path)
        assert lock.acquire(shared=ours == "shared") is expected
        lock.release()
        holder.kill()
        assert lock.acquire(shared=ours == "shared")
        lock.release()

    def test_one_that_was_refused_or_released_holds_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "x.lock"
        first, second = Lock(path), Lock(path)
        assert first.acquire()
        assert first.acquire(), "it has it already"
        assert not second.acquire()
        second.release()
        second.remove()
        assert path.exists(), "only a holder removes it"
        first.release()
        assert second.acquire()
        second.release()
        before = open_files()
        for _ in range(50):
            assert second.acquire()
            assert not first.acquire(shared=True)
            second.release()
        assert open_files() == before

    def test_its_mtime_is_never_until_a_holder_says_otherwise(self, tmp_path: Path) -> None:
        path = tmp_path / "x.lock"
        for shared in (False, True):
            lock = Lock(path)
            assert lock.acquire(shared=shared)
            lock.release()
            assert path.stat().st_mtime == 0
        os.utime(path, (1000, 1000))
        assert lock.acquire()
        lock.release()
        assert path.stat().st_mtime == 1000

    def test_a_removed_one_is_made_anew(self, tmp_path: Path) -> None:
        path = tmp_path / "x.lock"
        lock = Lock(path)
        assert not path.exists()
        assert lock.acquire()
        lock.remove()
        assert not path.exists()
        assert Lock(path).acquire()
        assert path.exists()

    def test_one_whose_file_was_replaced_is_not_taken_for_the_new_one(self, tmp_path: Path) -> None:
        path = tmp_path / "x.lock"
        first = Lock(path)
        assert first.acquire()
        first.remove()
        second = Lock(path)
        assert second.acquire()
        with path.open("r+b") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        second.release()

    def test_a_link_in_its_place_is_refused(self, tmp_path: Path) -> None:
        canary = tmp_path / "canary"
        canary.write_bytes(b"alive")
        (tmp_path / "x.lock").symlink_to(canary)
        with pytest.raises(HomeNotWritable):
            Lock(tmp_path / "x.lock").acquire()
        assert canary.read_bytes() == b"alive"

    def test_holders_exclude_each_other_though_the_file_is_removed(self, tmp_path: Path) -> None:
        path, counter = tmp_path / "x.lock", tmp_path / "counter"
        counter.write_text("0")
        counters = [
            subprocess.Popen([sys.executable, "-c", COUNT, str(path), str(counter)]) for _ in range(3)
        ]
        assert [each.wait(60) for each in counters] == [0, 0, 0]
        assert counter.read_text() == "300"

    def test_no_child_inherits_it(self, tmp_path: Path) -> None:
        lock = Lock(tmp_path / "x.lock")
        assert lock.acquire()
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as child:
            lock.release()
            assert Lock(tmp_path / "x.lock").acquire()
            child.communicate()


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert read_if_there(tmp_path / "file") == b"x"
    assert read_if_there(tmp_path / "none") is None
    assert read_if_there(tmp_path / "file" / "below") is None
