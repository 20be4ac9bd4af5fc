"""Scores of sites, units and entries that several methods share: what matters to a task."""
