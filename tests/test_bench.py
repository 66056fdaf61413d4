"""The measurements run, and write their own section of the results and no other."""

import subprocess
import sys
from pathlib import Path

from bench.report import write_section


def test_a_section_is_replaced_and_its_neighbours_stay(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    for name, text in [("a", "one"), ("b", "two"), ("c", "three"), ("b", "four")]:
        write_section(path, name, text)
    before = path.read_text()
    assert [line for line in before.splitlines() if line in ("one", "two", "three", "four")] == ["one", "four", "three"]
    write_section(path, "b", "four")
    assert path.read_text() == before


def measure(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "bench.relay", *arguments], capture_output=True, text=True, timeout=120
    )


def test_a_measurement_beside_postfix_ends_in_a_table(programs: None, tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    briefly = ("--rounds", "1", "--seconds", "0.1", "--results", str(path))
    done = measure("--only", "kept", "--systems", "bare,postfix", *briefly)
    assert done.returncode == 0, done.stderr
    lines = [line for line in path.read_text().splitlines() if line.startswith(("| bare", "| postfix"))]
    rates = [int(line.split("|")[2].replace(",", "")) for line in lines]
    assert len(rates) == 2
    assert all(rate > 50 for rate in rates)


def test_an_unknown_name_is_refused() -> None:
    done = measure("--only", "lunch")
    assert done.returncode == 2
    assert "There is no lunch." in done.stderr
