"""Several processes that train one student: how they share work, and how they share weights."""
