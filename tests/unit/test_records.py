"""Long work killed at any moment: nothing is lost, nothing done twice, and no number changes."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hooked_asr.long_work import WorkError, work_through
from hooked_asr.processes import Process, ProcessError, this_process
from hooked_asr.records import RecordsError, open_records

PACKAGE = Path(__file__).parents[2] / "hooked_asr"
KEYS = [f"key {i}" for i in range(40)]
ASKED = {"seed": 0, "sites": ["a", "b"]}


def numbers(key, n=5):
    """Numbers that depend on the key alone, with all digits that a float can have."""
    draw = random.Random(key)
    return [draw.gauss(0, 1) * 10 ** draw.randint(-300, 300) for _ in range(n)]


def work_all(folder, keys=KEYS, work=numbers, asked=ASKED, **options):
    return work_through(keys, work, folder=folder, asked=asked, progress=False, **options)


def lines(folder):
    return [line for path in sorted(folder.iterdir()) for line in path.read_bytes().split(b"\n")]


def keys_in(folder):
    return [json.loads(line)["key"] for line in lines(folder) if line.startswith(b'{"key"')]


class Stop(BaseException):
    """An end that no work expects."""


def stopping_after(n):
    """Work that ends everything after `n` keys."""
    left = [n]

    def work(key):
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        return numbers(key)

    return work


def stop_after(n, folder, **options):
    with pytest.raises(Stop):
        work_all(folder, work=stopping_after(n), **options)


# --- One process ----------------------------------------------------------------------------------


def test_results_are_those_of_the_work_and_in_the_keys_order(tmp_path):
    done = work_all(tmp_path)
    assert done.results == {key: numbers(key) for key in KEYS}
    assert list(done.results) == KEYS
    assert done == work_all(None)


def test_floats_come_back_bit_for_bit(tmp_path):
    odd = [0.1, -0.0, 5e-324, 1.7976931348623157e308, float("inf"), float("nan"), 1 / 3]
    work_all(tmp_path, ["odd"], lambda key: odd)
    again = work_all(tmp_path, ["odd"], lambda key: pytest.fail("it is there")).results["odd"]
    assert [one.hex() for one in again] == [one.hex() for one in odd]


def test_what_is_done_is_not_done_again(tmp_path):
    stop_after(15, tmp_path)
    worked = []
    work_all(tmp_path, work=lambda key: worked.append(key) or numbers(key))
    assert worked == KEYS[15:]
    assert keys_in(tmp_path) == KEYS


CHILD = """
import random, sys, time, types
package = types.ModuleType("hooked_asr")  # without what the package itself imports, which is slow
package.__path__ = [sys.argv[1]]
sys.modules["hooked_asr"] = package
from hooked_asr.long_work import work_through

def work(key):
    print(key, flush=True)
    time.sleep(0.001)
    draw = random.Random(key)
    return [draw.gauss(0, 1) for _ in range(4000)]

keys = [f"key {i}" for i in range(int(sys.argv[3]))]
work_through(keys, work, folder=sys.argv[2], asked={"seed": 0}, progress=False)
"""
N_KEYS = 300


def child(folder):
    command = [sys.executable, "-c", CHILD, str(PACKAGE), str(folder), str(N_KEYS)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_twenty_kills_leave_the_bytes_of_an_uninterrupted_run(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with child(whole) as one:
        one.communicate()
    assert one.returncode == 0
    wait = random.Random(0)
    died = []
    for _ in range(20):
        with child(killed) as one:
            one.stdout.readline()  # it has begun with a key
            time.sleep(wait.uniform(0, 0.04))
            one.send_signal(signal.SIGKILL)
            begun = one.stdout.read().split("\n")[:-1]
        died.append(one.returncode)
        there = lines(killed)[:-1]
        assert not begun or len(there) > int(begun[-1].removeprefix("key "))  # and a header
    assert died.count(-signal.SIGKILL) > 10  # the last ones may have found all done
    with child(killed) as one:
        one.communicate()
    name = "records-00000.jsonl"
    assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_a_line_cut_anywhere_is_dropped_and_done_again(tmp_path):
    work_all(tmp_path, KEYS[:3])
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    header = whole.index(b"\n") + 1
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in [*range(header + 1), *range(last, len(whole))]:
        path.write_bytes(whole[:cut])
        worked = []
        done = work_all(tmp_path, KEYS[:3], lambda key, w=worked: w.append(key) or numbers(key))
        assert path.read_bytes() == whole
        assert worked == (KEYS[:3] if cut <= header else KEYS[2:3])
        assert done.results == {key: numbers(key) for key in KEYS[:3]}


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path, monkeypatch):
    write = os.write

    def half(file, content):
        if len(content) < 50:
            raise OSError(28, "No space left on device")
        return write(file, content[: len(content) // 2])

    with open_records(tmp_path, ASKED) as records:
        records.append("first", 1)
        before = lines(tmp_path)
        monkeypatch.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space"):
            records.append("second", list(range(100)))
        assert lines(tmp_path) == before
        monkeypatch.setattr(os, "write", write)
        records.append("third", 3)
        assert records.read()[0] == {"first": 1, "third": 3}


# --- What is refused ------------------------------------------------------------------------------


def test_other_work_is_refused_and_told_what_differs(tmp_path):
    work_all(tmp_path, KEYS[:2])
    before = lines(tmp_path)
    other = {"seed": 1, "sites": ["a", "b"], "alpha": 0.5}
    with pytest.raises(RecordsError, match=r"seed was 0, now 1; alpha was null, now 0\.5") as told:
        work_all(tmp_path, KEYS[:2], asked=other)
    assert "sites" not in str(told.value)
    assert lines(tmp_path) == before
    with pytest.raises(RecordsError, match="seed was 0, now 1"):  # any process's file tells
        work_all(tmp_path, KEYS[:2], asked=other, process=Process(1, 2))
    assert lines(tmp_path) == before
    work_all(tmp_path, KEYS[:2], asked={"seed": 0, "sites": ("a", "b")})


def test_a_damaged_line_is_named(tmp_path):
    work_all(tmp_path, KEYS[:4])
    (path,) = tmp_path.iterdir()
    content = path.read_bytes().split(b"\n")
    content[2] = content[2][:-3]
    path.write_bytes(b"\n".join(content))
    with pytest.raises(RecordsError, match=r"line 3 of .*records-00000\.jsonl is damaged"):
        work_all(tmp_path)
    path.write_bytes(b"\n".join(content[:2] + content[3:]))  # as the error says
    assert work_all(tmp_path).results == {key: numbers(key) for key in KEYS}


def test_two_runs_do_not_write_to_one_file(tmp_path):
    with (
        open_records(tmp_path, ASKED),
        pytest.raises(RecordsError, match="another process is writing"),
        open_records(tmp_path, ASKED),
    ):
        pytest.fail("both are in")
    with open_records(tmp_path, ASKED):
        pass


def test_a_key_twice_is_refused(tmp_path):
    with pytest.raises(WorkError, match="'b' is there twice"):
        work_all(tmp_path, ["a", "b", "b"])


# --- Failures -------------------------------------------------------------------------------------


def test_failures_are_kept_and_stand_while_they_may_be_skipped(tmp_path):
    def work(key):
        if key in ("b", "c"):
            raise FileNotFoundError(f"no {key}")
        return key

    def never(key):
        pytest.fail(f"{key} is done")

    with pytest.raises(FileNotFoundError, match="no b"):
        work_all(tmp_path, list("abcd"), work)
    done = work_all(tmp_path, list("abcd"), work, skip=(OSError,))
    assert done.results == {"a": "a", "d": "d"}
    assert done.failures == {"b": "no b", "c": "no c"}
    assert work_all(None, list("abcd"), work, skip=(OSError,)) == done
    assert work_all(tmp_path, list("abcd"), never, skip=(OSError,)) == done
    mended = work_all(tmp_path, list("abcd"), str.upper)
    assert mended.results == {"a": "a", "b": "B", "c": "C", "d": "d"}
    assert not mended.failures


# --- Several processes ----------------------------------------------------------------------------


def together(folder, n, work=numbers):
    """What each of `n` processes gives: here each in a thread."""
    given = {}

    def run(rank):
        given[rank] = work_all(folder, work=work, process=Process(rank, n))

    threads = [threading.Thread(target=run, args=[rank], daemon=True) for rank in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return given


@pytest.mark.parametrize("n", [2, 3])
def test_processes_share_the_work_and_all_give_the_whole(tmp_path, n):
    whole = work_all(None)
    assert together(tmp_path, n) == dict.fromkeys(range(n), whole)
    assert sorted(keys_in(tmp_path)) == sorted(KEYS)
    assert len(list(tmp_path.iterdir())) == n
    assert list(whole.results) == list(work_all(tmp_path).results)


def test_another_number_of_processes_goes_on_with_it(tmp_path):
    stop_after(5, tmp_path, process=Process(2, 3))
    stop_after(7, tmp_path, process=Process(0, 3))
    stop_after(6, tmp_path, process=Process(1, 2))
    before = keys_in(tmp_path)
    with (tmp_path / "records-00002.jsonl").open("ab") as file:
        file.write(b'{"torn')  # in a file that neither of two processes will write to
    worked = []
    given = together(tmp_path, 2, lambda key: worked.append(key) or numbers(key))
    assert given[0] == given[1] == work_all(None)
    assert sorted(worked + before) == sorted(KEYS) == sorted(keys_in(tmp_path))


def test_processes_need_a_folder():
    with pytest.raises(WorkError, match="2 processes share their results in a folder"):
        work_all(None, process=Process(0, 2))


def test_the_environment_says_which_process_this_is():
    assert this_process({}) == this_process({"LOCAL_RANK": "3"}) == Process()
    assert this_process({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Process(5, 8, 1)
    for environment in ({"RANK": "1"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "two"}):
        with pytest.raises(ProcessError, match="RANK counts from 0 to WORLD_SIZE"):
            this_process(environment)
    assert Process(1, 2, 1).device("cuda") == "cuda:1"
    assert [Process(1, 2, 1).device(one) for one in ("cpu", "cuda:0")] == ["cpu", "cuda:0"]
    shares = [Process(rank, 3).share(KEYS) for rank in range(3)]
    assert sorted(key for share in shares for key in share) == sorted(KEYS)
