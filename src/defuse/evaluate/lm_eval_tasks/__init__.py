"""Task files for lm-evaluation-harness; `defuse lm-eval-tasks` prints their folder."""
