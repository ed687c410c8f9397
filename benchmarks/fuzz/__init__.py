"""Inputs that nobody would write on purpose, thousands of them: ``python -m benchmarks.fuzz``.

Files, rows, replies, settings, flags, refs, imports, games, and damaged store, run and model folders. Each input is
drawn from a seed and given to the command line, or to the function behind it, in this process. It ends well in one of
two ways: it is **kept**, and every law of its kind holds (what was read is what was written, no row is lost, a grade
is a function of the reply), or it is **refused** in one line with exit code 2. All else is a fault:

- a *traceback*: another exception, an error of several lines, another exit code, or no end within the time limit;
- *silent*: the input was kept, and a law says that its meaning was changed.

The table has a line for each kind. A fault is printed with its number, and ``--only KIND --at NUMBER`` draws the same
input again. Exit code 1 if there is a fault.
"""
