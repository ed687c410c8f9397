"""Pages to look at what a workspace holds: one file that stands alone, or live while a run goes on."""
