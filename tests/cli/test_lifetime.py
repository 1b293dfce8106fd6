"""How serving commands end: signals, a second signal, a stuck stop, a parent that is gone."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

PROGRAM = """
import sys, time, trio
from nsllm.cli import lifetime
from nsllm.cli.lifetime import end_with_parent, serve

kind = sys.argv[1]
if kind == "two gestures":
    lifetime.SAME_GESTURE_S = -1  # as if the second came later

async def work():
    print("ready", flush=True)
    try:
        await trio.sleep_forever()
    finally:
        if kind in ("slow", "two gestures"):
            with trio.CancelScope(shield=True):
                await trio.sleep(60)
        if kind == "busy":
            time.sleep(60)

if kind == "child":
    end_with_parent()
print(serve(work, stop_s=1.5), flush=True)
"""


@contextmanager
def running(kind: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM, kind]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_order(number: signal.Signals) -> None:
    with running("plain") as process:
        process.send_signal(number)
        assert process.communicate(timeout=10)[0] == "True\n"
        assert process.returncode == 0


@pytest.mark.parametrize("kind", ["slow", "busy"])
def test_a_stop_that_hangs_is_cut_off(kind: str) -> None:
    with running(kind) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 1


def test_the_same_signal_passed_on_twice_counts_once() -> None:
    with running("plain") as process:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0


def test_a_second_signal_ends_it_at_once() -> None:
    with running("two gestures") as process:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 130


def test_the_end_of_standard_input_ends_a_child() -> None:
    with running("child") as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=10) == 0
