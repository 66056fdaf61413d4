"""Measures what Posthouse costs between a sender and a server, beside Postfix and beside nothing, in rounds by turns.

`python -m bench.relay [--only kept,latency] [--systems bare,postfix,sqlite] [--rounds 5] [--seconds 6]` runs the
measurements by name and writes their section of bench/RESULTS.md anew. Throughput counts from the start of the sender
until the last message is at the sink. Every round measures each system once, in an order that moves on by one, because
a machine's speed drifts; what counts is the ratio within the run.
"""

import argparse
import concurrent.futures
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bench.load import MARK, Connection, PacedSender, content_of
from bench.report import RESULTS, machine, table_of, write_section
from bench.systems import SYSTEMS, System, posthouse_sqlite
from tests.support.certificates import CertificateAuthority
from tests.support.posthouse import PosthouseProcess
from tests.support.processes import program, server_folder
from tests.support.sink import CaptureServer, CountingSink

SESSIONS = 20
POSTFIX = "postfix"
# Enough to see the rate of a system, for choosing how many messages a round takes.
CALIBRATION = 1000


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line chose."""

    systems: tuple[str, ...]
    rounds: int
    # About how long one system works in one round.
    seconds: float


@dataclass(slots=True)
class Series:
    """The figures of one system in one measurement."""

    system: str
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> str:
        return f"{min(self.values):,.0f} to {max(self.values):,.0f}"


Load = Callable[[System, int], None]


# -- Throughput ---------------------------------------------------------------------------------------------------


def per_connection(options: Options) -> str:
    """(a) 4 KB messages, 20 sessions, a connection for each message."""
    return _compare("4 KB, a connection for each message", _smtp_source(4096), options)


def kept(options: Options) -> str:
    """(b) 4 KB messages over 20 connections that are kept."""
    return _compare("4 KB, kept connections", _smtp_source(4096, "-d"), options)


def large(options: Options) -> str:
    """100 KB messages over 20 kept connections."""
    return _compare("100 KB, kept connections", _smtp_source(102_400, "-d"), options, calibration=200)


def rest(options: Options) -> str:
    """4 KB messages in lists of 100 by REST, four callers, beside SMTP on the same node."""
    names = [name for name in options.systems if name not in ("bare", POSTFIX)]
    chosen = Options((POSTFIX, *names), options.rounds, options.seconds)

    def load(system: System, count: int) -> None:
        if system.node is None:
            _smtp_source(4096, "-d")(system, count)
        else:
            _post_lists(system.node, count)

    return _compare("4 KB by REST in lists of 100 (Postfix: SMTP, kept)", load, chosen)


def tls(options: Options) -> str:
    """4 KB messages over 20 kept connections from one Python sender: in clear, and with STARTTLS and AUTH PLAIN."""
    with ExitStack() as stack:
        sink = stack.enter_context(_counting_sink())
        authority = CertificateAuthority(stack.enter_context(server_folder("bench-authority")))
        system = stack.enter_context(posthouse_sqlite(sink.port, tls=authority.issue()))
        assert system.node is not None
        shop = system.node.cli("application", "add", "shop")
        login = f"{shop['smtp_username']}:{shop['smtp_password']}"
        loads: dict[str, Load] = {
            "in clear, by network": _python_load(),
            "STARTTLS and AUTH PLAIN": _python_load("--starttls", str(authority.file), "--login", login),
        }
        series = _interleave({name: (system, load) for name, load in loads.items()}, sink, options, CALIBRATION)
    return _table("4 KB, kept connections, one Python sender, Posthouse on SQLite", series, against=None)


def _compare(title: str, load: Load, options: Options, *, calibration: int = CALIBRATION) -> str:
    """Run all chosen systems against one sink each, and tabulate messages per second."""
    with ExitStack() as stack:
        sink = stack.enter_context(_counting_sink())
        systems = [stack.enter_context(SYSTEMS[name](sink.port)) for name in options.systems]
        jobs = {system.name: (system, load) for system in systems}
        series = _interleave(jobs, sink, options, calibration)
    return _table(title, series, against=POSTFIX)


def _interleave(
    jobs: dict[str, tuple[System, Load]], sink: CountingSink, options: Options, calibration: int
) -> list[Series]:
    """Measure every job once a round, beginning one further each time; the first, short one finds the count."""
    names = list(jobs)
    counts = {}
    for name in names:
        rate = _rate(*jobs[name], calibration, sink)
        counts[name] = max(calibration, round(rate * options.seconds))
    series = {name: Series(name) for name in names}
    for number in range(options.rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            value = _rate(*jobs[name], counts[name], sink)
            series[name].values.append(value)
            print(f"  round {number + 1}, {name}: {value:,.0f} messages/s ({counts[name]:,} messages)", flush=True)
    return list(series.values())


def _rate(system: System, load: Load, count: int, sink: CountingSink) -> float:
    """Send `count` messages and give messages per second, up to the arrival of the last one."""
    before = sink.count()
    start = time.perf_counter()
    load(system, count)
    sink.wait_for(before + count, timeout_s=600)
    return count / (time.perf_counter() - start)


def _smtp_source(octets: int, *flags: str) -> Load:
    """Give a load by Postfix's own sender. All mail is for one recipient, which is how Postfix is quickest."""

    def run(system: System, count: int) -> None:
        sender = ("-f", "bench@example.test", "-t", "somebody@example.test", "-M", "localhost")
        size = ("-s", str(min(SESSIONS, count)), "-m", str(count), "-l", str(octets), "-C", "10")
        subprocess.run(
            [program("smtp-source"), *flags, *sender, *size, f"127.0.0.1:{system.port}"], check=True, timeout=600
        )

    return run


def _python_load(*flags: str) -> Load:
    def run(system: System, count: int) -> None:
        size = ("--port", str(system.port), "--messages", str(count), "--sessions", str(SESSIONS))
        subprocess.run([sys.executable, "-m", "bench.load", *size, *flags], check=True, timeout=600)

    return run


def _post_lists(node: PosthouseProcess, count: int) -> None:
    """POST the messages in lists of 100 with four callers."""
    message = {
        "from": "bench@example.test",
        "to": ["somebody@example.test"],
        "subject": "bench",
        "text": "0123456789abcdef" * 256,
    }

    def post(size: int) -> None:
        answer = node.request("POST", "/api/v1/messages", json_body=[message] * size, timeout_s=120)
        if answer.status != 202:
            raise RuntimeError(f"POST /api/v1/messages answered {answer.status}: {answer.body[:500]!r}")

    sizes = [100] * (count // 100) + ([count % 100] if count % 100 else [])
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(post, sizes))


# -- Latency and memory -------------------------------------------------------------------------------------------


def latency(options: Options) -> str:
    """From the 250 at the sender to the arrival at the server, at 100 messages of 4 KB a second."""
    rows = []
    for name in [each for each in options.systems if each != "bare"]:
        with CaptureServer() as sink, SYSTEMS[name](sink.port) as system:
            PacedSender(system.port, 100, 100).run()
            sink.wait_for(100)
            sink.clear()
            count = max(500, round(100 * options.seconds * options.rounds))
            accepted = PacedSender(system.port, 100, count).run()
            messages = sink.wait_for(count, timeout_s=120)
        arrived = {message.header_values(MARK.decode())[0]: message.arrived_monotonic for message in messages}
        times = sorted((arrived[mark] - when) * 1000 for mark, when in accepted.items())
        share = statistics.quantiles(times, n=100)
        rows.append((system.name, f"{count:,}", f"{share[49]:.1f}", f"{share[98]:.1f}", f"{times[-1]:.1f}"))
        print(f"  {system.name}: median {share[49]:.1f} ms, 99th percentile {share[98]:.1f} ms", flush=True)
    return table_of(
        "Accepted to delivered at 100 messages/s, in ms",
        ("system", "messages", "median", "99th percentile", "longest"),
        rows,
    )


def memory(options: Options) -> str:
    """Resident memory when idle, and how far it grows while one message of 100 MB goes through."""
    rows = []
    for name in [each for each in options.systems if each not in ("bare", POSTFIX)]:
        with _counting_sink() as sink, SYSTEMS[name](sink.port) as system:
            assert system.node is not None
            PacedSender(system.port, 100, 100).run()
            sink.wait_for(100)
            idle = _memory_line(system.node.pid, "VmRSS")
            size = 100_000_000
            Path(f"/proc/{system.node.pid}/clear_refs").write_text("5")  # sets the high-water mark to what is now
            connection = Connection(system.port)
            connection.send(content_of(size))
            connection.close()
            sink.wait_for(101, timeout_s=120)
            growth = _memory_line(system.node.pid, "VmHWM") - idle
        rows.append((system.name, _megabytes(idle), _megabytes(growth), f"{growth / size:.2f}"))
        print(f"  {system.name}: idle {_megabytes(idle)} MB, growth {_megabytes(growth)} MB", flush=True)
    return table_of(
        "Resident memory, in MB", ("system", "idle", "growth with a message of 100 MB", "in its sizes"), rows
    )


def _memory_line(pid: int, name: str) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _megabytes(octets: int) -> str:
    return f"{octets / 1_000_000:.0f}"


# -- The report ---------------------------------------------------------------------------------------------------

MEASUREMENTS: dict[str, Callable[[Options], str]] = {
    "connections": per_connection,
    "kept": kept,
    "large": large,
    "rest": rest,
    "tls": tls,
    "latency": latency,
    "memory": memory,
}


def _table(title: str, series: Sequence[Series], *, against: str | None) -> str:
    """Tabulate rates; with `against`, the ratio to that system: of the medians, and the range of the rounds'."""
    base = next((each for each in series if each.system == against), None)
    rows = []
    for each in series:
        row = [each.system, f"{each.median:,.0f}", each.spread]
        if base is not None:
            ratios = [mine / theirs for mine, theirs in zip(each.values, base.values, strict=True)]
            row.append(f"{each.median / base.median:.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        rows.append(tuple(row))
    header = ("system", "messages/s, median", "range") + ((f"times {against}",) if base else ())
    return table_of(title, header, rows)


@contextmanager
def _counting_sink() -> Iterator[CountingSink]:
    with server_folder("bench-sink") as folder:
        sink = CountingSink(folder)
        sink.start()
        try:
            yield sink
        finally:
            sink.stop()


def main(arguments: Sequence[str]) -> None:
    """Run the measurements that were asked for and write their sections."""
    parser = argparse.ArgumentParser(prog="python -m bench.relay", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(MEASUREMENTS), help=f"of {', '.join(MEASUREMENTS)}")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help=f"of {', '.join(SYSTEMS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="about how long a system works in a round")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    names, systems = chosen.only.split(","), tuple(chosen.systems.split(","))
    if unknown := [name for name in names if name not in MEASUREMENTS] + [s for s in systems if s not in SYSTEMS]:
        parser.error(f"There is no {', '.join(unknown)}.")
    options = Options(systems, chosen.rounds, chosen.seconds)
    command = shlex.join(["python", "-m", "bench.relay", *arguments])
    for name in names:
        measure = MEASUREMENTS[name]
        print(f"{name}: {measure.__doc__}", flush=True)
        facts = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, `{command}`, {chosen.rounds} rounds. {machine()}."
        table = measure(options)
        print(table, flush=True)
        write_section(chosen.results, f"relay {name}", f"### {measure.__doc__}\n\n{facts}\n\n{table}")


if __name__ == "__main__":
    main(sys.argv[1:])
