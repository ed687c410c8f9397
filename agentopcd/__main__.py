"""``python -m agentopcd``."""

from agentopcd.cli import main

main()
