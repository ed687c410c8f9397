"""``python -m agentopcd``."""

from agentopcd.cli import main

if __name__ == "__main__":  # worker processes of slow environments import this, too
    main()
