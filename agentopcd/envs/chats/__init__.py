"""Conversations from files: every answer of the assistant is a place to answer."""
