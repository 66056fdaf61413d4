"""`posthouse serve --workers N`: several processes on one machine that listen on the same ports and share PostgreSQL.

The first process starts the others, starts one again that has ended by itself, and ends them all when it is asked to.
Each is a node like any other; the kernel deals new connections out among them (SO_REUSEPORT).
"""

import asyncio
import os
import signal
import sys
import time

import structlog

log = structlog.get_logger()

# The variable by which a process knows that it is a worker, and which.
VARIABLE = "POSTHOUSE_WORKER"
# A worker that ends sooner than this after its start is started again only after a pause.
SHORT_LIFE_S = 10.0
PAUSE_S = 2.0
# Workers that have not ended by themselves after this are killed; a node needs at most half of it.
PATIENCE_S = 60.0


async def supervise(count: int) -> int:
    """Run `count` workers until SIGTERM or SIGINT. Returns the exit status: 1 where a worker could not start at all."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    statuses = await asyncio.gather(*(_keep_running(number, stop) for number in range(1, count + 1)))
    return max(statuses)


async def _keep_running(number: int, stop: asyncio.Event) -> int:
    """One worker, again and again until `stop`. A first start that fails ends everything: it is the settings' fault."""
    first = True
    while not stop.is_set():
        started = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "posthouse", *sys.argv[1:], env={**os.environ, VARIABLE: str(number)}
        )
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((ended, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not ended.done():
            return await _end(process, ended)
        short = time.monotonic() - started < SHORT_LIFE_S
        if first and short and process.returncode in (1, 2):
            stop.set()
            return process.returncode
        first = False
        if not stop.is_set():
            log.error("serve: a worker has ended and is started again", worker=number, status=process.returncode)
            if short:
                await asyncio.sleep(PAUSE_S)
    return 0


async def _end(process: asyncio.subprocess.Process, ended: "asyncio.Task[int]") -> int:
    process.terminate()
    done, _ = await asyncio.wait((ended,), timeout=PATIENCE_S)
    if not done:
        process.kill()
        await ended
    return 0
