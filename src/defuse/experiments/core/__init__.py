"""The experiment engine: plan, run, resume, measure, tabulate and draw."""
