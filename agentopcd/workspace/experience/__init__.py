"""From play to a chosen context."""
