"""What a verb works on: the store, an environment with its splits, a model, and the ledger of runs."""
