"""The command: draw inputs of every kind, print the table and the faults; exit code 1 if there is a fault."""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping

import benchmarks.fuzz as about
from benchmarks.fuzz import stock
from benchmarks.fuzz.harness import Fault, Kind, Tally, try_one


def kinds() -> dict[str, Kind]:
    """All kinds, by name."""
    from benchmarks.fuzz import folders, games, questions, settings, stores

    listed = {**questions.KINDS, **settings.KINDS, **stores.KINDS, **games.KINDS, **folders.KINDS}
    return {name: Kind(try_, share) for name, (try_, share) in listed.items()}


def fuzz(n: int, seed: int, only: Iterable[str] = (), at: int | None = None, *, loud: bool = False) -> dict[str, Tally]:
    """Try ``n`` inputs of all kinds by their shares, or only some kinds, or only one number of them."""
    known = kinds()
    chosen = {name: known[name] for name in (only or known)}
    total = sum(kind.share for kind in chosen.values())
    tallies: dict[str, Tally] = {}
    with stock.still():
        for name, kind in chosen.items():
            tallies[name] = Tally()
            for number in [at] if at is not None else range(max(1, round(n * kind.share / total))):
                try_one(name, kind, number, seed, tallies[name])
            if loud:
                print(line(name, tallies[name]), flush=True)
    return tallies


HEAD = f"{'kind':<18}{'inputs':>8}{'kept':>8}{'refused':>9}{'tracebacks':>12}{'silent':>8}{'s':>8}"


def line(name: str, tally: Tally) -> str:
    """One row of the table."""
    broken = len(tally.faults) - tally.silent
    return f"{name:<18}{tally.n:>8}{tally.kept:>8}{tally.refused:>9}{broken:>12}{tally.silent:>8}{tally.seconds:>8.0f}"


def total_of(tallies: Mapping[str, Tally]) -> Tally:
    """The sum of all rows."""
    total = Tally()
    for tally in tallies.values():
        total.kept, total.refused = total.kept + tally.kept, total.refused + tally.refused
        total.seconds += tally.seconds
        total.faults += tally.faults
    return total


def told(faults: Iterable[Fault], seed: int) -> list[str]:
    """The faults that are alike as one entry, the most frequent first."""
    alike: dict[tuple[str, bool, str, str], list[Fault]] = defaultdict(list)
    for fault in faults:
        alike[fault.kind, fault.silent, fault.place, "" if fault.place else fault.what[:30]].append(fault)
    lines = []
    for found in sorted(alike.values(), key=len, reverse=True):
        first = found[0]
        lines.append(f"{len(found)} x {first.kind}: {first.what}" + (f"  at {first.place}" if first.place else ""))
        lines.append(f"    {first.shown}")
        lines.append(f"    again: python -m benchmarks.fuzz --only '{first.kind}' --at {first.number} --seed {seed}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=about.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000, help="inputs in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], metavar="KIND", choices=kinds(), help="repeat for more")
    parser.add_argument("--at", type=int, help="only the input of this number")
    args = parser.parse_args()
    began = time.perf_counter()
    print(HEAD)
    tallies = fuzz(args.n, args.seed, args.only, args.at, loud=True)
    total = total_of(tallies)
    print(line("all", total))
    print(f"seed {args.seed}, {time.perf_counter() - began:.0f} s")
    for text in told(total.faults, args.seed):
        print(text.encode("utf-8", "backslashreplace").decode())
    sys.exit(bool(total.faults))


if __name__ == "__main__":
    main()
