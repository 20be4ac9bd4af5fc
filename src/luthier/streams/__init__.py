"""Continual learning: a sequence of tasks on one base."""
