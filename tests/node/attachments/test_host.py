"""The attachment worker as a process: lazy, supervised, confined, and never a danger to the peer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager

import psutil
import pytest
import trio
from PIL import Image

from nsllm.node.attachments import host as module
from nsllm.node.attachments.attached import Attached
from nsllm.node.attachments.host import WorkerDescriber
from nsllm.node.attachments.wire import Broken, Described
from nsllm.node.errors import EngineError, InvalidRequestError, OverloadedError

TABLE = Attached("table", "CSV", b"a,b\n1,2\n", "messages[0].content[0].file.file_data")


LISTENING = "import os, signal, socket, sys, time; s = socket.socket(fileno=int(sys.argv[2])); s.recv(1); "
DYING = LISTENING + "os.kill(os.getpid(), signal.SIGSEGV)"
RAVING = LISTENING + "s.send(b'\\xff' * 99); time.sleep(600)"


def picture(data: bytes, form="PNG") -> Attached:
    return Attached("image", form, data, "messages[0].content[0].image_url")


@asynccontextmanager
async def describer(**settings):
    made = WorkerDescriber(**settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.run)
        try:
            yield made
        finally:
            nursery.cancel_scope.cancel()


def program(monkeypatch, source: str) -> None:
    """A worker of cardboard: `source` in its place."""

    class Popen(subprocess.Popen):
        def __init__(self, command, **options):
            super().__init__([sys.executable, "-c", source, *command[3:]], **options)

    monkeypatch.setattr(module.subprocess, "Popen", Popen)


async def test_nothing_runs_before_the_first_attachment_and_nothing_after_the_end() -> None:
    async with describer() as made:
        assert made.worker_pid is None
        assert (await made.describe(TABLE)).how == "table"
        worker = psutil.Process(made.worker_pid)
        assert worker.nice() > psutil.Process().nice() or worker.nice() == 19
        assert worker.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
        assert worker.rlimit(psutil.RLIMIT_AS)[0] <= 4 << 30
    assert not worker.is_running()


async def test_a_picture_is_described_and_refused_and_prepared_by_the_real_worker(invoice, file_of) -> None:
    async with describer(answer_s=250) as made:
        said = await made.describe(picture(invoice))
        assert said.how == "ocr+labels"
        assert "INVOICE 4711" in said.text
        bomb = picture(file_of(Image.new("L", (9_000, 9_000))))
        for ask in (made.describe(bomb), made.prepare(bomb, 1 << 20)):
            with pytest.raises(InvalidRequestError, match="9000x9000") as caught:
                await ask
            assert caught.value.param == bomb.at
        assert (await made.prepare(picture(invoice), 1 << 20)).startswith(b"\x89PNG")


async def test_the_same_file_is_looked_at_once(monkeypatch) -> None:
    async with describer() as made:
        first = await made.describe(TABLE)
        monkeypatch.setattr(made, "_exchange", None)
        assert await made.describe(TABLE) == first


async def test_what_is_remembered_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(module, "KEPT", 2)
    asked = []

    async def ask(self, message, attached):
        asked.append(attached.data)
        return Described("words", "table")

    monkeypatch.setattr(WorkerDescriber, "_ask", ask)
    made = WorkerDescriber()
    tables = [Attached("table", "CSV", bytes([letter]), "x") for letter in b"abc"]
    for one in (tables[0], tables[1], tables[0], tables[2], tables[0], tables[1]):
        await made.describe(one)
    assert asked == [b"a", b"b", b"c", b"b"]


async def test_a_worker_that_was_killed_is_replaced_without_anybody_noticing() -> None:
    async with describer() as made:
        await made.describe(TABLE)
        pid = made.worker_pid
        os.kill(pid, signal.SIGKILL)
        await made.describe(Attached("table", "CSV", b"c\n3\n", "x"))
        assert made.worker_pid not in {None, pid}


async def test_a_file_that_kills_its_readers_costs_its_sender_an_error(monkeypatch) -> None:
    program(monkeypatch, DYING)
    async with describer() as made:
        with pytest.raises(InvalidRequestError, match=r"CSV file cannot be read.*died \(SIGSEGV\)") as caught:
            await made.describe(TABLE)
        assert caught.value.param == TABLE.at
        assert made.worker_pid is None


async def test_a_file_that_takes_too_long_is_given_up(monkeypatch) -> None:
    program(monkeypatch, "import time; time.sleep(600)")
    async with describer(answer_s=0.2) as made:
        with pytest.raises(InvalidRequestError, match=r"longer than 0\.2 s"):
            await made.describe(TABLE)
        assert made.worker_pid is None


async def test_a_worker_that_talks_nonsense_is_ended(monkeypatch) -> None:
    program(monkeypatch, RAVING)
    async with describer() as made:
        with pytest.raises(InvalidRequestError, match="died"):
            await made.describe(TABLE)


async def test_a_fault_of_ours_is_told_as_one(monkeypatch) -> None:
    async def exchange(self, message):
        return Broken("PinError at pins.py:3")

    monkeypatch.setattr(WorkerDescriber, "_exchange", exchange)
    with pytest.raises(EngineError, match=r"PinError at pins\.py:3"):
        await WorkerDescriber().describe(TABLE)


async def test_a_caller_that_leaves_in_the_middle_takes_the_worker_along(monkeypatch) -> None:
    program(monkeypatch, "import time; time.sleep(600)")
    async with describer() as made:
        with trio.move_on_after(0.1):
            await made.describe(TABLE)
        assert made.worker_pid is None


async def test_too_many_waiting_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    program(monkeypatch, "import time; time.sleep(600)")
    async with describer() as made, trio.open_nursery() as nursery:
        for letter in b"abc":
            nursery.start_soon(made.describe, Attached("table", "CSV", bytes([letter]), "x"))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(OverloadedError, match="2 attachments wait"):
            await made.describe(TABLE)
        nursery.cancel_scope.cancel()


async def test_an_idle_worker_is_ended() -> None:
    async with describer(idle_s=0.1) as made:
        await made.describe(TABLE)
        worker = psutil.Process(made.worker_pid)
        with trio.fail_after(30):
            while worker.is_running():
                await trio.sleep(0.02)
        assert made.worker_pid is None


async def test_without_the_extra_a_picture_is_refused_with_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setattr(module, "missing", lambda packages: packages[:1])
    async with describer() as made:
        for ask in (made.describe(picture(b"x")), made.prepare(picture(b"x"), 99)):
            with pytest.raises(
                InvalidRequestError, match=r"PIL not installed.*pip install 'nsllm\[images\]'"
            ) as caught:
                await ask
            assert caught.value.param == "messages[0].content[0].image_url"
        assert made.worker_pid is None
        assert (await made.describe(TABLE)).how == "table"


def test_the_worker_imports_no_model_before_it_needs_one() -> None:
    source = "import sys, nsllm.node.attachments.worker; print(sorted({'torch', 'PIL', 'rapidocr'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"
