"""A function in many processes: nothing that one item does may harm the others."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmssl.errors import BadMedia
from mmssl_media.parallel import Failed, in_processes


def square(number: int) -> int:
    return number * number


def children() -> set[int]:
    """Processes that this one started and has not buried."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found


@pytest.mark.parametrize("workers", [1, 3])
def test_every_item_once(workers: int) -> None:
    before = children()
    found = dict(in_processes(square, range(200), workers=workers))
    assert found == {number: number**2 for number in range(200)}
    assert children() == before


def test_nothing_to_do() -> None:
    assert list(in_processes(square, [], workers=4)) == []


def test_each_process_reads_many_items_and_all_read() -> None:
    def slow_pid(_: int) -> int:
        time.sleep(0.02)
        return os.getpid()

    pids = [pid for _, pid in in_processes(slow_pid, range(12), workers=3)]
    assert len(set(pids)) == 3
    assert os.getpid() not in pids


def naughty(item: str) -> str:
    if item == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "memory":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "exit":
        os._exit(3)
    if item == "hang":
        # Deaf to everything that an exception could be raised by.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
        time.sleep(1000)
    if item == "bad":
        raise BadMedia("is damaged")
    return item


def test_what_an_item_does_to_its_process_is_said_of_it_alone() -> None:
    before = children()
    good = [f"good {number}" for number in range(20)]
    evil = ["segfault", "memory", "exit", "hang", "bad"]
    items = [item for pair in zip(evil * 2, good, strict=False) for item in pair] + good[10:]
    found = list(in_processes(naughty, items, workers=2, seconds=0.5))
    assert sorted(item for item, _ in found) == sorted(items)
    results = dict(found)
    assert all(results[item] == item for item in good)
    assert results["segfault"] == Failed("ended the process that read it (SIGSEGV)", "death")
    assert results["memory"] == Failed("ended the process that read it (SIGKILL)", "death")
    assert results["exit"] == Failed("ended the process that read it (exit code 3)", "death")
    assert results["hang"] == Failed("took longer than 0.5 s", "time")
    assert results["bad"] == Failed("is damaged", "media")
    assert children() == before


def test_the_limit_is_for_each_item() -> None:
    def nap(_: int) -> None:
        time.sleep(0.15)

    found = list(in_processes(nap, range(4), workers=1, seconds=0.5))
    assert [result for _, result in found] == [None] * 4


def test_a_process_that_dies_between_items_takes_none_along() -> None:
    def die_later(item: int) -> int:
        threading.Timer(0.05, os._exit, [1]).start()
        return item

    def slowly() -> Iterator[int]:
        for item in range(4):
            yield item
            time.sleep(0.4)

    found = list(in_processes(die_later, slowly(), workers=1))
    assert found == [(item, item) for item in range(4)]


def test_an_error_is_the_items_own() -> None:
    def divide(number: int) -> float:
        return 1 / number

    found = dict(in_processes(divide, [1, 0, 2], workers=2))
    assert (found[1], found[2]) == (1.0, 0.5)
    failed = found[0]
    assert isinstance(failed, Failed)
    assert failed.cause == "error"
    line = divide.__code__.co_firstlineno + 1
    place = f"test_parallel.py:{line}"
    assert failed.reason == f"raised ZeroDivisionError in {place}: division by zero"


def test_items_are_taken_as_they_are_needed() -> None:
    taken = itertools.count()
    results = in_processes(square, taken, workers=3)
    for _ in range(10):
        next(results)
    assert next(taken) <= 10 + 3
    results.close()  # type: ignore[attr-defined]


def test_leaving_early_ends_the_processes_at_once() -> None:
    before = children()

    def sleep(item: int) -> int:
        if item:
            time.sleep(1000)
        return item

    results: Iterator[object] = in_processes(sleep, range(5), workers=3)
    assert next(results) == (0, 0)
    begun = time.monotonic()
    results.close()  # type: ignore[attr-defined]
    assert time.monotonic() - begun < 5
    assert children() == before


SCRIPT = """
import os, sys, time
from mmssl_media.parallel import in_processes

def work(item):
    if item >= 3:
        time.sleep({nap})
    return os.getpid()

for item, pid in in_processes(work, range(1000), workers=3, seconds={seconds}):
    print(item, pid, flush=True)
"""


def started(nap: float, seconds: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(nap=nap, seconds=seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    return process


def group(session: int) -> list[int]:
    living = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            living.append(int(stat.parent.name))
    return living


def all_gone(session: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while group(session) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not group(session)


@pytest.mark.parametrize("to_all", [True, False])
def test_ctrl_c_ends_everything_at_once(to_all: bool) -> None:
    process = started(nap=1000, seconds="float('inf')")
    assert len(group(process.pid)) >= 3
    if to_all:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert "KeyboardInterrupt" in err
    assert all_gone(process.pid, 5)


@pytest.mark.parametrize(("nap", "seconds"), [(0.2, "float('inf')"), (1000, "2")])
def test_nobody_outlives_a_killed_main_process(nap: float, seconds: str) -> None:
    # Between items the pipe's end is seen; within one, its time runs out.
    process = started(nap, seconds)
    process.kill()
    process.wait(10)
    assert all_gone(process.pid, 8)
