"""The server's life: ports, start, stop, and the bridge beneath it."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager

import pytest
import trio
from prometheus_client import CollectorRegistry

from nsllm.clock import SystemClock
from nsllm.errors import UsageError
from nsllm.node.api.bridge import Bridge, Inbox, run_beside
from nsllm.node.api.server import ApiServer
from nsllm.node.api.settings import ApiSettings

HELLO = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Why?"}], "stream": True}


async def test_a_busy_port_is_named_with_the_way_out(service):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = ApiServer(service=service, settings=ApiSettings(port=port), clock=SystemClock())
        with pytest.raises(UsageError, match=f"port {port} on 127.0.0.1 is in use.*--port"):
            await server.run()
        async with trio.open_nursery() as nursery:
            with pytest.raises(UsageError):
                await nursery.start(server.run)


async def test_an_address_of_another_machine_is_named(service):
    settings = ApiSettings(host="203.0.113.7", port=0, api_key="a-key-of-enough-characters")
    with pytest.raises(UsageError, match="no address of this machine"):
        await ApiServer(service=service, settings=settings, clock=SystemClock()).run()


async def test_it_stops_within_a_second_whoever_is_connected(start, slow_client):
    running = await start()
    await slow_client(running)
    idle = await trio.open_tcp_stream("127.0.0.1", running.port)
    async with idle, running.http.stream("GET", "/events"):
        while not running.service.event_readers:
            await trio.sleep(0.01)
        running.scope.cancel()
        with trio.fail_after(2):  # a second, and another for a busy machine
            await running.ended.wait()
    assert running.service.cancelled.is_set()
    assert running.service.event_readers == 0
    with pytest.raises(OSError, match="connect"):
        await trio.open_tcp_stream("127.0.0.1", running.port)


async def test_cancelling_before_it_is_up_ends_the_thread(service):
    server = ApiServer(service=service, settings=ApiSettings(port=0), clock=SystemClock())
    with trio.fail_after(5):
        with trio.move_on_after(0):
            await server.run()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run)
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()


async def test_two_servers_have_their_own_registries(service):
    registry = CollectorRegistry()
    ApiServer(service=service, settings=ApiSettings(port=0), clock=SystemClock(), registry=registry)
    ApiServer(service=service, settings=ApiSettings(port=0), clock=SystemClock())
    assert "nsllm_http_requests_active" in {m.name for m in registry.collect()}


async def in_asyncio(work) -> None:
    """Run `await work(bridge)` in the asyncio thread."""
    failed: list[BaseException] = []
    done = trio.Event()
    token = trio.lowlevel.current_trio_token()

    @asynccontextmanager
    async def site(bridge: Bridge):
        try:
            await work(bridge)
        except BaseException as error:  # noqa: BLE001 - shown by the test
            failed.append(error)
        token.run_sync_soon(done.set)
        yield

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: run_beside(site, started=lambda: None))
            await done.wait()
            nursery.cancel_scope.cancel()
    if failed:
        raise failed[0]


async def test_calls_carry_results_and_errors_over():
    async def add(left: int, right: int) -> int:
        await trio.sleep(0)
        return left + right

    async def fail() -> None:
        await trio.sleep(0)
        raise KeyError("no such thing")

    async def work(bridge: Bridge) -> None:
        assert await bridge.call(lambda: add(2, 3)) == 5
        assert await bridge.call_sync(lambda: "now") == "now"
        with pytest.raises(KeyError, match="no such thing"):
            await bridge.call(fail)

    await in_asyncio(work)


async def test_a_waiting_stream_has_a_bounded_number_in_flight_and_keeps_order():
    sent: list[int] = []

    @asynccontextmanager
    async def source():
        send, receive = trio.open_memory_channel(0)

        async def produce() -> None:
            with send:
                for number in range(200):
                    await send.send(number)
                    sent.append(number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce)
            yield receive
            nursery.cancel_scope.cancel()

    async def work(bridge: Bridge) -> None:
        import asyncio

        async with bridge.stream(source, depth=5) as inbox:
            assert await anext(inbox) == 0
            for _ in range(50):  # let trio run as far as it can
                await asyncio.sleep(0)
                await bridge.call_sync(lambda: None)
            assert len(sent) <= 1 + 5 + 2
            assert [item async for item in inbox] == list(range(1, 200))

    await in_asyncio(work)


def test_a_page_that_is_behind_loses_the_oldest():
    inbox: Inbox[int] = Inbox(depth=3, taken=lambda _count: None)
    for number in range(10):
        inbox.put(number)
    inbox.end(None)

    async def rest() -> list[int]:
        return [item async for item in inbox]

    import asyncio

    assert asyncio.run(rest()) == [7, 8, 9]
    assert inbox.dropped == 7


async def test_a_connection_serves_one_request_after_another_streams_included(running):
    import http.client
    import json

    def talk() -> list[int]:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
        ports: list[int] = []
        for stream in (True, False, True):
            body = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Hi"}], "stream": stream}
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            answer = connection.getresponse()
            assert answer.status == 200
            assert answer.read()
            ports.append(connection.sock.getsockname()[1])
        connection.close()
        return ports

    assert len(set(await trio.to_thread.run_sync(talk))) == 1


async def test_what_trio_says_in_one_turn_wakes_asyncio_once():
    async def work(bridge: Bridge) -> None:
        loop = bridge._loop
        wakes = 0
        told = loop.call_soon_threadsafe

        def counting(*args: object) -> object:
            nonlocal wakes
            wakes += 1
            return told(*args)

        async def many(speaker) -> None:
            for number in range(40):
                speaker.send_nowait(number)
            await trio.sleep(0)

        loop.call_soon_threadsafe = counting
        async with bridge.listen(many, depth=50) as inbox:
            got: list[int] = []
            while items := await inbox.take(5):
                got += items
        assert got == list(range(40))
        assert wakes <= 3

    await in_asyncio(work)


async def test_a_quiet_stream_is_told_from_its_end():
    async def slow(speaker) -> None:
        await trio.sleep(0.2)
        speaker.send_nowait("late")

    async def work(bridge: Bridge) -> None:
        async with bridge.listen(slow, depth=5) as inbox:
            assert await inbox.take(0.01) is None
            assert await inbox.take(10) == ["late"]
            assert await inbox.take(10) == []

    await in_asyncio(work)
