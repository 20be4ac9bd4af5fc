"""Searching a method's layouts under a budget: a supernet that holds them all, and evolution on validation rows."""
