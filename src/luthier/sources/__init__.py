"""Sources that methods share: where a part's numbers come from."""
