"""List and make the recorded runs of the book; what was cut off goes on where it was.

    python book/_tools/record.py                                               what is outstanding, with estimates
    python book/_tools/record.py --next 1                                      the first one
    python book/_tools/record.py --budget 8m                                   as many as fit
    python book/_tools/record.py --chapter 05 --scale paper --dataset mnist    this one, also where it is recorded

A chapter, a scale or a data set alone narrows the list. Exit status: 0; 1 where a run failed or was cut off; 2 for what
cannot be; 3 where the budget is too small for every run; 130 where it was interrupted.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from chapters import ROOT
from recording import Recording, budget_seconds, data_parameters, factors, listed, on_cpu, outstanding, spoken
from recording_checks import check_data, check_device, chosen, whole_number
from recording_run import perform

FINE = ("done", "kept", "busy")


@dataclass
class Machine:
    """What the runs are made with."""

    root: Path
    factors: dict[str, float]  # of the devices that are there
    data_dir: Path | None
    device: str

    def seconds(self, run: Recording) -> float | None:
        """Return the estimated seconds that a run still takes; None where its device is missing."""
        factor = self.factors.get(run.device)
        return None if factor is None else run.seconds(self.root, factor)

    def parameters(self, run: Recording) -> dict[str, str]:
        """Return the parameters of the run's chapter."""
        device = {"device": self.device} if self.device else {}
        return {**data_parameters(run.dataset, self.data_dir), **device}


def table(runs: list[Recording], machine: Machine) -> str:
    """Return the list in words."""
    lines = []
    for number, run in enumerate(runs, 1):
        left, spent = machine.seconds(run), run.spent(machine.root)
        about = f"needs a GPU (an H200: {spoken(60 * run.minutes)})" if left is None else spoken(left)
        about += ", rough" if run.rough else ""
        began = f" (after {spoken(spent)} that were cut off)" if spent else ""
        lines.append(f"{number:4}  {run.chapter:<32} {run.scale:<7} {run.dataset:<9} {about}{began}")
    here = ", ".join(f"{name} {factor:.2f}" for name, factor in machine.factors.items())
    done = len(listed(machine.root)) - len(outstanding(machine.root))
    return "\n".join([
        "Recorded runs that are outstanding, and the time they should take here: an estimate, from the minutes in",
        f"book/record.yml and a speed test of this machine (times the reference's time: {here}).", "",
        *(lines or ["  none: all of them are recorded"]), "", f"{done} of the list are recorded.",
        "make record NEXT=1, BUDGET=8m, or CHAPTER=05 SCALE=paper DATASET=mnist, with DATA_DIR=... where the data lie"])


def say(text: str) -> None:
    """Show a progress line: in place on a terminal, else a line of its own."""
    print(f"\r{text:<100}" if sys.stdout.isatty() else text, end="" if sys.stdout.isatty() else "\n", flush=True)


def make(run: Recording, machine: Machine, *, budget: float | None = None, again: bool = False) -> str:
    """Make one run and say how it went.

    Raises:
        ValueError: its data are not there, and it was asked for by name, `again`.
    """
    try:
        check_data(run.dataset, machine.data_dir, machine.root)
    except ValueError as error:
        if again:
            raise
        print(f"{run.name}: {error}", file=sys.stderr, flush=True)
        return str(error)
    left = machine.seconds(run) or 0.0
    about = f"about {spoken(left)}" if left else "no estimate"
    print(f"{run.name}: {about}", flush=True)
    estimate = left + run.spent(machine.root) if left else 0.0
    said = perform(run, machine.root, machine.parameters(run), estimate=estimate, budget=budget, say=say, again=again)
    where = run.result(machine.root).relative_to(machine.root)
    words = {"done": f"recorded in {where}", "kept": f"is there: {where}", "busy": "another process is at work on it",
             "cut off": "cut off, because the budget is spent; the next make record goes on with it"}
    print(f"\n{run.name}: {words.get(said, said)}", file=sys.stdout if said in FINE else sys.stderr, flush=True)
    return said


def within_budget(runs: list[Recording], machine: Machine, budget: float) -> int:
    """Make the runs whose estimates fit into what is left of the budget, in order; return the exit status."""
    known = {run: seconds for run in runs if (seconds := machine.seconds(run)) is not None}
    if known and min(known.values()) > budget:
        least = min(known, key=known.get)
        print(f"BUDGET of {spoken(budget)} is too small for every outstanding run: the smallest, {least.name}, takes "
              f"about {spoken(known[least])} here (an estimate)", file=sys.stderr)
        return 3
    started, said = time.monotonic(), []
    for run in known:
        left = budget - (time.monotonic() - started)
        if machine.seconds(run) <= left:
            said.append(make(run, machine, budget=left))
    print(f"{said.count('done')} recorded, {spoken(time.monotonic() - started)} of {spoken(budget)} used")
    return int(any(word not in FINE for word in said))


def work(arguments: argparse.Namespace) -> int:
    """Do what the command line asks for and return the exit status.

    Raises:
        ValueError: for what it cannot ask for.
    """
    budget = budget_seconds(arguments.budget) if arguments.budget else None
    number = whole_number("NEXT", arguments.next, "runs")
    workers = whole_number("WORKERS", arguments.workers, "processes")
    if budget is not None and (arguments.scheduler or workers):
        raise ValueError("BUDGET is for runs one after the other on this machine: for WORKERS and SCHEDULER say NEXT=1")
    names = {"CHAPTER": arguments.chapter, "SCALE": arguments.scale, "DATASET": arguments.dataset}
    runs, one = chosen(names, arguments.root)
    if not arguments.scheduler:
        check_device(arguments.device)
    known = {"cpu": arguments.factor} if arguments.factor else factors(arguments.root)
    machine = Machine(arguments.root, known, arguments.data_dir, arguments.device or "")
    if arguments.device == "cpu" or one:
        runs = [run if run.device in known else on_cpu(run) for run in runs]
    if arguments.scheduler or workers:
        from recording_cluster import on_cluster

        ready = [run for run in runs if arguments.scheduler or run.device in known][:number]
        return on_cluster(ready, machine, scheduler=arguments.scheduler, workers=workers, again=one)
    if one:
        return int(make(runs[0], machine, budget=budget, again=True) not in FINE)
    if budget is not None:
        return within_budget(runs[:number], machine, budget)
    if number is None:
        print(table(runs, machine))
        return 0
    ready = [run for run in runs if run.device in known][:number]
    if not ready:
        print("no outstanding run goes on this machine" if runs else "nothing is outstanding")
    return int(any([make(run, machine) not in FINE for run in ready]))


def main() -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that holds book/")
    parser.add_argument("--next", help="how many of the outstanding runs are made")
    parser.add_argument("--budget", help="time in which runs are made, such as 8m")
    parser.add_argument("--chapter", help="its number or the beginning of its name")
    parser.add_argument("--scale", help="tiny, laptop, gpu or paper")
    parser.add_argument("--dataset", help="name of the data set, such as mnist")
    parser.add_argument("--data-dir", type=Path, help="where mnist.npz or torchvision's folders lie")
    parser.add_argument("--device", help="auto, cpu or cuda (default: the chapter's)")
    parser.add_argument("--scheduler", help="address of a Dask scheduler that gives the runs to its workers")
    parser.add_argument("--workers", help="number of workers of a cluster on this machine")
    parser.add_argument("--factor", type=float, help="times the reference's time, in place of the speed test")
    arguments = parser.parse_args()
    try:
        return work(arguments)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; nothing is lost, the next make record goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
