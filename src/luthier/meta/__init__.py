"""Meta-learning of starts: what a prompt begins with, learned from unlabelled text."""
