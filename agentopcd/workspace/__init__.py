"""What a verb has open: the store, the environment with its splits, the model, and the ledger of runs."""
