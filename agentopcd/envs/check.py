"""Check that an environment keeps the contract, including what Gymnasium's own checker cannot detect."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import random
import warnings
from functools import partial

import numpy as np

from agentopcd.core.errors import EnvError
from agentopcd.envs import registry
from agentopcd.envs.probe import Probe
from agentopcd.envs.spec import written_on
from agentopcd.envs.success import rule_of
from agentopcd.envs.walks import Maker


@dataclasses.dataclass(frozen=True, slots=True)
class CheckReport:
    """Findings of a check."""

    errors: list[str]
    """Breaches of the contract: results from this environment would be wrong."""
    warnings: list[str]
    """Worth knowing before a run."""
    seeds: int
    distinct: int
    """Different tasks among the seeds."""
    random_success: float
    """Share of episodes won by random replies: listed moves if there are any, else junk. One that has not ended after
    30 replies counts as not won."""

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.errors


def assert_env_ok(make: Maker | str, n: int = 32) -> None:
    """Raise EnvError with every error that :func:`check_env` finds; for use in your own tests."""
    report = check_env(make, n)
    if not report.ok:
        raise EnvError("; ".join(report.errors))


def check_env(
    make: Maker | str, n: int = 32, *, spec: registry.EnvSpec | None = None, success_when: str = ""
) -> CheckReport:
    """Check an environment.

    Args:
        make: a class, a function that builds a fresh instance, or a reference such as ``frozen-lake``.
        n: number of seeds to check, 0 to n - 1.
        spec: the environment's spec, which says what counts as success; that of the reference, if it is one.
        success_when: a rule for success in place of what the environment says.

    Returns:
        A report; faults of the environment are recorded in it, not raised.

    Raises:
        AgentOpcdError: the environment cannot be built.
    """
    if n < 2:
        raise EnvError(f"n must be 2 or more, got {n}")
    if success_when:
        rule_of(success_when)
    if isinstance(make, str):
        spec = spec or registry.get_spec(make)
        make = partial(registry.make, make)
    elif isinstance(make, type):  # built as by its reference: numbers as text, cut off at its limit
        spec = spec or registry.EnvSpec(id=make.__name__, entry_point=make, **written_on(make))
        make = partial(registry.make, dataclasses.replace(spec, entry_point=make))
    python_rng, numpy_rng = random.getstate(), np.random.get_state()
    probe = Probe(make, n, spec or registry.EnvSpec(id="", entry_point=make, **written_on(make)), success_when)
    written = io.StringIO()
    try:
        with contextlib.redirect_stdout(written), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            probe.run()
    finally:
        random.setstate(python_rng)
        np.random.set_state(numpy_rng)
    for text in dict.fromkeys(str(warning.message) for warning in told):
        if text.startswith("close()") or " and does not count, as nothing says " in text:
            probe.warn(text)
    if written.getvalue().strip():
        probe.warn(f"writes to stdout: {written.getvalue().strip()[:60]!r}")
    return CheckReport(probe.errors, probe.warnings, n, len(probe.keys), probe.wins / n)
