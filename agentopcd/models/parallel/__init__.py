"""Several processes that train one student."""
