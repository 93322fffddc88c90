"""Options that several verbs share."""

from typing import Annotated, Literal

from typer import Option

Plan = Annotated[bool, Option("--plan", help="List the runs and the time they take; run nothing.")]
Report = Annotated[bool, Option("--report", help="Only report what is finished.")]
Only = Annotated[list[str] | None, Option(help="Only this method; repeat for more.")]
RetryFailed = Annotated[bool, Option("--retry-failed", help="Run failed runs again.")]
RunnerName = Annotated[
    Literal["serial", "processes", "ray"],
    Option(help="In this process, in several processes of one thread, or on Ray."),
]
Jobs = Annotated[int | None, Option(help="Runs or attacked models at a time; default: one a core.")]
# Of `lab` and `real`, whose settings and attacks are part of them.
Tune = Annotated[bool, Option("--tune", help="Try settings on questions that no report uses.")]
Attacks = Annotated[bool, Option("--attacks", help="Attack models instead of asking them.")]
