"""Testbeds: real architectures, small, and really pretrained, with the recipes that anyone can re-run."""
