"""The administration API under /api/v1: one file per family of routes, and the list of all."""
