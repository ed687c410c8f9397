"""From play to a chosen context: play, extract items, grow candidate contexts, choose one."""
