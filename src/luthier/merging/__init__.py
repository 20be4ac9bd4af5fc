"""Arithmetic of what was trained: prompts as differences from their origins, and one prompt from several tasks."""
