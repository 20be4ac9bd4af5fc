"""Arithmetic of what was trained: prompts as differences from their origins."""
