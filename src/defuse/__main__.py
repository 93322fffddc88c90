"""`python -m defuse` is `defuse`; launchers such as `accelerate launch -m defuse` want it so."""

from defuse.cli import main

if __name__ == "__main__":
    main()
